"""extract: every row that the project asks for and that its cache does not hold yet."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featcache.backbones.engine import EngineInfo
from featcache.dataset.candidates import LeftOut
from featcache.dataset.manifest import Dataset
from featcache.errors import CacheError, CacheWriteError
from featcache.extract import Counts
from featcache.extract import extract as extract_rows
from featcache.pipeline.plan import ExtractOptions, Plan, plan_extraction
from featcache.pipeline.progress import Stopping, Track, never, silent
from featcache.project import Project, refuse_unwritable
from featcache.store.cache import open_cache
from featcache.store.layout import MANIFEST_FILE
from featcache.store.manifest import CACHE_FORMAT
from featcache.store.reach import Reach
from featcache.store.writer import CacheWriter, writing

_PACKAGES = ("featcache", "keras", "tensorflow", "numpy", "opencv-python-headless", "opencv-python", "pillow")


@dataclass(frozen=True)
class Extracted:
    """What `extract` did. computed, reused and copied count rows, skipped counts images that were left out.

    reused : rows that did not have to be computed; copied : those of them that came from other caches (`sources`)
    relabelled : whether a finished cache took over other labels, splits, groups or paths
    damage : what was wrong with a finished cache that had to be mended; "" where nothing was
    faint_rows : rows that float16 keeps only a few digits of, since all their values are tiny
    """

    cache: str
    path: Path
    format: str
    rows: int
    computed: int
    reused: int
    copied: int
    sources: Sequence[str]
    skipped: int
    seconds: float
    shape: tuple[int, ...]
    dtype: str
    weights: str
    relabelled: bool
    damage: str
    faint_rows: int
    left_out: Sequence[LeftOut]

    @property
    def images_per_s(self) -> float:
        """Rows computed a second, everything included."""
        return self.computed / self.seconds if self.seconds else 0.0


def extract(
    project: Project,
    model: str,
    options: ExtractOptions | None = None,
    track: Track = silent,
    stopping: Stopping = never,
) -> Extracted:
    """Compute the features of every row that the project asks for and that no cache in reach holds yet.

    stopping : the context in which rows are computed; when it says so, the shard in hand is finished and
        KeyboardInterrupt raised

    Raises DatasetError for images that cannot be trained on, BackboneError or WeightsError for a network that
    cannot be had, CacheWriteError for a cache that cannot be written.
    """
    options = options or ExtractOptions()
    started = time.perf_counter()
    refuse_unwritable(project.cache_folder)
    plan = plan_extraction(project, model, options, track)
    counts, faint_rows = Counts(), 0
    relabelled, damage = _brought_up_to_date(plan.folder, plan.digest, plan.dataset)
    n_rows = sum(plan.views)
    if not (plan.folder / MANIFEST_FILE).is_file():
        counts, faint_rows = _fill(plan, options, started, track, stopping)
    return Extracted(
        cache=plan.name,
        path=plan.folder,
        format=plan.storage.format,
        rows=n_rows,
        computed=counts.computed,
        reused=n_rows - counts.computed,
        copied=counts.copied,
        sources=sorted(counts.sources),
        skipped=len(plan.left_out),
        seconds=time.perf_counter() - started,
        shape=(n_rows, *plan.info.feature_shape),
        dtype=plan.storage.dtype,
        weights=plan.info.weights,
        relabelled=relabelled,
        damage=damage,
        faint_rows=faint_rows,
        left_out=plan.left_out,
    )


def _fill(plan: Plan, options: ExtractOptions, started: float, track: Track, stopping: Stopping) -> tuple[Counts, int]:
    """Write what is missing, and commit. Returns what was done, and how many rows are faint."""
    shape = plan.info.feature_shape
    reach = Reach((plan.parent, *options.reuse_from), plan.recipe.space, shape, but=plan.folder)
    reach.look_for(plan.rows)
    by_id = {image.image_id: image for image in plan.dataset.images}
    arguments = (plan.parent, plan.recipe, plan.rows, shape, plan.storage.format, options.allow_nonfinite)
    with stopping() as stopped, CacheWriter(*arguments) as writer:
        with track(f"extracting {plan.name}", len(plan.rows)) as advance:
            advance(writer.rows_done)
            counts = extract_rows(writer, by_id, plan.dataset.folder, plan.engine, reach, advance, stopped)
        if writer.missing:
            raise KeyboardInterrupt
        writer.finish(plan.dataset, _provenance(plan.info, counts, time.perf_counter() - started))
    return counts, writer.faint_rows


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
        value = json.loads(manifest.read_text(encoding="utf-8"))
        return int(value["format"]) > CACHE_FORMAT
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _provenance(info: EngineInfo, counts: Counts, seconds: float) -> dict[str, Any]:
    """Facts about the making of a cache. None of them decides a value, so none is in its name."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": info.weights,
        "engine": info.engine,
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "packages": dict(_installed((*_PACKAGES, "zarr", "h5py"))),
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
