"""The primal solver against Gram space and against `keras.Model.fit` itself; streamed against in memory."""

from __future__ import annotations

import random as python_random
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from test_heads_gram import CLASSES, OPTIONS, in_gram_space, problem_of
from test_store_contract import dataset, fake_features, make_cache, small_shards

from featcache.backbones.import_keras import import_keras
from featcache.core.errors import HeadError
from featcache.heads import initializers as random, primal, products, source as source_module
from featcache.heads.config import HeadConfig
from featcache.heads.source import InMemory, Source, Streamed, cache_order, fits, source_of
from featcache.heads.train import row_weights, train_head
from featcache.store.cache import Cache
from featcache.store.features import Features
from featcache.store.layout import Layout
from featcache.training.course import Course
from featcache.training.history import Epoch

DATA = problem_of(n=69, m=20, d=24)  # 69 rows: the last batch of 16 or of 10 is a short one


@pytest.fixture(scope="module")
def keras() -> Any:
    return import_keras()


def in_memory(config: HeadConfig, data: tuple[np.ndarray, ...] = DATA, **options: Any) -> InMemory:
    X, y, X_val, y_val = data
    return InMemory(X, y, weights=row_weights(y, config), X_val=X_val, y_val=y_val, **options)


def in_primal_space(config: HeadConfig, source: Source | None = None, scale: float = 1.0) -> Any:
    """Weights of every layer, history, and the epoch whose weights they are."""
    source = source or in_memory(config)
    layers = random.initial_weights(config, source.width, n_classes=CLASSES)
    course: Course[primal.State] = Course(config)
    with primal.opened(source, layers, scale=scale, config=config) as training:
        course.run(training)
        chosen = course.chosen(training.copy())
        return chosen.layers, training.history, len(chosen.history)


def measures(history: list[Epoch]) -> list[tuple[float, ...]]:
    return [(e.loss, e.accuracy, e.val_loss, e.val_accuracy, e.lr) for e in history]


def assert_close(layers: Any, expected: Any, tolerance: float) -> None:
    for (W, b), (W_expected, b_expected) in zip(layers, expected, strict=True):
        assert W.dtype == W_expected.dtype == b.dtype
        np.testing.assert_allclose(W, W_expected, atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(b, b_expected, atol=tolerance, rtol=tolerance)


# Against Gram space


DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])


def compare(config: HeadConfig, tolerance: float, data: tuple[np.ndarray, ...] = DATA) -> None:
    """Assert that both solvers have one course and end at one place."""
    layers, history, epoch = in_primal_space(config, in_memory(config, data))
    expected_layers, expected = in_gram_space(*(part.astype(config.dtype) if i % 2 == 0 else part
                                                for i, part in enumerate(data)), config)  # fmt: skip
    np.testing.assert_allclose(measures(history), measures(expected), rtol=tolerance)
    assert_close(layers, expected_layers, tolerance)
    assert history[-1].loss < history[0].loss
    assert epoch == config.epochs


@DTYPES
@pytest.mark.parametrize(
    ("hidden", "decay", "class_weights"), [((), 0.0, "balanced"), ((16,), 0.01, "none"), ((16, 8), 0.01, "balanced")]
)
def test_the_two_solvers_have_one_course(
    keras: Any, dtype: Any, tolerance: float, hidden: Any, decay: float, class_weights: Any
) -> None:
    config = HeadConfig(
        hidden, 0.0, lr=0.003, decay=decay, epochs=20, scale="none", dtype=dtype, class_weights=class_weights
    )
    compare(config, tolerance)
    assert keras.config.floatx() == keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_is_that_of_gram_space(keras: Any, option: str) -> None:
    base = HeadConfig((16, 8), 0.0, lr=0.005, decay=0.01, batch=10, epochs=6, scale="none", dtype="float64")
    compare(replace(base, **OPTIONS[option]), 1e-9)


@pytest.mark.parametrize("batch", [1, 69, 68])
def test_batches_of_one_of_all_and_of_all_but_one(keras: Any, batch: int) -> None:
    compare(HeadConfig((16,), 0.0, lr=0.003, batch=batch, epochs=4, scale="none", dtype="float64"), 1e-9)


@DTYPES
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_rows_of_several_labels(keras: Any, dtype: Any, tolerance: float, class_weights: Any) -> None:
    X, y, X_val, y_val = DATA
    several, several_val = (
        (np.random.default_rng(5).random((len(part), CLASSES)) < 0.4).astype(np.int64) for part in (y, y_val)
    )
    config = HeadConfig(
        (16,), 0.0, output="sigmoid", label_smoothing=0.1, lr=0.02, epochs=5, scale="none", dtype=dtype,
        class_weights=class_weights,
    )  # fmt: skip
    compare(config, tolerance, (X, several, X_val, several_val))


