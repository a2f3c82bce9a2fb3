"""Classical heads: from inner products alone they are those of the features, and scikit-learn's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator
from test_heads_train import IMAGES, separable
from test_store_contract import make_cache

from featcache.core.errors import HeadError
from featcache.heads.classical import (
    KINDS,
    Balanced,
    Centred,
    Coordinates,
    DistanceModel,
    classical_head,
    fit_classical,
)
from featcache.heads.distance_head import DistanceHead
from featcache.heads.head import Head
from featcache.heads.kernel import kernel

EXACT = tuple(kind for kind in KINDS if kind != "mlp")
WIDTHS = (7, 250)  # fewer features than rows, and more


def rows_of(n: int, d: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features like those behind a ReLU, of unequal classes that overlap."""
    generator = np.random.default_rng([seed, n, d])
    y = generator.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return np.maximum(generator.standard_normal((n, d)) + 2 * np.eye(d)[y] + 0.5, 0) * 3, y


def by_products(kind: str, X: np.ndarray, y: np.ndarray, X_new: np.ndarray, **options: Any) -> np.ndarray:
    """Probabilities of new rows, by a model that has seen inner products alone."""
    return decided(fit_classical(kind, X @ X.T, y=y, **options), X, X_new)


def decided(model: Head | DistanceModel, X: np.ndarray, X_new: np.ndarray) -> np.ndarray:
    """Probabilities of new rows, by a model of inner products with the rows of X."""
    if isinstance(model, Head):
        return np.asarray(model.probabilities_of(X_new @ X.T))
    return DistanceHead((X.shape[1],), X[model.rows], model.square, model.decide, ()).probabilities_of(X_new)


# Inner products are enough


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("kind", EXACT)
def test_a_head_of_inner_products_is_that_of_the_features(kind: str, d: int, classes: int, balanced: bool) -> None:
    (X, y), (X_new, _) = rows_of(90, d, classes), rows_of(40, d, classes, seed=1)
    plain = classical_head(kind, balanced=balanced).fit(X, y)
    found = by_products(kind, X, y, X_new, balanced=balanced)
    np.testing.assert_allclose(found, plain.predict_proba(X_new), atol=1e-7)
    np.testing.assert_array_equal(found.argmax(axis=1), plain.predict(X_new))
    assert found.argmax(axis=1).sum() > 0


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("kind", EXACT)
def test_products_in_float32_are_enough(kind: str, d: int) -> None:
    (X, y), (X_new, _) = rows_of(90, d), rows_of(40, d, seed=1)
    X, X_new = X.astype("float32"), X_new.astype("float32")
    expected = classical_head(kind).fit(X.astype("float64"), y).predict_proba(X_new.astype("float64"))
    np.testing.assert_allclose(by_products(kind, X, y, X_new), expected, atol=5e-4)


def test_rows_that_repeat_do_no_harm() -> None:
    """Views of one image may be the same, and make K singular: so many coordinates fewer are there."""
    X, y = rows_of(40, 100)
    X, y = np.repeat(X, 3, axis=0), np.repeat(y, 3)
    X_new, _ = rows_of(20, 100, seed=1)
    for dtype in ("float32", "float64"):
        K = (X @ X.T).astype(dtype)
        model = fit_classical("logreg", K, y=y)
        assert isinstance(model, Head)
        assert len(np.unique(model.layers[0][0][:, 0])) == 39 + 1  # 40 rows that differ, centred; and the others
        expected = classical_head("logreg").fit(X, y).predict_proba(X_new)
        np.testing.assert_allclose(model.probabilities_of((X_new @ X.T).astype(dtype)), expected, atol=1e-4)


