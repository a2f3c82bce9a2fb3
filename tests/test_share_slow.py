"""Servers that trickle, never end, lie or send us elsewhere: every call ends, at the first interrupt too."""

from __future__ import annotations

import gc
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import obstore
import pytest
from conftest import FEATCACHE
from servers import S3
from test_store_contract import dataset, fake_features, make_cache, small_shards

from featcache.core import interrupts
from featcache.core.errors import RemoteDroppedError, RemoteError, UsageError
from featcache.remotes import bounded
from featcache.remotes.contract import StalledError, read
from featcache.remotes.gate import Gate
from featcache.remotes.urls import open_remote
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import find, latest, listing
from featcache.sharing.send import push
from featcache.sharing.transfer import at_once, patiently

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


ENDED = threading.Event()
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of threads that are left to themselves
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A web server that answers every request by a function. Yields its URL and what was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path} {dict(self.headers)}")
            with_body = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(with_body)
            try:
                answer(self)
            except OSError:
                return

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        ENDED.clear()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}", asked
        finally:
            ENDED.set()  # what trickles
            running.shutdown()
            until = time.monotonic() + 0.5
            while (
                any(thread.name == bounded.THREAD_NAME for thread in threading.enumerate()) and time.monotonic() < until
            ):
                time.sleep(0.01)
            gc.collect()  # what was left to itself is let go of here


def says(body: bytes, code: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers:
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body if request.command != "HEAD" else b"")

    return answer


def trickles(request: http.server.BaseHTTPRequestHandler) -> None:
    """A byte now and then, for ever."""
    request.send_response(200)
    request.send_header("Content-Length", str(1 << 30))
    request.end_headers()
    while not ENDED.is_set():
        request.wfile.write(b" ")
        request.wfile.flush()
        time.sleep(0.02)


def trickles_at_its_headers(request: http.server.BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not ENDED.is_set():
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SILENT_S", 0.3)
    monkeypatch.setattr(bounded, "CALL_S", 0.5)
    monkeypatch.setattr("featcache.sharing.transfer._PAUSE_S", 0.001)
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y"), ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "secret-token")


def remotes(url: str) -> list[str]:
    return [url, f"s3://lab/x?endpoint={url}"]


@pytest.mark.parametrize("answer", [trickles, trickles_at_its_headers])
@pytest.mark.parametrize("kind", [0, 1])
def test_a_server_that_trickles_is_given_up(answer: Answer, kind: int) -> None:
    with server(answer) as (url, _):
        store = open_remote(remotes(url)[kind])
        calls: list[Callable[[], object]] = [
            lambda: read(store, "caches/x/00000001.json", most=1 << 31),
            lambda: store.folders("caches"),
        ]
        if answer is trickles_at_its_headers:
            calls.append(lambda: store.size("a"))
        for call in calls:
            started = time.monotonic()
            with pytest.raises(RemoteDroppedError):
                call()
            assert time.monotonic() - started < 3
        assert not interrupts._stops


def test_a_slow_line_is_no_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "60000")
        request.end_headers()
        for _ in range(60):
            request.wfile.write(b"x" * 1000)
            request.wfile.flush()
            time.sleep(0.01)

    monkeypatch.setattr(bounded, "_LEAST_BYTES", 2000)
    with server(slowly) as (url, _):
        assert len(read(open_remote(url), "a", most=1 << 20)) == 60_000


