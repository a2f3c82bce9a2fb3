"""A network as a chain of blocks."""

from __future__ import annotations

from typing import Any

import networks
import pytest

from featcache.backbones.import_keras import import_keras
from featcache.networks.blocks import blocks_of

_CHAINS = {
    "vgg16": (5, "block5"),
    "resnet50": (17, "conv5_block3"),
    "mobilenetv2": (20, "Conv_1"),
    "densenet121": (62, "conv5_block16"),
    "efficientnet-lite0": (18, "head_conv"),
    "xception": (14, "block14"),
}


@pytest.mark.parametrize("name", _CHAINS)
def test_blocks_of_known_networks(name: str) -> None:
    model = networks.base(name)
    blocks = blocks_of(model)
    assert (len(blocks), blocks[-1].name) == _CHAINS[name]
    inside = [layer for block in blocks for layer in block.layers]
    assert len(inside) == len({id(layer) for layer in inside})
    assert {id(w) for layer in inside for w in layer.weights} == {id(w) for w in model.weights}
    assert all(any(len(weight.shape) > 1 for layer in block.layers for weight in layer.weights) for block in blocks)


def test_the_rest_of_the_network_needs_a_blocks_output_alone() -> None:
    """Each block can be computed from the one before it: no tensor reaches over two of them."""
    model = networks.base("resnet50")
    place = {id(layer): number for number, block in enumerate(blocks_of(model)) for layer in block.layers}
    for layer in model.layers[1:]:
        for node in layer._inbound_nodes:
            for before in (tensor._keras_history.operation for tensor in node.input_tensors):
                if id(before) in place:
                    assert place[id(layer)] - place[id(before)] in (0, 1), layer.name


def test_a_network_that_is_no_chain_is_one_block() -> None:
    layers, ops = import_keras().layers, import_keras().ops
    pixels = layers.Input((8, 8, 3))
    a, b = layers.Conv2D(4, 3)(pixels), layers.Conv2D(4, 5, padding="same")(pixels)
    model: Any = import_keras().Model(
        pixels, layers.Concatenate()([layers.Flatten()(a), layers.Flatten()(ops.relu(b))])
    )
    assert [sum(bool(getattr(layer, "weights", ())) for layer in block.layers) for block in blocks_of(model)] == [2]
