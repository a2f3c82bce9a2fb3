"""The commands that make runs again, with every setting, since defaults may change."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from featcache.reporting.records import RunRecord
from featcache.reporting.text import clean

_SHORTER = {"warmup_epochs": "warmup", "clip_norm": "clip"}


def command_of(record: RunRecord) -> str:
    """The command that trains a run again."""
    config = record.config
    if record.is_classical:
        words = ["fit-head", *_options({"cache": config.cache_name, "head": record.kind, "seed": config.head["seed"]})]
    elif config.kind == "head":
        words = ["fit-head", *_options({"cache": config.cache_name, **config.head, "solver": config.solver})]
    else:
        space = config.recipe.get("space")
        size = space.get("input_size_px") if isinstance(space, Mapping) else None
        is_scratch = config.kind == "scratch"
        start = {} if is_scratch else {"from": config.weights}
        words = [
            "fit-scratch" if is_scratch else "fine-tune",
            *_options({"model": config.backbone, "input_size": size, **start, **config.training}),
        ]
    return shlex.join(["featcache", *words])


def _options(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        flag = "--" + clean(_SHORTER.get(name, name)).replace("_", "-")
        if value is True:
            yield flag
        elif value is not None and value is not False:
            yield flag
            yield _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(item) for item in value) or "0"
    return f"{value:g}" if isinstance(value, float) else clean(value)
