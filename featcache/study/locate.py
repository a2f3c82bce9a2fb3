"""Where the keys of a TOML text stand: the parsers of Python tell lines of wrong syntax only."""

from __future__ import annotations

import re

Path = tuple[str, ...]

_KEY = re.compile(r"""[ \t]*(?:"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)'|([A-Za-z0-9_-]+))[ \t]*""")
_SPACE = re.compile(r"(?:[ \t\r\n]|\#[^\n]*)*")
_TEXT = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")' r"|'''.*?'{3,5}(?!')" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'", re.DOTALL
)
_SCALAR = re.compile(r"[^,\]\}\n#]*")


def lines_of(text: str) -> dict[Path, int]:
    """The line, counted from 1, that each table and key stands on in a TOML text, which must be valid."""
    found: dict[Path, int] = {}
    table: Path = ()
    place = _after_space(text, 0)
    while place < len(text):
        line = _line(text, place)
        if text[place] == "[":
            start = place + 1 + text.startswith("[[", place)
            table, place = _dotted(text, start)
            for length in range(1, len(table) + 1):
                found.setdefault(table[:length], line)
            place = text.find("\n", place)
            place = len(text) if place < 0 else place
        else:
            place = _pair(text, place, table, found)
        place = _after_space(text, place)
    return found


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of a key, or of the nearest table around it that has one; None where there is none."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _pair(text: str, place: int, table: Path, found: dict[Path, int]) -> int:
    """Note a key and all keys in its value. Returns the place behind the value."""
    line = _line(text, place)
    key, place = _dotted(text, place)
    for length in range(1, len(key) + 1):
        found.setdefault((*table, *key[:length]), line)
    return _value(text, place + 1, (*table, *key), found)  # behind the "="


def _value(text: str, place: int, path: Path, found: dict[Path, int]) -> int:
    place = _after_space(text, place)
    if text.startswith("{", place):
        place = _after_space(text, place + 1)
        while not text.startswith("}", place):
            place = _after_comma(text, _pair(text, place, path, found))
        return place + 1
    if text.startswith("[", place):
        place = _after_space(text, place + 1)
        while not text.startswith("]", place):
            place = _after_comma(text, _value(text, place, path, found))
        return place + 1
    whole = _TEXT.match(text, place) or _SCALAR.match(text, place)
    return whole.end() if whole else place


def _dotted(text: str, place: int) -> tuple[Path, int]:
    """The parts of a key such as a."b c".d, and the place behind it."""
    parts: list[str] = []
    while part := _KEY.match(text, place):
        parts.append(next(name for name in part.groups() if name is not None))
        place = part.end()
        if not text.startswith(".", place):
            break
        place += 1
    return tuple(parts), place


def _after_space(text: str, place: int) -> int:
    blank = _SPACE.match(text, place)
    return blank.end() if blank else place


def _after_comma(text: str, place: int) -> int:
    place = _after_space(text, place)
    return _after_space(text, place + 1) if text.startswith(",", place) else place


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
