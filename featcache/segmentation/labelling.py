"""Labels of cells that were found, by labels of boxes or of whole pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featcache.images import Box

LEAST_IOU = 0.5
"""Overlap from which on a cell is the one in a labelled box: the part of both that both share."""


@dataclass(frozen=True)
class Known:
    """What is known of a picture: the label of a box in it, or of the whole (None)."""

    label: str
    box: Box | None = None


def labels_for(cells: Sequence[Box], known: Sequence[Known], *, is_smear: bool) -> list[str]:
    """The label of each cell, "" where nobody knows it.

    Each box gives its label to one cell at most, the best pair first. The label of a picture is that of its only cell,
    if it is not one of a box.

    is_smear : whether a picture shows many cells; of one cell in the middle, the label is that of what was found
    """
    labels = [""] * len(cells)
    boxes = [one for one in known if one.box is not None]
    pairs = [
        (iou, number, place)
        for number, cell in enumerate(cells)
        for place, one in enumerate(boxes)
        if one.box and (iou := iou_of(cell, one.box)) >= LEAST_IOU
    ]
    taken: set[int] = set()
    done: set[int] = set()
    for iou, number, place in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
        if number in done or place in taken:
            continue
        alike = {boxes[other].label for same, cell, other in pairs if cell == number and same == iou}
        labels[number] = boxes[place].label if len(alike) == 1 else ""
        done.add(number)
        taken.add(place)
    whole = {one.label for one in known if one.box is None}
    if not boxes and len(whole) == 1 and (len(cells) == 1 or not is_smear):
        labels = [whole.copy().pop() for _ in cells]
    return labels


def iou_of(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    across = min(one.x_max, other.x_max) - max(one.x_min, other.x_min)
    down = min(one.y_max, other.y_max) - max(one.y_min, other.y_min)
    shared = max(across, 0) * max(down, 0)
    areas = sum((box.x_max - box.x_min) * (box.y_max - box.y_min) for box in (one, other))
    return shared / (areas - shared)
