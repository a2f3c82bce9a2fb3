"""Pascal VOC annotations: found in a folder, and read; what is odd in one object leaves the others alone."""

from __future__ import annotations

import codecs
import math
import re
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
    """One annotation file.

    picture : the picture's name as it says (<filename>), without folders
    size : of the picture that was annotated, as it says
    objects : name and box of each
    odd : name ("" where there is none) and what is wrong, of each object that has no box to use
    """

    file: Path
    picture: str
    size: Size
    objects: list[tuple[str, Box]] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)


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


def read_annotation(file: Path) -> Annotated:
    """One annotation file. Raises DatasetError with the reason where it cannot be read as a whole."""
    try:
        root = _parsed(file)
    except DefusedXmlException as error:
        raise DatasetError("it declares XML entities of its own, which are not read: save it without them") from error
    except (ParseError, ValueError, LookupError, OSError, RecursionError) as error:
        raise DatasetError(str(error)) from error
    if root.tag != "annotation":
        raise DatasetError(f"<{root.tag}> is its outermost element, and Pascal VOC has <annotation>: export as that")
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
