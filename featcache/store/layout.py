"""How a cache lies on disk: its files' names, and how its rows are cut into shards and chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

RECIPE_FILE = "recipe.json"
ROWS_FILE = "rows.parquet"
DATASET_FILE = "dataset.parquet"
LABELS_WAITING_FILE = f"{DATASET_FILE}.next"
LEDGER_FILE = "ledger.jsonl"
REPAIR_LEDGER_FILE = "ledger.repair.jsonl"
MANIFEST_FILE = "manifest.json"
FEATURES_FOLDER = "features.zarr"
ARRAY_FILE = f"{FEATURES_FOLDER}/zarr.json"
FEATURES_HDF5 = "features.h5"
PARTS_FOLDER = f"{FEATURES_HDF5}.parts"
LEASES_FOLDER = "leases"

Format = Literal["zarr", "hdf5"]
FORMATS: tuple[Format, ...] = ("zarr", "hdf5")

_SHARD_BYTES = 16 << 20
_MAX_ROWS_PER_SHARD = 256
_FEW_SHARDS, _MANY_ROWS_SHARD_BYTES = 4096, 4 << 20
_CHUNK_BYTES: dict[Format, int] = {"zarr": 2 << 20, "hdf5": 100_000}


@dataclass(frozen=True)
class Layout:
    """The shape of a feature array and how it is cut along its rows.

    row_shape : shape of one row, e.g. (7, 7, 512), or (512,) where pooled
    dtype : of what is stored: "float32", "float16", or "uint8" of pixels
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
    def computed_dtype(self) -> str:
        """What rows come in: float32, whose range is looked at before it is stored, or uint8, stored as it comes."""
        return self.dtype if self.dtype == "uint8" else "float32"

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


def layout_for(n_rows: int, row_shape: tuple[int, ...], *, dtype: str, format_: Format = "zarr") -> Layout:
    """The layout of a new cache: shards of up to 16 MiB raw and 256 rows, chunks of 2 MiB in Zarr and 100 kB in HDF5.

    A shard is held in memory while it is computed, is what an interruption loses, and what processes share. Chunks were
    chosen by measurement on real features (docs/explanation/benchmarks.md): Zarr pays for each chunk that it touches,
    HDF5 hardly does. A cache of more than a million small rows has more in a shard, up to 4 MiB, so that there are some
    thousand files: what an interruption loses stays a small share of the whole.
    """
    return layouts_for(n_rows, row_shape, dtype=dtype, format_=format_)[0]


def layouts_for(
    n_rows: int, row_shape: tuple[int, ...], *, dtype: str, format_: Format = "zarr"
) -> tuple[Layout, Layout]:
    """The layout of a new cache, and the one that was so before there were larger shards for many rows."""
    row_bytes = prod(row_shape) * np.dtype(dtype).itemsize
    per_shard = before = _power_of_two(min(_SHARD_BYTES // row_bytes, _MAX_ROWS_PER_SHARD))
    while per_shard * _FEW_SHARDS < n_rows and 2 * per_shard * row_bytes <= _MANY_ROWS_SHARD_BYTES:
        per_shard *= 2
    chunk = _power_of_two(_CHUNK_BYTES[format_] // row_bytes)
    new, old = (Layout(n_rows, row_shape, dtype, min(chunk, rows), rows) for rows in (per_shard, before))
    return new, old


def _power_of_two(at_most: int) -> int:
    """The largest one that is not larger, and at least 1: then whole chunks fill each shard."""
    return 1 << max(0, at_most.bit_length() - 1)


def zarr_shard(layout: Layout, shard: int) -> str:
    """The file of a shard of a Zarr array, from the cache's folder: Zarr's own key, c/<shard>/0/0/0."""
    return "/".join([FEATURES_FOLDER, "c", str(shard), *("0" for _ in layout.row_shape)])


def files_of(format_: Format, layout: Layout) -> dict[str, int | None]:
    """The files of a finished array, as paths from the cache's folder with `/`, and the shard that is a file."""
    if format_ == "hdf5":
        return {FEATURES_HDF5: None}
    return {ARRAY_FILE: None, **{zarr_shard(layout, shard): shard for shard in range(layout.n_shards)}}
