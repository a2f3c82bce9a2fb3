"""A CSV that lists images: found, its columns recognised, its lines read."""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from featcache.core.errors import DatasetError
from featcache.core.files import resolved
from featcache.core.project import PROJECT_FILE, DatasetSection, ImageFolders
from featcache.datasets.candidates import Candidate, LeftOut, Source, composed
from featcache.datasets.columns import (
    Columns,
    box_of,
    has_path_and_label,
    headerless,
    labels_of as labels_in_columns,
    path_and_label,
    recognise,
    size_of,
)
from featcache.datasets.csv_files import header_of, read_csv
from featcache.datasets.label_lists import joined
from featcache.datasets.manifest import um_per_px_in
from featcache.datasets.masks import attach
from featcache.datasets.split_names import split_of
from featcache.datasets.unpacking import UNPACKED_FOLDER
from featcache.datasets.web_images import fetched, is_address, without_login
from featcache.images import is_file, is_image_name, is_images_folder, visible_folders


def from_csv(path: Path, asked: DatasetSection, *, unpack_into: Path | None = None) -> Source:
    """The images of a list, with their boxes, groups and splits where it has columns for them.

    unpack_into : folder that images with addresses are fetched into; None leaves these out
    """
    frame = read_csv(path, headerless)
    header = [str(name) for name in frame.columns]
    source = Source("csv", path.parent, f"a list, {path.name}: columns {', '.join(header)}")
    columns = _without_folds(source, frame, recognise(str(path), header, asked=asked))
    source.roots = {name: resolved(root) for name, root in asked.roots.items()}
    source.images.refuse_missing()
    places = _Places(path.parent, source.roots)
    files: list[Path] = []
    masks: dict[int, Path] = {}
    addresses = [name for value in frame[columns.path] if is_address(name := str(value).strip())]
    from_web: dict[str, Path | str] = dict.fromkeys(addresses, "it is an address: name the list, and not its folder")
    if addresses and unpack_into is not None:
        from_web = fetched(addresses, unpack_into / UNPACKED_FOLDER / "fetched")
    for line, row in zip(frame.index, frame.to_dict("records"), strict=True):
        cells = {str(key): str(value).strip() for key, value in row.items()}
        name, where = cells[columns.path], f"{path}, line {line}"
        file = from_web[name] if name in from_web else places.find(name)
        if isinstance(file, str):
            source.left_out.append(LeftOut(without_login(name), file))
            continue
        candidate = _candidate(cells, columns, where, separator=asked.label_separator)
        if columns.mask and (named := cells[columns.mask]):
            mask = places.find(named)
            if isinstance(mask, str):
                source.left_out.append(LeftOut(name, f"its mask, {without_login(named)}: {mask}"))
                continue
            masks[len(files)] = mask
        source.candidates.append(candidate)
        files.append(file)
    _name_from_folders(source, files)
    if masks:
        _with_masks(source, masks)
    return source


def _with_masks(source: Source, masks: Mapping[int, Path]) -> None:
    """Give candidates the masks that the list names for them, by their places."""
    bare = [one for place, one in enumerate(source.candidates) if place not in masks]
    wanted = [(source.candidates[place], resolved(mask)) for place, mask in masks.items()]
    below = Path(os.path.commonpath([mask.parent for _, mask in wanted]))
    attach(source, wanted, below=below, in_boxes=False)
    if not source.candidates and not bare:
        raise DatasetError(
            f"no image has a mask that can be used: {source.left_out[-1].reason}",
            "Set `mask_column='none'` to leave the masks of the list alone",
        )
    source.candidates = sorted([*bare, *source.candidates], key=lambda one: one.path)


def _candidate(cells: dict[str, str], columns: Columns, where: str, *, separator: str) -> Candidate:
    split = _split_name(cells[columns.split], where) if columns.split else ""
    group = composed(cells[columns.group]) if columns.group else ""
    box = box_of(cells, columns, where=where) if columns.box else None
    size = size_of(cells, columns) if box else None
    label = cells[columns.label] if columns.label else ""
    if columns.labels and (found := labels_in_columns(cells, columns, where=where)) is not None:
        label = joined(found, separator)
    um = um_per_px_in(cells[columns.um_per_px], where) if columns.um_per_px else 0.0
    return Candidate("", composed(label), split, group, box, size, um_per_px=um)


def _without_folds(source: Source, frame: pd.DataFrame, columns: Columns) -> Columns:
    """A column of numbers that is named fold is for cross-validation: it makes no splits, and that is said."""
    if not columns.split or columns.split.lower() != "fold":
        return columns
    if not all(str(value).strip().isdigit() for value in frame[columns.split] if str(value).strip()):
        return columns
    source.remarks.append(f"the column {columns.split} holds numbers and not train, val and test: it makes no splits")
    return replace(columns, split="")


def _name_from_folders(source: Source, files: list[Path]) -> None:
    """Make the paths of a list relative: to a root, to the list's folder, or to the one that holds all images.

    Where only the whole disk holds them all, they lie in several places, and each of these becomes a root.
    """
    if source.roots or not all(file.is_relative_to(source.folder) and ".." not in file.parts for file in files):
        source.folder, files = resolved(source.folder), [resolved(file) for file in files]
        rest = [file for file in files if not any(map(file.is_relative_to, source.roots.values()))]
        if not all(file.is_relative_to(source.folder) for file in rest):
            if len(found := _separate_folders(rest)) > 1:
                source.roots |= _named(found, taken=source.roots)
                listed = ", ".join(f"{name} in {root}" for name, root in source.roots.items())
                source.remarks.append(
                    f"the images lie in several places: {listed}; see [dataset.roots] in {PROJECT_FILE}"
                )
            else:
                (source.folder,) = found
    source.candidates = [
        replace(candidate, path=_path_of(file, source))
        for candidate, file in zip(source.candidates, files, strict=True)
    ]


