"""What people edited in dataset.csv stays when the images are read again; and labels that may not be what was meant."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from featcache.datasets.manifest import LabelledImage
from featcache.images import Box

Line = tuple[str, Box | None]
"""What tells that a line of dataset.csv is of the same image: path and box. It may have been saved anew since."""

Edited = Mapping[Line, LabelledImage]
"""The lines of an earlier dataset.csv."""


def edited_lines(images: Sequence[LabelledImage]) -> dict[Line, LabelledImage]:
    """The lines of an earlier dataset.csv by what tells them apart."""
    return {(image.path, image.box): image for image in images}


def with_edited_labels(
    images: Sequence[LabelledImage], edited: Edited, *, without: Sequence[str]
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Images with the labels that dataset.csv has for them, and those of them that the source labels otherwise."""
    done, relabelled = [], []
    for image in images:
        before = edited.get((image.path, image.box))
        label = before.label if before else image.label
        if label not in without:
            done.append(replace(image, label=label))
            relabelled += [done[-1]] if label != image.label else []
    return done, relabelled


def with_edited_splits(
    images: Sequence[LabelledImage], edited: Edited
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Images with the splits that dataset.csv has for them, and those of them that would be in another one."""
    done, moved = [], []
    for image in images:
        before = edited.get((image.path, image.box))
        split = before.split if before else image.split
        done.append(replace(image, split=split))
        moved += [done[-1]] if split != image.split else []
    return done, moved


def said_of_edits(relabelled: Sequence[LabelledImage], moved: Sequence[LabelledImage]) -> list[str]:
    remarks = []
    for what, images in (("label", relabelled), ("split", moved)):
        if images:
            kept = f"{images[0].path}: {getattr(images[0], what)}"
            remarks.append(
                f"kept {len(images)} edited {what}{'s' * (len(images) > 1)} of dataset.csv ({kept}); "
                "set `relabel=True` to take those of the source"
            )
    return remarks


def odd_labels(images: Sequence[LabelledImage]) -> list[str]:
    """Remarks on labels that may not be what was meant."""
    labels = sorted({image.label for image in images})
    remarks = []
    by_letters = defaultdict(list)
    for label in labels:
        by_letters[label.casefold()].append(label)
        if re.search(r"[;|]", label):
            remarks.append(f"the label {label!r} is taken as one class: an image has one label")
    remarks += [
        f"the classes {' and '.join(map(repr, alike))} differ in capital letters only, and are taken as different"
        for alike in by_letters.values()
        if len(alike) > 1
    ]
    return remarks
