"""From an image, or a box in it, to the square that a network takes: margin, resizing, padding, cropping."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from featcache.core.errors import DatasetError
from featcache.core.recipe import BLACK, EDGE, INTERPOLATIONS, RESIZES
from featcache.images.identity import Box
from featcache.images.pixels import MAX_PIXELS
from featcache.images.resampling import FILTERS, resampled

Pixels = NDArray[np.uint8]

_MOST_PIXELS = 1 << 24
"""Of an image that would have more, resized, only what is seen of it is made."""
_LEAST_WINDOW_PX, _MOST_WINDOW_PX = 2.0, 8192.0
"""Of an image, that a view may show."""
_REACH_PX = 3
"""How far a filter looks at most, in pixels of the larger grid: that of Lanczos."""
OWN_FILTER = "area-bicubic"
"""Of all recipes before others could be chosen: areas to shrink, bicubic to grow, each side by itself."""


def cut_and_resize(
    pixels: Pixels,
    box: Box | None,
    *,
    size_px: int,
    resize: str = "stretch",
    interpolation: str = OWN_FILTER,
    resize_px: int = 0,
    padding: str = BLACK,
    margin: float = 0.0,
) -> Pixels:
    """The plain view: the box (or the whole image) as a square of `size_px`.

    pixels : ndarray of shape (height, width, 3), uint8, RGB
    resize : "stretch" both sides to `resize_px`; "pad": keep the aspect ratio, the longer side becomes `resize_px`;
        "crop": keep it, the shorter side does. Then the square in the middle is taken, with `padding` where nothing is
    interpolation : "area-bicubic", or one of `featcache.images.resampling.FILTERS`
    resize_px : 0 for `size_px`
    padding : #rrggbb, or "edge"
    margin : see `in_box`

    Raises DatasetError for a box that reaches out of the image, and for what another version wrote.
    """
    for name, value, known in (("resize", resize, RESIZES), ("interpolation", interpolation, INTERPOLATIONS)):
        if value not in known:
            raise DatasetError(f"{name} {value!r:.80}: expected one of {', '.join(known)}; update featcache")
    for name, number in (("resize_px", resize_px), ("margin", margin)):
        if number < 0:
            raise DatasetError(f"{name} {number:g}: expected at least 0; update featcache")
    pixels = in_box(pixels, box, margin=margin)
    if interpolation != OWN_FILTER:
        return _square(pixels, size_px, resize, interpolation, resize_px or size_px, padding)
    if resize == "crop" or resize_px:
        pixels = _middle(pixels, resize, size_px / (resize_px or size_px))
    if resize == "pad" and pixels.shape[0] != pixels.shape[1]:
        return _padded(pixels, size_px, padding)
    return _stretched(pixels, size_px, size_px)


def in_box(pixels: Pixels, box: Box | None, *, margin: float = 0.0) -> Pixels:
    """The pixels of a box, or all of them.

    margin : room on each side of a box, as a share of its longer side; beyond the image, it is mirrored

    Raises DatasetError for a box that reaches out of the image, or that has no room in memory with its margin.
    """
    if box is None:
        return pixels
    high, wide = pixels.shape[:2]
    if box.x_max > wide or box.y_max > high:
        raise DatasetError(f"{box} reaches out of an image of {wide}x{high} px")
    by = round(margin * max(box.x_max - box.x_min, box.y_max - box.y_min))
    left, top, right, bottom = box.x_min - by, box.y_min - by, box.x_max + by, box.y_max + by
    inside = pixels[max(top, 0) : min(bottom, high), max(left, 0) : min(right, wide)]
    if (right - left, bottom - top) == inside.shape[1::-1]:
        return inside
    if (right - left) * (bottom - top) > MAX_PIXELS:
        raise DatasetError(f"{box} with a margin of {margin:g}: it has more than {MAX_PIXELS:,} pixels")
    beyond = (max(-top, 0), max(bottom - high, 0), max(-left, 0), max(right - wide, 0))
    return np.asarray(cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_REFLECT), np.uint8)


# --- by physical size --------------------------------------------------------------------------------


def room_of_window(size_px: int, scale: float) -> int:
    """Side of the part of an image that a window depends on, wherever its middle is. Raises as `window`."""
    return math.ceil(_side_of_window(size_px, scale)) + 2 * _reach_px(scale) + 2


def _reach_px(scale: float) -> int:
    """How far beyond the window its filter looks."""
    return math.ceil(_REACH_PX * max(scale, 1)) + 1


def _side_of_window(size_px: int, scale: float) -> float:
    """Of a window, in pixels of the image. Raises DatasetError for hardly a pixel, or more than a huge image has."""
    side = size_px * scale
    if not _LEAST_WINDOW_PX <= side <= _MOST_WINDOW_PX:
        raise DatasetError(
            f"a view of {size_px} px would be {side:.3g} px wide in the image: the pixels of one of them have another "
            "size than it seems"
        )
    return side


def window(
    pixels: Pixels,
    box: Box | None,
    *,
    size_px: int,
    scale: float,
    interpolation: str = OWN_FILTER,
    padding: str = BLACK,
) -> Pixels:
    """A square of the image around the middle of a box, or of the image, at one scale, whatever the size of the box.

    pixels : ndarray of shape (height, width, 3), uint8, RGB
    scale : pixels of the image in one of the view
    interpolation : "area-bicubic" is Pillow's area where the image shrinks, and its bicubic where it grows
    padding : what stands beyond the image: #rrggbb, or "edge"

    Raises DatasetError for a box that reaches out of the image, for what another version wrote, and where hardly a
    pixel of an image, or more than a huge one, would be in the window.
    """
    side = _side_of_window(size_px, scale)
    filter_ = interpolation if interpolation != OWN_FILTER else "area" if scale > 1 else "bicubic"
    if filter_ not in FILTERS:
        raise DatasetError(
            f"interpolation {interpolation!r:.80}: expected one of {', '.join(INTERPOLATIONS)}; update featcache"
        )
    in_box(pixels, box)  # refuses one that reaches out
    high, wide = pixels.shape[:2]
    place = box or Box(0, 0, wide, high)
    left, top = (place.x_min + place.x_max - side) / 2, (place.y_min + place.y_max - side) / 2
    rows, columns = (_touched(start, n, size_px=size_px, scale=scale) for start, n in ((top, high), (left, wide)))
    part = _region(
        pixels,
        (left + columns[0] * scale, top + rows[0] * scale),
        filter_,
        scale=scale,
        size=(columns[1] - columns[0], rows[1] - rows[0]),
        padding=padding,
    )
    return _framed(part, size_px, top=rows[0], left=columns[0], padding=padding)


def _touched(start: float, n_px: int, *, size_px: int, scale: float) -> tuple[int, int]:
    """Lines of a window that a side of the image reaches, filter and all. start : of the window, from the image's"""
    reach = _reach_px(scale)
    return max(math.floor((-reach - start) / scale), 0), min(math.ceil((n_px + reach - start) / scale), size_px)


