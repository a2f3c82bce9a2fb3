"""Stochastic depth of any residual network: what is dropped how often, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import randomize

from featcache.backbones import registry, weights
from featcache.backbones.import_keras import import_keras
from featcache.backbones.model_file import read_config
from featcache.backbones.weights import drawing_zeros
from featcache.backbones.zoo.stochastic_depth import linear_rates, with_stochastic_depth
from featcache.core.errors import BackboneError


def linear(blocks: int = 3, operator: bool = False) -> Any:
    """y = x + W x, several times, as layers or with the operator +."""
    keras = import_keras()
    inputs = x = keras.Input((4,))
    for _ in range(blocks):
        branch = keras.layers.Dense(4, use_bias=False)(x)
        x = x + branch if operator else keras.layers.Add()([branch, x])
    model = keras.Model(inputs, x, name="linear")
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    return model


def nested() -> Any:
    keras = import_keras()
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(2)(linear()(inputs)), name="nested")


def dropouts(model: Any) -> list[Any]:
    """The layers that drop rows, of nested networks too, in no order."""
    layers = model._flatten_layers(include_self=False, recursive=True)
    return [layer for layer in layers if isinstance(layer, import_keras().layers.Dropout)]


def out(model: Any, x: Any, training: bool = False) -> Any:
    return np.asarray(model(x, training=training))


ROWS = np.repeat(np.random.default_rng(1).normal(size=(1, 4)), 20_000, axis=0).astype(np.float32)


@pytest.mark.parametrize("make", [linear, lambda: linear(operator=True), nested], ids=["layers", "operator", "nested"])
def test_the_mean_of_many_draws_is_what_inference_gives(make: Any) -> None:
    model = make()
    deep = with_stochastic_depth(model, 0.6, seed=3)
    assert sorted(layer.rate for layer in dropouts(deep)) == pytest.approx([0.2, 0.4, 0.6])
    expected = out(model, ROWS[:1])
    np.testing.assert_array_equal(out(deep, ROWS[:1]), expected)
    draws = out(deep, ROWS, training=True)
    assert len(np.unique(draws, axis=0)) == 8  # every one of 2 ** 3 subnetworks
    np.testing.assert_allclose(draws.mean(axis=0), expected[0], atol=5 * draws.std(axis=0).max() / len(ROWS) ** 0.5)


def test_branches_are_dropped_by_row_at_their_own_rates() -> None:
    keras = import_keras()
    deep = with_stochastic_depth(linear(), 0.6)
    kept = keras.Model(deep.input, [layer.output for layer in dropouts(deep)])(ROWS, training=True)
    for values, rate in zip(kept, linear_rates(3, 0.6), strict=True):
        rows = np.asarray(values)
        dropped = ~rows.any(axis=1)
        assert (rows.all(axis=1) | dropped).all()  # a row as a whole
        assert dropped.mean() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / len(ROWS)) ** 0.5)


def test_draws_follow_from_the_seed_and_go_on_from_the_variables() -> None:
    model, x = linear(), ROWS[:64]
    first, same, other = (with_stochastic_depth(model, 0.5, seed=seed) for seed in (1, 1, 2))
    draws = [out(first, x, training=True) for _ in range(2)]
    assert (draws[0] != draws[1]).any()
    np.testing.assert_array_equal(out(same, x, training=True), draws[0])
    assert (out(other, x, training=True) != draws[0]).any()
    resumed = with_stochastic_depth(model, 0.5, seed=7)
    for ours, theirs in zip(resumed.variables, same.variables, strict=True):
        ours.assign(theirs)
    np.testing.assert_array_equal(out(resumed, x, training=True), draws[1])


@pytest.mark.parametrize(("name", "branches"), [("resnet50", 12), ("mobilenetv2", 10)])
def test_a_backbone_stays_what_it_was(name: str, branches: int) -> None:
    with drawing_zeros():
        model = weights.build(registry.get(name), 32)
        randomize(model, 1.0)
        deep = with_stochastic_depth(model, 0.5)
    assert weights.weights_digest(deep) == weights.weights_digest(model)
    assert len(dropouts(deep)) == branches
    inserted = {layer.name for layer in dropouts(deep)}
    assert [layer.name for layer in deep.layers[1:] if layer.name not in inserted] == [
        layer.name for layer in model.layers[1:]
    ]
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(out(deep, x), out(model, x))
    model.weights[0].assign(model.weights[0] + 1)
    assert (out(deep, x) != out(model, x)).any()  # it has weights of its own


def test_a_branch_that_is_dropped_already_gets_the_new_rate() -> None:
    """As in EfficientNet; a Dropout of single values is another thing and stays."""
    layers, inputs = import_keras().layers, import_keras().Input((4,))
    x = layers.Add()([inputs, layers.Dropout(0.1, noise_shape=(None, 1), name="rows")(layers.Dense(4)(inputs))])
    x = layers.Add(name="sum")([x, layers.Dropout(0.1, name="values")(layers.Dense(4)(x))])
    deep = with_stochastic_depth(import_keras().Model(inputs, x), 0.8)
    assert {layer.name: layer.rate for layer in dropouts(deep)} == {"rows": 0.4, "values": 0.1, "sum_drop": 0.8}


def test_it_is_saved_as_kerass_own_layers(tmp_path: Path) -> None:
    deep = with_stochastic_depth(linear(), 0.5)
    deep.save(tmp_path / "deep.keras")
    read_config(tmp_path / "deep.keras")
    loaded = import_keras().saving.load_model(tmp_path / "deep.keras")
    np.testing.assert_array_equal(out(loaded, ROWS[:64], training=True), out(deep, ROWS[:64], training=True))


def test_an_add_layer_that_is_used_twice_drops_twice() -> None:
    keras = import_keras()
    add, dense = keras.layers.Add(), keras.layers.Dense(4)
    inputs = keras.Input((4,))
    x = add([inputs, dense(inputs)])
    deep = with_stochastic_depth(keras.Model(inputs, add([dense(x), x])), 0.5)
    assert sorted(layer.rate for layer in dropouts(deep)) == [0.25, 0.5]


def no_residual() -> Any:
    """Sums of two branches, of three, and of a tensor with itself."""
    keras = import_keras()
    inputs = keras.Input((4,))
    one, two = keras.layers.Dense(4)(inputs), keras.layers.Dense(4)(inputs)
    x = keras.layers.Add()([one, two])
    x = keras.layers.Add()([x, x])
    return keras.Model(inputs, keras.layers.Add()([x, one, inputs]), name="plain")


@pytest.mark.parametrize(
    ("make", "rate", "message"),
    [
        (no_residual, 0.5, "plain: it cannot have stochastic depth: none of its sums has an identity shortcut"),
        (lambda: import_keras().Sequential(name="empty"), 0.5, "empty: it cannot have stochastic depth"),
        (linear, 1.0, "stochastic depth: expected a rate from 0 to below 1, got 1.0"),
        (linear, -0.1, "expected a rate from 0 to below 1, got -0.1"),
    ],
)
def test_what_cannot_have_it(make: Any, rate: float, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        with_stochastic_depth(make(), rate)


def test_weights_that_would_change_their_order_are_refused() -> None:
    keras = import_keras()
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4)(inputs)
    residual = keras.layers.Add()([x, keras.layers.Dense(4)(x)])
    other = keras.layers.Dense(4)(keras.layers.Dense(4)(inputs))
    model = keras.Model(inputs, keras.layers.Concatenate()([other, residual]), name="side")
    with pytest.raises(BackboneError, match="side: with other layers its weights come in another order"):
        with_stochastic_depth(model, 0.5)
