"""pull: a cache, a part of one, or a run from a remote; open one where it lies; ask remotes before extracting."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from featcache.core.errors import CacheNotFoundError, RemoteError, UsageError
from featcache.core.interrupts import ending_with
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.core.recipe import Recipe
from featcache.remotes import place_of
from featcache.sharing.catalog import Entry
from featcache.sharing.options import Part
from featcache.sharing.reading import RemoteCache
from featcache.sharing.receive import Pulled, Trust, accept, pull as fetch
from featcache.sharing.remote import Target, find_remote, open_named, remotes_of, resolve, trust_of
from featcache.sharing.remote_donors import RemoteDonors, ask
from featcache.sharing.rollback_guard import remember
from featcache.sharing.subset import pull_part
from featcache.store import Cache, Format, Row, find_cache, writing


def pull(
    target: Target,
    caches: Path,
    *,
    results: Path,
    part: Part | None = None,
    trust: Trust | None = None,
    progress: Progress = SILENT,
) -> Pulled:
    """Pull what a target means: a cache into `caches`, a run into `results`. See `featcache.sharing.receive.pull`.

    part : which rows of a cache, as a cache of their own; all of it by default

    Raises UsageError for a part of a run.
    """
    entry = find_remote(target)
    record = entry.record
    parent = caches if record.kind == "cache" else results
    whole = part is None or part.is_whole
    if record.kind == "run" and not whole:
        raise UsageError(f"{record.name}: is a run: only of caches can parts be pulled")
    trust = trust or trust_of(target)
    parent.mkdir(parents=True, exist_ok=True)
    total = _whole(entry, "bytes" if whole else "rows")
    with (
        progress.stopping() as stopped,
        ending_with(stopped),
        progress.begin(f"pulling {record.name}", total) as advance,
    ):
        if whole:
            done = fetch(target.store, entry, parent=parent, trust=trust, advance=advance, stopped=stopped)
        else:
            done = pull_part(
                target.store, entry, parent=parent, part=part or Part(), trust=trust, advance=advance, stopped=stopped
            )
    return replace(done, remote=target.store.url)


def _whole(entry: Entry, name: str) -> int:
    value = entry.record.about.get(name)
    return value if isinstance(value, int) else 0


def open_on_remote(spec: str, project: Project) -> RemoteCache:
    """Open a cache where it lies, checked as a pull is; its features come when they are read."""
    return _open(resolve(spec, project), project)


def open_of_project(project: Project, name: str | None) -> Cache:
    """A cache of a project whose caches are made on a remote: one that was pulled from there, else where it lies.

    name : or how it begins; None for the only one on the remote
    """
    if name is not None:
        with suppress(CacheNotFoundError):
            return find_cache(project.cache_folder, name)
    return _open(replace(open_named(project.cache_url, project), name=name or ""), project)


def _open(target: Target, project: Project) -> RemoteCache:
    entry = find_remote(target)
    if entry.record.kind != "cache":
        raise UsageError(f"{entry.record.name}: is a run, not a cache")
    is_own = bool(project.cache_url) and place_of(project.cache_url) == place_of(target.store.url)
    trust = trust_of(target, allow_older=is_own)  # who extracts into it may remove what is there, and make it again
    accept(project.cache_folder, target.store, entry=entry, trust=trust)
    with writing(project.cache_folder):
        cache = RemoteCache(target.store, entry.record, parent=project.cache_folder)
    remember(project.cache_folder, target.store.url, entry=entry)
    return cache


def ask_remotes(
    project: Project,
    recipe: Recipe,
    *,
    rows: Sequence[Row],
    remotes: Sequence[str] | None = None,
    format_: Format = "zarr",
    wanted: Sequence[Row] | None = None,
    progress: Progress = SILENT,
) -> RemoteDonors:
    """Ask each remote, in the order of their names, until one has the very cache or all wanted rows.

    remotes : names or URLs of those to ask; all that are known by default

    See `featcache.sharing.remote_donors.ask`. `forget` on the result removes the donors once their rows were copied.
    """
    missing = list(rows if wanted is None else wanted)
    reached = RemoteDonors()
    for name in sorted(remotes_of(project)) if remotes is None else remotes:
        try:
            target = open_named(name, project)
        except (UsageError, RemoteError) as error:
            reached = replace(reached, remarks=(*reached.remarks, f"{name}: {error}"))
            continue
        with progress.stopping() as stopped, ending_with(stopped), progress.begin(f"asking {name}", 0) as advance:
            found = ask(
                target.store,
                recipe,
                rows=rows,
                parent=project.cache_folder,
                format_=format_,
                wanted=missing,
                trust=trust_of(target),
                advance=advance,
                stopped=stopped,
            )
        reached = _both(reached, found, name)
        if reached.whole is not None:
            reached.forget()
            return replace(reached, donors=())
        missing = [row for row in missing if row.row_id not in found.row_ids]
        if not missing:
            break
    return reached


def _both(before: RemoteDonors, found: RemoteDonors, name: str) -> RemoteDonors:
    return RemoteDonors(
        whole=found.whole,
        donors=(*before.donors, *found.donors),
        row_ids=before.row_ids | found.row_ids,
        leases=(*before.leases, *found.leases),
        remarks=(*before.remarks, *(f"{name}: {remark}" for remark in found.remarks)),
    )
