"""Whatever happens to a file of a cache, verify finds it, and repair makes again what is lost and nothing else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import pytest
from faults import FORMATS, MODEL, Shops, contents, lines, make_project, same
from workshop import Workshop

from featcache.core.errors import CacheNotFoundError
from featcache.store._verify import Verified, verify

ROWS = 16 * 3 + 8 * 1
"""Of 24 images, 16 of them for training, three views each: three shards and a short one."""


@dataclass(frozen=True)
class Intact:
    """A project with one sound cache."""

    project: Path
    cache: Path
    contents: dict[str, Any]

    @property
    def files(self) -> list[str]:
        return sorted(name for name, content in self.contents.items() if content != "folder")

    def copy(self, to: Path) -> Intact:
        shutil.copytree(self.project, to)
        return Intact(to, to / self.cache.relative_to(self.project), self.contents)

    def shards(self) -> list[str]:
        return [name for name in self.files if "/c/" in name]


@pytest.fixture(scope="module", params=FORMATS)
def intact(shops: Shops, quick: Path, request: pytest.FixtureRequest) -> Intact:
    shop = shops.both[0]
    project = make_project(shop, quick / f"intact-{request.param}")
    done = json.loads(shop.run("command", project, *MODEL, "--format", request.param, "--json").out)
    assert done["computed"] == ROWS
    cache = Path(done["path"])
    found = verify(cache)
    assert found.sound
    assert not found.remarks
    return Intact(project, cache, contents(cache))


@pytest.fixture
def mine(intact: Intact, quick: Path, tmp_path: Path) -> Iterator[Intact]:
    """A copy of a test's own."""
    copied = intact.copy(quick / tmp_path.name)
    yield copied
    shutil.rmtree(copied.project)


