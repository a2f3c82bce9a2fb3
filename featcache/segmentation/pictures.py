"""Pictures of a folder, what is made of each, and a record of it: so that an interrupted call goes on.

The record of a picture is written last of all that is made of it, and names these files. A picture is done if its
record is there, the picture has not changed since, and the files are there.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, ImageError, ProjectError
from featcache.core.files import is_hidden, make_folder, resolved, safe_cell, write_bytes, write_json, write_text
from featcache.core.progress import Progress
from featcache.core.project import LARGEST_WHITE
from featcache.images import (
    Pixels,
    PixelSize,
    look,
    may_be_wide,
    on_depths,
    read_bytes,
    read_picture,
    said_of_white,
    scan,
    white_of,
)

_RECORDS = ".pictures"


LEFT_OUT_COLUMNS = ("image", "reason", "x_min", "y_min", "x_max", "y_max")


@dataclass(frozen=True)
class Picture:
    """A file to be worked on.

    image : its path from the folder that was given; name : that of what is made of it; stamp : its state
    problem : why it cannot be used; "" where nothing is known to be wrong
    white : as of `featcache.images.read_picture`
    """

    path: Path
    image: str
    name: str
    stamp: str
    problem: str = ""
    white: int = 0

    def read(self) -> Pixels:
        """Its pixels. Raises ImageError where it cannot be used."""
        return self.read_with_size()[0]

    def read_with_size(self) -> tuple[Pixels, PixelSize]:
        """Its pixels, and how large they are. Raises ImageError where it cannot be used."""
        if self.problem:
            raise ImageError(self.problem)
        picture = read_picture(read_bytes(self.path), self.white)
        return picture.pixels, picture.size


def pictures_in(sources: Sequence[Path], out: Path) -> list[Picture]:
    """All pictures of files and folders, each with a name of its own.

    Of one source they are called by their path from it; of several, the name of the source stands before that.
    """
    found: dict[Path, tuple[Path, str, str]] = {}
    for source, prefix in zip(sources, _prefixes(sources), strict=True):
        if not source.exists():
            raise DatasetError(f"{source}: there is no such folder or file")
        base = source if source.is_dir() else source.parent
        if resolved(base) == out:
            raise ProjectError(f"{out}: is the folder of the pictures", "Name another folder with `out`")
        inside = look(source, frozenset({out})) if source.is_dir() else [(source, "")]
        for path, problem in inside:  # a picture that is named twice is one picture
            found.setdefault(resolved(path), (path, prefix + path.relative_to(base).as_posix(), problem))
    images = [image for _, image, _ in found.values()]
    taken = Counter(name.lower() for image in images for name in {image, str(PurePosixPath(image).with_suffix(""))})
    pictures = []
    for file, image, why in found.values():
        stem = str(PurePosixPath(image).with_suffix(""))
        name = stem if taken[stem.lower()] == 1 else image
        pictures.append(Picture(file, image, name, "" if why else _stamp(file), why))
    if not pictures:
        raise DatasetError(f"{', '.join(map(str, sources))}: no picture is in it")
    return pictures


def with_white(pictures: Sequence[Picture], white: int | None, *, progress: Progress) -> list[Picture]:
    """Pictures that are all read with one value of white.

    white : None finds it, from all pictures of more than 8 bits that do not say it, and says what it took
    """
    if white is None:
        white = _found_white([picture for picture in pictures if not picture.problem], progress)
    white = 0 if white == LARGEST_WHITE else white
    return [replace(picture, white=white) for picture in pictures]


def _found_white(pictures: Sequence[Picture], progress: Progress) -> int:
    wide = {str(picture.path): picture.image for picture in pictures if may_be_wide(picture.path)}
    if not wide:
        return 0
    with progress.begin("looking for white", len(wide)) as advance:
        files = scan(Path(), wide, on_file=lambda: advance(1))
    found = white_of(files.values())
    for remark in (*on_depths({wide[path]: file for path, file in files.items()}), *said_of_white(found, found)):
        progress.note(remark)
    return found


def _prefixes(sources: Sequence[Path]) -> list[str]:
    """What stands before the paths of each source, so that no two pictures have one name."""
    if len(sources) == 1:
        return [""]
    folders = [resolved(source) if source.is_dir() else resolved(source).parent for source in sources]
    of_name: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(folders):
        of_name.setdefault(folder.name.lower(), []).append(folder)
    places = [of_name[folder.name.lower()].index(folder) for folder in folders]
    return [
        f"{folder.name}-{place + 1}/" if place else f"{folder.name}/"
        for folder, place in zip(folders, places, strict=True)
    ]


def _stamp(path: Path) -> str:
    """What tells that a file is the same one, unchanged; "" where it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def settings_there(file: Path, wanted: Mapping[str, Any], *, what: str) -> dict[str, Any] | None:
    """The settings that the folder of a file was written with; None where it is new or empty.

    wanted : those that must be the same
    what : what the folder would hold, in words: "cells that were found"

    Raises ProjectError for a folder of anything else, or of other settings.
    """
    folder = file.parent
    if not file.is_file():
        if folder.exists() and (not folder.is_dir() or any(not is_hidden(path) for path in folder.iterdir())):
            raise ProjectError(f"{folder}: holds other files", "Name a new or an empty folder with `out`")
        return None
    there = read_json(file)
    if not isinstance(there, dict) or not wanted.keys() <= there.keys():
        raise ProjectError(f"{file}: is not of {what} by featcache", "Name another folder with `out`")
    if any(there[key] != value for key, value in wanted.items()):
        raise ProjectError(f"{folder}: holds {what} with other settings", "Name another folder with `out`")
    return there


