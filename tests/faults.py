"""What the tests of faults share: a cheap engine, ways to break things, and workers (`workshop.py`) that do `WORK`."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from watching import Watching
from workshop import TOO_LONG_S, Workshop, serve

import featcache.core.leases
import featcache.extraction._extract
import featcache.extraction._recompute
import featcache.extraction.cache_filler
import featcache.extraction.computing
import featcache.extraction.opening
import featcache.heads._fit_head
import featcache.heads.block
import featcache.heads.source
import featcache.reporting.live
import featcache.sharing.receive
import featcache.sharing.remote_leases
import featcache.sharing.remote_writer
import featcache.sharing.send
import featcache.store.hdf5_store
import featcache.store.layout
import featcache.store.zarr_store
import featcache.training.checkpoint
from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import Cut
from featcache.cli import (
    extract as _extract_command,  # noqa: F401
    main,
    verify as _verify_command,  # noqa: F401
)
from featcache.core.files import sha256_file
from featcache.core.recipe import FeatureSpace, Recipe, WeightsSource
from featcache.datasets.manifest import SPLITS, Dataset, LabelledImage
from featcache.extraction.one_pass import Target, extract
from featcache.extraction.rows import rows_of
from featcache.heads.config import HeadConfig
from featcache.images.identity import image_id_of
from featcache.remotes.contract import Remote
from featcache.remotes.urls import open_remote
from featcache.reporting import figures
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import find
from featcache.sharing.options import Part
from featcache.sharing.remote_folder import open_folder
from featcache.sharing.remote_writer import RemoteWriter
from featcache.sharing.subset import pull_part
from featcache.store import ledger, tables
from featcache.store.cache import open_cache
from featcache.store.tables import images_in
from featcache.store.writer import CacheWriter
from featcache.synthetic.drawing import write_cells

MODEL = ("extract", "--model", "mobilenetv2")
"""The command whose backbone is the cheap engine."""

FORMATS = ("zarr", "hdf5")
SIZE_PX = 32
ROWS_PER_SHARD = 16
RECIPE = Recipe(FeatureSpace("tiny", "last", SIZE_PX, "none", "none", "0" * 64))


# The cheap engine, and what it is given


class CheapEngine:
    """Mean of each channel in each of 4 x 4 squares: a row's features depend on its pixels alone.

    log : file that gets a line a computed row, in one write a batch
    pause_s : how long a batch takes
    on_batch : called with the number of batches so far before each
    """

    name = why = "cheap"
    images_per_s = None
    batch_rows = calls_at_once = 1
    feature_shape = (4, 4, 3)
    feature_shapes = (feature_shape,)

    def __init__(
        self, log: str | None = None, pause_s: float = 0.0, on_batch: Callable[[int], object] = lambda _: None
    ) -> None:
        self.log, self.pause_s, self.on_batch, self.batches = log, pause_s, on_batch, 0

    def features(self, pixels: np.ndarray) -> list[np.ndarray]:
        self.on_batch(self.batches)
        self.batches += 1
        time.sleep(self.pause_s)
        if self.log:
            lines = "".join(hashlib.sha256(row.tobytes()).hexdigest() + "\n" for row in pixels)
            with Path(self.log).open("ab", buffering=0) as log:
                log.write(lines.encode())
        squares = pixels.reshape(len(pixels), 4, SIZE_PX // 4, 4, SIZE_PX // 4, 3).astype(np.float64)
        return [squares.mean(axis=(2, 4)).astype(np.float32)]


CUT = Cut(RECIPE.space, WeightsSource("random"), CheapEngine.feature_shape)


def make_cells(folder: Path, per_class: int = 3) -> Path:
    """Generated cells, twelve by default."""
    write_cells(folder, per_class, size_px=SIZE_PX)
    return folder


@functools.cache
def dataset_of(folder: Path) -> Dataset:
    """The cells in a folder."""
    images = []
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        name = path.relative_to(folder).as_posix()
        images.append(
            LabelledImage(name, path.parent.name, SPLITS[number % 3], name, image_id_of(sha256_file(path), None))
        )
    return Dataset(tuple(images), folder)


# What workers do


def fill(
    parent: str,
    cells: str,
    format_: str,
    views: int = 5,
    *,
    log: str | None = None,
    pause_s: float = 0.0,
    fault: Sequence[Any] | None = None,
    host: str | None = None,
    dead_after_s: float | None = None,
    url: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Extract all of `cells` and finish the cache. The same arguments go on where another worker stopped.

    fault : name of one of FAULTS and its arguments
    host : pretend that this is another machine, so that only beats tell who is alive
    dead_after_s : how long a beat may stand still
    url : make it on a remote; `parent` has what is kept here
    environment : with the remote's credentials
    """
    os.environ.update(environment or {})
    featcache.store.layout._MAX_ROWS_PER_SHARD = ROWS_PER_SHARD
    if host:
        featcache.core.leases._process = lambda pid: {"host": host, "pid": pid, "started": ""}
        featcache.core.leases._has_ended = lambda content: None
    if dead_after_s:
        featcache.core.leases.DEAD_AFTER_S = dead_after_s
        featcache.core.leases.BEAT_S = dead_after_s / 10
        featcache.sharing.remote_leases.DEAD_AFTER_S = dead_after_s
        featcache.sharing.remote_leases.BEAT_S = dead_after_s / 10
        featcache.sharing.remote_leases._LOOK_S = featcache.sharing.remote_writer._LOOK_S = dead_after_s / 10
    small_batches()
    engine = CheapEngine(log, pause_s)
    if fault:
        name, *arguments = fault
        FAULTS[name](Path(parent), engine, *arguments)
    dataset = dataset_of(Path(cells))
    rows = rows_of(dataset.images, [views] * len(dataset.images), recipe=RECIPE)
    how: dict[str, Any] = {"rows": rows, "row_shape": CheapEngine.feature_shape, "format_": format_}
    make = functools.partial(RemoteWriter, open_folder(url)) if url else CacheWriter
    where: dict[str, Any] = {"parent": Path(parent)}
    with make(recipe=RECIPE, **where, **how) as writer:
        (counts,) = extract([Target(writer, lambda: engine)], dataset).counts
        writer.finish(dataset, {"engine": "cheap", "finished": time.time()})
    return {"computed": counts.computed}


