"""The networks that are there to be trained from random weights: what their papers say of them, and that they train."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import randomize

from featcache.backbones import imagenet, registry, weights
from featcache.backbones.import_keras import import_keras
from featcache.backbones.model_file import read_config
from featcache.backbones.weights import drawing_zeros
from featcache.backbones.zoo.building import finished, image_input
from featcache.backbones.zoo.fractalnet import fractal
from featcache.backbones.zoo.grouped_conv import grouped_conv_class
from featcache.core.errors import WeightsError

SCRATCH = [row.name for row in registry.BACKBONES.values() if not row.weights_file]


def built(name: str, classes: int, side: int = 32, **settings: Any) -> Any:
    """A network of the registry with its top."""
    module, _, attribute = registry.get(name).builder.partition(":")
    builder = getattr(import_module(module), attribute)
    return builder(None, include_top=True, input_shape=(side, side, 3), classes=classes, **settings)


def count(weights: Any) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


# --- what the papers say --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("squeezenet", 1000, 1_235_496),
        ("resnext50", 1000, 25_028_904),  # 25.0 M
        ("resnet50-sd", 1000, 25_557_032),  # 25.6 M
        ("resnet20", 10, 269_722),  # 0.27 M
        ("resnet110-sd", 10, 1_727_962),  # 1.7 M
        ("fractalnet", 10, 33_724_618),
    ],
)
def test_parameters_are_those_of_the_papers(name: str, classes: int, parameters: int) -> None:
    with drawing_zeros():
        model = built(name, classes)
    assert count(model.trainable_weights) == parameters
    assert model.output_shape == (None, classes)


@pytest.mark.parametrize(("columns", "millions"), [(1, 0.3), (2, 0.8), (3, 2.1), (4, 4.8)])
def test_fractals_have_the_parameters_and_the_depth_of_the_papers_table(columns: int, millions: float) -> None:
    inputs = image_input((32, 32, 3))
    with drawing_zeros():
        model = finished(
            "fractal",
            inputs,
            x=fractal(inputs, columns, channels=(16, 32, 64, 128, 128), seed=0),
            weights=None,
            classes=100,
        )
    assert round(count(model.trainable_weights) / 1e6, 1) == millions
    depth: dict[int, int] = {}  # tensor -> convolutions on the longest way to it
    for layer in model.layers[1:]:
        ways = [depth.get(id(tensor), 0) for tensor in import_keras().tree.flatten(layer.input)]
        depth[id(layer.output)] = max(ways) + isinstance(layer, import_keras().layers.Conv2D)
    assert depth[id(model.output)] == 5 * 2 ** (columns - 1)


def test_a_fractal_is_the_mean_of_a_convolution_and_two_in_a_row() -> None:
    inputs = image_input((32, 32, 3))
    model = finished(
        "fractal", inputs, x=fractal(inputs, 2, channels=(4, 4, 4, 4, 4), seed=0), weights=None, classes=None
    )
    randomize(model)

    def conv(x: Any, name: str) -> Any:
        for kind in ("conv", "bn", "relu"):
            x = model.get_layer(f"{name}_{kind}")(x)
        return x

    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    deep = conv(conv(x, "block1_step1_column1"), "block1_step2_column1")
    expected = (np.asarray(conv(x, "block1_step2_column0")) + np.asarray(deep)) / 2
    found = import_keras().Model(model.input, model.get_layer("block1_step2_join").output)(x)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)


def test_blocks_drop_with_a_probability_that_grows_linearly() -> None:
    with drawing_zeros():
        model = built("resnet110-sd", 10)
    rates = [layer.rate for layer in model.layers if isinstance(layer, import_keras().layers.Dropout)]
    np.testing.assert_allclose(rates, [0.5 * block / 54 for block in range(1, 55)])


def test_a_shortcut_without_parameters_takes_every_second_pixel() -> None:
    with drawing_zeros():
        model = built("resnet20", 10)
    wide = model.get_layer("conv2_block1_widen")
    before = model.get_layer("conv1_block3_out").output
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    first, last = import_keras().Model(model.input, [before, wide.output])(x)
    np.testing.assert_array_equal(np.asarray(last)[..., :16], np.asarray(first)[:, ::2, ::2])
    assert not np.asarray(last)[..., 16:].any()


# --- training -------------------------------------------------------------------------------------


def changed_weights(model: Any, steps: int) -> list[str]:
    """Train on a batch, at most `steps` times; the weights that never changed. Losses are finite."""
    x = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    unchanged = list(zip(model.trainable_weights, [weight.numpy() for weight in model.trainable_weights], strict=True))
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    while unchanged and steps:
        assert np.isfinite(model.train_on_batch(x, np.arange(8) % 3))
        unchanged = [(weight, value) for weight, value in unchanged if np.array_equal(weight.numpy(), value)]
        steps -= 1
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)
    return [weight.path for weight, _ in unchanged]


@pytest.mark.parametrize("name", SCRATCH)
def test_a_step_reaches_every_weight(name: str) -> None:
    """Of FractalNet several steps, since each leaves paths out."""
    assert changed_weights(built(name, 3), steps=20 if name == "fractalnet" else 1) == []


JAX = """
    import numpy as np
    from featcache.backbones.zoo.building import conv, finished, image_input
    from featcache.backbones.zoo.fractalnet import fractal
    from featcache.backbones.zoo.grouped_conv import grouped_conv_class
    from featcache.backbones.import_keras import import_keras
    from featcache.backbones.zoo.stochastic_depth import dropped
    keras = import_keras()
    inputs = image_input((32, 32, 3))
    x = fractal(inputs, 2, channels=(8,), seed=1)
    branch = grouped_conv_class()(8, 3, padding="same", groups=4)(x)
    x = keras.layers.Add()([x, dropped(branch, 0.5, seed=2, name="drop")])
    model = finished("parts", inputs, x=x, weights=None, classes=3)
    before = [np.asarray(weight) for weight in model.trainable_weights]
    seeds = {v.path: np.asarray(v) for v in model.variables if "seed" in v.path}
    model.compile("sgd", "sparse_categorical_crossentropy")
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    assert np.isfinite([model.train_on_batch(images, np.arange(8) % 3) for _ in range(12)]).all()
    still = [w.path for w, v in zip(model.trainable_weights, before) if np.array_equal(np.asarray(w), v)]
    assert not still, still
    assert len(seeds) == 3  # two of the join, one of the dropped branch
    still = [v.path for v in model.variables if v.path in seeds and np.array_equal(np.asarray(v), seeds[v.path])]
    assert not still, still
