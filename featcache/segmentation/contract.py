"""What a segmenter is asked for and what it gives: white cells of a picture, and what it left out with the reason."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featcache.images import Box, Pixels

Mask: TypeAlias = NDArray[np.bool_]

CYTOPLASM, NUCLEUS = 128, 255
"""Values of a mask's pixels; background is 0."""


@dataclass(frozen=True)
class Cell:
    """One white cell.

    Attributes
    ----------
    box : smallest box around the whole cell, pixels of the picture
    mask : the whole cell, nucleus included: (height, width) of the box
    nucleus : its nucleus, likewise
    score : how much it looks like a white cell, 0 to 1
    at_border : whether the border of the picture, or of an eyepiece's field, cuts it
    """

    box: Box
    mask: Mask
    nucleus: Mask
    score: float
    at_border: bool = False

    def moved(self, right: int, down: int, **changes: Any) -> Cell:
        """The same cell in a picture that a window of was segmented: by so many pixels, and with other fields."""
        of = self.box
        box = Box(of.x_min + right, of.y_min + down, of.x_max + right, of.y_max + down)
        return replace(self, box=box, **changes)

    def labels(self) -> NDArray[np.uint8]:
        """Background 0, cytoplasm 128, nucleus 255: (height, width) of the box, uint8."""
        return np.where(self.nucleus, NUCLEUS, np.where(self.mask, CYTOPLASM, 0)).astype(np.uint8)

    def as_record(self) -> dict[str, Any]:
        """Its box and what was measured of it, as a row of a table."""
        return {
            **asdict(self.box),
            "score": round(self.score, 4),
            "cell_px": int(self.mask.sum()),
            "nucleus_px": int(self.nucleus.sum()),
            "at_border": self.at_border,
        }


@dataclass(frozen=True)
class Rejected:
    """What was left out of a picture, or a whole picture (box None), and why."""

    reason: str
    box: Box | None = None

    def as_record(self) -> dict[str, Any]:
        """For JSON: the box as four numbers, or None."""
        return {"reason": self.reason, "box": list(astuple(self.box)) if self.box else None}


@dataclass(frozen=True)
class Segmented:
    """What was found in one picture.

    red_cell_px : diameter of a red cell, pixels, which all sizes are measured by; 0 where there was nothing to measure
    """

    cells: tuple[Cell, ...] = ()
    left_out: tuple[Rejected, ...] = ()
    red_cell_px: float = 0.0

    def labels(self, height_px: int, width_px: int) -> NDArray[np.uint8]:
        """The mask of the whole picture: (height, width), uint8. Where cells overlap, a nucleus wins."""
        whole = np.zeros((height_px, width_px), np.uint8)
        for cell in self.cells:
            part = whole[cell.box.y_min : cell.box.y_max, cell.box.x_min : cell.box.x_max]
            np.maximum(part, cell.labels(), out=part)
        return whole


class Segmenter(Protocol):
    """Finds white cells. Both jobs are pure functions of the pixels, (height, width, 3), uint8, RGB."""

    def find(self, pixels: Pixels, *, red_cell_px: float | None = None) -> Segmented:
        """Every white cell of a smear.

        red_cell_px : diameter of a red cell where it is known; None measures it
        """

    def cut_out(self, pixels: Pixels) -> Segmented:
        """The one cell in the middle of a crop."""
