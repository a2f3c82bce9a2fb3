"""A small network, views that it can learn, and trainings of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import Cut, Network
from featcache.backbones.weights import randomize
from featcache.core.recipe import Augmentation, FeatureSpace, WeightsSource
from featcache.networks import classifier
from featcache.networks.classifier import Classifier
from featcache.networks.config import ScratchConfig
from featcache.networks.feed import Feed
from featcache.networks.training import Training
from featcache.networks.views import Live, Views

SIDE = 16
CONFIG = ScratchConfig(lr=0.05, momentum=0.9, batch=8, epochs=3, augment="planned")


def network(norm: bool = True, preprocessing: str = "tf", seed: int = 0) -> Network:
    """Three blocks: a convolution, a residual one, a convolution."""
    layers = import_keras().layers

    def normed(x: Any, name: str) -> Any:
        return layers.BatchNormalization(name=f"{name}_bn")(x) if norm else x

    pixels = layers.Input((SIDE, SIDE, 3))
    x = normed(layers.Conv2D(8, 3, 2, "same", name="block1_conv")(pixels), "block1")
    x = layers.Activation("relu")(x)
    y = normed(layers.Conv2D(8, 3, 1, "same", name="block2_conv")(x), "block2")
    x = layers.Add(name="block2_add")([x, layers.Activation("relu")(y)])
    x = normed(layers.Conv2D(12, 3, 2, "same", name="block3_conv")(x), "block3")
    model = import_keras().Model(pixels, [layers.Activation("relu", name="block3_out")(x)])
    randomize(model, seed)
    space = FeatureSpace("small", "block3_out", SIDE, preprocessing, "none", f"of seed {seed}")
    return Network(model, (Cut(space, WeightsSource("random", seed), (4, 4, 12)),))


def views(n: int, seed: int = 0, per_image: int = 2) -> Views:
    """Rows of four classes, each with a bright quarter of its own; `per_image` rows in turn are views of one image."""
    rng = np.random.default_rng(seed)
    y = np.repeat(rng.integers(0, 4, -(-n // per_image)), per_image)[:n]
    pixels = rng.integers(0, 120, (n, SIDE, SIDE, 3)).astype(np.uint8)
    half = SIDE // 2
    for row, label in enumerate(y):
        top, left = divmod(int(label), 2)
        pixels[row, top * half : (top + 1) * half, left * half : (left + 1) * half] += 100
    ids = tuple(f"{seed}-{row // per_image}" for row in range(n))
    return Views(pixels, y.astype(np.int64), ids, tuple(row % per_image for row in range(n)))


@contextmanager
def opened(
    folder: Path,
    config: ScratchConfig = CONFIG,
    n: int = 40,
    made: Classifier | None = None,
    norm: bool = True,
    **changes: Any,
) -> Iterator[Training]:
    """A training of the small network on `n` rows."""
    config = replace(config, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    train = views(n)
    live = Live(train, Augmentation()) if config.augment == "live" else None
    made = made or classifier.build(network(norm), 4, config=config)
    with Feed(train, 4, config=config, live=live) as feed:
        yield Training(made, feed, views(12, seed=1), config, "course", folder)


def weights(training: Training) -> list[np.ndarray[Any, Any]]:
    """Copies of the model's weights, statistics of batch normalisation included."""
    return [np.array(weight.numpy()) for weight in training.classifier.model.weights]
