"""A segmenter that classifies pixels. See `featcache.segmentation.contract.Segmenter`."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from featcache.images import Box, Pixels, cut_and_resize
from featcache.segmentation.contract import Cell, Mask, Rejected, Segmented
from featcache.segmentation.crops import around
from featcache.segmentation.density import background_of
from featcache.segmentation.fitted import SegmenterFile
from featcache.segmentation.judging import why_nothing
from featcache.segmentation.picture import SEGMENTERS
from featcache.segmentation.pixel_values import Floats, colours_of, values_of

_MIDDLE = 0.25
"""How far from the middle of a crop its cell may lie, about, in sides."""
_THIN, _FINE = 0.1, 0.03
"""Diameters of what is too thin to be a part of a cell, and of a nucleus, as shares of the side."""
_WAIST, _CORE = 0.6, 0.3
"""Cells that touch: depth of the waist between them over the largest depth; area of a core over the largest one's."""
_LEAST = 0.003
"""Area of a nucleus, at least, as a share of the crop."""


class Maps(Protocol):
    """What computes the maps of a network: an engine of `featcache.backbones`."""

    def features(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        """Of crops (n, s, s, 3), uint8, RGB: [(n, height, width, channels)]."""


class PixelSegmenter:
    """Classifies the pixels of crops by the maps of a network; whole smears are searched by the classical "stain".

    Several threads may use it: the network computes one crop at a time.
    """

    def __init__(self, known: SegmenterFile, maps: Maps) -> None:
        self._known, self._maps = known, maps
        self._one_at_a_time = Lock()

    def find(self, pixels: Pixels, *, red_cell_px: float | None = None) -> Segmented:
        """Every white cell of a smear: boxes by the classical segmenter, masks by this one."""
        found = SEGMENTERS["stain"].find(pixels, red_cell_px=red_cell_px)
        cells, left_out = [], list(found.left_out)
        for cell in found.cells:
            place = around(cell.box, size=pixels.shape)
            window = np.ascontiguousarray(pixels[place.y_min : place.y_max, place.x_min : place.x_max])
            inside = self.cut_out(window).cells
            if inside:
                own = inside[0].moved(place.x_min, place.y_min, score=cell.score, at_border=cell.at_border)
                cells.append(own)
            else:
                left_out.append(Rejected("the fitted segmenter finds no nucleus in it", cell.box))
        return Segmented(tuple(cells), tuple(left_out), found.red_cell_px)

    def cut_out(self, pixels: Pixels) -> Segmented:
        """The one cell in the middle of a crop."""
        background = background_of(pixels)
        if background is None:
            return _nothing("black: there is no light in it")
        colours = colours_of(pixels, background, side_px=self._known.side_px)
        view = cut_and_resize(pixels, None, size_px=self._known.space.input_size_px)
        with self._one_at_a_time:
            maps = self._maps.features(view[None])[0][0]
        cell, nucleus = masks_of(self._known.classifier.probabilities(values_of(maps, colours)), pixels.shape[:2])
        if not nucleus.any():
            return _nothing(why_nothing(pixels, background))
        rows, columns = np.flatnonzero(cell.any(axis=1)), np.flatnonzero(cell.any(axis=0))
        box = Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        inside = np.s_[box.y_min : box.y_max, box.x_min : box.x_max]
        at_border = box.x_min == 0 or box.y_min == 0 or (box.y_max, box.x_max) == pixels.shape[:2]
        return Segmented((Cell(box, cell[inside], nucleus[inside], 1.0, at_border),))


def masks_of(probabilities: Floats, size: tuple[int, int]) -> tuple[Mask, Mask]:
    """The cell in the middle and its nucleus, at (height, width) of the crop; empty where there is none.

    probabilities : (side, side, 3) of background, cytoplasm and nucleus
    """
    height, width = size
    large = cv2.resize(probabilities, (width, height), interpolation=cv2.INTER_LINEAR)
    y, x = np.mgrid[:height, :width]
    away = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
    middle = np.exp(-((away / _MIDDLE) ** 2)).astype(np.float32)
    inside = _opened(large[..., 0] < 0.5, _THIN * min(size))
    cell = _most_central(cv2.connectedComponents(inside)[1], middle)
    if cell.any():
        cell = _most_central(_parted(np.asarray(binary_fill_holes(cell))), middle)
    nucleus = _opened(cell & (large[..., 2] > large[..., 1]), _FINE * min(size))
    if nucleus.sum() < _LEAST * height * width:
        return np.zeros(size, bool), np.zeros(size, bool)
    return cell, np.asarray(binary_fill_holes(nucleus)) & cell


def _opened(mask: Mask, diameter_px: float) -> NDArray[np.uint8]:
    reach = 2 * max(1, round(diameter_px / 2)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel), np.uint8)


def _most_central(labels: NDArray[np.int32], middle: Floats) -> Mask:
    """The part, by its number from 1, that has the most of the middle."""
    weights = np.bincount(labels.ravel(), middle.ravel())
    weights[0] = 0
    return np.asarray((labels == weights.argmax()) & (labels > 0))


def _parted(cells: Mask) -> NDArray[np.int32]:
    """Cells that touch, parted at a waist: each pixel belongs to the nearest core."""
    depth = cv2.distanceTransform(np.pad(cells, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    count, cores, stats, _ = cv2.connectedComponentsWithStats((depth > _WAIST * depth.max()).astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    cores[np.isin(cores, np.flatnonzero(areas < _CORE * areas.max()))] = 0
    if count < 3:
        return cells.astype(np.int32)
    _, places = cv2.distanceTransformWithLabels(
        (cores == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    number = np.zeros(int(places.max()) + 1, np.int32)
    number[places[cores > 0]] = cores[cores > 0]
    return np.asarray(np.where(cells, number[places], 0))


def _nothing(reason: str) -> Segmented:
    return Segmented((), (Rejected(reason),))
