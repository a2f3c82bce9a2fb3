"""Every registered backbone with a small input and weights at which a mix-up shows; those used last are kept."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from featcache.backbones import registry, weights
from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import Cut, Network, Precision, network_of
from featcache.backbones.preprocess import preprocess
from featcache.backbones.weights_h5 import settle
from featcache.core.recipe import FeatureSpace, WeightsSource

_GAINS = {"resnet": 1.0, "resnext": 1.0, "xception": 1.0, "nasnet": 1.0, "efficientnetv2": 1.2}
"""Of networks whose many sums would grow beyond float32."""
LARGE = 25_000_000
"""Parameters from which a network is kept only until the next such one is asked for."""
_KEPT = 6
"""Smaller ones that are kept: all of them would be gigabytes."""


def randomize(model: Any, gain: float = 2**0.5) -> None:
    """Give every weight a value at which a mix-up shows, and of a size at which the features still tell images apart.

    Kernels are drawn so that a layer keeps its input's size (gain 2 ** 0.5 behind a ReLU); featcache's own random
    weights are smaller, and deep networks forget the image. Biases and statistics of batch normalisation are
    none of them 0 or 1.
    """
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(2**21, np.float32)  # begun elsewhere for each kernel: drawing takes long
    for number, weight in enumerate(model.weights):
        shape = tuple(weight.shape)
        if len(shape) >= 2:
            fan_in = math.prod(shape[:2]) if len(shape) == 4 and shape[3] == 1 else math.prod(shape[:-1])
            drawn = normal[997 * number % 2**20 :][: min(math.prod(shape), 2**20 - 7)]
            weight.assign(np.resize(drawn, shape) * np.float32(gain / math.sqrt(fan_in)))
        elif shape:
            positive = weight.name in ("gamma", "moving_variance", "variance")
            value = rng.uniform(0.5, 1.5, shape) if positive else rng.normal(0, 0.1, shape)
            weight.assign(value.astype(np.float32))
    settle(model)


def base(name: str) -> Any:
    """The Keras model of a backbone at its smallest input, randomized. Shared: not to be changed."""
    row = registry.get(name)
    return (_large if row.parameters > LARGE else _small)(row)


def network(
    name: str, layers: tuple[str, ...] = (), pooling: str = "none", precision: Precision = "float32"
) -> Network:
    """The backbone called `name` at its smallest input, with random weights and statistics of a fixed seed.

    Its base is shared between tests: not to be changed.
    """
    row = registry.get(name)
    model = base(name) if precision == "float32" else _built(row)
    digest = f"of {row.name}, randomized"
    space = FeatureSpace(row.name, "", row.min_size_px, row.preprocessing, "none", digest)
    made = Cut(space, WeightsSource("random"))
    return network_of(model, made, layers=layers or (row.layer,), pooling=pooling, precision=precision)


def keras_features(network: Network, pixels: Any) -> list[Any]:
    """What Keras itself gives for pixels (n, s, s, 3), uint8: an array a cut."""
    keras = import_keras()
    outputs = network.model(preprocess(pixels, network.cuts[0].space.preprocessing), training=False)
    return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]


def pixels(n: int, name: str) -> Any:
    """Random pixels for `network(name)`: (n, s, s, 3), uint8."""
    side = registry.get(name).min_size_px
    return np.random.default_rng(2).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def small() -> Any:
    """A network that is compiled in a moment, for what any network does: from 32 px to a last map of 8 x 8."""
    keras = import_keras()
    x = pixels = keras.Input((32, 32, 3))
    for number, n in enumerate((8, 16)):
        drawn = keras.initializers.HeNormal(seed=number)
        x = keras.layers.Conv2D(n, 3, 2, padding="same", use_bias=False, kernel_initializer=drawn)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(pixels, x)


def _built(row: registry.Backbone) -> Any:
    model = weights.build(row, row.min_size_px)
    model.trainable = False
    gain = next((gain for start, gain in _GAINS.items() if row.name.startswith(start)), 2**0.5)
    randomize(model, gain)
    return model


_small = functools.lru_cache(_KEPT)(_built)
_large = functools.lru_cache(1)(_built)
