"""How a cache lies on disk: its files' names, and how its rows are cut into shards and chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

RECIPE_FILE = "recipe.json"
ROWS_FILE = "rows.parquet"
DATASET_FILE = "dataset.parquet"
LEDGER_FILE = "ledger.jsonl"
MANIFEST_FILE = "manifest.json"
FEATURES_FOLDER = "features.zarr"

_ROWS_PER_CHUNK = 16
_SHARD_BYTES = 64 << 20
_MAX_ROWS_PER_SHARD = 1024


@dataclass(frozen=True)
class Layout:
    """The shape of a feature array and how it is cut along its rows.

    row_shape : shape of one row, e.g. (7, 7, 512), or (512,) where pooled
    rows_per_chunk : rows that are compressed, and read, together
    rows_per_shard : rows in one file, written as a whole by one writer
    """

    n_rows: int
    row_shape: tuple[int, ...]
    dtype: str
    rows_per_chunk: int
    rows_per_shard: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array: (n_rows, *row_shape)."""
        return (self.n_rows, *self.row_shape)

    @property
    def n_shards(self) -> int:
        """Number of shards; the last may be short."""
        return -(-self.n_rows // self.rows_per_shard)

    def span(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the first behind it."""
        start = shard * self.rows_per_shard
        return start, min(start + self.rows_per_shard, self.n_rows)

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Spans of at most a shard that cover start..stop, cut at shard borders."""
        while start < stop:
            end = min((start // self.rows_per_shard + 1) * self.rows_per_shard, stop)
            yield start, end
            start = end


def layout_for(n_rows: int, row_shape: tuple[int, ...], dtype: str) -> Layout:
    """The layout of a new cache: chunks of 16 rows, shards of 64 MB raw but 1024 rows at most.

    A shard is held in memory while it is computed, and is what an interruption loses.
    """
    row_bytes = prod(row_shape) * np.dtype(dtype).itemsize
    chunks = max(1, min(_SHARD_BYTES // (row_bytes * _ROWS_PER_CHUNK), _MAX_ROWS_PER_SHARD // _ROWS_PER_CHUNK))
    return Layout(n_rows, row_shape, dtype, _ROWS_PER_CHUNK, int(chunks) * _ROWS_PER_CHUNK)
