"""Extraction end to end (PNG files, augmented views, a cache) against keras.Model.predict on arrays in memory.

python benchmarks/extract.py [--model efficientnet-lite0] [--per-class 32]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from common import print_machine

from featcache.backbones import registry, weights
from featcache.backbones.preprocess import preprocess
from featcache.pipeline.extract import ExtractOptions, extract
from featcache.pipeline.init import InitOptions, init


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--per-class", type=int, default=32)
    asked = parser.parse_args()
    print_machine()
    backbone = registry.get(asked.model)
    model = weights.load(backbone, "random")
    pixels = np.random.default_rng(0).integers(0, 256, (256, *model.input_shape[1:]), dtype=np.uint8)
    inputs = preprocess(pixels, backbone.preprocessing)
    model.predict(inputs[:32], batch_size=32, verbose=0)
    start = time.perf_counter()
    model.predict(inputs, batch_size=32, verbose=0)
    bare = len(inputs) / (time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        made = init(None, Path(folder), InitOptions(per_class=asked.per_class))
        extract(made.project, asked.model, ExtractOptions(weights="random", views={"train": 1}))  # warm
        done = extract(made.project, asked.model, ExtractOptions(weights="random"))
    print(f"{backbone.name}: keras.Model.predict {bare:.1f} images/s; extract, all included, {done.images_per_s:.1f}")
    print(f"ratio {done.images_per_s / bare:.2f}")


if __name__ == "__main__":
    main()
