"""A network as the chain of blocks that it is: what is unfrozen, and given a rate of its own, as a whole."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

_BLOCK_NAME = re.compile(r"(.*?block_?\d+[a-z]?)(?:_|$)")


@dataclass(frozen=True)
class Block:
    """Layers that belong together.

    name : of the block where its layers share one (block5, conv4_block6), else of the layer that ends its kernels' part
    """

    name: str
    layers: tuple[keras.layers.Layer, ...]


def blocks_of(model: keras.Model) -> list[Block]:
    """The blocks of a Functional or Sequential network, from its input to its output.

    A network can be parted behind every layer whose output alone is what the rest of it is computed from. A part
    begins at a layer with a kernel, so that normalisation and activation belong to the convolution before them, and
    parts whose layers carry the name of one block (block5_conv1, block5_conv2) are one.
    """
    blocks: list[Block] = []
    for part in _parts(model):
        name = _name(part)
        continues = blocks and (not _has_kernel(part) or (_BLOCK_NAME.match(name) and name == blocks[-1].name))
        if continues or (blocks and not _has_kernel(blocks[-1].layers)):
            before = blocks.pop()
            blocks.append(Block(before.name if _has_kernel(before.layers) else name, (*before.layers, *part)))
        else:
            blocks.append(Block(name, part))
    return blocks


def _parts(model: Any) -> list[tuple[Any, ...]]:
    """The smallest parts that are computed one after the other, each from the last one's output alone."""
    by_depth = (getattr(model, "_functional", None) or model)._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]
    uses = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    parts: list[tuple[Any, ...]] = []
    part: list[Any] = []
    alive = Counter({id(tensor): uses[id(tensor)] for tensor in model.inputs})
    for node in nodes:
        part.append(node.operation)
        for tensor in node.input_tensors:
            alive[id(tensor)] -= 1
        for tensor in node.output_tensors:
            alive[id(tensor)] += uses[id(tensor)]
        if sum(1 for count in alive.values() if count > 0) <= 1:
            parts.append(tuple(dict.fromkeys(part)))
            part = []
    return [*parts, tuple(dict.fromkeys(part))] if part else parts


def _has_kernel(layers: tuple[Any, ...]) -> bool:
    return any(len(weight.shape) > 1 for layer in layers for weight in getattr(layer, "weights", ()))


def _name(part: tuple[Any, ...]) -> str:
    first = next((layer for layer in part if getattr(layer, "weights", ())), part[0])
    found = _BLOCK_NAME.match(first.name)
    return found[1] if found else str(part[-1].name)
