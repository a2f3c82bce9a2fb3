"""What an extraction will be of, before anything is computed: the data set, the recipe, the rows, the cache's name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from featcache.backbones import (
    ChosenEngine,
    Cut,
    NetworkSpec,
    available,
    is_in_registry,
    is_of_library,
    needs_keras,
    pixels,
    registry,
    require_keras,
)
from featcache.core.errors import DatasetError, WeightsError
from featcache.core.offline import offline
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project, StorageSection, ViewsSection, changed, changed_views, refuse_two_margins
from featcache.core.recipe import Recipe, cache_name
from featcache.datasets import Dataset, LeftOut, current_dataset, plan_views, stop_if_strict
from featcache.extraction.opening import network_for
from featcache.extraction.options import ExtractOptions
from featcache.extraction.rows import PlannedRows
from featcache.extraction.segmenters import cutting, with_fitted
from featcache.segmentation import GIVEN, Framing, Segmenter, SegmenterFile
from featcache.sharing import Site
from featcache.store import Row

_MOST_HELD = 1 << 17
"""Rows, which take some 600 bytes each."""


@dataclass(frozen=True)
class Plan:
    """All that names a cache, and how to open the backbone that fills it.

    network : as it was asked for
    cut, number : what the network computes for it, and which of the network's outputs that is
    engine : opens the network; the same for all caches of one
    fitted : the segmenter that cuts cells out, where it is a fitted one
    segmenter : opens it, with its network; the same for all caches of a call
    parent : folder of caches; url : of the remote that the cache is made on, "" for `parent`
    """

    dataset: Dataset
    left_out: Sequence[LeftOut]
    network: NetworkSpec
    cut: Cut
    number: int
    recipe: Recipe
    views: Sequence[int]
    storage: StorageSection
    parent: Path
    engine: Callable[[], ChosenEngine]
    fitted: SegmenterFile | None
    segmenter: Callable[[], Segmenter | None]
    url: str = ""

    @cached_property
    def digest(self) -> str:
        """The cache's digest: of recipe and rows."""
        return PlannedRows(self.dataset.images, self.views, recipe=self.recipe).keys().digest(self.recipe)

    @property
    def name(self) -> str:
        """The cache's name."""
        return cache_name(self.cut.space.backbone, self.digest, format_=self.storage.format)

    @property
    def folder(self) -> Path:
        """Where the cache is, or will be."""
        return self.parent / self.name

    @property
    def site(self) -> Site:
        """Where the cache is, or will be, on the remote that it is made on."""
        return Site(self.name, self.digest)

    @cached_property
    def rows(self) -> Sequence[Row]:
        """Every row of the cache; of very many each is made when it is asked for, since they would fill the memory."""
        rows = PlannedRows(self.dataset.images, self.views, recipe=self.recipe)
        return rows if len(rows) > _MOST_HELD else list(rows)


def plan_extraction(
    project: Project,
    networks: Sequence[NetworkSpec],
    *,
    options: ExtractOptions,
    images: tuple[Dataset, Sequence[LeftOut]] | None = None,
    progress: Progress = SILENT,
    keep: bool = True,
    fitted: SegmenterFile | None = None,
) -> list[Plan]:
    """What `extract` with these arguments is of: a plan a cache, for each network in turn one a layer.

    images : a data set and what was left out of it, instead of the project's
    keep : bring dataset.csv up to date with the images' bytes
    fitted : what is in the file of the segmenter, where another process has read it

    Raises MissingPackageError where Keras is needed and not installed, DatasetError for images that cannot be trained
    on, BackboneError or WeightsError for a network that cannot be had.
    """
    wanted = changed_views(project.settings.views, options.views)
    wanted, fitted = with_fitted(wanted, options.views, folder=project.folder, known=fitted)
    refuse_two_margins(project.settings.dataset, wanted)
    if any(needs_keras(network.model) for network in networks):
        require_keras()
    dataset, left_out = images or current_dataset(
        project, options.strict, progress=progress, check_bytes=options.check_bytes, keep=keep
    )
    if images is not None and "white" not in options.views:
        wanted = changed(wanted, {"white": dataset.white})
    if wanted.segment == GIVEN:
        dataset, left_out = _with_masks(dataset, left_out, strict=options.strict)
    if wanted.um_per_px:
        dataset, left_out = _of_known_size(dataset, left_out, strict=options.strict, progress=progress)
    if wanted.margin:
        _check_boxes(dataset, wanted.margin, progress=progress)
    views = plan_views(dataset.images, wanted, label_separator=dataset.label_separator)
    augmentation = changed(project.settings.augmentation, options.augmentation).record()
    storage = changed(project.settings.storage, options.storage)

    @cache
    def segmenter() -> Segmenter | None:
        (plan, *_) = plans
        files = [wanted.segment_weights, *(network.weights for network in networks)]
        with offline(options.offline):
            return cutting(fitted, plan.recipe.space.segmentation, where=plan.name, weights=files, progress=progress)

    plans: list[Plan] = []
    for network in networks:
        if options.offline:
            _refuse_download(network.model, network.weights)
        with offline(options.offline), progress.begin(f"looking at {network.model}", 1) as advance:
            cuts, engine = network_for(
                network,
                project.cache_folder,
                engine=options.engine,
                batch_rows=options.batch_rows,
                progress=progress,
            )
            advance(1)
        _say_how_its_library_does(network.model, cuts[0], wanted, said=options.views, progress=progress)
        for number, cut in enumerate(cuts):
            framing = Framing.asked(wanted, cut.space.input_size_px, own=cut.transform, said=options.views)
            recipe = Recipe(cut.stored(storage.dtype_of(cut.space.precision), **framing._asdict()), augmentation)
            if cut.space.dtype == pixels.DTYPE and "dtype" in options.storage:
                pixels.refuse(["dtype"])
            plans.append(
                Plan(
                    dataset=dataset,
                    left_out=left_out,
                    network=network,
                    cut=cut,
                    number=number,
                    recipe=recipe,
                    views=views,
                    storage=storage,
                    parent=project.cache_folder,
                    engine=engine,
                    fitted=fitted,
                    segmenter=segmenter,
                    url=project.cache_url,
                )
            )
    return plans


