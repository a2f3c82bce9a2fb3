"""What each place of a feature map adds to a logit.

A head with relu or linear layers is linear around every row: its logit is the sum of gradient times feature, plus what
the biases add (Shrikumar et al. 2016, "gradient x input"). Summed over channels, each place of the map has its share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import HeadError
from featcache.heads.distance_head import DistanceHead, TrainedHead
from featcache.heads.head import Head, flattened
from featcache.heads.stack import ACTIVATIONS, sigmoid

Array = NDArray[np.floating[Any]]

_SLOPES: dict[str, Callable[[Array], Array]] = {
    "relu": lambda pre: (pre > 0).astype(pre.dtype),
    "elu": lambda pre: np.exp(np.minimum(pre, 0)),
    "tanh": lambda pre: 1 - np.tanh(pre) ** 2,
    "sigmoid": lambda pre: sigmoid(pre) * (1 - sigmoid(pre)),
    "linear": np.ones_like,
}
"""The derivative of each of `stack.ACTIVATIONS`."""
_EXACT = ("relu", "linear")


@dataclass(frozen=True)
class Attributed:
    """The logit of one class for each of n rows, and what it is made of: logit = places.sum() + rest.

    Attributes
    ----------
    numbers : (n,), which class
    logits : (n,), float64
    places : (n, h, w), float64
    rest : (n,), float64: of the biases; with a curved activation, also what the linear part leaves out
    """

    numbers: NDArray[np.intp]
    logits: Array
    places: Array
    rest: Array


def is_exact(head: TrainedHead) -> bool:
    """Whether `rest` is what the biases add and no more."""
    return isinstance(head, Head) and (len(head.layers) == 1 or head.activation in _EXACT)


def attribute(head: TrainedHead, X: Array, *, name: str, label: str | None = None) -> Attributed:
    """What each place of feature maps adds to the logit of a class.

    Of a linear support vector machine the logit is the sum of the class's decisions against each other class.

    Parameters
    ----------
    X : features (n, h, w, c)
    name : of the run, for errors
    label : the class; None for the most probable one of each row

    Raises
    ------
    HeadError : the head goes by distances, its features have no places, or there is no such class
    """
    if isinstance(head, DistanceHead):
        raise HeadError(f"{name}: decides by distances to training rows: no place of an image has a share in them")
    if len(head.row_shape) != 3:
        hint = "Extract with `pooling='none'`, and train on that"
        raise HeadError(f"{name}: its features are pooled, so no place of an image has a share in them", hint)
    if label is not None and label not in head.classes:
        raise HeadError(f"{name}: no class {label!r:.80}: expected one of {', '.join(head.classes)}")
    flat = flattened(X, head.row_shape).astype(np.float64)
    if label is None:
        numbers = head.probabilities_of(X).argmax(axis=1)
    else:
        numbers = np.full(len(X), head.classes.index(label), np.intp)
    layers = [(W.astype(np.float64), b.astype(np.float64)) for W, b in _to_logits(head)]
    first, bias = layers[0]
    pre = [head.scale * (flat @ first) + bias]
    for W, b in layers[1:]:
        pre.append(ACTIVATIONS[head.activation](pre[-1], np.empty_like(pre[-1])) @ W + b)
    logits = np.take_along_axis(pre[-1], numbers[:, None], axis=1)[:, 0]
    gradient = np.eye(len(head.classes))[numbers]  # of the logit by the values of each layer, the last one first
    rest = gradient @ layers[-1][1]
    for (W, _), (_, b), values in zip(layers[:0:-1], layers[-2::-1], pre[-2::-1], strict=True):
        gradient = gradient @ W.T * _SLOPES[head.activation](values)
        rest = rest + gradient @ b
    places = (flat * (head.scale * (gradient @ first.T))).reshape(len(X), *head.row_shape).sum(axis=-1)
    if not is_exact(head):
        rest = logits - places.sum(axis=(1, 2))
    return Attributed(numbers, logits, places, np.asarray(rest))


def _to_logits(head: Head) -> list[tuple[Array, Array]]:
    """The layers up to one value for each class."""
    if head.output != "one-vs-one":
        return list(head.layers)
    n = len(head.classes)
    signs = np.zeros((n * (n - 1) // 2, n))
    pairs = np.arange(len(signs))
    first, second = np.triu_indices(n, 1)
    signs[pairs, first], signs[pairs, second] = -1, 1
    *layers, (W, b) = head.layers
    return [*layers, (W @ signs, b @ signs)]
