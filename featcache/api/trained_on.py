"""What a head is trained on, and where its run goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache import heads, sharing, store, training
from featcache.api.arguments import project_of
from featcache.api.caches import open_cache
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.store import Cache


def labelled_cache(source: Any, project: Project | None, *, name: str | None, progress: Progress) -> Cache:
    """The cache that is meant, with the labels that dataset.csv gives now."""
    given = project_of(source)
    if isinstance(source, store.Cache):
        cache = source
    elif given is None:
        cache = open_cache(source)
    elif name and sharing.is_remote(name, given):
        cache = open_cache(name, project=given)
    elif given.cache_url:
        cache = sharing.open_of_project(given, name)
    else:
        cache = heads.choose_cache(given, name, progress=progress)
    if project is None:
        return cache
    return training.with_current_labels(project, cache, progress=progress)


def config_for(cache: Cache, config: heads.HeadConfig, *, asked: Mapping[str, Any]) -> heads.HeadConfig:
    """The head for a cache: of sigmoids where an image may have several labels, unless another output is asked for."""
    is_left_open = asked.get("output") is None
    return replace(config, output="sigmoid") if cache.label_separator and is_left_open else config


def results_of(cache: Cache, project: Project | None, *, to: str | Path | None) -> Path:
    """The folder of runs: the given one, the project's, or results/ beside the folder of the cache."""
    if to is not None:
        return Path(to)
    return project.results_folder if project else cache.kept_in.parent / "results"
