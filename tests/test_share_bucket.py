"""Caches that are made in a bucket: the bits of a local one, by whichever machines, and whoever of them is killed."""

from __future__ import annotations

import http.client
import http.server
import itertools
import json
import random
import shutil
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from faults import RECIPE, ROWS_PER_SHARD, CheapEngine, Shops, contents, dataset_of, lines, only_cache
from servers import S3
from test_share_slow import says, server
from workshop import Worker

import featcache as fc
from featcache.core.errors import (
    ArgumentsError,
    CacheError,
    FeatcacheError,
    RemoteAccessError,
    RemoteDroppedError,
    RemoteError,
    UsageError,
)
from featcache.core.interrupts import ending_with
from featcache.core.progress import SILENT
from featcache.extraction.one_pass import Target, extract
from featcache.extraction.rows import rows_of
from featcache.remotes import patient
from featcache.remotes.contract import Remote, read
from featcache.remotes.urls import open_remote
from featcache.sharing import remote_leases, remote_writer
from featcache.sharing._remote_status import status_on
from featcache.sharing.catalog import find, latest
from featcache.sharing.receive import pull
from featcache.sharing.remote import find_removable
from featcache.sharing.remote_folder import open_folder, refuse_unfit
from featcache.sharing.remote_leases import RemoteLeases
from featcache.sharing.remote_writer import RemoteWriter

VIEWS = 12
ROWS = 12 * VIEWS
SHARDS = ROWS // ROWS_PER_SHARD
SOON_S = 30


