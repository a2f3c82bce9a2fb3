"""A map of features: each image a point, those with like features close to each other."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import FeatcacheError, RunError
from featcache.core.project import Project
from featcache.reporting.judging import Judgement
from featcache.reporting.records import RunRecord
from featcache.store import Cache, open_cache
from featcache.training import pooled_rows_of

MOST_POINTS = 300
_LEAST_POINTS = 5


@dataclass(frozen=True)
class FeatureMap:
    """rows : image_id, path, label, split, predicted of each point; places : {method: (rows, 2)}."""

    rows: pd.DataFrame
    places: dict[str, NDArray[np.float64]]
    of: int

    @property
    def is_sample(self) -> bool:
        """Whether there are more images than points."""
        return self.of > len(self.rows)


def feature_map(record: RunRecord, judgement: Judgement, *, project: Project) -> FeatureMap:
    """Plain views of a head's cache in two dimensions: test images first, then others, drawn evenly.

    Raises RunError where the cache is not there, or cannot be read.
    """
    name = record.config.cache_name or ""
    try:
        if not name or Path(name).name != name:
            raise RunError("no cache is named")
        cache = open_cache(project.cache_folder / name)
        rows = judgement.rows
        if cache.manifest.digest != record.config.cache or judgement.of_rows != len(cache.features):
            raise RunError(f"{name}: is not the cache that the run was trained on")
        plain = np.flatnonzero(((rows["view"] == 0) & (rows["label"] != "")).to_numpy())
        chosen = _chosen(rows, plain)
        features = _features(cache, rows.index.to_numpy()[chosen])
    except FeatcacheError as error:
        raise RunError(f"the map of its features is left out: {error}") from error
    if len(chosen) < _LEAST_POINTS:
        raise RunError("the map of its features is left out: too few images")
    shown = rows.iloc[chosen].reset_index(drop=True)
    return FeatureMap(shown, _places(features), of=len(plain))


def _chosen(rows: pd.DataFrame, plain: NDArray[np.intp]) -> NDArray[np.intp]:
    is_test = (rows["split"].to_numpy()[plain] == "test").astype(bool)
    test, rest = plain[is_test], plain[~is_test]
    test = test[:: -(-len(test) // MOST_POINTS) or 1]
    room = MOST_POINTS - len(test)
    places = np.unique(np.linspace(0, len(rest), min(room, len(rest)), endpoint=False).astype(np.intp))
    return np.sort(np.concatenate([test, rest[places]]))


def _features(cache: Cache, numbers: NDArray[np.intp]) -> NDArray[np.float64]:
    found = pooled_rows_of(cache)(numbers).astype(np.float64)
    if not np.isfinite(found).all():
        raise RunError(f"{cache.name}: its features hold what is no number")
    return found


def _places(features: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    centred = features - features.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = {"PCA": np.asarray(left[:, :2] * sizes[:2])}
    with warnings.catch_warnings(), suppress(ImportError):
        warnings.simplefilter("ignore")
        # umap would import TensorFlow for a part of it that is not used here.
        sys.modules.setdefault("umap.parametric_umap", None)  # type: ignore[arg-type]
        from umap import UMAP

        found["UMAP"] = np.asarray(UMAP(random_state=0, n_jobs=1).fit_transform(features), np.float64)
    return found
