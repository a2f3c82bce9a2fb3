"""Intervals: how often they hold the truth, and what they cost.

python benchmarks/intervals.py [--draws 400]

Forty groups of four classes, of which the rarest has five. `rows` is how many rows a group has on average, `alike` how
far the rows of a group are right or wrong together. Percentile: the usual interval of the bootstrap.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from common import best_of, print_machine
from sklearn.metrics import f1_score

from featcache.measures import Judged, evaluate

GROUPS = np.array([18, 10, 7, 5])
RECALL = np.array([0.92, 0.85, 0.8, 0.7])
CASES = ((1, 0.0), (5, 0.02), (5, 0.2), (5, 0.6), (10, 0.1))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=400)
    draws = parser.parse_args().draws
    print_machine()
    print("| rows | alike | accuracy | percentile | macro F1 | recall, 18 groups | 10 | 7 | 5 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for rows, alike in CASES:
        held = coverage(draws, rows, alike)
        print(f"| {rows} | {alike:g} | " + " | ".join(f"{100 * share:.1f}" for share in held) + " |")
    for n, n_groups in ((440, 440), (4394, 900), (60_000, 60_000)):
        generator = np.random.default_rng(0)
        y, groups = generator.integers(0, 5, n), generator.permutation(n) % n_groups
        P = generator.random((n, 5)) + np.eye(5)[y]
        seconds = best_of(3, lambda P=P, y=y, groups=groups: evaluate(Judged(P, y, groups=groups), "abcde"))  # type: ignore[misc]
        print(f"every measure of {n:,} rows in {n_groups:,} groups, 2,000 draws: {seconds:.2f} s")


def coverage(draws: int, rows: int, alike: float) -> list[float]:
    """How often the truth lies within the interval: of accuracy, of its percentiles, macro F1, and each recall."""
    predicted, y, _ = cells(np.random.default_rng(2**31), GROUPS * 4000, rows, alike)
    truth = [float((predicted == y).mean())] * 2 + [float(f1_score(y, predicted, average="macro")), *RECALL]
    held = np.zeros(len(truth))
    for seed in range(draws):
        predicted, y, groups = cells(np.random.default_rng(seed), GROUPS, rows, alike)
        found = evaluate(Judged(0.1 + 0.6 * np.eye(4)[predicted], y, groups=groups), "abcd")
        ranges = [
            found["intervals"]["accuracy"],
            percentiles(predicted == y, groups),
            found["intervals"]["macro_f1"],
            *(found["per_class"][label]["intervals"]["recall"] for label in "abcd"),
        ]
        held += [low <= value <= high for (low, high), value in zip(ranges, truth, strict=True)]
    return list(held / draws)


def cells(generator: np.random.Generator, counts: Any, rows: int, alike: float) -> tuple[Any, ...]:
    """Predicted classes, true classes and groups of rows."""
    labels = np.repeat(np.arange(len(counts)), counts)
    sizes = generator.integers(1, 2 * rows, len(labels)) if rows > 1 else np.ones(len(labels), int)
    right = RECALL[labels]
    if alike:
        right = generator.beta(right * (1 - alike) / alike, (1 - right) * (1 - alike) / alike)
    groups = np.repeat(np.arange(len(labels)), sizes)
    y = labels[groups]
    wrong = (y + generator.integers(1, len(counts), len(y))) % len(counts)
    return np.where(generator.random(len(y)) < right[groups], y, wrong), y, groups


def percentiles(correct: Any, groups: Any) -> tuple[float, float]:
    """Percentile interval of the bootstrap of the accuracy."""
    right, size = np.bincount(groups, correct), np.bincount(groups)
    drawn = np.random.default_rng(0).integers(0, len(size), (1000, len(size)))
    low, high = np.percentile(right[drawn].sum(axis=1) / size[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
