"""Whatever goes wrong on the way, or with us: never a wrong byte, never half a cache, and the next try goes on."""

from __future__ import annotations

import http.server
import os
import random
import shutil
import signal
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import contents
from faults import Shops, small_disk
from proxy import proxy_to
from servers import S3
from test_share import only_in
from test_store_contract import dataset, fake_features, make_cache, small_shards
from workshop import Workshop

from featcache.core.errors import CacheWriteError, FeatcacheError, RemoteDroppedError, RemoteError
from featcache.remotes.packs import PackWriter
from featcache.remotes.urls import open_remote
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import find, latest, listing
from featcache.sharing.options import Part
from featcache.sharing.receive import pull
from featcache.sharing.send import push
from featcache.sharing.subset import pull_part
from featcache.store._verify import verify
from featcache.store.cache import Cache, open_cache
from featcache.store.catalog import list_caches

IMAGES = dataset(35)
X = fake_features(70, (3, 4, 5))
MOMENTS = 16
WRONG = 100


@pytest.fixture(scope="module")
def cache(quick: Path) -> Cache:
    """A cache of five shards of four chunks each; not to be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 16)
        monkeypatch.setattr("featcache.store.layout._CHUNK_BYTES", {"zarr": 4 * 60 * 4})
        return make_cache(quick / "faults", IMAGES, X, 2)


@pytest.fixture
def keys(s3: S3, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)


# On the way


@pytest.mark.usefixtures("keys")
def test_a_hundred_faults_on_the_way_let_no_wrong_byte_in(
    s3: S3, cache: Cache, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.remotes.objects._RETRIES", {"max_retries": 0})
    monkeypatch.setattr("featcache.remotes.objects._SILENT_S", 0.2)
    expected, said = contents(cache.folder), set()
    with proxy_to(s3.port, silence_s=0.3) as proxy:
        for trial in range(200):
            if sum(proxy.faults.values()) >= WRONG:
                break
            prefix = f"{place.name}/{trial}"
            there = open_remote(s3.url(prefix, f"http://127.0.0.1:{proxy.port}"))
            said |= until_done(lambda there=there: push(there, bundle_of_cache(cache.folder)))
            said |= until_done(lambda there=there, trial=trial: pull(there, find(there, ""), parent=place / f"{trial}"))
            pulled = place / f"{trial}" / cache.name
            assert contents(pulled) == expected
            straight = open_remote(s3.url(prefix))
            assert contents(pull(straight, find(straight, ""), parent=place / f"{trial}-again").folder) == expected
    assert sum(proxy.faults.values()) >= WRONG, proxy.faults
    assert min(proxy.faults.values()) > 0, proxy.faults
    assert said <= {"RemoteDroppedError", "RemoteError", "RemoteAccessError", "DamagedError", "RemoteNotFoundError"}


def until_done(action: Any) -> set[str]:
    """Do it again until it is done; every error is one of ours. Returns their kinds."""
    said = set()
    for _ in range(100):
        try:
            action()
            return said
        except FeatcacheError as error:
            assert str(error)
            said.add(type(error).__name__)
    raise AssertionError(said)


class Liar(http.server.BaseHTTPRequestHandler):
    """A web server that says one thing about a shard and does another. `lie` says which."""

    lie = ""
    root = Path()

    def do_GET(self) -> None:
        file = self.root / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        begin, _, end = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        part = data[int(begin) : int(end) + 1 if end else None] if begin else data
        if "/c/" in self.path:
            self._lie(data, part, bool(begin), int(begin or 0))
        else:
            self._send(part, 206 if begin else 200, len(part), int(begin or 0), len(data))

    def _send(self, body: bytes, code: int, length: int, begin: int, whole: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        if code == 206:
            self.send_header("Content-Range", f"bytes {begin}-{begin + length - 1}/{whole}")
        if self.lie == "encoded" and "/c/" in self.path:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body)

    def _lie(self, data: bytes, part: bytes, asked: bool, begin: int) -> None:
        code = 206 if asked else 200
        if self.lie == "too short":
            self._send(part[: len(part) // 2], code, len(part), begin, len(data))
        elif self.lie == "too long":
            self._send(part + b"x" * 99, code, len(part) + 99, begin, len(data))
        elif self.lie == "endless":
            self.send_response(code)
            self.end_headers()
            for _ in range(200):
                self.wfile.write(b"x" * 100_000)
        elif self.lie == "other range":
            self._send(data[: len(part)], code, len(part), begin, len(data))
        elif self.lie == "no range":
            self._send(data, 200, len(data), 0, len(data))
        else:
            self._send(part, code, len(part), begin, len(data))

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def lying(root: Path, lie: str) -> Iterator[str]:
    handler = type("Handler", (Liar,), {"lie": lie, "root": root})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("lie", ["too short", "too long", "endless", "other range", "encoded"])
def test_a_server_that_lies_is_refused_and_the_rest_is_kept(cache: Cache, place: Path, home: Path, lie: str) -> None:
    push(open_remote(str(place / "r")), bundle_of_cache(cache.folder))
    (place / "b").mkdir()
    for part in (None, Part(images=(IMAGES.images[5].path,))):
        with lying(place / "r", lie) as url:
            store = open_remote(url)
            if part is not None and lie in ("other range", "too long"):
                with pytest.raises(RemoteError):
                    pull_part(store, find(store, cache.name), parent=place / "b", part=part)
            elif lie != "other range":
                with pytest.raises(RemoteError):
                    pull(store, find(store, cache.name), parent=place / "b")
        assert all(name.startswith(".") for name in only_in(place / "b"))
        with lying(place / "r", "") as url:
            store = open_remote(url)
            done = pull(store, find(store, cache.name), parent=place / "b")
            assert contents(done.folder) == contents(cache.folder)
        shutil.rmtree(done.folder)


def test_a_server_without_ranges_gives_whole_shards(cache: Cache, place: Path, home: Path) -> None:
    push(open_remote(str(place / "r")), bundle_of_cache(cache.folder))
    with lying(place / "r", "no range") as url:
        store = open_remote(url)
        part = pull_part(store, find(store, cache.name), parent=place / "b", part=Part(images=(IMAGES.images[5].path,)))
        assert verify(part.folder).sound


def test_what_came_before_a_server_without_ranges_is_no_hindrance(cache: Cache, place: Path, home: Path) -> None:
    push(open_remote(str(place / "r")), bundle_of_cache(cache.folder))
    with lying(place / "r", "too short") as url, pytest.raises(RemoteDroppedError):
        pull(open_remote(url), find(open_remote(url), cache.name), parent=place / "b")
    assert [file for file in (place / "b").rglob(".0.partial") if file.stat().st_size]
    with lying(place / "r", "no range") as url:
        store = open_remote(url)
        assert contents(pull(store, find(store, cache.name), parent=place / "b").folder) == contents(cache.folder)


# With us


@contextmanager
def full_disk(folder: Path, size: str) -> Iterator[Path]:
    try:
        with small_disk(folder, f"size={size}") as disk:
            yield disk
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")


def test_a_disk_that_fills_while_pulling(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 16)
    large = make_cache(place / "large", IMAGES, fake_features(70, (30, 40, 5)), 2)
    store = open_remote(str(place / "r"))
    push(store, bundle_of_cache(large.folder))
    with full_disk(place / "disk", f"{large.bytes() // 2}") as disk:
        (disk / "b").mkdir()
        with pytest.raises(CacheWriteError, match=r"are needed, and .* are free. Make room, or pull a part"):
            pull(store, find(store, ""), parent=disk / "b")
        monkeypatch.setattr("featcache.sharing.receive._SPARE_BYTES", -(1 << 40))
        with pytest.raises(CacheWriteError, match="No space left on device"):
            pull(store, find(store, ""), parent=disk / "b")
        assert list_caches(disk / "b") == []
        kept = [file for file in (disk / "b").rglob("c/*/0/0/0") if file.is_file()]
        assert kept
        shutil.copytree(disk / "b", place / "b", symlinks=True)
    done = pull(store, find(store, ""), parent=place / "b")
    assert contents(done.folder) == contents(large.folder)
    assert done.fetched_bytes < large.bytes()
    assert only_in(place / "b") == [large.name]


def moments(count: int, seed: int, longest_s: float) -> list[float]:
    return [random.Random(seed + number).uniform(0, longest_s) for number in range(count)]


@pytest.mark.usefixtures("keys")
def test_a_push_to_s3_killed_at_any_moment_goes_on(shops: Shops, s3: S3, cache: Cache, place: Path) -> None:
    environment = {name: os.environ[name] for name in s3.environment()}
    killed = []

    def trial(shop: Workshop, numbered: tuple[int, float]) -> None:
        number, moment = numbered
        url = s3.url(f"{place.name}/push-{number}")
        ended = shop.run("push", cache.folder, url, die_after_s=moment, environment=environment)
        store = open_remote(url)
        killed.append(ended.code == -signal.SIGKILL)
        if latest(store, "cache", name=cache.name) is None:
            assert listing(store, "cache") == []
        push(store, bundle_of_cache(cache.folder))
        assert contents(pull(store, find(store, ""), parent=place / f"push-{number}").folder) == contents(cache.folder)

    shops.each(trial, list(enumerate(moments(MOMENTS, 0, 0.12))))
    assert any(killed), "too quick for these moments"


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("part", [False, True])
def test_a_pull_from_s3_killed_at_any_moment_goes_on(
    shops: Shops, s3: S3, cache: Cache, place: Path, part: bool
) -> None:
    environment = {name: os.environ[name] for name in s3.environment()}
    url = s3.url(f"{place.name}/pull")
    store = open_remote(url)
    push(store, bundle_of_cache(cache.folder))
    killed = []

    def trial(shop: Workshop, numbered: tuple[int, float]) -> None:
        number, moment = numbered
        parent = place / f"pull-{number}"
        parent.mkdir()
        ended = shop.run("pull", url, parent, part, die_after_s=moment, environment=environment)
        killed.append(ended.code == -signal.SIGKILL)
        for listed in list_caches(parent):
            assert listed.cache is not None
            assert verify(listed.folder).sound
        name = shop.run("pull", url, parent, part, environment=environment).returned["name"]
        assert verify(parent / name).sound
        if not part:
            assert contents(parent / name) == contents(cache.folder)
            assert only_in(parent) == [name]

    shops.each(trial, list(enumerate(moments(MOMENTS, 100, 0.15))))
    assert any(killed), "too quick for these moments"


@pytest.mark.parametrize("work", ["push", "pull"])
def test_killed_before_steps_of_writing(shops: Shops, cache: Cache, place: Path, work: str) -> None:
    arguments = [cache.folder, place / "traced"] if work == "push" else [place / "r", place / "traced"]
    push(open_remote(str(place / "r")), bundle_of_cache(cache.folder))
    (place / "traced").mkdir()
    shops.both[0].run(work, *arguments, fault=("traced", place / "steps"))
    n_steps = len((place / "steps").read_text().splitlines())
    assert n_steps > MOMENTS
    killed: list[bool] = []

    def trial(shop: Workshop, step: int) -> None:
        target = place / f"{work}-{step}"
        target.mkdir()
        mine = [cache.folder, target] if work == "push" else [place / "r", target]
        ended = shop.run(work, *mine, fault=("killed", step))
        assert ended.code in (0, -signal.SIGKILL), ended
        killed.append(ended.code != 0)
        store = open_remote(str(target))
        if work == "push":
            if listing(store, "cache"):
                assert contents(pull(store, find(store, ""), parent=place / f"early-{step}").folder) == contents(
                    cache.folder
                )
        else:
            assert all(listed.cache is not None for listed in list_caches(target))
        shop.run(work, *mine)
        folder = target / cache.name
        if work == "push":
            folder = pull(store, find(store, ""), parent=place / f"late-{step}").folder
        assert contents(folder) == contents(cache.folder)

    steps = sorted(random.Random(1).sample(range(n_steps), MOMENTS))
    shops.each(trial, steps)
    assert sum(killed) > MOMENTS * 0.7, (
        "threads that make one folder together take more steps or fewer, but not so many"
    )


# Packs


def test_a_pack_that_is_cut_or_changed_is_refused(cache: Cache, place: Path) -> None:
    file = place / "cells.zip"
    with PackWriter(file) as pack:
        push(pack, bundle_of_cache(cache.folder))
    store = open_remote(str(file))
    assert contents(pull(store, find(store, ""), parent=place / "whole").folder) == contents(cache.folder)
    data = file.read_bytes()
    generator = random.Random(0)
    for number in range(40):
        broken = bytearray(data)
        if number % 2:
            del broken[generator.randrange(len(data)) :]
        else:
            broken[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        file.write_bytes(broken)
        parent = place / f"{number}"
        parent.mkdir()
        try:
            again = open_remote(str(file))
            assert contents(pull(again, find(again, ""), parent=parent).folder) == contents(cache.folder)
        except RemoteError:
            assert all(name.startswith(".") for name in only_in(parent))


def test_zip_bombs_and_other_zips_are_refused(cache: Cache, place: Path) -> None:
    path = "caches/x/00000001.json"

    def made(name: str, **options: Any) -> Path:
        with zipfile.ZipFile(place / name, "w", **options) as pack:
            pack.writestr(path, b"0" * (50 << 20))
        return place / name

    for file, said in (
        (made("bomb.zip", compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (made("large.zip"), "is longer than"),
    ):
        with pytest.raises(RemoteError, match=said):
            find(open_remote(str(file)), "")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(place / "twice.zip", "w") as pack:
        pack.writestr(path, b"1")
        pack.writestr(path, b"2")
    with pytest.raises(RemoteError, match="stands there twice"):
        open_remote(str(place / "twice.zip"))
    (place / "none.zip").write_bytes(b"PK nothing")
    with pytest.raises(RemoteError, match="is no pack"):
        open_remote(str(place / "none.zip"))
    with pytest.raises(RemoteError, match="is not there"):
        open_remote(str(place / "missing.zip"))


def test_a_file_that_comes_and_goes_is_tried_again(cache: Cache, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_remote(str(place / "r"))
    push(store, bundle_of_cache(cache.folder))
    real, failed = store.open, []

    @contextmanager
    def flaky(path: str, start: int = 0, *, stop: int | None = None) -> Iterator[Any]:
        with real(path, start, stop=stop) as blocks:
            if path.endswith("0/0/0") and failed.count(path) < 2:
                failed.append(path)
                yield iter([next(blocks)[:100]])
            else:
                yield blocks

    monkeypatch.setattr(store, "open", flaky)
    assert open_cache(pull(store, find(store, ""), parent=place / "b").folder).name == cache.name
    assert len(failed) == 10
    failed.clear()
    monkeypatch.setattr("featcache.sharing.transfer._TRIES", 2)
    with pytest.raises(RemoteDroppedError, match=r"expected \d+ bytes, got"):
        pull(store, find(store, ""), parent=place / "c")
