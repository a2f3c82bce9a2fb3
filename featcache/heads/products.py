"""Products with the feature matrix X of a cache, streamed from the store: X W, X X^T, X^T A.

X has one flattened row of features a row: (N, D). Only blocks of it are ever in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from featcache.store.cache import Features

Array = NDArray[np.floating[Any]]
Numbers = NDArray[np.intp]
_MAX_BLOCK_BYTES = 4 << 30


def available_bytes() -> int:
    """Memory that is free for use on this machine, bytes; what only caches files counts as free."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass  # no Linux: half of all memory is a careful guess
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def width(features: Features) -> int:
    """D: features a row."""
    return int(np.prod(features.shape[1:]))


def blocks(features: Features, numbers: Numbers, dtype: DTypeLike) -> Iterator[tuple[slice, Array]]:
    """Flattened blocks of X[numbers] in order: (place, ndarray of shape (n, D))."""
    for place, block in features.blocks(numbers):
        yield place, block.reshape(len(block), -1).astype(dtype, copy=False)


def mean_squared_norm(features: Features, numbers: Numbers) -> float:
    """Mean of |x|^2 over the rows `numbers`, accumulated in float64."""
    total = sum(
        float(np.einsum("nd,nd->n", block, block).sum(dtype=np.float64))
        for _, block in blocks(features, numbers, np.float32)
    )
    return total / len(numbers)


def times(features: Features, numbers: Numbers, W: Array) -> Array:
    """X[numbers] W: ndarray of shape (n, H), in the dtype of W."""
    result = np.empty((len(numbers), W.shape[1]), W.dtype)
    for place, block in blocks(features, numbers, W.dtype):
        result[place] = block @ W
    return result


def transposed_times(features: Features, numbers: Numbers, A: Array) -> Array:
    """X[numbers]^T A: ndarray of shape (D, H), in the dtype of A."""
    result = np.zeros((width(features), A.shape[1]), A.dtype)
    for place, block in blocks(features, numbers, A.dtype):
        result += block.T @ A[place]
    return result


def inner(features: Features, left: Numbers, right: Numbers, dtype: DTypeLike) -> Array:
    """X[left] X[right]^T: ndarray of shape (n_left, n_right).

    The Gram matrix where left is right; then only the lower half is computed and mirrored. As many rows
    of `left` as fit are held at once, while `right` streams by.
    """
    is_gram = left is right
    K = np.empty((len(left), len(right)), dtype)
    for held in _held_spans(features, len(left), dtype):
        X = np.empty((held.stop - held.start, width(features)), dtype)
        for place, block in blocks(features, left[held], dtype):
            X[place] = block
        if is_gram:
            K[held, held] = X @ X.T  # NumPy sees the same array twice and computes one half (syrk)
        rest = right[: held.start] if is_gram else right
        for place, block in blocks(features, rest, dtype):
            K[held, place] = X @ block.T
            if is_gram:
                K[place, held] = K[held, place].T
    return K


def _held_spans(features: Features, n_rows: int, dtype: DTypeLike) -> Iterator[slice]:
    """Spans of rows that together take a quarter of the free memory at most."""
    row_bytes = width(features) * np.dtype(dtype).itemsize
    step = max(int(min(available_bytes() // 4, _MAX_BLOCK_BYTES) // row_bytes), 64)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
