"""index: a list of all records, and a page for people, that make a remote of what a plain web server shows."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featcache.core.errors import RemoteError
from featcache.remotes import INDEX_FILE, INDEX_FORMAT, FolderRemote, Remote, refuse_writing
from featcache.sharing.bundle import Bundle, bundle_of_cache
from featcache.sharing.catalog import Entry, Listed, latest, listing
from featcache.sharing.commit import Attribution, record_of
from featcache.sharing.record import Record, record_path
from featcache.sharing.transfer import patiently
from featcache.store import list_caches

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from featcache.sharing.keys import Key

PAGE_FILE = "index.html"
_COLUMNS = ("name", "backbone", "rows", "features", "dtype", "size", "licence", "contact", "signed by", "pushed")
_STYLE = "body{font:16px sans-serif;margin:2em}td,th{padding:.3em 1em;text-align:left}tr:hover{background:#eee}"


@dataclass(frozen=True)
class Indexed:
    """What an index lists, and the names that cannot be used, with the reason."""

    entries: Sequence[Entry]
    problems: Sequence[Listed]


def write_index(
    store: Remote, key: tuple[Key, Ed25519PrivateKey] | None = None, *, words: Attribution | None = None
) -> Indexed:
    """Write index.json and index.html. A folder of caches as `extract` makes them gets records for them, too.

    key : signs the records that are made

    Raises RemoteError for a remote that cannot be written.
    """
    refuse_writing(store)
    if isinstance(store, FolderRemote):
        _record_plain_caches(store, key, words or Attribution())
    listed = [*listing(store, "cache"), *listing(store, "run")]
    entries = [one.entry for one in listed if one.entry is not None]
    paths = [
        record_path(record.kind, record.name, generation=generation)
        for record in (entry.record for entry in entries)
        for generation in range(1, record.generation + 1)
    ]
    index = json.dumps({"format": INDEX_FORMAT, "records": paths}, indent=2) + "\n"
    patiently(lambda: store.put(INDEX_FILE, index.encode()))
    patiently(lambda: store.put(PAGE_FILE, _page([entry.record for entry in entries]).encode()))
    return Indexed(entries, [one for one in listed if one.entry is None])


def _record_plain_caches(store: FolderRemote, key: tuple[Key, Ed25519PrivateKey] | None, words: Attribution) -> None:
    """Records for the caches that lie in the folder itself: their files stay where they are."""
    for listed in list_caches(store.folder):
        if listed.cache is None:
            continue
        parcel = _Plain(**vars(bundle_of_cache(listed.folder)))
        before = latest(store, "cache", name=parcel.name)
        if before is not None and before.record.manifest == parcel.manifest_entry:
            continue
        entry = record_of(parcel, before.record.generation + 1 if before else 1, chunks=None, key=key, words=words)
        if not store.create(entry.record.path, entry.record.text()):
            raise RemoteError(f"{store.url}: {parcel.name}: somebody else made its record just now: try again")


class _Plain(Bundle):
    """A cache that is shown where it lies."""

    @property
    def root(self) -> str:
        """Its folder's name."""
        return self.name

    @property
    def labels(self) -> str:
        """The same folder."""
        return self.name


def _page(records: Sequence[Record]) -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(r))}</tr>\n" for r in records)
    head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>featcache</title><style>{_STYLE}</style>\n'
        "<h1>Caches and runs</h1>\n<p>To get one: <code>featcache pull URL-OF-THIS-PAGE/NAME</code></p>\n"
        f"<table><tr>{head}</tr>\n{rows}</table>\n"
    )


def _cells(record: Record) -> list[str]:
    about = record.about
    shape = about.get("shape")
    sides = shape[1:] if isinstance(shape, list) else [about.get("cache_name", "")]
    features = "x".join(map(str, sides))
    size = about.get("bytes")
    megabytes = f"{size / 1e6:.1f} MB" if isinstance(size, int) else ""
    middle = [str(about.get(name, "")) for name in ("backbone", "rows")]
    by = record.signature.by if record.signature else ""
    said = (record.licence, record.contact, by, record.pushed)
    return [record.name, *middle, features, str(about.get("dtype", "")), megabytes, *said]
