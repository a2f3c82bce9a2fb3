"""How smears are counted, as a record. It imports little: the command line makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from featcache.core.errors import UsageError
from featcache.core.settings import problems_of, setting


@dataclass(frozen=True)
class CountOptions:
    """How white cells are found, cut out, and judged."""

    method: Literal["stain", "colour"] = setting(
        "stain", "How nuclei are told from all else: stain deconvolution, or clustering of colours."
    )
    red_cell_px: float | None = setting(None, "Diameter of a red cell in pixels; without it, it is measured.", ge=5)
    border: Literal["count", "leave_out"] = setting(
        "count", "What becomes of cells that the border of a picture cuts: counted as unsure, or left out."
    )
    margin: float | None = setting(
        None,
        "Room around a cell in its crop, as a share of its longer side; without it, as the run's crops.",
        ge=0,
        le=5,
    )
    background: Literal["keep", "white", "black", "mean"] = setting(
        "keep", "What surrounds the cell in its crop; the crops that the run was trained on must have the same."
    )
    unsure_below: float = setting(
        0.7, "A cell is unsure if the calibrated probability of its class is below this.", ge=0, le=1
    )

    def __post_init__(self) -> None:
        if problems := problems_of(self):
            raise UsageError("; ".join(problems))
