"""The client of a cluster: it asks the workers whether they are fit, gives them runs of shards, and watches the ledger.

The workers are processes of this machine (loky, of joblib), or those of a Dask or a Ray cluster that somebody started.
All of them are futures to the rest: a task that is lost, whatever with, is given to another worker.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, get_args

from featcache.backbones import NetworkSpec
from featcache.core.errors import ClusterError
from featcache.core.extras import require_extra
from featcache.core.files import PARTIAL_SUFFIX, resolved
from featcache.core.progress import Advance, Progress
from featcache.core.project import Project, found_everywhere
from featcache.core.recipe import Precision
from featcache.extraction.cache_filler import Counts
from featcache.extraction.one_pass import Target
from featcache.extraction.options import EngineName, ExtractOptions
from featcache.extraction.plan import Plan
from featcache.extraction.stage_times import StageTimes
from featcache.extraction.worker import Done, Job, check, facts, work
from featcache.store import CacheWriter

_ADDRESS = re.compile(r"(?:local:(?P<n>[1-9]\d{0,3})|(?P<kind>dask|ray)://(?P<host>[\w.\-\[\]:]+):(?P<port>\d{1,5}))")
_LOOK_S, _AGAIN_S = 0.25, 1.0
"""How often the ledger is read, and when a worker that found nothing to do is asked again."""
_ANSWER_S = 15.0
"""Within which a scheduler has to answer, and a first worker to be there."""
_TASKS_A_WORKER, _MOST_SHARDS = 4, 16
_LOSSES = 5
"""Lost tasks in a row, without a shard in between, for each worker."""
_SAMPLE = 20


class Workers(Protocol):
    """Where tasks can be sent."""

    def number(self) -> int:
        """Workers that are there now."""

    def check(self, job: Job) -> list[Done]:
        """What each worker has to say of a job."""

    def submit(self, job: Job) -> Future[Done]:
        """Begin a task."""

    def close(self) -> None:
        """Leave the cluster; workers that were started for this are ended."""


class _Local:
    """Processes of this machine, each with its share of the cores. One that is lost is replaced."""

    def __init__(self, n_workers: int) -> None:
        self._executors: list[Any] = [None] * n_workers
        self._busy: dict[int, Future[Done]] = {}

    def number(self) -> int:
        """See `Workers`."""
        return len(self._executors)

    def check(self, job: Job) -> list[Done]:
        """See `Workers`."""
        futures = [self._executor(place).submit(check, job) for place in range(len(self._executors))]
        return [future.result() for future in futures]

    def submit(self, job: Job) -> Future[Done]:
        """See `Workers`."""
        place = next(n for n in range(len(self._executors)) if n not in self._busy or self._busy[n].done())
        if place in self._busy and self._busy[place].exception() is not None:
            self._executors[place].shutdown(wait=False)
            self._executors[place] = None
        self._busy[place] = future = self._executor(place).submit(work, job)
        return future

    def close(self) -> None:
        """See `Workers`."""
        for executor in self._executors:
            if executor is not None:
                executor.shutdown(wait=True)

    def _executor(self, place: int) -> Executor:
        if self._executors[place] is None:
            self._executors[place] = process_of(place, len(self._executors))
        executor: Executor = self._executors[place]
        return executor


def process_of(place: int, n_workers: int) -> Executor:
    """One of several processes of this machine, with its share of the cores. It starts with its first task."""
    from joblib.externals.loky import ProcessPoolExecutor

    cores = _share_of_cores(place, n_workers)
    executor: Executor = ProcessPoolExecutor(1, initializer=_keep_to, initargs=(cores,))
    return executor


def _share_of_cores(place: int, n_workers: int) -> list[int]:
    """The cores of one of several workers; all where there are fewer than workers, or they cannot be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return cores[place::n_workers] if n_workers <= len(cores) else cores


def _keep_to(cores: list[int]) -> None:
    """What a process of this machine does first: libraries look at these cores when they make their threads."""
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize  # a network that was opened is none: it would start anew
    if cores:
        os.sched_setaffinity(0, cores)


class _Dask:
    """The workers of a Dask scheduler."""

    def __init__(self, address: str) -> None:
        require_extra("dask", "a Dask cluster")
        from distributed import Client

        try:
            self._client = Client(f"tcp://{address}", timeout=_ANSWER_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {address}: {error}",
                "Start one with 'dask scheduler', and workers with 'dask worker ADDRESS'",
            ) from error
        _await_worker(self, f"the Dask scheduler at {address}")

    def number(self) -> int:
        """See `Workers`."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def check(self, job: Job) -> list[Done]:
        """See `Workers`."""
        return list(self._client.run(check, job, on_error="raise").values())

    def submit(self, job: Job) -> Future[Done]:
        """See `Workers`."""
        future, told = self._client.submit(work, job, pure=False, key=f"featcache-{uuid.uuid4().hex}"), Future[Done]()
        told.set_running_or_notify_cancel()
        future.add_done_callback(lambda ended: _tell(ended, told))
        return told

    def close(self) -> None:
        """See `Workers`."""
        self._client.close()


def _tell(ended: Any, told: Future[Done]) -> None:
    """Hand the result of a future of Dask's own kind on."""
    try:
        told.set_result(ended.result(timeout=_ANSWER_S))
    except BaseException as error:  # noqa: BLE001 - also a cancellation, which is no Exception
        told.set_exception(error if isinstance(error, Exception) else ClusterError(f"cancelled: {error}"))


