"""A disk that fills up, turns read-only or loses the cache: one clear error, nothing half visible, and a resume."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from faults import MODEL, Shops, contents, make_project, only_cache, remount, rows_recorded, same, small_disk
from workshop import Ended, Workshop

from featcache.core.errors import CacheNotFoundError
from featcache.store._verify import verify

VIEWS = 5
ROWS = 12 * VIEWS
"""Four shards, the last one short."""

ENOUGH = "size=16m,nr_inodes=10000"
WRITABLE = "mode=755"


@pytest.fixture(scope="module")
def undisturbed(shops: Shops, quick: Path, cells: Path, format_: str) -> dict[str, Any]:
    parent = quick / f"calm-{format_}"
    assert shops.both[0].run("fill", parent, cells, format_, VIEWS, neat=True).returned == {"computed": ROWS}
    return contents(only_cache(parent))


@pytest.fixture
def disks(quick: Path, tmp_path: Path) -> Iterator[Disks]:
    with ExitStack() as mounted:
        disks = Disks(mounted, quick / f"disks-{tmp_path.name}")
        try:
            disks.mount("probe", ENOUGH)
        except OSError as error:
            pytest.skip(f"{error}: run the tests as root to have this one")
        yield disks


class Disks:
    """Small disks, until the test's end."""

    def __init__(self, mounted: ExitStack, folder: Path) -> None:
        folder.mkdir()
        self._mounted, self._folder = mounted, folder

    def mount(self, name: str, options: str) -> Path:
        return self._mounted.enter_context(small_disk(self._folder / name, options))


def one_clear_error(ended: Ended, folder: Path) -> None:
    """CacheWriteError, with one line that names the folder and says what to do; and not a word from anyone else."""
    assert (ended.code, ended.out, ended.err) == (1, "", ""), ended
    assert ended.value["error"] == "CacheWriteError", ended
    message = ended.value["message"]
    assert message.startswith(str(folder))
    assert message.endswith("mend the cause and run the same command again")
    assert "\n" not in message
    assert len(message) < 600


def no_cache_yet(parent: Path) -> None:
    """What is there is not taken for a cache."""
    for folder in parent.glob("*"):
        with pytest.raises(CacheNotFoundError):
            verify(folder)


def resumes(shop: Workshop, parent: Path, cells: Path, format_: str, undisturbed: dict[str, Any]) -> None:
    """Nothing that was recorded is computed again, and the cache is the undisturbed one."""
    left = ROWS - rows_recorded(parent)
    assert shop.run("fill", parent, cells, format_, VIEWS).returned == {"computed": left}
    same(only_cache(parent), undisturbed)


def until_it_fits(kind: str, amounts: range, shops: Shops, disks: Disks, *args: Any) -> int:
    """Trials with more and more room, until one has enough. Returns how many had not."""
    cells, format_, undisturbed = args

    def trial(shop: Workshop, amount: int) -> bool:
        disk = disks.mount(f"{kind}-{amount}", f"{ENOUGH},{kind}={amount}")
        parent = disk / "cache"
        ended = shop.run("fill", parent, cells, format_, VIEWS, neat=kind == "size")
        if ended.code == 0:
            same(only_cache(parent), undisturbed)
            return False
        one_clear_error(ended, parent)
        no_cache_yet(parent)
        assert remount(str(disk), options=ENOUGH)
        resumes(shop, parent, cells, format_, undisturbed)
        return True

    failed = shops.each(trial, amounts)
    assert failed == sorted(failed, reverse=True)  # more room is never worse
    assert not failed[-1]
    return sum(failed)


