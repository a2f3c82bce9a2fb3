"""Classifiers of scikit-learn on the Gram matrices of a cache, for comparison."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.progress import SILENT, Progress
from featcache.core.project import refuse_unwritable
from featcache.heads import classical, products
from featcache.heads.config import HeadConfig
from featcache.heads.distance_head import DistanceHead, TrainedHead, write_rows
from featcache.heads.head import Head
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
    pooled_rows_of,
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
    plan_head(cache, HeadConfig(batch=1, output="sigmoid" if cache.label_separator else "softmax"), solver="gram")
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
    with explaining_damage(cache), runs.new_run(results, name) as folder:
        head = _on_features(_fitted(cache, kind, seed, progress), cache, folder)
        head.save(folder)
        probabilities = head.probabilities(cache)
        splits = measured(cache, probabilities)
        write_results(
            folder,
            cache,
            config={**identity, **described(cache, "by scikit-learn, on the Gram matrix")},
            probabilities=probabilities,
            splits=splits,
            history=[Epoch.only(splits, time.perf_counter() - started)],
            started=started,
            pooled_rows=pooled_rows_of(cache),
        )
    return Fitted(draw(runs.Run(results / name), with_curves=False), cache.name, reused=False)


def _fitted(cache: Cache, kind: str, seed: int, progress: Progress) -> Head | classical.DistanceModel:
    """The model, of inner products with the train rows."""
    train = cache.numbers("train")
    with progress.begin(f"Gram matrix of {cache.name}", len(train)) as advance:
        K = kernel(cache, train, right=train, dtype="float32", on_rows=advance)
    return classical.fit_classical(kind, K, y=cache.labels("train"), seed=seed)


def _on_features(model: Head | classical.DistanceModel, cache: Cache, folder: Path) -> TrainedHead:
    """The model, of features as the cache has them. Rows that it needs are written into the folder of its run."""
    train, row_shape, space = cache.numbers("train"), cache.features.shape[1:], cache.recipe.space.digest
    if not isinstance(model, Head):
        rows = write_rows(folder, cache, numbers=train[model.rows])
        return DistanceHead(row_shape, rows, model.square, model.decide, cache.classes, space)
    (A, b), *rest = model.layers
    layers = [(products.transposed_times(cache.features, train, A=A), b), *rest]
    single = [(W.astype(np.float32), b.astype(np.float32)) for W, b in layers]
    return replace(model, row_shape=row_shape, layers=single, classes=cache.classes, space=space)