def test_all_threads_end_with_an_interrupt() -> None:
    with server(trickles) as (url, _):
        store, started = open_remote(url), time.monotonic()
        bounded_s = 0.2
        with pytest.raises((KeyboardInterrupt, StalledError)):
            at_once(
                lambda name: read(store, name, most=1 << 31),
                [str(number) for number in range(20)],
                stopped=lambda: time.monotonic() - started > bounded_s,
            )
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(("kind", "command"), [(1, ("ls", "--remote")), (0, ("pull",))])
def test_the_first_interrupt_ends_a_command(kind: int, command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "featcache.toml").write_text("")
    with server(trickles) as (url, asked):
        remote = remotes(url)[kind]
        name = f"{url}/tiny-00000000" if kind == 0 else "tiny-00000000"
        given = (remote,) if command[0] == "ls" else (name, *(("--remote", remote) if kind else ()))
        process = subprocess.Popen(
            [FEATCACHE, *command, *given], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 30
        while not asked and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, said = process.communicate(timeout=20)
        assert (process.returncode, "Traceback" in said) == (130, False), said
        assert time.monotonic() - started < 15
        assert "interrupted: finished work is kept" in said


@pytest.fixture(scope="module")
def pushed(quick: Path) -> Path:
    """A remote folder with one cache."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 16)
        cache = make_cache(quick / "streamed", dataset(35), fake_features(70, (3, 4, 5)), 2)
    push(open_remote(str(quick / "streamed-remote")), bundle_of_cache(cache.folder))
    return quick / "streamed-remote"


STREAMING = """
import featcache.heads.cost, featcache.heads.source
from featcache.cli import main
featcache.heads.source.fits = lambda n_bytes: False
featcache.heads.cost._read_s_a_row = lambda cache: 1.0  # reads all of so small a cache
main()
"""


@pytest.mark.parametrize("solver", ["gram", "primal"])
def test_the_first_interrupt_ends_a_training_whose_features_do_not_come(
    solver: str, pushed: Path, tmp_path: Path
) -> None:
    (tmp_path / "featcache.toml").write_text("")
    stuck = threading.Event()

    def shards_trickle(request: http.server.BaseHTTPRequestHandler) -> None:
        file = pushed / request.path.lstrip("/")
        if "/c/" in request.path:
            stuck.set()
            trickles(request)
        else:
            says(file.read_bytes() if file.is_file() else b"", 200 if file.is_file() else 404)(request)

    with server(shards_trickle) as (url, _):
        (name,) = (path.name for path in (pushed / "caches").iterdir())
        process = subprocess.Popen(
            [sys.executable, "-c", STREAMING, "fit-head", "--cache", f"{url}/{name}", "--solver", solver],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert stuck.wait(30), process.communicate(timeout=1)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, said = process.communicate(timeout=20)
        assert (process.returncode, "Traceback" in said) == (130, False), said
        assert time.monotonic() - started < 15
    assert not list((tmp_path / "cache").glob(".*.partial"))


def test_an_answer_that_never_ends_in_number() -> None:
    listed = json.dumps({"format": 1, "records": [f"caches/n{number}/00000001.json" for number in range(50)]})
    with server(says(listed.encode())) as (url, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded, "_MAX_NAMES", 20)
        with pytest.raises(RemoteError, match="lists more than 20 names: this is no featcache remote"):
            open_remote(url).list("caches")


# Sent elsewhere


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd", "gopher://x", "data:,x"])
def test_other_schemes_are_not_followed(target: str) -> None:
    with server(says(b"", 302, (("Location", target),))) as (url, _), pytest.raises(RemoteError):
        read(open_remote(url), "a", most=100)


def to(url: str) -> tuple[tuple[str, str], ...]:
    return (("Location", f"{url}/a"),)


def test_secrets_go_to_no_other_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login anna password secret-password\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with server(says(b"here")) as (other, told), server(lambda one: says(b"", 307, to(other))(one)) as (url, asked):
        assert read(open_remote(url), "a", most=100) == b"here"
    assert "Authorization" in asked[0]
    assert "Authorization" not in told[0]
    assert "secret" not in told[0]


def test_a_session_token_goes_to_no_other_host() -> None:
    """The server sends us on, as a bucket of another region would, to whoever it likes."""
    with server(says(b"here")) as (other, told), server(lambda one: says(b"", 307, to(other))(one)) as (url, asked):
        store = open_remote(f"s3://lab/x?endpoint={url}")
        calls: list[Callable[[], object]] = [lambda: read(store, "a", most=100), lambda: store.put("a", b"secret")]
        for call in calls:
            with pytest.raises(RemoteError):
                call()
    assert "secret-token" in asked[0]
    assert told == []


def test_with_a_session_token_all_else_is_as_without() -> None:
    with server(says(b"here")) as (url, asked):
        store = open_remote(f"s3://lab/x?endpoint={url}")
        assert [read(store, "a b", most=100) for _ in range(3)] == [b"here"] * 3
    assert [line.split(" {")[0] for line in asked] == ["GET /lab/x/a%20b"] * 3
    assert "secret-token" in asked[0]


def test_of_amazon_only_its_own_hosts_are_reached() -> None:
    allows = Gate("").allows
    assert allows("lab.s3.eu-west-1.amazonaws.com", 443)
    assert not allows("amazonaws.com.evil.example", 443)
    assert not allows("evil-amazonaws.com", 443)
    assert not Gate("https://s3.lab").allows("s3.lab", 80)


# 200, with an error inside: buckets begin some answers before they know how it ends


ERROR = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>InternalError</Code>'
    b"<Message>We encountered an internal error. Please try again.</Message></Error>"
)
BEGUN = (
    b"<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>a</Key><UploadId>u</UploadId>"
    b"</InitiateMultipartUploadResult>"
)


def well_with_an_error_inside(request: http.server.BaseHTTPRequestHandler) -> None:
    says(BEGUN if request.path.endswith("uploads=") else ERROR, 200, (("ETag", '"0"'),))(request)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.remotes.objects._RETRIES", {"max_retries": 0})
    monkeypatch.setattr(bounded, "SILENT_S", 30.0)
    monkeypatch.setattr(bounded, "CALL_S", 30.0)


@pytest.mark.usefixtures("hasty")
def test_200_with_an_error_inside_is_an_error(pushed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    monkeypatch.setattr("featcache.remotes.objects._WHOLE_BYTES", 10)
    (folder,) = (path for path in pushed.with_name("streamed").iterdir() if path.is_dir())
    with server(well_with_an_error_inside) as (url, asked):
        store = open_remote(f"s3://lab/x?endpoint={url}")
        calls: dict[str, Callable[[], object]] = {
            "in parts": lambda: store.put("a", b"x" * 100),
            "remove": lambda: store.remove("a"),
            "list": lambda: store.list("caches"),
            "folders": lambda: store.folders("caches"),
            "listing": lambda: listing(store, "cache"),
            "push": lambda: push(store, bundle_of_cache(folder)),
        }
        for call in calls.values():
            with pytest.raises(RemoteError):
                call()
    assert any(line.startswith("POST /lab/x/a?uploadId=u") for line in asked), asked


@pytest.mark.usefixtures("hasty")
def test_a_push_of_which_one_object_was_taken_with_an_error_inside_is_none(
    pushed: Path, s3: S3, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway says 200 of the record, or of a file, that it then did not store."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    (folder,) = (path for path in pushed.with_name("streamed").iterdir() if path.is_dir())
    real = obstore.put
    for lost in ("recipe.json", "/c/", "chunks.json", "manifest.json", "00000001.json"):
        store = open_remote(s3.url(f"{place.name}/{lost}"))

        def put(bucket: Any, path: str, *args: Any, lost: str = lost, **options: Any) -> Any:
            return None if lost in path else real(bucket, path, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(obstore, "put", put)
            with pytest.raises(RemoteDroppedError, match=r"push again"):
                push(store, bundle_of_cache(folder))
        assert listing(store, "cache") == []


# What a server that is no remote says, and addresses that are none


def test_a_server_that_answers_everything_with_a_page() -> None:
    page = b"<!doctype html><html>log in, please</html>"
    with server(says(page)) as (url, asked):
        for call in (lambda: latest(open_remote(url), "cache", name="x"), lambda: find(open_remote(url), "x")):
            with pytest.raises(RemoteError, match="answers every name with a page: this is no featcache remote"):
                call()
        assert len(asked) < 8
        with pytest.raises(RemoteError, match="this is no featcache remote"):
            listing(open_remote(url), "cache")


def test_a_server_that_asks_for_a_pause_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr("featcache.sharing.transfer.time", SimpleNamespace(sleep=paused.append))

    def busy(request: http.server.BaseHTTPRequestHandler) -> None:
        first = len(paused) == 0
        says(b"" if first else b"here", 429 if first else 200, (("Retry-After", "7"),))(request)

    with server(busy) as (url, _):
        assert patiently(lambda: read(open_remote(url), "a", most=100)) == b"here"
    assert paused == [7.0]
    with server(says(b"", 503, (("Retry-After", "86400"),))) as (url, asked):
        with pytest.raises(RemoteDroppedError, match="asks to come back in 86400 s"):
            patiently(lambda: read(open_remote(url), "a", most=100))
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://lab/x?endpoint=localhost:9000", r"endpoint 'localhost:9000': expected http\(s\)://HOST"),
        ("s3://lab/x?endpoint=ftp://h", "expected http"),
        ("s3://lab/x?endpoint=", "expected http"),
        ("https://h/a#b", "'#'.*write %23"),
        ("https://h/a?b", r"'\?'.*write %3F"),
        ("s3://lab/x?prefix=y", "prefix"),
        ("https://anna:pw@h/a", "credentials"),
        ("https://h/a?X-Amz-Signature=pw", "credentials"),
    ],
)
def test_addresses_that_are_none_say_why(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        open_remote(url)
    assert "pw" not in str(caught.value)


def test_an_endpoint_of_the_environment_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio.lab:9000")
    with pytest.raises(UsageError, match=r"AWS_ENDPOINT_URL or ~/.aws/config.*expected http"):
        open_remote("s3://lab/x")


def test_empty_parts_of_a_prefix_make_no_difference() -> None:
    with server(says(b"here")) as (url, asked):
        assert read(open_remote(f"s3://lab//a///b/?endpoint={url}"), "c", most=100) == b"here"
    assert asked[0].startswith("GET /lab/a/b/c ")


def test_why_a_connection_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SILENT_S", 30.0)
    for url in ("s3://lab/x?endpoint=http://127.0.0.1:1", "http://127.0.0.1:1"):
        with pytest.raises(RemoteDroppedError, match="Connection refused"):
            read(open_remote(url), "a", most=100)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:2")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:2")
    with pytest.raises(RemoteDroppedError, match=r"by the proxy http://127\.0\.0\.1:2"):
        read(open_remote("http://lab.invalid"), "a", most=100)


def test_what_a_library_panics_at_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException): ...

    def panic(*_: object, **__: object) -> None:
        raise PanicException("called unwrap")

    monkeypatch.setattr("obstore.head", panic)
    with pytest.raises(RemoteError, match="its library failed: called unwrap"):
        open_remote("s3://lab/x?endpoint=http://127.0.0.1:1").size("a")
