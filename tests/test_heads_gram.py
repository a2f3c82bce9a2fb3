"""Gram space against an own primal loop in float64: the same numbers, step for step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_sample_weight

from featcache.core.errors import HeadError
from featcache.heads import gram, initializers as random
from featcache.heads.config import HeadConfig
from featcache.heads.stack import Stack
from featcache.heads.train import row_weights
from featcache.training.history import Epoch

N, M, D, CLASSES = 333, 50, 40, 4  # 333 is divided by no batch here, nor by a block of 256


def problem_of(seed: int = 0, n: int = N, m: int = M, d: int = D) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    X = np.maximum(generator.standard_normal((n, d)), 0) * 2
    X_val = np.maximum(generator.standard_normal((m, d)), 0) * 2
    teacher = generator.standard_normal((d, CLASSES))
    return X, (X @ teacher).argmax(axis=1), X_val, (X_val @ teacher).argmax(axis=1)


def in_gram_space(
    X: np.ndarray, y: np.ndarray, X_val: np.ndarray, y_val: np.ndarray, config: HeadConfig,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[Epoch]]:  # fmt: skip
    """The trained layers, the first formed as s W0 + X^T A, and the history."""
    (W0, b0), *rest = random.initial_weights(config, X.shape[1], n_classes=CLASSES)
    X, X_val = X.astype(config.dtype), X_val.astype(config.dtype)
    weights = row_weights(y, config)
    problem = gram.GramProblem(X @ X.T, X @ W0, y, weights, X_val @ X.T, X_val @ W0, y_val)
    state = gram.train(problem, gram.start(problem, Stack(b0, rest, config)))
    assert state.A.dtype == config.dtype
    return [(W0 * X.dtype.type(state.s) + X.T @ state.A, state.stack.bias), *state.stack.layers], state.history


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "relu": (lambda z: np.where(z > 0, z, 0), lambda z: (z > 0).astype(float)),
    "elu": (lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))), lambda z: np.exp(np.minimum(z, 0))),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "linear": (lambda z: z, np.ones_like),
}  # fmt: skip


def loss_and_slope(
    logits: np.ndarray, targets: np.ndarray, output: str, weights: Any = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each row and its gradient by the logits; weights of rows (n, 1), or of each label (n, classes)."""
    if output == "softmax":
        losses = -(targets * log_softmax(logits) * weights).sum(axis=1)
        return losses, (np.exp(log_softmax(logits)) - targets) * weights
    p = 1 / (1 + np.exp(-logits))
    losses = -((targets * np.log(p) + (1 - targets) * np.log(1 - p)) * weights).mean(axis=1)
    return losses, (p - targets) / logits.shape[1] * weights


