"""How a segmenter is fitted, as a record. It imports little: the command line makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from featcache.core.errors import UsageError
from featcache.core.project import LARGEST_WHITE
from featcache.core.settings import problems_of, setting


@dataclass(frozen=True)
class FitSegmenterOptions:
    """Which pixels are taken from where, and what classifies them."""

    job: Literal["cell", "smear"] = setting(
        "cell",
        "What a picture shows: one cell in the middle, or a smear. Of a smear, each cell of the mask is cut out.",
    )
    per_picture: int = setting(60, "Pixels of each class that are taken from each cell.", ge=1, le=10_000)
    units: int = setting(32, "Hidden units of the classifier.", ge=1, le=1024)
    passes: int = setting(40, "Largest number of passes over the pixels.", ge=1, le=10_000)
    seed: int = setting(0, "Seed of the choice of pixels and of the classifier.", ge=0, le=2**32 - 1)
    white: int | None = setting(
        None,
        "Value of white in pictures of more than 8 bits that do not say it, such as 4095; without it, it is found.",
        ge=0,
        le=LARGEST_WHITE,
    )

    def __post_init__(self) -> None:
        if problems := problems_of(self):
            raise UsageError("; ".join(problems))
