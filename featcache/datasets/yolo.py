"""YOLO boxes: a text file beside each picture, or in labels/ for images/; classes by number, with a list of names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from featcache.core.errors import DatasetError, ImageError
from featcache.core.project import DatasetSection
from featcache.core.strict_json import read_bounded
from featcache.datasets.annotations import Annotated, box_of_points
from featcache.datasets.boxes import orientation_of
from featcache.datasets.candidates import UNKNOWN_SIZE, LeftOut, Size, Source, composed
from featcache.datasets.split_names import SPLIT_NAMES
from featcache.datasets.voc import from_annotations
from featcache.images import files_below, look, read_bytes, read_picture

_LINE = re.compile(r"\s*\d+(?:\.0+)?(?:\s+[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?){4,}\s*")
_NAMES_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels")
_MAX_BYTES = 16 << 20
_MAX_YAML_BYTES = 1 << 20
_OUTSIDE = 0.01
"""How far beyond the picture's border a corner may lie, in its sides: drawing tools round."""


class _Data(BaseModel):
    """What is read of a data.yaml."""

    model_config = ConfigDict(extra="ignore", strict=True)

    names: list[str] | dict[int, str]
    nc: int | None = None
    kpt_shape: list[int] | None = None


def yolo_files(folder: Path, own: frozenset[Path]) -> list[Path]:
    """The label files of a folder: .txt files with a picture of their name, of which one at least holds boxes."""
    texts = files_below(folder, ".txt", own=own)
    if not texts:
        return []
    stems = {composed(path.stem) for path, reason in look(folder, own) if not reason}
    paired = [path for path in texts if composed(path.stem) in stems and path.name.lower() not in _NAMES_FILES]
    return paired if any(map(_holds_boxes, paired)) else []


