"""A remote that is a folder: a shared disk, or what a web server shows."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featcache.errors import FeatcacheError, RemoteAccessError, RemoteError, RemoteNotFoundError
from featcache.files import PARTIAL_SUFFIX, beside, make_folder, sync, write_bytes
from featcache.share.contract import BLOCK_BYTES, Item


class FolderStore:
    """See `featcache.share.contract.Store`."""

    ranges = True
    writable = True
    shared = True

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def folders(self, folder: str) -> list[str]:
        """As of `Store`."""
        with self._explaining(folder):
            parent = self.folder / folder
            return sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []

    def list(self, folder: str) -> list[Item]:
        """As of `Store`; what is being written is left out."""
        with self._explaining(folder):
            found = (path for path in sorted((self.folder / folder).rglob("*")) if path.is_file())
            return [
                Item(path.relative_to(self.folder).as_posix(), path.stat().st_size)
                for path in found
                if PARTIAL_SUFFIX not in path.name
            ]

    def size(self, path: str) -> int:
        """As of `Store`."""
        with self._explaining(path):
            return (self.folder / path).stat().st_size

    @contextmanager
    def open(self, path: str, start: int = 0, stop: int | None = None) -> Iterator[Iterator[bytes]]:
        """As of `Store`."""
        with self._explaining(path):
            if not (self.folder / path).is_file():  # a pipe would be waited for
                raise FileNotFoundError
            with (self.folder / path).open("rb") as file:
                file.seek(start)
                yield self._blocks(file, None if stop is None else stop - start)

    def _blocks(self, file: object, left: int | None) -> Iterator[bytes]:
        read = file.read  # type: ignore[attr-defined]
        while block := read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)):
            left = None if left is None else left - len(block)
            yield block

    def put(self, path: str, data: bytes | Path) -> None:
        """As of `Store`; it is read back where it fits into memory."""
        with self._explaining(path):
            final = self.folder / path
            make_folder(final.parent)
            if isinstance(data, bytes):
                write_bytes(final, data, check=True)
                return
            with beside(final) as partial:
                shutil.copyfile(data, partial)

    def create(self, path: str, data: bytes) -> bool:
        """As of `Store`: a hard link fails where its name is taken."""
        with self._explaining(path):
            final = self.folder / path
            make_folder(final.parent)
            partial = final.with_name(f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}")
            try:
                partial.write_bytes(data)
                sync(partial)
                os.link(partial, final)
                sync(final.parent)
            except FileExistsError:
                return False
            finally:
                partial.unlink(missing_ok=True)
            return True

    def remove(self, path: str) -> None:
        """As of `Store`; folders that are empty then go too."""
        with self._explaining(path):
            (self.folder / path).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            for folder in (self.folder / path).parents:
                if folder == self.folder:
                    break
                folder.rmdir()

    @contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        where = f"{self.url}/{path}"
        try:
            yield
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
