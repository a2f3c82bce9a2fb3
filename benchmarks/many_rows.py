"""Heads of many rows: the block solver against `keras.Model.fit` and against its bare products; streamed; memory; and
logistic regression against scikit-learn.

python benchmarks/many_rows.py [--rows 100000] [--rounds 3] [--parts keras streamed logistic] [--logistic-rows 1000000]

The sides take turns, and medians are compared: other work on the machine then disturbs them alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from common import cache_of, print_machine
from head import peak_mb
from numpy.typing import NDArray

from featcache.heads import block, initializers as random
from featcache.heads.config import HeadConfig
from featcache.heads.cores import Cores
from featcache.heads.source import InMemory, Streamed
from featcache.heads.stack import Stack
from featcache.heads.train import train_head
from featcache.store.cache import open_cache

WIDTH, HIDDEN, BATCH, CLASSES = 1280, 256, 16, 5
Floats = NDArray[np.float32]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["keras", "streamed", "logistic"])
    parser.add_argument("--streamed-rows", type=int, default=260_000, help="of which features are not held in memory")
    parser.add_argument("--logistic-rows", type=int, default=1_000_000)
    parser.add_argument("--memory-of", type=Path, help="train on this cache, and print the peak of memory")
    asked = parser.parse_args()
    if asked.memory_of:
        train_head(open_cache(asked.memory_of), config(epochs=1), solver="block")
        print(peak_mb())
        return
    print_machine()
    if "keras" in asked.parts:
        against_keras(asked.rows, asked.rounds)
    if "streamed" in asked.parts:
        with tempfile.TemporaryDirectory() as folder:
            streamed(Path(folder), asked.streamed_rows, asked.rounds)
    if "logistic" in asked.parts:
        logistic(asked.logistic_rows)


def config(**changes: Any) -> HeadConfig:
    """The head of the comparison."""
    settings: dict[str, Any] = {"lr": 1e-4, "batch": BATCH, "epochs": 100, "scale": "none", "class_weights": "none"}
    return HeadConfig((HIDDEN,), 0.5, **{**settings, **changes})


def rows_of(n_rows: int) -> tuple[Floats, NDArray[np.int64]]:
    """Features like those behind a ReLU, of classes that overlap."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, CLASSES, n_rows)
    centres = generator.standard_normal((CLASSES, WIDTH), dtype=np.float32) * np.float32(0.08)
    X = np.empty((n_rows, WIDTH), np.float32)
    for start in range(0, n_rows, 10_000):
        part = X[start : start + 10_000]
        generator.standard_normal(dtype=np.float32, out=part)
        part += centres[y[start : start + 10_000]]
        np.maximum(part, 0, out=part)
    return X, y


def training_on(source: Any, settings: HeadConfig) -> block.Training:
    """A training by blocks."""
    (W0, b0), *rest = random.initial_weights(settings, WIDTH, n_classes=CLASSES)
    return block.Training(source, block.start(W0, Stack(b0, rest, settings)))


def epoch_s(training: block.Training) -> float:
    """Seconds of one more epoch."""
    entry = training.epoch(lambda: None)
    training.history.append(entry)
    return entry.seconds


