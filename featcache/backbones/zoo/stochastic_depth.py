"""Stochastic depth: a training in which residual branches are dropped at random (Huang et al. 2016, arXiv:1603.09382).

Branch l of L is dropped with probability l / L * rate (the paper's linear decay, equation 4). Two things are as in
Keras' dropout rather than as in the paper, where they come to the same in expectation. A branch is scaled by
1 / (1 - probability) while it is trained, and not at inference: a network computes and weighs the same with
stochastic depth as without. And it is dropped for each image of a batch by itself, not for the whole batch.

    y = shortcut + b / (1 - p) * branch,  b = 0 with probability p else 1;  at inference y = shortcut + branch

It is made of Keras' own layer: a Dropout whose noise has the shape (n, 1, 1, 1). The state of its draws is one of
`model.variables`, but none of `model.weights`: it is in no digest, and in no file that Keras saves. A training that is
to go on as if it had not stopped keeps `model.variables`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.backbones.import_keras import import_keras
from featcache.backbones.zoo.copying import copied, same
from featcache.core.errors import BackboneError

if TYPE_CHECKING:
    import keras


def linear_rates(branches: int, last: float) -> list[float]:
    """The probability that a branch is dropped, for each of `branches`: from last / branches to `last`."""
    return [last * number / branches for number in range(1, branches + 1)]


def seed_of(seed: int, number: int) -> int:
    """The seed of one layer's draws, from a network's seed and the layer's number."""
    return int(np.random.default_rng([seed, number]).integers(2**31))


def dropped(branch: Any, rate: float, *, seed: int, name: str) -> Any:
    """`branch` of shape (n, ...); in training a row is zero with probability `rate`, else scaled by 1 / (1 - rate)."""
    noise_shape = (None,) + (1,) * (len(branch.shape) - 1)
    dropout = import_keras().layers.Dropout
    return dropout(rate, noise_shape=noise_shape, seed=seed, name=name, dtype=branch.dtype)(branch)


def with_stochastic_depth(model: keras.Model, rate: float, *, seed: int = 0) -> keras.Model:
    """A copy of `model` that is trained with stochastic depth.

    A residual branch is one input of a sum of two, where the other one is an identity shortcut: the branch is
    computed from it. Sums with a projection for shortcut are left alone. A branch that ends in such a Dropout
    already, as those of EfficientNet do, gets another rate instead of a second one.

    Parameters
    ----------
    model : a Functional network, nested ones included
    rate : probability that the last branch is dropped, from 0 to below 1; the others' grow up to it linearly
    seed : decides which rows are dropped when

    Returns
    -------
    keras.Model with layers of the same names, the same weights, and outputs that are equal at inference

    Raises
    ------
    BackboneError : no sum has an identity shortcut, `rate` is out of range, or weights would change their order, as
        those of NASNet would.
    """
    if not 0 <= rate < 1:
        raise BackboneError(f"stochastic depth: expected a rate from 0 to below 1, got {rate}")
    branches = _branches(model)
    if not branches:
        raise BackboneError(
            f"{model.name}: it cannot have stochastic depth: none of its sums has an identity shortcut, that is, adds "
            "to a tensor what is computed from it; take a residual network (resnet50, mobilenetv2, ...)"
        )
    rates = linear_rates(len(branches), rate)
    settings = {
        (id(branch.sum), branch.call): (branch, rates[number], seed_of(seed, number))
        for number, branch in enumerate(branches)
    }
    redone = {id(branch.dropout): (rate, own) for branch, rate, own in settings.values() if branch.dropout is not None}
    calls: Counter[int] = Counter()

    def clone(layer: Any) -> Any:
        if id(layer) not in redone:
            return same(layer)
        rate, own_seed = redone[id(layer)]
        return type(layer).from_config({**layer.get_config(), "rate": rate, "seed": own_seed})

    def call(old: Any, new: Any) -> Any:
        setting = settings.get((id(old), calls[id(old)]))
        calls[id(old)] += 1
        if setting is None or setting[0].dropout is not None:
            return new
        branch, rate, own_seed = setting
        name = f"{old.name}_drop" + (f"_{branch.call}" if branch.call else "")

        def summed(*args: Any) -> Any:
            inputs = list(args[0]) if len(args) == 1 else list(args)
            inputs[branch.place] = dropped(inputs[branch.place], rate, seed=own_seed, name=name)
            return new(inputs) if len(args) == 1 else new(*inputs)

        return summed

    return copied(model, clone, call=call)


# --- residual branches ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Branch:
    """A residual branch.

    Attributes
    ----------
    sum : the layer or operation that adds it to its shortcut
    call : which of that layer's calls in this network, from 0
    place : of the branch among the sum's inputs
    dropout : the layer that drops it already; None where none does
    """

    sum: Any
    call: int
    place: int
    dropout: Any


def _branches(model: Any) -> list[_Branch]:
    """The residual branches of a network in the order in which it computes them, those of nested networks too."""
    keras = import_keras()
    network = getattr(model, "_functional", None) or model
    if not hasattr(network, "_nodes_by_depth"):
        return []
    found: list[_Branch] = []
    calls: Counter[int] = Counter()
    ancestors: dict[int, int] = {}  # tensor -> itself and all that it is computed from, a bit each
    nodes = [node for depth in sorted(network._nodes_by_depth, reverse=True) for node in network._nodes_by_depth[depth]]
    for node in nodes:
        operation = node.operation
        if isinstance(operation, keras.Model) and not calls[id(operation)]:
            found += _branches(operation)
        of_inputs = [ancestors.get(id(tensor), 0) for tensor in node.input_tensors]
        if _is_sum(operation) and (place := _place_of_branch(node.input_tensors, ancestors)) is not None:
            producer = node.input_tensors[place]._keras_history.operation
            found.append(_Branch(operation, calls[id(operation)], place, producer if _drops_rows(producer) else None))
        calls[id(operation)] += 1
        for tensor in node.output_tensors:
            own = ancestors[id(tensor)] = 1 << len(ancestors)
            for bits in of_inputs:
                own |= bits
            ancestors[id(tensor)] = own
    return found


def _is_sum(operation: Any) -> bool:
    """Whether it is a layer of sums, or what `x + y` makes of two tensors."""
    layers = import_keras().layers
    return isinstance(operation, layers.Add) or (
        not isinstance(operation, layers.Layer) and type(operation).__name__ == "Add"
    )


def _place_of_branch(tensors: Any, ancestors: dict[int, int]) -> int | None:
    """Which of two tensors is computed from the other one; None where neither is, or where there are not two."""
    if len(tensors) != 2 or tensors[0].shape != tensors[1].shape or tensors[0] is tensors[1]:
        return None
    first, second = (ancestors[id(tensor)] for tensor in tensors)
    if first & second == first:
        return 1
    return 0 if first & second == second else None


def _drops_rows(operation: Any) -> bool:
    """Whether it is a Dropout that keeps or drops a row as a whole."""
    if not isinstance(operation, import_keras().layers.Dropout) or operation.noise_shape is None:
        return False
    return set(operation.noise_shape[1:]) == {1}
