"""The course of a training of a whole network, beside Keras' own and beside the formulae."""

from __future__ import annotations

import io
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scratching import CONFIG, network, opened, views, weights

from featcache.backbones.engines.affine import preprocessed
from featcache.backbones.import_keras import import_keras
from featcache.backbones.preprocess import MODES, preprocess
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import ScratchError
from featcache.core.project import find_project
from featcache.core.recipe import Augmentation
from featcache.datasets._init import init
from featcache.datasets.options import InitOptions
from featcache.extraction._extract import extract
from featcache.heads.head import Head
from featcache.heads.initializers import order
from featcache.images.views import render, view_parameters
from featcache.networks import checkpoint, classifier
from featcache.networks.config import ScratchConfig
from featcache.networks.feed import Feed
from featcache.networks.views import Live, held, numbers_of
from featcache.store.cache import open_cache
from featcache.synthetic.drawing import write_cells


def logits_of(training: Any, pixels: Any) -> Any:
    return np.asarray(training.classifier.predictor.predict_on_batch(np.asarray(pixels, np.float32)))


def test_it_is_keras_own_training(tmp_path: Path) -> None:
    """The same rows in the same order through keras.Model.fit, on preprocessed arrays, end at the same weights."""
    keras = import_keras()
    with opened(tmp_path, norm=True) as training:
        training.train()
        ours, history = weights(training), training.history
    base = network().model
    base.trainable = True
    top = classifier.build(network(), 4, config=CONFIG).model.layers[-1]
    x = keras.layers.GlobalAveragePooling2D()(base.outputs[0])
    dense = keras.layers.Dense(4)
    model = keras.Model(base.inputs, dense(x))
    dense.set_weights(top.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(CONFIG.lr, momentum=CONFIG.momentum), loss, metrics=["accuracy"], jit_compile=False
    )
    rows = views(40)
    X = preprocess(rows.pixels, "tf")
    for epoch in range(CONFIG.epochs):
        places = order(CONFIG.seed, epoch, n_rows=len(rows))
        fitted = model.fit(X[places], rows.y[places], batch_size=CONFIG.batch, shuffle=False, verbose=0)
        assert history[epoch].loss == pytest.approx(fitted.history["loss"][0], abs=2e-5)
        assert history[epoch].accuracy == pytest.approx(fitted.history["accuracy"][0], abs=1e-6)
    for mine, theirs in zip(ours, model.weights, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=2e-4, atol=2e-5)


def test_it_learns_and_predicts_what_it_learned(tmp_path: Path) -> None:
    with opened(tmp_path, n=80, epochs=12, batchnorm_momentum=0.5) as training:
        training.train()
        entry = training.history[-1]
        assert entry.val_accuracy > 0.8
        assert entry.accuracy > 0.95
        some = training.validation
        blocks = iter([(slice(0, 5), some.pixels[:5]), (slice(5, 12), some.pixels[5:])])
        found = training.probabilities(blocks, 12)
    assert (found.argmax(axis=1) == some.y).mean() == pytest.approx(entry.val_accuracy)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    loss = -np.log(found[np.arange(12), some.y]).mean()
    assert entry.val_loss == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_preprocessing_in_the_network_is_that_of_the_backbone(mode: str) -> None:
    made = classifier.build(network(preprocessing=mode), 4, config=CONFIG)
    pixels = views(5).pixels
    features = network(preprocessing=mode).model(preprocess(pixels, mode))
    inside = made.base(preprocessed(np.asarray(pixels, np.float32), mode))
    np.testing.assert_allclose(np.asarray(inside), np.asarray(features), rtol=1e-4, atol=1e-4 * np.abs(features).max())


def test_parts_of_a_batch_are_one_batch(tmp_path: Path) -> None:
    """Gradients are added up; the last batch, which is smaller, counts as what it is."""
    ended = []
    for accumulate in (1, 2, 4):
        with opened(tmp_path / str(accumulate), n=37, norm=False, accumulate=accumulate, momentum=0.5) as training:
            training.train()
            ended.append((weights(training), [entry.loss for entry in training.history]))
    for found, losses in ended[1:]:
        np.testing.assert_allclose(losses, ended[0][1], rtol=1e-5)
        for mine, whole in zip(found, ended[0][0], strict=True):
            np.testing.assert_allclose(mine, whole, rtol=1e-4, atol=1e-6)


