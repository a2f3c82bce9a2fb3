"""plan: what a large extraction takes, from a few rows that are measured here and courses that are simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from featcache.backbones import NetworkSpec
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.core.units import duration, size
from featcache.extraction import ExtractOptions, Measured, measure
from featcache.planning.options import PlanOptions
from featcache.planning.simulate import Course, Fleet, Work, simulate

_SHARD_WRITES, _SHARD_READS = 4.0, 3.0
"""Requests for a shard on a remote: its lease, itself, its line in the journal, the lease given back; and who has what,
what is done, and whether it was done just before."""
_BEAT_S, _DEAD_S = 5.0, 90.0
"""Of leases on a remote; in a folder they are quicker."""
_TASKS_A_WORKER, _MOST_TASK_SHARDS = 4, 16
_MONTH_H = 730.0
_MUCH_MEMORY = 64 << 30
_LOW_USE, _MUCH_LOOKING = 0.7, 0.25


@dataclass(frozen=True)
class Planned:
    """What the extraction with one network takes.

    rows, shards : that are computed, and the files that they become
    seconds, low_s, high_s : until the last shard is written: mean, least and most of the simulated courses
    ideal_s : of the computing alone, spread evenly over the workers
    bytes : stored, compressed
    worker_hours : all workers, from the first second to the last
    writes, reads : requests to the storage
    losses : workers that are lost, in the mean
    busy : share of the workers' time in which they compute
    worker_bytes : memory of a worker; 0 where the system does not say
    costs : "workers", "storage for a month", "requests": those whose prices are given
    remarks : what should be changed, in sentences
    measured : what was measured here
    """

    model: str
    images: int
    rows: int
    shards: int
    seconds: float
    low_s: float
    high_s: float
    ideal_s: float
    bytes: int
    worker_hours: float
    writes: int
    reads: int
    losses: float
    busy: float
    worker_bytes: int
    costs: Mapping[str, float]
    remarks: Sequence[str]
    measured: Measured


def plan(
    project: Project,
    networks: Sequence[NetworkSpec],
    *,
    options: PlanOptions | None = None,
    extraction: ExtractOptions | None = None,
    progress: Progress = SILENT,
) -> list[Planned]:
    """Say what an extraction of many images like those of the project takes, one network after the other.

    A few images of the project are computed on this machine, by as many workers as share a machine. With that, courses
    of the whole are simulated. Nothing is kept.

    extraction : as of `extract`

    Raises what `extract` raises.
    """
    options = options or PlanOptions()
    planned = []
    for network in networks:
        measured = measure(
            project,
            network,
            options=extraction,
            workers=min(options.workers_per_machine, options.workers),
            seconds=options.sample_s,
            seed=options.plan_seed,
            progress=progress,
        )
        planned.append(planned_of(network.model, measured, options=options))
    return planned


def planned_of(model: str, measured: Measured, *, options: PlanOptions) -> Planned:
    """What follows from what was measured."""
    rows = math.ceil(options.n_images * measured.rows_per_image)
    work, fleet = work_of(measured, options), fleet_of(measured, options)
    is_chance = options.hours_between_losses is not None or 0 < options.slow_share < 1
    courses = [
        simulate(work, fleet, seed=options.plan_seed + trial) for trial in range(options.trials if is_chance else 1)
    ]
    shards = sum(math.ceil(rows / layout.rows_per_shard) for layout in measured.layouts)
    seconds = fmean(course.seconds for course in courses) + measured.client_s
    hours = seconds * options.workers / 3600
    writes, reads = _requests(courses, seconds, options)
    n_bytes = round(rows * measured.row_bytes)
    worker_bytes = measured.peak_bytes and round(measured.peak_bytes + rows * measured.table_bytes)
    return Planned(
        model=model,
        images=options.n_images,
        rows=rows,
        shards=shards,
        seconds=seconds,
        low_s=min(course.seconds for course in courses) + measured.client_s,
        high_s=max(course.seconds for course in courses) + measured.client_s,
        ideal_s=rows * measured.row_s / options.workers,
        bytes=n_bytes,
        worker_hours=hours,
        writes=writes,
        reads=reads,
        losses=fmean(course.losses for course in courses),
        busy=fmean(course.busy for course in courses),
        worker_bytes=worker_bytes,
        costs=_costs(options, hours=hours, n_bytes=n_bytes, writes=writes, reads=reads),
        remarks=_remarks(options, measured, shards=shards, worker_bytes=worker_bytes, courses=courses, work=work),
        measured=measured,
    )


def work_of(measured: Measured, options: PlanOptions) -> Work:
    """The extraction as work: what one network's caches write at a time is one shard of the largest."""
    rows = math.ceil(options.n_images * measured.rows_per_image)
    unit_rows = max(layout.rows_per_shard for layout in measured.layouts)
    files = sum(unit_rows / layout.rows_per_shard for layout in measured.layouts)
    images = unit_rows / measured.rows_per_image
    units = math.ceil(rows / unit_rows)
    return Work(
        n_rows=rows,
        unit_rows=unit_rows,
        row_s=measured.row_s,
        task_units=min(max(math.ceil(units / (options.workers * _TASKS_A_WORKER)), 1), _MOST_TASK_SHARDS),
        task_s=measured.task_s,
        unit_read_bytes=images * measured.image_bytes if options.read_images else 0.0,
        unit_reads=files * _SHARD_READS + (images if options.read_images else 0.0),
        unit_written_bytes=unit_rows * measured.row_bytes,
        unit_writes=files * _SHARD_WRITES,
    )


