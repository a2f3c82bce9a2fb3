"""fit-head: train a head on a cache and write its run; report: every run on one page."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featcache.core.errors import CacheError, HeadError, RunError
from featcache.core.machine import usable_cores
from featcache.core.progress import SILENT, Progress
from featcache.core.project import refuse_unwritable
from featcache.core.recipe import digest
from featcache.datasets import SPLITS
from featcache.heads import checkpoint
from featcache.heads.config import HeadConfig, Solver
from featcache.heads.cost import Choice, Expected, expect
from featcache.heads.head import Array
from featcache.heads.kernel import features_digest
from featcache.heads.train import SharedInputs, Trained, plan_head, train_head
from featcache.reporting import figures
from featcache.store import Cache
from featcache.training import Epoch, metrics as measures, runs, tensorboard as events

_LIVE_S = 5.0


@dataclass(frozen=True)
class Fitted:
    """What `fit_head` did: the run, whether it was there already, and after which epoch of which run it went on."""

    run: runs.Run
    cache: str
    reused: bool
    resumed_at: int = 0
    resumed_from: str = ""
    expected: Expected | None = None


def fit_head(
    cache: Cache,
    results: Path,
    *,
    config: HeadConfig,
    solver: Solver | Choice = "auto",
    again: bool = False,
    more_epochs: int = 0,
    progress: Progress = SILENT,
    material: SharedInputs | None = None,
    announced: str | None = None,
    tensorboard: bool = False,
) -> Fitted:
    """Train a head on a cache and write its run. A run that is there already is not trained again.

    An interrupted training goes on where its last checkpoint stands, a longer one where a shorter run of the same
    settings ended: to the last bit the same head as without the interruption.

    again : train from the first epoch even so, and put the new run in the old one's place
    more_epochs : as many epochs more than the longest finished run of these settings has
    progress : asked to stop, the state is saved after an epoch and KeyboardInterrupt raised; what comes before the
        epochs is ended at once
    material : shared by several heads on one cache
    announced : note what the training is expected to take, behind these words; None: do not find out
    tensorboard : write a TensorBoard log besides, into the folder of the training and then of the run

    Raises HeadError for what cannot be trained and for a training that diverges, CacheError for a damaged
    cache, RunError where the run cannot be written, UsageError where a log is asked for and cannot be written.
    """
    if tensorboard:
        events.refuse_missing()
    config, choice = planned(cache, results, config=config, solver=solver, more_epochs=more_epochs)
    course = _course(cache, config, choice.solver)
    identity = _identity(cache, config, choice.solver)
    name = runs.run_name("head", cache.recipe.space.backbone, identity=identity)
    if runs.is_finished(results / name) and not again:
        return _there_already(cache, results / name, tensorboard)
    refuse_unwritable(results)
    started = time.perf_counter()
    earlier = [] if again else [made / runs.STATE_FILE for made in runs.own_states(results)]
    with runs.training(results, name, config={**identity, "cache_name": cache.name}, anew=again) as folder:
        if runs.is_finished(results / name) and not again:  # by another process, just now
            return _there_already(cache, results / name, tensorboard)
        with explaining_damage(cache), _Live(folder, tensorboard) as live:
            expected = expect(cache, config, choice=choice) if announced is not None else None
            if expected is not None:
                progress.note(f"{announced}{expected}")
            material = material or SharedInputs(cache, progress)
            material.prepare(config, choice.solver)
            with progress.stopping() as stopped:
                with progress.begin(f"training {name}", config.epochs) as advance:

                    def one_epoch(history: Sequence[Epoch]) -> None:
                        advance(len(history) - live.told)
                        live.tell(history)
                        progress.epochs(history)

                    state = folder / runs.STATE_FILE
                    trained = train_head(
                        cache,
                        config,
                        solver=choice,
                        on_epoch=one_epoch,
                        material=material,
                        saved=state,
                        earlier=earlier,
                        identity=course,
                        stopped=stopped,
                    )
                probabilities = trained.head.probabilities(cache)
        run = _write(
            cache, results, name, {**identity, "course": course}, config, trained, probabilities, started, tensorboard
        )
    return Fitted(run, cache.name, False, trained.resumed_at, trained.resumed_from, expected)


def planned(
    cache: Cache, results: Path, *, config: HeadConfig, solver: Solver | Choice = "auto", more_epochs: int = 0
) -> tuple[HeadConfig, Choice]:
    """The head with all its epochs, and the solver. Raises HeadError for what cannot be trained."""
    if more_epochs:
        plan_head(cache, config, solver=solver)
        config, solver = _longer(results, cache, config, solver, more_epochs)
    choice = plan_head(cache, config, solver=solver)
    refuse_unfair_splits(cache)
    return config, choice


def expected(
    cache: Cache, results: Path, *, config: HeadConfig, solver: Solver | Choice = "auto", more_epochs: int = 0
) -> Expected:
    """What `fit_head` with these arguments would take; nothing is trained."""
    config, choice = planned(cache, results, config=config, solver=solver, more_epochs=more_epochs)
    with explaining_damage(cache):
        return expect(cache, config, choice=choice)


def _there_already(cache: Cache, folder: Path, tensorboard: bool) -> Fitted:
    run = readable(runs.Run(folder))
    if tensorboard and not (folder / events.FOLDER).is_dir():
        try:
            events.write(folder, run.epochs)
        except OSError as error:
            raise RunError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return Fitted(run, cache.name, reused=True)


def _identity(cache: Cache, config: HeadConfig, solver: str) -> dict[str, Any]:
    """All that decides a run's result."""
    return {
        "kind": "head",
        "cache": cache.manifest.digest,
        "dataset": cache.manifest.dataset_digest,
        "head": config.to_dict(),
        "solver": solver,
    }