def test_every_row_comes_once_an_epoch_with_the_weight_of_its_class() -> None:
    rows = views(37)
    config = ScratchConfig(batch=8, accumulate=2, class_weights="balanced", label_smoothing=0.2)
    counts = np.bincount(rows.y, minlength=4)
    with Feed(rows, 4, config=config) as feed:
        parts = list(feed.epoch(3))
        again = list(feed.epoch(3, start=4))
    assert len(parts) == feed.parts == 10
    assert [part.n_rows for part in parts] == [4] * 9 + [1]
    assert sum(part.n_rows for part in parts) == 37
    x = np.concatenate([part.x[: part.n_rows] for part in parts])
    np.testing.assert_array_equal(x, rows.pixels[order(0, 3, n_rows=37)])
    y = np.concatenate([part.y[: part.n_rows] for part in parts])
    np.testing.assert_allclose(y.max(axis=1), 0.85)
    weights_ = np.concatenate([part.weights[: part.n_rows] / part.factor for part in parts])
    np.testing.assert_allclose(weights_, 37 / (4 * counts[y.argmax(axis=1)]), rtol=1e-6)
    assert all(part.weights[part.n_rows :].sum() == 0 for part in parts)
    for one, other in zip(parts[4:], again, strict=True):
        np.testing.assert_array_equal(one.x, other.x)


def test_live_views_are_those_of_the_plan_and_then_new_ones() -> None:
    rows = views(12, per_image=3)
    live = Live(rows, Augmentation())
    plain = rows.pixels[3]  # view 0 of the second image
    for epoch in range(4):
        for place in range(3, 6):
            number = rows.views[place] + 3 * epoch
            expected = render(plain, view_parameters(Augmentation(), rows.image_ids[place], view=number))
            np.testing.assert_array_equal(live.render(place, epoch), expected)
    seen = {live.render(place, epoch).tobytes() for epoch in range(4) for place in range(3, 6)}
    assert len(seen) == 12


@pytest.mark.parametrize("free_bytes", [0, 1 << 40], ids=["mapped", "in memory"])
def test_rows_of_a_cache_are_held_each_split_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int
) -> None:
    """Where memory is short they lie in files, which go at the end."""
    write_cells(tmp_path / "cells", 4)
    init(tmp_path / "cells", tmp_path, options=InitOptions())
    (done,) = extract(find_project(tmp_path), [NetworkSpec("pixels", input_size_px=16)])
    cache = open_cache(done.path)
    monkeypatch.setattr("featcache.networks.views.available_bytes", lambda: free_bytes)
    files = {split: tmp_path / f"{split}.npy" for split in ("train", "val")}
    with ExitStack() as stack:
        numbers = {split: numbers_of(cache, split, config=CONFIG) for split in files}
        rows = {split: stack.enter_context(held(cache, numbers[split], file=file)) for split, file in files.items()}
        assert all(file.is_file() == (free_bytes == 0) for file in files.values())
        for split, found in rows.items():
            np.testing.assert_array_equal(found.pixels, cache.arrays(split)[0])
            assert found.y.tolist() == cache.labels(split).tolist()
    assert not any(file.is_file() for file in files.values())
    plain = numbers_of(cache, "train", config=replace(CONFIG, augment="none"))
    assert 0 < len(plain) < len(numbers["train"])
    assert set(cache.rows["view"].to_numpy()[plain]) == {0}


def test_frozen_layers_stay_as_they_are_to_the_last_bit(tmp_path: Path) -> None:
    with opened(tmp_path, train_blocks=1, weight_decay=0.1, l2=0.01, augment="live") as training:
        before, digest = weights(training), training.frozen_digest()
        training.train()
        after = weights(training)
        assert training.frozen_digest() == digest
    names = [weight.path for weight in training.classifier.model.weights]
    for name, old, new in zip(names, before, after, strict=True):
        assert np.array_equal(old, new) == name.startswith(("block1", "block2")), name


def test_frozen_normalisation_runs_as_in_inference(tmp_path: Path) -> None:
    """Of a trained block too: its statistics and factors stay, and training gives what prediction gives."""
    with opened(tmp_path, batchnorm_momentum=0.5, batchnorm="frozen", n=8, epochs=1, lr=1e-9) as training:
        training.train()
        entry = training.history[0]
        rows = views(8)
        logits = logits_of(training, rows.pixels).astype(np.float64)
    expected = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), rows.y]).mean()
    assert entry.loss == pytest.approx(expected, rel=1e-5)
    statistics = [w for w in training.classifier.model.weights if "moving" in w.path]
    assert all(set(np.unique(w.numpy())) <= {0.0, 1.0} for w in statistics)