@pytest.fixture(autouse=True)
def keys(s3: S3, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for is so for less."""
    monkeypatch.setattr(patient, "_PAUSE_S", 0.01)
    monkeypatch.setattr(patient, "_MOST_PAUSE_S", 0.05)
    monkeypatch.setattr("featcache.remotes.objects._RETRIES", {"max_retries": 0})
    for module in (remote_leases, remote_writer):
        monkeypatch.setattr(module, "_LOOK_S", 0.05)


@pytest.fixture(scope="module")
def local(shops: Shops, quick: Path, cells: Path) -> dict[str, Any]:
    """What a cache holds that one process made in a folder."""
    parent = quick / "local"
    assert shops.both[0].run("fill", parent, cells, "zarr", VIEWS).returned == {"computed": ROWS}
    return contents(only_cache(parent))


class Machines:
    """Machines that extract the same into one bucket: each a process that tells others by their signs of life alone."""

    def __init__(self, shops: Shops, s3: S3, place: Path, cells: Path) -> None:
        self.url, self._shops, self._place, self._cells = s3.url(f"{place.name}/x y"), shops, place, cells
        self._environment = s3.environment()
        self._logs: list[Path] = []

    def start(self, **options: Any) -> Worker:
        number = len(self._logs)
        self._logs.append(self._place / f"{number}.log")
        options = {"host": f"machine-{number}", "dead_after_s": 1.5, "pause_s": 0.05, **options}
        return self._shops.both[0].start(
            "fill",
            self._place / f"machine-{number}",
            self._cells,
            "zarr",
            VIEWS,
            log=self._logs[-1],
            url=self.url,
            environment=self._environment,
            **options,
        )

    def computed(self) -> Counter[str]:
        return Counter(row for log in self._logs for row in lines(log))

    def until(self, happened: Callable[[], bool]) -> None:
        end = time.monotonic() + SOON_S
        while not happened():
            assert time.monotonic() < end
            time.sleep(0.01)

    def shards(self) -> int:
        """Shards that the journal says are there."""
        return sum(
            item.path.endswith(".json") and "/shards/" in item.path for item in open_remote(self.url).list("caches")
        )

    def pulled(self) -> dict[str, Any]:
        return pulled(self.url, self._place / "pulled")

    def left(self) -> list[str]:
        """What is there besides the finished cache, and left here."""
        there = [item.path for item in open_remote(self.url).list("caches") if "/work/" in item.path]
        return [*there, *(path.name for parent in self._place.glob("machine-*") for path in parent.iterdir())]


def pulled(url: str, parent: Path) -> dict[str, Any]:
    store = open_remote(url)
    parent.mkdir(exist_ok=True)
    return contents(pull(store, find(store, ""), parent=parent).folder)


@pytest.fixture
def machines(shops: Shops, s3: S3, place: Path, cells: Path) -> Machines:
    return Machines(shops, s3, place, cells)


# Machines


def test_two_machines_one_killed_in_the_middle(machines: Machines, local: dict[str, Any]) -> None:
    """Their clocks differ by up to a year, and jump."""
    first, second = (machines.start(fault=["clock", seed], pause_s=0.2) for seed in (1, 2))
    machines.until(lambda: machines.shards() >= SHARDS // 3)
    first.send(signal.SIGKILL)
    assert second.wait(SOON_S).returned["computed"] > 0
    assert first.wait().code == -signal.SIGKILL
    assert machines.pulled() == local
    assert len(machines.computed()) == ROWS
    assert machines.computed().total() - ROWS <= 8 * ROWS_PER_SHARD
    assert [path for path in machines.left() if "machine" not in path][:1] == [
        f"caches/{name_of(local)}/extracted-{local['manifest.json']['digest'][:16]}/work/shards/finished"
    ]


def name_of(found: dict[str, Any]) -> str:
    return str(found["manifest.json"]["name"])


def test_three_machines_share_the_rows(machines: Machines, local: dict[str, Any]) -> None:
    computed = [worker.wait(SOON_S).returned["computed"] for worker in [machines.start(pause_s=0.3) for _ in range(3)]]
    assert sum(computed) == machines.computed().total() == ROWS
    assert sum(rows > 0 for rows in computed) >= 2
    assert machines.pulled() == local
    assert len(machines.left()) == 1


@pytest.mark.parametrize("at", [0.0, 0.3, 0.6])
def test_a_machine_that_is_killed_goes_on_when_it_is_started_again(
    machines: Machines, local: dict[str, Any], at: float
) -> None:
    options = {"host": None, "dead_after_s": None}  # one machine: it sees that its process has ended
    killed = machines.start(**options)
    machines.until(lambda: machines.shards() >= at * SHARDS)
    killed.send(signal.SIGKILL)
    killed.wait()
    there = machines.shards()
    again = machines.start(**options).wait(SOON_S).returned["computed"]
    assert ROWS - (there + 1) * ROWS_PER_SHARD <= again <= ROWS - there * ROWS_PER_SHARD
    assert machines.pulled() == local


def test_killed_at_any_moment(machines: Machines, shops: Shops, local: dict[str, Any]) -> None:
    """Also between a shard and its line in the journal, and while the rest is written."""
    for number in range(12):
        worker = machines.start(host=None, dead_after_s=None, pause_s=0.0)
        if worker.ended(0.05 + 0.04 * number):
            break
        worker.send(signal.SIGKILL)
        worker.wait()
    machines.start(host=None, dead_after_s=None).wait(SOON_S)
    assert machines.pulled() == local


def test_one_that_slept_for_long_changes_nothing(machines: Machines, local: dict[str, Any]) -> None:
    sleeper = machines.start()
    machines.until(lambda: machines.shards() >= 2)
    sleeper.send(signal.SIGSTOP)
    assert machines.start(pause_s=0.0).wait(SOON_S).code == 0
    before = machines.pulled()
    sleeper.send(signal.SIGCONT)
    assert sleeper.wait(SOON_S).code == 0
    assert machines.pulled() == before == local


# Leases


def leases_of(store: Remote, host: str, monkeypatch: pytest.MonkeyPatch) -> RemoteLeases:
    """Those of another machine, whose processes nobody sees from here."""
    with monkeypatch.context() as patch:
        patch.setattr("featcache.core.leases._process", lambda pid: {"host": host, "pid": pid, "started": ""})
        return RemoteLeases(store, "caches/x/work/leases")


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest, s3: S3, place: Path) -> Remote:
    return open_folder(s3.url(place.name) if request.param == "s3" else f"file://{place}/there")


@pytest.mark.usefixtures("quickly")
def test_of_many_one_gets_each_lease(store: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    several = [leases_of(store, f"machine-{number}", monkeypatch) for number in range(6)]
    won: list[tuple[str, int]] = []

    def claim(number: int) -> None:
        won.extend((name, number) for name in "abc" if several[number].claim(name))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in won) == ["a", "b", "c"]
    for one in several:
        one.close()
    assert store.list("caches") == []


@pytest.mark.usefixtures("quickly")
def test_a_sign_of_life_counts_and_no_clock(store: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("featcache.core.leases.time.monotonic", lambda: now[0])
    ours, theirs = leases_of(store, "here", monkeypatch), leases_of(store, "there", monkeypatch)
    try:
        assert theirs.claim("1")
        for _ in range(3):
            now[0] += 0.9 * remote_leases.DEAD_AFTER_S
            theirs._beats += 1
            theirs._write_beat()
            assert not ours.claim("1")
            assert ours.others() == ["1"]
        now[0] += 1.1 * remote_leases.DEAD_AFTER_S
        assert ours.claim("1")
        assert theirs.lost("1")
        assert not ours.lost("1")
        (holder,) = ours.holders()
        assert (holder.host, holder.name) == ("here", "1")
    finally:
        ours.close()
        theirs.close()


# What the bucket holds


def fill_from_here(
    url: str, place: Path, cells: Path, on_event: Callable[[str], object] = lambda _: None, **options: Any
) -> int:
    """Make the cache in this process. Returns the rows that were computed."""
    dataset = dataset_of(cells)
    rows = rows_of(dataset.images, [VIEWS] * len(dataset.images), recipe=RECIPE)
    shape = CheapEngine.feature_shape
    with RemoteWriter(open_folder(url, on_event), RECIPE, rows=rows, row_shape=shape, parent=place / "here") as writer:
        (counts,) = extract([Target(writer, CheapEngine)], dataset, **options).counts
        if not writer.missing:
            writer.finish(dataset, {"engine": "cheap"})
    return counts.computed


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.store.layout._MAX_ROWS_PER_SHARD", ROWS_PER_SHARD)


@pytest.fixture
def begun(s3: S3, place: Path, cells: Path, small: None, quickly: None) -> tuple[str, Remote, str]:
    """A cache of which three shards are there: URL, remote, root."""
    url = s3.url(place.name)
    assert fill_from_here(url, place, cells, most_shards=3) == 3 * ROWS_PER_SHARD
    store = open_remote(url)
    root = next(item.path for item in store.list("caches")).rpartition("/features.zarr/")[0]
    assert latest(store, "cache", name=root.split("/")[1]) is None
    return url, store, root


def shard(root: str, number: int) -> str:
    return f"{root}/features.zarr/c/{number}/0/0/0"


@pytest.mark.parametrize("what", ["lost", "cut short"])
def test_a_shard_that_is_gone_is_computed_again(
    begun: tuple[str, Remote, str], place: Path, cells: Path, local: dict[str, Any], what: str
) -> None:
    url, store, root = begun
    if what == "lost":
        store.remove(shard(root, 1))
    else:
        store.put(shard(root, 1), b"cut short")
    assert fill_from_here(url, place, cells) == ROWS - 2 * ROWS_PER_SHARD
    assert pulled(url, place / "pulled") == local


@pytest.mark.parametrize("there", ["ours", "damaged"])
def test_a_shard_that_nobody_has_noted(
    begun: tuple[str, Remote, str], place: Path, cells: Path, local: dict[str, Any], there: str
) -> None:
    """Its machine was killed in between: it is taken as it is, and replaced where it is none."""
    url, store, root = begun
    store.remove(f"{root}/work/shards/00000001.json")
    if there == "damaged":
        store.put(shard(root, 1), b"\0" * 5000)
    assert fill_from_here(url, place, cells) == ROWS - 2 * ROWS_PER_SHARD
    assert pulled(url, place / "pulled") == local


def test_other_features_of_the_same_recipe_are_not_mixed_in(
    begun: tuple[str, Remote, str], place: Path, cells: Path, small: None
) -> None:
    url, store, root = begun
    other = read(store, shard(root, 2), most=1 << 20)
    store.remove(f"{root}/work/shards/00000001.json")
    store.put(shard(root, 1), other)
    with pytest.raises(RemoteError, match="holds other features than this machine computes"):
        fill_from_here(url, place, cells)
    assert latest(store, "cache", name=root.split("/")[1]) is None


@pytest.mark.parametrize("name", ["recipe.json", "rows.parquet", "features.zarr/zarr.json"])
def test_what_it_began_with_is_damaged(begun: tuple[str, Remote, str], place: Path, cells: Path, name: str) -> None:
    url, store, root = begun
    data = bytearray(read(store, f"{root}/{name}", most=1 << 20))
    data[len(data) // 2] ^= 1
    store.put(f"{root}/{name}", bytes(data))
    with pytest.raises(FeatcacheError, match=r"damaged, or not of this cache.*featcache rm"):
        fill_from_here(url, place, cells)
    assert [item.path for item in store.list(f"{root}/work/leases")] == []
    assert list((place / "here").iterdir()) == []


def test_a_cache_that_was_removed_in_part(begun: tuple[str, Remote, str], place: Path, cells: Path) -> None:
    url, store, root = begun
    fill_from_here(url, place, cells)
    store.remove(f"caches/{root.split('/')[1]}/00000001.json")
    with pytest.raises(RemoteError, match=r"was removed in part.*featcache rm"):
        fill_from_here(url, place, cells)


# Servers that are busy, or not fit


@contextmanager
def in_front_of(s3: S3, refuses: Callable[[str, str], bool]) -> Iterator[str]:
    """A way to the S3 server that answers some requests, by method and path, with 503 SlowDown. Yields its endpoint."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if refuses(self.command, self.path):
                said = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
                self._answer(503, [], said)
                return
            there = http.client.HTTPConnection("127.0.0.1", s3.port, timeout=30)
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                there.putheader(name, value)
            there.endheaders(body)
            answer = there.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())
            there.close()

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815

        def _answer(self, code: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(code)
            kept = [(name, value) for name, value in headers if name.lower() not in ("transfer-encoding", "connection")]
            if self.command != "HEAD":
                kept = [(name, value) for name, value in kept if name.lower() != "content-length"]
                kept.append(("Content-Length", str(len(body))))
            for name, value in kept:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if self.command != "HEAD" else b"")

        def log_message(self, *_: Any) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.usefixtures("small", "quickly")
