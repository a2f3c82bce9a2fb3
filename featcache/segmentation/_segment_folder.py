"""segment_folder: white cells of all pictures in a folder, as masks, crops, tables and overlays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from joblib import Parallel, delayed

from featcache.core.errors import ImageError, ProjectError
from featcache.core.files import make_folder, resolved, write_json
from featcache.core.machine import usable_cores
from featcache.core.progress import Progress
from featcache.core.project import LARGEST_WHITE
from featcache.core.shown import shown
from featcache.images import Box, Pixels, is_images_folder
from featcache.segmentation.contract import Segmenter
from featcache.segmentation.crops import crop_of, overlay_of
from featcache.segmentation.labelling import Known, labels_for
from featcache.segmentation.options import SegmentOptions
from featcache.segmentation.picture import Job, job_of, segment_picture
from featcache.segmentation.pictures import (
    LEFT_OUT_COLUMNS,
    Picture,
    jpeg,
    kept_records,
    left_out_row,
    pictures_in,
    png,
    record_of,
    settings_there,
    with_white,
    write_csv,
    write_record,
)
from featcache.segmentation.ruler import ruler_of, segment_field, sides_of

SETTINGS_FILE = "segment.json"
_MASKS, _OVERLAYS, _CROPS = "masks", "overlays", "crops"
_FEW = 48
"""Pictures up to which threads do; more are worth the start of processes."""
_CHUNK = 32
"""Pictures that are given to the workers at once: what a call that is interrupted finishes."""
_CELL_COLUMNS = ("image", "x_min", "y_min", "x_max", "y_max", "score", "cell_px", "nucleus_px", "at_border", "crop")


@dataclass(frozen=True)
class SegmentedFolder:
    """What `segment` made.

    Attributes
    ----------
    folder : where it is
    job : what the pictures were taken for: "smear" or "cell"
    images : pictures that were segmented
    cells : a dict for each white cell: image, x_min, y_min, x_max, y_max, score, ..., label
    left_out : a dict for each thing that was left out, and each picture without cells: image, reason, and a box or none
    """

    folder: Path
    job: Job
    images: int
    cells: tuple[dict[str, Any], ...]
    left_out: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Segmenting:
    """How the pictures of a folder are segmented, and the folder that is written.

    ruler_px : see `segment_field`
    segmenter : see `segment_folder`
    """

    folder: Path
    options: SegmentOptions
    job: Job
    ruler_px: float
    segmenter: Segmenter | None


def segment_folder(
    source: str | Path,
    out: str | Path,
    *,
    options: SegmentOptions,
    segmenter: Segmenter | None = None,
    labels: Mapping[Path, Sequence[Known]] = MappingProxyType({}),
    progress: Progress | None = None,
) -> SegmentedFolder:
    """Find the white cells in pictures, and cut them out. See `featcache.segment`.

    segmenter : that of the options' method; None for a classical one. One that is given works in this process alone.
    labels : what is known of pictures, by their files
    """
    folder = resolved(Path(out))
    pictures = pictures_in([Path(source)], folder)
    told = shown(progress)
    try:
        settings, pictures = _settled(folder, options, pictures, told)
        segmenting = _Segmenting(folder, options, settings["job"], settings["ruler_px"], segmenter)
        records = _all_records(pictures, segmenting, told)
        return _write_tables(folder, settings["job"], pictures, records, labels)
    except OSError as error:
        raise ProjectError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _settled(
    folder: Path, options: SegmentOptions, pictures: Sequence[Picture], progress: Progress
) -> tuple[dict[str, Any], list[Picture]]:
    """The settings that a folder was or will be written with, written into it; and the pictures, read by its white.

    Raises ProjectError for a folder of anything else.
    """
    wanted = {key: value for key, value in asdict(options).items() if key not in ("job", "white")}
    file = folder / SETTINGS_FILE
    there = settings_there(file, wanted, what="cells that were found")
    pictures = with_white(pictures, options.white if there is None else _white_in(there, file), progress=progress)
    if there is None:
        sides = sides_of(pictures)
        job = job_of([side for side, _ in sides]) if options.job == "auto" else options.job
        ruler_px = ruler_of(sides) if job == "smear" else 0.0
        there = {**wanted, "job": job, "ruler_px": ruler_px, "white": pictures[0].white}
        make_folder(folder)
        write_json(file, there)
    if there.get("job") not in ("smear", "cell"):
        raise ProjectError(f"{file}: is not of cells that featcache segmented", "Name another folder with `out`")
    asked = {None: pictures[0].white, LARGEST_WHITE: 0}.get(options.white, options.white)
    if options.job not in ("auto", there["job"]) or asked != pictures[0].white:
        raise ProjectError(
            f"{folder}: holds cells that were found with other settings", "Name another folder with `out`"
        )
    return {"ruler_px": 0.0, **there}, pictures


def _white_in(settings: Mapping[str, Any], file: Path) -> int:
    """The value of white that a folder was begun with. Raises ProjectError for what is none."""
    white = settings.get("white", 0)
    if not isinstance(white, int) or not 0 <= white <= LARGEST_WHITE:
        raise ProjectError(f"{file}: is not of cells that featcache segmented", "Name another folder with `out`")
    return white


def _all_records(pictures: Sequence[Picture], how: _Segmenting, progress: Progress) -> dict[str, dict[str, Any]]:
    """What is known of each picture, by its path: from an earlier call, or found now."""
    records = kept_records(how.folder, pictures, is_record=_is_record)
    todo = [picture for picture in pictures if picture.image not in records]
    jobs = usable_cores() if how.segmenter is None else 1
    workers = Parallel(n_jobs=jobs, prefer="threads" if len(todo) <= _FEW else "processes")
    with progress.stopping() as stopped, progress.begin("segmenting", len(pictures)) as advance, workers as parallel:
        advance(len(records))
        for first in range(0, len(todo), _CHUNK):
            chunk = todo[first : first + _CHUNK]
            for record in parallel(delayed(_segment_one)(picture, how) for picture in chunk):
                records[record["image"]] = record
                advance(1)
            if stopped():
                raise KeyboardInterrupt
    return records


def _segment_one(picture: Picture, how: _Segmenting) -> dict[str, Any]:
    """Segment a picture, write what is made of it, and last of all the record of it."""
    try:
        record, files = _made_of(picture, picture.read(), how)
    except ImageError as error:
        record, files = record_of(picture, str(error)), {}
    write_record(how.folder, record, files=files)
    return record


def _made_of(picture: Picture, pixels: Pixels, how: _Segmenting) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record of a picture, and the files that are made of it."""
    options = how.options
    record, remark = record_of(picture), ""
    if how.job == "smear":
        found, remark = segment_field(pixels, options, ruler_px=how.ruler_px, segmenter=how.segmenter)
    else:
        found = segment_picture(pixels, options, job=how.job, segmenter=how.segmenter)
    boxes = [item.box for item in found.left_out if item.box]
    overlay = overlay_of(pixels, found.cells, left_out=boxes)
    files = {
        f"{_MASKS}/{picture.name}.png": png(found.labels(*pixels.shape[:2])),
        f"{_OVERLAYS}/{picture.name}.jpg": jpeg(overlay),
    }
    for number, cell in enumerate(found.cells, 1):
        crop = f"{_CROPS}/{picture.name}-{number}.png"
        files[crop] = png(crop_of(pixels, cell, background=options.background, margin=options.margin))
        record["cells"].append({**cell.as_record(), "crop": crop})
    record["left_out"] = [item.as_record() for item in found.left_out]
    record["left_out"] += [{"reason": remark, "box": None}] if remark else []
    return record, files


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether the cells of a record are as `_made_of` writes them."""
    return all(isinstance(cell, dict) and set(_CELL_COLUMNS[1:]) == cell.keys() for cell in record["cells"])


def _write_tables(
    folder: Path,
    job: Job,
    pictures: Sequence[Picture],
    records: Mapping[str, Mapping[str, Any]],
    known: Mapping[Path, Sequence[Known]],
) -> SegmentedFolder:
    """cells.csv, left_out.csv and crops.csv of all pictures, in their order."""
    cells, left_out, crops = [], [], []
    for picture in pictures:
        record = records[picture.image]
        labels = _labels_of(picture, record["cells"], known, job)
        for cell, label in zip(record["cells"], labels, strict=True):
            cells.append({"image": picture.image, **cell, "label": label})
            crops.append({"path": cell["crop"], "label": label, "group": picture.image})
        left_out += [left_out_row(picture.image, item) for item in record["left_out"]]
    write_csv(folder / "cells.csv", (*_CELL_COLUMNS, "label"), rows=cells)
    write_csv(folder / "left_out.csv", LEFT_OUT_COLUMNS, rows=left_out)
    write_csv(folder / "crops.csv", ("path", "label", "group"), rows=crops)
    for name in (_MASKS, _OVERLAYS, _CROPS):
        make_folder(folder / name)
    segmented = sum(bool(records[picture.image]["files"]) for picture in pictures)
    return SegmentedFolder(folder, job, segmented, tuple(cells), tuple(left_out))


def _labels_of(
    picture: Picture, cells: Sequence[Mapping[str, Any]], known: Mapping[Path, Sequence[Known]], job: Job
) -> list[str]:
    """The label of each cell: by what is known of the picture, else by its class folder."""
    if of_picture := known.get(resolved(picture.path)):
        boxes = [Box(*(cell[name] for name in ("x_min", "y_min", "x_max", "y_max"))) for cell in cells]
        return labels_for(boxes, of_picture, is_smear=job == "smear")
    return [_label_of(picture.image)] * len(cells)


def _label_of(image: str) -> str:
    """The class folder that a picture lies in; "" where it lies in none."""
    folder = PurePosixPath(image).parent
    return "" if folder == PurePosixPath() or is_images_folder(Path(folder)) else folder.name
