"""Logistic regressions on rows of a cache and rows that are in no cache, from one Gram matrix of both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from featcache.core.progress import Progress
from featcache.heads import products
from featcache.heads.classical import fit_classical
from featcache.heads.head import Head
from featcache.heads.kernel import kernel
from featcache.store import Cache

Array = NDArray[np.floating[Any]]
Numbers = NDArray[np.intp]


class JointRegression:
    """Logistic regressions on old and new rows. Rows are numbered: first those of the cache, then the new ones.

    old : row numbers in the cache
    new : (n, D), float32, flattened features
    """

    def __init__(self, cache: Cache, old: Numbers, *, new: Array, progress: Progress) -> None:
        self._cache, self._old, self._new = cache, old, new
        with progress.begin(f"Gram matrix of {cache.name}", len(old)) as advance:
            of_old = kernel(cache, old, right=old, dtype="float32", on_rows=advance)
        n = len(old)
        self._K = np.empty((n + len(new), n + len(new)), np.float32)
        self._K[:n, :n] = of_old
        for place, block in products.blocks(cache.features, old, dtype=np.float32):
            self._K[n:, place] = new @ block.T
        self._K[:n, n:] = self._K[n:, :n].T
        self._K[n:, n:] = new @ new.T

    def products(self, left: Numbers, right: Numbers) -> Array:
        """Inner products of rows: (n_left, n_right)."""
        return np.asarray(self._K[np.ix_(left, right)])

    def fit(self, rows: Numbers, y: NDArray[np.int64], *, weights: Array) -> Head:
        """A head on products with `rows`, whose classes are y (n,); weights (n,) count as they are."""
        K = self.products(rows, rows)
        return cast(Head, fit_classical("logreg", K, y=y, balanced=False, sample_weight=weights))

    def on_features(self, model: Head, rows: Numbers) -> Head:
        """The same head on features as the cache has them."""
        n = len(self._old)
        ((A, b),) = model.layers
        of_old, of_new = rows < n, rows >= n
        W = products.transposed_times(self._cache.features, self._old[rows[of_old]], A=A[of_old])
        W += self._new[rows[of_new] - n].T @ A[of_new]
        layers = [(W.astype(np.float32), b.astype(np.float32))]
        space = self._cache.recipe.space.digest
        return replace(
            model, row_shape=self._cache.features.shape[1:], layers=layers, classes=self._cache.classes, space=space
        )