def test_a_bucket_that_throttles_is_asked_again_which_is_said(
    s3: S3, place: Path, cells: Path, local: dict[str, Any]
) -> None:
    chance, said = random.Random(0), []
    with in_front_of(s3, lambda method, _: method != "HEAD" and chance.random() < 0.3) as endpoint:
        assert fill_from_here(s3.url(place.name, endpoint), place, cells, said.append) == ROWS
    assert pulled(s3.url(place.name), place / "pulled") == local
    (text,) = said  # not for each of dozens of requests
    assert "the server asks for fewer requests (SlowDown)" in text
    assert "trying again, for 5 min at most" in text


@pytest.mark.usefixtures("small", "quickly")
def test_one_that_throttles_for_ever_is_given_up_and_what_is_there_stays(
    s3: S3, place: Path, cells: Path, local: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patient, "PATIENCE_S", 0.3)
    shards = itertools.count()
    with (
        in_front_of(s3, lambda method, path: "features.zarr/c/" in path and next(shards) >= 3) as endpoint,
        pytest.raises(RemoteDroppedError, match="asks for fewer requests"),
    ):
        fill_from_here(s3.url(place.name, endpoint), place, cells)
    again = fill_from_here(s3.url(place.name), place, cells)
    assert 0 < again < ROWS
    assert pulled(s3.url(place.name), place / "pulled") == local


