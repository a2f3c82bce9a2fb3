"""What arguments mean: which project is meant, and which settings there are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from featcache import store
from featcache.core.errors import ProjectError, UsageError, nearest
from featcache.core.files import resolved
from featcache.core.project import Project, find_project


def project_of(source: Any) -> Project | None:
    """The project that is given, itself or by its folder."""
    if isinstance(source, Project):
        return source
    if isinstance(source, (str, Path)) and (Path(source) / "featcache.toml").is_file():
        return find_project(Path(source))
    return None


def project_here() -> Project | None:
    with suppress(ProjectError):
        return find_project(Path())
    return None


def project_around(source: Any) -> Project | None:
    """The project that is given, or that a cache lies in, or is kept in while it is read from a remote."""
    if isinstance(source, store.Cache):
        with suppress(ProjectError):
            project = find_project(source.kept_in)
            if resolved(project.cache_folder) == resolved(source.kept_in):
                return project
        return None
    given = project_of(source)
    if given is None and isinstance(source, (str, Path)) and Path(source).is_dir():
        return project_around(store.open_cache(source))
    return given


def refuse_unknown(values: Mapping[str, Any], *records: Any) -> None:
    """Raise UsageError for the name of a setting that there is none of."""
    known = [field.name for record in records for field in fields(record)]
    for name in values:
        if name not in known:
            raise UsageError(f"no setting {name!r:.80}: {nearest(name, known)}")