def test_each_block_moves_at_its_own_rate(tmp_path: Path) -> None:
    """One step of plain SGD against the gradient of the loss, taken for itself."""
    import tensorflow as tf

    change = {"momentum": 0.0, "base_rate": 0.5, "rate_decay": 0.1, "epochs": 1, "weight_decay": 0.01}
    with opened(tmp_path, n=8, norm=False, **change) as training:
        model = training.classifier.model
        before = [np.array(weight.numpy()) for weight in model.trainable_weights]
        rows = views(8)
        with tf.GradientTape() as tape:
            logits = model(np.asarray(rows.pixels, np.float32), training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(rows.y, logits))
        gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
        training.train()
        after = [np.array(weight.numpy()) for weight in model.trainable_weights]
    rates = {"block1": 0.005, "block2": 0.05, "block3": 0.5, "classes": 1.0}
    for weight, old, g, new in zip(model.trainable_weights, before, gradients, after, strict=True):
        rate = CONFIG.lr * rates[weight.path.split("/")[0].split("_")[0]]
        decayed = old * (1 - rate * 0.01) if old.ndim > 1 else old
        np.testing.assert_allclose(new, decayed - rate * g.numpy(), rtol=1e-5, atol=1e-7)


def test_penalties_count_for_trained_kernels_alone(tmp_path: Path) -> None:
    with opened(tmp_path, l1=0.5, l2=0.25, train_blocks=1) as training:
        training.classifier.compile(1)
        model = training.classifier.model
        kernels = [w.numpy() for w in model.weights if w.path in ("block3_conv/kernel", "classes/kernel")]
        expected = sum(0.5 * np.abs(W).sum() + 0.25 * np.square(W).sum() for W in kernels)
        assert len(kernels) == 2
        assert float(sum(model.losses)) == pytest.approx(float(expected), rel=1e-5)


def test_blocks_join_one_after_the_other(tmp_path: Path) -> None:
    moved: list[set[str]] = []
    with opened(tmp_path, epochs=5, unfreeze_epochs=1, norm=False) as training:
        last = weights(training)

        def compare(_: Any) -> None:
            now = weights(training)
            names = [w.path.split("_")[0].split("/")[0] for w in training.classifier.model.weights]
            moved.append({n for n, a, b in zip(names, last, now, strict=True) if not np.array_equal(a, b)})
            last[:] = now

        training.train(compare)
    blocks = ["block3", "block2", "block1"]
    assert moved == [{"classes", *blocks[:n]} for n in (0, 1, 2, 3, 3)]


def test_a_loss_that_is_no_number_ends_it_and_the_last_state_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path, epochs=2) as training:
        training.train()
    kept = (tmp_path / checkpoint.STATE_FILE).read_bytes()
    with opened(tmp_path, epochs=4, lr=1e30) as training:
        assert training.resume() == 2
        with pytest.raises(ScratchError) as caught:
            training.train()
    message = str(caught.value)
    assert "epoch 3, step " in message
    assert "of 5, at learning rate 1e+30" in message
    assert str(tmp_path / checkpoint.STATE_FILE) in message
    assert (tmp_path / checkpoint.STATE_FILE).read_bytes() == kept


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"augment": "live", "accumulate": 2, "restore_best": True, "monitor": "val_accuracy"},
        {"dropout": 0.5, "optimizer": "adamw", "schedule": "cosine", "warmup_epochs": 1, "momentum": 0.0},
        {"unfreeze_epochs": 1, "restore_best": True},
    ],
    ids=["plain", "live", "adamw", "unfreezing"],
)
def test_a_training_stopped_anywhere_goes_on_to_the_same_bits(tmp_path: Path, change: dict[str, Any]) -> None:
    with opened(tmp_path / "whole", epochs=4, **change) as training:
        training.train()
        training.take_best()
        expected, history = weights(training), training.history
    rng = np.random.default_rng(5)
    for starts in range(40):
        with opened(tmp_path / "stopped", epochs=4, **change) as training:
            training.resume()
            left = int(rng.integers(4, 16))

            def stopped() -> bool:
                nonlocal left
                left -= 1
                return left <= 0

            try:
                training.train(stopped=stopped)
            except KeyboardInterrupt:
                continue
            training.take_best()
            for mine, theirs in zip(weights(training), expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)
            assert [replace(e, seconds=0) for e in training.history] == [replace(e, seconds=0) for e in history]
            assert starts > 1
            return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("unfreeze_epochs", [0, 1, 2])
