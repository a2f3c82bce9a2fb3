"""Batches of an epoch, prepared in threads ahead of the network, in an order that follows from seed and epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.core.machine import usable_cores
from featcache.heads import order
from featcache.networks.config import ScratchConfig
from featcache.networks.views import Live, Views

_AHEAD = 3
"""Parts that are prepared while one is computed."""


@dataclass(frozen=True)
class Part:
    """Rows that are computed at once; always as many, so that nothing is compiled twice.

    x : (rows, s, s, 3), float32, 0 to 255
    y : (rows, classes), float32: the targets
    weights : (rows,), float32; 0 for rows that only fill up the last batch of an epoch. Their mean over the rows of
        a batch is that of its real rows' class weights
    n_rows : real ones
    factor : what the weights were multiplied by to that end
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    weights: NDArray[np.float32]
    n_rows: int
    factor: float


class Feed:
    """The training rows, epoch by epoch.

    views : the rows; live : draws their views anew, or None for the views as they are
    """

    def __init__(self, views: Views, n_classes: int, *, config: ScratchConfig, live: Live | None = None) -> None:
        self._views, self._config, self._live = views, config, live
        hard = np.eye(n_classes, dtype=np.float32)
        self._targets = hard * (1 - config.label_smoothing) + config.label_smoothing / n_classes
        self._class_weights = np.ones(n_classes, np.float32)
        if config.class_weights == "balanced":
            counts = np.bincount(views.y, minlength=n_classes)
            self._class_weights = (len(views) / (n_classes * np.maximum(counts, 1))).astype(np.float32)
        self._pool = ThreadPoolExecutor(max(usable_cores(), 2), "featcache-feed")

    @property
    def updates(self) -> int:
        """Of an epoch."""
        return -(-len(self._views) // self._config.batch)

    @property
    def parts(self) -> int:
        """Of an epoch."""
        return self.updates * self._config.accumulate

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Part]:
        """The parts of an epoch, both counted from 0, from one on."""
        places = order(self._config.seed, epoch, len(self._views))
        waiting: deque[Future[Part]] = deque()
        try:
            for number in range(start, self.parts + _AHEAD):
                if number < self.parts:
                    waiting.append(self._pool.submit(self._part, places, epoch, number))
                if len(waiting) > _AHEAD or number >= self.parts:
                    if not waiting:
                        return
                    yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Wait for the threads."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _part(self, places: NDArray[np.int64], epoch: int, number: int) -> Part:
        config = self._config
        update, part = divmod(number, config.accumulate)
        batch = places[update * config.batch : (update + 1) * config.batch]
        mine = batch[part * config.part_rows : (part + 1) * config.part_rows]
        rows = np.concatenate([mine, np.resize(batch, config.part_rows - len(mine))])
        y = self._views.y[rows]
        factor = config.batch / len(batch)
        weights = self._class_weights[y] * np.float32(factor)
        weights[len(mine) :] = 0
        return Part(self._pixels(rows, epoch), self._targets[y], weights, len(mine), factor)

    def _pixels(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
        if self._live is None:
            return np.asarray(self._views.pixels[rows], np.float32)
        x: NDArray[Any] = np.empty((len(rows), *self._views.pixels.shape[1:]), np.float32)
        for place, row in enumerate(rows):
            x[place] = self._live.render(int(row), epoch)
        return x
