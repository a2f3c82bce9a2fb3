"""init: look at images, write featcache.toml and dataset.csv."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.dataset.build import Built, SplitRule, build
from featcache.dataset.manifest import Dataset, read_dataset, write_dataset
from featcache.dataset.scan import STAMPS_FILE
from featcache.dataset.sources import LeftOut, find_images
from featcache.dataset.synthetic import write_cells
from featcache.errors import ProjectError
from featcache.pipeline.dataset import stop_if_strict
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
GENERATED_PER_CLASS = 60


@dataclass(frozen=True)
class InitOptions:
    """How `init` reads a source and what it writes into featcache.toml; see `featcache init --help`."""

    rule: SplitRule = field(default_factory=SplitRule)
    without: Sequence[str] = ()
    voc_object: str = "WBC"
    margin: float = 0.0
    views: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    per_class: int = GENERATED_PER_CLASS
    seed: int = 0
    update: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Initialised:
    """What `init` found and wrote."""

    project: Project
    dataset: Dataset
    about: str
    left_out: Sequence[LeftOut]
    remarks: Sequence[str]


def init(place: Path | None, into: Path, options: InitOptions | None = None, track: Track = silent) -> Initialised:
    """Write featcache.toml and dataset.csv into the folder `into`.

    place : folder of images, or a CSV; None generates leukocytes into `into`

    Raises DatasetError for images that cannot be trained on, ProjectError if `into` is a project already
    and `options.update` is not set; nothing is written then.
    """
    options = options or InitOptions()
    before = _project_before(into, options)
    settings = before.settings if before else Settings()
    if place is None and before:
        place = before.images_folder
    about = ""
    if place is None:
        place, about = _generate(into, options, track)
    own = Project(into, settings)
    ignore = frozenset({own.cache_folder, own.results_folder, own.dataset_file}) if before else frozenset()
    source = find_images(place, options.voc_object, options.margin, ignore)
    kept = read_dataset(before.dataset_file, before.images_folder).images if before else ()
    with track("checking images", len({candidate.path for candidate in source.candidates})) as advance:
        stamps = own.cache_folder / STAMPS_FILE
        built = build(source, options.rule, options.without, kept, stamps, on_file=lambda: advance(1))
    stop_if_strict(built.left_out, options.strict)
    project = _write_project(into, settings, source.folder, source.layout, options, built)
    dataset = Dataset(built.images, project.images_folder)
    return Initialised(project, dataset, about or source.about, built.left_out, built.remarks)


def _project_before(into: Path, options: InitOptions) -> Project | None:
    """The project that lies in `into` already, to be updated; None where there is none."""
    file = into / PROJECT_FILE
    if not file.exists() and not (into / DATASET_FILE).exists():
        return None
    if not options.update:
        there = file if file.exists() else into / DATASET_FILE
        raise ProjectError(
            f"{there} is already here: 'featcache init --update' reads the images again and keeps splits as they are"
        )
    return Project(into, read_settings(file)) if file.exists() else None


def _generate(into: Path, options: InitOptions, track: Track) -> tuple[Path, str]:
    """Draw the generated leukocytes, unless a folder of that name is there."""
    folder = into / GENERATED_FOLDER
    if folder.exists():
        raise ProjectError(f"{folder} is already here: 'featcache init {GENERATED_FOLDER}' takes it as it is")
    with track("drawing leukocytes", 1) as advance:
        write_cells(folder, options.per_class, options.seed)
        advance(1)
    return folder, f"generated leukocytes, {options.per_class} of each class, in {GENERATED_FOLDER}/"


def _write_project(
    into: Path, settings: Settings, images: Path, layout: str, options: InitOptions, built: Built
) -> Project:
    try:
        relative = Path(os.path.relpath(images.resolve(), into.resolve())).as_posix()
        settings = Settings(
            dataset=DatasetSection(images=relative, layout=layout),
            views=changed(settings.views, options.views),
            augmentation=changed(settings.augmentation, options.augmentation),
            folders=settings.folders,
        )
        into.mkdir(parents=True, exist_ok=True)
        write_dataset(into / DATASET_FILE, built.images)
        write_project(into, settings)
    except OSError as error:
        raise ProjectError(f"{into}: cannot be written: {error.strerror or error}") from error
    return Project(into, settings)
