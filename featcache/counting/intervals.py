"""How many white cells of each class there are in some fields, and between which numbers the true one lies.

What is known is how many cells were *named* each class. Three things part that from the truth:

1. The head names some cells wrongly. How often it takes which class for which is known from rows that it was not
   trained on, by their true class: a confusion matrix. A row of it has a Dirichlet posterior, whose prior is worth one
   row and has the mean recall of all classes: a mistake that was never seen is possible, and a class of few rows is not
   taken for a bad one. The composition of these fields need not be that of the rows: it is estimated with it. So this
   is the correction of Rogan & Gladen (1978) for K classes and with all of its uncertainty, by the Gibbs sampler of
   Joseph, Gyorkos & Coupal (1995): the composition, the matrix, and the true classes of the cells of each name are
   drawn in turn.
2. Some of what the segmenter finds is no white cell. It is taken to be named as the others are.
3. It misses some cells. Given a recall r and n that were found, the missed ones are negative-binomial.

Recall and precision have Beta distributions, and one draw holds for all fields, as on one slide. `low` and `high` bound
the number of cells *in these fields*, so that drawing fields from a slide is no part of them. It is part of the
interval of a *share*, which is that of the blood: its cells are draws (Rümke 1979), and fields are clusters, whose
design effect makes them count for fewer draws (Rao & Scott 1981).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
_CHAINS, _SETTLING, _KEPT, _APART = 400, 120, 10, 6
"""Chains that run side by side, their steps before one is kept, how many are kept of each, and steps between these."""
_TINY = 1e-12


@dataclass(frozen=True)
class Rate:
    """A Beta distribution of a share that was measured: its mean, and how many cases it is worth."""

    mean: float
    cases: float

    def draws(self, random: np.random.Generator, count: int) -> Floats:
        """So many draws."""
        return random.beta(self.mean * self.cases, (1 - self.mean) * self.cases, count)


@dataclass(frozen=True)
class Between:
    """A number of cells, and the share of its class, with their intervals."""

    estimate: float
    low: int
    high: int
    share: float
    share_low: float
    share_high: float


def intervals(
    named: Ints,
    drawn: Ints,
    *,
    recall: Rate,
    precision: Rate,
    random: np.random.Generator,
) -> list[Between]:
    """Of each class the true number of cells in all fields, and its share.

    named : (fields, classes), how many cells of each field were named each class
    drawn : (draws, classes), how many of all found cells may be of each class: of `by_confusion` or `by_probability`
    """
    count, k = drawn.shape
    r, p = recall.draws(random, count), precision.draws(random, count)
    found = random.binomial(drawn, p[:, None])
    numbers = found + random.negative_binomial(found + 1 / k, np.maximum(r, _TINY)[:, None])
    shares = _dirichlet(1 / k + found / design_effect(named), random)
    tail = (1 - LEVEL) / 2
    low, middle, high = np.quantile(numbers, (tail, 0.5, 1 - tail), axis=0, method="inverted_cdf")
    share_low, share_high = np.quantile(shares, (tail, 1 - tail), axis=0)
    # Where nothing of a class was found, one cell may have been missed or misnamed, however rare that is.
    high = np.maximum(high, 1 if len(named) else 0)
    mean = shares.mean(axis=0)
    return [
        Between(float(middle[i]), int(low[i]), int(high[i]), float(mean[i]), float(share_low[i]), float(share_high[i]))
        for i in range(k)
    ]


def by_confusion(named: Ints, confusion: Floats, *, random: np.random.Generator) -> Ints:
    """The true classes of cells that were named so often each class: (draws, classes).

    named : (classes,), of all fields
    confusion : (classes, classes), rows true, columns named, of rows that the head was not trained on
    """
    k = len(named)
    prior = confusion + _prior(confusion)
    matrix = _dirichlet(np.broadcast_to(prior, (_CHAINS, k, k)), random)
    composition = np.full((_CHAINS, k), 1 / k)
    kept = []
    for step in range(1, _SETTLING + _KEPT * _APART + 1):
        true = _true_classes(named, composition[:, :, None] * matrix, random)
        matrix = _dirichlet(prior + true, random)
        composition = _dirichlet(1 / k + true.sum(axis=2), random)
        if step > _SETTLING and (step - _SETTLING) % _APART == 0:
            kept.append(true.sum(axis=2))
    return np.concatenate(kept)


def _prior(confusion: Floats) -> Floats:
    """What is supposed of each class before its rows are looked at, worth one row: (classes, classes).

    A recall as the mean of all classes has it, which half a row for a mistake keeps below 1; the rest falls on all
    other classes alike.
    """
    k, rows = len(confusion), confusion.sum(axis=1)
    recall = float(((np.diag(confusion) + 0.5) / (rows + 1)).mean())
    others = (1 - recall) / max(k - 1, 1)
    return np.where(np.eye(k, dtype=bool), recall, others)


def _true_classes(named: Ints, joint: Floats, random: np.random.Generator) -> Ints:
    """How many of the cells of each name are of each class: (chains, true, named). joint : p(true, named), the same"""
    weights = joint + _TINY
    shares = weights / weights.sum(axis=1, keepdims=True)
    true = np.zeros(joint.shape, np.int64)
    for column in np.flatnonzero(named):
        true[:, :, column] = random.multinomial(named[column], shares[:, :, column])
    return true


def by_probability(probabilities: Floats, *, random: np.random.Generator) -> Ints:
    """The same where no confusion matrix is known: each cell is of a class with its calibrated probability.

    probabilities : (cells, classes)
    """
    count, k = _CHAINS * _KEPT, probabilities.shape[1]
    drawn = np.zeros((count, k), np.int64)
    for row in probabilities.astype(np.float64) + _TINY:
        drawn += random.multinomial(1, row / row.sum(), size=count)
    return drawn


def design_effect(named: Ints) -> float:
    """By how much the composition differs more from field to field than chance alone makes it: 1 or more.

    The mean over classes of the variance of a share between fields, as a ratio of sums, over that of single draws.
    """
    of_field = named.sum(axis=1)
    total, fields = int(of_field.sum()), int((of_field > 0).sum())
    p = named.sum(axis=0) / max(total, 1)
    varied = (p > 0) & (p < 1)
    if fields < 2 or not varied.any():
        return 1.0
    residuals = named - of_field[:, None] * p
    between = fields / (fields - 1) * (residuals**2).sum(axis=0) / total**2
    alone = p * (1 - p) / total
    weights = (1 - p)[varied]
    return max(float((between[varied] / alone[varied]) @ weights / weights.sum()), 1.0)


def _dirichlet(weights: Any, random: np.random.Generator) -> Floats:
    """Draws along the last axis."""
    draws = random.standard_gamma(np.asarray(weights)) + _TINY
    return np.asarray(draws / draws.sum(axis=-1, keepdims=True))
