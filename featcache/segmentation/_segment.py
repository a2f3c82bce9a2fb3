"""segment: white cells of all pictures in a folder, as masks, crops, tables and overlays."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
from joblib import Parallel, delayed
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, ImageError, ProjectError
from featcache.core.files import is_hidden, make_folder, resolved, safe_cell, write_bytes, write_json, write_text
from featcache.core.machine import usable_cores
from featcache.core.progress import Progress
from featcache.core.shown import shown
from featcache.images import Pixels, is_images_folder, look, read_bytes, read_picture
from featcache.segmentation.classical import side_in_red_cells
from featcache.segmentation.contract import Cell
from featcache.segmentation.crops import crop_of, overlay_of
from featcache.segmentation.options import Background, SegmentOptions
from featcache.segmentation.picture import Job, job_of, segment_picture

SETTINGS_FILE = "segment.json"
_RECORDS = ".pictures"
_MASKS, _OVERLAYS, _CROPS = "masks", "overlays", "crops"
_SAMPLE = 24
"""Pictures of a folder that tell whether it holds smears or single cells."""
_FEW = 48
"""Pictures up to which threads do; more are worth the start of processes."""
_CHUNK = 32
"""Pictures that are given to the workers at once: what a call that is interrupted finishes."""
_CELL_COLUMNS = ("image", "x_min", "y_min", "x_max", "y_max", "score", "cell_px", "nucleus_px", "at_border", "crop")
_LEFT_OUT_COLUMNS = ("image", "reason", "x_min", "y_min", "x_max", "y_max")


@dataclass(frozen=True)
class SegmentedFolder:
    """What `segment` made.

    Attributes
    ----------
    folder : where it is
    job : what the pictures were taken for: "smear" or "cell"
    images : pictures that were segmented
    cells : a dict for each white cell: image, x_min, y_min, x_max, y_max, score, ...
    left_out : a dict for each thing that was left out, and each picture without cells: image, reason, and a box or none
    """

    folder: Path
    job: Job
    images: int
    cells: tuple[dict[str, Any], ...]
    left_out: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Picture:
    """A file to be segmented. image : its path from the folder; name : that of what is made of it; stamp : its state"""

    path: Path
    image: str
    name: str
    stamp: str
    problem: str = ""


def segment(
    source: str | Path,
    out: str | Path,
    *,
    method: Literal["stain", "colour"] = "stain",
    job: Literal["auto", "smear", "cell"] = "auto",
    red_cell_px: float | None = None,
    background: Background = "keep",
    margin: float = 0.1,
    progress: Progress | None = None,
) -> SegmentedFolder:
    """Find the white cells in pictures, and cut them out.

    Writes into `out`: masks/ (0 background, 128 cytoplasm, 255 nucleus, at the size of the picture), crops/, overlays/
    to look at, cells.csv, left_out.csv, and crops.csv, which `init` reads: its group is the original picture.
    What was made with the same settings is kept: an interrupted call continues.

    Parameters
    ----------
    source : folder of pictures, at any depth, or one picture
    out : folder to write to; new, empty, or written by `segment` with the same settings
    method : how nuclei are told from all else: "stain" (deconvolution and a threshold) or "colour" (clustering)
    job : what a picture shows: "smear", or one "cell" in the middle; "auto" looks how large the cells are
    red_cell_px : diameter of a red cell in pixels; None measures it in each picture
    background : what surrounds a cell in its crop: "keep", "white", "black", "mean" or "transparent"
    margin : room around a cell in its crop, as a share of the cell's longer side
    progress : told how far it is

    Raises
    ------
    DatasetError : there is no picture
    ProjectError : `out` holds something else, or cannot be written

    Examples
    --------
    >>> import featcache as fc
    >>> from pathlib import Path
    >>> from featcache.synthetic import generate
    >>> generate(Path("smears"), 1, smears=2)
    >>> done = fc.segment("smears/images", "cells", background="white")
    >>> done.images
    2
    """
    options = SegmentOptions(method=method, job=job, red_cell_px=red_cell_px, background=background, margin=margin)
    place, folder = Path(source), resolved(Path(out))
    pictures = _pictures_in(place, folder)
    told = shown(progress)
    try:
        settings = _settings_of(folder, options, pictures)
        records = _all_records(pictures, folder, options, settings["job"], told)
        return _write_tables(folder, settings["job"], pictures, records)
    except OSError as error:
        raise ProjectError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _pictures_in(source: Path, out: Path) -> list[_Picture]:
    """All pictures of a folder, each with a name of its own."""
    if not source.exists():
        raise DatasetError(f"{source}: there is no such folder or file")
    base = source if source.is_dir() else source.parent
    found = list(look(source, frozenset({out}))) if source.is_dir() else [(source, "")]
    if resolved(base) == out:
        raise ProjectError(f"{out}: is the folder of the pictures", "Name another folder with `out`")
    images = [path.relative_to(base).as_posix() for path, _ in found]
    taken = Counter(name.lower() for image in images for name in {image, str(PurePosixPath(image).with_suffix(""))})
    pictures = []
    for (path, problem), image in zip(found, images, strict=True):
        stem = str(PurePosixPath(image).with_suffix(""))
        name = stem if taken[stem.lower()] == 1 else image
        pictures.append(_Picture(path, image, name, "" if problem else _stamp(path), problem))
    if not pictures:
        raise DatasetError(f"{source}: no picture is in it")
    return pictures


def _stamp(path: Path) -> str:
    """What tells that a file is the same one, unchanged; "" where it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def _settings_of(folder: Path, options: SegmentOptions, pictures: Sequence[_Picture]) -> dict[str, Any]:
    """The settings that a folder was or will be written with; written into it. Refuses a folder of anything else."""
    wanted = {key: value for key, value in asdict(options).items() if key != "job"}
    file = folder / SETTINGS_FILE
    if file.is_file():
        there = _read_json(file)
        if (
            not isinstance(there, dict)
            or not wanted.keys() <= there.keys()
            or there.get("job") not in ("smear", "cell")
        ):
            raise ProjectError(f"{file}: is not of cells that featcache segmented", "Name another folder with `out`")
        if {key: there[key] for key in wanted} != wanted or options.job not in ("auto", there["job"]):
            raise ProjectError(
                f"{folder}: holds cells that were found with other settings", "Name another folder with `out`"
            )
        return there
    if folder.exists() and (not folder.is_dir() or any(not is_hidden(path) for path in folder.iterdir())):
        raise ProjectError(f"{folder}: holds other files", "Name a new or an empty folder with `out`")
    job = _job(pictures) if options.job == "auto" else options.job
    make_folder(folder)
    write_json(file, {**wanted, "job": job})
    return {**wanted, "job": job}


