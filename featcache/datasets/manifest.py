"""The dataset manifest: dataset.csv, one line an image, with its label, split, group and box."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError
from featcache.core.files import plain_cell, safe_cell, write_text
from featcache.core.project import ImageFolders, Project
from featcache.core.recipe import UM_PER_PX, digest
from featcache.datasets.csv_files import read_csv
from featcache.datasets.label_lists import labels_in, tidied
from featcache.images import OF_ARRAY, UNKNOWN, Box, PixelSize, sides_px

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split", "group", "x_min", "y_min", "x_max", "y_max", "image_id")
_BOX_COLUMNS = ("x_min", "y_min", "x_max", "y_max")
_TEXT_COLUMNS = ("path", "label", "group")
_MASK_COLUMN, _UM_COLUMN = "mask", "um_per_px"
_PLAIN_PATH = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*")
"""Names that begin with a letter, digit, underscore or hyphen: not absolute, and no part is '.' or '..'."""


@dataclass(frozen=True)
class LabelledImage:
    """One line of dataset.csv: an original, or one box cut out of it.

    path : relative to the images' folder, with forward slashes; of images in another root it begins with its name
    label : of several labels an image all of them, see `featcache.datasets.label_lists`
    label, split : "" where nobody has said yet: the image is cached, and left out of training
    image_id : digest of the file's bytes, and of the box and mask where there are such (`image_id_of`)
    mask : path of the mask that comes with it, as `path`; "" for none
    um_per_px : side of a pixel in micrometres, where a person says it; 0 leaves it to the file
    """

    path: str
    label: str
    split: str
    group: str
    image_id: str
    box: Box | None = None
    mask: str = ""
    um_per_px: float = 0.0

    @property
    def is_trained_on(self) -> bool:
        """Whether it has what a training needs: a label and a split."""
        return bool(self.label and self.split)


@dataclass(frozen=True)
class Dataset:
    """Images in their order, a project's as dataset.csv has them, and the folders that their paths start from.

    arrays : pixels (h, w, 3), uint8, of images that are no files, by path
    label_separator : between the labels of an image that may have several; "" where each has one
    white : value of white in files of more than 8 bits that do not say it; 0: the largest of their type
    sizes : how large pixels are, by path, as files say it; those that say nothing are not there
    """

    images: tuple[LabelledImage, ...]
    folder: Path | ImageFolders
    arrays: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    label_separator: str = ""
    white: int = 0
    sizes: Mapping[str, PixelSize] = field(default_factory=dict, compare=False)

    def size_of(self, image: LabelledImage) -> PixelSize:
        """How large the pixels of an image are: as a person says it, or else its file."""
        if image.um_per_px:
            return PixelSize(image.um_per_px)
        return OF_ARRAY if image.path in self.arrays else self.sizes.get(image.path, UNKNOWN)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """All labels of images in a split, sorted."""
        trained_on = {image.label for image in self.images if image.is_trained_on}
        return tuple(sorted({label for text in trained_on for label in labels_in(text, self.label_separator)}))

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over every line, in any order: what a run was trained on."""
        lines = [list(_cells(image)) for image in self.images]
        lines = sorted(lines, key=lambda line: [-1 if cell is None else cell for cell in line])
        return digest([["label_separator", self.label_separator], *lines] if self.label_separator else lines)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images a class and split: {label: {split: n}}; one of several labels counts for each of them."""
        counts: Counter[tuple[str, str]] = Counter(
            (label, image.split) for image in self.images for label in labels_in(image.label, self.label_separator)
        )
        return {label: {split: counts[label, split] for split in SPLITS} for label in self.classes}


def in_order(images: Iterable[LabelledImage]) -> tuple[LabelledImage, ...]:
    """Images as dataset.csv lists them: split by split, classes together, then by path and box."""
    order = (*SPLITS, "")
    return tuple(sorted(images, key=lambda i: (order.index(i.split), i.label, i.path, i.box or Box(0, 0, 1, 1))))


def check(
    images: Sequence[LabelledImage],
    where: str,
    *,
    remedy: str = "`featcache.init(resplit=True)`",
    label_separator: str = "",
) -> None:
    """Refuse what no honest training can use. Raises DatasetError with all that is wrong at once.

    Images without a label or split are passed: they are not trained on.

    remedy : what makes new splits
    label_separator : as of `Dataset`
    """
    if not images:
        raise DatasetError(f"{where}: no usable image")
    images = [image for image in images if image.is_trained_on]
    if not images:
        raise DatasetError(f"{where}: no image has both a label and a split")
    labels_of = {image.label: labels_in(image.label, label_separator) for image in images}
    labels = {label for found in labels_of.values() for label in found}
    if len(labels) < 2:
        found = f"all images have the label {min(labels)!r}" if labels else "no image has any of the labels"
        if labels and label_separator:
            found = f"the images have no label but {min(labels)!r}"
        raise DatasetError(f"{where}: {found}: at least two classes are needed")
    problems = []
    by_group = defaultdict(set)
    for image in images:
        by_group[image.group].add(image.split)
    torn = sorted(group for group, splits in by_group.items() if len(splits) > 1)
    if torn:
        splits = " and ".join(sorted(by_group[torn[0]]))
        problems.append(
            f"{len(torn)} groups stand in several splits ({torn[0]!r} in {splits}): "
            "a group must stay on one side, or the test leaks into the training"
        )
    for split in SPLITS:
        there = {image.label for image in images if image.split == split}
        present = {label for text in there for label in labels_of[text]}
        if not there:
            problems.append(f"the split {split!r} has no images")
        elif labels - present:
            problems.append(f"the split {split!r} has no images of {', '.join(sorted(labels - present))}")
    if problems:
        raise DatasetError(f"{where}: " + "; ".join(problems), f"{remedy} makes new splits from all images")


def write_dataset(path: Path, images: Sequence[LabelledImage]) -> None:
    """Write dataset.csv; the columns of boxes, masks and sizes are there only if some image has such."""
    import pandas as pd

    frame = pd.DataFrame([_cells(image) for image in images], columns=list(COLUMNS))
    if any(image.mask for image in images):
        frame[_MASK_COLUMN] = [safe_cell(image.mask) for image in images]
    if any(image.um_per_px for image in images):
        frame[_UM_COLUMN] = [image.um_per_px or None for image in images]
    frame[list(_TEXT_COLUMNS)] = frame[list(_TEXT_COLUMNS)].map(safe_cell)
    if all(image.box is None for image in images):
        frame = frame.drop(columns=list(_BOX_COLUMNS))
    else:
        frame = frame.astype(dict.fromkeys(_BOX_COLUMNS, "Int64"))
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def read_dataset(path: Path, folder: Path | ImageFolders, *, label_separator: str = "") -> Dataset:
    """Parse dataset.csv. Every line is checked; DatasetError names the first line that is wrong.

    label_separator : as of `Dataset`

    The column image_id may be absent or empty (a list written by hand): it is then "".
    """
    frame = read_csv(path)
    missing = {"path", "label", "split"} - set(frame.columns)
    if missing:
        raise DatasetError(f"{path}: no column {', '.join(sorted(missing))}; found {', '.join(frame.columns)}")
    images, seen = [], set()
    for line, cells in zip(frame.index, frame.to_dict("records"), strict=True):
        image = _parse({str(key): str(value) for key, value in cells.items()}, f"{path}, line {line}")
        image = replace(image, label=tidied(image.label, label_separator))
        if (image.path, image.box) in seen:
            raise DatasetError(f"{path}, line {line}: {image.path} is listed twice")
        seen.add((image.path, image.box))
        images.append(image)
    if not images:
        raise DatasetError(f"{path}: no images are listed")
    return Dataset(tuple(images), folder, label_separator=label_separator)


def dataset_of(project: Project) -> Dataset:
    """What dataset.csv of a project says; see `read_dataset`."""
    separator = project.settings.dataset.label_separator
    listed = read_dataset(project.dataset_file, project.images, label_separator=separator)
    return replace(listed, white=project.settings.views.white)


def safe_relative(path: str, where: str) -> str:
    """`path` with forward slashes. Raises DatasetError if it is empty, absolute or climbs out with '..'."""
    if _PLAIN_PATH.fullmatch(path):  # nearly all are, and there may be a hundred thousand
        return path
    cleaned = path.strip().replace("\\", "/")
    pure = PurePosixPath(cleaned)
    outside = pure.is_absolute() or ".." in pure.parts or re.match("[A-Za-z]:", cleaned)
    if not pure.parts or outside or "\0" in cleaned:
        raise DatasetError(f"{where}: path {path!r:.200}: expected one relative to the images' folder, without '..'")
    return pure.as_posix()


def parse_box(cells: dict[str, str], where: str) -> Box | None:
    """The box in the cells x_min, y_min, x_max, y_max (or xmin, ...), or None where all are empty or absent."""
    values = [(cells.get(name) or cells.get(name.replace("_", ""), "")).strip() for name in _BOX_COLUMNS]
    if not any(values):
        return None
    try:
        return Box(*map(round, sides_px(values)))
    except ValueError as error:
        raise DatasetError(f"{where}: box {', '.join(values)}: expected four whole numbers of pixels") from error


def um_per_px_in(cell: str, where: str) -> float:
    """The side of a pixel in a cell of a list; 0 where it is empty. Raises DatasetError for what is none."""
    try:
        value = float(cell.strip() or 0)
    except ValueError:
        value = math.nan
    if value == 0 and not cell.strip():
        return 0.0
    least, most = UM_PER_PX
    if not least <= value <= most:
        raise DatasetError(f"{where}: um_per_px {cell!r:.80}: expected the side of a pixel, {least:g} to {most:g} µm")
    return value


def _parse(cells: dict[str, str], where: str) -> LabelledImage:
    cells = {**cells, **{name: plain_cell(cells.get(name, "").strip()) for name in _TEXT_COLUMNS}}
    path = safe_relative(cells["path"], where)
    label, split = cells["label"].strip(), cells["split"].strip()
    if split not in (*SPLITS, ""):
        raise DatasetError(f"{where}: split {split!r}: expected train, val, test or nothing")
    box = parse_box(cells, where)
    image_id, mask = cells.get("image_id", "").strip(), plain_cell(cells.get(_MASK_COLUMN, "").strip())
    return LabelledImage(
        path=path,
        label=label,
        split=split,
        group=cells.get("group", "").strip(),
        image_id=image_id,
        box=box,
        mask=safe_relative(mask, where) if mask else "",
        um_per_px=um_per_px_in(cells.get(_UM_COLUMN, ""), where),
    )


def _cells(image: LabelledImage) -> tuple[str | int | None, ...]:
    box = (None,) * 4 if image.box is None else astuple(image.box)
    return (image.path, image.label, image.split, image.group, *box, image.image_id)