def small_batches() -> None:
    """A batch a shard, and little rendered ahead."""
    featcache.extraction.computing._CALL_ROWS = ROWS_PER_SHARD
    featcache.extraction.cache_filler._AHEAD_ROWS = ROWS_PER_SHARD


def use_cheap_engine(log: str | None = None, pause_s: float = 0.0) -> None:
    """Let every backbone be the cheap engine, and shards be small."""
    featcache.store.layout._MAX_ROWS_PER_SHARD = ROWS_PER_SHARD
    small_batches()
    featcache.extraction.opening.identify = lambda *_, **__: ((CUT,), None)
    featcache.extraction.opening.open_network = lambda spec: None
    featcache.extraction.opening.open_engine = lambda *_, **__: CheapEngine(log, pause_s)


def command(
    folder: str,
    *arguments: str,
    log: str | None = None,
    pause_s: float = 0.0,
    fsize: int | None = None,
    ready: str | None = None,
    fault: Sequence[Any] | None = None,
    config: str | None = None,
) -> None:
    """`featcache ARGUMENTS` in `folder`, with the cheap engine.

    fsize : largest file that this process may write, in bytes
    ready : file that is made when it begins
    fault : name of one of FAULTS and its arguments, of what is written in `folder`
    config : folder of the user's keys and remotes
    """
    if config:
        os.environ["FEATCACHE_CONFIG"] = config
    use_cheap_engine(log, pause_s)
    os.chdir(folder)
    sys.argv = ["featcache", *arguments]
    if ready:
        Path(ready).touch()
    if fault:
        name, *rest = fault
        FAULTS[name](Path(folder), CheapEngine(), *rest)
    if fsize is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fsize, resource.RLIM_INFINITY))
    main()


