"""Images of concurrent requests computed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_MOST_BATCHES = 4


class Batcher:
    """Computes rows that arrive one by one: those that wait are computed together, up to four times `batch_rows`.

    Nobody waits for others to come: a row that finds the network idle is computed at once. Of more than `batch_rows`,
    the number that an engine computes together, a multiple is taken, since it fills up the last ones.
    """

    def __init__(self, compute: Callable[[NDArray[np.uint8]], NDArray[Any]], batch_rows: int) -> None:
        self._compute, self._batch_rows = compute, batch_rows
        self._waiting: asyncio.Queue[tuple[NDArray[np.uint8], asyncio.Future[NDArray[Any]]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "featcache-compute")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(cancel_futures=True)

    async def row(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """What is computed of one image (s, s, 3)."""
        future: asyncio.Future[NDArray[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((pixels, future))
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            there = 1 + self._waiting.qsize()
            whole = min(there // self._batch_rows, _MOST_BATCHES) * self._batch_rows
            batch += [self._waiting.get_nowait() for _ in range((whole or there) - 1)]
            batch = [(pixels, future) for pixels, future in batch if not future.done()]  # whose client is still there
            if not batch:
                continue
            try:
                rows = await loop.run_in_executor(self._thread, self._compute, np.stack([one for one, _ in batch]))
            except Exception as error:  # noqa: BLE001 - each of these requests is told; the others go on
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.done():
                    future.set_result(row)
