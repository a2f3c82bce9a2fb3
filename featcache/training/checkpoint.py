"""A training's state on the disk: written as a whole, seldom enough to cost little, read back to the last bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import refuse_shortage
from featcache.core.npz import NPZ_DAMAGE, reading_npz
from featcache.training.history import Epoch

Made = TypeVar("Made")
LEAST_S, COST = 5.0, 30
"""Checkpoints are at least so many seconds apart, and take at most a thirtieth of the time."""


class Clock:
    """Says when the next checkpoint is due."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._wait_s = LEAST_S

    def is_due(self) -> bool:
        """Whether the last one was long enough ago."""
        return time.monotonic() - self._last >= self._wait_s

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Notes that one is written in the block, and how long that takes."""
        start = time.monotonic()
        yield
        self._last = time.monotonic()
        self._wait_s = max(LEAST_S, COST * (self._last - start))


def read(path: Path, made: Callable[[Any], Made]) -> Made | None:
    """What `made` makes of the arrays in a file; None where that is not there, damaged, or does not hold them.

    Raises MemoryError or OSError where memory or open files are short.
    """
    try:
        with reading_npz(path) as arrays:
            return made(arrays)
    except NPZ_DAMAGE as error:
        refuse_shortage(error, path)
        return None


def array_of(history: Sequence[Epoch]) -> NDArray[np.float64]:
    """A history as an array (epochs, 7)."""
    return np.array([astuple(entry) for entry in history], np.float64).reshape(-1, 7)


def history_of(array: NDArray[np.float64]) -> list[Epoch]:
    """The history that `array_of` made an array of. Raises ValueError for one with gaps."""
    history = [Epoch(int(line[0]), *map(float, line[1:])) for line in array]
    if [entry.epoch for entry in history] != list(range(1, len(history) + 1)):
        raise ValueError("the history has gaps")
    return history