def _separate_folders(files: Sequence[Path]) -> list[Path]:
    """The folder that holds all files; several, where that is the whole disk or there are several disks."""
    places = defaultdict(set)
    for file in files:
        places[file.parts[:2]].add(file.parent)  # the disk, and a folder at its top
    return [Path(os.path.commonpath(folders)) for folders in places.values()]


def _named(folders: Sequence[Path], *, taken: Container[str]) -> dict[str, Path]:
    """Folders by names that can begin a path in dataset.csv: their own, with a number where there are several."""
    named: dict[str, Path] = {}
    for folder in folders:
        name = re.sub(r"[^\w.-]+", "-", folder.name).strip(".-")[:50] or "images"
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        named[next(one for one in itertools.chain([name], numbered) if one not in named and one not in taken)] = folder
    return named


def _path_of(file: Path, source: Source) -> str:
    """A file's path as dataset.csv has it. Raises DatasetError where it would be taken for one in a root."""
    inside = [(name, root) for name, root in source.roots.items() if file.is_relative_to(root)]
    if inside:
        name, root = max(inside, key=lambda item: len(item[1].parts))
        return f"{name}/{file.relative_to(root).as_posix()}"
    path = file.relative_to(source.folder).as_posix()
    if source.roots and source.images / path != source.folder / path:
        name = path.partition("/")[0]
        raise DatasetError(
            f"{file}: the folder {name} has the name of a root, {source.roots[name]}", "Give the root another name"
        )
    return path


def _split_name(name: str, where: str) -> str:
    split = split_of(name)
    if name and not split:
        raise DatasetError(
            f"{where}: split {name!r}: expected train, val or test",
            "Set `split_column='none'` to ignore the splits of the list",
        )
    return split


class _Places:
    """Where the images of a list may lie: in its folder, in one of images beside it, in a root, in any beside it."""

    def __init__(self, folder: Path, roots: Mapping[str, Path]) -> None:
        self._roots = list(roots.values())
        subfolders = visible_folders(folder)
        usual = [folder, *filter(is_images_folder, subfolders)]
        self._usual: list[Path | ImageFolders] = [ImageFolders(folder, roots), *usual]
        self._all = [*usual, *self._roots, *(sub for sub in subfolders if not is_images_folder(sub))]
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path | str:
        """The file that a name means, or why there is none. A name may lack its ending, or write it otherwise."""
        name = name.replace("\\", "/")
        if not name:
            return "there is no such file"
        try:
            for place in self._usual:
                if (file := Path(os.path.normpath(place / name))).is_file():
                    return file
            there = [file for root in self._roots if (file := Path(os.path.normpath(root / name))).is_file()]
            return self._one_of(dict.fromkeys(there)) if there else self._alike(name)
        except (OSError, ValueError):  # a name that no file can have
            return "there is no such file"

    def _alike(self, name: str) -> Path | str:
        found: dict[Path, None] = {}
        for place in self._all:
            file = Path(os.path.normpath(place / name))
            listed = self._listing(file.parent)
            alike = next((listed[key] for key in _keys(file) if key in listed), [])
            found.update(dict.fromkeys(alike))
        return self._one_of(found)

    @staticmethod
    def _one_of(found: Iterable[Path]) -> Path | str:
        files = list(found)
        if len(files) > 1:
            return f"it may be any of several files: {', '.join(map(str, files[:3]))}"
        return next(iter(files), "there is no such file")

    def _listing(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._listed:
            listed: dict[str, list[Path]] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if is_image_name(path) and path.is_file():
                    for key in {*_keys(path), composed(path.stem)}:
                        listed.setdefault(key, []).append(path)
            self._listed[folder] = listed
        return self._listed[folder]


def _keys(path: Path) -> tuple[str, str]:
    """How a name is looked for: as it is but for its Unicode form, then with its ending in small letters."""
    name = composed(path.name)
    stem, dot, ending = name.rpartition(".")
    return name, f"{stem}{dot}{ending.lower()}/"


def labels_of(path: Path, asked: DatasetSection) -> Iterator[tuple[str, list[str]]]:
    """Lines of a label file: an image's name and the labels of its cells ("a, b": two cells)."""
    frame = read_csv(path, headerless)
    asked = asked.model_copy(update={"label_columns": ()})  # `init` refuses them where boxes are labelled
    path_column, label_column = path_and_label(str(path), [str(name) for name in frame.columns], asked=asked)
    for _, row in frame.iterrows():
        labels = [composed(label.strip()) for label in re.split(r"[,;|]", str(row[label_column]))]
        yield str(row[path_column]).strip(), [label for label in labels if label]


def label_lists(folder: Path, asked: DatasetSection, *, own: frozenset[Path] = frozenset()) -> Sequence[Path]:
    """CSV files in `folder` with a path and a label column; those of the usual names before all others."""
    headers = {
        path: header_of(path)
        for path in sorted(folder.iterdir())
        if is_file(path, ".csv") and resolved(path) not in own
    }
    for usual_only in (True, False):
        if found := [
            path for path, names in headers.items() if has_path_and_label(names, asked, usual_only=usual_only)
        ]:
            return found
    return []
