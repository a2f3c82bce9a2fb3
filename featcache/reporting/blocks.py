"""What a report is made of: sections of blocks, the same for each writer (page, Markdown, LaTeX, spreadsheet)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Tone = Literal["", "answer", "note", "quiet", "copy"]


@dataclass(frozen=True)
class Table:
    """Headers and rows of text.

    n_text, n_text_last : how many columns are words, at the beginning and at the end; the rest are numbers, to be set
        flush right
    best : (row, column) of the cells to set in bold
    title : what it shows
    links : a place on the page for each row, or ""
    foot : rows that are no part of the order, such as means
    heat : (row, column) of the cells to tint, by how much (0 to 1)
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int
    best: frozenset[tuple[int, int]] = frozenset()
    n_text_last: int = 0
    title: str = ""
    links: tuple[str, ...] = ()
    foot: tuple[tuple[str, ...], ...] = ()
    heat: Mapping[tuple[int, int], float] = field(default_factory=lambda: MappingProxyType({}))

    def is_text(self, column: int) -> bool:
        """Whether a column holds words."""
        return column < self.n_text or column >= len(self.headers) - self.n_text_last


@dataclass(frozen=True)
class Paragraph:
    """A sentence or some. tone : "answer" and "note" stand out, "copy" is for pasting."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Items:
    """A list. lead : what stands before each item, in bold"""

    items: tuple[str, ...]
    leads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Names and values. large : as figures to be read first"""

    pairs: tuple[tuple[str, str], ...]
    large: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure in Vega-Lite.

    name : file name without an ending; title : its caption; alt : what it shows, in words, with its main numbers
    """

    name: str
    title: str
    alt: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Image:
    """A PNG image. name : file name; size_px : (width, height); alt : what it shows, in words"""

    name: str
    data: bytes
    size_px: tuple[int, int]
    alt: str


@dataclass(frozen=True)
class Card:
    """A small picture with what is to be said of it. jpeg : None where the image is not there; lines : its text"""

    jpeg: bytes | None
    alt: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    title: str
    cards: tuple[Card, ...]


OF_ONE_RUN = 3
"""The level of sections on one run each."""

Block = Table | Paragraph | Items | Facts | Chart | Image | Gallery


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    id : its place on the page; level : of its heading, from 2; folded : whether a reader opens it
    """

    title: str
    blocks: tuple[Block, ...]
    id: str = ""
    level: int = 2
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """Everything that a report says, and what of it is a table of numbers (`measures`, a line a value)."""

    title: str
    about: str
    sections: tuple[Section, ...]
    measures: tuple[Mapping[str, Any], ...] = ()
    mistakes: tuple[Mapping[str, Any], ...] = ()

    def blocks(self) -> Iterator[Block]:
        """All of them, in order."""
        return (block for section in self.sections for block in section.blocks)
