"""Remotes whose every call ends: soon where nothing comes, in number and size, and at the first interrupt.

What waits for a server waits in a thread of its own, which is left to itself where it does not come back: libraries
neither look at signals nor at the clock while they wait.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from featcache.core.errors import RemoteError
from featcache.core.interrupts import is_stopped
from featcache.remotes.contract import Block, Item, Remote, StalledError

SILENT_S = 60.0
CALL_S = 120.0
"""Of a call that moves no file: a connection, a few attempts, an answer."""
THREAD_NAME = "featcache-call"
_LEAST_BYTES = 16 << 10
"""What must come, of an object, in each SILENT_S that are waited for it."""
_LEAST_RATE = 8_000
_MAX_NAMES = 1_000_000
_LOOK_S = 0.1
_AHEAD_BLOCKS = 4
Value = TypeVar("Value")


def bounded(store: Remote) -> Bounded:
    """The same remote, whose calls end."""
    return store if isinstance(store, Bounded) else Bounded(store)


class Bounded:
    """See `featcache.remotes.contract.Remote`. Raises StalledError for a call that takes too long."""

    def __init__(self, store: Remote) -> None:
        self._store = store
        self.url, self.ranges, self.writable, self.shared = store.url, store.ranges, store.writable, store.shared

    def __reduce__(self) -> Any:
        return bounded, (self._store,)

    def folders(self, folder: str) -> list[str]:
        """As of `Remote`."""
        return _few(self._within(lambda: self._store.folders(folder), folder), f"{self.url}/{folder}")

    def list(self, folder: str) -> list[Item]:
        """As of `Remote`."""
        return _few(self._within(lambda: self._store.list(folder), folder), f"{self.url}/{folder}")

    def size(self, path: str) -> int:
        """As of `Remote`."""
        return self._within(lambda: self._store.size(path), path)

    @contextmanager
    def open(self, path: str, start: int = 0, *, stop: int | None = None) -> Iterator[Iterator[Block]]:
        """As of `Remote`."""
        stream = _Stream(lambda: self._store.open(path, start, stop=stop), f"{self.url}/{path}")
        try:
            yield stream.blocks()
        finally:
            stream.let_go()

    def put(self, path: str, data: bytes | Path) -> None:
        """As of `Remote`; a large file may take longer."""
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        self._within(lambda: self._store.put(path, data), path, size / _LEAST_RATE)

    def create(self, path: str, data: bytes) -> bool:
        """As of `Remote`."""
        return self._within(lambda: self._store.create(path, data), path)

    def remove(self, path: str) -> None:
        """As of `Remote`."""
        self._within(lambda: self._store.remove(path), path)

    def _within(self, work: Callable[[], Value], path: str, more_s: float = 0.0) -> Value:
        answers: queue.SimpleQueue[Callable[[], Value]] = queue.SimpleQueue()
        _in_thread(lambda: answers.put(_outcome(work)))
        with suppress(queue.Empty):
            answer: Callable[[], Value] = _next(answers, CALL_S + more_s)
            return answer()
        raise StalledError(f"{self.url}/{path}: no answer for {CALL_S + more_s:.0f} s: what arrived is kept; try later")


def _few(found: list[Value], where: str) -> list[Value]:
    if len(found) > _MAX_NAMES:
        raise RemoteError(f"{where}: lists more than {_MAX_NAMES} names: this is no featcache remote")
    return found


class _Stream:
    """An object that is being read by a thread of its own, a few blocks ahead."""

    def __init__(self, opening: Callable[[], Any], where: str) -> None:
        self._where = where
        self._came: queue.Queue[Callable[[], Block | None]] = queue.Queue(_AHEAD_BLOCKS)
        self._gone = threading.Event()
        self._opening = opening
        self._waited_s, self._bytes = 0.0, 0
        _in_thread(self._read)
        self._take()  # what opening it raises

    def blocks(self) -> Iterator[Block]:
        """What comes, until it ends."""
        while (block := self._take()) is not None:
            yield block

    def let_go(self) -> None:
        """Nobody wants the rest."""
        self._gone.set()

    def _read(self) -> None:
        def all_of_it() -> None:
            with self._opening() as blocks:
                self._hand(lambda: b"")
                for block in blocks:
                    self._hand(lambda block=block: block)  # type: ignore[misc]
                    if self._gone.is_set():
                        return

        self._hand(_outcome(all_of_it))

    def _hand(self, item: Callable[[], Block | None]) -> None:
        while not self._gone.is_set():
            with suppress(queue.Full):
                self._came.put(item, timeout=_LOOK_S)
                return

    def _take(self) -> Block | None:
        """The next block. StalledError where less came than must, in all the time that was waited for."""
        while True:
            before = time.monotonic()
            with suppress(queue.Empty):
                block: Block | None = _next(self._came, max(SILENT_S - self._waited_s, _LOOK_S))()
                self._waited_s += time.monotonic() - before
                self._bytes += len(block or b"")
                if block is None or self._waited_s < SILENT_S or self._bytes >= _LEAST_BYTES:
                    if self._waited_s >= SILENT_S:
                        self._waited_s, self._bytes = 0.0, 0
                    return block
            if self._bytes < _LEAST_BYTES:
                raise StalledError(
                    f"{self._where}: {self._bytes} bytes came in {SILENT_S:.0f} s: what arrived is kept; try later"
                )
            self._waited_s, self._bytes = 0.0, 0


def _next(came: Any, within_s: float) -> Any:
    """What comes next. queue.Empty where nothing does, KeyboardInterrupt where nobody wants it any more."""
    until = time.monotonic() + within_s
    while True:
        if is_stopped():
            raise KeyboardInterrupt
        left = until - time.monotonic()
        with suppress(queue.Empty):
            return came.get(timeout=max(0.0, min(left, _LOOK_S)))
        if left <= 0:
            raise queue.Empty


def _outcome(work: Callable[[], Value]) -> Callable[[], Value]:
    """Do something. Returns a function that gives its result, or raises what it raised."""
    try:
        value = work()
    except BaseException as error:  # noqa: BLE001 - for the thread that waits
        return _raising(error)
    return lambda: value


def _raising(error: BaseException) -> Callable[[], Any]:
    def again() -> Any:
        raise error

    return again


def _in_thread(work: Callable[[], object]) -> None:
    threading.Thread(target=work, name=THREAD_NAME, daemon=True).start()
