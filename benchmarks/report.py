"""How long a report takes, and how large it is: 8 networks, each as a head, from scratch and fine-tuned, 5000 epochs.

python benchmarks/report.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featcache.measures import Judged, evaluate
from featcache.reporting import report
from featcache.training import Epoch, runs

NETWORKS, KINDS, EPOCHS, IMAGES, VIEWS = 8, ("head", "scratch", "fine-tune"), 5000, 40, 11
CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


def make_run(results: Path, network: int, *, kind: str, rng: np.random.Generator) -> None:
    """A run as a training leaves it, of the study's size: 440 test rows, of 40 originals."""
    image = np.repeat(np.arange(IMAGES), VIEWS)
    y = image % len(CLASSES)
    scores = rng.normal(0, 1, (len(y), len(CLASSES))) + 2.5 * np.eye(len(CLASSES))[y]
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    rows = pd.DataFrame(
        {
            "row": np.arange(len(y)),
            "image_id": [f"{number:064x}" for number in image],
            "path": [f"cells/{number}.png" for number in image],
            "label": [CLASSES[number] for number in y],
            "split": "test",
            "group": image.astype(str),
            "view": np.tile(np.arange(VIEWS), IMAGES),
        }
    )
    measured = evaluate(Judged(p, y.astype(np.int64), groups=image), CLASSES)
    fall = np.exp(-np.arange(EPOCHS) / 900)
    noise = rng.normal(0, 0.02, (4, EPOCHS))
    history = [
        Epoch(i + 1, fall[i] + abs(noise[0, i]), 0.9 + noise[1, i], 1.1 * fall[i] + 0.2, 0.85 + noise[3, i], 0.001, 0.1)
        for i in range(EPOCHS)
    ]
    config: dict[str, Any] = {"kind": kind, "backbone": f"network{network}", "classes": list(CLASSES), "dataset": "a"}
    metrics = {"epochs": EPOCHS, "seconds": 500.0, "s_per_epoch": 0.1, "train": measured, "val": measured}
    with runs.new_run(results, f"{kind}-network{network}") as folder:
        runs.write_predictions(folder, rows, probabilities=p, classes=CLASSES)
        runs.write_run(folder, config, metrics={**metrics, "test": measured}, history=history)


def main() -> None:
    """Print the time and the size."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for network in range(NETWORKS):
            for kind in KINDS:
                make_run(Path(folder), network, kind=kind, rng=rng)
        for which in ("first", "second"):
            start, cpu = time.perf_counter(), time.process_time()
            done = report(Path(folder))
            wall, used = time.perf_counter() - start, time.process_time() - cpu
            size = done.html.stat().st_size / 1e6
            print(f"{which} report on {len(done.runs)} runs: {wall:.1f} s ({used:.1f} s of a core), {size:.1f} MB")


if __name__ == "__main__":
    main()