def _region(
    pixels: Pixels,
    corner: tuple[float, float],
    filter_: str,
    *,
    scale: float,
    size: tuple[int, int],
    padding: str,
) -> Pixels:
    """A region of the image, which may reach beyond it, in another size. corner, size : across and down"""
    (left, top), (width_px, height_px), reach = corner, size, _reach_px(scale)
    right, bottom = left + width_px * scale, top + height_px * scale
    x, y, high, wide = math.floor(left) - reach, math.floor(top) - reach, *pixels.shape[:2]
    x_end, y_end = math.ceil(right) + reach, math.ceil(bottom) + reach
    inside = pixels[max(y, 0) : min(y_end, high), max(x, 0) : min(x_end, wide)]
    beyond = (max(-y, 0), max(y_end - high, 0), max(-x, 0), max(x_end - wide, 0))
    region = (left - x, top - y, right - x, bottom - y)
    return resampled(_bordered(inside, beyond, padding), filter_, width_px=width_px, height_px=height_px, region=region)


def _bordered(pixels: Pixels, beyond: tuple[int, int, int, int], padding: str) -> Pixels:
    """Pixels with so many lines above, below, left and right."""
    if not any(beyond):
        return pixels
    if padding == EDGE:
        return np.asarray(cv2.copyMakeBorder(pixels, *beyond, cv2.BORDER_REPLICATE), np.uint8)
    return np.asarray(cv2.copyMakeBorder(pixels, *beyond, cv2.BORDER_CONSTANT, value=_colour(padding)), np.uint8)


def _colour(padding: str) -> tuple[int, ...]:
    try:
        return ImageColor.getrgb(padding)[:3]
    except ValueError as error:
        raise DatasetError(f"padding {padding!r:.80}: expected #rrggbb or {EDGE}; update featcache") from error


# --- as Pillow, torchvision and timm do it ----------------------------------------------------------


