"""The view plan: how many views each image gets, by its split and label."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from featcache.core.errors import DatasetError
from featcache.core.project import ViewsSection
from featcache.datasets.manifest import SPLITS, LabelledImage


def plan_views(images: Sequence[LabelledImage], wanted: ViewsSection) -> list[int]:
    """Number of views of each image, in the order of `images`.

    Where a split asks for a total of rows, the classes share it evenly, then each class's images
    share theirs; what does not divide goes to the first classes by name, and within a class to the
    images that come first by the hash of their id. A share below the number of a class's images
    leaves the last of them without a view. An image without a label or split gets the plain view alone.

    Raises DatasetError where a class would get no row at all.
    """
    of_class: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        if image.is_trained_on:
            of_class[image.split, image.label].append(index)
    views = [0 if image.is_trained_on else 1 for image in images]
    for split in SPLITS:
        total = wanted.total_rows(split)
        labels = sorted(label for some, label in of_class if some == split)
        if total is not None and labels and total < len(labels):
            raise DatasetError(f"{total} {split} rows for {len(labels)} classes: ask for at least one a class")
        for rank, label in enumerate(labels):
            members = of_class[split, label]
            if total is None:
                shares = [wanted.views_per_image(split)] * len(members)
            else:
                members = sorted(members, key=lambda index: _rank(images[index].image_id))
                shares = _spread(_spread(total, len(labels))[rank], len(members))
            for index, share in zip(members, shares, strict=True):
                views[index] = share
    return views


def _spread(total: int, parts: int) -> list[int]:
    """`total` as `parts` whole numbers that differ by one at most, the larger ones first."""
    share, rest = divmod(total, parts)
    return [share + (part < rest) for part in range(parts)]


def _rank(image_id: str) -> str:
    return hashlib.sha256(f"share\n{image_id}".encode()).hexdigest()
