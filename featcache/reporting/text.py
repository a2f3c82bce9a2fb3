"""Numbers and names as people read them, and names made safe for Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from featcache.datasets import labels_in
from featcache.measures import decimals

NONE_OF_THEM = "none of the labels"
# What a Markdown reader would take for markup; "_" only where it is no part of a word.
_MARKUP = re.compile(r"[\\`*\[\]|#~$]|(?<![^\W_])_|_(?![^\W_])")
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def clean(text: object) -> str:
    """One line of text that every writer can encode.

    Labels and folder names come from users: they may hold line breaks, control characters, marks that
    turn the direction of what follows, or bytes that are no UTF-8 (lone surrogates).
    """
    return " ".join(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text)).split())


def labels_in_words(text: str, separator: str) -> str:
    """The labels of an image as a person reads them; of one label an image it is that."""
    return ", ".join(labels_in(text, separator)) or NONE_OF_THEM if separator else text


def shorten(text: str, length: int) -> str:
    """`text` in at most `length` characters, with an ellipsis for its middle: names differ at their ends."""
    text = clean(text)
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def in_markdown(text: object) -> str:
    """Text that a Markdown reader shows as it is, also within a table."""
    return html.escape(_MARKUP.sub(r"\\\g<0>", clean(text)), quote=False)


def percent(fraction: float | None, cases: int | None) -> str:
    """A fraction in percent, with the decimals that so many independent cases carry; "" for none."""
    return "" if fraction is None else f"{100 * fraction:.{decimals(cases)}f}"


def interval(fractions: tuple[float, float] | None, cases: int | None) -> str:
    """Two fractions in percent: 94–98; "" for none."""
    return "" if fractions is None else "–".join(percent(fraction, cases) for fraction in fractions)


def with_interval(fraction: float | None, fractions: tuple[float, float] | None, *, cases: int | None) -> str:
    """A fraction in percent and its interval: 96 (94–98); "" for none."""
    span = interval(fractions, cases)
    return percent(fraction, cases) + (f" ({span})" if span and fraction is not None else "")


def signed(points: float, cases: int | None) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    return f"{100 * points:+.{decimals(cases)}f}".replace("-", "−")


def listed(words: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, or all of its whole part: 0.0123, 12.3, 12345; "" for none."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:#.{digits}g}".rstrip(".")


def plain(value: Any) -> str:
    """A value of a configuration: 0.003, 1e-05, yes, 256 and 64."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " and ".join(plain(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{clean(key)} {plain(item)}" for key, item in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else clean(value)


def counted(count: int, one: str, *, many: str = "") -> str:
    """1 run, 2 runs, 10,466 rows."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