def fit(
    cache: str,
    results: str,
    settings: dict[str, Any],
    *,
    solver: Any = "gram",
    streams: bool = False,
    pause_s: float = 0.0,
    block_rows: int | None = None,
    fault: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Train a head and write its run, with a checkpoint after every epoch and no figures.

    streams : as if the features did not fit into memory
    pause_s : how long an epoch takes
    block_rows : of the solver "block", so that a checkpoint is written in the middle of an epoch
    fault : name of one of FAULTS and its arguments
    """
    featcache.training.checkpoint.LEAST_S = featcache.training.checkpoint.COST = 0
    featcache.reporting.live.EVERY_S = 0.0
    if block_rows:
        featcache.heads.block.BLOCK_ROWS = block_rows
    if streams:
        featcache.heads.source.fits = lambda n_bytes: False
    for name in ("write_curves", "write_confusion"):
        setattr(figures, name, lambda *args, **options: None)
    if fault:
        name, *arguments = fault
        FAULTS[name](Path(results), CheapEngine(), *arguments)
    config = HeadConfig.from_dict(settings)
    done = featcache.heads._fit_head.fit_head(
        open_cache(cache),
        Path(results),
        config=config,
        solver=solver,
        progress=Watching(on_epochs=lambda _: time.sleep(pause_s)),
    )
    return {"run": done.run.name, "resumed_at": done.resumed_at, "reused": done.reused}


def relabel(folder: str, letter: str, *, fault: Sequence[Any] | None = None) -> bool:
    """Give every image of a cache a label that begins so. fault : as of `fill`, in `folder`"""
    cache = open_cache(folder)
    labelled = relabelled(images_in(cache.dataset), letter)
    if fault:
        name, *arguments = fault
        FAULTS[name](Path(folder), CheapEngine(), *arguments)
    return cache.replace_dataset(labelled)


def relabelled(images: Sequence[LabelledImage], letter: str) -> Dataset:
    """The same images with labels that begin so."""
    return Dataset(tuple(replace(image, label=letter + image.label[1:]) for image in images), Path())


def push(folder: str, url: str, **how: Any) -> dict[str, Any]:
    """Push a cache. how : see `_disturbed`"""
    remote = _disturbed(url, url, **how)
    done = featcache.sharing.send.push(remote, bundle_of_cache(Path(folder)))
    return {"reused": done.reused, "sent": done.sent_files}


def pull(url: str, parent: str, part: bool = False, **how: Any) -> dict[str, Any]:
    """Pull the only cache of a remote, or its rows of "train". how : see `_disturbed`"""
    remote = _disturbed(url, parent, **how)
    entry = find(remote, "")
    if part:
        done = pull_part(remote, entry, parent=Path(parent), part=Part(splits=("train",)))
    else:
        done = featcache.sharing.receive.pull(remote, entry, parent=Path(parent))
    return {"reused": done.reused, "name": done.name}


def _disturbed(
    url: str,
    folder: str,
    fault: Sequence[Any] | None = None,
    die_after_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Remote:
    """A remote. fault : as of `fill`, in `folder`; die_after_s : be killed then"""
    os.environ.update(environment or {})
    remote = open_remote(url)
    if fault:
        name, *arguments = fault
        FAULTS[name](Path(folder), CheapEngine(), *arguments)
    if die_after_s is not None:
        threading.Timer(die_after_s, die).start()
    return remote


# Faults


class Steps:
    """Tells of every step of this process that changes a file below a folder, before it is done.

    act : called with the number of the step (from 0), its name and what it works on
    """

    def __init__(self, folder: Path, act: Callable[[int, str, str], object]) -> None:
        self._folder = str(folder)
        self._act = act
        self._lock = threading.RLock()
        self._count = 0
        for name in ("replace", "rename", "rmdir", "link", "fsync", "write", "truncate"):
            setattr(os, name, self._told(getattr(os, name), name, lambda path: True))
        for name, changes in (("mkdir", False), ("unlink", True), ("remove", True)):
            setattr(
                os, name, self._told(getattr(os, name), name, lambda path, now=changes: os.path.lexists(path) == now)
            )
        for module in (io, sys.modules["builtins"]):
            module.open = self._opening(io.open if module is io else open)
        os.open = self._opening_raw(os.open)
        tables.pq.write_table = self._around(tables.pq.write_table, "parquet", 1)
        featcache.store.hdf5_store.Hdf5Store._write = self._writing_hdf5(featcache.store.hdf5_store.Hdf5Store._write)

    def tell(self, name: str, what: object) -> None:
        with self._lock:
            path = self._path(what)
            if path.startswith(self._folder):
                number, self._count = self._count, self._count + 1
                self._act(number, name, path)

    def _path(self, what: object) -> str:
        try:
            return str(Path(f"/proc/self/fd/{what}").readlink()) if isinstance(what, int) else str(what)
        except OSError:
            return ""

    def _told(self, function: Callable[..., Any], name: str, changes: Callable[[str], bool]) -> Callable[..., Any]:
        def wrapped(what: Any, *args: Any, **options: Any) -> Any:
            inside = options.get("dir_fd", options.get("src_dir_fd"))
            path = what if inside is None else f"{self._path(inside)}/{what}"
            if isinstance(path, int) or changes(path):
                self.tell(name, path)
            return function(what, *args, **options)

        return wrapped

    def _around(self, function: Callable[..., Any], name: str, place: int) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.tell(name, args[place])
            result = function(*args, **options)
            self.tell(f"{name} done", args[place])
            return result

        return wrapped

    def _opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            changes = not isinstance(file, int) and set(mode) & set("wax+")
            if changes:
                self.tell("open", file)
            opened = function(file, mode, *args, **options)
            if changes:
                self.tell("opened", file)
            return opened

        return wrapped

    def _opening_raw(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(file: Any, flags: int, *args: Any, **options: Any) -> Any:
            if flags & os.O_CREAT:
                inside = options.get("dir_fd")
                self.tell("create", file if inside is None else f"{self._path(inside)}/{file}")
            return function(file, flags, *args, **options)

        return wrapped

    def _writing_hdf5(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(store: Any, path: Path, shape: Any, chunks: Any) -> None:
            def told() -> Iterator[bytes]:
                for chunk in chunks:
                    self.tell("chunk", path)
                    yield chunk
                self.tell("close", path)

            self.tell("hdf5", path)
            function(store, path, shape, told())

        return wrapped


def die(*_: object) -> None:
    """SIGKILL: nothing of this process runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(TOO_LONG_S)


def _killed_at(parent: Path, _: CheapEngine, step: int) -> None:
    """Die before a step."""
    Steps(parent, lambda number, name, path: die() if number == step else None)


def _killed_in_batch(_: Path, engine: CheapEngine, batch: int) -> None:
    """Die while a batch is computed, some time after the one before it."""

    def on_batch(number: int) -> None:
        if number == batch:
            time.sleep(0.2)  # what it gave is being written meanwhile
            die()

    engine.on_batch = on_batch


def _torn_at(parent: Path, _: CheapEngine, step: int) -> None:
    """Die in the middle of the first write to a ledger from a step on."""
    real = os.write

    def half(handle: int, data: bytes) -> int:
        real(handle, data[: len(data) // 2])
        die()
        return 0

    def act(number: int, name: str, path: str) -> None:
        if number == step:
            os.write = half

    Steps(parent, act)


def _powerless_at(parent: Path, _: CheapEngine, step: int) -> None:
    """Die before a step, and lose all that no fsync has brought to the disk: such files are there, but short."""
    synced: dict[int, int] = {}
    real, truncate = os.fsync, os.truncate

    def fsync(handle: int) -> None:
        real(handle)
        status = os.fstat(handle)
        synced[status.st_ino] = status.st_size

    os.fsync = fsync

    def act(number: int, name: str, path: str) -> None:
        if number == step:
            for file in [file for file in parent.rglob("*") if file.is_file() and not file.is_symlink()]:
                status = file.stat()
                truncate(file, min(status.st_size, synced.get(status.st_ino, 0)))
            die()

    Steps(parent, act)


def _traced(parent: Path, _: CheapEngine, out: str) -> None:
    """Note every step in a file."""
    log = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    write = os.write
    Steps(parent, lambda number, name, path: write(log, f"{name} {path}\n".encode()))


def _read_only_at(parent: Path, _: CheapEngine, mount: str, step: int) -> None:
    """Mount the disk read-only before a step, or before the first after it where no file is open for writing."""
    done = []

    def act(number: int, name: str, path: str) -> None:
        if number >= step and not done and remount(mount, read_only=True):
            done.append(number)

    Steps(parent, act)


def _vanishing(parent: Path, engine: CheapEngine, batch: int, to: str | None) -> None:
    """The cache's folder is removed, or moved away, before a batch is computed."""

    def vanish(number: int) -> None:
        if number == batch:
            (cache,) = [path for path in parent.iterdir() if path.is_dir()]
            gone = Path(to) if to else parent.with_name(f"{parent.name}-removed")
            cache.rename(gone)  # at once, while shards may be being written
            if not to:
                shutil.rmtree(gone, ignore_errors=True)

    engine.on_batch = vanish


def _jumping_clock(_: Path, engine: CheapEngine, seed: int) -> None:
    """The wall clock jumps by up to a year back or forth, each time that somebody looks."""
    generator, real, real_ns = random.Random(seed), time.time, time.time_ns
    year_s = 365 * 86400
    time.time = lambda: real() + generator.uniform(-year_s, year_s)
    time.time_ns = lambda: real_ns() + generator.randrange(-year_s, year_s) * 10**9


def _file_limit(_: Path, engine: CheapEngine, limit: int) -> None:
    """No file may become larger than that."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


FAULTS: dict[str, Callable[..., None]] = {
    "killed": _killed_at,
    "killed in batch": _killed_in_batch,
    "torn": _torn_at,
    "powerless": _powerless_at,
    "traced": _traced,
    "read-only": _read_only_at,
    "vanishing": _vanishing,
    "clock": _jumping_clock,
    "file limit": _file_limit,
}
WORK: dict[str, Callable[..., Any]] = {
    "fill": fill,
    "command": command,
    "fit": fit,
    "relabel": relabel,
    "push": push,
    "pull": pull,
}


def make_project(shop: Workshop, folder: Path, *options: str, per_class: int = 6) -> Path:
    """A project of generated cells in `folder`/images: 4 of 6 of each class for training, or as `options` say."""
    make_cells(folder / "images", per_class)
    done = shop.run("command", folder, "init", "images", *(options or ("--split-counts", "4/1/1", "--views", "3")))
    assert done.code == 0, done
    return folder


# Disks

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_REMOUNT, _MNT_DETACH = 1, 32, 2


def remount(folder: str, read_only: bool = False, options: str = "") -> bool:
    """Change a mounted tmpfs. False where it is busy: a file is open for writing."""
    flags = _MS_REMOUNT | (_MS_RDONLY if read_only else 0)
    return _LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, os.fsencode(options) or None) == 0


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A disk of its own in memory, mounted at `folder`. Raises OSError where that is not allowed."""
    folder.mkdir(exist_ok=True)
    if _LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options.encode()):
        raise OSError(ctypes.get_errno(), f"no disk can be mounted: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        _LIBC.umount2(os.fsencode(folder), _MNT_DETACH)


# What a cache holds


def contents(folder: Path) -> dict[str, Any]:
    """Everything below a cache's folder, byte for byte; of its manifest all but who made it when."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        found[name] = path.read_bytes() if path.is_file() else "folder"
    if "manifest.json" in found:
        manifest = json.loads(found["manifest.json"])
        found["manifest.json"] = {key: value for key, value in manifest.items() if key not in ("provenance", "seal")}
    return found


def same(found: Path, expected: dict[str, Any]) -> None:
    """A cache is the undisturbed one to the byte, and nothing lies around in it."""
    there = contents(found)
    assert there.keys() == expected.keys()
    assert [name for name in there if there[name] != expected[name]] == []


def only_cache(parent: Path) -> Path:
    """The one cache in a folder, in which there is nothing else."""
    (folder,) = parent.iterdir()
    return folder


def rows_recorded(parent: Path) -> int:
    """Rows that the ledgers below a folder say are finished."""
    return sum(
        record.stop - record.start for file in parent.glob("*/ledger.jsonl") for record in ledger.read(file).values()
    )


def lines(log: Path) -> list[str]:
    """The rows that were computed, in turn."""
    return log.read_text().splitlines() if log.exists() else []


class Shops:
    """Two warm processes, for trials that can be made at the same time. keras : import it, too"""

    def __init__(self, folder: Path, keras: bool = False) -> None:
        quiet = {"OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
        command = (__file__, *(["keras"] if keras else []))
        self.both = [Workshop(command, folder / name, quiet) for name in ("a", "b")]

    def each(self, trial: Callable[[Workshop, Any], Any], items: Sequence[Any]) -> list[Any]:
        """trial(shop, item) for every item, two at a time."""
        idle = list(self.both)

        def with_one(item: Any) -> Any:
            shop = idle.pop()
            try:
                return trial(shop, item)
            finally:
                idle.append(shop)

        with ThreadPoolExecutor(len(self.both)) as pool:
            futures = [pool.submit(with_one, item) for item in items]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        for shop in self.both:
            shop.close()


if __name__ == "__main__":
    if "keras" in sys.argv:
        import_keras()
    serve(WORK)
