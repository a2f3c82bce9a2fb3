"""Networks at work: a batch in a thread while the next is rendered; all cuts of a network from one computation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np

from featcache.backbones import Engine
from featcache.extraction.stage_times import StageTimes
from featcache.images import Pixels
from featcache.store import Array

_CALL_ROWS = 64
_CALL_BYTES = 256 << 20
_WAITING_BYTES = 512 << 20

Key = Hashable
"""Names a row, whichever cache it is for: (image_id, view)."""


class Computer:
    """One network. The caches of its cuts ask for the same rows, one after the other: each row is computed once.

    pool : of one thread, which all networks take turns in: each uses every core
    open_engine : called before the first batch
    """

    def __init__(self, pool: ThreadPoolExecutor, open_engine: Callable[[], Engine], *, shares: StageTimes) -> None:
        self._pool = pool
        self._open_engine = open_engine
        self._shares = shares
        self._wanted: dict[int, set[Key]] = {}
        self._waiting: OrderedDict[tuple[int, Key], Array] = OrderedDict()
        self._waiting_bytes = 0

    def expect(self, cut: int, rows: Iterable[Key]) -> None:
        """Say beforehand which rows will be asked for of a cut."""
        self._wanted[cut] = set(rows)

    @cached_property
    def engine(self) -> Engine:
        """The engine, opened when it is asked for first."""
        with self._shares.of("open"):
            return self._open_engine()

    @cached_property
    def call_rows(self) -> int:
        """Rows that a batch does well to have: several times what the engine computes at once, as memory allows."""
        row_bytes = 4 * sum(int(np.prod(shape)) for shape in self.engine.feature_shapes)
        step = self.engine.batch_rows
        return max(min(_CALL_ROWS, _CALL_BYTES // row_bytes) // step, 1) * step

    def submit(
        self, cut: int, keys: Sequence[Key], *, pixels: Sequence[Pixels], given_up: Callable[[], bool]
    ) -> Future[list[Array] | None]:
        """Features of some rows at a cut, (h, w, c) or (c,) each, in the order of the keys.

        given_up : asked when their turn comes: whether they are not wanted any more; then the result is None
        """
        _ = self.engine  # here and now: what is wrong with it ends the work before anything is begun
        return self._pool.submit(lambda: None if given_up() else self._compute(cut, keys, pixels))

    def _compute(self, cut: int, keys: Sequence[Key], pixels: Sequence[Pixels]) -> list[Array]:
        found = {key: self._take(cut, key) for key in keys}
        fresh = [number for number, key in enumerate(keys) if found[key] is None]
        if fresh:
            with self._shares.of("compute"):
                outputs = self.engine.features(np.stack([pixels[number] for number in fresh]))
            for place, number in enumerate(fresh):
                found[keys[number]] = outputs[cut][place]
                self._keep(cut, keys[number], [output[place] for output in outputs])
        return [values for key in keys if (values := found[key]) is not None]

    def _take(self, cut: int, key: Key) -> Array | None:
        self._wanted.get(cut, set()).discard(key)
        values = self._waiting.pop((cut, key), None)
        if values is not None:
            self._waiting_bytes -= values.nbytes
        return values

    def _keep(self, cut: int, key: Key, values: Sequence[Array]) -> None:
        """Keep a row for the caches of other cuts. The longest kept goes where memory ends, to be computed again."""
        for other, wanted in self._wanted.items():
            if other != cut and key in wanted:
                self._waiting[other, key] = values[other].copy()  # or it would keep its whole batch
                self._waiting_bytes += values[other].nbytes
        while self._waiting_bytes > _WAITING_BYTES:
            _, oldest = self._waiting.popitem(last=False)
            self._waiting_bytes -= oldest.nbytes
