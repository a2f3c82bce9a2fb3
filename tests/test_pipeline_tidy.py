"""rm and gc: nothing goes that somebody asked to keep, is writing, or could not have again."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import contents
from test_store_contract import dataset, fake_features, make_cache, recipe, rows_for, small_shards

from featcache.cleanup import find_garbage, find_removable, remove, size_of
from featcache.core.errors import CacheError, CacheNotFoundError, CacheWriteError, UsageError
from featcache.core.leases import Leases
from featcache.core.project import Project, Settings
from featcache.datasets.manifest import Dataset
from featcache.heads.kernel import kernel, kernels_folder
from featcache.sharing._push import find_pushable
from featcache.sharing.bundle import bundle_of_cache
from featcache.store._verify import verify
from featcache.store.cache import Cache, open_cache
from featcache.store.catalog import find_cache, finished_folders, list_caches
from featcache.store.donors import DonorIndex
from featcache.store.layout import Format
from featcache.store.writer import CacheWriter

IMAGES = dataset(35)
X = fake_features(70, (3, 4, 5))
HOUR_S = 3600


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 16)


@pytest.fixture
def project(quick: Path, tmp_path: Path) -> Project:
    folder = quick / "tidy" / tmp_path.name
    (folder / "cache").mkdir(parents=True)
    (folder / "results").mkdir()
    return Project(folder, Settings())


def a_cache(project: Project, views: int = 2, format_: Format = "zarr", seed: int = 0) -> Cache:
    each = X.reshape(35, 2, 3, 4, 5)
    features = np.concatenate([each, each], axis=1)[:, :views].reshape(-1, 3, 4, 5)
    return make_cache(project.cache_folder, IMAGES, features, views, format_=format_, seed=seed)


def names(project: Project, unfinished: bool = False) -> dict[str, str]:
    return {item.path.name: item.why for item in find_garbage(project, unfinished)}


def leave(path: Path, age_s: float, folder: bool = False) -> Path:
    if folder:
        path.mkdir()
        (path / "inside").write_bytes(b"12345")
    else:
        path.write_bytes(b"12345")
    for file in (*path.rglob("*"), path):
        os.utime(file, (time.time() - age_s,) * 2)
    return path


# rm


def test_names_and_how_they_begin(project: Project) -> None:
    a, b = a_cache(project), a_cache(project, seed=1)
    parent = project.cache_folder
    assert [item.path for item in find_removable(parent, [a.name, b.name[:7], a.name])] == [a.folder, b.folder]
    with pytest.raises(UsageError, match=f"'tiny' could be {min(a.name, b.name)}, {max(a.name, b.name)}: name one"):
        find_removable(parent, ["tiny"])
    for name in ("vgg", "", ".", "..", "../cache", str(a.folder), "a\0b", "x" * 5000):
        with pytest.raises(CacheNotFoundError, match=a.name) as caught:
            find_removable(parent, [name])
        assert len(str(caught.value)) < 1000
    with pytest.raises(CacheNotFoundError, match="there: none"):
        find_removable(parent / "gone", ["x"])


def test_the_whole_name_wins(project: Project) -> None:
    zarr, hdf5 = a_cache(project), a_cache(project, format_="hdf5")
    assert hdf5.name == f"{zarr.name}-hdf5"
    assert [item.path for item in find_removable(project.cache_folder, [zarr.name])] == [zarr.folder]
    with pytest.raises(UsageError, match="could be"):
        find_removable(project.cache_folder, [zarr.name[:-1]])


def test_only_what_was_named_goes(project: Project) -> None:
    a, b = a_cache(project), a_cache(project, seed=1)
    before = contents(b.folder)
    (item,) = find_removable(project.cache_folder, [a.name])
    assert (item.why, item.bytes) == ("finished", size_of(a.folder))
    assert item.bytes == a.bytes() + (a.folder / "manifest.json").stat().st_size
    remove(item)
    assert [path.name for path in project.cache_folder.iterdir()] == [b.name]
    assert contents(b.folder) == before


@pytest.mark.parametrize("spoil", ["manifest.json", "recipe.json", "rows.parquet", "features.zarr/c/0/0/0/0"])
def test_damaged_caches_can_go(project: Project, spoil: str) -> None:
    cache = a_cache(project)
    (cache.folder / spoil).write_bytes(b"{")
    (item,) = find_removable(project.cache_folder, [cache.name])
    assert item.why not in ("", "finished")
    remove(item)
    assert not list(project.cache_folder.iterdir())


def test_what_is_being_written_stays(project: Project) -> None:
    with CacheWriter(project.cache_folder, recipe(), rows=rows_for(IMAGES), row_shape=(3, 4, 5)) as writer:
        assert writer.claim() == 0
        for names_ in ([writer.folder.name], ["tiny"]):
            with pytest.raises(CacheError, match=r"a process is writing this cache\. .* `force=True`"):
                find_removable(project.cache_folder, names_)
        assert names(project, unfinished=True) == {}
        (item,) = find_removable(project.cache_folder, ["tiny"], force=True)
        assert item.why == "unfinished"
    (item,) = find_removable(project.cache_folder, ["tiny"])
    assert names(project, unfinished=True) == {writer.folder.name: "unfinished"}
    assert names(project) == {}


def test_a_link_to_a_cache_goes_and_the_cache_stays(project: Project, tmp_path: Path) -> None:
    cache = a_cache(project)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(cache.folder, elsewhere)
    before = contents(elsewhere)
    cache.folder.symlink_to(elsewhere)
    (item,) = find_removable(project.cache_folder, [cache.name])
    remove(item)
    assert contents(elsewhere) == before
    assert not list(project.cache_folder.iterdir())


def test_links_in_a_cache_are_not_followed(project: Project, tmp_path: Path) -> None:
    cache = a_cache(project)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (cache.folder / "link").symlink_to(tmp_path / "mine")
    remove(find_removable(project.cache_folder, [cache.name])[0])
    assert (tmp_path / "mine" / "file").exists()


def test_what_cannot_be_removed_is_one_message(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = a_cache(project)
    (item,) = find_removable(project.cache_folder, [cache.name])

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(CacheWriteError, match=f"{cache.name}: cannot be removed: Permission denied"):
            remove(item)
        assert cache.folder.is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(CacheWriteError, match=f"{cache.name}: cannot be removed: Permission denied"):
            remove(item)
    assert not cache.folder.exists()  # it is out of sight as a whole, never half of it


# gc


@pytest.mark.parametrize("folder", [False, True])
def test_leftovers_go_when_they_are_an_hour_old(project: Project, folder: bool) -> None:
    old = leave(project.cache_folder / ".0123456789ab.partial", 2 * HOUR_S, folder)
    new = leave(project.results_folder / ".ba9876543210.partial", 0.9 * HOUR_S, folder)
    leave(project.cache_folder / "mine.partial", 2 * HOUR_S, folder)
    leave(project.cache_folder / ".hidden", 2 * HOUR_S, folder)
    (item,) = find_garbage(project)
    assert (item.path, item.bytes, item.why) == (old, 5, "left behind by a command")
    remove(item)
    assert not old.exists()
    assert new.exists()


def test_a_leftover_that_still_grows_inside_stays(project: Project) -> None:
    leave(project.results_folder / ".0123456789ab.partial", 2 * HOUR_S, folder=True)
    (project.results_folder / ".0123456789ab.partial" / "inside").write_bytes(b"now")
    assert find_garbage(project) == []


def test_a_cache_that_another_one_covers(project: Project) -> None:
    small, large = a_cache(project, 1), a_cache(project, 2)
    a_cache(project, 2, seed=1)  # shares the plain views only
    a_cache(project, 1, "hdf5")  # is of another format
    assert names(project) == {small.name: f"all its rows are in {large.name}"}
    before = contents(large.folder)
    remove(find_garbage(project)[0])
    assert names(project) == {}
    assert contents(large.folder) == before


@pytest.mark.parametrize("format_", ["zarr", "hdf5"])
def test_a_damaged_holder_covers_nothing(project: Project, format_: Format) -> None:
    """One flipped bit in the larger cache: the smaller one may be the only sound copy of a row."""
    a_cache(project, 1, format_)
    large = a_cache(project, 2, format_)
    path = large.folder / ("features.h5" if format_ == "hdf5" else "features.zarr/c/1/0/0/0")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    assert names(project) == {}
    path.write_bytes(whole)
    assert len(names(project)) == 1
    rows = large.folder / "rows.parquet"
    data = rows.read_bytes()
    rows.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])
    assert names(project) == {}


def test_a_cache_that_is_being_removed_is_no_cache_for_anybody(project: Project) -> None:
    """rm was killed between its rename and its first unlink: what is left has all rows, and proves nothing."""
    small, large = a_cache(project, 1), a_cache(project, 2)
    hidden = large.folder.replace(project.cache_folder / ".0123456789ab.partial")
    assert names(project) == {}
    assert [entry.folder for entry in list_caches(project.cache_folder)] == [small.folder]
    assert finished_folders(project.cache_folder) == [small.folder]
    assert find_cache(project.cache_folder).name == small.name
    assert DonorIndex([project.cache_folder], small.recipe.space, row_shape=(3, 4, 5)).n_caches == 1
    for refuses in (open_cache, verify, bundle_of_cache):
        with pytest.raises(CacheNotFoundError, match="is no cache: a command is at work there"):
            refuses(hidden)
    with pytest.raises(CacheNotFoundError):
        find_pushable(project, str(hidden))
    for file in (*hidden.rglob("*"), hidden):
        os.utime(file, (time.time() - 2 * HOUR_S,) * 2)
    assert names(project) == {hidden.name: "left behind by a command"}


def test_a_cache_stays_where_what_holds_its_rows_has_gone_since(project: Project) -> None:
    small, large = a_cache(project, 1), a_cache(project, 2)
    (item,) = find_garbage(project)
    away = large.folder.replace(project.folder / "away")
    before = contents(small.folder)
    assert remove(item) == f"{large.name}, which holds its rows, has changed or is gone"
    assert contents(small.folder) == before
    away.replace(large.folder)
    lease = Leases(large.folder / "leases")
    lease.folder.mkdir()
    assert lease.claim("repair")
    assert "has changed or is gone" in remove(item)
    lease.close()
    assert remove(item) == ""
    assert [path.name for path in project.cache_folder.iterdir()] == [large.name]


def test_what_holds_the_rows_of_others_stays_itself(project: Project) -> None:
    one, two, three = (a_cache(project, views) for views in (1, 2, 3))
    assert names(project) == {cache.name: f"all its rows are in {three.name}" for cache in (one, two)}
    assert [remove(item) for item in reversed(find_garbage(project))] == ["", ""]
    assert [path.name for path in project.cache_folder.iterdir()] == [three.name]


def test_a_link_to_a_cache_elsewhere_proves_nothing(project: Project) -> None:
    a_cache(project, 1)
    large = a_cache(project, 2)
    shutil.move(large.folder, project.folder / "elsewhere")
    large.folder.symlink_to(project.folder / "elsewhere")
    assert names(project) == {}


def test_what_a_process_reads_or_repairs_stays(project: Project) -> None:
    """The spool of a training on a remote's cache does not change for hours, and is in use."""
    spool = leave(project.cache_folder / ".tiny-x.partial", 2 * HOUR_S, folder=True)
    small = a_cache(project, 1)
    a_cache(project, 2)
    leases = [Leases(folder / "leases") for folder in (spool, small.folder)]
    for lease in leases:
        lease.folder.mkdir()
        assert lease.claim("reading")
    for file in (*spool.rglob("*"), spool):
        os.utime(file, (time.time() - 2 * HOUR_S,) * 2)
    assert names(project) == {}
    for lease in leases:
        lease.close()
    for file in (*spool.rglob("*"), spool):
        os.utime(file, (time.time() - 2 * HOUR_S,) * 2)
    assert set(names(project)) == {spool.name, small.name}


