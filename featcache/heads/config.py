"""What a head is and how it is trained, as one frozen record; and the study's preset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from featcache.core.errors import HeadError, nearest
from featcache.core.settings import problems_of, setting

Solver = Literal["auto", "gram", "block", "primal"]
Device = Literal["cpu", "gpu", "auto"]
Activation = Literal["relu", "elu", "tanh", "sigmoid", "linear"]
Output = Literal["softmax", "sigmoid"]
Schedule = Literal["inverse-time", "constant", "cosine", "step"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop"]
Scale = Literal["centred", "norm", "none"]
Monitor = Literal["val_loss", "val_accuracy", "loss", "accuracy"]

_NORM_ON_DISK = "auto"
"""What version 0.1 called it, when it was the default: its runs keep their names."""


@dataclass(frozen=True)
class HeadConfig:
    """Dense(hidden, activation) and Dropout for each hidden layer, then Dense(classes, output), trained by SGD.

    Notes
    -----
    The learning rate of update t = 0, 1, ... is lr / (1 + decay t) with the schedule "inverse-time", lr with
    "constant", half a cosine from lr to 0 over all updates with "cosine"; "step" multiplies it by step_factor every
    step_epochs epochs. Momentum is that of Keras: v <- momentum v - lr g, then w <- w + v, or with nesterov
    w + momentum v - lr g.

    scale="centred" subtracts the mean of the training rows and multiplies all features by one number, so that their
    mean squared norm over the training rows is 25,600, and draws the first layer for such inputs: one learning rate
    then suits every backbone. scale="norm" does so without subtracting the mean. scale="none" leaves the features
    unchanged, with Glorot-uniform weights, as in the study.

    class_weights="balanced" multiplies each row's loss by n_rows / (n_classes * n_rows_of_its_class), as in
    scikit-learn. Where an image may have several labels, this is done for each label by itself, whose two classes are
    the rows that have it and those that have it not.
    """

    hidden: tuple[int, ...] = setting((256,), "Units of each hidden layer (0 = no hidden layer).", ge=1)
    dropout: float = setting(0.5, "Dropout rate after each hidden layer.", ge=0, lt=1)
    activation: Activation = setting("relu", "Activation function of the hidden layers.")
    output: Output = setting(
        "softmax", "Output of the head: exclusive classes (softmax), or each class by itself (sigmoid)."
    )
    lr: float = setting(0.001, "Learning rate of the first update.", gt=0)
    schedule: Schedule = setting("inverse-time", "How the learning rate decreases.")
    decay: float = setting(0.0, "Decay per update of the inverse-time schedule.", ge=0)
    step_epochs: int = setting(1000, "Epochs between two steps of the step schedule.", ge=1)
    step_factor: float = setting(0.5, "Factor of the learning rate at each step of the step schedule.", gt=0, le=1)
    optimizer: Optimizer = setting(
        "sgd", "Optimizer. The solvers gram and block support sgd only; the others use the primal solver."
    )
    momentum: float = setting(0.0, "Momentum of SGD.", ge=0, lt=1)
    nesterov: bool = setting(False, "Use Nesterov momentum. Needs a momentum above 0.")
    l2: float | tuple[float, ...] = setting(0.0, "L2 penalty of the weights, for all layers or for each.", ge=0)
    l1: float = setting(0.0, "L1 penalty of the weights. Needs the primal solver.", ge=0)
    weight_decay: float = setting(0.004, "Weight decay of the optimizer adamw.", ge=0)
    label_smoothing: float = setting(0.0, "Part of each target that is spread over all classes.", ge=0, lt=1)
    batch: int = setting(16, "Batch size: rows per update.", ge=1)
    epochs: int = setting(100, "Passes over the training rows, at most; all of them where a number is given.", ge=1)
    scale: Scale = setting(
        "centred", "Subtract the mean and scale all features to one mean norm (centred), only scale (norm), or neither."
    )
    class_weights: Literal["balanced", "none"] = setting("balanced", "How classes are weighted in the loss.")
    monitor: Monitor = setting("val_loss", "Measure that decides which epoch is best.")
    patience: int = setting(0, "Stop early after this many epochs without improvement (0 = off).", ge=0)
    restore_best: bool = setting(False, "Keep the weights of the best epoch instead of the last.")
    val_every: int = setting(1, "Evaluate the validation rows every this many epochs.", ge=1)
    seed: int = setting(0, "Seed of initial weights, batch order and dropout.", ge=0, lt=2**63)
    dtype: Literal["float32", "float64"] = setting("float32", "Precision of the training arithmetic.")

    def __post_init__(self) -> None:
        wrong = problems_of(self)
        if not wrong:
            layers = len(self.hidden) + 1
            if self.nesterov and not self.momentum:
                wrong.append("`nesterov`: expected a `momentum` above 0")
            if isinstance(self.l2, tuple) and len(self.l2) != layers:
                wrong.append(f"`l2={self.l2}`: expected one number, or one for each of the {layers} layers")
            if self.momentum and self.optimizer != "sgd":
                wrong.append(f"`momentum={self.momentum}`: expected 0, since {self.optimizer} has its own")
        if wrong:
            raise HeadError("; ".join(wrong))

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
    def sgd_refuses(self) -> str:
        """What of it cannot be trained in Gram space or by blocks; "" where all can."""
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
        if fields.get("scale") == _NORM_ON_DISK:
            fields["scale"] = "norm"
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The record as it stands in a run's config.json."""
        l2 = list(self.l2) if isinstance(self.l2, tuple) else self.l2
        scale = _NORM_ON_DISK if self.scale == "norm" else self.scale
        return {**asdict(self), "hidden": list(self.hidden), "l2": l2, "scale": scale}


PRESETS: dict[str, HeadConfig] = {
    "default": HeadConfig(lr=0.002, l2=0.1, patience=20, restore_best=True),
    "study": HeadConfig(lr=1e-5, decay=0.001, batch=16, scale="none", class_weights="none"),
}


def changed_by(preset: str) -> dict[str, Any]:
    """The settings in which a preset differs from the default one. Raises HeadError for an unknown one."""
    before = vars(PRESETS["default"])
    return {name: value for name, value in vars(from_preset(preset)).items() if value != before[name]}


def asked_epochs(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`epochs`, for `from_preset`, where combinations of settings to try name them."""
    return next(({"epochs": point["epochs"]} for point in points if "epochs" in point), {})


def from_preset(name: str, **changes: Any) -> HeadConfig:
    """A preset with some fields changed; changes that are None are none. Raises HeadError for an unknown one.

    A number of epochs that is asked for is trained in full, unless it is said how the training may end sooner. The
    default learning rate is for steps of plain SGD: with momentum m it is 1 - m times as large, since steps then add
    up; other optimizers begin with `HeadConfig`'s learning rate and penalty.
    """
    if name not in PRESETS:
        raise HeadError(f"unknown preset {name!r}: {nearest(name, PRESETS)}")
    asked = {key: value for key, value in changes.items() if value is not None}
    if "epochs" in asked and not {"patience", "restore_best"} & set(asked):
        asked |= {"patience": 0, "restore_best": False}
    start = PRESETS[name]
    if name == "default" and asked.get("optimizer", "sgd") != "sgd":
        start = replace(start, lr=HeadConfig.lr, l2=HeadConfig.l2)
    elif name == "default":
        start = replace(start, lr=start.lr * (1 - asked.get("momentum", 0.0)))
    return replace(start, **asked)
