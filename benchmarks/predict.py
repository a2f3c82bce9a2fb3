"""predict against extract, on the same JPEG crops: images/s of both in turn, in one run.

python benchmarks/predict.py [--weights FILE] [--images 500] [--rounds 5]

Both decode, render and compute every image once; opening the network is not counted. extract writes a cache besides,
predict runs a head.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import cv2
from common import print_machine

import featcache as fc
from featcache.backbones import NetworkSpec
from featcache.core.progress import SILENT
from featcache.extraction._extract import extract
from featcache.extraction.streaming import stream
from featcache.images.inputs import items_of
from featcache.prediction.predictor import Predictor
from featcache.synthetic.drawing import write_cells

MODEL, SIZE_PX = "mobilenetv2", 224


def jpegs(folder: Path, count: int) -> list[Path]:
    """Crops as a slide scanner would give: JPEG files of 240 px."""
    write_cells(folder / "png", -(-count // 4), seed=1)
    files = []
    for number, file in enumerate(sorted((folder / "png").rglob("*.png"))[:count]):
        target = folder / "jpeg" / file.parent.name / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), cv2.imread(str(file)), [cv2.IMWRITE_JPEG_QUALITY, 92])
        files.append(target)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        files = jpegs(folder, asked.images)
        project = fc.init(folder / "jpeg", folder / "p", views={"train": 1}, progress=SILENT)
        cache = fc.extract(project, MODEL, weights=asked.weights, pooling="avg", progress=SILENT)
        run = fc.fit_head(cache, epochs=2, progress=SILENT)
        network = NetworkSpec(MODEL, asked.weights, pooling="avg")
        ratios, rates = [], []
        predictor = Predictor.of(run, weights=None if asked.weights == "random" else asked.weights, progress=SILENT)
        for _ in range(asked.rounds):
            shutil.rmtree(cache.folder)
            (done,) = extract(project, [network])
            extract_s = done.pass_s - done.shares.open
            started = time.perf_counter()
            found = list(
                stream(
                    items_of(files),
                    predictor.engine,
                    rendering=predictor.rendering(),
                    finish=predictor.probabilities_and_distances,
                )
            )
            predict_s = time.perf_counter() - started
            assert all(one.values is not None for one in found)
            rates.append((len(files) / extract_s, len(files) / predict_s))
            ratios.append(extract_s / predict_s)
    extract_rate, predict_rate = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"extract {extract_rate:.1f} images/s, predict {predict_rate:.1f} images/s")
    print(f"predict / extract: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
