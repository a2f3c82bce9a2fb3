"""Reliability: whether what is said with 80 % is right in 80 of 100 cases."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10
"""Of equal width, of confidence."""


def reliability(probabilities: NDArray[np.floating[Any]], y: NDArray[np.int64]) -> dict[str, Any]:
    """How the probability of the named class agrees with how often it is right.

    probabilities : (n, classes), rows that sum to one
    y : (n,), class numbers

    Returns
    -------
    dict
        rows, loss (mean cross-entropy, nats), brier (mean squared error of all probabilities, Brier 1950),
        calibration_error (expected calibration error over ten bins of equal width, Naeini et al. 2015), and
        bins [{rows, confidence, accuracy}], those without rows left out
    """
    named = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    right = named == y
    numbers = bin_of(confidence)
    bins = []
    for number in np.unique(numbers):
        inside = numbers == number
        shares = {"confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean())}
        bins.append({"rows": int(inside.sum()), **shares})
    true = np.maximum(probabilities[np.arange(len(y)), y], 1e-15)
    return {
        "rows": len(y),
        "loss": float(-np.log(true).mean()),
        "brier": float(((probabilities - np.eye(probabilities.shape[1])[y]) ** 2).sum(axis=1).mean()),
        "calibration_error": float(sum(b["rows"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(y)),
        "bins": bins,
    }


def bin_of(confidence: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """The number of the bin that each confidence (n,) falls into."""
    return np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
