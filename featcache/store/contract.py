"""What a storage format offers to a cache. Zarr and HDF5 pass one test suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.store.layout import Format, Layout


@dataclass(frozen=True)
class Stored:
    """Size and SHA-256 of the bytes that a shard is stored in."""

    bytes: int
    sha256: str


class FeatureStore(Protocol):
    """The feature array of one cache. Rows go in by whole shards, in any order, and come out by spans.

    Several processes may write different shards at once.
    """

    format: Format
    folder: Path
    layout: Layout

    def create(self, mend: bool = False) -> None:
        """Write what describes the array. What is there already must describe the same one, else CacheError.

        mend : replace what describes another array, or none; the shards that lie apart from it stay
        """

    def write_shard(self, shard: int, features: NDArray[Any]) -> Stored:
        """Put one whole shard in its place; a reader sees all of it or nothing.

        features : ndarray of shape (stop - start, *row_shape), of the layout's dtype; else ValueError
        """

    def stored(self, shard: int) -> Stored | None:
        """What lies on the disk of a shard now; None where it is missing or cannot be found."""

    def finish(self) -> None:
        """Bring the array into its final form once every shard is there; done again it changes nothing."""

    def files(self) -> dict[str, int | None]:
        """The files of the finished array, as paths from the cache's folder with `/`, and the shard that is a file."""

    def read(self, start: int, stop: int) -> NDArray[np.number[Any]]:
        """Rows start..stop, of shape (stop - start, *row_shape). CacheError where a shard is missing or damaged."""


def check_shard(layout: Layout, shard: int, *, features: NDArray[Any]) -> None:
    """Raise ValueError unless `features` are what `shard` must hold."""
    start, stop = layout.span(shard)
    if features.shape != (stop - start, *layout.row_shape):
        raise ValueError(f"shard {shard}: expected {(stop - start, *layout.row_shape)}, got {features.shape}")
    if features.dtype != np.dtype(layout.dtype):
        raise ValueError(f"shard {shard}: expected {layout.dtype}, got {features.dtype}")
