"""Files that are either whole or not there: write beside, flush, rename; digests of files."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK_BYTES = 1 << 20
PARTIAL_SUFFIX = ".partial"
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""What fsync says where a file system cannot do it: some network disks, shared folders and encrypted folders."""
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What link and renameat2 say where a file system does not know them, as those of most USB sticks."""
_NOREPLACE = 1
_FORMULA = re.compile("'*[=+\\-@\t\r]")
"""How what a spreadsheet computes begins, or what looks like such a text that was made safe."""
UNSAFE = frozenset("'=+-@\t\r")
"""What such a text begins with."""
_LOCK_S, _LOOK_S = 10.0, 0.05

on_remark: Callable[[str], object] = lambda _: None  # noqa: E731 - the command line puts its own in this place
_unsynced: set[int] = set()


def user_path(path: str | Path) -> Path | None:
    """A path below the user's home folder; None where there is no home: a user id without a name, and no HOME."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return None


def expanded(path: str | Path) -> Path:
    """`user_path`, or the path as it is written where there is no home."""
    return user_path(path) or Path(path)


def resolved(path: str | Path) -> Path:
    """An absolute path without links. Of links in a circle, on which Path.resolve fails, as far as they lead."""
    return Path(os.path.realpath(path))


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
        sync_handle(handle)
    finally:
        os.close(handle)


def sync_handle(handle: int) -> None:
    """`sync` of what is open. A file system that cannot is gone on with, and remarked once."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        device = os.fstat(handle).st_dev
        if device not in _unsynced:
            _unsynced.add(device)
            on_remark(
                f"this file system cannot put names on the disk at once ({error.strerror}): what is written is safe "
                "from a killed process, not from a power cut"
            )


def move_into_place(partial: Path, final: Path) -> None:
    """Give a finished file its final name. The bytes reach the disk before the name does."""
    sync(partial)
    partial.replace(final)
    sync(final.parent)


def replace_folder(final: Path, partial: Path, *, old: Path) -> None:
    """Give `partial` the name of `final`; what had that name is called `old`, or gets it back on failure."""
    replaced = final.is_dir()
    if replaced:
        final.replace(old)
    try:
        partial.replace(final)
    except OSError:
        if replaced:
            old.replace(final)
        raise


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


def meant_by(name: str, folders: Iterable[Path]) -> list[Path]:
    """The folders that a person means by a name: the one that has it, else all whose names begin with it."""
    there = list(folders)
    exact = [folder for folder in there if folder.name == name]
    return exact or [folder for folder in there if name and folder.name.startswith(name)]


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


def write_bytes(path: Path, data: bytes | memoryview, *, check: bool = False) -> None:
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
    with path.open("rb", buffering=0) as file:
        return holds(file, data)


def holds(file: io.FileIO, data: memoryview) -> bool:
    """Whether an open, unbuffered file's bytes are these, from where it stands."""
    block, place = bytearray(_BLOCK_BYTES), 0
    while length := file.readinto(block):
        # A bytearray on the left compares by memcmp; two memoryviews would compare number by number.
        if (block if length == len(block) else block[:length]) != data[place : place + length]:
            return False
        place += length
    return place == len(data)


def create(path: Path, data: bytes, *, mode: int = 0o666) -> bool:
    """Write a file as a whole unless there is one. False where there is; of two at the same time, one is told so."""
    partial = f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with new_file(partial, folder, mode=mode) as file:
            file.write(data)
        return name_if_free(partial, path.name, folder=folder)
    finally:
        unlink_at(partial, folder)
        os.close(folder)


@contextmanager
def new_file(name: str, folder: int, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that is not there yet, in an open folder, to write to; its bytes are on the disk when the block ends."""
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder)
    with os.fdopen(handle, "wb") as file:
        yield file
        file.flush()
        sync_handle(handle)


def unlink_at(name: str, folder: int) -> None:
    """Remove a file of an open folder, if it is there."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return


def name_if_free(partial: str, final: str, *, folder: int) -> bool:
    """Give a finished file of an open folder its name, unless the name is taken: then False.

    By a hard link, which fails then; by a rename that does not replace, where a file system has no links; where it has
    neither, by a plain rename while a folder is there that only one process can make.
    """
    try:
        os.link(partial, final, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _rename_if_free(partial, final, folder)
    sync_handle(folder)
    return True


def _rename_if_free(partial: str, final: str, folder: int) -> bool:
    number = _renameat2(folder, partial, final)
    if number == errno.EEXIST:
        return False
    if number in _NO_LINKS:
        return _rename_alone(partial, final, folder)
    if number:
        raise OSError(number, os.strerror(number))
    sync_handle(folder)
    return True


def _renameat2(folder: int, partial: str, final: str) -> int:
    """Rename without replacing. Returns 0, or the number of the error; ENOSYS where the system has no such call."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return errno.ENOSYS
    done: int = libc.renameat2(folder, os.fsencode(partial), folder, os.fsencode(final), _NOREPLACE)
    return ctypes.get_errno() if done else 0


def _rename_alone(partial: str, final: str, folder: int) -> bool:
    lock, until = f".{final}.lock", time.monotonic() + _LOCK_S
    while True:
        try:
            os.mkdir(lock, dir_fd=folder)
            break
        except FileExistsError as error:
            if time.monotonic() > until:
                raise OSError(
                    errno.EBUSY,
                    f"the folder {lock} beside it says that somebody makes it: remove that where nobody does",
                ) from error
            time.sleep(_LOOK_S)
    try:
        if _is_there(final, folder):
            return False
        os.rename(partial, final, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.rmdir(lock, dir_fd=folder)
    sync_handle(folder)
    return True


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text with Unix line ends."""
    write_bytes(path, text.encode())


def safe_cell(text: str) -> str:
    """A text as it stands in a CSV file: with an apostrophe before what a spreadsheet would take for a formula.

    `plain_cell` gives the text back, whatever it is.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def plain_cell(cell: str) -> str:
    """The inverse of `safe_cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON that a person can read."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
