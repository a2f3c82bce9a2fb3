"""What a remote has of an extraction: the very cache, or rows of it in others, fetched so that they can be copied."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.core.errors import RemoteError, TrustError
from featcache.core.files import PARTIAL_SUFFIX, sha256_bytes
from featcache.core.leases import Leases
from featcache.core.recipe import Recipe, cache_name
from featcache.remotes import Remote
from featcache.sharing.catalog import Entry, latest, listing
from featcache.sharing.options import Part
from featcache.sharing.reading import RemoteCache
from featcache.sharing.receive import Pulled, Trust, accept, pull
from featcache.sharing.subset import pull_part
from featcache.sharing.transfer import Advance, Stopped
from featcache.store import LEASES_FOLDER, Format, Row, keys_of


@dataclass(frozen=True)
class RemoteDonors:
    """What a remote had.

    whole : the very cache, pulled; None where it is not there
    donors : folders of caches that hold some of the rows, for `featcache.store.donors.DonorIndex`
    row_ids : names of the rows that they hold
    remarks : why the remote, or something on it, was of no use
    leases : what says that the donors are in use
    """

    whole: Pulled | None = None
    donors: tuple[Path, ...] = ()
    row_ids: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()
    leases: tuple[Leases, ...] = ()

    def forget(self) -> None:
        """Remove the donors, once their rows were copied."""
        for lease in self.leases:
            lease.close()
        for folder in self.donors:
            shutil.rmtree(folder, ignore_errors=True)


def ask(
    store: Remote,
    recipe: Recipe,
    *,
    rows: Sequence[Row],
    parent: Path,
    format_: Format = "zarr",
    wanted: Sequence[Row] | None = None,
    trust: Trust | None = None,
    advance: Advance = lambda _: None,
    stopped: Stopped = lambda: False,
) -> RemoteDonors:
    """Ask a remote for a cache of `rows`, or for caches of the same feature space that hold some of them.

    A remote that cannot be reached, or is not to be trusted, is no error: what it could have given is computed.

    parent : folder of caches; donors lie in a hidden folder in it
    wanted : the rows that are worth fetching, where some are at hand; all by default

    Raises CacheWriteError where nothing can be written here.
    """
    trust = trust or Trust()
    digest = keys_of(rows).digest(recipe)
    name = cache_name(recipe.space.backbone, digest, format_=format_)
    remarks: list[str] = []
    try:
        begun = (parent / name).exists()  # then it is finished here, with rows of the donors
        entry = None if begun else latest(store, "cache", name=name)
        if entry is not None and entry.record.digest == digest:
            return RemoteDonors(whole=pull(store, entry, parent=parent, trust=trust, advance=advance, stopped=stopped))
    except RemoteError as error:
        remarks.append(str(error))
        if not isinstance(error, TrustError):
            return RemoteDonors(remarks=tuple(remarks))
    return _donors(
        store,
        recipe,
        wanted=rows if wanted is None else wanted,
        parent=parent,
        trust=trust,
        stopped=stopped,
        remarks=remarks,
    )


def _donors(
    store: Remote,
    recipe: Recipe,
    wanted: Sequence[Row],
    parent: Path,
    trust: Trust,
    stopped: Stopped,
    remarks: list[str],
) -> RemoteDonors:
    """Parts of other caches, the largest first, until every row is had that can be."""
    asked = frozenset(row.row_id for row in wanted)
    missing = set(asked)
    named = sha256_bytes(repr([store.url, sorted(asked)]).encode())[:12]
    donors = parent / f".donors-{named}{PARTIAL_SUFFIX}"
    leases = Leases(donors / LEASES_FOLDER)
    for entry in _candidates(store, recipe, remarks):
        if not missing:
            break
        try:
            accept(parent, store, entry=entry, trust=trust)
            with RemoteCache(store, entry.record, parent=parent) as cache:
                held = missing.intersection(cache.views["row_id"])
            if held:
                donors.mkdir(parents=True, exist_ok=True)
                leases.claim("donors")  # two that ask for the same rows share them
                pull_part(store, entry, parent=donors, part=Part(row_ids=frozenset(held)), trust=trust, stopped=stopped)
                missing -= held
        except RemoteError as error:
            remarks.append(str(error))
    found = asked - missing
    if not found:
        leases.close()
        return RemoteDonors(remarks=tuple(remarks))
    return RemoteDonors(donors=(donors,), row_ids=found, remarks=tuple(remarks), leases=(leases,))


def _candidates(store: Remote, recipe: Recipe, remarks: list[str]) -> list[Entry]:
    try:
        listed = listing(store, "cache")
    except RemoteError as error:
        remarks.append(str(error))
        return []
    entries = [one.entry for one in listed if one.entry is not None]
    same = [entry for entry in entries if entry.record.about.get("space") == recipe.space.digest]
    return sorted(same, key=lambda entry: -_rows(entry))


def _rows(entry: Entry) -> int:
    rows = entry.record.about.get("rows")
    return rows if isinstance(rows, int) else 0
