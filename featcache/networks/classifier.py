"""The network that is trained: pixels, preprocessing, backbone and top as one Keras model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import (
    Network,
    glorot_uniform,
    import_keras,
    preprocessed,
    tensors_digest,
    with_stochastic_depth,
)
from featcache.core.errors import HeadError, ScratchError
from featcache.heads import dense_layer, logits_of
from featcache.networks.blocks import Block, blocks_of
from featcache.networks.config import ScratchConfig
from featcache.networks.optimizer import is_kernel, optimizer_of

if TYPE_CHECKING:
    import keras

    from featcache.heads import Head

_TOP = 1 << 20
"""Tells the random numbers of the top from those of a backbone, whose weights are numbered from 0."""


@dataclass(frozen=True)
class Classifier:
    """A network with its top.

    model : from pixels (n, s, s, 3) of 0 to 255 to logits (n, classes), float32; this one is trained
    predictor : the same layers, which training does not compile anew
    base : the backbone, from preprocessed pixels to its feature map, as one layer of `model`
    blocks : of the backbone, from its input to its output
    """

    model: keras.Model
    predictor: keras.Model
    base: keras.Model
    blocks: Sequence[Block]
    config: ScratchConfig

    def compile(self, n_trained: int) -> None:
        """Make ready to train the top and so many of the last blocks. The optimizer starts afresh.

        All other layers are frozen: their weights stay as they are, batch normalisation runs as in inference.
        """
        keras = import_keras()
        for layer, is_trained in self._plan(n_trained):
            layer.trainable = is_trained
        trainable = self.model.trainable_variables
        penalty = keras.regularizers.L1L2(self.config.l1, self.config.l2) if self.config.l1 or self.config.l2 else None
        for variable in trainable:
            variable.regularizer = penalty if is_kernel(variable) else None
        rates = self._rates()
        optimizer = optimizer_of(self.config, trainable, rates=[rates.get(id(variable), 1.0) for variable in trainable])
        # XLA convolves on processors without the vector libraries that the backends bring.
        self.model.compile(optimizer, jit_compile="auto" if keras.backend.backend() == "jax" else False)

    def _rates(self) -> dict[int, float]:
        """The rate of every weight of the backbone, by its identity, as a fraction of the top's."""
        rates: dict[int, float] = {}
        rate = self.config.base_rate
        for block in reversed(self.blocks):
            rates |= {id(weight): rate for layer in block.layers for weight in getattr(layer, "weights", ())}
            rate *= self.config.rate_decay
        return rates

    def time_step(self, x: NDArray[np.float32], steps: int = 3) -> float:
        """Seconds of a step on rows like `x`, once compiled. It trains: for what is not used afterwards."""
        y = np.eye(self.model.output_shape[-1], dtype=np.float32)[np.zeros(len(x), int)]
        weights = np.ones(len(x), np.float32)
        seconds = []
        for _ in range(steps + 1):
            started = time.perf_counter()
            self.model.train_on_batch(x, y, weights)
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    def savable(self) -> keras.Model:
        """The same with probabilities as its output, of Keras' own layers alone."""
        keras = import_keras()
        softmax = keras.layers.Softmax(name="probabilities", dtype="float32")
        return keras.Model(self.model.inputs[0], softmax(self.model.outputs[0]), name="classifier")

    def frozen_digest(self, n_trained: int) -> str:
        """Digest of every weight of the backbone that such a training leaves alone, statistics included."""
        frozen = [layer for layer, is_trained in self._plan(n_trained) if not is_trained]
        return tensors_digest(weight for layer in frozen for weight in getattr(layer, "weights", ()))

    def _plan(self, n_trained: int) -> Iterator[tuple[Any, bool]]:
        """Every layer of the backbone, and whether it is trained."""
        batchnorm = import_keras().layers.BatchNormalization
        for number, block in enumerate(self.blocks):
            for layer in _inner(block.layers):
                is_fixed = isinstance(layer, batchnorm) and self.config.batchnorm == "frozen"
                yield layer, number >= len(self.blocks) - n_trained and not is_fixed


