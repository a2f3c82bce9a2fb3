"""Writing and reading a cache against the bare libraries with the same layout and codec; fsync off, and its cost.

python benchmarks/store.py [--rows 4096] [--features FILE.npy]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import zarr
from common import best_of, cache_of, features_like, print_machine
from numpy.typing import NDArray

from featcache.store.cache import open_cache
from featcache.store.layout import Format, Layout, layout_for
from featcache.store.tensorstore_reader import ReaderName
from featcache.store.zarr_store import new_array

ROW_SHAPE = (7, 7, 512)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--features", type=Path, help="real ones, repeated to --rows, instead of made-up ones")
    asked = parser.parse_args()
    print_machine()
    if asked.features:
        real = np.load(asked.features)
        features = np.concatenate([real] * -(-asked.rows // len(real)))[: asked.rows].astype(np.float32)
    else:
        features = features_like(asked.rows, ROW_SHAPE)
    for format_ in ("zarr", "hdf5"):
        with tempfile.TemporaryDirectory() as folder:
            measure(format_, features, Path(folder))


def measure(format_: Format, features: NDArray[np.float32], folder: Path) -> None:
    """One format: write without and with fsync, read, size."""
    layout = layout_for(len(features), features.shape[1:], dtype="float32", format_=format_)
    megabytes = features.nbytes / 1e6
    splits = {"train": len(features) - 2, "val": 1, "test": 1}
    numbers = iter(range(1000))
    bare = {"zarr": BareZarr, "hdf5": BareHdf5}[format_](layout)

    def ours() -> None:
        cache_of(folder / f"ours-{next(numbers)}", features, splits, format_=format_)

    def theirs() -> None:
        bare.write(folder / f"bare-{next(numbers)}", features)

    with without_fsync():
        written, bare_written = best_of(3, ours), best_of(3, theirs)
    synced = best_of(3, ours)
    print(
        f"{format_} write  ours {megabytes / written:5.0f} MB/s  bare {megabytes / bare_written:5.0f} MB/s  ratio "
        f"{bare_written / written:.2f}; with fsync {megabytes / synced:5.0f} MB/s ({synced - written:.2f} s more)"
    )
    path = next(folder.glob("ours-*/benchmark-*"))
    bare_path = next(folder.glob("bare-*"))
    readers: tuple[ReaderName, ...] = ("zarr", "tensorstore") if format_ == "zarr" else ("auto",)
    caches = {reader: open_cache(path, reader) for reader in readers}
    for reader, cache in caches.items():
        read, bare_read = best_of(5, partial(np.asarray, cache.features)), best_of(5, partial(bare.read, bare_path))
        print(
            f"{format_} read   ours ({reader}) {megabytes / read:5.0f} MB/s  bare {megabytes / bare_read:5.0f} MB/s  "
            f"ratio {bare_read / read:.2f}"
        )
    print(f"{format_} size   {caches[readers[0]].bytes() / features.nbytes:.3f} of raw float32")


@contextmanager
def without_fsync() -> Iterator[None]:
    """Neither side asks for the bytes to reach the disk itself."""
    with mock.patch("os.fsync", lambda handle: None):
        yield


class BareZarr:
    """zarr-python alone, a shard at a time."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def write(self, path: Path, features: NDArray[np.float32]) -> None:
        array = new_array(path, self.layout)
        for start, stop in self.layout.blocks(0, self.layout.n_rows):
            array[start:stop] = features[start:stop]

    def read(self, path: Path) -> NDArray[np.float32]:
        return np.asarray(zarr.open_array(path, mode="r")[:])


class BareHdf5:
    """h5py alone with its own deflate at the same level, a shard at a time."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def write(self, path: Path, features: NDArray[np.float32]) -> None:
        chunks = (self.layout.rows_per_chunk, *self.layout.row_shape)
        with h5py.File(path, "w") as file:
            array = file.create_dataset("features", self.layout.shape, "float32", chunks=chunks, compression="gzip")
            for start, stop in self.layout.blocks(0, self.layout.n_rows):
                array[start:stop] = features[start:stop]

    def read(self, path: Path) -> NDArray[np.float32]:
        with h5py.File(path, "r") as file:
            return np.asarray(file["features"][:])


if __name__ == "__main__":
    main()
