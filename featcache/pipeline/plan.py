"""What an extraction will be of, before anything is computed: the data set, the recipe, the rows, the cache's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from featcache.backbones.engine import Engine, EngineInfo, open_engine
from featcache.backbones.known import KNOWN_FILE, identify
from featcache.dataset.candidates import LeftOut
from featcache.dataset.manifest import Dataset, check
from featcache.errors import DatasetError
from featcache.extract import rows_of
from featcache.pipeline.dataset import current_dataset
from featcache.pipeline.progress import Track, silent
from featcache.project import Project, StorageSection, changed
from featcache.recipe import FeatureSpace, Recipe, cache_digest, cache_name
from featcache.store.tables import Row
from featcache.views import plan_views


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract; see `featcache extract --help`. None, or what is not given, means: as featcache.toml says.

    storage : fields of [storage]
    reuse_from : folders of caches, besides the project's own, that rows may be copied from
    """

    weights: str = "imagenet"
    weights_seed: int = 0
    input_size_px: int | None = None
    preprocessing: str | None = None
    pooling: str = "none"
    views: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    storage: Mapping[str, Any] = field(default_factory=dict)
    reuse_from: Sequence[Path] = ()
    allow_nonfinite: bool = False
    check_bytes: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Plan:
    """All that names a cache, and how to open the backbone that fills it."""

    dataset: Dataset
    left_out: Sequence[LeftOut]
    info: EngineInfo
    recipe: Recipe
    views: Sequence[int]
    storage: StorageSection
    parent: Path
    engine: Callable[[], Engine]

    @cached_property
    def digest(self) -> str:
        """The cache's digest: of recipe and rows."""
        images = zip(self.dataset.images, self.views, strict=True)
        return cache_digest(self.recipe, ((image.image_id, view) for image, views in images for view in range(views)))

    @property
    def name(self) -> str:
        """The cache's name."""
        return cache_name(self.info.backbone, self.digest, self.storage.format)

    @property
    def folder(self) -> Path:
        """Where the cache is, or will be."""
        return self.parent / self.name

    @cached_property
    def rows(self) -> list[Row]:
        """Every row of the cache."""
        return rows_of(self.dataset.images, self.views, self.recipe)


def plan_extraction(
    project: Project, model: str, options: ExtractOptions, track: Track = silent, keep: bool = True
) -> Plan:
    """What `extract` with these arguments is of.

    keep : bring dataset.csv up to date with the images' bytes

    Raises DatasetError for images that cannot be trained on, BackboneError or WeightsError for a network that
    cannot be had.
    """
    dataset, left_out = current_dataset(project, options.strict, track, options.check_bytes, keep)
    _refuse_untrainable(project, dataset, left_out)
    views = plan_views(dataset.images, changed(project.settings.views, options.views))
    augmentation = changed(project.settings.augmentation, options.augmentation).record()
    storage = changed(project.settings.storage, options.storage)
    network = (model, options.weights, options.weights_seed)
    asked = (*network, options.input_size_px, options.preprocessing, options.pooling)
    info, opened = identify(project.cache_folder / KNOWN_FILE, *asked)

    @cache
    def engine() -> Engine:
        return opened or open_engine(*asked)[0]

    recipe = Recipe(space_of(info, storage.dtype), augmentation)
    return Plan(dataset, left_out, info, recipe, views, storage, project.cache_folder, engine)


def space_of(info: EngineInfo, dtype: str) -> FeatureSpace:
    """The feature space of an engine's output, kept in `dtype`."""
    return FeatureSpace(
        backbone=info.backbone,
        layer=info.layer,
        input_size_px=info.input_size_px,
        preprocessing=info.preprocessing,
        pooling=info.pooling,
        weights_digest=info.weights_digest,
        dtype=dtype,
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
