"""A CSV that lists images: found, its columns recognised, its lines read."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from featcache.dataset.candidates import Candidate, LeftOut, Source
from featcache.dataset.folders import is_file, is_images_folder, visible_folders
from featcache.dataset.manifest import parse_box, read_csv
from featcache.errors import DatasetError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath", "image_path", "img")
_LABEL_COLUMNS = ("label", "class", "category", "target", "class_name")
_GROUP_COLUMNS = ("group", "patient", "patient_id", "slide", "slide_id", "subject")
_SPLIT_COLUMNS = ("split", "set", "subset", "fold")


def from_csv(path: Path) -> Source:
    frame = read_csv(path)
    columns = {name.strip().lower(): name for name in map(str, frame.columns)}
    path_column, label_column = _first(columns, _PATH_COLUMNS), _first(columns, _LABEL_COLUMNS)
    if not path_column or not label_column:
        raise DatasetError(
            f"{path}: expected a column path (or {', '.join(_PATH_COLUMNS[1:4])}) and a column label "
            f"(or {', '.join(_LABEL_COLUMNS[1:3])}); found {', '.join(map(str, frame.columns))}"
        )
    split_column, group_column = _first(columns, _SPLIT_COLUMNS), _first(columns, _GROUP_COLUMNS)
    source = Source("csv", path.parent, f"a list, {path.name}: columns {', '.join(map(str, frame.columns))}")
    files: list[Path] = []
    for line, row in zip(frame.index, frame.to_dict("records"), strict=True):
        cells = {str(key).strip().lower(): str(value).strip() for key, value in row.items()}
        where = f"{path}, line {line}"
        name, label = cells[path_column.strip().lower()], cells[label_column.strip().lower()]
        file = _locate(path.parent, name)
        if not label:
            source.left_out.append(LeftOut(name, "it has no label"))
        elif file is None:
            source.left_out.append(LeftOut(name, "there is no such file"))
        else:
            split = _split_name(cells.get((split_column or "").strip().lower(), ""), where)
            group = cells.get((group_column or "").strip().lower(), "")
            source.candidates.append(Candidate("", label, split, group, parse_box(cells, where)))
            files.append(file)
    _name_from_common_folder(source, files)
    return source


def _name_from_common_folder(source: Source, files: list[Path]) -> None:
    """Make the paths of a list relative: to the list's folder, or to the one that holds all images."""
    if not all(file.is_relative_to(source.folder) and ".." not in file.parts for file in files):
        files = [file.resolve() for file in files]
        source.folder = Path(os.path.commonpath([file.parent for file in files]))
    source.candidates = [
        replace(candidate, path=file.relative_to(source.folder).as_posix())
        for candidate, file in zip(source.candidates, files, strict=True)
    ]


def _split_name(name: str, where: str) -> str:
    if name and name.lower() not in SPLIT_NAMES:
        raise DatasetError(f"{where}: split {name!r}: expected train, val or test")
    return SPLIT_NAMES.get(name.lower(), "")


def _first(columns: dict[str, str], names: Iterable[str]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def _locate(folder: Path, name: str) -> Path | None:
    """The file that a list means: from the list's folder, or in an images folder beside it."""
    name = name.replace("\\", "/")
    if not name:
        return None
    places = [folder, *(sub for sub in visible_folders(folder) if is_images_folder(sub))]
    found = (Path(os.path.normpath(place / name)) for place in places)
    try:
        return next((file for file in found if file.is_file()), None)
    except OSError:  # a name that no file can have
        return None


def labels_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Lines of a label file: an image's name and the labels of its cells ("a, b": two cells)."""
    frame = read_csv(path)
    columns = {name.strip().lower(): name for name in map(str, frame.columns)}
    path_column, label_column = _first(columns, _PATH_COLUMNS) or "", _first(columns, _LABEL_COLUMNS) or ""
    for _, row in frame.iterrows():
        labels = [label.strip() for label in re.split(r"[,;|]", str(row[label_column]))]
        yield str(row[path_column]).strip(), [label for label in labels if label]


def label_lists(folder: Path, own: frozenset[Path] = frozenset()) -> list[Path]:
    """CSV files in `folder` with a path and a label column."""
    found = []
    for path in sorted(folder.iterdir()):
        if not is_file(path, ".csv") or path.resolve() in own:
            continue
        columns = {name.strip().lower(): name for name in _header(path)}
        if _first(columns, _PATH_COLUMNS) and _first(columns, _LABEL_COLUMNS):
            found.append(path)
    return found


def _header(path: Path) -> list[str]:
    """The first line of a CSV with anything in it; an unreadable one has none."""
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16).decode("utf-8-sig", "replace")
        return next(filter(any, csv.reader(io.StringIO(start, newline=""), skipinitialspace=True)), [])
    except (OSError, csv.Error):
        return []
