"""Features of another laboratory brought to the training images' mean and deviation, without any label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import UsageError
from featcache.store import Cache

Align = Literal["none", "mean", "scale"]
_SHRINK = 0.1
"""Part of the mean deviation that is added to each feature's: some are constant in one of the laboratories."""

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Alignment:
    """What the features of the training images are like, each on its own.

    how : "mean" shifts the features of new images so that their mean is that of the training images; "scale" brings
        their deviations to those of the training images besides (Sun, Feng & Saenko 2016 without covariances)
    mean, deviation : of the plain views of the training images, in the shape of a row
    """

    how: Align
    mean: Array
    deviation: Array

    @classmethod
    def of(cls, cache: Cache, how: str) -> Self:
        """That of the cache of a run. Raises UsageError for another way."""
        if how not in get_args(Align):
            raise UsageError(f"`align={how!r:.80}`: expected one of {', '.join(get_args(Align))}")
        numbers = cache.numbers("train")
        numbers = numbers[cache.view[numbers] == 0]
        total = np.zeros(cache.features.shape[1:])
        squares = np.zeros_like(total)
        for _, block in cache.features.blocks(numbers):
            total += block.sum(axis=0, dtype=np.float64)
            squares += np.square(block, dtype=np.float64).sum(axis=0)
        mean = total / len(numbers)
        return cls(how, mean, np.sqrt(np.maximum(squares / len(numbers) - mean**2, 0)))  # type: ignore[arg-type]

    def __call__(self, features: Array) -> NDArray[np.float32]:
        """Features (n, ...) of one laboratory, all of its images together; as many as possible tell best."""
        own = features.mean(axis=0, dtype=np.float64)
        if self.how == "mean":
            return np.asarray(features - own + self.mean, np.float32)
        deviation = features.std(axis=0, dtype=np.float64)
        factor = (self.deviation + _SHRINK * self.deviation.mean()) / (deviation + _SHRINK * deviation.mean() + 1e-12)
        return np.asarray((features - own) * factor + self.mean, np.float32)
