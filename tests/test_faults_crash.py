"""Killed at any moment, an extraction goes on where it stopped, to the same bytes."""

from __future__ import annotations

import functools
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXTRACT, Made, start_command
from faults import FORMATS, Shops, contents, lines, only_cache, rows_recorded, same
from workshop import Workshop

from featcache.core.errors import CacheNotFoundError
from featcache.store._verify import verify
from featcache.store.cache import open_cache

VIEWS = 2
ROWS = 12 * VIEWS
"""Two shards, the second one short."""


@pytest.fixture(scope="module")
def undisturbed(shops: Shops, quick: Path, cells: Path, format_: str) -> dict[str, Any]:
    """What a cache holds that nothing happened to."""
    parent = quick / f"undisturbed-{format_}"
    assert shops.both[0].run("fill", parent, cells, format_, VIEWS).returned == {"computed": ROWS}
    assert verify(only_cache(parent)).sound
    return contents(only_cache(parent))


@pytest.fixture(scope="module")
def steps(shops: Shops, quick: Path, cells: Path, format_: str) -> list[tuple[str, str]]:
    """Every write step of an undisturbed extraction: its name and the file."""
    log, parent = quick / f"steps-{format_}.txt", quick / f"traced-{format_}"
    shops.both[0].run("fill", parent, cells, format_, VIEWS, fault=("traced", log))
    return [tuple(line.split(" ", 1)) for line in log.read_text().replace(" done", "-done").splitlines()]


def never_half_visible(parent: Path) -> None:
    """A cache in the making is no cache; one with a manifest is whole."""
    for folder in parent.iterdir() if parent.is_dir() else ():
        if (folder / "manifest.json").exists():
            assert verify(folder).sound
        else:
            with pytest.raises(CacheNotFoundError, match="never finished"):
                verify(folder)


def goes_on(shop: Workshop, parent: Path, *args: Any, expected: dict[str, Any], **options: Any) -> None:
    """Another extraction computes what no ledger records, and nothing else, and ends at the undisturbed bytes."""
    left = ROWS - rows_recorded(parent)
    assert shop.run("fill", parent, *args, **options).returned == {"computed": left}
    same(only_cache(parent), expected)
    shutil.rmtree(parent)


def test_every_kind_of_write_is_among_the_steps(steps: list[tuple[str, str]], format_: str) -> None:
    """The traces know of each file of a cache; else the trials below would miss some."""
    for name in ("recipe", "rows", "dataset", "manifest", "ledger"):
        assert any(step[0] in ("replace", "open", "create") for step in steps), name
    kinds = {name for name, _ in steps}
    assert kinds >= {"mkdir", "open", "opened", "fsync", "replace", "unlink", "rmdir", "link", "create", "write"}
    assert kinds >= {"parquet", "parquet-done"} | ({"hdf5", "chunk", "close"} if format_ == "hdf5" else set())
    assert sum(name == "create" and file.endswith("ledger.jsonl") for name, file in steps) == 2


def test_killed_before_each_step(
    shops: Shops, quick: Path, cells: Path, format_: str, undisturbed: dict[str, Any], steps: list[Any]
) -> None:
    def trial(shop: Workshop, step: int) -> None:
        parent = quick / f"step-{format_}-{step}"
        assert shop.run("fill", parent, cells, format_, VIEWS, fault=("killed", step)).code == -signal.SIGKILL
        never_half_visible(parent)
        goes_on(shop, parent, cells, format_, VIEWS, expected=undisturbed)

    shops.each(trial, range(len(steps)))


def test_a_line_of_the_ledger_torn(
    shops: Shops, quick: Path, cells: Path, format_: str, undisturbed: dict[str, Any], steps: list[Any]
) -> None:
    def trial(shop: Workshop, step: int) -> None:
        parent = quick / f"torn-{format_}-{step}"
        assert shop.run("fill", parent, cells, format_, VIEWS, fault=("torn", step)).code == -signal.SIGKILL
        ledger = only_cache(parent) / "ledger.jsonl"
        assert not ledger.read_bytes().endswith(b"\n")
        recorded = rows_recorded(parent)
        if not recorded:  # the line behind the torn one is believed, too
            again = shop.run("fill", parent, cells, format_, VIEWS, fault=("killed in batch", 1))
            assert again.code == -signal.SIGKILL
            assert rows_recorded(parent) == recorded + 16
        goes_on(shop, parent, cells, format_, VIEWS, expected=undisturbed)

    shops.each(trial, [number for number, (name, _) in enumerate(steps) if name == "create"])