def test_no_try_is_made_again_when_somebody_wants_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "is_stop_asked", lambda: True)
    with server(says(b"<Error><Code>SlowDown</Code></Error>", 503)) as (url, _):
        started = time.monotonic()
        with pytest.raises(RemoteDroppedError):
            open_folder(f"s3://lab/x?endpoint={url}").create("a", b"1")
        assert time.monotonic() - started < 10


def test_a_server_that_ignores_conditions_is_refused() -> None:
    with server(says(b"", headers=(("ETag", '"1"'),))) as (url, asked):
        with pytest.raises(RemoteError, match=r"ignores conditional writes \(If-None-Match\).*then push the cache"):
            refuse_unfit(f"s3://lab/x?endpoint={url}")
        assert [line.split()[0] for line in asked][:2] == ["PUT", "PUT"]


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("RequestTimeTooSkewed", 403, "the clock of this machine is further off than the server allows"),
        ("NotImplemented", 501, "the server cannot do what was asked"),
        ("InvalidAccessKeyId", 403, r"the credentials at hand do not suffice \(InvalidAccessKeyId\)"),
        ("NoSuchBucket", 404, "there is no bucket lab"),
    ],
)
@pytest.mark.usefixtures("quickly")
def test_what_a_server_refuses_is_said(code: str, status: int, said: str) -> None:
    with (
        server(says(f"<Error><Code>{code}</Code></Error>".encode(), status)) as (url, _),
        pytest.raises(RemoteError, match=said),
    ):
        refuse_unfit(f"s3://lab/x?endpoint={url}")


