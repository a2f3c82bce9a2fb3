"""The course of a training: one entry an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from featcache.core.errors import HeadError

_ABSURD_LOSS = 1e4
"""Mean cross-entropy, nats. Steps far too long end here, with finite weights that mean nothing, or in NaN."""

_FEW_EPOCHS, _LATE = 5, 0.95
_RISEN, _FALLING, _LEARNED = 1.1, 0.95, 0.95
"""What makes a curve rise, fall, or stay where it was."""


@dataclass(frozen=True)
class Epoch:
    """One epoch, counted from 1.

    loss, accuracy : means over the epoch's batches, each before its update, with dropout on and the loss
        weighted by class weights; as Keras does. Of several labels a row, accuracy counts rows with all of them right
    val_loss, val_accuracy : after the epoch, without dropout; NaN without validation rows
    lr : learning rate of the epoch's first update
    seconds : wall-clock, validation included
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float

    @classmethod
    def only(cls, measures: Mapping[str, Mapping[str, Any]], seconds: float) -> Epoch:
        """The one line of a run that has no epochs, from the measures of its splits train and val."""
        train, val = measures["train"], measures["val"]
        return cls(1, train["loss"], train["accuracy"], val["loss"], val["accuracy"], lr=0.0, seconds=seconds)


@dataclass
class Clock:
    """Seconds that a `timed` block took; `so_far` within it."""

    seconds: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def so_far(self) -> float:
        """Seconds since the block began."""
        return time.perf_counter() - self.start


@contextmanager
def timed() -> Iterator[Clock]:
    """Measure the block's wall-clock time."""
    clock = Clock()
    yield clock
    clock.seconds = clock.so_far()


def refuse_divergence(entry: Epoch) -> None:
    """Raise HeadError at the first loss that is no finite number, or larger than that of any training."""
    watched = [entry.loss] if math.isnan(entry.val_accuracy) else [entry.loss, entry.val_loss]
    diverged = [loss for loss in watched if not abs(loss) < _ABSURD_LOSS]
    if diverged:
        raise HeadError(
            f"the loss is {diverged[0]:.4g} in epoch {entry.epoch}: the training diverges "
            f"at learning rate {entry.lr:g}",
            f"Try `lr={entry.lr / 10:g}`",
        )


def course_in_words(history: Sequence[Epoch], kept: int, *, monitor: str = "val_loss") -> str:
    """What the course of a training looks like: where it was best, whether it overfits, or ended too soon; "" where
    nothing is remarkable.

    kept : the epoch whose weights were kept
    """
    last, best = history[-1], best_of(history, "val_loss")
    parts = []
    if kept < last.epoch:
        parts.append(f"{monitor} was best in epoch {kept}, whose weights are kept")
    if not best or len(history) < _FEW_EPOCHS:
        return "; ".join(parts)
    lowest = history[best - 1]
    if last.val_loss > _RISEN * lowest.val_loss and last.loss < lowest.loss:
        parts.append(
            f"it overfits: after epoch {best} the validation loss rises from {lowest.val_loss:.3g} to "
            f"{last.val_loss:.3g}, while the training loss falls"
        )
    elif last.loss > _LEARNED * history[0].loss:
        parts.append("it has hardly learned: the training loss is nearly what it was after the first epoch")
    elif best > _LATE * last.epoch and last.val_loss < _FALLING * history[len(history) // 2].val_loss:
        parts.append("the validation loss still falls: more epochs may be better")
    return "; ".join(parts)


def best_of(history: Sequence[Epoch], monitor: str) -> int:
    """The epoch, from 1, with the best of a field; the first of several. 0 where it was never looked at."""
    sign = -1 if monitor.endswith("accuracy") else 1
    measured = [(sign * getattr(entry, monitor), entry.epoch) for entry in history]
    return min((pair for pair in measured if not math.isnan(pair[0])), default=(0.0, 0))[1]
