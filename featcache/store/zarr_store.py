"""Features in Zarr v3: one sharded array, channels first and zstd with a checksum in every chunk, a file a shard.

Pixels stay channels last, as they are read.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import TransposeCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.core.buffer.cpu import NDBuffer
from zarr.storage import MemoryStore

from featcache.core.errors import CacheError, refuse_shortage
from featcache.core.files import make_folder, sha256_bytes, sha256_file, write_bytes
from featcache.store.contract import Stored, check_shard
from featcache.store.layout import FEATURES_FOLDER, Format, Layout, files_of, zarr_shard

_DAMAGE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, AssertionError)
"""What zarr is known to raise on damaged files."""


class ZarrStore:
    """The array features.zarr in a cache's folder. See `featcache.store.contract.FeatureStore`."""

    format: Format = "zarr"

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout
        self.path = folder / FEATURES_FOLDER
        self._array: zarr.Array[Any] | None = None

    def create(self, mend: bool = False) -> None:
        """Write zarr.json."""
        if (self.path / "zarr.json").is_file():
            try:
                self._open()
                return
            except CacheError:
                if not mend:
                    raise
        make_folder(self.path)
        write_bytes(self.path / "zarr.json", self._encoder.files["zarr.json"].to_bytes())
        self._open()

    def write_shard(self, shard: int, features: NDArray[Any]) -> Stored:
        """Encode one shard in memory, write it beside, read it back, then rename it into this array."""
        check_shard(self.layout, shard, features=features)
        start, stop = self.layout.span(shard)
        final = self.shard_file(shard)
        data = self._encoder.encode(start, stop, rows=features, file=final.relative_to(self.path).as_posix())
        make_folder(final.parent, within=self.path)
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(sha256_bytes, data)
            write_bytes(final, data, check=True)
            return Stored(len(data), digest.result())

    def stored(self, shard: int) -> Stored | None:
        """Size and digest of the shard's file."""
        file = self.shard_file(shard)
        try:
            return Stored(file.stat().st_size, sha256_file(file))
        except OSError:
            return None

    def finish(self) -> None:
        """Nothing is left to do: every shard is where it belongs."""

    def files(self) -> dict[str, int | None]:
        """zarr.json and a file a shard."""
        return files_of("zarr", self.layout)

    def shard_file(self, shard: int) -> Path:
        """Zarr's own key for a shard: c/<shard>/0/0/0."""
        return self.folder / zarr_shard(self.layout, shard)

    def read(self, start: int, stop: int) -> NDArray[np.number[Any]]:
        """Rows start..stop; a missing shard, or a chunk that fails its checksum, is a CacheError."""
        array = self._array if self._array is not None else self._open()
        try:
            self.check_files(start, stop)
            return np.asarray(array[start:stop])
        except _DAMAGE as error:
            refuse_shortage(error, self.path)
            raise CacheError(f"{self.path}: rows {start} to {stop} cannot be read: {error}") from error

    def read_into(self, start: int, stop: int, *, target: NDArray[np.number[Any]]) -> None:
        """Put rows start..stop into `target`; see `read`."""
        array = self._array if self._array is not None else self._open()
        try:
            self.check_files(start, stop)
            array.get_basic_selection(slice(start, stop), out=NDBuffer.from_numpy_array(target))
        except _DAMAGE as error:
            refuse_shortage(error, self.path)
            raise CacheError(f"{self.path}: rows {start} to {stop} cannot be read: {error}") from error

    def check_files(self, start: int, stop: int) -> None:
        """Raise ValueError or OSError unless each chunk of the rows is there: zarr gives zeros for what was not stored.

        A shard ends with a table of offset and length (uint64) of each of its chunks, and a checksum of the table.
        """
        layout = self.layout
        n_chunks = layout.rows_per_shard // layout.rows_per_chunk
        for first, last in layout.blocks(start, stop):
            shard = first // layout.rows_per_shard
            file = self.shard_file(shard)
            with file.open("rb") as data:
                size = data.seek(0, os.SEEK_END)
                if size < 16 * n_chunks + 4:
                    raise ValueError(f"{file.relative_to(self.path)} is {'cut short' if size else 'empty'}")
                data.seek(size - 16 * n_chunks - 4)
                lengths = np.frombuffer(data.read(16 * n_chunks), "<u8")[1::2]
            begin, _ = layout.span(shard)
            touched = lengths[(first - begin) // layout.rows_per_chunk : -(-(last - begin) // layout.rows_per_chunk)]
            if (touched > size).any():  # what was not stored has the largest number as its length
                raise ValueError(f"{file.relative_to(self.path)} lacks a chunk")

    def _open(self) -> zarr.Array[Any]:
        try:
            array = zarr.open_array(self.path, mode="r")
            found = _description(array)
        except _DAMAGE as error:
            refuse_shortage(error, self.path)
            raise CacheError(f"{self.path}: not a Zarr v3 array: {error}") from error
        expected = _description(self._encoder.array)
        differing = [
            f"{name} {found[name]}, expected {expected[name]}" for name in expected if found[name] != expected[name]
        ]
        if differing:
            raise CacheError(f"{self.path}: is not the array of this cache: {'; '.join(differing)}")
        self._array = array
        return array

    @cached_property
    def _encoder(self) -> _Encoder:
        return _Encoder(self.layout)


def _description(array: zarr.Array[Any]) -> dict[str, Any]:
    """What decides how the array's files are read."""
    metadata: Any = array.metadata
    return {
        "shape": array.shape,
        "dtype": str(array.dtype),
        "shards": array.shards,
        "chunks": array.chunks,
        "codecs": metadata.codecs,
        "fill value": metadata.fill_value,
        "chunk keys": metadata.chunk_key_encoding,
    }


class _Encoder:
    """The same array in memory, which holds one shard at a time: what zarr makes of it goes to the disk as it is."""

    def __init__(self, layout: Layout) -> None:
        self.files: dict[str, Buffer] = {}
        self.array = new_array(MemoryStore(self.files), layout)

    def encode(self, start: int, stop: int, *, rows: NDArray[Any], file: str) -> memoryview:
        """The bytes of the shard that holds the rows start..stop."""
        self.array[start:stop] = rows
        return memoryview(self.files.pop(file).as_numpy_array()).cast("B")  # type: ignore[arg-type]


def new_array(store: Path | MemoryStore, layout: Layout) -> zarr.Array[Any]:
    """An empty array as caches have it.

    It writes shards of zeros too. zarr.json does not hold that wish: an array opened later drops them.
    """
    ndim = len(layout.shape)
    # Zeros behind a ReLU lie together in a channel: with channels first a row compresses better, and faster. Pixels
    # become hardly smaller by it, and zarr-python reads them nearly twice as fast without it.
    turned = ndim > 2 and layout.dtype != "uint8"
    channels_first = [TransposeCodec(order=(0, ndim - 1, *range(1, ndim - 1)))] if turned else []
    return zarr.create_array(
        store,
        shape=layout.shape,
        dtype=layout.dtype,
        chunks=(layout.rows_per_chunk, *layout.row_shape),
        shards=(layout.rows_per_shard, *layout.row_shape),
        filters=channels_first,
        compressors=[ZstdCodec(level=1, checksum=True)],
        fill_value=0,
        dimension_names=["row", "height", "width", "channel"] if len(layout.row_shape) == 3 else None,
        config={"write_empty_chunks": True},
    )
