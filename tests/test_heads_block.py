"""The block solver against an own primal loop in float64, Gram space and Keras; streamed against in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from test_heads_gram import CLASSES, OPTIONS, N, compare, in_gram_space, in_primal_space, problem_of
from test_heads_primal import DATA, cache as cache, fitted_by_keras, keras as keras, measures
from test_heads_train import separable
from test_store_contract import dataset, make_cache

from featcache.core.errors import HeadError
from featcache.heads import block, initializers as random, source as source_module
from featcache.heads.config import HeadConfig
from featcache.heads.cost import choose_solver
from featcache.heads.estimator import HeadClassifier
from featcache.heads.source import InMemory, Source, Streamed, source_of
from featcache.heads.stack import Stack
from featcache.heads.train import row_weights, train_head
from featcache.store.cache import Cache
from featcache.training.history import Epoch

Layers = list[tuple[np.ndarray, np.ndarray]]


def trained(source: Source, config: HeadConfig, **scaling: Any) -> tuple[Layers, list[Epoch]]:
    n_classes = source.y.shape[1] if source.y.ndim == 2 else CLASSES
    (W0, b0), *rest = random.initial_weights(config, source.width, n_classes=n_classes)
    state = block.train(source, block.start(W0, Stack(b0, rest, config)), **scaling)
    assert state.W.dtype == config.dtype
    return [(state.W, state.stack.bias), *state.stack.layers], state.history


def by_blocks(
    X: np.ndarray, y: np.ndarray, X_val: np.ndarray, y_val: np.ndarray, config: HeadConfig
) -> tuple[Layers, list[Epoch]]:
    return trained(InMemory(X, y, weights=row_weights(y, config), X_val=X_val, y_val=y_val), config)


@pytest.mark.parametrize("hidden", [(), (8,), (32,), (32, 16)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    ("batch", "decay", "class_weights"),
    [(16, 0.01, "balanced"), (7, 0.0, "none"), (300, 0.1, "none"), (333, 0.0, "balanced"), (1, 0.001, "none")],
)
def test_it_is_minibatch_sgd_step_for_step(
    hidden: tuple[int, ...], dropout: float, batch: int, decay: float, class_weights: Literal["none", "balanced"]
) -> None:
    """A first layer of few units, and of many; batches of one block, and blocks of one batch."""
    epochs = {1: 1, 7: 4, 16: 8}.get(batch, 20)
    config = HeadConfig(
        hidden, dropout=dropout, lr=0.01, decay=decay, batch=batch, epochs=epochs, scale="none", seed=3,
        dtype="float64", class_weights=class_weights,
    )  # fmt: skip
    compare(config, problem_of(), by_blocks)


@pytest.mark.parametrize(("batch", "hidden"), [(16, (32, 16)), (50, (32, 16)), (16, (8, 5))])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_is_that_of_the_textbook(option: str, batch: int, hidden: tuple[int, ...]) -> None:
    settings: dict[str, Any] = {"dropout": 0.3, "lr": 0.01, "epochs": 6, "scale": "none", "dtype": "float64"}
    compare(HeadConfig(hidden, batch=batch, **settings | OPTIONS[option]), problem_of(), by_blocks)


@pytest.mark.parametrize("option", ["momentum", "nesterov-l2", "l2"])
def test_the_options_hold_without_a_hidden_layer(option: str) -> None:
    for batch in (16, 5000):
        settings: dict[str, Any] = {"lr": 0.01, "epochs": 20, "scale": "none", "dtype": "float64"}
        compare(HeadConfig((), batch=min(batch, N), **settings | OPTIONS[option]), problem_of(), by_blocks)


@pytest.mark.parametrize("hidden", [(), (24,)])
def test_each_of_several_labels_has_weights_of_its_own(hidden: tuple[int, ...]) -> None:
    X, y, X_val, y_val = problem_of()
    several, several_val = (np.eye(CLASSES, dtype=np.int64)[labels] for labels in (y, y_val))
    several[::3, 1] = 1
    config = HeadConfig(
        hidden, 0.4, output="sigmoid", lr=0.05, momentum=0.5, epochs=6, scale="none", dtype="float64", batch=16
    )
    compare(config, (X, several, X_val, several_val), by_blocks)


@pytest.mark.parametrize("rows", [16, 48, 333])
def test_the_size_of_a_block_does_not_matter(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "BLOCK_ROWS", rows)
    monkeypatch.setattr(block, "_WEIGHT_ROWS", 7)
    config = HeadConfig((32,), 0.5, lr=0.003, momentum=0.9, l2=0.01, epochs=4, scale="none", dtype="float64")
    compare(config, problem_of(), by_blocks)


@pytest.mark.parametrize("hidden", [(8,), (32,)])
def test_float32_is_as_near_to_float64_as_gram_space(hidden: tuple[int, ...]) -> None:
    config = HeadConfig(hidden, 0.5, lr=0.003, momentum=0.9, l2=0.01, epochs=10, scale="none")
    data = problem_of()
    _, exact = in_primal_space(*data, replace(config, dtype="float64"))
    errors = {}
    for name, solve in (("block", by_blocks), ("gram", in_gram_space)):
        _, history = solve(*data, config)
        errors[name] = max(abs(entry.loss - one[0]) / one[0] for entry, one in zip(history, exact, strict=True))
    assert errors["block"] < max(3 * errors["gram"], 1e-5)


def test_it_is_keras_fit(keras: Any) -> None:
    for hidden in ((24, 8), (8,)):
        config = HeadConfig(
            hidden, 0.0, lr=0.002, momentum=0.9, nesterov=True, schedule="constant", batch=10, epochs=5, scale="none",
            class_weights="none", label_smoothing=0.1, activation="elu",
        )  # fmt: skip
        optimizer = keras.optimizers.SGD(0.002, momentum=0.9, nesterov=True)
        expected, course = fitted_by_keras(keras, config, optimizer, 0.1)
        layers, history = by_blocks(*DATA, config)
        found = [(e.loss, e.accuracy, e.val_loss, e.val_accuracy) for e in history]
        np.testing.assert_allclose(found, course, rtol=2e-5)
        for (W, b), (W_expected, b_expected) in zip(layers, expected, strict=True):
            np.testing.assert_allclose(W, W_expected, atol=1e-5)
            np.testing.assert_allclose(b, b_expected, atol=1e-5)


# On caches


@pytest.mark.parametrize("by_parts", [False, True])
@pytest.mark.parametrize("hidden", [(), (24,)])
def test_streamed_is_in_memory_to_the_bit(
    cache: Cache, hidden: tuple[int, ...], by_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(source_module, "_SHUFFLED_BYTES", 0 if by_parts else 2**30)
    monkeypatch.setattr(block, "BLOCK_ROWS", 48)
    monkeypatch.setattr(block, "_NARROW_ROWS", 48)
    monkeypatch.setattr(source_module, "BUFFER_BYTES", 40 * 24 * cache.features.dtype.itemsize)
    config = HeadConfig(hidden, 0.5, lr=0.01, epochs=4, momentum=0.5)
    y, y_val = cache.labels("train"), cache.labels("val")
    options: dict[str, Any] = {"weights": row_weights(y, config), "y_val": y_val}
    streamed, held = Streamed(cache, y, **options), source_of(cache, y, batch=16, **options)
    assert isinstance(held, InMemory)
    bounded = source_of(cache, y, batch=16, holds_all=False, **options)
    assert isinstance(bounded, Streamed if by_parts else InMemory)
    (layers, history), (expected, expected_history) = (trained(source, config) for source in (streamed, held))
    assert measures(history) == measures(expected_history)
    assert all(np.array_equal(a, b) for a, b in zip(sum(layers, ()), sum(expected, ()), strict=True))


@pytest.mark.parametrize("start", [0, 16, 48, 80])
def test_blocks_begin_where_they_are_asked_to(cache: Cache, start: int) -> None:
    y = cache.labels("train")
    source = Streamed(cache, y, weights=np.ones(len(y)), y_val=cache.labels("val"), buffer_rows=40)
    whole = list(source.blocks(16, 5, epoch=1, batches=1))
    rest = list(source.blocks(16, 5, epoch=1, batches=1, start=start))
    assert sum(len(places) for places, _ in rest) == len(y) - start
    for (places, X), (expected, X_expected) in zip(rest, whole[-len(rest) :], strict=True):
        np.testing.assert_array_equal(places, expected)
        np.testing.assert_array_equal(X, X_expected)


@pytest.mark.parametrize("hidden", [(), (24,), (8, 4)])
@pytest.mark.parametrize("scale", ["centred", "norm", "none"])
def test_a_head_on_a_cache_is_that_of_gram_space(hidden: tuple[int, ...], scale: Any, tmp_path: Path) -> None:
    images = dataset(120)
    made = make_cache(tmp_path, images, separable(images, (3, 2, 8)))
    config = HeadConfig(
        hidden, 0.5, lr=0.0005, epochs=6, l2=0.05, momentum=0.5, scale=scale, dtype="float64", batch=7,
        restore_best=True, val_every=2,
    )  # fmt: skip
    one, other = (train_head(made, config, solver=solver) for solver in ("block", "gram"))  # type: ignore[arg-type]
    np.testing.assert_allclose(measures(one.history), measures(other.history), rtol=1e-6)
    assert (one.epoch, one.head.scale) == (other.epoch, other.head.scale)
    for (W, b), (W_gram, b_gram) in zip(one.head.layers, other.head.layers, strict=True):
        np.testing.assert_allclose(W, W_gram, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(b, b_gram, rtol=1e-4, atol=1e-5)


def test_rows_that_are_no_numbers_are_named() -> None:
    X, y, X_val, y_val = problem_of()
    config = HeadConfig((24,), epochs=2, scale="none")
    for bad, name in ((X.copy(), "training"), (X_val.copy(), "validation")):
        bad[[3, 17], 2] = np.nan
        data = (bad, y, X_val, y_val) if name == "training" else (X, y, bad, y_val)
        with pytest.raises(HeadError, match="features that are NaN or infinite, in row"):
            by_blocks(*data, config)


@pytest.mark.parametrize("hidden", [(), (24,)])
def test_a_training_that_diverges_ends_in_the_middle_of_its_epoch(hidden: tuple[int, ...]) -> None:
    X, y, X_val, y_val = problem_of()
    config = HeadConfig(hidden, lr=1e30, epochs=2, scale="none", output="sigmoid", momentum=0.9)
    with pytest.raises(HeadError, match=r"in epoch \d: the training diverges at learning rate 1e\+30"):
        by_blocks(X * 1e20, y, X_val, y_val, config)


# The choice, and the estimator


def test_many_rows_go_to_blocks_and_wide_features_to_gram_space() -> None:
    few = choose_solver(4394, 440, n_inputs=25_088, n_classes=4, config=HeadConfig(epochs=5000))
    many = choose_solver(100_000, 1000, n_inputs=1280, n_classes=4, config=HeadConfig())
    assert (few.solver, many.solver) == ("gram", "block")
    assert "times fewer operations than block" in few.why
    with pytest.raises(HeadError, match="the block solver does not support L1"):
        choose_solver(100, 10, n_inputs=20, n_classes=4, config=HeadConfig(l1=0.1), asked="block")


def test_memory_decides_where_a_gram_matrix_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: 2**31)
    found = choose_solver(24_000, 10, n_inputs=100_352, n_classes=4, config=HeadConfig(hidden=(64,)))
    assert found.solver == "block"
    assert "gram needs 2.1 GiB, of which" in found.why


@pytest.mark.parametrize("scale", ["centred", "norm", "none"])
@pytest.mark.parametrize("hidden", [(), (24,)])
def test_the_estimator_gives_the_same_by_blocks(hidden: tuple[int, ...], scale: Any) -> None:
    X, y, X_val, y_val = problem_of()
    weights = np.random.default_rng(1).uniform(0, 2, len(y)).round(1)
    settings: dict[str, Any] = {
        "hidden": hidden, "epochs": 6, "lr": 0.0005, "momentum": 0.5, "scale": scale, "dtype": "float64",
        "restore_best": True, "class_weight": {0: 2.0},
    }  # fmt: skip
    one, other = (
        HeadClassifier(solver=solver, **settings).fit(X, y, weights, X_val=X_val, y_val=y_val)  # type: ignore[arg-type]
        for solver in ("block", "gram")
    )
    assert (one.solver_, other.solver_) == ("block", "gram")
    assert one.best_epoch_ == other.best_epoch_
    np.testing.assert_allclose(one.history_["val_loss"], other.history_["val_loss"], rtol=1e-6)
    np.testing.assert_allclose(one.predict_proba(X_val), other.predict_proba(X_val), rtol=1e-5, atol=1e-9)


def test_the_estimator_chooses_blocks_for_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _, _ = problem_of(n=2000, d=5)
    assert HeadClassifier((24,), epochs=1).fit(X, y).solver_ == "block"
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: 12 << 20)
    with pytest.raises(HeadError, match=r"Gram matrix of 2000 rows needs .*`solver='block'`"):
        HeadClassifier((24,), epochs=1, solver="gram").fit(X, y)
    with pytest.raises(HeadError, match="solver 'keras': expected 'auto', 'gram' or 'block'"):
        HeadClassifier(epochs=1, solver="keras").fit(X, y)  # type: ignore[arg-type]
