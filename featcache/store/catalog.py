"""The caches in a folder: listed, and found by name or by the beginning of a name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featcache.core.errors import CacheError, CacheNotFoundError, UsageError
from featcache.core.files import meant_by, visible_folders
from featcache.core.project import Project
from featcache.store.cache import Cache, open_cache
from featcache.store.layout import MANIFEST_FILE, RECIPE_FILE


@dataclass(frozen=True)
class Listed:
    """A cache folder: the cache where it opens, else the reason why not."""

    folder: Path
    cache: Cache | None
    problem: str = ""


def list_caches(parent: Path) -> list[Listed]:
    """Every cache in `parent`, by name; unfinished and damaged ones with the reason."""
    listed = []
    for folder in cache_folders(parent):
        try:
            listed.append(Listed(folder, open_cache(folder)))
        except CacheNotFoundError:
            listed.append(Listed(folder, None, "unfinished"))
        except CacheError as error:
            listed.append(Listed(folder, None, str(error)))
    return listed


def cache_folders(parent: Path) -> list[Path]:
    """The folders of all caches in `parent`, by name, finished or not. Every list of caches begins here.

    A hidden folder is never a cache: it is being removed, pulled or read by a command, or was left behind by one.
    """
    return [folder for folder in visible_folders(parent) if _is_cache(folder)]


def _is_cache(folder: Path) -> bool:
    try:
        return any((folder / name).is_file() for name in (RECIPE_FILE, MANIFEST_FILE))
    except (OSError, ValueError):  # a name that no file can have
        return False


def finished_folders(parent: Path) -> list[Path]:
    """Folders in `parent` with a manifest, whatever state the cache in them is in."""
    return [folder for folder in cache_folders(parent) if (folder / MANIFEST_FILE).is_file()]


def cache_folder(parent: Path, name: str) -> Path:
    """The folder of the one cache in `parent` whose folder's name is, or begins with, `name`; damaged ones too.

    Raises CacheNotFoundError where there is none, UsageError where several could be meant.
    """
    folders = finished_folders(parent)
    meant = meant_by(name, folders)
    if not meant:
        there = ", ".join(folder.name for folder in folders) or "none"
        raise CacheNotFoundError(f"no finished cache {name!r:.200} in {parent} (there: {there})")
    if len(meant) > 1:
        raise UsageError(f"{name!r:.200} could be {', '.join(folder.name for folder in meant)}: name one of them")
    return meant[0]


def find_cache(parent: Path, name: str | None = None) -> Cache:
    """The cache that `name` means: a folder's path, a cache's name or how its name begins.

    Without a name it is the only finished one in `parent`. Raises CacheNotFoundError where none is
    meant, UsageError where several could be.
    """
    if name and _is_cache(Path(name)):
        return open_cache(name)
    listed = list_caches(parent)
    finished = [entry.cache for entry in listed if entry.cache is not None]
    meant = [cache for cache in finished if cache.name.startswith(name or "")]
    exact = [cache for cache in meant if cache.name == name]
    if len(exact or meant) == 1:
        return (exact or meant)[0]
    names = ", ".join(cache.name for cache in finished) or "none"
    if not meant:
        wanted = f"no finished cache {name!r:.200}" if name else "no finished cache"
        broken = [entry for entry in listed if entry.cache is None and entry.folder.name.startswith(name or "")]
        if broken:
            wanted = f"{broken[0].folder.name}: {broken[0].problem}; {wanted}"
        raise CacheNotFoundError(f"{wanted} in {parent} (there: {names})", "Make one with `featcache.extract()`")
    raise UsageError(f"several caches could be meant: {', '.join(c.name for c in meant)}: name one of them")


def find_pulled(project: Project, name: str | None) -> Cache:
    """A cache in the folder of a project. CacheNotFoundError says where others are, where they are made on a remote."""
    try:
        return find_cache(project.cache_folder, name)
    except CacheNotFoundError as error:
        if not project.cache_url:
            raise
        raise CacheNotFoundError(
            error.message,
            "The caches of this project are made on a remote: pull it first, with "
            f"'featcache pull {project.cache_url}/{name or 'NAME'}'",
        ) from error