def rate(config: HeadConfig, update: int, updates: int) -> float:
    total = config.epochs * updates
    rates = {
        "inverse-time": config.lr / (1 + config.decay * update),
        "constant": config.lr,
        "cosine": config.lr * 0.5 * (1 + np.cos(np.pi * update / total)),
        "step": config.lr * config.step_factor ** ((update // updates) // config.step_epochs),
    }
    return float(rates[config.schedule])


def targets_by_hand(y: np.ndarray, config: HeadConfig) -> np.ndarray:
    hot = np.eye(CLASSES)[y] if y.ndim == 1 else y.astype(float)
    return hot * (1 - config.label_smoothing) + config.label_smoothing / (2 if config.output == "sigmoid" else CLASSES)


def in_primal_space(
    X: np.ndarray, y: np.ndarray, X_val: np.ndarray, y_val: np.ndarray, config: HeadConfig
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[float, float, float, float]]]:
    """Minibatch SGD as in any textbook: matrices of weights, one batch after the other."""
    activate, slope = ACTIVATIONS[config.activation]
    weights = random.initial_weights(config, X.shape[1], n_classes=CLASSES)
    Ws, bs = [W.copy() for W, _ in weights], [b.copy() for _, b in weights]
    velocities = [(np.zeros_like(W), np.zeros_like(b)) for W, b in weights]
    weight = np.ones((len(y), 1))
    if config.class_weights == "balanced" and y.ndim == 1:
        weight = (len(y) / (CLASSES * np.array([(y == label).sum() for label in range(CLASSES)])))[y][:, None]
    elif config.class_weights == "balanced":  # scikit-learn's formula for each column: its zeros and its ones
        weight = np.stack([compute_sample_weight("balanced", column) for column in y.T], axis=1)
    T, T_val = targets_by_hand(y, config), targets_by_hand(y_val, config)
    updates = -(-len(y) // config.batch)
    update, history = 0, []

    def right(logits: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean(logits.argmax(axis=1) == y) if y.ndim == 1 else np.mean(((logits > 0) == y).all(axis=1)))

    for epoch in range(config.epochs):
        order = random.order(config.seed, epoch, len(y))
        losses, outputs = [], []
        for start in range(0, len(y), config.batch):
            rows = order[start : start + config.batch]
            inputs, slopes, a = [X[rows]], [], X[rows]
            for layer, (W, b) in enumerate(zip(Ws[:-1], bs[:-1], strict=True)):
                z = a @ W + b
                keep = np.ones(z.shape)
                if config.dropout:
                    drawn = random.keep_mask(
                        config.seed,
                        epoch,
                        layer=layer,
                        start=start,
                        stop=start + len(rows),
                        units=z.shape[1],
                        dropout=config.dropout,
                    )
                    keep = drawn / (1 - config.dropout)
                a = activate(z) * keep
                slopes.append(slope(z) * keep)
                inputs.append(a)
            logits = a @ Ws[-1] + bs[-1]
            loss, delta = loss_and_slope(logits, T[rows], config.output, weight[rows])
            losses += list(loss)
            outputs.append(logits)
            delta = delta / len(rows)
            lr = rate(config, update, updates)
            for layer in reversed(range(len(Ws))):
                back = delta @ Ws[layer].T
                gW = inputs[layer].T @ delta + 2 * config.l2_of(layer) * Ws[layer]
                gb = delta.sum(axis=0)
                vW, vb = (config.momentum * v - lr * g for v, g in zip(velocities[layer], (gW, gb), strict=True))
                velocities[layer] = (vW, vb)
                Ws[layer] += config.momentum * vW - lr * gW if config.nesterov else vW
                bs[layer] += config.momentum * vb - lr * gb if config.nesterov else vb
                if layer:
                    delta = back * slopes[layer - 1]
            update += 1
        a = X_val
        for W, b in zip(Ws[:-1], bs[:-1], strict=True):
            a = activate(a @ W + b)
        logits = a @ Ws[-1] + bs[-1]
        val_loss = loss_and_slope(logits, T_val, config.output)[0].mean()
        hits = right(np.concatenate(outputs), y[order])
        history.append((float(np.mean(losses)), hits, float(val_loss), right(logits, y_val)))
    return list(zip(Ws, bs, strict=True)), history


def compare(config: HeadConfig, data: tuple[np.ndarray, ...], solve: Any = in_gram_space) -> list[Epoch]:
    """Assert that both ways have one course and end at one place."""
    layers, history = solve(*data, config)
    expected_layers, expected = in_primal_space(*data, config)
    found = [(e.loss, e.accuracy, e.val_loss, e.val_accuracy) for e in history]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)
    for (W, b), (W_expected, b_expected) in zip(layers, expected_layers, strict=True):
        np.testing.assert_allclose(W, W_expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(b, b_expected, rtol=1e-9, atol=1e-9)
    assert np.abs(layers[0][0] - random.initial_weights(config, D, n_classes=CLASSES)[0][0]).max() > 0.01  # it did move
    assert config.epochs == 1 or history[-1].loss < history[0].loss
    assert [e.epoch for e in history] == list(range(1, config.epochs + 1))
    updates = -(-N // config.batch)
    np.testing.assert_allclose(
        [e.lr for e in history], [rate(config, updates * e, updates) for e in range(config.epochs)]
    )
    return history


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
        hidden, dropout=dropout, lr=0.01, decay=decay, batch=batch, epochs=epochs, scale="none", seed=3,
        dtype="float64", class_weights=class_weights,
    )  # fmt: skip
    compare(config, problem_of())


OPTIONS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9, "lr": 0.002},
    "nesterov": {"momentum": 0.9, "nesterov": True, "lr": 0.002},
    "l2": {"l2": 0.01},
    "l2-of-each": {"l2": (0.05, 0.0, 0.02)},
    "l2-first-free": {"l2": (0.0, 0.02, 0.02)},
    "momentum-l2": {"momentum": 0.8, "l2": 0.02, "lr": 0.003},
    "nesterov-l2": {"momentum": 0.8, "nesterov": True, "l2": 0.02, "lr": 0.003},
    "constant": {"schedule": "constant"},
    "cosine": {"schedule": "cosine"},
    "step": {"schedule": "step", "step_epochs": 2, "step_factor": 0.3},
    "cosine-nesterov-l2": {"schedule": "cosine", "momentum": 0.9, "nesterov": True, "l2": 0.01, "lr": 0.002},
    "smoothing": {"label_smoothing": 0.1},
    "sigmoid": {"output": "sigmoid", "label_smoothing": 0.1, "lr": 0.05},
    "elu": {"activation": "elu"},
    "tanh": {"activation": "tanh"},
    "logistic": {"activation": "sigmoid", "lr": 0.1},
    "linear": {"activation": "linear", "lr": 0.002},
}


