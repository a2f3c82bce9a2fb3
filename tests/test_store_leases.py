"""Leases: each name held by one process at a time, the dead replaced, the living and the sleeping left in peace."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featcache.core import leases as module
from featcache.core.files import PARTIAL_SUFFIX
from featcache.core.leases import Leases, alone_with

WORKER = """
import errno, os, random, sys, time
from pathlib import Path
from featcache.core.leases import Leases, alone_with
folder, names, go, links = Path(sys.argv[1]), sys.argv[2].split(), Path(sys.argv[3]), sys.argv[4]
if links == "no links":
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")
    os.link = refuse
leases = Leases(folder)
random.shuffle(names)
while not go.exists():
    time.sleep(0.001)
print(*(name for name in names if leases.claim(name)), flush=True)
sys.stdin.read()
"""
"""Claims every name that it gets, says which, and holds them until it is told to end."""


@contextlib.contextmanager
def workers(folder: Path, names: list[str], n: int, links: str = "links") -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that claim `names` as soon as all are up. Those that are alive in the end are killed."""
    go = folder.parent / f"go {n} {names[0]}"
    args = (sys.executable, "-c", WORKER, folder, " ".join(names), go, links)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    started = [subprocess.Popen(args, **pipes) for _ in range(n)]
    try:
        go.touch()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def claimed(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "leases"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and patience are a fortieth of what they are."""
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    monkeypatch.setattr(module, "DEAD_AFTER_S", 0.75)
    monkeypatch.setattr(module, "POLL_S", 0.01)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def far_lease(beat: int = 0) -> bytes:
    """What a worker on another machine writes."""
    return json.dumps({"host": "far away", "pid": 1, "started": "1", "worker": "w", "beat": f"{beat:012d}"}).encode()


# One holder


def test_a_name_is_held_until_it_is_given_back(folder: Path, tmp_path: Path) -> None:
    one, other = Leases(folder), Leases(folder)
    assert one.claim("3")
    assert not other.claim("3")
    assert not one.claim("3")
    assert other.claim("4")
    assert (one.others(), other.others()) == (["4"], ["3"])
    other.release("3")  # not its own
    assert not other.claim("3")
    one.release("3")
    assert other.claim("3")
    assert sorted(other.others()) == []
    assert sorted(one.others()) == ["3", "4"]
    other.close()
    one.close()
    assert names_in(folder) == []


def test_the_folder_is_made_but_not_what_it_lies_in(tmp_path: Path) -> None:
    lost = Leases(tmp_path / "cache" / "leases")
    assert lost.others() == []
    with pytest.raises(FileNotFoundError):
        lost.claim("1")
    (tmp_path / "cache").mkdir()
    assert lost.claim("1")
    lost.close()
    assert names_in(tmp_path / "cache" / "leases") == []


@pytest.mark.parametrize("links", ["links", "no links"])
def test_of_many_processes_one_gets_each_name(folder: Path, links: str) -> None:
    folder.mkdir()
    names = [str(number) for number in range(150)]
    with workers(folder, names, 6, links) as processes:
        got = Counter(name for process in processes for name in claimed(process))
        assert got == Counter(names)
        assert sorted(Leases(folder).others()) == sorted(names)
        assert not Leases(folder).claim("7")
    assert Leases(folder).others() == []


def test_holding_waits_for_its_turn(folder: Path, impatient: None) -> None:
    inside, most = [], []

    def work() -> None:
        mine = Leases(folder)
        for _ in range(5):
            with mine.holding("start"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()
        mine.close()

    threads = [threading.Thread(target=work) for _ in range(5)]
    folder.mkdir()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 25
    assert names_in(folder) == []


def test_holding_gives_back_after_an_error(folder: Path, tmp_path: Path) -> None:
    mine = Leases(folder)
    with pytest.raises(ZeroDivisionError), mine.holding("start"):
        _ = 1 / 0
    assert Leases(folder).claim("start")


# The dead


def test_who_was_killed_on_this_machine_is_replaced_at_once(folder: Path) -> None:
    folder.mkdir()
    with workers(folder, ["a", "b"], 1) as (process,):
        assert sorted(claimed(process)) == ["a", "b"]
        assert not Leases(folder).claim("a")
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: nobody has asked how it ended
        mine, began = Leases(folder), time.monotonic()
        assert mine.claim("a")
        process.wait()
        assert mine.claim("b")
        assert time.monotonic() - began < 5 < module.DEAD_AFTER_S
        assert not Leases(folder).claim("a")
    mine.close()
    assert Leases(folder).others() == []
    assert Leases(folder).claim("a")


def test_a_process_that_stopped_is_not_dead(folder: Path) -> None:
    folder.mkdir()
    with workers(folder, ["a"], 1) as (process,):
        claimed(process)
        process.send_signal(signal.SIGSTOP)
        assert not Leases(folder).claim("a")
        process.send_signal(signal.SIGCONT)


def test_another_process_under_the_same_number_is_another_process(folder: Path) -> None:
    folder.mkdir()
    mine = module._process(os.getpid())
    for name, holder in {"same": mine, "reused": {**mine, "started": "1"}}.items():
        (folder / f"{name}.0").write_text(json.dumps(holder))
    assert Leases(folder).others() == ["same"]
    assert not Leases(folder).claim("same")
    assert Leases(folder).claim("reused")


@pytest.mark.parametrize("links", ["links", "no links"])
def test_of_many_thieves_of_one_dead_lease_one_wins(folder: Path, links: str) -> None:
    folder.mkdir()
    names = [f"n{number}" for number in range(150)]
    with workers(folder, names, 1) as (victim,):
        assert sorted(claimed(victim)) == sorted(names)
    with workers(folder, names, 6, links) as thieves:
        got = Counter(name for thief in thieves for name in claimed(thief))
        assert got == Counter(names)
        assert Counter(path.suffix for path in folder.iterdir()) == {".0": 150, ".1": 150}


def test_a_holder_elsewhere_is_dead_when_its_beat_stands_still(folder: Path, impatient: None) -> None:
    folder.mkdir()
    file = folder / "3.0"
    watcher = Leases(folder)
    began = time.monotonic()
    beats = 0
    while time.monotonic() - began < 1.5:  # twice its patience
        file.write_bytes(far_lease(beats := beats + 1))
        assert not watcher.claim("3")
        assert watcher.others() == ["3"]
        time.sleep(0.05)
    still = time.monotonic()
    while not watcher.claim("3"):
        assert time.monotonic() - still < 30
        time.sleep(0.01)
    assert time.monotonic() - still > 0.65
    assert not Leases(folder).claim("3")
    watcher.close()
    assert names_in(folder) == ["3.0"]


def test_who_comes_later_waits_as_long(folder: Path, impatient: None) -> None:
    """No clock is compared: a lease that looks old may be of a machine whose clock is wrong."""
    folder.mkdir()
    file = folder / "3.0"
    file.write_bytes(far_lease())
    for wall_s in (0, time.time() + 10**6):
        os.utime(file, (wall_s, wall_s))
        assert not Leases(folder).claim("3")


def test_a_clock_on_the_wall_that_jumps_is_no_matter(
    folder: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    file = folder / "3.0"
    file.write_bytes(far_lease())
    watcher, began = Leases(folder), time.monotonic()
    jumps = itertools.cycle([0.0, 4e9, -4e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    assert not watcher.claim("3")
    while time.monotonic() - began < 0.5:
        os.utime(file, (next(jumps) + 5e9,) * 2)
        assert not watcher.claim("3")
    while not watcher.claim("3"):
        assert time.monotonic() - began < 30


def test_a_holder_that_lives_beats(folder: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from another machine, which cannot look at its process; then it falls asleep, and wakes too late."""
    holder = Leases(folder.parent / "leases")
    assert holder.claim("3")
    first = (folder / "3.0").read_bytes()
    monkeypatch.setattr(module, "_process", lambda pid: {"host": "elsewhere", "pid": pid, "started": "1"})
    watcher, began = Leases(folder), time.monotonic()
    while time.monotonic() - began < 2:
        assert not watcher.claim("3")
        time.sleep(0.02)
    assert (folder / "3.0").read_bytes() != first
    assert len((folder / "3.0").read_bytes()) == len(first)
    holder._stopped.set()
    assert not holder.lost("3")
    while not watcher.claim("3"):
        assert time.monotonic() - began < 30
        time.sleep(0.02)
    assert holder.lost("3")
    assert not watcher.lost("3")
    holder.release("3")
    assert not holder.lost("3")
    assert names_in(folder) == ["3.1"]
    watcher.close()


# What may lie there


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        far_lease()[:40],
        b"\xff\xfe\x00",
        b"[]",
        b"7",
        b"null",
        b"[" * 100_000,
        b"\x00" * 200,
        b'{"host": 1, "pid": "x", "started": 3}',
        b'{"host": "HERE", "pid": "x", "started": "1"}',
        b'{"host": "HERE", "pid": null, "started": "1"}',
        b'{"host": "HERE", "pid": 1e999, "started": "1"}',
        b'{"host": "HERE", "pid": NaN, "started": "1"}',
        b'{"host": "HERE", "pid": ' + b"9" * 5000 + b', "started": "1"}',
    ],
    ids=range(15),
)
def test_a_lease_that_says_nothing_is_held_for_a_while(folder: Path, impatient: None, content: bytes) -> None:
    """Its holder may be about to write it."""
    folder.mkdir()
    here = str(module._process(os.getpid())["host"]).encode()
    (folder / "3.0").write_bytes(content.replace(b"HERE", here))
    watcher, began = Leases(folder), time.monotonic()
    assert not watcher.claim("3")
    others = watcher.others()
    assert others == ["3"] or time.monotonic() - began > 0.7, "unless the machine stood still for so long"
    while not watcher.claim("3"):
        assert time.monotonic() - began < 30
        time.sleep(0.02)
    assert time.monotonic() - began > 0.7
    watcher.close()


