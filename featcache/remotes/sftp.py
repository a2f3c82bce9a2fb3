"""Remotes behind SSH. Files are moved whole; who the server is, ~/.ssh/known_hosts says, and who we are, our keys."""

from __future__ import annotations

import getpass
import io
import stat
import threading
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import paramiko

from featcache.core.errors import FeatcacheError, RemoteAccessError, RemoteDroppedError, RemoteNotFoundError
from featcache.core.files import PARTIAL_SUFFIX, user_path
from featcache.remotes.contract import Item
from featcache.remotes.rooted import LinkError
from featcache.remotes.urls import Place, open_remote

_CHANNELS = 6
"""Of one session; OpenSSH allows ten."""
_CONNECT_S = 15
_SILENT_S = 60
_READ_BYTES = 64 << 10
"""So that a slow line is told from one that is dead."""


class SftpRemote:
    """See `featcache.remotes.contract.Remote`. Each operation has a channel of its own: one takes one at a time."""

    ranges = False
    writable = True
    shared = True

    def __init__(self, place: Place) -> None:
        self.url = place.url.rstrip("/")
        self._root = f"/{place.path}"
        self._place = place
        self._client: paramiko.SSHClient | None = None
        self._idle: list[paramiko.SFTPClient] = []
        self._lock = threading.Lock()
        self._free = threading.Semaphore(_CHANNELS)

    def __reduce__(self) -> Any:
        """In another process it is opened anew: no credentials travel."""
        return open_remote, (self._place.url,)

    def folders(self, folder: str) -> list[str]:
        """As of `Remote`."""
        return sorted(entry.filename for entry in self._entries(folder) if stat.S_ISDIR(entry.st_mode or 0))

    def list(self, folder: str) -> list[Item]:
        """As of `Remote`; what is being written is left out."""
        found = []
        for entry in self._entries(folder):
            path = f"{folder}/{entry.filename}"
            if stat.S_ISDIR(entry.st_mode or 0):
                found += self.list(path)
            elif PARTIAL_SUFFIX not in entry.filename:
                found.append(Item(path, entry.st_size or 0))
        return found

    def size(self, path: str) -> int:
        """As of `Remote`."""
        with self._explaining(path) as sftp:
            self._refuse_links(sftp, path, path.rpartition("/")[0])
            return sftp.stat(self._at(path)).st_size or 0

    @contextmanager
    def open(self, path: str, start: int = 0, *, stop: int | None = None) -> Iterator[Iterator[bytes]]:
        """As of `Remote`, whole objects alone."""
        assert start == 0 and stop is None  # noqa: S101 - a caller looks at `ranges`
        with self._explaining(path) as sftp:
            self._refuse_links(sftp, path, path.rpartition("/")[0])
            size = sftp.stat(self._at(path)).st_size or 0
            with sftp.open(self._at(path), "rb") as file:
                file.prefetch(size)
                yield iter(lambda: file.read(_READ_BYTES), b"")

    def put(self, path: str, data: bytes | Path) -> None:
        """As of `Remote`."""
        with self._explaining(path) as sftp:
            partial = self._beside(sftp, path)
            try:
                self._send(sftp, partial, data)
                sftp.posix_rename(partial, self._at(path))
            except BaseException:
                self._forget(sftp, partial)
                raise

    def create(self, path: str, data: bytes) -> bool:
        """As of `Remote`: a plain SFTP rename fails where the name is taken."""
        with self._explaining(path) as sftp:
            partial = self._beside(sftp, path)
            try:
                self._send(sftp, partial, data)
                sftp.rename(partial, self._at(path))
            except OSError as error:
                self._forget(sftp, partial)
                if isinstance(error, (EOFError, ConnectionError)) or not self._exists(sftp, path):
                    raise
                return False
            return True

    def remove(self, path: str) -> None:
        """As of `Remote`; folders that are empty then go too."""
        with self._explaining(path) as sftp:
            parent = path.rpartition("/")[0]
            self._refuse_links(sftp, parent, parent)
            with suppress(FileNotFoundError):
                sftp.remove(self._at(path))
            folder = path.rpartition("/")[0]
            with suppress(OSError):  # not empty
                while folder:
                    sftp.rmdir(self._at(folder))
                    folder = folder.rpartition("/")[0]

    def _refuse_links(self, sftp: paramiko.SFTPClient, path: str, folder: str) -> None:
        """Raise LinkError where an object is a link, or lies behind one: what is there may not be the remote's.

        The server is asked what a folder's name really is, which tells of every link on the way at once.
        """
        with suppress(FileNotFoundError):
            root = (sftp.normalize(self._root) or self._root).rstrip("/")
            real = sftp.normalize(self._at(folder)) if folder else root
            strange = real is not None and real.rstrip("/").lower() != f"{root}/{folder}".rstrip("/").lower()
            if strange or (path != folder and stat.S_ISLNK(sftp.lstat(self._at(path)).st_mode or 0)):
                raise LinkError(
                    f"{self.url}/{path}: is a link, or lies behind one, and none is followed on a remote. Ask whoever "
                    "owns the remote; put the folder itself in its place"
                )

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def _entries(self, folder: str) -> Any:
        with self._explaining(folder) as sftp:
            self._refuse_links(sftp, folder, folder)
            try:
                return sftp.listdir_attr(self._at(folder))
            except FileNotFoundError:
                return []

    def _beside(self, sftp: paramiko.SFTPClient, path: str) -> str:
        """A name beside that of an object to write to; the folders above it are made."""
        parts = self._at(path).strip("/").split("/")[:-1]
        missing = []
        while parts:
            try:
                sftp.stat("/" + "/".join(parts))
                break
            except FileNotFoundError:
                missing.append("/" + "/".join(parts))
                parts.pop()
        for folder in reversed(missing):
            with suppress(OSError):  # another thread was quicker; where it is not there, writing says so
                sftp.mkdir(folder)
        parent = path.rpartition("/")[0]
        self._refuse_links(sftp, parent, parent)
        return f"{self._at(path).rpartition('/')[0]}/.{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"

    def _send(self, sftp: paramiko.SFTPClient, partial: str, data: bytes | Path) -> None:
        """Write a file, and see that it has its length."""
        if isinstance(data, bytes):
            sftp.putfo(io.BytesIO(data), partial, len(data))
        else:
            sftp.put(str(data), partial)

    def _forget(self, sftp: paramiko.SFTPClient, partial: str) -> None:
        with suppress(OSError, EOFError, paramiko.SSHException):
            sftp.remove(partial)

    def _exists(self, sftp: paramiko.SFTPClient, path: str) -> bool:
        try:
            sftp.stat(self._at(path))
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _channel(self) -> Iterator[paramiko.SFTPClient]:
        """A channel for one operation; one that has failed is not used again."""
        with self._free:
            with self._lock:
                transport = self._client.get_transport() if self._client else None
                if self._client is None or transport is None or not transport.is_active():
                    self._client, self._idle = _connected(self._place), []
                client, idle = self._client, self._idle
                sftp = idle.pop() if idle else None
            if sftp is None:
                sftp = client.open_sftp()
                sftp.get_channel().settimeout(_SILENT_S)
            try:
                yield sftp
            except (FileNotFoundError, PermissionError):
                idle.append(sftp)
                raise
            except BaseException:
                sftp.close()
                raise
            idle.append(sftp)

    @contextmanager
    def _explaining(self, path: str) -> Iterator[paramiko.SFTPClient]:
        where = f"{self.url}/{path}"
        try:
            with self._channel() as sftp:
                yield sftp
        except FeatcacheError:
            raise
        except paramiko.AuthenticationException as error:
            raise RemoteAccessError(
                f"{self.url}: the server knows none of our keys: ssh-copy-id it one, or name one in ~/.ssh/config"
            ) from error
        except paramiko.BadHostKeyException as error:
            raise RemoteAccessError(
                f"{self.url}: the server's key is not the one in ~/.ssh/known_hosts: ask its owner before you go on"
            ) from error
        except FileNotFoundError as error:
            raise RemoteNotFoundError(f"{where}: is not there") from error
        except PermissionError as error:
            raise RemoteAccessError(f"{where}: the server refuses: ask its owner for the right") from error
        except paramiko.SSHException as error:
            if "No authentication methods" in str(error):
                raise RemoteAccessError(
                    f"{self.url}: no key is at hand: make one with ssh-keygen, or name one in ~/.ssh/config"
                ) from error
            if "known_hosts" in str(error):
                raise RemoteAccessError(
                    f"{self.url}: the server is not in ~/.ssh/known_hosts: connect once by ssh and look at its key"
                ) from error
            raise RemoteDroppedError(f"{where}: {error}: what arrived whole is kept; try again") from error
        except (OSError, EOFError) as error:
            raise RemoteDroppedError(f"{where}: {error or 'cut off'}: what arrived whole is kept; try again") from error


