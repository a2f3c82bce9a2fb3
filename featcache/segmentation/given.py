"""Masks that come with pictures: of 0, 128 and 255, of two values, or with a number for each cell."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects

from featcache.core.errors import ImageError
from featcache.images import FLOATING, Box, read_picture
from featcache.segmentation.contract import CYTOPLASM, NUCLEUS, Cell, Mask

_FAR, _MOST_FAR = 32, 0.01
"""A value further than this from 0, 128 and 255 is another one; and the share of such pixels that a mask may have."""
_SPECK, _LEAST_PX = 0.05, 16
"""Parts smaller than this share of the largest are slips of the pen; and pixels of a cell with a number, at least."""
_WHOLE, _FULL = 0.5, 0.15
"""Of a cell with a number: share of its pixels in its largest part, and of its box that it fills. Half of all have it:
else the values are shades and no numbers."""
_MOST_OVERLAP = 30
"""Times that boxes around cells may cover a picture: shades are everywhere."""
_NO_NUMBERS = "it holds other values than 0, 128 and 255, and they do not number cells"
_MOST_NUMBERS, _BINNED = 20_000, 1 << 16
_WIDER = 257
"""Times a grey level of eight bits, in sixteen."""
_RAW_MODES = ("I;16", "I;16L", "I;16B", "I", "F")
"""Modes of Pillow whose values are numbers beyond 255."""


@dataclass(frozen=True)
class GivenMask:
    """The cells of a mask.

    numbers : of the cell that each pixel belongs to, (height, width), int32; 0 for background
    nucleus : pixels of nuclei, likewise, where the mask tells them; else none
    boxes : around each cell, by its number from 1
    is_numbered : whether the mask has a number for each cell; else cells are parts that do not touch
    """

    numbers: NDArray[np.int32]
    nucleus: Mask
    boxes: tuple[Box, ...]
    is_numbered: bool

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.numbers.shape[1], self.numbers.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.numbers.nbytes + self.nucleus.nbytes

    def cell_in(self, box: Box | None) -> Cell | None:
        """The cell that most pixels of a box belong to, or of the whole; None where there is none."""
        part = self.numbers if box is None else self.numbers[box.y_min : box.y_max, box.x_min : box.x_max]
        counts = np.bincount(part.ravel(), minlength=2)
        number = 1 + int(counts[1:].argmax())
        if not counts[number]:
            return None
        own = self.boxes[number - 1]
        inside = np.s_[own.y_min : own.y_max, own.x_min : own.x_max]
        mask = self.numbers[inside] == number
        height, width = self.numbers.shape
        at_border = own.x_min == 0 or own.y_min == 0 or (own.x_max, own.y_max) == (width, height)
        return Cell(own, mask, mask & self.nucleus[inside], 1.0, at_border)


def read_mask(data: bytes) -> GivenMask:
    """The cells of a mask, from the bytes of its file.

    Raises ImageError with the reason where it shows no cell, or is no mask.
    """
    values = _values(data)
    counts = np.bincount(values.ravel()) if values.max() <= _BINNED else None
    found = np.unique(values) if counts is None else np.flatnonzero(counts)
    found = found[found != 0]
    if not len(found):
        raise ImageError("it shows no cell")
    if found[-1] > NUCLEUS and not (found % _WIDER).any():
        values, found, counts = values // _WIDER, found // _WIDER, None if counts is None else counts[::_WIDER]
    if (values != 0).all():
        raise ImageError("it covers the whole picture")
    if len(found) == 1:
        return _in_parts(values != 0, np.zeros(values.shape, bool))
    if counts is not None and CYTOPLASM // 2 < found[-1] <= NUCLEUS:
        far = np.abs(np.arange(len(counts))[:, None] - (0, CYTOPLASM, NUCLEUS)).min(axis=1) > _FAR
        if counts[far].sum() <= _MOST_FAR * values.size:
            return _in_parts(values > CYTOPLASM // 2, values > (CYTOPLASM + NUCLEUS) // 2)
    return _numbered(values, found)


def _values(data: bytes) -> NDArray[np.int32]:
    """The value of each pixel, (height, width): a grey level, the number that it stands for, 255 of any colour."""
    picture = read_picture(data, is_look=True)  # refuses what is too large, or no picture
    pixels, raw = picture.pixels, _raw(data)
    if raw is not None and raw.shape == pixels.shape[:2]:
        return raw
    if picture.full == FLOATING:
        raise ImageError("it holds floating-point pixels: save it with whole numbers")
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0].astype(np.int32)
    return np.where(pixels.max(axis=2) > 0, NUCLEUS, 0).astype(np.int32)


def _raw(data: bytes) -> NDArray[np.int32] | None:
    """Numbers that a picture of eight bits a channel does not show: more bits, or places in a table of colours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as picture:
                if picture.mode == "P":
                    return _places(picture)
                if picture.mode not in _RAW_MODES:
                    return None
                values = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, Image.DecompressionBombError):
        return None  # another reader has read it
    if not np.isfinite(values).all() or (values != np.rint(values)).any() or np.abs(values).max() >= 2**31:
        raise ImageError("it holds other numbers than whole ones")
    if values.min() < 0:
        raise ImageError("it holds negative numbers")
    return values.astype(np.int32)


