"""Pascal VOC annotations, with a label file or without: one image a box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from featcache.core.errors import DatasetError
from featcache.core.project import DatasetSection
from featcache.datasets.annotations import Annotated, read_annotations
from featcache.datasets.candidates import Candidate, LeftOut, Source, composed, explaining
from featcache.datasets.coco import read_coco
from featcache.datasets.createml import read_createml
from featcache.datasets.lists import label_lists, labels_of
from featcache.datasets.pictures import Pictures
from featcache.images import Box, look

_SHOWN = 3
Smears = Mapping[Path, Annotated]
"""Annotations by the picture that they are of."""


def from_voc(folder: Path, files: Sequence[Path], *, asked: DatasetSection, own: frozenset[Path]) -> Source:
    """One image for each box of Pascal VOC files; the labels come from a label file, or are the objects' names."""
    source = Source("voc", folder, "Pascal VOC annotations")
    read = _read(source, files)
    if any(one.is_one_of_many for one in read):
        source.layout, source.about = "cvat", "CVAT annotations"
    return from_annotations(source, read, asked=asked, own=own)


def from_coco(folder: Path, files: Sequence[Path], *, asked: DatasetSection, own: frozenset[Path]) -> Source:
    """One image for each box of COCO files; labels as of `from_voc`."""
    source = Source("coco", folder, "COCO annotations")
    return from_annotations(source, [one for file in files for one in read_coco(file)], asked=asked, own=own)


def from_createml(folder: Path, files: Sequence[Path], *, asked: DatasetSection, own: frozenset[Path]) -> Source:
    """One image for each box of CreateML files; labels as of `from_voc`."""
    source = Source("createml", folder, "CreateML annotations")
    return from_annotations(source, [one for file in files for one in read_createml(file)], asked=asked, own=own)


def from_annotations(
    source: Source, annotations: Sequence[Annotated], *, asked: DatasetSection, own: frozenset[Path]
) -> Source:
    """One image for each box of annotations; the labels come from a label file, or are the objects' names."""
    folder = source.folder
    lists = label_lists(folder, asked, own=own)
    if len(lists) > 1:
        raise DatasetError(f"{folder}: several label files ({', '.join(p.name for p in lists)}): keep one")
    paths = []
    for path, reason in look(folder, own):
        if reason:
            source.leave_out(path, reason)
        else:
            paths.append(path)
    pictures = Pictures(folder, paths)
    smears = _by_picture(source, pictures, annotations)
    if not (all(one.split for one in smears.values()) and len({one.split for one in smears.values()}) > 1):
        smears = {picture: replace(one, split="") for picture, one in smears.items()}
    if lists:
        with explaining(source.left_out):
            _pair_with_labels(
                source,
                pictures,
                smears=smears,
                listed=list(labels_of(lists[0], asked)),
                list_name=lists[0].name,
                asked=asked,
            )
        source.about += f" with labels from {lists[0].name}: one image a {asked.voc_object} box"
    else:
        _take_object_names(source, pictures, smears, asked.margin)
        names = sorted({candidate.label for candidate in source.candidates})
        source.about += f" without a label file: one image a box ({', '.join(names)})"
    return source


def _read(source: Source, files: Sequence[Path]) -> list[Annotated]:
    read = []
    for file in files:
        try:
            read += read_annotations(file)
        except DatasetError as error:
            source.leave_out(file, f"the annotation cannot be read ({error})")
    return read


def _by_picture(source: Source, pictures: Pictures, annotations: Sequence[Annotated]) -> dict[Path, Annotated]:
    """Each annotation with its picture. Those of the picture's own name come first, whatever <filename> says."""
    smears: dict[Path, Annotated] = {}
    contested: set[Path] = set()
    stale = []
    by_own_name = sorted(annotations, key=lambda one: not pictures.named(one.file.stem))
    for annotation in by_own_name:
        found = pictures.annotated_by(annotation)
        if len(found) != 1:
            names = ", ".join(path.relative_to(source.folder).as_posix() for path in found[:_SHOWN])
            reason = f"it may be of several images ({names})" if found else "there is no such image"
            source.left_out.append(LeftOut(_name_of(annotation, source), reason))
            continue
        picture = found[0]
        is_free = annotation.of is None and not annotation.is_one_of_many
        if is_free and (named := pictures.named(annotation.picture)) and picture not in named:
            stale.append(annotation)
        other = smears.setdefault(picture, annotation)
        is_bare = annotation.is_one_of_many and not (annotation.objects or annotation.odd)  # of another job, say
        if other is annotation or is_bare:
            continue
        if other.is_one_of_many and not (other.objects or other.odd):
            smears[picture] = annotation
        elif (other.objects, other.size) != (annotation.objects, annotation.size):
            source.leave_out(annotation.file, f"{picture.name} has another annotation, {other.file.name}")
            if annotation.is_one_of_many or pictures.named(annotation.file.stem):
                contested.add(picture)
    for picture in contested:
        source.leave_out(picture, f"it has several annotations that differ ({smears.pop(picture).file.name} for one)")
    if stale:
        some = ", ".join(f"{one.file.name}: {one.picture}" for one in stale[:_SHOWN])
        source.remarks.append(
            f"{len(stale)} annotations name another picture that is there in <filename> ({some}): each was taken for "
            "the picture of its own name"
        )
    return smears


