"""What a source of labelled images gives: candidates, what was left out, and what it was taken for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from featcache.dataset.manifest import Box

Layout = Literal["class-folders", "split-folders", "csv", "voc"]


@dataclass(frozen=True)
class Candidate:
    """An image that a source names. split and group are "" where the source does not say them."""

    path: str
    label: str
    split: str = ""
    group: str = ""
    box: Box | None = None


@dataclass(frozen=True)
class LeftOut:
    """An image, or a line of a list, that is not used, and why."""

    path: str
    reason: str


@dataclass
class Source:
    """What was found in a folder or list.

    folder : what the candidates' paths start from
    about : one sentence for people: what it was taken for
    """

    layout: Layout
    folder: Path
    about: str
    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
