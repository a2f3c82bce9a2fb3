"""status: how far the caches of a folder are, and who is at work on them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.core.errors import CacheError
from featcache.core.leases import BEAT_S, Holder, holders
from featcache.store import ledger
from featcache.store.catalog import cache_folders
from featcache.store.layout import LEASES_FOLDER, LEDGER_FILE, MANIFEST_FILE, REPAIR_LEDGER_FILE, ROWS_FILE
from featcache.store.manifest import read_manifest
from featcache.store.tables import read_keys


@dataclass(frozen=True)
class Working:
    """A process that holds shards of a cache, and what it holds. alive : whether it gave a sign of life"""

    host: str
    pid: int
    shards: Sequence[int]
    alive: bool


@dataclass(frozen=True)
class Standing:
    """How far a cache is.

    rows, done : rows that it will have, 0 where nobody knows yet; those in finished shards
    finished : whether it can be used
    workers : who is at work on it
    """

    cache: str
    path: Path
    rows: int
    done: int
    finished: bool
    workers: Sequence[Working]


def status(parent: Path) -> list[Standing]:
    """How far every cache in `parent` is, by name. Takes some seconds where another machine is at work: whether that is
    alive shows in its leases, which it writes anew every few seconds."""
    folders = cache_folders(parent)
    before = {folder: holders(folder / LEASES_FOLDER) for folder in folders}
    if any(holder.ended is None for found in before.values() for holder in found):
        time.sleep(1.5 * BEAT_S)
    return [_standing(folder, before[folder]) for folder in folders]


def _standing(folder: Path, before: Sequence[Holder]) -> Standing:
    now = holders(folder / LEASES_FOLDER)
    finished = (folder / MANIFEST_FILE).is_file() and not (folder / REPAIR_LEDGER_FILE).is_file()
    try:
        rows = read_manifest(folder).rows if finished else len(read_keys(folder / ROWS_FILE))
    except CacheError:
        rows, finished = 0, False
    done = (
        rows if finished else sum(record.stop - record.start for record in ledger.read(folder / LEDGER_FILE).values())
    )
    return Standing(folder.name, folder, rows, done, finished, working(before, now))


def working(before: Sequence[Holder], now: Sequence[Holder]) -> list[Working]:
    """Who holds shards, with a sign of life: its process runs here, or its lease was written anew meanwhile."""
    beats = {(holder.worker, holder.name): holder.beat for holder in before}
    found: dict[tuple[str, int, str], list[Holder]] = {}
    for holder in now:
        if holder.name.isdecimal():
            found.setdefault((holder.host, holder.pid, holder.worker), []).append(holder)
    at_work = []
    for (host, pid, _), held in sorted(found.items()):
        alive = any(
            not holder.ended if holder.ended is not None else beats.get((holder.worker, holder.name)) != holder.beat
            for holder in held
        )
        at_work.append(Working(host, pid, sorted(int(holder.name) for holder in held), alive))
    return at_work
