"""status of a folder of caches on a remote: how far each cache is, and who is at work on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from featcache.core.errors import RemoteError
from featcache.core.leases import Holder
from featcache.core.strict_json import strict_json
from featcache.remotes import Remote, open_remote, read
from featcache.sharing.catalog import latest
from featcache.sharing.record import FOLDERS, MAX_RECORD_BYTES
from featcache.sharing.remote_folder import BEGUN_FILE, Site, shard_of
from featcache.sharing.remote_leases import BEAT_S, RemoteLeases
from featcache.sharing.transfer import patiently
from featcache.store import Standing, working

_MADE = "extracted-"


def status_on(url: str) -> list[Standing]:
    """How far the caches at a URL are, and who is at work on them."""
    store = open_remote(url)
    roots = {name: _root_of(store, name) for name in patiently(lambda: store.folders(FOLDERS["cache"]))}
    before = {name: _holders(store, root) for name, root in roots.items()}
    _wait_for_beats([holder for found in before.values() for holder in found])
    return [_standing(store, name, root, before[name]) for name, root in roots.items()]


def how_far_of(store: Remote, name: str) -> Standing:
    """How far one cache is, and who is at work on it, by its whole name."""
    root = _root_of(store, name)
    before = _holders(store, root)
    _wait_for_beats(before)
    return _standing(store, name, root, before)


def how_far(url: str, site: Site) -> Standing:
    """How far one cache is, whether or not anything of it is there."""
    return _standing(open_remote(url), site.name, site.root, [])


def _root_of(store: Remote, name: str) -> str:
    """Where a cache is being made, or was; "" where it was pushed."""
    folder = f"{FOLDERS['cache']}/{name}"
    made = [part for part in patiently(lambda: store.folders(folder)) if part.startswith(_MADE)]
    return f"{folder}/{made[0]}" if made else ""


def _wait_for_beats(holders: Sequence[Holder]) -> None:
    """Give holders on other machines the time for a sign of life."""
    if any(holder.ended is None for holder in holders):
        time.sleep(1.5 * BEAT_S)


def _holders(store: Remote, root: str) -> list[Holder]:
    return RemoteLeases(store, f"{root}/work/leases").holders() if root else []


def _standing(store: Remote, name: str, root: str, before: Sequence[Holder]) -> Standing:
    where = Path(FOLDERS["cache"], name)
    entry = latest(store, "cache", name=name)
    if entry is not None:
        rows = entry.record.about.get("rows")
        n_rows = rows if isinstance(rows, int) else 0
        return Standing(name, where, n_rows, n_rows, True, [])
    try:
        begun = strict_json(read(store, f"{root}/work/{BEGUN_FILE}", most=MAX_RECORD_BYTES).decode())
        n_rows, a_shard = int(begun["rows"]), int(begun["rows_per_shard"])
    except (RemoteError, ValueError, TypeError, KeyError, RecursionError):
        return Standing(name, where, 0, 0, False, [])
    shards = {shard_of(item.path) for item in patiently(lambda: store.list(f"{root}/work/shards"))} - {None}
    done = sum(min(a_shard, n_rows - shard * a_shard) for shard in shards if shard is not None)
    return Standing(name, where, n_rows, done, False, working(before, _holders(store, root)))
