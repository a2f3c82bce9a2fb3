"""What a worker of a cluster does: it looks whether it is like the client's machine, and fills runs of whole shards.

A job names everything by paths that all workers see. Leases and ledger of the cache say who is at work on what and what
is done, so a worker needs nobody's word for what is left, and what a lost one held another takes.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featcache.backbones import NetworkSpec, keras_backend
from featcache.core.errors import FeatcacheError
from featcache.core.offline import offline
from featcache.core.project import Project
from featcache.extraction.cache_filler import Counts
from featcache.extraction.one_pass import extract as extract_rows
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import Plan, plan_extraction
from featcache.extraction.targets import target_of
from featcache.segmentation import SegmenterFile
from featcache.sharing import RemoteDonors

PACKAGES = (
    "featcache",
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "openvino",
    "onnxruntime",
    "timm",
    "torchvision",
    "transformers",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "pillow",
)
"""What decides the bits of features."""
_NAMED = 3
_LOOK_S = 0.5

_ONE_AT_A_TIME = threading.Lock()
_plans: dict[str, list[Plan]] = {}
"""Of the job that this process is at work on: its network is opened once."""


@dataclass(frozen=True)
class Job:
    """What the workers of one extraction are told.

    token : a file in the folder of caches; when it has gone, nobody waits for the work any more
    digests : of the caches; sample : images that have to be there
    facts : versions of what computes, on the client's machine
    fitted : the segmenter that cuts cells out, where it is a fitted one
    shards : of each cache, that one task writes at most
    """

    token: Path
    project: Project
    network: NetworkSpec
    options: ExtractOptions
    donors: tuple[Path, ...]
    digests: tuple[str, ...]
    sample: tuple[Path, ...]
    facts: Mapping[str, str]
    fitted: SegmenterFile | None = None
    shards: int = 1


@dataclass(frozen=True)
class Done:
    """What one task did.

    where : host and process
    problem : why it did nothing; "" where nothing was wrong
    written : whether shards were written
    """

    where: str
    problem: str = ""
    written: bool = False
    counts: tuple[Counts, ...] = ()
    faint_rows: tuple[int, ...] = ()
    remarks: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)


def facts() -> dict[str, str]:
    """Versions of what decides the bits of features, on this machine."""
    found = {"Python": platform.python_version().rpartition(".")[0], "processor": platform.machine()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "Keras' backend": keras_backend() or "none"}


def where() -> str:
    """Host and process."""
    return f"{platform.node()}, process {os.getpid()}"


def check(job: Job) -> Done:
    """Whether this process sees what the client sees, and computes what it computes."""
    with _ONE_AT_A_TIME:
        return Done(where(), _problem(job))


def work(job: Job) -> Done:
    """Write shards of a job's caches that nobody else is at work on."""
    with _ONE_AT_A_TIME:
        if problem := _problem(job):
            return Done(where(), problem)
        try:
            return _filled(job, _planned(job))
        except FeatcacheError as error:
            return Done(where(), str(error))


def _problem(job: Job) -> str:
    here = facts()
    differences = [
        f"{name} {here.get(name, 'missing')} there, {job.facts.get(name, 'missing')} here"
        for name in dict.fromkeys((*job.facts, *here))
        if here.get(name) != job.facts.get(name)
    ]
    if differences:
        return f"it would compute other features: {'; '.join(differences)}"
    if not job.token.is_file():
        folder = job.token.parent
        return f"it does not see the folder of caches {folder}" + (" as it is here" if folder.is_dir() else "")
    if lacking := [str(path) for path in job.sample if not path.is_file()]:
        more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        return f"it does not see the images {', '.join(lacking[:_NAMED])}{more}"
    try:
        digests = tuple(plan.digest for plan in _planned(job))
    except FeatcacheError as error:
        return str(error)
    if digests != job.digests:
        return "it would make another cache of these images: its weights, or the images that it sees, are others"
    return ""


def _planned(job: Job) -> list[Plan]:
    key = job.token.name
    if key not in _plans:
        _plans.clear()
        with offline(job.options.offline):
            _plans[key] = plan_extraction(
                job.project, [job.network], options=job.options, keep=False, fitted=job.fitted
            )
    return _plans[key]


def _filled(job: Job, plans: Sequence[Plan]) -> Done:
    with offline(job.options.offline), ExitStack() as writers:
        asked = RemoteDonors(donors=job.donors)
        targets = [target_of(plan, asked, options=job.options, writers=writers) for plan in plans]
        before = [len(target.writer.missing) for target in targets]
        done = extract_rows(
            targets,
            plans[0].dataset,
            stopped=_gone(job.token),
            most_shards=job.shards,
            segmenter=plans[0].segmenter,
        )
        written = before != [len(target.writer.missing) for target in targets]
    return Done(
        where=where(),
        written=written,
        counts=done.counts,
        faint_rows=tuple(target.writer.faint_rows for target in targets),
        remarks={path: remark for (path, _), remark in done.remarks.items()},
        shares=done.shares.seconds,
    )


def _gone(token: Path) -> Callable[[], bool]:
    """Whether the client has taken its token away; looked at now and then."""
    looked, is_gone = 0.0, False

    def gone() -> bool:
        nonlocal looked, is_gone
        if not is_gone and time.monotonic() - looked > _LOOK_S:
            looked, is_gone = time.monotonic(), not token.is_file()
        return is_gone

    return gone
