"""Work on many items by several threads, of which few are in memory at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from featcache.core.machine import usable_cores

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """What `work` gives for each item, in their order; one item more than there are cores is begun at a time."""
    running: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(usable_cores(), "featcache-work") as pool:
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > usable_cores():
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for left in running:
                left.cancel()
