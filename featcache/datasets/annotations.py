"""Pascal VOC and CVAT annotations: found in a folder, and read; an odd object leaves the others alone."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from featcache.core.errors import DatasetError
from featcache.core.files import resolved
from featcache.datasets.candidates import UNKNOWN_SIZE, Size, composed
from featcache.images import MAX_SIDE_PX, Box, files_below, is_image_name, is_images_folder, visible_folders

PLACES = ("annotations", "annotation", "xml", "xmls", "labels", "voc")
_DECLARED = re.compile(rb"""^<\?xml[^>]*encoding\s*=\s*["']([\w.:-]+)["']""")
_MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class Annotated:
    """The annotation of one picture.

    picture : the picture's name as it says (<filename>)
    size : of the picture that was annotated, as it says
    objects : name and box of each
    odd : name ("" where there is none) and what is wrong, of each object that has no box to use
    is_one_of_many : whether the file is of many pictures, so that its own name says nothing of this one
    of : the picture, where it is known from the place of the file
    split : that the file's name says, or ""
    """

    file: Path
    picture: str
    size: Size
    objects: list[tuple[str, Box]] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)
    is_one_of_many: bool = False
    of: Path | None = None
    split: str = ""


def placed_annotations(folder: Path, own: frozenset[Path]) -> list[Path]:
    """XML files below FOLDER/annotations (any case); or right in FOLDER, beside images or a folder of them."""
    subfolders = visible_folders(folder, own)
    places = [sub for sub in subfolders if sub.name.lower() in PLACES]
    found = [path for place in places for path in files_below(place, ".xml", own=own)]
    beside = any(map(is_images_folder, subfolders)) or any(map(is_image_name, folder.iterdir()))
    if not found and beside:
        inner = frozenset(resolved(sub) for sub in subfolders)
        found = files_below(folder, ".xml", own=own | inner)
    return found


def annotations_beside(folder: Path, own: frozenset[Path]) -> list[Path]:
    """XML files at any depth that lie beside pictures of their names, if most pictures have one."""
    files = files_below(folder, ".xml", own=own)
    stems: dict[Path, set[str]] = {}
    for parent in {file.parent for file in files}:
        stems[parent] = {composed(path.stem) for path in parent.iterdir() if is_image_name(path)}
    paired = [file for file in files if composed(file.stem) in stems[file.parent]]
    return files if 2 * len(paired) >= max(sum(map(len, stems.values())), 1) else []


def read_annotations(file: Path) -> list[Annotated]:
    """An annotation file: Pascal VOC is of one picture, CVAT for images of many.

    Raises DatasetError with the reason where it cannot be read as a whole.
    """
    root = _root(file)
    if root.tag == "annotations":
        return from_cvat(file, root)
    if root.tag != "annotation":
        raise DatasetError(
            f"<{root.tag}> is its outermost element, and Pascal VOC has <annotation>, "
            "CVAT <annotations>: export as that"
        )
    return [_from_voc(file, root)]


def _root(file: Path) -> Any:
    try:
        return _parsed(file)
    except DefusedXmlException as error:
        raise DatasetError("it declares XML entities of its own, which are not read: save it without them") from error
    except (ParseError, ValueError, LookupError, OSError, RecursionError) as error:
        raise DatasetError(str(error)) from error


def _from_voc(file: Path, root: Any) -> Annotated:
    picture = Path((root.findtext("filename") or "").strip().replace("\\", "/")).name
    annotated = Annotated(file, picture, _size(root))
    for item in root.iter("object"):
        name = (item.findtext("name") or "").strip()
        try:
            if not name:
                raise ValueError("an object without <name>")
            annotated.objects.append((composed(name), _box(item)))
        except (ValueError, OverflowError) as error:
            annotated.odd.append((composed(name), str(error)))
    return annotated


def _parsed(file: Path) -> Any:
    """The outermost element. Encodings that the parser does not know (GBK, say) are decoded before it."""
    if file.stat().st_size > _MAX_FILE_BYTES:
        raise ValueError(f"it has more than {_MAX_FILE_BYTES:,} bytes")
    data = file.read_bytes().lstrip(b" \t\r\n")
    try:
        return fromstring(data)
    except (ValueError, LookupError, ParseError):
        declared = _DECLARED.match(data.removeprefix(codecs.BOM_UTF8))
        if declared is None or codecs.lookup(declared[1].decode()).name in ("utf-8", "ascii"):
            raise
        return fromstring(data.decode(declared[1].decode()))


