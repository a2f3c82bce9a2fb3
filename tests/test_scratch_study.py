"""Every network of the study takes a step of training; one with shortcuts and one without compile it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import load_network
from featcache.backbones.registry import STUDY
from featcache.backbones.spec import NetworkSpec
from featcache.backbones.weights import drawing_zeros
from featcache.networks import classifier
from featcache.networks.config import ScratchConfig
from featcache.networks.feed import Feed
from featcache.networks.training import Training
from featcache.networks.views import Views

SIDE = 96
COMPILED = ("vgg16", "xception")
"""The others take the step uncompiled, which is three times as quick."""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Compiled graphs of large networks are not kept for other tests."""
    yield
    import_keras().utils.clear_session()


@pytest.mark.parametrize("name", [name for name in STUDY if name not in ("densenet169", "densenet201", "vgg19")])
def test_it_learns_from_two_rows(name: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    views = Views(pixels, np.array([0, 3]), ("a", "b"), (0, 0))
    config = ScratchConfig(lr=1e-4, batch=2, epochs=1, val_every=2)
    with drawing_zeros():
        network = load_network(NetworkSpec(name, weights="random", input_size_px=SIDE))
    made = classifier.build(network, 4, config=config)
    with Feed(views, 4, config=config) as feed:
        training = Training(made, feed, Views(pixels[:0], views.y[:0], (), ()), config, "", tmp_path)
        training._compile(0)
        made.model.run_eagerly = name not in COMPILED
        before = [np.array(weight.numpy()) for weight in made.base.trainable_weights]
        entry = training.epoch(lambda: None)
    assert np.isfinite(entry.loss)
    changed = [not np.array_equal(old, w.numpy()) for old, w in zip(before, made.base.trainable_weights, strict=True)]
    assert changed[0]
    assert np.mean(changed) > 0.9
