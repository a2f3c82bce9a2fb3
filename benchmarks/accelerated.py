"""Heads on an accelerator by JAX against the processor by NumPy: an epoch in Gram space, and one by blocks.

python benchmarks/accelerated.py [--rows 4394] [--block-rows 100000] [--epochs 5] [--on gpu]

Both sides have the same features, and print their last losses: they agree but for rounding. `--on cpu` runs JAX on the
processor, which shows that it works, and not what an accelerator does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from common import print_machine
from many_rows import BATCH, CLASSES, HIDDEN, WIDTH, config, rows_of

from featcache.heads import accelerated, block, gram, initializers as random
from featcache.heads.source import InMemory
from featcache.heads.stack import Stack


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4394, help="of Gram space")
    parser.add_argument("--block-rows", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=5, help="that are measured, after a first one that compiles")
    parser.add_argument("--on", choices=["gpu", "cpu"], default="gpu")
    asked = parser.parse_args()
    print_machine()
    device = accelerated.gpu() if asked.on == "gpu" else jax.devices("cpu")[0]
    print(f"JAX {jax.__version__} on {device.device_kind}; {HIDDEN} units, batches of {BATCH}")
    sides: dict[str, Callable[[], Any]] = {
        f"gram, {asked.rows} rows, NumPy": lambda: gram.Training(*gram_problem(asked.rows)),
        f"gram, {asked.rows} rows, JAX": lambda: accelerated.GramTraining(*gram_problem(asked.rows), device=device),
        f"block, {asked.block_rows} rows, NumPy": lambda: block.Training(*block_problem(asked.block_rows)),
        f"block, {asked.block_rows} rows, JAX": lambda: accelerated.BlockTraining(
            *block_problem(asked.block_rows), device=device
        ),
    }
    for name, made in sides.items():
        with made() as training:
            for _ in range(1 + asked.epochs):
                training.history.append(training.epoch(lambda: None))
            seconds = statistics.median(entry.seconds for entry in training.history[1:])
            print(f"{name:28s} {1000 * seconds:9.1f} ms an epoch, loss {training.history[-1].loss:.6f}", flush=True)


def gram_problem(n: int) -> tuple[gram.GramProblem, gram.State]:
    """A Gram matrix of n training rows; the number of features is not in the cost of an epoch."""
    X, y = rows_of(n)
    settings = config(lr=1e-3)
    (W0, b0), *rest = random.initial_weights(settings, WIDTH, n_classes=CLASSES)
    K, ones = X @ X.T, np.ones(n, np.float32)
    m = n // 8
    problem = gram.GramProblem(K, X @ W0, y, ones, K[:m].copy(), X[:m] @ W0, y[:m])
    return problem, gram.start(problem, Stack(b0, rest, settings))


def block_problem(n: int) -> tuple[InMemory, block.State]:
    """n training rows of 1280 features, in memory."""
    X, y = rows_of(n)
    settings = config(lr=1e-3)
    (W0, b0), *rest = random.initial_weights(settings, WIDTH, n_classes=CLASSES)
    m = n // 8
    source = InMemory(X, y, weights=np.ones(n, np.float32), X_val=X[:m], y_val=y[:m])
    return source, block.start(W0, Stack(b0, rest, settings))


if __name__ == "__main__":
    main()
