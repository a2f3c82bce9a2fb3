"""What is on a remote: the records under their names, found by name or by the beginning of one."""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from featcache.core.errors import RemoteError, RemoteNotFoundError, UsageError, nearest
from featcache.core.files import sha256_bytes
from featcache.remotes import Remote, read
from featcache.sharing.record import FOLDERS, MAX_RECORD_BYTES, NAME_PATTERN, Kind, Record, record_path
from featcache.sharing.transfer import THREADS, patiently

_MAX_GENERATIONS = 10_000
_SHOWN = 8


@dataclass(frozen=True)
class Entry:
    """The record that counts under a name. sha256 : of its bytes"""

    record: Record
    sha256: str


@dataclass(frozen=True)
class Listed:
    """A name on a remote: its record, or the reason why it has none that can be used."""

    kind: Kind
    name: str
    entry: Entry | None
    problem: str = ""


def latest(store: Remote, kind: Kind, *, name: str) -> Entry | None:
    """The record of the highest generation; None where there is none. Generations are asked for one by one.

    So it needs no listing, which plain web servers do not have.
    """
    if not re.fullmatch(NAME_PATTERN, name):  # it would be a path that leads somewhere else
        return None
    data, generation = None, 0
    while generation < _MAX_GENERATIONS:
        path = record_path(kind, name, generation=generation + 1)
        try:
            data = patiently(lambda path=path: read(store, path, most=MAX_RECORD_BYTES))  # type: ignore[misc]
        except RemoteNotFoundError:
            break
        if data.lstrip()[:1] != b"{":
            _refuse_pages(store, path)
        generation += 1
    if data is None:
        return None
    return Entry(
        Record.parse(data, f"{store.url}/{record_path(kind, name, generation=generation)}"), sha256_bytes(data)
    )


def _refuse_pages(store: Remote, path: str) -> None:
    """Raise RemoteError where a server has an answer for a name that cannot be there: a page to log in, or a form."""
    try:
        patiently(lambda: read(store, f"{path.rpartition('/')[0]}/{uuid.uuid4().hex}", most=MAX_RECORD_BYTES))
    except RemoteNotFoundError:
        return
    raise RemoteError(f"{store.url}: answers every name with a page: this is no featcache remote. Look at the address")


def listing(store: Remote, kind: Kind) -> list[Listed]:
    """Every name of a kind, in order. What was begun and never finished is not there."""

    def one(name: str) -> Listed | None:
        try:
            entry = latest(store, kind, name=name)
        except RemoteError as error:
            return Listed(kind, name, None, str(error))
        return Listed(kind, name, entry) if entry else None

    names = patiently(lambda: store.folders(FOLDERS[kind]))
    with ThreadPoolExecutor(THREADS, "featcache-share") as pool:
        return [found for found in pool.map(one, names) if found is not None]


def find(store: Remote, name: str, *, kinds: tuple[Kind, ...] = ("cache", "run")) -> Entry:
    """The record that a name, or how one begins, means; without one, the only record there.

    Raises RemoteNotFoundError where there is none, UsageError where several could be meant.
    """
    if name:
        for kind in kinds:
            if entry := latest(store, kind, name=name):
                return entry
    there = [listed for kind in kinds for listed in listing(store, kind)]
    meant = [listed for listed in there if listed.name.startswith(name)]
    if len(meant) > 1:
        shown = ", ".join(listed.name for listed in meant[:_SHOWN]) + (", ..." if len(meant) > _SHOWN else "")
        raise UsageError(f"{store.url}: {name!r:.80} could be {shown}: name one of them")
    if not meant:
        hint = nearest(name, [listed.name for listed in there]) if there else "nothing is there"
        raise RemoteNotFoundError(f"{store.url}: no {' or '.join(kinds)} {name!r:.80}: {hint[:500]}")
    if meant[0].entry is None:
        raise RemoteError(meant[0].problem)
    return meant[0].entry
