"""Measures against scikit-learn's own functions and counting by hand, intervals against simulation."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference
from sklearn.preprocessing import label_binarize

from featcache.doubt import reliability
from featcache.heads.stack import softmax
from featcache.measures import Judged, compare, evaluate

CLASSES = ("a", "b", "c")


def one_hot(predicted: Any, n_classes: int = 3, certain: float = 0.8) -> NDArray[np.float32]:
    rest = (1 - certain) / (n_classes - 1)
    return np.where(np.eye(n_classes)[predicted] == 1, certain, rest).astype("float32")


def evaluated(probabilities: Any, y: Any, *, classes: Any = CLASSES, groups: Any = None) -> dict[str, Any]:
    y = np.asarray(y)
    return evaluate(Judged(probabilities, y, groups=np.arange(len(y)) if groups is None else groups), classes)


def predictions(n: int, n_classes: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, n_classes, n)
    logits = generator.standard_normal((n, n_classes)) + 1.5 * np.eye(n_classes)[y]
    return softmax(logits.round(1).astype("float32")), y  # some scores are equal


def test_every_measure_counted_by_hand() -> None:
    y = np.array([0, 0, 0, 1, 1, 2])
    found = evaluated(one_hot([0, 0, 1, 1, 0, 2]), y, groups=np.array(["p", "p", "q", "r", "s", "t"]))
    assert (found["rows"], found["groups"]) == (6, 5)
    assert found["accuracy"] == pytest.approx(4 / 6)
    recall = {label: of["recall"] for label, of in found["per_class"].items()}
    assert recall == {"a": pytest.approx(2 / 3), "b": 0.5, "c": 1.0}
    assert (found["per_class"]["a"]["rows"], found["per_class"]["a"]["groups"]) == (3, 2)
    assert found["per_class"]["b"]["specificity"] == pytest.approx(3 / 4)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert found["majority"] == 0.5
    assert found["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert found["loss"] == pytest.approx(-(4 * np.log(0.8) + 2 * np.log(0.1)) / 6, rel=1e-6)
    json.dumps(found, allow_nan=False)


@given(st.integers(2, 5), st.integers(0, 2**32 - 1), st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_any_predictions_against_scikit_learn(n_classes: int, seed: int, n: int) -> None:
    probabilities, y = predictions(n, n_classes, seed)
    classes, numbers = [f"class {i}" for i in range(n_classes)], range(n_classes)
    before = probabilities.copy()
    found = evaluated(probabilities, y, classes=classes)
    np.testing.assert_array_equal(probabilities, before)
    predicted = probabilities.argmax(axis=1)
    exact = probabilities.astype("float64") / probabilities.astype("float64").sum(axis=1, keepdims=True)
    agreed = reliability(exact, y)
    expected = {
        "accuracy": reference.accuracy_score(y, predicted),
        "weighted_f1": reference.f1_score(y, predicted, average="weighted"),
        "loss": reference.log_loss(y, exact, labels=numbers),
        "brier": agreed["brier"],
        "calibration_error": agreed["calibration_error"],
    }
    if len(set(y) | set(predicted)) > 1:
        expected["kappa"] = reference.cohen_kappa_score(y, predicted)
        expected["mcc"] = reference.matthews_corrcoef(y, predicted)
    else:
        assert found["kappa"] is None
    whole = set(y) == set(numbers)
    if whole:
        expected["balanced_accuracy"] = reference.balanced_accuracy_score(y, predicted)
        expected["macro_f1"] = reference.f1_score(y, predicted, average="macro")
        hot = label_binarize(y, classes=[*numbers, n_classes])[:, :n_classes]
        expected["roc_auc"] = reference.roc_auc_score(hot, exact, average="macro")
        expected["average_precision"] = reference.average_precision_score(hot, exact, average="macro")
    else:
        assert found["balanced_accuracy"] is found["macro_f1"] is found["roc_auc"] is None
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    for number, label in enumerate(classes):
        one, is_class, named = found["per_class"][label], y == number, predicted == number
        assert one["rows"] == is_class.sum()
        assert one["recall"] == (pytest.approx(named[is_class].mean()) if is_class.any() else None)
        assert one["precision"] == (pytest.approx(is_class[named].mean()) if named.any() else None)
        assert one["specificity"] == (pytest.approx(1 - named[~is_class].mean()) if not is_class.all() else None)
        assert one["f1"] == (pytest.approx(reference.f1_score(is_class, named)) if is_class.any() else None)
        both = is_class.any() and not is_class.all()
        for name, function in (
            ("roc_auc", reference.roc_auc_score),
            ("average_precision", reference.average_precision_score),
        ):
            assert one[name] == (pytest.approx(function(is_class, exact[:, number])) if both else None)
        for name, (low, high) in one["intervals"].items():
            assert 0 <= low <= one[name] + 1e-12
            assert one[name] - 1e-12 <= high <= 1
    assert np.array(found["confusion"]).sum() == n
    for name, (low, high) in found["intervals"].items():
        assert low - 1e-12 <= found[name] <= high + 1e-12
    json.dumps(found, allow_nan=False)


def test_a_class_that_is_missing_in_a_split_has_no_recall() -> None:
    found = evaluated(one_hot([0, 2, 2]), [0, 0, 2])
    assert {label: of["recall"] for label, of in found["per_class"].items()} == {"a": 0.5, "b": None, "c": 1.0}
    assert found["balanced_accuracy"] is None
    assert found["confusion"] == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    json.dumps(found, allow_nan=False)


def test_only_one_class_in_a_split() -> None:
    found = evaluated(one_hot([0, 1]), [0, 0])
    assert found["majority"] == 1.0
    assert [found["per_class"][label]["recall"] for label in CLASSES] == [0.5, None, None]


def test_a_certain_and_wrong_prediction_has_a_finite_loss() -> None:
    found = evaluated(np.array([[1, 0, 0]], "float32"), [2])
    assert 30 < found["loss"] < 1000
    json.dumps(found, allow_nan=False)


def interval(correct: NDArray[np.bool_], groups: Any) -> tuple[float, float]:
    """Of the accuracy."""
    y = np.arange(len(correct)) % 2
    low, high = evaluated(
        one_hot(np.where(correct, y, 1 - y), 2), y, classes=("a", "b"), groups=groups
    )["intervals"]["accuracy"]  # fmt: skip
    return low, high


def test_views_of_one_original_widen_the_interval() -> None:
    """Ten copies of 30 cases are 30 cases: the interval over rows would be sqrt(10) times too narrow."""
    generator = np.random.default_rng(1)
    cases = generator.random(30) < 0.7
    correct, groups = np.repeat(cases, 10), np.repeat(np.arange(30), 10)
    low, high = interval(correct, groups)
    row_low, row_high = interval(correct, np.arange(300))
    once_low, once_high = interval(cases, np.arange(30))
    assert high - low == pytest.approx(once_high - once_low, abs=0.02)
    assert 2.4 < (high - low) / (row_high - row_low) < 4.2
    assert low < cases.mean() < high


def test_the_interval_is_near_the_binomial_one_where_groups_are_rows() -> None:
    low, high = interval(np.arange(1000) < 800, np.arange(1000))
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.01265, 0.8 + 1.96 * 0.01265), abs=0.004)


def test_the_interval_is_always_the_same_and_knows_no_names() -> None:
    generator = np.random.default_rng(2)
    correct, groups = generator.random(200) < 0.6, generator.integers(0, 40, 200)
    one = interval(correct, groups)
    assert interval(correct, groups) == one
    assert interval(correct, np.array([f"g{g:03d}" for g in groups], object)) == one


def test_the_interval_of_all_right_is_no_point() -> None:
    """Five of five right groups are what a recall of 57 % shows as well (Wilson), however many rows they have."""
    low, high = interval(np.ones(20, bool), np.arange(20) // 4)
    assert (low, high) == (pytest.approx(1 / (1 + 1.96**2 / 5), abs=1e-4), 1.0)
    found = evaluated(one_hot([0] * 20 + [1] * 5), [0] * 20 + [1] * 5)
    assert all(low < found[name] for name, (low, _) in found["intervals"].items() if name != "kappa")


def test_many_groups_are_drawn_in_blocks() -> None:
    probabilities, y = predictions(6000, 4, 0)
    found = evaluated(probabilities, y, classes="abcd")
    share = found["accuracy"]
    half = 1.96 * np.sqrt(share * (1 - share) / 6000)
    assert found["intervals"]["accuracy"] == pytest.approx([share - half, share + half], abs=0.1 * half)


def test_two_thousand_draws_of_440_rows_take_well_under_a_second() -> None:
    probabilities, y = predictions(440, 5, 0)
    start = time.process_time()
    evaluated(probabilities, y, classes="abcde")
    assert time.process_time() - start < 1.5  # 0.4 s on a quiet machine


def test_the_mean_of_repeats_is_within_one_interval() -> None:
    judged = [Judged(*predictions(80, 3, seed), groups=np.arange(80)) for seed in (1, 1)]
    once, twice = evaluate(judged[0], CLASSES), evaluate(judged, CLASSES)
    assert twice["intervals"] == once["intervals"]
    assert twice["per_class"] == once["per_class"]
    assert np.array(twice["confusion"]).sum() == 160


def cells(generator: np.random.Generator, counts: Any, rows: int, alike: float, recall: Any) -> tuple[Any, ...]:
    """Groups of a class each, of `rows` rows on average, whose shares of right rows correlate by `alike`."""
    labels = np.repeat(np.arange(len(counts)), counts)
    sizes = generator.integers(1, 2 * rows, len(labels)) if rows > 1 else np.ones(len(labels), int)
    right = recall[labels]
    if alike:
        right = generator.beta(right * (1 - alike) / alike, (1 - right) * (1 - alike) / alike)
    groups = np.repeat(np.arange(len(labels)), sizes)
    y = labels[groups]
    wrong = (y + generator.integers(1, len(counts), len(y))) % len(counts)
    return np.where(generator.random(len(y)) < right[groups], y, wrong), y, groups


@pytest.mark.parametrize(("rows", "alike"), [(1, 0.0), (5, 0.5)])
def test_intervals_hold_the_truth_in_95_of_100_simulations(rows: int, alike: float) -> None:
    """40 groups, of which the rarest class has 5; benchmarks/intervals.py shows more."""
    counts, recall = np.array([18, 10, 7, 5]), np.array([0.92, 0.85, 0.8, 0.7])
    draws = [cells(np.random.default_rng(300 + seed), counts, rows, alike, recall) for seed in range(200)]
    predicted, y, _ = cells(np.random.default_rng(1000), counts * 4000, rows, alike, recall)
    truth = {
        "accuracy": (predicted == y).mean(),
        "macro_f1": reference.f1_score(y, predicted, average="macro"),
        "recall": recall[3],
    }
    held = dict.fromkeys(truth, 0)
    for predicted, y, groups in draws:
        found = evaluated(one_hot(predicted, 4), y, classes="abcd", groups=groups)
        ranges = {**found["intervals"], "recall": found["per_class"]["d"]["intervals"]["recall"]}
        for name, value in truth.items():
            low, high = ranges[name]
            held[name] += low <= value <= high
    assert all(186 <= times <= 194 for times in held.values()), held


def test_the_difference_of_two_predictions() -> None:
    probabilities, y = predictions(300, 3, 4)
    other = np.roll(probabilities, 1, axis=1)
    one, same, worse = (Judged(each, y, groups=np.arange(300) // 3) for each in (probabilities, probabilities, other))
    found = compare(one, same)
    assert all(set(each.values()) == {0.0} for each in found.values())
    found, opposite = compare(one, worse), compare(worse, one)
    assert found["accuracy"]["low"] > 0
    measured = [evaluate(each, CLASSES)["accuracy"] for each in (one, worse)]
    assert found["accuracy"]["difference"] == pytest.approx(measured[0] - measured[1])
    assert opposite["accuracy"]["high"] == pytest.approx(-found["accuracy"]["low"])
    assert found["loss"]["high"] < 0


def test_the_interval_of_a_difference_is_of_pairs() -> None:
    """Two predictions that are wrong on nearly the same rows differ by less than intervals of each would say."""
    generator = np.random.default_rng(6)
    held = 0
    for _ in range(200):
        y = generator.integers(0, 2, 120)
        hard = generator.random(120) < 0.3
        one, other = (
            Judged(one_hot(np.where(hard ^ (generator.random(120) < p), 1 - y, y), 2), y, groups=np.arange(120))
            for p in (0.05, 0.15)
        )
        found = compare(one, other)["accuracy"]
        assert found["high"] - found["low"] < 0.2
        held += found["low"] <= 0.04 <= found["high"]
    assert 184 <= held <= 196
