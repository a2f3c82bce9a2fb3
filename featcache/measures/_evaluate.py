"""Every measure of predictions with its interval, and the difference of two sets of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.measures import intervals
from featcache.measures.judged import PER_CLASS, Judged, JudgedLabels, Values

Array = NDArray[np.floating[Any]]

_MOST_DRAWS, _LEAST_DRAWS, _DRAWS_OF_CLASSES = 2000, 200, 20_000
"""Draws, and draws times classes: of more than ten classes there are fewer."""

AnyJudged = Judged | JudgedLabels
_OVER_CLASSES = ("balanced_accuracy", "macro_f1", "roc_auc", "average_precision")


def evaluate(
    judged: AnyJudged | Sequence[AnyJudged], classes: Sequence[str], *, present_only: bool = False
) -> dict[str, Any]:
    """Measures of predictions; of several on the same rows (as of a repeated cross-validation), their means.

    present_only : whether means over classes are over those that have rows, and not undefined where one has none

    Returns
    -------
    dict
        rows, groups, accuracy, balanced_accuracy (mean recall), macro_f1, weighted_f1, kappa (Cohen), mcc (Matthews),
        roc_auc and average_precision (one against rest, mean over classes), loss (mean cross-entropy, nats), brier,
        calibration_error; majority (accuracy of always naming the most frequent class); intervals {measure: [low,
        high]} (95 %, over groups); per_class {label: {rows, groups, precision, recall, specificity, f1, roc_auc,
        average_precision, intervals}}; confusion (rows: true, columns: predicted; the sum of several).
        None where a measure is not defined: means over classes, where one has no rows.
        Of several labels a row: rows, groups, accuracy (share of rows that got all of their labels and no other),
        hamming_loss, micro_f1, macro_f1, roc_auc, average_precision, loss (mean binary cross-entropy); majority
        (accuracy of always naming the most frequent combination); intervals; per_class as above, with confusion (2, 2)
        of each label
    """
    repeats = [judged] if isinstance(judged, (Judged, JudgedLabels)) else list(judged)
    first = repeats[0]
    found, errors = _mean(repeats), Values.of(intervals.standard_errors, _mean(repeats, _draws(first)))
    for one in repeats:
        one.forget_order()  # as large as all probabilities
    right, n_rows_of, _ = _by_group(repeats)
    groups_of = np.zeros(len(classes), np.intp)
    per_class: dict[str, dict[str, Any]] = {}
    for number, label in enumerate(classes):
        by_group = _by_group(repeats, number)
        groups_of[number] = n = int((by_group[1] > 0).sum())
        values = {name: float(found.per_class[name][0, number]) for name in PER_CLASS}
        shares, ranges = _shares(by_group, n_rows_of), {}
        for name in (name for name, value in values.items() if np.isfinite(value)):
            if name in shares:
                ranges[name] = intervals.of_share(*shares[name], repeats=len(repeats))
            else:
                error = float(errors.per_class[name][number])
                ranges[name] = intervals.of_measure(values[name], error, bounds=(0, 1), n_groups=n, least=n)
        counted = {"rows": round(by_group[1].sum()), "groups": n}
        per_class[label] = {**counted, **_known(values), "intervals": {name: list(of) for name, of in ranges.items()}}
        del by_group, shares
    overall = {name: float(found.overall[name][0]) for name in first.overall}
    if not (present_only or groups_of.all()):
        overall |= {name: np.nan for name in _OVER_CLASSES if name in overall}
    return {
        "rows": len(first.y),
        "groups": first.n_groups,
        **_known(overall),
        "majority": first.majority,
        "intervals": {
            name: _of_all(name, value, float(errors.overall[name]), groups_of[groups_of > 0], first.n_groups)
            for name, value in overall.items()
            if np.isfinite(value)
        }
        | {"accuracy": list(intervals.of_share(right, n_rows_of, repeats=len(repeats)))},
        **_with_confusion(repeats, per_class),
    }


def _with_confusion(repeats: Sequence[AnyJudged], per_class: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """per_class, and the confusion matrix: one of all classes, or of several labels a row one of each, in per_class."""
    of_classes = [one.confusion for one in repeats if isinstance(one, Judged)]
    if of_classes:
        return {"per_class": dict(per_class), "confusion": np.sum(of_classes, axis=0).tolist()}
    made = {}
    for number, (label, measures) in enumerate(per_class.items()):
        counts = [one.confusion_of(number) for one in repeats if isinstance(one, JudgedLabels)]
        made[label] = {**measures, "confusion": np.sum(counts, axis=0).tolist()}
    return {"per_class": made}


def compare(
    one: AnyJudged | Sequence[AnyJudged], other: AnyJudged | Sequence[AnyJudged]
) -> dict[str, dict[str, float]]:
    """By how much the first predictions are better or worse than others of the same rows in the same order.

    Groups are drawn for both alike, so that what is hard for both counts for neither.

    Returns
    -------
    dict
        {measure: {difference, low, high}}, 95 %; measures that are not defined are left out
    """
    sides = [[side] if isinstance(side, (Judged, JudgedLabels)) else list(side) for side in (one, other)]
    first = sides[0][0]
    draws = _draws(first)
    values = Values.of(np.subtract, *(_mean(side) for side in sides))
    drawn = Values.of(np.subtract, *(_mean(side, draws) for side in sides))
    errors = Values.of(intervals.standard_errors, drawn)
    found = {}
    for name in first.overall:
        difference = float(values.overall[name][0])
        if np.isfinite(difference):
            half = intervals.in_errors(first.n_groups) * float(errors.overall[name])
            found[name] = {"difference": difference, "low": difference - half, "high": difference + half}
    return found


def _draws(judged: AnyJudged) -> Array:
    draws = np.clip(_DRAWS_OF_CLASSES // judged.n_classes, _LEAST_DRAWS, _MOST_DRAWS)
    return intervals.draws_of(judged.n_blocks, int(draws))


def _mean(repeats: Sequence[AnyJudged], draws: Array | None = None) -> Values:
    """Means of each measure over repeats, as of `Judged.values`."""
    return Values.of(lambda *each: np.mean(each, axis=0), *(one.values(draws) for one in repeats))


def _by_group(repeats: Sequence[AnyJudged], label: int | None = None) -> NDArray[Any]:
    """Means over repeats, as of `Judged.by_group`."""
    if len(repeats) == 1:
        return repeats[0].by_group(label)
    return np.asarray(np.mean([one.by_group(label) for one in repeats], axis=0))


def _shares(by_group: NDArray[Any], rows: NDArray[Any]) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Of measures that are shares of rows: in each group, rows that are right and all of them.

    by_group : (3, groups), of a class; rows : (groups,), of all classes
    """
    right, true, named = by_group
    rest = rows - true
    return {"recall": (right, true), "precision": (right, named), "specificity": (rest - named + right, rest)}


def _of_all(name: str, value: float, error: float, groups_of: NDArray[np.intp], n_groups: int) -> list[float]:
    """The interval of a measure of all classes; groups_of : (classes,), how many each has."""
    if name == "loss":
        return list(intervals.of_positive(value, error, n_groups=n_groups))
    least = float(n_groups)
    if name in _OVER_CLASSES:  # each class weighs the same, however few its groups are
        least = len(groups_of) ** 2 / float((1 / groups_of).sum())
    bounds = (-1.0, 1.0) if name in ("kappa", "mcc") else (0.0, 2.0 if name == "brier" else 1.0)
    return list(intervals.of_measure(value, error, bounds=bounds, n_groups=n_groups, least=least))


def _known(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
