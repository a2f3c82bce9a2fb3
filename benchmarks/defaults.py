"""The default head against logistic regression, and against itself with one default changed, cross-validated.

python benchmarks/defaults.py PROJECT[:CACHE] [PROJECT[:CACHE] ...] [--folds 5] [--repeats 2] [--epochs 60]

Each project has a cache of features with several views an image. Folds are by group and class; heads are trained on all
views of their images, and judged on plain views. The numbers are balanced accuracies in percent, and mean losses.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import print_machine
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featcache as fc
from featcache.heads.classical import classical_head

SPLITS = ("train", "val", "test")


def variants(epochs: int) -> dict[str, Any]:
    """What is compared, by name: the default, and one change at a time."""
    return {
        "default": fc.HeadClassifier(epochs=epochs),
        "not centred": fc.HeadClassifier(epochs=epochs, scale="norm"),
        "each feature scaled": make_pipeline(StandardScaler(), fc.HeadClassifier(epochs=epochs)),
        "no penalty": fc.HeadClassifier(epochs=epochs, l2=0.0),
        "as before": fc.HeadClassifier(epochs=epochs, scale="norm", l2=0.0, lr=0.001),
        "logistic regression": classical_head("logreg"),
    }


def main() -> None:
    """Print a line a project and variant, and the means over projects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("projects", nargs="+")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    asked = parser.parse_args()
    print_machine()
    found: dict[str, list[tuple[float, float]]] = {}
    for place in asked.projects:
        cache = opened(place)
        for name, estimator in variants(asked.epochs).items():
            measured = judged(cache, estimator, asked.folds, asked.repeats)
            found.setdefault(name, []).append(measured)
            print(f"{cache.name}: {name}: {measured[0]:.1f} %, loss {measured[1]:.3f}", flush=True)
    for name, values in found.items():
        accuracy, loss = np.mean(values, axis=0)
        print(f"mean of {len(values)}: {name}: {accuracy:.1f} %, loss {loss:.3f}")


def opened(place: str) -> fc.Cache:
    """The cache of a project whose name begins as said; its first one where nothing is said."""
    folder, _, name = place.partition(":")
    caches = sorted(one for one in (Path(folder) / "cache").iterdir() if (one / "manifest.json").is_file())
    return fc.open_cache(next(one for one in caches if one.name.startswith(name)))


def judged(cache: fc.Cache, estimator: Any, folds: int, repeats: int) -> tuple[float, float]:
    """Balanced accuracy, percent, and mean cross-entropy of the plain views, each judged without its group."""
    numbers = np.sort(np.concatenate([cache.numbers(split) for split in SPLITS]))
    X = cache.features[numbers].reshape(len(numbers), -1)
    y, lines = cache.labels()[numbers], cache.rows.iloc[numbers]
    groups, is_plain = lines["group"].to_numpy(), (lines["view"] == 0).to_numpy()
    plain = np.flatnonzero(is_plain)
    measured = []
    for repeat in range(repeats):
        found = np.zeros((len(y), len(cache.classes)))
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=repeat)
        for train, test in splitter.split(plain, y[plain], groups[plain]):
            rows = np.flatnonzero(np.isin(groups, groups[plain[train]]))
            estimator.fit(X[rows], y[rows])
            shares = estimator.predict_proba(X[plain[test]]).astype(np.float64)
            found[plain[test]] = shares / shares.sum(axis=1, keepdims=True)
        accuracy = balanced_accuracy_score(y[plain], found[plain].argmax(axis=1))
        measured.append((100 * accuracy, log_loss(y[plain], found[plain], labels=range(len(cache.classes)))))
    accuracy, loss = np.mean(measured, axis=0)
    return float(accuracy), float(loss)


if __name__ == "__main__":
    main()
