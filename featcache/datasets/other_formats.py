"""Annotations of formats that are not read: found, so that their folders are not taken for classes."""

from __future__ import annotations

import re
from pathlib import Path

from featcache.core.errors import DatasetError
from featcache.datasets.coco import is_coco
from featcache.images import files_below

_YOLO_LINE = re.compile(rb"\s*\d+(?:\s+-?(?:\d+\.?\d*|\.\d+)(?:[eE]-?\d+)?){4,}\s*")
_HINT = "Export them as Pascal VOC or COCO, or set `class_level=1` to take class folders without boxes"
_LOOKED_AT = 20
_START_BYTES = 1 << 16


def refuse_other_annotations(folder: Path, own: frozenset[Path]) -> None:
    """Raise DatasetError where a folder holds annotations of labelme, or those of YOLO or of COCO at an odd place."""
    texts = [path for path in files_below(folder, ".txt", own=own) if not path.name.lower().startswith("readme")]
    yolo = [path for path in texts[:_LOOKED_AT] if _is_yolo(path)]
    if yolo:
        raise DatasetError(
            f"{folder}: {len(texts)} .txt files, such as {yolo[0].name}, hold boxes in the YOLO format, and no image "
            "has the name of one",
            "Put them beside the images, or into labels/ beside images/",
        )
    for path in files_below(folder, ".json", own=own)[:_LOOKED_AT]:
        if _is_labelme(path):
            raise DatasetError(f"{path}: holds annotations of labelme, which are not supported", _HINT)
        if is_coco(path):
            raise DatasetError(f"{path}: COCO annotations are read from {folder} or {folder / 'annotations'}: move it")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START_BYTES)
    except OSError:
        return b""


def _is_yolo(path: Path) -> bool:
    lines = [line for line in _start(path).splitlines()[:3] if line.strip()]
    return bool(lines) and all(_YOLO_LINE.fullmatch(line) for line in lines)


def _is_labelme(path: Path) -> bool:
    text = _start(path)
    return b'"shapes"' in text and (b'"imagePath"' in text or b'"imageData"' in text)
