"""extract on several workers: the bits of one process, whoever is lost on the way, and no worker that is another."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_store_contract import feature_bytes

import featcache as fc
from featcache.core.errors import ArgumentsError, ClusterError
from featcache.core.progress import SILENT
from featcache.extraction import cluster, worker
from featcache.store.ledger import read as read_ledger

PIXELS: dict[str, Any] = {"input_size_px": 224, "progress": SILENT}
PATHS = (Path(fc.__file__).parents[1], Path(__file__).parent)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS))}
"""Of Dask's workers: they import this file, too."""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of generated cells, whose cache of pixels has several shards."""
    folder = tmp_path_factory.mktemp("cells")
    fc.init(into=folder, per_class=30, progress=SILENT)
    return folder


@pytest.fixture
def project(cells: Path, tmp_path: Path) -> Any:
    return fc.open_project(shutil.copytree(cells, tmp_path / "project"))


@pytest.fixture(scope="module")
def alone(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    folder = shutil.copytree(cells, tmp_path_factory.mktemp("alone") / "project")
    return feature_bytes(fc.extract(fc.open_project(folder), "pixels", **PIXELS).folder)


def test_two_processes_write_what_one_writes(project: Any, alone: dict[str, bytes]) -> None:
    cache = fc.extract(project, "pixels", cluster="local:2", **PIXELS)
    assert feature_bytes(cache.folder) == alone
    assert cache.extracted.computed == len(cache.rows)
    assert list(project.cache_folder.glob(".cluster-*")) == []
    (standing,) = fc.status(project)
    assert (standing.done, standing.finished, standing.workers) == (len(cache.rows), True, [])
    again = fc.extract(project, "pixels", cluster="local:2", **PIXELS)
    assert again.extracted.computed == 0


def test_a_network_gives_the_bits_of_one_process(project: Any) -> None:
    settings: dict[str, Any] = {"weights": "random", "input_size_px": 32, "pooling": "avg", "progress": SILENT}
    found = feature_bytes(fc.extract(project, "mobilenetv2", cluster="local:2", **settings).folder)
    shutil.rmtree(project.cache_folder)
    assert feature_bytes(fc.extract(project, "mobilenetv2", **settings).folder) == found


def children_of(pid: int) -> set[int]:
    """Processes that a process started, and those that these started."""
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found |= {int(entry.parent.name), *children_of(int(entry.parent.name))}
    return found


def working(cache_folder: Path, done: Any = lambda: False) -> int:
    """The process that is at work on a shard, as its lease says; 0 where there was none until the work was done."""
    while not done():
        for folder in cache_folder.glob("pixels-*"):
            for holder in worker_leases(folder):
                return holder
        time.sleep(0.005)
    return 0


def worker_leases(folder: Path) -> list[int]:
    from featcache.core.leases import holders

    return [one.pid for one in holders(folder / "leases") if one.name.isdecimal() and one.pid != os.getpid()]


def killing_one_at_work(project: Any) -> tuple[threading.Thread, list[int]]:
    """A thread that kills a worker as soon as it holds a shard, and the list that its process will be in."""
    killed: list[int] = []

    def kill() -> None:
        pid = working(project.cache_folder)
        killed.append(pid)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    return killer, killed


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_worker_that_is_killed_is_replaced(
    project: Any, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a shard when it is killed; nobody but itself loses anything."""
    monkeypatch.setattr(cluster, "work", slow_work)
    killer, killed = killing_one_at_work(project)
    cache = fc.extract(project, "pixels", cluster="local:2", **PIXELS)
    killer.join(10)
    assert killed[0] > 0
    assert killed[0] in children_of(os.getpid()) or not Path(f"/proc/{killed[0]}").is_dir()
    assert feature_bytes(cache.folder) == alone


def slow_work(job: worker.Job) -> worker.Done:
    """As `work`, a shard at a time, each of which takes a while."""
    from featcache.store.writer import CacheWriter

    write = CacheWriter.write

    def slowly(self: CacheWriter, shard: int, features: Any) -> None:
        time.sleep(0.5)
        write(self, shard, features)

    CacheWriter.write = slowly  # type: ignore[method-assign]
    try:
        return worker.work(replace(job, shards=1))
    finally:
        CacheWriter.write = write  # type: ignore[method-assign]


def job_of(project: Any, **changes: Any) -> worker.Job:
    """A job as the client would make it, but for its changes."""
    from featcache.backbones.network import NetworkSpec
    from featcache.extraction.options import ExtractOptions
    from featcache.extraction.plan import plan_extraction

    network, options = NetworkSpec("pixels", input_size_px=224), ExtractOptions()
    plans = plan_extraction(project, [network], options=options)
    token = project.cache_folder / ".cluster-test"
    token.parent.mkdir(exist_ok=True)
    token.touch()
    job = worker.Job(
        token=token,
        project=project,
        network=network,
        options=options,
        donors=(),
        digests=tuple(plan.digest for plan in plans),
        sample=cluster._sample(plans[0]),
        facts=worker.facts(),
    )
    return replace(job, **changes)


def test_a_worker_that_is_another_is_refused_and_the_differences_are_listed(project: Any, tmp_path: Path) -> None:
    job = job_of(project)
    assert worker.check(job).problem == ""
    facts = {**job.facts, "numpy": "1.0", "featcache": "9", "torch": "3"}
    with pytest.raises(ClusterError, match=r"the worker on .*: it would compute other features: ") as caught:
        cluster._refuse_others([worker.check(replace(job, facts=facts))])
    ours = job.facts["numpy"]
    assert f"numpy {ours} there, 1.0 here" in str(caught.value)
    assert f"featcache {job.facts['featcache']} there, 9 here" in str(caught.value)
    found = worker.check(replace(job, digests=("0" * 64,))).problem
    assert found.startswith("it would make another cache of these images: its weights")
    found = worker.check(replace(job, sample=(tmp_path / "a.png", tmp_path / "b.png"))).problem
    assert found == f"it does not see the images {tmp_path / 'a.png'}, {tmp_path / 'b.png'}"
    found = worker.check(replace(job, token=tmp_path / "elsewhere" / "token")).problem
    assert found == f"it does not see the folder of caches {tmp_path / 'elsewhere'}"
    assert worker.work(replace(job, digests=("0" * 64,))).problem
    job.token.unlink()


def test_what_is_no_cluster_is_refused(project: Any, tmp_path: Path) -> None:
    for address in ("local:0", "local:", "dask://host", "slurm", "dask://host:port", "http://host:80", "local:2 "):
        with pytest.raises(ClusterError, match="expected 'local:N', 'dask://HOST:PORT' or 'ray://HOST:PORT'"):
            fc.extract(project, "pixels", cluster=address, **PIXELS)
    assert not project.cache_folder.is_dir() or not list(project.cache_folder.glob("pixels-*"))
    with pytest.raises(ArgumentsError, match="`cluster` needs a project"):
        fc.extract(np.zeros((2, 8, 8, 3), np.uint8), "pixels", to=tmp_path / "c", cluster="local:2", progress=SILENT)


EXTRACT = ("-c", "from featcache.cli import main; main()", "extract", "--model", "pixels", "--input-size", "224")


def shards_of(project: Any) -> int:
    """Finished ones, so far."""
    return sum(len(read_ledger(file)) for file in project.cache_folder.glob("pixels-*/ledger.jsonl"))


def test_a_client_that_is_killed_comes_back(project: Any, alone: dict[str, bytes]) -> None:
    """Its workers end what they have in hand, or are lost with it; the same command goes on."""
    client = subprocess.Popen([sys.executable, *EXTRACT, "--cluster", "local:2"], cwd=project.folder, env=ENVIRONMENT)
    while not shards_of(project) and client.poll() is None:
        time.sleep(0.002)
    client.kill()
    client.wait()
    cache = fc.extract(project, "pixels", cluster="local:2", **PIXELS)
    assert feature_bytes(cache.folder) == alone


# Dask


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Any]:
    """A Dask scheduler with two worker processes, as anybody would start them: its address, and the workers."""
    pytest.importorskip("distributed")
    address_file = tmp_path / "scheduler.json"
    options = {"env": ENVIRONMENT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
            + ["--host", "127.0.0.1", "--scheduler-file", str(address_file)],
            **options,
        )
    ]
    while not address_file.is_file() or "address" not in address_file.read_text():
        time.sleep(0.05)
    import json

    address = json.loads(address_file.read_text())["address"].removeprefix("tcp://")
    started += [
        subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{address}", "--nthreads", "1"]
            + ["--no-nanny", "--no-dashboard", "--name", str(number), "--local-directory", str(tmp_path)],
            **options,
        )
        for number in range(2)
    ]
    yield address, started[1:]
    for process in started:
        process.kill()
        process.wait()


def test_dask_workers_write_what_one_process_writes_though_one_is_killed(
    project: Any, alone: dict[str, bytes], scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, workers = scheduler
    pids = {process.pid for process in workers}
    monkeypatch.setattr(cluster, "work", slow_work)
    while True:
        from distributed import Client

        with Client(f"tcp://{address}", set_as_default=False) as client:
            if len(client.scheduler_info(n_workers=-1)["workers"]) == 2:
                break
        time.sleep(0.1)
    killer, killed = killing_one_at_work(project)
    cache = fc.extract(project, "pixels", cluster=f"dask://{address}", **PIXELS)
    killer.join(10)
    assert set(killed) < pids
    assert feature_bytes(cache.folder) == alone
    assert len(read_ledger(cache.folder / "ledger.jsonl")) == cache.features.layout.n_shards


def test_a_scheduler_that_is_not_there_is_an_error(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "_ANSWER_S", 1.0)
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at 127\.0\.0\.1:9"):
        fc.extract(project, "pixels", cluster="dask://127.0.0.1:9", **PIXELS)
    assert [folder.name for folder in project.cache_folder.glob(".cluster-*")] == []


# Two hosts


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces that reach each other, as two machines do: 10.79.1.1 and 10.79.1.2."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2 and root")
    names = tuple(f"featcache-{os.getpid()}-{number}" for number in (1, 2))
    try:
        for name in names:
            ip("netns", "add", name)
        ends = tuple(f"fc{os.getpid()}{letter}" for letter in "ab")
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.79.1.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        pytest.skip(f"no network namespaces can be made here: {error.stderr.decode().strip()}")
    yield names  # type: ignore[misc]
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_workers_on_another_host_write_the_same_though_one_is_killed(
    project: Any, alone: dict[str, bytes], hosts: tuple[str, str], tmp_path: Path
) -> None:
    """Scheduler and client in one network namespace, two workers in the other."""
    pytest.importorskip("distributed")
    here, there = hosts

    def start(host: str, *arguments: str, folder: Path = tmp_path) -> subprocess.Popen[bytes]:
        command = ["ip", "netns", "exec", host, sys.executable, *arguments]
        return subprocess.Popen(command, env=ENVIRONMENT, cwd=folder, stdout=subprocess.DEVNULL)

    quiet = ("--no-dashboard",)
    started = [start(here, "-m", "distributed.cli.dask_scheduler", "--host", "10.79.1.1", "--port", "8786", *quiet)]
    try:
        for number in range(2):
            asked = ("tcp://10.79.1.1:8786", "--host", "10.79.1.2", "--nthreads", "1", "--no-nanny", *quiet)
            started.append(start(there, "-m", "distributed.cli.dask_worker", *asked, "--name", str(number)))
        client = start(here, *EXTRACT, "--cluster", "dask://10.79.1.1:8786", folder=project.folder)
        started.append(client)
        pid = working(project.cache_folder, done=lambda: client.poll() is not None)
        if pid:
            os.kill(pid, signal.SIGKILL)
        assert client.wait(120) == 0
        (folder,) = project.cache_folder.glob("pixels-*")
        assert feature_bytes(folder) == alone
        assert pid in {process.pid for process in started[1:3]}
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_ray_workers_on_two_hosts_write_the_same_though_one_is_killed(
    project: Any, alone: dict[str, bytes], hosts: tuple[str, str], tmp_path: Path
) -> None:
    """A head without cores and the client in one network namespace, as is usual; the workers in the other."""
    pytest.importorskip("ray")
    here, there = hosts
    environment = {**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    started: list[subprocess.Popen[bytes]] = []

    def start(host: str, *command: str, folder: Path = tmp_path) -> subprocess.Popen[bytes]:
        entered = ["ip", "netns", "exec", host, *command]
        started.append(subprocess.Popen(entered, env=environment, cwd=folder, stdout=subprocess.DEVNULL))
        return started[-1]

    ray = (str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats")
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:  # a short name: its sockets lie there
        head = ("--head", "--node-ip-address", "10.79.1.1", "--port", "6379", "--ray-client-server-port", "10001")
        try:
            start(here, *ray, *head, "--num-cpus", "0", "--include-dashboard", "false", "--temp-dir", scratch)
            start(there, *ray, "--address", "10.79.1.1:6379", "--node-ip-address", "10.79.1.2", "--num-cpus", "2")
            asked = ["ip", "netns", "exec", here, ray[0], "status", "--address", "10.79.1.1:6379"]
            while b"/2.0 CPU" not in subprocess.run(asked, env=environment, capture_output=True, check=False).stdout:
                assert started[-1].poll() is None
            client = start(here, sys.executable, *EXTRACT, "--cluster", "ray://10.79.1.1:10001", folder=project.folder)
            pid = working(project.cache_folder, done=lambda: client.poll() is not None)
            if pid:
                os.kill(pid, signal.SIGKILL)
            assert client.wait(120) == 0
        finally:
            for process in reversed(started):
                process.terminate()
            for process in reversed(started):
                process.wait()
    (folder,) = project.cache_folder.glob("pixels-*")
    assert feature_bytes(folder) == alone
    assert pid
