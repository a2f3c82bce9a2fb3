"""extract: every row that the project asks for and that its caches do not hold yet."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featcache.backbones import NetworkSpec
from featcache.core.errors import CacheError, CacheWriteError, DatasetError
from featcache.core.machine import usable_cores
from featcache.core.offline import offline
from featcache.core.progress import SILENT, Advance, Progress
from featcache.core.project import Project, changed, init_call, refuse_unwritable
from featcache.core.strict_json import read_json
from featcache.datasets import Dataset, LeftOut, check
from featcache.extraction.cache_filler import Counts
from featcache.extraction.cluster import fill, joined, refuse_odd_address
from featcache.extraction.one_pass import Target, extract as extract_rows
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import Plan, plan_extraction
from featcache.extraction.stage_times import Stage, StageTimes
from featcache.extraction.targets import note_what_is_quicker, opened, target_of
from featcache.extraction.worker import PACKAGES
from featcache.segmentation import COPY
from featcache.sharing import (
    RemoteDonors,
    ask_remotes,
    finished_on,
    open_folder,
    refuse_format,
    refuse_unfit,
    relabel_on,
    remotes_of,
)
from featcache.store import CACHE_FORMAT, MANIFEST_FILE, DonorIndex, open_cache, writing


@dataclass(frozen=True)
class Extracted:
    """What `extract` did for one cache. computed, reused and copied count rows, skipped the images that were left out.

    reused : rows that did not have to be computed; copied : those of them that came from other caches (`sources`)
    pulled_from : the cache's name on a remote that had it; "" where none had
    url : where it was made on a remote, as `open_cache` takes it; "" for one that lies in `path`
    seconds : from the beginning, whatever was computed meanwhile for other caches included
    relabelled : whether a finished cache took over other labels, splits, groups or paths
    damage : what was wrong with a finished cache that had to be mended; "" where nothing was
    faint_rows : rows that float16 keeps only a few digits of, since all their values are tiny
    engine : which computed it and why; "" where nothing was computed
    shares : where the time of the pass went in which it was computed, maybe with other caches; pass_s : its seconds
    """

    cache: str
    path: Path
    format: str
    rows: int
    computed: int
    reused: int
    copied: int
    sources: Sequence[str]
    pulled_from: str
    skipped: int
    seconds: float
    shape: tuple[int, ...]
    dtype: str
    weights: str
    relabelled: bool
    damage: str
    faint_rows: int
    engine: str
    left_out: Sequence[LeftOut]
    shares: StageTimes
    pass_s: float
    url: str = ""

    @property
    def bottleneck(self) -> Stage:
        """The stage that the others waited for."""
        return self.shares.bottleneck(self.pass_s, usable_cores())

    @property
    def images_per_s(self) -> float:
        """Rows computed a second, everything included."""
        return self.computed / self.seconds if self.seconds else 0.0


def extract(
    project: Project,
    networks: Sequence[NetworkSpec],
    *,
    options: ExtractOptions | None = None,
    images: tuple[Dataset, Sequence[LeftOut]] | None = None,
    progress: Progress = SILENT,
) -> list[Extracted]:
    """Compute the features of every row that the project asks for and that no cache in reach holds yet.

    All networks, and all their layers, are computed in one pass over the images, a cache each.

    images : a data set without labels and what was left out of it (see `collect`), instead of the project's
    progress : asked to stop, the shards in hand are finished and KeyboardInterrupt raised

    Raises DatasetError for images that cannot be used, BackboneError or WeightsError for a network that
    cannot be had, CacheWriteError for a cache that cannot be written.
    """
    options = options or ExtractOptions()
    with offline(options.offline):
        return _extract(project, networks, options, images, progress)


def _extract(
    project: Project,
    networks: Sequence[NetworkSpec],
    options: ExtractOptions,
    images: tuple[Dataset, Sequence[LeftOut]] | None,
    progress: Progress,
) -> list[Extracted]:
    started = time.perf_counter()
    if options.cluster is not None:
        refuse_odd_address(options.cluster)
    refuse_unwritable(project.cache_folder)
    if project.cache_url:
        refuse_format(changed(project.settings.storage, options.storage).format, project.cache_url)
        refuse_unfit(project.cache_url, progress.note)
    plans = plan_extraction(project, networks, options=options, images=images, progress=progress)
    different = {plan.folder: plan for plan in plans}  # a model may be named twice
    if images is None:
        _note_what_training_lacks(project, plans[0], progress)
    found = {folder: _brought_up_to_date(plan, keep_labels=images is not None) for folder, plan in different.items()}
    asked = {
        folder: _ask_remotes(project, plan, options, progress)
        for folder, plan in different.items()
        if not _is_finished(plan)
    }
    unfinished = [different[folder] for folder, reached in asked.items() if reached.whole is None]
    for folder, reached in asked.items():
        if reached.whole is not None:
            found[folder] = _brought_up_to_date(different[folder], keep_labels=images is not None)
    before = time.perf_counter()
    filled, shares = _fill(project, unfinished, asked, options, started, progress) if unfinished else ({}, StageTimes())
    now = time.perf_counter()
    extracted = []
    for plan in plans:
        counts, faint_rows = filled.get(plan.folder, (Counts(), 0))
        relabelled, damage = found[plan.folder]
        n_rows, whole = sum(plan.views), asked[plan.folder].whole if plan.folder in asked else None
        extracted.append(
            Extracted(
                cache=plan.name,
                path=plan.folder,
                format=plan.storage.format,
                rows=n_rows,
                computed=counts.computed,
                reused=n_rows - counts.computed,
                copied=counts.copied,
                sources=sorted(counts.sources),
                pulled_from=whole.record.name if whole else "",
                skipped=len(plan.left_out),
                seconds=now - started,
                shape=(n_rows, *plan.cut.feature_shape),
                dtype=plan.recipe.space.dtype,
                weights=str(plan.cut.weights),
                relabelled=relabelled,
                damage=damage,
                faint_rows=faint_rows,
                engine=plan.engine().why if counts.computed else "",
                left_out=plan.left_out,
                shares=shares,
                pass_s=now - before,
                url=f"{plan.url.rstrip('/')}/{plan.name}" if plan.url else "",
            )
        )
    return extracted


def _ask_remotes(project: Project, plan: Plan, options: ExtractOptions, progress: Progress) -> RemoteDonors:
    """What the project's remotes have of a cache: the whole of it, pulled; or rows that nobody has here."""
    if not plan.url and (options.no_remote or options.offline or not remotes_of(project)):
        return RemoteDonors()
    here = DonorIndex(
        (plan.parent, *options.reuse_from), plan.recipe.space, row_shape=plan.cut.feature_shape, first=plan.folder
    )
    here.look_for(plan.rows)
    wanted = [row for row in plan.rows if not here.holds(row)]
    found = ask_remotes(
        project,
        plan.recipe,
        rows=plan.rows,
        remotes=[plan.url] if plan.url else None,
        format_=plan.storage.format,
        wanted=wanted,
        progress=progress,
    )
    for remark in found.remarks:
        progress.note(remark)
    return found


