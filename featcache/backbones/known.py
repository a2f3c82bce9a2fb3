"""Remembers what a backbone with given weights computes, so that a cache can be named without building it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featcache.backbones import registry
from featcache.backbones.engine import Engine, EngineInfo, open_engine
from featcache.backbones.weights import source_of
from featcache.files import write_json
from featcache.recipe import digest

KNOWN_FILE = ".backbones.json"


def identify(
    memory: Path,
    name: str,
    weights: str | Path = "imagenet",
    seed: int = 0,
    input_size_px: int | None = None,
    preprocessing: str | None = None,
    pooling: str = "none",
) -> tuple[EngineInfo, Engine | None]:
    """What `open_engine` with these arguments computes, and the engine itself if it had to be opened.

    A weights file is known again by its path, size and times.

    memory : file that remembers; losing it only costs opening the engine once more

    Raises what `open_engine` raises.
    """
    backbone = registry.get(name)
    source = source_of(backbone, weights)
    asked = {
        "backbone": asdict(backbone),
        "weights": _state(source) if source else ["random", seed],
        "input_size_px": input_size_px,
        "preprocessing": preprocessing,
        "pooling": pooling,
        "keras": version("keras"),
    }
    key = digest(asked)
    known = _read(memory)
    try:
        return _record(known[key]), None
    except (KeyError, TypeError):
        engine, info = open_engine(backbone.name, weights, seed, input_size_px, preprocessing, pooling)
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, {**known, key: asdict(info)})
    return info, engine


def _state(path: Path) -> list[str | int]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _record(value: Any) -> EngineInfo:
    return EngineInfo(**{**value, "feature_shape": tuple(value["feature_shape"])})


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
