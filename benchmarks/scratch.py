"""Training of whole networks against a bare keras.Model.fit on arrays in memory: images a second, and their ratio.

    python benchmarks/scratch.py [--models vgg16 mobilenetv2] [--size 96] [--batch 16] [--rows 160] [--rounds 5]

In each round one epoch of each, in turn: keras.Model.fit on preprocessed float32 arrays, featcache on rendered views,
featcache on views drawn anew. Same network, optimizer, batch and precision.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import load_network
from featcache.backbones.preprocess import preprocess
from featcache.backbones.spec import NetworkSpec
from featcache.core.machine import usable_cores
from featcache.core.recipe import Augmentation
from featcache.networks import classifier
from featcache.networks.config import ScratchConfig
from featcache.networks.feed import Feed
from featcache.networks.training import Training
from featcache.networks.views import Live, Views

N_CLASSES = 4


def main() -> None:
    """Print one block a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vgg16", "mobilenetv2"])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    args = parser.parse_args()
    keras = import_keras()
    print(f"{platform.machine()}, {usable_cores()} cores, Keras {keras.__version__} on {keras.backend.backend()}")
    config = ScratchConfig(
        lr=0.01, momentum=0.9, batch=args.batch, epochs=10**6, val_every=10**6, precision=args.precision
    )
    for model in args.models:
        spec = NetworkSpec(model, weights="random", input_size_px=args.size, precision=args.precision)
        measure(spec, made_views(args.rows, args.size), config, args.rounds)


def made_views(n: int, side: int) -> Views:
    """Rows of noise, two views an image."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    ids = tuple(str(row // 2) for row in range(n))
    return Views(pixels, rng.integers(0, N_CLASSES, n), ids, tuple(row % 2 for row in range(n)))


def measure(spec: NetworkSpec, views: Views, config: ScratchConfig, rounds: int) -> None:
    """Compare the three on one network."""
    with ExitStack() as stack:
        ways: dict[str, Callable[[], object]] = {"keras.Model.fit": bare(spec, views, config)}
        for name, augment in (("planned views", "planned"), ("live views", "live")):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            live = Live(views, Augmentation()) if augment == "live" else None
            feed = stack.enter_context(Feed(views, N_CLASSES, config=config, live=live))
            made = classifier.build(load_network(spec), N_CLASSES, config=config)
            training = Training(made, feed, views, config, "", folder)
            training._compile(0)
            ways[name] = lambda training=training: training.epoch(lambda: None)
        for run in ways.values():
            run()  # compiles
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                rates[name].append(len(views) / (time.perf_counter() - started))
    print(f"{spec.model}, {spec.input_size_px} px, batch {config.batch}, {config.precision}, {rounds} epochs each")
    for name, found in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(found, rates["keras.Model.fit"], strict=True)]
        within = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {name}: {median(found):.1f} images/s, {median(ratios):.2f} of fit's ({within})", flush=True)


def bare(spec: NetworkSpec, views: Views, config: ScratchConfig) -> Callable[[], Any]:
    """One epoch of keras.Model.fit, as its documentation shows it."""
    keras = import_keras()
    network = load_network(spec)
    base = network.model
    base.trainable = True
    x = keras.layers.GlobalAveragePooling2D()(base.outputs[0])
    model = keras.Model(base.inputs, keras.layers.Dense(N_CLASSES, dtype="float32")(x))
    model.compile(
        keras.optimizers.SGD(config.lr, momentum=config.momentum),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile="auto" if keras.backend.backend() == "jax" else False,
    )
    X = preprocess(views.pixels, network.cuts[0].space.preprocessing)
    Y = np.eye(N_CLASSES, dtype=np.float32)[views.y]
    return lambda: model.fit(X, Y, batch_size=config.batch, epochs=1, verbose=0)


if __name__ == "__main__":
    main()
