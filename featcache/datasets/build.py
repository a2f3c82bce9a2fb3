"""From what a source names to the images of a dataset manifest: scanned, deduplicated, grouped, split."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featcache.core.errors import DatasetError
from featcache.core.project import ImageFolders
from featcache.datasets.boxes import placed
from featcache.datasets.candidates import Candidate, LeftOut, Source, composed, explaining
from featcache.datasets.edits import (
    Edited,
    edited_lines,
    like_lists,
    odd_labels,
    said_of_edits,
    with_edited_labels,
    with_edited_splits,
)
from featcache.datasets.label_lists import labels_in, tidied, without_labels
from featcache.datasets.manifest import SPLITS, LabelledImage, check, in_order, safe_relative
from featcache.datasets.splits import DEFAULT_FRACTIONS, Member, small_classes, split_by_counts, split_by_hash
from featcache.images import ImageFile, brightest_of, image_id_of, remarks_on, said_of_white, scan, white_of

_FIELD_PX = 400
_SPLIT_TO_KEEP = {"test": 0, "val": 1, "train": 2, "": 3}


@dataclass(frozen=True)
class SplitRule:
    """How splits are made where the source does not say them.

    counts : images a class for each split; None splits by `fractions`
    resplit : make new splits even where the source says them
    group_pattern : regular expression; what it finds in a path (its first group, if it has one) is the
        image's group
    """

    fractions: Mapping[str, float] | None = None
    counts: Mapping[str, int] | None = None
    seed: int = 0
    resplit: bool = False
    group_pattern: str = ""


@dataclass(frozen=True)
class Built:
    """The images of a manifest, those left out with the reason, and remarks for people."""

    images: tuple[LabelledImage, ...]
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    """Paths of images as large as fields of a microscope."""
    not_square: int = 0
    """How many images, or boxes, have two sides of different length."""
    white: int = 0
    """See `featcache.images.white_of`."""
    brightest: int = 0
    """See `featcache.images.brightest_of`."""


def build(
    source: Source,
    rule: SplitRule = SplitRule(),
    *,
    without: Sequence[str] = (),
    kept: Sequence[LabelledImage] = (),
    stamps: Path | None = None,
    on_file: Callable[[], object] = lambda: None,
    relabel: bool = False,
    label_separator: str = "",
    um_per_px: float = 0.0,
) -> Built:
    """Make the images of a dataset manifest.

    without : labels to leave out
    label_separator : between the labels of an image that may have several
    kept : images of an earlier manifest, whose splits and groups stay as they are, and so do labels and splits that
        were edited there
    relabel : take the source's labels and splits instead
    stamps, on_file : see `featcache.images.scanning.scan`
    um_per_px : side of a pixel of images of which the source does not say it; 0 leaves it to their files

    Raises DatasetError for what no honest training can use.
    """
    left_out = list(source.left_out)
    with explaining(left_out):
        edited = {} if relabel else edited_lines(kept)
        excluded = [composed(label) for label in without]
        return _build(
            source,
            rule,
            without=excluded,
            kept=kept,
            edited=edited,
            stamps=stamps,
            on_file=on_file,
            left_out=left_out,
            separator=label_separator,
            um_per_px=um_per_px,
        )


def labelled(
    source: Source,
    *,
    without: Sequence[str] = (),
    group_pattern: str = "",
    um_per_px: float = 0.0,
    on_file: Callable[[], object] = lambda: None,
) -> Built:
    """The labelled images of a source, as they are judged: without splits, and however few there are of a class.

    um_per_px : as of `build`

    Raises DatasetError where none can be used.
    """
    left_out = list(source.left_out)
    with explaining(left_out):
        candidates = [one for one in source.candidates if one.label and one.label not in {*map(composed, without)}]
        files = scan(source.images, _files_of(candidates), on_file=on_file)
        usable = _with_sizes(_usable(source.images, candidates, files, left_out), {}, um_per_px)
        images = [
            replace(
                _image(candidate, files[candidate.path], group_pattern, mask_sha256=_of_mask(candidate, files)),
                split="",
            )
            for candidate in usable
        ]
        images = _without_duplicates(images, left_out, files)
        if not images:
            raise DatasetError(f"{source.folder}: no usable image with a label")
    pictures = _without_masks(files, candidates)
    white = white_of(pictures.values())
    remarks = (*source.remarks, *remarks_on(pictures), *said_of_white(white, white))
    return Built(in_order(images), tuple(left_out), remarks, white=white)


def _build(
    source: Source,
    rule: SplitRule,
    without: Sequence[str],
    kept: Sequence[LabelledImage],
    edited: Edited,
    stamps: Path | None,
    on_file: Callable[[], object],
    left_out: list[LeftOut],
    separator: str,
    um_per_px: float,
) -> Built:
    texts = [*(one.label for one in source.candidates), *(one.label for one in edited.values())]
    unknown = set(without) - {label for text in texts for label in labels_in(text, separator)}
    if unknown:
        raise DatasetError(f"{source.folder}: no image has the label {', '.join(sorted(unknown))} to leave out")
    candidates = _candidates(source, without, separator)
    remarks = [] if separator else like_lists(one.label for one in candidates)
    files = scan(source.images, _files_of(candidates), stamps=stamps, on_file=on_file)
    usable = _with_sizes(_usable(source.images, candidates, files, left_out), edited, um_per_px)
    images = [_image(one, files[one.path], rule.group_pattern, mask_sha256=_of_mask(one, files)) for one in usable]
    _refuse_empty_classes(source, candidates, images, separator=separator)
    images, relabelled = with_edited_labels(images, edited, without=without, label_separator=separator)
    if rule.resplit:
        images = [replace(image, split="") for image in images]
    images = _without_duplicates(images, left_out, files)
    unlabelled = [replace(image, split="") for image in images if not image.label]
    images = [image for image in images if image.label]
    if not images:
        raise DatasetError(
            f"{source.folder}: no image has a label",
            "Label some images of each class, or name their classes with `featcache.predict(RUN, FOLDER)`",
        )
    earlier = {} if rule.resplit else _earlier(images, kept)
    images = [_as_before(image, earlier.get(image.image_id), rule) for image in images]
    known = {image.group: earlier[image.image_id].split for image in images if image.image_id in earlier}
    images, small = _without_small_classes(images, left_out, separator)
    if not images:
        raise DatasetError(f"{source.folder}: no class can be used: {'; '.join([*small, *remarks])}")
    images, of_splits = _with_splits(images, rule, known, left_out=left_out, separator=separator)
    images, moved = with_edited_splits(images, {} if rule.resplit or rule.counts else edited)
    labels = (label for image in images for label in labels_in(image.label, separator))
    remarks = [*source.remarks, *remarks, *small, *of_splits, *said_of_edits(relabelled, moved), *odd_labels(labels)]
    remarks += _on_images_without_labels(images, unlabelled, separator)
    check(images, str(source.folder), remedy="`resplit=True`", label_separator=separator)
    files = _without_masks(files, candidates)
    fields = tuple(path for path, file in files.items() if max(file.width_px, file.height_px) >= _FIELD_PX)
    made = in_order([*images, *unlabelled])
    not_square = sum(not _is_square(image, files[image.path]) for image in made)
    white, brightest = white_of(files.values()), brightest_of(files.values())
    return Built(
        made,
        tuple(left_out),
        (*remarks, *remarks_on(files), *_on_sizes(made, files)),
        fields,
        not_square,
        white,
        brightest,
    )


def _on_sizes(images: Sequence[LabelledImage], files: Mapping[str, ImageFile]) -> list[str]:
    """A remark on how large the pixels of images are, where that is known of some."""
    found = [image.um_per_px or files[image.path].um_per_px for image in images]
    known = sorted({um for um in found if um})
    if not known:
        return []
    wide = f"{known[0]:g}" if len(known) == 1 else f"{known[0]:g} to {known[-1]:g}"
    count = sum(um > 0 for um in found)
    remarks = [f"pixels are {wide} µm wide, as is known of {count} of {len(found)} images"]
    other = [
        image.path
        for image in images
        if image.um_per_px
        and not math.isclose(files[image.path].um_per_px or image.um_per_px, image.um_per_px, rel_tol=0.01)
    ]
    if other:
        size = files[other[0]].um_per_px
        remarks.append(f"{other[0]}: the file says that they are {size:g} µm wide; what was asked for counts")
    return remarks


def _is_square(image: LabelledImage, file: ImageFile) -> bool:
    box = image.box
    width, height = (file.width_px, file.height_px) if box is None else (box.x_max - box.x_min, box.y_max - box.y_min)
    return width == height


def _candidates(source: Source, without: Sequence[str], separator: str) -> list[Candidate]:
    """What the source names, without the labels that are to be left out; of one label an image without the image."""
    found = []
    for candidate in source.candidates:
        label = without_labels(tidied(candidate.label, separator), without, separator=separator)
        if label is not None:
            found.append(replace(candidate, label=label))
    return found


def _with_sizes(candidates: Iterable[Candidate], edited: Edited, um_per_px: float) -> list[Candidate]:
    """Candidates with a side of a pixel: the source's, else the one that dataset.csv has of it, else `um_per_px`."""
    done = []
    for one in candidates:
        before = edited.get((one.path, one.box))
        um = one.um_per_px or (before.um_per_px if before else 0.0) or um_per_px
        done.append(replace(one, um_per_px=um))
    return done