def _fill(
    project: Project,
    plans: Sequence[Plan],
    asked: Mapping[Path, RemoteDonors],
    options: ExtractOptions,
    started: float,
    progress: Progress,
) -> tuple[dict[Path, tuple[Counts, int]], StageTimes]:
    """Write what is missing, and commit. Returns what was done for each cache, and how many of its rows are faint."""
    names = ", ".join(plan.name for plan in plans)
    with progress.stopping() as stopped, ExitStack() as writers:
        targets = [
            target_of(plan, asked[plan.folder], options=options, writers=writers, on_event=progress.note)
            for plan in plans
        ]
        shares = opened(targets, progress)
        note_what_is_quicker(plans, targets, progress=progress)
        with progress.begin(f"extracting {names}", sum(len(plan.rows) for plan in plans)) as advance:
            advance(sum(target.writer.rows_done for target in targets))
            if options.cluster is None:
                done = extract_rows(
                    targets,
                    plans[0].dataset,
                    on_rows=advance,
                    stopped=stopped,
                    shares=shares,
                    segmenter=plans[0].segmenter,
                )
                counts, faint = list(done.counts), [target.writer.faint_rows for target in targets]
                remarks = {path: remark for (path, _), remark in done.remarks.items()}
            else:
                counts, faint, remarks = _by_workers(
                    project, plans, targets, asked, options, shares, progress, advance, stopped
                )
        if remarks:
            path, remark = min(remarks.items())
            progress.note(f"images used whole: {len(remarks)} ({remark}; the first: {path})")
        for plan, target, count in zip(plans, targets, counts, strict=True):
            if not target.writer.missing:
                target.writer.finish(plan.dataset, _provenance(plan, count, time.perf_counter() - started))
        if any(target.writer.missing for target in targets):
            raise KeyboardInterrupt
    for plan in plans:
        asked[plan.folder].forget()
    return {plan.folder: made for plan, made in zip(plans, zip(counts, faint, strict=True), strict=True)}, shares