def read_json(path: Path) -> Any:
    """What a file of JSON holds; None where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def record_of(picture: Picture, problem: str = "") -> dict[str, Any]:
    """The record of a picture that nothing was found in so far. problem : why it cannot be read"""
    left_out = [{"reason": problem, "box": None}] if problem else []
    return {"image": picture.image, "stamp": picture.stamp, "cells": [], "left_out": left_out, "files": []}


def write_record(folder: Path, record: dict[str, Any], *, files: Mapping[str, bytes]) -> None:
    """Write what was made of a picture, and last of all the record of it."""
    record["files"] = list(files)
    for name, data in files.items():
        make_folder((folder / name).parent)
        write_bytes(folder / name, data)
    make_folder(folder / _RECORDS)
    write_json(_record_file(folder, record["image"]), record)


def kept_records(
    folder: Path, pictures: Sequence[Picture], *, is_record: Callable[[Mapping[str, Any]], bool]
) -> dict[str, dict[str, Any]]:
    """The records of an earlier call, by image; what was made of pictures that changed or are gone is removed.

    is_record : whether a record holds what this call would write; one that is damaged only costs the work
    """
    read = (read_json(path) for path in sorted((folder / _RECORDS).glob("*.json")))
    known = {record["image"]: record for record in read if _is_whole(record, folder) and is_record(record)}
    kept = {
        picture.image: known[picture.image]
        for picture in pictures
        if picture.image in known and _is_current(known[picture.image], picture, folder)
    }
    for image in known.keys() - kept.keys():
        for name in known[image]["files"]:
            (folder / name).unlink(missing_ok=True)
        _record_file(folder, image).unlink(missing_ok=True)
    return kept


def _record_file(folder: Path, image: str) -> Path:
    return folder / _RECORDS / f"{sha256(os.fsencode(image)).hexdigest()[:32]}.json"


def _is_whole(record: Any, folder: Path) -> bool:
    """Whether this is a record as `record_of` makes it, of files that lie in the folder."""
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("image", "stamp")):
        return False
    if not all(isinstance(record.get(key), list) for key in ("cells", "left_out", "files")):
        return False
    return all(isinstance(item, dict) and {"reason", "box"} == item.keys() for item in record["left_out"]) and all(
        isinstance(name, str) and resolved(folder / name).is_relative_to(folder) for name in record["files"]
    )


def _is_current(record: Mapping[str, Any], picture: Picture, folder: Path) -> bool:
    is_same = record["stamp"] == picture.stamp and picture.stamp != ""
    return is_same and all((folder / name).is_file() for name in record["files"])


def left_out_row(image: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """What a record left out, as a row of `LEFT_OUT_COLUMNS`."""
    sides = zip(LEFT_OUT_COLUMNS[2:], item["box"] or [None] * 4, strict=True)
    return {"image": image, "reason": item["reason"], **dict(sides)}


def write_csv(path: Path, columns: Sequence[str], *, rows: Iterable[Mapping[str, Any]]) -> None:
    """A table as a CSV file; a cell that a spreadsheet would take for a formula is made safe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row[name] for name in columns)
        writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    write_text(path, buffer.getvalue())


def png(pixels: NDArray[Any]) -> bytes:
    """Grey, RGB or RGBA as a PNG file."""
    return _encoded(".png", pixels, (cv2.IMWRITE_PNG_COMPRESSION, 2))


def jpeg(pixels: NDArray[Any], quality: int = 88) -> bytes:
    """Grey or RGB as a JPEG file."""
    return _encoded(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, quality))


def _encoded(kind: str, pixels: NDArray[Any], how: tuple[int, int]) -> bytes:
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(kind, pixels, how)
    return bytes(data.tobytes())
