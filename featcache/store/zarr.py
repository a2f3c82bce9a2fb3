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


class ZarrStore:
    """The array in `folder` (features.zarr). See `featcache.store.contract.FeatureStore`."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout
        self._array: zarr.Array[Any] | None = None

    def create(self) -> None:
        """Write zarr.json, beside first; sweep away what an interrupted writer left."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.parent.glob(f".*{PARTIAL_SUFFIX}"):
            shutil.rmtree(leftover, ignore_errors=True)
        if not (self.folder / "zarr.json").is_file():
            staging = self._new_staging()
            self.folder.mkdir(exist_ok=True)
            move_into_place(staging / "zarr.json", self.folder / "zarr.json")
            shutil.rmtree(staging)
        self._open()

    def write_shard(self, shard: int, features: NDArray[Any]) -> None:
        """Write one shard into a staging array of its own, then rename its file into this one."""
        start, stop = self.layout.span(shard)
        if features.shape != (stop - start, *self.layout.row_shape):
            raise ValueError(f"shard {shard}: expected {(stop - start, *self.layout.row_shape)}, got {features.shape}")
        staging = self._new_staging()
        try:
            zarr.open_array(staging, mode="r+")[start:stop] = features
            final = self.shard_file(shard)
            final.parent.mkdir(parents=True, exist_ok=True)
            move_into_place(staging / final.relative_to(self.folder), final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def shard_file(self, shard: int) -> Path:
        """Zarr's own key for a shard: c/<shard>/0/0/0."""
        return self.folder.joinpath("c", str(shard), *("0" for _ in self.layout.row_shape))

    def read(self, start: int, stop: int) -> NDArray[np.floating[Any]]:
        """Rows start..stop; a chunk that fails its checksum is a CacheError."""
        array = self._array if self._array is not None else self._open()
        try:
            return np.asarray(array[start:stop])
        except (RuntimeError, ValueError, OSError) as error:
            raise CacheError(f"{self.folder}: rows {start} to {stop} cannot be read: {error}") from error

    def _open(self) -> zarr.Array[Any]:
        try:
            array = zarr.open_array(self.folder, mode="r")
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CacheError(f"{self.folder}: not a Zarr v3 array: {error}") from error
        if array.shape != self.layout.shape or array.dtype != np.dtype(self.layout.dtype):
            raise CacheError(
                f"{self.folder}: expected {self.layout.shape} {self.layout.dtype}, found {array.shape} {array.dtype}"
            )
        self._array = array
        return array

    def _new_staging(self) -> Path:
        """An empty array of the same description in a folder of its own beside this one."""
        staging = self.folder.parent / f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"
        layout = self.layout
        zarr.create_array(
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
        return staging
