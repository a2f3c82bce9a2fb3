"""The engine that is always there: Keras itself, compiled, on whichever backend it runs on."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.engines.batches import batches, check_batch_rows, check_rows, empty_features
from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import Network
from featcache.backbones.preprocess import preprocess

if TYPE_CHECKING:
    import keras

Forward = Callable[[NDArray[np.float32]], Any]
"""Starts one batch and returns the backend's tensors, which accelerators fill in while the caller goes on."""

_IN_FLIGHT = 2
"""Batches: while one is computed the next is prepared and sent to the device."""


class KerasEngine:
    """An `Engine` on a Keras model, whichever backend Keras runs on; in the network's own precision.

    Parameters
    ----------
    network : a network with its cuts
    batch_rows : rows a call of the model; the last batch is padded up to it

    Raises
    ------
    BackboneError : a batch size below 1.
    """

    calls_at_once = 1

    def __init__(self, network: Network, batch_rows: int = 32) -> None:
        self.name = f"keras-{import_keras().backend.backend()}"
        self.batch_rows = check_batch_rows(batch_rows)
        self.feature_shapes: Sequence[tuple[int, ...]] = [cut.feature_shape for cut in network.cuts]
        self._size_px = network.cuts[0].space.input_size_px
        self._preprocessing = network.cuts[0].space.preprocessing
        self._forward = forward_of(network.model)

    def resized(self, batch_rows: int) -> Self:
        """See `Engine.resized`."""
        other = copy.copy(self)
        other.batch_rows = check_batch_rows(batch_rows)
        return other

    def features(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """See `Engine.features`."""
        check_rows(pixels, self._size_px)
        features = empty_features(len(pixels), self.feature_shapes)
        started: deque[tuple[slice, Any]] = deque()
        for place, rows in batches(pixels, self.batch_rows):
            started.append((place, self._forward(preprocess(rows, self._preprocessing))))
            if len(started) == _IN_FLIGHT:
                _fetch(features, *started.popleft())
        for place, outputs in started:
            _fetch(features, place, outputs)
        return features


def _fetch(features: Sequence[NDArray[np.float32]], place: slice, outputs: Any) -> None:
    """Wait for a batch and put the rows that were asked for in their place."""
    keras = import_keras()
    for target, output in zip(features, keras.tree.flatten(outputs), strict=True):  # Keras gives one as it is
        target[place] = keras.ops.convert_to_numpy(output)[: place.stop - place.start]


def has_accelerator() -> bool:
    """Whether Keras' backend computes on anything but the processor."""
    backend = import_keras().backend.backend()
    if backend == "tensorflow":
        import tensorflow

        return any(device.device_type != "CPU" for device in tensorflow.config.list_logical_devices())
    if backend == "jax":
        import jax

        return bool(jax.default_backend() != "cpu")
    if backend == "torch":
        import torch

        return bool(torch.cuda.is_available() or torch.backends.mps.is_available())
    return False


def forward_of(model: keras.Model) -> Forward:
    """A compiled function for the outputs of `model`, batches of any length."""
    kinds = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
    kind = kinds.get(import_keras().backend.backend())
    return kind(model) if kind else model.predict_on_batch


def _tensorflow(model: keras.Model) -> Forward:
    import tensorflow as tf

    # Not compiled by XLA: on processors its convolutions take several times as long.
    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
    forward: Forward = tf.function(lambda x: model(x, training=False), input_signature=[spec], autograph=False)
    return forward


def _jax(model: keras.Model) -> Forward:
    import jax

    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    compiled = jax.jit(lambda first, second, x: model.stateless_call(first, second, x, training=False)[0])

    return lambda x: compiled(trainable, others, jax.device_put(x))


def _torch(model: keras.Model) -> Forward:
    import torch

    to_tensor = import_keras().ops.convert_to_tensor

    def forward(x: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return model(to_tensor(x), training=False)

    return forward
