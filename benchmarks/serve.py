"""serve against predict, on the same JPEG crops: images/s of both in turn, the time of a request, and memory.

python benchmarks/serve.py [--weights FILE] [--clients 16] [--images 500] [--rounds 5] [--requests 5000]

Each client sends one image after the other. Clients run on the same cores as the service. Opening the network is not
counted. Memory is that of the service after a round of each image, and after all requests.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from threading import local

import numpy as np
from common import print_machine
from predict import MODEL, jpegs

import featcache as fc
from featcache.core.progress import SILENT
from featcache.extraction.streaming import stream
from featcache.images.inputs import items_of
from featcache.prediction.predictor import Predictor

FEATCACHE = Path(sys.executable).with_name("featcache")


class Clients:
    """So many, each with a connection that it keeps."""

    def __init__(self, address: str, count: int) -> None:
        self._host, self._count = address.removeprefix("http://"), count

    def seconds(self, images: list[bytes]) -> list[float]:
        """Of each request."""
        own = local()
        with ThreadPoolExecutor(self._count) as pool:
            return list(pool.map(lambda image: self._ask(own, image), images))

    def _ask(self, own: local, image: bytes) -> float:
        started = time.perf_counter()
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection(self._host)
        own.connection.request("POST", "/predict", image)
        answer = own.connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        return time.perf_counter() - started


def memory_mb(pid: int) -> float:
    """Resident."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=5000)
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        files = jpegs(folder, asked.images)
        images = [file.read_bytes() for file in files]
        project = fc.init(folder / "jpeg", folder / "p", views={"train": 1}, progress=SILENT)
        cache = fc.extract(project, MODEL, weights=asked.weights, pooling="avg", progress=SILENT)
        run = fc.fit_head(cache, epochs=2, progress=SILENT)
        weights = [] if asked.weights == "random" else ["--weights", asked.weights]
        predictor = Predictor.of(run, weights=weights[-1] if weights else None, progress=SILENT)
        command = [FEATCACHE, "serve", run.name, "--port", "0", "--json", *weights]
        with subprocess.Popen(
            command, cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as service:
            assert service.stdout is not None
            try:
                clients = Clients(json.loads(service.stdout.readline())["address"], asked.clients)
                clients.seconds(images)
                before = memory_mb(service.pid)
                ratios, rates, taken = [], [], []
                for _ in range(asked.rounds):
                    started = time.perf_counter()
                    finish = predictor.probabilities_and_distances
                    rendering = predictor.rendering()
                    list(stream(items_of(files), predictor.engine, rendering=rendering, finish=finish))
                    predict_s = time.perf_counter() - started
                    started = time.perf_counter()
                    taken += clients.seconds(images)
                    serve_s = time.perf_counter() - started
                    rates.append((len(files) / predict_s, len(files) / serve_s))
                    ratios.append(predict_s / serve_s)
                clients.seconds(list(islice(cycle(images), asked.requests)))
                after = memory_mb(service.pid)
            finally:
                service.terminate()
    predict_rate, serve_rate = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"predict {predict_rate:.1f} images/s, serve with {asked.clients} clients {serve_rate:.1f} images/s")
    print(f"serve / predict: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    median, high = 1000 * np.percentile(taken, [50, 95])
    print(f"a request: median {median:.0f} ms, 95th percentile {high:.0f} ms")
    print(f"memory: {before:.0f} MB, after {asked.requests} more requests {after:.0f} MB")


if __name__ == "__main__":
    main()