def _on_images_without_labels(
    images: Sequence[LabelledImage], unlabelled: Sequence[LabelledImage], separator: str
) -> list[str]:
    remarks = []
    if none := sum(image.label == separator for image in images if separator):
        remarks.append(f"{none} images have none of the labels: they are trained on as such")
    if unlabelled:
        how = f" ({separator!r} as their label says that they have none of the labels)" if separator else ""
        remarks.append(f"{len(unlabelled)} images have no label: they are cached, and left out of training{how}")
    return remarks


def _usable(
    folder: ImageFolders, candidates: Sequence[Candidate], files: Mapping[str, ImageFile], left_out: list[LeftOut]
) -> list[Candidate]:
    """Candidates whose file decodes and whose box lies in it; boxes are turned with it and cut at its border."""
    usable = []
    for candidate in candidates:
        file = files[candidate.path]
        if not _can_be_listed(candidate):
            reason = "dataset.csv cannot hold its name: rename it to plain UTF-8, without backslash and outer spaces"
            left_out.append(LeftOut(candidate.path.encode(errors="replace").decode(), reason))
        elif file.problem:
            left_out.append(LeftOut(candidate.path, file.problem))
        elif candidate.mask and (problem := _problem_of_mask(candidate, file)):
            left_out.append(LeftOut(candidate.path, problem))
        elif candidate.box is None:
            usable.append(candidate)
        else:
            try:
                box = placed(candidate.box, candidate.size, file=file, path=folder / candidate.path)
                usable.append(replace(candidate, box=box))
            except DatasetError as error:
                left_out.append(LeftOut(candidate.path, str(error)))
    return usable


