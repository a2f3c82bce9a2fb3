"""Commands on a cache of very many rows: time and peak memory of each, in a process of its own.

python benchmarks/large.py [--images 10000000] [--views 1] [--folder FOLDER] [--commands ls info verify]

The cache has 8 features a row. It is made without a network, and stays in FOLDER if that is named. `hashes` is the time
of the hashes alone that `verify` computes: of each file's bytes, and of a text for each row; no check can be faster.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import print_machine

from featcache.core.files import write_json
from featcache.core.recipe import FeatureSpace, Recipe, cache_name, digest
from featcache.datasets import SPLITS
from featcache.store import (
    DATASET_FILE,
    LEDGER_FILE,
    MANIFEST_FILE,
    RECIPE_FILE,
    ROWS_FILE,
    counts_in,
    file_entry,
    layout_for,
    ledger,
    open_store,
    tolerance_of,
)
from featcache.store.manifest import CACHE_FORMAT, ArrayEntry, FileEntry, Manifest, read_manifest, with_labels_said
from featcache.store.row_names import row_ids
from featcache.store.tables import read_keys

WIDTH, CLASSES, PART = 8, 5, 1 << 20
SPACE = FeatureSpace("benchmark", "none", 224, "none", "avg", "0" * 64)
PYTHON = {
    "open": "fc.open_cache(CACHE)",
    "rows": "len(fc.open_cache(CACHE).rows)",
    "labels": "fc.open_cache(CACHE).labels('train')",
    "batches": "sum(len(y) for X, y in fc.open_cache(CACHE).batches('train', 4096))",
}
"""What is measured in Python."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the cache is, or is made, and stays")
    parser.add_argument("--commands", nargs="+", default=NAMES, choices=NAMES)
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        (folder / "cache").mkdir(parents=True, exist_ok=True)
        (folder / "featcache.toml").touch()
        found = [path.parent for path in (folder / "cache").glob(f"benchmark-*/{MANIFEST_FILE}")]
        if not found:
            started = time.perf_counter()
            found = [made_cache(folder / "cache", asked.images, asked.views)]
            print(f"made in {time.perf_counter() - started:.0f} s")
        took: dict[str, float] = {}
        for name in asked.commands:
            seconds, cpu_s, peak_mb, said = run(folder, found[0], name)
            print(f"{name:10s} {seconds:6.1f} s, {cpu_s:6.1f} s of a core, {peak_mb:5.0f} MB  {said}", flush=True)
            took[name] = cpu_s
        if {"hashes", "verify"} <= set(took):
            print(f"verify takes {took['verify'] / took['hashes']:.1f} times what its hashes take, of a core")


HASHES = """
import hashlib, pathlib
text = b"x" * 400
sha256 = hashlib.sha256
for path in sorted(pathlib.Path(CACHE).rglob("*")):
    if path.is_file():
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
for row in range(ROWS):
    sha256(text).digest()
"""
"""On one core. What a row_id is a digest of has some 400 bytes."""

COMMANDS: dict[str, list[str]] = {
    "ls": ["ls"],
    "info": ["info", "CACHE"],
    "verify": ["verify"],
    "diff": ["diff", "CACHE", "CACHE"],
    "fit-head": [
        "fit-head",
        "--cache",
        "CACHE",
        "--solver",
        "block",
        "--hidden",
        "0",
        "--epochs",
        "1",
        "--batch",
        "4096",
    ],
    "logreg": ["fit-head", "--cache", "CACHE", "--head", "logreg"],
    "compare": ["runs", "compare", "RUN", "RUN"],
    "report": ["report"],
    "convert": ["convert", "CACHE", "--format", "hdf5"],
    "push": ["push", "CACHE", "--remote", "REMOTE"],
    "pull": ["pull", "PULLED", "--to", "pulled"],
    "split": ["pull", "PULLED", "--split", "test", "--to", "part"],
    "private": ["push", "CACHE", "--remote", "PRIVATE", "--private"],
    "rm": ["rm", "CONVERTED", "--yes"],
    "gc": ["gc", "--dry-run"],
}


NAMES = ["hashes", *COMMANDS, *PYTHON]

AT_EXIT = """
import atexit, os, pathlib
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    used = os.times()
    pathlib.Path(os.environ["PEAK_FILE"]).write_text(f"{line.split()[1]} {used.user + used.system}")
atexit.register(peak)
"""
"""What the operating system says of a child counts what its parent held when it was started. Linux only."""


def run(folder: Path, cache: Path, name: str) -> tuple[float, float, float, str]:
    """Seconds, seconds of a core and peak resident MB of one command, and the last line of what it says."""
    remote = folder / "remote"
    words = {
        "CACHE": str(cache),
        "CONVERTED": f"{cache.name}-hdf5",
        "REMOTE": str(remote),
        "PULLED": f"{remote}/{cache.name}",
        "PRIVATE": str(folder / "private"),
        "RUN": next((run.parent.name for run in sorted((folder / "results").glob("*/metrics.json"))), "none"),
    }
    if name == "hashes":
        rows = read_manifest(cache).rows
        code, arguments = HASHES.replace("CACHE", repr(str(cache))).replace("ROWS", str(rows)), []
    elif name in PYTHON:
        code, arguments = "import featcache as fc\n" + PYTHON[name].replace("CACHE", repr(str(cache))), []
    else:
        code = "from featcache.cli import main; main()"
        arguments = [words.get(word, word) for word in COMMANDS[name]]
    peak_file = folder / "peak"
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", AT_EXIT + code, *arguments],
        cwd=folder, text=True, capture_output=True, env={**os.environ, "PEAK_FILE": str(peak_file)}
    )  # fmt: skip
    seconds = time.perf_counter() - started
    said = [*ran.stderr.splitlines(), *ran.stdout.splitlines()]
    failed = f"exit {ran.returncode}: " if ran.returncode else ""
    peak_kb, cpu_s = map(float, peak_file.read_text().split())
    return seconds, cpu_s, peak_kb / 1e3, failed + (said[-1].strip() if said else "")


