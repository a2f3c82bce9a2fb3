"""The labels, splits and groups that a head is trained with: those of dataset.csv now, not of when it was cached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from featcache.core.errors import UsageError
from featcache.core.files import resolved
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.datasets import LabelledImage, dataset_of
from featcache.remotes import place_of
from featcache.store import Cache, Coded, images_in


def with_current_labels(project: Project, cache: Cache, *, progress: Progress = SILENT) -> Cache:
    """A cache of the project with the labels, splits and groups of dataset.csv; no file of the cache changes.

    Labels decide no feature, so a corrected one needs no `extract`. A split does where it has other numbers of views.
    Caches of elsewhere stay as they are, and so do those of a project that names no images.
    progress : told what people should know

    Raises UsageError where images have come into a split that has other numbers of views.
    """
    is_own = resolved(cache.folder.parent) == resolved(project.cache_folder) or _is_made_there(cache, project)
    if not is_own or ("dataset" not in project.settings.model_fields_set and not project.dataset_file.exists()):
        used = np.isin(cache.label.number, _said(cache.label)) & np.isin(cache.split.number, _said(cache.split))
        _note_unused(cache, int((~used).sum()), progress)
        return cache
    before = images_in(cache.dataset)
    dataset = dataset_of(project)
    listed = {image.image_id: image for image in dataset.images}
    if listed.keys().isdisjoint(image.image_id for image in before):
        dataset = replace(dataset, label_separator=cache.label_separator)  # the labels of the cache stay
    now = [_as_listed(image, listed) for image in before]
    changed = {new.image_id: old for old, new in zip(before, now, strict=True) if old != new}
    _note_unused(cache, sum(not image.is_trained_on for image in now), progress)
    if gone := sum(image.image_id not in listed for image in before):
        progress.note(
            f"{gone} of the {len(before)} images of {cache.name} are not in {project.dataset_file.name}, and are used "
            "with the labels of the cache"
        )
    if changed or dataset.label_separator != cache.label_separator:
        _refuse_other_views(project, cache, now, changed)
        cache = cache.relabelled(now, len(changed), label_separator=dataset.label_separator)
    if changed:
        progress.note(
            f"{len(changed)} images of {cache.name} have labels, splits or groups of {project.dataset_file.name}"
        )
    return cache


def _is_made_there(cache: Cache, project: Project) -> bool:
    """Whether a cache lies on the remote that the project's caches are made on."""
    return bool(cache.url and project.cache_url) and place_of(cache.url) == place_of(project.cache_url)


def refuse_several_labels(label_separator: str, what: str) -> None:
    """Raise UsageError where images may have several labels, and `what` is made for one label an image."""
    if label_separator:
        raise UsageError(
            f"{what} takes one label an image, and an image of this data set may have several",
            "Train on several labels with `featcache.fit_head()`",
        )


def without_split(cache: Cache, split: str) -> Cache:
    """A cache in which the images of a split have none, so that nothing is trained or judged on them."""
    images = [replace(image, split="" if image.split == split else image.split) for image in images_in(cache.dataset)]
    return cache.relabelled(images, cache.relabelled_images)


def _said(column: Coded) -> list[int]:
    """The numbers of what is no empty text."""
    return [number for number, text in enumerate(column.values) if text]


def _note_unused(cache: Cache, unused: int, progress: Progress) -> None:
    if unused:
        progress.note(f"{unused} images of {cache.name} have no label or no split: they are left out of training")


def _as_listed(image: LabelledImage, listed: Mapping[str, LabelledImage]) -> LabelledImage:
    line = listed.get(image.image_id)
    if line is None:
        return image
    return replace(image, label=line.label, split=line.split, group=line.group or image.group)


def _refuse_other_views(
    project: Project, cache: Cache, now: list[LabelledImage], changed: Mapping[str, LabelledImage]
) -> None:
    """Raise UsageError where an image came into a split whose other images have another number of views."""
    keys = cache.keys
    views = dict(zip(keys.image_ids(), np.bincount(keys.image).tolist(), strict=True))
    usual: dict[str, set[int]] = {}
    for image in now:
        if image.image_id not in changed or changed[image.image_id].split == image.split:
            usual.setdefault(image.split, set()).add(views.get(image.image_id, 0))
    for image in now:
        is_moved = image.is_trained_on and image.image_id in changed and changed[image.image_id].split != image.split
        if is_moved and usual.get(image.split) != {views.get(image.image_id, 0)}:
            raise UsageError(
                f"{project.dataset_file.name} puts images of {cache.name} into another split, which has other "
                f"numbers of views ({image.path} is in {image.split} now)",
                f"Extract this cache again with its settings, which 'featcache info {cache.name}' shows",
            )
