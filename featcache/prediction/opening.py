"""What a prediction needs of a run and of what is given to it: the head, the recipe, the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbones import CALIBRATION_FILE, Engine, Network, open_engine
from featcache.core.errors import ProjectError, RunError, UsageError
from featcache.core.progress import Progress
from featcache.core.project import PROJECT_FILE, Project, find_project
from featcache.core.recipe import UM_PER_PX, Recipe
from featcache.datasets import Dataset, LabelledImage, dataset_of
from featcache.extraction import cutting_again, network_of
from featcache.heads import HEAD_FILE, TrainedHead, load_head
from featcache.images import Item, items_of
from featcache.segmentation import Segmenter, SegmenterFile
from featcache.sharing import open_of_project
from featcache.store import RECIPE_FILE, Cache, find_cache, open_cache
from featcache.training import ENSEMBLE, EVALUATION, MODEL_FILE, SEGMENTER_FILE, Run, find_run, is_finished


def open_run(run: Run | str | Path, project: Project | None = None) -> Run:
    """A run by its folder, or by its name, or how that begins, in a project. Raises RunError where there is none."""
    if isinstance(run, Run):
        return run
    if is_finished(Path(run)):
        return Run(Path(run))
    try:
        project = project or find_project(Path())
    except ProjectError as error:
        raise RunError(f"{run}: there is no such run ({error})") from error
    return find_run(project.results_folder, str(run))


def recipe_of(run: Run) -> Recipe:
    """The recipe of the features that a run was trained on. Raises RunError where config.json has none."""
    _refuse_without_model(run)
    try:
        return Recipe.from_dict(run.config["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.folder}: config.json: its recipe cannot be read: {error}") from error


def _refuse_without_model(run: Run) -> None:
    """Raise RunError for kinds of runs that keep no model."""
    if run.is_cross_validation:
        raise RunError(f"{run.name}: a cross-validation keeps no head", "Train one with `featcache.fit_head()`")
    if run.config.get("kind") == EVALUATION:
        raise RunError(f"{run.name}: an evaluation keeps no model", f"Use the run itself: {run.config.get('run')}")
    if run.config.get("kind") == ENSEMBLE:
        members = ", ".join(map(str, run.config.get("members", ())))
        raise RunError(f"{run.name}: an ensemble keeps no model of its own", f"Use one of its members: {members}")


def classes_of(run: Run) -> tuple[str, ...]:
    """The classes of a run, in the order of its outputs. Raises RunError where config.json has none."""
    classes = run.config.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(label, str) for label in classes):
        raise RunError(f"{run.folder}: config.json: its classes cannot be read")
    return tuple(classes)


def head_of(run: Run) -> TrainedHead:
    """The head of a run. Raises RunError where it kept none, or one of other classes."""
    _refuse_without_model(run)
    if not (run.folder / HEAD_FILE).is_file():
        raise RunError(
            f"{run.name}: keeps no model: it has no {HEAD_FILE}, as classical heads that an earlier featcache trained",
            "Train it once more with `featcache.fit_head(head=KIND, again=True)`",
        )
    head = load_head(run.folder)
    if head.classes != classes_of(run):
        raise RunError(
            f"{run.folder}: head.npz knows the classes {', '.join(head.classes)}, config.json "
            f"{', '.join(classes_of(run))}: one of the files was replaced",
            "Train the run again",
        )
    return head


def cache_of(run: Run) -> Cache:
    """The cache that a run was trained on. Raises CacheNotFoundError or RunError where there is none, or another."""
    project, name = find_project(run.folder), str(run.config.get("cache_name", ""))
    cache = open_of_project(project, name) if project.cache_url else find_cache(project.cache_folder, name)
    if cache.manifest.digest != run.config.get("cache"):
        raise RunError(f"{run.name}: was trained on another cache than {cache.name} is now", "Train it again")
    return cache


def is_whole(run: Run) -> bool:
    """Whether a run is a whole network, and no head on features."""
    return (run.folder / MODEL_FILE).is_file()


def open_features(run: Run, weights: str | None, *, engine: str, batch_rows: int | None, progress: Progress) -> Engine:
    """What computes the features that the head of a run takes. Raises WeightsError where it cannot be had."""
    _, opened = network_of(
        recipe_of(run).space,
        {"weights": run.config.get("weights", "")},
        weights=weights,
        memory=memory_of(run),
        engine=engine,
        batch_rows=batch_rows,
        progress=progress,
    )
    return opened()


def open_whole(run: Run, network: Network, *, engine: str, batch_rows: int | None, progress: Progress) -> Engine:
    """What computes the network of a run, or a part of it."""
    memory = memory_of(run)
    calibration = memory / CALIBRATION_FILE if memory else None
    return open_engine(network, engine, batch_rows=batch_rows, memory=calibration, on_event=progress.note)


def segmenter_of(run: Run, recipe: Recipe, *, weights: str | None, progress: Progress) -> Segmenter | None:
    """The fitted segmenter that cuts out the cells which a run is trained on, by the copy that it keeps.

    Raises DatasetError without it, WeightsError where its network cannot be had.
    """
    path = run.folder / SEGMENTER_FILE
    copy = SegmenterFile.read(path) if path.is_file() else None
    project = None
    with suppress(ProjectError):
        project = find_project(run.folder.parent)
    return cutting_again(
        project, recipe.space.segmentation, copy=copy, where=run.name, weights=weights, progress=progress
    )


def names_of_rows(cache: Cache) -> tuple[str, ...]:
    """The path of each row, and which view it is where it is not the plain one."""
    rows = zip(cache.rows["path"], cache.rows["view"], strict=True)
    return tuple(path if view == 0 else f"{path} view {view}" for path, view in rows)


def memory_of(run: Run) -> Path | None:
    """The folder that remembers networks: of the project that the run lies in."""
    with suppress(ProjectError):
        return find_project(run.folder.parent).cache_folder
    return None


def as_cache(source: Any) -> Cache | None:
    """The cache that a source is, itself or by its folder; None of anything else."""
    if isinstance(source, Cache):
        return source
    if isinstance(source, (list, tuple)):
        found = [cache for part in source if (cache := as_cache(part)) is not None]
        if found and len(source) > 1:
            raise UsageError(f"{found[0].name}: is a cache: predict one cache at a time, or images")
        return found[0] if found else None
    if isinstance(source, (str, Path)) and (Path(source) / RECIPE_FILE).is_file():
        return open_cache(source)
    return None


def items_in(source: Any) -> list[Item] | Iterator[Item]:
    """The images of a source; a list where their number is known without reading a generator."""
    if isinstance(source, (str, Path, np.ndarray, Project)) or hasattr(source, "convert"):
        parts = [source]
    elif isinstance(source, Iterable) and isinstance(source, Sized):
        parts = list(source)
    else:
        return items_of(source)
    return list(items_of([item for part in parts for item in (_of_project(part) or [part])]))


def with_sizes(items: Iterable[Item], um_per_px: float | None) -> list[Item] | Iterator[Item]:
    """Images with the side of a pixel that was asked for, where no list says it; a list where a list was given."""
    if um_per_px is None:
        return items if isinstance(items, list) else iter(items)
    made = (replace(item, um_per_px=item.um_per_px or um_per_px) for item in items)
    return list(made) if isinstance(items, list) else made


def check_um_per_px(um_per_px: float | None, recipe: Recipe, *, name: str) -> None:
    """Raise UsageError for what is no side of a pixel, and where a run does not look at physical sizes."""
    least, most = UM_PER_PX
    if um_per_px is None:
        return
    if not least <= um_per_px <= most:
        raise UsageError(f"`um_per_px={um_per_px}`: expected the side of a pixel, {least:g} to {most:g} µm")
    if not recipe.space.um_per_px:
        raise UsageError(
            f"{name}: was trained on views that fit into their square, whatever their physical size",
            "Leave out `um_per_px`",
        )


def refuse_size_of_rows(cache: Cache, um_per_px: float | None) -> None:
    """Raise UsageError where a side of pixels is said of a cache, whose rows are features."""
    if um_per_px is not None:
        raise UsageError(f"{cache.name}: is a cache, whose rows are used as they are: leave out `um_per_px`")


def size_remedy(um_per_px: float | None, recipe: Recipe) -> str:
    """What to do where no image can be used, and it may be that nobody said how large pixels are; or ""."""
    return "Say how wide a pixel is with `um_per_px=NUMBER`" if recipe.space.um_per_px and um_per_px is None else ""


def _of_project(source: Any) -> list[Item]:
    """The images and boxes of a project, or of its folder; none of anything else."""
    if isinstance(source, (str, Path)) and (Path(source) / PROJECT_FILE).is_file():
        source = find_project(Path(source))
    if not isinstance(source, Project):
        return []
    dataset = dataset_of(source)
    source.images.refuse_missing(image.path for image in dataset.images)
    return [item_of(image, dataset) for image in dataset.images]


def item_of(image: LabelledImage, dataset: Dataset) -> Item:
    """An image of a data set, with its box and mask."""
    mask = dataset.folder / image.mask if image.mask else None
    path, name = dataset.folder / image.path, name_of(image.path, image.box)
    return Item(name, path, box=image.box, mask=mask, white=dataset.white, um_per_px=image.um_per_px)


def name_of(path: str, box: Any) -> str:
    """What an image, or a box in it, is called."""
    return path if box is None else f"{path} [{box.x_min}, {box.y_min}, {box.x_max}, {box.y_max}]"
