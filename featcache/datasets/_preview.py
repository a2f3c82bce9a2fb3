"""preview: a contact sheet of some images and their augmented views."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, FeatcacheError, ProjectError
from featcache.core.files import sha256_bytes, write_bytes
from featcache.core.project import Project, changed
from featcache.datasets.label_lists import labels_in
from featcache.datasets.manifest import dataset_of
from featcache.images import (
    PixelSize,
    contact_sheet,
    identity_of,
    image_id_of,
    png_of,
    read_bytes,
    read_picture,
    render,
    view_parameters,
)
from featcache.segmentation import CellCut, Framing, Segmenter, plain_view, read_mask

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
    framing: Framing | None = None,
    segmenter: Segmenter | None = None,
) -> Path:
    """Write a contact sheet: some images of each class, view 0 first, then their augmented views.

    Of many classes the first are drawn, `MOST_LINES` images in all.

    size_px, augmentation : of the views; values that replace those of featcache.toml
    framing : how images become square; None as featcache.toml says
    segmenter : see `featcache.segmentation.plain_view`
    """
    dataset = dataset_of(project)
    project.images.refuse_missing(image.path for image in dataset.images)
    plan = changed(project.settings.augmentation, augmentation or {}).record()
    framing = framing or Framing.asked(project.settings.views, size_px)
    tiles, captions = [], []
    for label in dataset.classes[: max(MOST_LINES // per_class, 1)]:
        images = [image for image in dataset.images if label in labels_in(image.label, dataset.label_separator)]
        images = images[:per_class]
        for image in images:
            try:
                data = read_bytes(dataset.folder / image.path)
                of_mask = read_bytes(dataset.folder / image.mask) if image.mask else b""
                picture = read_picture(data, framing.white)
                mask = read_mask(of_mask) if of_mask and CellCut.is_given(framing.segmentation) else None
                plain, _ = plain_view(
                    picture.pixels,
                    image.box,
                    size_px=size_px,
                    framing=framing,
                    segmenter=segmenter,
                    mask=mask,
                    size=PixelSize(image.um_per_px) if image.um_per_px else picture.size,
                )
            except FeatcacheError as error:
                raise DatasetError(f"{image.path}: {error}") from error
            identity = identity_of(sha256_bytes(data), picture.rules)
            mask_sha256 = sha256_bytes(of_mask) if of_mask else ""
            image_id = image_id_of(identity, image.box, mask_sha256=mask_sha256, um_per_px=image.um_per_px)
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
