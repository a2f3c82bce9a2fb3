"""How a whole network is trained, as one frozen record; and the recipes it may start from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from featcache.core.errors import ScratchError, nearest

Top = Literal["avg", "dense"]
Augment = Literal["planned", "live", "none"]
Schedule = Literal["inverse-time", "constant", "cosine"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop"]
Monitor = Literal["val_loss", "val_accuracy", "loss", "accuracy"]
BatchNorm = Literal["train", "frozen"]


@dataclass(frozen=True)
class ScratchConfig:
    """A classifier on top of a network, and how both are trained.

    top : "avg": mean over the feature map, Dropout, Dense(classes); "dense": Flatten, Dense(hidden, ReLU), Dropout,
        Dense(classes), which is the study's
    dropout : before the last layer
    stochastic_depth : probability to leave out the last residual branch, growing linearly from the first
        (Huang et al. 2016)
    l1, l2 : add l1 |W| and l2 |W|^2 of every trained kernel to the loss
    optimizer, momentum, nesterov : as in Keras
    weight_decay : decoupled, of kernels alone (Loshchilov & Hutter 2019); any optimizer
    lr : learning rate of the top, after warm-up
    schedule : "inverse-time": update t uses lr / (1 + decay t); "constant"; "cosine": half a cosine from lr to 0
    warmup_epochs : in which the rate rises linearly to lr; a cosine begins behind them
    clip_norm : largest norm of all gradients together; 0 leaves them as they are
    label_smoothing : part of each target that is spread evenly over the classes
    class_weights : "balanced" weighs rows so that all classes count alike
    batch : rows an update
    accumulate : parts that each batch is computed in, one after the other, where memory is short; batch
        normalisation then sees a part at a time
    augment : "planned": the views that the project plans, the same in every epoch; "live": as many views, drawn anew
        for each epoch; "none": the plain views alone
    monitor, patience, restore_best, val_every : as for heads
    precision : of the network's arithmetic; weights and loss stay float32
    deterministic : the same bits on every run on one machine, at some cost
    train_blocks : how many of the network's last blocks are trained; None for all
    batchnorm : "train", or "frozen": statistics and factors stay as they are, and the layers run as in inference
    batchnorm_momentum : of the running statistics that inference uses, in place of the network's own. Keras' 0.99
        and 0.999 are for thousands of updates an epoch: with a hundred the statistics are still those of the initial
        weights, and a network that has learned its training rows predicts one class for all. None leaves it alone
    base_rate : learning rate of the network's last block, as a fraction of the top's
    rate_decay : factor of the rate from each block to the one before it
    unfreeze_epochs : the top is trained alone for so many epochs, then one block more each so many epochs, the last
        ones first (Howard & Ruder 2018); 0 trains all blocks from the beginning
    seed : decides initial weights, order, dropout and stochastic depth
    """

    top: Top = "avg"
    hidden: int = 256
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    optimizer: Optimizer = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    lr: float = 0.01
    schedule: Schedule = "constant"
    decay: float = 0.0
    warmup_epochs: int = 0
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Literal["balanced", "none"] = "none"
    batch: int = 16
    accumulate: int = 1
    epochs: int = 100
    augment: Augment = "planned"
    monitor: Monitor = "val_loss"
    patience: int = 0
    restore_best: bool = False
    val_every: int = 1
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    deterministic: bool = False
    train_blocks: int | None = None
    batchnorm: BatchNorm = "train"
    batchnorm_momentum: float | None = None
    base_rate: float = 1.0
    rate_decay: float = 1.0
    unfreeze_epochs: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        fractions = ("dropout", "stochastic_depth", "momentum", "label_smoothing")
        amounts = ("l1", "l2", "weight_decay", "decay", "clip_norm")
        counts = {"hidden": 1, "batch": 1, "accumulate": 1, "epochs": 1, "val_every": 1}
        counts |= {"warmup_epochs": 0, "patience": 0, "unfreeze_epochs": 0}
        problems = [
            (not 0 <= getattr(self, name) < 1, f"{_words(name)} {getattr(self, name)}: expected 0 <= x < 1")
            for name in fractions
        ]
        problems += [
            (not 0 <= getattr(self, name) < math.inf, f"{_words(name)} {getattr(self, name)}: expected 0 or more")
            for name in amounts
        ]
        problems += [
            (getattr(self, name) < least, f"{_words(name)} {getattr(self, name)}: expected {least} or more")
            for name, least in counts.items()
        ]
        problems += [
            (not 0 < self.lr < math.inf, f"learning rate {self.lr}: expected more than 0"),
            (not 0 < self.base_rate <= 1, f"base rate {self.base_rate}: expected 0 < rate <= 1"),
            (not 0 < self.rate_decay <= 1, f"rate decay {self.rate_decay}: expected 0 < decay <= 1"),
            (self.train_blocks is not None and self.train_blocks < 0, "train blocks: expected 0 or more"),
            (
                self.batchnorm_momentum is not None and not 0 <= self.batchnorm_momentum < 1,
                f"momentum of batch normalisation {self.batchnorm_momentum}: expected 0 <= momentum < 1",
            ),
            (self.nesterov and not self.momentum, "nesterov: expected a momentum above 0"),
            (bool(self.momentum) and self.optimizer != "sgd", f"momentum: expected none, {self.optimizer} has its own"),
            (
                self.batch % self.accumulate != 0,
                f"batch {self.batch}: expected a multiple of {self.accumulate} parts",
            ),
            (self.warmup_epochs >= self.epochs, f"warm-up of {self.warmup_epochs} epochs: expected fewer than all"),
            (not 0 <= self.seed < 2**31, f"seed {self.seed}: expected 0 <= seed < 2**31"),
        ]
        known = {name: get_args(kind) for name, kind in _CHOICES.items()}
        problems += [
            (getattr(self, name) not in values, f"{name} {getattr(self, name)!r}: expected {' or '.join(values)}")
            for name, values in known.items()
        ]
        wrong = [message for is_wrong, message in problems if is_wrong]
        if wrong:
            raise ScratchError("; ".join(wrong))

    @property
    def part_rows(self) -> int:
        """Rows that are computed at a time."""
        return self.batch // self.accumulate

    def lr_at(self, update: int, updates_an_epoch: int) -> float:
        """Learning rate of an update, counted from 0."""
        warm = self.warmup_epochs * updates_an_epoch
        if update < warm:
            return self.lr * (update + 1) / warm
        if self.schedule == "inverse-time":
            return self.lr / (1 + self.decay * update)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * (update - warm) / (self.epochs * updates_an_epoch - warm))) / 2
        return self.lr

    def blocks_at(self, epoch: int, n_blocks: int) -> int:
        """How many of a network's last blocks are trained in an epoch, counted from 0."""
        most = n_blocks if self.train_blocks is None else min(self.train_blocks, n_blocks)
        return min(epoch // self.unfreeze_epochs, most) if self.unfreeze_epochs else most

    def most_blocks(self, n_blocks: int) -> int:
        """How many of a network's last blocks are trained in the end."""
        return self.blocks_at(self.epochs - 1, n_blocks)

    def to_dict(self) -> dict[str, Any]:
        """The record as it stands in a run's config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScratchConfig:
        """The inverse of `to_dict`. Raises ScratchError or TypeError for what is none."""
        return cls(**values)


_CHOICES: dict[str, Any] = {
    "top": Top,
    "augment": Augment,
    "schedule": Schedule,
    "optimizer": Optimizer,
    "monitor": Monitor,
    "batchnorm": BatchNorm,
    "class_weights": Literal["balanced", "none"],
    "precision": Literal["float32", "bfloat16", "float16"],
}


def _words(name: str) -> str:
    return name.replace("_", " ")


_MODERN = ScratchConfig(
    dropout=0.2,
    optimizer="adamw",
    weight_decay=0.05,
    lr=0.001,
    schedule="cosine",
    warmup_epochs=5,
    clip_norm=1.0,
    label_smoothing=0.1,
    class_weights="balanced",
    batch=32,
    epochs=100,
    augment="live",
    restore_best=True,
    batchnorm_momentum=0.9,
)
RECIPES: dict[str, ScratchConfig] = {
    "study": ScratchConfig(top="dense", lr=1e-5, schedule="inverse-time", decay=0.001, batch=16, epochs=100),
    "modern": _MODERN,
    "fine-tune": replace(
        _MODERN, weight_decay=0.01, warmup_epochs=1, epochs=20, batchnorm="frozen", base_rate=0.1, rate_decay=0.9
    ),
}


def from_recipe(name: str, **changes: Any) -> ScratchConfig:
    """A recipe with some fields changed; changes that are None are none. Raises ScratchError for an unknown one."""
    if name not in RECIPES:
        raise ScratchError(f"unknown recipe {name!r}: {nearest(name, RECIPES)}")
    return replace(RECIPES[name], **{key: value for key, value in changes.items() if value is not None})
