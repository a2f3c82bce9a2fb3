"""What a remote offers: named objects of bytes. Folders, object stores, web servers, SFTP and packs all do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from featcache.core.errors import RemoteDroppedError, RemoteError

BLOCK_BYTES = 1 << 20
Block = bytes | memoryview


class NoRangesError(RemoteError):
    """The remote was asked for a part of an object and sends the whole."""


class StalledError(RemoteDroppedError):
    """The remote does not answer, or so slowly that nobody should wait: to try again at once is of no use."""


class PausedError(RemoteDroppedError):
    """The remote is busy. after_s : when it may be asked again, by what it says"""

    after_s = 0


@dataclass(frozen=True)
class Item:
    """An object on a remote. md5 : of its bytes in hex, where the remote says it; else "" """

    path: str
    bytes: int
    md5: str = ""


class Remote(Protocol):
    """The objects of one remote. Paths are relative, with `/`. Several threads may use it at once.

    ranges : whether a part of an object can be had without the rest
    writable : whether this kind of remote takes objects at all
    shared : whether others may push to it at the same time

    Everything raises RemoteError: RemoteNotFoundError for an object that is not there, RemoteAccessError where
    credentials are missing or do not suffice, RemoteDroppedError where another try may do.
    """

    url: str
    ranges: bool
    writable: bool
    shared: bool

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder; none where it is not there."""

    def list(self, folder: str) -> list[Item]:
        """Every object below a folder; none where it is not there."""

    def size(self, path: str) -> int:
        """Bytes of an object."""

    def open(self, path: str, start: int = 0, *, stop: int | None = None) -> AbstractContextManager[Iterator[Block]]:
        """The bytes start..stop of an object, in blocks. Only with `ranges` may start or stop be given.

        A remote that is asked for a part and sends the whole is refused here (NoRangesError), as is one that sends
        another part; one that sends too few or too many bytes is for the caller to notice.
        """

    def put(self, path: str, data: bytes | Path) -> None:
        """Store an object as a whole: readers see the old one or the new one."""

    def create(self, path: str, data: bytes) -> bool:
        """Store an object unless there is one. False where there is; of two at the same time, one is told so."""

    def remove(self, path: str) -> None:
        """Remove an object; nothing where it is not there."""


def read(store: Remote, path: str, *, most: int, start: int = 0, stop: int | None = None) -> bytes:
    """An object, or a part of it, of at most `most` bytes, in memory. RemoteError for a larger one."""
    blocks, length = [], 0
    with store.open(path, start, stop=stop) as stream:
        for block in stream:
            length += len(block)
            if length > most:
                raise RemoteError(f"{store.url}/{path}: is longer than {most} bytes: nothing of it is used")
            blocks.append(block)
    if stop is not None and length != stop - start:
        raise RemoteDroppedError(
            f"{store.url}/{path}: expected {stop - start} bytes from {start} on, got {length}: try again"
        )
    return b"".join(blocks)


def refuse_writing(store: Remote) -> None:
    """Raise RemoteError for a remote that can only be read."""
    if not store.writable:
        raise RemoteError(
            f"{store.url}: can only be read",
            "Push to the folder that the server shows, then run 'featcache index' on it",
        )