def test_credentials_that_are_missing_or_may_only_read(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for who, secret in (("reader", "reader-secret"), ("nobody", "wrong"), ("writer", "wrong")):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", who)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        with pytest.raises(RemoteAccessError, match="the credentials at hand do not suffice"):
            refuse_unfit(s3.url("x"))
    with pytest.raises(RemoteError, match=r"no bucket nobucket|do not suffice"):
        refuse_unfit(f"s3://nobucket/x?endpoint={s3.endpoint}")


def test_no_rows_are_no_cache(s3: S3, place: Path) -> None:
    with pytest.raises(CacheError, match="no cache of 0 rows"):
        RemoteWriter(open_folder(s3.url(place.name)), RECIPE, rows=[], row_shape=(4, 4, 3), parent=place / "here")
    assert list((place / "here").iterdir()) == []


def test_places_that_are_no_folders_of_caches(place: Path) -> None:
    with pytest.raises(UsageError, match="a pack is written as a whole"):
        refuse_unfit(f"file://{place}/cells.zip")
    with pytest.raises(RemoteError, match="can only be read"):
        refuse_unfit("https://lab.example/caches")


# Commands


@pytest.fixture
def project(s3: S3, tmp_path: Path) -> Path:
    """A project of generated cells whose caches are made in a bucket."""
    folder = tmp_path / "project"
    fc.init(into=folder, per_class=8, progress=SILENT)
    file = folder / "featcache.toml"
    text = file.read_text().replace('cache = "cache"', f'cache = "{s3.url(f"{uuid.uuid4().hex}/caches")}"')
    file.write_text(text)
    assert fc.open_project(folder).cache_url.startswith("s3://lab/")
    return folder


PIXELS = ("extract", "--model", "pixels", "--input-size", "16")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_command_takes_a_bucket_for_the_folder_of_caches(run: Run, project: Path, s3: S3) -> None:
    opened = fc.open_project(project)
    url = opened.cache_url
    (before,) = (run(*PIXELS, "--dry-run", "--json", cwd=project).value,)
    assert (before["state"], before["compute"]) == ("miss", 104)
    done = run(*PIXELS, "--json", cwd=project).value
    name = done["cache"]
    assert (done["computed"], done["path"]) == (104, f"{url}/{name}")
    assert run(*PIXELS, "--json", cwd=project).value["computed"] == 0
    assert run(*PIXELS, "--dry-run", "--json", cwd=project).value["state"] == "hit"
    (listed,) = run("ls", "--json", cwd=project).value
    assert (listed["name"], listed["record"]["about"]["rows"]) == (name, 104)
    assert run("info", "--json", cwd=project).value["name"] == name
    (standing,) = run("status", "--json", cwd=project).value
    assert (standing["done"], standing["finished"]) == (104, True)
    (sound,) = run("verify", "--json", cwd=project).value
    assert sound["sound"]
    trained = run("fit-head", "--epochs", "3", "--json", cwd=project).value
    assert trained["cache"] == name
    assert run("cross-validate", "--folds", "4", "--epochs", "2", "--cache", name[:8], "--json", cwd=project).code == 0
    image = next(project.glob("leukocytes/*/*.png"))
    assert run("predict", trained["run"], str(image), "--json", cwd=project).value
    assert run("evaluate", trained["run"], "--on", "leukocytes", "--json", cwd=project).code == 0
    for command in (
        ("convert", name, "--format", "hdf5"),
        ("diff", name, name),
        ("push", name, "--remote", "elsewhere.zip"),
    ):
        assert f"pull it first, with 'featcache pull {url}/{name}'" in run(*command, cwd=project).error
    assert list((project / "cache").glob("pixels-*")) == []
    assert [path.name for path in (project / "cache").glob(".*.partial")] == []
    assert run("gc", "--yes", "--json", cwd=project).code == 0
    assert "pull" in run("verify", name, "--repair", cwd=project).error
    assert run("pull", f"{url}/{name}", "--json", cwd=project).value["name"] == name
    local = project / "cache" / name
    assert run("verify", f"cache/{name}", "--json", cwd=project).value["sound"]
    assert fc.fit_head(opened, cache=name, epochs=3, progress=SILENT).fitted.reused
    shutil.rmtree(local)
    assert run("rm", name, "--yes", "--json", cwd=project).value["removed"]
    assert run("ls", "--json", cwd=project).value == []
    assert run(*PIXELS, "--json", cwd=project).value["computed"] == 104
    assert run("fit-head", "--epochs", "3", "--json", cwd=project).value["reused"]


def test_labels_of_now_are_trained_on(project: Path) -> None:
    opened = fc.open_project(project)
    cache = fc.extract(opened, "pixels", input_size_px=16, progress=SILENT)
    before = fc.fit_head(cache, epochs=1, progress=SILENT)
    assert before.folder.parent == opened.results_folder
    train = cache.rows[cache.rows["split"] == "train"]
    fc.relabel(opened, {train["path"].iloc[0]: "monocyte"})
    assert fc.fit_head(opened, epochs=1, progress=SILENT).name != before.name
    again = fc.extract(opened, "pixels", input_size_px=16, progress=SILENT)
    assert again.extracted.relabelled
    assert (again.rows["label"] == "monocyte").sum() > (cache.rows["label"] == "monocyte").sum()
    assert fc.pull(f"{opened.cache_url}/{again.name}", to=project / "pulled", progress=SILENT).name == cache.name
    assert fc.verify(project / "pulled" / cache.name).sound
    assert not fc.extract(opened, "pixels", input_size_px=16, progress=SILENT).extracted.relabelled


def test_rows_of_other_caches_there_are_copied(project: Path) -> None:
    opened = fc.open_project(project)
    fc.extract(opened, "pixels", input_size_px=16, progress=SILENT)
    more = fc.extract(opened, "pixels", input_size_px=16, views={"train": 5}, progress=SILENT)
    assert more.extracted.copied == 104
    assert more.extracted.computed == len(more.rows) - 104 > 0
    assert list(opened.cache_folder.glob(".donors*")) == []


def test_a_flipped_byte_in_the_bucket_is_found(run: Run, project: Path, s3: S3) -> None:
    opened = fc.open_project(project)
    name = fc.extract(opened, "pixels", input_size_px=16, progress=SILENT).name
    copy = fc.pull(f"{opened.cache_url}/{name}", to=project / "copy", progress=SILENT)
    store = open_remote(opened.cache_url)
    (path,) = [item.path for item in store.list("caches") if "/features.zarr/c/" in item.path]
    data = bytearray(read(store, path, most=1 << 24))
    data[100] ^= 1
    store.put(path, bytes(data))
    found = run("verify", "--json", cwd=project)
    assert found.code == 1
    (damaged,) = json.loads(found.out)
    assert [problem["file"] for problem in damaged["problems"]] == ["features.zarr/c/0/0/0/0"]
    with pytest.raises(FeatcacheError, match=r"SHA-256"):
        fc.pull(f"{opened.cache_url}/{name}", to=project / "damaged", progress=SILENT)
    with pytest.raises(FeatcacheError, match=r"are not what was pushed|not used"):
        fc.fit_head(opened, cache=name, epochs=1, progress=SILENT)
    fc.push(copy, opened.cache_url, check=True, progress=SILENT)
    assert run("verify", "--json", cwd=project).value[0]["sound"]


def test_a_folder_or_a_bucket_for_one_call(run: Run, project: Path, s3: S3, place: Path) -> None:
    url = s3.url(f"{place.name}/for once")
    done = run(*PIXELS, "--cache-folder", url, "--json", cwd=project).value
    assert done["path"] == f"{url}/{done['cache']}"
    trained = run("fit-head", "--cache", done["path"], "--epochs", "2", "--json", cwd=project).value
    assert trained["cache"] == done["cache"]
    here = run(*PIXELS, "--cache-folder", "elsewhere", "--json", cwd=project).value
    assert Path(here["path"]) == project / "elsewhere" / done["cache"]
    assert contents(project / "elsewhere" / done["cache"]) == pulled(url, place / "pulled")
    said = run(*PIXELS, "--cache-folder", url, "--format", "hdf5", cwd=project).error
    assert "takes caches in the format zarr" in said
    assert "--format zarr" in said
    assert "do not belong into a URL" in run(*PIXELS, "--cache-folder", "s3://a:b@lab/x", cwd=project).error
    with pytest.raises(ArgumentsError, match="push the cache"):
        fc.extract(str(project / "leukocytes"), "pixels", to=url, progress=SILENT)
    with pytest.raises(ArgumentsError, match="for images without a project"):
        fc.extract(fc.open_project(project), "pixels", to=url, progress=SILENT)


def test_workers_of_a_cluster_write_into_the_bucket(project: Path) -> None:
    opened = fc.open_project(project)
    cache = fc.extract(opened, "pixels", input_size_px=16, cluster="local:2", progress=SILENT)
    assert cache.extracted.computed == 104
    assert fc.extract(opened, "pixels", input_size_px=16, progress=SILENT).extracted.computed == 0


@pytest.mark.usefixtures("quickly")
def test_status_tells_who_is_at_work(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.sharing._remote_status.BEAT_S", 0.3)
    worker = machines.start(pause_s=0.3)
    machines.until(lambda: 1 <= machines.shards() < SHARDS - 3)
    (standing,) = status_on(machines.url)
    assert (standing.rows, standing.finished) == (ROWS, False)
    assert 0 < standing.done < ROWS
    (working,) = standing.workers
    assert (working.host, working.alive) == ("machine-0", True)
    store, name = open_remote(machines.url), standing.cache
    with pytest.raises(UsageError, match=r"process \d+ on machine-0 is making it"):
        find_removable(store, [name])
    worker.send(signal.SIGKILL)
    worker.wait()
    assert [found.name for found in find_removable(store, [name])] == [name]
    (standing,) = status_on(machines.url)
    assert [one.alive for one in standing.workers] == [False]


@pytest.mark.usefixtures("small", "quickly")
def test_asked_to_stop_it_finishes_the_shards_in_hand(s3: S3, place: Path, cells: Path, local: dict[str, Any]) -> None:
    url, asked = s3.url(place.name), threading.Event()
    with ending_with(asked.is_set):
        computed = fill_from_here(
            url, place, cells, on_rows=lambda rows: asked.set() if rows else None, stopped=asked.is_set
        )
    assert 0 < computed < ROWS
    assert computed % ROWS_PER_SHARD == 0
    assert fill_from_here(url, place, cells) == ROWS - computed
    assert pulled(url, place / "pulled") == local
