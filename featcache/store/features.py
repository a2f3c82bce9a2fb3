"""The feature array of a cache, read from the disk when it is indexed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from featcache.store.layout import Layout

Array = NDArray[np.number[Any]]
Numbers = NDArray[np.integer[Any]]
Span = tuple[int, int]


class Reader(Protocol):
    """What gives the rows of an array: every `FeatureStore` does."""

    layout: Layout

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop; CacheError where they cannot be had."""


@runtime_checkable
class SpanReader(Protocol):
    """A reader that is faster when it is told of several spans at once."""

    def read_spans(self, spans: Sequence[Span]) -> Array:
        """The rows of all spans, one behind the other."""


@runtime_checkable
class IntoReader(Protocol):
    """A reader that is faster when it is given the memory to read into."""

    def read_into(self, start: int, stop: int, *, target: Array) -> None:
        """Put rows start..stop into `target`."""


class Features:
    """The feature array of a cache, read from the store when it is indexed.

    Takes what NumPy takes along the first axis (a number, a slice, a list or array of row numbers, a
    mask), then any further indices; `numpy.asarray` reads it whole. Only the chunks that hold
    rows asked for are read.
    """

    def __init__(self, store: Reader) -> None:
        self._store = store
        self.shape = store.layout.shape
        self.dtype = np.dtype(store.layout.dtype)
        self.ndim = len(self.shape)
        self.size = int(np.prod(self.shape))

    @property
    def layout(self) -> Layout:
        """How the array is cut into chunks and shards."""
        return self._store.layout

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        first, *rest = (index if isinstance(index, tuple) else (index,)) or (Ellipsis,)
        if first is Ellipsis:
            return np.asarray(self)[index]
        if first is None or isinstance(first, (bool, np.bool_)):
            raise IndexError(f"features: {first} (a new axis) cannot come first; index the rows, then reshape")
        numbers = np.arange(len(self))[first]
        rows = self._rows(np.ravel(numbers))
        # What is left is NumPy's own business: the rows that were read stand for the first index.
        read: Any = slice(None) if isinstance(first, slice) else np.arange(numbers.size).reshape(numbers.shape)
        return rows[(read if numbers.ndim else 0, *rest)]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("features lie on disk: they cannot be had without a copy")
        return self._rows(np.arange(len(self))).astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"Features(shape={self.shape}, dtype={self.dtype})"

    def blocks(self, numbers: Numbers | None = None) -> Iterator[tuple[slice, Array]]:
        """The rows `numbers` (all by default) in that order, a block of at most a shard's size at a time.

        Yields (where in `numbers` the block stands, its features). Increasing numbers read each chunk once.
        """
        numbers = np.arange(len(self)) if numbers is None else np.asarray(numbers)
        for start, stop in _cut(numbers, self.layout):
            yield slice(start, stop), self._block(numbers[start:stop])

    def gather(self, numbers: Numbers) -> Iterator[tuple[Numbers, Array]]:
        """The rows `numbers`, given in any order, in blocks of at most a shard's size; each chunk is read once.

        Yields (the places in `numbers` of the rows in the block, their features).
        """
        order = np.argsort(numbers, kind="stable")
        for place, block in self.blocks(numbers[order]):
            yield order[place], block

    def _rows(self, numbers: Numbers) -> Array:
        """Rows by number in any order."""
        result = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        if len(numbers) > self.layout.rows_per_shard and np.all(np.diff(numbers) == 1):
            self._read_into(int(numbers[0]), int(numbers[-1]) + 1, result)
        else:
            for places, block in self.gather(numbers):
                result[places] = block
        return result

    def _read_into(self, start: int, stop: int, target: Array) -> None:
        if isinstance(self._store, IntoReader):
            self._store.read_into(start, stop, target=target)
            return
        for first, last in self.layout.blocks(start, stop):
            target[first - start : last - start] = self._store.read(first, last)

    def _block(self, numbers: Numbers) -> Array:
        """Rows by number, in memory: only the chunks that they touch are read."""
        step = self.layout.rows_per_chunk
        chunks = np.unique(numbers // step)
        runs = np.split(chunks, np.flatnonzero(np.diff(chunks) > 1) + 1)
        starts = np.array([run[0] * step for run in runs])
        stops = np.array([(run[-1] + 1) * step for run in runs])
        starts[0], stops[-1] = numbers.min(), numbers.max() + 1
        block = self._read_spans(list(zip(starts.tolist(), stops.tolist(), strict=True)))
        run_of = np.searchsorted(starts, numbers, "right") - 1
        before = np.cumsum(stops - starts) - (stops - starts)  # rows in the runs before each
        places = numbers - starts[run_of] + before[run_of]
        return block if np.array_equal(places, np.arange(len(block))) else block[places]

    def _read_spans(self, spans: Sequence[Span]) -> Array:
        if isinstance(self._store, SpanReader):
            return self._store.read_spans(spans)
        parts = [self._store.read(start, stop) for start, stop in spans]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _cut(numbers: Numbers, layout: Layout) -> Iterator[Span]:
    """Cut `numbers` at shard borders into pieces that touch, and hold, no more than a shard's chunks and rows.

    Where few rows are wanted of each shard, a piece takes in several shards.
    """
    if not len(numbers):
        return
    most_chunks = layout.rows_per_shard // layout.rows_per_chunk
    visited = np.cumsum(np.diff(numbers // layout.rows_per_chunk, prepend=-1) != 0)
    borders = np.flatnonzero(np.diff(numbers // layout.rows_per_shard)) + 1
    start = 0
    cuts = [0]
    for begin, end in pairwise([0, *borders.tolist(), len(numbers)]):
        if visited[end - 1] - visited[start] >= most_chunks or end - start > layout.rows_per_shard:
            start = begin
            cuts.append(begin)
    for begin, end in pairwise(sorted({*cuts, len(numbers)})):
        for first in range(begin, end, layout.rows_per_shard):
            yield first, min(first + layout.rows_per_shard, end)
