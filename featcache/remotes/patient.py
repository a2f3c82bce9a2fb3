"""A remote for long work: it is asked again where it is busy or cannot be reached, and what is in hand is ended well.

Asked to stop, a call that is under way goes on, so that a shard which was computed arrives; it is only not tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from featcache.core.errors import RemoteDroppedError
from featcache.core.interrupts import going_on, is_stop_asked
from featcache.core.units import duration
from featcache.remotes.contract import Block, Item, PausedError, Remote, StalledError

PATIENCE_S = 300.0
_PAUSE_S, _MOST_PAUSE_S = 1.0, 30.0
"""Between the first two tries, doubled from try to try."""
_LOOK_S = 0.2
_SAID_S = 60.0
"""What is waited for is told once in that time."""
Value = TypeVar("Value")


class Patient:
    """See `featcache.remotes.contract.Remote`. Raises StalledError where it is given up: nobody should try again.

    impatient : the same remote, for what is not worth waiting for
    on_event : told, now and then, what is waited for
    patience_s : for which one thing is tried again; None for PATIENCE_S
    """

    def __init__(self, store: Remote, on_event: Callable[[str], object], *, patience_s: float | None = None) -> None:
        self.impatient = self._store = store
        self._on_event = on_event
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        self._said_at = float("-inf")
        self.url, self.ranges, self.writable, self.shared = store.url, store.ranges, store.writable, store.shared

    def folders(self, folder: str) -> list[str]:
        """As of `Remote`."""
        return self._patiently(lambda: self._store.folders(folder))

    def list(self, folder: str) -> list[Item]:
        """As of `Remote`."""
        return self._patiently(lambda: self._store.list(folder))

    def size(self, path: str) -> int:
        """As of `Remote`."""
        return self._patiently(lambda: self._store.size(path))

    @contextmanager
    def open(self, path: str, start: int = 0, *, stop: int | None = None) -> Iterator[Iterator[Block]]:
        """As of `Remote`; what comes to an end before its time is for the caller."""

        def opened() -> tuple[ExitStack, Iterator[Block]]:
            context: AbstractContextManager[Iterator[Block]] = self._store.open(path, start, stop=stop)
            with ExitStack() as stack:
                blocks = stack.enter_context(context)
                return stack.pop_all(), blocks
            raise AssertionError

        stack, blocks = self._patiently(opened)
        with stack, going_on():
            yield blocks

    def put(self, path: str, data: bytes | Path) -> None:
        """As of `Remote`."""
        self._patiently(lambda: self._store.put(path, data))

    def create(self, path: str, data: bytes) -> bool:
        """As of `Remote`. Of a try whose answer was lost the next one says that there is an object: maybe its own."""
        return self._patiently(lambda: self._store.create(path, data))

    def remove(self, path: str) -> None:
        """As of `Remote`."""
        self._patiently(lambda: self._store.remove(path))

    def _patiently(self, action: Callable[[], Value]) -> Value:
        """Do something, again and again where the remote drops it; asked to stop, not again."""
        until, pause_s = time.monotonic() + self._patience_s, _PAUSE_S
        while True:
            try:
                with going_on():
                    return action()
            except RemoteDroppedError as error:
                asked_s = float(error.after_s) if isinstance(error, PausedError) else 0.0
                pause_s, waits_s = min(2 * pause_s, _MOST_PAUSE_S), max(pause_s, asked_s)
                if time.monotonic() + waits_s > until or is_stop_asked():
                    raise StalledError(str(error)) from error
                if time.monotonic() - self._said_at > _SAID_S:
                    self._said_at = time.monotonic()
                    self._on_event(f"{error}; trying again, for {duration(self._patience_s)} at most")
            _sleep(waits_s)


def _sleep(seconds: float) -> None:
    """Wait, until somebody asks to stop at most."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not is_stop_asked():
        time.sleep(min(left, _LOOK_S))
