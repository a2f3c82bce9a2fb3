"""Gram space against an own primal loop in float64: the same numbers, step for step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

from featcache.errors import HeadError
from featcache.heads import gram, random
from featcache.heads.config import HeadConfig
from featcache.heads.history import Epoch
from featcache.heads.stack import Stack
from featcache.heads.train import row_weights

N, M, D, CLASSES = 333, 50, 40, 4  # 333 is divided by no batch here, nor by a block of 256


def problem_of(seed: int = 0, n: int = N, m: int = M, d: int = D) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    X = np.maximum(generator.standard_normal((n, d)), 0) * 2
    X_val = np.maximum(generator.standard_normal((m, d)), 0) * 2
    teacher = generator.standard_normal((d, CLASSES))
    return X, (X @ teacher).argmax(axis=1), X_val, (X_val @ teacher).argmax(axis=1)


def in_gram_space(
    X: np.ndarray, y: np.ndarray, X_val: np.ndarray, y_val: np.ndarray, config: HeadConfig,
    on_epoch: Callable[[Epoch], object] = lambda _: None,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[Epoch]]:  # fmt: skip
    """The trained layers, the first formed as W0 + X^T A, and the history."""
    (W0, b0), *rest = random.initial_weights(config, X.shape[1], CLASSES)
    X, X_val = X.astype(config.dtype), X_val.astype(config.dtype)
    stack = Stack(b0, rest)
    problem = gram.GramProblem(X @ X.T, X @ W0, y, row_weights(y, config), X_val @ X.T, X_val @ W0, y_val)
    A, history = gram.train(problem, stack, config, on_epoch)
    assert A.dtype == config.dtype
    return [(W0 + X.T @ A, stack.bias), *stack.layers], history


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def in_primal_space(
    X: np.ndarray, y: np.ndarray, X_val: np.ndarray, y_val: np.ndarray, config: HeadConfig
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[float, float, float, float]]]:
    """Minibatch SGD as in any textbook: a matrix of weights, one batch after the other."""
    weights = random.initial_weights(config, X.shape[1], CLASSES)
    Ws, bs = [W.copy() for W, _ in weights], [b.copy() for _, b in weights]
    weight_of_class = np.ones(CLASSES)
    if config.class_weights == "balanced":
        weight_of_class = len(y) / (CLASSES * np.array([(y == label).sum() for label in range(CLASSES)]))
    update, history = 0, []
    for epoch in range(config.epochs):
        order = random.order(config.seed, epoch, len(y))
        losses, hits = [], []
        for number, start in enumerate(range(0, len(y), config.batch)):
            rows = order[start : start + config.batch]
            inputs, a = [X[rows]], X[rows]
            keeps: list[Any] = []
            for layer, (W, b) in enumerate(zip(Ws[:-1], bs[:-1], strict=True)):
                z = a @ W + b
                keep = np.ones(z.shape)
                if config.dropout:
                    drawn = random.keep_mask(config.seed, epoch, number, layer, z.shape, config.dropout)
                    keep = drawn / (1 - config.dropout)
                a = np.where(z > 0, z, 0) * keep
                keeps.append((z > 0) * keep)
                inputs.append(a)
            logits = a @ Ws[-1] + bs[-1]
            losses += list(-log_softmax(logits)[range(len(rows)), y[rows]] * weight_of_class[y[rows]])
            hits += list(logits.argmax(axis=1) == y[rows])
            delta = (np.exp(log_softmax(logits)) - np.eye(CLASSES)[y[rows]]) / len(rows)
            delta *= weight_of_class[y[rows], None]
            lr = config.lr / (1 + config.decay * update)
            for layer in reversed(range(len(Ws))):
                back = delta @ Ws[layer].T
                Ws[layer] -= lr * inputs[layer].T @ delta
                bs[layer] -= lr * delta.sum(axis=0)
                if layer:
                    delta = back * keeps[layer - 1]
            update += 1
        a = X_val
        for W, b in zip(Ws[:-1], bs[:-1], strict=True):
            a = np.maximum(a @ W + b, 0)
        val = log_softmax(a @ Ws[-1] + bs[-1])
        val_loss = -val[range(len(y_val)), y_val].mean()
        history.append((np.mean(losses), np.mean(hits), val_loss, np.mean(val.argmax(axis=1) == y_val)))
    return list(zip(Ws, bs, strict=True)), history


@pytest.mark.parametrize("hidden", [(), (32,), (32, 16)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    ("batch", "decay", "class_weights"),
    [(16, 0.01, "balanced"), (7, 0.0, "none"), (300, 0.1, "none"), (333, 0.0, "balanced"), (1, 0.001, "none")],
)
def test_it_is_minibatch_sgd_step_for_step(
    hidden: tuple[int, ...], dropout: float, batch: int, decay: float, class_weights: Literal["none", "balanced"]
) -> None:
    epochs = {1: 1, 7: 7, 16: 12}.get(batch, 30)  # hundreds of updates
    config = HeadConfig(
        hidden, dropout, lr=0.01, decay=decay, batch=batch, epochs=epochs, scale="none", seed=3, dtype="float64",
        class_weights=class_weights,
    )  # fmt: skip
    data = problem_of()
    layers, history = in_gram_space(*data, config)
    expected_layers, expected = in_primal_space(*data, config)
    found = [(e.loss, e.accuracy, e.val_loss, e.val_accuracy) for e in history]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)
    for (W, b), (W_expected, b_expected) in zip(layers, expected_layers, strict=True):
        np.testing.assert_allclose(W, W_expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(b, b_expected, rtol=1e-9, atol=1e-9)
    assert np.abs(layers[0][0] - random.initial_weights(config, D, CLASSES)[0][0]).max() > 0.01  # it did move
    assert epochs == 1 or history[-1].loss < history[0].loss
    assert [e.epoch for e in history] == list(range(1, epochs + 1))
    updates = -(-N // batch)
    np.testing.assert_allclose([e.lr for e in history], [0.01 / (1 + decay * updates * e) for e in range(epochs)])


def test_float32_stays_near_float64_at_a_rate_that_converges() -> None:
    data = problem_of()
    courses, weights = [], []
    for dtype in ("float32", "float64"):
        config = HeadConfig((32,), 0.5, lr=0.005, epochs=20, scale="none", dtype=dtype)
        layers, history = in_gram_space(*data, config)
        courses.append([(e.loss, e.val_loss) for e in history])
        weights.append(layers[0][0])
    np.testing.assert_allclose(courses[0], courses[1], rtol=1e-4)
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-4)


def test_the_same_training_twice_has_the_same_bits() -> None:
    config = HeadConfig((32,), 0.5, lr=0.01, epochs=5, scale="none")
    one, other = (in_gram_space(*problem_of(), config) for _ in range(2))
    for (W, b), (W_other, b_other) in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(W, W_other)
        np.testing.assert_array_equal(b, b_other)
    assert [e.loss for e in one[1]] == [e.loss for e in other[1]]


def test_without_validation_rows_its_measures_are_nan() -> None:
    X, y, X_val, y_val = problem_of()
    seen: list[Epoch] = []
    config = HeadConfig((8,), epochs=3, scale="none")
    _, history = in_gram_space(X, y, X_val[:0], y_val[:0], config, seen.append)
    assert seen == history
    assert all(np.isnan(e.val_loss) and np.isnan(e.val_accuracy) and np.isfinite(e.loss) for e in history)


@pytest.mark.parametrize("hidden", [(), (32,), (32, 16)])
@pytest.mark.parametrize("lr", [1e6, 1e30, 1e300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_training_that_diverges_is_an_error_with_advice(hidden: tuple[int, ...], lr: float, dtype: str) -> None:
    X, y, X_val, y_val = problem_of()
    config = HeadConfig(hidden, 0.5, lr=lr, epochs=30, scale="none", dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(HeadError, match=r"in epoch \d+: the training diverges .*try --lr"):
        in_gram_space(X * 30, y, X_val * 30, y_val, config)


# Randomness


def test_order_and_masks_follow_from_their_counters_alone() -> None:
    one = random.order(5, 7, 100)
    mask = random.keep_mask(5, 7, 3, 1, (16, 8), 0.5)
    random.order(5, 6, 100), random.keep_mask(5, 7, 2, 1, (16, 8), 0.5)
    np.testing.assert_array_equal(random.order(5, 7, 100), one)
    np.testing.assert_array_equal(random.keep_mask(5, 7, 3, 1, (16, 8), 0.5), mask)
    assert sorted(one) == list(range(100))
    orders = {tuple(random.order(seed, epoch, 100)) for seed in (0, 1, 2**62) for epoch in range(10)}
    assert len(orders) == 30
    masks = {
        random.keep_mask(seed, epoch, batch, layer, (16, 8), 0.5).tobytes()
        for seed in (0, 1)
        for epoch in range(4)
        for batch in range(4)
        for layer in range(2)
    }
    assert len(masks) == 64


def test_a_short_batch_has_the_first_rows_of_the_mask_of_a_full_one() -> None:
    full = random.keep_mask(0, 0, 0, 0, (16, 8), 0.5)
    np.testing.assert_array_equal(random.keep_mask(0, 0, 0, 0, (5, 8), 0.5), full[:5])


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_masks_keep_the_right_fraction(dropout: float) -> None:
    kept = random.keep_mask(1, 2, 3, 0, (1000, 256), dropout).mean()
    assert kept == pytest.approx(1 - dropout, abs=5 * np.sqrt(dropout * (1 - dropout) / 256_000))


def test_initial_weights_are_glorot_uniform_or_drawn_for_scaled_inputs() -> None:
    config = HeadConfig((64, 32), scale="none")
    layers = random.initial_weights(config, 5000, 4)
    assert [W.shape for W, _ in layers] == [(5000, 64), (64, 32), (32, 4)]
    for W, b in layers:
        bound = np.sqrt(6 / sum(W.shape))
        assert bound * 0.9 < np.abs(W).max() <= bound * (1 + 1e-6)
        assert W.dtype == b.dtype == np.float32
        assert not b.any()
    scaled = random.initial_weights(HeadConfig((64, 32)), 5000, 4)
    assert scaled[0][0].std() == pytest.approx(np.sqrt(2 / random.SCALED_SQUARED_NORM), rel=0.02)
    np.testing.assert_array_equal(scaled[1][0], layers[1][0])
    wide = random.initial_weights(HeadConfig((64, 32), dtype="float64"), 5000, 4)
    assert wide[0][0].dtype == np.float64
    np.testing.assert_array_equal(wide[0][0], scaled[0][0])
    other = random.initial_weights(HeadConfig((64, 32), seed=1), 5000, 4)
    assert abs(np.corrcoef(other[0][0].ravel(), scaled[0][0].ravel())[0, 1]) < 0.02


# Configuration


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": (0,)}, {"hidden": (8, -1)}, {"dropout": 1.0}, {"dropout": -0.1}, {"dropout": float("nan")},
        {"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"decay": -1.0},
        {"decay": float("nan")}, {"batch": 0}, {"epochs": 0}, {"seed": -1}, {"seed": 2**63},
        {"scale": "some"}, {"class_weights": "some"}, {"dtype": "float16"},
    ],
    ids=str,
)  # fmt: skip
def test_a_head_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HeadError, match="expected"):
        HeadConfig(**wrong)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(HeadError, match=r"dropout 2.*batch 0.*epochs 0"):
        HeadConfig(dropout=2, batch=0, epochs=0)
