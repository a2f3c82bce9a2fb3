"""EfficientNet-Lite0: the port of its published weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.backbones import registry, weights
from featcache.backbones.engines.keras_engine import KerasEngine
from featcache.backbones.imagenet import local_file
from featcache.backbones.network import load_network
from featcache.backbones.preprocess import preprocess
from featcache.backbones.spec import NetworkSpec
from featcache.backbones.torch_checkpoint import read_checkpoint
from featcache.backbones.zoo.efficientnet_lite0 import EfficientNetLite0, assign_checkpoint
from featcache.core.errors import WeightsError
from featcache.images.decode import decode, read_bytes
from featcache.images.squares import cut_and_resize

ROW = registry.get("efficientnet-lite0")


def picture(size_px=224):
    """A deterministic picture that needs no file: a gradient, a disc and stripes, (1, s, s, 3) uint8."""
    y, x = np.mgrid[:size_px, :size_px] / size_px
    disc = (x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.06
    stripes = np.sin(40 * x + 15 * y) > 0
    channels = (255 * x, 255 * (0.3 + 0.7 * disc), 255 * (0.5 * y + 0.5 * stripes))
    return np.stack(channels, axis=-1).astype(np.uint8)[None]


@pytest.fixture(scope="module")
def tensors():
    return read_checkpoint(local_file(ROW))


@pytest.fixture(scope="module")
def without_top():
    return EfficientNetLite0(input_shape=(32, 32, 3))


def test_known_answer():
    """Pooled features of a known picture, as computed when real photographs were classified rightly."""
    network = load_network(NetworkSpec("efficientnet-lite0", pooling="avg"))
    (cut,) = network.cuts
    assert (cut.weights.kind, cut.space.preprocessing, cut.space.layer) == ("imagenet", "lite0", "head_relu")
    assert cut.space.weights_digest == "3f4fb8c6fa079ab206a87d16dfcefddddc6a6161fc07542dfef0744b82e9e8fa"
    features = KerasEngine(network, batch_rows=1).features(picture())[0][0]
    golden = [0.0, 0.44119, 0.12562, 0.0, 0.22101, 0.0, 0.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(features[::128], golden, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose([features.mean(), features.std()], [0.146297, 0.436973], rtol=1e-4)


def test_the_classifier_is_ported_too(tensors):
    """Its known answer, and a computation of the head that does without Keras."""
    model = EfficientNetLite0(local_file(ROW), include_top=True)
    assert model.count_params() == 4_694_024
    x = preprocess(picture(), "lite0")
    probabilities = model.predict_on_batch(x)[0]
    assert probabilities.argmax() == 417
    features = weights.load(ROW).predict_on_batch(x)[0].astype(np.float64)
    logits = tensors["_fc.weight"] @ features.mean(axis=(0, 1)) + tensors["_fc.bias"]
    expected = np.exp(logits - logits.max())
    np.testing.assert_allclose(probabilities, expected / expected.sum(), rtol=1e-3, atol=1e-6)


def conv_same(x, kernel, stride, groups=1):
    """Convolution with TensorFlow's padding, in float64: (h, w, in), (out, in / groups, k, k) -> (h', w', out)."""
    k = kernel.shape[-1]
    size = -(-x.shape[0] // stride)
    pad = max((size - 1) * stride + k - x.shape[0], 0)
    x = np.pad(x, ((pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(0, 1))[::stride, ::stride]
    if groups == 1:
        return np.einsum("hwikl,oikl->hwo", windows, kernel)
    return np.einsum("hwckl,ckl->hwc", windows, kernel[:, 0])


@pytest.mark.parametrize(
    ("name", "classes", "least"),
    [("coffee.png", {967}, 0.8), ("chelsea.png", {281, 282, 285}, 0.9), ("camera.png", {872}, 0.8)],
    ids=["espresso", "cat", "tripod"],
)
def test_the_classifier_names_photographs(name, classes, least):
    """Public-domain photographs that come with scikit-image, through featcache's own decoding and preprocessing.

    With pixels as another network wants them, the coffee is a loudspeaker.
    """
    skimage = pytest.importorskip("skimage", reason="scikit-image carries the photographs")
    pixels = decode(read_bytes(Path(skimage.__file__).parent / "data" / name))
    plain = cut_and_resize(pixels, None, size_px=224)[None]
    model = EfficientNetLite0(local_file(ROW), include_top=True)
    probabilities = model.predict_on_batch(preprocess(plain, ROW.preprocessing))[0]
    assert int(probabilities.argmax()) in classes
    assert sum(probabilities[list(classes)]) > least
    if name == "coffee.png":
        wrong = model.predict_on_batch(preprocess(plain, "caffe"))[0]
        assert int(wrong.argmax()) not in classes


def test_equals_a_plain_computation(tensors):
    """The whole network once more in NumPy, float64, from the checkpoint's own names and layouts."""

    def normed(x, name):
        mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        scale = tensors[f"{name}.weight"] / np.sqrt(variance.astype(np.float64) + 1e-3)
        return (x - mean) * scale + tensors[f"{name}.bias"]

    def relu6(x):
        return np.clip(x, 0, 6)

    pixels = picture(64)
    x = preprocess(pixels, "lite0")[0].astype(np.float64)
    x = relu6(normed(conv_same(x, tensors["_conv_stem.weight"], 2), "_bn0"))
    for i in range(16):
        block, incoming = f"_blocks.{i}", x
        if i:
            x = relu6(normed(conv_same(x, tensors[f"{block}._expand_conv.weight"], 1), f"{block}._bn0"))
        kernel = tensors[f"{block}._depthwise_conv.weight"]
        x = conv_same(x, kernel, 2 if i in (1, 3, 5, 11) else 1, groups=len(kernel))
        x = relu6(normed(x, f"{block}._bn1"))
        x = normed(conv_same(x, tensors[f"{block}._project_conv.weight"], 1), f"{block}._bn2")
        if x.shape == incoming.shape:
            x = x + incoming
    x = relu6(normed(conv_same(x, tensors["_conv_head.weight"], 1), "_bn1"))

    features = weights.load(ROW, input_size_px=64).predict_on_batch(preprocess(pixels, "lite0"))[0]
    np.testing.assert_allclose(features, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("_blocks.3._bn1.running_var"), r"'_blocks\.3\._bn1\.running_var' is missing"),
        (lambda t: t.update(extra=np.ones(3, np.float32)), "tensor 'extra' has no layer"),
        (lambda t: t.update({"_conv_head.weight": t["_fc.weight"]}), "'_conv_head.weight': unexpected shape"),
        (lambda t: t.update({"_bn1.bias": t["_bn0.bias"]}), r"layer head_bn: expected shape \(1280,\), found \(32,\)"),
        (lambda t: t.update({"_bn1.bias": t["_bn1.bias"] * np.nan}), "'_bn1.bias': expected finite"),
        (lambda t: t.update({"_bn1.bias": np.zeros(1280, np.int64)}), "'_bn1.bias': expected finite floating-point"),
    ],
)
def test_a_checkpoint_that_does_not_fit(change, message, tensors, without_top):
    changed = dict(tensors)
    change(changed)
    with pytest.raises(WeightsError, match=rf"file\.pth.*{message}"):
        assign_checkpoint(without_top, changed, where="file.pth")


@pytest.mark.parametrize("shape", [(31, 32, 3), (32, 32, 1), (32, 32)])
def test_impossible_inputs(shape):
    with pytest.raises(ValueError, match="at least 32"):
        EfficientNetLite0(input_shape=shape)