def _problem_of_mask(candidate: Candidate, file: ImageFile) -> str:
    theirs, ours = candidate.mask_size, (file.width_px, file.height_px)
    if theirs == ours:
        return ""
    return f"its mask was drawn on a picture of {theirs[0]}x{theirs[1]} px, and the file has {ours[0]}x{ours[1]} px"


def _can_be_listed(candidate: Candidate) -> bool:
    """Whether dataset.csv gives back the path and label that are written to it."""
    try:
        same = safe_relative(candidate.path, "") == candidate.path
        same &= not candidate.mask or safe_relative(candidate.mask, "") == candidate.mask
        f"{candidate.path}{candidate.label}{candidate.group}{candidate.mask}".encode()
    except (DatasetError, UnicodeEncodeError):
        return False
    return same and not {"\r", "\n"} & set(candidate.path + candidate.label + candidate.mask)


def _files_of(candidates: Sequence[Candidate]) -> list[str]:
    """Paths of images and masks."""
    return [path for one in candidates for path in (one.path, one.mask) if path]


def _without_masks(files: Mapping[str, ImageFile], candidates: Sequence[Candidate]) -> dict[str, ImageFile]:
    masks = {candidate.mask for candidate in candidates}
    return {path: file for path, file in files.items() if path not in masks}


