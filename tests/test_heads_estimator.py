"""`HeadClassifier`: scikit-learn's own checks, its tools, and that it is the head that `train_head` trains."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils import estimator_checks
from test_heads_train import IMAGES, separable
from test_store_contract import make_cache

import featcache
from featcache.core.errors import HeadError
from featcache.heads.config import HeadConfig, from_preset
from featcache.heads.estimator import HeadClassifier
from featcache.heads.train import train_head
from featcache.store.cache import Cache

SMALL: dict[str, Any] = {"hidden": (8,), "epochs": 10}


def rows_of(n: int = 120, d: int = 12, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features in which a direction of its own marks each class, and unequal numbers of rows."""
    generator = np.random.default_rng(seed)
    y = generator.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return np.abs(generator.standard_normal((n, d))) + 3 * np.eye(d)[y], y


def weights_of(estimator: HeadClassifier) -> list[np.ndarray]:
    return [*estimator.coefs_, *estimator.intercepts_]


def assert_same(left: HeadClassifier, right: HeadClassifier, **tolerance: float) -> None:
    for one, other in zip(weights_of(left), weights_of(right), strict=True):
        np.testing.assert_allclose(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


# scikit-learn's checks


def expected_failures(_: Any) -> dict[str, str]:
    """What scikit-learn expects of its own MLPClassifier and SGDClassifier, in its words."""
    return {
        "check_sample_weight_equivalence_on_dense_data": (
            "sample_weight is not equivalent to removing/repeating samples: batches and dropout fall on rows"
        )
    }


@estimator_checks.parametrize_with_checks([HeadClassifier()], expected_failed_checks=expected_failures)
def test_scikit_learn_accepts_it(estimator: HeadClassifier, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("class_weight", ["balanced", None])
def test_weights_are_repetitions_where_a_batch_is_all_rows_and_nothing_is_dropped(class_weight: str | None) -> None:
    whole = HeadClassifier((8,), dropout=0, batch=10_000, epochs=20, dtype="float64", class_weight=class_weight)
    estimator_checks.check_sample_weight_equivalence_on_dense_data("HeadClassifier", whole)


USUAL = from_preset("default", epochs=100)
"""The default head, trained in full: there are no validation rows that could end it."""


def test_settings_are_those_of_the_head_with_the_same_defaults() -> None:
    settings = HeadClassifier().get_params()
    assert settings.pop("random_state") == HeadConfig().seed
    assert settings.pop("class_weight") == HeadConfig().class_weights
    assert settings.pop("solver") == "auto"
    assert settings == {name: getattr(USUAL, name) for name in settings}
    left_out = set(HeadConfig().to_dict()) - set(settings)
    assert left_out == {"seed", "class_weights", "output", "optimizer", "l1", "weight_decay"}  # the last three: primal


# The same head as train_head's


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_cache(tmp_path_factory.mktemp("cache"), IMAGES, separable(IMAGES, (3, 2, 8)))


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": (8,), "epochs": 5},
        {"hidden": (), "epochs": 5, "scale": "none", "lr": 1e-4, "class_weight": None},
        {"hidden": (8, 4), "epochs": 5, "l2": (0.01, 0.0, 0.001), "momentum": 0.9, "nesterov": True, "decay": 0.01},
        {"hidden": (8,), "epochs": 8, "activation": "tanh", "label_smoothing": 0.1, "schedule": "cosine"},
        {"hidden": (8,), "epochs": 30, "restore_best": True, "patience": 3, "lr": 0.02, "val_every": 2},
        {"hidden": (8,), "epochs": 6, "monitor": "accuracy", "schedule": "step", "step_epochs": 2, "step_factor": 0.1},
    ],
)
def test_it_is_the_head_of_featcache(cache: Cache, settings: dict[str, Any]) -> None:
    settings = {**settings, "dtype": "float64", "random_state": 3}
    own = {name: value for name, value in settings.items() if name not in ("random_state", "class_weight")}
    weights: Any = "none" if "class_weight" in settings else "balanced"
    trained = train_head(cache, replace(USUAL, **own, seed=3, class_weights=weights), solver="gram")
    (X, y), (X_val, y_val) = cache.arrays("train"), cache.arrays("val")
    found = HeadClassifier(**settings).fit(X, y, X_val=X_val, y_val=y_val)
    course = pd.DataFrame([entry.__dict__ for entry in trained.history])
    pd.testing.assert_frame_equal(found.history_.drop(columns="seconds"), course.drop(columns="seconds"), rtol=1e-9)
    assert found.n_iter_ == len(trained.history)
    assert getattr(found, "best_epoch_", trained.epoch) == trained.epoch
    assert found.scale_ == pytest.approx(trained.head.scale, rel=1e-7)
    (W, b), *rest = trained.head.layers  # kept as float32
    layers = [(W * trained.head.scale, b), *rest]
    for layer, coefs, intercepts in zip(layers, found.coefs_, found.intercepts_, strict=True):
        np.testing.assert_allclose(coefs, layer[0], rtol=2e-6, atol=1e-9)
        np.testing.assert_allclose(intercepts, layer[1], rtol=2e-6, atol=1e-9)
    numbers = cache.numbers("test")
    expected = trained.head.probabilities(cache, numbers)
    np.testing.assert_allclose(found.predict_proba(cache.features[numbers]), expected, rtol=1e-3, atol=1e-6)


