"""A `Progress` for tests: it keeps what it was told, and stops the work when asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from featcache.core.progress import Advance, Silent


class Watching(Silent):
    """begun : (what, total) of everything that began; notes : sentences; on_epochs : called after each epoch."""

    def __init__(
        self,
        stopping: Callable[[], AbstractContextManager[Any]] | None = None,
        on_epochs: Callable[[Sequence[Any]], object] = lambda _: None,
        advance: Advance = lambda steps: None,
    ) -> None:
        self.begun: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self._stopping, self._on_epochs, self._advance = stopping, on_epochs, advance

    def begin(self, what: str, total: int) -> AbstractContextManager[Advance]:
        self.begun.append((what, total))
        return nullcontext(self._advance)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def epochs(self, history: Sequence[Any]) -> None:
        self._on_epochs(history)

    def stopping(self) -> AbstractContextManager[Callable[[], bool]]:
        return self._stopping() if self._stopping else super().stopping()
