"""The loop of every training: best epoch, patience, checkpoints, stopping, and what it goes on from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, product

import numpy as np
import pytest

from featcache.training import checkpoint
from featcache.training.course import Course, Earlier
from featcache.training.history import Epoch, course_in_words


@dataclass(frozen=True)
class Plan:
    epochs: int = 8
    patience: int = 0
    monitor: str = "val_loss"
    restore_best: bool = True
    val_every: int = 1


@dataclass
class Scripted:
    """Its losses are those of a list; each epoch has parts. What it has done is all that its state is."""

    plan: Plan
    losses: Sequence[float]
    parts: int = 1
    history: list[Epoch] = field(default_factory=list)
    part: int = 0
    done: list[tuple[int, int]] = field(default_factory=list)

    def epoch(self, pause: Callable[[], object]) -> Epoch:
        number = len(self.history) + 1
        while self.part < self.parts:
            self.part += 1
            self.done.append((number, self.part))
            pause()
        self.part = 0
        looks = number % self.plan.val_every == 0 or number == self.plan.epochs
        loss = self.losses[number - 1]
        return Epoch(number, loss, -loss, loss if looks else math.nan, -loss if looks else math.nan, 0.1, 0.0)

    def copy(self) -> int:
        return len(self.history)


def trained(plan: Plan, losses: Sequence[float]) -> tuple[Course[int], Scripted]:
    course: Course[int] = Course(plan)
    trainer = Scripted(plan, losses)
    course.run(trainer)
    return course, trainer


@pytest.mark.parametrize("monitor", ["loss", "accuracy", "val_loss", "val_accuracy"])
@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("val_every", [1, 2, 3])
def test_the_best_epoch_and_the_end(monitor: str, patience: int, val_every: int) -> None:
    """Against the plain definition, on many courses of losses."""
    rng = np.random.default_rng(patience + 10 * val_every)
    for _ in range(30):
        losses = rng.integers(1, 6, 8).astype(float).tolist()
        plan = Plan(patience=patience, monitor=monitor, val_every=val_every)
        course, trainer = trained(plan, losses)
        measured: dict[int, float] = {}
        for epoch in range(1, 9):
            if not monitor.startswith("val") or epoch % val_every == 0 or epoch == 8:
                measured[epoch] = losses[epoch - 1]
            best = min(measured, key=lambda e: (measured[e], e)) if measured else 0
            if best and patience and epoch - best >= patience:
                break
        assert (len(trainer.history), course.best_epoch, course.best) == (epoch, best, best or None)


def curve(losses: Sequence[float], val_losses: Sequence[float]) -> list[Epoch]:
    pairs = enumerate(zip(losses, val_losses, strict=True), start=1)
    return [Epoch(n, loss, 0.5, val_loss, 0.5, 0.1, 0.0) for n, (loss, val_loss) in pairs]


def test_a_course_is_told_in_words() -> None:
    falling = [1 / n for n in range(1, 21)]
    rising = [1.0, 0.6, 0.5, *(0.5 + n / 40 for n in range(1, 18))]
    told = course_in_words(curve(falling, rising), 3)
    assert told == (
        "val_loss was best in epoch 3, whose weights are kept; it overfits: after epoch 3 the validation loss rises "
        "from 0.5 to 0.925, while the training loss falls"
    )
    assert course_in_words(curve(falling, falling), 20) == "the validation loss still falls: more epochs may be better"
    assert "hardly learned" in course_in_words(curve([1.0] * 20, [1.0] * 20), 20)
    flat = [1.0, 0.5, 0.4, *([0.39] * 17)]
    assert course_in_words(curve(falling, flat), 20) == ""
    assert course_in_words(curve([1, 0.5], [1, 2]), 2) == ""
    nothing = [float("nan")] * 20
    assert course_in_words(curve(falling, nothing), 20) == ""


def test_nothing_measured_ends_nothing_and_the_last_is_chosen() -> None:
    course, trainer = trained(Plan(patience=2), [math.nan] * 8)
    assert (len(trainer.history), course.best_epoch, course.chosen(99)) == (8, 0, 99)
    course, _ = trained(Plan(restore_best=False), [3, 2, 1, 2, 3, 4, 5, 6])
    assert (course.best_epoch, course.chosen(99)) == (3, 99)


def test_stopped_it_saves_and_says_so_wherever_that_is() -> None:
    for stop_at in range(1, 40):
        looks, saved = count(1), []
        trainer = Scripted(Plan(epochs=3), [3.0, 2.0, 1.0], parts=4)
        told: list[int] = []
        course: Course[int] = Course(
            trainer.plan,
            on_epoch=lambda history, told=told: told.append(len(history)),
            stopped=lambda looks=looks, stop_at=stop_at: next(looks) >= stop_at,
            save=lambda saved=saved, trainer=trainer: saved.append((len(trainer.history), trainer.part)),
        )
        try:
            course.run(trainer)
        except KeyboardInterrupt:
            if stop_at == 1:
                assert (saved, trainer.done) == ([], [])
                continue
            assert saved == [(len(trainer.history), trainer.part)]
            assert told == list(range(1, len(trainer.history) + 1))
        else:
            assert stop_at > 1 + 3 * 5  # before the first epoch, after each part, after each epoch
            assert saved == []


def test_it_takes_the_furthest_of_what_lies_on_its_way() -> None:
    """From where any rules end: going on ends as an undisturbed training does, or is refused."""
    losses = [5.0, 4, 6, 7, 3, 8, 9, 10]
    plans = [
        Plan(epochs, patience, val_every=val_every)
        for epochs, patience, val_every in product((3, 5, 8), (0, 1, 2, 3), (1, 2))
    ]
    taken = 0
    for theirs, mine in product(plans, plans):
        if theirs.val_every != mine.val_every:  # it is part of what names a training
            continue
        _, whole = trained(mine, losses)
        course, other = trained(theirs, losses)
        going: Course[int] = Course(mine)
        state = going.go_on([Earlier("other", other.history, list(other.history), course.best)])
        trainer = Scripted(mine, losses, history=state or [])
        going.run(trainer)
        assert np.array_equal(
            [e.val_loss for e in trainer.history], [e.val_loss for e in whole.history], equal_nan=True
        )
        taken += state is not None
        assert going.resumed_at == (len(other.history) if state is not None else 0)
        if state is None:  # only where it had to
            assert [e.val_loss for e in other.history] != pytest.approx(
                [e.val_loss for e in whole.history][: len(other.history)], nan_ok=True
            )
    assert taken > 50


def test_part_of_an_epoch_counts_only_where_that_epoch_comes() -> None:
    history = [Epoch(n, 1.0, 0.5, float(n), 0.5, 0.1, 0.0) for n in (1, 2, 3)]
    for plan, comes in ((Plan(4), True), (Plan(3), False), (Plan(8, patience=2), False), (Plan(8, patience=3), True)):
        course: Course[int] = Course(plan)
        found = course.go_on([Earlier("a", history[:1], "first", 1), Earlier("b", history, "third", 1, parts=2)])
        assert (found, course.resumed_from) == (("third", "b") if comes else ("first", "a"))


def test_checkpoints_are_seldom_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock, written = checkpoint.Clock(), []
    for _ in range(400):
        if clock.is_due():
            written.append(now)
            with clock.writing():
                now += 1.0 if len(written) < 4 else 0.0
        now += 1
    assert written[:4] == [105.0, 136.0, 167.0, 198.0]  # a second each: thirty seconds between them
    assert np.diff(written[4:]).tolist() == [5.0] * (len(written) - 5)
