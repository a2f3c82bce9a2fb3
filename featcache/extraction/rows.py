"""The rows of a cache, and what is rendered for them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from featcache.core.recipe import Recipe, row_id
from featcache.datasets import LabelledImage
from featcache.images import ViewParameters, view_parameters
from featcache.store import LazyRows, Row, RowKeys


@dataclass(frozen=True)
class Job:
    """Views of one image that a shard holds, as rows of the cache. A job without any fills a shard from elsewhere."""

    shard: int
    image: LabelledImage | None
    rows: tuple[int, ...]
    parameters: tuple[ViewParameters, ...]


class PlannedRows(LazyRows):
    """The rows of a cache that is planned. They take 16 bytes an image."""

    def __init__(self, images: Sequence[LabelledImage], views: Sequence[int], *, recipe: Recipe) -> None:
        self._images, self._recipe = images, recipe
        self._views = np.asarray(views, np.int32)
        self._ends = np.cumsum(self._views, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _at(self, number: int) -> Row:
        place = int(np.searchsorted(self._ends, number, "right"))
        view = number - int(self._ends[place] - self._views[place])
        return _row(self._recipe, self._images[place].image_id, view)

    def __iter__(self) -> Iterator[Row]:
        for image, n_views in zip(self._images, self._views.tolist(), strict=True):
            for view in range(n_views):
                yield _row(self._recipe, image.image_id, view)

    def keys(self) -> RowKeys:
        """Which view of which image each row is."""
        return RowKeys.of_views((image.image_id for image in self._images), self._views)


def rows_of(images: Sequence[LabelledImage], views: Sequence[int], *, recipe: Recipe) -> list[Row]:
    """The rows of a cache: image by image in the order of the manifest, view by view."""
    return list(PlannedRows(images, views, recipe=recipe))


def _row(recipe: Recipe, image_id: str, view: int) -> Row:
    parameters = view_parameters(recipe.augmentation, image_id, view=view).to_dict()
    return Row(image_id, view, row_id(recipe.space, image_id, parameters=parameters), parameters)