def _by_workers(
    project: Project,
    plans: Sequence[Plan],
    targets: Sequence[Target],
    asked: Mapping[Path, RemoteDonors],
    options: ExtractOptions,
    shares: StageTimes,
    progress: Progress,
    advance: Advance,
    stopped: Callable[[], bool],
) -> tuple[list[Counts], list[int], dict[str, str]]:
    """The same, by the workers of a cluster, one network after the other; adds to `shares`."""
    counts, faint = [Counts() for _ in plans], [0 for _ in plans]
    remarks: dict[str, str] = {}
    with joined(str(options.cluster)) as workers:
        for engine in dict.fromkeys(plan.engine for plan in plans):
            places = [place for place, plan in enumerate(plans) if plan.engine is engine]
            if stopped() or not any(targets[place].writer.missing for place in places):
                continue
            done = fill(
                workers,
                [plans[place] for place in places],
                targets=[targets[place] for place in places],
                project=project,
                options=options,
                donors=tuple(folder for place in places for folder in asked[plans[place].folder].donors),
                advance=advance,
                progress=progress,
                stopped=stopped,
            )
            for number, place in enumerate(places):
                counts[place], faint[place] = done.counts[number], done.faint_rows[number]
            remarks.update(done.remarks)
            shares.add(done.shares.seconds)
    return counts, faint, remarks


def _note_what_training_lacks(project: Project, plan: Plan, progress: Progress) -> None:
    """Say before the long work, not behind it, that no head can be trained on it as it is."""
    try:
        check(
            plan.dataset.images,
            project.dataset_file.name,
            remedy=init_call(into=project.folder, resplit=True),
            label_separator=plan.dataset.label_separator,
        )
    except DatasetError as error:
        left_out = [f"{item.path}: {item.reason}" for item in plan.left_out[:1]]
        because = f" ({len(plan.left_out)} listed images cannot be used: {left_out[0]})" if left_out else ""
        progress.note(f"no head can be trained on these images yet: {error}{because}")


def _is_finished(plan: Plan) -> bool:
    """Whether a cache is there. UsageError for another one of its name on a remote."""
    if plan.url:
        return finished_on(open_folder(plan.url), plan.site) is not None
    return (plan.folder / MANIFEST_FILE).is_file()


def _brought_up_to_date(plan: Plan, *, keep_labels: bool) -> tuple[bool, str]:
    """Give a finished cache the labels and splits of now. Returns whether they differed, and what was damaged.

    A damaged cache loses its manifest, so that it is one in the making again: its sound shards are kept.
    """
    folder = plan.folder
    if plan.url:
        store = open_folder(plan.url)
        entry = finished_on(store, plan.site)
        if entry is None or keep_labels:
            return False, ""
        return relabel_on(store, entry, dataset=plan.dataset, parent=plan.parent), ""
    if not (folder / MANIFEST_FILE).is_file():
        return False, ""
    try:
        cache = open_cache(folder)
        if cache.manifest.digest == plan.digest:
            return not keep_labels and cache.replace_dataset(plan.dataset), ""
    except CacheWriteError:
        raise
    except CacheError as error:
        if _is_newer(folder / MANIFEST_FILE):
            raise
        with writing(folder):
            (folder / MANIFEST_FILE).unlink(missing_ok=True)  # another process may have seen the same
        return False, str(error)
    raise CacheError(f"{folder}: holds another cache, whose digest begins alike: move it away")


def _is_newer(manifest: Path) -> bool:
    """Whether another featcache, newer than this one, wrote a manifest."""
    try:
        value = read_json(manifest)
        return int(value["format"]) > CACHE_FORMAT
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _provenance(plan: Plan, counts: Counts, seconds: float) -> dict[str, Any]:
    """Facts about the making of a cache. None of them decides a value, so none is in its name."""
    engine = {"engine": plan.engine().name, "batch_rows": plan.engine().batch_rows} if counts.computed else {}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": str(plan.cut.weights),
        **engine,
        **({COPY: plan.fitted.text} if plan.fitted else {}),
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "packages": dict(_installed(PACKAGES)),
        },
        "rows_computed": counts.computed,
        "rows_copied": counts.copied,
        "copied_from": sorted(counts.sources),
        "seconds": round(seconds, 3),
    }


def _installed(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and versions; a package may have come under another name, which is no reason to fail at the end."""
    for name in packages:
        with suppress(PackageNotFoundError):
            yield name, version(name)
