"""Which column of a list says what: path, label, split, group and box, by their usual names or as asked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.core.errors import DatasetError
from featcache.core.project import DatasetSection
from featcache.datasets.candidates import UNKNOWN_SIZE, Size
from featcache.images import Box, is_image_name, sides_px

NONE = "none"
"""Given for a column: take none, although there is one of a usual name."""

PATH_COLUMNS = ("path", "image", "file", "filename", "filepath", "imagepath", "img", "imagename", "imgpath", "imgname")
LABEL_COLUMNS = ("label", "class", "category", "target", "classname", "labels")
ALSO_PATHS = ("imageid", "id", "name", "picture")
ALSO_LABELS = ("dx", "diagnosis", "celltype", "type", "species", "y")
"""Names that only a list that was named itself may have; in a folder, a table of anything else has them too."""
_GROUP_COLUMNS = (
    *("group", "patient", "patientid", "slide", "slideid", "subject", "subjectid", "case", "caseid", "lesionid"),
    *("donor", "donorid"),
)
_MASK_COLUMNS = ("mask", "maskpath", "maskfile", "maskname")
_UM_COLUMNS = ("umperpx", "umperpixel", "micronsperpixel", "mpp")
_SPLIT_COLUMNS = ("split", "set", "subset", "fold")

_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
    ("minx", "miny", "maxx", "maxy"),
    ("startx", "starty", "endx", "endy"),
    ("xtl", "ytl", "xbr", "ybr"),
)
_EXTENTS = (
    ("bx", "by", "width", "height"),
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "width", "height"),
    ("left", "top", "w", "h"),
    ("xmin", "ymin", "width", "height"),
    ("xmin", "ymin", "w", "h"),
)
_PREFIXES = ("", "bbox", "box", "roi")
_BOXY = frozenset(name for names in (*_CORNERS, *_EXTENTS) for name in names) - {"width", "height", "w", "h"} | {
    *("bbox", "box", "boundingbox", "rect", "rectangle", "roi", "polygon", "segmentation", "coordinates", "geometry"),
    *("xcenter", "ycenter", "cx", "cy", "xc", "yc", "regionshapeattributes", "points"),
}
_YES, _NO = ("1", "1.0", "true"), ("0", "0.0", "false")
_RETINANET = ("path", "x_min", "y_min", "x_max", "y_max", "label")


@dataclass(frozen=True)
class Columns:
    """Names of the columns as they stand in a list; "" where there is none.

    labels : columns with 0 and 1, one for each label that an image may have, instead of `label`
    box : four columns: left, top and, unless `has_extent`, right and bottom; else width and height
    size : width and height of the picture that the boxes were drawn on, or none
    um_per_px : sides of pixels in micrometres
    is_ours : whether the box columns are named as in dataset.csv, whose boxes are of upright images
    """

    path: str
    label: str
    group: str
    split: str
    mask: str = ""
    labels: tuple[str, ...] = ()
    box: tuple[str, ...] = ()
    has_extent: bool = False
    size: tuple[str, ...] = ()
    is_ours: bool = False
    um_per_px: str = ""


def plain(name: str) -> str:
    """A column's name without what people write differently: 'X_min' and 'x min' are xmin."""
    return re.sub(r"[\W_]", "", name.lower())


def recognise(where: str, header: Sequence[str], *, asked: DatasetSection) -> Columns:
    """The columns of a list. Raises DatasetError where path or label is missing, or a box cannot be told."""
    by_name = {plain(name): name for name in reversed(header)}
    path, label = path_and_label(where, header, asked=asked)
    labels = tuple(_named(where, header, name, option="label_columns") for name in asked.label_columns)
    group = _one(where, header, asked=asked, option="group_column", usual=_GROUP_COLUMNS)
    split = _one(where, header, asked=asked, option="split_column", usual=_SPLIT_COLUMNS)
    mask = _one(where, header, asked=asked, option="mask_column", usual=_MASK_COLUMNS)
    box, has_extent = _box_columns(
        where, header, by_name, asked.box_columns, {path, label, *labels, group, split, mask}
    )
    size = tuple(by_name[name] for name in ("width", "height") if name in by_name and by_name[name] not in box)
    is_ours = box == tuple(by_name.get(name, "") for name in _CORNERS[0]) and all("_" in name for name in box)
    return Columns(
        path=path,
        label=label,
        group=group,
        split=split,
        mask=mask,
        labels=labels,
        box=box,
        has_extent=has_extent,
        size=size if len(size) == 2 and box else (),
        is_ours=is_ours,
        um_per_px=next((by_name[name] for name in _UM_COLUMNS if name in by_name), ""),
    )


def path_and_label(where: str, header: Sequence[str], *, asked: DatasetSection) -> tuple[str, str]:
    """The columns of a list that name images and say their labels. Raises DatasetError where one is missing.

    The second is "" where labels have columns of their own.
    """
    path = _one(where, header, asked=asked, option="path_column", usual=(*PATH_COLUMNS, *ALSO_PATHS))
    label = _one(where, header, asked=asked, option="label_column", usual=(*LABEL_COLUMNS, *ALSO_LABELS))
    label = "" if asked.label_columns else label
    if not path or not (label or asked.label_columns):
        missing = "path (or image, file, filename)" if not path else "label (or class, category)"
        option = "path_column" if not path else "label_column"
        several = ", or columns of 0 and 1, one for each label, with `label_columns=('A', 'B')`" if path else ""
        raise DatasetError(
            f"{where}: expected a column {missing}; found {', '.join(header)}",
            f"Name the column with `{option}`{several}",
        )
    return path, label


