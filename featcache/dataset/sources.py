"""Where labelled images come from: class folders, a CSV, Pascal VOC annotations; recognised by looks."""

from __future__ import annotations

from pathlib import Path

from featcache.dataset.candidates import Candidate, LeftOut, Source
from featcache.dataset.folders import (
    descend,
    has_images,
    image_files,
    is_images_folder,
    names_of,
    visible_folders,
)
from featcache.dataset.images import is_image_name
from featcache.dataset.lists import SPLIT_NAMES, from_csv, label_lists
from featcache.dataset.voc import annotation_files, from_voc
from featcache.errors import DatasetError

_EXPECTED = (
    "expected class folders (FOLDER/eosinophil/1.png), split folders (FOLDER/train/eosinophil/1.png), "
    "a CSV with the columns path and label, or Pascal VOC (annotations/*.xml, images/, labels.csv)"
)


def find_images(
    place: Path, voc_object: str = "WBC", margin: float = 0.0, ignore: frozenset[Path] = frozenset()
) -> Source:
    """Recognise the layout of a folder (or take a CSV file) and list the images it names.

    voc_object : name of the annotated objects that the labels of a VOC label file belong to
    margin : grows each VOC box by this fraction of its longer side on every side
    ignore : files and folders in `place` that are no source: a project's own

    Raises DatasetError where the place is absent, empty or of no known layout.
    """
    if place.is_file():
        return from_csv(place)
    if not place.is_dir():
        raise DatasetError(f"{place}: there is no such folder or file")
    own = frozenset(path.resolve() for path in ignore)
    folder = descend(place, own)
    annotations = annotation_files(folder)
    if annotations:
        return from_voc(folder, annotations, voc_object, margin, own)
    subfolders = visible_folders(folder, own)
    lists = label_lists(folder, own)
    by_split = {sub: SPLIT_NAMES[sub.name.lower()] for sub in subfolders if sub.name.lower() in SPLIT_NAMES}
    if by_split and any(visible_folders(sub) for sub in by_split):
        return _from_split_folders(folder, by_split, subfolders, own)
    listed = lists and (len(subfolders) == 1 or any(is_images_folder(sub) for sub in subfolders))
    if any(has_images(sub) for sub in subfolders) and not listed:
        return _from_class_folders(folder, subfolders, own)
    if len(lists) == 1:
        return from_csv(lists[0])
    if len(lists) > 1:
        names = ", ".join(path.name for path in lists)
        raise DatasetError(f"{place}: several lists with labels ({names}): name one, 'featcache init {lists[0]}'")
    images = sum(1 for path in folder.iterdir() if is_image_name(path))
    found = f"{images} images without a label" if images else "no images"
    raise DatasetError(f"{place}: {found}: {_EXPECTED}")


def _from_class_folders(folder: Path, subfolders: list[Path], own: frozenset[Path]) -> Source:
    source = Source("class-folders", folder, f"class folders: {names_of(subfolders)}")
    for sub in subfolders:
        _add_class_folder(source, sub, split="")
    _note_strays(source, folder, own)
    return source


def _from_split_folders(
    folder: Path, by_split: dict[Path, str], subfolders: list[Path], own: frozenset[Path]
) -> Source:
    source = Source("split-folders", folder, "")
    for split_folder, split in by_split.items():
        for sub in visible_folders(split_folder):
            _add_class_folder(source, sub, split)
        _note_strays(source, split_folder)
    for other in (sub for sub in subfolders if sub not in by_split):
        source.left_out.append(LeftOut(other.name, "a folder beside train, val and test that is none of them"))
    _note_strays(source, folder, own)
    classes = sorted({candidate.label for candidate in source.candidates})
    source.about = f"class folders split already ({names_of(by_split)}): {', '.join(classes)}"
    return source


def _add_class_folder(source: Source, class_folder: Path, split: str) -> None:
    before = len(source.candidates)
    for path in image_files(class_folder):
        relative = path.relative_to(source.folder).as_posix()
        source.candidates.append(Candidate(relative, class_folder.name.strip(), split))
    if len(source.candidates) == before:
        raise DatasetError(f"{class_folder}: a class folder without images: add some, or remove the folder")


def _note_strays(source: Source, folder: Path, own: frozenset[Path] = frozenset()) -> None:
    for path in sorted(folder.iterdir()):
        if path.resolve() not in own and path.is_file() and is_image_name(path):
            source.left_out.append(LeftOut(path.relative_to(source.folder).as_posix(), "it lies in no class folder"))
