"""Which cache of a project a head is trained on."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.store import MANIFEST_FILE, Cache, find_cache, list_caches


def choose_cache(project: Project, name: str | None = None, *, progress: Progress = SILENT) -> Cache:
    """The cache that is named; else the only one, or the newest, which is said.

    Raises CacheNotFoundError where there is none, UsageError where a name means several.
    """
    caches = candidates(project)
    if name is not None or not caches:
        return find_cache(project.cache_folder, name)
    if len(caches) > 1:
        others = ", ".join(cache.name for cache in caches[1:])
        progress.note(
            f"using {caches[0].name}, the newest of {len(caches)} caches; `cache=NAME` chooses another ({others})"
        )
    return caches[0]


def candidates(project: Project) -> Sequence[Cache]:
    """Every finished cache, the newest first. Pixels are for whole networks: they count where there is nothing else."""
    finished = [entry.cache for entry in list_caches(project.cache_folder) if entry.cache is not None]
    caches = [cache for cache in finished if cache.recipe.space.dtype != "uint8"] or finished
    return sorted(caches, key=_made_at, reverse=True)


def _made_at(cache: Cache) -> tuple[str, int]:
    """When a cache was finished: by its own word, in seconds; then by its manifest's time."""
    created = str(cache.manifest.provenance.get("created", ""))
    return created, (cache.folder / MANIFEST_FILE).stat().st_mtime_ns
