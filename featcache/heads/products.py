"""Products with the feature matrix X of a cache, streamed from the store: X W, X X^T, X^T A.

X has one flattened row of features a row: (N, D). Only blocks of it are ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from featcache.core import machine
from featcache.store import Features

Array = NDArray[np.floating[Any]]
Numbers = NDArray[np.intp]
HELD_BYTES = 900 << 20
"""Of features, that are held at most while a Gram matrix is computed."""
_BLOCK_BYTES, _BLOCK_ROWS = 80 << 20, 512
_HELD_ROWS = 1024
"""Rows that go into a product together: the more they are, the fewer times BLAS has to arrange the other side anew."""
_MIRROR_ROWS = 512
_PART_BYTES = 16 << 20


def width(features: Features) -> int:
    """D: features a row."""
    return int(np.prod(features.shape[1:]))


def blocks(features: Features, numbers: Numbers, *, dtype: DTypeLike) -> Iterator[tuple[slice, Array]]:
    """Flattened blocks of X[numbers] in order: (place, ndarray of shape (n, D)); a thread reads one ahead."""
    ended = Event()
    joined = _joined(features, numbers, dtype, ended)
    pool = ThreadPoolExecutor(1, "featcache-read")
    try:
        coming = pool.submit(next, joined, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, joined, None)
            yield item
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


def _joined(features: Features, numbers: Numbers, dtype: DTypeLike, ended: Event) -> Iterator[tuple[slice, Array]]:
    """The blocks that the store gives, several made one where they are small."""
    row_bytes = width(features) * np.dtype(dtype).itemsize
    for place in _spans(len(numbers), min(max(_BLOCK_BYTES // row_bytes, 1), _BLOCK_ROWS)):
        rows = np.empty((place.stop - place.start, width(features)), dtype)
        _read(features, numbers[place], rows, ended)
        yield place, rows


def _read(features: Features, numbers: Numbers, rows: Array, ended: Event) -> None:
    """Put X[numbers] into `rows` (n, D); nothing more once it is of no use, as after an interrupt."""
    for place, block in features.blocks(numbers):
        if ended.is_set():
            return
        rows[place].reshape(block.shape)[...] = block


def _spans(n: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def squared_norms(features: Features, numbers: Numbers) -> NDArray[np.float64]:
    """|x|^2 of the rows `numbers`, (n,)."""
    norms = np.empty(len(numbers))
    for place, block in blocks(features, numbers, dtype=np.float32):
        norms[place] = np.einsum("nd,nd->n", block, block)
    return norms


def moments(features: Features, numbers: Numbers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and squared norms (n,) of the rows `numbers`, in one pass."""
    total, norms = np.zeros(width(features)), np.empty(len(numbers))
    for place, block in blocks(features, numbers, dtype=np.float32):
        norms[place] = np.einsum("nd,nd->n", block, block)
        total += block.sum(axis=0, dtype=np.float64)
    return total / len(numbers), norms


def times(features: Features, numbers: Numbers, *, W: Array) -> Array:
    """X[numbers] W: ndarray of shape (n, H), in the dtype of W."""
    result = np.empty((len(numbers), W.shape[1]), W.dtype)
    for place, block in blocks(features, numbers, dtype=W.dtype):
        result[place] = block @ W
    return result


def transposed_times(features: Features, numbers: Numbers, *, A: Array) -> Array:
    """X[numbers]^T A: ndarray of shape (D, H), in the dtype of A."""
    result = np.zeros((width(features), A.shape[1]), A.dtype)
    part = max(1, _PART_BYTES // (A.shape[1] * A.itemsize))
    for place, block in blocks(features, numbers, dtype=A.dtype):
        for start in range(0, len(result), part):  # or each block would take a second array of the size of W
            result[start : start + part] += block[:, start : start + part].T @ A[place]
    return result


def inner(
    features: Features,
    left: Numbers,
    *,
    right: Numbers,
    dtype: DTypeLike,
    out: Array | None = None,
    on_rows: Callable[[int], object] = lambda _: None,
) -> Array:
    """X[left] X[right]^T: ndarray of shape (n_left, n_right), in `out` where that is given.

    The Gram matrix where left is right; then only the lower half is computed and mirrored. As many rows
    of `left` as fit are held at once, while `right` streams by; a thread reads ahead of the products.

    on_rows : called with the number of rows of `left` that are done
    """
    is_gram = left is right
    K = np.empty((len(left), len(right)), dtype) if out is None else out
    for held in _held_spans(features, len(left), dtype):
        X = np.empty((held.stop - held.start, width(features)), dtype)
        for place in _filling(features, left[held], X):
            if is_gram:  # against the rows so far; of a product with itself BLAS computes one half
                rows = slice(held.start + place.start, held.start + place.stop)
                K[rows, held.start : rows.start] = X[place] @ X[: place.start].T
                K[rows, rows] = X[place] @ X[place].T
        for place, block in blocks(features, right[: held.start] if is_gram else right, dtype=dtype):
            K[held, place] = X @ block.T
        on_rows(held.stop - held.start)
    if is_gram:
        for rows in _spans(len(left), _MIRROR_ROWS):
            K[: rows.start, rows] = K[rows, : rows.start].T
            diagonal = K[rows, rows]
            diagonal[:] = np.tril(diagonal) + np.tril(diagonal, -1).T
    return K


def _filling(features: Features, numbers: Numbers, X: Array) -> Iterator[slice]:
    """Reads X[numbers] into X, in a thread; gives each span of its rows as soon as it is there."""
    places, ended = _spans(len(numbers), _HELD_ROWS), Event()
    pool = ThreadPoolExecutor(1, "featcache-read")
    try:
        reads = [pool.submit(_read, features, numbers[place], X[place], ended) for place in places]
        for place, read in zip(places, reads, strict=True):
            read.result()
            yield place
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


def _held_spans(features: Features, n_rows: int, dtype: DTypeLike) -> list[slice]:
    """Spans of rows, alike in size, that take a quarter of the free memory at most."""
    row_bytes = width(features) * np.dtype(dtype).itemsize
    most = max(int(min(machine.available_bytes() // 4, HELD_BYTES) // row_bytes), 64)
    n_spans = max(-(-n_rows // most), 1)
    return _spans(n_rows, max(-(-n_rows // n_spans), 1))
