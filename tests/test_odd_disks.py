"""Disks that lack what others have: hard links, renames that do not replace, an fsync of folders, locks."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import contents
from test_store_contract import dataset, fake_features, make_cache

from featcache.core import files
from featcache.remotes.urls import open_remote
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import find
from featcache.sharing.receive import pull
from featcache.sharing.send import push
from featcache.store.cache import open_cache


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture(params=[0, errno.EINVAL, errno.ENOSYS])
def without_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A USB stick; with EINVAL and ENOSYS one of a system that cannot rename without replacing either."""

    def link(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    if request.param:
        monkeypatch.setattr(files, "_renameat2", lambda *_: request.param)


@pytest.mark.usefixtures("without_links")
def test_a_push_to_a_stick(place: Path) -> None:
    cache = make_cache(place / "mine", dataset(6), fake_features(6, (5,)))
    store = open_remote(str(place / "stick"))
    done = push(store, bundle_of_cache(cache.folder))
    assert done.remarks == ()
    pulled = pull(store, find(store, ""), parent=place / "other" if (place / "other").mkdir() is None else place)
    assert contents(pulled.folder) == contents(cache.folder)
    assert [path.name for path in (place / "stick").rglob(".*")] == []


@pytest.mark.usefixtures("without_links")
def test_of_many_who_create_a_file_one_is_told_so(place: Path) -> None:
    def one(number: int) -> bool:
        return files.create(place / "record", str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(one, range(20)))
    assert sum(told) == 1
    assert (place / "record").read_text() == str(told.index(True))
    assert names(place) == ["record"]


def test_a_lock_that_a_killed_process_left_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(files, "_renameat2", lambda *_: errno.EINVAL)
    monkeypatch.setattr(files, "_LOCK_S", 0.0)
    (place / ".record.lock").mkdir()
    with pytest.raises(OSError, match=r"\.record\.lock beside it says that somebody makes it: remove that"):
        files.create(place / "record", b"1")
    assert names(place) == [".record.lock"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_folders_that_cannot_be_synced_are_remarked_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    said: list[str] = []
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(files, "on_remark", said.append)
    monkeypatch.setattr(files, "_unsynced", set())
    cache = make_cache(place / "mine", dataset(6), fake_features(6, (5,)))
    store = open_remote(str(place / "r"))
    push(store, bundle_of_cache(cache.folder))
    assert open_cache(cache.folder).manifest == cache.manifest
    assert len(said) == 1
    assert "not from a power cut" in said[0]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_is_no_disk_that_cannot(place: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fsync(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(number)):
        files.write_text(place / "file", "x")
    assert names(place) == []
