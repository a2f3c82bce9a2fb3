"""Features in HDF5: one file with one chunked array, deflated, that h5py or h5dump read alone.

An HDF5 file that loses its writer may not open again, and one file has one writer. So each shard is first a file of its
own in features.h5.parts, renamed into place as a whole; once all are there, their chunks are copied as they are into
features.h5, written beside and renamed. Deflate ends every chunk with a checksum, which zlib verifies.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py._objects import phil  # the lock that h5py holds around HDF5, but not around direct chunks
from numpy.typing import NDArray

from featcache.core.errors import CacheError, refuse_shortage
from featcache.core.files import beside
from featcache.store.contract import Stored, check_shard
from featcache.store.layout import FEATURES_HDF5, PARTS_FOLDER, Format, Layout, files_of

DATASET = "features"
_LEVEL = 4
_DAMAGE = (OSError, ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, AttributeError, zlib.error)
"""What h5py and zlib are known to raise on damaged files."""


class Hdf5Store:
    """The array features.h5 in a cache's folder. See `featcache.store.contract.FeatureStore`."""

    format: Format = "hdf5"

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout
        self.path = folder / FEATURES_HDF5

    def create(self, mend: bool = False) -> None:
        """Make the folder of parts, unless the array is finished."""
        if self.path.is_file():
            try:
                with self._open(self.path):
                    return
            except CacheError:
                if not mend:
                    raise
                self.path.unlink()
        (self.folder / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)

    def write_shard(self, shard: int, features: NDArray[Any]) -> Stored:
        """Write one shard into a file of its own, read it back, then rename it."""
        check_shard(self.layout, shard, features=features)
        part = self._part(shard)
        part.parent.mkdir(exist_ok=True)
        with beside(part) as partial:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                chunks = list(pool.map(_deflated, self._chunks(features)))
            self._write(partial, features.shape, chunks)
            if not partial.is_file():
                raise FileNotFoundError(errno.ENOENT, "it has vanished")
            with self._open(partial, features.shape) as array:
                if not np.array_equal(self._rows(array, 0, len(features)).view(np.uint8), features.view(np.uint8)):
                    raise CacheError(f"{part}: what was written could not be read back: check the disk and the memory")
        return _digest(chunks)

    def stored(self, shard: int) -> Stored | None:
        """Size and digest of the shard's chunks, one behind the other, in its part or in the finished file."""
        try:
            return _digest(self._stored_chunks(shard))
        except (CacheError, *_DAMAGE) as error:
            refuse_shortage(error, self.path)
            return None

    def finish(self) -> None:
        """Copy the chunks of all parts, and of a finished file that parts mend, to a new file; then drop the parts.

        Also where nothing is to be mended: the chunks are known to be sound, the bytes between them are not.
        """
        with beside(self.path) as partial:
            chunks = (chunk for shard in range(self.layout.n_shards) for chunk in self._stored_chunks(shard))
            self._write(partial, self.layout.shape, chunks)
        shutil.rmtree(self.folder / PARTS_FOLDER, ignore_errors=True)

    def files(self) -> dict[str, int | None]:
        """The one file."""
        return files_of("hdf5", self.layout)

    def read(self, start: int, stop: int) -> NDArray[np.number[Any]]:
        """Rows start..stop; what is missing or does not inflate to a whole chunk is a CacheError."""
        rows = np.empty((stop - start, *self.layout.row_shape), self.layout.dtype)
        try:
            for first, last in self.layout.blocks(start, stop):
                opened, begin = self._holding(first // self.layout.rows_per_shard)
                with opened as array:
                    rows[first - start : last - start] = self._rows(array, first - begin, last - begin)
        except _DAMAGE as error:
            refuse_shortage(error, self.path)
            raise CacheError(f"{self.path}: rows {start} to {stop} cannot be read: {error}") from error
        return rows

    def _part(self, shard: int) -> Path:
        return self.folder / PARTS_FOLDER / f"{shard:06d}.h5"

    def _chunks(self, features: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The rows of each chunk; the last is filled up with zeros, since HDF5 stores whole chunks."""
        step = self.layout.rows_per_chunk
        for first in range(0, len(features), step):
            rows = features[first : first + step]
            missing = np.zeros((step - len(rows), *self.layout.row_shape), features.dtype)
            yield np.concatenate([rows, missing]) if len(missing) else np.ascontiguousarray(rows)

    def _write(self, path: Path, shape: tuple[int, ...], chunks: Iterable[bytes]) -> None:
        """A new file of this array, from chunks that are deflated already."""
        try:
            with h5py.File(path, "w", libver="earliest", locking=False) as file:
                array = file.create_dataset(
                    DATASET,
                    shape,
                    self.layout.dtype,
                    # HDF5 takes no chunk that is larger than the array may become.
                    maxshape=(max(shape[0], self.layout.rows_per_chunk), *shape[1:]),
                    chunks=(self.layout.rows_per_chunk, *self.layout.row_shape),
                    compression="gzip",
                    compression_opts=_LEVEL,
                    track_times=False,
                )
                for first, chunk in zip(range(0, shape[0], self.layout.rows_per_chunk), chunks, strict=True):
                    with phil:
                        array.id.write_direct_chunk((first, *(0 for _ in self.layout.row_shape)), chunk)
        except CacheError:  # of the chunks
            raise
        except (OSError, RuntimeError) as error:  # the latter where h5py closes a file on a full disk
            raise _system_error(error) from error

    def _holding(self, shard: int) -> tuple[_Opened, int]:
        """The file that a shard lies in, and the row that this file begins with: its part, else the finished file."""
        start, stop = self.layout.span(shard)
        part = self._part(shard)
        if part.is_file():
            return self._open(part, (stop - start, *self.layout.row_shape)), start
        return self._open(self.path), 0

    def _open(self, path: Path, shape: tuple[int, ...] | None = None) -> _Opened:
        return _Opened(path, shape or self.layout.shape, layout=self.layout)

    def _rows(self, array: h5py.Dataset, start: int, stop: int) -> NDArray[np.number[Any]]:
        """Rows of an open array. Its chunks are inflated here, in threads: h5py would do it in one."""
        step = self.layout.rows_per_chunk
        rows = np.empty((stop - start, *self.layout.row_shape), self.layout.dtype)
        chunk_shape = (step, *self.layout.row_shape)
        chunk_bytes = int(np.prod(chunk_shape)) * rows.itemsize

        def inflate(number: int, chunk: bytes) -> None:
            inflater = zlib.decompressobj()
            data = inflater.decompress(chunk, chunk_bytes + 1)  # never more, whatever a hostile file promises
            if len(data) != chunk_bytes or not inflater.eof:
                raise ValueError(f"the chunk of row {number * step} does not inflate to {chunk_bytes} bytes")
            first, last = max(start, number * step), min(stop, (number + 1) * step)
            whole = np.frombuffer(data, rows.dtype).reshape(chunk_shape)
            rows[first - start : last - start] = whole[first - number * step : last - number * step]

        numbers = range(start // step, -(-stop // step))
        chunks = (_raw_chunk(array, number * step) for number in numbers)
        if len(numbers) == 1:
            inflate(numbers[0], next(chunks))
        elif len(numbers):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(inflate, numbers, chunks))
        return rows

    def _stored_chunks(self, shard: int) -> Iterator[bytes]:
        """The chunks of a shard as they are stored."""
        opened, begin = self._holding(shard)
        with opened as array:
            for first in range(*self.layout.span(shard), self.layout.rows_per_chunk):
                yield _raw_chunk(array, first - begin)


class _Opened:
    """An HDF5 file open for reading, and checked to hold the array that a layout describes."""

    def __init__(self, path: Path, shape: tuple[int, ...], *, layout: Layout) -> None:
        self._path = path
        expected = (shape, layout.dtype, (layout.rows_per_chunk, *layout.row_shape), ["deflate"])
        try:
            self._file = h5py.File(path, "r", locking=False)
        except _DAMAGE as error:
            refuse_shortage(error, path)
            raise CacheError(f"{path}: not an HDF5 file: {error}") from error
        try:
            if not isinstance(self._file.get(DATASET, getlink=True), h5py.HardLink):
                raise ValueError("it leads to another place")
            array = self._file[DATASET]
            found = (array.shape, str(array.dtype), array.chunks, _filters(array))
        except _DAMAGE as error:
            refuse_shortage(error, path)
            self._file.close()
            raise CacheError(f"{path}: has no array {DATASET!r}: {error}") from error
        if found != expected:
            self._file.close()
            raise CacheError(f"{path}: expected shape, dtype, chunks and filters {expected}, found {found}")
        self._array = array

    def __enter__(self) -> h5py.Dataset:
        return self._array

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _system_error(error: OSError | RuntimeError) -> OSError:
    """What the system said, without the lines of its own state that HDF5 puts around it."""
    found = re.search(r"errno = ([0-9]+)", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    return OSError(number, os.strerror(number)) if number else OSError(" ".join(str(error).split()))


def _deflated(chunk: NDArray[Any]) -> bytes:
    """Deflate that only looks for runs: of features it is three times faster than the usual one, and smaller."""
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return deflater.compress(chunk.data) + deflater.flush()


def _filters(array: h5py.Dataset) -> list[str]:
    """Names of all filters that a chunk goes through: one besides deflate would give inflated bytes another meaning."""
    created = array.id.get_create_plist()
    return [created.get_filter(number)[3].decode(errors="replace") for number in range(created.get_nfilters())]


def _raw_chunk(array: h5py.Dataset, first_row: int) -> bytes:
    """One chunk as it is stored. Raises ValueError where there is none or a filter was skipped."""
    try:
        with phil:
            skipped, chunk = array.id.read_direct_chunk((first_row, *(0 for _ in array.shape[1:])))
    except MemoryError as error:  # what h5py makes of a chunk that was never written, and of a size that cannot be
        raise ValueError(f"the chunk of row {first_row} is not there") from error
    if skipped:
        raise ValueError(f"the chunk of row {first_row} is not deflated")
    return bytes(chunk)


def _digest(chunks: Iterable[bytes]) -> Stored:
    digest, length = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        length += len(chunk)
    return Stored(length, digest.hexdigest())
