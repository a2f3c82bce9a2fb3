"""verify --repair: what is damaged is made again to the byte, or the cache is left exactly as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import contents
from test_pipeline_verify import ROWS, Small, begun, prepared
from test_store_hostile import put, relist, reseal, shard_of
from watching import Watching

from featcache.core.errors import CacheError, DatasetError, FeatcacheError, WeightsError
from featcache.extraction._repair import repair
from featcache.store._verify import verify
from featcache.store.cache import Cache

SHARD = "features.zarr/c/{}/0/0/0"


@pytest.fixture
def small(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    prepared(monkeypatch)
    folder = quick / f"small-{tmp_path.parent.name}-{tmp_path.name}"
    shutil.copytree(begun(quick), folder)
    yield Small(folder)
    shutil.rmtree(folder)


@pytest.fixture(params=["zarr", "hdf5"])
def cache(small: Small, request: pytest.FixtureRequest) -> Cache:
    made = small.cache(request.param)
    small.computed()
    return made


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def without_provenance(folder: Path) -> dict[str, Any]:
    """Every byte of a cache; of its manifest all but what says how it was made."""
    found: dict[str, Any] = contents(folder)
    value = json.loads(found["manifest.json"])
    found["manifest.json"] = {key: value[key] for key in value if key not in ("provenance", "seal")}
    return found


def mended(small: Small, folder: Path, spoil: Callable[[], object], before: dict[str, Any] | None = None) -> int:
    """Spoil, repair, compare. Returns how many rows were computed."""
    before = before or without_provenance(folder)
    spoil()
    found = verify(folder)
    assert not found.sound
    small.computed()
    computed = repair(small.project, found)
    assert computed == small.computed()
    assert without_provenance(folder) == before
    after = verify(folder)
    assert after.sound, after.problems
    assert after.remarks == ()
    assert not small.extract(storage=storage_of(folder)).relabelled
    assert small.computed() == 0
    return computed


def storage_of(folder: Path) -> dict[str, str]:
    return {"format": "hdf5" if folder.name.endswith("hdf5") else "zarr"}


def refused(small: Small, folder: Path, error: type[FeatcacheError], match: str, **options: Any) -> None:
    """Repair says why it cannot, and not one byte is another than before."""
    before = contents(small.folder)
    with pytest.raises(error, match=match):
        repair(small.project, verify(folder), **options)
    assert contents(small.folder) == before


# One file, several files


@pytest.mark.parametrize("table", ["recipe.json", "rows.parquet", "dataset.parquet", "ledger.jsonl"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_small_files_cost_no_row(small: Small, cache: Cache, table: str, damage: str) -> None:
    path = cache.folder / table
    cut = {
        "flipped": lambda: flip(path),
        "cut": lambda: path.write_bytes(path.read_bytes()[:-9]),
        "removed": path.unlink,
    }
    assert mended(small, cache.folder, cut[damage]) == 0


def test_two_shards_in_each_others_place(small: Small) -> None:
    folder = small.cache().folder
    one, other = folder / SHARD.format(0), folder / SHARD.format(1)

    def swap() -> None:
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)

    assert mended(small, folder, swap) == 32


def test_everything_small_at_once_with_a_shard(small: Small, cache: Cache) -> None:
    def spoil() -> None:
        for name in ("recipe.json", "rows.parquet", "dataset.parquet"):
            (cache.folder / name).write_bytes(b"")
        array = "features.h5" if cache.name.endswith("hdf5") else SHARD.format(3)
        flip(cache.folder / array, 0.97 if cache.name.endswith("hdf5") else 0.2)

    assert mended(small, cache.folder, spoil) == 8


def test_hdf5_with_its_ledger_is_computed_as_a_whole(small: Small) -> None:
    """Nobody knows which chunks of the file are sound."""
    folder = small.cache("hdf5").folder

    def spoil() -> None:
        flip(folder / "features.h5")
        flip(folder / "ledger.jsonl")

    assert mended(small, folder, spoil) == ROWS


@pytest.mark.parametrize("also", ["", "recipe.json", "rows.parquet", "ledger.jsonl"])
def test_a_manifest_that_is_damaged_with_another_file(small: Small, cache: Cache, also: str) -> None:
    def spoil() -> None:
        flip(cache.folder / "manifest.json")
        if also:
            (cache.folder / also).write_bytes(b"x")

    assert mended(small, cache.folder, spoil) == (ROWS if also in ("rows.parquet", "ledger.jsonl") else 0)


def test_all_is_damaged_but_the_name(small: Small, cache: Cache) -> None:
    def spoil() -> None:
        for name in [*cache.manifest.files, "manifest.json"]:
            (cache.folder / name).write_bytes(b"x")

    assert mended(small, cache.folder, spoil) == ROWS


def test_a_cache_of_part_of_the_images_keeps_the_digest_of_all(small: Small) -> None:
    options = {"views": {"train_rows": 4}}
    cache = small.cache(**options)
    assert cache.manifest.rows == 12
    before = without_provenance(cache.folder)
    flip(cache.folder / SHARD.format(0))
    assert repair(small.project, verify(cache.folder)) == 12
    assert without_provenance(cache.folder) == before
    assert not small.extract(**options).relabelled


def test_rows_that_the_project_gives_in_another_order(small: Small, cache: Cache) -> None:
    """dataset.csv was sorted otherwise since: the table that the manifest promises cannot be had again."""
    frame = small.lines()
    small.edit(frame.iloc[::-1])
    values = {row: cache.features[number] for number, row in enumerate(cache.views["row_id"])}
    (cache.folder / "rows.parquet").unlink()
    assert repair(small.project, verify(cache.folder)) == ROWS
    again = small.cache(*storage_of(cache.folder).values())
    assert again.folder == cache.folder
    for number, row in enumerate(again.views["row_id"]):
        np.testing.assert_array_equal(again.features[number], values[row])
    assert verify(cache.folder).sound


def test_a_link_out_of_the_cache_is_taken_away_and_not_written_through(small: Small, tmp_path: Path) -> None:
    folder = small.cache().folder
    outside = tmp_path / "outside"
    shutil.move(folder / "features.zarr", outside)
    before = contents(outside)
    (folder / "features.zarr").symlink_to(outside)
    assert not verify(folder).sound
    assert repair(small.project, verify(folder)) == ROWS
    assert verify(folder).sound
    assert contents(outside) == before
    assert not (folder / "features.zarr").is_symlink()


# Without the images


def remove_images(small: Small) -> None:
    shutil.rmtree(small.folder / "images")
    (small.folder / "dataset.csv").unlink()


@pytest.mark.parametrize("name", ["ledger.jsonl", "manifest.json"])
def test_images_are_not_needed_for_what_the_cache_says_itself(small: Small, cache: Cache, name: str) -> None:
    flip(cache.folder / name)
    remove_images(small)
    assert repair(small.project, verify(cache.folder)) == 0
    assert verify(cache.folder).sound


def test_rows_whose_images_are_gone_come_from_another_cache(small: Small, cache: Cache) -> None:
    before = without_provenance(cache.folder)
    other = small.extract(views={"train": 4}, storage={"format": "hdf5"})
    assert other.copied == ROWS
    remove_images(small)
    array = "features.h5" if cache.name.endswith("hdf5") else SHARD.format(1)
    (cache.folder / array).unlink()
    assert repair(small.project, verify(cache.folder)) == 0
    assert without_provenance(cache.folder) == before


@pytest.mark.parametrize("also", ["", "manifest.json"])
def test_rows_whose_images_are_gone_are_refused(small: Small, cache: Cache, also: str) -> None:
    array = "features.h5" if cache.name.endswith("hdf5") else SHARD.format(1)
    flip(cache.folder / array)
    if also:
        (cache.folder / also).write_bytes(b"{")
    frame = small.lines()
    shutil.move(small.folder / "images", small.folder / "elsewhere")
    refused(small, cache.folder, CacheError, "images of damaged rows are not at hand")
    for path in frame["path"][::2]:
        (small.folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(small.folder / "elsewhere" / path, small.folder / "images" / path)
    refused(small, cache.folder, CacheError, "images of damaged rows are not at hand")
    shutil.rmtree(small.folder / "images")
    shutil.move(small.folder / "elsewhere", small.folder / "images")
    assert repair(small.project, verify(cache.folder)) == 16
    assert verify(cache.folder).sound


def test_labels_that_nobody_has_any_more_are_refused(small: Small, cache: Cache) -> None:
    (cache.folder / "dataset.parquet").unlink()
    frame = small.lines()
    small.edit(frame.iloc[1:])
    refused(small, cache.folder, CacheError, "the dataset names 23 of the 24 images")
    (small.folder / "dataset.csv").unlink()
    refused(small, cache.folder, DatasetError, r"dataset\.csv: there is no such file")


# Without the network, or the settings


def test_a_network_that_cannot_be_had_is_said_before_anything_changes(small: Small, cache: Cache) -> None:
    weights = small.folder / "own.h5"
    weights.write_text("7")
    own = small.cache(*storage_of(cache.folder).values(), weights=str(weights))
    array = own.folder / ("features.h5" if own.name.endswith("hdf5") else SHARD.format(0))
    flip(array)
    refused(small, own.folder, WeightsError, "Say where it is with `weights=PATH`")
    refused(small, own.folder, WeightsError, "not the network of the cache", weights="imagenet")
    refused(small, own.folder, WeightsError, "there is no weights file", weights="gone.h5")
    assert repair(small.project, verify(own.folder), weights=str(weights)) == 16
    assert verify(own.folder).sound


@pytest.mark.parametrize("name", ["recipe.json", "rows.parquet"])
def test_what_the_project_does_not_give_back_is_refused(small: Small, cache: Cache, name: str) -> None:
    settings = small.folder / "featcache.toml"
    text = settings.read_text()
    settings.write_text(text.replace("train = 3", "train = 2"))
    assert settings.read_text() != text
    (cache.folder / name).write_bytes(b"")
    refused(
        small, cache.folder, CacheError, r"featcache\.toml as it is now gives another cache: run the extract command"
    )
    settings.write_text(text)
    assert repair(small.project, verify(cache.folder)) == 0
    assert verify(cache.folder).sound


# Consistent lies


def test_a_shard_that_is_no_features_though_its_digest_fits(small: Small) -> None:
    folder = small.cache().folder
    before = without_provenance(folder)
    (folder / SHARD.format(1)).write_bytes(shard_of([b"no zstd"]))
    relist(folder)
    assert verify(folder).damaged_shards == (1,)
    assert repair(small.project, verify(folder)) == 16
    assert without_provenance(folder) == before


def test_a_table_that_lies_with_the_right_digest_does_not_cost_the_cache(small: Small) -> None:
    folder = small.cache().folder
    frame = pd.read_parquet(folder / "rows.parquet")
    put(folder, "rows.parquet", frame.assign(row=frame["row"].to_numpy()[::-1]))
    shards = {name: data for name, data in contents(folder).items() if "/c/" in name}
    found = verify(folder)
    assert not found.sound
    repair(small.project, found)
    assert {name: data for name, data in contents(folder).items() if "/c/" in name} == shards
    assert verify(folder).sound


def test_a_manifest_of_other_shards_is_made_anew(small: Small) -> None:
    folder = small.cache().folder
    before = without_provenance(folder)
    reseal(folder, lambda value: value["array"].update(rows_per_shard=8, rows_per_chunk=8))
    assert not verify(folder).sound
    assert repair(small.project, verify(folder)) == 0
    assert without_provenance(folder) == before


def test_an_interruption_leaves_a_cache_in_the_making(small: Small, cache: Cache) -> None:
    before = without_provenance(cache.folder)
    for name in cache.manifest.files:
        if name.startswith("features"):
            (cache.folder / name).unlink()
    with pytest.raises(KeyboardInterrupt):
        repair(small.project, verify(cache.folder), progress=Watching(lambda: nullcontext(lambda: True)))
    done = small.extract(storage=storage_of(cache.folder))
    assert done.path == cache.folder
    assert without_provenance(cache.folder) == before


def test_a_repair_that_cannot_go_on_leaves_the_manifest(small: Small, cache: Cache, tmp_path: Path) -> None:
    """What is pulled, and has no images, is lost without it."""
    before = (cache.folder / "manifest.json").read_bytes()
    for name in cache.manifest.files:
        if name.startswith("features"):
            (cache.folder / name).unlink()
    with pytest.raises(KeyboardInterrupt):
        repair(small.project, verify(cache.folder), progress=Watching(lambda: nullcontext(lambda: True)))
    assert (cache.folder / "manifest.json").read_bytes() == before
    assert not verify(cache.folder).sound
    assert repair(small.project, verify(cache.folder)) == ROWS
    assert verify(cache.folder).sound
    assert verify(cache.folder).remarks == ()
