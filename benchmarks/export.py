"""Exported models against their runs: the largest difference in probability, seconds and megabytes of each format.

python benchmarks/export.py [--weights FOLDER] [NETWORK ...]
python benchmarks/export.py --registry [NETWORK ...]

A head is trained on a small generated project, exported in every format, and each model computes all images in its own
runtime, Keras in a process of its own. It is compared with predictions.csv of the run. With --registry every backbone
is taken, at its smallest input with random weights, and compared with the Keras graph.

--weights : folder of weights files, taken for the network whose name theirs begins with; random weights for the others
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import print_machine
from numpy.typing import NDArray

import featcache as fc
from featcache.backbones import NetworkSpec, import_keras, load_network, preprocessed, registry, without_drop_path
from featcache.core.errors import FeatcacheError
from featcache.core.progress import SILENT
from featcache.core.recipe import Augmentation
from featcache.deployment._export import checking_pixels
from featcache.deployment.formats import FORMATS, computed_by, write
from featcache.extraction import Rendering
from featcache.images import items_of
from featcache.synthetic.drawing import write_cells

NETWORKS = (*registry.STUDY, "efficientnet-lite0", "mobilenetv2")
ALONE = """
import sys
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), batch_size=8, verbose=0))
"""


def weights_for(name: str, folder: Path | None) -> str:
    """The file of a network's weights in a folder; else those that come with it, or random ones."""
    found = (
        [file for file in sorted(folder.glob("*.h5")) if file.name.replace("_", "").startswith(name)] if folder else []
    )
    return str(found[0]) if found else "imagenet" if name == "efficientnet-lite0" else "random"


def probabilities(path: Path, format_: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What an exported model gives in its own runtime, eight images at a time."""
    if format_ == "keras":
        given, found = path.with_suffix(".pixels.npy"), path.with_suffix(".found.npy")
        np.save(given, pixels)
        subprocess.run([sys.executable, "-c", ALONE, path, given, found], check=True, capture_output=True)
        return np.asarray(np.load(found))
    compute, _ = FORMATS[format_].read(path)
    return np.concatenate([compute(pixels[start : start + 8])["probabilities"] for start in range(0, len(pixels), 8)])


def of_runs(names: list[str], folder: Path, weights: Path | None) -> Iterator[dict[str, Any]]:
    """A line for each network and format, against predictions.csv."""
    write_cells(folder / "cells", 6, seed=1)
    project = fc.init(folder / "cells", folder, views={"train": 1}, progress=SILENT)
    for name in names:
        source = weights_for(name, weights)
        cache = fc.extract(project, name, weights=source, progress=SILENT)
        run = fc.fit_head(cache, epochs=200, progress=SILENT)
        space = cache.recipe.space
        rendering = Rendering(space.input_size_px, space.resize, Augmentation())
        rows = pd.read_csv(run.folder / "predictions.csv")
        files = [project.images_folder / path for path in rows["path"]]
        pixels = np.concatenate([rendering(item) for item in items_of(files)])
        expected = rows[[f"p_{label}" for label in run.config["classes"]]].to_numpy()
        of_file = None if source in ("imagenet", "random") else source
        for format_, kind in FORMATS.items():
            path = folder / f"{name}{kind.suffix}"
            started = time.perf_counter()
            done = run.export(format=format_, out=path, weights=of_file, progress=SILENT)
            seconds = time.perf_counter() - started
            difference = np.abs(probabilities(path, format_, pixels) - expected).max()
            yield {
                "network": name,
                "weights": "file" if of_file else source,
                "format": format_,
                "difference": f"{difference:.1e}",
                "s": f"{seconds:.1f}",
                "MB": f"{done.bytes / 1e6:.1f}",
            }


def of_registry(names: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """A line for each backbone and format, against the Keras graph."""
    keras = import_keras()
    for name in names:
        network = load_network(NetworkSpec(name, "random", input_size_px=registry.get(name).min_size_px))
        side = network.cuts[0].space.input_size_px
        given = keras.Input((side, side, 3), dtype="uint8", name="pixels")
        base = without_drop_path(keras.Model(network.model.inputs[0], network.model.outputs[0], name="backbone"))
        x = keras.ops.cast(given, "float32")
        features = keras.layers.Flatten()(base(preprocessed(x, network.cuts[0].space.preprocessing)))
        pixels = checking_pixels(side, 4)
        scale = np.linalg.norm(keras.ops.convert_to_numpy(keras.Model(given, features)(pixels)), axis=1).mean()
        kernel = keras.initializers.RandomNormal(stddev=1, seed=1)
        x = keras.layers.Rescaling(1 / max(float(scale), 1e-30))(features)
        model = keras.Model(given, keras.layers.Dense(4, "softmax", kernel_initializer=kernel)(x), name="featcache")
        expected = computed_by(model)(pixels)["probabilities"]
        for format_, kind in FORMATS.items():
            path, started = folder / f"{name}{kind.suffix}", time.perf_counter()
            line = {"network": name, "format": format_}
            try:
                write(format_, model, path=path, description="{}")
                seconds = time.perf_counter() - started
                compute, _ = kind.read(path)
                difference = np.abs(compute(pixels)["probabilities"] - expected).max()
                yield {**line, "difference": f"{difference:.1e}", "s": f"{seconds:.1f}"}
            except FeatcacheError as error:
                yield {**line, "difference": f"{error}", "s": ""}
        keras.backend.clear_session()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--registry", action="store_true")
    parser.add_argument("networks", nargs="*")
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as work:
        if asked.registry:
            by_size = sorted(registry.BACKBONES.values(), key=lambda row: row.parameters)
            lines = of_registry(asked.networks or [row.name for row in by_size], Path(work))
        else:
            lines = of_runs(asked.networks or list(NETWORKS), Path(work), asked.weights)
        for number, line in enumerate(lines):
            if not number:
                print("| " + " | ".join(line) + " |\n|" + "---|" * len(line))
            print("| " + " | ".join(map(str, line.values())) + " |", flush=True)


if __name__ == "__main__":
    main()
