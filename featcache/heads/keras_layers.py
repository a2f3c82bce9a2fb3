"""Heads as layers of Keras: what they compute from cached features, they compute here as a part of a network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import import_keras
from featcache.core.errors import HeadError
from featcache.heads.distance_head import DistanceHead, Neighbours, TrainedHead, row_norms
from featcache.heads.head import Head
from featcache.heads.stack import Array


def dense_layer(x: Any, weights: tuple[Array, Array], *, activation: str | None = None, name: str | None = None) -> Any:
    """What a Dense layer with weights (n_in, n_out) and biases (n_out,) makes of x (n, n_in)."""
    units = weights[0].shape[1]
    layer = import_keras().layers.Dense(units, activation, name=name, dtype="float32", kernel_initializer="zeros")
    output = layer(x)
    layer.set_weights(list(weights))
    return output


def logits_of(features: Any, head: Head) -> Any:
    """Logits of a head (n, classes) from features (n, *head.row_shape), with the dropout of its training.

    Raises HeadError for features of another shape.
    """
    layers = import_keras().layers
    _refuse_other_shape(features, head)
    x = layers.Rescaling(head.scale, dtype="float32")(layers.Flatten(dtype="float32")(features))
    for number, weights in enumerate(head.layers[:-1], start=1):
        x = dense_layer(x, weights, activation=head.activation, name=f"hidden_{number}")
        if head.dropout:
            x = layers.Dropout(head.dropout, dtype="float32")(x)
    return dense_layer(x, head.layers[-1], name="classes")


def probabilities_of(features: Any, head: TrainedHead) -> Any:
    """Class probabilities of a head of any kind (n, classes), float32, from features (n, *head.row_shape), float32.

    Raises HeadError for features of another shape.
    """
    layers = import_keras().layers
    if isinstance(head, DistanceHead):
        _refuse_other_shape(features, head)
        x, rows = _centred(layers.Flatten(dtype="float32")(features), head.rows)
        if isinstance(head.decide, Neighbours):
            return _of_neighbours(x, rows, head.decide)
        return probabilities_of(_kernel(x, rows, head.square), head.decide)
    logits = logits_of(features, head)
    if head.output == "one-vs-one":
        return _one_vs_one(logits, len(head.classes))
    return layers.Activation(head.output_activation, name="probabilities", dtype="float32")(logits)


def _refuse_other_shape(features: Any, head: TrainedHead) -> None:
    """Raise HeadError for features of another shape than a head takes."""
    if tuple(features.shape[1:]) != tuple(head.row_shape):
        raise HeadError(f"the head takes features of {head.row_shape}, the network gives {features.shape[1:]}")


def _one_vs_one(decisions: Any, n_classes: int) -> Any:
    """As `featcache.heads.stack.one_vs_one`: sums over pairs are products with a matrix (pairs, classes)."""
    keras = import_keras()
    ops, pairs = keras.ops, np.arange(n_classes * (n_classes - 1) // 2)
    first, second = np.triu_indices(n_classes, 1)
    signs = np.zeros((len(pairs), n_classes), np.float32)
    signs[pairs, first], signs[pairs, second] = -1, 1
    none = np.zeros(n_classes, np.float32)
    if n_classes == 2:
        return keras.layers.Activation("sigmoid", name="probabilities")(dense_layer(decisions, (signs, none)))
    sums = dense_layer(decisions, (signs, none))
    won = ops.cast(ops.greater(decisions, 0.0), "float32")
    votes = dense_layer(won, (signs, np.bincount(first, minlength=n_classes).astype(np.float32)))
    ties = ops.divide(sums, ops.multiply(ops.add(ops.absolute(sums), 1.0), 3.0))
    return keras.layers.Softmax(name="probabilities", dtype="float32")(ops.add(votes, ties))


def _centred(x: Any, rows: Array) -> tuple[Any, NDArray[np.float32]]:
    """Features and the rows of a head, less the mean row: distances stay, and products lose fewer digits."""
    mean = np.asarray(rows.mean(axis=0, dtype=np.float64), np.float32)
    return import_keras().layers.Rescaling(1.0, (-mean).tolist(), dtype="float32")(x), np.asarray(rows - mean)


def _kernel(x: Any, rows: NDArray[np.float32], square: float) -> Any:
    """exp(-|x - row|^2 / square), (n, n_rows)."""
    ops = import_keras().ops
    products = dense_layer(
        x, ((-2 / square * rows.T).astype(np.float32), (row_norms(rows) / square).astype(np.float32))
    )
    norms = ops.multiply(ops.sum(ops.square(x), axis=1, keepdims=True), 1 / square)
    return ops.exp(ops.negative(ops.relu(ops.add(products, norms))))


def _of_neighbours(x: Any, rows: NDArray[np.float32], decide: Neighbours) -> Any:
    """The votes of the nearest rows, which are looked up again for their distances without rounding."""
    keras = import_keras()
    ops = keras.ops
    nearness = dense_layer(x, (2 * rows.T, -row_norms(rows).astype(np.float32)))  # |x|^2 - |x - row|^2
    near = ops.top_k(nearness, decide.k)[1]
    differences = ops.subtract(_looked_up(near, rows), ops.expand_dims(x, 1))
    squares = ops.sum(ops.square(differences), axis=-1)  # (n, k)
    same = ops.cast(ops.equal(squares, 0.0), "float32")
    votes = ops.where(ops.greater(ops.max(same, axis=1, keepdims=True), 0.0), same, ops.divide(1.0, ops.sqrt(squares)))
    labels = _looked_up(near, np.eye(decide.n_classes, dtype=np.float32)[decide.labels])
    counts = ops.sum(ops.multiply(ops.expand_dims(votes, -1), labels), axis=1)
    shares = ops.divide(counts, ops.sum(counts, axis=1, keepdims=True))
    return keras.layers.Activation("linear", name="probabilities", dtype="float32")(shares)


def _looked_up(numbers: Any, rows: NDArray[np.float32]) -> Any:
    """The rows with these numbers: (n, k) -> (n, k, D)."""
    layer = import_keras().layers.Embedding(*rows.shape, embeddings_initializer="zeros", dtype="float32")
    output = layer(numbers)
    layer.set_weights([rows])
    return output