def is_found(cache: Path) -> Verified | None:
    """What verify says: damaged; None where it says that there is no finished cache."""
    try:
        found = verify(cache)
    except CacheNotFoundError:
        return None
    assert not found.sound
    assert all(problem.what for problem in found.problems)
    return found


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def test_each_of_300_flipped_bits_is_found(mine: Intact) -> None:
    """Half of them in files chosen by their sizes, half in files chosen alike, so that small ones are hit too."""
    generator = random.Random(0)
    whole = {name: (mine.cache / name).read_bytes() for name in mine.files}
    sizes = [len(whole[name]) for name in mine.files]
    hit = set()
    for number in range(300):
        (name,) = generator.choices(mine.files, sizes if number % 2 else None)
        flip(mine.cache / name, generator.randrange(8 * len(whole[name])))
        found = is_found(mine.cache)
        assert found
        assert name in {problem.file for problem in found.problems}
        (mine.cache / name).write_bytes(whole[name])
        hit.add(name)
    assert hit == set(mine.files)
    assert verify(mine.cache).sound


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def to_length(length: Callable[[int], int]) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes((data + b"\0")[: length(len(data))])

    return cut


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit": lambda path: flip(path, 8 * (path.stat().st_size // 2)),
    "emptied": to_length(lambda length: 0),
    "half": to_length(lambda length: length // 2),
    "one byte less": to_length(lambda length: length - 1),
    "one byte more": to_length(lambda length: length + 1),
    "removed": Path.unlink,
    "a folder": replaced_by_folder,
    "a link to nothing": replaced_by_link_to_nothing,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_of_each_file_is_found(mine: Intact, damage: str) -> None:
    for name in mine.files:
        path = mine.cache / name
        aside = path.read_bytes()
        DAMAGES[damage](path)
        found = is_found(mine.cache)
        if found is None:  # a commit record that is not there at all: never finished
            assert name == "manifest.json"
        else:
            assert name in {problem.file for problem in found.problems}
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(aside)
    assert verify(mine.cache).sound


def test_two_files_in_each_others_place_are_found(mine: Intact) -> None:
    for one, other in combinations(mine.files, 2):
        a, b = mine.cache / one, mine.cache / other
        before = a.read_bytes(), b.read_bytes()
        a.write_bytes(before[1])
        b.write_bytes(before[0])
        found = is_found(mine.cache)
        assert found
        assert {one, other} & {problem.file for problem in found.problems}
        a.write_bytes(before[0])
        b.write_bytes(before[1])
    assert verify(mine.cache).sound


def repaired(shop: Workshop, mine: Intact) -> tuple[int, list[int]]:
    """Repair with the command line. Returns the rows that the backbone computed, and the damaged shards."""
    log = mine.project / "computed.log"
    log.unlink(missing_ok=True)
    damaged = list(verify(mine.cache).damaged_shards)
    done = shop.run("command", mine.project, "verify", mine.cache.name, "--repair", "--json", log=log)
    assert done.code == 0, done
    value = json.loads(done.out)
    assert (value["sound"], value["problems"], value["remarks"]) == (True, [], []), done
    assert value["repaired_rows"] == len(lines(log))
    same(mine.cache, mine.contents)
    assert verify(mine.cache).sound
    return len(lines(log)), damaged


def rows_of(shards: list[int]) -> int:
    return sum(min(ROWS, (shard + 1) * 16) - shard * 16 for shard in shards)


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_of_each_file_is_repaired(shops: Shops, intact: Intact, quick: Path, damage: str) -> None:
    def trial(shop: Workshop, name: str) -> None:
        mine = intact.copy(quick / f"{damage}-{name}-{intact.project.name}".replace("/", "-"))
        DAMAGES[damage](mine.cache / name)
        computed, damaged = repaired(shop, mine)
        assert computed == rows_of(damaged)
        if name in mine.shards():
            assert damaged == [mine.shards().index(name)]
        elif name.endswith(".h5") and damage != "one byte more":
            assert damaged
        else:
            assert computed == 0
        shutil.rmtree(mine.project)

    names = intact.files
    if damage in ("removed", "a folder", "a link to nothing"):  # of the manifest: never finished, so not damaged
        names = [name for name in names if name != "manifest.json"]
    shops.each(trial, names)


def test_bits_flipped_anywhere_are_repaired_to_the_bytes_that_were(shops: Shops, intact: Intact, quick: Path) -> None:
    """Also those that no decoder looks at, such as names, or the room between two chunks."""

    def trial(shop: Workshop, number: int) -> None:
        generator = random.Random(number)
        mine = intact.copy(quick / f"bit-{number}-{intact.project.name}")
        array = "features.h5" if "features.h5" in mine.files else "features.zarr/zarr.json"
        name = array if number % 2 else generator.choice(mine.files)
        flip(mine.cache / name, generator.randrange(8 * (mine.cache / name).stat().st_size))
        computed, damaged = repaired(shop, mine)
        assert computed == rows_of(damaged)
        shutil.rmtree(mine.project)

    shops.each(trial, range(40))


def test_only_rows_of_damaged_shards_are_computed(shops: Shops, mine: Intact) -> None:
    if mine.cache.name.endswith("hdf5"):
        path = mine.cache / "features.h5"
        with h5py.File(path) as file:
            array = file["features"].id
            places = [array.get_chunk_info(number) for number in (0, 3)]
        for place in places:
            flip(path, 8 * (place.byte_offset + place.size // 2))
    else:
        for name in (mine.shards()[0], mine.shards()[3]):
            flip(mine.cache / name, 1000)
    assert repaired(shops.both[0], mine) == (16 + 8, [0, 3])


def test_a_manifest_that_is_gone_is_made_again_by_extract(shops: Shops, mine: Intact) -> None:
    for spoil in (Path.unlink, replaced_by_folder, replaced_by_link_to_nothing):
        spoil(mine.cache / "manifest.json")
        shop = shops.both[0]
        assert shop.run("command", mine.project, "verify", mine.cache.name).code == 1
        format_ = "hdf5" if mine.cache.name.endswith("hdf5") else "zarr"
        done = shop.run("command", mine.project, *MODEL, "--format", format_, "--json")
        assert done.code == 0, done
        assert json.loads(done.out)["computed"] == 0
        same(mine.cache, mine.contents)
