"""SIGINT and SIGTERM: what is in hand is finished, the exit code is 130, and a rerun loses nothing."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import EXTRACT, FEATCACHE, Made
from faults import FORMATS, MODEL, Shops, contents, lines, make_project, rows_recorded, same
from workshop import Ended, Worker, Workshop

VIEWS = 12
ROWS = 16 * VIEWS + 8
"""13 shards, the last one short."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAID = "interrupted: finished work is kept; run the same command again to continue"
FINISHING = "interrupted: finishing the current step; interrupt again to stop at once"


@pytest.fixture(scope="module", params=FORMATS)
def bare(shops: Shops, quick: Path, request: pytest.FixtureRequest) -> Path:
    """A project without a cache."""
    options = ("--split-counts", "4/1/1", "--views", str(VIEWS))
    project = make_project(shops.both[0], quick / f"bare-{request.param}", *options)
    settings = (project / "featcache.toml").read_text()
    (project / "featcache.toml").write_text(settings.replace('format = "zarr"', f'format = "{request.param}"'))
    return project


@pytest.fixture(scope="module")
def undisturbed(shops: Shops, bare: Path) -> dict[str, Any]:
    project = shutil.copytree(bare, bare.with_name(f"{bare.name}-calm"))
    assert json.loads(shops.both[0].run("command", project, *MODEL, "--json").out)["computed"] == ROWS
    return contents(cache_of(project))


@pytest.fixture
def project(bare: Path, tmp_path: Path) -> Iterator[Path]:
    copied = bare.with_name(f"{bare.name}-{tmp_path.name}")
    yield shutil.copytree(bare, copied)
    shutil.rmtree(copied)


def cache_of(project: Path) -> Path:
    (cache,) = project.glob("cache/tiny-*")
    return cache


def said(err: str) -> list[str]:
    """Its lines, but for those that a progress bar leaves empty."""
    return [line for line in err.splitlines() if line]


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


def start(shop: Workshop, project: Path, pause_s: float) -> Worker:
    ready = project / "ready"
    ready.unlink(missing_ok=True)
    worker = shop.start("command", project, *MODEL, log=project / "computed.log", pause_s=pause_s, ready=ready)
    until(ready.exists)
    return worker


def resumes(shop: Workshop, project: Path, undisturbed: dict[str, Any]) -> None:
    """Every row that was computed is there."""
    left = ROWS - rows_recorded(project / "cache")
    assert len(lines(project / "computed.log")) == ROWS - left
    done = shop.run("command", project, *MODEL, "--json", log=project / "computed.log")
    assert json.loads(done.out)["computed"] == left
    assert len(lines(project / "computed.log")) == ROWS
    same(cache_of(project), undisturbed)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_shard_in_hand_is_finished(
    shops: Shops, project: Path, undisturbed: dict[str, Any], number: signal.Signals
) -> None:
    worker = start(shops.both[0], project, 0.2)
    until(lambda: rows_recorded(project / "cache"))
    time.sleep(0.1)  # in the middle of the next one
    recorded = rows_recorded(project / "cache")
    worker.send(number)
    ended = worker.wait(5)
    assert (ended.code, ended.out, said(ended.err)) == (130, "", [FINISHING, SAID])
    assert rows_recorded(project / "cache") == recorded + 16
    resumes(shops.both[0], project, undisturbed)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_one_ends_it_at_once(
    shops: Shops, project: Path, undisturbed: dict[str, Any], first: signal.Signals, second: signal.Signals
) -> None:
    worker = start(shops.both[0], project, 20)
    until(lambda: any(project.glob("cache/*/leases/0.*")))
    time.sleep(0.2)
    worker.send(first)
    assert not worker.ended(0.3)
    worker.send(second)
    ended = worker.wait(3)
    assert (ended.code, ended.out) == (130, "")
    assert set(said(ended.err)) == {FINISHING, SAID}
    assert rows_recorded(project / "cache") == 0
    resumes(shops.both[0], project, undisturbed)


def test_at_any_moment(shops: Shops, bare: Path, undisturbed: dict[str, Any]) -> None:
    def trial(shop: Workshop, number: int) -> int:
        generator = random.Random(number)
        mine = shutil.copytree(bare, bare.with_name(f"{bare.name}-{number}"))
        worker = start(shop, mine, 0.01)
        time.sleep(generator.uniform(0.005, 0.6))
        worker.send(SIGNALS[number % 2])
        ended: Ended = worker.wait(10)
        if "computed" not in ended.out:  # else it was all done before
            assert ended.code == 130, ended
            assert said(ended.err) in ([SAID], [FINISHING, SAID])
        resumes(shop, mine, undisturbed)
        shutil.rmtree(mine)
        return ended.code

    assert shops.each(trial, range(24)).count(130) >= 8


def test_while_the_real_command_starts(made: Made, tmp_path: Path) -> None:
    """At any time from the first line of ours on: imports of large libraries, images, the network."""

    def trial(delay_s: float) -> None:
        folder = tmp_path / f"{delay_s}"
        shutil.copytree(made.folder, folder, ignore=shutil.ignore_patterns("cache"))
        process = subprocess.Popen(
            (FEATCACHE, *EXTRACT), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        until((folder / "cache").is_dir)
        time.sleep(delay_s)
        process.send_signal(SIGNALS[int(delay_s * 10) % 2])
        out, err = process.communicate(timeout=60)
        if "computed" in out:  # all of it was one shard, and that was in hand
            assert (process.returncode, said(err)) == (0, [FINISHING])
        else:
            assert process.returncode == 130
            assert said(err) in ([SAID], [FINISHING, SAID])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(trial, (0.0, 0.1, 0.3, 0.6, 0.9, 1.3)))