def test_the_first_layer_is_fed_with_scaled_features(keras: Any) -> None:
    X, y, X_val, y_val = DATA
    config = HeadConfig((16,), 0.0, lr=0.005, epochs=3, scale="none", dtype="float64")
    scaled = in_primal_space(config, scale=0.25)
    expected = in_primal_space(config, in_memory(config, (X / 4, y, X_val / 4, y_val)))
    np.testing.assert_allclose(measures(scaled[1]), measures(expected[1]), rtol=1e-12)


# Against Keras


def fitted_by_keras(keras: Any, config: HeadConfig, optimizer: Any, smoothing: float = 0.0) -> Any:
    """A model built here, fitted an epoch at a time on rows in our order: history and weights of Keras itself."""
    X, y, X_val, y_val = ((a if a.ndim == 2 else np.eye(CLASSES)[a]).astype("float32") for a in DATA)
    penalty = {"kernel_regularizer": keras.regularizers.L1L2(config.l1, config.l2)} if config.l1 else {}
    sizes = [*((units, config.activation) for units in config.hidden), (CLASSES, "softmax")]
    dense = [keras.layers.Dense(units, activation, **penalty) for units, activation in sizes]
    model = keras.Sequential([keras.Input((24,)), *dense])
    model.set_weights([array for pair in random.initial_weights(config, 24, n_classes=CLASSES) for array in pair])
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    without_penalty = keras.metrics.CategoricalCrossentropy("data", label_smoothing=smoothing)
    model.compile(optimizer, loss, metrics=["accuracy", without_penalty], run_eagerly=True)
    course = []
    for epoch in range(config.epochs):
        order = random.order(config.seed, epoch, len(y))
        fitted = model.fit(
            X[order], y[order], batch_size=config.batch, epochs=1, shuffle=False, verbose=0,
            validation_data=(X_val, y_val),
        ).history  # fmt: skip
        course.append([fitted[name][0] for name in ("data", "accuracy", "val_data", "val_accuracy")])
    arrays = model.get_weights()
    return list(zip(arrays[0::2], arrays[1::2], strict=True)), course


@pytest.mark.parametrize(
    ("optimizer", "hidden"),
    [
        *((optimizer, (16, 8)) for optimizer in ("sgd", "adam", "adamw", "rmsprop", "l1", "l1-l2-adam")),
        ("rmsprop", ()),
        ("adam", (16,)),
    ],
    ids=str,
)
def test_it_is_keras_fit(keras: Any, monkeypatch: pytest.MonkeyPatch, optimizer: str, hidden: tuple[int, ...]) -> None:
    base = HeadConfig(
        hidden, 0.0, lr=0.002, schedule="constant", batch=10, epochs=3, scale="none", class_weights="none",
        label_smoothing=0.1, activation="elu",
    )  # fmt: skip
    made = keras.optimizers
    config, theirs = {
        "sgd": (base, made.SGD(0.002)),
        "adam": (replace(base, optimizer="adam"), made.Adam(0.002)),
        "adamw": (replace(base, optimizer="adamw", weight_decay=0.1), made.AdamW(0.002, weight_decay=0.1)),
        "rmsprop": (replace(base, optimizer="rmsprop"), made.RMSprop(0.002)),
        "l1": (replace(base, l1=0.02), made.SGD(0.002)),
        "l1-l2-adam": (replace(base, l1=0.02, l2=0.01, optimizer="adam"), made.Adam(0.002)),
    }[optimizer]
    expected, course = fitted_by_keras(keras, config, theirs, 0.1)
    by_xla = hidden == (16, 8) and optimizer not in ("sgd", "l1-l2-adam")
    for least in (primal._JIT_WEIGHTS, *([0] if by_xla else [])):
        monkeypatch.setattr(primal, "_JIT_WEIGHTS", least)
        layers, history, _ = in_primal_space(config)
        np.testing.assert_allclose([line[:4] for line in measures(history)], course, rtol=1e-4)
        assert_close(layers, expected, 5e-5)


def test_an_inverse_time_schedule_is_that_of_keras(keras: Any) -> None:
    config = HeadConfig((16, 8), 0.0, optimizer="adam", lr=0.004, decay=0.02, batch=10, epochs=6, scale="none",
                        class_weights="none")  # fmt: skip
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.004, decay_steps=1, decay_rate=0.02)
    expected, course = fitted_by_keras(keras, config, keras.optimizers.Adam(schedule))
    layers, history, _ = in_primal_space(config)
    np.testing.assert_allclose([line[:4] for line in measures(history)], course, rtol=1e-4)
    assert_close(layers, expected, 5e-5)


