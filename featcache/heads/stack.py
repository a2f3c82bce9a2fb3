"""What follows the first product of a head: bias, ReLU, dropout, further Dense layers, softmax and loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


def softmax(logits: Array) -> Array:
    """Rows of `logits` (n, classes) as probabilities; shifted by their maximum, so nothing overflows."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def cross_entropy(logits: Array, y: NDArray[np.int64]) -> Array:
    """Loss of each row, -log softmax(logits)[y], in nats: ndarray of shape (n,)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y])


@dataclass
class Stack:
    """A head without its first weight matrix: everything that acts on Z = X W of shape (n, units).

    bias : (units,), of the first layer
    layers : weights (n_in, n_out) and biases (n_out,) of the layers behind it; [] if the first is the last
    """

    bias: Array
    layers: list[tuple[Array, Array]]

    def forward(self, Z: Array) -> Array:
        """Logits (n, classes) from first products (n, units), without dropout."""
        a = Z + self.bias
        for W, b in self.layers:
            a = np.maximum(a, 0) @ W + b
        return a

    def step(
        self,
        Z: Array,
        y: NDArray[np.int64],
        weights: Array,
        lr: float,
        masks: Sequence[Mask] = (),
        dropout: float = 0.0,
    ) -> tuple[float, int, Array]:
        """One SGD update of everything in the stack on a batch.

        weights : (n,), of each row's loss
        masks : which units take part, one (n, n_in) array for each of `layers`; () without dropout

        Returns
        -------
        loss : weighted sum over the batch
        correct : rows whose largest logit is the right one
        dZ : (n, units), gradient of the batch's weighted mean loss by Z, for the first weight matrix
        """
        rows = np.arange(len(y))
        pre, inputs = [Z + self.bias], []
        for index, (W, b) in enumerate(self.layers):
            active = np.maximum(pre[-1], 0)
            if masks:
                active = active * masks[index] / Z.dtype.type(1 - dropout)
            inputs.append(active)
            pre.append(active @ W + b)
        logits = pre[-1]
        loss = float((cross_entropy(logits, y) * weights).sum(dtype=np.float64))
        correct = int((logits.argmax(axis=1) == y).sum())

        gradient = softmax(logits)
        gradient[rows, y] -= 1
        gradient *= weights[:, None] / Z.dtype.type(len(y))
        for index in reversed(range(len(self.layers))):
            W, b = self.layers[index]
            backward = (gradient @ W.T) * (pre[index] > 0)
            if masks:
                backward = backward * masks[index] / Z.dtype.type(1 - dropout)
            W -= lr * (inputs[index].T @ gradient)
            b -= lr * gradient.sum(axis=0)
            gradient = backward
        self.bias -= lr * gradient.sum(axis=0)
        return loss, correct, gradient