def _holds_boxes(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = [line for line in file.read(1 << 16).splitlines()[:3] if line.strip()]
    except OSError:
        return False
    return bool(lines) and all(_LINE.fullmatch(line) for line in lines)


def from_yolo(
    place: Path, folder: Path, *, files: Sequence[Path], asked: DatasetSection, own: frozenset[Path]
) -> Source:
    """One image for each box of YOLO label files; a polygon counts as the box around it.

    place : what the user named, in which the names of the classes may lie above `folder`

    Raises DatasetError where nothing names the classes, since a number says nothing of a cell.
    """
    source = Source("yolo", folder, "YOLO annotations")
    names, has_points = _names(place, folder, own)
    pictures: dict[str, list[Path]] = {}
    for path, reason in look(folder, own):
        if not reason:
            pictures.setdefault(composed(path.stem), []).append(path)
    read = []
    for file in files:
        found = _pictures_of(file, pictures.get(composed(file.stem), []))
        if len(found) != 1:
            said = ", ".join(path.relative_to(folder).as_posix() for path in found[:3])
            source.leave_out(file, f"it may be of several images ({said})" if found else "there is no such image")
            continue
        try:
            read.append(_read(file, found[0], names, has_points))
        except (OSError, ValueError, ImageError) as error:
            source.leave_out(file, f"the annotation cannot be read ({error})")
    source = from_annotations(source, read, asked=asked, own=own)
    return _with_listed_splits(source, place)


def _pictures_of(file: Path, found: list[Path]) -> list[Path]:
    """Those of a label file: beside it; else where its last folder labels is named images."""
    parts = list(file.parent.parts)
    places = [file.parent]
    if "labels" in (lower := [part.lower() for part in parts]):
        at = len(lower) - 1 - lower[::-1].index("labels")
        places += [Path(*parts[:at], name, *parts[at + 1 :]) for name in ("images", "Images", "JPEGImages")]
    for place in places:
        if near := [path for path in found if path.parent == place]:
            return near
    return found


def _read(file: Path, picture: Path, names: dict[int, str], has_points: bool) -> Annotated:
    width, height = _size_of(picture)
    size: Size = UNKNOWN_SIZE if orientation_of(picture) != 1 else (width, height)
    annotated = Annotated(file, picture.name, size, of=picture)
    text = read_bounded(file, _MAX_BYTES).decode("utf-8-sig")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name = ""
        try:
            which, *values = [float(cell) for cell in line.split()]
            if which != int(which) or int(which) not in names:
                raise ValueError(f"line {number}: its class, {which:g}, has no name in the list of classes")
            name = names[int(which)]
            xs, ys = _corners(values[:4] if has_points else values)
            annotated.objects.append((name, box_of_points([x * width for x in xs], [y * height for y in ys])))
        except (ValueError, OverflowError) as error:
            annotated.odd.append((name, str(error)))
    return annotated


def _size_of(picture: Path) -> tuple[int, int]:
    height, width, _ = read_picture(read_bytes(picture), is_look=True).pixels.shape
    return width, height


def _corners(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """x and y of a line's corners, in sides of the picture."""
    if len(values) == 4:
        x, y, width, height = values
        xs, ys = [x - width / 2, x + width / 2], [y - height / 2, y + height / 2]
        if not (width > 0 and height > 0):
            raise ValueError("a box without width or height")
    elif len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = list(values[::2]), list(values[1::2])
    else:
        raise ValueError(f"{len(values)} numbers after the class, where a box has 4 and a polygon an even number")
    if not all(math.isfinite(value) and -_OUTSIDE <= value <= 1 + _OUTSIDE for value in (*xs, *ys)):
        raise ValueError("a box that reaches out of the picture: expected parts of its sides, 0 to 1")
    return xs, ys


def _names(place: Path, folder: Path, own: frozenset[Path]) -> tuple[dict[int, str], bool]:
    """{number: name} of the classes, and whether lines end in points of a pose."""
    found: dict[Path, tuple[dict[int, str], bool]] = {}
    for where in _places(place, folder):
        for path in sorted(where.iterdir()):
            if path.suffix.lower() in (".yaml", ".yml") and path not in own and path.is_file():
                if (data := _data(path)) is not None:
                    found[path] = data
            elif path.name.lower() in _NAMES_FILES and path.is_file():
                found[path] = _lines(path), False
    if not found:
        raise DatasetError(
            f"{folder}: its .txt files hold boxes in the YOLO format, whose classes are numbers, and nothing names "
            "them",
            "Put data.yaml or classes.txt beside them, with the name of each class",
        )
    (first, (names, has_points)), *others = found.items()
    for path, (other, _) in others:
        if other != names:
            raise DatasetError(f"{path}: names other classes than {first}: keep the one that is right")
    return names, has_points


def _places(place: Path, folder: Path) -> Iterator[Path]:
    """Where names may lie: in a folder, in those above up to what the user named, and in its labels/."""
    above = [one for one in (folder, *folder.parents) if one == place or place in one.parents]
    yield from above or [folder]
    yield from (
        sub for sub in sorted(folder.iterdir()) if sub.name.lower() in ("labels", "annotations") and sub.is_dir()
    )


def _lines(path: Path) -> dict[int, str]:
    try:
        text = read_bounded(path, _MAX_YAML_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
    return {number: composed(line.strip()) for number, line in enumerate(text.rstrip().splitlines()) if line.strip()}


def _data(path: Path) -> tuple[dict[int, str], bool] | None:
    """The classes of a data.yaml; None for a YAML file of anything else."""
    import yaml

    try:
        text = read_bounded(path, _MAX_YAML_BYTES).decode("utf-8-sig")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it refers to parts of itself (&, *), which is not read")
        value: Any = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise DatasetError(f"{path}: cannot be read as YAML: {said:.300}") from error
    if not isinstance(value, dict) or "names" not in value:
        return None
    try:
        data = _Data.model_validate(value)
    except ValidationError as error:
        raise DatasetError(
            f"{path}: names must be a list of the classes' names, or a table of number and name"
        ) from error
    named = data.names if isinstance(data.names, dict) else dict(enumerate(data.names))
    if data.nc is not None and data.nc != len(named):
        raise DatasetError(f"{path}: says {data.nc} classes (nc), and names {len(named)}")
    if not all(name.strip() for name in named.values()) or min(named, default=0) < 0:
        raise DatasetError(f"{path}: a class has no name, or a negative number")
    return {number: composed(name.strip()) for number, name in named.items()}, data.kpt_shape is not None


def _with_listed_splits(source: Source, place: Path) -> Source:
    """The splits that lists of pictures say: train.txt, val.txt and test.txt, as YOLO's tools write them."""
    splits: dict[str, set[str]] = {}
    for where in dict.fromkeys((place, source.folder)):
        for path in sorted(where.iterdir()):
            split = SPLIT_NAMES.get(path.stem.lower(), "") if path.suffix.lower() == ".txt" else ""
            if not split:
                continue
            try:
                lines = read_bounded(path, _MAX_BYTES).decode("utf-8-sig").splitlines()
            except (OSError, ValueError) as error:
                raise DatasetError(f"{path}: cannot be read as a list of pictures: {error}") from error
            for line in lines:
                parts = composed(line.strip().replace("\\", "/")).split("/")
                for at in range(len(parts)):
                    splits.setdefault("/".join(parts[at:]), set()).add(split)
    if not splits:
        return source
    candidates = []
    for one in source.candidates:
        said: set[str] = splits.get(composed(one.path), set()) or splits.get(
            composed(one.path).rpartition("/")[2], set()
        )
        if len(said) == 1:
            candidates.append(replace(one, split=next(iter(said))))
        else:
            reason = "the lists of splits name it in several" if said else "no list of a split names it"
            source.left_out.append(LeftOut(one.path, reason))
    if candidates:
        source.candidates = candidates
        source.about += "; split already, by lists of pictures"
    return source
