"""Features in Zarr v3: one sharded array, zstd with a checksum in every chunk."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from featcache.errors import CacheError
from featcache.files import PARTIAL_SUFFIX, move_into_place
from featcache.store.layout import Layout

_DAMAGE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, AssertionError)
"""What zarr is known to raise on damaged files."""


class ZarrStore:
    """The array in `folder` (features.zarr). See `featcache.store.contract.FeatureStore`."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout
        self._array: zarr.Array[Any] | None = None

    def create(self) -> None:
        """Write zarr.json, beside first; sweep away what an interrupted writer left."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.parent.glob(f".*{PARTIAL_SUFFIX}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        if not (self.folder / "zarr.json").is_file():
            staging, _ = self._new_staging()
            self.folder.mkdir(exist_ok=True)
            move_into_place(staging / "zarr.json", self.folder / "zarr.json")
            shutil.rmtree(staging)
        self._open()

    def write_shard(self, shard: int, features: NDArray[Any]) -> None:
        """Write one shard into a staging array of its own, then rename its file into this one."""
        start, stop = self.layout.span(shard)
        if features.shape != (stop - start, *self.layout.row_shape):
            raise ValueError(f"shard {shard}: expected {(stop - start, *self.layout.row_shape)}, got {features.shape}")
        if features.dtype != np.dtype(self.layout.dtype):
            raise ValueError(f"shard {shard}: expected {self.layout.dtype}, got {features.dtype}")
        staging, array = self._new_staging()
        try:
            array[start:stop] = features
            final = self.shard_file(shard)
            final.parent.mkdir(parents=True, exist_ok=True)
            move_into_place(staging / final.relative_to(self.folder), final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def shard_file(self, shard: int) -> Path:
        """Zarr's own key for a shard: c/<shard>/0/0/0."""
        return self.folder.joinpath("c", str(shard), *("0" for _ in self.layout.row_shape))

    def read(self, start: int, stop: int) -> NDArray[np.floating[Any]]:
        """Rows start..stop; a missing shard, or a chunk that fails its checksum, is a CacheError."""
        array = self._array if self._array is not None else self._open()
        try:
            for first, _ in self.layout.blocks(start, stop):
                file = self.shard_file(first // self.layout.rows_per_shard)
                if file.stat().st_size == 0:  # zarr would read an empty or missing file as zeros
                    raise ValueError(f"{file.relative_to(self.folder)} is empty")
            return np.asarray(array[start:stop])
        except _DAMAGE as error:
            raise CacheError(f"{self.folder}: rows {start} to {stop} cannot be read: {error}") from error

    def _open(self) -> zarr.Array[Any]:
        try:
            array = zarr.open_array(self.folder, mode="r")
            found = (array.shape, str(array.dtype), array.shards, array.chunks)
        except _DAMAGE as error:
            raise CacheError(f"{self.folder}: not a Zarr v3 array: {error}") from error
        layout = self.layout
        cuts = [(rows, *layout.row_shape) for rows in (layout.rows_per_shard, layout.rows_per_chunk)]
        expected = (layout.shape, layout.dtype, *cuts)
        if found != expected:
            raise CacheError(f"{self.folder}: expected shape, dtype, shards and chunks {expected}, found {found}")
        self._array = array
        return array

    def _new_staging(self) -> tuple[Path, zarr.Array[Any]]:
        """An empty array of the same description in a folder of its own beside this one.

        It writes shards of zeros too. zarr.json does not hold that wish: an array opened later drops them.
        """
        staging = self.folder.parent / f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"
        layout = self.layout
        array = zarr.create_array(
            staging,
            shape=layout.shape,
            dtype=layout.dtype,
            chunks=(layout.rows_per_chunk, *layout.row_shape),
            shards=(layout.rows_per_shard, *layout.row_shape),
            compressors=[ZstdCodec(level=0, checksum=True)],
            fill_value=0,
            dimension_names=["row", "height", "width", "channel"] if len(layout.row_shape) == 3 else None,
            config={"write_empty_chunks": True},
        )
        return staging, array