@pytest.mark.parametrize("d", WIDTHS)
def test_coordinates_keep_inner_products(d: int) -> None:
    (X, _), (X_new, _) = rows_of(60, d), rows_of(10, d, seed=1)
    coordinates = Coordinates.of(X @ X.T, 1e-9)
    Z, Z_new = coordinates(X @ X.T), coordinates(X_new @ X.T)
    assert Z.shape == (60, min(60, d))
    np.testing.assert_allclose(Z @ Z.T, X @ X.T, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(Z_new @ Z.T, X_new @ X.T, rtol=1e-9, atol=1e-9)
    inside = np.linalg.lstsq(X.T, X_new.T, rcond=None)[0].T @ X  # what of a new row lies in the span
    np.testing.assert_allclose((Z_new**2).sum(axis=1), (inside**2).sum(axis=1), rtol=1e-9)


def test_a_gram_matrix_is_only_read() -> None:
    X, y = rows_of(50, 20)
    K = X @ X.T
    K.flags.writeable = False
    for kind in KINDS:
        fit_classical(kind, K, y=y)


def test_the_mlp_learns_in_either_and_is_decided_by_its_seed() -> None:
    (X, y), (X_new, y_new) = rows_of(120, 40), rows_of(60, 40, seed=1)
    X[range(120), y] += 9
    X_new[range(60), y_new] += 9
    found = by_products("mlp", X, y, X_new)
    plain = classical_head("mlp").fit(X, y)
    assert (found.argmax(axis=1) == y_new).mean() > 0.9
    assert plain.score(X_new, y_new) > 0.9
    np.testing.assert_array_equal(found, by_products("mlp", X, y, X_new, seed=0))
    assert np.abs(found - by_products("mlp", X, y, X_new, seed=1)).max() > 1e-6
    np.testing.assert_array_equal(plain.predict_proba(X_new), classical_head("mlp", 0).fit(X, y).predict_proba(X_new))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_they_are_fed_from_a_cache(tmp_path: Any, dtype: str) -> None:
    cache = make_cache(tmp_path, IMAGES, separable(IMAGES, (3, 2, 8)))
    train = cache.numbers("train")
    (X, y), (X_test, y_test) = cache.arrays("train"), cache.arrays("test")
    X, X_test = (array.reshape(len(array), -1).astype("float64") for array in (X, X_test))
    for kind in EXACT:
        p = decided(fit_classical(kind, kernel(cache, train, right=train, dtype=dtype), y=y), X, X_test)
        np.testing.assert_allclose(p, classical_head(kind).fit(X, y).predict_proba(X_test), atol=1e-3)
        assert (p.argmax(axis=1) == y_test).mean() > 0.7


# What each of them is


def standard(X: np.ndarray, X_new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred, with a mean squared norm of 1; written out once more."""
    mean = X.mean(axis=0)
    norm = np.sqrt(np.mean([row @ row for row in X - mean]))
    return (X - mean) / norm, (X_new - mean) / norm


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("logreg", LogisticRegression(C=10, class_weight="balanced", tol=1e-8, max_iter=10_000)),
        ("linear-svm", SVC(kernel="linear", class_weight="balanced")),
        ("rbf-svm", SVC(kernel="rbf", gamma="scale", class_weight="balanced")),
        ("knn", KNeighborsClassifier(5, weights="distance")),
    ],
)
def test_a_head_is_the_one_that_is_described(kind: str, own: Any) -> None:
    (X, y), (X_new, _) = rows_of(150, 12), rows_of(80, 12, seed=1)
    S, S_new = standard(X, X_new)
    own.fit(S, y)
    found = classical_head(kind).fit(X, y).predict_proba(X_new)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    if kind in ("logreg", "knn"):
        np.testing.assert_allclose(found, own.predict_proba(S_new), atol=1e-3)
    else:
        decision = own.decision_function(S_new)
        np.testing.assert_allclose(found, np.exp(decision) / np.exp(decision).sum(axis=1, keepdims=True), atol=1e-3)


@pytest.mark.parametrize("kind", ["linear-svm", "rbf-svm"])
def test_of_two_classes_the_decision_of_an_svm_becomes_a_probability(kind: str) -> None:
    X, y = rows_of(90, 12, 2)
    model = classical_head(kind).fit(X, y)
    decision = model["head"].estimator_.decision_function(model["centre"].transform(X))
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], 1 / (1 + np.exp(-decision)))
    np.testing.assert_array_equal(model.predict(X), (decision > 0).astype(int))


@pytest.mark.parametrize("kind", ["linear-svm", "rbf-svm"])
def test_what_an_svm_predicts_is_likeliest_even_where_votes_are_even(kind: str) -> None:
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((300, 8)), generator.integers(0, 6, 300)
    model = classical_head(kind).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), model.predict_proba(X).argmax(axis=1))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "knn"])
def test_rare_classes_count_unless_they_shall_not(kind: str) -> None:
    generator = np.random.default_rng(0)
    y = (np.arange(200) < 12).astype(int)  # 6 % of class 1
    X = np.column_stack([y * 1.0, np.zeros(200)]) + generator.standard_normal((200, 2))
    found = [by_products(kind, X, y, X, balanced=balanced)[:, 1].mean() for balanced in (True, False)]
    assert found[0] > 1.5 * found[1]


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("logreg", LogisticRegression(C=10, tol=1e-8, max_iter=10_000)),
        ("rbf-svm", SVC(kernel="rbf", gamma="scale")),
    ],
)
def test_weights_of_rows_multiply_those_of_classes(kind: str, own: Any) -> None:
    X, y = rows_of(150, 12, 2)
    weights = np.random.default_rng(0).uniform(0.1, 5, len(y))
    each = [weights.sum() / 2 / weights[y == label].sum() for label in (0, 1)]  # both classes weigh the same
    S, _ = standard(X, X)
    decision = own.fit(S, y, weights * np.array(each)[y]).decision_function(S)
    found = by_products(kind, X, y, X, sample_weight=weights)
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.exp(-decision)), atol=1e-3)
    assert np.abs(found - by_products(kind, X, y, X)).max() > 0.02


def test_few_rows_are_neighbours_all() -> None:
    X, y = rows_of(60, 10, 2)
    few = [int(np.flatnonzero(y == label)[0]) for label in (0, 1)]
    assert by_products("knn", X[few], y[few], X).shape == (60, 2)


# scikit-learn's tools, and refusals


@pytest.mark.parametrize("wide", [False, True])
def test_scikit_learn_accepts_the_centring(wide: bool) -> None:
    check_estimator(Centred(wide), on_skip=None)


def test_mean_squared_norms_after_centring() -> None:
    X, _ = rows_of(50, 8)
    for wide, expected in ((False, 1), (True, 8)):
        centred = Centred(wide).fit_transform(X)
        np.testing.assert_allclose(centred.mean(axis=0), 0, atol=1e-12)
        assert (centred**2).sum(axis=1).mean() == pytest.approx(expected)
    assert not Centred().fit_transform(np.ones((4, 2))).any()


@pytest.mark.parametrize("kind", EXACT)
def test_they_are_cross_validated_by_groups(kind: str) -> None:
    X, numbers = rows_of(90, 12)
    y = np.array(["basophil", "monocyte", "neutrophil"])[numbers]
    scores = cross_val_score(classical_head(kind), X, y, groups=np.arange(90) // 3, cv=GroupKFold(3))
    assert scores.mean() > 0.5


def test_what_cannot_be_fitted_is_refused() -> None:
    X, y = rows_of(30, 10)
    K = X @ X.T
    for make in (classical_head, lambda kind: fit_classical(kind, K, y=y)):
        with pytest.raises(HeadError, match="unknown head 'rbf-swm': did you mean rbf-svm"):
            make("rbf-swm")
    with pytest.raises(HeadError, match="only rows of class 2: at least two classes are needed"):
        fit_classical("logreg", K, y=np.full(30, 2))
    with pytest.raises(HeadError, match="no rows of class 1: number the classes without gaps"):
        fit_classical("logreg", K, y=np.array([0, 2, 4])[y])
    with pytest.raises(HeadError, match="KNeighborsClassifier takes no weights of rows"):
        fit_classical("knn", K, y=y, sample_weight=np.ones(30))
    with pytest.raises(HeadError, match="takes no weights"):
        Balanced(KNeighborsClassifier()).fit(X, y, sample_weight=np.ones(30))
