"""Classifiers of scikit-learn on the Gram matrices of a cache, for comparison."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.progress import SILENT, Progress
from featcache.core.project import refuse_unwritable
from featcache.datasets import SPLITS
from featcache.heads import classical
from featcache.heads.config import HeadConfig
from featcache.heads.head import Array
from featcache.heads.kernel import kernel
from featcache.heads.train import plan_head
from featcache.reporting import draw
from featcache.store import Cache
from featcache.training import (
    Epoch,
    Fitted,
    described,
    explaining_damage,
    measured,
    refuse_unfair_splits,
    runs,
    there_already,
    write_results,
)


def fit_classical(
    cache: Cache, results: Path, *, kind: str, seed: int = 0, again: bool = False, progress: Progress = SILENT
) -> Fitted:
    """Fit one of `featcache.heads.classical.KINDS` to the train rows and write its run; features are never held.

    Raises HeadError for an unknown kind and for what cannot be trained, RunError where the run cannot be written.
    """
    plan_head(cache, HeadConfig(batch=1), solver="gram")
    refuse_unfair_splits(cache)
    identity: dict[str, Any] = {
        "kind": "head",
        "cache": cache.manifest.digest,
        "dataset": cache.manifest.dataset_digest,
        "head": {"kind": kind, "seed": seed},
        "solver": "scikit-learn",
    }
    name = runs.run_name(kind, cache.recipe.space.backbone, identity=identity)
    if runs.is_finished(results / name) and not again:
        return there_already(results / name, cache)
    refuse_unwritable(results)
    started = time.perf_counter()
    with explaining_damage(cache):
        probabilities = _probabilities(cache, kind, seed, progress)
    splits = measured(cache, probabilities)
    seconds, train, val = time.perf_counter() - started, splits["train"], splits["val"]
    only = Epoch(
        epoch=1,
        loss=train["loss"],
        accuracy=train["accuracy"],
        val_loss=val["loss"],
        val_accuracy=val["accuracy"],
        lr=0.0,
        seconds=seconds,
    )
    with runs.new_run(results, name) as folder:
        write_results(
            folder,
            cache,
            config={**identity, **described(cache, "by scikit-learn, on the Gram matrix")},
            probabilities=probabilities,
            splits=splits,
            history=[only],
            started=started,
        )
    return Fitted(draw(runs.Run(results / name), with_curves=False), cache.name, reused=False)


def _probabilities(cache: Cache, kind: str, seed: int, progress: Progress) -> Array:
    """Of every row of the cache, (n, classes)."""
    numbers = {split: cache.numbers(split) for split in SPLITS}
    train = numbers["train"]
    with progress.begin(f"Gram matrices of {cache.name}", len(cache.features)) as advance:
        products = {
            split: kernel(cache, rows, right=train, dtype="float32", on_rows=advance) for split, rows in numbers.items()
        }
    model = classical.fit_classical(
        kind, products["train"], y=cache.labels("train"), seed=seed, n_classes=len(cache.classes)
    )
    probabilities = np.zeros((len(cache.features), len(cache.classes)))
    for split, rows in numbers.items():
        norms = classical.squared_norms(cache.features, rows) if model.needs_norms else None
        probabilities[rows] = model.probabilities(products[split], norms)
    return probabilities
