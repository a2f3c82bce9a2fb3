"""Packs: caches and runs in one zip file, stored as they are, so that each can be read by its place in the file."""

from __future__ import annotations

import io
import shutil
import struct
import threading
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from featcache.core.errors import RemoteError, RemoteNotFoundError
from featcache.remotes.contract import Block, Item, NoRangesError, Remote, read

_MAX_DIRECTORY_BYTES = 64 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LIKE_1980 = (1980, 1, 1, 0, 0, 0)


def open_pack(around: Remote, name: str) -> PackRemote:
    """The pack that is the file `name` of another remote. RemoteError where it is none or can only be had whole."""
    url = f"{around.url}/{name}"
    if not around.ranges:
        raise RemoteError(f"{url}: a pack cannot be read from here in parts: copy the file, then name the copy")
    try:
        window = _Window(around, name, size=around.size(name))
        with zipfile.ZipFile(window) as pack:
            entries = pack.infolist()
    except NoRangesError as error:
        raise RemoteError(f"{url}: {error}: copy the file, then name the copy") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise RemoteError(f"{url}: is no pack, or a damaged one: {error}") from error
    return PackRemote(around, name, entries=entries)


class PackRemote:
    """See `featcache.remotes.contract.Remote`."""

    ranges = True
    writable = False
    shared = False

    def __init__(self, around: Remote, name: str, *, entries: list[zipfile.ZipInfo]) -> None:
        self.url = f"{around.url}/{name}"
        self._around = around
        self._name = name
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            packed = entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
            if packed or entry.flag_bits & 1:
                raise RemoteError(f"{self.url}: {entry.filename!r:.80} is compressed: no pack of featcache holds such")
            if entry.filename in self._entries:
                raise RemoteError(f"{self.url}: {entry.filename!r:.80} stands there twice")
            self._entries[entry.filename] = entry

    def folders(self, folder: str) -> list[str]:
        """As of `Remote`."""
        prefix = f"{folder}/"
        inside = (path[len(prefix) :] for path in self._entries if path.startswith(prefix))
        return sorted({path.partition("/")[0] for path in inside if "/" in path})

    def list(self, folder: str) -> list[Item]:
        """As of `Remote`."""
        return [Item(path, e.file_size) for path, e in self._entries.items() if path.startswith(f"{folder}/")]

    def size(self, path: str) -> int:
        """As of `Remote`."""
        return self._entry(path).file_size

    @contextmanager
    def open(self, path: str, start: int = 0, *, stop: int | None = None) -> Iterator[Iterator[Block]]:
        """As of `Remote`."""
        entry = self._entry(path)
        header = read(
            self._around, self._name, most=_LOCAL_HEADER.size, start=entry.header_offset, stop=entry.header_offset + 30
        )
        mark, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        if mark != b"PK\x03\x04":
            raise RemoteError(f"{self.url}: is damaged: {path} is not where the list of files says")
        begin = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        end = begin + (entry.file_size if stop is None else min(stop, entry.file_size))
        if begin + start >= end:
            yield iter(())
            return
        with self._around.open(self._name, begin + start, stop=end) as blocks:
            yield blocks

    def _entry(self, path: str) -> zipfile.ZipInfo:
        try:
            return self._entries[path]
        except KeyError as error:
            raise RemoteNotFoundError(f"{self.url}/{path}: is not there") from error

    def put(self, path: str, data: bytes | Path) -> None:
        """A pack takes nothing once it is finished."""
        raise AssertionError

    def create(self, path: str, data: bytes) -> bool:
        """A pack takes nothing once it is finished."""
        raise AssertionError

    def remove(self, path: str) -> None:
        """Nothing is removed from a pack."""
        raise AssertionError


class PackWriter:
    """A pack in the making: what is pushed to it lies in one zip file. Use it as a context."""

    ranges = False
    writable = True
    shared = False

    def __init__(self, file: Path) -> None:
        self.url = str(file)
        self._zip = zipfile.ZipFile(file, "x", zipfile.ZIP_STORED)
        self._lock = threading.Lock()

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the list of files at the end."""
        self._zip.close()

    def folders(self, folder: str) -> list[str]:
        """As of `Remote`; of no use here."""
        return []

    def list(self, folder: str) -> list[Item]:
        """As of `Remote`."""
        return [Item(e.filename, e.file_size) for e in self._zip.infolist() if e.filename.startswith(f"{folder}/")]

    def size(self, path: str) -> int:
        """As of `Remote`."""
        return self._zip.getinfo(path).file_size

    def open(self, path: str, start: int = 0, *, stop: int | None = None) -> AbstractContextManager[Iterator[bytes]]:
        """What is being written is not read."""
        raise RemoteNotFoundError(f"{self.url}/{path}: is not there")

    def put(self, path: str, data: bytes | Path) -> None:
        """As of `Remote`."""
        entry = zipfile.ZipInfo(path, _LIKE_1980)  # the same cache makes the same pack
        with self._lock:
            if isinstance(data, bytes):
                self._zip.writestr(entry, data)
                return
            entry.file_size = data.stat().st_size
            with data.open("rb") as source, self._zip.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)

    def create(self, path: str, data: bytes) -> bool:
        """As of `Remote`."""
        if path in self._zip.NameToInfo:
            return False
        self.put(path, data)
        return True

    def remove(self, path: str) -> None:
        """Nothing is removed from a pack."""


class _Window(io.RawIOBase):
    """A file on a remote as `zipfile` wants to see it: only its list of files is read."""

    def __init__(self, store: Remote, path: str, *, size: int) -> None:
        self._store, self._path, self._size, self._place = store, path, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if place < 0:
            raise ValueError("shorter than a zip file")
        self._place = place
        return place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._place)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _MAX_DIRECTORY_BYTES:
            raise ValueError("its list of files is longer than any pack's")
        if not wanted:
            return b""
        data = read(self._store, self._path, most=wanted, start=self._place, stop=self._place + wanted)
        self._place += wanted
        return data