def test_it_is_so_in_float32_and_with_labels_as_text(cache: Cache) -> None:
    trained = train_head(cache, replace(USUAL, hidden=(8,), epochs=10), solver="gram")
    X, y, _ = cache.to_sklearn("train")
    found = HeadClassifier((8,), epochs=10).fit(X, y)
    assert tuple(found.classes_) == cache.classes
    assert {array.dtype for array in weights_of(found)} == {np.dtype("float32")}
    np.testing.assert_allclose(found.coefs_[0], trained.head.layers[0][0] * trained.head.scale, atol=1e-4)
    X_test, y_test, _ = cache.to_sklearn("test")
    named = np.array(cache.classes)[trained.head.probabilities(cache, cache.numbers("test")).argmax(axis=1)]
    np.testing.assert_array_equal(found.predict(X_test), named)
    assert found.score(X_test, y_test) == (named == y_test).mean() > 0.5


# With scikit-learn's tools


def test_it_works_in_a_pipeline_and_a_grid_search() -> None:
    X, y = rows_of()
    pipeline = make_pipeline(Normalizer(), HeadClassifier(**SMALL))
    search = GridSearchCV(pipeline, {"headclassifier__lr": [1e-9, 1e-3]}, cv=3).fit(X, y)
    assert search.best_params_ == {"headclassifier__lr": 1e-3}
    slow, fast = search.cv_results_["mean_test_score"]
    assert fast > 0.9 > slow


def test_a_grid_search_goes_on_where_a_setting_diverges() -> None:
    X, y = rows_of()
    search = GridSearchCV(HeadClassifier(**SMALL), {"lr": [1e6, 1e-3]}, cv=3)
    with pytest.warns(FitFailedWarning, match="the training diverges"), pytest.warns(UserWarning, match="non-finite"):
        search.fit(X, y)
    assert np.isnan(search.cv_results_["mean_test_score"][0])
    assert search.best_params_ == {"lr": 1e-3}


