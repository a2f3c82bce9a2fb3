"""The record that ends a push: what it says, also of the words of the one before, and how it is created."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from featcache.core.errors import RemoteAccessError, RemoteDroppedError, RemoteNotFoundError
from featcache.core.files import sha256_bytes
from featcache.remotes import Remote, read
from featcache.sharing import keys
from featcache.sharing.bundle import Bundle
from featcache.sharing.catalog import Entry, latest
from featcache.sharing.record import RECORD_FORMAT, Record
from featcache.sharing.transfer import patiently
from featcache.store import FileEntry

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Attribution:
    """What whoever pushes says of it; it decides no value and is in no digest of the cache."""

    licence: str = ""
    contact: str = ""


def words_of(before: Entry | None, parcel: Bundle, *, words: Attribution) -> Attribution:
    """What is said of a parcel: where nothing else is, what was said of the same thing before."""
    if before is None or before.record.digest != parcel.digest:
        return words
    return Attribution(words.licence or before.record.licence, words.contact or before.record.contact)


def remark_on_what_was(before: Entry | None, entry: Entry, *, words: Attribution) -> tuple[str, ...]:
    """Which words were taken over from the record before, and whose signature was not."""
    remarks = []
    record = entry.record
    for name, text, said in (("licence", record.licence, words.licence), ("contact", record.contact, words.contact)):
        if text != said:
            remarks.append(f"with the {name} of the record before: {text}")
    if before and before.record.signature and not record.signature:
        remarks.append(f"no longer signed, as it was by {before.record.signature.by}; set `sign` to sign it")
    return tuple(remarks)


def record_of(
    parcel: Bundle,
    generation: int,
    *,
    chunks: FileEntry | None,
    key: tuple[keys.Key, Ed25519PrivateKey] | None,
    words: Attribution,
) -> Entry:
    """The record that commits a parcel.

    chunks : what its chunks.json must be; None where there is none
    """
    record = Record(
        format=RECORD_FORMAT,
        kind=parcel.kind,
        name=parcel.name,
        digest=parcel.digest,
        generation=generation,
        manifest=parcel.manifest_entry,
        root=parcel.root,
        labels=parcel.labels,
        chunks=chunks,
        about=dict(parcel.about),
        licence=words.licence,
        contact=words.contact,
        private=parcel.private,
        pushed=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    record = keys.sign(record, key) if key else record
    return Entry(record, sha256_bytes(record.text()))


def commit(store: Remote, entry: Entry) -> bool:
    """Create the record. A try whose answer was lost may have done so: then ours is there."""
    text, path = entry.record.text(), entry.record.path
    try:
        created = store.create(path, text)
    except RemoteDroppedError:
        created = patiently(lambda: store.create(path, text))
        found = None if created else latest(store, entry.record.kind, name=entry.record.name)
        created = created or (found is not None and found.sha256 == entry.sha256)
    if created and store.shared:
        _refuse_unstored(store, path, text)
    return created


def _refuse_unstored(store: Remote, path: str, text: bytes) -> None:
    """Raise RemoteDroppedError where a remote said that it took a record and has none: some say so of a failure."""
    try:
        stored = patiently(lambda: read(store, path, most=len(text)))
    except RemoteAccessError:  # who may only write
        return
    except RemoteNotFoundError:
        stored = b""
    if stored != text:
        raise RemoteDroppedError(
            f"{store.url}/{path}: was taken, says the remote, and is not there as sent: push again"
        )