def build(network: Network, n_classes: int, *, config: ScratchConfig, head: Head | None = None) -> Classifier:
    """A classifier on a network; every weight of its top, and every random state, follows from config.seed.

    head : trained on the network's features; the top begins as it is

    Raises ScratchError for a network that cannot be trained as asked.
    """
    keras = import_keras()
    base = keras.Model(network.model.input, network.model.outputs[0], name=network.model.name)
    if config.stochastic_depth:
        base = with_stochastic_depth(base, config.stochastic_depth)
    base.trainable = True
    cut = network.cuts[0]
    pixels = keras.Input((cut.space.input_size_px, cut.space.input_size_px, 3), name="pixels")
    features = base(preprocessed(pixels, cut.space.preprocessing))
    logits = _top_of_head(features, head) if head else _top(features, n_classes, config)
    model = _with_loss()(pixels, logits)
    _seed(model, config.seed)
    if config.batchnorm_momentum is not None:
        for layer in _inner(base.layers):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = config.batchnorm_momentum
    return Classifier(model, keras.Model(pixels, logits), base, blocks_of(base), config)


def _top(features: Any, n_classes: int, config: ScratchConfig) -> Any:
    """The top with kernels drawn Glorot-uniform (Glorot & Bengio 2010)."""
    layers = import_keras().layers

    def dense(x: Any, units: int, *, activation: str | None, name: str, number: int) -> Any:
        W = glorot_uniform((x.shape[-1], units), np.random.default_rng([config.seed, _TOP, number]))
        return dense_layer(x, (W, np.zeros(units, np.float32)), activation=activation, name=name)

    if config.top == "dense":
        x = dense(
            layers.Flatten(dtype="float32")(features), config.hidden, activation="relu", name="hidden_1", number=0
        )
    else:
        x = layers.GlobalAveragePooling2D(dtype="float32", data_format="channels_last")(features)
    if config.dropout:
        x = layers.Dropout(config.dropout, dtype="float32")(x)
    return dense(x, n_classes, activation=None, name="classes", number=1)


def _top_of_head(features: Any, head: Head) -> Any:
    """The layers of a head with its weights: what it computed from a cache, this computes from the network."""
    if head.output != "softmax":
        raise ScratchError(f"the head's output is {head.output}: expected softmax")
    try:
        return logits_of(features, head)
    except HeadError as error:
        raise ScratchError(error.message) from error


def _with_loss() -> Any:
    """The class of the model: cross-entropy of logits, a weight for each row, averaged over the rows of a part."""
    keras = import_keras()
    ops, base = keras.ops, keras.Model
    loss_of_rows = keras.losses.CategoricalCrossentropy(from_logits=True, reduction=None, dtype="float32")

    class Model(base):  # type: ignore[misc, valid-type]
        """Tells, of each part, the sum of the rows' losses and how many were right; rows of weight 0 do not count."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.rows_loss = keras.metrics.Sum("rows_loss")
            self.rows_right = keras.metrics.Sum("rows_right")

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
        ) -> Any:
            sample_weight = ops.convert_to_tensor(sample_weight)  # of PyTorch's backend, it is an array
            rows = loss_of_rows(y, y_pred) * sample_weight
            right = ops.equal(ops.argmax(y_pred, axis=-1), ops.argmax(y, axis=-1))
            self.rows_loss.update_state(rows)
            self.rows_right.update_state(ops.where(sample_weight > 0, ops.cast(right, "float32"), 0.0))
            return ops.mean(rows) + sum(self.losses)

    return Model


def _seed(model: Any, seed: int) -> None:
    """Set the states of random layers, which Keras draws from a process-wide generator."""
    for number, layer in enumerate(_inner(model.layers)):
        generator = getattr(layer, "seed_generator", None)
        if generator is not None:
            state = np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1
            generator.state.assign(np.array([state, 0], generator.state.dtype))


def _inner(layers: Iterable[Any]) -> list[Any]:
    """Layers, and those within them, without the networks and wrappers around others."""
    inner = []
    for layer in layers:
        within = list(layer._flatten_layers(include_self=False)) if hasattr(layer, "_flatten_layers") else []
        inner += [one for one in within if not list(one._flatten_layers(include_self=False))] if within else [layer]
    return inner
