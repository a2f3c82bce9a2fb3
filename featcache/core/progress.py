"""How a verb shows how far it is, without knowing who watches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Advance = Callable[[int], object]
Track = Callable[[str, int], AbstractContextManager[Advance]]
"""Given a description and a total, a context whose value is called with the size of each step."""


def silent(description: str, total: int) -> AbstractContextManager[Advance]:
    """A `Track` that shows nothing."""
    return nullcontext(lambda steps: None)


Stopping = Callable[[], AbstractContextManager[Callable[[], bool]]]
"""A context in which an interruption is only noted; its value says whether there was one."""


def never() -> AbstractContextManager[Callable[[], bool]]:
    """A `Stopping` that changes nothing: an interruption ends the work at once."""
    return nullcontext(lambda: False)