def _job(pictures: Sequence[_Picture]) -> Job:
    """What a folder's pictures show, by some of them."""
    usable = [picture for picture in pictures if not picture.problem]
    sides = []
    for picture in usable[:: max(1, len(usable) // _SAMPLE)]:
        try:
            side = side_in_red_cells(read_picture(read_bytes(picture.path)).pixels)
        except ImageError:
            continue
        if side is not None:
            sides.append(side)
    return job_of(sides)


def _all_records(
    pictures: Sequence[_Picture], folder: Path, options: SegmentOptions, job: Job, progress: Progress
) -> dict[str, dict[str, Any]]:
    """What is known of each picture, by its path: from an earlier call, or found now."""
    known = _known(folder)
    records = {
        picture.image: known[picture.image]
        for picture in pictures
        if picture.image in known and _is_current(known[picture.image], picture, folder)
    }
    for image in known.keys() - records.keys():
        _forget(folder, known[image])
    todo = [picture for picture in pictures if picture.image not in records]
    workers = Parallel(n_jobs=usable_cores(), prefer="threads" if len(todo) <= _FEW else "processes")
    with progress.stopping() as stopped, progress.begin("segmenting", len(pictures)) as advance, workers as parallel:
        advance(len(records))
        for first in range(0, len(todo), _CHUNK):
            chunk = todo[first : first + _CHUNK]
            for record in parallel(delayed(_segment_one)(picture, folder, options, job) for picture in chunk):
                records[record["image"]] = record
                advance(1)
            if stopped():
                raise KeyboardInterrupt
    return records


def _segment_one(picture: _Picture, folder: Path, options: SegmentOptions, job: Job) -> dict[str, Any]:
    """Segment a picture, write what is made of it, and last of all the record of it."""
    record: dict[str, Any] = {"image": picture.image, "stamp": picture.stamp, "cells": [], "left_out": [], "files": []}
    try:
        if picture.problem:
            raise ImageError(picture.problem)
        pixels = read_picture(read_bytes(picture.path)).pixels
    except ImageError as error:
        record["left_out"].append({"reason": str(error), "box": None})
    else:
        _write_picture(record, picture, pixels, folder, options, job)
    make_folder(folder / _RECORDS)
    write_json(_record_file(folder, picture.image), record)
    return record


def _write_picture(
    record: dict[str, Any], picture: _Picture, pixels: Pixels, folder: Path, options: SegmentOptions, job: Job
) -> None:
    found = segment_picture(pixels, options, job=job)
    boxes = [item.box for item in found.left_out if item.box]
    overlay = overlay_of(pixels, found.cells, left_out=boxes)
    files = {
        f"{_MASKS}/{picture.name}.png": _png(found.labels(*pixels.shape[:2])),
        f"{_OVERLAYS}/{picture.name}.jpg": _encoded(".jpg", overlay, (cv2.IMWRITE_JPEG_QUALITY, 88)),
    }
    for number, cell in enumerate(found.cells, 1):
        crop = f"{_CROPS}/{picture.name}-{number}.png"
        files[crop] = _png(crop_of(pixels, cell, background=options.background, margin=options.margin))
        record["cells"].append({**_row(cell), "crop": crop})
    record["left_out"] = [
        {"reason": item.reason, "box": list(astuple(item.box)) if item.box else None} for item in found.left_out
    ]
    record["files"] = list(files)
    for name, data in files.items():
        make_folder((folder / name).parent)
        write_bytes(folder / name, data)


def _row(cell: Cell) -> dict[str, Any]:
    return {
        **asdict(cell.box),
        "score": round(cell.score, 4),
        "cell_px": int(cell.mask.sum()),
        "nucleus_px": int(cell.nucleus.sum()),
        "at_border": cell.at_border,
    }


def _png(pixels: NDArray[Any]) -> bytes:
    return _encoded(".png", pixels, (cv2.IMWRITE_PNG_COMPRESSION, 2))


def _encoded(kind: str, pixels: NDArray[Any], how: tuple[int, int]) -> bytes:
    """Grey, RGB or RGBA as a file."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(kind, pixels, how)
    return bytes(data.tobytes())


def _record_file(folder: Path, image: str) -> Path:
    return folder / _RECORDS / f"{sha256(os.fsencode(image)).hexdigest()[:32]}.json"


def _read_json(path: Path) -> Any:
    """What a file of JSON holds; None where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of an earlier call, by image; one that is damaged only costs the work."""
    records = (_read_json(path) for path in sorted((folder / _RECORDS).glob("*.json")))
    return {record["image"]: record for record in records if _is_record(record, folder)}


def _is_record(record: Any, folder: Path) -> bool:
    """Whether this is a record as `_segment_one` writes it, of files that lie in the folder."""
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("image", "stamp")):
        return False
    if not all(isinstance(record.get(key), list) for key in ("cells", "left_out", "files")):
        return False
    return (
        all(isinstance(cell, dict) and set(_CELL_COLUMNS[1:]) == cell.keys() for cell in record["cells"])
        and all(isinstance(item, dict) and {"reason", "box"} == item.keys() for item in record["left_out"])
        and all(isinstance(name, str) and resolved(folder / name).is_relative_to(folder) for name in record["files"])
    )


def _is_current(record: Mapping[str, Any], picture: _Picture, folder: Path) -> bool:
    is_same = record["stamp"] == picture.stamp and picture.stamp != ""
    return is_same and all((folder / name).is_file() for name in record["files"])


def _forget(folder: Path, record: Mapping[str, Any]) -> None:
    """Remove what was made of a picture that changed or is there no more."""
    for name in record["files"]:
        (folder / name).unlink(missing_ok=True)
    _record_file(folder, record["image"]).unlink(missing_ok=True)


def _write_tables(
    folder: Path, job: Job, pictures: Sequence[_Picture], records: Mapping[str, Mapping[str, Any]]
) -> SegmentedFolder:
    """cells.csv, left_out.csv and crops.csv of all pictures, in their order."""
    cells, left_out, crops = [], [], []
    for picture in pictures:
        record = records[picture.image]
        cells += [{"image": picture.image, **cell} for cell in record["cells"]]
        crops += [(cell["crop"], _label_of(picture.image), picture.image) for cell in record["cells"]]
        for item in record["left_out"]:
            box = item["box"] or [None] * 4
            sides = zip(_LEFT_OUT_COLUMNS[2:], box, strict=True)
            left_out.append({"image": picture.image, "reason": item["reason"], **dict(sides)})
    _write_csv(folder / "cells.csv", _CELL_COLUMNS, ([cell[name] for name in _CELL_COLUMNS] for cell in cells))
    _write_csv(
        folder / "left_out.csv", _LEFT_OUT_COLUMNS, ([item[name] for name in _LEFT_OUT_COLUMNS] for item in left_out)
    )
    _write_csv(folder / "crops.csv", ("path", "label", "group"), crops)
    for name in (_MASKS, _OVERLAYS, _CROPS):
        make_folder(folder / name)
    segmented = sum(bool(records[picture.image]["files"]) for picture in pictures)
    return SegmentedFolder(folder, job, segmented, tuple(cells), tuple(left_out))


def _label_of(image: str) -> str:
    """The class folder that a picture lies in; "" where it lies in none."""
    folder = PurePosixPath(image).parent
    return "" if folder == PurePosixPath() or is_images_folder(Path(folder)) else folder.name


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in row])
    write_text(path, buffer.getvalue())
