"""extract: every row that the project asks for and that its caches do not hold yet."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featcache.backbones import OnEvent
from featcache.core.errors import CacheError, CacheWriteError
from featcache.core.machine import usable_cores
from featcache.core.offline import offline
from featcache.core.progress import Stopping, Track, never, silent
from featcache.core.project import Project, refuse_unwritable
from featcache.core.strict_json import read_json
from featcache.datasets import Dataset, LeftOut
from featcache.extraction.cache_filler import Counts
from featcache.extraction.one_pass import Target, extract as extract_rows
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import Plan, plan_extraction
from featcache.extraction.stage_times import Shares, Stage
from featcache.sharing import Reached, ask_remotes, remotes_of
from featcache.store import CACHE_FORMAT, MANIFEST_FILE, CacheWriter, Reach, open_cache, writing

_PACKAGES = (
    "featcache",
    "keras",
    "tensorflow",
    "openvino",
    "jax",
    "torch",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "pillow",
)


@dataclass(frozen=True)
class Extracted:
    """What `extract` did for one cache. computed, reused and copied count rows, skipped the images that were left out.

    reused : rows that did not have to be computed; copied : those of them that came from other caches (`sources`)
    pulled_from : the cache's name on a remote that had it; "" where none had
    seconds : from the beginning, whatever was computed meanwhile for other caches included
    relabelled : whether a finished cache took over other labels, splits, groups or paths
    damage : what was wrong with a finished cache that had to be mended; "" where nothing was
    faint_rows : rows that float16 keeps only a few digits of, since all their values are tiny
    engine : which computed it and why; "" where nothing was computed
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

    @property
    def images_per_s(self) -> float:
        """Rows computed a second, everything included."""
        return self.computed / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Pass:
    """What one pass over the images did, for each cache and on the whole.

    shares : where the time went; seconds : of the pass alone, without planning
    """

    caches: Sequence[Extracted]
    shares: Shares
    seconds: float

    @property
    def bottleneck(self) -> Stage:
        """The stage that the others waited for."""
        return self.shares.bottleneck(self.seconds, usable_cores())


def extract(
    project: Project,
    models: Sequence[str],
    options: ExtractOptions | None = None,
    track: Track = silent,
    stopping: Stopping = never,
    on_event: OnEvent = lambda message: None,
) -> Pass:
    """Compute the features of every row that the project asks for and that no cache in reach holds yet.

    All models, and all their layers, are computed in one pass over the images.

    stopping : the context in which rows are computed; when it says so, the shards in hand are finished and
        KeyboardInterrupt raised
    on_event : told, in a sentence, what an engine has to say while it works

    Raises DatasetError for images that cannot be trained on, BackboneError or WeightsError for a network that
    cannot be had, CacheWriteError for a cache that cannot be written.
    """
    options = options or ExtractOptions()
    with offline(options.offline):
        return _extract(project, models, options, track, stopping, on_event)


def _extract(
    project: Project,
    models: Sequence[str],
    options: ExtractOptions,
    track: Track,
    stopping: Stopping,
    on_event: OnEvent,
) -> Pass:
    started = time.perf_counter()
    refuse_unwritable(project.cache_folder)
    plans = plan_extraction(project, models, options, track, on_event=on_event)
    different = {plan.folder: plan for plan in plans}  # a model may be named twice
    found = {folder: _brought_up_to_date(folder, plan.digest, plan.dataset) for folder, plan in different.items()}
    asked = {
        folder: _ask_remotes(project, plan, options, track, stopping, on_event)
        for folder, plan in different.items()
        if not (folder / MANIFEST_FILE).is_file()
    }
    unfinished = [different[folder] for folder, reached in asked.items() if reached.whole is None]
    for folder, reached in asked.items():
        if reached.whole is not None:
            found[folder] = _brought_up_to_date(folder, different[folder].digest, different[folder].dataset)
    before = time.perf_counter()
    filled, shares = _fill(unfinished, asked, options, started, track, stopping) if unfinished else ({}, Shares())
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
                weights=plan.cut.weights,
                relabelled=relabelled,
                damage=damage,
                faint_rows=faint_rows,
                engine=plan.engine().why if counts.computed else "",
                left_out=plan.left_out,
            )
        )
    return Pass(extracted, shares, now - before)


