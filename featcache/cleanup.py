"""rm and gc: caches that are no longer wanted, and what interrupted commands left behind."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featcache.core.errors import CacheError, CacheNotFoundError, CacheWriteError, UsageError
from featcache.core.files import PARTIAL_SUFFIX, is_hidden, meant_by
from featcache.core.leases import Leases, alone_with
from featcache.core.project import Project
from featcache.heads import KERNELS_SUFFIX, kernels_folder, unwanted
from featcache.store import LEASES_FOLDER, MANIFEST_FILE, Cache, list_caches, open_cache, verify, which_are_in
from featcache.training import TRAINING_SUFFIX, find_run

_OLD_S = 3600.0
_LOCK_FOLDER = ".tidying"


def _nothing() -> str:
    return ""


@dataclass(frozen=True)
class Removable:
    """Something that can be removed: what, why, and its size on the disk.

    stays : looked at again right before the removal: why it must stay after all, "" where it may go
    """

    path: Path
    why: str
    bytes: int
    stays: Callable[[], str] = _nothing


def find_removable(folder: Path, names: Sequence[str], *, force: bool = False) -> list[Removable]:
    """The caches in `folder` with these names, finished or not, and the Gram matrices beside them.

    A name may be shortened as long as it says which one is meant. Raises CacheNotFoundError or UsageError where it does
    not, CacheError for a cache that a process is writing to now, unless `force` is given.
    """
    found: dict[Path, Removable] = {}
    listed = {entry.folder: entry for entry in list_caches(folder)}
    for name in names:
        meant = [listed[place] for place in meant_by(name, listed)]
        if not meant:
            there = ", ".join(entry.name for entry in listed) or "none"
            raise CacheNotFoundError(f"no cache {name!r:.200} in {folder} (there: {there})")
        if len(meant) > 1:
            raise UsageError(
                f"{name!r:.200} could be {', '.join(entry.folder.name for entry in meant)}: name one of them"
            )
        if _in_use(meant[0].folder) and not force:
            raise CacheError(
                f"{meant[0].folder.name}: a process is writing this cache", "Stop it first, or set `force=True`"
            )
        found[meant[0].folder] = Removable(meant[0].folder, meant[0].problem or "finished", size_of(meant[0].folder))
    return [item for cache in found.values() for item in (cache, *_kernels_of(cache.path))]


def removable_runs(results: Path, names: Sequence[str]) -> list[Removable]:
    """Runs by their names, which may be shortened. Raises RunError where one is not there, or more than one is."""
    folders = dict.fromkeys(find_run(results, name).folder for name in names)
    return [Removable(folder, "a run", size_of(folder)) for folder in folders]


def find_garbage(project: Project, unfinished: bool = False) -> list[Removable]:
    """What can go without a feature being lost.

    Files and folders that interrupted commands left behind; interrupted trainings that nobody went on with for an hour;
    Gram matrices of caches that are gone, or of splits that a cache no longer has; caches all of whose rows another
    finished cache of the same format holds.
    With `unfinished` also caches that were begun and that nobody is writing now.
    """
    return [
        *_leftovers(project),
        *_dead_trainings(project.results_folder),
        *_orphaned_kernels(project.cache_folder),
        *_unwanted_caches(project.cache_folder, unfinished),
    ]


def _leftovers(project: Project) -> Iterator[Removable]:
    parents = (project.cache_folder, project.results_folder)
    found = [path for parent in parents for path in sorted(parent.glob(f".*{PARTIAL_SUFFIX}*"))]
    found += sorted(project.cache_folder.glob(f"*{KERNELS_SUFFIX}/.*{PARTIAL_SUFFIX}*"))
    for path in found:
        if _is_old(path) and not _in_use(path):
            yield Removable(path, "left behind by a command", size_of(path), partial(_in_use, path))


def _dead_trainings(results: Path) -> Iterator[Removable]:
    for path in sorted(results.glob(f"*{TRAINING_SUFFIX}")):
        if _is_old(path) and not _in_use(path):
            yield Removable(path, "an interrupted training", size_of(path), partial(_in_use, path))


def _orphaned_kernels(parent: Path) -> Iterator[Removable]:
    for path in sorted(parent.glob(f"*{KERNELS_SUFFIX}")):
        if path.is_dir() and not path.with_suffix("").exists():
            yield Removable(path, "Gram matrices of a cache that is gone", size_of(path))


def _unwanted_caches(parent: Path, unfinished: bool) -> Iterator[Removable]:
    """Caches whose rows another one holds, which itself stays; those that were only begun, where that is asked for."""
    listed = list_caches(parent)
    finished = [entry.cache for entry in listed if entry.cache is not None]
    holders = {cache.folder: holder for cache in finished if (holder := _holder_of(cache, finished))}
    for entry in listed:
        folder, cache = entry.folder, entry.cache
        if cache is None and unfinished and not (folder / MANIFEST_FILE).exists() and not _in_use(folder):
            yield Removable(folder, "unfinished", size_of(folder), partial(_in_use, folder))
            yield from _kernels_of(folder)
        elif cache is not None and folder in holders and not _in_use(folder):
            holder = holders[folder]
            while holder.folder in holders:  # that one goes, too: what holds its rows holds these
                holder = holders[holder.folder]
            stays = _check_of(cache, holder)
            yield Removable(folder, f"all its rows are in {holder.name}", size_of(folder), stays)
            yield from _kernels_of(folder)
        elif cache is not None:
            yield from _old_kernels_of(cache)


def _check_of(cache: Cache, holder: Cache) -> Callable[[], str]:
    """Whether what proved a removal harmless is still there, and still the same."""

    def stays() -> str:
        try:
            same = open_cache(holder.folder).manifest == holder.manifest
        except CacheError:
            same = False
        if not same or _in_use(holder.folder):
            return f"{holder.name}, which holds its rows, has changed or is gone"
        return _in_use(cache.folder)

    return stays


def remove(removable: Removable) -> str:
    """Delete a file or a folder; a cache is out of sight before its first file goes.

    Returns why it stays after all, "" where it is gone. Raises CacheWriteError.
    """
    path = removable.path
    try:
        if path.is_dir() and not path.is_symlink() and not is_hidden(path):
            # Else two commands might each remove what proves the other's removal harmless.
            with alone_with(path.parent / _LOCK_FOLDER):
                if why := removable.stays():
                    return why
                path = path.replace(path.with_name(f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"))
        elif why := removable.stays():
            return why
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, CacheError):
            raise
        raise CacheWriteError(f"{removable.path}: cannot be removed: {error.strerror or error}") from error
    return ""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what vanishes meanwhile has none."""
    return sum(status.st_size for status in map(_status, _files(path)) if status is not None)


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or every file below a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):  # which passes over a folder that vanishes
        yield from (Path(folder, name) for name in names)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _kernels_of(cache: Path) -> list[Removable]:
    folder = kernels_folder(cache)
    return [Removable(folder, f"Gram matrices of {cache.name}", size_of(folder))] if folder.is_dir() else []


