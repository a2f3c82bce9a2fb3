"""How well white cells are found, outlined and counted, on real smears and crops of four laboratories.

python benchmarks/segmentation.py [--data ../shared/data] [--method stain|colour] [--half tuned|held|all]
                                  [--failures FOLDER] [--speed] [--fit WEIGHTS]

Folders in --data, each of which may be missing: bccd and bccd_masks (smears with boxes and masks), white_cells_masked
(crops with masks), smears_counted (fields with counts and boxes), pbc (boxes). The defaults were chosen on the pictures
with even numbers, in the order of their names ("tuned"); "held" are the others. With --failures, all pictures with a
missed, a wrong or a badly outlined cell are drawn into FOLDER: labels yellow, cells blue, nuclei green, left out red.
With --fit, a segmenter is fitted to the masks of the half that is not judged, by MobileNetV2 with these weights, for
bccd and for white_cells_masked; sets without masks are left out. With --speed, the pictures of bccd are written by
`featcache.segment`, and smears a second are given.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from common import print_machine
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

import featcache as fc
from featcache.extraction import opened_segmenter
from featcache.images import png_of, read_bytes, read_picture
from featcache.segmentation import SegmenterFile, SegmentOptions
from featcache.segmentation.contract import Segmented, Segmenter
from featcache.segmentation.crops import overlay_of
from featcache.segmentation.picture import segment_picture

Corners = tuple[float, float, float, float]
_SAME = 0.5
_POOR = 0.8


@dataclass
class Sample:
    """A picture with what is known of it."""

    path: Path
    boxes: list[Corners] | None = None
    mask: Path | None = None
    is_crop: bool = False


@dataclass
class Sums:
    """What is counted over the pictures of a set."""

    hit: int = 0
    found: int = 0
    labelled: int = 0
    overlaps: list[float] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    cell_dice: list[float] = field(default_factory=list)
    nucleus_dice: list[float] = field(default_factory=list)


def corners(row: dict[str, str]) -> Corners:
    left, top, right, bottom = (float(row[name]) for name in ("xmin", "ymin", "xmax", "ymax"))
    return left, top, right, bottom


def smears(data: Path) -> list[Sample]:
    samples = []
    for path in sorted((data / "bccd/images").glob("*.jpg")):
        root = ElementTree.parse(data / "bccd/annotations" / f"{path.stem}.xml").getroot()  # noqa: S314
        boxes = [
            corners({name: item.findtext(f"bndbox/{name}", "0") for name in ("xmin", "ymin", "xmax", "ymax")})
            for item in root.iter("object")
            if item.findtext("name") == "WBC"
        ]
        mask = data / "bccd_masks/masks" / f"{path.stem}.png"
        samples.append(Sample(path, boxes, mask if mask.is_file() else None))
    return samples


def crops(data: Path) -> list[Sample]:
    folder = data / "white_cells_masked/jtsc"
    paths = sorted((folder / "images").glob("*.png"))
    return [Sample(path, None, folder / "masks" / path.name, is_crop=True) for path in paths]


def listed(folder: Path) -> list[Sample]:
    """Pictures of a folder with boxes.csv; a cell that is labelled twice counts once."""
    boxes: dict[str, list[Corners]] = defaultdict(list)
    if not (folder / "boxes.csv").is_file():
        return []
    with (folder / "boxes.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            boxes[row["image"]] += []
            box = corners(row)
            if row["name"] == "WBC" and all(overlap(box, other) < 0.7 for other in boxes[row["image"]]):
                boxes[row["image"]].append(box)
    return [Sample(folder / name, found) for name, found in sorted(boxes.items())]


def overlap(a: Corners, b: Corners) -> float:
    """Intersection over union."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2 * float((a & b).sum()) / max(1, int(a.sum()) + int(b.sum()))


def judge(sample: Sample, found: Segmented, sums: Sums, shape: tuple[int, ...]) -> bool:
    """Add one picture. Returns whether all of it is as labelled."""
    is_good = True
    boxes = [(cell.box.x_min, cell.box.y_min, cell.box.x_max, cell.box.y_max) for cell in found.cells]
    if sample.boxes is not None:
        shares = np.array([[overlap(box, label) for label in sample.boxes] for box in boxes]).reshape(
            len(boxes), len(sample.boxes)
        )
        rows, columns = linear_sum_assignment(-shares) if shares.size else ((), ())
        hits = [float(shares[pair]) for pair in zip(rows, columns, strict=True) if shares[pair] >= _SAME]
        sums.hit += len(hits)
        sums.found += len(boxes)
        sums.labelled += len(sample.boxes)
        sums.overlaps += hits
        sums.errors.append(abs(len(boxes) - len(sample.boxes)))
        is_good = len(hits) == len(boxes) == len(sample.boxes)
    if sample.mask is not None:
        known = cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE)
        if known.any():
            labels = found.labels(shape[0], shape[1])
            sums.cell_dice.append(dice(labels > 0, known > 0))
            sums.nucleus_dice.append(dice(labels == 255, known > 200))
            is_good &= min(sums.cell_dice[-1], sums.nucleus_dice[-1]) >= _POOR
    return is_good


