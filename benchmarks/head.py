"""An epoch of the Gram solver against keras.Model.fit on arrays in memory, and against the machine's own floor.

python benchmarks/head.py [--rows 4394] [--width 25088] [--epochs 5]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from common import best_of, features_like, print_machine

from featcache.backbones.quiet_keras import import_keras
from featcache.heads import gram, random
from featcache.heads.config import HeadConfig
from featcache.heads.stack import Stack

CLASSES, UNITS, BATCH, VAL_ROWS = 4, 256, 16, 440


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4394)
    parser.add_argument("--width", type=int, default=25_088)
    parser.add_argument("--epochs", type=int, default=5)
    asked = parser.parse_args()
    print_machine()
    X = features_like(asked.rows + VAL_ROWS, (asked.width,))
    y = np.random.default_rng(1).integers(0, CLASSES, len(X))
    config = HeadConfig(epochs=asked.epochs, scale="none", lr=1e-5, decay=0.001, class_weights="none")

    start = time.perf_counter()
    K = X[: asked.rows] @ X[: asked.rows].T
    print(f"Gram matrix            {time.perf_counter() - start:8.2f} s, once")
    layers = random.initial_weights(config, asked.width, CLASSES)
    (W0, b0), *rest = layers
    train, val = X[: asked.rows], X[asked.rows :]
    problem = gram.GramProblem(
        K, train @ W0, y[: asked.rows], np.ones(asked.rows, np.float32), val @ train.T, val @ W0, y[asked.rows :]
    )
    _, history = gram.train(problem, Stack(b0, rest), config)
    ours = statistics.median(entry.seconds for entry in history)

    A = np.zeros((asked.rows, UNITS), np.float32)
    floor = best_of(5, lambda: K @ A)
    keras_epoch = keras_seconds(train, y[: asked.rows], asked.epochs)
    print(f"floor, K A             {1000 * floor:8.1f} ms")
    print(f"Gram solver, epoch     {1000 * ours:8.1f} ms, {VAL_ROWS} validation rows included")
    print(f"keras.Model.fit, epoch {1000 * keras_epoch:8.1f} ms, without validation")
    print(f"Gram solver / floor    {ours / floor:8.2f}")
    print(f"keras / Gram solver    {keras_epoch / ours:8.1f}")


def keras_seconds(X: np.ndarray, y: np.ndarray, epochs: int) -> float:
    """Median seconds of an epoch of the same head through keras.Model.fit; the first epoch compiles and is left out."""
    keras = import_keras()
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input(X.shape[1:]), layers.Dense(UNITS, "relu"), layers.Dropout(0.5), layers.Dense(CLASSES, "softmax")]
    )
    model.compile(keras.optimizers.SGD(1e-5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(X[: 4 * BATCH], y[: 4 * BATCH], batch_size=BATCH, verbose=0)
    seconds = []
    for _ in range(min(epochs, 3)):
        start = time.perf_counter()
        model.fit(X, y, batch_size=BATCH, verbose=0)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