@pytest.mark.parametrize("pid", [-1, 0, 10**30, int("9" * 3000)])
def test_a_number_that_no_process_of_this_machine_has_is_a_dead_one(folder: Path, pid: int) -> None:
    folder.mkdir()
    holder = {**module._process(os.getpid()), "pid": pid}
    (folder / "3.0").write_text(json.dumps(holder))
    assert Leases(folder).claim("3")


def test_other_files_are_no_leases(folder: Path) -> None:
    folder.mkdir()
    for name in (f".abc{PARTIAL_SUFFIX}", "3", "3.", ".3", "3.x", "3.²", "3.-1", "README.md"):
        (folder / name).write_bytes(far_lease())
    mine = Leases(folder)
    assert mine.others() == []
    assert mine.claim("3")


def test_without_links_nobody_is_shut_out_or_let_in_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    one, other = Leases(folder), Leases(folder)
    assert one.claim("3")
    assert not other.claim("3")
    assert json.loads((folder / "3.0").read_bytes())["pid"] == os.getpid()
    one.close()
    assert other.claim("3")
    assert names_in(folder) == ["3.0"]


def test_a_folder_that_the_last_one_removes_is_made_again(folder: Path) -> None:
    """Whoever finishes a cache removes its leases, maybe while others look there."""
    ended = threading.Event()
    folder.mkdir()

    def remove() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        mine = Leases(folder)
        got = 0
        for number in range(300):
            got += mine.claim(str(number))
            mine.release(str(number))
    finally:
        ended.set()
        remover.join()
    assert got > 0
    mine.close()