def _course(cache: Cache, config: HeadConfig, solver: str) -> str:
    """Digest of all that decides each epoch: a shorter training of the same course is the beginning of a longer one."""
    identity = _identity(cache, config, solver)
    free = {"patience"} if config.schedule == "cosine" else {"patience", "epochs"}
    identity["features"] = features_digest(cache)  # another engine's differ in the last bits
    return digest({**identity, "head": {name: value for name, value in identity["head"].items() if name not in free}})


def _longer(
    results: Path, cache: Cache, config: HeadConfig, solver: Solver | Choice, more_epochs: int
) -> tuple[HeadConfig, Solver | Choice]:
    """The head with so many epochs more than the longest finished run of its settings, and that run's solver."""
    if config.schedule == "cosine":
        raise HeadError("a cosine schedule ends with its last epoch", "Set `epochs` instead of `more_epochs`")
    if isinstance(solver, Choice):
        possible: Sequence[Solver] = [solver.solver]
    else:
        possible = ("gram", "primal") if solver == "auto" else [solver]
    courses = {_course(cache, config, one): one for one in possible}
    found: list[tuple[int, Solver]] = []
    for run in (runs.Run(folder) for folder in runs.own_states(results) if runs.is_finished(folder)):
        with suppress(RunError, KeyError, TypeError, ValueError):  # a damaged run is none to go on from
            if (course := run.config.get("course")) in courses:
                found.append((int(run.metrics["epochs"]), courses[course]))
    if not found:
        raise HeadError(
            f"{cache.name}: no finished run with these settings was trained here, so there is none to continue",
            "Leave out `more_epochs`",
        )
    epochs, by = max(found)
    return replace(config, epochs=epochs + more_epochs), solver if isinstance(solver, Choice) else by


class _Live:
    """What can be read of a training under way, brought up to date every few seconds.

    history.csv and curves.png; and a TensorBoard log where that is asked for.
    """

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self.told = 0
        self._folder = folder
        self._last = time.monotonic()
        self._log = events.EventLog(folder) if tensorboard else None

    def __enter__(self) -> _Live:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()

    def tell(self, history: Sequence[Epoch]) -> None:
        """Note an epoch."""
        self.told = len(history)
        due = time.monotonic() - self._last >= _LIVE_S
        if self._log is not None:
            self._log.tell(history, flush=due)
        if due:
            runs.write_history(self._folder, history)
            figures.write_curves(pd.DataFrame(history), self._folder / figures.CURVES_FILE, title=self._folder.stem)
            self._last = time.monotonic()