def test_unfinished_caches_go_only_when_asked(project: Project) -> None:
    finished = a_cache(project, 1, seed=3)
    unfinished = CacheWriter(project.cache_folder, recipe(), rows=rows_for(IMAGES), row_shape=(3, 4, 5)).folder
    damaged = a_cache(project, 1, seed=4)
    (damaged.folder / "manifest.json").write_bytes(b"{")
    assert names(project) == {}
    assert names(project, unfinished=True) == {unfinished.name: "unfinished"}
    remove(find_garbage(project, unfinished=True)[0])
    assert {path.name for path in project.cache_folder.iterdir()} == {finished.name, damaged.name}


def test_no_folders_at_all(quick: Path) -> None:
    assert find_garbage(Project(quick / "nowhere", Settings())) == []


# Gram matrices and trainings


def with_kernels(cache: Cache) -> Path:
    folder = cache.folder.with_name(cache.name + ".gram")
    folder.mkdir()
    (folder / "a.npy").write_bytes(b"12345")
    return folder


def test_the_gram_matrices_go_with_their_cache(project: Project) -> None:
    a, b = a_cache(project), a_cache(project, seed=1)
    with_kernels(a), with_kernels(b)
    found = find_removable(project.cache_folder, [a.name])
    assert [(item.path.name, item.bytes) for item in found] == [(a.name, found[0].bytes), (f"{a.name}.gram", 5)]
    for item in found:
        remove(item)
    assert {path.name for path in project.cache_folder.iterdir()} == {b.name, f"{b.name}.gram"}
    assert names(project) == {}
    with pytest.raises(CacheNotFoundError):
        find_removable(project.cache_folder, [f"{b.name}.gram"])