def made_cache(parent: Path, n_images: int, n_views: int) -> Path:
    """A finished cache in the format of caches, a part at a time."""
    recipe, work = Recipe(SPACE), parent / ".large"
    work.mkdir(exist_ok=True)
    write_json(work / RECIPE_FILE, recipe.to_dict())
    write_tables(work, n_images, n_views)
    keys = read_keys(work / ROWS_FILE)
    named = keys.digest(recipe)
    folder = parent / cache_name(SPACE.backbone, named)
    work.rename(folder)
    n_rows = n_images * n_views
    store = open_store("zarr", folder, layout=layout_for(n_rows, (WIDTH,), dtype=SPACE.dtype))
    store.create()
    generator, records = np.random.default_rng(0), []
    centres = generator.standard_normal((CLASSES, WIDTH), dtype=np.float32)
    for shard in range(store.layout.n_shards):
        start, stop = store.layout.span(shard)
        X = generator.standard_normal((stop - start, WIDTH), dtype=np.float32)
        stored = store.write_shard(shard, X + centres[np.arange(start, stop) // n_views % CLASSES])
        records.append(ledger.ShardRecord(shard, start, stop, stored.bytes, stored.sha256))
    ledger.write(folder / LEDGER_FILE, records)
    files = {name: file_entry(folder / name) for name in (RECIPE_FILE, ROWS_FILE, DATASET_FILE, LEDGER_FILE)}
    for name, shard in store.files().items():
        of = None if shard is None else FileEntry(bytes=records[shard].bytes, sha256=records[shard].sha256)
        files[name] = of or file_entry(folder / name)
    counts = counts_in(folder / ROWS_FILE, folder / DATASET_FILE)
    Manifest(
        format=CACHE_FORMAT,
        name=folder.name,
        digest=named,
        recipe_digest=recipe.digest,
        dataset_digest=digest("made up"),
        rows=n_rows,
        array=ArrayEntry.of(store),
        files=files,
        tolerance=tolerance_of(SPACE),
        provenance=with_labels_said({}, "", counts=counts),
    ).sealed().write(folder)
    return folder


def write_tables(folder: Path, n_images: int, n_views: int) -> None:
    """rows.parquet and dataset.parquet. Views have parameters of the usual kinds."""
    rows_writer = lines_writer = None
    generator = np.random.default_rng(1)
    step = max(PART // n_views, 1)
    for first in range(0, n_images, step):
        numbers = range(first, min(first + step, n_images))
        ids = pa.array([hashlib.sha256(b"%d" % number).hexdigest() for number in numbers], pa.large_string())
        image = np.repeat(np.arange(len(numbers)), n_views)
        view = np.tile(np.arange(n_views), len(numbers))
        rows = {"image_id": ids.take(pa.array(image)), "view": pa.array(view)}
        for name in ("rotation_deg", "shift_x", "shift_y"):
            rows[name] = pa.array(np.where(view > 0, np.round(generator.uniform(-1, 1, len(view)), 9), 0.0))
        for name in ("flip_horizontal", "flip_vertical"):
            rows[name] = pa.array((view > 0) & (generator.random(len(view)) < 0.5))
        for name, usual in (("brightness", 0.0), ("contrast", 1.0), ("saturation", 1.0), ("hue_deg", 0.0)):
            rows[name] = pa.array(
                np.where(view > 0, usual + np.round(generator.uniform(-0.1, 0.1, len(view)), 9), usual)
            )
        rows["fill_mode"] = pa.array(np.array(["constant", "wrap"], object)[view % 2], pa.large_string())
        rows["fill_value"] = pa.array(np.zeros(len(view), np.int64))
        part = pa.RecordBatch.from_pydict(rows)
        start = first * n_views
        table = {
            "row": pa.array(np.arange(start, start + len(view))),
            "image_id": rows["image_id"],
            "view": rows["view"],
        }
        table["row_id"] = pa.array(row_ids(SPACE, part, besides={"image_id", "view"}), pa.large_string())
        written = pa.table({**table, **rows})
        split = pa.array([SPLITS[max(number // CLASSES % 10 - 7, 0)] for number in numbers], pa.large_string())
        nothing = pa.nulls(len(numbers), pa.int64())
        lines = pa.table(
            {
                "image_id": ids,
                "path": pa.array([f"slide-{number // 1000}/{number}.png" for number in numbers], pa.large_string()),
                "label": pa.array([f"class-{number % CLASSES}" for number in numbers], pa.large_string()),
                "split": split,
                "group": pa.array([f"slide-{number // 1000}/{number}.png" for number in numbers], pa.large_string()),
                **dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), nothing),
            }
        )
        rows_writer = rows_writer or pq.ParquetWriter(folder / ROWS_FILE, written.schema, compression="zstd")
        lines_writer = lines_writer or pq.ParquetWriter(folder / DATASET_FILE, lines.schema, compression="zstd")
        rows_writer.write_table(written)
        lines_writer.write_table(lines)
    assert rows_writer
    assert lines_writer
    rows_writer.close()
    lines_writer.close()


if __name__ == "__main__":
    main()