def _size(root: Any) -> Size:
    try:
        width, height = (round(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return UNKNOWN_SIZE
    return (width, height) if width > 0 and height > 0 else UNKNOWN_SIZE


def _box(item: Any) -> Box:
    """VOC counts pixels from 1 and includes the last one. Corners may come in any order."""
    sides = {side: (item.findtext(f"bndbox/{side}") or "").strip() for side in ("xmin", "ymin", "xmax", "ymax")}
    if not any(sides.values()):
        kinds = [kind for kind in ("polygon", "robndbox", "mask") if item.find(kind) is not None]
        raise ValueError(f"an object with <{kinds[0]}> and without <bndbox>" if kinds else "an object without <bndbox>")
    for side, value in sides.items():
        if not value:
            raise ValueError(f"an object without <{side}>")
        if not (math.isfinite(float(value)) and abs(float(value)) < MAX_SIDE_PX):
            raise ValueError(f"<{side}> is {value}")
    x_min, x_max = sorted(float(sides[side]) for side in ("xmin", "xmax"))
    y_min, y_max = sorted(float(sides[side]) for side in ("ymin", "ymax"))
    return Box(max(round(x_min) - 1, 0), max(round(y_min) - 1, 0), round(x_max), round(y_max))


def from_cvat(file: Path, root: Any) -> list[Annotated]:
    """CVAT for images, of a task or of one of its jobs. Boxes are edges in pixels, counted from 0.

    Raises DatasetError for CVAT for video, whose pictures are frames without names.
    """
    if root.find("track") is not None:
        raise DatasetError("it holds tracks of a video: export as 'CVAT for images'")
    read = []
    for image in root.iter("image"):
        name = (image.get("name") or "").strip().replace("\\", "/")
        if not name:
            raise DatasetError("an <image> has no name")
        annotated = Annotated(file, name, _cvat_size(image), is_one_of_many=True)
        for item in image:
            label = composed((item.get("label") or "").strip())
            if item.tag not in _CVAT_SHAPES:
                annotated.odd.append((label, f"<{item.tag}> has no area that a box could be of"))
                continue
            try:
                if not label:
                    raise ValueError("an object without a label")
                annotated.objects.append((label, box_of_points(*_CVAT_SHAPES[item.tag](item))))
            except (ValueError, OverflowError, TypeError) as error:
                annotated.odd.append((label, str(error)))
        read.append(annotated)
    return read


def box_of_points(xs: Sequence[float], ys: Sequence[float]) -> Box:
    """The box around points, px. Raises ValueError where a number is none, or no pixel lies between them."""
    if not all(math.isfinite(value) and abs(value) < MAX_SIDE_PX for value in (*xs, *ys)):
        raise ValueError("an object with numbers that are no places in a picture")
    return Box(max(round(min(xs)), 0), max(round(min(ys)), 0), max(round(max(xs)), 0), max(round(max(ys)), 0))


def _cvat_size(image: Any) -> Size:
    try:
        width, height = int(image.get("width") or 0), int(image.get("height") or 0)
    except ValueError:
        return UNKNOWN_SIZE
    return (width, height) if width > 0 and height > 0 else UNKNOWN_SIZE


def _numbers(item: Any, *names: str) -> list[float]:
    for name in names:
        if not item.get(name):
            raise ValueError(f"a <{item.tag}> without {name}")
    return [float(item.get(name)) for name in names]


def _points_of_box(item: Any) -> tuple[list[float], list[float]]:
    """The corners; of a turned box after it was turned around its middle."""
    left, top, right, bottom = _numbers(item, "xtl", "ytl", "xbr", "ybr")
    angle = math.radians(float(item.get("rotation") or 0))
    x, y = (left + right) / 2, (top + bottom) / 2
    corners = [(a - x, b - y) for a in (left, right) for b in (top, bottom)]
    cos, sin = math.cos(angle), math.sin(angle)
    return [x + a * cos - b * sin for a, b in corners], [y + a * sin + b * cos for a, b in corners]


def _points_of_polygon(item: Any) -> tuple[list[float], list[float]]:
    points = [[float(value) for value in point.split(",")] for point in (item.get("points") or "").split(";")]
    if len(points) < 3 or any(len(point) != 2 for point in points):
        raise ValueError("a <polygon> of fewer than three points")
    return [x for x, _ in points], [y for _, y in points]


def _points_of_ellipse(item: Any) -> tuple[list[float], list[float]]:
    x, y, rx, ry = _numbers(item, "cx", "cy", "rx", "ry")
    angle = math.radians(float(item.get("rotation") or 0))
    wide, high = (
        math.hypot(rx * math.cos(angle), ry * math.sin(angle)),
        math.hypot(rx * math.sin(angle), ry * math.cos(angle)),
    )
    return [x - wide, x + wide], [y - high, y + high]


def _points_of_mask(item: Any) -> tuple[list[float], list[float]]:
    left, top, width, height = _numbers(item, "left", "top", "width", "height")
    return [left, left + width], [top, top + height]


_CVAT_SHAPES: dict[str, Callable[[Any], tuple[list[float], list[float]]]] = {
    "box": _points_of_box,
    "polygon": _points_of_polygon,
    "ellipse": _points_of_ellipse,
    "mask": _points_of_mask,
}
