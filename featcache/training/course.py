"""The one loop of every training: epochs, the best of them, patience, checkpoints, stopping and going on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from featcache.training.checkpoint import Clock
from featcache.training.history import Epoch, best_of

State = TypeVar("State")
Best = TypeVar("Best")
Copied = TypeVar("Copied", covariant=True)
OnEpoch = Callable[[Sequence[Epoch]], object]
"""Given the history so far, after each epoch."""


class Rules(Protocol):
    """What settings say of the course of a training; see `HeadConfig` and `ScratchConfig`."""

    @property
    def epochs(self) -> int: ...
    @property
    def patience(self) -> int: ...
    @property
    def monitor(self) -> str: ...
    @property
    def restore_best(self) -> bool: ...
    @property
    def val_every(self) -> int: ...


class Trainer(Protocol[Copied]):
    """What is trained: a head or a network, with what it learns from."""

    @property
    def history(self) -> list[Epoch]:
        """An entry an epoch; the loop adds to it."""

    def epoch(self, pause: Callable[[], object]) -> Epoch:
        """Train one epoch more, and look at the validation rows.

        pause : called where the epoch may be left: a checkpoint may be written there
        """

    def copy(self) -> Copied:
        """What is kept of the best epoch."""


@dataclass(frozen=True)
class Earlier(Generic[State, Best]):
    """What an earlier call has left of a training.

    name : of the run or training that it was
    parts : of the epoch after the history that are done
    """

    name: str
    history: Sequence[Epoch]
    state: State
    best: Best | None
    parts: int = 0


@dataclass
class Course(Generic[Best]):
    """How a training goes: where it begins, and what is done after each epoch.

    on_epoch : told the history after each epoch
    stopped : looked at before the first epoch and at each pause; once it says True, the state is saved and
        KeyboardInterrupt raised
    save : writes a checkpoint
    best : what the trainer's `copy` gave after the best epoch so far, where the rules ask for it
    resumed_at : epochs that were not trained now, but by an earlier call, of the run or training `resumed_from`
    """

    rules: Rules
    on_epoch: OnEpoch = lambda _: None
    stopped: Callable[[], bool] = lambda: False
    save: Callable[[], object] | None = None
    best: Best | None = None
    best_epoch: int = 0
    resumed_at: int = 0
    resumed_from: str = ""
    _clock: Clock = field(default_factory=Clock)

    def go_on(self, found: Iterable[Earlier[State, Best]]) -> State | None:
        """Take over the furthest of what earlier calls have left; None where this training does not come by there."""
        usable = [earlier for earlier in found if _is_on_the_way(earlier, self.rules)]
        if not usable:
            return None
        furthest = max(usable, key=lambda earlier: (len(earlier.history), earlier.parts))
        self.best, self.best_epoch = furthest.best, best_of(furthest.history, self.rules.monitor)
        self.resumed_at, self.resumed_from = len(furthest.history), furthest.name
        return furthest.state

    def run(self, trainer: Trainer[Best]) -> None:
        """Train on, from wherever the trainer stands, to the last epoch, or until `patience` is over.

        Raises KeyboardInterrupt once it is stopped, and what the trainer raises.
        """
        history = trainer.history
        if self.stopped():  # while the features were read
            raise KeyboardInterrupt
        while len(history) < self.rules.epochs and not _is_over(len(history), self.best_epoch, self.rules):
            history.append(trainer.epoch(self._pause))
            self._remember(trainer)
            self.on_epoch(history)
            self._pause()
        self.save = None  # it knows the trainer, which may hold all features, and this course

    def chosen(self, last: Best) -> Best:
        """What the rules ask for: the best, or the last."""
        return last if self.best is None else self.best

    def _remember(self, trainer: Trainer[Best]) -> None:
        history = trainer.history
        compared = [*history[self.best_epoch - 1 : self.best_epoch], history[-1]]
        if best_of(compared, self.rules.monitor) == len(history):
            self.best_epoch = len(history)
            self.best = trainer.copy() if self.rules.restore_best else None

    def _pause(self) -> None:
        stop = self.stopped()
        if self.save is not None and (stop or self._clock.is_due()):
            with self._clock.writing():
                self.save()
        if stop:
            raise KeyboardInterrupt


def _is_over(epochs: int, best: int, rules: Rules) -> bool:
    """Whether nothing has become better for as long as the rules are patient."""
    return best > 0 and 0 < rules.patience <= epochs - best


def _is_on_the_way(earlier: Earlier[State, Best], rules: Rules) -> bool:
    """Whether a training by these rules comes by there: not where it ended sooner, or looks at other epochs."""
    history, best = earlier.history, 0
    passed = history if earlier.parts else history[:-1]
    for entry in passed:
        best = best_of([*history[best - 1 : best], entry], rules.monitor)
        if _is_over(entry.epoch, best, rules):
            return False
    n, every = len(history), rules.val_every
    if not len(passed) < rules.epochs:
        return False
    has_no_validation_rows = n >= every and math.isnan(history[every - 1].val_loss)
    if not n or has_no_validation_rows:
        return True
    looks = n % every == 0 or (n == rules.epochs and not earlier.parts)
    return looks != math.isnan(history[-1].val_loss)
