"""What an extraction will be of, before anything is computed: the data set, the recipe, the rows, the cache's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from featcache.backbones import (
    CALIBRATION_FILE,
    KNOWN_FILE,
    ChosenEngine,
    Cut,
    NetworkSpec,
    OnEvent,
    available,
    identify,
    load_network,
    open_engine,
    own_models,
    pixels,
    registry,
    space_of,
)
from featcache.core.errors import DatasetError, WeightsError
from featcache.core.offline import offline
from featcache.core.progress import Track, silent
from featcache.core.project import Project, StorageSection, changed, init_call
from featcache.core.recipe import Recipe, cache_digest, cache_name
from featcache.datasets import Dataset, LeftOut, check, current_dataset, plan_views
from featcache.extraction.options import ExtractOptions
from featcache.extraction.rows import rows_of
from featcache.store import Row


@dataclass(frozen=True)
class Plan:
    """All that names a cache, and how to open the backbone that fills it.

    cut, number : what the network computes for it, and which of the network's outputs that is
    engine : opens the network; the same for all caches of one
    """

    dataset: Dataset
    left_out: Sequence[LeftOut]
    cut: Cut
    number: int
    recipe: Recipe
    views: Sequence[int]
    storage: StorageSection
    parent: Path
    engine: Callable[[], ChosenEngine]

    @cached_property
    def digest(self) -> str:
        """The cache's digest: of recipe and rows."""
        images = zip(self.dataset.images, self.views, strict=True)
        return cache_digest(self.recipe, ((image.image_id, view) for image, views in images for view in range(views)))

    @property
    def name(self) -> str:
        """The cache's name."""
        return cache_name(self.cut.backbone, self.digest, self.storage.format)

    @property
    def folder(self) -> Path:
        """Where the cache is, or will be."""
        return self.parent / self.name

    @cached_property
    def rows(self) -> list[Row]:
        """Every row of the cache."""
        return rows_of(self.dataset.images, self.views, self.recipe)


def plan_extraction(
    project: Project,
    models: Sequence[str],
    options: ExtractOptions,
    track: Track = silent,
    keep: bool = True,
    on_event: OnEvent = lambda message: None,
) -> list[Plan]:
    """What `extract` with these arguments is of: a plan a cache, for each model in turn one a layer.

    keep : bring dataset.csv up to date with the images' bytes
    on_event : told, in a sentence, what an engine has to say while it works

    Raises DatasetError for images that cannot be trained on, BackboneError or WeightsError for a network that
    cannot be had.
    """
    dataset, left_out = current_dataset(project, options.strict, track, options.check_bytes, keep)
    _refuse_untrainable(project, dataset, left_out)
    wanted = changed(project.settings.views, options.views)
    views = plan_views(dataset.images, wanted)
    augmentation = changed(project.settings.augmentation, options.augmentation).record()
    storage = changed(project.settings.storage, options.storage)
    plans = []
    for model in models:
        if options.offline:
            _refuse_download(model, options.weights)
        with offline(options.offline), track(f"looking at {model}", 1) as advance:
            cuts, engine = network_for(project, options.network(model), options.engine, options.batch_rows, on_event)
            advance(1)
        for number, cut in enumerate(cuts):
            recipe = Recipe(space_of(cut, storage.dtype, wanted.resize), augmentation)
            if cut.dtype == pixels.DTYPE and "dtype" in options.storage:
                pixels.refuse(["dtype"])
            plans.append(Plan(dataset, left_out, cut, number, recipe, views, storage, project.cache_folder, engine))
    return plans


def _refuse_download(model: str, weights: str) -> None:
    """Raise WeightsError where weights would have to be downloaded."""
    if weights != "imagenet" or model == registry.PIXELS or own_models.is_file(model) or own_models.is_builder(model):
        return
    backbone = registry.get(model)
    if available(backbone) == "download":
        raise WeightsError(
            f"{backbone.name}: the ImageNet weights are not on this machine, and `offline` allows no download",
            "Leave it out, or name a file with `weights=PATH`",
        )


def network_for(
    project: Project,
    spec: NetworkSpec,
    engine: str = "auto",
    batch_rows: int | None = None,
    on_event: OnEvent = lambda message: None,
) -> tuple[tuple[Cut, ...], Callable[[], ChosenEngine]]:
    """What a network computes, and how to open it; what was found out about it before is remembered in the project.

    Raises BackboneError or WeightsError for a network that cannot be had.
    """
    if spec.model == registry.PIXELS:
        cut = pixels.cut_of(spec)
        return (cut,), cache(lambda: ChosenEngine(pixels.PixelsEngine(cut), "pixels as they are rendered"))
    cuts, loaded = identify(project.cache_folder / KNOWN_FILE, spec)

    @cache
    def opened() -> ChosenEngine:
        memory = project.cache_folder / CALIBRATION_FILE
        return open_engine(loaded or load_network(spec), engine, batch_rows, memory, on_event)

    return cuts, opened


def _refuse_untrainable(project: Project, dataset: Dataset, left_out: Sequence[LeftOut]) -> None:
    """Say before the long work, not behind it, what no head could be trained on."""
    try:
        check(dataset.images, str(project.dataset_file), init_call(into=project.folder, resplit=True))
    except DatasetError as error:
        if not left_out:
            raise
        reason = f"{left_out[0].path}: {left_out[0].reason}"
        raise DatasetError(f"{error}. {len(left_out)} listed images cannot be used ({reason})") from error
