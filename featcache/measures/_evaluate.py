"""Every measure of predictions with its interval, and the difference of two sets of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.measures import intervals
from featcache.measures.judged import OVERALL, PER_CLASS, Judged, Values

Array = NDArray[np.floating[Any]]

_DRAWS = 2000
_OVER_CLASSES = ("balanced_accuracy", "macro_f1", "roc_auc", "average_precision")


def evaluate(judged: Judged | Sequence[Judged], classes: Sequence[str]) -> dict[str, Any]:
    """Measures of predictions; of several on the same rows (as of a repeated cross-validation), their means.

    Returns
    -------
    dict
        rows, groups, accuracy, balanced_accuracy (mean recall), macro_f1, weighted_f1, kappa (Cohen), mcc (Matthews),
        roc_auc and average_precision (one against rest, mean over classes), loss (mean cross-entropy, nats), brier,
        calibration_error; majority (accuracy of always naming the most frequent class); intervals {measure: [low,
        high]} (95 %, over groups); per_class {label: {rows, groups, precision, recall, specificity, f1, roc_auc,
        average_precision, intervals}}; confusion (rows: true, columns: predicted; the sum of several).
        None where a measure is not defined: means over classes, where one has no rows
    """
    repeats = [judged] if isinstance(judged, Judged) else list(judged)
    first = repeats[0]
    found, errors = _mean(repeats), Values.of(intervals.standard_errors, _mean(repeats, _draws(first)))
    counts = np.mean([one.by_group for one in repeats], axis=0)
    shares = _shares(counts)
    groups_of = (counts.sum(axis=2) > 0).sum(axis=0)
    overall = {name: float(found.overall[name][0]) for name in OVERALL}
    if not groups_of.all():
        overall |= dict.fromkeys(_OVER_CLASSES, np.nan)
    per_class = {}
    for number, label in enumerate(classes):
        values = {name: float(found.per_class[name][0, number]) for name in PER_CLASS}
        ranges = {}
        for name in (name for name, value in values.items() if np.isfinite(value)):
            if name in shares:
                ranges[name] = intervals.of_share(*(part[:, number] for part in shares[name]), repeats=len(repeats))
            else:
                n, error = int(groups_of[number]), float(errors.per_class[name][number])
                ranges[name] = intervals.of_measure(values[name], error, bounds=(0, 1), n_groups=n, least=n)
        counted = {"rows": round(counts[:, number].sum()), "groups": int(groups_of[number])}
        per_class[label] = {**counted, **_known(values), "intervals": _lists(ranges)}
    return {
        "rows": len(first.y),
        "groups": first.n_groups,
        **_known(overall),
        "majority": float(counts.sum(axis=(0, 2)).max() / len(first.y)),
        "intervals": _lists({
            name: _of_all(name, value, float(errors.overall[name]), counts, len(repeats))
            for name, value in overall.items()
            if np.isfinite(value)
        }),
        "per_class": per_class,
        "confusion": (counts.sum(axis=0) * len(repeats)).round().astype(int).tolist(),
    }  # fmt: skip


def compare(one: Judged | Sequence[Judged], other: Judged | Sequence[Judged]) -> dict[str, dict[str, float]]:
    """By how much the first predictions are better or worse than others of the same rows in the same order.

    Groups are drawn for both alike, so that what is hard for both counts for neither.

    Returns
    -------
    dict
        {measure: {difference, low, high}}, 95 %; measures that are not defined are left out
    """
    sides = [[side] if isinstance(side, Judged) else list(side) for side in (one, other)]
    first = sides[0][0]
    draws = _draws(first)
    values = Values.of(np.subtract, *(_mean(side) for side in sides))
    drawn = Values.of(np.subtract, *(_mean(side, draws) for side in sides))
    errors = Values.of(intervals.standard_errors, drawn)
    found = {}
    for name in OVERALL:
        difference = float(values.overall[name][0])
        if np.isfinite(difference):
            half = intervals.in_errors(first.n_groups) * float(errors.overall[name])
            found[name] = {"difference": difference, "low": difference - half, "high": difference + half}
    return found


def _draws(judged: Judged) -> Array:
    return intervals.draws_of(judged.n_blocks, _DRAWS)


def _mean(repeats: Sequence[Judged], draws: Array | None = None) -> Values:
    """Means of each measure over repeats, as of `Judged.values`."""
    return Values.of(lambda *each: np.mean(each, axis=0), *(one.values(draws) for one in repeats))


def _shares(counts: Array) -> dict[str, tuple[Array, Array]]:
    """Of measures that are shares of rows: rows that are right and all of them, (groups, classes) each."""
    right, true, named = np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2), counts.sum(axis=1)
    rest = true.sum(axis=1, keepdims=True) - true
    return {"recall": (right, true), "precision": (right, named), "specificity": (rest - named + right, rest)}


def _of_all(name: str, value: float, error: float, counts: Array, repeats: int) -> intervals.Interval:
    n_groups, n_classes, _ = counts.shape
    if name == "loss":
        return intervals.of_positive(value, error, n_groups=n_groups)
    if name == "accuracy":
        return intervals.of_share(np.trace(counts, axis1=1, axis2=2), counts.sum(axis=(1, 2)), repeats=repeats)
    least = float(n_groups)
    if name in _OVER_CLASSES:  # each class weighs the same, however few its groups are
        least = n_classes**2 / float((1 / (counts.sum(axis=2) > 0).sum(axis=0)).sum())
    bounds = (-1.0, 1.0) if name in ("kappa", "mcc") else (0.0, 2.0 if name == "brier" else 1.0)
    return intervals.of_measure(value, error, bounds=bounds, n_groups=n_groups, least=least)


def _lists(ranges: dict[str, intervals.Interval]) -> dict[str, list[float]]:
    return {name: list(found) for name, found in ranges.items()}


def _known(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
