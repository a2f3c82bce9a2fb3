"""Cells cut out of their picture, with another background."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.images import Box, Pixels
from featcache.segmentation.contract import Cell, Mask
from featcache.segmentation.options import Background

_OVERLAY = {"cell": (0, 220, 220), "nucleus": (0, 200, 0), "left_out": (230, 60, 60)}
"""Colours of outlines, RGB."""
_ROOM = 0.25
"""Room around a box that a cell is looked for in, as a share of its longer side."""


def widened(box: Box, margin: float, *, size: tuple[int, ...], square: bool = False) -> Box:
    """A box with room on each side, a share of its longer side, as far as the picture reaches.

    square : whether its shorter side is made as long as the longer one, too
    """
    across, down = box.x_max - box.x_min, box.y_max - box.y_min
    room = round(margin * max(across, down))
    left = room + (max(down - across, 0) // 2 if square else 0)
    top = room + (max(across - down, 0) // 2 if square else 0)
    right = left + (max(down - across, 0) % 2 if square else 0)
    bottom = top + (max(across - down, 0) % 2 if square else 0)
    height, width = size[:2]
    return Box(
        max(box.x_min - left, 0),
        max(box.y_min - top, 0),
        min(box.x_max + right, width),
        min(box.y_max + bottom, height),
    )


def around(box: Box, *, size: tuple[int, ...]) -> Box:
    """Where the cell of a box is looked for: the box with some room, as far as the picture reaches."""
    return widened(box, _ROOM, size=size)


def crop_of(
    pixels: Pixels, cell: Cell, *, background: Background, margin: float, square: bool = False
) -> NDArray[np.uint8]:
    """The cell with room around: (height, width, 3), uint8, RGB; with background "transparent" (height, width, 4).

    background : "keep"; or what takes the place of all that is not the cell: "white", "black", "mean" (the mean colour
        of what it replaces), "transparent"
    """
    box = widened(cell.box, margin, size=pixels.shape, square=square)
    crop = pixels[box.y_min : box.y_max, box.x_min : box.x_max].copy()
    if background == "keep":
        return crop
    inside = np.zeros(crop.shape[:2], bool)
    top, left = cell.box.y_min - box.y_min, cell.box.x_min - box.x_min
    inside[top : top + cell.mask.shape[0], left : left + cell.mask.shape[1]] = cell.mask
    if background == "transparent":
        return np.dstack([crop, np.where(inside, 255, 0).astype(np.uint8)])
    return fill_around(crop, inside, background=background)


def fill_around(pixels: Pixels, cell: Mask, *, background: Background) -> Pixels:
    """Pixels with all that is not the cell in one colour. cell : (height, width) of the pixels"""
    filled = pixels.copy()
    filled[~cell] = _fill(filled[~cell], background)
    return filled


def _fill(replaced: Pixels, background: Background) -> NDArray[np.uint8]:
    if background == "mean" and len(replaced):
        return np.asarray(np.rint(replaced.mean(axis=0)), np.uint8)
    return np.full(3, 0 if background == "black" else 255, np.uint8)


def overlay_of(pixels: Pixels, cells: tuple[Cell, ...], *, left_out: list[Box]) -> Pixels:
    """The picture with outlines of cells and nuclei, and boxes around what was left out."""
    drawn = np.ascontiguousarray(pixels.copy())
    line = max(1, round(max(pixels.shape[:2]) / 400))
    for cell in cells:
        for mask, name in ((cell.mask, "cell"), (cell.nucleus, "nucleus")):
            _outline(drawn, mask, cell.box, _OVERLAY[name], line=line)
    for box in left_out:
        cv2.rectangle(drawn, (box.x_min, box.y_min), (box.x_max - 1, box.y_max - 1), _OVERLAY["left_out"], line)
    return drawn


def _outline(drawn: Pixels, mask: Mask, box: Box, colour: tuple[int, int, int], *, line: int) -> None:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(drawn, outlines, -1, colour, line, offset=(box.x_min, box.y_min))
