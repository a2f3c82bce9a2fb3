"""How large the cells of a picture are: the diameter of its red cells, which all other sizes are measured by.

A red cell is the ruler of every smear: about 7.5 micrometres wide, whatever the magnification. Where none can be seen,
the largest nucleus is measured instead.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.segmentation.contract import Mask
from featcache.segmentation.density import Floats, otsu, some_of

_STAINED = 0.05
"""Density of green light from which a pixel belongs to a cell at all."""
_CONTRAST = 0.15
"""How much more purple than red cells a nucleus must be."""
NUCLEUS_IN_RED_CELLS = 1.3
"""Area of a usual nucleus, in red cells."""
_LOOKED_AT = 12
"""Of the largest dark parts of a picture."""
_ALIKE, _TRUST, _LARGE = 0.25, 0.4, 0.3
"""Red cells are trusted where this share of them has this logarithm of the diameter, more or less; else the median
nucleus of those this large, of the largest, is measured."""
_WIDTH = 0.15
"""Of the kernel that the logarithms of radii are smoothed by."""
_PRIOR, _FLOOR = 0.3, 0.05
"""How much a nucleus says of the size of red cells: standard deviation of the logarithm, and what stays without it."""


def red_cell_px(density: Floats, purple: Floats, *, field: Mask) -> float:
    """Diameter of the red cells, pixels, or as the largest nucleus suggests; 0 where neither can be seen."""
    nuclei = _nuclei_px(density, purple, field)
    nucleus = float(_red_px_of(nuclei.max(initial=0)))
    radii = _radii(density, purple, field)
    if nucleus:
        radii = radii[2 * radii >= 0.5 * nucleus]  # specks and parasites within red cells are no red cells
    if len(radii) < 4:
        return nucleus
    grid = np.linspace(np.log(1.8), np.log(200), 200)
    kernels = np.exp(-0.5 * ((grid[:, None] - np.log(radii)) / _WIDTH) ** 2)
    weight = kernels @ radii**0.7  # large ones count more: they are rarer by their area
    if nucleus:
        weight = weight * (_FLOOR + np.exp(-0.5 * ((grid + np.log(2 / nucleus)) / _PRIOR) ** 2))
    red_px = float(2 * np.exp(grid[int(np.argmax(weight))]))
    alike = np.abs(np.log(2 * radii / red_px)) < _ALIKE
    if nucleus and (radii[alike] ** 0.7).sum() < _TRUST * (radii**0.7).sum():  # they merge into sheets of any width
        return min(red_px, float(_red_px_of(np.median(nuclei[nuclei >= _LARGE * nuclei.max()]))))
    return red_px


def levels(density: Floats, purple: Floats, *, field: Mask, nucleus_px: float) -> tuple[float, float] | None:
    """How purple red cells are (the median of all that is stained), and nuclei (the mean of their area's top).

    None where nothing is much more purple than red cells: there is no nucleus.
    """
    inside = purple[field]
    if len(inside) < 100:
        return None
    stained = inside[density[..., 1][field] > _STAINED]
    low = float(np.median(stained)) if len(stained) > 50 else 0.0
    count = int(min(max(nucleus_px, 5), len(inside) / 2))
    high = float(np.partition(inside, -count)[-count:].mean())
    return (low, high) if high - low > _CONTRAST and high > 1.7 * low else None


def _red_px_of(nucleus_px: Any) -> Any:
    """Diameter of the red cells that the area of a nucleus suggests."""
    return 2 * np.sqrt(nucleus_px / NUCLEUS_IN_RED_CELLS / np.pi)


def _nuclei_px(density: Floats, purple: Floats, field: Mask) -> NDArray[np.float64]:
    """Areas of what can be nuclei: dark and compact."""
    smooth = cv2.GaussianBlur(purple, (0, 0), 1.5)
    known = levels(density, smooth, field=field, nucleus_px=max(25.0, 0.0008 * float(field.sum())))
    if known is None:
        return np.zeros(0)
    low, high = known
    dark = ((smooth > low + 0.4 * (high - low)) & field).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(dark)
    largest = sorted(stats[1:].tolist(), key=lambda row: -row[4])[:_LOOKED_AT]
    is_compact = [area > 0.3 * w * h and max(w, h) < 3 * min(w, h) for _, _, w, h, area in largest]
    return np.array([row[4] for row, compact in zip(largest, is_compact, strict=True) if compact], float)


def _radii(density: Floats, purple: Floats, field: Mask) -> NDArray[np.float32]:
    """Radii of discs that fit into what is stained, one for each red cell where cells do not merge."""
    green = cv2.GaussianBlur(density[..., 1], (0, 0), 0.7)
    red_cells = field & ~_purple_part(purple, field)
    if red_cells.sum() < 100:
        return np.zeros(0, np.float32)
    values = green[red_cells]
    threshold = otsu(np.minimum(values, np.quantile(some_of(values), 0.98)))
    stained = _with_round_holes_filled((green > max(threshold, 0.03)) & field)
    if not stained.any():
        return np.zeros(0, np.float32)
    depth = cv2.distanceTransform(np.pad(stained, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    smooth = cv2.GaussianBlur(depth, (0, 0), 1)
    reach = 2 * max(1, int(np.quantile(some_of(depth[stained]), 0.75))) + 1
    peaks = (smooth == cv2.dilate(smooth, np.ones((reach, reach), np.uint8))) & (depth > 1.8) & red_cells
    return np.asarray(depth[peaks])


def _purple_part(purple: Floats, field: Mask) -> Mask:
    """Nuclei and platelets, a little enlarged; nothing where that would be a large part of the picture."""
    inside = np.clip(purple[field], 0, None)
    if len(inside) < 100:
        return np.zeros(field.shape, bool)
    counts, edges = np.histogram(inside, 256)
    balanced = np.repeat(((edges[1:] + edges[:-1]) / 2).astype(np.float32), np.ceil(counts ** (1 / 3)).astype(int))
    threshold = max(otsu(balanced), 0.2)
    part = cv2.dilate((cv2.GaussianBlur(purple, (0, 0), 1) > threshold).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return part if (part & field).sum() < 0.3 * field.sum() else np.zeros(field.shape, bool)


def _with_round_holes_filled(stained: Mask) -> Mask:
    """Fill the pale middles of red cells; gaps between cells are not convex, and stay."""
    height, width = stained.shape
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~stained).astype(np.uint8), connectivity=4)
    filled = stained.copy()
    for label in range(1, count):
        x, y, w, h, area = stats[label].tolist()
        touches = x == 0 or y == 0 or x + w == width or y + h == height
        if area > 0.03 * height * width or max(w, h) > 3 * min(w, h) or touches:
            continue
        hole = labels[y : y + h, x : x + w] == label
        if area > 6:
            outline, _ = cv2.findContours(hole.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            if cv2.contourArea(outline[0]) <= 0.85 * cv2.contourArea(cv2.convexHull(outline[0])):
                continue
        filled[y : y + h, x : x + w] |= hole
    return filled
