"""What a head is and how it is trained, as one frozen record; and the study's preset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np

from featcache.core.errors import HeadError, nearest

Solver = Literal["auto", "gram", "primal"]
Activation = Literal["relu", "elu", "tanh", "sigmoid", "linear"]
Schedule = Literal["inverse-time", "constant", "cosine", "step"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop"]
Monitor = Literal["val_loss", "val_accuracy", "loss", "accuracy"]


@dataclass(frozen=True)
class HeadConfig:
    """Dense(hidden, activation), Dropout(dropout) for each hidden layer, then Dense(classes, output), by SGD.

    hidden : units of each hidden layer; () trains the last layer alone
    dropout : fraction of each hidden layer's units left out in training
    output : "softmax" with cross-entropy, or "sigmoid" with binary cross-entropy, averaged over the classes
    lr : learning rate of the first update
    schedule : how it falls. "inverse-time": update t uses lr / (1 + decay t), t = 0, 1, ...; "constant";
        "cosine": half a cosine from lr to 0 over all updates; "step": times step_factor every step_epochs epochs
    optimizer : "sgd" is trained in Gram space or primal, the others primal
    momentum, nesterov : v <- momentum v - lr g, then w <- w + v, or w + momentum v - lr g; as Keras' SGD
    l2 : adds l2 |W|^2 to the loss for the weights of every layer, or of each in turn where it is a tuple
    l1 : adds l1 |W| to the loss for the weights of every layer; trained primal
    weight_decay : of adamw
    label_smoothing : part of each target that is spread evenly over the classes
    batch : rows an update
    scale : "auto" multiplies the features by one number so that their mean squared norm over the training
        rows is 25,600, whatever the backbone, and draws the first layer for such inputs: one learning rate
        then suits every backbone. "none" leaves features as they are, with Glorot-uniform weights, as
        the study and Keras' defaults do
    class_weights : "balanced" weighs each row's loss by n_rows / (n_classes * n_rows_of_its_class), so that
        rare classes count as much as frequent ones; "none" weighs all rows alike
    monitor, patience : training ends when this measure has not improved for so many epochs; 0 never ends it early
    restore_best : the head is that of the epoch with the best `monitor`, not of the last
    val_every : validation rows are looked at after every so many epochs, and after the last
    seed : decides initial weights, batch order and dropout masks
    dtype : of the training arithmetic
    """

    hidden: tuple[int, ...] = (256,)
    dropout: float = 0.5
    activation: Activation = "relu"
    output: Literal["softmax", "sigmoid"] = "softmax"
    lr: float = 0.001
    schedule: Schedule = "inverse-time"
    decay: float = 0.0
    step_epochs: int = 1000
    step_factor: float = 0.5
    optimizer: Optimizer = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    l2: float | tuple[float, ...] = 0.0
    l1: float = 0.0
    weight_decay: float = 0.004
    label_smoothing: float = 0.0
    batch: int = 16
    epochs: int = 100
    scale: Literal["auto", "none"] = "auto"
    class_weights: Literal["balanced", "none"] = "balanced"
    monitor: Monitor = "val_loss"
    patience: int = 0
    restore_best: bool = False
    val_every: int = 1
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        self._check_types()
        factors = self.l2 if isinstance(self.l2, tuple) else (self.l2,)
        layers = len(self.hidden) + 1
        problems = [
            (any(units < 1 for units in self.hidden), f"hidden units {self.hidden}: expected 1 or more"),
            (not 0 <= self.dropout < 1, f"dropout {self.dropout}: expected 0 <= dropout < 1"),
            (not 0 < self.lr < math.inf, f"learning rate {self.lr}: expected more than 0"),
            (not 0 <= self.decay < math.inf, f"decay {self.decay}: expected 0 or more"),
            (self.step_epochs < 1, f"step epochs {self.step_epochs}: expected 1 or more"),
            (not 0 < self.step_factor <= 1, f"step factor {self.step_factor}: expected 0 < factor <= 1"),
            (not 0 <= self.momentum < 1, f"momentum {self.momentum}: expected 0 <= momentum < 1"),
            (self.nesterov and not self.momentum, "nesterov: expected a momentum above 0"),
            (not all(0 <= factor < math.inf for factor in factors), f"l2 {self.l2}: expected 0 or more"),
            (
                isinstance(self.l2, tuple) and len(self.l2) != layers,
                f"l2 {self.l2}: expected one number, or one for each of the {layers} layers",
            ),
            (not 0 <= self.l1 < math.inf, f"l1 {self.l1}: expected 0 or more"),
            (not 0 <= self.weight_decay < math.inf, f"weight decay {self.weight_decay}: expected 0 or more"),
            (self.patience < 0, f"patience {self.patience}: expected 0 or more"),
            (bool(self.momentum) and self.optimizer != "sgd", f"momentum: expected none, {self.optimizer} has its own"),
            (not 0 <= self.label_smoothing < 1, f"label smoothing {self.label_smoothing}: expected 0 <= smoothing < 1"),
            (self.batch < 1, f"batch {self.batch}: expected 1 or more"),
            (self.epochs < 1, f"epochs {self.epochs}: expected 1 or more"),
            (self.val_every < 1, f"val_every {self.val_every}: expected 1 or more"),
            (not 0 <= self.seed < 2**63, f"seed {self.seed}: expected 0 <= seed < 2**63"),
        ]
        choices = {"activation": Activation, "schedule": Schedule, "optimizer": Optimizer, "monitor": Monitor}
        known = {name: get_args(kind) for name, kind in choices.items()} | {
            "output": ("softmax", "sigmoid"),
            "scale": ("auto", "none"),
            "class_weights": ("balanced", "none"),
            "dtype": ("float32", "float64"),
        }
        problems += [
            (getattr(self, name) not in values, f"{name} {getattr(self, name)!r}: expected {' or '.join(values)}")
            for name, values in known.items()
        ]
        wrong = [message for is_wrong, message in problems if is_wrong]
        if wrong:
            raise HeadError("; ".join(wrong))

    def _check_types(self) -> None:
        """Raise HeadError for what is no number where one belongs, by the fields' annotations."""
        for item in fields(self):
            value, kind = getattr(self, item.name), str(item.type)
            if kind == "bool":
                expected = "" if isinstance(value, (bool, np.bool_)) else "True or False"
            elif kind == "int":
                expected = "" if _is_whole(value) else "a whole number"
            elif kind == "float":
                expected = "" if _is_number(value) else "a number"
            elif item.name == "hidden":
                is_right = isinstance(value, tuple) and all(map(_is_whole, value))
                expected = "" if is_right else "whole numbers, one for each hidden layer, as in (256,)"
            elif item.name == "l2":
                is_right = all(map(_is_number, value)) if isinstance(value, tuple) else _is_number(value)
                expected = "" if is_right else "a number, or one for each layer"
            else:
                expected = "" if isinstance(value, str) else "a name"
            if expected:
                raise HeadError(f"{item.name} {value!r:.80}: expected {expected}")

    def lr_at(self, update: int, updates_an_epoch: int) -> float:
        """Learning rate of an update, counted from 0."""
        if self.schedule == "inverse-time":
            return self.lr / (1 + self.decay * update)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * update / (self.epochs * updates_an_epoch))) / 2
        if self.schedule == "step":
            return self.lr * self.step_factor ** (update // updates_an_epoch // self.step_epochs)
        return self.lr

    @property
    def gram_refuses(self) -> str:
        """What of it cannot be trained in Gram space; "" where all can."""
        if self.optimizer != "sgd":
            return f"the optimizer {self.optimizer}"
        return "L1" if self.l1 else ""

    def l2_of(self, layer: int) -> float:
        """The factor of a layer, counted from 0."""
        return self.l2[layer] if isinstance(self.l2, tuple) else self.l2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeadConfig:
        """The inverse of `to_dict`. Raises HeadError or TypeError for what is none."""
        if not isinstance(values, Mapping):
            raise TypeError(f"expected the fields of a head, found {values!r:.80}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The record as it stands in a run's config.json."""
        l2 = list(self.l2) if isinstance(self.l2, tuple) else self.l2
        return {**asdict(self), "hidden": list(self.hidden), "l2": l2}


def _is_whole(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral)


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real)


PRESETS: dict[str, HeadConfig] = {
    "default": HeadConfig(),
    "study": HeadConfig(lr=1e-5, decay=0.001, batch=16, scale="none", class_weights="none"),
}


def from_preset(name: str, **changes: Any) -> HeadConfig:
    """A preset with some fields changed; changes that are None are none. Raises HeadError for an unknown one."""
    if name not in PRESETS:
        raise HeadError(f"unknown preset {name!r}: {nearest(name, PRESETS)}")
    return replace(PRESETS[name], **{key: value for key, value in changes.items() if value is not None})
