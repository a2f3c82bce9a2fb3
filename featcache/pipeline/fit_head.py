"""fit-head: train a head on a cache and write its run; report: every run on one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featcache import metrics as measures
from featcache import runs
from featcache.dataset.manifest import SPLITS, read_dataset
from featcache.errors import CacheError, HeadError, RunError, UsageError
from featcache.heads import checkpoint
from featcache.heads.config import HeadConfig, Solver
from featcache.heads.history import Epoch
from featcache.heads.kernel import features_digest
from featcache.heads.train import Choice, Material, Trained, plan_head, train_head
from featcache.pipeline.progress import Stopping, Track, never, silent
from featcache.project import Project, refuse_unwritable
from featcache.recipe import digest
from featcache.report import figures, page
from featcache.store.cache import Array, Cache

_LIVE_S = 5.0


@dataclass(frozen=True)
class Fitted:
    """What `fit_head` did: the run, whether it was there already, and after which epoch training went on."""

    run: runs.Run
    cache: str
    reused: bool
    resumed_at: int = 0


def fit_head(
    cache: Cache,
    results: Path,
    config: HeadConfig,
    solver: Solver | Choice = "auto",
    again: bool = False,
    more_epochs: int = 0,
    track: Track = silent,
    on_epoch: Callable[[Sequence[Epoch]], object] = lambda _: None,
    stopping: Stopping = never,
    material: Material | None = None,
) -> Fitted:
    """Train a head on a cache and write its run. A run that is there already is not trained again.

    An interrupted training goes on where its last checkpoint stands, a longer one where a shorter run of the same
    settings ended: to the last bit the same head as without the interruption.

    again : train from the first epoch even so, and put the new run in the old one's place
    more_epochs : as many epochs more than the longest finished run of these settings has
    stopping : the context of training; when it says so, the state is saved after an epoch and KeyboardInterrupt raised
    material : shared by several heads on one cache

    Raises HeadError for what cannot be trained and for a training that diverges, CacheError for a damaged
    cache, RunError where the run cannot be written.
    """
    if more_epochs and solver == "auto" and not config.gram_refuses:
        solver = "gram"  # the one with states to go on from
    choice = plan_head(cache, config, solver)
    refuse_missing_classes(cache)
    course = _course(cache, config, choice.solver)
    if more_epochs:
        config = replace(config, epochs=_longest(results, course, cache, config) + more_epochs)
    identity = _identity(cache, config, choice.solver)
    name = runs.run_name("head", cache.recipe.space.backbone, identity)
    if runs.is_finished(results / name) and not again:
        return Fitted(readable(runs.Run(results / name)), cache.name, reused=True)
    refuse_unwritable(results)
    started = time.perf_counter()
    earlier = [] if again else sorted(results.glob(f"*/{runs.STATE_FILE}"))
    with runs.training(results, name, {**identity, "cache_name": cache.name}, anew=again) as folder:
        if runs.is_finished(results / name) and not again:  # by another process, just now
            return Fitted(readable(runs.Run(results / name)), cache.name, reused=True)
        live = _Live(folder)
        with explaining_damage(cache), stopping() as stopped:
            material = material or Material(cache, track)
            with track(f"training {name}", config.epochs) as advance:

                def one_epoch(history: Sequence[Epoch]) -> None:
                    advance(len(history) - live.told)
                    live.tell(history)
                    on_epoch(history)

                state = folder / runs.STATE_FILE
                trained = train_head(cache, config, choice, one_epoch, material, state, earlier, course, stopped)
            probabilities = trained.head.probabilities(cache)
        run = _write(cache, results, name, {**identity, "course": course}, config, trained, probabilities, started)
    return Fitted(run, cache.name, reused=False, resumed_at=trained.resumed_at)


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


def _longest(results: Path, course: str, cache: Cache, config: HeadConfig) -> int:
    """Epochs of the longest finished run of a course that can be gone on from."""
    if config.schedule == "cosine":
        raise HeadError("a cosine schedule ends with its last epoch: give --epochs, leave out --more-epochs")
    epochs = []
    for run in runs.list_runs(results):
        with suppress(RunError, KeyError, TypeError, ValueError):  # a damaged run is none to go on from
            if run.config.get("course") == course and (run.folder / runs.STATE_FILE).is_file():
                epochs.append(int(run.metrics["epochs"]))
    if not epochs:
        raise HeadError(f"{cache.name}: no finished run of these settings to add epochs to: leave out --more-epochs")
    return max(epochs)


class _Live:
    """history.csv and curves.png of a training under way, brought up to date every few seconds."""

    def __init__(self, folder: Path) -> None:
        self.told = 0
        self._folder = folder
        self._last = time.monotonic()

    def tell(self, history: Sequence[Epoch]) -> None:
        """Note an epoch."""
        self.told = len(history)
        if time.monotonic() - self._last >= _LIVE_S:
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
) -> runs.Run:
    splits = measure(cache, probabilities)
    epoch_seconds = [entry.seconds for entry in trained.history]
    with runs.new_run(results, name) as folder:
        trained.head.save(folder)
        if trained.state is not None:
            checkpoint.save(folder / runs.STATE_FILE, trained.state, trained.best, identity["course"])
        runs.write_predictions(folder, cache.rows, probabilities, cache.classes)
        write_figures(folder, name, trained.history, splits["test"], cache.classes)
        timing = {
            "epochs": len(trained.history),
            "epoch_of_head": trained.epoch,
            "seconds": round(time.perf_counter() - started, 3),
            "s_per_epoch": sum(epoch_seconds) / len(epoch_seconds),
        }
        runs.write_run(
            folder, {**identity, **described(cache, trained.choice.why)}, {**timing, **splits}, trained.history
        )
    return runs.Run(results / name)


def described(cache: Cache, why: str) -> dict[str, Any]:
    """What config.json says besides, for people and reports."""
    return {
        "backbone": cache.recipe.space.backbone,
        "cache_name": cache.name,
        "weights": cache.manifest.provenance.get("weights", ""),
        "recipe": cache.recipe.to_dict(),
        "classes": list(cache.classes),
        "why": why,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_figures(
    folder: Path, name: str, history: Sequence[Epoch], test: dict[str, Any], classes: Sequence[str]
) -> None:
    """Draw the curves and the confusion of a run."""
    figures.write_curves(pd.DataFrame(history), folder / figures.CURVES_FILE, title=name)
    figures.write_confusion(test["confusion"], classes, folder / figures.CONFUSION_FILE)


def refuse_missing_classes(cache: Cache) -> None:
    """A class that a split has no row of can be learned, watched or tested by nobody."""
    labels = set(cache.classes)
    for split in SPLITS:
        if missing := labels - set(cache.rows["label"][cache.rows["split"] == split]):
            raise HeadError(
                f"{cache.name}: the split {split!r} has no rows of {', '.join(sorted(missing))}: change dataset.csv "
                "or run 'featcache init --resplit', then 'featcache extract' again"
            )


def readable(run: runs.Run) -> runs.Run:
    """A run whose files can be read; a damaged one can be trained again."""
    try:
        if not (set(SPLITS) <= set(run.metrics) and {"solver", "why", "classes"} <= set(run.config)):
            raise RunError(f"{run.folder}: config.json or metrics.json is not whole")
    except RunError as error:
        raise RunError(f"{error}; --again trains this run anew") from error
    return run


@contextmanager
def explaining_damage(cache: Cache) -> Iterator[None]:
    """Say what to do about features that cannot be read."""
    try:
        yield
    except CacheError as error:
        raise CacheError(f"{error}. Remove {cache.folder} and run its 'featcache extract' again") from error


def measure(cache: Cache, probabilities: np.ndarray[Any, Any]) -> dict[str, dict[str, Any]]:
    groups = cache.rows["group"].to_numpy()
    return {
        split: measures.evaluate(probabilities[numbers], cache.labels(split), cache.classes, groups[numbers])
        for split, numbers in ((split, cache.numbers(split)) for split in SPLITS)
    }


def refuse_stale(project: Project, cache: Cache) -> None:
    """Raise UsageError if dataset.csv says other labels, splits or groups than the cache's copy of it."""
    listed = {image.image_id: image for image in read_dataset(project.dataset_file, project.images_folder).images}
    copied = cache.dataset[["image_id", "label", "split", "group", "path"]].astype(str)
    changed = [
        path
        for image_id, label, split, group, path in copied.itertuples(index=False, name=None)
        if (image := listed.get(image_id)) is not None
        and (image.label, image.split, image.group or group) != (label, split, group)
    ]
    if changed:
        raise UsageError(
            f"{project.dataset_file.name} gives {len(changed)} images of {cache.name} another label, split or group "
            f"({changed[0]} for one): run 'featcache extract --model {cache.recipe.space.backbone}' again, as before; "
            "it computes only what is new"
        )


def report(results: Path, out: Path | None = None) -> tuple[Path, Path, list[runs.Run]]:
    """Write report.md and report.html over every run in `results`; their paths and the runs.

    Raises RunError where there is no run.
    """
    finished = runs.list_runs(results)
    markdown, html = page.write_report(finished, out or results)
    return markdown, html, finished
