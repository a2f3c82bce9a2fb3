"""The rendered views that a network is trained on, held as bytes; and views drawn anew for each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.machine import available_bytes
from featcache.core.recipe import Augmentation
from featcache.images import Pixels, render, view_parameters
from featcache.networks.config import ScratchConfig
from featcache.store import Cache

_HELD_SHARE = 3
"""Views are held in memory where they take no more than this part of what is free; else in a file that is mapped."""


@dataclass(frozen=True)
class Views:
    """Rows of a cache of rendered views.

    pixels : ndarray of shape (n, s, s, 3), uint8, RGB
    y : ndarray of shape (n,), int64, class numbers
    image_ids, views : of each row
    """

    pixels: Pixels
    y: NDArray[np.int64]
    image_ids: tuple[str, ...]
    views: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.y)


@contextmanager
def held(cache: Cache, numbers: NDArray[np.intp], *, file: Path) -> Iterator[Views]:
    """Some rows of a cache of rendered views, decompressed once.

    file : that they are put into, for the time of the block, if memory is short
    """
    rows = cache.rows.iloc[numbers]
    shape = (len(numbers), *cache.features.shape[1:])
    pixels: Any
    if int(np.prod(shape)) * _HELD_SHARE <= available_bytes():
        pixels = np.empty(shape, np.uint8)
    else:
        pixels = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    try:
        for place, block in cache.features.blocks(numbers):
            pixels[place] = block
        yield Views(pixels, cache.labels()[numbers], tuple(rows["image_id"]), tuple(rows["view"].astype(int)))
    finally:
        file.unlink(missing_ok=True)


def numbers_of(cache: Cache, split: str, *, config: ScratchConfig) -> NDArray[np.intp]:
    """Row numbers of a split that a training uses: all, or for "none" of augmentation the plain views alone."""
    numbers = cache.numbers(split)
    if split == "train" and config.augment == "none":
        numbers = numbers[cache.view[numbers] == 0]
    return numbers


class Live:
    """Views of the training rows that no epoch has seen before.

    The row of an image's view v is, in epoch e, its view v + e * (views of the image): the first epoch's are those
    of the plan. Each follows from (seed, image, number) alone, as those of the plan do.
    """

    def __init__(self, views: Views, augmentation: Augmentation) -> None:
        self._views, self._augmentation = views, augmentation
        self._plain = {
            image_id: place
            for place, (image_id, view) in enumerate(zip(views.image_ids, views.views, strict=True))
            if view == 0
        }
        self._counts: dict[str, int] = {}
        for image_id in views.image_ids:
            self._counts[image_id] = self._counts.get(image_id, 0) + 1

    def render(self, place: int, epoch: int) -> Pixels:
        """The pixels of a row in an epoch, counted from 0: ndarray of shape (s, s, 3), uint8."""
        image_id = self._views.image_ids[place]
        view = self._views.views[place] + epoch * self._counts[image_id]
        plain = self._views.pixels[self._plain[image_id]]
        return render(plain, view_parameters(self._augmentation, image_id, view=view))