def _ask_remotes(
    project: Project, plan: Plan, options: ExtractOptions, track: Track, stopping: Stopping, on_event: OnEvent
) -> Reached:
    """What the project's remotes have of a cache: the whole of it, pulled; or rows that nobody has here."""
    if options.no_remote or options.offline or not remotes_of(project):
        return Reached()
    here = Reach((plan.parent, *options.reuse_from), plan.recipe.space, plan.cut.feature_shape, first=plan.folder)
    here.look_for(plan.rows)
    wanted = [row for row in plan.rows if not here.holds(row)]
    found = ask_remotes(project, plan.recipe, plan.rows, plan.storage.format, wanted, track, stopping)
    for remark in found.remarks:
        on_event(remark)
    return found


def _fill(
    plans: Sequence[Plan],
    asked: Mapping[Path, Reached],
    options: ExtractOptions,
    started: float,
    track: Track,
    stopping: Stopping,
) -> tuple[dict[Path, tuple[Counts, int]], Shares]:
    """Write what is missing, and commit. Returns what was done for each cache, and how many of its rows are faint."""
    by_id = {image.image_id: image for image in plans[0].dataset.images}
    names = ", ".join(plan.name for plan in plans)
    with stopping() as stopped, ExitStack() as writers:
        targets = [_target(plan, asked[plan.folder], options, writers) for plan in plans]
        shares = _opened(targets, track)
        with track(f"extracting {names}", sum(len(plan.rows) for plan in plans)) as advance:
            advance(sum(target.writer.rows_done for target in targets))
            done = extract_rows(targets, by_id, plans[0].dataset.folder, advance, stopped, shares)
        for plan, target, counts in zip(plans, targets, done.counts, strict=True):
            if not target.writer.missing:
                target.writer.finish(plan.dataset, _provenance(plan, counts, time.perf_counter() - started))
        if any(target.writer.missing for target in targets):
            raise KeyboardInterrupt
    for plan in plans:
        asked[plan.folder].forget()
    filled = {
        plan.folder: (counts, target.writer.faint_rows)
        for plan, target, counts in zip(plans, targets, done.counts, strict=True)
    }
    return filled, done.shares


def _opened(targets: Sequence[Target], track: Track) -> Shares:
    """Open the networks that have rows to compute, which takes seconds, and say so. Returns what that took."""
    shares = Shares()
    needed = dict.fromkeys(target.engine for target in targets if _has_rows_to_compute(target))
    if needed:
        with track("opening the network", len(needed)) as advance, shares.of("open"):
            for engine in needed:
                engine()
                advance(1)
    return shares


def _has_rows_to_compute(target: Target) -> bool:
    writer, reach = target.writer, target.reach
    numbers = (number for shard in writer.missing for number in range(*writer.store.layout.span(shard)))
    return any(not (reach and reach.holds(writer.rows[number])) for number in numbers)


def _target(plan: Plan, asked: Reached, options: ExtractOptions, writers: ExitStack) -> Target:
    """A cache to be filled, with its writer opened."""
    shape = plan.cut.feature_shape
    reach = Reach((plan.parent, *options.reuse_from, *asked.donors), plan.recipe.space, shape, but=plan.folder)
    reach.look_for(plan.rows)
    arguments = (plan.parent, plan.recipe, plan.rows, shape, plan.storage.format, options.allow_nonfinite)
    return Target(writers.enter_context(CacheWriter(*arguments)), plan.engine, plan.number, reach)


def _brought_up_to_date(folder: Path, digest: str, dataset: Dataset) -> tuple[bool, str]:
    """Give a finished cache the labels and splits of now. Returns whether they differed, and what was damaged.

    A damaged cache loses its manifest, so that it is one in the making again: its sound shards are kept.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return False, ""
    try:
        cache = open_cache(folder)
        if cache.manifest.digest == digest:
            return cache.replace_dataset(dataset), ""
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
        "weights": plan.cut.weights,
        **engine,
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "packages": dict(_installed(_PACKAGES)),
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
