"""Several extractions at once on one cache: no row is lost, none computed twice, nobody waits for the dead."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXTRACT, Made, start_command
from faults import ROWS_PER_SHARD, Shops, contents, lines, only_cache, rows_recorded, same
from workshop import Worker

from featcache.store._verify import verify
from featcache.store.cache import open_cache

VIEWS = 30
ROWS = 12 * VIEWS
"""23 shards, the last one short."""

SOON_S = 15
"""All are done by then; a lease whose holder cannot be known to be dead stands for twice as long."""

IN_HAND = 4 * ROWS_PER_SHARD
"""What one worker holds that is not in the cache yet: a shard that it computes, two that wait, one that is rendered.

Tests allow twice as much: on a busy machine a beat may come late, so that one more is taken for dead."""


@pytest.fixture(scope="module")
def undisturbed(shops: Shops, quick: Path, cells: Path, format_: str) -> tuple[dict[str, Any], list[str]]:
    """What a cache holds that one worker made alone, and the rows in it."""
    parent, log = quick / f"alone-{format_}", quick / f"alone-{format_}.log"
    assert shops.both[0].run("fill", parent, cells, format_, VIEWS, log=log).returned == {"computed": ROWS}
    computed = lines(log)
    assert len(set(computed)) == len(computed) == ROWS
    return contents(only_cache(parent)), sorted(computed)


class Team:
    """Four workers on one cache, and what they computed."""

    def __init__(self, folder: Path, start: Callable[..., Worker], late_s: float = 0.0) -> None:
        self.parent, self.logs = folder / "cache", [folder / f"{number}.log" for number in range(4)]
        folder.mkdir(exist_ok=True)
        self.workers = []
        for number, log in enumerate(self.logs):
            self.workers.append(start(self.parent, number, log))
            time.sleep(late_s)

    def until(self, happened: Callable[[], bool]) -> None:
        end = time.monotonic() + SOON_S
        while not happened():
            assert time.monotonic() < end
            time.sleep(0.001)

    def busy(self) -> int:
        """One that has computed rows."""
        self.until(lambda: any(map(lines, self.logs)))
        return next(number for number, log in enumerate(self.logs) if lines(log))

    def others(self, than: int) -> list[int]:
        return [number for number in range(4) if number != than]

    def until_rows(self, rows: int) -> None:
        self.until(lambda: rows_recorded(self.parent) >= rows)

    def end(self, of: Sequence[int] = range(4)) -> list[int]:
        """Wait for some of them. Returns how many rows each says it has computed."""
        began = time.monotonic()
        computed = [self.workers[number].wait(SOON_S).returned["computed"] for number in of]
        assert time.monotonic() - began < SOON_S
        return computed

    def computed(self) -> Counter[str]:
        return Counter(row for log in self.logs for row in lines(log))


@pytest.fixture
def team(shops: Shops, quick: Path, tmp_path: Path, cells: Path, format_: str) -> Iterator[Callable[..., Team]]:
    """Starts a team."""
    folder = quick / tmp_path.name

    def begin(late_s: float = 0.0, machines: bool = False, **options: Any) -> Team:
        shop = shops.both[0]

        def start(parent: Path, number: int, log: Path) -> Worker:
            host = {"host": f"machine-{number}", "dead_after_s": 1.5} if machines else {}
            return shop.start("fill", parent, cells, format_, VIEWS, log=log, **host, **{"pause_s": 0.03, **options})

        return Team(folder, start, late_s)

    yield begin
    shutil.rmtree(folder)


Undisturbed = tuple[dict[str, Any], list[str]]


@pytest.mark.parametrize("late_s", [0.0, 0.1])
@pytest.mark.parametrize("machines", [False, True])
def test_four_share_the_rows(
    team: Callable[..., Team], undisturbed: Undisturbed, late_s: float, machines: bool
) -> None:
    four = team(late_s, machines)
    computed = four.end()
    assert sum(computed) == ROWS
    assert sorted(four.computed().elements()) == undisturbed[1]
    assert [len(lines(log)) for log in four.logs] == computed
    assert sum(rows > 0 for rows in computed) >= 2  # they did share it
    same(only_cache(four.parent), undisturbed[0])


@pytest.mark.parametrize("machines", [False, True])
def test_one_is_killed_in_the_middle(team: Callable[..., Team], undisturbed: Undisturbed, machines: bool) -> None:
    four = team(machines=machines)
    four.until_rows(ROWS // 4)
    one = four.busy()
    four.workers[one].send(signal.SIGKILL)
    four.end(four.others(one))
    assert four.workers[one].wait().code == -signal.SIGKILL
    computed = four.computed()
    assert sorted(computed) == undisturbed[1]
    assert computed.total() - ROWS <= 2 * IN_HAND
    same(only_cache(four.parent), undisturbed[0])


def test_one_is_asleep_for_a_while(team: Callable[..., Team], undisturbed: Undisturbed) -> None:
    """On one machine it is known not to be dead: its shard is waited for, and computed once."""
    four = team()
    one = four.busy()
    four.workers[one].send(signal.SIGSTOP)
    recorded = -1
    while rows_recorded(four.parent) != recorded:
        recorded = rows_recorded(four.parent)
        time.sleep(0.3)
    four.workers[one].send(signal.SIGCONT)
    assert sum(four.end()) == ROWS
    assert sorted(four.computed().elements()) == undisturbed[1]
    same(only_cache(four.parent), undisturbed[0])


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
def test_one_wakes_up_when_all_is_done(team: Callable[..., Team], undisturbed: Undisturbed, pause_s: float) -> None:
    """On other machines it counts as dead: its shard is computed again, and what it still does changes nothing."""
    four = team(machines=True, pause_s=pause_s)
    one = four.busy()
    four.workers[one].send(signal.SIGSTOP)
    four.end(four.others(one))
    four.workers[one].send(signal.SIGCONT)
    four.end((one,))
    computed = four.computed()
    assert sorted(computed) == undisturbed[1]
    assert computed.total() - ROWS <= 2 * IN_HAND
    assert verify(only_cache(four.parent)).sound
    same(only_cache(four.parent), undisturbed[0])


def test_a_slow_one_is_not_taken_for_dead(shops: Shops, quick: Path, tmp_path: Path, cells: Path, format_: str) -> None:
    """Its shards take three times as long as a beat may stand still. Two of the four can but watch."""
    parent, shop = quick / tmp_path.name, shops.both[0]
    options = {"pause_s": 2.2, "dead_after_s": 0.8}
    workers = [shop.start("fill", parent, cells, format_, 5, host=f"machine-{n}", **options) for n in range(4)]
    assert sum(worker.wait(SOON_S).returned["computed"] for worker in workers) == 60
    assert verify(only_cache(parent)).sound
    shutil.rmtree(parent)


def test_all_are_killed_again_and_again(team: Callable[..., Team], undisturbed: Undisturbed) -> None:
    four = team()
    for _ in range(4):
        before = rows_recorded(four.parent)
        four.until_rows(before + 2 * ROWS_PER_SHARD)
        for worker in four.workers:
            worker.send(signal.SIGKILL)
        assert {worker.wait().code for worker in four.workers} == {-signal.SIGKILL}
        recorded = rows_recorded(four.parent)
        four = team()
    assert sum(four.end()) == ROWS - recorded
    assert four.computed().total() - ROWS <= 4 * 4 * ROWS_PER_SHARD
    same(only_cache(four.parent), undisturbed[0])


WITH_SMALL_SHARDS = """
import os, time
from pathlib import Path
import featcache.store.layout
from featcache.extraction import opening

