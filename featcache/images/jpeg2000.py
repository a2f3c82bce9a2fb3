"""JPEG 2000: how many bits it has, whether it is whole, and the samples of pictures of more than 8 bits."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from featcache.core.errors import ImageError
from featcache.images.pixels import Samples

MAGIC = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
"""How files of boxes begin, and bare codestreams."""

_END = b"\xff\xd9"
_SRGB, _GREY = 16, 17
_COMPONENTS_AT = 40
"""Where a codestream says how many channels it has, and then of each how it is sampled."""


def depths_of(data: bytes) -> list[int]:
    """Bits of each channel. Raises ImageError for what was cut off, or has no certain reading."""
    stream = _codestream(data)
    if len(stream) < _COMPONENTS_AT + 2 or not stream.rstrip(b"\0").endswith(_END):
        raise ImageError("the file is damaged or truncated (its end is missing)")
    (channels,) = struct.unpack_from(">H", stream, _COMPONENTS_AT)
    depths = list(stream[_COMPONENTS_AT + 2 : _COMPONENTS_AT + 2 + 3 * channels : 3])
    if any(depth & 0x80 for depth in depths):
        raise ImageError("the image holds signed pixels, whose range is unknown: save it with 8 or 16 bits")
    return [(depth & 0x7F) + 1 for depth in depths]


def read_wide(data: bytes, depths: list[int]) -> Samples:
    """The samples of a picture of 9 to 16 bits, which Pillow would cut down to 8."""
    import imagecodecs

    if len(set(depths)) > 1 or depths[0] > 16:
        raise ImageError(f"the image has channels of {', '.join(map(str, depths))} bits: save it with 8 or 16")
    boxes = dict(_boxes(data)) if data.startswith(MAGIC[0]) else {}
    header = dict(_boxes(boxes.get(b"jp2h", b"")))
    colour = header.get(b"colr", b"\x02")
    kinds = (_SRGB, _GREY)
    if b"pclr" in header or (colour[0] == 1 and struct.unpack_from(">I", colour, 3)[0] not in kinds):
        raise ImageError("the image has a palette or colours other than RGB and grey: save it with 8 bits")
    pixels = imagecodecs.jpeg2k_decode(data)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    has_alpha = pixels.shape[2] in (2, 4)
    kept = pixels[:, :, : pixels.shape[2] - has_alpha]
    if kept.shape[2] not in (1, 3):
        raise ImageError(f"the image has {pixels.shape[2]} channels: save it as RGB or grey")
    alpha = pixels[:, :, -1] if has_alpha else None
    return Samples(np.ascontiguousarray(kept), (1 << depths[0]) - 1, alpha, is_declared=True)


def _codestream(data: bytes) -> bytes:
    if data.startswith(MAGIC[1]):
        return data
    return next((body for kind, body in _boxes(data) if kind == b"jp2c"), b"")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of each box; the last one of a file that was cut off has the rest."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1 and at + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = len(data) if length == 0 else at + length
        if end <= at:
            return
        yield kind, data[start:end]
        at = end
