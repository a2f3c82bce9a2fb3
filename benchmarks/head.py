"""Heads: an epoch in Gram space against its floor and against `keras.Model.fit`; the Gram pass against a bare product.

python benchmarks/head.py [--rows 4394] [--val-rows 440] [--features 25088 100352] [--epochs 12]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from common import best_of, cache_of, print_machine
from numpy.typing import NDArray

from featcache.heads import gram, initializers as random, products
from featcache.heads.config import HeadConfig
from featcache.heads.stack import Stack
from featcache.store.cache import open_cache

HIDDEN, BATCH, CLASSES = 256, 16, 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4394)
    parser.add_argument("--val-rows", type=int, default=440)
    parser.add_argument("--features", type=int, nargs="+", default=[25_088, 100_352])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--part", nargs=2, metavar=("ours|keras", "FILE"), help="one side of the comparison of memory")
    asked = parser.parse_args()
    if asked.part:
        one_side(asked.part[0], Path(asked.part[1]), asked.rows, asked.val_rows)
        return
    print_machine()
    epoch = epochs_of(asked.rows, asked.val_rows, asked.epochs)
    for width in asked.features:
        with tempfile.TemporaryDirectory() as folder:
            of_width(Path(folder), asked.rows, asked.val_rows, width, epoch)


def epochs_of(n_rows: int, n_val: int, epochs: int) -> float:
    """An epoch without and with validation, and the product that it cannot do without. Returns seconds of
    SGD without validation.
    """
    generator = np.random.default_rng(0)
    X = np.maximum(generator.standard_normal((n_rows + n_val, 1024), dtype=np.float32), 0) / 20
    y = generator.integers(0, CLASSES, n_rows + n_val)
    K, K_val = X[:n_rows] @ X[:n_rows].T, X[n_rows:] @ X[:n_rows].T
    A, out = generator.standard_normal((n_rows, HIDDEN), dtype=np.float32), np.empty((n_rows, HIDDEN), np.float32)
    floor = best_of(7, lambda: np.dot(K, A, out=out))
    print(f"floor: the product K A, {2 * n_rows * n_rows * HIDDEN / floor / 1e9:.0f} GFLOP/s: {1000 * floor:.1f} ms")
    plain = 0.0
    for name, extra in (("sgd", {}), ("sgd with l2", {"l2": 1e-4}), ("nesterov", {"momentum": 0.9, "nesterov": True})):
        for m in (0, n_val):
            config = HeadConfig((HIDDEN,), lr=1e-3, batch=BATCH, epochs=epochs, scale="none", **extra)  # type: ignore[arg-type]
            (W0, b0), *rest = random.initial_weights(config, X.shape[1], n_classes=CLASSES)
            P0 = X @ W0
            problem = gram.GramProblem(
                K, P0[:n_rows], y[:n_rows], np.ones(n_rows, np.float32), K_val[:m], P0[n_rows:][:m], y[n_rows:][:m]
            )
            state = gram.train(problem, gram.start(problem, Stack(b0, rest, config)))
            seconds = min(entry.seconds for entry in state.history)
            plain = seconds if name == "sgd" and not m else plain
            print(
                f"{name}, an epoch, {m} validation rows: {1000 * seconds:.1f} ms, {seconds / floor:.2f} times the floor"
            )
    return plain


def of_width(folder: Path, n_rows: int, n_val: int, width: int, epoch: float) -> None:
    """The Gram pass over a store against a bare product, and Keras on the same rows in memory, for D features."""
    generator = np.random.default_rng(1)
    features = np.empty((n_rows + n_val + 1, 1, 1, width), np.float32)
    for rows in np.array_split(features, 16):
        rows[:] = np.maximum(generator.standard_normal(rows.shape, dtype=np.float32) - 0.58, 0)
    path = cache_of(folder, features, {"train": n_rows, "val": n_val, "test": 1}, CLASSES)
    bare = best_of(2, partial(product, features[:n_rows].reshape(n_rows, width)))
    cache = open_cache(path)
    train = cache.numbers("train")
    seconds = best_of(2, lambda: products.inner(cache.features, train, right=train, dtype="float32"))
    print(f"D = {width}: Gram pass from the store {seconds:.1f} s, {seconds / bare:.2f} times X X^T in memory")
    del features
    sides = {side: run_side(side, path, n_rows, n_val) for side in ("ours", "keras")}
    (_, ours_mb), (keras_epoch, keras_mb) = sides["ours"], sides["keras"]
    print(f"D = {width}: keras.Model.fit {1000 * keras_epoch:.0f} ms an epoch, {keras_epoch / epoch:.0f} times ours")
    print(f"D = {width}: peak memory ours {ours_mb:.0f} MB, Keras {keras_mb:.0f} MB, {ours_mb / keras_mb:.2f} times")


def product(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """X X^T, of which BLAS computes one half."""
    return np.asarray(X @ X.T)


def run_side(side: str, path: Path, n_rows: int, n_val: int) -> tuple[float, float]:
    """Seconds an epoch and peak resident MB of one side, in a process of its own."""
    command = [sys.executable, __file__, "--rows", str(n_rows), "--val-rows", str(n_val), "--part", side, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def one_side(side: str, path: Path, n_rows: int, n_val: int) -> None:
    """Train a head on a cache, ours or Keras'; print seconds an epoch and peak memory."""
    cache = open_cache(path)
    config = HeadConfig((HIDDEN,), lr=1e-6, batch=BATCH, epochs=3, scale="none", class_weights="none")
    if side == "ours":
        from featcache.heads.train import train_head

        seconds = min(entry.seconds for entry in train_head(cache, config, solver="gram").history)
    else:
        seconds = keras_fit(*(part.reshape(len(part), -1) for part in cache.arrays("train")), config)
    print(seconds, peak_mb())


def peak_mb() -> float:
    """Peak resident MB of this process. Where /proc is at hand not by getrusage, which counts the parent's too."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def keras_fit(X: NDArray[np.float32], y: NDArray[np.int64], config: HeadConfig) -> float:
    """Seconds of an epoch of keras.Model.fit on arrays in memory, without validation; the first one warms up."""
    from featcache.backbones.import_keras import import_keras

    keras = import_keras()
    layers = [keras.layers.Dense(HIDDEN, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(CLASSES, "softmax")]
    model = keras.Sequential([keras.Input((X.shape[1],)), *layers])
    model.compile(keras.optimizers.SGD(config.lr), "sparse_categorical_crossentropy", metrics=["accuracy"])
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        model.fit(X, y.ravel(), batch_size=config.batch, epochs=1, verbose=0)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
