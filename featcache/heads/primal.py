"""Training of the head itself, batch by batch through Keras: for what Gram space does not offer, and as its check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import import_keras
from featcache.heads.config import HeadConfig
from featcache.heads.gram import accuracy_of
from featcache.heads.source import Source, refuse_not_finite
from featcache.heads.stack import forward, losses, targets_of
from featcache.training import Epoch, refuse_divergence, timed

Array = NDArray[np.floating[Any]]
Layers = list[tuple[Array, Array]]
_JIT_WEIGHTS = 1 << 20
"""From so many weights on, one compiled pass over them saves more than calling what is compiled costs."""


@dataclass
class State:
    """Where a training stands after some epochs: all that the next one needs.

    layers : weights (n_in, n_out) and biases (n_out,)
    others : variables of the optimizer, then the counters of the dropout masks, in Keras' order
    """

    layers: Layers
    others: list[NDArray[Any]]
    history: list[Epoch] = field(default_factory=list)

    def copy(self) -> State:
        """The same, apart from this one."""
        return State([(W.copy(), b.copy()) for W, b in self.layers], [a.copy() for a in self.others], [*self.history])


@contextmanager
def opened(
    source: Source, layers: Layers, *, scale: float, config: HeadConfig, mean: NDArray[np.float64] | None = None
) -> Iterator[Training]:
    """A training from the weights `layers` on the batches of a source.

    Dropout masks are Keras' own: where the order is that of Gram space the course of SGD without dropout is too, and
    with dropout it is only alike.

    layers : weights (n_in, n_out) and biases (n_out,), in config.dtype; they are not changed
    scale : what the features are multiplied by
    mean : (D,), what is subtracted from them before
    """
    with _arithmetic_in(config.dtype):
        yield Training(source, layers, scale=scale, mean=mean, config=config)


@contextmanager
def _arithmetic_in(dtype: str) -> Iterator[None]:
    """Keras' own means, learning rates and penalties in `dtype` too; there is no other way to ask for it."""
    config = import_keras().config
    policy, floatx = config.dtype_policy(), config.floatx()  # the policy first: it takes floatx over when first asked
    config.set_floatx(dtype)
    config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        config.set_floatx(floatx)
        config.set_dtype_policy(policy)