def test_a_lease_given_back_while_one_looks_is_no_dead_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed, given back, taken by a third one under the first number: the second must not take the next number."""
    first, second, third = Leases(folder), Leases(folder), Leases(folder)
    assert first.claim("work")
    alive = second._alive

    def slow(file: str) -> bool | None:
        monkeypatch.setattr(second, "_alive", alive)
        first.release("work")
        found = alive(file)
        assert third.claim("work")
        return found

    monkeypatch.setattr(second, "_alive", slow)
    assert not second.claim("work")
    assert not third.lost("work")
    third.release("work")
    assert second.claim("work")


def test_a_dead_lease_whose_folder_was_made_again_while_one_looks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    dead = folder / "work.0"
    dead.write_bytes(json.dumps({**Leases(folder)._worker, "started": "0", "beat": "0"}).encode())
    one, other = Leases(folder), Leases(folder)
    make = one._make

    def slow(file: Path) -> bool:
        dead.unlink()
        assert other.claim("work")
        return make(file)

    monkeypatch.setattr(one, "_make", slow)
    assert not one.claim("work")
    assert not other.lost("work")
    assert names_in(folder) == ["work.0"]


def test_alone_with_lets_nobody_in_twice(tmp_path: Path) -> None:
    """Many short pieces of work, whose folder comes and goes: each reads what the one before wrote."""
    count = tmp_path / "count"
    count.write_text("0")

    def add() -> None:
        for _ in range(60):
            with alone_with(tmp_path / "lock"):
                count.write_text(str(int(count.read_text()) + 1))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.read_text() == "480"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "leases").write_text("")
    with pytest.raises(OSError, match=r"exists|directory"):
        Leases(tmp_path / "leases").claim("3")
