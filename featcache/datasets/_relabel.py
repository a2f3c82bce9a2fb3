"""relabel: correct labels in dataset.csv."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from featcache.core.errors import DatasetError, ProjectError, UsageError, nearest
from featcache.core.files import plain_cell
from featcache.core.project import Project, find_project, init_call
from featcache.datasets.csv_files import read_csv
from featcache.datasets.label_lists import labels_in, tidied
from featcache.datasets.manifest import Dataset, LabelledImage, check, dataset_of, in_order, write_dataset

_LEAST_DIGITS = 8
"""Of an image_id, that name an image."""


@dataclass(frozen=True)
class Relabelled:
    """What became of labels.

    Attributes
    ----------
    dataset : the images as they are labelled now
    changed : (image before, its label now) of each that has another label
    new_classes : classes that no image had before
    """

    dataset: Dataset
    changed: tuple[tuple[LabelledImage, str], ...]
    new_classes: tuple[str, ...] = ()


def relabel(
    project: Project | str | Path, labels: Mapping[str, str] | str | Path, *, new_class: bool = False
) -> Relabelled:
    """Correct labels in dataset.csv. Features do not depend on labels: the next `fit_head` takes the new ones.

    Parameters
    ----------
    project : a project, or a folder in one
    labels : {image: label}, or a CSV file with the columns image and label. An image is named by its path in
        dataset.csv, or by its image_id or how that begins; "" takes a label away. Where an image may have several
        labels, a text has all of them, as in dataset.csv
    new_class : whether labels that no image has so far are taken

    Raises
    ------
    DatasetError : there is no such image, or the images could not be trained on then; nothing is changed
    UsageError : a label is no class, and `new_class` is not set
    ProjectError : there is no project, or dataset.csv cannot be written

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> image = fc.check_dataset(project, compare=False).dataset.images[0]
    >>> fc.relabel(project, {image.path: "monocyte"}).changed[0][1]
    'monocyte'
    """
    project = project if isinstance(project, Project) else find_project(Path(project))
    where = str(project.dataset_file)
    before = dataset_of(project)
    asked = _of_file(Path(labels)) if isinstance(labels, (str, Path)) else dict(labels)
    wanted = _by_image(before, asked, where)
    separator = before.label_separator
    wanted = {number: tidied(label, separator) for number, label in wanted.items()}
    known = {label for image in before.images for label in labels_in(image.label, separator)}
    new = sorted({label for text in wanted.values() for label in labels_in(text, separator)} - known)
    if new and not new_class:
        raise UsageError(f"{new[0]!r:.80} is no class so far: {nearest(new[0], sorted(known))}", "Set `new_class=True`")
    images = [replace(image, label=wanted.get(number, image.label)) for number, image in enumerate(before.images)]
    try:
        remedy = init_call(into=project.folder, resplit=True)
        check(images, where, remedy=remedy, label_separator=separator)
    except DatasetError as error:
        raise DatasetError(f"no label was changed, since then {error}") from error
    changed = tuple(
        (old, image.label) for old, image in zip(before.images, images, strict=True) if old.label != image.label
    )
    dataset = replace(before, images=in_order(images))
    if changed:
        try:
            write_dataset(project.dataset_file, dataset.images)
        except OSError as error:
            raise ProjectError(f"{where}: cannot be written: {error.strerror or error}") from error
    return Relabelled(dataset, changed, tuple(new))


def _of_file(path: Path) -> dict[str, str]:
    """{image: label} of a CSV. Raises DatasetError for one without these columns, or with an image twice."""
    frame = read_csv(path)
    if missing := {"image", "label"} - set(frame.columns):
        raise DatasetError(f"{path}: no column {min(missing)!r}: expected the columns image and label")
    found: dict[str, str] = {}
    for line, *cells in zip(frame.index, frame["image"], frame["label"], strict=True):
        image, label = map(plain_cell, cells)
        if found.setdefault(image, label) != label:
            raise DatasetError(f"{path}, line {line}: {image!r:.80} has another label further up")
    return found


def _by_image(dataset: Dataset, asked: Mapping[str, str], where: str) -> dict[int, str]:
    """The label of each image, by its number. Raises DatasetError for a name of none, or of several."""
    by_path: dict[str, list[int]] = defaultdict(list)
    for number, image in enumerate(dataset.images):
        by_path[image.path].append(number)
    wanted: dict[int, str] = {}
    for name, label in asked.items():
        numbers = by_path.get(name) or _of_id(dataset, name)
        if not numbers:
            raise DatasetError(f"{where}: no image {name!r:.200}: {nearest(name, by_path)}")
        if len(numbers) > 1:
            ids = ", ".join(dataset.images[number].image_id[:12] for number in numbers[:_LEAST_DIGITS])
            raise DatasetError(
                f"{where}: {name!r:.200} means {len(numbers)} images", f"Name one by its image_id: {ids}"
            )
        if wanted.setdefault(numbers[0], label.strip()) != label.strip():
            raise DatasetError(f"{where}: {name!r:.200} is to have two labels")
    return wanted


def _of_id(dataset: Dataset, name: str) -> list[int]:
    if len(name) < _LEAST_DIGITS:
        return []
    return [number for number, image in enumerate(dataset.images) if image.image_id.startswith(name)]
