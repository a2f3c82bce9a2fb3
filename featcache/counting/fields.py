"""Fields of a slide, one after the other: cells are found in threads ahead of the network, which names them.

A field's annotated picture and its record are written as soon as all of its cells are named, so that a call that was
interrupted, or killed, goes on with the fields that are left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, ImageError
from featcache.core.machine import usable_cores
from featcache.core.progress import Progress
from featcache.counting.drawing import annotated
from featcache.counting.known import Crops
from featcache.counting.options import CountOptions
from featcache.extraction import ahead
from featcache.images import Box, Item, Pixels, PixelSize, room_of_window
from featcache.prediction import Predictions, Predictor, rows_streamed, said
from featcache.segmentation import (
    Cell,
    Framing,
    Picture,
    SegmentOptions,
    crop_of,
    job_of,
    jpeg,
    record_of,
    segment_field,
    widened,
    write_record,
)

PICTURES = "pictures"
AT_BORDER = "the border of the picture cuts it"
ONE_CELL = "it shows one cell, as a crop does, and was counted like a smear"
CELL_KEYS = frozenset(
    ("x_min", "y_min", "x_max", "y_max", "score", "cell_px", "nucleus_px", "at_border", "label", "probability")
    + ("unsure", "why", "unlike", "probabilities")
)


@dataclass(frozen=True)
class Judging:
    """How cells are found and named, and when they are unsure.

    ruler_px : diameter of red cells in most of the fields; 0 where it is not known
    confidence, false_alarms, tta, um_per_px : as of `predict`
    size_px, framing : how a cell becomes the input of the network
    """

    options: CountOptions
    crops: Crops
    ruler_px: float
    confidence: float | None
    false_alarms: float
    tta: int
    size_px: int
    framing: Framing
    um_per_px: float | None = None


@dataclass
class _Field:
    """A field whose cells were found: its record so far, its cells cut out, and what the network said of them."""

    picture: Picture
    record: dict[str, Any]
    crops: list[Item] = field(default_factory=list)
    rows: list[NDArray[np.float64]] = field(default_factory=list)


def count_fields(
    todo: Sequence[Picture],
    predictor: Predictor,
    *,
    folder: Path,
    judging: Judging,
    progress: Progress,
    advance: Callable[[int], object],
) -> Iterator[dict[str, Any]]:
    """The record of each picture, in order, written with its annotated picture before it is given."""
    pool = ThreadPoolExecutor(usable_cores(), "featcache-segment")
    waiting: deque[_Field] = deque()

    def items(stopped: Callable[[], bool]) -> Iterator[Item]:
        for found in ahead(pool, lambda one: _found(one, judging), things=todo, most=2 * usable_cores()):
            waiting.append(found)
            yield from found.crops
            if stopped():  # fields without cells never reach the network, which asks, too
                raise KeyboardInterrupt

    def finished() -> Iterator[dict[str, Any]]:
        while waiting and len(waiting[0].rows) == len(waiting[0].crops):
            yield _finish(waiting.popleft(), predictor, folder=folder, judging=judging)
            advance(1)

    try:
        with progress.stopping() as stopped:
            for item, row, problem in rows_streamed(predictor, items(stopped), tta=judging.tta, stopped=stopped):
                if row is None:
                    raise ImageError(
                        f"{item.name}: {problem}"
                    )  # a crop is an array of pixels: nothing is wrong with it
                next(one for one in waiting if len(one.rows) < len(one.crops)).rows.append(row)
                yield from finished()
            yield from finished()
    finally:
        pool.shutdown(cancel_futures=True)


def _found(picture: Picture, judging: Judging) -> _Field:
    """The cells of a picture, or why it has none."""
    options = judging.options
    try:
        pixels, size = picture.read_with_size()
        size = PixelSize(judging.um_per_px) if judging.um_per_px else size
        scale = judging.framing.scale(size)
        room_px = room_of_window(judging.size_px, scale) if scale else 0
    except DatasetError as error:
        return _Field(picture, {**record_of(picture, str(error)), "red_cell_px": 0.0, "is_read": False})
    segmenter = SegmentOptions(method=options.method, red_cell_px=options.red_cell_px)
    seen, remark = segment_field(pixels, segmenter, ruler_px=judging.ruler_px)
    record = {**record_of(picture), "red_cell_px": round(seen.red_cell_px, 1), "is_read": True}
    record["left_out"] = [item.as_record() for item in seen.left_out]
    if remark:
        record["left_out"].append({"reason": remark, "box": None})
    made = _Field(picture, record)
    if seen.cells and seen.red_cell_px and job_of([min(pixels.shape[:2]) / seen.red_cell_px]) == "cell":
        record["left_out"].append({"reason": ONE_CELL, "box": None})
    for cell in seen.cells:
        row = cell.as_record()
        if cell.at_border and options.border == "leave_out":
            box = [row[side] for side in ("x_min", "y_min", "x_max", "y_max")]
            record["left_out"].append({"reason": AT_BORDER, "box": box})
            continue
        record["cells"].append(row)
        made.crops.append(_item(picture.image, pixels, cell, size=size, room_px=room_px, judging=judging))
    return made


def _item(image: str, pixels: Pixels, cell: Cell, *, size: PixelSize, room_px: int, judging: Judging) -> Item:
    """A cell cut out, with as much around as its view shows.

    room_px : side of the part of the picture that a view at one magnification depends on; 0 of other views
    """
    how, background = judging.crops, judging.options.background
    if not room_px:
        return Item(image, pixels=crop_of(pixels, cell, background=background, margin=how.margin, square=how.square))
    box = cell.box
    longer = max(box.x_max - box.x_min, box.y_max - box.y_min)
    margin = max(room_px - longer, 0) / (2 * longer) + 1 / longer
    crop = crop_of(pixels, cell, background=background, margin=margin, square=True)
    place = widened(box, margin, size=pixels.shape, square=True)
    inside = Box(*(side - start for side, start in zip(astuple(box), 2 * (place.x_min, place.y_min), strict=True)))
    return Item(image, pixels=crop, box=inside, um_per_px=size.um)


def _finish(found: _Field, predictor: Predictor, *, folder: Path, judging: Judging) -> dict[str, Any]:
    """Name the cells of a field, draw it, and write its record."""
    record, files = found.record, {}
    if found.rows:
        says = said(
            predictor.name,
            predictor.head,
            paths=(found.picture.image,) * len(found.rows),
            rows=np.array(found.rows),
            doubt=predictor.doubt,
            confidence=judging.confidence,
            false_alarms=judging.false_alarms,
        )
        for number, cell in enumerate(record["cells"]):
            cell.update(_named(says, number, cut=cell["at_border"], below=judging.options.unsure_below))
    if record["is_read"]:
        files[f"{PICTURES}/{found.picture.name}.jpg"] = _drawn(found.picture, record, classes=predictor.head.classes)
    write_record(folder, record, files=files)
    return record


def _named(says: Predictions, number: int, *, cut: bool, below: float) -> dict[str, Any]:
    """What is said of one cell, and why it is unsure."""
    calibrated = says.probabilities if says.calibrated is None else says.calibrated
    row = calibrated[number] / max(float(calibrated[number].sum()), 1e-12)
    place = int(says.probabilities[number].argmax())
    inside = says.set_of(number)
    unlike = None if says.unlike is None else bool(says.unlike[number])
    reasons = {
        "cut by the border": cut,
        "unlike the training images": bool(unlike),
        f"probability below {below:g}": bool(row[place] < below),
        "may be " + (" or ".join(inside or ()) or "none of the classes"): inside is not None and len(inside) != 1,
    }
    why = [reason for reason, applies in reasons.items() if applies]
    return {
        "label": says.classes[place],
        "probability": round(float(row[place]), 4),
        "unsure": bool(why),
        "why": "; ".join(why),
        "unlike": unlike,
        "probabilities": [round(float(value), 4) for value in row],
    }


def _drawn(picture: Picture, record: Mapping[str, Any], *, classes: Sequence[str]) -> bytes:
    pixels: Pixels = picture.read()
    boxes = [item["box"] for item in record["left_out"] if item["box"]]
    return jpeg(annotated(pixels, record["cells"], left_out=boxes, classes=classes))
