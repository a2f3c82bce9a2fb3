"""init: look at images, write featcache.toml and dataset.csv."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from featcache.dataset.build import Built, SplitRule, build
from featcache.dataset.candidates import LeftOut
from featcache.dataset.manifest import SPLITS, Dataset, LabelledImage, read_dataset, write_dataset
from featcache.dataset.scan import STAMPS_FILE
from featcache.dataset.sources import find_images
from featcache.dataset.synthetic import write_cells
from featcache.errors import ProjectError
from featcache.files import PARTIAL_SUFFIX
from featcache.pipeline.dataset import SHEET_FILE, stop_if_strict
from featcache.pipeline.progress import Track, silent
from featcache.project import (
    DATASET_FILE,
    PROJECT_FILE,
    DatasetSection,
    Project,
    Settings,
    changed,
    read_settings,
    write_project,
)

GENERATED_FOLDER = "leukocytes"
GENERATED_PER_CLASS = 80


@dataclass(frozen=True)
class InitOptions:
    """How `init` reads a source and what it changes in featcache.toml; see `featcache init --help`.

    dataset, views, augmentation : values for those sections of featcache.toml
    resplit : make new splits even where the source, or an earlier dataset.csv, says them
    relabel : take the source's labels where an earlier dataset.csv says others
    """

    dataset: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    per_class: int = GENERATED_PER_CLASS
    resplit: bool = False
    relabel: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Initialised:
    """What `init` found and wrote."""

    project: Project
    dataset: Dataset
    layout: str
    about: str
    left_out: Sequence[LeftOut]
    remarks: Sequence[str]


def init(place: Path | None, into: Path, options: InitOptions | None = None, track: Track = silent) -> Initialised:
    """Write featcache.toml and dataset.csv into the folder `into`.

    Over a project that is there already, the images are read again: those known keep their split and
    group, settings stay unless `options` changes them.

    place : folder of images, or a CSV; None takes the project's own, or generates leukocytes into `into`

    Raises DatasetError for images that cannot be trained on, ProjectError where dataset.csv says other
    labels than the source and `options.relabel` is not set; nothing is written then.
    """
    options = options or InitOptions()
    before = _project_before(into)
    settings = _settings(before.settings if before else Settings(), options)
    about = ""
    if place is None and before:
        place = into / settings.dataset.source
    elif place is None:
        place, about = _generate(into, settings, options, track)
        settings = _split_by_counts(settings, options)
    own = Project(into, settings)
    ignore = frozenset({own.cache_folder, own.results_folder, own.dataset_file, into / SHEET_FILE})
    asked = settings.dataset
    source = find_images(place, asked, ignore)
    kept = _kept(before, settings)
    with track("checking images", len({candidate.path for candidate in source.candidates})) as advance:
        stamps = own.cache_folder / STAMPS_FILE
        built = build(source, _rule(asked, options.resplit), asked.without, kept, stamps, lambda: advance(1))
    stop_if_strict(built.left_out, options.strict)
    if not options.relabel:
        _refuse_other_labels(into, kept, built.images)
    project = _write_project(into, settings, place, source.folder, built)
    dataset = Dataset(built.images, project.images_folder)
    return Initialised(project, dataset, source.layout, about or source.about, built.left_out, built.remarks)


def _project_before(into: Path) -> Project | None:
    """The project that lies in `into` already, if only its settings; None where there is none."""
    file, dataset_file = into / PROJECT_FILE, into / DATASET_FILE
    if file.is_file():
        return Project(into, read_settings(file))
    if dataset_file.exists():
        raise ProjectError(
            f"{dataset_file} is here without {PROJECT_FILE}, so 'init' did not write it: rename it and name it as "
            "the list to read, 'featcache init LIST.csv'"
        )
    return None


def _kept(before: Project | None, settings: Settings) -> tuple[LabelledImage, ...]:
    """The images of the earlier dataset.csv; without their groups where another pattern makes the groups now."""
    if before is None or not before.dataset_file.exists():
        return ()
    images = read_dataset(before.dataset_file, before.images_folder).images
    if before.settings.dataset.group_pattern == settings.dataset.group_pattern:
        return images
    return tuple(replace(image, group="") for image in images)


def _refuse_other_labels(into: Path, kept: Sequence[LabelledImage], images: Sequence[LabelledImage]) -> None:
    """dataset.csv may have been edited by hand: its labels are not overwritten unasked."""
    listed = {(image.path, image.box, image.image_id): image.label for image in kept}
    other = [
        (image, label)
        for image in images
        if (label := listed.get((image.path, image.box, image.image_id), image.label)) != image.label
    ]
    if other:
        image, label = other[0]
        raise ProjectError(
            f"{into / DATASET_FILE} and the images' source give {len(other)} images different labels ({image.path}: "
            f"{label} in {DATASET_FILE}, {image.label} in the source): --relabel takes the source's"
        )


def _settings(settings: Settings, options: InitOptions) -> Settings:
    dataset = changed(settings.dataset, options.dataset)
    views = changed(settings.views, options.views)
    augmentation = changed(settings.augmentation, options.augmentation)
    changes = {"dataset": dataset, "views": views, "augmentation": augmentation}
    return settings.model_copy(update=changes)


def _rule(asked: DatasetSection, resplit: bool) -> SplitRule:
    shares = {split: share / sum(asked.split) for split, share in zip(SPLITS, asked.split, strict=True)}
    counts = dict(zip(SPLITS, asked.split_counts, strict=True)) if asked.split_counts else None
    return SplitRule(shares, counts, asked.split_seed, resplit, asked.group_pattern)


def _generate(into: Path, settings: Settings, options: InitOptions, track: Track) -> tuple[Path, str]:
    """Draw the generated leukocytes, unless a folder of that name is there."""
    folder = into / GENERATED_FOLDER
    if folder.exists():
        raise ProjectError(f"{folder} is already here: 'featcache init {GENERATED_FOLDER}' takes it as it is")
    with track("drawing leukocytes", 1) as advance, _writing(into):
        into.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", suffix=PARTIAL_SUFFIX, dir=into) as partial:
            write_cells(Path(partial) / folder.name, options.per_class, settings.augmentation.seed)
            (Path(partial) / folder.name).rename(folder)
        advance(1)
    return folder, f"generated leukocytes, {options.per_class} of each class, in {GENERATED_FOLDER}/"


def _split_by_counts(settings: Settings, options: InitOptions) -> Settings:
    """Equal counts a class, since nobody adds images to a generated set; unless another split is asked for."""
    if {"split", "split_counts"} & set(options.dataset):
        return settings
    part = max(options.per_class * 3 // 16, 1)
    counts = (options.per_class - 2 * part, part, part)
    return settings.model_copy(update={"dataset": changed(settings.dataset, {"split_counts": counts})})


def _write_project(into: Path, settings: Settings, source: Path, images: Path, built: Built) -> Project:
    with _writing(into):
        places = {"source": _relative(source, into), "images": _relative(images, into)}
        settings = settings.model_copy(update={"dataset": changed(settings.dataset, places)})
        into.mkdir(parents=True, exist_ok=True)
        write_project(into, settings)
        write_dataset(into / DATASET_FILE, built.images)
    return Project(into, settings)


@contextmanager
def _writing(into: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProjectError(f"{into}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise ProjectError(f"{into}: {error.object!r:.200} cannot be written as UTF-8: rename it") from error


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()