def test_a_longer_training_goes_on_where_a_shorter_one_ended(tmp_path: Path, unfreeze_epochs: int) -> None:
    with opened(tmp_path / "whole", epochs=5, unfreeze_epochs=unfreeze_epochs) as training:
        training.train()
        expected = weights(training)
    for epochs in (1, 3):
        with opened(tmp_path / "short", epochs=epochs, unfreeze_epochs=unfreeze_epochs) as training:
            training.resume()
            training.train()
    with opened(tmp_path / "long", epochs=5, unfreeze_epochs=unfreeze_epochs) as training:
        assert training.resume([tmp_path / "none", tmp_path / "short"]) == 3
        training.train()
        for mine, theirs in zip(weights(training), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_state_of_another_training_or_a_damaged_one_is_none(tmp_path: Path) -> None:
    with opened(tmp_path) as training:
        training.train()
    with opened(tmp_path) as training:
        training.identity = "another"
        assert training.resume() == 0
    path = tmp_path / checkpoint.STATE_FILE
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(30):
        data = bytearray(sound)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        found = checkpoint.load(tmp_path, "course")
        refused += found is None
        if found is not None:  # the bit was one of the padding between two arrays, or of a time
            with np.load(io.BytesIO(sound)) as arrays:
                assert all(np.array_equal(arrays[f"variable{n}"], array) for n, array in enumerate(found[1]))
    assert refused > 10
    path.write_bytes(sound[: len(sound) // 2])
    assert checkpoint.load(tmp_path, "course") is None


def test_patience_ends_it_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    with opened(
        tmp_path, epochs=50, lr=1e-12, momentum=0.0, patience=3, restore_best=True, monitor="val_accuracy"
    ) as one:
        one.train()
        assert len(one.history) == 4
        assert one.take_best() == 1


def test_the_top_of_a_head_gives_what_the_head_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=(192, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32))]
    layers += [(rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32))]
    head = Head((4, 4, 12), 0.03, layers, 0.5, ("a", "b", "c", "d"), "elu")
    head.save(tmp_path)
    loaded = Head.load(tmp_path, 0.5)
    made = classifier.build(network(), 4, config=CONFIG, head=loaded)
    pixels = views(6).pixels
    X = np.asarray(network().model(preprocess(pixels, "tf"))).reshape(6, -1) * 0.03
    hidden = X @ layers[0][0] + layers[0][1]
    hidden = np.where(hidden > 0, hidden, np.expm1(hidden))
    expected = hidden @ layers[1][0] + layers[1][1]
    np.testing.assert_allclose(
        made.predictor.predict_on_batch(pixels.astype(np.float32)), expected, rtol=1e-3, atol=1e-4
    )
    with pytest.raises(ScratchError, match="the head takes features of"):
        classifier.build(network(), 4, config=CONFIG, head=replace(head, row_shape=(2, 2, 12)))


def test_a_stranger_loads_the_model_with_keras_alone(tmp_path: Path) -> None:
    with opened(tmp_path, epochs=1) as training:
        training.train()
        model = training.classifier.savable()
        model.save(tmp_path / "model.keras")
        logits = logits_of(training, views(5).pixels)
    loaded = import_keras().saving.load_model(tmp_path / "model.keras", safe_mode=True)
    found = loaded.predict_on_batch(views(5).pixels.astype(np.float32))
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_batch_that_does_not_fit_is_said_in_words(tmp_path: Path) -> None:
    import tensorflow as tf

    with opened(tmp_path, batch=8) as training:
        training._compile(0)

        def full(*_: Any, **__: Any) -> None:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

        training.classifier.model.train_on_batch = full
        with pytest.raises(ScratchError, match=r"8 rows at a time do not fit into memory\. .*`batch=8, accumulate=2`"):
            training.train()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_trains_too(tmp_path: Path, precision: Any) -> None:
    """Weights and losses stay float32; float16 scales its loss, and an overflow skips a step instead of ending it."""
    keras = import_keras()
    made = network(norm=False)
    for layer in made.model.layers[1:]:
        layer.dtype_policy = f"mixed_{precision}"
    with opened(
        tmp_path, precision=precision, made=classifier.build(made, 4, config=replace(CONFIG, precision=precision))
    ) as t:
        t.train()
        assert all(weight.dtype == "float32" for weight in t.classifier.model.weights)
        assert math.isfinite(t.history[-1].loss)
        scaled = isinstance(t.classifier.model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert scaled == (precision == "float16")
