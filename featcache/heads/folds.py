"""Folds: which images are trained on and which are judged; images of one group stand on one side."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

from featcache.core.errors import HeadError, nearest

Numbers = NDArray[np.intp]


@dataclass(frozen=True)
class Fold:
    """Numbers of the images that are trained on, and of those that are judged, both increasing.

    repeat, number : which one it is, counted from 0
    """

    repeat: int
    number: int
    train: Numbers
    judged: Numbers


@dataclass(frozen=True)
class Labelled:
    """Images that can be divided into folds: class numbers and groups, (n,).

    y : of several labels an image an indicator (n, classes)
    """

    y: NDArray[np.int64]
    groups: NDArray[Any]
    classes: Sequence[str]

    def __getitem__(self, numbers: Numbers) -> Labelled:
        return Labelled(self.y[numbers], self.groups[numbers], self.classes)

    def groups_of(self, label: int) -> int:
        """How many groups have images of a class."""
        has = self.y == label if self.y.ndim == 1 else self.y[:, label] == 1
        return len(np.unique(self.groups[has]))

    @property
    def counts(self) -> NDArray[np.int64]:
        """(classes,), images of each."""
        return np.bincount(self.y, minlength=len(self.classes)) if self.y.ndim == 1 else self.y.sum(axis=0)

    @property
    def strata(self) -> NDArray[np.int64]:
        """(n,), what each fold has its share of: classes, or of several labels an image their combinations."""
        return self.y if self.y.ndim == 1 else np.unique(self.y, axis=0, return_inverse=True)[1].astype(np.int64)


def stratified(
    images: Labelled, n_folds: int, *, repeats: int = 1, seed: int = 0, setting: str = "folds"
) -> list[Fold]:
    """`repeats` times the folds of scikit-learn's StratifiedGroupKFold, shuffled with seeds from `seed` on.

    Of several labels an image, folds are alike in the combinations of labels.

    setting : what asks for so many folds, for messages

    Raises HeadError where a class or the groups cannot fill so many folds.
    """
    _refuse_unfillable(images, n_folds, setting)
    found = []
    for repeat in range(repeats):
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=(seed + repeat) % 2**32)
        with warnings.catch_warnings():
            # What it warns of is refused above; combinations of labels may be rarer than folds.
            warnings.simplefilter("error" if images.y.ndim == 1 else "ignore")
            pairs = splitter.split(images.strata, images.strata, images.groups)
            found += [Fold(repeat, number, *pair) for number, pair in enumerate(pairs)]
    _refuse_gaps(images, found)
    return found


def leaving_groups_out(images: Labelled) -> list[Fold]:
    """Each group judged by what is trained on all others. Raises HeadError where only one group has a class."""
    n_groups = len(np.unique(images.groups))
    if n_groups < 2:
        raise HeadError("all images are of one group: none can be left out", "Give images groups in dataset.csv")
    pairs = LeaveOneGroupOut().split(images.y, images.y, images.groups)
    folds = [Fold(0, number, *pair) for number, pair in enumerate(pairs)]
    _refuse_gaps(images, folds)
    return folds


def judging_source(images: Labelled, paths: Sequence[str], *, source: str) -> list[Fold]:
    """One fold: the images of a source are judged by what is trained on all others.

    source : a root, or a folder that paths begin with

    Raises HeadError for a source without images, one that has all of them, and groups that stand on both sides.
    """
    judged = np.array([path.startswith(f"{source.rstrip('/')}/") for path in paths])
    if not judged.any():
        known = sorted({path.split("/")[0] for path in paths if "/" in path})
        raise HeadError(f"no image is of the source {source!r:.200}: {nearest(source, known)}")
    if judged.all():
        raise HeadError(f"every image is of the source {source!r:.200}: none is left to train on")
    if torn := sorted(set(images.groups[judged].tolist()) & set(images.groups[~judged].tolist())):
        raise HeadError(
            f"{len(torn)} groups have images in {source!r:.80} and elsewhere ({torn[0]!r:.80} is one): a group must "
            "stay on one side, or the test leaks into the training"
        )
    folds = [Fold(0, 0, np.flatnonzero(~judged), np.flatnonzero(judged))]
    _refuse_gaps(images, folds)
    return folds


def _refuse_unfillable(images: Labelled, n_folds: int, setting: str) -> None:
    names, sizes = np.unique(images.groups, return_counts=True)
    if n_folds < 2:
        raise HeadError(f"`{setting}={n_folds}`: expected at least 2")
    if n_folds > len(names):
        raise HeadError(
            f"`{setting}={n_folds}`: there are only {len(names)} groups of images", f"Set fewer `{setting}`"
        )
    largest = int(sizes.argmax())
    if 2 * sizes[largest] >= len(images.y):
        raise HeadError(
            f"the group {str(names[largest])!r:.80} has {sizes[largest]} of the {len(images.y)} images: folds would be "
            "of very different sizes, and most heads trained on one group",
            "Set `leave_group_out`, or change the groups in dataset.csv",
        )
    for number, label in enumerate(images.classes):
        if (n_groups := images.groups_of(number)) < n_folds:
            raise HeadError(
                f"the class {label!r:.80} has images of {n_groups} groups, which cannot fill {n_folds} folds",
                f"Set `{setting}={n_groups}`" if n_groups > 1 else "Add images of it, or leave the class out",
            )


def _refuse_gaps(images: Labelled, folds: Sequence[Fold]) -> None:
    """Raise HeadError where a class is missing among the images that a fold trains on."""
    for fold in folds:
        counts = images[fold.train].counts
        if not counts.all():
            label, group = images.classes[int(counts.argmin())], str(images.groups[fold.judged[0]])
            raise HeadError(
                f"a fold (that judges the group {group!r:.80}) has no image of the class {label!r:.80} to train on",
                "Set fewer `folds`, add images of the class, or leave it out",
            )
