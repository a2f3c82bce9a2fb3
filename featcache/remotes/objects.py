"""Remotes in buckets: S3 and what speaks it, Google Cloud Storage, Azure."""

from __future__ import annotations

import configparser
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from featcache.core.errors import (
    FeatcacheError,
    RemoteAccessError,
    RemoteDroppedError,
    RemoteError,
    RemoteNotFoundError,
)
from featcache.core.extras import require_extra
from featcache.core.files import user_path
from featcache.remotes.contract import Block, Item
from featcache.remotes.gate import way_to
from featcache.remotes.urls import Place, open_remote, refuse_endpoint

_WHOLE_BYTES = 64 << 20
"""What is larger is sent in parts."""
_PART_BYTES = 16 << 20
_STREAM_BYTES = 64 << 10
"""So that a slow line is told from one that is dead."""
_MAX_OBJECTS = 1_000_000
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
_SILENT_S = 60
_BUSY = ("SlowDown", "RequestLimitExceeded", "TooManyRequests", "ServerBusy")
_SIGNED_IN = ("sso_session", "sso_start_url", "role_arn", "credential_process", "web_identity_token_file")
"""Settings of an AWS profile whose keys are given out when it signs in."""
_AWS_FILES = ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config")


def bucket_of(place: Place) -> Any:
    """obstore's store for a place, with the credentials of the environment or of ~/.aws."""
    settings = {**_aws_settings(), **place.options} if place.scheme == "s3" else {}
    signs_in = settings.pop("profile", "")
    if "endpoint" in settings and "endpoint" not in place.options:
        refuse_endpoint(settings["endpoint"], "AWS_ENDPOINT_URL or ~/.aws/config")
    options: dict[str, Any] = {
        "prefix": place.path or None,
        "client_options": {
            "connect_timeout": timedelta(seconds=10),
            "read_timeout": timedelta(seconds=_SILENT_S),
            "timeout": timedelta(hours=2),  # of a whole object on a slow line
            "allow_http": settings.get("endpoint", "").startswith("http://"),
            **_certificates(),
            **_one_way(place, settings, with_token=bool(signs_in)),
        },
        "retry_config": _RETRIES,
    }
    if place.scheme == "gs":
        return GCSStore(place.host, **options)
    if place.scheme == "az":
        return AzureStore(place.host, **options)
    # Without a checksum, servers were seen to store what a bad line had changed: the signature does not cover the body.
    options.update(settings, checksum_algorithm="SHA256")
    if signs_in:
        options["credential_provider"] = _provider(signs_in)
    return S3Store(place.host, **options)


def _provider(profile: str) -> Any:
    """Gives out the keys of an AWS profile that signs in: by a role, by single sign-on, or by a program."""
    require_extra("aws", f"the AWS profile {profile!r:.80}, which signs in for its keys,")
    from boto3 import Session
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        provider = Boto3CredentialProvider(Session(profile_name=profile))
        provider()
    except (BotoCoreError, ClientError, ValueError) as error:
        raise RemoteAccessError(
            f"the AWS profile {profile!r:.80} gives no keys: {error!s:.300}",
            "Sign in to it again, as with 'aws sso login'",
        ) from error
    return provider


def _one_way(place: Place, settings: Mapping[str, str], *, with_token: bool) -> dict[str, Any]:
    """With a session token: the way to this server alone. Where a proxy leads to it, that decides where it leads."""
    token = with_token or settings.get("session_token") or os.environ.get("AWS_SESSION_TOKEN")
    endpoint = settings.get("endpoint", "")
    parts = urlsplit(endpoint or "https://s3.amazonaws.com")
    proxied = parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")
    if place.scheme != "s3" or not token or proxied:
        return {}
    return {"proxy_url": way_to(endpoint)}


def _endpoint() -> str:
    return (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or os.environ.get("AWS_ENDPOINT")
        or ""
    )


def _certificates() -> dict[str, Any]:
    """A certificate authority of the house, named as other tools take it."""
    file = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    try:
        return {"root_certificate": Path(file).read_bytes()} if file else {}
    except OSError as error:
        raise RemoteError(f"{file}: the certificates cannot be read: {error.strerror}") from error


