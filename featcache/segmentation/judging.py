"""How much what was found looks like a white cell, and what it is if it does not."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.images import Pixels
from featcache.segmentation.contract import Mask
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
_SATURATED, _OVEREXPOSED, _BLANK = 250, 0.8, 6.0
"""The value from which a pixel is saturated; the share of such pixels; the standard deviation of a blank picture."""


@dataclass(frozen=True)
class Judged:
    """One thing that was found. reason : why it is no white cell that can be used; "" where it is one"""

    mask: Mask
    nucleus: Mask
    score: float
    reason: str
    at_border: bool


def judged(view: View, seen: NuclearMap, nuclei: Nuclei, *, number: int, polygon: NDArray[np.float64]) -> Judged:
    """Judge one nucleus (counted from 1) with the outline of its cell. The masks are of the whole view."""
    nucleus = nuclei.labels == number
    mask = filled(polygon, view.field.shape) & view.field | nucleus
    at_border = _touches_sides(mask) or _touches(mask, ~view.field)
    height, width = np.ptp(np.argwhere(mask), axis=0) + 1
    outline = max(
        cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0], key=cv2.contourArea
    )
    hull = cv2.contourArea(cv2.convexHull(nuclei.outlines[number - 1]))
    values = (
        nuclei.areas_px[number - 1] / view.red_area_px,
        4 * np.pi * mask.sum() / max(cv2.arcLength(outline, True), 1.0) ** 2,
        (float(seen.values[nucleus].mean()) - seen.low) / (seen.high - seen.low),
        1.0 if _touches_sides(mask) else min(height, width) / max(height, width),
        nuclei.areas_px[number - 1] / max(hull, 1.0),
    )
    marks = {
        reason: float(np.clip((value - low) / (high - low), 0, 1))
        for value, (reason, (low, high)) in zip(values, _MARKS.items(), strict=True)
    }
    score = float(np.prod(list(marks.values())))
    reason = min(marks, key=lambda one: marks[one]) if score < LEAST_SCORE else ""
    if not reason and _rise(view, nucleus) < _SHARP:
        reason = "out of focus"
    return Judged(mask, nucleus, score, reason, at_border)


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
        return "over-exposed: nearly all of it is white"
    return "no white cell"


def _touches_sides(mask: Mask) -> bool:
    """Whether a mask touches the border of the picture."""
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _touches(mask: Mask, other: Mask) -> bool:
    return bool((cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)[other].any())


def _rise(view: View, nucleus: Mask) -> float:
    """How steep the border of a nucleus is: the upper quarter of gradients there, in its levels a red cell."""
    border = nucleus & (cv2.erode(nucleus.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
    down, across = np.gradient(view.purple)
    steep = np.hypot(down, across)[border]
    high, low = float(np.quantile(view.purple[nucleus], 0.9)), float(np.median(view.purple[view.field & ~nucleus]))
    return float(np.quantile(steep, 0.75)) * view.red_px / max(high - low, 1e-6) if len(steep) else 0.0
