"""rm and gc: caches that are no longer wanted, and what interrupted commands left behind."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import CacheError, CacheNotFoundError, CacheWriteError, UsageError
from featcache.files import PARTIAL_SUFFIX
from featcache.heads.kernel import KERNELS_SUFFIX, kernels_folder, unwanted
from featcache.project import Project
from featcache.runs import TRAINING_SUFFIX
from featcache.store.cache import Cache
from featcache.store.catalog import Listed, list_caches
from featcache.store.layout import LEASES_FOLDER, MANIFEST_FILE
from featcache.store.leases import Leases
from featcache.store.verify import verify

_OLD_S = 3600.0


@dataclass(frozen=True)
class Removable:
    """Something that can be removed: what, why, and its size on the disk."""

    path: Path
    why: str
    bytes: int


def find_removable(folder: Path, names: Sequence[str], force: bool = False) -> list[Removable]:
    """The caches in `folder` with these names, finished or not, and the Gram matrices beside them.

    A name may be shortened as long as it says which one is meant. Raises CacheNotFoundError or UsageError where it does
    not, CacheError for a cache that a process is writing to now, unless `force` is given.
    """
    found: dict[Path, Removable] = {}
    listed = list_caches(folder)
    for name in names:
        meant = [entry for entry in listed if entry.folder.name == name]
        meant = meant or [entry for entry in listed if name and entry.folder.name.startswith(name)]
        if not meant:
            there = ", ".join(entry.folder.name for entry in listed) or "none"
            raise CacheNotFoundError(f"no cache {name!r:.200} in {folder} (there: {there})")
        if len(meant) > 1:
            raise UsageError(
                f"{name!r:.200} could be {', '.join(entry.folder.name for entry in meant)}: name one of them"
            )
        if _is_written(meant[0].folder) and not force:
            raise CacheError(f"{meant[0].folder.name}: a process is writing it now: stop that first, or use --force")
        found[meant[0].folder] = Removable(meant[0].folder, meant[0].problem or "finished", size_of(meant[0].folder))
    return [item for cache in found.values() for item in (cache, *_kernels_of(cache.path))]


def find_garbage(project: Project, unfinished: bool = False) -> list[Removable]:
    """What can go without a feature being lost.

    Files and folders that interrupted commands left behind; interrupted trainings that nobody went on with for an hour;
    Gram matrices of caches that are gone, or of splits that a cache no longer has; caches all of whose rows another
    finished cache of the same format holds.
    With `unfinished` also caches that were begun and that nobody is writing now.
    """
    parents = (project.cache_folder, project.results_folder)
    partial = [path for parent in parents for path in sorted(parent.glob(f".*{PARTIAL_SUFFIX}*"))]
    partial += sorted(project.cache_folder.glob(f"*{KERNELS_SUFFIX}/.*{PARTIAL_SUFFIX}*"))
    garbage = [Removable(path, "left behind by a command", size_of(path)) for path in partial if _is_old(path)]
    trainings = [path for path in sorted(project.results_folder.glob(f"*{TRAINING_SUFFIX}")) if _is_old(path)]
    dead = [path for path in trainings if not _is_written(path)]
    garbage += [Removable(path, "an interrupted training", size_of(path)) for path in dead]
    kernels = [path for path in sorted(project.cache_folder.glob(f"*{KERNELS_SUFFIX}")) if path.is_dir()]
    gone = [path for path in kernels if not path.with_suffix("").exists()]
    garbage += [Removable(path, "Gram matrices of a cache that is gone", size_of(path)) for path in gone]
    listed = list_caches(project.cache_folder)
    for entry in listed:
        if entry.cache is None and unfinished and not (entry.folder / MANIFEST_FILE).exists():
            if not _is_written(entry.folder):
                garbage += [Removable(entry.folder, "unfinished", size_of(entry.folder)), *_kernels_of(entry.folder)]
        elif holder := _covered_by(entry, listed):
            why = f"all its rows are in {holder}"
            garbage += [Removable(entry.folder, why, size_of(entry.folder)), *_kernels_of(entry.folder)]
        elif entry.cache is not None:
            garbage += _old_kernels_of(entry.cache)
    return garbage


def remove(removable: Removable) -> None:
    """Delete a file or a folder; a cache is out of sight before its first file goes. Raises CacheWriteError."""
    path = removable.path
    try:
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            path = path.replace(path.with_name(f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CacheWriteError(f"{removable.path}: cannot be removed: {error.strerror or error}") from error


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


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
    changed = max((file.stat().st_mtime for file in (path, *path.rglob("*"))), default=0.0)
    return time.time() - changed > _OLD_S


def _is_written(folder: Path) -> bool:
    """Whether a process holds a lease in an unfinished cache or training.

    One on another machine counts until it is known dead.
    """
    return bool(Leases(folder / LEASES_FOLDER).others())


def _covered_by(entry: Listed, listed: Sequence[Listed]) -> str:
    """Name of another, sound cache with at least this one's rows; "" where there is none."""
    cache = entry.cache
    if cache is None:
        return ""
    for other in (candidate.cache for candidate in listed if candidate.cache is not None):
        same = other.recipe.space == cache.recipe.space and other.manifest.array.format == cache.manifest.array.format
        if same and other is not cache and other.manifest.rows > cache.manifest.rows:
            try:
                ours, theirs = (set(one.views["row_id"]) for one in (cache, other))
            except CacheError:  # verify says what is wrong with it
                continue
            if ours <= theirs and verify(other.folder).sound:  # else the last sound copy of a row might go
                return other.name
    return ""