def _of_mask(candidate: Candidate, files: Mapping[str, ImageFile]) -> str:
    return files[candidate.mask].sha256 if candidate.mask else ""


def default_group(file_sha256: str) -> str:
    """By default a file is its own group, whatever its name; boxes of one file stay together."""
    return file_sha256[:16]


def _image(candidate: Candidate, file: ImageFile, group_pattern: str, *, mask_sha256: str) -> LabelledImage:
    group = candidate.group or default_group(file.sha256)
    if group_pattern and not candidate.group:
        found = re.search(group_pattern, candidate.path)
        group = (found.group(1 if found.re.groups else 0) if found else "") or ""
        if not group:
            raise DatasetError(f"{candidate.path}: the group pattern {group_pattern!r} finds nothing in this path")
    image_id = image_id_of(file.identity, candidate.box, mask_sha256=mask_sha256, um_per_px=candidate.um_per_px)
    return LabelledImage(
        path=candidate.path,
        label=candidate.label,
        split=candidate.split,
        group=group,
        image_id=image_id,
        box=candidate.box,
        mask=candidate.mask,
        um_per_px=candidate.um_per_px,
    )


def _refuse_empty_classes(
    source: Source, candidates: Sequence[Candidate], images: Sequence[LabelledImage], *, separator: str
) -> None:
    if not candidates:
        raise DatasetError(f"{source.folder}: no labelled image found")
    named, there = (
        {label for one in some for label in labels_in(one.label, separator)} for some in (candidates, images)
    )
    empty = named - there
    if empty:
        raise DatasetError(
            f"{source.folder}: no usable image with the label {', '.join(map(repr, sorted(empty)))}: every file of "
            "it was left out",
            f"Repair the files, or leave out the label with `without={min(empty)!r}`",
        )


def _without_duplicates(
    images: Sequence[LabelledImage], left_out: list[LeftOut], files: Mapping[str, ImageFile]
) -> list[LabelledImage]:
    """One image for the same bytes (and box), whatever their masks. With two labels nobody knows which is right.

    A box that has two is left out; of whole images DatasetError names them, since one of the files must go.
    """
    same = defaultdict(list)
    for image in images:
        same[image_id_of(files[image.path].identity, image.box)].append(image)
    kept = []
    contradictions = []
    for twins in same.values():
        labels = sorted({image.label for image in twins})
        if len(labels) > 1 and twins[0].box is not None and len({image.path for image in twins}) == 1:
            left_out.append(LeftOut(twins[0].path, f"one box has different labels: {', '.join(labels)}"))
            continue
        if len(labels) > 1:
            contradictions.append(" and ".join(f"{image.path} ({image.label})" for image in twins))
            continue
        first, *others = sorted(twins, key=lambda image: (_SPLIT_TO_KEEP[image.split], image.path))
        kept.append(first)
        for other in others:
            why = ", where it is kept so that no test image is trained on" if other.split != first.split else ""
            left_out.append(LeftOut(other.path, f"it has the same bytes as {first.path}{why}"))
    if contradictions:
        raise DatasetError(
            f"{len(contradictions)} images stand there twice, the same bytes under different labels: "
            f"{'; '.join(contradictions[:5])}. Keep the one that is right"
        )
    return kept


