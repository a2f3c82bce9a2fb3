"""Ctrl-C and kill: what was finished is kept, and the same command goes on from there."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import FEATCACHE, Made, Ran, Run, contents, run_command, start_command
from workshop import Worker

from featcache.backbones.remembered import KNOWN_FILE, identify
from featcache.backbones.spec import NetworkSpec
from featcache.store.cache import open_cache
from featcache.store.layout import layout_for

ROWS = 1280 + 4 + 4
SHARD = layout_for(ROWS, (1, 1, 1280), dtype="float32").rows_per_shard
N_SHARDS = -(-ROWS // SHARD)
"""Whole shards and a short one."""

LONG = ("extract", "--model", "mobilenetv2", "--weights", "random", "--input-size", "32", "--train-rows", "1280")


def wait_until(happened: Callable[[], bool], worker: Worker) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end
        assert not worker.ended(), worker.wait()
        time.sleep(0.005)


def has_begun(project: Path, shards: int) -> bool:
    """Whether there is a cache in the making, with so many shards finished."""
    return any((project / "cache").glob("*/features.zarr/zarr.json")) and ledger_lines(project) >= shards


def ledger_lines(project: Path) -> int:
    return sum(file.read_text().count("\n") for file in (project / "cache").glob("*/ledger.jsonl"))


def message(worker: Worker, *before: str) -> str:
    """The last line of an interrupted command; those before it must be `before`, and what it is expected to take."""
    ended = worker.wait()
    assert (ended.code, ended.out) == (130, "")
    *others, said = [line for line in ended.err.splitlines() if line and not line.startswith(("Gram space: ", "E0000"))]
    assert others == [*before]
    return said


@pytest.fixture(scope="module")
def bare(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without its cache, but with the memory of the backbone, so that the work begins early."""
    folder = shutil.copytree(made.folder, tmp_path_factory.mktemp("bare") / "project")
    shutil.rmtree(folder / "cache" / made.cache.name)
    identify(folder / "cache" / KNOWN_FILE, NetworkSpec("mobilenetv2", "random", 0, 32, "model"))
    return folder


