"""Temperature scaling: probabilities made as sure as they are right (Guo et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.floating[Any]]

_LEAST = 1e-7
"""Below it a probability is taken for this one: nearest neighbours say 0."""
_MOST = 20.0


def at_temperature(probabilities: Array, temperature: float) -> Array:
    """softmax(log p / temperature) of each row (n, classes), float64: above 1 less sure, below 1 more."""
    logits = np.log(np.maximum(probabilities, _LEAST, dtype=np.float64)) / temperature
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def fit_temperature(probabilities: Array, y: NDArray[np.int64], *, weights: Array) -> float:
    """The temperature of the least cross-entropy, between 1/20 and 20.

    probabilities : (n, classes)
    y : (n,), class numbers
    weights : (n,), how much each row counts
    """

    def loss(log_temperature: float) -> float:
        found = at_temperature(probabilities, float(np.exp(log_temperature)))
        return -float(weights @ np.log(np.maximum(found[np.arange(len(y)), y], _LEAST)))

    bound = float(np.log(_MOST))
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))