def _old_kernels_of(cache: Cache) -> list[Removable]:
    """Whoever trains with one of them now has read it, or keeps it open."""
    try:
        old = unwanted(cache)
    except CacheError:  # a damaged cache says nothing of what it wants
        return []
    why = f"Gram matrix of splits that {cache.name} no longer has"
    return [Removable(file, why, size_of(file)) for file in old]


def _is_old(path: Path) -> bool:
    """Whether nothing has changed in it for an hour: a command that is at work now may still want the others."""
    there = [path, *_files(path), *(Path(folder) for folder, _, _ in os.walk(path))]
    changed = max((status.st_mtime for status in map(_status, there) if status is not None), default=0.0)
    return time.time() - changed > _OLD_S


def _in_use(path: Path) -> str:
    """Which process holds a lease in a folder or in what lies in it, in words; "" where none does.

    One on another machine counts until it is known dead.
    """
    folders = [path, *(folder.parent for folder in path.glob(f"*/{LEASES_FOLDER}"))]
    held = any(Leases(folder / LEASES_FOLDER).others() for folder in folders)
    return "a process is at work on it" if held else ""


def _holder_of(cache: Cache, others: Sequence[Cache]) -> Cache | None:
    """Another, sound cache of the project with at least this one's rows.

    What lies elsewhere, behind a link, proves nothing: it may be gone when it is wanted.
    """
    for other in others:
        same = other.recipe.space == cache.recipe.space and other.manifest.array.format == cache.manifest.array.format
        if same and other.manifest.rows > cache.manifest.rows and not other.folder.is_symlink():
            try:
                ours, theirs = (one.row_names() for one in (cache, other))
            except CacheError:  # verify says what is wrong with it
                continue
            # Sound: else the last sound copy of a row might go.
            if which_are_in(ours, theirs).all() and not _in_use(other.folder) and verify(other.folder).sound:
                return other
    return None