def _connected(place: Place) -> paramiko.SSHClient:
    """A session with the server, as ~/.ssh says."""
    name, _, port = place.host.partition(":")
    file = user_path("~/.ssh/config")
    try:
        said: Any = paramiko.SSHConfig.from_path(str(file)).lookup(name) if file and file.is_file() else {}
        user = place.user or said.get("user") or getpass.getuser()
    except (KeyError, OSError) as error:  # a user id without a name
        raise RemoteAccessError(
            f"{place.url}: who are we there? Name the user: sftp://USER@{place.host}/..."
        ) from error
    client = paramiko.SSHClient()
    client.load_system_host_keys()
    client.set_missing_host_key_policy(_Refuse())
    client.connect(
        said.get("hostname", name),
        port=int(port or said.get("port", 22)),
        username=user,
        key_filename=said.get("identityfile"),
        timeout=_CONNECT_S,
        banner_timeout=_CONNECT_S,
        auth_timeout=_CONNECT_S,
    )
    weakref.finalize(client, _closed, client.get_transport())
    return client


def _closed(transport: paramiko.Transport | None) -> None:
    if transport is not None:
        transport.close()


class _Refuse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    def missing_host_key(self, client: Any, hostname: Any, key: Any) -> None:
        raise paramiko.SSHException(f"{hostname} is not in known_hosts")
