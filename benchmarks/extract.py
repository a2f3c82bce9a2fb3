"""The engine that featcache chooses against keras.Model.predict, and whole extractions against the engine.

python benchmarks/extract.py [--model vgg16 ...] [--weights FOLDER] [--rounds 7] [--seconds 2] [--whole-s 20]

First on arrays in memory, side by side in one run. Then from JPEG files (640x480) through augmented views into a
finished cache, loading the network not counted, against the engine on pixels in memory just before and after; and the
cache verified.

Keras gets pixels that are preprocessed already, and is measured with its default of 32 rows at a time and with the best
of 8, 16 and 32; the engine gets bytes. The two take turns, so that what else the machine does hits both; the ratio is
the median over the rounds, with the lowest and the highest. Where the processor has bfloat16, the engine is measured
in it as well, in the same turns.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from common import print_machine
from numpy.typing import NDArray

from featcache.backbones.engines.choose import ENGINES, open_engine, quick_precision
from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import Network, load_network, specs_of
from featcache.backbones.preprocess import preprocess
from featcache.backbones.spec import NetworkSpec
from featcache.core.project import Project
from featcache.core.recipe import Precision
from featcache.datasets._init import init
from featcache.datasets.options import InitOptions
from featcache.extraction._extract import extract
from featcache.extraction._recompute import verify_cache
from featcache.extraction.options import ExtractOptions
from featcache.synthetic.drawing import write_cells

SIZE_PX, VIEWS = 224, 5
MODELS = {
    "vgg16": "vgg16*.h5",
    "xception": "xception*.h5",
    "resnet50": "resnet50*.h5",
    "densenet121": "densenet121*.h5",
    "mobilenetv2": "mobilenet_v2*.h5",
    "efficientnet-lite0": "imagenet",
}
"""What is measured, and the pattern of a weights file in --weights; without one the weights are random."""
BATCHES = (8, 16, 32)
TOGETHER = ("mobilenetv2", "mobilenet", "efficientnet-lite0")
"""Networks that one pass computes together; small ones, so that what they share is seen."""


def weights_of(model: str, folder: Path | None) -> str:
    """The weights to measure with."""
    pattern = MODELS.get(model, "random")
    if "*" not in pattern:
        return pattern
    found = sorted(folder.glob(pattern)) if folder else []
    return str(found[0]) if found else "random"


def rate(compute: Callable[[], object], n_rows: int) -> float:
    """Rows a second."""
    start = time.perf_counter()
    compute()
    return n_rows / (time.perf_counter() - start)


def quickest_batch(network: Network, inputs: NDArray[np.float32]) -> int:
    """Keras' best rows at a time."""
    rates = {}
    for batch in BATCHES:
        network.model.predict(inputs[:batch], batch_size=batch, verbose=0)
        rates[batch] = max(rate(lambda b=batch: predict(network, inputs, b), len(inputs)) for _ in range(2))
    return max(rates, key=lambda batch: rates[batch])


def predict(network: Network, inputs: NDArray[np.float32], batch: int) -> object:
    """Keras' own way."""
    return network.model.predict(inputs, batch_size=batch, verbose=0)


