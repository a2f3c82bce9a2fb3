"""Writing and reading a cache against bare zarr-python with the same layout.

python benchmarks/store.py [--rows 4096]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import zarr
from common import best_of, cache_of, features_like, print_machine
from zarr.codecs import ZstdCodec

from featcache.store.cache import open_cache
from featcache.store.layout import layout_for

ROW_SHAPE = (7, 7, 512)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4096)
    asked = parser.parse_args()
    print_machine()
    features = features_like(asked.rows, ROW_SHAPE)
    layout = layout_for(asked.rows, ROW_SHAPE, "float32")
    splits = {"train": asked.rows - 2, "val": 1, "test": 1}
    megabytes = features.nbytes / 1e6
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(1000))

        def write_ours() -> None:
            cache_of(Path(folder, f"ours-{next(numbers)}"), features, splits)

        def write_bare() -> None:
            array = zarr.create_array(
                Path(folder, f"bare-{next(numbers)}"),
                shape=layout.shape,
                dtype=layout.dtype,
                chunks=(layout.rows_per_chunk, *ROW_SHAPE),
                shards=(layout.rows_per_shard, *ROW_SHAPE),
                compressors=[ZstdCodec(level=0, checksum=True)],
            )
            for start in range(0, asked.rows, layout.rows_per_shard):
                array[start : start + layout.rows_per_shard] = features[start : start + layout.rows_per_shard]

        ours, bare = best_of(3, write_ours), best_of(3, write_bare)
        print(
            f"write  ours {megabytes / ours:6.0f} MB/s (fsync, sha256, tables)  bare {megabytes / bare:6.0f} MB/s",
            end="",
        )
        print(f"  ratio {bare / ours:.2f}")
        cache = open_cache(next(Path(folder).glob("ours-*/benchmark-*")))
        array = zarr.open_array(next(Path(folder).glob("bare-*")), mode="r")
        ours, bare = best_of(3, lambda: np.asarray(cache.features)), best_of(3, lambda: array[:])
        print(f"read   ours {megabytes / ours:6.0f} MB/s  bare {megabytes / bare:6.0f} MB/s  ratio {bare / ours:.2f}")
        print(f"size   {cache.bytes() / features.nbytes:.3f} of raw float32")


if __name__ == "__main__":
    main()
