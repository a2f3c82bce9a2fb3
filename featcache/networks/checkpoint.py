"""The state of a whole network's training on the disk: all that the next step needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.npz import write_npz
from featcache.training import Epoch, checkpoint

STATE_FILE = "state.npz"
_BEST = "best-{}.npz"
_FORMAT = 1

Arrays = list[NDArray[Any]]


@dataclass
class Standing:
    """Where a training stands.

    part : parts of the epoch under way that are done; loss, right, rows, seconds : of these
    """

    history: list[Epoch] = field(default_factory=list)
    part: int = 0
    loss: float = 0.0
    right: float = 0.0
    rows: int = 0
    seconds: float = 0.0


def save(
    folder: Path, course: str, *, standing: Standing, variables: Arrays, best: Arrays | None, best_epoch: int
) -> None:
    """Write state.npz, and beside it the best state so far; best states of other epochs go.

    course : digest of all that decides the training
    variables : of the model, then of the optimizer
    best : the model's variables after `best_epoch`, where they are to be kept
    """
    best_epoch = 0 if best is None else best_epoch
    if best is not None:
        write_npz(folder / _BEST.format(best_epoch), _numbered(best))
    numbers = [standing.part, standing.loss, standing.right, standing.rows, standing.seconds, best_epoch]
    described = {
        "format": np.array(_FORMAT),
        "course": np.array(course),
        "history": checkpoint.array_of(standing.history),
    }
    write_npz(folder / STATE_FILE, {**described, "progress": np.array(numbers, np.float64), **_numbered(variables)})
    for path in folder.glob(_BEST.format("*")):
        if path.name != _BEST.format(best_epoch):
            path.unlink(missing_ok=True)


def load(folder: Path, course: str) -> tuple[Standing, Arrays, Arrays | None] | None:
    """What `save` wrote, if it is of that training and whole, and the best state that it names; else None."""

    def made(arrays: Any) -> tuple[Standing, Arrays, int] | None:
        if str(arrays["course"]) != course or int(arrays["format"]) != _FORMAT:
            return None
        history = checkpoint.history_of(arrays["history"])
        part, loss, right, rows, seconds, best_epoch = map(float, arrays["progress"])
        standing = Standing(history, int(part), loss=loss, right=right, rows=int(rows), seconds=seconds)
        return standing, _variables(arrays, len(arrays) - 4), int(best_epoch)

    if (found := checkpoint.read(folder / STATE_FILE, made)) is None:
        return None
    standing, variables, best_epoch = found
    if not best_epoch:
        return standing, variables, None
    best = checkpoint.read(folder / _BEST.format(best_epoch), lambda arrays: _variables(arrays, len(arrays)))
    return None if best is None else (standing, variables, best)


def _numbered(variables: Arrays) -> dict[str, NDArray[Any]]:
    return {f"variable{number}": array for number, array in enumerate(variables)}


def _variables(arrays: Any, n: int) -> Arrays:
    return [arrays[f"variable{number}"] for number in range(n)]
