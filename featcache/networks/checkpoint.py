"""The state of a whole network's training on the disk: all that the next step needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.training import Epoch, checkpoint

STATE_FILE = "state.npz"
_BEST = "best-{}.npz"
_FORMAT = 1

Arrays = list[NDArray[Any]]


@dataclass
class Standing:
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


def save(folder: Path, course: str, *, standing: Standing, variables: Arrays) -> None:
    """Write state.npz; best states of other epochs go.

    course : digest of all that decides the training
    variables : of the model, then of the optimizer
    """
    numbers = [standing.part, standing.loss, standing.right, standing.rows, standing.seconds, standing.best_epoch]
    arrays = {f"variable{number}": array for number, array in enumerate(variables)}
    described = {
        "format": np.array(_FORMAT),
        "course": np.array(course),
        "history": checkpoint.array_of(standing.history),
    }
    checkpoint.write(folder / STATE_FILE, {**described, "progress": np.array(numbers, np.float64), **arrays})
    for path in folder.glob(_BEST.format("*")):
        if path.name != _BEST.format(standing.best_epoch):
            path.unlink(missing_ok=True)


def load(folder: Path, course: str) -> tuple[Standing, Arrays, Arrays | None] | None:
    """What `save` wrote, if it is of that training and whole, and the best state that it names; else None."""

    def made(arrays: Any) -> tuple[Standing, Arrays] | None:
        if str(arrays["course"]) != course or int(arrays["format"]) != _FORMAT:
            return None
        history = checkpoint.history_of(arrays["history"])
        part, loss, right, rows, seconds, best = map(float, arrays["progress"])
        variables = [arrays[f"variable{number}"] for number in range(len(arrays) - 4)]
        return Standing(
            history=history,
            part=int(part),
            loss=loss,
            right=right,
            rows=int(rows),
            seconds=seconds,
            best_epoch=int(best),
        ), variables

    found = checkpoint.read(folder / STATE_FILE, made)
    if found is None:
        return None
    best = _load_best(folder, found[0].best_epoch) if found[0].best_epoch else None
    return None if found[0].best_epoch and best is None else (*found, best)


def save_best(folder: Path, epoch: int, *, variables: Arrays) -> None:
    """Write the model's variables after an epoch."""
    arrays = {f"variable{number}": array for number, array in enumerate(variables)}
    checkpoint.write(folder / _BEST.format(epoch), arrays)


def _load_best(folder: Path, epoch: int) -> Arrays | None:
    return checkpoint.read(
        folder / _BEST.format(epoch), lambda arrays: [arrays[f"variable{number}"] for number in range(len(arrays))]
    )