@pytest.fixture(scope="module")
def whole(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """What LONG says that nothing has disturbed."""
    project = shutil.copytree(bare, tmp_path_factory.mktemp("whole") / "project")
    return run_command(*LONG, "--json", cwd=project, check=True)


def unfinished(project: Path, run: Run) -> None:
    """The one cache is listed as such, and nobody takes it for a finished one."""
    (listed,) = run("ls", "--json", cwd=project).value
    assert listed["status"] == "unfinished"
    assert "it was never finished: run its extract command again" in run("info", listed["path"], cwd=project).error
    assert "unfinished" in run("fit-head", cwd=project).error


def same_cache(found: Path, expected: Path) -> None:
    """The same files with the same bytes; only the manifest tells of another making."""
    files, undisturbed = contents(found), contents(expected)
    assert files.keys() == undisturbed.keys()
    assert sum(name.startswith("features.zarr/c/") for name in files) == N_SHARDS
    assert {name for name in files if files[name] != undisturbed[name]} <= {"manifest.json"}
    np.testing.assert_array_equal(open_cache(found).features[:], open_cache(expected).features[:])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_extract_goes_on_where_it_stopped(
    bare: Path, whole: Ran, tmp_path: Path, run: Run, number: signal.Signals
) -> None:
    project = shutil.copytree(bare, tmp_path / "project")
    worker = start_command(*LONG, cwd=project)
    wait_until(lambda: ledger_lines(project) > 0, worker)
    worker.send(number)
    said = message(worker, "interrupted: finishing the current step; interrupt again to stop at once")
    assert said.startswith("interrupted: finished work is kept")
    unfinished(project, run)
    there = ledger_lines(project) * SHARD
    assert there >= SHARD
    done = run(*LONG, "--json", cwd=project).value
    assert (done["reused"], done["computed"]) == (there, ROWS - there)
    expected = whole.value
    assert (expected["reused"], expected["computed"]) == (0, ROWS)
    assert done["cache"] == expected["cache"]
    same_cache(Path(done["path"]), Path(expected["path"]))


WITH_A_QUICK_ENGINE = """
import sys, time
import numpy as np
import featcache.extraction.opening as pipeline
from featcache.cli import main

class Engine:
    name = why = "quick"
    images_per_s = None
    batch_rows = calls_at_once = 1
    feature_shapes = ((1, 1, 1280),)

    def features(self, pixels):
        time.sleep(0.1)
        return [np.repeat(pixels.mean((1, 2), keepdims=True)[..., :1], 1280, axis=3).astype(np.float32)]

pipeline.open_network = lambda spec: None
pipeline.open_engine = lambda *args, **options: Engine()
main()
"""
"""extract with features that cost nothing: a kill does not care which they are."""


def test_a_killed_extract_goes_on_where_it_stopped(bare: Path, tmp_path: Path, run: Run) -> None:
    project, whole = (shutil.copytree(bare, tmp_path / name) for name in ("a", "b"))

    def begin(folder: Path) -> Worker:
        return start_command(*LONG, "--json", cwd=folder, program=WITH_A_QUICK_ENGINE)

    expected = json.loads(begin(whole).wait().out)
    for shards in (0, 1):
        worker = begin(project)
        wait_until(functools.partial(has_begun, project, shards), worker)
        worker.send(signal.SIGKILL)
        assert worker.wait().code == -signal.SIGKILL
        unfinished(project, run)
    there = ledger_lines(project) * SHARD
    assert there >= SHARD
    done = json.loads(begin(project).wait().out)
    assert (done["reused"], done["computed"], done["cache"]) == (there, ROWS - there, expected["cache"])
    same_cache(Path(done["path"]), Path(expected["path"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_fit_head_goes_on(made: Made, tmp_path: Path, run: Run, number: int) -> None:
    project = shutil.copytree(made.folder, tmp_path / "project")
    worker = start_command("fit-head", "--epochs", "100000000", "--hidden", "8", "--lr", "1e-6", cwd=project)
    wait_until(lambda: any(project.glob("results/*.training/history.csv")), worker)
    worker.send(number)
    said = message(worker, "interrupted: finishing the current step; interrupt again to stop at once")
    assert said.startswith("interrupted")
    (left,) = (project / "results").iterdir()
    assert {path.name for path in left.iterdir() if path.suffix in (".json", ".npz")} == {"config.json", "state.npz"}
    with np.load(left / "state.npz") as state:
        there = len(state["history"])
    done = run("fit-head", "--resume", left.name, "--epochs", str(there + 2), "--json", cwd=project).value
    assert (done["resumed_at"], done["epochs"]) == (there, there + 2)


WITH_SLOW_FEATURES = """
import sys, time
from featcache.cli import main
from featcache.heads import products
from featcache.store.features import Features

blocks, inner = Features.blocks, products.inner

def slow(self, numbers=None):
    for place, block in blocks(self, numbers):
        for row in range(len(block)):
            time.sleep(0.3)
            yield slice(place.start + row, place.start + row + 1), block[row : row + 1]

def told(*args, **options):
    Features.blocks = slow
    print("inner", file=sys.stderr, flush=True)
    return inner(*args, **options)

products.inner = told
main()
"""
"""A Gram pass that takes a third of a second for each row."""


@pytest.mark.parametrize(
    ("number", "command"),
    [
        (signal.SIGINT, ("fit-head",)),
        (signal.SIGTERM, ("fit-head", "--seeds", "2")),
        (signal.SIGINT, ("sweep", "--lr", "1e-4,1e-3")),
    ],
)
def test_an_interrupt_ends_the_gram_pass_within_a_block(
    made: Made, tmp_path: Path, run: Run, command: tuple[str, ...], number: int
) -> None:
    project = shutil.copytree(made.folder, tmp_path / "project")
    arguments = (*command, "--solver", "gram", "--hidden", "8", "--epochs", "3")
    worker = start_command(*arguments, cwd=project, program=WITH_SLOW_FEATURES)
    wait_until(lambda: "inner\n" in worker.read("err"), worker)
    time.sleep(0.4)
    began = time.monotonic()
    worker.send(number)
    ended = worker.wait()
    assert time.monotonic() - began < 5  # the whole pass takes a third of a second for each of the 68 rows
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.splitlines()[-1].startswith("interrupted: finished work is kept")
    assert "finishing the current step" not in ended.err
    assert "Traceback" not in ended.err
    assert not list((project / "results").glob("*head*"))
    assert not list((project / "cache").glob("*.gram/*"))
    assert run(*arguments, cwd=project).code == 0


def test_an_interrupt_that_a_library_turned_into_its_own_error_is_still_one(project: Path) -> None:
    program = """
import os, signal, sys
import featcache.store.catalog

def interrupted(*_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except KeyboardInterrupt as error:
        raise RuntimeError("the backend failed") from error

featcache.store.catalog.list_caches = interrupted
sys.argv = ["featcache", "ls"]
from featcache.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted: finished work is kept")


def test_who_ignores_interrupts_goes_on_ignoring_them(project: Path) -> None:
    """As `nohup` and shells do for commands in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [FEATCACHE, "ls", "--json"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    for _ in range(50):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.01)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.startswith("[{")