def _write(
    cache: Cache,
    results: Path,
    name: str,
    identity: dict[str, Any],
    config: HeadConfig,
    trained: Trained,
    probabilities: Array,
    started: float,
    tensorboard: bool,
) -> runs.Run:
    splits = measure(cache, probabilities)
    epoch_seconds = [entry.seconds for entry in trained.history]
    with runs.new_run(results, name) as folder:
        trained.head.save(folder)
        checkpoint.save(folder / runs.STATE_FILE, trained.state, best=trained.best, identity=identity["course"])
        runs.write_predictions(folder, cache.rows, probabilities=probabilities, classes=cache.classes)
        if tensorboard:
            events.write(folder, trained.history)
        timing = {
            "epochs": len(trained.history),
            "epoch_of_head": trained.epoch,
            "seconds": round(time.perf_counter() - started, 3),
            "s_per_epoch": sum(epoch_seconds) / len(epoch_seconds),
        }
        runs.write_run(
            folder,
            {**identity, **described(cache, trained.choice.why)},
            metrics={**timing, **splits},
            history=trained.history,
        )
    return draw(runs.Run(results / name))


def described(cache: Cache, why: str) -> dict[str, Any]:
    """What config.json says besides, for people and reports."""
    return {
        "backbone": cache.recipe.space.backbone,
        "cache_name": cache.name,
        "weights": cache.manifest.provenance.get("weights", ""),
        "recipe": cache.recipe.to_dict(),
        "classes": list(cache.classes),
        "why": why,
        "cores": usable_cores(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"relabelled_images": cache.relabelled_images} if cache.relabelled_images else {}),
    }


def draw(run: runs.Run, with_curves: bool = True) -> runs.Run:
    """Draw the curves and the confusion of a run that is written. `report` draws what is missing."""
    with suppress(OSError, MemoryError, RunError):  # no picture is worth a training
        if with_curves:
            figures.write_curves(run.history, run.folder / figures.CURVES_FILE, title=run.name)
        figures.write_confusion(
            run.metrics["test"]["confusion"], run.config["classes"], path=run.folder / figures.CONFUSION_FILE
        )
    return run


def refuse_unfair_splits(cache: Cache) -> None:
    """Refuse splits that no honest training can use: one without rows of a class, or with rows of another's group."""
    again = "Change dataset.csv, or run `featcache.init(resplit=True)` and extract this cache again"
    pairs = cache.rows.loc[cache.rows["split"] != "", ["group", "split"]].drop_duplicates()
    torn = pairs[pairs["group"].duplicated(keep=False)].sort_values(["group", "split"])
    if len(torn):
        group = torn["group"].iloc[0]
        splits = " and ".join(torn["split"][torn["group"] == group])
        raise HeadError(
            f"{cache.name}: {torn['group'].nunique()} groups stand in several splits ({group!r:.80} in {splits}): a "
            "group must stay on one side, or the test leaks into the training",
            again,
        )
    labels = set(cache.classes)
    for split in SPLITS:
        if missing := labels - set(cache.rows["label"][cache.rows["split"] == split]):
            raise HeadError(f"{cache.name}: the split {split!r} has no rows of {', '.join(sorted(missing))}", again)


def readable(run: runs.Run) -> runs.Run:
    """A run whose files can be read; a damaged one can be trained again."""
    try:
        if not (set(SPLITS) <= set(run.metrics) and {"solver", "why", "classes"} <= set(run.config)):
            raise RunError(f"{run.folder}: config.json or metrics.json is not whole")
    except RunError as error:
        raise RunError(error, "Set `again=True` to train it again") from error
    return run


@contextmanager
def explaining_damage(cache: Cache) -> Iterator[None]:
    """Say what to do about features that cannot be read."""
    try:
        yield
    except CacheError as error:
        raise CacheError(f"{error}. Remove {cache.folder} and run the extract command that made it again") from error


def measure(cache: Cache, probabilities: np.ndarray[Any, Any]) -> dict[str, dict[str, Any]]:
    groups = cache.rows["group"].to_numpy()
    return {
        split: measures.evaluate(
            probabilities[numbers], cache.labels(split), classes=cache.classes, groups=groups[numbers]
        )
        for split, numbers in ((split, cache.numbers(split)) for split in SPLITS)
    }
