"""What names a picture: its bytes, the rules they are read by, and the box that is cut out of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from featcache.core.errors import DatasetError
from featcache.core.recipe import digest

MAX_SIDE_PX = 1_000_000_000


@dataclass(frozen=True, order=True)
class Box:
    """A part of an image, in pixels of the upright original; x_max and y_max lie outside of it."""

    x_min: int
    y_min: int
    x_max: int
    y_max: int

    def __post_init__(self) -> None:
        if not (0 <= self.x_min < self.x_max and 0 <= self.y_min < self.y_max):
            raise DatasetError(f"box {astuple(self)}: expected 0 <= x_min < x_max and 0 <= y_min < y_max")


def sides_px(cells: Iterable[str]) -> list[float]:
    """The numbers in the cells of a box, px. Raises ValueError for what is none, or is as large as no image is."""
    numbers = [float(cell) for cell in cells]
    if not all(math.isfinite(number) and abs(number) < MAX_SIDE_PX for number in numbers):
        raise ValueError
    return numbers


def identity_of(file_sha256: str, rules: int) -> str:
    """Name of a file's picture: the SHA-256 of its bytes; a digest of that and the rules of reading, if not the first.

    rules : see `featcache.images.pixels.Decoded`
    """
    return file_sha256 if rules == 1 else digest([file_sha256, {"rules": rules}])


def image_id_of(identity: str, box: Box | None, *, mask_sha256: str = "", um_per_px: float = 0.0) -> str:
    """Name of an image: that of its file's picture (`identity_of`); with a box or more, a digest of that and these.

    mask_sha256 : of the bytes of the mask that comes with it
    um_per_px : side of a pixel, where a person and not the file says it
    """
    sides = None if box is None else list(astuple(box))
    more: dict[str, Any] = {"mask": mask_sha256} if mask_sha256 else {}
    if um_per_px:
        more["um_per_px"] = float(um_per_px)
    if more:
        return digest([identity, sides, more])
    return identity if sides is None else digest([identity, sides])
