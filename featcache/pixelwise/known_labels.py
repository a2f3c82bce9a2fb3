"""What is known of pictures that are segmented: labels of boxes in them, or of the whole, as `init` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from featcache.core.errors import DatasetError
from featcache.core.files import resolved
from featcache.core.progress import Progress
from featcache.core.project import PROJECT_FILE, DatasetSection, find_project
from featcache.datasets import Dataset, dataset_of, find_images, labelled_images
from featcache.segmentation import Known

Labels = Mapping[Path, tuple[Known, ...]]
"""Of each picture, by its file."""


def labels_of_pictures(source: Path, *, labels: Path | None, out: Path, progress: Progress) -> Labels:
    """The labels of the pictures in a folder.

    labels : a project, or what `init` reads; None for the folder itself, if it holds labelled boxes or a list
    out : folder that is written to, and no source

    Raises DatasetError where `labels` holds none.
    """
    if labels is None and not _is_labelled(source, out):
        return {}
    try:
        data = _dataset(labels or source)
    except DatasetError as error:
        if labels is not None:
            raise
        progress.note(f"cells get no labels: {error.message}")
        return {}
    found: dict[Path, list[Known]] = {}
    for image in data.images:
        if image.label:
            found.setdefault(resolved(data.folder / image.path), []).append(Known(image.label, image.box))
    if labels is not None and not found:
        raise DatasetError(f"{labels}: no image in it has a label")
    return {path: tuple(known) for path, known in found.items()}


def _is_labelled(source: Path, out: Path) -> bool:
    """Whether a folder itself says more of its pictures than class folders do."""
    if not source.is_dir():
        return False
    if (source / PROJECT_FILE).is_file():
        return True
    try:
        found = find_images(source, ignore=frozenset({out}))
    except DatasetError:  # pictures without labels
        return False
    return found.layout == "csv" or any(one.box is not None for one in found.candidates)


def _dataset(place: Path) -> Dataset:
    if (place / PROJECT_FILE).is_file():
        return dataset_of(find_project(place))
    return labelled_images(place, DatasetSection())[0]
