"""Drop-path: what a join leaves out how often, and that its network draws one column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import randomize

from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import load_network
from featcache.backbones.spec import NetworkSpec
from featcache.backbones.zoo.building import finished, image_input
from featcache.backbones.zoo.drop_path import drop_path_join_class, without_drop_path
from featcache.backbones.zoo.fractalnet import fractal

DRAWS = 1500
RATE = 0.3


def compiled(function: Any) -> Any:
    """A TensorFlow function: drawing thousands of times is quick."""
    import_keras()  # the quiet way, before TensorFlow is imported
    import tensorflow as tf

    return tf.function(function)


def shares(*joins: Any) -> list[Any]:
    """What each join counts its paths in many batches: (draws, paths) each."""

    draw = compiled(lambda: [join.shares() for join in joins])
    found = [draw() for _ in range(DRAWS)]
    return [np.stack([np.asarray(batch[place]) for batch in found]) for place in range(len(joins))]


def join(
    columns: tuple[int, ...], global_share: float, rate: float = RATE, network_seed: int = 5, seed: int = 1
) -> Any:
    return drop_path_join_class()(columns, 3, rate, global_share, network_seed, seed)


def near(probability: float) -> Any:
    return pytest.approx(probability, abs=5 * (0.25 / DRAWS) ** 0.5)


def test_local_drop_path_leaves_each_path_out_at_its_rate_and_never_all() -> None:
    (found,) = shares(join((0, 1, 2), global_share=0.0))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    left = found > 0
    for number in range(3):  # dropped, unless all three were and it is the one that stays
        assert 1 - left[:, number].mean() == near(RATE - RATE**3 / 3)
        assert found[:, number].mean() == near(1 / 3)
    assert (left.sum(axis=1) == 3).mean() == near((1 - RATE) ** 3)
    ways, counts = np.unique(left, axis=0, return_counts=True)
    assert len(ways) == 7
    assert counts.min() > 0.02 * DRAWS


def test_global_drop_path_passes_one_column_in_all_joins() -> None:
    last, inner = shares(join((0, 1, 2), 1.0, seed=1), join((1, 2), 1.0, seed=2))
    assert (last.max(axis=1) == 1).all()
    column = last.argmax(axis=1)
    assert [(column == number).mean() for number in range(3)] == [near(1 / 3)] * 3
    np.testing.assert_array_equal(inner[column == 1], [[1, 0]] * (column == 1).sum())
    np.testing.assert_array_equal(inner[column == 2], [[0, 1]] * (column == 2).sum())
    np.testing.assert_array_equal(inner[column == 0], [[0.5, 0.5]] * (column == 0).sum())


def test_half_of_the_batches_are_global_and_joins_agree_on_which() -> None:
    """Without a rate, a local batch has all paths."""
    first, second = shares(join((0, 1, 2), 0.5, rate=0.0, seed=1), join((0, 1, 2), 0.5, rate=0.0, seed=2))
    np.testing.assert_array_equal(first, second)
    assert (first.max(axis=1) == 1).mean() == near(0.5)
    (other,) = shares(join((0, 1, 2), 0.5, rate=0.0, network_seed=6))
    assert (other != first).any()


@pytest.mark.parametrize("global_share", [0.0, 0.5, 1.0])
def test_the_mean_of_many_batches_is_what_inference_gives(global_share: float) -> None:
    layer = join((0, 1, 2), global_share)
    paths = [np.full((1, 4), 10**number, np.float32) for number in range(3)]
    expected = np.asarray(layer(paths, training=False))
    np.testing.assert_allclose(expected, 37)
    batch = compiled(lambda: layer(paths, training=True))
    found = np.concatenate([np.asarray(batch()) for _ in range(DRAWS)])
    np.testing.assert_allclose(found.mean(axis=0), expected[0], atol=5 * found.std() / DRAWS**0.5)


@pytest.fixture
def network() -> Any:
    inputs = image_input((32, 32, 3))
    model = finished("fractal", inputs, x=fractal(inputs, 3, channels=(4, 6), seed=4), weights=None, classes=None)
    randomize(model)
    return model


IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


def out(model: Any, training: bool = False) -> Any:
    return np.asarray(model(IMAGES, training=training))


def test_a_saved_network_is_a_model_like_any_other_and_drops_on(network: Any, tmp_path: Path) -> None:
    network.save(tmp_path / "fractal.keras")
    found = load_network(NetworkSpec(str(tmp_path / "fractal.keras"), preprocessing="tf"))
    np.testing.assert_array_equal(np.asarray(found.model(IMAGES, training=False)), out(network))
    loaded = import_keras().saving.load_model(tmp_path / "fractal.keras")
    for _ in range(3):
        np.testing.assert_array_equal(out(loaded, training=True), out(network, training=True))


def test_without_drop_path_it_is_made_of_kerass_own_layers(network: Any) -> None:
    plain = without_drop_path(network)
    np.testing.assert_allclose(out(plain), out(network), rtol=1e-5, atol=1e-6)
    own = [layer for layer in plain.layers if not type(layer).__module__.startswith("keras.")]
    assert own == []
    assert [layer.name for layer in plain.layers[1:]] == [layer.name for layer in network.layers[1:]]
