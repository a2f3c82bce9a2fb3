"""What follows the first product of a head: bias, activation, dropout, further Dense layers, output and loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.config import HeadConfig

Array = NDArray[np.floating[Any]]


def softmax(logits: Array) -> Array:
    """Rows of `logits` (n, classes) as probabilities; shifted by their maximum, so nothing overflows."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-logits)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def losses(logits: Array, targets: Array, output: str) -> Array:
    """Loss of each row (n,), nats: cross-entropy of the softmax, or the mean of the classes' binary cross-entropies.

    targets : (n, classes), between 0 and 1
    """
    if output == "sigmoid":
        return np.asarray((np.logaddexp(0, logits) - targets * logits).mean(axis=1))
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(targets.sum(axis=1) * np.log(np.exp(shifted).sum(axis=1)) - (targets * shifted).sum(axis=1))


def targets_of(y: NDArray[np.int64], n_classes: int, config: HeadConfig) -> Array:
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
_SLOPES: dict[str, Callable[[Array], Any]] = {
    "relu": lambda active: active > 0,
    "elu": lambda active: np.where(active > 0, 1, active + 1).astype(active.dtype),
    "tanh": lambda active: 1 - active * active,
    "sigmoid": lambda active: active * (1 - active),
    "linear": lambda active: True,
}
"""Slope of each activation, as a function of its value."""


def forward(pre: Array, layers: Sequence[tuple[Array, Array]], activation: str) -> Array:
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
        layer = iter(range(1, len(self.layers) + 1))
        self._trained = [(a, 2 * self.config.l2_of(next(layer)) if a.ndim == 2 else 0.0) for a in self.arrays()]
        self._plain = not self.config.momentum and not any(l2 for _, l2 in self._trained)

    def arrays(self) -> list[Array]:
        """Everything that is trained, in a fixed order."""
        return [self.bias, *(array for pair in self.layers for array in pair)]

    def forward(self, Z: Array) -> Array:
        """Logits (n, classes) from first products (n, units), without dropout."""
        return forward(Z + self.bias, self.layers, self.config.activation)

    def step(self, Z: Array, targets: Array, weights: Array, lr: float, masks: Sequence[Array], dZ: Array) -> Array:
        """One SGD update of everything in the stack on a batch.

        Z : (n, units), first products; overwritten
        targets : (n, classes)
        weights : (n, 1), of each row's loss, over n
        masks : for each of `layers` (n, n_in): 0 for a unit left out, 1 / (1 - dropout) for one that takes part;
            () without dropout
        dZ : (n, units), takes the gradient of the batch's mean loss by Z

        Returns the logits (n, classes) before the update.
        """
        activate, slope = ACTIVATIONS[self.config.activation], _SLOPES[self.config.activation]
        Z += self.bias
        pre, inputs, gates = Z, [], []
        for index, (W, b) in enumerate(self.layers):
            active = activate(pre, pre)
            gate = slope(active)
            if masks:
                gate = masks[index] * gate
                active *= masks[index]
            inputs.append(active)
            gates.append(gate)
            pre = np.dot(active, W)
            pre += b
        logits = pre
        if self.config.output == "softmax":
            gradient = logits - np.maximum.reduce(logits, 1, keepdims=True)
            np.exp(gradient, out=gradient)
            gradient /= np.add.reduce(gradient, 1, keepdims=True)
            gradient -= targets
        else:
            gradient = (sigmoid(logits) - targets) / logits.dtype.type(logits.shape[1])
        gradient *= weights
        gradients: list[Array] = []
        for index in reversed(range(len(self.layers))):
            W, _ = self.layers[index]
            back = np.dot(gradient, W.T, out=dZ if index == 0 else None)
            back *= gates[index]
            gradients[:0] = [np.dot(inputs[index].T, gradient), np.add.reduce(gradient, 0)]
            gradient = back
        if not self.layers:
            dZ[:] = gradient
        self._update([np.add.reduce(gradient, 0), *gradients], lr)
        return logits

    def _update(self, gradients: Sequence[Array], lr: float) -> None:
        if self._plain:
            for (array, _), gradient in zip(self._trained, gradients, strict=True):
                gradient *= lr
                array -= gradient
            return
        momentum = self.config.momentum
        velocities = self.velocities or gradients
        for (array, l2), gradient, velocity in zip(self._trained, gradients, velocities, strict=True):
            if l2:
                gradient += l2 * array
            gradient *= -lr
            if momentum:
                velocity *= momentum
                velocity += gradient
            array += momentum * velocity + gradient if self.config.nesterov else velocity