def _earlier(images: Sequence[LabelledImage], kept: Sequence[LabelledImage]) -> dict[str, LabelledImage]:
    """{image_id: what an earlier manifest said of the image}; found by bytes, else by path."""
    by_path = {(image.path, image.box): image for image in kept}
    by_id = {image.image_id: image for image in kept}
    found = {image.image_id: by_id.get(image.image_id) or by_path.get((image.path, image.box)) for image in images}
    return {image_id: before for image_id, before in found.items() if before is not None}


def _as_before(image: LabelledImage, before: LabelledImage | None, rule: SplitRule) -> LabelledImage:
    """An image with the group and split it had, unless its source says a split; under counts the split stays open."""
    if before is None:
        return image
    split = image.split or ("" if rule.counts else before.split)
    return replace(image, split=split, group=before.group or image.group)


def _members(images: Iterable[LabelledImage], separator: str) -> list[Member]:
    """An image of several labels for each of them; one of none with ""."""
    return [(image.group, label) for image in images for label in (labels_in(image.label, separator) or ("",))]


def _without_small_classes(
    images: Sequence[LabelledImage], left_out: list[LeftOut], separator: str
) -> tuple[list[LabelledImage], list[str]]:
    """Leave out classes that cannot be in train, val and test; only where splits are still to be made.

    An image of several labels only loses that one.
    """
    if all(image.split for image in images):
        return list(images), []
    small = small_classes(_members(images, separator))
    left_out += [
        LeftOut(image.path, f"its class {image.label!r} is too small to be in train, val and test")
        for image in images
        if not separator and image.label in small
    ]
    remarks = [
        f"class {label!r} is left out: it has {number} image{'s' if number > 1 else ''} of different groups, and 3 "
        "are needed, one each for train, val and test"
        for label, number in sorted(small.items())
    ]
    labels = [without_labels(image.label, small, separator=separator) for image in images]
    kept = zip(images, labels, strict=True)
    return [replace(image, label=label) for image, label in kept if label is not None], remarks


def _with_splits(
    images: Sequence[LabelledImage],
    rule: SplitRule,
    known: Mapping[str, str],
    *,
    left_out: list[LeftOut],
    separator: str,
) -> tuple[list[LabelledImage], list[str]]:
    """Fill in the splits that are still open; groups in `known` stay where they were if that can be."""
    given = {image.group: image.split for image in images if image.split}
    if all(image.split for image in images):
        if set(given.values()) == {"train", "test"}:
            return _take_val_from_train(images, rule, known, separator)
        return list(images), []
    members = _members(images, separator)
    if rule.counts:
        splits = split_by_counts(members, rule.counts, seed=rule.seed, known=known)
    else:
        splits = split_by_hash(members, rule.fractions or DEFAULT_FRACTIONS, seed=rule.seed)
    splits.update(given)
    done = []
    for image in images:
        if image.group in splits:
            done.append(replace(image, split=splits[image.group]))
        else:
            left_out.append(LeftOut(image.path, "it is beyond the number of images asked for a class"))
    return done, []


def _take_val_from_train(
    images: Sequence[LabelledImage], rule: SplitRule, known: Mapping[str, str], separator: str
) -> tuple[list[LabelledImage], list[str]]:
    """A source with train and test only: part of the training groups becomes the validation split."""
    members = _members((image for image in images if image.split == "train"), separator)
    fraction = DEFAULT_FRACTIONS["val"] / (DEFAULT_FRACTIONS["train"] + DEFAULT_FRACTIONS["val"])
    half = {"train": 1 - fraction, "val": fraction / 2, "test": fraction / 2}
    splits = split_by_hash(members, half, seed=rule.seed)
    splits.update((group, split) for group, split in known.items() if group in splits and split != "test")
    done = [
        replace(image, split="val") if image.split == "train" and splits[image.group] != "train" else image
        for image in images
    ]
    moved = sum(image.split == "val" for image in done)
    return done, [f"no val split was given: {moved} of the train images were taken for it, by hash"]


def split_counts_text(images: Sequence[LabelledImage]) -> str:
    """`168 train, 36 val, 36 test`"""
    return ", ".join(f"{sum(image.split == split for image in images)} {split}" for split in SPLITS)