def test_it_is_cross_validated_by_groups() -> None:
    """Labels are chance, but the same within a group: only a split that tears groups apart can look good."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    X = generator.standard_normal((30, 20))[groups] + 0.01 * generator.standard_normal((120, 20))
    y = (np.arange(30) % 2)[groups]
    pipeline = make_pipeline(StandardScaler(), HeadClassifier((16,), epochs=40))
    apart = cross_val_score(pipeline, X, y, groups=groups, cv=GroupKFold(5))
    torn = cross_val_score(pipeline, X, y, cv=KFold(5, shuffle=True, random_state=0))
    assert len(apart) == 5
    assert torn.mean() > 0.9 > 0.75 > apart.mean()


def test_a_clone_trains_alike_and_a_pickle_predicts_alike() -> None:
    X, y = rows_of()
    fitted = HeadClassifier(**SMALL).fit(X, y)
    assert not hasattr(clone(fitted), "coefs_")
    assert_same(clone(fitted).fit(X, y), fitted)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    pd.testing.assert_frame_equal(again.history_, fitted.history_)


# What goes in and comes out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", ["float16", "float32", "float64"])
def test_any_floats_are_taken_and_left_alone(given: str, dtype: str) -> None:
    X, y = rows_of()
    X = X.astype(given)
    before = X.copy()
    fitted = HeadClassifier(**SMALL, dtype=dtype).fit(X, y)
    np.testing.assert_array_equal(X, before)
    assert fitted.predict_proba(X).dtype == fitted.decision_function(X).dtype == np.dtype(dtype)
    assert_same(fitted, HeadClassifier(**SMALL, dtype=dtype).fit(X.astype(dtype), y))


def test_rows_of_any_shape_are_flattened() -> None:
    X, y = rows_of()
    tall = X.reshape(-1, 2, 3, 2)
    fitted = HeadClassifier(**SMALL).fit(tall, y)
    assert fitted.n_features_in_ == 12
    assert_same(fitted, HeadClassifier(**SMALL).fit(X, y))
    np.testing.assert_array_equal(fitted.predict_proba(tall), fitted.predict_proba(X))
    with pytest.raises(ValueError, match="8 features, but HeadClassifier is expecting 12"):
        fitted.predict(tall[:, :, :2])


def test_names_of_features_are_remembered() -> None:
    X, y = rows_of()
    frame = pd.DataFrame(X, columns=[f"channel {n}" for n in range(12)])
    fitted = HeadClassifier(**SMALL).fit(frame, y)
    assert list(fitted.feature_names_in_) == list(frame)
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.predict(frame.rename(columns={"channel 0": "another"}))


@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_predicted_agrees_with_itself(classes: int) -> None:
    X, numbers = rows_of(classes=classes)
    names = np.array(["neutrophil", "basophil", "monocyte"])[:classes]
    fitted = HeadClassifier(**SMALL, activation="elu").fit(X, names[numbers])
    assert list(fitted.classes_) == sorted(names)
    decision, p = fitted.decision_function(X), fitted.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(fitted.predict(X), fitted.classes_[p.argmax(axis=1)])
    if classes == 2:
        assert decision.shape == (len(X),)
        np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-decision)), rtol=1e-4, atol=1e-7)
    else:
        np.testing.assert_allclose(p, np.exp(decision) / np.exp(decision).sum(axis=1, keepdims=True), rtol=1e-4)
    assert fitted.score(X, names[numbers]) > 0.9
    hidden = X @ fitted.coefs_[0] + fitted.intercepts_[0]
    hidden = np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0)))
    logits = hidden @ fitted.coefs_[1] + fitted.intercepts_[1]
    np.testing.assert_allclose(decision, logits if classes == 3 else logits[:, 1] - logits[:, 0], rtol=1e-3, atol=1e-4)


def test_rows_may_have_several_labels() -> None:
    X = np.abs(np.random.default_rng(0).standard_normal((200, 6)))
    Y = (X[:, :3] > 0.7).astype(int)
    fitted = HeadClassifier((16,), dropout=0, epochs=150, momentum=0.9).fit(X, Y, X_val=X[:20], y_val=Y[:20])
    found = fitted.predict(X)
    assert (found == Y).mean() > 0.88
    assert not (found.sum(axis=1) == 1).all()
    np.testing.assert_allclose(
        fitted.predict_proba(X), 1 / (1 + np.exp(-fitted.decision_function(X))), rtol=1e-4, atol=1e-7
    )
    assert fitted.history_.val_accuracy.iloc[-1] == pytest.approx(fitted.score(X[:20], Y[:20]))  # all labels right
    with pytest.raises(HeadError, match=r"y_val of shape \(20, 2\): expected 3 columns"):
        fitted.fit(X, Y, X_val=X[:20], y_val=Y[:20, :2])


# Weights, seeds, batches


@pytest.mark.parametrize("class_weight", ["balanced", None])
def test_only_ratios_of_weights_matter_and_rows_of_weight_0_are_not_there(class_weight: str | None) -> None:
    X, y = rows_of()
    model = HeadClassifier(**SMALL, dtype="float64", class_weight=class_weight)
    weights = np.random.default_rng(1).integers(0, 4, len(X)).astype(float)
    weighted = clone(model).fit(X, y, weights)
    assert_same(weighted, clone(model).fit(X, y, 1000 * weights), rtol=1e-9)
    kept = weights > 0
    assert_same(weighted, clone(model).fit(X[kept], y[kept], weights[kept]))
    with pytest.raises(AssertionError):
        assert_same(weighted, clone(model).fit(X[kept], y[kept]), rtol=1e-3)


def test_weights_of_classes_are_weights_of_their_rows() -> None:
    X, y = rows_of()
    plain = HeadClassifier(**SMALL, class_weight=None, dtype="float64", scale="none", lr=0.01)
    by_class = clone(plain).set_params(class_weight={0: 1, 1: 3, 2: 0.5}).fit(X, y)
    assert_same(by_class, clone(plain).fit(X, y, np.array([1, 3, 0.5])[y]), rtol=1e-9)
    balanced = clone(plain).set_params(class_weight="balanced").fit(X, y)
    assert_same(balanced, clone(plain).fit(X, y, (1 / np.bincount(y))[y]), rtol=1e-9)
    with pytest.raises(HeadError, match="'inverse': expected 'balanced', a dict or None"):
        clone(plain).set_params(class_weight="inverse").fit(X, y)
    with pytest.raises(HeadError, match="class_weight is 0 for every row"):
        clone(plain).set_params(class_weight=dict.fromkeys(range(3), 0)).fit(X, y)


def test_chance_is_that_of_random_state() -> None:
    X, y = rows_of()

    def first(random_state: Any) -> np.ndarray:
        return HeadClassifier(**SMALL, random_state=random_state).fit(X, y).coefs_[0]

    np.testing.assert_array_equal(first(7), first(np.int64(7)))
    np.testing.assert_array_equal(first(np.random.RandomState(7)), first(np.random.RandomState(7)))
    assert np.abs(first(7) - first(8)).max() > 0.01
    state = np.random.RandomState(7)
    assert np.abs(first(state) - first(state)).max() > 0.01
    assert np.abs(first(None) - first(None)).max() > 0.01


def test_a_batch_is_all_rows_at_most() -> None:
    X, y = rows_of()
    whole = HeadClassifier(**SMALL, batch=len(X)).fit(X, y)
    assert_same(whole, HeadClassifier(**SMALL, batch=10_000).fit(X, y))
    assert np.abs(whole.coefs_[0] - HeadClassifier(**SMALL, batch=len(X) // 2).fit(X, y).coefs_[0]).max() > 1e-4


def test_the_best_epoch_is_kept_and_ends_the_training() -> None:
    X, y = rows_of(60)
    generator = np.random.default_rng(5)
    X_val, y_val = X[:30] + generator.standard_normal((30, 12)), y[:30]
    hot = {"hidden": (8,), "lr": 0.02, "monitor": "val_loss"}
    fitted = HeadClassifier(**hot, epochs=200, patience=4, restore_best=True).fit(X, y, X_val=X_val, y_val=y_val)
    losses = fitted.history_.val_loss
    assert fitted.best_epoch_ == losses.idxmin() + 1 < 196
    assert fitted.n_iter_ == len(losses) == fitted.best_epoch_ + 4
    assert_same(fitted, HeadClassifier(**hot, epochs=fitted.best_epoch_).fit(X, y))
    without = HeadClassifier(**SMALL).fit(X, y)
    assert without.history_.val_loss.isna().all()
    assert not hasattr(without, "best_epoch_")


# What cannot be trained


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1}, "`lr=-1`: expected a number above 0"),
        ({"hidden": (0,)}, r"`hidden=\(0,\)`"),
        ({"activation": "step"}, "`activation='step'`: expected relu or elu"),
        ({"l2": [0.1, 0.1, 0.1]}, "one for each of the 2 layers"),
        ({"batch": 0}, "`batch=0`"),
        ({"random_state": -1}, "`seed=-1`"),
        ({"dtype": "float16"}, "`dtype='float16'`"),
        ({"patience": 3}, "monitor 'val_loss': expected X_val and y_val in fit, or monitor 'loss'"),
    ],
)
def test_settings_are_judged_when_it_is_fitted(settings: dict[str, Any], message: str) -> None:
    model = HeadClassifier().set_params(**settings)
    with pytest.raises(HeadError, match=message):
        model.fit(*rows_of())


def test_rows_that_cannot_be_trained_on_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = rows_of()
    model = HeadClassifier(**SMALL)
    with pytest.raises(HeadError, match="only the class 1: at least two classes are needed"):
        model.fit(X, np.ones(len(X), int))
    with pytest.raises(HeadError, match="only the class 0"):
        model.fit(X, y, sample_weight=y == 0)
    with pytest.raises(HeadError, match="X_val and y_val: expected both or none"):
        model.fit(X, y, X_val=X)
    with pytest.raises(HeadError, match=r"y_val has the classes \[5, 6\], which no training row has"):
        model.fit(X, y, X_val=X[:3], y_val=[5, 0, 6])
    assert np.isfinite(model.fit(np.zeros((4, 2)), [0, 1, 0, 1]).predict_proba(np.zeros((1, 2)))).all()
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: 50_000)
    with pytest.raises(HeadError, match=r"the block solver needs .* GiB are free"):
        model.fit(X, y)


def test_it_is_public_and_loads_no_network(tmp_path: Path) -> None:
    assert featcache.HeadClassifier is HeadClassifier
    program = (
        "import sys, featcache\n"
        "featcache.HeadClassifier((4,), epochs=2).fit([[0.0, 1], [1, 0]] * 4, [0, 1] * 4).predict([[0.0, 1]])\n"
        "print([name for name in ('keras', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Arguments of another kind than expected


def test_class_weights_are_found_by_labels_that_look_like_numbers() -> None:
    X, y = np.random.default_rng(0).normal(size=(60, 5)), np.array(["1", "2", "10"] * 20)
    weights = {"1": 3.0, "10": 0.5}
    by_text = HeadClassifier(epochs=3, class_weight=weights).fit(X, y)
    order = ["1", "10", "2"]  # as sorted
    by_name = HeadClassifier(epochs=3, class_weight={"a": 3.0, "b": 0.5}).fit(
        X, np.array([dict(zip(order, "abc", strict=True))[label] for label in y])
    )
    np.testing.assert_array_equal(by_text.coefs_[0], by_name.coefs_[0])


def test_one_number_of_hidden_units_is_one_layer() -> None:
    X, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 2
    one, same = HeadClassifier(hidden=8, epochs=2).fit(X, y), HeadClassifier(hidden=(8,), epochs=2).fit(X, y)
    np.testing.assert_array_equal(one.coefs_[0], same.coefs_[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": None}, "`batch=None`: expected a whole number"),
        ({"batch": 2.5}, "`batch=2.5`: expected a whole number"),
        ({"epochs": "10"}, "`epochs='10'`: expected a whole number"),
        ({"hidden": "256"}, "`hidden=.*`: expected a tuple, each a whole number"),
        ({"hidden": None}, "`hidden=.*`: expected a tuple, each a whole number"),
        ({"hidden": (8, None)}, "`hidden=.*`: expected a tuple, each a whole number"),
        ({"lr": None}, "`lr=None`: expected a number"),
        ({"lr": float("nan")}, "`lr=nan`: expected a number above 0"),
        ({"l2": "much"}, "`l2='much'`: expected a number"),
        ({"dropout": [0.5]}, r"`dropout=\[0.5\]`: expected a number"),
        ({"nesterov": "yes"}, "`nesterov='yes'`: expected True or False"),
        ({"activation": None}, "`activation=None`: expected relu or"),
        ({"patience": True}, "`patience=True`: expected a whole number"),
        ({"class_weight": [1, 2]}, "class_weight .*: expected 'balanced', a dict or None"),
        ({"class_weight": {7: 1.0}}, "class_weight names 7, which no row has"),
        ({"class_weight": {0: "much"}}, "class_weight 'much': expected a number"),
        ({"class_weight": {0: -1.0}}, "class_weight -1.0: expected a number of at least 0"),
    ],
)
def test_settings_of_another_type_are_named(settings: dict[str, Any], message: str) -> None:
    X, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 2
    with pytest.raises(HeadError, match=message):
        HeadClassifier(**{"epochs": 1, **settings}).fit(X, y)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None] * 20, "row 1 has no label"),
        (np.array(["a", "b", None, "a"] * 10, dtype=object), "row 2 has no label"),
        (["a", float("nan")] * 20, "row 1 has no label"),
        (["a", 1] * 20, "labels of several types"),
    ],
)
def test_rows_without_a_label_are_named(labels: Any, message: str) -> None:
    X = np.random.default_rng(0).normal(size=(40, 5))
    with pytest.raises(HeadError, match=message):
        HeadClassifier(epochs=1).fit(X, labels)
    with pytest.raises(HeadError, match="y_val: " + message):
        HeadClassifier(epochs=1).fit(X, ["a", "b"] * 20, X_val=X, y_val=labels)
