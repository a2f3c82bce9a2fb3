"""The rows of a cache, and what is rendered for them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featcache.core.recipe import Recipe, row_id
from featcache.datasets import LabelledImage
from featcache.images import ViewParameters, view_parameters
from featcache.store import Row


@dataclass(frozen=True)
class Job:
    """Views of one image that a shard holds, as rows of the cache. A job without any fills a shard from elsewhere."""

    shard: int
    image: LabelledImage | None
    rows: tuple[int, ...]
    parameters: tuple[ViewParameters, ...]


def rows_of(images: Sequence[LabelledImage], views: Sequence[int], *, recipe: Recipe) -> list[Row]:
    """The rows of a cache: image by image in the order of the manifest, view by view."""
    rows = []
    for image, n_views in zip(images, views, strict=True):
        for view in range(n_views):
            parameters = view_parameters(recipe.augmentation, image.image_id, view=view).to_dict()
            identity = row_id(recipe.space, image.image_id, parameters=parameters)
            rows.append(Row(image.image_id, view, identity, parameters))
    return rows
