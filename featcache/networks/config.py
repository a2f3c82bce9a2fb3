"""How a whole network is trained, as one frozen record; and the recipes it may start from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from featcache.core.errors import ScratchError, nearest
from featcache.core.recipe import Precision
from featcache.core.settings import problems_of, setting

if TYPE_CHECKING:
    from featcache.extraction import ExtractOptions

Top = Literal["avg", "dense"]
Augment = Literal["planned", "live", "none"]
Schedule = Literal["inverse-time", "constant", "cosine"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop"]
Monitor = Literal["val_loss", "val_accuracy", "loss", "accuracy"]
BatchNorm = Literal["train", "frozen"]


@dataclass(frozen=True)
class ScratchConfig:
    """A classifier on top of a network, and how both are trained.

    Notes
    -----
    top="avg" is the mean over the feature map, Dropout, Dense(classes); top="dense" is Flatten, Dense(hidden, ReLU),
    Dropout, Dense(classes), as in the study. The learning rate of update t is lr / (1 + decay t) with the schedule
    "inverse-time", lr with "constant", and half a cosine from lr to 0 with "cosine"; it begins after the warm-up.

    Weight decay is decoupled and acts on kernels only (Loshchilov & Hutter 2019), with any optimizer. The probability
    of stochastic depth grows linearly from the first residual branch to the last (Huang et al. 2016). Blocks are
    unfrozen as in Howard & Ruder (2018). With accumulate, batch normalisation sees one part of the batch at a time.

    batchnorm="frozen" leaves statistics and factors unchanged, and runs the layers as in inference. Keras' momentum of
    batch normalisation, 0.99 or 0.999, is for thousands of updates per epoch: after a few hundred the statistics are
    still those of the initial weights, and a network that has learned its training rows predicts one class for all.
    """

    top: Top = setting("avg", "Top of the network: mean and one layer (avg), or the study's two layers (dense).")
    hidden: int = setting(256, "Units of the hidden layer of a dense top.", ge=1)
    dropout: float = setting(0.0, "Dropout rate before the last layer.", ge=0, lt=1)
    stochastic_depth: float = setting(0.0, "Probability to skip the last residual branch in training.", ge=0, lt=1)
    l1: float = setting(0.0, "L1 penalty of the trained kernels.", ge=0)
    l2: float = setting(0.0, "L2 penalty of the trained kernels.", ge=0)
    optimizer: Optimizer = setting("sgd", "Optimizer, as in Keras.")
    momentum: float = setting(0.0, "Momentum of SGD.", ge=0, lt=1)
    nesterov: bool = setting(False, "Use Nesterov momentum. Needs a momentum above 0.")
    weight_decay: float = setting(0.0, "Decoupled weight decay of the kernels.", ge=0)
    lr: float = setting(0.01, "Learning rate of the top, after the warm-up.", gt=0)
    schedule: Schedule = setting("constant", "How the learning rate decreases.")
    decay: float = setting(0.0, "Decay per update of the inverse-time schedule.", ge=0)
    warmup_epochs: int = setting(0, "Epochs in which the learning rate rises to its full value.", ge=0)
    clip_norm: float = setting(0.0, "Largest norm of all gradients together (0 = no limit).", ge=0)
    label_smoothing: float = setting(0.0, "Part of each target that is spread over all classes.", ge=0, lt=1)
    class_weights: Literal["balanced", "none"] = setting("none", "How classes are weighted in the loss.")
    batch: int = setting(16, "Batch size: rows per update.", ge=1)
    accumulate: int = setting(1, "Compute each batch in this many parts, to save memory.", ge=1)
    epochs: int = setting(100, "Passes over the training rows.", ge=1)
    augment: Augment = setting(
        "planned", "Views to train on: the planned ones in every epoch, new ones (live), or plain ones only (none)."
    )
    monitor: Monitor = setting("val_loss", "Measure that decides which epoch is best.")
    patience: int = setting(0, "Stop early after this many epochs without improvement (0 = off).", ge=0)
    restore_best: bool = setting(False, "Keep the weights of the best epoch instead of the last.")
    val_every: int = setting(1, "Evaluate the validation rows every this many epochs.", ge=1)
    precision: Precision = setting("float32", "Precision of the network's arithmetic. Weights and loss stay float32.")
    deterministic: bool = setting(False, "Give the same bits on every run on one machine. It is slower.")
    train_blocks: int | None = setting(None, "Train only this many of the last blocks (default: all).", ge=0)
    batchnorm: BatchNorm = setting("train", "Train the batch normalisation of trained blocks, or leave it frozen.")
    batchnorm_momentum: float | None = setting(
        None, "Momentum of the running statistics of batch normalisation (default: the network's).", ge=0, lt=1
    )
    base_rate: float = setting(1.0, "Learning rate of the last block, as a fraction of the top's.", gt=0, le=1)
    rate_decay: float = setting(1.0, "Factor of the learning rate from each block to the block before.", gt=0, le=1)
    unfreeze_epochs: int = setting(
        0, "Train the top first, then unfreeze one more block every this many epochs (0 = train all at once).", ge=0
    )
    seed: int = setting(0, "Seed of initial weights, batch order, dropout and stochastic depth.", ge=0, lt=2**31)

    def __post_init__(self) -> None:
        wrong = problems_of(self)
        if not wrong:
            if self.nesterov and not self.momentum:
                wrong.append("`nesterov`: expected a `momentum` above 0")
            if self.momentum and self.optimizer != "sgd":
                wrong.append(f"`momentum={self.momentum}`: expected 0, since {self.optimizer} has its own")
            if self.batch % self.accumulate:
                wrong.append(f"`batch={self.batch}`: expected a multiple of `accumulate={self.accumulate}`")
            if self.warmup_epochs >= self.epochs:
                wrong.append(f"`warmup_epochs={self.warmup_epochs}`: expected fewer than `epochs={self.epochs}`")
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


@dataclass(frozen=True)
class ScratchOptions:
    """What a whole network is trained on, and where its weights begin; `ScratchConfig` says how it is trained.

    Attributes
    ----------
    views : values that replace those of featcache.toml
    """

    head: str | None = setting(None, "Start with the top of this fit-head run, trained on the same features.")
    views: Mapping[str, Any] = field(default_factory=dict)
    devices: int = setting(1, "Spread each batch over this many devices (JAX only).", ge=1)
    no_remote: bool = setting(False, "Do not look for rendered views on remotes.")
    offline: bool = setting(False, "Block all network access. Weights must be on this machine.")
    strict: bool = setting(False, "Stop at the first image that cannot be used, instead of leaving it out.")

    def extraction(self) -> ExtractOptions:
        """How the views are rendered."""
        from featcache.extraction import ExtractOptions

        return ExtractOptions(
            views=self.views,
            no_remote=self.no_remote,
            offline=self.offline,
            strict=self.strict,
        )
