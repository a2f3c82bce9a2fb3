"""What the image files are right now: digest, size, whether they decode; remembered by size and time."""

from __future__ import annotations

import csv
import io
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, field, fields as fields_of
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from featcache.core.errors import ImageError
from featcache.core.files import plain_cell, safe_cell, sha256_bytes, write_text
from featcache.core.project import LARGEST_WHITE, ImageFolders
from featcache.images.decode import read_bytes, read_picture
from featcache.images.identity import identity_of
from featcache.images.physical import UNKNOWN, PixelSize
from featcache.images.pixels import FLOATING, problem_of_white

STAMPS_FILE = ".images.csv"
_SETTLED_NS = 2_000_000_000
_DARK = 0.3
"""A set whose brightest value lies below this share of its type's range: 14 bits in 16 are a quarter."""
_WHITES = (255, 1023, 4095, 16_383)
"""Of 8, 10, 12 and 14 bits, which cameras have, and which are kept in 16."""


@dataclass(frozen=True)
class ImageFile:
    """One file as it was found.

    sha256 : of its bytes, or "" where they could not be read
    width_px, height_px : of the upright image
    problem : "" or the reason why it cannot be used
    rules, remark, brightest, full : see `featcache.images.pixels.Decoded`
    um_per_px, um_problem : side of a pixel as the file says it, or 0 and what is wrong with what it says; 0 and "" of
        most files, which say nothing: there may be millions
    """

    sha256: str
    width_px: int = 0
    height_px: int = 0
    problem: str = ""
    rules: int = 1
    remark: str = ""
    brightest: int = field(default=0, compare=False)
    full: int = field(default=0, compare=False)
    um_per_px: float = field(default=0.0, compare=False)
    um_problem: str = field(default="", compare=False)

    @property
    def identity(self) -> str:
        """What names the picture: the bytes, and the rules by which they are read where those are not the first."""
        return identity_of(self.sha256, self.rules)

    @property
    def size(self) -> PixelSize:
        """How large its pixels are, as it says it."""
        is_said = self.um_per_px or self.um_problem
        return PixelSize(self.um_per_px, self.um_problem) if is_said else UNKNOWN

    def problem_with(self, white: int) -> str:
        """Why a file cannot be read with a value of white, or ""; see `featcache.images.read_picture`."""
        return problem_of_white(self.brightest, self.full, white=white)


_FIELDS = {item.name: {"int": int, "float": float}.get(str(item.type), str) for item in fields_of(ImageFile)}
_COLUMNS = ["path", "state", "seen_ns", *_FIELDS]


@dataclass(frozen=True)
class _Stamp:
    """A look at a file: its size, times and inode then (`state`), the moment, and what was found."""

    state: str
    seen_ns: int
    file: ImageFile


def scan(
    folder: Path | ImageFolders,
    paths: Iterable[str],
    *,
    stamps: Path | None = None,
    on_file: Callable[[], object] = lambda: None,
    every: bool = False,
) -> dict[str, ImageFile]:
    """Look at every file once: hash it, decode it, note why it cannot be used.

    Files whose size, times and inode are those of the last look are not read again. A file changed
    less than two seconds before that look is, since a second write could have kept its time.

    folder : what `paths` start from, or the folders
    stamps : file that remembers the last look; None reads every file
    on_file : called once a file that is read, for progress
    every : read every file, whatever the last look found
    """
    known = _read_stamps(stamps) if stamps else {}
    wanted = dict.fromkeys(paths)
    now: dict[str, _Stamp | None] = dict.fromkeys(wanted)
    if not every:
        parted = folder.parted if isinstance(folder, ImageFolders) else lambda path: (folder, path)
        now = {path: _unchanged(os.path.join(*parted(path)), known.get(path)) for path in wanted}  # noqa: PTH118 - fast
    to_read = [path for path, stamp in now.items() if stamp is None]

    def look(path: str) -> _Stamp:
        stamp = _look(folder / path)
        on_file()
        return stamp

    if to_read:
        fresh = Parallel(n_jobs=-1, prefer="threads")(delayed(look)(path) for path in to_read)
        now.update(zip(to_read, fresh, strict=True))
        if stamps:
            with suppress(OSError, UnicodeEncodeError):  # without them the next look only takes longer
                _write_stamps(stamps, {**known, **now})
    return {path: stamp.file for path, stamp in now.items() if stamp is not None}


def remarks_on(files: Mapping[str, ImageFile]) -> list[str]:
    """What people should know of how a set's files were read: which page was taken, how dark all of them are."""
    of_remark: dict[str, list[str]] = defaultdict(list)
    for path, file in files.items():
        if file.remark:
            of_remark[file.remark].append(path)
    remarks = [f"{paths[0]}{_and_more(len(paths) - 1)}: {remark}" for remark, paths in sorted(of_remark.items())]
    narrow = [file for file in files.values() if file.full == 255]
    if narrow and (most := max(file.brightest for file in narrow)) < 255 * _DARK:
        remarks.append(f"brightest value {most:,} of 255: the images are dark; they are taken as they are")
    return remarks + on_depths(files)


