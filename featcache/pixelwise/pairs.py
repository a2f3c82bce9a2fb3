"""Pictures with masks of their cells: crops of one cell each, and which class each pixel is of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, ImageError
from featcache.images import Box, Pixels, look, read_bytes, read_picture
from featcache.segmentation import CYTOPLASM, NUCLEUS, Picture, around

_FAR, _MOST_FAR = 32, 0.01
"""A value further than this from 0, 128 and 255 is another one; and the share of such pixels that a mask may have."""
_SPECK = 0.05
"""Parts of a mask smaller than this share of its largest are slips of the pen."""


@dataclass(frozen=True)
class Crop:
    """A crop with one cell in the middle; classes : 0 background, 1 cytoplasm, 2 nucleus, (height, width)."""

    pixels: Pixels
    classes: NDArray[np.uint8]


def masks_in(folder: Path) -> dict[str, list[Path]]:
    """The masks below a folder, by their path without the suffix. Raises DatasetError where there is none."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder of masks")
    found: dict[str, list[Path]] = {}
    for path, problem in look(folder):
        if not problem:
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    if not found:
        raise DatasetError(f"{folder}: holds no masks")
    return found


def crops_of(picture: Picture, masks: dict[str, list[Path]], *, is_smear: bool) -> Iterator[Crop]:
    """The crops of a picture. Raises ImageError with the reason where it cannot be used."""
    pixels = picture.read()
    candidates = masks.get(picture.name) or masks.get(Path(picture.image).with_suffix("").as_posix()) or []
    if len(candidates) != 1:
        raise ImageError(f"it may have any of {len(candidates)} masks" if candidates else "it has no mask")
    classes = _classes(read_picture(read_bytes(candidates[0])).pixels, pixels.shape)
    if not is_smear:
        yield Crop(pixels, classes)
        return
    for box in _boxes(classes):
        place = around(box, size=pixels.shape)
        inside = np.s_[place.y_min : place.y_max, place.x_min : place.x_max]
        yield Crop(np.ascontiguousarray(pixels[inside]), np.ascontiguousarray(classes[inside]))


def _classes(mask: Pixels, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The class of each pixel, by the nearest of the three values."""
    if mask.shape[:2] != shape[:2]:
        theirs, ours = ("x".join(map(str, of[1::-1])) for of in (mask.shape, shape))
        raise ImageError(f"its mask has {theirs} pixels, and the picture {ours}")
    far = np.abs(mask[..., 0].astype(int)[..., None] - (0, CYTOPLASM, NUCLEUS))
    if (mask != mask[..., :1]).any() or (far.min(axis=2) > _FAR).mean() > _MOST_FAR:
        raise ImageError("its mask holds other values than 0 background, 128 cytoplasm and 255 nucleus")
    classes = np.asarray(far.argmin(axis=2), np.uint8)
    if not (classes == 2).any():
        raise ImageError("its mask shows no nucleus")
    return classes


def _boxes(classes: NDArray[np.uint8]) -> list[Box]:
    """Boxes around the cells of a mask that have a nucleus."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((classes > 0).astype(np.uint8))
    with_nucleus = set(np.unique(labels[classes == 2]).tolist())
    least = _SPECK * stats[1:, cv2.CC_STAT_AREA].max(initial=0)
    boxes = []
    for label in range(1, count):
        x, y, width, height, area = stats[label].tolist()
        if label in with_nucleus and area >= least:
            boxes.append(Box(x, y, x + width, y + height))
    return boxes
