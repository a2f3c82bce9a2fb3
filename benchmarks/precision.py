"""What bfloat16 costs a head: features in bfloat16, kept as float16, against float32 ones of the same cells.

python benchmarks/precision.py --data ../shared/data/bccd --weights ../shared/weights [--into FOLDER]
                               [--models NAME ...] [--heads NAME ...]

For each network, both caches of the same views; heads cross-validated in the same 10 splits (5 folds, 2 repeats, by
group). Prints both accuracies, and their difference with its interval over groups. Finished caches and runs in --into
are used again.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import print_machine

import featcache as fc
from featcache.core.progress import SILENT

WEIGHTS = {
    "vgg16": "vgg16_imagenet_notop.weights.h5",
    "resnet50": "resnet50_pruned_notop.h5",
    "densenet121": "densenet121_imagenet_notop.weights.h5",
    "mobilenetv2": "mobilenet_v2_1.0_224_notop.h5",
}
VIEWS = 4


def run_of(project: fc.Project, model: str, *, weights: str, precision: str, head: str) -> fc.Run:
    """A cross-validation on the features of a network in a precision."""
    cache = fc.extract(
        project, model, weights=weights, precision=precision, views={"train": VIEWS}, offline=True, progress=SILENT
    )
    return fc.cross_validate(cache, head=head, folds=5, repeats=2, progress=SILENT)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--into", type=Path, default=Path(tempfile.gettempdir()) / "featcache-precision")
    parser.add_argument("--models", nargs="+", default=list(WEIGHTS), choices=WEIGHTS)
    parser.add_argument("--heads", nargs="+", default=["logreg", "dense"])
    asked = parser.parse_args()
    print_machine()
    project = fc.init(asked.data, asked.into, progress=SILENT)
    print("| network | head | float32, % | bfloat16, % | difference, points |\n|---|---|---|---|---|", flush=True)
    for model in asked.models:
        for head in asked.heads:
            exact, low = (
                run_of(project, model, weights=str(asked.weights / WEIGHTS[model]), precision=precision, head=head)
                for precision in ("float32", "bfloat16")
            )
            means = [100 * run.metrics["measures"]["accuracy"]["mean"] for run in (exact, low)]
            off = 100 * low.compare(exact).set_index("measure").loc["accuracy"]
            shown = f"{off['difference']:+.2f} ({off['low']:+.2f} to {off['high']:+.2f})"
            print(f"| {model} | {head} | {means[0]:.1f} | {means[1]:.1f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