def test_only_updates_that_pass_over_many_weights_often_are_compiled() -> None:
    small, large = ([(np.empty((rows, 256), "float32"), np.empty(256, "float32"))] for rows in (512, 25_088))
    plain, adam = HeadConfig(), HeadConfig(optimizer="adam")
    configs = (plain, adam, HeadConfig(momentum=0.9), HeadConfig(l1=0.1))
    assert [primal._worth_compiling(small, config) for config in configs] == [False] * 4
    assert [primal._worth_compiling(large, config) for config in configs] == [False, True, True, True]


# Determinism


def test_with_dropout_it_learns_and_repeats_itself(keras: Any) -> None:
    config = HeadConfig((16, 8), 0.5, lr=0.01, epochs=8, scale="none", optimizer="adam")
    layers, one, _ = in_primal_space(config)
    keras.utils.set_random_seed(99)
    other_layers, other, _ = in_primal_space(config)
    assert measures(one) == measures(other)
    assert all(np.array_equal(a, b) for a, b in zip(sum(layers, ()), sum(other_layers, ()), strict=True))
    assert one[-1].loss < one[0].loss
    for changed in (replace(config, dropout=0.0), replace(config, seed=1)):
        assert in_primal_space(replace(changed, epochs=1))[1][0].loss != one[0].loss


