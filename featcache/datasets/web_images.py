"""Images that a list names by their address: fetched once, into the project's own folder."""

from __future__ import annotations

import hashlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from featcache.core.errors import ImageError, OfflineError, RemoteError, UsageError
from featcache.core.files import write_bytes
from featcache.images import read_picture
from featcache.remotes import Remote, open_remote, parse_url, read

_WEB = ("http", "https")
_STORES = ("s3", "gs", "az", "sftp", "file")
_MOST_BYTES = 512 << 20
_BLOCK_BYTES = 1 << 18
_SILENCE_S, _MOST_S = 30, 600
_MOST_FAILURES = 20
"""In a row: the server is gone, and to ask for the others would only take time."""


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows to no host but that of the list, and from https to no http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.netloc != old.netloc or new.scheme not in (old.scheme, "https"):
            raise ValueError(
                f"it leads on to another host, {new.hostname or newurl!r:.100}, which the list does not name"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def is_address(name: str) -> bool:
    """Whether a list names an image by an address, and not by a path."""
    scheme, mark, _ = name.partition("://")
    return bool(mark) and len(scheme) > 1 and scheme.isalnum()


def without_login(address: str) -> str:
    """An address as it may be shown: without a name and password in it."""
    return re.sub(r"://[^/?#]*@", "://***@", address)


def fetched(names: Iterable[str], folder: Path) -> dict[str, Path | str]:
    """The file of each address, or why there is none. What is in `folder` already is not fetched again.

    Only hosts that the addresses name are reached, and nothing that is no picture is kept. Raises OfflineError where
    something would have to be fetched, and `offline` holds.
    """
    ways = _Ways()
    files: dict[str, Path | str] = {}
    failures: dict[str, int] = {}
    for name in dict.fromkeys(names):
        host = urlsplit(name).netloc if "[" not in name else name
        if failures.get(host, 0) >= _MOST_FAILURES:
            files[name] = f"it was not fetched: {_MOST_FAILURES} images before it could not be either"
            continue
        try:
            files[name] = _file(name, folder, ways)
            failures[host] = 0
        except OfflineError:
            raise
        except urllib.error.HTTPError as error:
            files[name] = f"it cannot be fetched: the server says {error.code}"
            failures[host] = failures.get(host, 0) + 1
        except (OSError, HTTPException) as error:
            if isinstance(reason := getattr(error, "reason", None), OfflineError):
                raise reason from error
            files[name] = f"it cannot be fetched: {_plain(error)}"
            failures[host] = failures.get(host, 0) + 1
        except RemoteError as error:
            files[name] = f"it cannot be fetched: {_plain(error)}"
            failures[host] = failures.get(host, 0) + 1
        except (ValueError, ImageError, UsageError) as error:
            files[name] = f"it cannot be fetched: {_plain(error)}"
    return files


def _plain(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", None) or error).split())[:200]


class _Ways:
    """How addresses are read; buckets and servers that need to be signed in to are opened once."""

    def __init__(self) -> None:
        self._opener = urllib.request.build_opener(_SameHost)
        self._opener.addheaders = [("User-Agent", "featcache"), ("Accept", "image/*")]
        self._stores: dict[str, Remote] = {}

    def read(self, address: str) -> bytes:
        """The bytes at an address."""
        parts = urlsplit(address)
        if parts.scheme in _WEB:
            path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            return _read(parts._replace(path=path, fragment="").geturl(), self._opener)
        place = parse_url(address)
        parent, _, name = place.path.rpartition("/")
        folder = urlunsplit((place.scheme, urlsplit(place.url).netloc, f"/{quote(parent)}", parts.query, ""))
        if folder not in self._stores:
            self._stores[folder] = open_remote(folder)
        return read(self._stores[folder], name, most=_MOST_BYTES)


def _file(name: str, folder: Path, ways: _Ways) -> Path:
    parts = urlsplit(name)
    if parts.scheme not in (*_WEB, *_STORES) or not (parts.hostname or parts.scheme == "file"):
        raise ValueError(
            f"addresses of {parts.scheme or 'no kind'} are not read: expected one of {', '.join((*_WEB, *_STORES))}"
        )
    if (parts.username is not None and parts.scheme != "sftp") or parts.password is not None:
        raise ValueError("it holds a name or a password: leave them out of the list")
    stem = PurePosixPath(unquote(parts.path)).name
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in stem).lstrip(".-")[-60:]
    file = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{plain or 'image'}"
    if not file.suffix:
        file = file.with_suffix(".img")
    if not file.is_file():
        data = ways.read(name)
        read_picture(data, is_look=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(file, data)
    return file


def _read(address: str, opener: urllib.request.OpenerDirector) -> bytes:
    end = time.monotonic() + _MOST_S
    data = bytearray()
    with opener.open(address, timeout=_SILENCE_S) as answer:
        said = answer.headers.get("Content-Length")
        while block := answer.read1(_BLOCK_BYTES):
            data += block
            if len(data) > _MOST_BYTES:
                raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
            if time.monotonic() > end:
                raise ValueError(f"it took more than {_MOST_S} s")
    if said is not None and said.isdigit() and int(said) != len(data):
        raise ValueError(f"the server sent {len(data)} of {said} bytes")
    return bytes(data)
