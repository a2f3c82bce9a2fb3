"""What the benchmarks share: made-up features, clocks, and a table."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.core.recipe import FeatureSpace, Recipe, row_id
from featcache.datasets.manifest import Dataset, LabelledImage
from featcache.store.layout import Format
from featcache.store.tables import Row
from featcache.store.writer import CacheWriter


def features_like(n_rows: int, row_shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Sparse non-negative features, 72 % zeros, like those behind a ReLU: (n_rows, *row_shape), float32."""
    values = np.random.default_rng(seed).standard_normal((n_rows, *row_shape), dtype=np.float32)
    return np.maximum(values - np.float32(0.58), 0)


def cache_of(
    parent: Path, features: NDArray[np.float32], splits: dict[str, int], classes: int = 4, format_: Format = "zarr"
) -> Path:
    """A finished cache that holds `features`, an image a row, `splits[name]` rows in each split."""
    recipe = Recipe(FeatureSpace("benchmark", "none", 224, "none", "none", "0" * 64))
    names = [split for split, rows in splits.items() for _ in range(rows)]
    images = tuple(
        LabelledImage(f"{i}.png", f"class-{i % classes}", split, str(i), f"{i:064x}") for i, split in enumerate(names)
    )
    rows = [Row(image.image_id, 0, row_id(recipe.space, image.image_id, parameters={}), {}) for image in images]
    writer = CacheWriter(parent, recipe, rows=rows, row_shape=features.shape[1:], format_=format_)
    with writer:
        for shard in writer.missing:
            start, stop = writer.store.layout.span(shard)
            writer.write(shard, features[start:stop])
        writer.finish(Dataset(images, parent), {})
    return writer.folder


def best_of(runs: int, action: Callable[[], object]) -> float:
    """Seconds of the quickest of some runs: the least disturbed by other work."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def print_machine() -> None:
    """One line about where the figures come from."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
