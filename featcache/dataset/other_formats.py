"""Annotations of formats that are not read: found, so that their folders are not taken for classes."""

from __future__ import annotations

import re
from pathlib import Path

from featcache.dataset.folders import files_below
from featcache.errors import DatasetError

_YOLO_LINE = re.compile(rb"\s*\d+(?:\s+-?(?:\d+\.?\d*|\.\d+)(?:[eE]-?\d+)?){4,}\s*")
_LOOKED_AT = 20
_START_BYTES = 1 << 16


def refuse_other_annotations(folder: Path, own: frozenset[Path]) -> None:
    """Raise DatasetError where a folder holds YOLO or COCO annotations, or those of labelme."""
    texts = [path for path in files_below(folder, ".txt", own) if not path.name.lower().startswith("readme")]
    yolo = [path for path in texts[:_LOOKED_AT] if _is_yolo(path)]
    if yolo:
        raise DatasetError(
            f"{folder}: the .txt files hold boxes as YOLO writes them ({len(texts)} files; {yolo[0]} for one), which "
            "are not read: export the annotations as Pascal VOC (--class-level 1 takes class folders and no boxes)"
        )
    for path in files_below(folder, ".json", own)[:_LOOKED_AT]:
        if kind := _kind_of_json(path):
            raise DatasetError(
                f"{folder}: {path} holds annotations in {kind}'s format, which are not read: export them as "
                "Pascal VOC (--class-level 1 takes class folders and no boxes)"
            )


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START_BYTES)
    except OSError:
        return b""


def _is_yolo(path: Path) -> bool:
    lines = [line for line in _start(path).splitlines()[:3] if line.strip()]
    return bool(lines) and all(_YOLO_LINE.fullmatch(line) for line in lines)


def _kind_of_json(path: Path) -> str:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            text = file.read(_START_BYTES)
            file.seek(max(size - _START_BYTES, 0))
            text += file.read()
    except OSError:
        return ""
    if b'"shapes"' in text and b'"imagePath"' in text:
        return "labelme"
    parts = sum(key in text for key in (b'"images"', b'"annotations"', b'"categories"', b'"file_name"', b'"bbox"'))
    return "COCO" if parts >= 3 else ""
