"""Files below a folder that others may write to, too: no link on the way to one is followed.

Each folder on the way is opened by itself, from the one above it, so that nobody can exchange it for a link between a
look and its use.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from featcache.core.errors import RemoteError
from featcache.core.files import make_folder, sync_handle

_LINKS = {errno.ELOOP, errno.ENOTDIR, errno.EMLINK}
"""What opening a link says that is not to be followed."""


class LinkError(RemoteError):
    """A link stands where a remote has a file or folder."""


@contextmanager
def opened(root: Path, path: str, *, make: bool = False) -> Iterator[int]:
    """A handle of the folder `path` below `root`; "" for `root` itself, which alone may be a link.

    make : make what is missing

    Raises LinkError for a link, OSError where the folder cannot be had.
    """
    if make:
        make_folder(root)
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in path.split("/") if path else ():
            inner = _step(handle, part, path, make)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _step(handle: int, part: str, path: str, make: bool) -> int:
    if part in ("", ".", ".."):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    try:
        return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        _refuse_link(handle, part, error)
        raise
    with suppress(FileExistsError):  # another process or thread was quicker
        os.mkdir(part, dir_fd=handle)
        sync_handle(handle)
    return _step(handle, part, path, make=False)


@contextmanager
def opened_file(root: Path, path: str) -> Iterator[BinaryIO]:
    """A file below `root`, for reading. LinkError for a link, FileNotFoundError for what is no file."""
    folder, _, name = path.rpartition("/")
    with opened(root, folder) as inside:
        try:
            handle = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside
            )  # a pipe is not waited for
        except OSError as error:
            _refuse_link(inside, name, error)
            raise
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        yield file


def _refuse_link(handle: int, name: str, error: OSError) -> None:
    if error.errno in _LINKS and stat.S_ISLNK(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
        raise LinkError(
            f"{name} is a link, and none is followed on a remote: what it leads to is not touched. Ask whoever owns "
            "the remote; put the folder itself in its place"
        ) from error
