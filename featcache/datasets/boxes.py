"""Boxes on the picture that they were drawn on, and on the upright image that is cut."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

from PIL import Image

from featcache.core.errors import DatasetError
from featcache.datasets.candidates import UNKNOWN_SIZE, Size
from featcache.images import Box, ImageFile

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_UNREADABLE = (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error, ArithmeticError)


def placed(box: Box, size: Size | None, *, file: ImageFile, path: Path) -> Box:
    """The part of a box that lies in the upright image, turned with it where it was drawn before turning.

    size : of the picture that the box was drawn on; see `featcache.datasets.candidates.Candidate`

    Raises DatasetError with the reason where the box cannot be placed for certain.
    """
    upright = (file.width_px, file.height_px)
    if size is not None:
        orientation = orientation_of(path)
        if _is_drawn_before_turning(size, upright, orientation):
            stored = upright[::-1] if orientation in _SIDEWAYS else upright
            box = turned(_within(box, stored), stored, orientation=orientation)
    return _within(box, upright)


def _is_drawn_before_turning(size: Size, upright: Size, orientation: int) -> bool:
    stored = upright[::-1] if orientation in _SIDEWAYS else upright
    if size != UNKNOWN_SIZE and size not in (upright, stored):
        raise DatasetError(
            f"the box was drawn on a picture of {size[0]}x{size[1]} px, and the file has {stored[0]}x{stored[1]} px"
        )
    if orientation == 1:
        return False
    if size == UNKNOWN_SIZE or upright == stored:
        raise DatasetError(
            f"its EXIF orientation {orientation} turns the picture, and nothing says whether the box was drawn before "
            "or after turning: save the picture upright, without the orientation"
        )
    return size == stored


def _within(box: Box, size: Size) -> Box:
    """The part of a box that lies in a picture; DatasetError where none does."""
    part = clipped(box, size[0], height_px=size[1])
    if part is None:
        raise DatasetError(f"the box {box} lies outside of the image ({size[0]}x{size[1]} px)")
    return part


def clipped(box: Box, width_px: int, *, height_px: int) -> Box | None:
    """The part of a box that lies in a picture, or None if none does."""
    if box.x_min >= width_px or box.y_min >= height_px:
        return None
    return Box(box.x_min, box.y_min, min(box.x_max, width_px), min(box.y_max, height_px))


def turned(box: Box, stored: Size, *, orientation: int) -> Box:
    """A box of the picture as it is stored (width, height) as a box of the picture that EXIF turns upright."""
    width, height = stored
    x, y = (box.x_min, box.x_max), (box.y_min, box.y_max)
    x_back, y_back = (width - box.x_max, width - box.x_min), (height - box.y_max, height - box.y_min)
    along, down = {
        1: (x, y),
        2: (x_back, y),
        3: (x_back, y_back),
        4: (x, y_back),
        5: (y, x),
        6: (y_back, x),
        7: (y_back, x_back),
        8: (y, x_back),
    }[orientation]
    return Box(along[0], down[0], along[1], down[1])


def orientation_of(path: Path) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1 (upright) where it has none that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                found = picture.getexif().get(_ORIENTATION, 1)
    except _UNREADABLE:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1