def _aws_settings() -> dict[str, str]:
    """What ~/.aws says and the environment does not: obstore reads the latter alone.

    "profile" is its name where it has no keys of its own, but signs in for them.
    """
    found: dict[str, str] = {}
    if endpoint := _endpoint():
        found["endpoint"] = endpoint
    profile = os.environ.get("AWS_PROFILE", "default")
    if "AWS_ACCESS_KEY_ID" in os.environ and "AWS_PROFILE" not in os.environ:
        return found
    names = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
        "region": "region",
        "endpoint_url": "endpoint",
    }
    signs_in = False
    for variable, usual in _AWS_FILES:
        parser = configparser.RawConfigParser()
        file = user_path(os.environ.get(variable, usual))
        try:
            parser.read(file or [], encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:  # whose messages quote lines, and so secrets
            raise RemoteAccessError(
                f"{usual}: cannot be read{_line_of(error)}: expected [PROFILE] and NAME = VALUE"
            ) from None
        for section in (profile, f"profile {profile}"):
            if parser.has_section(section):
                values = dict(parser.items(section))
                signs_in |= any(name in values for name in _SIGNED_IN)
                found = {**{name: values[key] for key, name in names.items() if key in values}, **found}
    return {**found, "profile": profile} if signs_in and "access_key_id" not in found else found


def _line_of(error: Exception) -> str:
    """Where a file was found to be wrong, as far as that is known."""
    places = getattr(error, "errors", None) or [(getattr(error, "lineno", None), "")]
    number = places[0][0]
    return f", line {number}" if number else ""


class ObjectRemote:
    """See `featcache.remotes.contract.Remote`."""

    ranges = True
    writable = True
    shared = True

    def __init__(self, bucket: Any, place: Place) -> None:
        self.url = place.url.partition("?")[0].rstrip("/")
        self._bucket = bucket
        self._place = place

    def __reduce__(self) -> Any:
        """In another process it is opened anew: no credentials travel."""
        return open_remote, (self._place.url,)

    def folders(self, folder: str) -> list[str]:
        """As of `Remote`."""
        with self._explaining(folder):
            found = obstore.list_with_delimiter(self._bucket, f"{folder}/")["common_prefixes"]
        if not found:
            self._refuse_errors_as_answers(folder)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def list(self, folder: str) -> list[Item]:
        """As of `Remote`."""
        with self._explaining(folder):
            found = list(islice(chain.from_iterable(obstore.list(self._bucket, f"{folder}/")), _MAX_OBJECTS + 1))
        if not found:
            self._refuse_errors_as_answers(folder)
        return [Item(item["path"], item["size"], _md5(item["e_tag"])) for item in found]

    def size(self, path: str) -> int:
        """As of `Remote`."""
        with self._explaining(path):
            return obstore.head(self._bucket, path)["size"]

    @contextmanager
    def open(self, path: str, start: int = 0, *, stop: int | None = None) -> Iterator[Iterator[Block]]:
        """As of `Remote`."""
        options: dict[str, Any] = {}
        if stop is not None:
            options["range"] = (start, stop)
        elif start:
            options["range"] = {"offset": start}
        with self._explaining(path):
            found = obstore.get(self._bucket, path, options=options)  # type: ignore[arg-type]
            if options and found.range[0] != start:
                raise RemoteError(f"{self.url}/{path}: sent other bytes than were asked for")
            yield (memoryview(block) for block in found.stream(min_chunk_size=_STREAM_BYTES))  # a copy costs a tenth

    def put(self, path: str, data: bytes | Path) -> None:
        """As of `Remote`; what is large goes in parts."""
        with self._explaining(path):
            size = len(data) if isinstance(data, bytes) else data.stat().st_size
            obstore.put(self._bucket, path, data, use_multipart=size > _WHOLE_BYTES, chunk_size=_PART_BYTES)

    def create(self, path: str, data: bytes) -> bool:
        """As of `Remote`: a PUT with If-None-Match."""
        with self._explaining(path):
            try:
                obstore.put(self._bucket, path, data, mode="create")
            except exceptions.AlreadyExistsError:
                return False
            return True

    def remove(self, path: str) -> None:
        """As of `Remote`."""
        with self._explaining(path):
            try:
                obstore.delete(self._bucket, path)
            except FileNotFoundError:
                return

    def _refuse_errors_as_answers(self, folder: str) -> None:
        """Raise RemoteError where a server says of all that it is well: its errors would look like an empty list."""
        path = f"{folder}/{uuid.uuid4().hex}"
        with self._explaining(path):
            try:
                obstore.head(self._bucket, path)
            except (FileNotFoundError, exceptions.PermissionDeniedError):
                return
        raise RemoteDroppedError(f"{self.url}: has an answer for every name, so what it lists means nothing: try later")

    @contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        where = f"{self.url}/{path}"
        try:
            yield
        except FeatcacheError:
            raise
        except FileNotFoundError as error:
            said = str(error)
            if "NoSuchBucket" in said:
                raise RemoteError(
                    f"{self.url}: there is no bucket {self._place.host}: make it, or mend the URL"
                ) from error
            raise RemoteNotFoundError(f"{where}: is not there") from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise _translated(error, where, self._place) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # which is no Exception, and of no module
                raise
            raise RemoteError(f"{where}: its library failed: {str(error)[:300]}: is the address right?") from error


def _translated(error: Exception, where: str, place: Place) -> RemoteError:
    """What obstore says, in a line, with what to do."""
    short, _, debug = str(error).partition("Debug source")
    said = " ".join(short.split())
    code = said.partition("<Code>")[2].partition("</Code>")[0]
    if code == "RequestTimeTooSkewed":
        return RemoteError(f"{where}: the clock of this machine is further off than the server allows: set it")
    if code == "NotImplemented":
        return RemoteError(f"{where}: the server cannot do what was asked of it ({code})")
    if code in _BUSY:
        return RemoteDroppedError(f"{where}: the server asks for fewer requests ({code}): try again later")
    denied = isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
    if denied or "403 Forbidden" in said or "401 Unauthorized" in said:
        return RemoteAccessError(
            f"{where}: the credentials at hand do not suffice{f' ({code})' if code else ''}: {_usual(place.scheme)}"
        )
    if "NoSuchBucket" in said:
        return RemoteError(f"{where}: there is no bucket {place.host}: make it, or mend the URL")
    if "metadata" in said or "credential" in said.lower():
        return RemoteAccessError(f"{where}: no credentials at hand: {_usual(place.scheme)}")
    reason = _cause(debug) or said.partition(" - ")[2] or said
    return RemoteDroppedError(f"{where}: {reason[:300]}: what arrived whole is kept; try again")


def _cause(debug: str) -> str:
    """What lies at the bottom of an error of the line, by what the library says of itself; "" where it says nothing."""
    if certificate := re.search(r"InvalidCertificate\(\s*(?:Other\(\s*OtherError\(\s*)?(\w+)", debug):
        named = "name the authority's certificate in AWS_CA_BUNDLE"
        return f"the server's certificate is not accepted ({certificate[1]}): {named}"
    reasons = re.findall(r'(?:message|error): "((?:[^"\\]|\\.)*)"', debug) or re.findall(r'\(\s*"([^"]+)"', debug)
    at = re.search(r'"tcp connect error",\s*([0-9a-fA-F.:\[\]]+),', debug)
    return reasons[-1] + (f" by {at[1]}" if at else "") if reasons else ""


def _usual(scheme: str) -> str:
    return {
        "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for one of ~/.aws/credentials",
        "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account",
        "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    }[scheme]


def _md5(tag: str | None) -> str:
    """The MD5 that an ETag is where an object was sent as a whole; "" for others."""
    bare = (tag or "").strip('"')
    return bare if len(bare) == 32 and set(bare) <= set("0123456789abcdef") else ""
