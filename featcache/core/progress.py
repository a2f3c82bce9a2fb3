"""How a verb shows how far it is and learns that it should stop, without knowing who watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

Advance = Callable[[int], object]
"""Called with the number of steps that were done since the last call."""


class Progress(Protocol):
    """What verbs report to. `SILENT` shows nothing; `featcache.core.shown` has those of terminals and notebooks."""

    def begin(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """Some work begins: what it is, and its number of steps. The context's value is called with steps done."""

    def note(self, message: str) -> None:
        """A sentence that people should read."""

    def epochs(self, history: Sequence[Any]) -> None:
        """An epoch was trained: the history so far, each entry a `featcache.training.Epoch`."""

    def stopping(self) -> AbstractContextManager[Callable[[], bool]]:
        """While the context lasts, a first interruption is only noted: its value says whether there was one.

        The verb then finishes what it has in hand, and raises KeyboardInterrupt.
        """


class Silent:
    """Shows nothing; an interruption ends the work at once."""

    def begin(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """See `Progress.begin`."""
        return nullcontext(lambda steps: None)

    def note(self, message: str) -> None:
        """See `Progress.note`."""

    def epochs(self, history: Sequence[Any]) -> None:
        """See `Progress.epochs`."""

    def stopping(self) -> AbstractContextManager[Callable[[], bool]]:
        """See `Progress.stopping`."""
        return nullcontext(lambda: False)


SILENT: Progress = Silent()
