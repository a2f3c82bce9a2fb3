"""The view plan: how many views each image gets, by its split and label."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from featcache.core.errors import DatasetError
from featcache.core.project import ViewsSection
from featcache.datasets.manifest import SPLITS, LabelledImage


def plan_views(images: Sequence[LabelledImage], wanted: ViewsSection, *, label_separator: str = "") -> list[int]:
    """Number of views of each image, in the order of `images`.

    Where a split asks for a total of rows, the classes share it evenly, unless it is given for each of them; then
    each class's images share theirs. To balance the train split is to give each class as many rows as the largest has
    with so many views an image. What does not divide goes to the first classes by name, and within a class to the
    images that come first by the hash of their id. A share below the number of a class's images
    leaves the last of them without a view. An image without a label or split gets the plain view alone.

    label_separator : as of `Dataset`

    Raises DatasetError where a class would get no row at all, and for rows of other classes than there are, or of
    classes where an image may be of several.
    """
    if label_separator and wanted.balance:
        raise DatasetError(
            "`balance` is about classes, and an image of this data set may have several labels", "Leave it out"
        )
    if label_separator and (totals := [split for split in SPLITS if wanted.total_rows(split) is not None]):
        raise DatasetError(
            f"`{totals[0]}_rows` are spread over classes, and an image of this data set may have several labels",
            f"Set the views of each image, with `{totals[0]}`, instead",
        )
    of_class: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        if image.is_trained_on:
            of_class[image.split, image.label].append(index)
    views = [0 if image.is_trained_on else 1 for image in images]
    for split in SPLITS:
        labels = sorted(label for some, label in of_class if some == split)
        rows = _rows_of_classes(wanted, split, labels=labels)
        if rows is None and wanted.balance and split == "train" and labels:
            most = max(len(of_class[split, label]) for label in labels) * wanted.views_per_image(split)
            rows = dict.fromkeys(labels, most)
        for label in labels:
            members = of_class[split, label]
            if rows is None:
                shares = [wanted.views_per_image(split)] * len(members)
            else:
                members = sorted(members, key=lambda index: _rank(images[index].image_id))
                shares = _spread(rows[label], len(members))
            for index, share in zip(members, shares, strict=True):
                views[index] = share
    return views


def _rows_of_classes(wanted: ViewsSection, split: str, *, labels: Sequence[str]) -> dict[str, int] | None:
    """Rows of each class of a split; None where views an image decide."""
    total = wanted.total_rows(split)
    if total is None or not labels:
        return None
    if isinstance(total, dict):
        if set(total) != set(labels):
            raise DatasetError(
                f"{split}_rows in [views] is for the classes {', '.join(sorted(total))}, and the images of {split} are "
                f"of {', '.join(labels)}"
            )
        return total
    if total < len(labels):
        raise DatasetError(f"{total} {split} rows for {len(labels)} classes: ask for at least one a class")
    return dict(zip(labels, _spread(total, len(labels)), strict=True))


def _spread(total: int, parts: int) -> list[int]:
    """`total` as `parts` whole numbers that differ by one at most, the larger ones first."""
    share, rest = divmod(total, parts)
    return [share + (part < rest) for part in range(parts)]


def _rank(image_id: str) -> str:
    return hashlib.sha256(f"share\n{image_id}".encode()).hexdigest()
