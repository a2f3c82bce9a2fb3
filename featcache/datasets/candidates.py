"""What a source of labelled images gives: candidates, what was left out, and what it was taken for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from featcache.core.errors import DatasetError
from featcache.core.project import ImageFolders
from featcache.images import Box

Layout = Literal[
    "class-folders",
    "split-folders",
    "csv",
    "voc",
    "coco",
    "cvat",
    "yolo",
    "createml",
    "pattern",
    "all-idb",
    "lisc",
    "pbc",
    "raabin",
]
Size = tuple[int, int]
UNKNOWN_SIZE: Size = (0, 0)


@dataclass(frozen=True)
class Candidate:
    """An image that a source names. split and group are "" where the source does not say them.

    box : in pixels of the picture that it was drawn on
    size : width and height of that picture, px; `UNKNOWN_SIZE` where the annotation does not say; None where the box
        is one of the upright image by definition
    mask : path of the mask that comes with it, as `path`; "" for none
    mask_size : width and height of the mask
    um_per_px : side of a pixel in micrometres, where the source says it; 0 where it does not
    """

    path: str
    label: str
    split: str = ""
    group: str = ""
    box: Box | None = None
    size: Size | None = None
    mask: str = ""
    mask_size: Size = UNKNOWN_SIZE
    um_per_px: float = 0.0


@dataclass(frozen=True)
class LeftOut:
    """An image, or a line of a list, that is not used, and why."""

    path: str
    reason: str


@dataclass
class Source:
    """What was found in a folder or list.

    folder : what the candidates' paths start from
    roots : other folders by name; paths that begin with the name start from there
    about : one sentence for people: what it was taken for
    remarks : what people should know besides
    """

    layout: Layout
    folder: Path
    about: str
    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    roots: dict[str, Path] = field(default_factory=dict)

    @property
    def images(self) -> ImageFolders:
        """Finds the files of candidates."""
        return ImageFolders(self.folder, self.roots)

    def leave_out(self, path: Path, reason: str) -> None:
        """Note that a file is not used, by its path from the source's folder."""
        self.left_out.append(LeftOut(path.relative_to(self.folder).as_posix(), reason))


@contextmanager
def explaining(left_out: Sequence[LeftOut]) -> Iterator[None]:
    """Give an error what was left out until then, which often is what explains it."""
    try:
        yield
    except DatasetError as error:
        if not error.left_out:
            error.left_out = tuple((item.path, item.reason) for item in left_out)
        raise


def composed(text: str) -> str:
    """Text in the normal form NFC: what macOS writes decomposed compares equal to what others write."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