@pytest.mark.parametrize("batch", [16, 50])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_is_that_of_the_textbook(option: str, batch: int) -> None:
    config = HeadConfig(
        **{
            "hidden": (32, 16),
            "dropout": 0.3,
            "lr": 0.01,
            "batch": batch,
            "epochs": 12,
            "scale": "none",
            "dtype": "float64",
        }
        | OPTIONS[option]
    )
    compare(config, problem_of())


@pytest.mark.parametrize("option", ["momentum", "nesterov-l2", "l2"])
def test_the_options_hold_without_a_hidden_layer_and_for_single_rows(option: str) -> None:
    options = {**OPTIONS[option], "dropout": 0.0, "scale": "none", "dtype": "float64"}
    compare(HeadConfig((), epochs=12, **options), problem_of())
    compare(HeadConfig((8,), epochs=1, batch=1, **{**options, "lr": 0.001}), problem_of())


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_rows_of_several_labels(class_weights: Any) -> None:
    X, y, X_val, y_val = problem_of()
    several, several_val = (np.stack([k % 2, k > 1, k == 0, k != 2], axis=1).astype(np.int64) for k in (y, y_val))
    config = HeadConfig(
        (16,), output="sigmoid", lr=0.05, epochs=10, scale="none", dtype="float64", class_weights=class_weights
    )
    history = compare(config, (X, several, X_val, several_val))
    assert history[-1].loss < history[0].loss


def test_validation_is_looked_at_every_so_often_and_at_the_end() -> None:
    config = HeadConfig((8,), epochs=8, val_every=3, scale="none")
    _, history = in_gram_space(*problem_of(), config)
    assert [np.isfinite(e.val_loss) for e in history] == [False, False, True, False, False, True, False, True]


def test_float32_stays_near_float64_at_a_rate_that_converges() -> None:
    data = problem_of()
    courses, weights = [], []
    for dtype in ("float32", "float64"):
        config = HeadConfig((32,), dropout=0.5, lr=0.005, epochs=20, scale="none", dtype=dtype)
        layers, history = in_gram_space(*data, config)
        courses.append([(e.loss, e.val_loss) for e in history])
        weights.append(layers[0][0])
    np.testing.assert_allclose(courses[0], courses[1], rtol=1e-4)
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-4)


def test_the_same_training_twice_has_the_same_bits() -> None:
    config = HeadConfig((32,), dropout=0.5, lr=0.01, epochs=5, scale="none")
    one, other = (in_gram_space(*problem_of(), config) for _ in range(2))
    for (W, b), (W_other, b_other) in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(W, W_other)
        np.testing.assert_array_equal(b, b_other)
    assert [e.loss for e in one[1]] == [e.loss for e in other[1]]


def test_without_validation_rows_its_measures_are_nan() -> None:
    X, y, X_val, y_val = problem_of()
    config = HeadConfig((8,), epochs=3, scale="none")
    _, history = in_gram_space(X, y, X_val[:0], y_val[:0], config)
    assert len(history) == 3
    assert all(np.isnan(e.val_loss) and np.isnan(e.val_accuracy) and np.isfinite(e.loss) for e in history)