def _name_of(annotation: Annotated, source: Source) -> str:
    """An annotation file; or, in one of many pictures, the picture that it names."""
    return annotation.picture if annotation.is_one_of_many else annotation.file.relative_to(source.folder).as_posix()


def _pair_with_labels(
    source: Source,
    pictures: Pictures,
    smears: Smears,
    listed: Sequence[tuple[str, list[str]]],
    list_name: str,
    asked: DatasetSection,
) -> None:
    wanted = composed(asked.voc_object).lower()
    names = Counter(name for smear in smears.values() for name, _ in smear.objects)
    if not any(name.lower() == wanted for name in names):
        found = ", ".join(f"{name} ({n})" for name, n in names.most_common())
        raise DatasetError(
            f"{source.folder}: no object is named {asked.voc_object!r}; found {found or 'none'}",
            "Name one with `voc_object`",
        )
    mentioned: set[Path] = set()
    for name, labels in listed:
        found_pictures = pictures.named(name)
        mentioned.update(found_pictures)
        if len(found_pictures) != 1:
            reason = f"{len(found_pictures)} images have this name" if found_pictures else "there is no such image"
            source.left_out.append(LeftOut(name, reason))
            continue
        (picture,) = found_pictures
        smear = smears.get(picture)
        reason = _why_unpaired(smear, labels, asked.voc_object)
        if reason or smear is None:
            source.leave_out(picture, reason)
            continue
        boxes = [box for name, box in smear.objects if name.lower() == wanted]
        for box in boxes:
            _add(source, picture, label=labels[0], smear=smear, box=box, margin=asked.margin)
        _note_odd(source, smear, wanted)
    for picture in (path for path in pictures.paths if path not in mentioned):
        source.leave_out(picture, f"it has no line in {list_name}")


def _why_unpaired(smear: Annotated | None, labels: list[str], voc_object: str) -> str:
    """Why a smear's labels and boxes do not pair up, or "" where they do."""
    if not labels:
        return "it has no label"
    if smear is None:
        return "it has no annotation"
    wanted = composed(voc_object).lower()
    number = sum(name.lower() == wanted for name, _ in (*smear.objects, *smear.odd))
    if len(labels) != number:
        boxes_text = f"{number} {voc_object} box{'' if number == 1 else 'es'}"
        return f"{len(labels)} label{'' if len(labels) == 1 else 's'} ({', '.join(labels)}) for {boxes_text}"
    if len(set(labels)) > 1:
        return f"{number} {voc_object} boxes with different labels ({', '.join(labels)}): which is which is not said"
    return ""


def _take_object_names(source: Source, pictures: Pictures, smears: Smears, margin: float) -> None:
    for picture, smear in smears.items():
        for name, box in dict.fromkeys(smear.objects):
            _add(source, picture, label=name, smear=smear, box=box, margin=margin)
        _note_odd(source, smear)
        if not smear.objects and not smear.odd:
            source.leave_out(picture, "its annotation has no object")
    for picture in (path for path in pictures.paths if path not in smears):
        source.leave_out(picture, "it has no annotation")


def _note_odd(source: Source, smear: Annotated, wanted: str = "") -> None:
    """List the objects without a usable box, but for those of other names where one name is wanted."""
    for name, problem in smear.odd:
        if not wanted or name.lower() in ("", wanted):
            named = f" ({name})" if name else ""
            item = LeftOut(_name_of(smear, source), f"an object is left out{named}: {problem}")
            source.left_out.append(item)


def _add(source: Source, picture: Path, label: str, smear: Annotated, box: Box, margin: float) -> None:
    relative = picture.relative_to(source.folder).as_posix()
    source.candidates.append(Candidate(relative, label, smear.split, box=_grown(box, margin), size=smear.size))


def _grown(box: Box, margin: float) -> Box:
    by = round(margin * max(box.x_max - box.x_min, box.y_max - box.y_min))
    return Box(max(box.x_min - by, 0), max(box.y_min - by, 0), box.x_max + by, box.y_max + by)
