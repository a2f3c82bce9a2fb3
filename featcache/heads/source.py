"""Where the rows of a training come from that goes batch by batch: from memory, or streamed from a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError
from featcache.heads import products, random
from featcache.store.batches import Batches
from featcache.store.cache import Cache

Array = NDArray[np.floating[Any]]
Numbers = NDArray[np.intp]
Labels = NDArray[np.int64]
Order = Callable[[int, int, int], NDArray[np.int64]]
"""Given seed, epoch and number of rows: the order of the rows in that epoch."""

_VAL_ROWS = 256
_NAMED_ROWS = 5


class Source(Protocol):
    """N training rows and M validation rows of D features, and what is known of them.

    y, y_val : (N,), (M,): class numbers; or (N, classes), (M, classes), 0 or 1, where a row may have several labels
    weights : (N,), of each training row's loss; batches and blocks have its dtype
    rows, rows_val : (N,), (M,): the numbers that errors name the rows by
    width : D
    """

    y: Labels
    y_val: Labels
    weights: Array
    rows: Numbers
    rows_val: Numbers
    width: int

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[tuple[Numbers, Array]]:
        """The batches of an epoch: which of the N rows (n,), and their features (n, D). Every row comes once."""

    def val_blocks(self) -> Iterator[tuple[slice, Array]]:
        """The validation rows in order, in blocks: which of the M, and their features (n, D)."""


class InMemory:
    """A source whose features are all in memory: X of shape (N, D), X_val of shape (M, D), M may be 0."""

    def __init__(
        self,
        X: Array,
        y: Labels,
        weights: Array,
        X_val: Array,
        y_val: Labels,
        rows: Numbers | None = None,
        rows_val: Numbers | None = None,
        order: Order = random.order,
    ) -> None:
        self.X, self.X_val = (part.astype(weights.dtype, copy=False) for part in (X, X_val))
        self.y, self.y_val, self.weights, self.width = y, y_val, weights, X.shape[1]
        self.rows = np.arange(len(y)) if rows is None else rows
        self.rows_val = np.arange(len(y_val)) if rows_val is None else rows_val
        self._order = order

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[tuple[Numbers, Array]]:
        """As of `Source`, in the order of `featcache.heads.random.order` where no other is given."""
        order = self._order(seed, epoch, len(self.y))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            yield places, self.X[places]

    def val_blocks(self) -> Iterator[tuple[slice, Array]]:
        """As of `Source`."""
        for start in range(0, len(self.y_val), _VAL_ROWS):
            place = slice(start, min(start + _VAL_ROWS, len(self.y_val)))
            yield place, self.X_val[place]


class Streamed:
    """A source that reads the splits "train" and "val" of a cache over and over, and holds two buffers at most.

    The order is that of `Cache.batches`: shuffled by blocks, the same for the same seed and epoch.

    buffer_rows : of each of the two buffers; by default what fits into 256 MB
    """

    def __init__(self, cache: Cache, y: Labels, weights: Array, y_val: Labels, buffer_rows: int | None = None) -> None:
        self._cache, self._buffer_rows = cache, buffer_rows
        self.y, self.y_val, self.weights, self.width = y, y_val, weights, products.width(cache.features)
        self.rows, self.rows_val = cache.numbers("train"), cache.numbers("val")

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[tuple[Numbers, Array]]:
        """As of `Source`."""
        batches = self._cache.batches("train", size, seed=seed, epoch=epoch, buffer_rows=self._buffer_rows)
        places = np.searchsorted(self.rows, batches.order)
        for number, X in enumerate(_read_ahead(batches)):
            flat = X.reshape(len(X), -1).astype(self.weights.dtype, copy=False)
            yield places[number * size : (number + 1) * size], flat

    def val_blocks(self) -> Iterator[tuple[slice, Array]]:
        """As of `Source`."""
        return products.blocks(self._cache.features, self.rows_val, self.weights.dtype)


def fits(n_bytes: int) -> bool:
    """Whether so much can be held in memory, with a fifth of what is free left over."""
    return n_bytes < 0.8 * products.available_bytes()


def source_of(cache: Cache, y: Labels, weights: Array, y_val: Labels) -> Source:
    """The splits "train" and "val" of a cache: from memory where they fit into it, else streamed.

    y, weights, y_val : of the rows of the two splits; batches have the dtype of the weights
    """
    rows, rows_val = cache.numbers("train"), cache.numbers("val")
    if not fits((len(rows) + len(rows_val)) * products.width(cache.features) * weights.dtype.itemsize):
        return Streamed(cache, y, weights, y_val)
    X, X_val = (_read(cache, numbers, weights.dtype) for numbers in (rows, rows_val))
    return InMemory(X, y, weights, X_val, y_val, rows, rows_val)


def refuse_not_finite(X: Array, rows: Numbers) -> None:
    """Raise HeadError where features (n, D) of the rows with these numbers (n,) are NaN or infinite."""
    if np.isfinite(X).all():
        return
    bad = np.sort(rows[~np.isfinite(X).all(axis=1)])
    more = f" and {len(bad) - _NAMED_ROWS} more" if len(bad) > _NAMED_ROWS else ""
    named = ", ".join(map(str, bad[:_NAMED_ROWS].tolist()))
    raise HeadError(
        f"features that are NaN or infinite, in row{'s' * (len(bad) > 1)} {named}{more}: expected finite numbers; "
        "'featcache verify' tells whether the cache is as it was written"
    )


def _read(cache: Cache, numbers: Numbers, dtype: np.dtype[Any]) -> Array:
    X = np.empty((len(numbers), products.width(cache.features)), dtype)
    for place, block in products.blocks(cache.features, numbers, dtype):
        X[place] = block
    return X


def _read_ahead(batches: Batches) -> Iterator[Array]:
    """Features of each batch, in order; while the batches of one buffer are used, a thread fills the next."""
    turns = [batches.share(worker, 2) for worker in range(2)]
    per_buffer = max(1, batches.buffer_rows // batches.batch_size)
    with ThreadPoolExecutor(1, "featcache-read") as pool:
        coming = pool.submit(next, turns[0])
        for number, first in enumerate(range(0, len(batches), per_buffer)):
            X, _ = coming.result()
            if first + per_buffer < len(batches):
                coming = pool.submit(next, turns[(number + 1) % 2])
            yield X
            for _ in range(min(per_buffer, len(batches) - first) - 1):
                yield next(turns[number % 2])[0]
