"""Images of concurrent requests computed together."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Engine


class Batcher:
    """Computes rows that arrive one by one: those that wait are computed together, as many as an engine takes at once.

    Nobody waits for others to come: a row that finds the engine idle is computed at once. An engine that takes several
    calls at the same time gets them, since at the end of a call all cores but one would wait.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: asyncio.Queue[tuple[NDArray[np.uint8], asyncio.Future[NDArray[Any]]]] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(engine.calls_at_once, "featcache-compute")
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._engine.calls_at_once)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(cancel_futures=True)

    async def row(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """What is computed of one image (s, s, 3)."""
        future: asyncio.Future[NDArray[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((pixels, future))
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            most = max(self._engine.batch_rows // self._engine.calls_at_once, 1)
            batch += [self._waiting.get_nowait() for _ in range(min(self._waiting.qsize(), most - 1))]
            batch = [(pixels, future) for pixels, future in batch if not future.done()]  # whose client is still there
            if not batch:
                continue
            try:
                pixels = np.stack([one for one, _ in batch])
                (rows,) = await loop.run_in_executor(self._threads, self._engine.features, pixels)
            except Exception as error:  # noqa: BLE001 - each of these requests is told; the others go on
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.done():
                    future.set_result(row)
