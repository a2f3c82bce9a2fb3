"""Segmenters of other libraries, which number every object of a picture, made finders of white cells."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.images import Box, Pixels
from featcache.segmentation.contract import Cell, Mask, Rejected, Segmented
from featcache.segmentation.picture import SEGMENTERS

_NUCLEAR = 0.7
"""Share of an object that lies in a nucleus, from which on it shows a nucleus and not a cell."""
_COVERED = 0.5
"""Share of a nucleus that an object covers at least, to be its cell."""
_LARGEST = 4.0
"""Area of a cell at most, in areas of what the classical segmenter finds: more is a clump."""


class Objects(Protocol):
    """Numbers all objects of a picture."""

    def numbers(self, pixels: Pixels) -> NDArray[np.integer]:
        """Of pixels (height, width, 3), uint8, RGB: (height, width), 0 for background."""


class InstanceSegmenter:
    """White cells are found by the classical "stain", and outlined by the objects of another model.

    Such models number red cells, white cells or nuclei, each as it was trained. An object within a nucleus is taken for
    a nucleus, and one around a nucleus for a cell.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def find(self, pixels: Pixels, *, red_cell_px: float | None = None) -> Segmented:
        """Every white cell of a smear."""
        return self._outlined(pixels, SEGMENTERS["stain"].find(pixels, red_cell_px=red_cell_px))

    def cut_out(self, pixels: Pixels) -> Segmented:
        """The one cell in the middle of a crop."""
        return self._outlined(pixels, SEGMENTERS["stain"].cut_out(pixels))

    def _outlined(self, pixels: Pixels, found: Segmented) -> Segmented:
        if not found.cells:
            return found
        numbers = self._objects.numbers(pixels)
        cells, left_out = [], list(found.left_out)
        for cell in found.cells:
            outlined = outlined_by(numbers, cell)
            if outlined is None:
                left_out.append(Rejected("the model finds no object there", cell.box))
            else:
                cells.append(outlined)
        return Segmented(tuple(cells), tuple(left_out), found.red_cell_px)


def outlined_by(numbers: NDArray[np.integer], cell: Cell) -> Cell | None:
    """A cell with the outline of the object that covers its nucleus; None where there is no such object.

    numbers : of the object that each pixel of the picture belongs to, (height, width); 0 for background
    """
    height, width = numbers.shape
    box = cell.box
    inside = np.s_[box.y_min : box.y_max, box.x_min : box.x_max]
    here = numbers[inside]
    core = cell.nucleus
    at_nucleus = here[core]
    present = np.unique(at_nucleus[at_nucleus > 0])
    if not len(present):
        return None
    sizes = {int(number): int((numbers == number).sum()) for number in present}
    in_core = {int(number): int((at_nucleus == number).sum()) for number in present}
    lobes = [number for number in sizes if in_core[number] >= _NUCLEAR * sizes[number]]
    around = [
        number
        for number in sizes
        if number not in lobes
        and in_core[number] >= _COVERED * core.sum()
        and sizes[number] <= _LARGEST * cell.mask.sum()
    ]
    if around:
        best = max(around, key=lambda number: in_core[number])
        whole: Mask = numbers == best
        nucleus = np.zeros((height, width), bool)
        nucleus[inside] = core
        return _cell_of(whole, nucleus & whole, cell)
    if sum(in_core[number] for number in lobes) >= _COVERED * core.sum():
        nucleus = np.isin(numbers, lobes)
        whole = nucleus.copy()
        whole[inside] |= cell.mask
        return _cell_of(whole, nucleus, cell)
    return None


def _cell_of(whole: Mask, nucleus: Mask, like: Cell) -> Cell:
    """The cell of a mask of the whole picture."""
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    box = Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    inside = np.s_[box.y_min : box.y_max, box.x_min : box.x_max]
    height, width = whole.shape
    at_border = like.at_border or box.x_min == 0 or box.y_min == 0 or (box.x_max, box.y_max) == (width, height)
    return Cell(box, whole[inside], nucleus[inside], like.score, at_border)