def white_of(files: Iterable[ImageFile]) -> int:
    """The value of white in a set's files that have more than 8 bits a sample and do not say how many they use.

    By the brightest value of all of them: that of 8, 10, 12 or 14 bits, whichever is the next; 1 of floating point up
    to 1. 0 where it is the largest of their type, or where there are no such files.
    """
    wide = [file for file in files if file.full > 255]
    most, is_floating = brightest_of(wide), all(file.full == FLOATING for file in wide)
    return next((white for white in ((1,) if is_floating else ()) + _WHITES if 0 < most <= white), 0)


def brightest_of(files: Iterable[ImageFile]) -> int:
    """The largest value in files of more than 8 bits that do not say how many they use; 0 where there are none."""
    return max((file.brightest for file in files if file.full > 255), default=0)


def on_depths(files: Mapping[str, ImageFile]) -> list[str]:
    """Remarks on files of more than 8 bits that do not say how many they use."""
    wide = {path: file for path, file in files.items() if file.full > 255}
    if not wide:
        return []
    most, full = brightest_of(wide.values()), max(file.full for file in wide.values())
    if full == FLOATING:
        return _on_floating(wide)
    if white := white_of(wide.values()):
        others = len(files) - len(wide)
        beside = f"; the {others} others say what is white, or have 8 bits" if others else ""
        return [
            f"brightest value {most:,} of {full:,}: {len(wide)} images seem to use {white.bit_length()} bits, and do "
            f"not say so{beside}"
        ]
    dark = [path for path, file in wide.items() if file.brightest <= _WHITES[-2]]
    if not dark:
        return []
    return [
        f"{dark[0]}{_and_more(len(dark) - 1)}: no value above {_WHITES[-2]:,}, as of 12 bits, and others of 16 bits "
        f"reach {most:,}; all are read by the same white, so keep those apart if they are of 12 bits"
    ]


def _on_floating(wide: Mapping[str, ImageFile]) -> list[str]:
    """On files of more than 8 bits of which some are floating point."""
    floating = {path: file.brightest for path, file in wide.items() if file.full == FLOATING}
    path, most = max(floating.items(), key=lambda item: item[1])
    remarks = [f"{path}{_and_more(len(floating) - 1)}: floating-point values, up to {most:,}"]
    if len(floating) < len(wide):
        remarks.append(
            f"{len(wide) - len(floating)} images hold whole numbers up to {brightest_of(wide.values()):,}; all are "
            "read by the same white, so keep those apart if they are of another range"
        )
    if most > LARGEST_WHITE:
        remarks.append(f"no value above {LARGEST_WHITE:,} can be white: scale these images")
    return remarks


def said_of_white(white: int, found: int) -> list[str]:
    """A remark on the value that is taken for white, where a set's files seem to have another one than their type.

    found : see `white_of`
    """
    if not found:
        return []
    other = found if white != found else LARGEST_WHITE
    return [f"{white or LARGEST_WHITE:,} is taken for white; set another with `white={other}`"]


def _and_more(number: int) -> str:
    return f" and {number} more" if number else ""


def _unchanged(path: str, stamp: _Stamp | None) -> _Stamp | None:
    if stamp is None:
        return None
    state, changed_ns = _state(path)
    settled = changed_ns <= stamp.seen_ns - _SETTLED_NS
    return stamp if state and state == stamp.state and settled else None


def _state(path: str | Path) -> tuple[str, int]:
    """What tells that a file is the same one, unchanged, and the time of its last change (ns)."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of many files takes longer than to look at it
    except OSError:
        return "", 0
    numbers = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return ":".join(map(str, numbers)), max(status.st_mtime_ns, status.st_ctime_ns)


def _look(path: Path) -> _Stamp:
    seen_ns = time.time_ns()
    state, _ = _state(path)
    data = b""
    try:
        data = read_bytes(path)
        _refuse_pointers(data)
        found = read_picture(data, is_look=True)
        height_px, width_px, _ = found.pixels.shape
        size = PixelSize() if found.size == UNKNOWN else found.size
        seen = (found.rules, found.remark, found.brightest, found.full, *size)
        file = ImageFile(sha256_bytes(data), width_px, height_px, "", *seen)
    except ImageError as error:
        file = ImageFile(sha256_bytes(data) if data else "", problem=str(error))
    return _Stamp(state, seen_ns, file)


def _refuse_pointers(data: bytes) -> None:
    """Raise ImageError for the small text that stands in for a file that was not fetched."""
    if data.startswith(b"version https://git-lfs"):
        raise ImageError("only a Git LFS pointer to the file is here: run 'git lfs pull'")
    if len(data) < 4096 and b"annex/objects/" in data:
        raise ImageError("only a git-annex pointer to the file is here: run 'git annex get'")


def _read_stamps(path: Path) -> dict[str, _Stamp]:
    """The last look; an unreadable file only costs another look."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text))) if text.endswith("\n") else []
        return {
            plain_cell(row["path"]): _Stamp(
                row["state"],
                int(row["seen_ns"]),
                _file(row),
            )
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}


def _file(row: Mapping[str, str]) -> ImageFile:
    values: dict[str, Any] = {name: kind(row[name]) for name, kind in _FIELDS.items()}
    return ImageFile(**values)


def _write_stamps(path: Path, stamps: dict[str, _Stamp | None]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for name, stamp in stamps.items():
        if stamp is not None:
            writer.writerow([safe_cell(name), stamp.state, stamp.seen_ns, *astuple(stamp.file)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, buffer.getvalue())