def fleet_of(measured: Measured, options: PlanOptions) -> Fleet:
    """The workers and their storage."""
    hours, per_s, megabytes = options.hours_between_losses, options.requests_per_s, options.bandwidth_mb_s
    return Fleet(
        workers=options.workers,
        start_s=measured.start_s + options.n_images * measured.look_s,
        loss_s=math.inf if hours is None else hours * 3600,
        replaced_s=options.replaced_s,
        dead_s=_DEAD_S,
        slow_share=options.slow_share,
        slow_factor=options.slow_factor,
        requests_per_s=math.inf if per_s is None else per_s,
        bytes_per_s=math.inf if megabytes is None else megabytes * 1e6,
        latency_s=options.latency_ms / 1e3,
    )


def _requests(courses: Sequence[Course], seconds: float, options: PlanOptions) -> tuple[int, int]:
    """Writes and reads: those of shards, and the signs of life of each worker."""
    beats = options.workers * seconds / _BEAT_S
    return (
        round(fmean(course.writes for course in courses) + beats),
        round(fmean(course.reads for course in courses)),
    )


def _costs(options: PlanOptions, *, hours: float, n_bytes: int, writes: int, reads: int) -> dict[str, float]:
    costs = {}
    if options.price_worker_hour is not None:
        costs["workers"] = hours * options.price_worker_hour
    if options.price_gb_month is not None:
        costs["storage for a month"] = n_bytes / 1e9 * options.price_gb_month
    if options.price_million_writes is not None or options.price_million_reads is not None:
        prices = options.price_million_writes or 0.0, options.price_million_reads or 0.0
        costs["requests"] = (writes * prices[0] + reads * prices[1]) / 1e6
    return costs


def _remarks(
    options: PlanOptions,
    measured: Measured,
    *,
    shards: int,
    worker_bytes: int,
    courses: Sequence[Course],
    work: Work,
) -> list[str]:
    remarks = []
    look_s = options.n_images * measured.look_s
    if look_s > _MUCH_LOOKING * fmean(course.seconds for course in courses):
        remarks.append(
            f"each worker looks at all images before it begins, which takes {duration(look_s)}: split the images into "
            "several projects"
        )
    if worker_bytes > _MUCH_MEMORY:
        remarks.append(
            f"each worker needs {size(worker_bytes)} of memory, since it lists all rows: split the images into several "
            "projects"
        )
    if options.workers > shards:
        remarks.append(f"only {shards} of the {options.workers} workers get a shard to compute")
    busy = fmean(course.busy for course in courses)
    if busy < _LOW_USE and options.workers <= shards:
        remarks.append(f"the workers compute {busy:.0%} of the time only: {_why_idle(options, work)}")
    return remarks


def _why_idle(options: PlanOptions, work: Work) -> str:
    units = work.n_rows / work.unit_rows
    computing = work.n_rows * work.row_s / options.workers
    asked = units * (work.unit_reads + work.unit_writes) / (options.requests_per_s or math.inf)
    moved = units * (work.unit_read_bytes + work.unit_written_bytes) / ((options.bandwidth_mb_s or math.inf) * 1e6)
    if max(asked, moved) > computing:
        return "the storage answers too slowly for so many"
    return "starting, losses, slow workers or an uneven end take the rest"
