"""Resuming: what an interrupted training was about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from featcache.core.errors import HeadError, RunError, UsageError
from featcache.core.files import visible_folders
from featcache.core.project import Project
from featcache.core.strict_json import read_json
from featcache.heads.config import Device, HeadConfig, Solver
from featcache.training import CONFIG_FILE, CROSS_VALIDATION, TRAINING_SUFFIX


def interrupted(project: Project, name: str, *, given: Mapping[str, Any]) -> tuple[str, HeadConfig, Solver, Device]:
    """The cache's name, the head, the solver and its device of the training or run called `name`.

    given : what was asked for besides: settings of the head, "cache", "solver" and "device"; only epochs may differ

    Raises RunError where there is no such training, UsageError naming each field that would be another.
    """
    results = project.results_folder
    named = name.removesuffix(TRAINING_SUFFIX)
    folders = {folder.name: folder for folder in visible_folders(results) if (folder / CONFIG_FILE).is_file()}
    found = [folders[wanted] for wanted in (f"{named}{TRAINING_SUFFIX}", named) if wanted in folders]
    if not found:
        there = ", ".join(sorted(folder for folder in folders if folder.endswith(TRAINING_SUFFIX))) or "none"
        raise RunError(f"no training {name!r:.200} in {results} (interrupted ones there: {there})")
    path = found[0] / CONFIG_FILE
    try:
        stored = read_json(path)
        config, solver, cache = HeadConfig.from_dict(stored["head"]), stored["solver"], str(stored["cache_name"])
        device: Device = "gpu" if stored.get("device") == "gpu" else "cpu"
    except (OSError, ValueError, TypeError, KeyError, RecursionError, HeadError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    if stored.get("kind") == CROSS_VALIDATION:
        raise UsageError(
            f"{named} is a cross-validation, not the training of a head",
            "Run `featcache.cross_validate()` with the same settings to continue it",
        )
    known = {"cache": cache, "solver": solver, "device": device, **vars(config)}
    other = [name for name, value in given.items() if name != "epochs" and known[name] != value]
    if other == ["cache"] and cache.startswith(given["cache"]):
        other = []
    if other:
        fields = "; ".join(f"{name} is {known[name]!r} there, {given[name]!r} here" for name in other)
        raise UsageError(f"{named} was begun with other settings: {fields}", "Leave these out, or leave out `resume`")
    return cache, replace(config, epochs=given.get("epochs", config.epochs)), solver, device
