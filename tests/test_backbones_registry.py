"""The table of backbones, held to the networks themselves."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from featcache.backbones import registry, weights
from featcache.backbones.quiet_keras import import_keras
from featcache.errors import BackboneError

FROM_KERAS = [row for row in registry.BACKBONES.values() if row.weights_package is None]
STUDY = {
    "vgg16",
    "vgg19",
    "resnet50",
    "inceptionv3",
    "xception",
    "densenet121",
    "densenet169",
    "densenet201",
    "mobilenetv2",
    "efficientnet-lite0",
}


def test_every_backbone_of_the_study_is_registered():
    assert set(registry.BACKBONES) >= STUDY


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
    with pytest.raises(BackboneError, match="known are densenet121"):
        registry.get("")


def test_keras_is_imported_late_and_quietly():
    """Nothing of the sub-package imports Keras by itself; when it is imported, nothing is printed."""
    script = """
import sys
from featcache.backbones import engine, imagenet, preprocess, registry, torch_checkpoint, weights
assert not {"keras", "tensorflow", "torch"} & set(sys.modules)
[imagenet.available(row) for row in registry.BACKBONES.values()]
assert not {"keras", "tensorflow", "torch"} & set(sys.modules)
from featcache.backbones.quiet_keras import import_keras
assert float(import_keras().ops.sum(import_keras().ops.ones(3))) == 3
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("row", registry.BACKBONES.values(), ids=lambda row: row.name)
def test_the_row_describes_the_network(row):
    keras = import_keras()
    keras.utils.clear_session()  # names of layers as in a fresh process
    module, _, attribute = row.builder.partition(":")
    below = row.min_size_px - 1
    with pytest.raises(ValueError, match="at least"):
        getattr(import_module(module), attribute)(weights=None, include_top=False, input_shape=(below, below, 3))
    with pytest.raises(BackboneError, match=f"{row.name}: input size {below} px: expected at least"):
        weights.build(row, below)
    model = weights.build(row)
    assert model.input_shape == (None, row.input_size_px, row.input_size_px, 3)
    assert model.output_shape == (None, *row.feature_shape)
    assert model.count_params() == row.parameters
    assert model.layers[-1].name == row.layer


@pytest.mark.parametrize("row", FROM_KERAS, ids=lambda row: row.name)
def test_weights_come_from_where_keras_takes_them(row):
    """File name and MD5 stand in the source of the builder's module, and so does the address."""
    module = import_module(row.builder.partition(":")[0])
    code = inspect.getmodule(inspect.unwrap(getattr(module, row.builder.partition(":")[2])))
    if "resnet" in row.builder and "inception" not in row.builder:
        code = import_module("keras.src.applications.resnet")
    source = inspect.getsource(code)
    source = "".join(line.strip().removeprefix('f"').strip('"') for line in source.splitlines())
    folder, _, name = row.weights_url.rpartition("/")
    assert folder.rpartition("/")[2] in source
    assert row.weights_md5 is None or row.weights_md5 in source
    if row.weights_md5 and "resnet" not in row.name:  # ResNets and MobileNets compose theirs
        assert row.weights_file in source
        assert name in source
