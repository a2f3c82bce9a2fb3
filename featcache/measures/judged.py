"""Measures as functions of how much each group counts: once for the value, as often as drawn for its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.doubt import BINS, bin_of

Array = NDArray[np.floating[Any]]

OVERALL = (
    *("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "kappa", "mcc", "roc_auc", "average_precision"),
    *("loss", "brier", "calibration_error"),
)
PER_CLASS = ("precision", "recall", "specificity", "f1", "roc_auc", "average_precision")
_LEAST = float(np.finfo(np.float64).eps)
_MOST_BLOCKS, _MOST_STEPS = 1000, 125
"""That draws tell apart: blocks of groups, and scores of a class."""


@dataclass(frozen=True)
class Values:
    """Measures under R weightings: overall (R,) and per_class (R, classes), NaN where undefined."""

    overall: dict[str, Array]
    per_class: dict[str, Array]

    @classmethod
    def of(cls, function: Callable[..., Array], *values: Values) -> Values:
        """What a function makes of the same measure of several."""

        def made(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
            return {name: function(*(part[name] for part in parts)) for name in parts[0]}

        return cls(made([each.overall for each in values]), made([each.per_class for each in values]))


class Judged:
    """Predictions of rows whose class is known.

    probabilities : (n, classes); y, groups : (n,)

    Groups stand in blocks, which are drawn as a whole: each in its own, but for many groups, of which each block takes
    some at random.
    """

    def __init__(self, probabilities: Array, y: NDArray[np.int64], *, groups: NDArray[Any]) -> None:
        exact = probabilities.astype(np.float64)
        self.probabilities = exact / exact.sum(axis=1, keepdims=True)  # float32 sums to one only nearly
        self.y, self.n_classes = y, probabilities.shape[1]
        names, self.group = np.unique(groups, return_inverse=True)
        self.n_groups, self.n_blocks = len(names), min(len(names), _MOST_BLOCKS)
        blocks = np.arange(self.n_groups) % self.n_blocks
        self._block = (blocks if self.n_groups == self.n_blocks else _shuffled(blocks))[self.group]
        self._named = self.probabilities.argmax(axis=1)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes): rows true, columns predicted."""
        pairs = np.bincount(self.y * self.n_classes + self._named, minlength=self.n_classes**2)
        return pairs.reshape(self.n_classes, self.n_classes)

    def by_group(self, label: int | None = None) -> Array:
        """In each group, rows of a class that are named so, rows of it, and rows named so: (3, groups).

        None: of all classes together
        """
        right = self._named == self.y
        true, named = (np.ones_like(right),) * 2 if label is None else (self.y == label, self._named == label)
        return np.stack([np.bincount(self.group, of, self.n_groups) for of in (right & true, true, named)])

    def values(self, weights: Array | None = None) -> Values:
        """Every measure, where each block counts `weights` (R, blocks); by default all of them once."""
        each = np.ones((1, self.n_blocks)) if weights is None else weights
        counts = np.moveaxis((each @ self._counts).reshape(len(each), 3, self.n_classes), 1, 0)
        overall, per_class = _of_counts(*counts)
        rows = counts[1].sum(axis=1)
        loss, brier = (each @ self._errors).T / rows
        gaps = (each @ self._gaps).reshape(len(each), BINS, 2)
        error = np.abs(gaps[..., 0] - gaps[..., 1]).sum(axis=1) / rows
        found = [self._under_curves(label, weights) for label in range(self.n_classes)]
        for name, of_classes in zip(("roc_auc", "average_precision"), zip(*found, strict=True), strict=True):
            per_class[name] = np.stack(of_classes, axis=1)
            overall[name] = _mean_of_known(per_class[name])
        return Values({**overall, "loss": loss, "brier": brier, "calibration_error": error}, per_class)

    @cached_property
    def _counts(self) -> Array:
        """(blocks, 3 classes): rows of each class that are named so, rows of it, and rows named so."""
        of_true, of_named = (self._block * self.n_classes + of for of in (self.y, self._named))
        length = self.n_blocks * self.n_classes
        right = np.bincount(of_true, self._named == self.y, length)
        counts = (right, np.bincount(of_true, minlength=length), np.bincount(of_named, minlength=length))
        return np.concatenate([count.reshape(self.n_blocks, -1) for count in counts], axis=1).astype(np.float64)

    @cached_property
    def _errors(self) -> Array:
        """(blocks, 2), sums of each row's cross-entropy and squared errors."""
        true = np.clip(self.probabilities[np.arange(len(self.y)), self.y], _LEAST, 1 - _LEAST)
        squared = (self.probabilities - np.eye(self.n_classes)[self.y]) ** 2
        return np.column_stack([self._summed(column) for column in (-np.log(true), squared.sum(axis=1))])

    @cached_property
    def _gaps(self) -> Array:
        """(blocks, 2 BINS), of each bin of confidence the sum of confidence, and of rows that are right."""
        confidence, right = self.probabilities.max(axis=1), self._named == self.y
        numbers = bin_of(confidence)
        sums = [self._summed((numbers == number) * column) for number in range(BINS) for column in (confidence, right)]
        return np.column_stack(sums)

    @cached_property
    def _steps(self) -> list[NDArray[np.intp]]:
        """Of each class, the rank of each row by falling score, (n,); rows of one score share it."""
        return [np.unique(-scores, return_inverse=True)[1] for scores in self.probabilities.T]

    def _under_curves(self, label: int, weights: Array | None) -> tuple[Array, Array]:
        """ROC AUC and average precision (R,) of a class against the rest."""
        steps, is_class = self._steps[label], self.y == label
        if weights is None:
            gained, lost = (np.bincount(steps, chosen).astype(np.float64)[None] for chosen in (is_class, ~is_class))
            return _under_curve(gained, lost)
        steps = steps * _MOST_STEPS // max(int(steps.max()) + 1, _MOST_STEPS)
        single = weights.astype(np.float32)
        return _under_curve(single @ self._table(steps, is_class), single @ self._table(steps, ~is_class))

    def _table(self, steps: NDArray[np.intp], chosen: NDArray[np.bool_]) -> Array:
        """How many of the chosen rows of each block have each step of the scores, (blocks, steps)."""
        length = int(steps.max()) + 1
        flat = np.bincount(self._block * length + steps, chosen, self.n_blocks * length)
        return flat.reshape(self.n_blocks, length).astype(np.float32)

    def _summed(self, column: NDArray[Any]) -> Array:
        return np.asarray(np.bincount(self._block, column, self.n_blocks), np.float64)