def test_it_leaves_the_global_generators_alone(keras: Any) -> None:
    python_random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - this is the one that is to be left alone
    before = python_random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    in_primal_space(HeadConfig((8,), 0.5, epochs=1, scale="none"))
    assert (python_random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_the_weights_that_it_starts_from_are_not_changed(keras: Any) -> None:
    config = HeadConfig((8,), 0.0, epochs=2, scale="none", restore_best=True)
    layers = random.initial_weights(config, 24, n_classes=CLASSES)
    with primal.opened(in_memory(config), layers, scale=1.0, config=config) as training:
        Course(config).run(training)
    assert_close(layers, random.initial_weights(config, 24, n_classes=CLASSES), 0)


# Validation, early stopping, what goes wrong


def test_without_validation_rows_its_measures_are_nan(keras: Any) -> None:
    X, y, X_val, y_val = DATA
    config = HeadConfig((8,), epochs=2, scale="none", restore_best=True)
    _, history, epoch = in_primal_space(config, in_memory(config, (X, y, X_val[:0], y_val[:0])))
    assert all(np.isnan(e.val_loss) and np.isnan(e.val_accuracy) and np.isfinite(e.loss) for e in history)
    assert epoch == 2


def test_validation_is_looked_at_every_so_often_and_at_the_end(keras: Any) -> None:
    config = HeadConfig((8,), 0.0, epochs=5, val_every=2, scale="none", lr=0.005)
    _, history, _ = in_primal_space(config)
    assert [e.epoch for e in history if not np.isnan(e.val_loss)] == [2, 4, 5]
    _, every, _ = in_primal_space(replace(config, val_every=1))
    assert [e.val_loss for e in history if e.epoch in (2, 4, 5)] == [every[i].val_loss for i in (1, 3, 4)]


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy", "loss", "accuracy"])
def test_it_ends_early_and_restores_the_best(keras: Any, monitor: Any) -> None:
    X, y, X_val, y_val = DATA
    data = X, y, X_val, (y_val + 1) % CLASSES  # what is learnt makes validation worse
    config = HeadConfig((16,), 0.0, lr=0.01, epochs=12, patience=3, monitor=monitor, scale="none", dtype="float64")
    whole_layers, whole, last = in_primal_space(config, in_memory(config, data))
    layers, history, best = in_primal_space(replace(config, restore_best=True), in_memory(config, data))
    assert measures(history) == measures(whole)
    assert last == len(history)
    sign = -1 if monitor.endswith("accuracy") else 1
    values = [sign * getattr(e, monitor) for e in history]
    assert best == 1 + int(np.argmin(values))
    assert len(history) == min(best + 3, 12)
    until, _, _ = in_primal_space(replace(config, epochs=best, schedule="constant"), in_memory(config, data))
    assert_close(layers, until, 1e-12)
    if monitor == "val_loss":
        assert len(history) < 12
        assert not np.allclose(layers[0][0], whole_layers[0][0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_a_training_that_diverges_is_an_error_with_advice(
    keras: Any, dtype: Literal["float32", "float64"], optimizer: Any
) -> None:
    X, y, X_val, y_val = DATA
    config = HeadConfig((16, 8), 0.0, lr=1e30, epochs=30, scale="none", dtype=dtype, optimizer=optimizer)
    with pytest.raises(HeadError, match=r"in epoch \d+: the training diverges .*Try `lr="):
        in_primal_space(config, in_memory(config, (X * 30, y, X_val * 30, y_val)))
    assert keras.config.floatx() == "float32"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_an_error_that_names_their_rows(keras: Any, value: float) -> None:
    X, y, X_val, y_val = (array.copy() for array in DATA)
    config = HeadConfig((8,), epochs=5, val_every=2, batch=69, scale="none")
    X_val[7, 3] = value
    with pytest.raises(HeadError, match=r"NaN or infinite, in row 107: "):
        source = in_memory(config, (X, y, X_val, y_val), rows_val=np.arange(100, 120))
        in_primal_space(config, source)
    X[[60, 3, 9, 4, 5, 6, 7], 2] = value
    with pytest.raises(HeadError, match=r"NaN or infinite, in rows 3, 4, 5, 6, 7 and 2 more: "):
        in_primal_space(config, in_memory(config, (X, y, X_val, y_val)))


# From a cache


IMAGES = dataset(150)


@pytest.fixture(params=["float32", "float16"])
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Cache:
    small_shards(monkeypatch)
    return make_cache(tmp_path, IMAGES, fake_features(150, (2, 3, 4), dtype=request.param), dtype=request.param)


def streamed(cache: Cache, config: HeadConfig, **options: Any) -> Streamed:
    y = cache.labels("train")
    return Streamed(cache, y, weights=row_weights(y, config), y_val=cache.labels("val"), **options)


@pytest.mark.parametrize("by_blocks", [False, True])
@pytest.mark.parametrize("buffer_rows", [1, 32, 33, 10_000])
@pytest.mark.parametrize("batch", [1, 16, 40])
def test_streamed_batches_are_those_of_the_same_rows_in_memory(
    cache: Cache, buffer_rows: int, batch: int, by_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of Gram space, or of `Cache.batches` where the rows are too large for that."""
    monkeypatch.setattr(source_module, "_SHUFFLED_BYTES", 0 if by_blocks else 2**30)
    source, y = streamed(cache, HeadConfig(dtype="float64"), buffer_rows=buffer_rows), cache.labels("train")
    held = source_of(cache, y, weights=np.ones(len(y)), y_val=cache.labels("val"), batch=batch)
    assert isinstance(held, InMemory)
    found, same = (list(one.batches(batch, 4, epoch=2)) for one in (source, held))
    for (places, X), (places_held, X_held) in zip(found, same, strict=True):
        np.testing.assert_array_equal(places, places_held)
        np.testing.assert_array_equal(X, X_held)
        assert X.dtype == np.float64
    order = np.concatenate([places for places, _ in found])
    blocks = np.searchsorted(cache.numbers("train"), cache.batches("train", batch, seed=4, epoch=2).order)
    np.testing.assert_array_equal(order, blocks if by_blocks else random.order(4, 2, len(y)))
    assert sorted(order) == list(range(len(y)))
    expected = np.asarray(cache.features)[cache.numbers("train")].reshape(len(y), -1)
    np.testing.assert_array_equal(np.concatenate([X for _, X in found]), expected[order])


def test_the_order_depends_on_the_cache_alone(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly at the border, and whatever memory is free."""
    n_bytes = len(cache.numbers("train")) * 24 * 4
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: 0)
    monkeypatch.setattr(source_module, "_SHUFFLED_BYTES", n_bytes)
    assert cache_order(cache, 16) is random.order
    monkeypatch.setattr(source_module, "_SHUFFLED_BYTES", n_bytes - 1)
    assert cache_order(cache, 16) is not random.order


def test_a_source_that_is_left_in_the_middle_leaves_no_thread(cache: Cache) -> None:
    batches: Any = streamed(cache, HeadConfig(), buffer_rows=16).batches(16, 0, epoch=0)
    next(batches)
    batches.close()


@pytest.mark.parametrize(("optimizer", "by_blocks"), [("sgd", False), ("adam", True)])
def test_streamed_is_in_memory_to_the_bit(
    cache: Cache, optimizer: Any, by_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "_SHUFFLED_BYTES", 0 if by_blocks else 2**30)
    config = HeadConfig((16,), 0.5, lr=0.01, epochs=4, optimizer=optimizer)
    source = streamed(cache, config, buffer_rows=32)
    held = source_of(cache, source.y, weights=source.weights, y_val=source.y_val, batch=config.batch)
    layers, history, _ = in_primal_space(config, source)
    expected, expected_history, _ = in_primal_space(config, held)
    assert measures(history) == measures(expected_history)
    assert all(np.array_equal(a, b) for a, b in zip(sum(layers, ()), sum(expected, ()), strict=True))


def test_what_does_not_fit_into_memory_is_streamed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    y, y_val = cache.labels("train"), cache.labels("val")
    n_bytes = (len(y) + len(y_val)) * 24 * 4
    weights = np.ones(len(y), "float32")
    for free, kind in ((n_bytes / 0.8 + 2, InMemory), (n_bytes / 0.8 - 2, Streamed)):
        monkeypatch.setattr("featcache.core.machine.available_bytes", lambda free=free: int(free))
        assert fits(n_bytes) == (kind is InMemory)
        source = source_of(cache, y, weights=weights, y_val=y_val, batch=16)
        assert type(source) is kind
        seen = np.concatenate([places for places, _ in source.batches(16, 0, epoch=0)])
        assert sorted(seen) == list(range(len(y)))
        blocks = np.concatenate([block for _, block in source.val_blocks()])
        np.testing.assert_array_equal(blocks, cache.features[cache.numbers("val")].reshape(-1, 24))
        np.testing.assert_array_equal(source.rows, cache.numbers("train"))


def test_in_memory_a_cache_is_trained_on_as_arrays_are(keras: Any, cache: Cache) -> None:
    config = HeadConfig((8,), 0.0, epochs=3, scale="none", dtype="float64")
    trained = train_head(cache, config, solver="primal")
    other = train_head(cache, config, solver="gram")
    np.testing.assert_allclose(measures(trained.history), measures(other.history), rtol=1e-9)
    assert_close(trained.head.layers, other.head.layers, 1e-6)
    assert trained.epoch == 3


def test_a_head_is_trained_on_a_cache_that_is_streamed(
    keras: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = HeadConfig((8,), 0.5, epochs=5, optimizer="adam", restore_best=True, monitor="loss")
    held = train_head(cache, config, solver="primal")
    monkeypatch.setattr("featcache.heads.source.fits", lambda n_bytes: False)
    one, other = (train_head(cache, config, solver="primal") for _ in range(2))
    assert measures(one.history) == measures(other.history) == measures(held.history)
    assert one.epoch == 1 + int(np.argmin([e.loss for e in one.history]))
    assert_close(one.head.layers, other.head.layers, 0)


@dataclass
class HeldRows:
    """A reader of rows that lie in memory: caches with NaN in them are not written unasked."""

    layout: Layout
    features: np.ndarray

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.features[start:stop]


def test_rows_of_a_cache_that_are_no_numbers_are_named_as_the_cache_counts_them(keras: Any, tmp_path: Path) -> None:
    for split in ("train", "val"):
        features = fake_features(150, (24,))
        cache = make_cache(tmp_path / split, IMAGES, features)
        number = int(cache.numbers(split)[5])
        features[number, 3] = np.nan
        cache.features = Features(HeldRows(cache.features.layout, features))
        config = HeadConfig((8,), epochs=2, scale="none")
        y, y_val = cache.labels("train"), cache.labels("val")
        for source in (
            source_of(cache, y, weights=row_weights(y, config), y_val=y_val, batch=16),
            streamed(cache, config),
        ):
            with pytest.raises(HeadError, match=rf"in row {number}: "):
                in_primal_space(config, source)


@pytest.fixture
def peak() -> Iterator[Any]:
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_streaming_holds_two_buffers_and_never_all_rows(tmp_path: Path, peak: Any, monkeypatch: Any) -> None:
    small_shards(monkeypatch)
    images = dataset(1500)
    cache = make_cache(tmp_path, images, fake_features(1500, (4096,)))
    y = cache.labels("train")
    row = 4096 * 4
    monkeypatch.setattr(products, "_BLOCK_BYTES", 64 * row)
    config = HeadConfig((), 0.0, epochs=2)
    source = streamed(cache, config, buffer_rows=64)
    for _ in source.batches(16, 0, epoch=0):  # whatever is made once
        pass
    tracemalloc.clear_traces()
    tracemalloc.reset_peak()
    in_primal_space(config, source)
    assert peak() < 6 * 64 * row < len(y) * row / 2  # two buffers, a shard, a batch; the first layer
