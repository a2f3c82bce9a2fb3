"""Folders that one process at a time works in; and folders that are whole or absent."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from featcache.core.files import PARTIAL_SUFFIX, resolved


class TakenError(OSError):
    """Another process has the folder."""


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Have a folder for one process, until it ends in whatever way. Raises TakenError where another one has it.

    The lock is of the folder itself, so that no file is left behind. Where a file system has no locks, there is none.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    if sys.platform == "win32":  # where two processes at once are not kept apart
        return
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TakenError(error.errno, "another process is at work in it", str(folder)) from error
    except OSError:  # NFS and others without locks of folders
        return


@contextmanager
def folder_beside(final: Path) -> Iterator[Path]:
    """A new folder next to `final`; it becomes `final` (absent or empty until then) when the block ends well.

    What a process that was killed has left behind of one goes first.
    """
    final = resolved(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{final.name}-"
    for old in final.parent.iterdir():
        if old.name.startswith(prefix) and old.name.endswith(PARTIAL_SUFFIX):
            with suppress(OSError), holding(old):
                shutil.rmtree(old)
    partial = Path(mkdtemp(prefix=prefix, suffix=PARTIAL_SUFFIX, dir=final.parent))
    partial.chmod(0o777 & ~_umask())
    try:
        with holding(partial):
            yield partial
            _become(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _become(partial: Path, final: Path) -> None:
    """Rename; a process' current folder, which must stay the same one, is filled instead."""
    if final.is_dir() and final.samefile(Path.cwd()):
        for path in sorted(partial.iterdir()):
            path.rename(final / path.name)
    else:
        partial.rename(final)


def _umask() -> int:
    """The rights that new folders are not given; there is no way to read them without setting them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
