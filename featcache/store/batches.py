"""Batches of a split in an order that is shuffled by chunks and then by rows, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import UsageError
from featcache.store.features import Array, Features
from featcache.store.layout import Layout

BUFFER_BYTES = 256 << 20
"""Size of the buffer that rows are shuffled in, where none is named."""

_CHUNKS, _ROWS = 16, 17  # the heads draw from the same generator for the purposes below 16


@dataclass(frozen=True, eq=False, repr=False)
class Batches:
    """The batches of one epoch. Iterating yields (X, y); `len` is their number; `Cache.batches` makes one.

    X : ndarray of shape (batch_size, h, w, c), or (batch_size, c) where pooled, in the dtype of the cache
    y : ndarray of shape (batch_size,), int64: class numbers; of several labels an image (batch_size, classes), 0 or 1

    Iterating again yields the same batches; `at(epoch)` gives those of another epoch.
    """

    features: Features
    labels: NDArray[np.int64]
    """Class numbers of all rows of the cache."""
    rows: NDArray[np.intp]
    """Row numbers of the split, increasing."""
    batch_size: int
    buffer_rows: int
    shuffle: bool = True
    seed: int = 0
    epoch: int = 0
    drop_last: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (
            ("batch_size", 1, 2**40),
            ("buffer_rows", 1, 2**40),
            ("seed", 0, 2**64),
            ("epoch", 0, 2**63),
        ):
            value: Any = getattr(self, name)
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
                raise UsageError(f"{name} {value!r}: expected a whole number")
            if not least <= value < most:
                raise UsageError(f"{name} {value}: expected {least} or more" if value < least else f"{name}: too large")
            object.__setattr__(self, name, int(value))
        if not len(self):
            raise UsageError(
                f"{len(self.rows)} rows are less than one batch of {self.batch_size}, and drop_last leaves that out"
            )

    def __len__(self) -> int:
        whole, rest = divmod(len(self.rows), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __repr__(self) -> str:
        return f"Batches({len(self)} of {self.batch_size} rows, seed {self.seed}, epoch {self.epoch})"

    def __iter__(self) -> Iterator[tuple[Array, NDArray[np.int64]]]:
        return self.share(0, 1)

    def at(self, epoch: int) -> Batches:
        """The batches of another epoch."""
        return replace(self, epoch=epoch)

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Row numbers in the order of this epoch: batch i is order[i * batch_size : (i + 1) * batch_size]."""
        parts = [self._chunked[lo:hi][self._permutation(lo, hi)] for lo, hi in self._buffers()]
        return np.concatenate(parts)[: len(self) * self.batch_size]

    def share(self, worker: int, workers: int) -> Iterator[tuple[Array, NDArray[np.int64]]]:
        """The batches of one of several workers, who read a buffer each in turn. Together they have each batch once."""
        held = np.empty((0, *self.features.shape[1:]), self.features.dtype)
        for lo, hi in self._buffers()[worker::workers]:
            X, held = self._read(lo, hi, held, carry=workers == 1)
            last = min(hi, len(self) * self.batch_size)
            for first in range(lo, last, self.batch_size):
                numbers = self.order[first : first + self.batch_size]
                # A copy: a batch that somebody keeps must not keep the buffer.
                yield X[first - lo : first - lo + len(numbers)].copy(), self.labels[numbers]
            del X  # before the next buffer is read

    def _buffers(self) -> list[tuple[int, int]]:
        """Spans of the order that are shuffled together: whole batches, so that none lies in two buffers."""
        step = max(1, self.buffer_rows // self.batch_size) * self.batch_size
        return [(lo, min(lo + step, len(self.rows))) for lo in range(0, len(self) * self.batch_size, step)]

    @cached_property
    def _chunked(self) -> NDArray[np.intp]:
        """Row numbers, chunk behind chunk, the chunks in the order of this epoch."""
        if not self.shuffle:
            return self.rows
        _, chunk = np.unique(self.rows // self.features.layout.rows_per_chunk, return_inverse=True)
        rank = _generator(self.seed, _CHUNKS, self.epoch).permutation(int(chunk[-1]) + 1)
        return self.rows[np.argsort(rank[chunk], kind="stable")]

    def _permutation(self, lo: int, hi: int) -> NDArray[np.intp]:
        """Which of the rows lo..hi stands where in their buffer."""
        if not self.shuffle:
            return np.arange(hi - lo)
        return _generator(self.seed, _ROWS, self.epoch, lo).permutation(hi - lo).astype(np.intp, copy=False)

    def _read(self, lo: int, hi: int, held: Array, carry: bool) -> tuple[Array, Array]:
        """The buffer of the rows lo..hi, and the rows behind it that lie in its last chunk.

        held : rows from lo on that the buffer before has read already
        """
        chunked, step = self._chunked, self.features.layout.rows_per_chunk
        place = np.argsort(self._permutation(lo, hi))
        X = np.empty((hi - lo, *held.shape[1:]), held.dtype)
        X[place[: len(held)]] = held[: hi - lo]
        first = lo + len(held)
        if first >= hi:
            return X, held[hi - lo :]
        beyond = int(np.sum(chunked[hi : hi + step] // step == chunked[hi - 1] // step)) if carry else 0
        rest = np.empty((beyond, *held.shape[1:]), held.dtype)
        for places, block in self.features.gather(chunked[first : hi + beyond]):
            inside = places < hi - first
            if inside.all():
                X[place[len(held) + places]] = block
            else:
                X[place[len(held) + places[inside]]] = block[inside]
                rest[places[~inside] - (hi - first)] = block[~inside]
        return X, rest


def default_buffer_rows(layout: Layout, shuffle: bool) -> int:
    """Rows of 256 MB, or of a shard where nothing is shuffled."""
    row_bytes = prod(layout.row_shape) * np.dtype(layout.dtype).itemsize
    return max(1, BUFFER_BYTES // row_bytes) if shuffle else layout.rows_per_shard


def _generator(seed: int, purpose: int, *counter: int) -> np.random.Generator:
    """A stream of its own for each (seed, purpose, counter): Philox is keyed by them, nothing is advanced."""
    words = [0, *counter, *([0] * (3 - len(counter)))]
    key, start = (np.array(numbers, np.uint64) for numbers in ([seed, purpose], words))
    return np.random.Generator(np.random.Philox(key=key, counter=start))
