"""A field with its cells: a box and the name of the class around each, in the colour of the class.

Cells that are unsure have a dashed box and a question mark, so that colour alone tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from featcache.images import Pixels
from featcache.reporting import charts, shorten

_MOST_PX, _LEAST_PX = 1600, 640
"""Of the longer side: larger smears are made smaller, small ones larger, so that names can be read."""
_DASH = 6
_LEFT_OUT = "#7A7A7A"
_DARK = 0.55
"""Lightness of a colour below which what is written on it is white."""


def annotated(
    pixels: Pixels, cells: Iterable[Mapping[str, Any]], *, left_out: Iterable[Sequence[int]], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """The field with a box around each cell; thin grey boxes are of what was left out.

    cells : with x_min, y_min, x_max, y_max, label and unsure
    """
    longer = max(pixels.shape[:2])
    scale = _MOST_PX / longer if longer > _MOST_PX else max(_LEAST_PX / longer, 1)
    size = [max(round(scale * side), 1) for side in pixels.shape[1::-1]]
    picture = Image.fromarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))
    draw, line = ImageDraw.Draw(picture), max(2, round(max(size) / 400))
    for box in left_out:
        draw.rectangle([round(scale * side) for side in box], outline=_LEFT_OUT, width=1)
    for cell in cells:
        colour = colour_of(cell["label"], classes)
        box = [round(scale * cell[side]) for side in ("x_min", "y_min", "x_max", "y_max")]
        _box(draw, box, colour, line=line, dashed=cell["unsure"])
        name = shorten(cell["label"], 24) + (" ?" if cell["unsure"] else "")
        _name(draw, box, name, colour=colour, size=size)
    return np.asarray(picture)


def colour_of(label: str, classes: Sequence[str]) -> str:
    """The colour of a class, as in the page's figure."""
    return charts.PALETTE[list(classes).index(label) % len(charts.PALETTE)]


def _box(draw: ImageDraw.ImageDraw, box: Sequence[int], colour: str, *, line: int, dashed: bool) -> None:
    left, top, right, bottom = box
    if not dashed:
        draw.rectangle([left, top, right, bottom], outline=colour, width=line)
        return
    step = _DASH * line
    for start in range(left, right, 2 * step):
        for y in (top, bottom):
            draw.line([start, y, min(start + step, right), y], fill=colour, width=line)
    for start in range(top, bottom, 2 * step):
        for x in (left, right):
            draw.line([x, start, x, min(start + step, bottom)], fill=colour, width=line)


def _name(draw: ImageDraw.ImageDraw, box: Sequence[int], name: str, *, colour: str, size: Sequence[int]) -> None:
    """The name above a box, or within the picture where there is no room."""
    font = _font(max(13, round(max(size) / 55)))
    left, _, right, bottom = draw.textbbox((0, 0), name, font=font)
    width, height = right - left + 6, bottom + 4
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else min(box[3], size[1] - height)
    draw.rectangle([x, y, x + width, y + height], fill=colour)
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < _DARK
    draw.text((x + 3, y + 1), name, fill="white" if is_dark else "black", font=font)


@lru_cache(4)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