@pytest.mark.parametrize("hidden", [(), (32,), (32, 16)])
@pytest.mark.parametrize("lr", [1e6, 1e30, 1e300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_training_that_diverges_is_an_error_with_advice(hidden: tuple[int, ...], lr: float, dtype: str) -> None:
    X, y, X_val, y_val = problem_of()
    config = HeadConfig(hidden, dropout=0.5, lr=lr, epochs=30, scale="none", dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(HeadError, match=r"in epoch \d+: the training diverges .*Try `lr="):
        in_gram_space(X * 30, y, X_val * 30, y_val, config)


# Randomness


def test_order_and_masks_follow_from_their_counters_alone() -> None:
    one = random.order(5, 7, 100)
    mask = random.keep_mask(5, 7, layer=1, start=300, stop=316, units=8, dropout=0.5)
    random.order(5, 6, 100), random.keep_mask(5, 7, layer=1, start=0, stop=16, units=8, dropout=0.5)
    np.testing.assert_array_equal(random.order(5, 7, 100), one)
    np.testing.assert_array_equal(random.keep_mask(5, 7, layer=1, start=300, stop=316, units=8, dropout=0.5), mask)
    assert sorted(one) == list(range(100))
    orders = {tuple(random.order(seed, epoch, 100)) for seed in (0, 1, 2**62) for epoch in range(10)}
    assert len(orders) == 30
    masks = {
        random.keep_mask(seed, epoch, layer=layer, start=start, stop=start + 16, units=8, dropout=0.5).tobytes()
        for seed in (0, 2**63 - 1)
        for epoch in range(4)
        for start in range(0, 1024, 16)
        for layer in range(2)
    }
    assert len(masks) == 1024


@pytest.mark.parametrize("units", [1, 7, 256])
def test_a_mask_is_a_part_of_the_masks_of_the_whole_epoch(units: int) -> None:
    whole = random.keep_mask(1, 2, layer=0, start=0, stop=1000, units=units, dropout=0.3)
    assert whole.shape == (1000, units)
    for start, stop in [(0, 16), (250, 260), (255, 256), (256, 512), (511, 1000)]:
        np.testing.assert_array_equal(
            random.keep_mask(1, 2, layer=0, start=start, stop=stop, units=units, dropout=0.3), whole[start:stop]
        )


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_masks_keep_the_right_fraction(dropout: float) -> None:
    kept = random.keep_mask(1, 2, layer=0, start=0, stop=1000, units=256, dropout=dropout).mean()
    assert kept == pytest.approx(1 - dropout, abs=5 * np.sqrt(dropout * (1 - dropout) / 256_000))


def test_initial_weights_are_glorot_uniform_or_drawn_for_scaled_inputs() -> None:
    config = HeadConfig((64, 32), scale="none")
    layers = random.initial_weights(config, 5000, n_classes=4)
    assert [W.shape for W, _ in layers] == [(5000, 64), (64, 32), (32, 4)]
    for W, b in layers:
        bound = np.sqrt(6 / sum(W.shape))
        assert bound * 0.9 < np.abs(W).max() <= bound * (1 + 1e-6)
        assert W.dtype == b.dtype == np.float32
        assert not b.any()
    scaled = random.initial_weights(HeadConfig((64, 32)), 5000, n_classes=4)
    assert scaled[0][0].std() == pytest.approx(np.sqrt(2 / random.SCALED_SQUARED_NORM), rel=0.02)
    np.testing.assert_array_equal(scaled[1][0], layers[1][0])
    wide = random.initial_weights(HeadConfig((64, 32), dtype="float64"), 5000, n_classes=4)
    assert wide[0][0].dtype == np.float64
    np.testing.assert_array_equal(wide[0][0], scaled[0][0])
    other = random.initial_weights(HeadConfig((64, 32), seed=1), 5000, n_classes=4)
    assert abs(np.corrcoef(other[0][0].ravel(), scaled[0][0].ravel())[0, 1]) < 0.02


# Configuration


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": (0,)}, {"hidden": (8, -1)}, {"dropout": 1.0}, {"dropout": -0.1}, {"dropout": float("nan")},
        {"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"decay": -1.0},
        {"decay": float("nan")}, {"batch": 0}, {"epochs": 0}, {"seed": -1}, {"seed": 2**63},
        {"scale": "some"}, {"class_weights": "some"}, {"dtype": "float16"}, {"momentum": 1.0}, {"momentum": -0.1},
        {"nesterov": True}, {"l2": -1.0}, {"l2": float("nan")}, {"l2": (0.1,)}, {"l2": (0.1, -0.1)},
        {"label_smoothing": 1.0}, {"schedule": "some"}, {"activation": "some"}, {"output": "some"}, {"step_epochs": 0},
        {"step_factor": 0.0}, {"val_every": 0}, {"patience": -1}, {"l1": -1.0}, {"optimizer": "some"},
        {"optimizer": "adam", "momentum": 0.9}, {"monitor": "some"},
    ],
    ids=str,
)  # fmt: skip
def test_a_head_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HeadError, match="expected"):
        HeadConfig(**wrong)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(HeadError, match=r"dropout=2.*batch=0.*epochs=0"):
        HeadConfig(dropout=2, batch=0, epochs=0)
