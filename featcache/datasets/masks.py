"""Boxes from masks: a picture beside each image, black but for its one cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from featcache.core.errors import DatasetError, ImageError
from featcache.datasets.candidates import Candidate, LeftOut, Source, composed
from featcache.images import Box, look, read_bytes, read_picture

_SPECK = 0.05
"""Parts of a mask smaller than this share of its largest are slips of the pen."""


def with_masks(source: Source, folder: Path) -> Source:
    """The same, each image with the box around the cell of its mask: the picture of its name below `folder`.

    Images are left out that have no mask or several, one of another size, or one that shows no cell or more than one.
    """
    by_name: dict[str, list[Path]] = {}
    for path, reason in look(folder):
        if not reason:
            by_name.setdefault(composed(path.stem), []).append(path)
    if not by_name:
        raise DatasetError(f"{folder}: holds no masks")
    boxed: list[Candidate] = []
    for one in source.candidates:
        image = source.images / one.path
        if image.resolve().is_relative_to(folder.resolve()):
            source.left_out.append(LeftOut(one.path, "it is a mask"))
            continue
        if one.box is not None:
            raise DatasetError(f"{folder}: `masks` are for images without boxes, and {one.path} has one")
        try:
            found = by_name.get(composed(image.stem), [])
            near = [path for path in found if path.parent.name == image.parent.name]
            mask = _only(near if len(found) > 1 else found)
            box, size = box_of_mask(mask)
            boxed.append(replace(one, box=box, size=size))
        except (DatasetError, ImageError) as error:
            source.left_out.append(LeftOut(one.path, str(error)))
    if source.candidates and not boxed:
        raise DatasetError(f"{folder}: no image has a mask that can be used: {source.left_out[-1].reason}")
    source.candidates = boxed
    source.about += f"; one cell an image, by its mask in {folder.name}"
    return source


def _only(masks: list[Path]) -> Path:
    if len(masks) != 1:
        raise DatasetError(f"it may have any of {len(masks)} masks" if masks else "it has no mask")
    return masks[0]


def box_of_mask(path: Path) -> tuple[Box, tuple[int, int]]:
    """The box around the one cell of a mask, whatever its values above 0 mean; and the mask's width and height.

    Raises DatasetError for a mask without a cell, or with several.
    """
    pixels = read_picture(read_bytes(path)).pixels
    cell = (pixels.max(axis=2) > 0).astype(np.uint8)
    number, _, stats, _ = cv2.connectedComponentsWithStats(cell, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if number < 2:
        raise DatasetError(f"its mask, {path.name}, shows no cell")
    if cell.all():
        raise DatasetError(f"its mask, {path.name}, covers the whole picture")
    large = [place for place, area in enumerate(areas) if area >= _SPECK * areas.max()]
    if len(large) > 1:
        raise DatasetError(f"its mask, {path.name}, shows {len(large)} cells: which has the label?")
    left, top, width, height = (int(side) for side in stats[1 + large[0], :4])
    return Box(left, top, left + width, top + height), (cell.shape[1], cell.shape[0])
