"""A remote behind a plain web server. What is there, `featcache index` has listed in index.json."""

from __future__ import annotations

import http.client
import netrc
import os
import re
import ssl
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from featcache.core.errors import (
    FeatcacheError,
    RemoteAccessError,
    RemoteDroppedError,
    RemoteError,
    RemoteNotFoundError,
)
from featcache.core.files import user_path
from featcache.core.strict_json import strict_json
from featcache.remotes.contract import BLOCK_BYTES, Item, NoRangesError, PausedError, read
from featcache.remotes.urls import redacted

INDEX_FILE = "index.json"
INDEX_FORMAT = 1
_MAX_INDEX_BYTES = 64 << 20
_SILENT_S = 60
_HARMLESS = {"user-agent", "accept-encoding", "range", "host"}
"""Headers that another host than the remote's may see."""


class WebRemote:
    """See `featcache.remotes.contract.Remote`. Only what index.json names can be listed: the records."""

    ranges = True
    writable = False
    shared = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opener = urllib.request.build_opener(_SameHost(_host_of(self.url)))
        self._login = _login(self.url)

    def folders(self, folder: str) -> list[str]:
        """As of `Remote`, as far as index.json names them."""
        prefix = f"{folder}/"
        inside = (item.path[len(prefix) :] for item in self.list(folder))
        return sorted({path.partition("/")[0] for path in inside if "/" in path})

    def list(self, folder: str) -> list[Item]:
        """The records below a folder that index.json names. RemoteError where there is no index.json."""
        try:
            text = read(self, INDEX_FILE, most=_MAX_INDEX_BYTES).decode("utf-8")
            if text.lstrip()[:1] == "<":
                raise RemoteError(f"{self.url}/{INDEX_FILE}: is a page for people: this is no featcache remote")
            value = strict_json(text)
            records = value["records"] if value["format"] == INDEX_FORMAT else None
            found = [Item(str(path), 0) for path in records or {}]
        except RemoteNotFoundError as error:
            raise RemoteNotFoundError(
                f"{self.url}: has no {INDEX_FILE}, so its caches cannot be listed",
                "Use the whole name of a cache, or run 'featcache index' on the folder that the server shows",
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RemoteError(
                f"{self.url}/{INDEX_FILE}: cannot be read: {error}", "Run 'featcache index' again on the folder"
            ) from error
        return [item for item in found if item.path.startswith(f"{folder}/")]

    def size(self, path: str) -> int:
        """As of `Remote`: what the answer to a request for one byte says of the whole."""
        with self._get(path, 0, 1) as response:
            said = response.headers.get("Content-Range", "").rpartition("/")[2]
            if not (said.isascii() and said.isdecimal()):
                raise NoRangesError(f"{self.url}/{path}: the server does not say how long the file is")
            return int(said)

    @contextmanager
    def open(self, path: str, start: int = 0, *, stop: int | None = None) -> Iterator[Iterator[bytes]]:
        """As of `Remote`. A server that knows no ranges and sends the whole object is refused: NoRangesError."""
        with self._get(path, start, stop) as response:
            yield _blocks(response)

    @contextmanager
    def _get(self, path: str, start: int, stop: int | None) -> Iterator[Any]:
        headers = {"User-Agent": "featcache", "Accept-Encoding": "identity", **self._login}
        partial = start > 0 or stop is not None
        if partial:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        request = urllib.request.Request(f"{self.url}/{quote(path)}", headers=headers)  # noqa: S310 - http(s) alone
        with self._explaining(path), self._opener.open(request, timeout=_SILENT_S) as response:
            if partial and not _is_range(response, start):
                raise NoRangesError(f"{self.url}/{path}: the server sends no parts of files")
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise RemoteError(f"{self.url}/{path}: was sent encoded, though that was not asked for")
            yield response

    def put(self, path: str, data: bytes | Path) -> None:
        """A web server takes nothing."""
        raise AssertionError

    def create(self, path: str, data: bytes) -> bool:
        """A web server takes nothing."""
        raise AssertionError

    def remove(self, path: str) -> None:
        """A web server removes nothing."""
        raise AssertionError

    @contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        where = f"{self.url}/{path}"
        try:
            yield
        except FeatcacheError:
            raise
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 410):
                raise RemoteNotFoundError(f"{where}: is not there") from error
            if error.code in (401, 403, 407):
                raise RemoteAccessError(
                    f"{where}: the server refuses ({error.code}): put a line 'machine {urlsplit(self.url).hostname} "
                    "login NAME password PASSWORD' into ~/.netrc"
                ) from error
            if error.code >= 500 or error.code in (408, 429):
                raise _dropped(where, error) from error
            raise RemoteError(f"{where}: the server answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise RemoteError(
                    f"{where}: {reason.verify_message}: name the authority's certificate in SSL_CERT_FILE"
                ) from error
            by = _proxy_of(self.url)
            raise RemoteDroppedError(f"{where}: {reason}{by}: what arrived whole is kept; try again") from error


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Goes where the server points, on the web alone, and takes what is secret along to no other host."""

    def __init__(self, host: str) -> None:
        self._host = host

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = (urlsplit(url).scheme for url in (req.full_url, newurl))
        if after not in ("http", "https") or (before, after) == ("https", "http"):
            raise RemoteError(
                f"{self._host}: sends us on to {redacted(newurl)}, which is not followed from {before}://"
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _host_of(newurl) != self._host:
            for name in [*request.headers, *request.unredirected_hdrs]:
                if name.lower() not in _HARMLESS:
                    request.remove_header(name)
        return request


def _dropped(where: str, error: urllib.error.HTTPError) -> RemoteDroppedError:
    """What a server says that is busy, with the pause that it asks for."""
    said = error.headers.get("Retry-After", "") if error.headers else ""
    after_s = int(said) if re.fullmatch("[0-9]{1,9}", said) else 0
    asks = f" and asks to come back in {after_s} s" if after_s else ""
    dropped = PausedError(f"{where}: the server answers {error.code} {error.reason}{asks}: try again")
    dropped.after_s = after_s
    return dropped


def _proxy_of(url: str) -> str:
    """The proxy that a connection goes through, in words; "" for none."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    return f" by the proxy {redacted(proxy)}" if proxy and not urllib.request.proxy_bypass(parts.hostname or "") else ""


def _host_of(url: str) -> str:
    parts = urlsplit(url)
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{parts.port or usual}"


def _login(url: str) -> dict[str, str]:
    """What ~/.netrc, or the file in NETRC, says for the host."""
    host = urlsplit(url).hostname or ""
    file = user_path(os.environ.get("NETRC", "~/.netrc"))
    try:
        found = netrc.netrc(file).hosts.get(host) if file and file.is_file() else None  # never the default entry
    except OSError as error:
        raise RemoteAccessError(f"{file}: cannot be read: {error.strerror}") from error
    except (netrc.NetrcParseError, ValueError) as error:  # whose messages quote words, and so passwords
        line = f", line {error.lineno}" if isinstance(error, netrc.NetrcParseError) and error.lineno else ""
        raise RemoteAccessError(f"{file}{line}: cannot be read: expected 'machine HOST login NAME ...'") from None
    if not found:
        return {}
    return {"Authorization": "Basic " + b64encode(f"{found[0]}:{found[2]}".encode()).decode()}


def _is_range(response: Any, start: int) -> bool:
    said = response.headers.get("Content-Range", "")
    return bool(response.status == 206 and said.startswith(f"bytes {start}-"))


def _blocks(response: Any) -> Iterator[bytes]:
    while block := response.read1(BLOCK_BYTES):
        yield block
