"""From samples as files hold them to upright RGB of 8 bits; and how much of a file may be decoded at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Condition
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache.core.errors import ImageError
from featcache.images.physical import UNKNOWN, PixelSize

MAX_PIXELS = 120_000_000
"""Larger files are refused unread: as RGB they would take more than 360 MB."""

MAX_DECODED_BYTES = 4 * MAX_PIXELS
"""The samples of one picture, in their own depth, before they become RGB."""

RULES = (1, 2)
"""By which rules files are read: see `Decoded`."""

FLOATING = 1 << 24
"""`full` of floating-point samples, whose range no file says."""
_LARGEST_WHOLE = 65_535
_BRIGHT = 16_383
"""Floating-point samples above it are taken for those of 16 bits where nothing is said; of others nobody knows."""

_BLOCK_ROWS = 256


@dataclass(frozen=True)
class Samples:
    """A picture as its file holds it.

    colour : ndarray of shape (height, width, 1, 3 or 4), uint8, uint16 or floating point; 4 are inks
    full : the value of white (of full ink); `FLOATING` where the samples are floating point
    alpha : ndarray of shape (height, width), in the same range, or None
    is_premultiplied : whether `colour` holds alpha already
    is_inks : whether `colour` is cyan, magenta, yellow and black
    orientation : the turn that is still needed, as EXIF numbers it
    remark : what to say of the file, "" mostly
    is_declared : whether the file says how many bits of a wider type it uses
    rules : see `Decoded`
    """

    colour: NDArray[Any]
    full: int
    alpha: NDArray[Any] | None = None
    is_premultiplied: bool = False
    is_inks: bool = False
    orientation: int = 1
    remark: str = ""
    is_declared: bool = False
    rules: int = 1


@dataclass(frozen=True)
class Decoded:
    """An image file's picture, and what is worth knowing of how it was read.

    pixels : ndarray of shape (height, width, 3), uint8: upright RGB
    rules : by which rules the file was read. Kinds of files that version 0.1 read wrongly, or not at all, count as 2:
        their image_id is another one, so that no feature of the wrong pixels is taken for one of the right
    remark : "" or which picture of several was taken
    brightest, full : the brightest value in the file, rounded up, and the value of white in the file's own range,
        `FLOATING` of floating point; 0, 0 where the file itself says how much of the range it uses
    size : how large a pixel is
    """

    pixels: NDArray[np.uint8]
    rules: int = 1
    remark: str = ""
    brightest: int = 0
    full: int = 0
    size: PixelSize = UNKNOWN


def check_size(width: int, height: int, *, bytes_per_pixel: int = 3) -> int:
    """The bytes that decoding a picture takes, from its header. Raises ImageError where they are too many."""
    if width <= 0 or height <= 0:
        raise ImageError("the image has no pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(f"the image is too large: {width}x{height} px, at most {MAX_PIXELS:,} pixels are read")
    if width * height * bytes_per_pixel > MAX_DECODED_BYTES:
        raise ImageError(
            f"the image is too large: {width}x{height} px of {bytes_per_pixel} bytes, at most "
            f"{MAX_DECODED_BYTES:,} bytes are decoded"
        )
    return width * height * (bytes_per_pixel + 3)


class _Room:
    """Memory that pictures share while they are decoded, whatever the number of threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._taken = most_bytes, 0
        self._changed = Condition()

    @contextmanager
    def taken(self, wanted: int) -> Iterator[None]:
        """Wait until `wanted` bytes are free; what is larger than all room waits until nobody else decodes."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + wanted <= self._most_bytes)
            self._taken += wanted
        try:
            yield
        finally:
            with self._changed:
                self._taken -= wanted
                self._changed.notify_all()


ROOM = _Room(MAX_DECODED_BYTES)


def finished(samples: Samples, white: int = 0, *, is_look: bool = False) -> Decoded:
    """The picture of a file's samples.

    white : value of white, where more than 8 bits a sample are there and the file does not say it; 0: the largest
    is_look : whether the pixels are only looked at, so that floating point of unknown range may have any

    Raises ImageError where nothing of it can be seen, where a sample is above `white`, and where nobody knows what is
    white.
    """
    seen = (0, 0) if samples.is_declared else (_brightest(samples.colour), samples.full)
    if is_look and samples.full == FLOATING:
        white = max(seen[0], 1)
    elif problem := problem_of_white(*seen, white=white):
        raise ImageError(problem)
    elif samples.full == FLOATING:
        white = white or _LARGEST_WHOLE
    if white and 255 < seen[1] != white and not samples.is_inks:
        samples = _with_white(samples, white)
    return Decoded(to_rgb(samples), samples.rules, samples.remark, *seen)


def _brightest(colour: NDArray[Any]) -> int:
    """The brightest value, rounded up. Raises ImageError for floating point that is no light."""
    if colour.dtype.kind != "f":
        return int(colour.max(initial=0))
    least, most = float(colour.min(initial=0)), float(colour.max(initial=0))
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ImageError("the image holds values that are no finite numbers")
    if least < 0:
        raise ImageError(f"the image holds values below 0, down to {least:g}: which of them is black is not known")
    return math.ceil(most)


def problem_of_white(brightest: int, full: int, *, white: int) -> str:
    """Why samples up to `brightest`, of a range up to `full`, cannot be read with a value of white, or ""."""
    if full == FLOATING:
        is_of_other_range = white >= 255 and brightest <= 1  # a black one, or of values from 0 to 1
        if is_of_other_range or (not white and not _BRIGHT < brightest <= _LARGEST_WHOLE):
            return (
                f"it holds floating-point values up to {brightest:,}, and which of them is white is not known (`white`)"
            )
    if not white or full <= 255 or brightest <= white:
        return ""
    return f"its brightest value is {brightest:,}, above the value of white, {white:,} (`white`)"


def _with_white(samples: Samples, white: int) -> Samples:
    """Samples whose white is another one. What is transparent by the old one is so by the new one."""
    alpha = samples.alpha
    if alpha is not None and int(alpha.max(initial=0)) > white:  # of the whole range, as the file's type has it
        if samples.is_premultiplied:
            raise ImageError(f"its colours end at {white:,} and its transparency does not: save it without the latter")
        alpha = np.rint(alpha.astype(np.float64) * white / samples.full).astype(alpha.dtype)
    return replace(samples, full=white, alpha=alpha)


def to_rgb(samples: Samples) -> NDArray[np.uint8]:
    """Upright RGB of 8 bits: values by `full`, rounded; white behind what is transparent.

    Returns
    -------
    ndarray of shape (height, width, 3), uint8
    """
    alpha = samples.alpha
    if alpha is not None and not alpha.any():
        raise ImageError("every pixel of it is transparent: nothing is left of the picture")
    if samples.is_inks:
        rgb = _from_inks(samples.colour, samples.full)
    elif samples.full == 255 and not samples.is_premultiplied and samples.colour.dtype.kind != "f":
        rgb = _of_8_bits(samples.colour, alpha)
    else:
        rgb = _scaled(samples)
    return orient(rgb, samples.orientation)


def _of_8_bits(colour: NDArray[np.uint8], alpha: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    rgb = np.broadcast_to(colour.astype(np.uint8, copy=False), (*colour.shape[:2], 3))
    if alpha is None:
        return np.array(rgb)
    return over_white(Image.fromarray(np.dstack([rgb, alpha.astype(np.uint8, copy=False)]), "RGBA"))


def over_white(rgba: Image.Image) -> NDArray[np.uint8]:
    """A Pillow image with alpha, as RGB before white."""
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, rgba).convert("RGB"), dtype=np.uint8)


def _from_inks(colour: NDArray[Any], full: int) -> NDArray[np.uint8]:
    inks = np.rint(colour * np.float32(255 / full)).astype(np.uint8)
    return np.array(Image.fromarray(np.ascontiguousarray(inks), "CMYK").convert("RGB"), dtype=np.uint8)


def _scaled(samples: Samples) -> NDArray[np.uint8]:
    """A block of rows at a time, so that wide numbers never take memory for the whole picture."""
    height, width = samples.colour.shape[:2]
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BLOCK_ROWS):
        rows = slice(top, top + _BLOCK_ROWS)
        block = samples.colour[rows].astype(np.float32) / np.float32(samples.full / 255)
        if samples.alpha is not None:
            alpha = samples.alpha[rows, :, None].astype(np.float32) / samples.full
            block = (block if samples.is_premultiplied else block * alpha) + 255 * (1 - alpha)
        rgb[rows] = np.rint(block).clip(0, 255).astype(np.uint8)
    return rgb


def orient(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation to pixels that were read without it; numbers that mean nothing turn nothing."""
    if orientation in (2, 4):
        pixels = pixels[:, ::-1] if orientation == 2 else pixels[::-1]
    elif orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
        flips = {5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[orientation]
        pixels = pixels[:: flips[0], :: flips[1]]
    elif orientation == 3:
        pixels = pixels[::-1, ::-1]
    return np.ascontiguousarray(pixels)
