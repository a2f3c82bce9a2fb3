"""How much what was found looks like a white cell, and what it is if it does not."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.images import Pixels
from featcache.segmentation.contract import Mask
from featcache.segmentation.density import Floats
from featcache.segmentation.maps import NuclearMap, View
from featcache.segmentation.nuclei import Nuclei

LEAST_SCORE = 0.4
_MARKS = {
    "nucleus too small: a platelet, a clump of them, or dirt": (0.2, 0.6),
    "no round outline: a smudged cell, a clump or dirt": (0.45, 0.75),
    "too pale for a nucleus": (0.4, 0.7),
    "too long: a crushed cell or dirt": (0.4, 0.75),
    "ragged: a clump of platelets, a smudged cell or stain": (0.3, 0.6),
}
"""What is measured of a cell, by the reason that a low value is: 0 below the first number, 1 above the second. In turn:
area of the nucleus in red cells; 4 pi area / perimeter^2 of the cell; level of the nucleus, from red cells (0) to the
most purple pixels (1); shorter over longer side of the box; area of the nucleus over that of its convex hull."""
_SHARP = 2.0
"""The steepest rise to the nucleus, in levels a diameter of a red cell, below which a picture is out of focus."""
_SATURATED, _OVEREXPOSED, _BLANK = 250, 0.5, 6.0
"""The value from which a pixel is saturated; the share of such pixels; the standard deviation of a blank picture."""


@dataclass(frozen=True)
class Part:
    """A cell in the view that was segmented: a window of it.

    corner : x and y of the window
    mask, nucleus : (height, width) of the window
    polygon : outline of the cell, x and y in the view
    """

    corner: tuple[int, int]
    mask: Mask
    nucleus: Mask
    polygon: NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """One thing that was found. reason : why it is no white cell that can be used; "" where it is one"""

    part: Part
    score: float
    reason: str
    at_border: bool


def part_of(view: View, nuclei: Nuclei, *, number: int, polygon: NDArray[np.float64]) -> Part:
    """A window around one nucleus (counted from 1) and the outline of its cell, wide enough for its surroundings."""
    points = np.concatenate([polygon, nuclei.outlines[number - 1]])
    height, width = view.field.shape
    around = round(0.2 * view.red_px) + 2
    x0, y0 = (max(int(low) - around, 0) for low in points.min(axis=0))
    x1, y1 = (min(int(high) + around + 1, most) for high, most in zip(points.max(axis=0), (width, height), strict=True))
    window = np.s_[y0:y1, x0:x1]
    nucleus = nuclei.labels[window] == number
    mask = filled(polygon - (x0, y0), (y1 - y0, x1 - x0)) & view.field[window] | nucleus
    return Part((x0, y0), mask, nucleus, polygon)


def judged(view: View, seen: NuclearMap, *, nuclei: Nuclei, number: int, polygon: NDArray[np.float64]) -> Judged:
    """Judge one nucleus (counted from 1) with the outline of its cell."""
    part = part_of(view, nuclei, number=number, polygon=polygon)
    (x0, y0), mask = part.corner, part.mask
    window = np.s_[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]]
    places = np.argwhere(mask)
    first, last = places.min(axis=0), places.max(axis=0)
    is_cut = bool((first + (y0, x0) == 0).any() or (last + (y0, x0) + 1 == view.field.shape).any())
    height, width = last - first + 1
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    length = cv2.arcLength(max(outlines, key=cv2.contourArea), True)
    area = float(nuclei.areas_px[number - 1])
    values = (
        area / view.red_area_px,
        4 * np.pi * len(places) / max(length, 1.0) ** 2,
        (float(view.purple[window][part.nucleus].mean()) - seen.low) / (seen.high - seen.low),
        1.0 if is_cut else min(height, width) / max(height, width),
        area / max(cv2.contourArea(cv2.convexHull(nuclei.outlines[number - 1])), 1.0),
    )
    marks = {
        reason: float(np.clip((value - low) / (high - low), 0, 1))
        for value, (reason, (low, high)) in zip(values, _MARKS.items(), strict=True)
    }
    score = float(np.prod(list(marks.values())))
    reason = min(marks, key=lambda one: marks[one]) if score < LEAST_SCORE else ""
    if not reason and _rise(view.purple[window], view.field[window], part.nucleus) * view.red_px < _SHARP:
        reason = "out of focus"
    return Judged(part, score, reason, is_cut or _touches(mask, ~view.field[window]))


def filled(polygon: NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """The pixels of a polygon (n, 2), x and y."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.rint(polygon * 16).astype(np.int32)], 1, shift=4)
    return mask > 0


def why_nothing(pixels: Pixels, background: NDArray[np.float64]) -> str:
    """Why a picture shows no white cell, as far as its pixels say."""
    if float(pixels.std(axis=(0, 1)).max()) < _BLANK:
        return "blank: nearly one colour"
    if float((pixels.min(axis=2) >= _SATURATED).mean()) > _OVEREXPOSED:
        return "over-exposed: most of it is white"
    return "no white cell"


def _touches(mask: Mask, other: Mask) -> bool:
    return bool((cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)[other].any())


def _rise(purple: Floats, field: Mask, nucleus: Mask) -> float:
    """How steep the border of a nucleus is: the upper quarter of gradients there, in its levels a pixel."""
    border = nucleus & (cv2.erode(nucleus.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
    around = field & ~nucleus
    if not border.any() or not around.any() or min(purple.shape) < 2:
        return float("inf")
    down, across = np.gradient(purple)
    step = float(np.quantile(purple[nucleus], 0.9)) - float(np.median(purple[around]))
    return float(np.quantile(np.hypot(down, across)[border], 0.75)) / max(step, 1e-6)
