"""Class folders: which level of folders names the class, and the images in each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from featcache.core.errors import DatasetError
from featcache.core.files import resolved
from featcache.core.project import DatasetSection
from featcache.datasets.candidates import Candidate, Source, composed, explaining
from featcache.datasets.split_names import is_an_origin, is_fold, is_like_a_split, split_of
from featcache.images import has_images, look, names_of, visible_folders

_NO_CLASSES = frozenset(
    {
        *("images", "image", "imgs", "img", "jpegimages", "labels", "annotations", "masks", "mask", "segmentation"),
        *("segmentations", "segmentationclass", "segmentationobject", "imagesets", "gt", "groundtruth", "ground_truth"),
        *("thumbnails", "thumbs"),
    }
)


def from_class_folders(folder: Path, subfolders: list[Path], *, asked: DatasetSection, own: frozenset[Path]) -> Source:
    """One class a folder, `asked.class_level` levels down. Raises DatasetError where that level is not plain."""
    source = Source("class-folders", folder, "")
    with explaining(source.left_out):
        if not asked.class_level:
            _refuse_unclear_level(folder, subfolders, own)
        for sub in subfolders:
            _add_level(source, sub, asked.class_level or 1, (), own)
        note_strays(source, folder, own=own)
    labels = sorted({candidate.label for candidate in source.candidates})
    source.about = f"class folders: {', '.join(labels)}"
    return source


def _add_level(source: Source, folder: Path, level: int, above: tuple[Path, ...], own: frozenset[Path]) -> None:
    if level == 1:
        _add_class_folder(source, folder, above, own)
        return
    for sub in visible_folders(folder, own):
        _add_level(source, sub, level - 1, (*above, folder), own)
    note_strays(source, folder, own=own)


def _add_class_folder(source: Source, folder: Path, above: tuple[Path, ...], own: frozenset[Path]) -> None:
    """above : the folders over the class's; they make the images' groups, but for folds, which are none"""
    label = composed(folder.name.strip())
    group = "/".join(composed(path.name) for path in above if not is_fold(path))
    before, depth = len(source.candidates), len(folder.relative_to(source.folder).parts)
    inner = visible_folders(folder, own)
    splits = {sub.name: split_of(sub.name) for sub in inner} if all(split_of(sub.name) for sub in inner) else {}
    for path, reason in look(folder, own):
        if reason or not label:
            source.leave_out(path, reason or "its folder's name is blank, and would be its label")
            continue
        relative = path.relative_to(source.folder)
        split = splits.get(relative.parts[depth], "") if splits else ""
        source.candidates.append(Candidate(relative.as_posix(), label, split, group))
    if label and len(source.candidates) == before:
        raise DatasetError(f"{folder}: a class folder without images: add some, or remove the folder")


def note_strays(source: Source, folder: Path, *, own: frozenset[Path] = frozenset()) -> None:
    """List the images that lie right in a folder, beside class folders, and what else is passed there."""
    folders = set(visible_folders(folder, own))
    for path, reason in look(folder, own | {resolved(sub) for sub in folders}):
        if path.parent == folder:
            source.leave_out(path, reason or "it lies in no class folder")


def _refuse_unclear_level(folder: Path, subfolders: list[Path], own: frozenset[Path]) -> None:
    """Raise DatasetError where the folders are splits, folds, patients or parts of a format, and no classes."""
    shown = names_of(subfolders)
    inner = {sub: [one for one in visible_folders(sub, own) if has_images(one)] for sub in subfolders}
    names = Counter(composed(one.name) for found in inner.values() for one in found)
    shared = sorted(name for name, times in names.items() if times > 1)
    if len(names) > 1 and 2 * len(shared) >= len(names) and not all(map(split_of, names)):
        raise DatasetError(
            f"{folder}: which folders are the classes? {shown} hold the same folders ({', '.join(shared[:8])})",
            f"Set `class_level=1` for {shown}, or `class_level=2` for {', '.join(shared[:8])}; the folders above then "
            "are groups, unless they are folds",
        )
    odd = [sub for sub in subfolders if sub.name.lower() in _NO_CLASSES]
    if not odd:
        for is_no_class in (is_like_a_split, is_fold, is_an_origin):
            if all(map(is_no_class, subfolders)):
                odd = subfolders
    if odd:
        deeper = "`class_level=2` to take the folders in them, or " if names else ""
        raise DatasetError(
            f"{folder}: {names_of(odd)} do not look like names of classes: expected folders that are named for what "
            "their images show",
            f"Set {deeper}`class_level=1` to take {shown} as they are",
        )