class Training:
    """One training: the Keras model, what it is fed with, and the history of its epochs."""

    history: list[Epoch]

    def __init__(
        self, source: Source, layers: Layers, *, scale: float, mean: NDArray[np.float64] | None, config: HeadConfig
    ) -> None:
        self.source, self.scale, self.config = source, scale, config
        self.offset = np.zeros(source.width) if mean is None else -scale * mean
        n_classes = len(layers[-1][1])
        self.targets = targets_of(source.y, n_classes, config=config)
        self.targets_val = targets_of(source.y_val, n_classes, config=config)
        self.updates = -(-len(source.y) // config.batch)
        keras = import_keras()
        self.rates = keras.Variable(np.zeros(self.updates), dtype=config.dtype, trainable=False)
        self.model = _build(keras, source, layers, (scale, self.offset), config)
        self.model.compile(_optimizer(keras, self.rates, config), jit_compile=_worth_compiling(layers, config))
        self.model.optimizer.build(self.model.trainable_variables)
        self.step = _step(keras, self.model, (None, *source.weights.shape[1:]))
        self.history = []

    def copy(self) -> State:
        """The state of now."""
        return State(self.layers(), [np.array(variable.numpy()) for variable in self._others()], [*self.history])

    def restore(self, state: State) -> None:
        """Go on from a state of this very training."""
        variables = [*self.model.trainable_variables, *self._others()]
        values = [*(array for pair in state.layers for array in pair), *state.others]
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self.history = [*state.history]

    def _others(self) -> list[Any]:
        return [*self.model.optimizer.variables, *self.model.non_trainable_variables]

    def layers(self) -> Layers:
        """Copies of the weights and biases of now."""
        arrays = [np.array(variable.numpy()) for variable in self.model.trainable_variables]
        return list(zip(arrays[0::2], arrays[1::2], strict=True))

    def epoch(self, pause: Callable[[], object]) -> Epoch:
        """One pass over the training rows, and a look at the validation rows.

        Raises HeadError for features that are no finite numbers, and for a training that diverges.
        """
        config, model, epoch = self.config, self.model, len(self.history)
        rates = [config.lr_at(epoch * self.updates + number, self.updates) for number in range(self.updates)]
        with timed() as clock:
            self.rates.assign(np.array(rates, config.dtype))
            model.rows_loss.reset_state()
            model.rows_right.reset_state()
            # What train_on_batch does, without its resetting and reading of measures in between: twice as fast
            # where the head is small.
            feed = self._feed(epoch)
            for _ in range(self.updates):
                self.step(feed)
            looks = (epoch + 1) % config.val_every == 0 or epoch + 1 == config.epochs
            val_loss, val_accuracy = self._validate(epoch < config.val_every) if looks else (np.nan, np.nan)
        loss, accuracy = float(model.rows_loss.result()), float(model.rows_right.result())
        entry = Epoch(
            epoch=epoch + 1,
            loss=loss,
            accuracy=accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=rates[0],
            seconds=clock.seconds,
        )
        refuse_divergence(entry)
        return entry

    def _feed(self, epoch: int) -> Iterator[tuple[Array, Array, Array]]:
        for places, X in self.source.batches(self.config.batch, self.config.seed, epoch=epoch):
            if epoch == 0:  # they are the same ever after
                refuse_not_finite(X, self.source.rows[places])
            yield X, self.targets[places], self.source.weights[places]

    def _validate(self, first: bool) -> tuple[float, float]:
        source, config = self.source, self.config
        if not len(source.y_val):
            return float("nan"), float("nan")
        (W, b), *rest = self.layers()
        b = b + (self.offset @ W).astype(b.dtype)
        logits = np.empty_like(self.targets_val)
        with np.errstate(all="ignore"):  # what diverges is refused, in words
            for place, X in source.val_blocks():
                if first:
                    refuse_not_finite(X, source.rows_val[place])
                logits[place] = forward((X @ W) * W.dtype.type(self.scale) + b, rest, activation=config.activation)
            loss = losses(logits, self.targets_val, output=config.output).mean(dtype=np.float64)
        return float(loss), accuracy_of(logits, source.y_val)


def _build(
    keras: Any, source: Source, layers: Layers, scaling: tuple[float, NDArray[np.float64]], config: HeadConfig
) -> Any:
    """The head as a Keras model, which gives logits and keeps count of the loss without penalties.

    scaling : what features are multiplied by, and what is then added to them, (D,)
    """
    dtype, ops = config.dtype, keras.ops
    kind = "BinaryCrossentropy" if config.output == "sigmoid" else "CategoricalCrossentropy"
    loss_of_rows = getattr(keras.losses, kind)(from_logits=True, reduction=None, dtype=dtype)
    several_labels = source.y.ndim == 2

    class Model(keras.Sequential):  # type: ignore[misc]
        """With the loss of featcache.heads.stack: weighted, averaged over the rows of a batch."""

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
        ) -> Any:
            if source.weights.ndim == 2:
                of_labels = ops.binary_crossentropy(y, y_pred, from_logits=True)
                rows = ops.mean(of_labels * sample_weight, axis=-1)
            else:
                rows = loss_of_rows(y, y_pred) * sample_weight
            right = (
                ops.all(ops.equal(y_pred > 0, y > 0.5), axis=-1)
                if several_labels
                else ops.equal(ops.argmax(y_pred, axis=-1), ops.argmax(y, axis=-1))
            )
            self.rows_loss.update_state(rows)
            self.rows_right.update_state(right)
            return ops.mean(rows) + sum(self.losses)

    # Zeros at first: other initializers would draw from Python's global generator.
    model = Model([keras.Input((source.width,), dtype=dtype), keras.layers.Rescaling(*scaling, dtype=dtype)])
    model.rows_loss = keras.metrics.Mean("rows_loss", dtype="float64")
    model.rows_right = keras.metrics.Mean("rows_right", dtype="float64")
    for number, (W, _) in enumerate(layers):
        is_last = number == len(layers) - 1
        l2 = config.l2_of(number)
        penalty = keras.regularizers.L1L2(config.l1, l2) if config.l1 or l2 else None
        activation = None if is_last else config.activation
        model.add(
            keras.layers.Dense(
                W.shape[1], activation, kernel_initializer="zeros", kernel_regularizer=penalty, dtype=dtype
            )
        )
        if config.dropout and not is_last:
            seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0] >> 1)
            model.add(keras.layers.Dropout(config.dropout, seed=seed, dtype=dtype))
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    for layer, pair in zip(dense, layers, strict=True):
        layer.set_weights(list(pair))
    return model


def _step(keras: Any, model: Any, weights_shape: tuple[int | None, ...]) -> Callable[[Iterator[Any]], object]:
    """A step on the next batch. TensorFlow traces it once, for any number of rows: the last batch may be shorter."""
    model.make_train_function()
    if keras.backend.backend() != "tensorflow" or model.jit_compile:
        step: Callable[[Iterator[Any]], object] = model.train_function
        return step
    import tensorflow as tf

    shapes = (model.input_shape, model.output_shape, weights_shape)
    specs = tuple(tf.TensorSpec(shape, model.inputs[0].dtype) for shape in shapes)
    traced = tf.function(model.train_step, [specs])
    return lambda feed: traced(next(feed))


def _optimizer(keras: Any, rates: Any, config: HeadConfig) -> Any:
    """Keras' optimizer of that name, whose learning rate is read from the rates of the epoch."""
    n_rates = rates.shape[0]

    class Rates(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        """Keras' own schedules compute in float32, whatever the model does."""

        def __call__(self, step: Any) -> Any:
            return keras.ops.take(rates, step % n_rates)

    if config.optimizer == "adamw":
        return keras.optimizers.AdamW(Rates(), weight_decay=config.weight_decay)
    if config.optimizer == "adam":
        return keras.optimizers.Adam(Rates())
    if config.optimizer == "rmsprop":
        return keras.optimizers.RMSprop(Rates())
    momentum = np.float64(config.momentum)  # of a plain float TensorFlow would keep seven digits
    return keras.optimizers.SGD(Rates(), momentum=momentum, nesterov=config.nesterov)


def _worth_compiling(layers: Layers, config: HeadConfig) -> bool:
    """Whether XLA makes it faster: it joins the passes over the weights, of which all but plain SGD takes many."""
    passes_are_many = config.optimizer != "sgd" or config.momentum > 0 or config.l1 > 0
    return passes_are_many and sum(W.size for W, _ in layers) >= _JIT_WEIGHTS
