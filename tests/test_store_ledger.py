"""The ledger of a cache in the making, read while others append to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.store import ledger
from featcache.store.ledger import Follower, ShardRecord


def record(shard: int, digest: str = "a") -> ShardRecord:
    return ShardRecord(shard, shard * 10, shard * 10 + 10, 100, digest)


def test_a_follower_sees_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    follower = Follower(path)
    assert follower.fresh() == {}
    ledger.append(path, record(0))
    ledger.append(path, record(1))
    assert follower.fresh() == {0: record(0), 1: record(1)}
    assert follower.fresh() == {}
    ledger.append(path, record(1, "b"))
    assert follower.fresh() == {1: record(1, "b")}


def test_a_line_that_is_only_half_there_counts_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    follower = Follower(path)
    ledger.append(path, record(0))
    line = path.read_bytes()
    with path.open("ab") as file:
        file.write(line[:10].replace(b"0", b"1"))
    assert follower.fresh() == {0: record(0)}
    assert follower.fresh() == {}
    ledger.append(path, record(2))  # closes the torn line
    assert follower.fresh() == {2: record(2)}


@pytest.mark.parametrize("is_shorter", [True, False])
def test_another_file_in_its_place_is_read_from_its_start(tmp_path: Path, is_shorter: bool) -> None:
    path = tmp_path / "ledger.jsonl"
    follower = Follower(path)
    for shard in range(4):
        ledger.append(path, record(shard))
    assert set(follower.fresh()) == {0, 1, 2, 3}
    path.rename(tmp_path / "old")
    assert follower.fresh() == {}
    others = [record(shard, "c") for shard in range(2 if is_shorter else 9)]
    ledger.write(path, others)
    assert follower.fresh() == {one.shard: one for one in others}


def test_whatever_is_appended_between_looks_it_is_what_one_reading_finds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for course in range(20):
        path = tmp_path / f"{course}.jsonl"
        follower, found = Follower(path), {}
        for step in range(60):
            kind = generator.integers(4)
            if kind == 0:
                with path.open("ab") as file:
                    file.write(generator.bytes(int(generator.integers(0, 20))))
            elif kind == 1:
                found.update(follower.fresh())
            else:
                ledger.append(path, record(int(generator.integers(9)), str(step)))
        found.update(follower.fresh())
        assert found == ledger.read(path)
