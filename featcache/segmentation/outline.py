"""Outlines of whole cells: around each nucleus the closed curve that parts the colours of cells from all others best.

Around the middle of a nucleus the picture is unrolled: angles by radii. Each pixel has a log-likelihood ratio, cell
against anything else, from two colour histograms of the same picture. Of all closed curves r(angle) that change by a
few steps from angle to angle, dynamic programming finds the one with the largest sum of ratios inside, plus a reward
for lying on an edge. The histograms are then made anew from what is inside, as GrabCut does, and the curves are drawn
again.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from featcache.segmentation.contract import Mask
from featcache.segmentation.density import Floats, otsu, some_of
from featcache.segmentation.nuclei import Nuclei

ANGLES = np.linspace(0, 2 * np.pi, 60, endpoint=False)
_REACH = 1.55
"""Largest radius of a cell, in diameters of red cells."""
_RADII = 46
"""Steps of the radius."""
_JUMP = 2
"""Steps that the radius may change by from one angle to the next."""
_STIFF, _EDGE = 0.25, 1.0
"""What a step costs, and what an edge of full contrast earns, in log-likelihood ratios of a pixel."""
_MOST = 2.5
"""Bound of a log-likelihood ratio."""
_BARE = 1.0
"""What background costs inside a cell: colours of cells come from rings around nuclei, which hold some of it."""
_BINS = 20
_ROUNDS = 2
_CHUNK = 400
"""Nuclei that are worked on together."""


@dataclass(frozen=True)
class _Colours:
    """Colours of a picture as numbers of histogram bins, and how dark it is.

    code : (height, width) int32
    dark : density that edges are sought in
    bare : how much each pixel is like background, 0 to `_BARE`
    """

    code: NDArray[np.int32]
    dark: Floats
    bare: Floats


def outlines_of(density: Floats, nuclei: Nuclei, *, field: Mask, red_px: float) -> list[NDArray[np.float64]]:
    """A closed polygon (angles, 2), x and y, around the cell of each nucleus."""
    colours = _colours_of(density, field, red_px=red_px)
    distance = cv2.distanceTransform((nuclei.labels == 0).astype(np.uint8), cv2.DIST_L2, 5)
    other = _elsewhere(field, distance, red_px=red_px)
    cells = field & (_hulls(nuclei) | (distance < 0.18 * red_px))
    scale = max(0.05, float(np.median(np.abs(colours.dark[cells])))) if cells.any() else 1.0
    chunks = [range(first, min(first + _CHUNK, len(nuclei))) for first in range(0, len(nuclei), _CHUNK)]
    polygons: list[NDArray[np.float64]] = []
    for _ in range(_ROUNDS):
        ratios = _ratios(colours, cells, other)
        polygons = []
        for chunk in chunks:
            polygons += _curves(ratios, colours.dark / scale, nuclei, chunk, red_px)
        inside = np.zeros(field.shape, np.uint8)
        for polygon in polygons:
            cv2.fillPoly(inside, [np.rint(polygon).astype(np.int32)], 1)
        cells = field & (inside > 0)
    return polygons


def _colours_of(density: Floats, field: Mask, *, red_px: float) -> _Colours:
    smooth = cv2.GaussianBlur(density, (0, 0), max(0.5, 0.03 * red_px))
    inside = some_of(smooth[field])
    low, high = -0.1, np.maximum(np.quantile(inside, 0.995, axis=0) + 0.02, 0.1)
    bins = np.clip((smooth - low) * (_BINS / (high - low)), 0, _BINS - 1).astype(np.int32)
    code = (bins[..., 0] * _BINS + bins[..., 1]) * _BINS + bins[..., 2]
    dark = smooth[..., 1] + 0.5 * smooth[..., 0]
    of_field = some_of(dark[field])
    faint = otsu(np.clip(of_field, 0, np.quantile(of_field, 0.95)))
    bare = np.clip((0.7 * faint - dark) / max(0.35 * faint, 1e-6), 0, 1) * _BARE
    return _Colours(code, dark.astype(np.float32), bare.astype(np.float32))


def _elsewhere(field: Mask, distance: Floats, *, red_px: float) -> Mask:
    """Pixels that surely belong to no cell with a nucleus."""
    far = field & (distance > 0.95 * red_px)
    if far.sum() < 0.05 * field.sum():
        far = field & (distance > 0.5 * red_px)
    if far.sum() < 50:
        far = field & (distance >= np.quantile(distance[field], 0.8))
    return far


def _hulls(nuclei: Nuclei) -> Mask:
    hulls = np.zeros(nuclei.labels.shape, np.uint8)
    for outline in nuclei.outlines:
        cv2.fillConvexPoly(hulls, cv2.convexHull(outline.astype(np.int32)), 1)
    return hulls > 0


def _ratios(colours: _Colours, cells: Mask, other: Mask) -> Floats:
    """log p(colour | cell) - log p(colour | elsewhere), bounded, less the cost of background."""
    of_cell = _histogram(colours.code[cells & (colours.bare < 1)])
    ratio = np.clip(np.log(of_cell) - np.log(_histogram(colours.code[other])), -_MOST, _MOST)
    return np.asarray(ratio.astype(np.float32)[colours.code] - colours.bare)


def _histogram(code: NDArray[np.int32]) -> NDArray[np.float64]:
    """Smoothed shares of colours, (bins**3,), none of them 0."""
    counts = np.bincount(code, minlength=_BINS**3).reshape(_BINS, _BINS, _BINS).astype(float)
    smooth = ndimage.gaussian_filter(counts, 0.8, mode="nearest").ravel()
    return np.asarray((smooth + 1e-7 * smooth.sum() + 1e-9) / (smooth.sum() + 1e-6))


def _curves(ratios: Floats, dark: Floats, nuclei: Nuclei, chunk: range, red_px: float) -> list[NDArray[np.float64]]:
    height, width = ratios.shape
    circles = [cv2.minEnclosingCircle(nuclei.outlines[number])[0] for number in chunk]
    centres = np.array(circles, float).reshape(-1, 2)
    radii = np.linspace(_REACH * red_px / _RADII, _REACH * red_px, _RADII)
    x = centres[:, 0, None, None] + np.cos(ANGLES)[:, None] * radii  # (cells, angles, radii)
    y = centres[:, 1, None, None] + np.sin(ANGLES)[:, None] * radii
    inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    at = np.clip(np.rint(y), 0, height - 1).astype(np.intp) * width + np.clip(np.rint(x), 0, width - 1).astype(np.intp)
    value = np.where(inside, ratios.ravel()[at], 0)
    of = nuclei.labels.ravel()[at]
    own = of == np.array(chunk)[:, None, None] + 1
    value[own] = _MOST
    value[(of > 0) & ~own] = -_MOST
    along = dark.ravel()[at]
    step = max(1, round(0.06 * red_px / (radii[1] - radii[0])))
    edge = np.zeros_like(along)
    edge[..., step:-step] = np.clip(along[..., : -2 * step] - along[..., 2 * step :], -1, 1)
    gain = np.cumsum(value * radii * (radii[1] - radii[0]) / red_px, axis=2) + _EDGE * np.where(inside, edge, 0)
    best = (
        radii[_closed_paths(gain)] + (radii[1] - radii[0]) / 2
    )  # (cells, angles); the last point inside, and half a step
    ring = np.stack([best * np.cos(ANGLES), best * np.sin(ANGLES)], axis=2)
    return list(centres[:, None] + ring)


def _closed_paths(gain: NDArray[np.float64]) -> NDArray[np.intp]:
    """For each cell the radius at each angle, as an index, that has the largest sum of gains less stiffness.

    gain : (cells, angles, radii)

    The curve is closed since it is sought along two turns, of which the middle one is kept.
    """
    cells, angles, radii = gain.shape
    cost = _STIFF * np.abs(np.arange(-_JUMP, _JUMP + 1))
    padded = np.full((cells, radii + 2 * _JUMP), -1e9)
    best = padded[:, _JUMP:-_JUMP]
    best[:] = 0
    steps = np.zeros((2 * angles, cells, radii), np.int8)
    shifted = np.stack([padded[:, shift : shift + radii] for shift in range(2 * _JUMP + 1)])
    by_angle = np.ascontiguousarray(gain.transpose(1, 0, 2))
    for turn in range(2 * angles):
        for shift in range(2 * _JUMP + 1):
            np.subtract(padded[:, shift : shift + radii], cost[shift], out=shifted[shift])
        steps[turn] = shifted.argmax(axis=0)
        np.add(shifted.max(axis=0), by_angle[turn % angles], out=best)
    path = np.zeros((2 * angles, cells), np.intp)
    path[-1] = best.argmax(axis=1)
    every = np.arange(cells)
    for turn in range(2 * angles - 1, 0, -1):
        path[turn - 1] = path[turn] + steps[turn, every, path[turn]] - _JUMP
    first = angles // 2
    return np.asarray(np.roll(path[first : first + angles], first, axis=0).T)
