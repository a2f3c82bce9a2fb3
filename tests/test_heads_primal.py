"""Gram space against Keras: the primal solver of this package, and `keras.Model.fit` itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from test_heads_gram import CLASSES, in_gram_space, problem_of

from featcache.backbones.quiet_keras import import_keras
from featcache.errors import HeadError
from featcache.heads import primal, random
from featcache.heads.config import HeadConfig
from featcache.heads.train import row_weights

DATA = problem_of(n=69, m=20, d=24)


@pytest.fixture(scope="module")
def keras() -> Any:
    return import_keras()


def in_primal_space(config: HeadConfig, data: tuple[np.ndarray, ...] = DATA) -> Any:
    X, y, X_val, y_val = data
    layers = random.initial_weights(config, X.shape[1], CLASSES)
    X, X_val = X.astype(config.dtype), X_val.astype(config.dtype)
    return primal.train(X, y, row_weights(y, config), X_val, y_val, layers, 1.0, config)


def measures(history: Any) -> list[tuple[float, ...]]:
    return [(e.loss, e.accuracy, e.val_loss, e.val_accuracy, e.lr) for e in history]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize(
    ("hidden", "decay", "class_weights"), [((), 0.0, "balanced"), ((16,), 0.01, "none"), ((16, 8), 0.01, "balanced")]
)
def test_the_two_solvers_have_one_course(
    keras: Any, dtype: Any, tolerance: float, hidden: Any, decay: float, class_weights: Any
) -> None:
    config = HeadConfig(
        hidden, 0.0, lr=0.003, decay=decay, epochs=20, scale="none", dtype=dtype, class_weights=class_weights
    )
    layers, history = in_primal_space(config)
    expected_layers, expected = in_gram_space(*DATA, config)
    np.testing.assert_allclose(measures(history), measures(expected), rtol=tolerance)
    for (W, b), (W_expected, b_expected) in zip(layers, expected_layers, strict=True):
        assert W.dtype == b.dtype == dtype
        np.testing.assert_allclose(W, W_expected, atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(b, b_expected, atol=tolerance, rtol=tolerance)
    assert history[-1].loss < history[0].loss
    assert keras.config.floatx() == "float32"


def test_gram_space_is_keras_fit(keras: Any) -> None:
    """A model built here, fitted an epoch at a time on rows in our order: history and weights of Keras itself."""
    X, y, X_val, y_val = (array.astype("float32") if array.ndim == 2 else array for array in DATA)
    config = HeadConfig((16, 8), 0.0, lr=0.004, decay=0.02, batch=10, epochs=10, scale="none", class_weights="none")
    model = keras.Sequential(
        [
            keras.Input((24,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model.set_weights([array for pair in random.initial_weights(config, 24, CLASSES) for array in pair])
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.004, decay_steps=1, decay_rate=0.02)
    model.compile(keras.optimizers.SGD(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    course = []
    for epoch in range(config.epochs):
        order = random.order(config.seed, epoch, len(y))
        fitted = model.fit(
            X[order], y[order], batch_size=10, epochs=1, shuffle=False, verbose=0, validation_data=(X_val, y_val)
        ).history
        course.append([fitted[name][0] for name in ("loss", "accuracy", "val_loss", "val_accuracy")])
    layers, history = in_gram_space(X, y, X_val, y_val, config)
    np.testing.assert_allclose([line[:4] for line in measures(history)], course, rtol=1e-4)
    flat = [array for pair in layers for array in pair]
    for found, expected in zip(flat, model.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_with_dropout_it_learns_and_repeats_itself(keras: Any) -> None:
    config = HeadConfig((16, 8), 0.5, lr=0.01, epochs=8, scale="none")
    _, one = in_primal_space(config)
    _, other = in_primal_space(config)
    assert measures(one) == measures(other)
    assert one[-1].loss < one[0].loss
    _, without = in_primal_space(replace(config, dropout=0.0, epochs=1))
    assert one[0].loss != without[0].loss


def test_without_validation_rows_its_measures_are_nan(keras: Any) -> None:
    X, y, X_val, y_val = DATA
    _, history = in_primal_space(HeadConfig((8,), epochs=2, scale="none"), (X, y, X_val[:0], y_val[:0]))
    assert all(np.isnan(e.val_loss) and np.isnan(e.val_accuracy) and np.isfinite(e.loss) for e in history)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_training_that_diverges_is_an_error_with_advice(keras: Any, dtype: Literal["float32", "float64"]) -> None:
    X, y, X_val, y_val = DATA
    config = HeadConfig((16, 8), 0.0, lr=1e30, epochs=30, scale="none", dtype=dtype)
    with pytest.raises(HeadError, match=r"in epoch \d+: the training diverges .*try --lr"):
        in_primal_space(config, (X * 30, y, X_val * 30, y_val))
    assert keras.config.floatx() == "float32"
