"""Files that are either whole or not there: write beside, flush, rename; digests of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20
PARTIAL_SUFFIX = ".partial"


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Ask the operating system to put a file, or a folder's list of names, on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move_into_place(partial: Path, final: Path) -> None:
    """Give a finished file its final name. The bytes reach the disk before the name does."""
    sync(partial)
    partial.replace(final)
    sync(final.parent)


def make_folder(folder: Path, within: Path | None = None) -> None:
    """Make a folder and those above it that are missing, each seen to the disk like a file's name.

    within : the one above it that must be there: FileNotFoundError where it has vanished
    """
    if not folder.is_dir():
        if folder == within:
            raise FileNotFoundError(errno.ENOENT, "it has vanished", str(folder))
        make_folder(folder.parent, within)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def is_hidden(folder: Path) -> bool:
    """Whether a name is one of those that commands give to what they are still at work on."""
    return folder.name.startswith(".") and folder.name != ".."


def visible_folders(parent: Path) -> list[Path]:
    """The folders in `parent` that are whole things, by name; none where it is not there."""
    try:
        found = sorted(parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for path in found if not is_hidden(path) and path.is_dir()]


@contextmanager
def beside(final: Path) -> Iterator[Path]:
    """A path next to `final` to write to; it becomes `final` when the block ends well, else it goes.

    The partial name keeps the suffix of the final one, since some writers choose a format by it.
    """
    partial = final.with_name(f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}{final.suffix}")
    try:
        yield partial
        move_into_place(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview, check: bool = False) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part.

    check : read it back before it gets its name, OSError where it is not what was written
    """
    with beside(path) as partial:
        partial.write_bytes(data)
        if check:
            sync(partial)
            if not _holds(partial, memoryview(data)):
                raise OSError(errno.EIO, "what was written was read back otherwise: check the disk and the memory")


def _holds(path: Path, data: memoryview) -> bool:
    """Whether a file's bytes are these."""
    block, place = bytearray(_BLOCK_BYTES), 0
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(block):
            # A bytearray on the left compares by memcmp; two memoryviews would compare number by number.
            if (block if length == len(block) else block[:length]) != data[place : place + length]:
                return False
            place += length
    return place == len(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text with Unix line ends."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON that a person can read."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