def _shuffled(numbers: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.random.default_rng(0).permutation(numbers)


def _under_curve(gained: Array, lost: Array) -> tuple[Array, Array]:
    """Areas (R,) under the ROC curve and under precision over recall, in steps of falling scores.

    gained, lost : (R, steps), how much of the class and of the rest has each score
    """
    true, everything = np.cumsum(gained, axis=1), np.cumsum(gained + lost, axis=1)
    n_true = true[:, -1]
    n_false = everything[:, -1] - n_true
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (lost * (true - gained / 2)).sum(axis=1) / (n_true * n_false)
        precision = np.where(everything > 0, true / everything, 0)
        return area, np.where(n_false > 0, (gained * precision).sum(axis=1) / n_true, np.nan)


def _of_counts(right: Array, true: Array, named: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Measures, overall and per class, of how many rows of each class are named so, are of it, and are named so.

    right, true, named : (R, classes). NaN where a measure is undefined
    """
    rows = true.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / true
        f1 = np.where(true > 0, 2 * right / (true + named), np.nan)
        negatives = rows[:, None] - true
        per_class = {
            "precision": right / named,
            "recall": recall,
            "specificity": (negatives - named + right) / negatives,
            "f1": f1,
        }
        agreed, by_chance = right.sum(axis=1), (true * named).sum(axis=1)
        spread = (rows**2 - (true**2).sum(axis=1)) * (rows**2 - (named**2).sum(axis=1))
        overall = {
            "accuracy": agreed / rows,
            "balanced_accuracy": _mean_of_known(recall),
            "macro_f1": _mean_of_known(f1),
            "weighted_f1": np.nansum(f1 * true, axis=1) / rows,
            "kappa": (agreed * rows - by_chance) / (rows**2 - by_chance),
            "mcc": np.where(spread > 0, (agreed * rows - by_chance) / np.sqrt(spread), 0.0),
        }
    return overall, per_class


def _mean_of_known(values: Array) -> Array:
    """Mean of each row (R, classes), over the classes that it knows; NaN where it knows none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=1) / known.sum(axis=1))
