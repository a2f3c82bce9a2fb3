"""push: the files that are missing on a remote, then, last and only if it is not there, the record that commits."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.core.errors import CacheError, RemoteDroppedError, UsageError
from featcache.core.files import sha256_bytes, sha256_file
from featcache.remotes import Item, Remote, refuse_writing
from featcache.sharing import keys
from featcache.sharing.bundle import MANIFEST_FILES, Bundle
from featcache.sharing.catalog import Entry, latest
from featcache.sharing.chunks import Chunk, chunks_of, chunks_text
from featcache.sharing.commit import Attribution, commit, record_of, remark_on_what_was, words_of
from featcache.sharing.record import CHUNKS_FILE
from featcache.sharing.remote_folder import tells_who_was_first
from featcache.sharing.transfer import Advance, Stopped, at_once, entry_of, patiently
from featcache.store import DATASET_FILE, FEATURES_FOLDER, FileEntry

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

IN_MEMORY_BYTES = 64 << 20
_RACES = 5


@dataclass(frozen=True)
class Pushed:
    """What a push did. reused : whether it was there; sent : files and bytes that were sent for it

    remarks : what is worth knowing and harms nothing
    remote : URL of the remote
    """

    entry: Entry
    reused: bool
    sent_files: int = 0
    sent_bytes: int = 0
    remarks: tuple[str, ...] = ()
    remote: str = ""


def push(
    store: Remote,
    parcel: Bundle,
    *,
    key: tuple[keys.Key, Ed25519PrivateKey] | None = None,
    words: Attribution | None = None,
    replace: bool = False,
    check: bool = False,
    advance: Advance = lambda _: None,
    stopped: Stopped = lambda: False,
) -> Pushed:
    """Send what is missing of a cache or run, then commit it.

    What was sent is kept when it is interrupted. A cache that is there already, whoever pushed it, is left as it is: it
    has the same rows, maybe in another order and with other labels.

    key : signs the record
    replace : let this one count though another is there under the name
    check : read what is there already, and mend what is damaged

    Raises RemoteError where the remote refuses or cannot be reached, CacheError where a file here is damaged,
    UsageError for another cache whose name is the same.
    """
    refuse_writing(store)
    words = words or Attribution()
    before = latest(store, parcel.kind, name=parcel.name)
    if before and before.record.manifest == parcel.manifest_entry:
        parcel = dataclasses.replace(parcel, place=before.record.root)  # of a cache that was made there: its own name
    if (
        not check
        and before
        and (found := _there_already(before, store, parcel=parcel, key=key, words=words, replace=replace))
    ):
        return found
    remarks = _remark_on_races(store)
    sending = _Sending(store, parcel, check=check, advance=advance)
    at_once(sending.send, sorted(parcel.files, key=lambda name: -parcel.entries[name].bytes), stopped=stopped)
    chunks = sending.send_chunks()
    sending.send_bytes(f"{parcel.labels}/{MANIFEST_FILES[parcel.kind]}", parcel.manifest)
    sending.look_again()
    if (
        check
        and before
        and (found := _there_already(before, store, parcel=parcel, key=key, words=words, replace=replace))
    ):
        return Pushed(found.entry, True, sending.files, sending.bytes, found.remarks)
    for _ in range(_RACES):
        generation = before.record.generation + 1 if before else 1
        entry = record_of(parcel, generation, chunks=chunks, key=key, words=words_of(before, parcel, words=words))
        if commit(store, entry):
            left = remark_on_what_was(before, entry, words=words)
            return Pushed(entry, False, sending.files, sending.bytes, (*remarks, *left))
        before = latest(store, parcel.kind, name=parcel.name)
        if before and (found := _there_already(before, store, parcel=parcel, key=key, words=words, replace=replace)):
            return Pushed(
                found.entry, True, sending.files, sending.bytes, (*remarks, "somebody else pushed it meanwhile")
            )
    raise RemoteDroppedError(f"{store.url}: {parcel.name}: others push it again and again: try again")


def _there_already(
    entry: Entry,
    store: Remote,
    parcel: Bundle,
    key: tuple[keys.Key, Ed25519PrivateKey] | None,
    words: Attribution,
    replace: bool,
) -> Pushed | None:
    """What is to be said where nothing is to be done; None where a record of ours is to be made."""
    record = entry.record
    if record.digest != parcel.digest and parcel.kind == "cache":
        raise UsageError(
            f"{store.url}: holds another cache named {parcel.name}, whose digest begins alike: push this one to "
            "another prefix of the remote"
        )
    if parcel.private and not record.private:
        raise UsageError(
            f"{store.url}: has {parcel.name} with its paths and groups, which would stay there",
            f"Run 'featcache rm {parcel.name} --remote NAME' first, then push it again",
        )
    same = record.manifest == parcel.manifest_entry
    unsigned = key is not None and record.signature is None
    said = (words.licence or record.licence, words.contact or record.contact)
    if same and not unsigned and said == (record.licence, record.contact) and not (replace and key):
        return Pushed(entry, True)
    if same or replace:
        return None
    if parcel.kind == "run" or record.about.get("dataset") != parcel.about.get("dataset"):
        what = "results" if parcel.kind == "run" else "labels, splits, groups or paths"
        return Pushed(entry, True, remarks=(f"with other {what} than here; set `replace=True` to replace them",))
    return Pushed(entry, True, remarks=("pushed by somebody else, with the same rows and labels",))


def _remark_on_races(store: Remote) -> tuple[str, ...]:
    """Try whether the remote tells a second creation from the first. Where it does not, the last of two pushes counts.

    That is safe: all that a record names is there before it, and each names files of its own.
    """
    if not store.shared:
        return ()
    if tells_who_was_first(store):
        return ()
    return ("this remote cannot tell who was first: of two pushes of one name at the same moment the last one counts",)


class _Sending:
    """What a push knows of the remote, and has sent."""

    def __init__(self, store: Remote, parcel: Bundle, *, check: bool, advance: Advance) -> None:
        self.files = 0
        self.bytes = 0
        self._store, self._parcel, self._check, self._advance = store, parcel, check, advance
        self._there: dict[str, Item] = {item.path: item for item in patiently(lambda: store.list(parcel.root))}
        self._sent: dict[str, int] = {}
        self._lock = threading.Lock()
        self._chunks: dict[str, list[Chunk]] = {}

    def _path(self, name: str) -> str:
        return f"{self._parcel.labels if name == DATASET_FILE else self._parcel.root}/{name}"

    def send(self, name: str) -> None:
        """Send a file unless its bytes are there. CacheError where it is not what the manifest promises."""
        parcel, entry, file = self._parcel, self._parcel.entries[name], self._parcel.files[name]
        path = self._path(name)
        try:
            data = file.read_bytes() if entry.bytes <= IN_MEMORY_BYTES else file
            found = sha256_bytes(data) if isinstance(data, bytes) else sha256_file(file)
        except OSError as error:
            raise CacheError(f"{parcel.name}: {name}: cannot be read: {error.strerror or error}") from error
        if found != entry.sha256:
            raise CacheError(
                f"{parcel.name}: {name}: expected SHA-256 {entry.sha256[:16]}.., found {found[:16]}..: it is damaged "
                "here, and was not pushed",
                f"'featcache verify {parcel.name} --repair' repairs a cache",
            )
        if parcel.layout is not None and name.startswith(f"{FEATURES_FOLDER}/c/"):
            self._note_chunks(name, data if isinstance(data, bytes) else file.read_bytes())
        if not self._is_there(path, entry, data):
            self.send_bytes(path, data)
        self._advance(entry.bytes)

    def _note_chunks(self, name: str, shard: bytes) -> None:
        assert self._parcel.layout is not None  # noqa: S101 - for the type checker
        try:
            self._chunks[name] = chunks_of(shard, self._parcel.layout)
        except ValueError as error:
            raise CacheError(f"{self._parcel.name}: {name}: {error}") from error

    def _is_there(self, path: str, entry: FileEntry, data: object) -> bool:
        item = self._there.get(path)
        if item is None or item.bytes != entry.bytes:
            return False
        if self._check:
            return entry_of(self._store, path, most=entry.bytes) == entry
        return not item.md5 or not isinstance(data, bytes) or item.md5 == _md5(data)

    def send_bytes(self, path: str, data: bytes | Path) -> None:
        """Send an object."""
        patiently(lambda: self._store.put(path, data))
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        with self._lock:
            self._sent[path] = size
            self.files += 1
            self.bytes += size

    def send_chunks(self) -> FileEntry | None:
        """Send the list of chunks, where there are any."""
        if not self._chunks:
            return None
        text = chunks_text(self._chunks)
        path = f"{self._parcel.root}/{CHUNKS_FILE}"
        entry = FileEntry(bytes=len(text), sha256=sha256_bytes(text))
        if not self._is_there(path, entry, text):
            self.send_bytes(path, text)
        return entry

    def look_again(self) -> None:
        """See that all is there, in its size."""
        if not self._store.shared:
            return
        there = {item.path: item.bytes for item in patiently(lambda: self._store.list(self._parcel.root))}
        expected = {self._path(name): entry.bytes for name, entry in self._parcel.entries.items()} | self._sent
        for path, size in expected.items():
            if there.get(path) != size:
                raise RemoteDroppedError(f"{self._store.url}/{path}: is not there as it was sent: push again")


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
