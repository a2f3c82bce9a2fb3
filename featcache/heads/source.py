"""Where the rows of a training come from that goes batch by batch: from memory, or streamed from a cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.core import machine
from featcache.core.errors import HeadError
from featcache.heads import initializers as random, products
from featcache.store import BUFFER_BYTES, Cache

Array = NDArray[np.floating[Any]]
Numbers = NDArray[np.intp]
Labels = NDArray[np.int64]
Order = Callable[[int, int, int], NDArray[np.int64]]
"""Given seed, epoch and number of rows: the order of the rows in that epoch."""
Blocks = Generator[tuple[Numbers, Array], None, None]
"""Which of the rows (n,), and their features (n, D)."""

_SHUFFLED_BYTES = 1 << 30
"""Training rows of at most so many bytes, as float32, come in the order of Gram space; streamed, each of a few passes
takes what fits into a buffer. Larger ones come shuffled by blocks, wherever they are read from."""

STREAM_BYTES = 3 * BUFFER_BYTES
"""What a stream holds at most: the buffer in use, the next one, and what that is read from."""

_VAL_ROWS = 256
_NAMED_ROWS = 5


class Source(Protocol):
    """N training rows and M validation rows of D features, and what is known of them.

    y, y_val : (N,), (M,): class numbers; or (N, classes), (M, classes), 0 or 1, where a row may have several labels
    weights : (N,), of each training row's loss, or (N, classes), of each label's; batches and blocks have its dtype
    rows, rows_val : (N,), (M,): the numbers that errors name the rows by
    width : D
    """

    y: Labels
    y_val: Labels
    weights: Array
    rows: Numbers
    rows_val: Numbers
    width: int

    def batches(self, size: int, seed: int, *, epoch: int) -> Iterator[tuple[Numbers, Array]]:
        """The batches of an epoch: which of the N rows (n,), and their features (n, D). Every row comes once."""

    def blocks(self, size: int, seed: int, *, epoch: int, batches: int, start: int = 0) -> Blocks:
        """The same, some batches of `size` at a time, from place `start` in the epoch's order on. Blocks begin and end
        at the same places wherever the rows come from, and wherever one starts that begins a block."""

    def val_blocks(self) -> Iterator[tuple[slice, Array]]:
        """The validation rows in order, in blocks: which of the M, and their features (n, D)."""


class InMemory:
    """A source whose features are all in memory: X of shape (N, D), X_val of shape (M, D), M may be 0."""

    def __init__(
        self,
        X: Array,
        y: Labels,
        *,
        weights: Array,
        X_val: Array,
        y_val: Labels,
        rows: Numbers | None = None,
        rows_val: Numbers | None = None,
        order: Order = random.order,
        buffer_rows: int | None = None,
    ) -> None:
        self.X, self.X_val = (part.astype(weights.dtype, copy=False) for part in (X, X_val))
        self.y, self.y_val, self.weights, self.width = y, y_val, weights, X.shape[1]
        self.rows = np.arange(len(y)) if rows is None else rows
        self.rows_val = np.arange(len(y_val)) if rows_val is None else rows_val
        self._order = order
        self._buffer_rows = buffer_rows or max(len(y), 1)

    def batches(self, size: int, seed: int, *, epoch: int) -> Iterator[tuple[Numbers, Array]]:
        """As of `Source`, in the order of `featcache.heads.initializers.order` where no other is given."""
        return self.blocks(size, seed, epoch=epoch, batches=1)

    def blocks(self, size: int, seed: int, *, epoch: int, batches: int, start: int = 0) -> Blocks:
        """As of `Source`."""
        order = self._order(seed, epoch, len(self.y))
        for buffer in _buffers(len(order), size, self._buffer_rows):
            for block in _within(buffer, size * batches, start):
                yield order[block], self.X[order[block]]

    def val_blocks(self) -> Iterator[tuple[slice, Array]]:
        """As of `Source`."""
        for start in range(0, len(self.y_val), _VAL_ROWS):
            place = slice(start, min(start + _VAL_ROWS, len(self.y_val)))
            yield place, self.X_val[place]


class Streamed:
    """A source that reads the splits "train" and "val" of a cache over and over, and holds two buffers at most.

    The order is that of the same rows in memory, so that a training can go on from one kind of source to the other.

    buffer_rows : of each of the two buffers; by default what fits into 256 MB
    """

    def __init__(
        self, cache: Cache, y: Labels, *, weights: Array, y_val: Labels, buffer_rows: int | None = None
    ) -> None:
        self._cache, self.width = cache, products.width(cache.features)
        self._buffer_rows = buffer_rows or _rows_of_a_buffer(cache)
        self.y, self.y_val, self.weights = y, y_val, weights
        self.rows, self.rows_val = cache.numbers("train"), cache.numbers("val")

    def batches(self, size: int, seed: int, *, epoch: int) -> Iterator[tuple[Numbers, Array]]:
        """As of `Source`, in the order of `cache_order`; while one buffer is used, a thread fills the next."""
        return self.blocks(size, seed, epoch=epoch, batches=1)

    def blocks(self, size: int, seed: int, *, epoch: int, batches: int, start: int = 0) -> Blocks:
        """As of `Source`."""
        order = cache_order(self._cache, size)(seed, epoch, len(self.y))
        buffers = [buffer for buffer in _buffers(len(order), size, self._buffer_rows) if buffer.stop > start]
        with ThreadPoolExecutor(1, "featcache-read") as pool:
            coming = deque(pool.submit(self._read, order[buffer]) for buffer in buffers[:1])
            for number, buffer in enumerate(buffers):
                X = coming.popleft().result()
                coming.extend(pool.submit(self._read, order[following]) for following in buffers[number + 1 :][:1])
                for block in _within(buffer, size * batches, start):
                    part = X[block.start - buffer.start : block.stop - buffer.start]
                    yield order[block], part.reshape(-1, self.width).astype(self.weights.dtype, copy=False)
                    del part
                del X  # before the next buffer is waited for

    def _read(self, places: Numbers) -> Array:
        features = self._cache.features
        X = np.empty((len(places), *features.shape[1:]), features.dtype)
        for found, block in features.gather(self.rows[places]):  # as indexing does, with one copy less
            X[found] = block
        return X

    def val_blocks(self) -> Iterator[tuple[slice, Array]]:
        """As of `Source`."""
        return products.blocks(self._cache.features, self.rows_val, dtype=self.weights.dtype)


def cache_order(cache: Cache, batch: int) -> Order:
    """The order of a cache's training rows, which depends on nothing but the cache, batch size, seed and epoch.

    That of `featcache.heads.initializers.order`, as in Gram space; of rows too large for it that of `Cache.batches`.
    """
    rows = cache.numbers("train")
    if is_shuffled(len(rows) * products.width(cache.features)):
        return random.order

    def by_blocks(seed: int, epoch: int, n_rows: int) -> NDArray[np.int64]:
        return np.searchsorted(rows, cache.batches("train", batch, seed=seed, epoch=epoch).order)

    return by_blocks


def is_shuffled(n_features: int) -> bool:
    """Whether so many features of training rows, all together, come in the order of Gram space."""
    return n_features * 4 <= _SHUFFLED_BYTES


def _rows_of_a_buffer(cache: Cache) -> int:
    return max(1, BUFFER_BYTES // (products.width(cache.features) * cache.features.dtype.itemsize))


def _buffers(n_rows: int, size: int, buffer_rows: int) -> list[slice]:
    """Spans of an order that are read together: whole batches, so that none lies in two buffers."""
    step = max(1, buffer_rows // size) * size
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def _within(buffer: slice, step: int, start: int) -> Iterator[slice]:
    """The blocks of a buffer, `step` rows at a time, that begin at `start` or behind it."""
    for first in range(buffer.start, buffer.stop, step):
        if first >= start:
            yield slice(first, min(first + step, buffer.stop))


def fits(n_bytes: int) -> bool:
    """Whether so much can be held in memory, with a fifth of what is free left over."""
    return n_bytes < 0.8 * machine.available_bytes()


def source_of(cache: Cache, y: Labels, *, weights: Array, y_val: Labels, batch: int, holds_all: bool = True) -> Source:
    """The splits "train" and "val" of a cache: from memory where they fit into it, else streamed.

    y, weights, y_val : of the rows of the two splits; batches have the dtype of the weights
    batch : rows an update
    holds_all : whether to hold even what a stream gives as fast, since its order reads each part once an epoch
    """
    rows, rows_val = cache.numbers("train"), cache.numbers("val")
    if not holds_all and cache_order(cache, batch) is not random.order:
        return Streamed(cache, y, weights=weights, y_val=y_val)
    if not fits((len(rows) + len(rows_val)) * products.width(cache.features) * weights.dtype.itemsize):
        return Streamed(cache, y, weights=weights, y_val=y_val)
    X, X_val = (_read(cache, numbers, weights.dtype) for numbers in (rows, rows_val))
    return InMemory(
        X,
        y,
        weights=weights,
        X_val=X_val,
        y_val=y_val,
        rows=rows,
        rows_val=rows_val,
        order=cache_order(cache, batch),
        buffer_rows=_rows_of_a_buffer(cache),
    )


def refuse_not_finite(X: Array, rows: Numbers) -> None:
    """Raise HeadError where features (n, D) of the rows with these numbers (n,) are NaN or infinite."""
    if np.isfinite(X).all():
        return
    bad = np.sort(rows[~np.isfinite(X).all(axis=1)])
    more = f" and {len(bad) - _NAMED_ROWS} more" if len(bad) > _NAMED_ROWS else ""
    named = ", ".join(map(str, bad[:_NAMED_ROWS].tolist()))
    raise HeadError(
        f"features that are NaN or infinite, in row{'s' * (len(bad) > 1)} {named}{more}: expected finite numbers",
        "`featcache.verify(CACHE)` checks whether the cache is as it was written",
    )


def _read(cache: Cache, numbers: Numbers, dtype: np.dtype[Any]) -> Array:
    X = np.empty((len(numbers), products.width(cache.features)), dtype)
    for place, block in products.blocks(cache.features, numbers, dtype=dtype):
        X[place] = block
    return X