load = opening.open_network

def loaded_by_both(*args, **options):
    network = load(*args, **options)
    Path(f"{os.getpid()}.ready").touch()
    while len(list(Path().glob("*.ready"))) < 2:
        time.sleep(0.001)
    return network

featcache.store.layout._MAX_ROWS_PER_SHARD = 16
opening.open_network = loaded_by_both
from featcache.cli import main
main()
"""


def test_two_real_commands_with_a_real_network(made: Made, tmp_path: Path) -> None:
    project = shutil.copytree(made.folder, tmp_path / "project", ignore=shutil.ignore_patterns(made.cache.name))
    command = (*EXTRACT, "--views", "24", "--json")
    workers = [start_command(*command, cwd=project, program=WITH_SMALL_SHARDS) for _ in range(2)]
    ended = [worker.wait(120) for worker in workers]
    assert [one.code for one in ended] == [0] * 2, ended
    done = [json.loads(one.out) for one in ended]
    for one, value in zip(ended, done, strict=True):  # what was done; by what and where the time went, if anything was
        lines = [line for line in one.err.splitlines() if "E0000" not in line]  # TensorFlow's of a missing GPU
        assert len(lines) == (3 if value["computed"] else 1), one.err
    (rows,) = {value["rows"] for value in done}
    assert sum(value["computed"] for value in done) == rows == 16 * 24 + 8
    cache = Path(done[0]["path"])
    assert verify(cache).sound
    whole = open_cache(made.cache)
    mine = open_cache(cache)
    plain = [frame.views.query("view == 0")["row"].to_numpy() for frame in (mine, whole)]
    np.testing.assert_array_equal(mine.features[plain[0]], whole.features[plain[1]])