def test_a_disk_that_fills_up_at_every_page(
    shops: Shops, disks: Disks, cells: Path, format_: str, undisturbed: dict[str, Any]
) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    most = sum(-(-len(content) // page) for content in undisturbed.values() if isinstance(content, bytes))
    sizes = range(page, (2 * most + 10) * page, page)
    assert until_it_fits("size", sizes, shops, disks, cells, format_, undisturbed) >= most - 1


def test_a_disk_without_room_for_one_more_file(
    shops: Shops, disks: Disks, cells: Path, format_: str, undisturbed: dict[str, Any]
) -> None:
    most = len(undisturbed)
    assert until_it_fits("nr_inodes", range(2, most + 20), shops, disks, cells, format_, undisturbed) >= most


@pytest.mark.parametrize("limit", [1, 300, 700, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000])
def test_files_that_may_not_grow(
    shops: Shops, quick: Path, cells: Path, format_: str, undisturbed: dict[str, Any], limit: int
) -> None:
    parent = quick / f"limit-{limit}-{format_}"
    ended = shops.both[0].run("fill", parent, cells, format_, VIEWS, fault=("file limit", limit), neat=True)
    largest = max(len(content) for content in undisturbed.values() if isinstance(content, bytes))
    assert limit >= largest or ended.code == 1
    if ended.code:
        one_clear_error(ended, parent)
        no_cache_yet(parent)
    resumes(shops.both[0], parent, cells, format_, undisturbed)


def test_a_disk_that_turns_read_only(
    shops: Shops, disks: Disks, quick: Path, cells: Path, format_: str, undisturbed: dict[str, Any]
) -> None:
    log = quick / f"disk-steps-{format_}"
    shops.both[0].run("fill", quick / f"disk-traced-{format_}", cells, format_, VIEWS, fault=("traced", log))
    n_steps = len(log.read_text().splitlines())

    def trial(shop: Workshop, step: int) -> bool:
        disk = disks.mount(f"ro-{step}", ENOUGH)
        parent = disk / "cache"
        parent.mkdir()
        ended = shop.run("fill", parent, cells, format_, VIEWS, fault=("read-only", disk, step), neat=step % 3 == 0)
        if ended.code:
            one_clear_error(ended, parent)
            assert "Read-only file system" in ended.value["message"]
        if finished := any(parent.glob("*/manifest.json")):  # all that was left to do was to tidy up
            assert verify(only_cache(parent)).sound
        else:
            assert ended.code
            no_cache_yet(parent)
        assert remount(str(disk), options=WRITABLE)
        resumes(shop, parent, cells, format_, undisturbed)
        return finished

    finished = shops.each(trial, range(0, n_steps, 4))
    assert sum(finished) <= 4


@pytest.mark.parametrize("to", [None, "elsewhere"])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_cache_that_vanishes(
    shops: Shops, quick: Path, cells: Path, format_: str, undisturbed: dict[str, Any], batch: int, to: str | None
) -> None:
    parent, aside = quick / f"gone-{format_}-{batch}-{to}", quick / f"aside-{format_}-{batch}"
    fault = ("vanishing", batch, to and aside)
    one_clear_error(shops.both[0].run("fill", parent, cells, format_, VIEWS, fault=fault, neat=True), parent)
    assert not any(parent.iterdir())
    if to:
        aside.rename(parent / only_cache(quick / f"calm-{format_}").name)
    resumes(shops.both[0], parent, cells, format_, undisturbed)


def test_a_wall_clock_that_jumps(
    shops: Shops, quick: Path, cells: Path, format_: str, undisturbed: dict[str, Any]
) -> None:
    """Four at once, as on four machines: each can tell by beats alone that the others live."""
    parent, shop = quick / f"clock-{format_}", shops.both[0]
    workers = [
        shop.start(
            "fill", parent, cells, format_, VIEWS, fault=("clock", seed), pause_s=0.02, host=str(seed), dead_after_s=1
        )
        for seed in range(4)
    ]
    assert sum(worker.wait(15).returned["computed"] for worker in workers) == ROWS
    same(only_cache(parent), undisturbed)


def test_the_command_on_a_full_disk_says_one_line_and_goes_on_later(
    shops: Shops, disks: Disks, quick: Path, format_: str
) -> None:
    project = make_project(shops.both[0], quick / f"full-{format_}")
    settings = (project / "featcache.toml").read_text()
    assert 'cache = "cache"' in settings
    extract = (*MODEL, "--format", format_)
    assert shops.both[0].run("command", project, *extract).code == 0
    expected = contents(next((project / "cache").glob("tiny-*")))

    def trial(shop: Workshop, pages: int) -> bool:
        disk = disks.mount(f"command-{pages}", f"size={pages * os.sysconf('SC_PAGE_SIZE')}")
        mine = shutil.copytree(project, quick / f"full-{format_}-{pages}", ignore=shutil.ignore_patterns("cache"))
        (mine / "featcache.toml").write_text(settings.replace('cache = "cache"', f'cache = "{disk}/cache"'))
        ended = shop.run("command", mine, *extract, neat=True)
        if failed := ended.code != 0:
            assert (ended.code, ended.out) == (1, "")
            (line,) = ended.err.splitlines()
            assert line.startswith("featcache: ")
            assert "cannot be written" in line
            assert "No space left" in line
            no_cache_yet(disk / "cache")
            assert remount(str(disk), options=ENOUGH)
            assert shop.run("command", mine, *extract).code == 0
        same(next((disk / "cache").glob("tiny-*")), expected)
        return failed

    failed = shops.each(trial, range(1, 42, 2))
    assert failed[0]
    assert not failed[-1]
    assert sum(failed) >= 5


def test_the_command_in_a_folder_that_is_read_only(shops: Shops, disks: Disks, quick: Path, format_: str) -> None:
    disk = disks.mount("read-only", ENOUGH)
    project = make_project(shops.both[0], disk / "project")
    assert remount(str(disk), read_only=True)
    ended = shops.both[0].run("command", project, *MODEL, "--format", format_, neat=True)
    assert (ended.code, ended.out) == (1, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("featcache: ")
    assert "Read-only file system" in line
    assert remount(str(disk), options=WRITABLE)
    assert shops.both[0].run("command", project, *MODEL, "--format", format_).code == 0
