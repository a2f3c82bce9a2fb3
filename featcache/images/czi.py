"""CZI, the files of microscopes by Zeiss: one picture out of what they hold, read by the library of their maker."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import ImageError
from featcache.core.extras import install_line, is_installed
from featcache.images.physical import of_czi
from featcache.images.pixels import ROOM, Decoded, Samples, check_size, finished

MAGIC = b"ZISRAWFILE"
_KINDS = {"Gray8": (1, 1), "Gray16": (1, 2), "Bgr24": (3, 1), "Bgr48": (3, 2)}
"""Kind of pixels -> channels, and bytes of each."""
_BITS = re.compile(r"<ComponentBitCount>\s*(\d{1,2})\s*</ComponentBitCount>")


def read_czi(data: bytes, white: int = 0) -> Decoded:
    """The first plane of the first scene of a CZI file. Raises ImageError for what has no certain reading.

    white : as of `featcache.images.read_picture`
    """
    if not is_installed("pylibCZIrw"):
        raise ImageError(f"it is a CZI file, which pylibCZIrw reads, which is not installed: {install_line('czi')}")
    from pylibCZIrw import czi

    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:  # the library takes names of files alone
        file = Path(folder) / "image.czi"
        file.write_bytes(data)
        with czi.open_czi(str(file)) as document:
            return _picture(document, white)


def _picture(document: Any, white: int) -> Decoded:
    ends = {axis: int(stop) - int(start) for axis, (start, stop) in document.total_bounding_box.items()}
    scenes = dict(sorted(document.scenes_bounding_rectangle.items()))
    if (channels := ends.get("C", 1)) > 1:
        raise ImageError(f"it holds {channels} channels as separate planes: merge them into one RGB picture")
    kind = str(document.get_channel_pixel_type(0))
    if kind not in _KINDS:
        raise ImageError(f"the image holds pixels of the kind {kind}: save it with 8 or 16 bits a channel")
    scene = next(iter(scenes), None)
    place = scenes[scene] if scene is not None else document.total_bounding_rectangle
    n, n_bytes = _KINDS[kind]
    with ROOM.taken(check_size(place.w, place.h, bytes_per_pixel=n * n_bytes)):
        pixels = document.read(plane={axis: 0 for axis in ("C", "Z", "T") if axis in ends}, scene=scene)
        samples = _samples(pixels, n_bytes, document.raw_metadata, _remark(ends, len(scenes)))
        return replace(finished(samples, white), size=of_czi(document.raw_metadata))


def _samples(pixels: Any, n_bytes: int, metadata: str, remark: str) -> Samples:
    colour = np.ascontiguousarray(pixels[:, :, ::-1])  # blue, green, red
    full = (1 << 8 * n_bytes) - 1
    said = {(1 << int(bits)) - 1 for bits in _BITS.findall(metadata)}
    is_declared = len(said) == 1 and 255 <= min(said) < full and int(colour.max(initial=0)) <= min(said)
    return Samples(colour, min(said) if is_declared else full, remark=remark, is_declared=is_declared)


def _remark(ends: dict[str, int], scenes: int) -> str:
    """What to say of a file that holds more than one picture."""
    if scenes > 1:
        return f"it holds {scenes} scenes; the first was taken"
    if max(ends.get("Z", 1), ends.get("T", 1)) > 1:
        return "it is a stack of several planes; the first was taken"
    return ""