def products_s(X: Floats, training: block.Training) -> float:
    """Seconds of what an epoch cannot do without: X W and X^T G of all blocks, and their inner products."""
    n = block.block_rows(training.config, WIDTH, units=HIDDEN)
    W, G = np.ones((WIDTH, HIDDEN), np.float32), np.ones((n, HIDDEN), np.float32)
    XW, change, K = np.empty((n, HIDDEN), np.float32), np.empty_like(W), np.empty((n, n), np.float32)
    held = X[: 8 * n]
    cores: Cores = training.cores

    def before(rows: Floats, part: slice) -> None:
        np.matmul(rows[part], W, out=XW[part])
        np.matmul(rows[part], rows[: part.stop].T, out=K[part, : part.stop])

    began = time.perf_counter()
    for number in range(len(X) // n):
        rows = held[number % 8 * n : (number % 8 + 1) * n]
        cores.each(lambda part, rows=rows: before(rows, part), n)
        cores.each(lambda part, rows=rows: np.matmul(rows[:, part].T, G, out=change[part]), WIDTH)
    return time.perf_counter() - began


def against_keras(n_rows: int, rounds: int) -> None:
    """An epoch in memory, ours, Keras' and the products alone, in turns."""
    from featcache.backbones.import_keras import import_keras

    X, y = rows_of(n_rows)
    keras = import_keras()
    layers = [keras.layers.Dense(HIDDEN, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(CLASSES, "softmax")]
    model = keras.Sequential([keras.Input((WIDTH,)), *layers])
    model.compile(keras.optimizers.SGD(1e-4), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(X[: 100 * BATCH], y[: 100 * BATCH], batch_size=BATCH, verbose=0)
    source = InMemory(X, y, weights=np.ones(n_rows, np.float32), X_val=X[:0], y_val=y[:0])
    times: dict[str, list[float]] = {"block": [], "products": [], "keras": []}
    settings = config()
    epoch_s(
        training_on(InMemory(X[:2000], y[:2000], weights=np.ones(2000, np.float32), X_val=X[:0], y_val=y[:0]), settings)
    )
    with training_on(source, settings) as training:
        for _ in range(rounds):
            times["block"].append(epoch_s(training))
            times["products"].append(products_s(X, training))
            began = time.perf_counter()
            model.fit(X, y, batch_size=BATCH, epochs=1, verbose=0)
            times["keras"].append(time.perf_counter() - began)
    told(f"{n_rows} rows of {WIDTH}, {HIDDEN} units, batch {BATCH}, an epoch", times)


def told(what: str, times: dict[str, list[float]]) -> None:
    """Print medians, and how many times the first they are."""
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    first = next(iter(medians.values()))
    print(f"{what}: " + ", ".join(f"{name} {s:.2f} s ({s / first:.2f} times)" for name, s in medians.items()))


def streamed(folder: Path, n_rows: int, rounds: int) -> None:
    """An epoch from the store against the same rows in memory, in turns; and the peak of memory of `train_head`."""
    X, y = rows_of(n_rows)
    cache = open_cache(cache_of(folder, X, {"train": n_rows - 20, "val": 10, "test": 10}, CLASSES))
    n_train = n_rows - 20
    weights, y_val = np.ones(n_train, np.float32), cache.labels("val")
    held = InMemory(X[:n_train], y[:n_train], weights=weights, X_val=X[:0], y_val=y[:0])
    store = Streamed(cache, cache.labels("train"), weights=weights, y_val=y_val)
    settings = config()
    times: dict[str, list[float]] = {"in memory": [], "streamed": []}
    with training_on(held, settings) as one, training_on(store, settings) as other:
        for _ in range(rounds):
            times["in memory"].append(epoch_s(one))
            times["streamed"].append(epoch_s(other))
    told(f"{n_train} rows, an epoch", times)
    del X, held, one
    command = [sys.executable, __file__, "--memory-of", str(cache.folder)]
    peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    print(f"{n_train} rows, {n_train * WIDTH * 4 / 1e9:.1f} GB of features: peak memory {float(peak):.0f} MB")


def logistic(n_rows: int) -> None:
    """Seconds to one loss: the block solver's epochs, and scikit-learn's solvers."""
    from sklearn.linear_model import LogisticRegression

    X, y = rows_of(n_rows)
    C = 1.0
    l2 = 1 / (2 * C * n_rows)  # of the mean loss, as scikit-learn's C is of the sum

    def objective(W: NDArray[Any], b: NDArray[Any]) -> float:
        total = 0.0
        for start in range(0, n_rows, 20_000):
            logits = X[start : start + 20_000] @ W.astype(np.float32) + b
            shifted = logits - logits.max(axis=1, keepdims=True)
            rows = np.arange(len(logits))
            total += float((np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, y[start : start + 20_000]]).sum())
        return total / n_rows + l2 * float((W**2).sum())

    mean = X[:20_000].mean(axis=0, dtype=np.float64)
    scale = float(16 / np.sqrt(((X[:20_000] - mean.astype(np.float32)) ** 2).sum(axis=1).mean()))
    settings = HeadConfig(
        (), 0.0, lr=0.2, batch=256, momentum=0.9, epochs=12, schedule="cosine", l2=l2 * scale**2, scale="norm",
        class_weights="none",
    )  # fmt: skip
    source = InMemory(X, y, weights=np.ones(n_rows, np.float32), X_val=X[:0], y_val=y[:0])
    (W0, b0), *rest = random.initial_weights(settings, WIDTH, n_classes=CLASSES)
    first = block.start(W0, Stack(b0, rest, settings))
    began = time.perf_counter()
    with block.Training(source, first, scale=scale, mean=mean) as training:
        for epoch in range(settings.epochs):
            epoch_s(training)
            seconds = time.perf_counter() - began
            state = training.copy()
            W = state.W * scale
            loss = objective(W, state.stack.bias - (mean @ W).astype(W.dtype))
            print(f"block, {epoch + 1} epochs: {seconds:.1f} s, loss {loss:.5f}")
            began = time.perf_counter() - seconds  # the look at the loss is not counted
    for solver, iterations in (("lbfgs", 20), ("lbfgs", 40)):
        began = time.perf_counter()
        with warnings.catch_warnings(action="ignore"):  # that it has not converged
            model = LogisticRegression(C=C, solver=solver, max_iter=iterations, tol=1e-6).fit(X, y)
        seconds, loss = time.perf_counter() - began, objective(model.coef_.T, model.intercept_)
        print(f"scikit-learn {solver}, {model.n_iter_[0]} iterations: {seconds:.1f} s, loss {loss:.5f}")


if __name__ == "__main__":
    main()