"""


@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="jax is not installed")
def test_their_parts_train_on_jax_too() -> None:
    """Compiled, joins, groups and dropped branches in one small network."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(JAX)],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- grouped convolutions -------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "stride"), [(2, 1), (4, 2)])
def test_a_grouped_convolution_is_kerass_own(groups: int, stride: int, tmp_path: Path) -> None:
    """The same outputs, and when it is saved, the same layer: nobody needs featcache to load it."""
    keras = import_keras()
    inputs = keras.Input((9, 9, 8))
    layer = grouped_conv_class()(12, 3, stride, padding="same", groups=groups, use_bias=False)
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "grouped.keras")
    read_config(tmp_path / "grouped.keras")
    loaded = keras.saving.load_model(tmp_path / "grouped.keras")
    assert type(loaded.layers[-1]) is keras.layers.Conv2D
    x = np.random.default_rng(0).normal(size=(2, 9, 9, 8)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(model(x)), np.asarray(loaded(x)), rtol=1e-4, atol=1e-5)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRATCH)
def test_there_are_no_imagenet_weights(name: str) -> None:
    row = registry.get(name)
    assert imagenet.available(row) == "none"
    assert imagenet.local_file(row) is None
    with pytest.raises(WeightsError, match=f"{name}: there are no ImageNet weights .* `weights='random'`"):
        weights.load(row)


@pytest.mark.parametrize("name", ["resnet20", "squeezenet"])
def test_a_trained_network_gives_a_backbone_its_weights(name: str, tmp_path: Path) -> None:
    """From a whole model with its top, and from the backbone's weights; the builder takes them too."""
    with drawing_zeros():
        model = built(name, 3)
        randomize(model)
        model.save(tmp_path / "trained.keras")
        loaded = weights.load(registry.get(name), tmp_path / "trained.keras")
        loaded.save_weights(tmp_path / "backbone.weights.h5")
        again = weights.load(registry.get(name), tmp_path / "backbone.weights.h5")
        module, _, attribute = registry.get(name).builder.partition(":")
        direct = getattr(import_module(module), attribute)(tmp_path / "backbone.weights.h5")
    digest = weights.weights_digest(loaded)
    assert weights.weights_digest(again) == weights.weights_digest(direct) == digest
    for layer in loaded.layers[1:]:
        for ours, theirs in zip(layer.weights, model.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