def has_path_and_label(header: Sequence[str], asked: DatasetSection, *, usual_only: bool) -> bool:
    """Whether a table lists images and labels; the rarer names of such columns count only where that is asked."""
    names = {plain(name) for name in header}
    paths, labels = set(PATH_COLUMNS), set(LABEL_COLUMNS)
    if not usual_only:
        paths, labels = paths | set(ALSO_PATHS), labels | set(ALSO_LABELS)
    paths = {plain(asked.path_column)} if asked.path_column else paths
    labels = {plain(name) for name in asked.label_columns or [asked.label_column] if name} or labels
    return bool(names & paths and names & labels)


def _one(where: str, header: Sequence[str], *, asked: DatasetSection, option: str, usual: Sequence[str]) -> str:
    """The column that an option names, or else the first of the usual ones; "" where there is none."""
    if (name := getattr(asked, option)).lower() == NONE:
        return ""
    if name:
        return _named(where, header, name, option=option)
    by_name = {plain(column): column for column in reversed(header)}
    return next((by_name[column] for column in usual if column in by_name), "")


def _named(where: str, header: Sequence[str], name: str, *, option: str) -> str:
    """The column that is called so. Raises DatasetError where there is none."""
    by_name = {plain(column): column for column in reversed(header)}
    if name not in header and plain(name) not in by_name:
        raise DatasetError(f"{where}: there is no column {name!r} (`{option}`); found {', '.join(header)}")
    return name if name in header else by_name[plain(name)]


def _box_columns(
    where: str, header: Sequence[str], by_name: Mapping[str, str], asked: Sequence[str], taken: set[str]
) -> tuple[tuple[str, ...], bool]:
    """The four columns of a box, and whether the last two are its width and height."""
    if [name.lower() for name in asked] == [NONE]:
        return (), False
    if asked:
        box = tuple(_named(where, header, name, option="box_columns") for name in asked)
        if len(box) != 4:
            raise DatasetError(f"{where}: `box_columns` names {len(box)} columns: expected four, like left,top,w,h")
        return box, plain(box[2]).endswith(("w", "width"))
    for has_extent, usual in ((False, _CORNERS), (True, _EXTENTS)):
        for names in usual:
            for prefix in _PREFIXES:
                if all(prefix + name in by_name for name in names):
                    return tuple(by_name[prefix + name] for name in names), has_extent
    boxy = [name for name in header if name not in taken and _looks_like_a_box(plain(name))]
    if boxy:
        raise DatasetError(
            f"{where}: the columns {', '.join(boxy)} look like a part of a box",
            "Name its columns with `box_columns=(LEFT, TOP, RIGHT, BOTTOM)` or `box_columns=(LEFT, TOP, WIDTH, "
            f"HEIGHT)`, or set `box_columns='{NONE}'` to take whole images",
        )
    return (), False


def _looks_like_a_box(name: str) -> bool:
    return any(name.removeprefix(prefix) in _BOXY for prefix in _PREFIXES)


def headerless(first: Sequence[str]) -> Sequence[str] | None:
    """Names for the columns of a list that begins with an image: path and label, with a box between in RetinaNet's."""
    if not first or not is_image_name(Path(first[0].replace("\\", "/"))):
        return None
    if len(first) == 2:
        return ("path", "label")
    if len(first) == 6 and all(_is_number(cell) or not cell for cell in first[1:5]):
        return _RETINANET
    return None


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def box_of(cells: Mapping[str, str], columns: Columns, *, where: str) -> Box | None:
    """The box of a line; None where all its cells are empty. DatasetError where it is none."""
    values = [cells[name].strip() for name in columns.box]
    if not any(values):
        return None
    try:
        left, top, right, bottom = sides_px(values)
        if columns.has_extent:
            right, bottom = left + right, top + bottom
        return Box(max(round(left), 0), max(round(top), 0), round(right), round(bottom))
    except ValueError as error:
        kind = "left, top, width and height" if columns.has_extent else "left, top, right and bottom"
        raise DatasetError(f"{where}: box {', '.join(values)}: expected {kind} in pixels") from error


def labels_of(cells: Mapping[str, str], columns: Columns, *, where: str) -> list[str] | None:
    """The labels whose columns say 1; None where all of these are empty. DatasetError for what is neither 0 nor 1."""
    values = {name: cells[name].strip().lower() for name in columns.labels}
    if not any(values.values()):
        return None
    for name, value in values.items():
        if value not in (*_YES, *_NO):
            raise DatasetError(f"{where}: {name} is {cells[name]!r:.80}: expected 0 or 1")
    return [name for name, value in values.items() if value in _YES]


def size_of(cells: Mapping[str, str], columns: Columns) -> Size | None:
    """The size of the picture that a line's box was drawn on."""
    if columns.size:
        width, height = (cells[name].strip() for name in columns.size)
        if width.isdecimal() and height.isdecimal() and int(width) and int(height):
            return int(width), int(height)
    return None if columns.is_ours else UNKNOWN_SIZE
