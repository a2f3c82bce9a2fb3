"""COCO annotations: one JSON file for many pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.core.errors import DatasetError
from featcache.core.strict_json import read_bounded
from featcache.datasets.annotations import PLACES, Annotated
from featcache.datasets.candidates import UNKNOWN_SIZE, Size, composed
from featcache.datasets.split_names import split_of
from featcache.images import MAX_SIDE_PX, Box, visible_folders

_MAX_FILE_BYTES = 512 << 20
_START_BYTES = 1 << 16
_KEYS = (b'"images"', b'"annotations"', b'"categories"', b'"file_name"', b'"bbox"')


def coco_files(folder: Path, own: frozenset[Path]) -> list[Path]:
    """COCO files right in a folder, or in its folder of annotations."""
    places = [folder, *(sub for sub in visible_folders(folder, own) if sub.name.lower() in PLACES)]
    return [path for place in places for path in sorted(place.glob("*.json")) if is_coco(path)]


def is_coco(path: Path) -> bool:
    """Whether a file looks like COCO's, by its beginning and its end."""
    try:
        with path.open("rb") as file:
            text = file.read(_START_BYTES)
            file.seek(max(path.stat().st_size - _START_BYTES, 0))
            text += file.read()
    except OSError:
        return False
    return sum(key in text for key in _KEYS) >= 3


def read_coco(path: Path) -> list[Annotated]:
    """The annotations of a COCO file, one for each of its pictures. Raises DatasetError where it is none."""
    try:
        value = json.loads(read_bounded(path, _MAX_FILE_BYTES))
        names = {item["id"]: _name(item) for item in value["categories"]}
        by_picture = {item["id"]: _picture(path, item) for item in value["images"]}
        listed = [(item["image_id"], item) for item in value["annotations"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as COCO annotations ({type(error).__name__}: {error})") from error
    for image_id, item in listed:
        if not isinstance(image_id, (int, str)) or image_id not in by_picture:
            raise DatasetError(f"{path}: an annotation is of the image {image_id!r:.80}, which is not in the file")
        annotated, category = by_picture[image_id], item.get("category_id")
        name = names.get(category, "") if isinstance(category, (int, str)) else ""
        try:
            if not name:
                raise ValueError("an object whose category has no name")
            if item.get("iscrowd"):
                raise ValueError("a crowd of objects, and no single one")
            annotated.objects.append((name, _box(item)))
        except ValueError as error:
            annotated.odd.append((name, str(error)))
    return list(by_picture.values())


def _name(category: Mapping[str, Any]) -> str:
    """A category's name; "" where it has none, which leaves its objects out."""
    name = category.get("name")
    return composed(name.strip()) if isinstance(name, str) else ""


def _picture(path: Path, item: Mapping[str, Any]) -> Annotated:
    width, height = item.get("width"), item.get("height")
    is_known = isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0
    size: Size = (width, height) if is_known else UNKNOWN_SIZE  # type: ignore[assignment]
    name, split = str(item["file_name"]).replace("\\", "/"), split_of(path.stem)
    return Annotated(path, name, size, is_one_of_many=True, split=split)


def _box(item: Mapping[str, Any]) -> Box:
    """COCO gives left, top, width and height, and counts pixels from 0."""
    bounds = item.get("bbox")
    if not isinstance(bounds, list) or len(bounds) != 4:
        raise ValueError("an object without a box")
    if not all(isinstance(side, (int, float)) and abs(side) < MAX_SIDE_PX for side in bounds):  # nor is NaN
        raise ValueError(f"an object with the box {bounds!s:.80}")
    left, top, width, height = bounds
    return Box(max(round(left), 0), max(round(top), 0), round(left + width), round(top + height))
