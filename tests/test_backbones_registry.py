"""The table of backbones, held to the networks themselves."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib import import_module

import pytest

from featcache.backbones import registry, weights
from featcache.backbones.cuts import layers_of
from featcache.backbones.import_keras import import_keras
from featcache.core.errors import BackboneError


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("VGG16", "vgg16"),
        ("vgg-16", "vgg16"),
        ("efficientnet_lite0", "efficientnet-lite0"),
        ("EfficientNet-Lite0", "efficientnet-lite0"),
        ("MobileNet_V2", "mobilenetv2"),
        ("Inception V3", "inceptionv3"),
    ],
)
def test_get_is_tolerant_of_spelling(written, name):
    assert registry.get(written).name == name


def test_get_offers_the_nearest_names():
    with pytest.raises(BackboneError, match=r"'resnet49'.*did you mean resnet50"):
        registry.get("resnet49")
    with pytest.raises(BackboneError, match="known are convnext-base"):
        registry.get("")


def test_keras_is_imported_late_and_quietly():
    """Nothing of the sub-package imports Keras by itself; when it is imported, nothing is printed."""
    script = """
import sys
from featcache.backbones import imagenet, network, preprocess, registry, torch_checkpoint, weights
from featcache.backbones.engines import choose, keras_engine, openvino_engine
assert not {"keras", "tensorflow", "torch", "openvino"} & set(sys.modules)
[imagenet.available(row) for row in registry.BACKBONES.values()]
assert not {"keras", "tensorflow", "torch"} & set(sys.modules)
from featcache.backbones.import_keras import import_keras
assert float(import_keras().ops.sum(import_keras().ops.ones(3))) == 3
"""
    command, environment = [sys.executable, "-c", script], os.environ.copy()
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # whatever Keras or JAX set it to when this process loaded them
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def operations(model):
    """Multiplications and additions of a network for one image, from the shapes of kernels and outputs."""
    total = 0
    for layer in model._flatten_layers(include_self=False):
        kind = type(layer).__name__
        kernels = [weight for weight in layer._trainable_variables if len(weight.shape) > 1]
        assert not kernels or kind in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense"), kind
        if kernels:
            places = layer.output.shape[1:3] if "Conv2D" in kind else layer.output.shape[1:-1]
            total += 2 * math.prod(places) * sum(math.prod(kernel.shape) for kernel in kernels)
    return total


@pytest.fixture
def asked(monkeypatch):
    """What Keras would download: (file, address, hash) of each; the files are not read.

    Networks are built as Keras builds them, but for the memory of their weights, which takes most of the time.
    """
    keras, found = import_keras(), []
    monkeypatch.setattr(
        "keras.src.utils.file_utils.get_file",
        lambda fname, origin, file_hash=None, **_: found.append((fname, origin, file_hash)),
    )
    monkeypatch.setattr(keras.Model, "load_weights", lambda *_: None)
    with keras.StatelessScope(initialize_variables=False):
        yield found
    keras.utils.clear_session(free_memory=False)  # forgets the weights that it would make later


@pytest.mark.parametrize("row", registry.BACKBONES.values(), ids=lambda row: row.name)
def test_the_row_describes_the_network(row, asked):
    """The network that Keras builds for its ImageNet weights, and the file that it asks for."""
    module, _, attribute = row.builder.partition(":")
    below = row.min_size_px - 1
    with pytest.raises(ValueError, match="at least"):
        getattr(import_module(module), attribute)(weights=None, include_top=False, input_shape=(below, below, 3))
    with pytest.raises(BackboneError, match=f"{row.name}: input size {below} px: expected at least"):
        weights.build(row, below)
    if row.weights_url:
        side = row.input_size_px
        builder = getattr(import_keras().applications, attribute)
        model = builder(weights="imagenet", include_top=False, input_shape=(side, side, 3))
        assert asked == [(row.weights_file, row.weights_url, row.weights_hash)]
    else:
        model = weights.build(row)
    assert model.input_shape == (None, row.input_size_px, row.input_size_px, 3)
    assert model.output_shape == (None, *row.feature_shape)
    assert model.count_params() == row.parameters
    assert operations(model) == row.operations
    assert layers_of(model)[-1].name == row.layer


def test_efficientnets_have_the_layer_that_keras_adds_for_imagenet_weights(asked):
    row = registry.get("efficientnet-b0")
    documented = import_keras().applications.EfficientNetB0(weights="imagenet", include_top=False)
    ours, theirs = layers_of(weights.build(row, 64)), layers_of(documented)
    assert [layer.name for layer in ours] == [layer.name for layer in theirs]
    assert [layer.name for layer in ours][:3] == ["rescaling", "normalization", "rescaling_1"]


def test_the_study_is_eight_backbones():
    assert len(registry.STUDY) == 8
    assert set(registry.STUDY) <= set(registry.BACKBONES)