def _square(pixels: Pixels, size_px: int, resize: str, interpolation: str, resize_px: int, padding: str) -> Pixels:
    """The image resized, and of it the square in the middle."""
    high, wide = pixels.shape[:2]
    to_high, to_wide = _resized(high, wide, resize=resize, resize_px=resize_px)
    top, left = (round((side - size_px) / 2) for side in (to_high, to_wide))
    rows, columns = _seen(top, size_px, to_high), _seen(left, size_px, to_wide)
    if to_high * to_wide <= _MOST_PIXELS:
        part = resampled(pixels, interpolation, width_px=to_wide, height_px=to_high)
        part = np.ascontiguousarray(part[rows[0] : rows[1], columns[0] : columns[1]])
    else:
        part = _part(pixels, interpolation, (rows, to_high), (columns, to_wide))
    return _framed(part, size_px, top=rows[0] - top, left=columns[0] - left, padding=padding)


def _part(
    pixels: Pixels, interpolation: str, rows: tuple[tuple[int, int], int], columns: tuple[tuple[int, int], int]
) -> Pixels:
    """Rows and columns of the resized image, and no more of it: it may be very long.

    rows, columns : which, and how many the whole has
    """
    high, wide = pixels.shape[:2]
    (seen_rows, to_high), (seen_columns, to_wide) = rows, columns
    top, bottom = (min(row * high / to_high, high) for row in seen_rows)
    left, right = (min(column * wide / to_wide, wide) for column in seen_columns)
    height_px, width_px = seen_rows[1] - seen_rows[0], seen_columns[1] - seen_columns[0]
    return resampled(pixels, interpolation, width_px=width_px, height_px=height_px, region=(left, top, right, bottom))


def _resized(high: int, wide: int, *, resize: str, resize_px: int) -> tuple[int, int]:
    """Height and width of the whole image, resized, rounded as torchvision (crop) and Pillow (pad) round them."""
    if resize == "stretch":
        return resize_px, resize_px
    shorter, longer = sorted((high, wide))
    other = int(resize_px * longer / shorter) if resize == "crop" else max(round(shorter / longer * resize_px), 1)
    return (resize_px, other) if (high < wide) == (resize == "crop") else (other, resize_px)


def _seen(start: int, size_px: int, side_px: int) -> tuple[int, int]:
    """The part of a side that lies in the square."""
    return max(start, 0), min(start + size_px, side_px)


def _framed(part: Pixels, size_px: int, *, top: int, left: int, padding: str) -> Pixels:
    """A square with an image at a place in it."""
    if part.shape[:2] == (size_px, size_px):
        return part
    below, right = size_px - top - part.shape[0], size_px - left - part.shape[1]
    if padding == EDGE:
        return np.asarray(cv2.copyMakeBorder(part, top, below, left, right, cv2.BORDER_REPLICATE), np.uint8)
    square = np.empty((size_px, size_px, 3), np.uint8)
    square[:] = _colour(padding)
    square[top : size_px - below, left : size_px - right] = part
    return square


# --- as it always was -------------------------------------------------------------------------------


def _middle(pixels: Pixels, resize: str, share: float) -> Pixels:
    """The middle of an image: cropped, a share of its shorter side in square; of the longer one where it is padded."""
    high, wide = pixels.shape[:2]
    sides = {"crop": (min(high, wide),) * 2, "pad": (max(high, wide),) * 2}.get(resize, (high, wide))
    high_px, wide_px = (
        min(max(round(side * share), 1), whole) for side, whole in zip(sides, (high, wide), strict=True)
    )
    top, left = (high - high_px) // 2, (wide - wide_px) // 2
    return pixels[top : top + high_px, left : left + wide_px]


def _padded(pixels: Pixels, size_px: int, padding: str) -> Pixels:
    """An image in the middle of a square that its longer side fills."""
    longer_px = max(pixels.shape[:2])
    height_px, width_px = (max(round(size_px * side_px / longer_px), 1) for side_px in pixels.shape[:2])
    top, left = (size_px - height_px) // 2, (size_px - width_px) // 2
    return _framed(_stretched(pixels, height_px, width_px), size_px, top=top, left=left, padding=padding)


def _stretched(pixels: Pixels, to_height_px: int, to_width_px: int) -> Pixels:
    height_px, width_px = min(pixels.shape[0], to_height_px), min(pixels.shape[1], to_width_px)
    if (height_px, width_px) != pixels.shape[:2]:
        pixels = np.asarray(cv2.resize(pixels, (width_px, height_px), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if (height_px, width_px) != (to_height_px, to_width_px):
        size = (to_width_px, to_height_px)
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    return np.array(pixels, order="C")
