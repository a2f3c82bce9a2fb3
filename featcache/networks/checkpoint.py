"""A training's state on the disk: all that the next step needs, written as a whole, read back to the last bit."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import refuse_shortage
from featcache.core.files import beside
from featcache.core.npz import NPZ_DAMAGE, reading_npz
from featcache.training import Epoch

STATE_FILE = "state.npz"
_BEST = "best-{}.npz"
_FORMAT = 1
_LEAST_S, _COST = 15.0, 30
"""Checkpoints are written so seldom that they take a thirtieth of the time."""

Arrays = list[NDArray[Any]]


@dataclass
class Progress:
    """Where a training stands.

    part : parts of the epoch under way that are done; loss, right, rows, seconds : of these
    best_epoch : the epoch with the best of what is monitored, 0 where there is none yet
    """

    history: list[Epoch] = field(default_factory=list)
    part: int = 0
    loss: float = 0.0
    right: float = 0.0
    rows: int = 0
    seconds: float = 0.0
    best_epoch: int = 0


def save(folder: Path, course: str, *, progress: Progress, variables: Arrays) -> None:
    """Write state.npz, beside and then renamed; best states of other epochs go.

    course : digest of all that decides the training
    variables : of the model, then of the optimizer
    """
    numbers = [progress.part, progress.loss, progress.right, progress.rows, progress.seconds, progress.best_epoch]
    history = np.array([astuple(entry) for entry in progress.history], np.float64).reshape(-1, 7)
    arrays = {f"variable{number}": array for number, array in enumerate(variables)}
    described = {"format": np.array(_FORMAT), "course": np.array(course), "history": history}
    _write(folder / STATE_FILE, {**described, "progress": np.array(numbers, np.float64), **arrays})
    for path in folder.glob(_BEST.format("*")):
        if path.name != _BEST.format(progress.best_epoch):
            path.unlink(missing_ok=True)


def load(folder: Path, course: str) -> tuple[Progress, Arrays] | None:
    """What `save` wrote, if it is of that training and whole, with the best state that it names; else None."""
    try:
        with reading_npz(folder / STATE_FILE) as arrays:
            if str(arrays["course"]) != course or int(arrays["format"]) != _FORMAT:
                return None
            history = [Epoch(int(line[0]), *map(float, line[1:])) for line in arrays["history"]]
            part, loss, right, rows, seconds, best = map(float, arrays["progress"])
            variables = [arrays[f"variable{number}"] for number in range(len(arrays) - 4)]
    except NPZ_DAMAGE as error:
        refuse_shortage(error, folder)
        return None
    if best and load_best(folder, int(best)) is None:
        return None
    return Progress(history, int(part), loss, right, int(rows), seconds, int(best)), variables


def save_best(folder: Path, epoch: int, *, variables: Arrays) -> None:
    """Write the model's variables after an epoch."""
    _write(folder / _BEST.format(epoch), {f"variable{number}": array for number, array in enumerate(variables)})


def load_best(folder: Path, epoch: int) -> Arrays | None:
    """The model's variables after an epoch, if they are there and whole."""
    try:
        with reading_npz(folder / _BEST.format(epoch)) as arrays:
            return [arrays[f"variable{number}"] for number in range(len(arrays))]
    except NPZ_DAMAGE as error:
        refuse_shortage(error, folder)
        return None


class Clock:
    """Says when the next checkpoint is due."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._wait_s = _LEAST_S

    def due(self) -> bool:
        """Whether the last one was long enough ago."""
        return time.monotonic() - self._last >= self._wait_s

    def took(self, seconds: float) -> None:
        """Note that one was written."""
        self._last, self._wait_s = time.monotonic(), max(_LEAST_S, _COST * seconds)


def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with beside(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