def line(name: str, sums: Sums) -> str:
    parts = [f"{name:20}"]
    if sums.labelled:
        recall, precision = sums.hit / sums.labelled, sums.hit / max(1, sums.found)
        parts.append(f"recall {recall:.3f}, precision {precision:.3f}, IoU {np.mean(sums.overlaps):.3f}")
        errors = np.array(sums.errors)
        parts.append(f"counts: exact {np.mean(errors == 0):.3f}, off by one at most {np.mean(errors <= 1):.3f}, ")
        parts[-1] += f"mean error {errors.mean():.3f}"
    if sums.cell_dice:
        parts.append(f"Dice: cell {np.mean(sums.cell_dice):.3f}, nucleus {np.mean(sums.nucleus_dice):.3f}")
    return "; ".join(parts).replace(";", "", 1) + f" ({len(sums.errors) or len(sums.cell_dice)} pictures)"


def draw(sample: Sample, found: Segmented, pixels: NDArray[np.uint8], folder: Path) -> None:
    boxes = [item.box for item in found.left_out if item.box]
    drawn = overlay_of(pixels, found.cells, left_out=boxes)
    for left, top, right, bottom in sample.boxes or []:
        cv2.rectangle(drawn, (int(left), int(top)), (int(right), int(bottom)), (255, 255, 0), 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{sample.path.stem}.png").write_bytes(png_of(drawn))


def fitted(samples: list[Sample], weights: Path) -> Segmenter:
    """A segmenter that is fitted to the masks of these pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("images", "masks"):
            (folder / kind).mkdir()
        for sample in samples:
            if sample.mask is not None:
                shutil.copy(sample.path, folder / "images")
                shutil.copy(sample.mask, folder / "masks")
        start, processor = time.perf_counter(), time.process_time()
        done = fc.fit_segmenter(
            folder / "images",
            folder / "masks",
            out=folder / "fitted.npz",
            weights=str(weights),
            job="cell" if samples[0].is_crop else "smear",
        )
        took = time.perf_counter() - start, time.process_time() - processor
        print(f"fitted to {done.cells} cells at {done.layer} in {took[0]:.0f} s, {took[1]:.0f} s of processor time")
        return opened_segmenter(SegmenterFile.read(done.path), weights=(str(weights),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--method", choices=("stain", "colour"), default="stain")
    parser.add_argument("--half", choices=("tuned", "held", "all"), default="held")
    parser.add_argument("--failures", type=Path)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--fit", type=Path, metavar="WEIGHTS")
    asked = parser.parse_args()
    if asked.fit and asked.half == "all":
        parser.error("--fit judges one half, and is fitted to the other")
    print_machine()
    data: Path = asked.data
    sets = {
        "bccd": smears(data),
        "white_cells_masked": crops(data),
        "smears_counted": listed(data / "smears_counted"),
        "pbc": listed(data / "pbc"),
    }
    part = {"tuned": np.s_[::2], "held": np.s_[1::2], "all": np.s_[:]}[asked.half]
    options = SegmentOptions(method=asked.method)
    for name, samples in sets.items():
        segmenter = None
        if asked.fit:
            if not any(sample.mask for sample in samples):
                continue
            segmenter = fitted(samples[np.s_[1::2] if asked.half == "tuned" else np.s_[::2]], asked.fit)
        sums = Sums()
        for sample in samples[part]:
            pixels = read_picture(read_bytes(sample.path)).pixels
            job = "cell" if sample.is_crop else "smear"
            found = segment_picture(pixels, options, job=job, segmenter=segmenter)
            if not judge(sample, found, sums, pixels.shape) and asked.failures:
                draw(sample, found, pixels, asked.failures / name)
        if samples:
            print(line(name, sums), flush=True)
    if asked.speed and sets["bccd"]:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            done = fc.segment(data / "bccd/images", Path(folder) / "cells", method=asked.method)
            seconds = time.perf_counter() - start
        print(f"{done.images / seconds:.1f} smears/s, with reading and writing all files, {seconds:.1f} s in all")


if __name__ == "__main__":
    main()
