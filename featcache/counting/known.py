"""What a run knows of its own mistakes, and of the crops that it was trained on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import FeatcacheError, ProjectError
from featcache.core.files import plain_cell
from featcache.core.project import Project, find_project
from featcache.datasets import LabelledImage, dataset_of
from featcache.images import Pixels, in_box, read_bytes, read_picture
from featcache.prediction import Bundle, classes_of, recipe_of
from featcache.segmentation import SegmentOptions, segment_picture
from featcache.training import PREDICTIONS_FILE, Run, read_predictions

_MARGIN = 0.1
"""Of crops where nothing is known of those that a run was trained on; that of `segment`."""
_LOOKED_AT, _FEWEST = 32, 5
"""Training images that are measured, and how many must show a cell for their median to count."""
_SQUARE = 1.03
"""Longer over shorter side up to which a crop is square."""


@dataclass(frozen=True)
class Crops:
    """How cells are cut out. is_measured : whether the training images said so"""

    margin: float
    square: bool
    is_measured: bool


def confusion_of(trained: Run | Bundle) -> tuple[NDArray[np.float64], int] | None:
    """The confusion matrix of a run on its validation and test rows (true, named), and their number of groups.

    Only plain views; all rows of a class that are of one group count as one, since they are no independent cases.
    None of a bundle, which does not bring these rows, and where they cannot be read.
    """
    if isinstance(trained, Bundle):
        return None
    classes = list(classes_of(trained))
    try:
        frame = read_predictions(trained.folder / PREDICTIONS_FILE, ("val", "test")).lines
        frame = frame[frame["view"] == 0]
        true = np.array([_number(plain_cell(label), classes) for label in frame["label"]], np.intp)
        named = frame[[f"p_{label}" for label in classes]].to_numpy(np.float64).argmax(axis=1)
    except (OSError, ValueError, LookupError):
        return None
    known = true >= 0
    if not known.any():
        return None
    groups, true, named = frame["group"].to_numpy(str)[known], true[known], named[known]
    sizes = pd.Series(1, index=range(len(true))).groupby([groups, true]).transform("sum").to_numpy()
    matrix = np.zeros((len(classes), len(classes)))
    np.add.at(matrix, (true, named), 1 / sizes)
    return matrix, len(np.unique(groups))


def _number(label: str, classes: list[str]) -> int:
    return classes.index(label) if label in classes else -1


def crops_of(trained: Run | Bundle, *, project: Project | None, margin: float | None) -> Crops:
    """How the crops of a run's training images were cut: the cell in each of some of them is looked for.

    margin : where it is asked for, in place of what is measured
    """
    margins, shapes = _measured(trained, project)
    is_known = len(margins) >= _FEWEST
    square = is_known and median(shapes) <= _SQUARE
    if margin is not None:
        return Crops(margin, square, is_known)
    return Crops(round(median(margins), 3) if is_known else _MARGIN, square, is_known)


def _measured(trained: Run | Bundle, project: Project | None) -> tuple[list[float], list[float]]:
    """Of training images the room around the cell, as a share of its longer side, and the ratio of their own sides."""
    if isinstance(trained, Run):
        with suppress(ProjectError):
            project = find_project(trained.folder.parent)
    if project is None:
        return [], []
    try:
        images = [image for image in dataset_of(project).images if image.split == "train"]
    except (FeatcacheError, OSError):
        return [], []
    of_box = (trained.recipe if isinstance(trained, Bundle) else recipe_of(trained)).space.margin
    margins, shapes = [], []
    for image in images[:: max(1, len(images) // _LOOKED_AT)][:_LOOKED_AT]:
        try:
            crop = _crop(project, image, of_box)
        except (FeatcacheError, OSError):
            continue
        found = segment_picture(crop, SegmentOptions(), job="cell").cells
        if found:
            box, side = found[0].box, max(crop.shape[:2])
            longer = max(box.x_max - box.x_min, box.y_max - box.y_min)
            margins.append((side - longer) / 2 / longer)
            shapes.append(side / min(crop.shape[:2]))
    return margins, shapes


def _crop(project: Project, image: LabelledImage, margin: float) -> Pixels:
    return in_box(
        read_picture(read_bytes(project.images / image.path), project.settings.views.white).pixels,
        image.box,
        margin=margin,
    )
