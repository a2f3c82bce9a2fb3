"""Extraction of 2,000 and of 20,000 rows: peak memory; and a second extract, which has nothing to do.

python benchmarks/scale.py [--rows 2000 20000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from common import print_machine

FEATCACHE = Path(sys.executable).with_name("featcache")
EXTRACT = ("extract", "--model", "mobilenetv2", "--weights", "random", "--input-size", "32")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs=2, default=(2000, 20000))
    asked = parser.parse_args()
    print_machine()
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for n_rows in asked.rows:
            project = made_project(Path(folder, str(n_rows)), n_rows)
            run(project, "init", "images", "--views", "1")
            seconds, peak_mb = run(project, *EXTRACT)
            peaks.append(peak_mb)
            print(f"{n_rows:6d} rows: {seconds:6.1f} s, peak memory {peak_mb:6.0f} MB")
        start_up = min(run(project, "extract", "--help")[0] for _ in range(3))
        imports = min(run_python("import featcache.extraction._extract") for _ in range(3))
        again = min(run(project, *EXTRACT)[0] for _ in range(3))
        print(f"peak memory, {asked.rows[1]} rows / {asked.rows[0]} rows: {peaks[1] / peaks[0]:.3f}")
        print(
            f"a second extract of {asked.rows[1]} rows: {again:.2f} s; featcache --help alone: {start_up:.2f} s; ",
            end="",
        )
        print(f"with the imports of extract: {imports:.2f} s")


def made_project(folder: Path, n_images: int) -> Path:
    """A folder of small images of noise in four classes."""
    generator = np.random.default_rng(0)
    for number in range(n_images):
        file = folder / "images" / f"class-{number % 4}" / f"{number:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), generator.integers(0, 255, (24, 24, 3), np.uint8))
    return folder


def run(folder: Path, *arguments: str) -> tuple[float, float]:
    """Seconds and peak resident MB of one command."""
    start = time.perf_counter()
    process = subprocess.Popen([FEATCACHE, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, process.stderr and process.stderr.read()
    return time.perf_counter() - start, usage.ru_maxrss / 1e3


def run_python(code: str) -> float:
    """Seconds of a fresh Python that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
