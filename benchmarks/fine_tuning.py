"""A fine-tuned network beside its cached head on real images, over several splits: rows of docs/explanation/results.md.

    python benchmarks/fine_tuning.py IMAGES WEIGHTS [--model mobilenetv2] [--splits 3] [--epochs 10] [--blocks 3]

IMAGES is what `featcache init` takes, WEIGHTS an ImageNet weights file. For each split: features of every planned view,
a head with the default settings, and the network fine-tuned from the same weights with its recipe. The difference is of
test images, each once for every split that has it in test; its interval is over images drawn with replacement.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featcache.backbones.spec import NetworkSpec
from featcache.core.project import find_project
from featcache.datasets._init import init
from featcache.datasets.options import InitOptions
from featcache.extraction._extract import extract
from featcache.heads._fit_head import fit_head
from featcache.heads.config import HeadConfig
from featcache.networks._fit_scratch import fit_scratch
from featcache.networks.config import ScratchOptions, from_recipe
from featcache.store.cache import open_cache
from featcache.training.runs import PREDICTIONS_FILE, Run

_RESAMPLES = 5000


def main() -> None:
    """Print a line a split and run, then the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--model", default="mobilenetv2")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--views", type=int, default=2, help="rows an image and epoch of fine-tuning, drawn anew in each"
    )
    parser.add_argument("--blocks", type=int, default=3)
    args = parser.parse_args()
    tested = []
    for split in range(args.splits):
        with tempfile.TemporaryDirectory() as folder:
            tested.append(one_split(args, split, Path(folder)))
    both = pd.concat(tested)
    by_image = both.groupby("image_id")[["head", "tuned"]].sum()
    counts = both.groupby("image_id").size()
    draws = np.random.default_rng(0).integers(0, len(counts), (_RESAMPLES, len(counts)))
    n = counts.to_numpy()[draws].sum(axis=1)
    for name, hits in (("head", by_image["head"]), ("fine-tuned", by_image["tuned"])):
        say(f"{name}, all splits", hits.sum() / counts.sum(), hits.to_numpy()[draws].sum(axis=1) / n)
    difference = by_image["tuned"] - by_image["head"]
    say("fine-tuned minus head", difference.sum() / counts.sum(), difference.to_numpy()[draws].sum(axis=1) / n)


def say(name: str, value: float, drawn: Any) -> None:
    """Percent, with 95 %."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    print(f"{name}: {100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})", flush=True)


def one_split(args: Any, split: int, folder: Path) -> pd.DataFrame:
    """Which plain test images each of the two got right: image_id, head, tuned."""
    init(args.images, folder, options=InitOptions(dataset={"split_seed": split}))
    project = find_project(folder)
    spec = NetworkSpec(args.model, weights=str(args.weights))
    (done,) = extract(project, [spec])
    head = fit_head(open_cache(done.path), project.results_folder, config=HeadConfig()).run
    config = from_recipe("fine-tune", epochs=args.epochs, train_blocks=args.blocks)
    tuned = fit_scratch(project, spec, config=config, options=ScratchOptions(views={"train": args.views})).run
    for name, run in (("head", head), ("fine-tuned", tuned)):
        test = run.metrics["test"]
        low, high = test["intervals"]["accuracy"]
        measured = f"{100 * test['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        balanced = f"balanced {100 * test['balanced_accuracy']:.1f} %"
        print(f"split {split}, {name}: test {measured}, {balanced}, {run.metrics['seconds']:.0f} s", flush=True)
    return right(head, "head").merge(right(tuned, "tuned"), on="image_id")


def right(run: Run, name: str) -> pd.DataFrame:
    """Whether each plain test image was named rightly."""
    lines = pd.read_csv(run.folder / PREDICTIONS_FILE)
    lines = lines[(lines["split"] == "test") & (lines["view"] == 0)]
    return pd.DataFrame({"image_id": lines["image_id"], name: (lines["predicted"] == lines["label"]).astype(int)})


if __name__ == "__main__":
    main()
