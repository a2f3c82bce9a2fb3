"""URLs of remotes: which there are, what may stand in one, and the store that each means."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from featcache.core.errors import UsageError
from featcache.core.extras import require_extra
from featcache.core.files import resolved
from featcache.core.offline import refuse_offline
from featcache.remotes.bounded import bounded
from featcache.remotes.contract import Remote

PACK_SUFFIX = ".zip"
_OBJECTS = ("s3", "gs", "az")
_SCHEMES = ("file", "http", "https", *_OBJECTS, "sftp")
_USUAL_PORTS = {"http": 80, "https": 443, "sftp": 22}
_SECRET = re.compile(r"(?i)key|secret|token|pass|pwd|sig|cred|auth|sas|x-amz|^s[epvr]$")
"""Names of what stands behind a '?' that may be followed by a secret."""
_OPTIONS = {"s3": {"endpoint", "region"}}
_HARMLESS = re.compile(r"[A-Za-z0-9+.-]+://[^/?#:@;&]*(:[0-9]{1,5})?(/[^?#@]*)?")
"""The beginning of a URL in which no password can stand."""
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
_REGION = re.compile(r"[A-Za-z0-9-]{0,40}")


@dataclass(frozen=True)
class Place:
    """A parsed URL. host : bucket, container or server with its port; path : without slashes at its ends"""

    scheme: str
    host: str
    path: str
    user: str
    options: dict[str, str]
    url: str

    @property
    def is_pack(self) -> bool:
        """Whether it is one file that caches are packed in."""
        return self.path.endswith(PACK_SUFFIX)


def parse_url(url: str) -> Place:
    """A remote's URL, or the path of a local folder or pack, checked.

    Raises UsageError for an unknown kind, and for credentials in the URL: they would be written to files, and shown.
    """
    if "\0" in url or any("\ud800" <= char <= "\udfff" for char in url.partition("://")[2]):
        raise UsageError(f"{redacted(url)!r}: is no URL: it holds what is no text")
    if "://" not in url:
        url = resolved(Path(url)).as_uri()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # whose message may quote a password
        raise UsageError(f"{redacted(url)}: is no URL: expected SCHEME://HOST:PORT/PATH, the port a number") from error
    if parts.scheme not in _SCHEMES:
        raise UsageError(f"{redacted(url)}: expected a URL that begins with {', '.join(f'{s}://' for s in _SCHEMES)}")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    strange = sorted(
        set(options) - _OPTIONS.get(parts.scheme, set()) | ({""} if parts.query and not options else set())
    )
    secret = any(_SECRET.search(name) for name in strange)
    if secret or _has_credentials(parts.netloc, parts.scheme):
        raise UsageError(
            f"{redacted(url)}: credentials and keys do not belong into a URL, which is kept and shown: "
            "leave them to the environment (AWS_ACCESS_KEY_ID, ...), ~/.aws/credentials, ~/.netrc or ~/.ssh"
        )
    if parts.fragment:
        raise UsageError(f"{redacted(url)}: a '#' ends the address: write %23 where it is part of a name")
    if strange:
        known = ", ".join(sorted(_OPTIONS.get(parts.scheme, ()))) or "none"
        raise UsageError(
            f"{redacted(url)}: behind the '?' is {strange[0]!r:.40}, which is no option (known for {parts.scheme}://: "
            f"{known}): write %3F where it is part of a name"
        )
    if len(pairs) != len(options):
        raise UsageError(f"{redacted(url)}: an option stands there twice")
    if not _REGION.fullmatch(options.get("region", "")):
        raise UsageError(f"{redacted(url)}: the region: expected letters, digits and -")
    if "endpoint" in options:
        refuse_endpoint(options["endpoint"], redacted(url))
    if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
        raise UsageError(f"{redacted(url)}: expected file:///FOLDER, with three slashes")
    if parts.scheme != "file" and not parts.hostname:
        raise UsageError(f"{redacted(url)}: names no host or bucket")
    host = (parts.hostname or "") + (f":{port}" if port else "")
    if parts.scheme in _OBJECTS:
        host = parts.netloc  # bucket names may hold capital letters
    path = unquote(parts.path, errors="surrogateescape").strip("/")
    if parts.scheme not in ("http", "https"):  # a web server may tell one slash from two
        path = "/".join(part for part in path.split("/") if part not in ("", "."))
    if ".." in path.split("/") or "\0" in path:
        raise UsageError(f"{redacted(url)}: expected a path without '..'")
    shown = urlunsplit(
        (parts.scheme, parts.netloc, quote(f"/{path}" if path else "", errors="surrogateescape"), parts.query, "")
    )
    return Place(scheme=parts.scheme, host=host, path=path, user=parts.username or "", options=options, url=shown)


def place_of(url: str) -> str:
    """One text for every spelling of a place: two URLs that lead to the same remote have the same.

    Links, '.', '//', capitals of hosts, usual ports, users and escapes make no other place. Nor does the scheme of a
    web server, nor the endpoint of a bucket: what is asked of one spelling is asked of the others, rather too often.
    """
    place = parse_url(url)
    parts = [part for part in place.path.split("/") if part not in ("", ".")]
    if place.scheme == "file":
        return f"file:{os.path.realpath('/' + '/'.join(parts))}"
    scheme = "web" if place.scheme in _USUAL_PORTS and place.scheme != "sftp" else place.scheme
    host = place.host if place.scheme in _OBJECTS else _host_of(place)
    return f"{scheme}://{host}/{'/'.join(parts)}"


def _host_of(place: Place) -> str:
    """Host and port as a machine sees them."""
    parts = urlsplit(place.url)
    name = unquote(parts.hostname or "").rstrip(".").lower()
    with suppress(OSError):
        name = socket.inet_ntoa(socket.inet_aton(name))  # 127.1, 0x7f000001
    with suppress(ValueError):
        name = str(ipaddress.ip_address(name))
    with suppress(UnicodeError):
        name = name.encode("idna").decode()
    port = parts.port or _USUAL_PORTS[place.scheme]
    return name if port in _USUAL_PORTS.values() else f"{name}:{port}"


def _has_credentials(netloc: str, scheme: str) -> bool:
    """Whether something stands before the host, also in escapes; a server that is reached by SSH has a user there."""
    before, at, _ = _without_escapes(netloc).rpartition("@")
    return bool(at) and (scheme != "sftp" or ":" in before or "@" in before)


def _without_escapes(text: str) -> str:
    """A text without escapes of URLs, nor escapes of these."""
    while (plain := unquote(text)) != text:
        text = plain
    return text


def redacted(url: str) -> str:
    """A URL without what may be secret in it: who stands before the host, what stands behind '?' and '#'.

    Passwords hold '/', '?', '@' and escapes, too: in doubt more goes.
    """
    plain = _without_escapes(url)
    harmless = _HARMLESS.match(plain)
    if harmless and plain[harmless.end() : harmless.end() + 1] in ("", "?", "#"):
        return harmless[0][:200]
    before, at, behind = plain.rpartition("@")
    host = re.split(r"[?#;&]", behind)[0]
    if at:
        scheme = re.match(r"[A-Za-z0-9+.-]+://", before)
        return f"{scheme[0] if scheme else ''}...@{host}"[:200]
    return re.sub(r"^((?:[A-Za-z0-9+.-]+://)?[^/:]*:)(?![0-9]{1,5}(?:/|$)).*", r"\1...", host)[:200]


def presentable(url: str) -> str:
    """A URL to be shown that nobody has checked: of a file that was written by hand, say."""
    try:
        parse_url(url)
    except UsageError:
        return redacted(url)
    return url


def refuse_endpoint(endpoint: str, where: str) -> None:
    """Raise UsageError for the address of a bucket's server that is none, or that holds a password."""
    with suppress(ValueError):
        if _ENDPOINT.fullmatch(endpoint) and urlsplit(endpoint).port != 0:
            return
    raise UsageError(f"{where}: the endpoint {redacted(endpoint)!r}: expected http(s)://HOST or http(s)://HOST:PORT")


def open_remote(url: str) -> Remote:
    """The store at a URL. Raises UsageError where it is none, MissingPackageError where it needs one."""
    place = parse_url(url)
    if place.is_pack:
        from featcache.remotes.packs import open_pack

        parent, _, name = place.path.rpartition("/")
        around = Place(
            scheme=place.scheme,
            host=place.host,
            path=parent,
            user=place.user,
            options=place.options,
            url=place.url.rpartition("/")[0],
        )
        return open_pack(_open(around), name)
    return _open(place)


def _open(place: Place) -> Remote:
    if place.scheme == "file":
        from featcache.remotes.folder import FolderRemote

        return FolderRemote(Path("/" + place.path), place.url)
    refuse_offline(place.host)
    if place.scheme in ("http", "https"):
        from featcache.remotes.web import WebRemote

        return bounded(WebRemote(place.url))
    require_extra(place.scheme, f"a remote at {place.scheme}://")
    if place.scheme == "sftp":
        from featcache.remotes.sftp import SftpRemote

        return bounded(SftpRemote(place))
    from featcache.remotes.objects import ObjectRemote, bucket_of

    return bounded(ObjectRemote(bucket_of(place), place))
