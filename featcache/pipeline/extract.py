"""extract: every row that the project asks for and that its cache does not hold yet."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featcache.backbones.engine import EngineInfo, open_engine
from featcache.backbones.known import KNOWN_FILE, identify
from featcache.dataset.candidates import LeftOut
from featcache.dataset.manifest import Dataset, check
from featcache.errors import CacheError, CacheWriteError, DatasetError
from featcache.extract import extract as extract_rows
from featcache.extract import rows_of
from featcache.pipeline.dataset import current_dataset
from featcache.pipeline.progress import Track, silent
from featcache.project import Project, changed, refuse_unwritable
from featcache.recipe import FeatureSpace, Recipe, cache_digest, cache_name
from featcache.store.cache import open_cache
from featcache.store.layout import MANIFEST_FILE
from featcache.store.manifest import CACHE_FORMAT
from featcache.store.writer import CacheWriter
from featcache.views import plan_views

_PACKAGES = ("featcache", "keras", "tensorflow", "numpy", "opencv-python-headless", "opencv-python", "pillow", "zarr")


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract; see `featcache extract --help`. None means: as featcache.toml says."""

    weights: str = "imagenet"
    weights_seed: int = 0
    input_size_px: int | None = None
    preprocessing: str | None = None
    pooling: str = "none"
    views: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True)
class Extracted:
    """What `extract` did. computed and reused count rows, skipped counts images that were left out.

    relabelled : whether a finished cache took over other labels, splits, groups or paths
    damage : what was wrong with a finished cache that had to be mended; "" where nothing was
    """

    cache: str
    path: Path
    rows: int
    computed: int
    reused: int
    skipped: int
    seconds: float
    shape: tuple[int, ...]
    weights: str
    relabelled: bool
    damage: str
    left_out: Sequence[LeftOut]

    @property
    def images_per_s(self) -> float:
        """Rows computed a second, everything included."""
        return self.computed / self.seconds if self.seconds else 0.0


def extract(project: Project, model: str, options: ExtractOptions | None = None, track: Track = silent) -> Extracted:
    """Compute the features of every row that the project asks for and that its cache does not hold yet.

    Raises DatasetError for images that cannot be trained on, BackboneError or WeightsError for a network that
    cannot be had, CacheWriteError for a cache that cannot be written.
    """
    options = options or ExtractOptions()
    started = time.perf_counter()
    refuse_unwritable(project.cache_folder)
    dataset, left_out = current_dataset(project, options.strict, track)
    _refuse_untrainable(project, dataset, left_out)
    views = plan_views(dataset.images, changed(project.settings.views, options.views))
    augmentation = changed(project.settings.augmentation, options.augmentation).record()
    asked = (options.input_size_px, options.preprocessing, options.pooling)
    info, engine = identify(project.cache_folder / KNOWN_FILE, model, options.weights, options.weights_seed, *asked)
    recipe = Recipe(_space(info), augmentation)
    rows = rows_of(dataset.images, views, recipe)
    digest = cache_digest(recipe, ((row.image_id, row.view) for row in rows))
    name = cache_name(info.backbone, digest)
    folder = project.cache_folder / name
    computed = 0
    relabelled, damage = _brought_up_to_date(folder, digest, dataset)
    if not (folder / MANIFEST_FILE).is_file():
        writer = CacheWriter(project.cache_folder, recipe, rows, info.feature_shape)
        if writer.missing and engine is None:
            engine, _ = open_engine(model, options.weights, options.weights_seed, *asked)
        with track(f"extracting {name}", len(rows)) as advance:
            advance(writer.rows_done)
            if engine is not None:
                by_id = {image.image_id: image for image in dataset.images}
                computed = extract_rows(writer, by_id, dataset.folder, engine, advance)
        seconds = time.perf_counter() - started
        writer.finish(dataset, _provenance(info, computed, seconds))
    return Extracted(
        cache=name,
        path=folder,
        rows=len(rows),
        computed=computed,
        reused=len(rows) - computed,
        skipped=len(left_out),
        seconds=time.perf_counter() - started,
        shape=(len(rows), *info.feature_shape),
        weights=info.weights,
        relabelled=relabelled,
        damage=damage,
        left_out=left_out,
    )


def _refuse_untrainable(project: Project, dataset: Dataset, left_out: Sequence[LeftOut]) -> None:
    """Say before the long work, not behind it, what no head could be trained on."""
    try:
        check(dataset.images, str(project.dataset_file))
    except DatasetError as error:
        if not left_out:
            raise
        reason = f"{left_out[0].path}: {left_out[0].reason}"
        raise DatasetError(f"{error}. {len(left_out)} listed images cannot be used ({reason})") from error


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
        (folder / MANIFEST_FILE).unlink()
        return False, str(error)
    raise CacheError(f"{folder}: holds another cache, whose digest begins alike: move it away")


def _is_newer(manifest: Path) -> bool:
    """Whether another featcache, newer than this one, wrote a manifest."""
    try:
        value = json.loads(manifest.read_text(encoding="utf-8"))
        return int(value["format"]) > CACHE_FORMAT
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _space(info: EngineInfo) -> FeatureSpace:
    return FeatureSpace(
        backbone=info.backbone,
        layer=info.layer,
        input_size_px=info.input_size_px,
        preprocessing=info.preprocessing,
        pooling=info.pooling,
        weights_digest=info.weights_digest,
    )


def _provenance(info: EngineInfo, computed: int, seconds: float) -> dict[str, Any]:
    """Facts about the making of a cache. None of them decides a value, so none is in its name."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": info.weights,
        "engine": info.engine,
        "tolerance": {"relative": 1e-4, "absolute": 1e-4},
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "packages": dict(_installed(_PACKAGES)),
        },
        "rows_computed": computed,
        "seconds": round(seconds, 3),
    }


def _installed(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and versions; a package may have come under another name, which is no reason to fail at the end."""
    for name in packages:
        with suppress(PackageNotFoundError):
            yield name, version(name)
