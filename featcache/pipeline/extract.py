"""extract: every row that the project asks for and that its cache does not hold yet."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featcache.backbones.engine import EngineInfo, open_engine
from featcache.backbones.known import KNOWN_FILE, identify
from featcache.dataset.sources import LeftOut
from featcache.errors import ProjectError
from featcache.extract import extract as extract_rows
from featcache.extract import rows_of
from featcache.pipeline.dataset import current_dataset
from featcache.pipeline.progress import Track, silent
from featcache.project import PROJECT_FILE, Project, changed
from featcache.recipe import FeatureSpace, Recipe, cache_digest, cache_name
from featcache.store.cache import open_cache
from featcache.store.layout import MANIFEST_FILE
from featcache.store.writer import CacheWriter
from featcache.views import plan_views


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
    """What `extract` did. computed and reused count rows, skipped counts images that were left out."""

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
    left_out: Sequence[LeftOut]

    @property
    def images_per_s(self) -> float:
        """Rows computed a second, everything included."""
        return self.computed / self.seconds if self.seconds else 0.0


def extract(project: Project, model: str, options: ExtractOptions | None = None, track: Track = silent) -> Extracted:
    """Compute the features of every row that the project asks for and that its cache does not hold yet."""
    options = options or ExtractOptions()
    started = time.perf_counter()
    _refuse_unwritable(project.cache_folder)
    dataset, left_out = current_dataset(project, options.strict, track)
    asked = (options.input_size_px, options.preprocessing, options.pooling)
    info, engine = identify(project.cache_folder / KNOWN_FILE, model, options.weights, options.weights_seed, *asked)
    recipe = _recipe(info, project, options)
    views = plan_views(dataset.images, changed(project.settings.views, options.views))
    rows = rows_of(dataset.images, views, recipe)
    name = cache_name(info.backbone, cache_digest(recipe, ((row.image_id, row.view) for row in rows)))
    folder = project.cache_folder / name
    relabelled, computed = False, 0
    if (folder / MANIFEST_FILE).is_file():
        cache = open_cache(folder)
        relabelled = cache.replace_dataset(dataset)
    else:
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
        left_out=left_out,
    )


def _refuse_unwritable(folder: Path) -> None:
    """Say before any work that caches cannot be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ProjectError(
            f"{folder}: cannot be written ({error.strerror}): free the folder, or name another one under [folders] "
            f"in {PROJECT_FILE}"
        ) from error


def _recipe(info: EngineInfo, project: Project, options: ExtractOptions) -> Recipe:
    space = FeatureSpace(
        backbone=info.backbone,
        layer=info.layer,
        input_size_px=info.input_size_px,
        preprocessing=info.preprocessing,
        pooling=info.pooling,
        weights_digest=info.weights_digest,
    )
    return Recipe(space, changed(project.settings.augmentation, options.augmentation).record())


def _provenance(info: EngineInfo, computed: int, seconds: float) -> dict[str, Any]:
    """Facts about the making of a cache. None of them decides a value, so none is in its name."""
    packages = ("featcache", "keras", "tensorflow", "numpy", "opencv-python-headless", "pillow", "zarr")
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": info.weights,
        "engine": info.engine,
        "tolerance": {"relative": 1e-4, "absolute": 1e-4},
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "packages": {name: version(name) for name in packages},
        },
        "rows_computed": computed,
        "seconds": round(seconds, 3),
    }
