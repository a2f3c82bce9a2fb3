"""Ways to compress features, on real ones: stored size, writing, reading, gathering 16 random rows.

python benchmarks/codecs.py FEATURES.npy [...] [--mb 100] [--rows-per-chunk N] [--rows-per-shard N]
python benchmarks/codecs.py --cache FOLDER
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import zarr
from common import best_of, print_machine
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from featcache.store.cache import open_cache
from featcache.store.layout import Layout, layout_for

THREADS = 2
HDF5_CHUNK_BYTES = 100_000


class Candidate(Protocol):
    """A way to store features of shape (n_rows, *row_shape)."""

    name: str

    def write(self, path: Path, features: NDArray[Any], layout: Layout) -> None:
        """All rows, shard by shard."""

    def read(self, path: Path, layout: Layout) -> NDArray[Any]:
        """All rows, shard by shard, in order."""

    def gather(self, path: Path, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Some rows; `rows` is sorted."""


@dataclass(frozen=True)
class Zarr:
    """Sharded Zarr v3. `channels_first` puts each row's channels one after the other before compression."""

    name: str
    compressors: tuple[Any, ...]
    channels_first: bool = False

    def write(self, path: Path, features: NDArray[Any], layout: Layout) -> None:
        ndim = features.ndim
        order = (0, ndim - 1, *range(1, ndim - 1))  # (row, h, w, c) -> (row, c, h, w)
        array = zarr.create_array(
            path,
            shape=features.shape,
            dtype=features.dtype,
            chunks=(layout.rows_per_chunk, *layout.row_shape),
            shards=(layout.rows_per_shard, *layout.row_shape),
            filters=[TransposeCodec(order=order)] if self.channels_first and ndim > 2 else [],
            compressors=list(self.compressors),
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        for start, stop in layout.blocks(0, layout.n_rows):
            array[start:stop] = features[start:stop]

    def read(self, path: Path, layout: Layout) -> NDArray[Any]:
        array, rows = zarr.open_array(path, mode="r"), np.empty(layout.shape, layout.dtype)
        for start, stop in layout.blocks(0, layout.n_rows):
            rows[start:stop] = array[start:stop]
        return rows

    def gather(self, path: Path, rows: NDArray[np.intp]) -> NDArray[Any]:
        return np.asarray(zarr.open_array(path, mode="r").oindex[rows])


@dataclass(frozen=True)
class H5py:
    """HDF5 by h5py alone, gzip of some level."""

    name: str
    level: int
    shuffle: bool = False

    def write(self, path: Path, features: NDArray[Any], layout: Layout) -> None:
        with h5py.File(path, "w") as file:
            self.create(file, layout).write_direct(features)

    def read(self, path: Path, layout: Layout) -> NDArray[Any]:
        rows = np.empty(layout.shape, layout.dtype)
        with h5py.File(path) as file:
            file["features"].read_direct(rows)
        return rows

    def gather(self, path: Path, rows: NDArray[np.intp]) -> NDArray[Any]:
        with h5py.File(path) as file:
            dataset = file["features"]
            return np.stack([dataset[row] for row in rows])

    def create(self, file: h5py.File, layout: Layout) -> h5py.Dataset:
        """The empty dataset: chunks of 100 kB, at least a row."""
        row_bytes = prod(layout.row_shape) * np.dtype(layout.dtype).itemsize
        rows = min(max(1, HDF5_CHUNK_BYTES // row_bytes), layout.n_rows)
        return file.create_dataset(
            "features",
            layout.shape,
            layout.dtype,
            chunks=(rows, *layout.row_shape),
            compression="gzip",
            compression_opts=self.level,
            shuffle=self.shuffle,
        )


@dataclass(frozen=True)
class Deflate(H5py):
    """The same files, but Python's zlib works on whole chunks in threads; HDF5 only moves the bytes.

    Any strategy of zlib gives plain deflate, which every HDF5 reads as gzip.
    """

    strategy: int = zlib.Z_DEFAULT_STRATEGY

    def write(self, path: Path, features: NDArray[Any], layout: Layout) -> None:
        with h5py.File(path, "w") as file, ThreadPoolExecutor(THREADS) as pool:
            dataset = self.create(file, layout)
            rows = dataset.chunks[0]

            def packed(start: int) -> bytes:
                chunk = features[start : start + rows]
                if len(chunk) < rows:  # HDF5 stores whole chunks
                    chunk = np.concatenate([chunk, np.zeros((rows - len(chunk), *layout.row_shape), chunk.dtype)])
                data = memoryview(np.ascontiguousarray(chunk)).cast("B")
                if self.shuffle:
                    data = memoryview(np.frombuffer(data, np.uint8).reshape(-1, chunk.itemsize).T.tobytes())
                deflate = zlib.compressobj(self.level, zlib.DEFLATED, zlib.MAX_WBITS, 8, self.strategy)
                return deflate.compress(data) + deflate.flush()

            starts = range(0, layout.n_rows, rows)
            for start, chunk in zip(starts, pool.map(packed, starts), strict=True):
                dataset.id.write_direct_chunk((start, *([0] * len(layout.row_shape))), chunk)

    def read(self, path: Path, layout: Layout) -> NDArray[Any]:
        features = np.empty(layout.shape, layout.dtype)
        with h5py.File(path) as file:
            rows = file["features"].chunks[0]
            starts = list(range(0, layout.n_rows, rows))
            for start, chunk in self.chunks(file["features"], starts):
                features[start : start + rows] = chunk[: layout.n_rows - start]
        return features

    def gather(self, path: Path, rows: NDArray[np.intp]) -> NDArray[Any]:
        with h5py.File(path) as file:
            step = file["features"].chunks[0]
            chunks = dict(self.chunks(file["features"], sorted({int(row) // step * step for row in rows})))
        return np.stack([chunks[int(row) // step * step][int(row) % step] for row in rows])

    def chunks(self, dataset: h5py.Dataset, starts: list[int]) -> Iterator[tuple[int, NDArray[Any]]]:
        """The chunks that begin at these rows. No thread but the caller's touches h5py."""
        shape, dtype = dataset.chunks, dataset.dtype

        def unpacked(data: bytes) -> NDArray[Any]:
            raw = zlib.decompress(data, bufsize=prod(shape) * dtype.itemsize)
            if self.shuffle:
                raw = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
            return np.frombuffer(raw, dtype).reshape(shape)

        zeros = [0] * (len(shape) - 1)
        with ThreadPoolExecutor(THREADS) as pool:
            packed = (dataset.id.read_direct_chunk((start, *zeros))[1] for start in starts)
            yield from zip(starts, pool.map(unpacked, packed), strict=True)


CANDIDATES: tuple[Candidate, ...] = (
    Zarr("zarr, no codec", ()),
    Zarr("zarr zstd 3", (ZstdCodec(level=3, checksum=True),)),
    Zarr("zarr zstd 1", (ZstdCodec(level=1, checksum=True),)),
    Zarr("zarr channels first, zstd 1", (ZstdCodec(level=1, checksum=True),), channels_first=True),
    Zarr("zarr channels first, zstd 3", (ZstdCodec(level=3, checksum=True),), channels_first=True),
    Zarr("zarr channels first, zstd 9", (ZstdCodec(level=9, checksum=True),), channels_first=True),
    Zarr(
        "zarr channels first, shuffle, zstd 3",
        (BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()),
        channels_first=True,
    ),
    Zarr("zarr bit shuffle, zstd 1", (BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec())),
    H5py("h5 gzip 4, h5py alone", 4),
    H5py("h5 gzip 4, shuffle, h5py alone", 4, shuffle=True),
    Deflate("h5 gzip 4", 4),
    Deflate("h5 gzip 1", 1),
    Deflate("h5 run lengths", 4, strategy=zlib.Z_RLE),
    Deflate("h5 shuffle, Huffman only", 4, shuffle=True, strategy=zlib.Z_HUFFMAN_ONLY),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "arrays", nargs="*", type=Path, metavar="FEATURES.npy", help="shape (rows, h, w, c) or (rows, c)"
    )
    parser.add_argument("--cache", type=Path, action="append", default=[], help="a featcache cache; may be repeated")
    parser.add_argument("--mb", type=int, default=100, help="repeat the rows up to so much, raw [100]")
    parser.add_argument("--rows-per-chunk", type=int, help="of zarr [as in a new cache]")
    parser.add_argument("--rows-per-shard", type=int, help="of zarr [as in a new cache]")
    asked = parser.parse_args()
    sources = [(path.stem, np.load(path)) for path in asked.arrays]
    sources += [(path.resolve().name, np.asarray(open_cache(path).features[:])) for path in asked.cache]
    if not sources:
        parser.error("name a FEATURES.npy or a --cache")
    print_machine()
    for name, features in sources:
        for dtype in ("uint8",) if features.dtype == np.uint8 else ("float32", "float16"):
            measure(name, features.astype(dtype), asked)


def measure(name: str, features: NDArray[Any], asked: argparse.Namespace) -> None:
    """A table for one array. Sizes and rates are of raw float32, so that dtypes compare; of pixels as they are."""
    zeros = np.mean(features == 0)
    features = np.concatenate([features] * -(-asked.mb * 1_000_000 // raw_bytes(features)))
    layout = layout_for(len(features), features.shape[1:], dtype=str(features.dtype))
    rows_per_chunk = asked.rows_per_chunk or layout.rows_per_chunk
    rows_per_shard = (asked.rows_per_shard or layout.rows_per_shard) // rows_per_chunk * rows_per_chunk
    layout = replace(layout, rows_per_chunk=rows_per_chunk, rows_per_shard=max(rows_per_shard, rows_per_chunk))
    print(f"\n{name}, {features.dtype}: {layout.shape}, {zeros:.2f} zeros", end="; ")
    print(f"zarr in chunks of {layout.rows_per_chunk} and shards of {layout.rows_per_shard} rows")
    print(f"{'':38}{'size':>6}{'write MB/s':>12}{'read MB/s':>12}{'gather ms':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for candidate in CANDIDATES:
            print(line(candidate, Path(folder, "features"), features, layout), flush=True)


def raw_bytes(features: NDArray[Any]) -> int:
    """What sizes and rates are of."""
    return features.size * (1 if features.dtype == np.uint8 else 4)


def line(candidate: Candidate, path: Path, features: NDArray[Any], layout: Layout) -> str:
    """One candidate, after a check that it gives back what it was given."""

    def write() -> None:
        remove(path)
        candidate.write(path, features, layout)

    megabytes = raw_bytes(features) / 1e6
    rows = np.sort(np.random.default_rng(0).choice(layout.n_rows, 16, replace=False))
    written = best_of(3, write)
    assert np.array_equal(candidate.read(path, layout), features), candidate.name
    assert np.array_equal(candidate.gather(path, rows), features[rows]), candidate.name
    if isinstance(candidate, Deflate):
        assert np.array_equal(H5py.read(candidate, path, layout), features), f"{candidate.name}, by h5py alone"
    read = best_of(5, lambda: candidate.read(path, layout))
    gathered = best_of(5, lambda: candidate.gather(path, rows))
    stored = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()) / 1e6
    remove(path)
    return (
        f"{candidate.name:38}{stored / megabytes:6.3f}{megabytes / written:12.0f}"
        f"{megabytes / read:12.0f}{gathered * 1e3:12.1f}"
    )


def remove(path: Path) -> None:
    """A file or a folder, if there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
