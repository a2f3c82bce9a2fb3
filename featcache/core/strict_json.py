"""JSON and TOML of a stranger: of a size, no key twice, no NaN, no number without end, not nested without end.

Python's parsers take all of that, and who reads the value ends in an OverflowError, a RecursionError or no memory.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

_MAX_DEPTH = 32
_MAX_DIGITS = 300
"""Of a whole number: float() takes what is as long as that, and no record has longer ones."""
MAX_TEXT_BYTES = 64 << 20


def strict_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError where readers could take it for one thing or the other, or could not take it."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_number, parse_int=_whole, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("nested deeper than any record") from error
    _refuse_depth(value)
    return value


def read_json(path: Path, most: int = MAX_TEXT_BYTES) -> Any:
    """`strict_json` of a file. Raises OSError where it cannot be read, ValueError for one of more than `most` bytes."""
    return strict_json(read_bounded(path, most))


def strict_toml(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ValueError as `strict_json` does, which knows no such numbers and depths either."""
    try:
        value = tomllib.loads(text, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested deeper than any settings") from error
    _refuse_depth(value)
    return value


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a file. ValueError where there are more than `most`, also where it only turns out on the way."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most} bytes")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of a key that stands there twice, readers take one or the other: it is refused."""
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!r:.80} stands there twice")
    return value


def _refuse_depth(value: Any) -> None:
    """Raise ValueError where lists and objects lie in one another without end, or whole numbers have no end."""
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        if any(isinstance(item, int) and abs(item) >= 10**_MAX_DIGITS for item in level):
            raise ValueError(f"a number of more than {_MAX_DIGITS} digits")
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError("nested deeper than any record")


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number) and "inf" not in digits:
        raise ValueError(f"{digits:.40} is larger than any number")
    return number


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
