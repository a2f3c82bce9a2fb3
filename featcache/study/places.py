"""Where the parts of a study lie, and the project of each data set: made once, and taken as it is from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featcache.core.errors import DatasetError, ProjectError
from featcache.core.files import resolved
from featcache.core.progress import Progress
from featcache.core.project import (
    DATASET_FILE,
    PROJECT_FILE,
    AugmentationSection,
    DatasetSection,
    FoldersSection,
    Project,
    ViewsSection,
    find_project,
    found_everywhere,
    write_project,
)
from featcache.datasets import GENERATED_FOLDER, GENERATED_PER_CLASS, InitOptions, dataset_of, init
from featcache.study.tables import DataSet
from featcache.synthetic import is_generated
from featcache.training import refuse_several_labels

_SHARED_RESULTS = "../results"


def place_of(data: DataSet, into: Path) -> Path:
    """The folder of a data set's project: the study's, or one in it where there are several."""
    return into / data.name if data.name else into


def is_made(data: DataSet, into: Path) -> bool:
    """Whether `init` has been done for a data set."""
    place = place_of(data, into)
    return (place / PROJECT_FILE).is_file() and (place / DATASET_FILE).is_file()


def make(data: DataSet, into: Path, *, progress: Progress) -> tuple[Project, bool]:
    """The project of a data set, made by `init` where it is not there; and whether it was.

    Labels, splits and groups of a project that is there stay as they are in its dataset.csv.

    Raises ProjectError where other images or another project are in its place, DatasetError for images that cannot be
    used, and where they have other classes than the recipe says.
    """
    several = data.dataset.get("label_separator") or data.dataset.get("label_columns")
    refuse_several_labels(str(several or ""), "a study")
    was_there, place = is_made(data, into), place_of(data, into)
    if not was_there:
        options = InitOptions(dataset=data.dataset, views=data.views, augmentation=data.augmentation, **data.init)
        source = None if data.source is None else Path(data.source)
        init(source, resolved(place), options=options, progress=progress)  # a margin of [dataset] is of old recipes
    project = opened(data, into)
    before = find_project(place).settings
    if project.settings != before:
        write_project(place, project.settings)
    return project, was_there


def opened(data: DataSet, into: Path) -> Project:
    """The project of a data set that is there, with the settings of the recipe. Raises as `make` does."""
    place = place_of(data, into)
    project = find_project(place)
    _refuse_other(project, data)
    changes = {
        "views": ViewsSection.model_validate(found_everywhere(data.views)),
        "augmentation": AugmentationSection.model_validate(data.augmentation),
        "folders": FoldersSection(results=_SHARED_RESULTS) if data.name else project.settings.folders,
    }
    project = Project(place, project.settings.model_copy(update=changes))
    found = {image.label for image in dataset_of(project).images} - {""}
    if data.classes and found != set(data.classes):
        raise DatasetError(
            f"the images have the classes {', '.join(sorted(found))}, and the recipe says "
            f"{', '.join(sorted(data.classes))}: change classes in [dataset], or leave some out by without"
        )
    return project


def _refuse_other(project: Project, data: DataSet) -> None:
    """Raise ProjectError where a project is of other images than the recipe, or divides them in another way."""
    there, wanted = project.settings.dataset, DatasetSection.model_validate(data.dataset)
    known = {"source", "images", "roots"}
    if data.source is None and not {"split", "split_counts"} & set(data.dataset):
        known |= {"split", "split_counts"}  # of generated cells `init` sets them
    differing = [name for name in DatasetSection.model_fields if name not in known and _differs(there, wanted, name)]
    said = [
        f"{name} is {_shown(getattr(there, name))} there, {_shown(getattr(wanted, name))} here" for name in differing
    ]
    if data.source is not None:
        if resolved(project.folder / there.source) != resolved(data.source):
            said.insert(0, f"source is {there.source} there, {data.source} here")
    elif not _is_drawn(project, data):
        said.insert(0, "its images are not the cells that the recipe asks for")
    if said:
        raise ProjectError(
            f"{project.folder}: holds another data set than the recipe: {'; '.join(said)}",
            "Name another folder with `into=FOLDER`",
        )


def _is_drawn(project: Project, data: DataSet) -> bool:
    """Whether the images of a project are the generated cells that a recipe asks for."""
    if project.settings.dataset.source != GENERATED_FOLDER:
        return False
    seed = AugmentationSection.model_validate(data.augmentation).seed
    per_class = data.init.get("per_class", GENERATED_PER_CLASS)
    return is_generated(project.folder / GENERATED_FOLDER, per_class, seed=seed)


def _differs(there: DatasetSection, wanted: DatasetSection, name: str) -> bool:
    return bool(getattr(there, name) != getattr(wanted, name))


def _shown(value: Any) -> str:
    return "not set" if value in (None, "", ()) else str(list(value) if isinstance(value, tuple) else value)
