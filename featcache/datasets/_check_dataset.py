"""check_dataset: broken files, torn groups, empty classes, and images that show the same pixels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, ProjectError
from featcache.core.progress import Progress
from featcache.core.project import ImageFolders, Project, find_project, init_call
from featcache.core.shown import shown
from featcache.datasets._preview import write_sheet
from featcache.datasets.candidates import LeftOut, explaining
from featcache.datasets.current import current_dataset
from featcache.datasets.manifest import SPLITS, Dataset, LabelledImage, check, dataset_of, in_order, write_dataset
from featcache.datasets.shared_pixels import SharedPixels, find_shared_pixels
from featcache.images import contact_sheet, read_bytes, read_picture

PAIRS_FILE = "shared-pixels.png"
_MOST_DRAWN, _TILE_PX, _LINE_PX, _FAR_PX = 40, 320, 3, 10_000
_UNIT = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
_ORANGE = (255, 120, 0)


@dataclass(frozen=True)
class CheckedDataset:
    """What was found in a data set.

    Attributes
    ----------
    dataset : the images that can be used
    left_out : (path, reason) of the others
    pairs : files of different groups that show the same pixels, those that share most first
    across : those of them that stand on two sides of a split
    drawn : picture of the pairs; None where there are none
    joined : how many groups were joined into others
    moved : images whose split changed by that
    """

    dataset: Dataset
    left_out: tuple[LeftOut, ...]
    pairs: tuple[SharedPixels, ...] = ()
    across: tuple[SharedPixels, ...] = ()
    drawn: Path | None = None
    joined: int = 0
    moved: int = 0


def check_dataset(
    project: Project | str | Path = ".",
    *,
    fix: bool = False,
    compare: bool = True,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> CheckedDataset:
    """Check every image of dataset.csv, and find those that show the same pixels.

    Near duplicates, mirrored and turned ones too, and fields that overlap are no independent cases: where one is
    trained on, the other must not be tested on. So they have to be one group.

    Parameters
    ----------
    project : a project, or a folder in one
    fix : join such images into one group, in dataset.csv. It stands in the split where most of its images are
    compare : whether images are compared with each other, which takes some 50 ms of a core an image
    out : PNG file to draw the pairs into; by default shared-pixels.png in the project
    progress : told how far it is

    Raises
    ------
    DatasetError : the images cannot be trained on: torn groups, classes that a split has none of. Of `fix`: they could
        not be with the groups joined; nothing is changed then
    ProjectError : there is no project, or a file cannot be written

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> fc.check_dataset(project).pairs
    ()
    """
    progress = shown(progress)
    project = project if isinstance(project, Project) else find_project(Path(project))
    dataset, left_out = current_dataset(project, progress=progress)
    remedy = init_call(into=project.folder, resplit=True)
    with explaining(left_out):
        _check(dataset.images, project, remedy)
    done = CheckedDataset(dataset, tuple(left_out))
    if not compare:
        return done
    pairs = compared(dataset.images, project.images, white=dataset.white, progress=progress)
    if not pairs:
        return done
    drawn = Path(out) if out is not None else project.folder / PAIRS_FILE
    done = replace(done, pairs=pairs, across=on_two_sides(dataset.images, pairs), drawn=drawn)
    write_sheet(drawn, _sheet(pairs, dataset))
    return _fixed(done, project, remedy) if fix else done


def compared(
    images: Sequence[LabelledImage],
    folder: ImageFolders,
    *,
    mirrored: bool = True,
    white: int = 0,
    progress: Progress,
) -> tuple[SharedPixels, ...]:
    """Pairs of files of different groups that show the same pixels, as of `find_shared_pixels`."""
    groups = {image.path: image.group for image in images}
    with progress.begin("comparing images", len(groups)) as advance:
        found = find_shared_pixels(folder, sorted(groups), mirrored=mirrored, white=white, on_file=lambda: advance(1))
    return tuple(pair for pair in found if groups[pair.a] != groups[pair.b])


def on_two_sides(images: Sequence[LabelledImage], pairs: Sequence[SharedPixels]) -> tuple[SharedPixels, ...]:
    """Pairs of which one is trained on, say, and the other tested on."""
    split = {image.path: image.split for image in images if image.is_trained_on}
    return tuple(pair for pair in pairs if len({split.get(pair.a), split.get(pair.b)} - {None}) > 1)


def _fixed(done: CheckedDataset, project: Project, remedy: str) -> CheckedDataset:
    """The same with the groups of all pairs joined, in dataset.csv too."""
    of_path = {image.path: image.group for image in done.dataset.images}
    joined = _joined_groups([(of_path[pair.a], of_path[pair.b]) for pair in done.pairs])
    images = [replace(image, group=joined.get(image.group, image.group)) for image in done.dataset.images]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for image in images:
        if image.is_trained_on:
            counts[image.group][image.split] += 1
    home = {group: max(SPLITS, key=lambda split: count[split]) for group, count in counts.items()}
    settled = [replace(image, split=home[image.group]) if image.is_trained_on else image for image in images]
    try:
        _check(settled, project, remedy)
    except DatasetError as error:
        raise DatasetError(f"the groups were not joined, since then {error}") from error
    before = {(image.path, image.box): image.split for image in done.dataset.images}
    moved = sum(image.split != before[image.path, image.box] for image in settled)
    now = {(image.path, image.box): image for image in settled}
    lines = [now.get((line.path, line.box), line) for line in dataset_of(project).images]
    try:
        write_dataset(project.dataset_file, in_order(lines))
    except OSError as error:
        raise ProjectError(f"{project.dataset_file}: cannot be written: {error.strerror or error}") from error
    dataset = replace(done.dataset, images=in_order(settled))
    return replace(done, dataset=dataset, joined=len(joined) - len(set(joined.values())), moved=moved)


def _check(images: Sequence[LabelledImage], project: Project, remedy: str) -> None:
    separator = project.settings.dataset.label_separator
    check(images, str(project.dataset_file), remedy=remedy, label_separator=separator)


def _joined_groups(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """{group: the first of all that pairs join it with}"""
    leader: dict[str, str] = {}

    def first(group: str) -> str:
        while group in leader:
            group = leader[group]
        return group

    for pair in pairs:
        kept, gone = sorted(map(first, pair))
        if kept != gone:
            leader[gone] = kept
    return {group: first(group) for pair in pairs for group in pair}


def _sheet(pairs: Sequence[SharedPixels], dataset: Dataset) -> NDArray[np.uint8]:
    """The pairs side by side, with a line around what both show."""
    split = {image.path: image.split for image in dataset.images}
    tiles, captions = [], []
    for pair in pairs[:_MOST_DRAWN]:
        in_b = np.array(pair.corners)
        to_b = cv2.getAffineTransform(_UNIT[:3], in_b[:3].astype(np.float32))
        in_a = cv2.transform(_UNIT[None], cv2.invertAffineTransform(to_b))[0]
        tiles.append(
            [_outlined(dataset.folder / path, lines, dataset.white) for path, lines in ((pair.a, in_a), (pair.b, in_b))]
        )
        sides = ", ".join(f"{path} ({split[path] or 'no split'})" for path in (pair.a, pair.b))
        captions.append(f"{100 * pair.share:.0f} %   {sides}")
    return contact_sheet(tiles, captions, tile_px=_TILE_PX)


def _outlined(path: Path, corners: NDArray[np.floating[Any]], white: int) -> NDArray[np.uint8]:
    """An image as a square, with a line through corners (4, 2) in shares of its sides."""
    picture = read_picture(read_bytes(path), white).pixels
    pixels = cv2.resize(picture, (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_AREA)
    shown_at = np.clip(np.rint(corners * _TILE_PX), -_FAR_PX, _FAR_PX).astype(np.int32)
    return np.asarray(cv2.polylines(np.ascontiguousarray(pixels), [shown_at], True, _ORANGE, _LINE_PX))
