"""Push and pull against the bare client of the same object store: the same files, as many at a time, on loopback.

python benchmarks/share.py [--rows 4096] [--runs 3]

Starts SeaweedFS (of the test extra) in a folder of its own. The server shares the processors with both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import obstore
from common import features_like, print_machine
from numpy.typing import NDArray
from obstore.store import S3Store

from featcache.core.recipe import FeatureSpace, Recipe, row_id
from featcache.datasets.manifest import Dataset, LabelledImage
from featcache.remotes.urls import open_remote
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import find
from featcache.sharing.options import Part
from featcache.sharing.receive import pull
from featcache.sharing.send import push
from featcache.sharing.subset import pull_part
from featcache.sharing.transfer import THREADS
from featcache.store.cache import Cache, open_cache
from featcache.store.tables import Row
from featcache.store.writer import CacheWriter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers import S3, s3_server

ROW_SHAPE = (7, 7, 512)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder) / "s3") as server:
        os.environ.update(server.environment())
        measure(Path(folder), server, grouped(Path(folder) / "cache", features_like(asked.rows, ROW_SHAPE)), asked.runs)


def grouped(parent: Path, features: NDArray[np.float32]) -> Cache:
    """A cache of ten equal classes, one behind the other."""
    recipe = Recipe(FeatureSpace("benchmark", "none", 224, "none", "none", "0" * 64))
    n_rows = len(features)
    images = tuple(
        LabelledImage(f"{i}.png", f"class-{10 * i // n_rows}", "train", str(i), f"{i:064x}") for i in range(n_rows)
    )
    rows = [Row(image.image_id, 0, row_id(recipe.space, image.image_id, parameters={}), {}) for image in images]
    with CacheWriter(parent, recipe, rows=rows, row_shape=features.shape[1:]) as writer:
        for shard in writer.missing:
            start, stop = writer.store.layout.span(shard)
            writer.write(shard, features[start:stop])
        writer.finish(Dataset(images, parent), {})
    return open_cache(writer.folder)


def measure(folder: Path, server: S3, cache: Cache, runs: int) -> None:
    """Some runs of each, in turn, so that both meet the same disturbances."""
    megabytes = cache.bytes() / 1e6
    bare = Bare(server, cache)
    ours, theirs = [], []
    for number in range(runs):
        theirs.append(seconds(lambda number=number: bare.push(f"bare-{number}")))
        ours.append(seconds(lambda number=number: push(remote(server, number), bundle_of_cache(cache.folder))))
    report("push", megabytes, ours, theirs)
    again = min(seconds(lambda: push(remote(server, 0), bundle_of_cache(cache.folder))) for _ in range(runs))
    sent = push(remote(server, 0), bundle_of_cache(cache.folder)).sent_bytes
    print(f"the same push again: {again:.3f} s, {sent} bytes of data")
    ours, theirs = [], []
    for _ in range(runs):
        here, into = emptied(folder / "bare"), emptied(folder / "ours")
        theirs.append(seconds(lambda here=here: bare.pull("bare-0", here)))
        ours.append(seconds(lambda into=into: pulled(server, into)))
    report("pull", megabytes, ours, theirs)
    there = remote(server, 0)
    part = pull_part(there, find(there, ""), parent=emptied(folder / "part"), part=Part(classes=("class-3",)))
    print(f"one of ten classes: {part.fetched_bytes / cache.bytes():.3f} of the bytes")


def remote(server: S3, number: int) -> object:
    """An empty remote, or the same one again."""
    return open_remote(server.url(f"ours-{number}"))


def pulled(server: S3, parent: Path) -> None:
    """A whole pull."""
    there = remote(server, 0)
    pull(there, find(there, ""), parent=parent)


class Bare:
    """The same files by the same client, nothing checked."""

    def __init__(self, server: S3, cache: Cache) -> None:
        key = {"access_key_id": "writer", "secret_access_key": "writer-secret", "region": "us-east-1"}
        self._store = S3Store("lab", endpoint=server.endpoint, client_options={"allow_http": True}, **key)
        self._folder = cache.folder
        self._names = [path.relative_to(cache.folder).as_posix() for path in cache.folder.rglob("*") if path.is_file()]

    def push(self, prefix: str) -> None:
        def one(name: str) -> None:
            obstore.put(self._store, f"{prefix}/{name}", self._folder / name, use_multipart=False)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, self._names))

    def pull(self, prefix: str, parent: Path) -> None:
        def one(name: str) -> None:
            target = parent / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for block in obstore.get(self._store, f"{prefix}/{name}").stream(min_chunk_size=1 << 20):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, self._names))


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def emptied(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def report(what: str, megabytes: float, ours: list[float], theirs: list[float]) -> None:
    """One line: medians, and that of the ratios of runs that followed each other."""
    ratio = median(bare / mine for mine, bare in zip(ours, theirs, strict=True))
    rates = f"ours {megabytes / median(ours):5.0f} MB/s  bare {megabytes / median(theirs):5.0f} MB/s"
    print(f"{what}  {rates}  ratio {ratio:.2f}  ({megabytes:.0f} MB)")


if __name__ == "__main__":
    main()
