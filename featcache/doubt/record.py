"""What a run keeps of its validation rows, so that it can say how sure it is of images to come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import RunError, refuse_shortage
from featcache.core.npz import NPZ_DAMAGE, reading_npz, write_npz
from featcache.doubt.likeness import Likeness, pooled
from featcache.doubt.temperature import at_temperature, fit_temperature

Array = NDArray[np.floating[Any]]

DOUBT_FILE = "doubt.npz"
_LEAST = 1e-12
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Doubt:
    """What the plain validation rows say of the probabilities of a run.

    Every group counts as one: rows of one group are no independent cases.

    Attributes
    ----------
    temperature : see `featcache.doubt.temperature`
    misses : (n,), one minus the probability of the true class
    shares : (n,), how much each row counts; they sum to one
    n_groups : how many groups the rows are of
    distances : (n,), from `likeness`; NaN without one
    likeness : of the features of the training rows; None where it is not known
    """

    temperature: float
    misses: Array
    shares: Array
    n_groups: int
    distances: Array
    likeness: Likeness | None = None

    @classmethod
    def of(
        cls,
        probabilities: Array,
        y: NDArray[np.int64],
        *,
        groups: NDArray[Any],
        likeness: Likeness | None = None,
        features: Array | None = None,
    ) -> Self:
        """Of validation rows.

        probabilities : (n, classes)
        y, groups : (n,). Of several labels a row y is an indicator (n, classes), and nothing is said of probabilities:
            the temperature is 1, the misses are 0
        likeness : fitted to the training rows
        features : (n, c), pooled, of these rows
        """
        _, of_group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        shares = 1 / (len(sizes) * sizes[of_group])
        known = likeness is not None and features is not None
        one_class = y.ndim == 1
        return cls(
            temperature=fit_temperature(probabilities, y, weights=shares) if one_class else 1.0,
            misses=1 - _summing_to_one(probabilities)[np.arange(len(y)), y] if one_class else np.zeros(len(y)),
            shares=shares,
            n_groups=len(sizes),
            distances=likeness.distances(features) if known else np.full(len(y), np.nan),  # type: ignore[union-attr, arg-type]
            likeness=likeness if known else None,
        )

    def calibrated(self, probabilities: Array) -> Array:
        """Probabilities (n, classes) as sure as validation rows have shown them to be right."""
        return at_temperature(probabilities, self.temperature)

    def sets(self, probabilities: Array, confidence: float) -> NDArray[np.bool_]:
        """Which classes an image may be of, (n, classes): the true one is among them with probability `confidence`.

        Split-conformal prediction (Vovk et al. 2005; classes by their probability, Sadinle et al. 2019), for groups of
        several rows (hierarchical conformal prediction, Lee et al. 2023). It holds for images of new groups that are
        like the validation images. None of the classes: the run would miss too often if it named one. All of them: too
        few groups to say.
        """
        return np.asarray(1 - _summing_to_one(probabilities) <= self._quantile(self.misses, confidence) + _ROUNDING)

    def distances_of(self, features: NDArray[Any]) -> Array:
        """How far features (n, ..., c) are from those of the training images: (n,), NaN where that is not known."""
        return self.likeness.distances(pooled(features)) if self.likeness else np.full(len(features), np.nan)

    def unlike(self, distances: Array, false_alarms: float) -> NDArray[np.bool_]:
        """Which images are unlike the training images (n,): of like ones, a share of `false_alarms` is marked, too.

        With fewer than 1 / `false_alarms` groups, one that is farther than all validation rows. Raises ValueError
        without a likeness.
        """
        if self.likeness is None:
            raise ValueError("what the training images are like is not known")
        threshold = min(self._quantile(self.distances, 1 - false_alarms), float(self.distances.max()))
        return np.asarray(distances > threshold + self.likeness.rounding)

    def _quantile(self, values: Array, level: float) -> float:
        """The least value that a share of `level` does not exceed, one more group than there are having infinity."""
        order = np.argsort(values)
        reached = np.cumsum(self.shares[order]) * self.n_groups / (self.n_groups + 1)
        place = int(np.searchsorted(reached, level - _ROUNDING))
        return float(values[order[place]]) if place < len(order) else np.inf

    def save(self, folder: Path) -> None:
        """Write doubt.npz into a folder."""
        arrays = {name: np.asarray(getattr(self, name)) for name in _OWN}
        write_npz(folder / DOUBT_FILE, {**arrays, **(self.likeness.to_arrays() if self.likeness else {})})

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What `save` wrote into a folder; None where there is no such file. Raises RunError for a damaged one."""
        path = folder / DOUBT_FILE
        if not path.exists():
            return None
        try:
            with reading_npz(path) as arrays:
                likeness = Likeness.of_arrays(arrays) if "mean" in arrays else None
                made = cls(
                    temperature=float(arrays["temperature"]),
                    misses=arrays["misses"],
                    shares=arrays["shares"],
                    n_groups=int(arrays["n_groups"]),
                    distances=arrays["distances"],
                    likeness=likeness,
                )
                made._refuse_misfits()
        except NPZ_DAMAGE as error:
            refuse_shortage(error, path)
            raise RunError(f"{path}: cannot be read: {error}", "Train the run again") from error
        return made

    def _refuse_misfits(self) -> None:
        """Raise ValueError for arrays that do not fit each other."""
        n_rows = len(self.misses)
        for name in ("misses", "shares", "distances"):
            array = getattr(self, name)
            if array.shape != (n_rows,) or array.dtype != np.float64:
                raise ValueError(f"{name} is no float64 of shape ({n_rows},)")
        known = self.likeness is not None
        if not (n_rows and 1 <= self.n_groups <= n_rows and np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError("it has no validation rows, or no temperature")
        if not (np.isfinite(self.misses).all() and (self.shares > 0).all() and abs(self.shares.sum() - 1) < 1e-6):
            raise ValueError("misses and shares are no probabilities")
        if known and not np.isfinite(self.distances).all():
            raise ValueError("distances are no numbers")


_OWN = ("temperature", "misses", "shares", "n_groups", "distances")


def _summing_to_one(probabilities: Array) -> Array:
    """Rows in float64; those of independent classes (sigmoid) do not sum to one."""
    exact = probabilities.astype(np.float64)
    return np.asarray(exact / np.maximum(exact.sum(axis=1, keepdims=True), _LEAST))
