"""SGD on the head itself, through Keras: for what Gram space does not offer, and as its check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.quiet_keras import import_keras
from featcache.heads import random
from featcache.heads.config import HeadConfig
from featcache.heads.history import Epoch, refuse_divergence, timed

Array = NDArray[np.floating[Any]]


def train(
    X: Array,
    y: NDArray[np.int64],
    weights: Array,
    X_val: Array,
    y_val: NDArray[np.int64],
    layers: list[tuple[Array, Array]],
    scale: float,
    config: HeadConfig,
    on_epoch: Callable[[Epoch], object] = lambda _: None,
) -> tuple[list[tuple[Array, Array]], list[Epoch]]:
    """Train a head from the weights `layers`, in the batch order of `featcache.heads.random.order`.

    Dropout masks are Keras' own: without dropout the course is that of Gram space, with it only alike.

    X : (N, D); y, weights (of each row's loss) : (N,); X_val : (M, D), M may be 0

    Returns
    -------
    layers : the trained weights and biases
    history : an entry an epoch
    """
    with _floatx(config.dtype):
        model = _build(X.shape[1], layers, scale, config)
        return _train(model, X, y, weights, X_val, y_val, config, on_epoch)


@contextmanager
def _floatx(dtype: str) -> Iterator[None]:
    """Keras' own means, learning rates and schedules in `dtype` too; there is no other way to ask for it."""
    keras = import_keras()
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def _train(
    model: Any,
    X: Array,
    y: NDArray[np.int64],
    weights: Array,
    X_val: Array,
    y_val: NDArray[np.int64],
    config: HeadConfig,
    on_epoch: Callable[[Epoch], object],
) -> tuple[list[tuple[Array, Array]], list[Epoch]]:
    updates_an_epoch = -(-len(y) // config.batch)
    history = []
    for epoch in range(config.epochs):
        with timed() as clock:
            order = random.order(config.seed, epoch, len(y))
            loss, accuracy = 0.0, 0.0
            for number, start in enumerate(range(0, len(y), config.batch)):
                # Keras' own InverseTimeDecay computes in float32, whatever the model does.
                model.optimizer.learning_rate = config.lr_at(epoch * updates_an_epoch + number)
                b = order[start : start + config.batch]
                model.reset_metrics()  # some versions of Keras go on averaging over calls, some do not
                logs = model.train_on_batch(X[b], y[b], weights[b], return_dict=True)
                loss += float(logs["loss"]) * len(b) / len(y)
                accuracy += float(logs["accuracy"]) * len(b) / len(y)
            val_loss, val_accuracy = _evaluate(model, X_val, y_val)
        lr = config.lr_at(epoch * updates_an_epoch)
        entry = Epoch(epoch + 1, loss, accuracy, val_loss, val_accuracy, lr, clock.seconds)
        refuse_divergence(entry)
        history.append(entry)
        on_epoch(entry)
    trained = model.get_weights()
    return list(zip(trained[0::2], trained[1::2], strict=True)), history


def _build(n_inputs: int, layers: list[tuple[Array, Array]], scale: float, config: HeadConfig) -> Any:
    keras, dtype = import_keras(), config.dtype
    model = keras.Sequential([keras.Input((n_inputs,), dtype=dtype), keras.layers.Rescaling(scale, dtype=dtype)])
    for number, (W, _) in enumerate(layers[:-1]):
        model.add(keras.layers.Dense(W.shape[1], "relu", dtype=dtype))
        if config.dropout:
            seed = (config.seed + number) % 2**31  # Keras takes no larger one
            model.add(keras.layers.Dropout(config.dropout, seed=seed, dtype=dtype))
    model.add(keras.layers.Dense(layers[-1][0].shape[1], dtype=dtype))
    model.set_weights([array for pair in layers for array in pair])
    model.compile(
        optimizer=keras.optimizers.SGD(config.lr),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype),
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy", dtype=dtype)],
    )
    return model


def _evaluate(model: Any, X: Array, y: NDArray[np.int64]) -> tuple[float, float]:
    if not len(y):
        return float("nan"), float("nan")
    logs = model.evaluate(X, y, batch_size=256, verbose=0, return_dict=True)
    return float(logs["loss"]), float(logs["accuracy"])
