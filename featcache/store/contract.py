"""What a storage format offers to a cache. Zarr is the one there is; every format passes one test suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.store.layout import Layout


class FeatureStore(Protocol):
    """The feature array of one cache. Rows go in by whole shards and come out by spans."""

    layout: Layout

    def create(self) -> None:
        """Write what describes the array, and sweep away what an interrupted writer left.

        What is there already must describe the same array, else CacheError.
        """

    def write_shard(self, shard: int, features: NDArray[Any]) -> None:
        """Put one whole shard in its place; a reader sees all of it or nothing.

        features : ndarray of shape (stop - start, *row_shape), of the layout's dtype; else ValueError
        """

    def shard_file(self, shard: int) -> Path:
        """Where a shard lies."""

    def read(self, start: int, stop: int) -> NDArray[np.floating[Any]]:
        """Rows start..stop, of shape (stop - start, *row_shape). CacheError where a shard is missing or damaged."""