def _say_how_its_library_does(
    model: str, cut: Cut, views: ViewsSection, *, said: Collection[str], progress: Progress
) -> None:
    """Say how images become square where the network's library has a way of its own, be it taken or not."""
    if cut.transform is None:
        return
    size_px = cut.space.input_size_px
    taken, own = (
        replace(cut.space, **Framing.asked(one, size_px, own=cut.transform, said=of)._asdict()).square
        for one, of in ((views, said), (ViewsSection(as_trained=True, margin=views.margin), ()))
    )
    if taken == own:
        progress.note(f"{model}: images become {taken}, as its library makes them")
    else:
        progress.note(f"{model}: images become {taken}; its library makes them {own} (`as_trained=True`)")


def _with_masks(dataset: Dataset, left_out: Sequence[LeftOut], *, strict: bool) -> tuple[Dataset, Sequence[LeftOut]]:
    """The images that a mask comes with, and what is left out besides. Raises DatasetError where none has one."""
    images = tuple(image for image in dataset.images if image.mask)
    if not images:
        raise DatasetError(
            "no image has a mask, and `segment='given'` takes the masks that come with images",
            "Name their folder with `featcache.init(masks=FOLDER)`, or read a list with a column of masks",
        )
    bare = [LeftOut(image.path, "it has no mask") for image in dataset.images if not image.mask]
    stop_if_strict(bare, strict)
    return replace(dataset, images=images), [*left_out, *bare]


def _of_known_size(
    dataset: Dataset, left_out: Sequence[LeftOut], *, strict: bool, progress: Progress
) -> tuple[Dataset, Sequence[LeftOut]]:
    """The images whose physical size is known, and what is left out besides.

    Raises DatasetError where there is none.
    """
    unknown = [LeftOut(one.path, size.problem) for one in dataset.images if not (size := dataset.size_of(one)).um]
    stop_if_strict(unknown, strict)
    remedy = (
        "Say it of all images with `featcache.init(um_per_px=NUMBER)`, or of each in a column um_per_px of dataset.csv"
    )
    if len(unknown) == len(dataset.images):
        raise DatasetError(
            f"{unknown[0].path}: {unknown[0].reason}, and so of all images: `um_per_px` needs their physical size",
            remedy,
        )
    if unknown:
        progress.note(f"{len(unknown)} images are left out, since nobody knows how large their pixels are. {remedy}")
    known = tuple(image for image in dataset.images if dataset.size_of(image).um)
    return replace(dataset, images=known), [*left_out, *unknown]


def _check_boxes(dataset: Dataset, margin: float, *, progress: Progress) -> None:
    """Say of which images a margin does nothing; raise DatasetError where it does nothing at all."""
    without = sum(image.box is None for image in dataset.images)
    if without == len(dataset.images):
        raise DatasetError(f"no image has a box: there is nothing to leave a `margin` of {margin:g} around")
    if without:
        progress.note(f"{without} of {len(dataset.images)} images have no box, and get no margin")


def _refuse_download(model: str, weights: str) -> None:
    """Raise WeightsError where weights would have to be downloaded."""
    if weights != "imagenet" or model == registry.PIXELS:
        return
    if is_of_library(model):
        raise WeightsError(
            f"{model}: its weights may have to be downloaded, and `offline` allows no download",
            "Leave it out, or name a file with `weights=PATH`",
        )
    if not is_in_registry(model):
        return
    backbone = registry.get(model)
    if available(backbone) == "download":
        raise WeightsError(
            f"{backbone.name}: the ImageNet weights are not on this machine, and `offline` allows no download",
            "Leave it out, or name a file with `weights=PATH`",
        )
