"""What a head is and how it is trained, as one frozen record; and the study's preset."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from featcache.errors import HeadError, nearest

Solver = Literal["auto", "gram", "primal"]


@dataclass(frozen=True)
class HeadConfig:
    """Dense(hidden, relu), Dropout(dropout) for each hidden layer, then Dense(classes, softmax), by SGD.

    hidden : units of each hidden layer; () trains the softmax layer alone
    dropout : fraction of each hidden layer's units left out in training
    lr : learning rate of the first update
    decay : inverse-time decay: update t uses lr / (1 + decay t), t = 0, 1, ...
    batch : rows an update
    scale : "auto" multiplies the features by one number so that their mean squared norm over the training
        rows is 25,600, whatever the backbone, and draws the first layer for such inputs: one learning rate
        then suits every backbone. "none" leaves features as they are, with Glorot-uniform weights, as
        the study and Keras' defaults do
    class_weights : "balanced" weighs each row's loss by n_rows / (n_classes * n_rows_of_its_class), so that
        rare classes count as much as frequent ones; "none" weighs all rows alike
    seed : decides initial weights, batch order and dropout masks
    dtype : of the training arithmetic
    """

    hidden: tuple[int, ...] = (256,)
    dropout: float = 0.5
    lr: float = 0.001
    decay: float = 0.0
    batch: int = 16
    epochs: int = 100
    scale: Literal["auto", "none"] = "auto"
    class_weights: Literal["balanced", "none"] = "balanced"
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        problems = [
            (any(units < 1 for units in self.hidden), f"hidden units {self.hidden}: expected 1 or more"),
            (not 0 <= self.dropout < 1, f"dropout {self.dropout}: expected 0 <= dropout < 1"),
            (not 0 < self.lr < float("inf"), f"learning rate {self.lr}: expected more than 0"),
            (not 0 <= self.decay < float("inf"), f"decay {self.decay}: expected 0 or more"),
            (self.batch < 1, f"batch {self.batch}: expected 1 or more"),
            (self.epochs < 1, f"epochs {self.epochs}: expected 1 or more"),
            (not 0 <= self.seed < 2**63, f"seed {self.seed}: expected 0 <= seed < 2**63"),
            (self.scale not in ("auto", "none"), f"scale {self.scale!r}: expected 'auto' or 'none'"),
            (
                self.class_weights not in ("balanced", "none"),
                f"class weights {self.class_weights!r}: expected 'balanced' or 'none'",
            ),
            (self.dtype not in ("float32", "float64"), f"dtype {self.dtype!r}: expected 'float32' or 'float64'"),
        ]
        wrong = [message for is_wrong, message in problems if is_wrong]
        if wrong:
            raise HeadError("; ".join(wrong))

    def lr_at(self, update: int) -> float:
        """Learning rate of an update, counted from 0."""
        return self.lr / (1 + self.decay * update)

    def to_dict(self) -> dict[str, Any]:
        """The record as it stands in a run's config.json."""
        return {**asdict(self), "hidden": list(self.hidden)}


PRESETS: dict[str, HeadConfig] = {
    "default": HeadConfig(),
    "study": HeadConfig(lr=1e-5, decay=0.001, batch=16, scale="none", class_weights="none"),
}


def from_preset(name: str, **changes: Any) -> HeadConfig:
    """A preset with some fields changed; changes that are None are none. Raises HeadError for an unknown one."""
    if name not in PRESETS:
        raise HeadError(f"unknown preset {name!r}: {nearest(name, PRESETS)}")
    return replace(PRESETS[name], **{key: value for key, value in changes.items() if value is not None})
