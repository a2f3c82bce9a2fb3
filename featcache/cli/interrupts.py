"""Ctrl-C and SIGTERM in a command: both raise KeyboardInterrupt, and no library can swallow that.

Nobody waits for a remote any more, in whatever thread, once there was a signal: what is in hand there may never end.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from featcache.cli.hints import in_flags
from featcache.core import interrupts
from featcache.core.shown import Terminal

_noted: list[int] = []
"""Signals that came while the command ran, but for those that `stopping` waits for."""


@contextmanager
def noting_interrupts() -> Iterator[list[int]]:
    """Both signals raise KeyboardInterrupt, and are noted: some libraries turn it into an error of theirs."""
    _noted.clear()

    def note(number: int, _: FrameType | None) -> None:
        _noted.append(number)
        raise KeyboardInterrupt

    ours = (signal.default_int_handler, signal.SIG_DFL)
    with interrupts.ending_with(lambda: bool(_noted)), interrupts.handled(note, lambda before: before in ours):
        yield _noted


class _CommandLine(Terminal):
    """Bars and notes of commands: arguments are named as flags."""

    def note(self, message: str) -> None:
        """A line on standard error."""
        super().note(in_flags(message))

    @contextmanager
    def stopping(self) -> Iterator[Callable[[], bool]]:
        """See `featcache.core.interrupts.finishing_in_hand`."""
        if _noted:  # and a library swallowed it, in the middle of an import
            raise KeyboardInterrupt
        with interrupts.finishing_in_hand() as stopped:
            yield stopped


TERMINAL = _CommandLine()
