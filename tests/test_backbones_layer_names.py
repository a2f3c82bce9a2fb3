"""Stable names: those of a fresh process, whatever was built before."""

from __future__ import annotations

from hypothesis import given, strategies as st

from featcache.backbones import registry, weights
from featcache.backbones.cuts import layers_of
from featcache.backbones.import_keras import import_keras
from featcache.backbones.layer_names import stable_names

KINDS = ("Conv2D", "Activation", "BatchNormalization")
PREFIXES = {"Conv2D": "conv2d", "Activation": "activation", "BatchNormalization": "batch_normalization"}


@given(st.lists(st.sampled_from((*KINDS, "own")), max_size=12), st.integers(0, 300), st.randoms())
def test_names_do_not_depend_on_where_keras_began_to_count(kinds: list[str], start: int, rng: object) -> None:
    counts = dict.fromkeys(KINDS, start)
    fresh, later = [], []
    for place, kind in enumerate(kinds):
        if kind == "own":
            fresh.append(("Conv2D", f"block{place}_conv"))
            later.append(fresh[-1])
            continue
        number = counts[kind] - start
        prefix = PREFIXES[kind]
        fresh.append((kind, f"{prefix}_{number}" if number else prefix))
        later.append((kind, f"{prefix}_{counts[kind]}" if counts[kind] else prefix))
        counts[kind] += 1
    assert stable_names(later) == stable_names(fresh) == [name for _, name in fresh]
    assert len(set(stable_names(later))) == len(later)


def test_a_name_that_a_person_gave_is_never_given_again() -> None:
    layers = [("Dense", "activation"), ("Activation", "activation_7"), ("Activation", "activation_9")]
    assert stable_names(layers) == ["activation", "activation_1", "activation_2"]
    assert stable_names([("Dense", "5"), ("Dense", "_5"), ("Dense", "dense_x")]) == ["5", "_5", "dense_x"]
    assert stable_names([("Functional", "model_3"), ("InputLayer", "input_2")]) == ["functional", "input_layer"]


def test_layers_of_networks_are_called_the_same_however_often_they_are_built() -> None:
    import_keras().layers.Activation("relu")  # Keras' count goes on
    for name in ("mobilenetv3-small", "convnext-tiny"):
        row = registry.get(name)
        once, again = (layers_of(weights.build(row, 32)) for _ in range(2))
        assert [layer.name for layer in once] == [layer.name for layer in again]
        assert [layer.keras_name for layer in once] != [layer.keras_name for layer in again]
        assert once[-1].name == row.layer
