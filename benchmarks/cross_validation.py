"""Cross-validation of the default head on real smears, against scikit-learn's cross_val_score over keras.Model.fit.

python benchmarks/cross_validation.py --images FOLDER --weights FILE [--project FOLDER] [--keras-epochs 3]

Keras trains a few epochs of one fold; its time is extrapolated to all epochs, folds and repeats.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import print_machine
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score

import featcache as fc

FOLDS, REPEATS, EPOCHS = 5, 10, 100


class KerasHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The default head, by keras.Model.fit."""

    def __init__(self, epochs: int = EPOCHS) -> None:
        self.epochs = epochs

    def fit(self, X: Any, y: Any) -> KerasHead:
        """Train it."""
        import keras

        self.classes_, numbers = np.unique(y, return_inverse=True)
        dense, dropout = keras.layers.Dense, keras.layers.Dropout
        self.model_ = keras.Sequential([
            dense(256, activation="relu"), dropout(0.5), dense(len(self.classes_), activation="softmax")
        ])  # fmt: skip
        self.model_.compile(keras.optimizers.SGD(0.001), "sparse_categorical_crossentropy")
        self.scale_ = np.float32(np.sqrt(25_600 / (X**2).sum(axis=1).mean()))
        self.model_.fit(X * self.scale_, numbers, batch_size=16, epochs=self.epochs, verbose=0)
        return self

    def predict(self, X: Any) -> Any:
        """The likeliest class of each row."""
        return self.classes_[self.model_.predict(X * self.scale_, verbose=0).argmax(axis=1)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--project", type=Path)
    parser.add_argument("--keras-epochs", type=int, default=3)
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        measure(asked.project or Path(folder), asked)


def measure(folder: Path, asked: argparse.Namespace) -> None:
    """Both sides, on one cache."""
    project = fc.init(asked.images, folder, views={"train": 5, "val": 5, "test": 5})
    cache = fc.extract(project, "mobilenetv2", weights=str(asked.weights))
    print(f"{len(cache.features)} rows of {cache.features.shape[1:]}")
    seconds = {}
    for head in ("dense", "logreg"):
        start = time.perf_counter()
        run = fc.cross_validate(cache, head=head, folds=FOLDS, repeats=REPEATS, again=True)
        seconds[head] = time.perf_counter() - start
        found = {name: tuple(100 * x for x in of.values()) for name, of in run.metrics["measures"].items()}
        print(
            f"{head}: {run.metrics['trainings']} trainings in {seconds[head]:.1f} s, with the Gram matrix and measures"
        )
        for name in ("accuracy", "balanced_accuracy", "macro_f1"):
            print(f"  {name}: {found[name][0]:.1f} % ({found[name][1]:.1f} to {found[name][2]:.1f})")
    X, y, groups = cache_arrays(cache)
    fold = next(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(X, y, groups))
    start = time.perf_counter()
    cross_val_score(KerasHead(1), X, y, groups=groups, cv=[fold])  # what is compiled is compiled
    one = time.perf_counter() - start
    start = time.perf_counter()
    cross_val_score(KerasHead(1 + asked.keras_epochs), X, y, groups=groups, cv=[fold])
    epoch = (time.perf_counter() - start - one) / asked.keras_epochs
    whole = FOLDS * REPEATS * EPOCHS * epoch
    print(
        f"keras.Model.fit: {epoch:.2f} s an epoch of a fold, so {whole / 3600:.1f} h, "
        f"{whole / seconds['dense']:.0f} times as long"
    )


def cache_arrays(cache: fc.Cache) -> tuple[Any, Any, Any]:
    """Features, labels and groups of all rows."""
    parts = [cache.to_sklearn(split) for split in ("train", "val", "test")]
    X, y, groups = (np.concatenate(each) for each in zip(*parts, strict=True))
    return X, y, groups


if __name__ == "__main__":
    main()
