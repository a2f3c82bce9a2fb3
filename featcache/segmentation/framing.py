"""The plain view of an image: its box, or the white cell that is found in it, as a square.

How cells are cut is a part of the feature space, so of the name of every row: `CellCut` is its spelling there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, Self

import cv2
import numpy as np

from featcache.core.errors import DatasetError
from featcache.images import Box, Pixels, cut_and_resize
from featcache.segmentation.contract import Cell
from featcache.segmentation.crops import fill_around, widened
from featcache.segmentation.options import Background
from featcache.segmentation.picture import SEGMENTERS

CELL_CUT_VERSION = 1
"""Raised by hand when a segmenter, or the cut around its cells, gives other pixels; a golden test guards it."""

NOT_CUT = "none"
_SPELLING = re.compile(r"(stain|colour)-([0-9]+):(keep|white|black|mean):(0|[0-9]\.[0-9]{1,6}|[0-9])")
_ROOM = 0.25
"""Room around a box that a cell is looked for in, as a share of its longer side."""


class Plain(NamedTuple):
    """A plain view, (size_px, size_px, 3), uint8, RGB; and what is to be said of it, or ""."""

    pixels: Pixels
    remark: str = ""


class _Views(Protocol):
    """What [views] of featcache.toml says of cells."""

    segment: Any
    background: Any
    cell_margin: float


@dataclass(frozen=True)
class CellCut:
    """How a white cell is found in an image and cut out.

    background : what surrounds it: "keep", "white", "black" or "mean"
    margin : room around it, as a share of its longer side
    """

    method: str
    background: Background
    margin: float

    def __str__(self) -> str:
        return f"{self.method}-{CELL_CUT_VERSION}:{self.background}:{round(self.margin, 6):g}"

    @classmethod
    @lru_cache(maxsize=64)
    def read(cls, text: str) -> Self:
        """The inverse of `str`. Raises DatasetError for what another version wrote."""
        match = _SPELLING.fullmatch(text)
        if not match or int(match[2]) != CELL_CUT_VERSION:
            raise DatasetError(f"segmentation {text!r:.80}: this featcache cannot cut cells so", "Update featcache")
        return cls(match[1], match[3], float(match[4]))  # type: ignore[arg-type]


def segmentation_of(views: _Views) -> str:
    """How [views] cuts cells, as a feature space spells it; "none" where it does not."""
    return NOT_CUT if views.segment == "none" else str(CellCut(views.segment, views.background, views.cell_margin))


def plain_view(
    pixels: Pixels, box: Box | None, *, size_px: int, resize: str = "stretch", segmentation: str = NOT_CUT
) -> Plain:
    """The plain view of an image. See `featcache.images.cut_and_resize` for the arguments.

    segmentation : how the cell in the box, or in the middle of the image, is cut out first: a square around it. Where
        no cell is found, the box is used as it is, and the remark says so.

    Raises DatasetError for a box that reaches out of the image, and for a way to cut that is not known.
    """
    if segmentation == NOT_CUT:
        return Plain(cut_and_resize(pixels, box, size_px=size_px, resize=resize))
    cut = CellCut.read(segmentation)
    whole = Plain(cut_and_resize(pixels, box, size_px=size_px, resize=resize), "no white cell was found in it")
    cell = _cell_in(pixels, box, cut.method)
    if cell is None:
        return whole
    return Plain(cut_and_resize(_square_around(pixels, cell, cut), None, size_px=size_px))


def _cell_in(pixels: Pixels, box: Box | None, method: str) -> Cell | None:
    """The cell in the middle of a box, or of the image; its own box is within the image."""
    height, width = pixels.shape[:2]
    around = Box(0, 0, width, height) if box is None else widened(box, _ROOM, size=pixels.shape)
    found = SEGMENTERS[method].cut_out(
        np.ascontiguousarray(pixels[around.y_min : around.y_max, around.x_min : around.x_max])
    )
    if not found.cells:
        return None
    cell = found.cells[0]
    at = Box(
        cell.box.x_min + around.x_min,
        cell.box.y_min + around.y_min,
        cell.box.x_max + around.x_min,
        cell.box.y_max + around.y_min,
    )
    return Cell(at, cell.mask, cell.nucleus, cell.score, cell.at_border)


def _square_around(pixels: Pixels, cell: Cell, cut: CellCut) -> Pixels:
    """The cell in the middle of a square. Beyond the image it is mirrored, or filled as the background is."""
    box = cell.box
    width, height = box.x_max - box.x_min, box.y_max - box.y_min
    side = max(round(max(width, height) * (1 + 2 * cut.margin)), 1)
    left, top = box.x_min - (side - width) // 2, box.y_min - (side - height) // 2
    inside = pixels[max(top, 0) : top + side, max(left, 0) : left + side]
    before = (max(-top, 0), max(-left, 0))
    after = (side - before[0] - inside.shape[0], side - before[1] - inside.shape[1])
    square = np.asarray(
        cv2.copyMakeBorder(inside, before[0], after[0], before[1], after[1], cv2.BORDER_REFLECT), np.uint8
    )
    if cut.background == "keep":
        return square
    mask = np.zeros(square.shape[:2], bool)
    rows, columns = slice(box.y_min - top, box.y_max - top), slice(box.x_min - left, box.x_max - left)
    mask[rows, columns] = cell.mask
    return fill_around(square, mask, background=cut.background)
