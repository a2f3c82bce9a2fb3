"""Measures against scikit-learn's own functions and counting by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import accuracy_score, log_loss, recall_score

from featcache.heads.stack import softmax
from featcache.training.metrics import evaluate, interval_over_groups

CLASSES = ("a", "b", "c")


def one_hot(predicted: list[int], n_classes: int = 3, certain: float = 0.8) -> np.ndarray:
    rest = (1 - certain) / (n_classes - 1)
    return np.where(np.eye(n_classes)[predicted] == 1, certain, rest).astype("float32")


def test_every_measure_counted_by_hand() -> None:
    y = np.array([0, 0, 0, 1, 1, 2])
    found = evaluate(one_hot([0, 0, 1, 1, 0, 2]), y, classes=CLASSES, groups=np.array(["p", "p", "q", "r", "s", "t"]))
    assert found["rows"] == 6
    assert found["groups"] == 5
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["per_class"] == {"a": pytest.approx(2 / 3), "b": 0.5, "c": 1.0}
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert found["majority"] == 0.5
    assert found["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert found["loss"] == pytest.approx(-(4 * np.log(0.8) + 2 * np.log(0.1)) / 6, rel=1e-6)
    json.dumps(found, allow_nan=False)


@given(st.integers(2, 5), st.integers(0, 2**32 - 1), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_any_predictions_against_scikit_learn(n_classes: int, seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = softmax(generator.standard_normal((n, n_classes)).astype("float32") * 5)
    y = generator.integers(0, n_classes, n)
    labels = [f"class {i}" for i in range(n_classes)]
    before = probabilities.copy()
    found = evaluate(probabilities, y, classes=labels, groups=np.arange(n))
    np.testing.assert_array_equal(probabilities, before)
    predicted = probabilities.argmax(axis=1)
    exact = probabilities.astype("float64") / probabilities.astype("float64").sum(axis=1, keepdims=True)
    assert found["accuracy"] == pytest.approx(accuracy_score(y, predicted))
    assert found["loss"] == pytest.approx(log_loss(y, exact, labels=range(n_classes)))
    recalls = recall_score(y, predicted, labels=range(n_classes), average=None, zero_division=np.nan)
    for label, recall in zip(labels, recalls, strict=True):
        assert found["per_class"][label] == (None if np.isnan(recall) else pytest.approx(recall))
    if np.isnan(recalls).any():
        assert found["balanced_accuracy"] is None
    else:
        assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert np.array(found["confusion"]).sum() == n
    low, high = found["accuracy_interval"]
    assert 0 <= low <= high <= 1


def test_a_class_that_is_missing_in_a_split_has_no_accuracy() -> None:
    found = evaluate(one_hot([0, 2, 2]), np.array([0, 0, 2]), classes=CLASSES, groups=np.arange(3))
    assert found["per_class"] == {"a": 0.5, "b": None, "c": 1.0}
    assert found["balanced_accuracy"] is None
    assert found["confusion"] == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    json.dumps(found, allow_nan=False)


def test_only_one_class_in_a_split() -> None:
    found = evaluate(one_hot([0, 1]), np.array([0, 0]), classes=CLASSES, groups=np.arange(2))
    assert found["majority"] == 1.0
    assert found["per_class"] == {"a": 0.5, "b": None, "c": None}


def test_a_certain_and_wrong_prediction_has_a_finite_loss() -> None:
    found = evaluate(np.array([[1, 0, 0]], "float32"), np.array([2]), classes=CLASSES, groups=np.arange(1))
    assert 30 < found["loss"] < 1000


def test_views_of_one_original_widen_the_interval() -> None:
    """Ten copies of 30 cases are 30 cases: the interval over rows would be sqrt(10) times too narrow."""
    generator = np.random.default_rng(1)
    cases = generator.random(30) < 0.7
    correct, groups = np.repeat(cases, 10), np.repeat(np.arange(30), 10)
    low, high = interval_over_groups(correct, groups)
    row_low, row_high = interval_over_groups(correct, np.arange(300))
    once_low, once_high = interval_over_groups(cases, np.arange(30))
    assert high - low == pytest.approx(once_high - once_low, abs=0.02)
    assert 2.4 < (high - low) / (row_high - row_low) < 4.2
    assert low < cases.mean() < high


def test_the_interval_is_near_the_binomial_one_where_groups_are_rows() -> None:
    correct = np.arange(1000) < 800
    low, high = interval_over_groups(correct, np.arange(1000))
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.01265, 0.8 + 1.96 * 0.01265), abs=0.004)


def test_the_interval_is_always_the_same_and_knows_no_names() -> None:
    generator = np.random.default_rng(2)
    correct, groups = generator.random(200) < 0.6, generator.integers(0, 40, 200)
    one = interval_over_groups(correct, groups)
    assert interval_over_groups(correct, groups) == one
    assert interval_over_groups(correct, np.array([f"g{g:03d}" for g in groups], object)) == one


def test_the_interval_of_all_right_is_a_point() -> None:
    assert interval_over_groups(np.ones(20, bool), np.arange(20) // 4) == (1.0, 1.0)
    assert interval_over_groups(np.array([False]), np.array(["only"])) == (0.0, 0.0)
