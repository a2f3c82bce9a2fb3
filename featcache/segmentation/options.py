"""How pictures are segmented, as a record. It imports little: the command line makes its options from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from featcache.core.errors import UsageError
from featcache.core.project import LARGEST_WHITE
from featcache.core.settings import problems_of, setting

Background = Literal["keep", "white", "black", "mean", "transparent"]
_METHOD = re.compile("stain|colour|(fitted|cellpose|stardist)-[0-9a-f]{64}")
"""The names of segmenters; one of a file has the digest of what decides its masks."""


@dataclass(frozen=True)
class SegmentOptions:
    """How white cells are found and cut out."""

    method: str = setting(
        "stain",
        "How nuclei are told from all else: stain deconvolution, clustering of colours, a fitted segmenter's file, or "
        "a model of cellpose or StarDist.",
    )
    job: Literal["auto", "smear", "cell"] = setting(
        "auto", "What a picture shows: a smear, or one cell in the middle. auto looks how large the cells are."
    )
    red_cell_px: float | None = setting(None, "Diameter of a red cell in pixels; without it, it is measured.", ge=5)
    background: Background = setting("keep", "What surrounds the cell in its crop.")
    margin: float = setting(0.1, "Room around a cell in its crop, as a share of the cell's longer side.", ge=0, le=2)
    white: int | None = setting(
        None,
        "Value of white in pictures of more than 8 bits that do not say it, such as 4095; without it, it is found.",
        ge=0,
        le=LARGEST_WHITE,
    )

    def __post_init__(self) -> None:
        problems = problems_of(self)
        if isinstance(self.method, str) and not _METHOD.fullmatch(self.method):
            problems.append(f"`method={self.method!r:.80}`: expected stain, colour, or a fitted segmenter")
        if problems:
            raise UsageError("; ".join(problems))
