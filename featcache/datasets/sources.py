"""Where labelled images come from: class folders, a CSV, Pascal VOC annotations; recognised by looks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from featcache.core.errors import DatasetError
from featcache.core.files import resolved
from featcache.core.project import DatasetSection
from featcache.datasets.annotations import annotations_beside, placed_annotations
from featcache.datasets.candidates import LeftOut, Source, explaining
from featcache.datasets.class_folders import from_class_folders, note_strays
from featcache.datasets.coco import coco_files
from featcache.datasets.createml import createml_files
from featcache.datasets.lists import from_csv, label_lists
from featcache.datasets.masks import is_root_of_masks, with_masks
from featcache.datasets.other_formats import refuse_other_annotations
from featcache.datasets.patterns import from_pattern, with_groups
from featcache.datasets.published import published
from featcache.datasets.split_names import is_like_a_split, split_of, split_of_path
from featcache.datasets.unpacking import is_packed, unpacked
from featcache.datasets.voc import from_coco, from_createml, from_voc
from featcache.datasets.yolo import from_yolo, yolo_files
from featcache.images import descend, has_images, is_image_name, is_images_folder, names_of, seen, visible_folders

_EXPECTED = (
    "expected class folders (FOLDER/eosinophil/1.png), split folders (FOLDER/train/eosinophil/1.png), "
    "a CSV with the columns path and label, Pascal VOC (annotations/*.xml, images/, labels.csv), COCO, YOLO or CVAT"
)


_SHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")

_AS_USUAL = DatasetSection()


def find_images(
    place: Path,
    asked: DatasetSection = _AS_USUAL,
    *,
    ignore: frozenset[Path] = frozenset(),
    unpack_into: Path | None = None,
) -> Source:
    """Recognise the layout of a folder (or take a CSV file) and list the images it names.

    asked : how the source is read; its splits and places are not looked at
    ignore : files and folders in `place` that are no source: a project's own
    unpack_into : folder that a .zip or .npz is unpacked in; by default the one that it lies in

    Raises DatasetError where the place is absent, empty or of no known layout.
    """
    place = unpacked(place, unpack_into or place.parent) if is_packed(place) else place
    masks = _folder_of_masks(place, place, asked.masks) if asked.masks else None
    source = _found(place, asked, ignore | {masks} if masks else ignore, unpack_into)
    with explaining(source.left_out):
        if asked.masks:
            source.roots |= {name: resolved(root) for name, root in asked.roots.items() if is_root_of_masks(name)}
            source = with_masks(source, _masks(place, source, asked.masks))
        if asked.group_from:
            source = with_groups(source, asked.group_from)
    return source


def _masks(place: Path, source: Source, name: str) -> Path:
    """The folder of masks: in the source, or where its path from the current folder leads."""
    found = _folder_of_masks(place, source.folder, name)
    if found is None:
        raise DatasetError(f"{source.folder}: there is no folder of masks named {name!r:.200}")
    return found


def _folder_of_masks(place: Path, folder: Path, name: str) -> Path | None:
    places = (folder / name, (place if place.is_dir() else place.parent) / name, Path(name))
    return next((one for one in places if one.is_dir()), None)


def _found(place: Path, asked: DatasetSection, ignore: frozenset[Path], unpack_into: Path | None) -> Source:
    if place.is_file():
        return _with_splits_of_paths(from_csv(place, asked, unpack_into=unpack_into))
    if not place.is_dir():
        raise DatasetError(f"{place}: there is no such folder or file")
    own = frozenset(resolved(path) for path in ignore)
    try:
        return _recognised(place, descend(place, own), asked, own)
    except DatasetError as error:
        if sheets := [path for path in sorted(place.iterdir()) if path.suffix.lower() in _SHEETS]:
            error.args = (
                f"{error}. {names_of(sheets)} may hold labels: save the sheet as 'CSV UTF-8' to have it read",
            )
        raise
    except PermissionError as error:
        raise DatasetError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def _recognised(place: Path, folder: Path, asked: DatasetSection, own: frozenset[Path]) -> Source:
    """place : what the user named; folder : the one in it that is looked at."""
    if asked.label_from:
        return from_pattern(place, asked.label_from, own=own)
    subfolders = visible_folders(folder, own)
    lists = label_lists(folder, asked, own=own)
    splits = _split_folders(subfolders)
    annotations = placed_annotations(folder, own)
    if not annotations and (not splits or lists):
        annotations = annotations_beside(folder, own)
    if annotations:
        return _with_splits_of_paths(from_voc(folder, annotations, asked=asked, own=own))
    if coco := coco_files(folder, own):
        return _with_splits_of_paths(from_coco(folder, coco, asked=asked, own=own))
    if createml := createml_files(folder, own):
        return _with_splits_of_paths(from_createml(folder, createml, asked=asked, own=own))
    if not asked.class_level and (yolo := yolo_files(folder, own)):
        return _with_splits_of_paths(from_yolo(place, folder, files=yolo, asked=asked, own=own))
    if not lists and not asked.class_level and (known := published(folder, own)):
        return known
    if splits and not (lists and not any(map(visible_folders, splits))):
        return _from_split_folders(folder, splits, subfolders, asked, own)
    if not asked.class_level:
        refuse_other_annotations(folder, own)
    listed = lists and (len(subfolders) == 1 or splits or any(is_images_folder(sub) for sub in subfolders))
    if any(has_images(sub) for sub in subfolders) and not listed:
        return from_class_folders(folder, subfolders, asked=asked, own=own)
    if len(lists) == 1:
        return _with_splits_of_paths(from_csv(lists[0], asked))
    if len(lists) > 1:
        names = ", ".join(path.name for path in lists)
        raise DatasetError(f"{place}: several lists with labels ({names}): name one instead of the folder, {lists[0]}")
    images = sum(1 for path in folder.iterdir() if is_image_name(path))
    found = f"{images} images without a label" if images else "no images"
    raise DatasetError(f"{place}: {found}: {_EXPECTED}")


def _split_folders(subfolders: list[Path]) -> dict[Path, str]:
    """Folders that are splits: by name, and unless one of them alone stands among class folders ('test', 'control')."""
    splits = {sub: split for sub in subfolders if (split := split_of(sub.name))}
    others = [sub for sub in subfolders if sub not in splits and not is_like_a_split(sub)]
    several = len(set(splits.values())) > 1 or "train" in splits.values() or not others
    return splits if several or any(map(visible_folders, splits)) else {}


def _from_split_folders(
    folder: Path, splits: dict[Path, str], subfolders: list[Path], asked: DatasetSection, own: frozenset[Path]
) -> Source:
    """One source of several; each split folder may hold class folders, annotations or a list."""
    whole = Source("split-folders", folder, "")
    kinds = set()
    with explaining(whole.left_out):
        for split_folder, split in splits.items():
            part = _split_part(splits, split_folder, asked, own)
            kinds.add(part.about.partition(":")[0])
            if part.layout != "class-folders":
                whole.layout = part.layout
            _take_over(whole, part, split)
        for other in (sub for sub in subfolders if sub not in splits):
            whole.left_out.append(LeftOut(other.name, "a folder beside train, val and test that is none of them"))
        note_strays(whole, folder, own=own)
    classes = ", ".join(sorted({candidate.label for candidate in whole.candidates}))
    kind = " and ".join(sorted(kinds)) if len(kinds) == 1 or whole.layout == "split-folders" else "split folders"
    whole.about = f"{kind} split already ({names_of(splits)}): {classes}"
    return whole


def _split_part(splits: dict[Path, str], split_folder: Path, asked: DatasetSection, own: frozenset[Path]) -> Source:
    subfolders = visible_folders(split_folder, own)
    annotated = placed_annotations(split_folder, own) or coco_files(split_folder, own)
    annotated = annotated or createml_files(split_folder, own)
    if not (subfolders or annotated or label_lists(split_folder, asked, own=own)):
        refuse_other_annotations(split_folder, own)
        raise DatasetError(
            f"{split_folder.parent}: {names_of(splits)} hold no class folders, but {seen(splits)}: {_EXPECTED}"
        )
    inner = subfolders[0] if len(subfolders) == 1 and is_images_folder(subfolders[0]) else split_folder
    is_wrapped = inner != split_folder and visible_folders(inner, own) and not label_lists(split_folder, asked, own=own)
    return _recognised(split_folder, inner if is_wrapped else split_folder, asked, own)


def _take_over(whole: Source, part: Source, split: str) -> None:
    if part.roots:
        raise DatasetError(
            f"{part.folder}: a list in a split folder, whose images lie in several places: name the list"
        )
    try:
        inner = Path(os.path.normpath(part.folder)).relative_to(os.path.normpath(whole.folder))
    except ValueError as error:
        raise DatasetError(
            f"{part.folder}: the list in a split folder names images outside of {whole.folder}"
        ) from error
    whole.candidates += [
        replace(
            candidate,
            path=(inner / candidate.path).as_posix(),
            mask=(inner / candidate.mask).as_posix() if candidate.mask else "",
            split=candidate.split or split,
        )
        for candidate in part.candidates
    ]
    whole.left_out += [LeftOut((inner / item.path).as_posix(), item.reason) for item in part.left_out]
    whole.remarks += [f"{inner.as_posix()}: {remark}" for remark in part.remarks]


def _with_splits_of_paths(source: Source) -> Source:
    """Take the splits from the paths where the source says none, and every image lies in a folder named for one."""
    splits = [split_of_path(candidate.path) for candidate in source.candidates]
    if not splits or not all(splits) or len(set(splits)) < 2 or any(one.split for one in source.candidates):
        return source
    source.candidates = [replace(one, split=split) for one, split in zip(source.candidates, splits, strict=True)]
    source.about += "; split already, by the names of the images' folders"
    return source
