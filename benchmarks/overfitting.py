"""Which mistakes give a network that is nearly perfect in training and no better than chance on test?

A small network is trained from random weights on generated leukocytes, rightly and with one mistake at a time; the
rows are those of docs/explanation/results.md.

    python benchmarks/overfitting.py [--seeds 3] [--epochs 20]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbones.import_keras import import_keras
from featcache.backbones.spec import NetworkSpec
from featcache.core.project import Project, find_project
from featcache.datasets._init import init
from featcache.datasets.options import InitOptions
from featcache.networks._fit_scratch import MODEL_FILE, fit_scratch
from featcache.networks.config import ScratchConfig, ScratchOptions, from_recipe
from featcache.store.catalog import find_cache

SIDE = 48
PER_CLASS = 60
FEW = 3
"""Originals a class of the training that has too few of them; its views are so many that the rows are as many."""


@dataclass
class Split:
    """Rows of one split: pixels (n, s, s, 3), class numbers and groups."""

    pixels: Any
    y: Any
    groups: Any


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--study-epochs", type=int, default=100, help="of the study's own recipe; 0 leaves it out")
    args = parser.parse_args()
    right = from_recipe("modern", lr=0.005, epochs=args.epochs, warmup_epochs=2, augment="planned")
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        many, few = (made(Path(folder) / name) for name in ("many", "few"))
        for seed in range(args.seeds):
            for name, measured in measures(many, few, replace(right, seed=seed)).items():
                found.setdefault(name, []).append(measured)
                print(
                    f"seed {seed}: {name}: train {measured[0]:.3f}, val {measured[1]:.3f}, test {measured[2]:.3f}",
                    flush=True,
                )
        if args.study_epochs:
            study = from_recipe("study", epochs=args.study_epochs)
            found["the study's recipe, as written"] = [accuracies(many, study)[0]]
    print("\n| what | train, % | validation, % | test, % |\n|---|---|---|---|")
    for name, lines in found.items():
        mean, spread = 100 * np.mean(lines, axis=0), 100 * np.std(lines, axis=0)
        print(f"| {name} | " + " | ".join(f"{m:.0f} ± {s:.0f}" for m, s in zip(mean, spread, strict=True)) + " |")


def made(folder: Path) -> Project:
    """A project of generated leukocytes."""
    folder.mkdir()
    init(None, folder, options=InitOptions(per_class=PER_CLASS))
    return find_project(folder)


def measures(many: Project, few: Project, config: ScratchConfig) -> dict[str, list[float]]:
    """[train, val, test] accuracy of each way to do it."""
    right, model, splits = accuracies(many, config)
    found = {"as it should be": right}
    test = splits["test"]
    found["test pixels scaled to [0, 1] once more"] = [
        *right[:2],
        accuracy(model, replace_pixels(test, test.pixels / 255.0)),
    ]
    found["test labels in another order than the predictions"] = [*right[:2], shuffled(model, test, config.seed)]
    found["batch normalisation in training mode at test, batches of one class"] = [
        *right[:2],
        in_training_mode(model, test),
    ]
    slow = replace(config, batchnorm_momentum=0.999, restore_best=False)
    _, model, splits = accuracies(many, slow)
    by_batch = in_training_mode(model, splits["train"], shuffle=True)
    found["running statistics of momentum 0.999 in a short training"] = [
        by_batch,
        *(accuracy(model, splits[name]) for name in ("val", "test")),
    ]
    found[f"{FEW} originals a class in training, as many rows"] = accuracies(
        few, replace(config, restore_best=False), FEW
    )[0]
    return found


def accuracies(
    project: Project, config: ScratchConfig, originals: int = 0
) -> tuple[list[float], Any, dict[str, Split]]:
    """[train, val, test] accuracy of a run, its model and its rows."""
    n_rows = 4 * 3 * round(0.7 * PER_CLASS)
    options = ScratchOptions(views={"train_rows": n_rows})
    if originals:
        keep_few(project, originals)
    spec = NetworkSpec("resnet20", weights="random", input_size_px=SIDE)
    done = fit_scratch(project, spec, config=config, options=options)
    cache = find_cache(project.cache_folder, done.cache)
    splits = {}
    for name in ("train", "val", "test"):
        pixels, y = cache.arrays(name)
        splits[name] = Split(pixels, y, cache.rows["group"].to_numpy()[cache.numbers(name)])
    model = import_keras().saving.load_model(done.run.folder / MODEL_FILE)
    return [done.run.metrics[name]["accuracy"] for name in splits], model, splits


def keep_few(project: Project, originals: int) -> None:
    """Leave so many training images of each class in dataset.csv."""
    lines = project.dataset_file.read_text(encoding="utf-8").splitlines()
    header = lines[0].split(",")
    label, split = header.index("label"), header.index("split")
    kept, seen = [lines[0]], {}
    for line in lines[1:]:
        fields = line.split(",")
        if fields[split] == "train":
            seen[fields[label]] = seen.get(fields[label], 0) + 1
            if seen[fields[label]] > originals:
                continue
        kept.append(line)
    project.dataset_file.write_text("\n".join(kept) + "\n", encoding="utf-8")


def replace_pixels(split: Split, pixels: Any) -> Split:
    """The same rows with other pixels."""
    return Split(pixels, split.y, split.groups)


def accuracy(model: Any, split: Split) -> float:
    """In inference mode."""
    return float((model.predict(split.pixels.astype(np.float32), verbose=0).argmax(axis=1) == split.y).mean())


def shuffled(model: Any, split: Split, seed: int) -> float:
    """What predictions of a shuffled reader look like beside labels in the order of the folders."""
    predicted = model.predict(split.pixels.astype(np.float32), verbose=0).argmax(axis=1)
    return float((np.random.default_rng(seed).permutation(predicted) == split.y).mean())


def in_training_mode(model: Any, split: Split, shuffle: bool = False) -> float:
    """With the statistics of each batch of 16 instead of the running ones; rows in the order of their classes."""
    rows = np.random.default_rng(0).permutation(len(split.y)) if shuffle else np.argsort(split.y, kind="stable")
    right = 0
    for start in range(0, len(rows), 16):
        some = rows[start : start + 16]
        given = np.asarray(model(split.pixels[some].astype(np.float32), training=True))
        right += int((given.argmax(axis=1) == split.y[some]).sum())
    return right / len(rows)


if __name__ == "__main__":
    main()
