"""segment: white cells of all pictures in a folder, as masks, crops, tables and overlays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from joblib import Parallel, delayed

from featcache.core.errors import ImageError, ProjectError
from featcache.core.files import make_folder, resolved, write_json
from featcache.core.machine import usable_cores
from featcache.core.progress import Progress
from featcache.core.shown import shown
from featcache.images import Pixels, is_images_folder
from featcache.segmentation.classical import side_in_red_cells
from featcache.segmentation.crops import crop_of, overlay_of
from featcache.segmentation.options import Background, SegmentOptions
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
    write_csv,
    write_record,
)

SETTINGS_FILE = "segment.json"
_MASKS, _OVERLAYS, _CROPS = "masks", "overlays", "crops"
_SAMPLE = 24
"""Pictures of a folder that tell whether it holds smears or single cells."""
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
    cells : a dict for each white cell: image, x_min, y_min, x_max, y_max, score, ...
    left_out : a dict for each thing that was left out, and each picture without cells: image, reason, and a box or none
    """

    folder: Path
    job: Job
    images: int
    cells: tuple[dict[str, Any], ...]
    left_out: tuple[dict[str, Any], ...]


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
    folder = resolved(Path(out))
    pictures = pictures_in([Path(source)], folder)
    told = shown(progress)
    try:
        settings = _settings_of(folder, options, pictures)
        records = _all_records(pictures, folder, options, settings["job"], told)
        return _write_tables(folder, settings["job"], pictures, records)
    except OSError as error:
        raise ProjectError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _settings_of(folder: Path, options: SegmentOptions, pictures: Sequence[Picture]) -> dict[str, Any]:
    """The settings that a folder was or will be written with; written into it. Refuses a folder of anything else."""
    wanted = {key: value for key, value in asdict(options).items() if key != "job"}
    file = folder / SETTINGS_FILE
    there = settings_there(file, wanted, what="cells that were found")
    if there is None:
        there = {**wanted, "job": _job(pictures) if options.job == "auto" else options.job}
        make_folder(folder)
        write_json(file, there)
    if there.get("job") not in ("smear", "cell"):
        raise ProjectError(f"{file}: is not of cells that featcache segmented", "Name another folder with `out`")
    if options.job not in ("auto", there["job"]):
        raise ProjectError(
            f"{folder}: holds cells that were found with other settings", "Name another folder with `out`"
        )
    return there


def _job(pictures: Sequence[Picture]) -> Job:
    """What a folder's pictures show, by some of them."""
    usable = [picture for picture in pictures if not picture.problem]
    sides = []
    for picture in usable[:: max(1, len(usable) // _SAMPLE)]:
        try:
            side = side_in_red_cells(picture.read())
        except ImageError:
            continue
        if side is not None:
            sides.append(side)
    return job_of(sides)


def _all_records(
    pictures: Sequence[Picture], folder: Path, options: SegmentOptions, job: Job, progress: Progress
) -> dict[str, dict[str, Any]]:
    """What is known of each picture, by its path: from an earlier call, or found now."""
    records = kept_records(folder, pictures, is_record=_is_record)
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


def _segment_one(picture: Picture, folder: Path, options: SegmentOptions, job: Job) -> dict[str, Any]:
    """Segment a picture, write what is made of it, and last of all the record of it."""
    try:
        pixels = picture.read()
    except ImageError as error:
        record, files = record_of(picture, str(error)), dict[str, bytes]()
    else:
        record, files = _made_of(picture, pixels, options, job)
    write_record(folder, record, files=files)
    return record


def _made_of(
    picture: Picture, pixels: Pixels, options: SegmentOptions, job: Job
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record of a picture, and the files that are made of it."""
    record, found = record_of(picture), segment_picture(pixels, options, job=job)
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
    return record, files


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether the cells of a record are as `_made_of` writes them."""
    return all(isinstance(cell, dict) and set(_CELL_COLUMNS[1:]) == cell.keys() for cell in record["cells"])


def _write_tables(
    folder: Path, job: Job, pictures: Sequence[Picture], records: Mapping[str, Mapping[str, Any]]
) -> SegmentedFolder:
    """cells.csv, left_out.csv and crops.csv of all pictures, in their order."""
    cells, left_out, crops = [], [], []
    for picture in pictures:
        record = records[picture.image]
        cells += [{"image": picture.image, **cell} for cell in record["cells"]]
        label = _label_of(picture.image)
        crops += [{"path": cell["crop"], "label": label, "group": picture.image} for cell in record["cells"]]
        left_out += [left_out_row(picture.image, item) for item in record["left_out"]]
    write_csv(folder / "cells.csv", _CELL_COLUMNS, rows=cells)
    write_csv(folder / "left_out.csv", LEFT_OUT_COLUMNS, rows=left_out)
    write_csv(folder / "crops.csv", ("path", "label", "group"), rows=crops)
    for name in (_MASKS, _OVERLAYS, _CROPS):
        make_folder(folder / name)
    segmented = sum(bool(records[picture.image]["files"]) for picture in pictures)
    return SegmentedFolder(folder, job, segmented, tuple(cells), tuple(left_out))


def _label_of(image: str) -> str:
    """The class folder that a picture lies in; "" where it lies in none."""
    folder = PurePosixPath(image).parent
    return "" if folder == PurePosixPath() or is_images_folder(Path(folder)) else folder.name
