"""Reading Zarr caches with tensorstore, where it is installed: the same bytes, decoded by several threads in C++."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from featcache.core.errors import CacheError, UsageError, refuse_shortage
from featcache.core.extras import is_installed, require_extra
from featcache.core.files import resolved
from featcache.store.contract import FeatureStore
from featcache.store.features import Array, Reader, Span

if TYPE_CHECKING:
    from featcache.store.zarr_store import ZarrStore

ReaderName = Literal["auto", "zarr", "tensorstore"]

_DAMAGE = (OSError, ValueError, TypeError, LookupError, RuntimeError, NotImplementedError)
"""What tensorstore is known to raise on damaged files."""

_forked_from_threads = False


def _after_fork() -> None:
    """Tensorstore ends a process that was forked from one that has used it: such a child reads with zarr-python."""
    global _forked_from_threads
    _forked_from_threads = "tensorstore" in sys.modules


if hasattr(os, "register_at_fork"):  # where processes can fork
    os.register_at_fork(after_in_child=_after_fork)


def choose_reader(store: FeatureStore, reader: ReaderName) -> Reader:
    """What reads the array of `store`: tensorstore for Zarr where it is installed, unless another one is named.

    Raises UsageError for an unknown reader, MissingPackageError where tensorstore is named and not installed.
    """
    if reader not in get_args(ReaderName):
        raise UsageError(f"reader {reader!r}: expected auto, zarr or tensorstore")
    if reader != "auto" and store.format != "zarr":
        raise UsageError(f"reader {reader!r} reads Zarr caches, and this one is {store.format}: leave the reader out")
    if reader == "tensorstore":
        require_extra("fast", "the reader 'tensorstore'")
    if reader == "zarr" or store.format != "zarr" or not is_installed("tensorstore"):
        return store
    return TensorstoreReader(cast("ZarrStore", store))


_READERS = 3


class TensorstoreReader:
    """Reads the array of a `ZarrStore`, and writes nothing. Nothing is cached: a file that changed is noticed."""

    def __init__(self, store: ZarrStore) -> None:
        self.layout = store.layout
        self._store = store
        self._array: Any = None
        self._buffers = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self.layout, "_store": self._store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_store"])  # type: ignore[misc]

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop; a missing shard, or a chunk that fails its checksum, is a CacheError."""
        return self.read_spans([(start, stop)])

    def read_into(self, start: int, stop: int, *, target: Array) -> None:
        """Put rows start..stop into `target`, some shards at a time."""
        tensorstore = _library()
        if tensorstore is None:
            self._store.read_into(start, stop, target=target)
            return
        array = self._open(tensorstore) if self._array is None else self._array
        with ThreadPoolExecutor(_READERS, "featcache-read") as pool:
            reads = [
                pool.submit(self._shard_into, tensorstore, array, first, last, target[first - start : last - start])
                for first, last in self.layout.blocks(start, stop)
            ]
            for read in reads:
                read.result()

    def _shard_into(self, tensorstore: Any, array: Any, start: int, stop: int, target: Array) -> None:
        """By way of a buffer that is used again, since new memory costs time; straight where nothing is turned."""
        order, back = self._orders(array)
        if list(order) == back == sorted(back):
            self._read_to(tensorstore.array(target), array, start, stop)
            return
        shape = [len(target), *self.layout.row_shape]
        size = int(np.prod(shape))
        if getattr(self._buffers, "size", 0) < size:
            self._buffers.rows, self._buffers.size = np.empty(size, self.layout.dtype), size
        rows = self._buffers.rows[:size].reshape([shape[axis] for axis in order])
        self._read_to(tensorstore.array(rows).transpose(back), array, start, stop)
        if len(shape) == 4:  # as matrices, (channels, h w) to (h w, channels): twice as quick as axis by axis
            target, rows = target.reshape(len(target), -1, shape[-1]), rows.reshape(len(target), shape[-1], -1)
            back = [0, 2, 1]
        np.copyto(target, rows.transpose(back))

    def _read_to(self, target: Any, array: Any, start: int, stop: int) -> None:
        """Put rows start..stop into an array of tensorstore's."""
        try:
            self._store.check_files(start, stop)
            target.write(array[start:stop]).result()
        except _DAMAGE as error:
            refuse_shortage(error, self._store.path)
            raise CacheError(f"{self._store.path}: rows {start} to {stop} cannot be read: {error}") from error

    def _orders(self, array: Any) -> tuple[Sequence[int], list[int]]:
        """The axes as they lie in the chunks, which may be transposed, and the way back: tensorstore turns slowly."""
        order = array.chunk_layout.inner_order or tuple(range(1 + len(self.layout.row_shape)))
        return order, [order.index(axis) for axis in range(len(order))]

    def read_spans(self, spans: Sequence[Span]) -> Array:
        """The rows of all spans, one behind the other, read at the same time; not always contiguous in memory."""
        tensorstore = _library()
        if tensorstore is None:
            return np.concatenate([self._store.read(start, stop) for start, stop in spans])
        array = self._open(tensorstore) if self._array is None else self._array
        shape = (sum(stop - start for start, stop in spans), *self.layout.row_shape)
        order, back = self._orders(array)
        rows = np.empty([shape[axis] for axis in order], self.layout.dtype)
        try:
            target, reads, place = tensorstore.array(rows).transpose(back), [], 0
            for start, stop in spans:
                self._store.check_files(start, stop)
                if start < stop:
                    reads.append(target[place : place + stop - start].write(array[start:stop]))
                place += stop - start
            for read in reads:
                read.result()
        except _DAMAGE as error:
            refuse_shortage(error, self._store.path)
            where = f"rows {spans[0][0]} to {spans[-1][1]}"
            raise CacheError(f"{self._store.path}: {where} cannot be read: {error}") from error
        return rows.transpose(back)

    def _open(self, tensorstore: Any) -> Any:
        """Open the array, once its description has passed the checks of `ZarrStore`."""
        self._store.read(0, 0)
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(resolved(self._store.path))},
            "fill_missing_data_reads": False,  # a chunk that is not there is an error, and not zeros
            "recheck_cached_data": True,
            "context": {"cache_pool": {"total_bytes_limit": 0}},
        }
        try:
            self._array = tensorstore.open(spec, read=True).result()
        except _DAMAGE as error:
            refuse_shortage(error, self._store.path)
            raise CacheError(f"{self._store.path}: not a Zarr v3 array: {error}") from error
        return self._array


def _library() -> Any:
    """The module tensorstore, loaded now; None where it cannot be loaded or must not be used."""
    if _forked_from_threads:
        return None
    try:
        import tensorstore
    except ImportError:  # installed but broken: zarr-python reads the same
        return None
    return tensorstore