class _Ray:
    """The workers of a Ray cluster: each of its cores can have a task; here, each of its nodes has one."""

    def __init__(self, address: str) -> None:
        require_extra("ray", "a Ray cluster")
        import ray

        self._ray = ray
        try:
            ray.init(address=f"ray://{address}", logging_level="error", log_to_driver=False)
        except Exception as error:  # Ray has errors of its own, for each way in which it cannot be reached
            raise ClusterError(
                f"no Ray cluster answers at {address}: {_first_line(error)}", "Start a head node with 'ray start'"
            ) from error
        _await_worker(self, f"the Ray cluster at {address}")

    def number(self) -> int:
        """See `Workers`."""
        return len(self._nodes())

    def check(self, job: Job) -> list[Done]:
        """See `Workers`."""
        try:
            return list(self._ray.get([self._on(check, node).remote(job) for node in self._nodes()]))
        except self._ray.exceptions.RayTaskError:  # of what the task does
            raise
        except self._ray.exceptions.RayError as error:
            raise ClusterError(
                f"a node of the Ray cluster cannot be asked: {_first_line(error)}", "Look at 'ray status'"
            ) from error

    def submit(self, job: Job) -> Future[Done]:
        """See `Workers`."""
        found: Future[Done] = self._ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(work).remote(job).future()
        return found

    def close(self) -> None:
        """See `Workers`."""
        self._ray.shutdown()

    def _nodes(self) -> list[str]:
        """Those that can have a task: many a head node has no core for any."""
        return [node["NodeID"] for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]

    def _on(self, function: Callable[[Job], Done], node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        return self._ray.remote(num_cpus=1, scheduling_strategy=strategy)(function)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _await_worker(workers: Workers, named: str) -> None:
    until = time.monotonic() + _ANSWER_S
    while not workers.number():
        if time.monotonic() > until:
            workers.close()
            raise ClusterError(f"{named} has no worker", "Start workers, and run the same command again")
        time.sleep(_LOOK_S)


@contextmanager
def joined(address: str) -> Iterator[Workers]:
    """The workers at an address: local:N, dask://HOST:PORT, ray://HOST:PORT.

    Raises UsageError for another address, ClusterError where nobody answers, MissingPackageError without the library.
    """
    workers = _workers(address)
    try:
        yield workers
    finally:
        workers.close()


def refuse_odd_address(address: str) -> re.Match[str]:
    """Raise ClusterError for an address of another form."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ClusterError(f"`cluster={address!r:.200}`: expected 'local:N', 'dask://HOST:PORT' or 'ray://HOST:PORT'")
    return found


def _workers(address: str) -> Workers:
    found = refuse_odd_address(address)
    if found["n"]:
        return _Local(int(found["n"]))
    place = f"{found['host']}:{found['port']}"
    return _Dask(place) if found["kind"] == "dask" else _Ray(place)


@dataclass(frozen=True)
class Filled:
    """What the workers did: counts and faint rows of each cache, where the time went, what was to be remarked."""

    counts: list[Counts]
    faint_rows: list[int]
    shares: StageTimes
    remarks: dict[str, str]


def fill(
    workers: Workers,
    plans: Sequence[Plan],
    *,
    targets: Sequence[Target],
    project: Project,
    options: ExtractOptions,
    donors: tuple[Path, ...],
    advance: Advance,
    progress: Progress,
    stopped: Callable[[], bool],
) -> Filled:
    """Let workers write what the caches of one network miss. Returns once nothing is missing, or it is stopped.

    Raises ClusterError for workers that are not like this machine, or that are lost again and again.
    """
    token = plans[0].parent / f".cluster-{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    writers = [target.writer for target in targets]
    missing, several = sum(len(writer.missing) for writer in writers), workers.number()
    job = Job(
        token=token,
        project=Project(resolved(project.folder), project.settings),
        network=_absolute(plans[0]),
        options=replace(options, cluster=None, views=found_everywhere(options.views), **engine_of(plans[0], options)),
        donors=donors,
        digests=tuple(plan.digest for plan in plans),
        sample=_sample(plans[0]),
        facts=facts(),
        fitted=plans[0].fitted,
        shards=min(max(math.ceil(missing / (several * _TASKS_A_WORKER)), 1), _MOST_SHARDS),
    )
    token.touch()
    try:
        _refuse_others(workers.check(job))
        return _Watch(workers, job, writers=writers, advance=advance, progress=progress).run(stopped)
    finally:
        token.unlink(missing_ok=True)


def _refuse_others(answers: Sequence[Done]) -> None:
    wrong = {done.where: done.problem for done in answers if done.problem}
    if wrong:
        lines = "; ".join(f"the worker on {name}: {problem}" for name, problem in sorted(wrong.items()))
        raise ClusterError(lines, "Give all workers the same packages, folders and weights, and run it again")


class _Watch:
    """An extraction by workers, under way."""

    def __init__(
        self, workers: Workers, job: Job, *, writers: Sequence[CacheWriter], advance: Advance, progress: Progress
    ) -> None:
        self._workers, self._job, self._writers = workers, job, writers
        self._advance, self._progress = advance, progress
        self._told = sum(writer.rows_done for writer in writers)
        self._flying: set[Future[Done]] = set()
        self._losses, self._idle_until = 0, 0.0
        self._rows: Counter[str] = Counter()
        self._done = Filled([Counts() for _ in writers], [0 for _ in writers], StageTimes(), {})

    def run(self, stopped: Callable[[], bool]) -> Filled:
        """Until nothing is missing."""
        try:
            while self._look() and not stopped():
                if time.monotonic() >= self._idle_until:
                    while len(self._flying) < self._workers.number():
                        self._flying.add(self._workers.submit(self._job))
                ended, self._flying = wait(self._flying, _LOOK_S, FIRST_COMPLETED) if self._flying else (set(), set())
                if not self._flying and not ended:
                    time.sleep(_LOOK_S)
                self._take(ended)
        finally:
            self._job.token.unlink(missing_ok=True)  # they end what they have begun
            ended, _ = wait(self._flying, _ANSWER_S)
        self._take(ended)
        self._look()
        for name, rows in sorted(self._rows.items()):
            self._progress.note(f"worker on {name}: {rows} rows")
        return self._done

    def _look(self) -> bool:
        """See in the ledgers what is done. Returns whether something is missing."""
        with suppress(OSError):  # who tidies up sees that it is not left behind
            os.utime(self._job.token)
        for writer in self._writers:
            writer.refresh()
        now = sum(writer.rows_done for writer in self._writers)
        if now > self._told:
            self._losses = 0
        self._advance(now - self._told)
        self._told = now
        return any(writer.missing for writer in self._writers)

    def _take(self, ended: set[Future[Done]]) -> None:
        for future in ended:
            error = future.exception()
            if error is not None:
                self._lost(error)
                continue
            done = future.result()
            if done.problem and self._job.token.is_file():  # else it began when nobody waited any more
                _refuse_others([done])
            if not done.written:  # what is missing is in other hands, or in those of one who is lost
                self._idle_until = time.monotonic() + _AGAIN_S
            self._add(done)

    def _lost(self, error: BaseException) -> None:
        self._losses += 1
        self._progress.note(f"a worker was lost ({_first_line(error)}); others go on with its shards")
        if self._losses > _LOSSES * max(self._workers.number(), 1):
            raise ClusterError(
                f"workers are lost again and again, the last one by: {_first_line(error)}",
                "If the system ends them for lack of memory, set fewer workers or a smaller `batch_rows`",
            ) from error

    def _add(self, done: Done) -> None:
        for place, (ours, theirs) in enumerate(zip(self._done.counts, done.counts, strict=False)):
            ours.computed += theirs.computed
            ours.copied += theirs.copied
            ours.sources |= theirs.sources
            self._done.faint_rows[place] += done.faint_rows[place]
            self._rows[done.where] += theirs.computed + theirs.copied
        self._done.shares.add(done.shares)
        self._done.remarks.update(done.remarks)


def engine_of(plan: Plan, options: ExtractOptions) -> dict[str, Any]:
    """The engine that was chosen here, and its number of rows at a time: others may give other last bits."""
    chosen = plan.engine()
    names = (name for name in get_args(EngineName) if chosen.name.startswith(name))  # "keras-tensorflow" is keras
    return {"engine": next(names, options.engine), "batch_rows": chosen.batch_rows}


def _absolute(plan: Plan) -> NetworkSpec:
    """The network, with files named so that they are found from every folder, in the precision that was chosen here."""
    spec = plan.network
    model, weights = (
        str(resolved(Path(text))) if Path(text).is_file() else text for text in (spec.model, spec.weights)
    )
    return replace(spec, model=model, weights=weights, precision=cast(Precision, plan.cut.space.precision))


def _sample(plan: Plan) -> tuple[Path, ...]:
    """A few images, from the first to the last."""
    images = plan.dataset.images
    step = max(len(images) // _SAMPLE, 1)
    return tuple(plan.dataset.folder / image.path for image in images[::step])
