"""JSON of a stranger: no key twice, no NaN, not nested without end."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

_MAX_DEPTH = 32


def strict_json(text: str) -> Any:
    """Parse JSON. Raises ValueError or RecursionError where readers could take it for one thing or the other."""
    value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    if _deeper_than(value, _MAX_DEPTH):
        raise ValueError("nested deeper than any record of a cache")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of a key that stands there twice, readers take one or the other: it is refused."""
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!r:.80} stands there twice")
    return value


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether lists and objects of parsed JSON lie in one another more than `depth` times."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
