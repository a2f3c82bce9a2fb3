"""What follows the first product of a head: bias, activation, dropout, further Dense layers, output and loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from featcache.heads.config import HeadConfig

Array = NDArray[np.floating[Any]]


def softmax(logits: Array) -> Array:
    """Rows of `logits` (n, classes) as probabilities; shifted by their maximum, so nothing overflows."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-logits)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def one_vs_one(decisions: Array, n_classes: int) -> Array:
    """Probabilities (n, n_classes) from one decision for each pair of classes, as support vector machines make them.

    decisions : (n, pairs), for (0, 1), (0, 2), ..., (1, 2), ...; positive where a row is of the second of the two

    They are the softmax of what each class won: its votes, and its decisions in (-1/3, 1/3) to break ties, as in
    scikit-learn's `SVC.decision_function`. Of two classes, the sigmoid of the decision.
    """
    if n_classes == 2:
        return sigmoid(np.column_stack([-decisions, decisions]))
    first, second = np.triu_indices(n_classes, 1)
    votes, sums = np.zeros((len(decisions), n_classes)), np.zeros((len(decisions), n_classes))
    for pair, (i, j) in enumerate(zip(first, second, strict=True)):
        votes[:, i] += decisions[:, pair] <= 0
        votes[:, j] += decisions[:, pair] > 0
        sums[:, i] -= decisions[:, pair]
        sums[:, j] += decisions[:, pair]
    return softmax(votes + sums / (3 * (np.abs(sums) + 1)))


def losses(logits: Array, targets: Array, *, output: str, weights: Array | None = None) -> Array:
    """Loss of each row (n,), nats: cross-entropy of the softmax, or the mean of the classes' binary cross-entropies.

    targets : (n, classes), between 0 and 1
    weights : (n,), that they are multiplied by; of binary cross-entropies maybe each by its own, (n, classes)
    """
    of_rows = np.ones(len(logits), logits.dtype) if weights is None else weights
    if output == "sigmoid":
        of_labels = np.logaddexp(0, logits) - targets * logits
        return np.asarray((of_labels * of_rows.reshape(len(logits), -1)).mean(axis=1))
    shifted = logits - logits.max(axis=1, keepdims=True)
    found = targets.sum(axis=1) * np.log(np.exp(shifted).sum(axis=1)) - (targets * shifted).sum(axis=1)
    return np.asarray(found * of_rows)


def targets_of(y: NDArray[np.int64], n_classes: int, *, config: HeadConfig) -> Array:
    """Class numbers (n,), or an indicator of several labels (n, classes), as targets (n, classes) in config.dtype.

    With smoothing e, softmax targets become (1 - e) t + e / classes, sigmoid ones (1 - e) t + e / 2; as in Keras.
    """
    hot = np.eye(n_classes)[y] if y.ndim == 1 else y.astype(np.float64)
    even = 0.5 if config.output == "sigmoid" else 1 / n_classes
    return np.asarray((1 - config.label_smoothing) * hot + config.label_smoothing * even, config.dtype)


def _relu(pre: Array, out: Array) -> Array:
    return np.maximum(pre, 0, out=out)


def _elu(pre: Array, out: Array) -> Array:
    return np.maximum(pre, np.expm1(np.minimum(pre, 0)), out=out)


ACTIVATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "relu": _relu,
    "elu": _elu,
    "tanh": lambda pre, out: np.tanh(pre, out=out),
    "sigmoid": lambda pre, out: np.add(sigmoid(pre), 0, out=out),
    "linear": lambda pre, out: np.add(pre, 0, out=out),
}


def forward(pre: Array, layers: Sequence[tuple[Array, Array]], *, activation: str) -> Array:
    """Logits (n, classes) from the first layer's values before its activation (n, units), without dropout."""
    for W, b in layers:
        pre = ACTIVATIONS[activation](pre, np.empty_like(pre)) @ W + b
    return pre


@dataclass
class Stack:
    """A head without its first weight matrix: everything that acts on Z = X W of shape (n, units).

    bias : (units,), of the first layer
    layers : weights (n_in, n_out) and biases (n_out,) of the layers behind it; [] if the first is the last
    velocities : of bias and layers, flat and in that order; [] without momentum
    """

    bias: Array
    layers: list[tuple[Array, Array]]
    config: HeadConfig
    velocities: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.config.momentum and not self.velocities:
            self.velocities = [np.zeros_like(array) for array in self.arrays()]

    def copy(self) -> Stack:
        """The same, apart from this one."""
        layers = [(W.copy(), b.copy()) for W, b in self.layers]
        return Stack(self.bias.copy(), layers, self.config, [velocity.copy() for velocity in self.velocities])

    def arrays(self) -> list[Array]:
        """Everything that is trained, in a fixed order."""
        return [self.bias, *(array for pair in self.layers for array in pair)]

    def decays(self) -> list[Array]:
        """For each of `arrays`, what L2 adds to the gradient of each value, as a multiple of it."""
        layer = iter(range(1, len(self.layers) + 1))
        return [np.full_like(a, 2 * self.config.l2_of(next(layer)) if a.ndim == 2 else 0) for a in self.arrays()]

    def forward(self, Z: Array) -> Array:
        """Logits (n, classes) from first products (n, units), without dropout."""
        return forward(Z + self.bias, self.layers, activation=self.config.activation)


def flat(arrays: Sequence[Array], dtype: DTypeLike) -> Array:
    """All values of some arrays in one, weights (n_in, n_out) transposed: (n_out, n_in)."""
    return np.concatenate([np.empty(0, dtype), *(array.T.ravel() for array in arrays)])


def put(values: Array, arrays: Sequence[Array]) -> None:
    """The inverse of `flat`: fills the arrays from all their values."""
    start = 0
    for array in arrays:
        array[...] = values[start : start + array.size].reshape(array.T.shape).T
        start += array.size
