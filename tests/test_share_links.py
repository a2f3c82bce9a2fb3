"""Links that a co-user puts into a remote, or into a cache: nothing behind one is read, written or removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from conftest import contents
from servers import ssh_server
from test_store_contract import dataset, fake_features, make_cache, recipe, rows_for, small_shards

from featcache.core.errors import CacheError, RemoteError, UsageError
from featcache.remotes.contract import Remote, read
from featcache.remotes.rooted import LinkError
from featcache.remotes.urls import open_remote
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import find, latest, listing
from featcache.sharing.receive import pull
from featcache.sharing.remote import find_removable, remove_from_remote
from featcache.sharing.send import push
from featcache.store.cache import Cache
from featcache.store.writer import CacheWriter

IMAGES = dataset(35)
X = fake_features(70, (3, 4, 5))


@pytest.fixture
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    small_shards(monkeypatch, 16)
    return make_cache(place / "mine", IMAGES, X, 2)


@pytest.fixture(params=["file", "sftp"])
def remote(request: pytest.FixtureRequest, place: Path, home: Path) -> Iterator[Remote]:
    """A remote in the folder `place`/remote; its root is behind a link, which is its owner's own choice."""
    (place / "disk").mkdir()
    (place / "remote").symlink_to(place / "disk")
    if request.param == "file":
        yield open_remote(f"file://{place}/remote")
        return
    if servers.SSHD is None:
        pytest.skip("openssh-server is not installed: .ci/run installs it")
    with ssh_server(place / "sshd", home) as url:
        yield open_remote(f"{url}{place}/remote")


def bait(place: Path) -> Path:
    """Files of somebody else."""
    folder = place / "outside"
    (folder / "below").mkdir(parents=True)
    for name in ("thesis", "below/data"):
        (folder / name).write_text("mine")
    return folder


LEVELS = ("caches", "caches/NAME", "caches/NAME/ROOT", "caches/NAME/ROOT/features.zarr")


@pytest.mark.parametrize("level", LEVELS)
def test_a_link_in_place_of_a_folder(remote: Remote, cache: Cache, place: Path, level: str) -> None:
    """What lies behind it stays as it is, whatever is asked for; nothing is taken from there."""
    entry = push(remote, bundle_of_cache(cache.folder)).entry
    outside = bait(place)
    root = entry.record.root.rpartition("/")[2]
    at = place / "remote" / level.replace("NAME", cache.name).replace("ROOT", root)
    moved = place / "moved"
    shutil.move(at, moved)
    shutil.copytree(moved, outside / "copy")
    at.symlink_to(outside / "copy" if level != "caches/NAME" else outside)
    before = contents(outside)
    trials = [
        lambda: push(remote, bundle_of_cache(cache.folder), check=True),
        lambda: pull(remote, latest(remote, "cache", name=cache.name) or entry, parent=place / "pulled"),
        lambda: [remove_from_remote(remote, one) for one in find_removable(remote, [cache.name])],
    ]
    (place / "pulled").mkdir()
    for trial in trials[: 2 if level.count("/") > 1 else 3]:
        with pytest.raises(RemoteError, match="is a link"):
            trial()
        assert contents(outside) == before
    if level.count("/") > 1:
        trials[2]()  # a link below goes by itself
    assert contents(outside) == before
    assert not (place / "pulled" / cache.name).exists()


def test_a_link_in_place_of_a_file_is_replaced_and_never_read(remote: Remote, cache: Cache, place: Path) -> None:
    entry = push(remote, bundle_of_cache(cache.folder)).entry
    outside = bait(place)
    path = entry.record.path_of("rows.parquet")
    at = place / "remote" / path
    shutil.move(at, outside / "rows")
    at.symlink_to(outside / "rows")
    before = contents(outside)
    for refused in (lambda: read(remote, path, most=1 << 20), lambda: remote.size(path)):
        with pytest.raises(RemoteError, match="is a link"):
            refused()
    push(remote, bundle_of_cache(cache.folder), replace=True)
    remote.put(path, (cache.folder / "rows.parquet").read_bytes())
    assert not at.is_symlink()
    at.unlink()
    at.symlink_to(outside / "rows")
    remote.remove(path)
    assert not at.is_symlink()
    assert contents(outside) == before


def test_a_link_that_leads_nowhere_takes_no_file(cache: Cache, place: Path) -> None:
    store = open_remote(str(place / "r"))
    (place / "r").mkdir()
    (place / "r" / "caches").symlink_to(place / "made-by-a-push")
    with pytest.raises(LinkError, match="caches is a link"):
        push(store, bundle_of_cache(cache.folder))
    assert not (place / "made-by-a-push").exists()


def test_a_listing_shows_a_link_as_what_it_is_and_all_others(cache: Cache, place: Path) -> None:
    store = open_remote(str(place / "r"))
    push(store, bundle_of_cache(cache.folder))
    (place / "r" / "caches" / "other").symlink_to(bait(place))
    found = {one.name: one for one in listing(store, "cache")}
    assert found[cache.name].entry is not None
    assert "is a link" in found["other"].problem


def test_a_pull_writes_through_no_link(cache: Cache, place: Path) -> None:
    store = open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(cache.folder)).entry
    outside, parent = bait(place), place / "pulled"
    work = parent / f".{cache.name}-{entry.sha256[:12]}.partial"
    parent.mkdir()
    work.symlink_to(outside)
    before = contents(outside)
    with pytest.raises(UsageError, match="is a link where a pull writes"):
        pull(store, find(store, ""), parent=parent)
    work.unlink()
    work.mkdir()
    (work / cache.name).symlink_to(outside)
    with pytest.raises(UsageError, match="is a link where a pull writes"):
        pull(store, find(store, ""), parent=parent)
    assert contents(outside) == before


@pytest.mark.parametrize("name", ["features.zarr", "leases", "ledger.jsonl", "rows.parquet"])
def test_a_cache_in_the_making_writes_through_no_link(place: Path, name: str) -> None:
    outside = bait(place)
    folder = CacheWriter(place / "c", recipe(), rows=rows_for(IMAGES), row_shape=(3, 4, 5)).folder
    at = folder / name
    shutil.rmtree(at) if at.is_dir() else at.unlink(missing_ok=True)
    at.symlink_to(outside / "below" if name in ("features.zarr", "leases") else outside / "thesis")
    before = contents(outside)
    with pytest.raises(CacheError, match=f"{name}.* is a link that leads out of the cache"):
        CacheWriter(place / "c", recipe(), rows=rows_for(IMAGES), row_shape=(3, 4, 5))
    assert contents(outside) == before
