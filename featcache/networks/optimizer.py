"""Keras' optimizers with a learning rate of its own for each weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featcache.backbones import import_keras
from featcache.networks.config import ScratchConfig

if TYPE_CHECKING:
    import keras

_KINDS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}


def optimizer_of(
    config: ScratchConfig, weights: Sequence[keras.Variable], *, rates: Sequence[float]
) -> keras.optimizers.Optimizer:
    """The optimizer of `config`, built for `weights`; its learning rate is to be set before each update.

    rates : of each weight, as a fraction of the learning rate
    """
    keras = import_keras()
    base: Any = getattr(keras.optimizers, _KINDS[config.optimizer])

    class Rated(base):  # type: ignore[misc]
        """Updates weights of one rate after the other, each group as Keras' optimizer does."""

        def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
            groups: dict[float, tuple[list[Any], list[Any]]] = {}
            for grad, variable in zip(grads, trainable_variables, strict=True):
                group = groups.setdefault(rates[self._get_variable_index(variable)], ([], []))
                group[0].append(grad)
                group[1].append(variable)
            for rate, (some_grads, some_variables) in groups.items():
                super()._backend_update_step(some_grads, some_variables, learning_rate * rate)

        def _apply_weight_decay(self, variables: Any) -> None:
            if not self.weight_decay:
                return
            for variable in variables:
                if is_kernel(variable):
                    rate = self.learning_rate * rates[self._get_variable_index(variable)]
                    variable.assign(variable - variable * keras.ops.cast(rate * self.weight_decay, variable.dtype))

    options: dict[str, Any] = {"learning_rate": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        options |= {"momentum": config.momentum, "nesterov": config.nesterov}
    if config.clip_norm:
        options["global_clipnorm"] = config.clip_norm
    if config.accumulate > 1:
        options["gradient_accumulation_steps"] = config.accumulate
    optimizer = Rated(**options)
    if config.precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(weights)
    return optimizer


def is_kernel(weight: keras.Variable) -> bool:
    """Whether a weight decays and is penalised: biases and the factors of normalisation are not."""
    return len(weight.shape) > 1
