"""fit-head: train a head on a cache and write its run; report: every run on one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featcache import metrics as measures
from featcache import runs
from featcache.dataset.manifest import SPLITS, read_dataset
from featcache.errors import CacheError, HeadError, RunError, UsageError
from featcache.heads.config import HeadConfig, Solver
from featcache.heads.history import Epoch
from featcache.heads.train import plan_head, train_head
from featcache.pipeline.progress import Track, silent
from featcache.project import Project, refuse_unwritable
from featcache.report import figures, page
from featcache.store.cache import Cache


@dataclass(frozen=True)
class Fitted:
    """What `fit_head` did: the run, and whether it was there already."""

    run: runs.Run
    cache: str
    reused: bool


def fit_head(
    cache: Cache,
    results: Path,
    config: HeadConfig,
    solver: Solver = "auto",
    again: bool = False,
    track: Track = silent,
    on_epoch: Callable[[Epoch], object] = lambda _: None,
) -> Fitted:
    """Train a head on a cache and write its run. A run that is there already is not trained again.

    again : train even so, and put the new run in the old one's place

    Raises HeadError for what cannot be trained and for a training that diverges, CacheError for a damaged
    cache, RunError where the run cannot be written.
    """
    choice = plan_head(cache, config, solver)
    _refuse_missing_classes(cache)
    identity = {
        "kind": "head",
        "cache": cache.manifest.digest,
        "dataset": cache.manifest.dataset_digest,
        "head": config.to_dict(),
        "solver": choice.solver,
    }
    backbone = cache.recipe.space.backbone
    name = runs.run_name("head", backbone, identity)
    if runs.is_finished(results / name) and not again:
        return Fitted(_readable(runs.Run(results / name)), cache.name, reused=True)
    refuse_unwritable(results)
    started = time.perf_counter()
    with track(f"training {name}", config.epochs) as advance:

        def one_epoch(entry: Epoch) -> None:
            advance(1)
            on_epoch(entry)

        with _explaining_damage(cache):
            trained = train_head(cache, config, choice.solver, one_epoch)
            probabilities = trained.head.probabilities(cache.features, cache.numbers())
    splits = _measure(cache, probabilities)
    seconds = time.perf_counter() - started
    epoch_seconds = [entry.seconds for entry in trained.history]
    with runs.new_run(results, name) as folder:
        trained.head.save(folder)
        runs.write_predictions(folder, cache.rows, probabilities, cache.classes)
        figures.write_curves(pd.DataFrame(trained.history), folder / figures.CURVES_FILE, title=name)
        figures.write_confusion(splits["test"]["confusion"], cache.classes, folder / figures.CONFUSION_FILE)
        described = {
            "backbone": backbone,
            "cache_name": cache.name,
            "weights": cache.manifest.provenance.get("weights", ""),
            "recipe": cache.recipe.to_dict(),
            "classes": list(cache.classes),
            "why": choice.why,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        timing = {
            "epochs": len(trained.history),
            "seconds": round(seconds, 3),
            "s_per_epoch": sum(epoch_seconds) / len(epoch_seconds),
        }
        runs.write_run(folder, {**identity, **described}, {**timing, **splits}, trained.history)
    return Fitted(runs.Run(results / name), cache.name, reused=False)


def _refuse_missing_classes(cache: Cache) -> None:
    """A class that a split has no row of can be learned, watched or tested by nobody."""
    labels = set(cache.classes)
    for split in SPLITS:
        if missing := labels - set(cache.rows["label"][cache.rows["split"] == split]):
            raise HeadError(
                f"{cache.name}: the split {split!r} has no rows of {', '.join(sorted(missing))}: change dataset.csv "
                "or run 'featcache init --resplit', then 'featcache extract' again"
            )


def _readable(run: runs.Run) -> runs.Run:
    """A run whose files can be read; a damaged one can be trained again."""
    try:
        if not (set(SPLITS) <= set(run.metrics) and {"solver", "why", "classes"} <= set(run.config)):
            raise RunError(f"{run.folder}: config.json or metrics.json is not whole")
    except RunError as error:
        raise RunError(f"{error}; --again trains this run anew") from error
    return run


@contextmanager
def _explaining_damage(cache: Cache) -> Iterator[None]:
    """Say what to do about features that cannot be read."""
    try:
        yield
    except CacheError as error:
        raise CacheError(f"{error}. Remove {cache.folder} and run its 'featcache extract' again") from error


def _measure(cache: Cache, probabilities: np.ndarray[Any, Any]) -> dict[str, dict[str, Any]]:
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
