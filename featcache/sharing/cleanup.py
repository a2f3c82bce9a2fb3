"""Looking after a remote: every byte of what is there checked, and what is no longer wanted removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from featcache.core.errors import FeatcacheError, RemoteError, RemoteNotFoundError
from featcache.remotes import Remote, refuse_writing
from featcache.sharing.catalog import Entry, latest
from featcache.sharing.keys import check_signature
from featcache.sharing.receive import get_manifest
from featcache.sharing.record import CHUNKS_FILE, FOLDERS, Kind, record_path
from featcache.sharing.transfer import Advance, at_once, entry_of, patiently
from featcache.store import FileEntry, Problem


@dataclass(frozen=True)
class RemoteVerified:
    """What was found on a remote under a name."""

    name: str
    files: int
    bytes: int
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """Whether all is there, as it was pushed."""
        return not self.problems


def verify_remote(store: Remote, entry: Entry, *, work: Path, advance: Advance = lambda _: None) -> RemoteVerified:
    """Read every byte that a record names, and keep none of them.

    work : an empty folder for the manifest
    """
    record = entry.record
    try:
        check_signature(record, {})
        files = dict(get_manifest(work, store, record=record))
    except FeatcacheError as error:
        return RemoteVerified(record.name, 0, 0, (Problem("", str(error)),))
    if record.chunks is not None:
        files[CHUNKS_FILE] = record.chunks
    problems: dict[str, Problem] = {}

    def check(name: str) -> None:
        if said := _problem(store, record.path_of(name), files[name]):
            problems[name] = Problem(name, said)
        advance(files[name].bytes)

    at_once(check, files)
    size = sum(one.bytes for one in files.values())
    return RemoteVerified(record.name, len(files) + 1, size, tuple(problems[name] for name in sorted(problems)))


def _problem(store: Remote, path: str, entry: FileEntry) -> str:
    try:
        found = entry_of(store, path, most=entry.bytes)
    except RemoteNotFoundError:
        return "is missing"
    if found.bytes != entry.bytes:
        return f"expected {entry.bytes} bytes, found {found.bytes if found.bytes < entry.bytes else 'more'}"
    if found.sha256 != entry.sha256:
        return f"expected SHA-256 {entry.sha256[:16]}.., found {found.sha256[:16]}.."
    return ""


def removable(store: Remote, kind: Kind, *, name: str) -> Mapping[str, int]:
    """The objects under a name and their sizes, also those of a push that was never finished."""
    refuse_writing(store)
    found = {item.path: item.bytes for item in patiently(lambda: store.list(f"{FOLDERS[kind]}/{name}"))}
    if not found:
        raise RemoteNotFoundError(f"{store.url}: nothing is there of {name}")
    return found


def remove(store: Remote, kind: Kind, *, name: str, on_removed: Callable[[int], object] = lambda _: None) -> None:
    """Remove what is under a name: its records from the last to the first, then the files.

    So at no moment a record is there whose files are not. Raises RemoteError where the remote refuses.
    """
    there = removable(store, kind, name=name)
    while (entry := latest(store, kind, name=name)) is not None:
        path = record_path(kind, name, generation=entry.record.generation)
        patiently(lambda path=path: store.remove(path))  # type: ignore[misc]
        on_removed(there.get(path, 0))
        if (again := latest(store, kind, name=name)) is not None and again.sha256 == entry.sha256:
            raise RemoteError(f"{store.url}/{path}: is still there though it was removed: the remote keeps what it has")
    records = {path for path in there if path.count("/") == 2}
    for path in records:  # of generations behind a gap
        patiently(lambda path=path: store.remove(path))  # type: ignore[misc]
    files = [path for path in there if path not in records]

    def one(path: str) -> None:
        patiently(lambda: store.remove(path))
        on_removed(there[path])

    at_once(one, files)
