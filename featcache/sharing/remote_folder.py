"""A folder of caches on a remote: where each cache in the making lies there, and whether the remote is fit for it.

    caches/NAME/extracted-DIGEST/                  the root that the record names in the end
    caches/NAME/extracted-DIGEST/features.zarr/... shards, each created once and never written over
    caches/NAME/extracted-DIGEST/work/shards/N.json  a shard that is there: its record and its chunks
    caches/NAME/extracted-DIGEST/work/leases/      who is at work on what

What is finished is a cache like one that was pushed, with its record.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from featcache.core.errors import RemoteError, UsageError
from featcache.remotes import Patient, Remote, open_remote, parse_url, refuse_writing
from featcache.sharing.catalog import Entry, latest
from featcache.sharing.record import FOLDERS
from featcache.sharing.transfer import patiently

BEGUN_FILE = "begun.json"
FINISHED = "finished"
"""An object of the journal of a finished cache, whose other objects are gone: late machines look for the record."""
_PATIENCE_S = 30.0
"""At the start: an address that is wrong is said soon."""
_PROBE = ".featcache-probe-"


@dataclass(frozen=True)
class Site:
    """Where a cache is made on a remote. digest : of the cache"""

    name: str
    digest: str

    @property
    def root(self) -> str:
        """The folder of what decides a value."""
        return f"{FOLDERS['cache']}/{self.name}/extracted-{self.digest[:16]}"

    @property
    def journal(self) -> str:
        """The folder that says which shards are there."""
        return f"{self.root}/work/shards"

    @property
    def leases(self) -> str:
        """The folder that says who is at work."""
        return f"{self.root}/work/leases"


def open_folder(url: str, on_event: Callable[[str], object] = lambda _: None) -> Patient:
    """The remote at a URL, for caches to be made on. It is asked again where it is busy, for minutes, which is told."""
    store = open_remote(url)
    refuse_writing(store)
    return Patient(store, on_event)


def refuse_unfit(url: str, on_event: Callable[[str], object] = lambda _: None) -> None:
    """Raise RemoteError for a remote on which several machines cannot make one cache: before any work, by a trial."""
    if parse_url(url).is_pack:
        raise UsageError(
            f"{url}: a pack is written as a whole", "Extract into a folder, then write the pack with 'featcache pack'"
        )
    store = open_remote(url)
    refuse_writing(store)
    if not store.shared or not tells_who_was_first(store, Patient(store, on_event, patience_s=_PATIENCE_S)):
        raise RemoteError(
            f"{store.url}: ignores conditional writes (If-None-Match), so that machines which extract into it could "
            "overwrite each other's work",
            "Extract into a local folder, then push the cache",
        )


def tells_who_was_first(store: Remote, patient: Remote | None = None) -> bool:
    """Whether a remote tells a second creation of an object from the first. patient : the same, for what must be"""
    path, creating = f"{_PROBE}{uuid.uuid4().hex[:12]}", patient or store
    try:
        patiently(lambda: creating.create(path, b"1"))
        return not patiently(lambda: creating.create(path, b"2"))
    finally:
        _forget(store, path)


def _forget(store: Remote, path: str) -> None:
    try:
        store.remove(path)
    except RemoteError:  # a key that may write and not delete: an object of one byte stays
        return


def finished_on(store: Remote, site: Site) -> Entry | None:
    """The record of a cache on a remote; None while it is not finished. UsageError for another cache of the name."""
    entry = latest(store, "cache", name=site.name)
    if entry is not None and entry.record.digest != site.digest:
        raise UsageError(f"{store.url}: holds another cache named {site.name}, whose digest begins alike: remove it")
    return entry


def refuse_format(format_: str, url: str) -> None:
    """Raise UsageError for a format that cannot be written to a remote shard by shard."""
    if format_ != "zarr":
        raise UsageError(
            f"{url}: takes caches in the format zarr: an HDF5 file is only written when all of it is there",
            "Set `format='zarr'`, or extract into a local folder and push the cache",
        )


def shard_of(path: str) -> int | None:
    """The shard that an object of the journal is of; None of another object."""
    number, _, ending = path.rpartition("/")[2].partition(".")
    return int(number) if ending == "json" and number.isascii() and number.isdecimal() else None


def journal_path(site: Site, shard: int) -> str:
    """The object of the journal that says that a shard is there."""
    return f"{site.journal}/{shard:08d}.json"
