"""How good predictions are: loss, accuracy, per class, confusion, and an interval that respects groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss

_RESAMPLES = 2000
_AT_ONCE = 50


def evaluate(
    probabilities: NDArray[np.floating[Any]],
    y: NDArray[np.int64],
    *,
    classes: Sequence[str],
    groups: NDArray[Any],
) -> dict[str, Any]:
    """Measures of one split.

    probabilities : (n, classes); y : (n,); groups : (n,), what was split as a whole

    Returns
    -------
    dict
        rows, groups, loss (mean cross-entropy, nats), accuracy, accuracy_interval (95 %), balanced_accuracy,
        majority (accuracy of always naming the most frequent class), per_class {label: accuracy, None where
        the split has no row of it}, confusion (rows: true, columns: predicted)
    """
    probabilities = probabilities.astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # float32 sums to one only nearly
    predicted = probabilities.argmax(axis=1)
    labels = list(range(len(classes)))
    confusion = confusion_matrix(y, predicted, labels=labels)
    support = confusion.sum(axis=1)
    present = support > 0
    return {
        "rows": len(y),
        "groups": len(np.unique(groups)),
        "loss": float(log_loss(y, probabilities, labels=labels)),
        "accuracy": float((predicted == y).mean()),
        "accuracy_interval": list(interval_over_groups(predicted == y, groups)),
        "balanced_accuracy": float(balanced_accuracy_score(y, predicted)) if present.all() else None,
        "majority": float(support.max() / len(y)),
        "per_class": {
            label: float(confusion[i, i] / support[i]) if present[i] else None for i, label in enumerate(classes)
        },
        "confusion": confusion.tolist(),
    }


def interval_over_groups(correct: NDArray[np.bool_], groups: NDArray[Any]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the accuracy, groups drawn with replacement (Efron 1979).

    Views of one original are no independent cases, so originals are drawn, not rows. The draws are
    seeded: the same predictions give the same interval.
    """
    _, inverse = np.unique(groups, return_inverse=True)
    size = np.bincount(inverse)
    right = np.bincount(inverse, weights=correct.astype(np.float64))
    generator = np.random.default_rng(0)
    accuracy = []
    for _ in range(0, _RESAMPLES, _AT_ONCE):  # all at once would take 48 kB a group
        draws = generator.integers(0, len(size), (_AT_ONCE, len(size)))
        accuracy.append(right[draws].sum(axis=1) / size[draws].sum(axis=1))
    low, high = np.percentile(np.concatenate(accuracy), [2.5, 97.5])
    return float(low), float(high)
