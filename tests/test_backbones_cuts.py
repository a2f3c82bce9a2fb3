"""Cuts: any layers of a network in one pass, pooled, in lower precision; and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import base, network, pixels

from featcache.backbones.cuts import cut, layers_of
from featcache.backbones.doors import layers_to_cut
from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import load_network
from featcache.backbones.preprocess import preprocess
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import BackboneError


def outputs(model: Any, x: Any) -> list[Any]:
    found = model(x, training=False)
    return [np.asarray(output) for output in (found if isinstance(found, list) else [found])]


def test_several_layers_in_one_pass() -> None:
    names = ("block_6_expand_relu", "out_relu", "Conv_1")
    found = network("mobilenetv2", names)
    x = preprocess(pixels(3, "mobilenetv2"), "tf")
    keras = import_keras()
    for name, output, cut_ in zip(names, outputs(found.model, x), found.cuts, strict=True):
        alone = keras.Model(base("mobilenetv2").input, base("mobilenetv2").get_layer(name).output)
        np.testing.assert_array_equal(output, np.asarray(alone(x, training=False)))
        assert (cut_.space.layer, cut_.feature_shape) == (name, output.shape[1:])
    assert found.model.trainable_weights == []


def test_a_layer_within_a_nested_network() -> None:
    """ConvNeXt's stem is a network of its own; its layers are called with the network's own input."""
    x = preprocess(pixels(2, "convnext-tiny"), "none")
    found = network("convnext-tiny", ("convnext_tiny_stem/convnext_tiny_stem_conv", "convnext_tiny_stem"))
    conv, stem = outputs(found.model, x)
    assert conv.shape == stem.shape == (2, 8, 8, 96)
    assert not np.array_equal(conv, stem)
    layers = [base("convnext-tiny").get_layer(f"convnext_tiny_{name}") for name in ("prestem_normalization", "stem")]
    normalized = layers[0](x)
    np.testing.assert_array_equal(stem, np.asarray(layers[1](normalized)))
    np.testing.assert_array_equal(conv, np.asarray(layers[1].layers[0](normalized)))


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooling_is_over_all_axes_between_batch_and_channels(pooling: str) -> None:
    keras = import_keras()
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(4, 3, name="maps")(inputs)
    tokens = keras.layers.Reshape((36, 4), name="tokens")(maps)
    vector = keras.layers.Dense(2, name="vector")(keras.layers.Flatten(name="flat")(tokens))
    model, how = cut(keras.Model(inputs, vector), ("maps", "tokens", "vector"), pooling=pooling)
    plain, _ = cut(keras.Model(inputs, vector), ("maps", "tokens", "vector"))
    assert how == [(pooling, (4,)), (pooling, (4,)), ("none", (2,))]
    x = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    reduce = np.mean if pooling == "avg" else np.max
    pooled, full = outputs(model, x), outputs(plain, x)
    np.testing.assert_allclose(pooled[0], reduce(full[0], axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(pooled[1], reduce(full[1], axis=1), rtol=1e-5)
    np.testing.assert_array_equal(pooled[2], full[2])


@pytest.mark.parametrize(("precision", "digits"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_lower_precision(precision: Any, digits: float) -> None:
    """Near float32 but not equal to it, on weights that stay float32, and rescaled in float32."""
    x = preprocess(pixels(4, "mobilenetv3-small"), "none")
    names = ("rescaling", "conv", "activation_17")
    found = network("mobilenetv3-small", names, precision=precision)
    low, full = outputs(found.model, x), outputs(network("mobilenetv3-small", names).model, x)
    assert {each.space.precision for each in found.cuts} == {precision}
    assert {output.dtype for output in low} == {np.dtype("float32")}
    assert {weight.dtype for weight in found.model.weights} == {"float32"}
    np.testing.assert_array_equal(low[0], full[0])
    for got, expected, factor in zip(low[1:], full[1:], (4, 40), strict=True):
        size = np.abs(expected).max()
        assert 0 < np.abs(got - expected).max() < factor * digits * size
    assert found.cuts[0].stored("float16").precision == precision


def test_load_network_says_what_it_computes() -> None:
    spec = NetworkSpec("MobileNet-V2", "random", 7, input_size_px=32, layers=("Conv_1", "out_relu"), pooling="avg")
    found = load_network(spec)
    first, second = (cut.space for cut in found.cuts)
    assert (first.backbone, first.layer, second.layer) == ("mobilenetv2", "Conv_1", "out_relu")
    assert (first.input_size_px, first.preprocessing, first.pooling) == (32, "tf", "avg")
    assert (str(found.cuts[0].weights), found.cuts[0].feature_shape) == ("random-7", (1280,))
    assert first.precision == "float32"
    assert first.weights_digest == second.weights_digest
    space = found.cuts[0].stored("float32")
    assert (space.backbone, space.layer, space.dtype, space.precision) == (
        "mobilenetv2",
        "Conv_1",
        "float32",
        "float32",
    )


def test_what_can_be_cut_is_listed_as_it_is_cut() -> None:
    names = {layer.name: layer.output_shape for layer in layers_to_cut(NetworkSpec("vgg16", input_size_px=64))}
    assert list(names)[-1] == "block5_pool"
    assert names["block4_conv1"] == (8, 8, 512)
    assert not any("input" in name for name in names)


def test_what_cannot_be_cut() -> None:
    refused = {
        "block_6_expand_relus": "did you mean block_6_expand_relu",
        "nonsense": r"'featcache models NAME --layers' lists them",
    }
    for name, message in refused.items():
        with pytest.raises(BackboneError, match=f"^mobilenetv2: there is no layer '{name}': {message}"):
            network("mobilenetv2", (name,))
    with pytest.raises(BackboneError, match=r"^mobilenetv2: layer out_relu is named twice"):
        network("mobilenetv2", ("out_relu", "out_relu"))
    with pytest.raises(BackboneError, match="no pooling 'sum'"):
        load_network(NetworkSpec("vgg16", pooling="sum"))
    with pytest.raises(BackboneError, match="no precision 'float8': did you mean float32"):
        load_network(NetworkSpec("vgg16", precision="float8"))  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="no preprocessing 'coffee'"):
        load_network(NetworkSpec("vgg16", preprocessing="coffee"))
    with pytest.raises(BackboneError, match="input size 31 px: expected at least 32 px"):
        load_network(NetworkSpec("vgg16", "random", input_size_px=31))


def test_a_name_of_this_process_is_answered_with_the_stable_one() -> None:
    keras = import_keras()
    for _ in range(2):  # Keras calls them leaky_re_lu and leaky_re_lu_1, or counts from where it was
        inputs = keras.Input((4, 4, 3))
        model = keras.Model(inputs, keras.layers.LeakyReLU()(inputs))
    (layer,) = layers_of(model)
    assert layer.name == "leaky_re_lu" != layer.keras_name
    with pytest.raises(BackboneError, match=f"there is no layer '{layer.keras_name}': here it is called leaky_re_lu$"):
        cut(model, [layer.keras_name])


def test_layers_that_have_no_one_output_of_fixed_shape() -> None:
    keras = import_keras()
    inputs = keras.Input((8, 8, 3))
    twice = keras.layers.Conv2D(3, 3, padding="same", name="twice")
    split = keras.layers.Reshape((2, 2, 4, 12), name="five")(twice(twice(inputs)))
    free = keras.Input((None, None, 3))
    model, open_ = keras.Model(inputs, split), keras.Model(free, keras.layers.Conv2D(2, 3, name="conv")(free))
    with pytest.raises(BackboneError, match=r"layer five cannot be cut: its output has the shape \(2, 2, 4, 12\)"):
        cut(model, ["five"], side_px=8)
    with pytest.raises(BackboneError, match="layer twice cannot be cut: the network uses it 2 times"):
        cut(model, ["twice"], side_px=8)
    with pytest.raises(BackboneError, match=r"layer conv cannot be cut: its output has no fixed shape"):
        cut(open_, ["conv"])
    assert cut(open_, ["conv"], side_px=9)[1] == [("none", (7, 7, 2))]
