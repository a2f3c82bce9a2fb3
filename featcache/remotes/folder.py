"""A remote that is a folder: a shared disk, or what a web server shows."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from featcache.core.errors import FeatcacheError, RemoteAccessError, RemoteError, RemoteNotFoundError
from featcache.core.files import PARTIAL_SUFFIX, holds, name_if_free, new_file, sync_handle, unlink_at
from featcache.remotes.contract import BLOCK_BYTES, Item
from featcache.remotes.rooted import LinkError, opened, opened_file


class FolderRemote:
    """See `featcache.remotes.contract.Remote`."""

    ranges = True
    writable = True
    shared = True

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def folders(self, folder: str) -> list[str]:
        """As of `Remote`; also links, which whatever is done next refuses by name."""
        with self._explaining(folder), suppress(FileNotFoundError), opened(self.folder, folder) as inside:
            return sorted(entry.name for entry in os.scandir(inside) if entry.is_symlink() or entry.is_dir())
        return []

    def list(self, folder: str) -> list[Item]:
        """As of `Remote`; what is being written is left out. Of a link its own size is told, and nothing behind it."""
        found = []
        with self._explaining(folder), suppress(FileNotFoundError), opened(self.folder, folder) as inside:
            for below, folders, files, handle in os.fwalk(".", dir_fd=inside):
                for name in (name for name in (*folders, *files) if PARTIAL_SUFFIX not in name):
                    status = os.stat(name, dir_fd=handle, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                        found.append(Item(PurePosixPath(folder, below, name).as_posix(), status.st_size))
        return sorted(found, key=lambda item: item.path)

    def size(self, path: str) -> int:
        """As of `Remote`."""
        with self._explaining(path), opened_file(self.folder, path) as file:
            return os.fstat(file.fileno()).st_size

    @contextmanager
    def open(self, path: str, start: int = 0, *, stop: int | None = None) -> Iterator[Iterator[bytes]]:
        """As of `Remote`."""
        with self._explaining(path), opened_file(self.folder, path) as file:
            file.seek(start)
            yield self._blocks(file, None if stop is None else stop - start)

    def _blocks(self, file: BinaryIO, left: int | None) -> Iterator[bytes]:
        while block := file.read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)):
            left = None if left is None else left - len(block)
            yield block

    def put(self, path: str, data: bytes | Path) -> None:
        """As of `Remote`; it is read back where it fits into memory."""
        with self._explaining(path), self._written(path, data) as (partial, name, inside):
            os.replace(partial, name, src_dir_fd=inside, dst_dir_fd=inside)
            sync_handle(inside)

    def create(self, path: str, data: bytes) -> bool:
        """As of `Remote`."""
        with self._explaining(path), self._written(path, data) as (partial, name, inside):
            return name_if_free(partial, name, folder=inside)

    @contextmanager
    def _written(self, path: str, data: bytes | Path) -> Iterator[tuple[str, str, int]]:
        """The data in a file beside, that goes when the block ends: its name, the final one, their folder's handle."""
        folder, _, name = path.rpartition("/")
        partial = f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"
        with opened(self.folder, folder, make=True) as inside:
            try:
                with new_file(partial, inside) as file:
                    if isinstance(data, bytes):
                        file.write(data)
                    else:
                        with data.open("rb") as source:
                            shutil.copyfileobj(source, file, BLOCK_BYTES)
                if isinstance(data, bytes):
                    self._refuse_other_bytes(partial, inside, data)
                yield partial, name, inside
            finally:
                unlink_at(partial, inside)

    def _refuse_other_bytes(self, partial: str, inside: int, data: bytes) -> None:
        handle = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=inside)
        with os.fdopen(handle, "rb", buffering=0) as file:
            if not holds(file, memoryview(data)):
                raise OSError(errno.EIO, "what was written was read back otherwise: check the disk and the memory")

    def remove(self, path: str) -> None:
        """As of `Remote`; folders that are empty then go too."""
        with self._explaining(path), suppress(FileNotFoundError):
            folder, _, name = path.rpartition("/")
            with opened(self.folder, folder) as inside:
                unlink_at(name, inside)
            while folder:
                above, _, name = folder.rpartition("/")
                with opened(self.folder, above) as inside:
                    try:
                        os.rmdir(name, dir_fd=inside)
                    except OSError:  # not empty
                        break
                folder = above

    @contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        where = f"{self.url}/{path}"
        try:
            yield
        except LinkError as error:
            raise LinkError(f"{where}: {error}") from error
        except FeatcacheError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RemoteNotFoundError(f"{where}: is not there") from error
        except PermissionError as error:
            raise RemoteAccessError(f"{where}: {error.strerror}: ask its owner for the right") from error
        except (OSError, ValueError) as error:
            raise RemoteError(
                f"{where}: {getattr(error, 'strerror', None) or error}: mend that, then try again"
            ) from error