def test_a_power_cut_loses_what_no_fsync_kept_and_no_more(
    shops: Shops, quick: Path, cells: Path, format_: str, undisturbed: dict[str, Any], steps: list[Any]
) -> None:
    def trial(shop: Workshop, step: int) -> None:
        parent = quick / f"power-{format_}-{step}"
        assert shop.run("fill", parent, cells, format_, VIEWS, fault=("powerless", step)).code == -signal.SIGKILL
        never_half_visible(parent)
        goes_on(shop, parent, cells, format_, VIEWS, expected=undisturbed, dead_after_s=0.05)

    replaced = [number for number, (name, _) in enumerate(steps) if name in ("replace", "write")]
    shops.each(trial, sorted({number + 1 for number in replaced} & set(range(len(steps)))))


def test_killed_at_40_random_moments_some_of_them_in_a_row(
    shops: Shops, quick: Path, cells: Path, format_: str
) -> None:
    """Of more shards, and by a clock, so that it also happens in the middle of what is one step above."""
    views, rows = 9, 108
    whole = quick / f"whole-{format_}"
    began = time.monotonic()
    assert shops.both[0].run("fill", whole, cells, format_, views, pause_s=0.004).returned == {"computed": rows}
    took_s = time.monotonic() - began
    expected = contents(only_cache(whole))

    def trial(shop: Workshop, number: int) -> int:
        generator = random.Random(number)
        parent, log = quick / f"moment-{format_}-{number}", quick / f"moment-{format_}-{number}.log"
        killed = 0
        for _ in range(1 + number % 4):
            worker = shop.start("fill", parent, cells, format_, views, log=log, pause_s=0.004)
            time.sleep(generator.uniform(0, took_s))
            worker.send(signal.SIGKILL)
            code = worker.wait().code
            assert code in (0, -signal.SIGKILL)
            killed += code != 0
            never_half_visible(parent)
        left = rows - rows_recorded(parent)
        before = len(lines(log))
        assert shop.run("fill", parent, cells, format_, views, log=log).returned == {"computed": left}
        assert len(lines(log)) - before == left
        same(only_cache(parent), expected)
        shutil.rmtree(parent)
        return killed

    kills = 0
    for first in range(0, 100, 20):
        kills += sum(shops.each(trial, range(first, first + 20)))
        if kills >= 40:
            return
    raise AssertionError(f"only {kills} of all workers were killed before they ended")


WITH_SMALL_SHARDS = """
import featcache.store.layout
featcache.store.layout._MAX_ROWS_PER_SHARD = 16
from featcache.cli import main
main()
"""


def test_the_real_command_with_a_real_network_killed(made: Made, tmp_path: Path) -> None:
    """Once of each format when a shard is there; `made` was made without."""

    def run(format_: str) -> None:
        folder = shutil.copytree(made.folder, tmp_path / format_, ignore=shutil.ignore_patterns(made.cache.name))
        begin = functools.partial(start_command, *EXTRACT, "--format", format_, cwd=folder, program=WITH_SMALL_SHARDS)
        worker = begin()
        while not rows_recorded(folder / "cache"):
            assert not worker.ended(), worker.wait()
            time.sleep(0.001)
        worker.send(signal.SIGKILL)
        assert worker.wait().code == -signal.SIGKILL
        assert begin().wait().code == 0
        cache = next(folder.glob("cache/mobilenetv2-*"))
        assert verify(cache).sound
        np.testing.assert_array_equal(open_cache(cache).features[:], open_cache(made.cache).features[:])
        for name in ("recipe.json", "rows.parquet", "dataset.parquet"):
            assert (cache / name).read_bytes() == (made.cache / name).read_bytes()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, FORMATS))
