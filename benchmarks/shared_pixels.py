"""Images that show the same pixels: found in real sets, of copies that were changed, and of images that share none.

python benchmarks/shared_pixels.py [FOLDER ...] [--copies FOLDER]

FOLDER ... : sets of images: how many pairs are found, the least correlation of a pair, and processor time an image
--copies : folder of different images. Of sixty a copy is put beside them that was mirrored, turned, cut, compressed,
made smaller or brighter: how many of the sixty are found, and how many others. Without it, generated cells are taken
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from common import print_machine
from numpy.typing import NDArray

from featcache.core.project import ImageFolders
from featcache.datasets.shared_pixels import SharedPixels, find_shared_pixels
from featcache.images.decode import is_image_name
from featcache.synthetic.drawing import write_cells

COPIES, MOST_IMAGES = 60, 250


def changed(image: NDArray[np.uint8], number: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """One of six changes, in turn."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), float(generator.uniform(10, 80)), 1)
    changes = (
        lambda: cv2.flip(image, 1),
        lambda: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
        lambda: cv2.convertScaleAbs(image, alpha=1.15, beta=-10),
        lambda: cv2.resize(image, (width * 2 // 3, height * 2 // 3), interpolation=cv2.INTER_AREA),
        lambda: cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT),
        lambda: cv2.flip(image, 0)[height // 8 :, width // 8 :],
    )
    return np.asarray(changes[number % len(changes)]())


def images_in(folder: Path) -> list[str]:
    """Paths of all images below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if is_image_name(path))


def timed(folder: Path, paths: Sequence[str]) -> tuple[tuple[SharedPixels, ...], float]:
    """The pairs, and milliseconds of processor time an image."""
    started = time.process_time()
    pairs = find_shared_pixels(ImageFolders(folder), paths)
    return pairs, 1000 * (time.process_time() - started) / max(len(paths), 1)


def of_copies(source: Path, folder: Path) -> tuple[int, int, int]:
    """Copies that are found, other pairs, and how many images there are."""
    generator = np.random.default_rng(0)
    expected, paths = set(), []
    for number, path in enumerate(images_in(source)[:MOST_IMAGES]):
        image = cv2.imread(str(source / path))
        names = [f"{number:03d}.png"]
        if number < COPIES:
            names.append(f"{number:03d}-copy.jpg")
            copy = changed(image, number, generator)
            cv2.imwrite(str(folder / names[1]), copy, [cv2.IMWRITE_JPEG_QUALITY, 80])
            expected.add(tuple(sorted(names)))
        cv2.imwrite(str(folder / names[0]), image)
        paths += names
    found = {tuple(sorted((pair.a, pair.b))) for pair in timed(folder, sorted(paths))[0]}
    return len(found & expected), len(found - expected), len(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--copies", type=Path)
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as work:
        cells = Path(work, "cells")
        write_cells(cells, 60)
        print("| set | images | pairs | near duplicates | least correlation | ms an image |")
        print("|---|---|---|---|---|---|")
        for folder in (*asked.folders, cells):
            paths = images_in(folder)
            pairs, ms = timed(folder, paths)
            near = sum(pair.is_near_duplicate for pair in pairs)
            least = f"{min(pair.correlation for pair in pairs):.2f}" if pairs else ""
            print(
                f"| {folder.parent.name}/{folder.name} | {len(paths)} | {len(pairs)} | {near} | {least} | {ms:.0f} |",
                flush=True,
            )
        copies = Path(work, "copies")
        copies.mkdir()
        found, others, total = of_copies(asked.copies or cells, copies)
        print(f"changed copies: {found} of {COPIES} found among {total} images, and {others} other pairs")


if __name__ == "__main__":
    main()
