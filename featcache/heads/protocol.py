"""How a cross-validation divides images, and which settings its inner folds can choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from featcache.core.errors import HeadError
from featcache.core.settings import problems_of, setting

TUNED: dict[str, tuple[Any, ...]] = {
    "lr": (0.001, 0.003, 0.01),
    "epochs": (30, 100, 300),
    "l2": (0.0, 0.03, 0.1),
    "dropout": (0.0, 0.5),
    "hidden": ((), (256,)),
    "momentum": (0.0, 0.9),
    "batch": (16, 64),
}
"""Settings that inner folds can choose, with the values that are tried where none are given."""


@dataclass(frozen=True)
class Protocol:
    """How images are divided into those that are trained on and those that are judged."""

    folds: int = setting(5, "Folds: each image is judged by a head that was trained on the other folds.", ge=2)
    repeats: int = setting(1, "How often to repeat it, with other folds and another seed.", ge=1)
    leave_group_out: bool = setting(False, "Judge each group by a head that was trained on all others.")
    test_on: str | None = setting(
        None, "Judge this source by a head that was trained on all others: a root, or a folder that paths begin with."
    )
    inner_folds: int = setting(3, "Folds that choose settings or the best epoch, within the training images.", ge=2)
    judge: Literal["plain", "views"] = setting("plain", "What is judged: plain views, or the mean over all views.")

    def __post_init__(self) -> None:
        wrong = problems_of(self)
        if self.leave_group_out and self.test_on is not None:
            wrong.append("`leave_group_out` excludes `test_on`")
        if self.repeats > 1 and (self.leave_group_out or self.test_on is not None):
            wrong.append(f"`repeats={self.repeats}`: expected 1, since these folds are always the same")
        if wrong:
            raise HeadError("; ".join(wrong))
