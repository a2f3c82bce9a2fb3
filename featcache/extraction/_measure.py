"""How long a worker of this machine takes for a row, measured by extractions of a few rows into a folder that is
thrown away."""

from __future__ import annotations

import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from featcache.backbones import NetworkSpec
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.extraction._estimate import seconds_a_row
from featcache.extraction.cluster import engine_of, process_of
from featcache.extraction.one_pass import extract
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import Plan, plan_extraction
from featcache.extraction.targets import target_of
from featcache.sharing import RemoteDonors
from featcache.store import Layout, layout_for

_FEWEST_IMAGES = 10


@dataclass(frozen=True)
class Measured:
    """What a worker takes, and what the caches of one pass over a network become.

    rows : that were measured
    rows_per_image : of the project
    image_bytes : mean size of an image's file
    layouts : of each cache, for as many rows as the project has
    row_bytes : as stored, compressed, all caches together
    client_s : until workers can be asked to begin
    start_s : until a worker computes its first row, but for what it takes to look at the images
    look_s : to look at an image that is known, which each worker does for every one
    row_s, task_s : for each row, and besides for each run of shards
    peak_bytes : most memory of a worker; 0 where the system does not say
    table_bytes : of its memory, for each row of the extraction
    engine : what computes, and why
    """

    rows: int
    rows_per_image: float
    image_bytes: float
    layouts: tuple[Layout, ...]
    row_bytes: float
    client_s: float
    start_s: float
    look_s: float
    row_s: float
    task_s: float
    peak_bytes: int
    table_bytes: float
    engine: str


@dataclass(frozen=True)
class _Took:
    """What one process found: see `Measured`."""

    start_s: float
    look_s: float
    row_s: float
    task_s: float
    stored_bytes: float
    peak_bytes: int
    table_bytes: float


def measure(
    project: Project,
    network: NetworkSpec,
    *,
    options: ExtractOptions | None = None,
    workers: int = 1,
    seconds: float = 10.0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Measured:
    """Measure workers of this machine that run at the same time and share its cores, on a sample of the project.

    Parameters
    ----------
    workers : processes at the same time
    seconds : that each should compute for, about; fewer where the project has too few images
    seed : chooses the sample

    Raises
    ------
    what `extract` raises
    """
    options = options or ExtractOptions()
    began = time.perf_counter()
    plans = plan_extraction(project, [network], options=options, progress=progress, keep=False)
    plan = plans[0]
    engine = plan.engine()
    client_s = time.perf_counter() - began
    row_s = seconds_a_row(plan) * workers  # by all cores
    rows_per_image = max(sum(plan.views) / len(plan.views), 1e-9)
    wanted = max(round(seconds / row_s / rows_per_image), _FEWEST_IMAGES)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(plan.views))[:wanted]  # some may have no view
    sample = tuple(sorted(int(place) for place in order))
    told = replace(options, cluster=None, no_remote=True, reuse_from=(), **engine_of(plan, options))
    with ExitStack() as closing, progress.begin(f"measuring {network.model}", workers) as advance:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="featcache-plan-")))
        futures = []
        for number in range(workers):
            process = process_of(number, workers)
            closing.callback(process.shutdown)
            job = (project, network, told, sample, folder / str(number), time.time())
            futures.append(process.submit(_measure_here, *job))
        took: list[_Took] = []
        for future in futures:
            took.append(future.result())
            advance(1)
    n_rows = sum(plan.views)
    return Measured(
        rows=sum(plan.views[place] for place in sample),
        rows_per_image=rows_per_image,
        image_bytes=_mean_bytes(plan, sample),
        layouts=tuple(
            layout_for(n_rows, each.cut.feature_shape, dtype=each.recipe.space.dtype, format_=each.storage.format)
            for each in plans
        ),
        row_bytes=fmean(one.stored_bytes for one in took),
        client_s=client_s,
        start_s=fmean(one.start_s for one in took),
        look_s=fmean(one.look_s for one in took),
        row_s=fmean(one.row_s for one in took),
        task_s=fmean(one.task_s for one in took),
        peak_bytes=max(one.peak_bytes for one in took),
        table_bytes=fmean(one.table_bytes for one in took),
        engine=engine.why,
    )


def _mean_bytes(plan: Plan, sample: Sequence[int]) -> float:
    sizes = []
    for place in sample:
        with suppress(OSError):  # an array, which is no file
            sizes.append((plan.dataset.folder / plan.dataset.images[place].path).stat().st_size)
    return fmean(sizes) if sizes else 0.0


def _measure_here(
    project: Project, network: NetworkSpec, options: ExtractOptions, sample: Sequence[int], folder: Path, asked: float
) -> _Took:
    """What this process takes. asked : the time at which it was"""
    plans = plan_extraction(project, [network], options=options, keep=False)
    engine, side = plans[0].engine(), plans[0].recipe.space.input_size_px
    engine.features(np.zeros((engine.batch_rows, side, side, 3), np.uint8))  # the first call is slower
    ready = time.time()
    tracemalloc.start()
    again = plan_extraction(project, [network], options=options, keep=False)
    table_bytes = tracemalloc.get_traced_memory()[0] / len(again[0].rows)
    tracemalloc.stop()
    del again
    looking = time.perf_counter()
    plan_extraction(project, [network], options=options, keep=False)
    look_s = (time.perf_counter() - looking) / len(plans[0].dataset.images)
    fifth = max(len(sample) // 5, 1)
    few_rows, few_s, _ = _extracted(plans, sample[:fifth], folder / "few")
    rows, took_s, stored = _extracted(plans, sample[fifth:] or sample, folder / "more")
    row_s = (took_s - few_s) / (rows - few_rows) if rows > few_rows else took_s / rows
    row_s = min(max(row_s, 0.5 * took_s / rows), took_s / rows)  # a busy machine makes anything of a difference
    return _Took(
        start_s=max(ready - asked - look_s * len(plans[0].dataset.images), 0.0),
        look_s=look_s,
        row_s=row_s,
        task_s=max(took_s - rows * row_s, 0.0),
        stored_bytes=stored / rows,
        peak_bytes=_peak_bytes(),
        table_bytes=table_bytes,
    )


def _extracted(plans: Sequence[Plan], sample: Sequence[int], folder: Path) -> tuple[int, float, int]:
    """Rows of some images, the seconds that they took, and the bytes that they became."""
    folder.mkdir(parents=True)
    began = time.perf_counter()
    with ExitStack() as writers:
        some = [_of(plan, sample, folder) for plan in plans]
        targets = [
            target_of(plan, RemoteDonors(), options=ExtractOptions(allow_nonfinite=True), writers=writers)
            for plan in some
        ]
        extract(targets, some[0].dataset, segmenter=some[0].segmenter)
        took_s = time.perf_counter() - began
    stored = sum(file.stat().st_size for plan in some for file in _files(plan.folder))
    return sum(some[0].views), took_s, stored


def _of(plan: Plan, sample: Sequence[int], folder: Path) -> Plan:
    """The plan of some of the images."""
    images = tuple(plan.dataset.images[place] for place in sample)
    return replace(
        plan,
        dataset=replace(plan.dataset, images=images),
        views=[plan.views[place] for place in sample],
        parent=folder,
        url="",
    )


def _files(folder: Path) -> list[Path]:
    """The files of the array; the tables grow with the rows, too, and are small beside it."""
    return [file for found in folder.glob("features.*") for file in (found, *found.rglob("*")) if file.is_file()]


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) << 10
