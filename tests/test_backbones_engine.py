"""The Keras engine against Keras' own predict, and what it promises whatever the batch."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from featcache.backbones.engine import KerasEngine, open_engine

from featcache.backbones import registry, weights
from featcache.backbones.preprocess import preprocess
from featcache.errors import BackboneError, WeightsError

SIZE_PX = 64


def randomize_statistics(model):
    """Give biases and batch normalisation values at which a mix-up shows, none of them 0 or 1."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1:
            positive = weight.name in ("gamma", "moving_variance")
            weight.assign(rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, 0.1, weight.shape))


def pixels(n, size_px=SIZE_PX):
    return np.random.default_rng(2).integers(0, 256, (n, size_px, size_px, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def mobilenet():
    model = weights.load(registry.get("mobilenetv2"), "random", seed=1, input_size_px=SIZE_PX)
    randomize_statistics(model)
    return model


@pytest.mark.parametrize("name", ["vgg16", "mobilenetv2", "efficientnet-lite0"])
def test_features_are_those_of_keras_own_path(name):
    row = registry.get(name)
    model = weights.load(row, "random", seed=1, input_size_px=SIZE_PX)
    randomize_statistics(model)
    rows = pixels(5)
    if row.preprocess_input is None:
        prepared = preprocess(rows, row.preprocessing)
    else:
        module, _, attribute = row.preprocess_input.partition(":")
        prepared = getattr(import_module(module), attribute)(rows.astype(np.float32))
    expected = model.predict(prepared, verbose=0)
    features = KerasEngine(model, row.preprocessing, batch_size=4).features(rows)
    assert features.std(axis=0).max() > 0
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_row_does_not_depend_on_its_neighbours(mobilenet):
    engine = KerasEngine(mobilenet, "tf", batch_size=4)
    rows = pixels(9)
    together = engine.features(rows)
    assert together.shape == (9, *engine.feature_shape)
    assert together.flags.c_contiguous
    assert together.dtype == np.float32
    np.testing.assert_array_equal(engine.features(rows[4:5])[0], together[4])  # first of a batch in both
    for i in (1, 3, 6, 8):
        alone = engine.features(rows[i : i + 1])[0]
        np.testing.assert_allclose(alone, together[i], rtol=1e-6, atol=1e-6 * np.abs(alone).max())
    others = rows.copy()
    others[[0, 2, 3, 4, 6, 7, 8]] = 255
    np.testing.assert_array_equal(engine.features(others)[[1, 5]], together[[1, 5]])


def test_pooling(mobilenet):
    rows = pixels(3)
    full = KerasEngine(mobilenet, "tf", batch_size=2).features(rows)
    for pooling, expected in (("avg", full.mean(axis=(1, 2))), ("max", full.max(axis=(1, 2)))):
        engine = KerasEngine(mobilenet, "tf", batch_size=2, pooling=pooling)
        features = engine.features(rows)
        assert engine.feature_shape == (1280,)
        assert features.flags.c_contiguous
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-7)


def test_no_rows(mobilenet):
    assert KerasEngine(mobilenet, "tf").features(pixels(0)).shape == (0, 2, 2, 1280)


def test_pixels_stay_as_they_are(mobilenet):
    rows = pixels(2)
    rows.flags.writeable = False
    before = rows.copy()
    KerasEngine(mobilenet, "caffe", batch_size=2).features(rows)
    np.testing.assert_array_equal(rows, before)


def test_bad_arguments(mobilenet):
    with pytest.raises(BackboneError, match=r"no preprocessing 'cafe': did you mean caffe"):
        KerasEngine(mobilenet, "cafe")
    with pytest.raises(BackboneError, match=r"no pooling 'mean'"):
        KerasEngine(mobilenet, "tf", pooling="mean")
    with pytest.raises(BackboneError, match="batch size"):
        KerasEngine(mobilenet, "tf", batch_size=0)
    with pytest.raises(BackboneError, match=r"rows of shape \(64, 64, 3\), got \(32, 32, 3\)"):
        KerasEngine(mobilenet, "tf").features(pixels(1, 32))
    with pytest.raises(BackboneError, match="uint8"):
        KerasEngine(mobilenet, "tf").features(pixels(1).astype(np.float32))


def test_open_engine_tells_what_it_computes():
    engine, info = open_engine("MobileNetV2", "random", seed=7, input_size_px=32, pooling="avg", batch_size=2)
    assert info.backbone == "mobilenetv2"
    assert info.layer == "out_relu"
    assert info.input_size_px == 32
    assert info.preprocessing == "tf"
    assert info.pooling == "avg"
    assert info.weights == "random-7"
    assert info.feature_shape == engine.feature_shape == (1280,)
    assert info.engine.startswith("keras-")
    assert len(info.weights_digest) == 64
    assert engine.features(pixels(1, 32)).shape == (1, 1280)


def test_open_engine_refuses_what_cannot_be():
    """All before anything is built."""
    with pytest.raises(BackboneError, match="did you mean vgg1"):
        open_engine("vgg17")
    with pytest.raises(BackboneError, match="xception: input size 70 px: expected at least 71 px"):
        open_engine("xception", "random", input_size_px=70)
    with pytest.raises(BackboneError, match="no preprocessing 'plain'"):
        open_engine("vgg16", "random", preprocessing="plain")
    with pytest.raises(BackboneError, match="no pooling 'sum'"):
        open_engine("vgg16", "random", pooling="sum")
    with pytest.raises(WeightsError, match="no weights file"):
        open_engine("vgg16", "nowhere.h5")