def measure(model: str, asked: argparse.Namespace) -> None:
    """One line of the table."""
    weights = weights_of(model, asked.weights)
    network = load_network(NetworkSpec(model, weights, input_size_px=SIZE_PX))
    engine = open_engine(network, asked.engine)
    n_rows = 32 * max(1, round((engine.images_per_s or 32) * asked.seconds / 64))
    pixels = np.random.default_rng(0).integers(0, 256, (n_rows, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    inputs = preprocess(pixels, network.cuts[0].space.preprocessing)
    best = quickest_batch(network, inputs)
    sides: dict[str, Callable[[], object]] = {
        "predict(32)": lambda: predict(network, inputs, 32),
        "float32": lambda: engine.features(pixels),
        f"predict({best})": lambda: predict(network, inputs, best),
    }
    if quick_precision(asked.engine) == "bfloat16":
        low = load_network(NetworkSpec(model, weights, input_size_px=SIZE_PX, precision="bfloat16"))
        fast = open_engine(low, asked.engine)
        sides["bfloat16"] = lambda: fast.features(pixels)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(asked.rounds):
        for name, compute in sides.items():
            rates[name].append(rate(compute, n_rows))
    print(f"{model}, weights {Path(weights).name}: {engine.why}")
    print("  images/s: " + ", ".join(f"{name} {max(found):.1f}" for name, found in rates.items()))
    for ours in ("float32", "bfloat16"):
        for name in rates if ours in rates else ():
            if name != ours and not (ours == "float32" and name == "bfloat16"):
                ratios = [a / b for a, b in zip(rates[ours], rates[name], strict=True)]
                middle = statistics.median(ratios)
                print(f"  {ours} to {name}: {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    if "bfloat16" in rates:
        exact, rounded = (one.features(pixels[:32])[0].astype(np.float64) for one in (engine, fast))
        off = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        print(f"  bfloat16 differs from float32 by {off:.2%} of the norm, on pixels of noise", flush=True)


def whole(model: str, asked: argparse.Namespace, precision: Precision = "float32") -> None:
    """From files to a cache, in a folder of its own."""
    weights = weights_of(model, asked.weights)
    with tempfile.TemporaryDirectory() as folder:
        network = NetworkSpec(model, weights, input_size_px=SIZE_PX, precision=precision)
        engine = open_engine(load_network(network), asked.engine)
        n_images = max(20, round((engine.images_per_s or 10) * asked.whole_s / VIEWS))
        project = project_of(Path(folder), n_images)
        options = ExtractOptions(
            engine=asked.engine,
            batch_rows=engine.batch_rows,
            views=dict.fromkeys(("train", "val", "test"), VIEWS),
        )
        pixels = np.random.default_rng(0).integers(0, 256, (64, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        engine.features(pixels)
        before = rate(lambda: engine.features(pixels), len(pixels))
        (cache,) = extract(project, [network], options=options)
        after = rate(lambda: engine.features(pixels), len(pixels))
        verified = rate(lambda: verify_cache(cache.path), cache.rows)
        seconds, bare = cache.pass_s - cache.shares.open, (before + after) / 2
        ratios = (cache.rows / seconds / bare, 1 / (seconds / cache.rows + 1 / verified) / bare)
        print(
            f"{model}, {precision}: {cache.rows} rows of {n_images} JPEG files, {cache.rows / seconds:.1f} images/s, "
            f"{ratios[0]:.2f} of the engine's {bare:.1f}; verified, {ratios[1]:.2f}"
        )
        shares = ", ".join(f"{stage} {of:.1f} s" for stage, of in cache.shares.seconds.items())
        print(f"  {shares}, of {seconds:.1f} s; the bottleneck: {cache.bottleneck}", flush=True)


def passes(asked: argparse.Namespace) -> None:
    """Three networks in one pass over the images, and in three; networks are opened before, by the engine's memory."""
    with tempfile.TemporaryDirectory() as folder:
        project = project_of(Path(folder), asked.pass_images)
        options = ExtractOptions(engine=asked.engine, batch_rows=4)

        def seconds(models: Sequence[str]) -> float:
            done = extract(project, specs_of(models, weights="random", input_size_px=SIZE_PX), options=options)
            for cache in done:
                shutil.rmtree(cache.path)
            return done[0].pass_s - done[0].shares.open

        one, three = [], []
        for _ in range(max(asked.rounds // 2, 1)):
            one.append(seconds(TOGETHER))
            three.append(sum(seconds([model]) for model in TOGETHER))
    ratio = statistics.median(a / b for a, b in zip(one, three, strict=True))
    took = f"one pass {statistics.median(one):.1f} s, three passes {statistics.median(three):.1f} s, {ratio:.2f}"
    print(f"{', '.join(TOGETHER)} over {asked.pass_images} JPEG files: {took}", flush=True)


def project_of(folder: Path, n_images: int) -> Project:
    """A project of JPEG files of 640x480, of four classes."""
    cells = write_cells(folder / "cells", 2, size_px=480)
    for number in range(n_images):
        cell = cv2.imread(str(cells[number % len(cells)]))
        smear = cv2.copyMakeBorder(
            np.roll(cell, (number // 480, number), axis=(0, 1)), 0, 0, 80, 80, cv2.BORDER_REFLECT
        )
        path = folder / "images" / cells[number % len(cells)].parent.name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), smear)
    return init(folder / "images", folder, options=InitOptions()).project


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="may be given several times; all of the table by default")
    parser.add_argument("--weights", type=Path, help="folder of weights files; random weights where it has none")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round, for both sides together, about")
    parser.add_argument("--whole-s", type=float, default=20.0, help="of a whole extraction, about; 0 for none")
    parser.add_argument("--pass-images", type=int, default=60, help="of three networks in one pass; 0 for none")
    asked = parser.parse_args()
    print_machine()
    import_keras()
    for model in asked.model or MODELS:
        if asked.rounds:
            measure(model, asked)
        if asked.whole_s:
            whole(model, asked)
            if quick_precision(asked.engine) == "bfloat16":
                whole(model, asked, "bfloat16")
    if asked.pass_images:
        passes(asked)


if __name__ == "__main__":
    main()
