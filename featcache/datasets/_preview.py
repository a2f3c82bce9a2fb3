"""preview: a contact sheet of some images and their augmented views."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, FeatcacheError, ProjectError
from featcache.core.files import sha256_bytes, write_bytes
from featcache.core.project import Project, changed, changed_views
from featcache.core.recipe import FeatureSpace
from featcache.datasets.label_lists import labels_in
from featcache.datasets.manifest import dataset_of
from featcache.images import (
    contact_sheet,
    identity_of,
    image_id_of,
    png_of,
    read_bytes,
    read_picture,
    render,
    view_parameters,
)
from featcache.segmentation import Framing, plain_view

SHEET_FILE = "contact-sheet.png"
MOST_LINES = 60
"""Images on a contact sheet."""


def preview(
    project: Project,
    out: Path | None = None,
    *,
    per_class: int = 2,
    n_views: int = 8,
    size_px: int = 224,
    augmentation: Mapping[str, Any] | None = None,
    views: Mapping[str, Any] | None = None,
    space: FeatureSpace | None = None,
) -> Path:
    """Write a contact sheet: some images of each class, view 0 first, then their augmented views.

    Of many classes the first are drawn, `MOST_LINES` images in all.

    size_px, augmentation, views : of the views; values that replace those of featcache.toml
    space : of a network whose input is to be seen, instead of `size_px` and `views`
    """
    dataset = dataset_of(project)
    project.images.refuse_missing(image.path for image in dataset.images)
    plan = changed(project.settings.augmentation, augmentation or {}).record()
    if space is None:
        framing = Framing.asked(changed_views(project.settings.views, views or {}), size_px)
    else:
        framing, size_px = Framing.of(space), space.input_size_px
    tiles, captions = [], []
    for label in dataset.classes[: max(MOST_LINES // per_class, 1)]:
        images = [image for image in dataset.images if label in labels_in(image.label, dataset.label_separator)]
        images = images[:per_class]
        for image in images:
            try:
                data = read_bytes(dataset.folder / image.path)
                picture = read_picture(data, framing.white)
                plain, _ = plain_view(picture.pixels, image.box, size_px=size_px, framing=framing)
            except FeatcacheError as error:
                raise DatasetError(f"{image.path}: {error}") from error
            image_id = image_id_of(identity_of(sha256_bytes(data), picture.rules), image.box)
            tiles.append([render(plain, view_parameters(plan, image_id, view=view)) for view in range(n_views)])
            captions.append(f"{label}   {image.path}   {image.split}")
    path = out or project.folder / SHEET_FILE
    write_sheet(path, contact_sheet(tiles, captions))
    return path


def write_sheet(path: Path, sheet: NDArray[np.uint8]) -> None:
    """Write a picture (h, w, 3), RGB, as PNG. Raises ProjectError where it cannot be written."""
    try:
        write_bytes(path, png_of(sheet))
    except OSError as error:
        raise ProjectError(f"{path}: cannot be written: {error.strerror or error}") from error
