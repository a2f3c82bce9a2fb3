"""How unlike the training images an image is, by its features.

A Gaussian around the training rows: 20 directions with their own variance, the rest with one (probabilistic principal
component analysis, Tipping & Bishop 1999). Rows are averaged over places and have length one.
docs/explanation/design.md says what it was measured against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

_DIRECTIONS = 20
_LEAST_VARIANCE = 1e-9
_LEAST_ROWS = 2
_SPARE, _ITERATIONS = 10, 8
_ENGINES = 1e-4


@dataclass(frozen=True)
class Likeness:
    """The Gaussian.

    mean : (c,)
    directions : (k, c), of length one
    variances : (k,), along them
    rest : variance along every other direction
    """

    mean: Array
    directions: Array
    variances: Array
    rest: float

    @classmethod
    def of(cls, features: Array) -> Self | None:
        """The one of pooled features (n, c); None of fewer than two rows."""
        n_rows, width = features.shape
        if n_rows < _LEAST_ROWS:
            return None
        rows = _of_length_one(features)
        mean = rows.mean(axis=0)
        centred = rows - mean
        k = min(_DIRECTIONS, n_rows - 1, width)
        lengths, directions = _longest(centred, k)
        variances = lengths**2 / (n_rows - 1)
        beside = float((centred**2).sum()) / (n_rows - 1) - float(variances.sum())
        rest = max(beside / (width - k) if width > k else float(variances.min()), _LEAST_VARIANCE)
        return cls(mean, directions, np.maximum(variances, rest), rest)

    def distances(self, features: Array) -> Array:
        """Mahalanobis distance of each row of pooled features (n, c): (n,), float64."""
        centred = _of_length_one(features) - self.mean
        along = centred @ self.directions.T
        beside = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return np.asarray(np.sqrt((along**2 / self.variances).sum(axis=1) + beside / self.rest))

    @property
    def rounding(self) -> float:
        """How far engines may put the same image apart: what a change of `_ENGINES` in a row of length one can do."""
        return float(_ENGINES / np.sqrt(self.rest))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For an .npz file."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `to_arrays`. Raises ValueError or LookupError for arrays that make none."""
        made = cls(arrays["mean"], arrays["directions"], arrays["variances"], float(arrays["rest"]))
        width, k = made.mean.shape[0], len(made.variances)
        if made.directions.shape != (k, width) or made.mean.shape != (width,) or made.variances.shape != (k,):
            raise ValueError("the arrays of its likeness do not fit each other")
        values = (made.mean, made.directions, made.variances, np.array(made.rest))
        if any(array.dtype != np.float64 or not np.isfinite(array).all() for array in values):
            raise ValueError("its likeness holds values that are no finite float64")
        if made.rest <= 0 or (made.variances <= 0).any():
            raise ValueError("its likeness has a variance that is not positive")
        return made


def pooled(features: NDArray[Any]) -> Array:
    """Features (n, ..., c) averaged over places: (n, c), float64."""
    return np.asarray(features.reshape(len(features), -1, features.shape[-1]).mean(axis=1, dtype=np.float64))


def _longest(rows: Array, k: int) -> tuple[Array, Array]:
    """The k largest singular values of rows (n, c), and their directions (k, c).

    By subspace iteration from random directions, always the same (Halko, Martinsson & Tropp 2011, algorithm 4.4). That
    of scikit-learn is the same, and takes longer to import than to run.
    """
    found = np.random.default_rng(0).standard_normal((rows.shape[1], min(k + _SPARE, *rows.shape)))
    for _ in range(_ITERATIONS):
        found, _ = np.linalg.qr(rows.T @ (rows @ found))
    _, lengths, turned = np.linalg.svd(rows @ found, full_matrices=False)
    return lengths[:k], (turned @ found.T)[:k]


def _of_length_one(features: Array) -> Array:
    features = features.astype(np.float64)
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _LEAST_VARIANCE))