def _places(picture: Image.Image) -> NDArray[np.int32] | None:
    """Places in a table of colours, which number cells; None where the table has grey levels only."""
    places = np.asarray(picture)
    table = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    used = np.unique(places)
    if used[-1] >= len(table) or (table[used] == table[used][:, :1]).all():
        return None
    return places.astype(np.int32)


def _in_parts(cells: Mask, nucleus: Mask) -> GivenMask:
    """Cells that do not touch."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(cells.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = 1 + np.flatnonzero(areas >= _SPECK * areas.max())
    number_of = np.zeros(len(areas) + 1, np.int32)
    number_of[kept] = np.arange(1, len(kept) + 1)
    numbers = number_of[labels]
    boxes = []
    for x, y, width, height in stats[kept, :4].tolist():
        boxes.append(Box(x, y, x + width, y + height))
    return GivenMask(numbers, nucleus & (numbers > 0), tuple(boxes), False)


def _lies_in(one: Box, other: Box) -> bool:
    return (
        other.x_min <= one.x_min and other.y_min <= one.y_min and one.x_max <= other.x_max and one.y_max <= other.y_max
    )


def _numbered(values: NDArray[np.int32], found: NDArray[Any]) -> GivenMask:
    """Cells that each have a number."""
    if len(found) > _MOST_NUMBERS:
        raise ImageError(f"it holds {len(found)} values: expected 0, 128 and 255, or a number for each cell")
    numbers = (np.searchsorted(found, values) + 1).astype(np.int32)
    numbers[values == 0] = 0
    boxes, kept, whole = [], [], 0
    places = find_objects(numbers)
    if sum(numbers[place].size for place in places) > _MOST_OVERLAP * numbers.size:
        raise ImageError(_NO_NUMBERS)
    for number, (rows, columns) in enumerate(places, 1):
        cell = numbers[rows, columns] == number
        area = int(cell.sum())
        if area < _LEAST_PX:
            continue
        _, _, stats, _ = cv2.connectedComponentsWithStats(cell.astype(np.uint8), connectivity=8)
        whole += bool(stats[1:, cv2.CC_STAT_AREA].max() >= _WHOLE * area and area >= _FULL * cell.size)
        kept.append(number)
        boxes.append(Box(columns.start, rows.start, columns.stop, rows.stop))
    if 2 * whole < len(found):
        raise ImageError(_NO_NUMBERS)
    if len(boxes) == 2 and any(_lies_in(one, other) for one, other in (boxes, boxes[::-1])):
        raise ImageError(
            f"its values {found[0]} and {found[1]} may be cytoplasm and nucleus, or two cells: save 128 and 255, or "
            "one value"
        )
    number_of = np.zeros(len(found) + 1, np.int32)
    number_of[kept] = np.arange(1, len(kept) + 1)
    return GivenMask(number_of[numbers], np.zeros(values.shape, bool), tuple(boxes), True)
