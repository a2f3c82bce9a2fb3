"""The caches of a folder: listed with what is wrong with them, and found by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_store_contract import dataset, fake_features, make_cache, recipe, rows_for

from featcache.core.errors import CacheError, CacheNotFoundError, UsageError
from featcache.store.cache import Cache
from featcache.store.catalog import find_cache, list_caches
from featcache.store.writer import CacheWriter

IMAGES = dataset(12)


def a_cache(parent: Path, seed: int = 0) -> Cache:
    return make_cache(parent, IMAGES, fake_features(24, (5,)), views=2, seed=seed)


def test_no_folder_or_an_empty_one_lists_nothing(tmp_path: Path) -> None:
    assert list_caches(tmp_path) == []
    assert list_caches(tmp_path / "nowhere") == []
    (tmp_path / "README.md").write_text("caches")
    (tmp_path / "folder").mkdir()
    assert list_caches(tmp_path) == []
    for parent in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CacheNotFoundError, match=r"featcache\.extract"):
            find_cache(parent)


def test_finished_unfinished_and_damaged_caches_are_listed_by_name(tmp_path: Path) -> None:
    finished, damaged = a_cache(tmp_path), a_cache(tmp_path, seed=1)
    (damaged.folder / "ledger.jsonl").unlink()
    unfinished = CacheWriter(tmp_path, recipe(), rows=rows_for(IMAGES, 1), row_shape=(5,)).folder
    listed = {entry.folder.name: entry for entry in list_caches(tmp_path)}
    assert list(listed) == sorted([finished.name, damaged.name, unfinished.name])
    assert listed[finished.name].cache is not None
    assert listed[finished.name].problem == ""
    assert listed[unfinished.name].cache is None
    assert listed[unfinished.name].problem == "unfinished"
    assert "ledger.jsonl is missing" in listed[damaged.name].problem
    (damaged.folder / "recipe.json").unlink()
    listed = {entry.folder.name: entry for entry in list_caches(tmp_path)}
    assert "recipe.json is missing" in listed[damaged.name].problem


def test_the_only_cache_needs_no_name(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    CacheWriter(tmp_path, recipe(), rows=rows_for(IMAGES, 1), row_shape=(5,))
    for name in (None, "", "t", "tiny", cache.name[:-1], cache.name, str(cache.folder)):
        assert find_cache(tmp_path, name).name == cache.name
    assert find_cache(tmp_path / "nowhere", str(cache.folder)).name == cache.name


def test_of_several_the_name_must_say_which(tmp_path: Path) -> None:
    caches = [a_cache(tmp_path, seed) for seed in (0, 1)]
    for name in (None, "tiny-"):
        with pytest.raises(UsageError, match=f"{min(c.name for c in caches)}.*name one of them"):
            find_cache(tmp_path, name)
    for cache in caches:
        assert find_cache(tmp_path, cache.name[:7]).name == cache.name


def test_the_whole_name_wins_over_one_that_begins_like_it(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    cache.folder.rename(tmp_path / "moved")  # the name is that of the manifest
    a_cache(tmp_path / "other").folder.rename(tmp_path / "again")
    assert find_cache(tmp_path, str(tmp_path / "moved")).name == cache.name


@pytest.mark.parametrize("name", ["vgg16", "tiny-x", "x" * 5000, "a\0b", "../tiny"])
def test_a_name_that_means_none_offers_what_there_is(tmp_path: Path, name: str) -> None:
    cache = a_cache(tmp_path)
    with pytest.raises(CacheNotFoundError, match=cache.name) as caught:
        find_cache(tmp_path, name)
    assert len(str(caught.value)) < 1000


def test_a_name_that_means_a_broken_cache_says_what_is_wrong(tmp_path: Path) -> None:
    unfinished = CacheWriter(tmp_path, recipe(), rows=rows_for(IMAGES, 1), row_shape=(5,)).folder
    for name in (None, unfinished.name, unfinished.name[:6]):
        with pytest.raises(CacheNotFoundError, match=f"{unfinished.name}: unfinished"):
            find_cache(tmp_path, name)
    with pytest.raises(CacheNotFoundError, match="never finished"):
        find_cache(tmp_path, str(unfinished))
    damaged = a_cache(tmp_path)
    (damaged.folder / "rows.parquet").unlink()
    with pytest.raises(CacheError, match=r"rows\.parquet is missing"):
        find_cache(tmp_path, damaged.name)
