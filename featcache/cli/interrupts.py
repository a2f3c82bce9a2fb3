"""Ctrl-C and SIGTERM: what was finished is kept, and what is in hand is finished where that can be done.

Nobody waits for a remote any more, in whatever thread, once there was a signal: what is in hand there may never end.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from featcache.remotes import ending_with

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_noted: list[int] = []
"""Signals that came while the command ran, but for those that `finishing_in_hand` waits for."""
_Handler = Callable[[int, FrameType | None], None]


@contextmanager
def noting_interrupts() -> Iterator[list[int]]:
    """Both signals raise KeyboardInterrupt, and are noted: some libraries turn it into an error of theirs."""
    _noted.clear()

    def note(number: int, _: FrameType | None) -> None:
        _noted.append(number)
        raise KeyboardInterrupt

    ours = (signal.default_int_handler, signal.SIG_DFL)
    with ending_with(lambda: bool(_noted)), _handled(note, lambda before: before in ours):
        yield _noted


@contextmanager
def finishing_in_hand() -> Iterator[Callable[[], bool]]:
    """The first signal is only noted, for the work inside to end in good order; the next one ends it at once."""
    if _noted:  # and a library swallowed it, in the middle of an import
        raise KeyboardInterrupt
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if len(noted) > 1 and callable(before):
            before(number, frame)
        with suppress(OSError):  # printed as it is: a handler may come in the middle of another print
            os.write(2, b"interrupted: finishing the current step; interrupt again to stop at once\n")

    with ending_with(lambda: bool(noted)), _handled(note, callable):
        yield lambda: bool(noted)


@contextmanager
def _handled(handler: _Handler, where: Callable[[object], bool]) -> Iterator[None]:
    """Handle the signals whose handler until now is of the kind `where` asks for; others belong to whoever set them."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number in _SIGNALS if where(before[number])]
    try:
        for number in ours:
            signal.signal(number, handler)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
