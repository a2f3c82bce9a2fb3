"""Two single-threaded workers against one, each on a core of its own: local processes (loky), and a Dask cluster.

python benchmarks/cluster.py [--images 600 3000] [--rounds 2] [--cluster local] [--cluster dask]

The rate is that of the rows which the larger extraction has more than the smaller one, so starts do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common import print_machine
from scale import made_project

import featcache as fc
from featcache.core.progress import SILENT

MODEL = {"model": "mobilenetv2", "weights": "random", "pooling": "avg", "engine": "openvino", "batch_rows": 8}
KINDS = ("local", "dask")


def main() -> None:
    """Measure in turn, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, nargs=2, default=(600, 3000))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cluster", action="append", choices=KINDS)
    asked = parser.parse_args()
    print_machine()
    print("\n| cluster | round | one worker, rows/s | two workers, rows/s | two / one |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        projects = [project_of(Path(folder, str(n_images)), n_images) for n_images in asked.images]
        more = asked.images[1] - asked.images[0]
        for kind in asked.cluster or KINDS:
            found = []
            for number in range(1, asked.rounds + 1):
                one, two = (more / seconds_more(kind, workers, projects) for workers in (1, 2))
                found.append(two / one)
                print(f"| {kind} | {number} | {one:.1f} | {two:.1f} | {two / one:.2f} |", flush=True)
            print(f"| {kind} | mean | | | {statistics.mean(found):.2f} |", flush=True)


def project_of(folder: Path, n_images: int) -> fc.Project:
    """Small images of noise, a view of each."""
    made = made_project(folder, n_images)
    return fc.init(made / "images", into=made, views={"train": 1}, progress=SILENT)


def seconds_more(kind: str, workers: int, projects: list[fc.Project]) -> float:
    """By how much the larger extraction takes longer than the smaller one."""
    cores = sorted(os.sched_getaffinity(0))[:workers]
    with cluster_of(kind, cores) as address:
        seconds_of(projects[0], address)  # workers of Dask are there from the first task on, and keep their networks
        few, many = (seconds_of(project, address) for project in projects)
    return many - few


def seconds_of(project: fc.Project, address: str) -> float:
    """Of an extraction from nothing."""
    shutil.rmtree(project.cache_folder, ignore_errors=True)
    began = time.perf_counter()
    fc.extract(project, **MODEL, cluster=address, progress=SILENT)
    return time.perf_counter() - began


@contextmanager
def cluster_of(kind: str, cores: list[int]) -> Iterator[str]:
    """The address of a cluster with a worker on each of some cores; the rest of this process stays where it is."""
    if kind == "local":
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # of which each worker takes its share
        try:
            yield f"local:{len(cores)}"
        finally:
            os.sched_setaffinity(0, before)
        return
    quiet = ("--host", "127.0.0.1", "--no-dashboard")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "scheduler.json"
        stack.enter_context(running("scheduler", *quiet, "--port", "0", "--scheduler-file", str(file)))
        while not (file.is_file() and "address" in file.read_text()):
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"].removeprefix("tcp://")
        for number, core in enumerate(cores):
            asked = ("--nthreads", "1", "--no-nanny", "--name", str(number), "--local-directory", str(folder))
            stack.enter_context(running("worker", f"tcp://{address}", *quiet, *asked, core=core))
        yield f"dask://{address}"


@contextmanager
def running(part: str, *arguments: str, core: int | None = None) -> Iterator[None]:
    """The scheduler or a worker of a Dask cluster, on a core of its own where one is named."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, [core])  # which the new process has from us
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{part}", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.sched_setaffinity(0, before)
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
