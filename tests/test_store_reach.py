"""Rows of other caches: taken where they are sound and of the same feature space, never otherwise."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_pipeline_verify import ROWS, Small, begun, prepared
from test_store_contract import dataset, fake_features, fill, make_cache, recipe, rows_for, small_shards
from test_store_hostile import put, relist, reseal, shard_of

from featcache.core.recipe import Recipe
from featcache.datasets.manifest import Dataset
from featcache.store.cache import Cache
from featcache.store.donors import DonorIndex
from featcache.store.layout import Format
from featcache.store.tables import Row
from featcache.store.writer import CacheWriter

IMAGES = dataset(35)
N, SHAPE = 70, (3, 4, 5)
X = fake_features(N, SHAPE)
WANTED = rows_for(IMAGES, 2)
SPACE = recipe().space


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 16)


@pytest.fixture
def parent(quick: Path, tmp_path: Path) -> Path:
    return quick / "reach" / tmp_path.name


def some(first: int, stop: int) -> Dataset:
    return Dataset(IMAGES.images[first:stop], Path())


def part(parent: Path, first: int, stop: int, format_: Format = "zarr") -> Cache:
    """A cache of two views of some of the images."""
    return make_cache(parent, some(first, stop), X[2 * first : 2 * stop], 2, format_=format_)


def held(reach: DonorIndex, rows: Sequence[Row] = WANTED) -> set[int]:
    """Which rows it holds; what it gives for them must be right, and nothing else may be touched."""
    reach.look_for(rows)
    features = np.full((len(rows), *SHAPE), -1, np.float32)
    names = set(reach.fill(features, rows))
    numbers = {number for number, row in enumerate(rows) if reach.holds(row)}
    for number, row in enumerate(rows):
        expected = X[number] if number in numbers else np.full(SHAPE, -1, np.float32)
        np.testing.assert_array_equal(features[number], expected)
        assert bool(reach.holder(row)) == (number in numbers)
    assert names == {reach.holder(rows[number]) for number in numbers}
    return numbers


@pytest.mark.parametrize("format_", ["zarr", "hdf5"])
def test_rows_of_several_caches(parent: Path, format_: Format) -> None:
    part(parent / "a", 0, 9, format_)
    part(parent / "a", 5, 15)
    part(parent / "b", 20, 30, format_)
    reach = DonorIndex([parent / "a", parent / "b", parent / "nowhere"], SPACE, row_shape=SHAPE)
    assert len(reach) == 0
    assert held(reach) == {*range(30), *range(40, 60)}
    assert len(reach) == 50
    assert held(DonorIndex([parent / "a"], SPACE, row_shape=SHAPE)) == set(range(30))
    assert held(DonorIndex([], SPACE, row_shape=SHAPE)) == set()


def test_nothing_that_was_not_looked_for(parent: Path) -> None:
    part(parent, 0, 9)
    reach = DonorIndex([parent], SPACE, row_shape=SHAPE)
    reach.look_for(WANTED[:3])
    assert [reach.holds(row) for row in WANTED[:5]] == [True, True, True, False, False]


def test_one_that_does_not_count_and_one_that_comes_first(parent: Path) -> None:
    folders = sorted([part(parent, 0, 9).folder, part(parent, 0, 10).folder])
    reach = DonorIndex([parent], SPACE, row_shape=SHAPE, but=folders[0])
    held(reach)
    assert reach.holder(WANTED[0]) == folders[1].name
    for first in folders:
        reach = DonorIndex([parent], SPACE, row_shape=SHAPE, first=first)
        held(reach)
        assert reach.holder(WANTED[0]) == first.name


@pytest.mark.parametrize("format_", ["zarr", "hdf5"])
def test_an_unfinished_cache_gives_its_finished_shards(parent: Path, format_: Format) -> None:
    writer = CacheWriter(parent, recipe(), rows=WANTED, row_shape=SHAPE, format_=format_)
    for shard in (1, 4):
        start, stop = writer.store.layout.span(shard)
        writer.write(shard, X[start:stop])
    assert held(DonorIndex([parent], SPACE, row_shape=SHAPE)) == {*range(16, 32), *range(64, 70)}
    ledger = writer.folder / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20])  # a torn line
    assert held(DonorIndex([parent], SPACE, row_shape=SHAPE)) == set(range(16, 32))
    ledger.unlink()
    assert held(DonorIndex([parent], SPACE, row_shape=SHAPE)) == set()
    (writer.folder / "rows.parquet").unlink()
    assert held(DonorIndex([parent], SPACE, row_shape=SHAPE)) == set()


def test_killed_in_the_middle_of_a_shard(parent: Path) -> None:
    """A shard that lies there and is in no ledger, or only half of it, is nothing."""
    writer = CacheWriter(parent, recipe(), rows=WANTED, row_shape=SHAPE)
    writer.write(0, X[:16])
    writer.store.write_shard(1, X[16:32])
    assert held(DonorIndex([parent], SPACE, row_shape=SHAPE)) == set(range(16))
    file = writer.folder / "features.zarr/c/0/0/0/0"
    file.write_bytes(file.read_bytes()[:-1])
    assert held(DonorIndex([parent], SPACE, row_shape=SHAPE)) == set()


@pytest.mark.parametrize("format_", ["zarr", "hdf5"])
def test_damaged_shards_are_not_taken_and_the_others_are(parent: Path, format_: Format) -> None:
    cache = make_cache(parent, IMAGES, X, 2, format_=format_)
    path = cache.folder / ("features.h5" if format_ == "hdf5" else "features.zarr/c/2/0/0/0")
    whole = path.read_bytes()
    for place in (len(whole) // 2, len(whole) // 2 + 100):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        found = held(DonorIndex([parent], SPACE, row_shape=SHAPE))
        assert N - 16 <= len(found) < N
        if format_ == "zarr":
            assert found == set(range(N)) - set(range(32, 48))
    path.unlink()
    assert held(DonorIndex([parent], SPACE, row_shape=SHAPE)) == (
        set() if format_ == "hdf5" else set(range(N)) - set(range(32, 48))
    )


def damaged_name(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"?")


def no_features(folder: Path) -> None:
    for shard in range(5):
        (folder / f"features.zarr/c/{shard}/0/0/0").write_bytes(shard_of([b"no zstd"]))
    relist(folder)


def other_codecs(folder: Path) -> None:
    path = folder / "features.zarr/zarr.json"
    path.write_text(path.read_text().replace('"level": 1', '"level": 2'))
    reseal(folder)


def rows_without_end(folder: Path) -> None:
    frame = pd.read_parquet(folder / "rows.parquet")
    put(folder, "rows.parquet", pd.concat([frame, frame.assign(view=7)], ignore_index=True).assign(row=range(2 * N)))


def a_link(folder: Path) -> None:
    shutil.move(folder / "features.zarr", folder.parent / "moved")
    (folder / "features.zarr").symlink_to(folder.parent / "moved")


def text_of(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "recipe flipped": damaged_name("recipe.json"),
    "rows flipped": damaged_name("rows.parquet"),
    "ledger flipped": damaged_name("ledger.jsonl"),
    "manifest flipped": damaged_name("manifest.json"),
    "description gone": lambda folder: (folder / "features.zarr/zarr.json").unlink(),
    "description none": text_of("features.zarr/zarr.json", b"["),
    "manifest none": text_of("manifest.json", b"[" * 100_000),
    "manifest newer": lambda folder: reseal(folder, lambda value: value.update(format=3)),
    "recipe deep": text_of("recipe.json", b"[" * 100_000),
    "recipe binary": text_of("recipe.json", b"\xff\xfe\x00"),
    "no features": no_features,
    "other codecs": other_codecs,
    "more rows than features": rows_without_end,
    "another dtype": lambda folder: reseal(folder, lambda value: value["array"].update(dtype="float16")),
    "leads out": a_link,
    "a folder for a file": lambda folder: ((folder / "ledger.jsonl").unlink(), (folder / "ledger.jsonl").mkdir()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_damaged_cache_is_no_source_and_no_hindrance(parent: Path, name: str) -> None:
    bad = make_cache(parent / "bad", IMAGES, X, 2).folder
    HOSTILE[name](bad)
    part(parent / "good", 0, 3)
    assert held(DonorIndex([parent / "bad", parent / "good"], SPACE, row_shape=SHAPE)) == set(range(6))


def test_other_spaces_and_shapes_are_none(parent: Path) -> None:
    make_cache(parent, IMAGES, X, 2)
    for other in (replace(SPACE, layer="x"), replace(SPACE, dtype="float16"), replace(SPACE, rendering=2)):
        assert held(DonorIndex([parent], other, row_shape=SHAPE), rows_for(IMAGES, 2, Recipe(other))) == set()
    for shape in ((60,), (3, 4, 6), (5, 4, 3)):
        reach = DonorIndex([parent], SPACE, row_shape=shape)
        reach.look_for(WANTED)
        assert len(reach) == 0


def test_another_augmentation_shares_the_plain_views(parent: Path) -> None:
    make_cache(parent, IMAGES, X, 2, seed=1)
    assert held(DonorIndex([parent], SPACE, row_shape=SHAPE)) == set(range(0, N, 2))


# What extract makes of it


@pytest.fixture
def small(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    prepared(monkeypatch)
    folder = quick / f"small-{tmp_path.parent.name}-{tmp_path.name}"
    shutil.copytree(begun(quick), folder)
    yield Small(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("source", ["zarr", "hdf5"])
@pytest.mark.parametrize("target", ["zarr", "hdf5"])
def test_rows_are_copied_between_formats_bit_for_bit(small: Small, source: str, target: str) -> None:
    first = small.cache(source)
    assert small.computed() == ROWS
    views = {"train": 5}
    done = small.extract(views=views, storage={"format": target})
    assert (done.copied, done.computed, done.sources) == (ROWS, 32, [first.name])
    assert small.computed() == 32
    copied = small.cache(target, views=views)
    shutil.rmtree(first.folder.parent)
    alone = small.cache(target, views=views)
    np.testing.assert_array_equal(copied.features[:], alone.features[:])


def test_reuse_from_other_folders(small: Small, parent: Path) -> None:
    first = small.cache()
    other = parent / "other project"
    shutil.copytree(first.folder.parent, other)
    shutil.rmtree(first.folder.parent)
    small.computed()
    done = small.extract(reuse_from=(parent / "nowhere", other))
    assert (done.copied, done.computed) == (ROWS, 0)
    assert small.computed() == 0
    assert small.extract(reuse_from=(other,)).copied == 0
    shutil.rmtree(first.folder)
    assert small.extract().computed == ROWS


def test_a_damaged_source_costs_only_what_is_damaged(small: Small) -> None:
    first = small.cache()
    shard = first.folder / "features.zarr/c/1/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    small.computed()
    done = small.extract(storage={"format": "hdf5"})
    assert (done.copied, done.computed) == (ROWS - 16, 16)
    assert small.computed() == 16


def test_a_killed_extraction_is_a_source(small: Small) -> None:
    first = small.cache()
    folder = first.folder
    (folder / "manifest.json").unlink()
    ledger = folder / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:2]) + '{"shard":2,"st')
    (folder / "leases").mkdir()
    holder = {"host": "gone", "pid": os.getpid(), "started": "", "worker": "w", "beat": "0"}
    (folder / "leases" / "2.0").write_text(json.dumps(holder))
    small.computed()
    done = small.extract(storage={"format": "hdf5"})
    assert (done.copied, done.computed, done.sources) == (32, ROWS - 32, [folder.name])


def test_fill_is_of_the_given_rows(parent: Path) -> None:
    with CacheWriter(parent, recipe(), rows=WANTED, row_shape=SHAPE) as writer:
        fill(writer, X)
        writer.finish(IMAGES, {})
    reach = DonorIndex([parent], SPACE, row_shape=SHAPE)
    rows = [WANTED[number] for number in (69, 3, 3, 40)]
    reach.look_for(rows)
    features = np.zeros((4, *SHAPE), np.float32)
    assert list(reach.fill(features, rows)) == [writer.folder.name]
    np.testing.assert_array_equal(features, X[[69, 3, 3, 40]])
