"""What people edited in dataset.csv stays when the images are read again; and labels that may not be what was meant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from featcache.datasets.label_lists import labels_in, likely_separator, without_labels
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
    images: Sequence[LabelledImage], edited: Edited, *, without: Sequence[str], label_separator: str = ""
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Images with the labels that dataset.csv has for them, and those of them that the source labels otherwise."""
    done, relabelled = [], []
    for image in images:
        before = edited.get((image.path, image.box))
        label = without_labels((before or image).label, without, separator=label_separator)
        if label is not None:
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


def like_lists(labels: Iterable[str]) -> list[str]:
    """A remark on labels that may be several labels of an image."""
    texts = sorted(set(labels))
    separator = likely_separator(texts)
    lists = [text for text in texts if len(labels_in(text, separator)) > 1]
    if not separator or not lists:
        return []
    said = f"the label {lists[0]!r} is" if len(lists) == 1 else f"{len(lists)} labels like {lists[0]!r} are each"
    return [f"{said} taken as one class: `label_separator={separator!r}` takes such lists as several labels an image"]


def odd_labels(labels: Iterable[str]) -> list[str]:
    """Remarks on labels that may not be what was meant."""
    by_letters = defaultdict(list)
    for label in sorted(set(labels)):
        by_letters[label.casefold()].append(label)
    return [
        f"the classes {' and '.join(map(repr, alike))} differ in capital letters only, and are taken as different"
        for alike in by_letters.values()
        if len(alike) > 1
    ]
