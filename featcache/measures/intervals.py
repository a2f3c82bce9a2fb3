"""95 % intervals: Wilson's score interval of as many independent cases as have the same standard error.

That is found by drawing groups; of shares of rows by leaving each out (the jackknife, linearised), which is as good and
needs no draws. docs/explanation/design.md says why, and benchmarks/intervals.py how often they hold the
truth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Array = NDArray[np.floating[Any]]
Interval = tuple[float, float]
_Z = float(ndtri(0.975))
_LARGEST_EXPONENT = 50.0
_PART_GROUPS = 1 << 18


def draws_of(n_groups: int, n_draws: int) -> Array:
    """How often each group is drawn, (draws, groups), with replacement (Efron 1979); always the same draws.

    One fewer are drawn than there are: with all, measures would vary too little (Rao & Wu 1988).
    """
    drawn = np.random.default_rng(0).integers(0, n_groups, (n_draws, max(n_groups - 1, 1)))
    drawn += np.arange(n_draws)[:, None] * n_groups
    return np.bincount(drawn.ravel(), minlength=n_draws * n_groups).reshape(n_draws, n_groups).astype(np.float64)


def standard_errors(drawn: Array) -> Array:
    """Of measures, from their values in draws of groups, (draws, ...); 0 where no draw defines it."""
    known = np.isfinite(drawn)
    values, n = np.where(known, drawn, 0), np.maximum(known.sum(axis=0), 1)
    spread = np.where(known, drawn - values.sum(axis=0) / n, 0)
    return np.asarray(np.sqrt((spread**2).sum(axis=0) / n))


def in_errors(n_groups: int) -> float:
    """Half of an interval, in standard errors: the quantile of Student's t that so many groups ask for."""
    return float(stdtrit(max(n_groups - 1, 1), 0.975))


def of_share(right: NDArray[Any], sizes: NDArray[Any], *, repeats: int = 1) -> Interval:
    """Of a share of rows, from the rows of each group and how many of them are right, (groups,).

    They are worth at least as many cases as if all rows of a group were alike, and at most as many as there are rows.

    repeats : predictions of each row that `right` is the mean of
    """
    n_groups, n_rows = int(np.count_nonzero(sizes > 0)), float(sizes.sum())
    share, beside, squares = float(right.sum()) / n_rows, 0.0, 0.0  # of a group without rows, nothing is right
    for start in range(0, len(sizes), _PART_GROUPS):
        size = sizes[start : start + _PART_GROUPS].astype(np.float64)
        beside += float(((right[start : start + _PART_GROUPS] - share * size) ** 2).sum())
        squares += float((size**2).sum())
    error = float(np.sqrt(beside * n_groups / max(n_groups - 1, 1))) / n_rows
    least = n_rows**2 / squares
    return _wilson(share, min(max(_cases(share, error, n_groups), least), n_rows * repeats))


def of_measure(value: float, error: float, *, bounds: Interval, n_groups: int, least: float) -> Interval:
    """Of a measure within bounds, as of a share of them; `least` cases where the draws do not tell it from perfect."""
    low, high = bounds
    share = (value - low) / (high - low)
    found = _wilson(share, _cases(share, error / (high - low), n_groups) or least)
    return low + (high - low) * found[0], low + (high - low) * found[1]


def of_positive(value: float, error: float, *, n_groups: int) -> Interval:
    """Of a measure above 0 without a bound, on the scale of its logarithm."""
    exponent = in_errors(n_groups) * error / value if value > 0 else 0.0
    factor = float(np.exp(min(exponent, _LARGEST_EXPONENT)))
    return value / factor, value * factor


def _wilson(share: float, cases: float) -> Interval:
    """Wilson's score interval (1927) of a share of so many independent cases."""
    squared = _Z**2 / cases
    middle = (share + squared / 2) / (1 + squared)
    half = np.sqrt(share * (1 - share) * squared + squared**2 / 4) / (1 + squared)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _cases(share: float, error: float, n_groups: int) -> float:
    """How many independent cases have this standard error, fewer for what few groups say of it (Korn & Graubard 1998).

    0 where there is no error to tell it by.
    """
    if not error or not 0 < share < 1:
        return 0.0
    return float(share * (1 - share) / error**2 * (_Z / in_errors(n_groups)) ** 2)