def test_gram_matrices_of_a_cache_that_is_gone(project: Project) -> None:
    cache = a_cache(project)
    kernels = with_kernels(cache)
    part = leave(kernels / ".0123456789ab.partial.npy", 2 * HOUR_S)
    assert names(project) == {part.name: "left behind by a command"}
    shutil.rmtree(cache.folder)
    part.unlink()
    assert names(project) == {kernels.name: "Gram matrices of a cache that is gone"}
    small, large = a_cache(project, 1, seed=2), a_cache(project, 2, seed=2)
    with_kernels(small), with_kernels(large)
    assert set(names(project)) == {kernels.name, small.name, f"{small.name}.gram"}


def test_gram_matrices_of_splits_that_a_cache_no_longer_has(project: Project) -> None:
    """Those that the splits of now ask for stay: of every dtype, and of the test rows."""
    cache = a_cache(project)
    train = cache.numbers("train")
    for split in ("train", "val", "test"):
        for dtype in ("float32", "float64"):
            kernel(cache, cache.numbers(split), right=train, dtype=dtype)
    folder = kernels_folder(cache.folder)
    before = {path.name for path in folder.iterdir()}
    assert len(before) == 12
    assert names(project) == {}
    others = {"train": "val", "val": "test", "test": "train"}
    images = tuple(replace(image, split=others[image.split]) for image in IMAGES.images)
    assert cache.replace_dataset(Dataset(images, IMAGES.folder))
    now = open_cache(cache.folder)
    kept = kernel(now, now.numbers("val"), right=now.numbers("train"), dtype="float32")
    found = find_garbage(project)
    assert {item.path.name for item in found} == before
    assert {item.why for item in found} == {f"Gram matrix of splits that {cache.name} no longer has"}
    assert all(item.bytes == item.path.stat().st_size > 0 for item in found)
    for item in found:
        remove(item)
    assert names(project) == {}
    again = kernel(now, now.numbers("val"), right=now.numbers("train"), dtype="float32")
    np.testing.assert_array_equal(again, kept)
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_cache_says_nothing_of_its_gram_matrices(project: Project) -> None:
    cache = a_cache(project)
    kernel(cache, cache.numbers("train"), right=cache.numbers("train"), dtype="float32")
    whole = (cache.folder / "rows.parquet").read_bytes()
    (cache.folder / "rows.parquet").write_bytes(bytes(len(whole)))
    assert names(project) == {}


def test_trainings_that_nobody_goes_on_with(project: Project) -> None:
    old = leave(project.results_folder / "head-tiny-0.training", 2 * HOUR_S, folder=True)
    leave(project.results_folder / "head-tiny-1.training", 0.9 * HOUR_S, folder=True)
    leave(project.results_folder / "head-tiny-2", 2 * HOUR_S, folder=True)
    held = leave(project.results_folder / "head-tiny-3.training", 2 * HOUR_S, folder=True)
    leases = Leases(held / "leases")
    leases.folder.mkdir()
    assert leases.claim("training")
    for file in (*held.rglob("*"), held):
        os.utime(file, (time.time() - 2 * HOUR_S,) * 2)
    (item,) = find_garbage(project)
    assert (item.path, item.why) == (old, "an interrupted training")
    remove(item)
    leases.close()
