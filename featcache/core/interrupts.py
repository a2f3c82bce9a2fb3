"""Ctrl-C and SIGTERM while work is in hand: the first is noted, so that the work ends in good order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], None]
_stops: list[Callable[[], bool]] = []
_own = threading.local()


@contextmanager
def ending_with(stopped: Callable[[], bool]) -> Iterator[None]:
    """While the block runs, whatever waits for a remote, in any thread, is ended once this says so."""
    _stops.append(stopped)
    try:
        yield
    finally:
        _stops.remove(stopped)


@contextmanager
def going_on() -> Iterator[None]:
    """In this thread nothing that waits for a remote is ended: what is in hand is brought to its end."""
    _own.depth = getattr(_own, "depth", 0) + 1
    try:
        yield
    finally:
        _own.depth -= 1


def is_stopped() -> bool:
    """Whether whatever waits in this thread should end."""
    return not getattr(_own, "depth", 0) and is_stop_asked()


def is_stop_asked() -> bool:
    """Whether somebody wants the work to end: nothing should be begun any more."""
    return any(stopped() for stopped in _stops)


@contextmanager
def finishing_in_hand() -> Iterator[Callable[[], bool]]:
    """The first signal is only noted, for the work inside to end in good order; the next one ends it at once.

    In a thread other than the main one, where signals do not arrive, nothing is changed.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if len(noted) > 1 and callable(before):
            before(number, frame)
        with suppress(OSError):  # printed as it is: a handler may come in the middle of another print
            os.write(2, b"interrupted: finishing the current step; interrupt again to stop at once\n")

    with ending_with(lambda: bool(noted)), handled(note, callable):
        yield lambda: bool(noted)


@contextmanager
def handled(handler: Handler, where: Callable[[object], bool]) -> Iterator[None]:
    """Handle the signals whose handler until now is of the kind `where` asks for; others belong to whoever set them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if where(before[number])]
    try:
        for number in ours:
            signal.signal(number, handler)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
