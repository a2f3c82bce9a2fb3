"""count: the white cells of whole smears, by class, with intervals."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, FeatcacheError, ProjectError, UsageError
from featcache.core.files import make_folder, resolved, sha256_file, write_json, write_text
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.shown import shown
from featcache.counting import page
from featcache.counting.fields import CELL_KEYS, Judging, count_fields
from featcache.counting.intervals import Rate, by_confusion, by_probability, intervals
from featcache.counting.known import Crops, confusion_of, crops_of
from featcache.counting.options import CountOptions
from featcache.prediction import (
    Bundle,
    Predictor,
    check_doubt,
    check_um_per_px,
    classes_of,
    has_several_labels,
    open_trained,
    recipe_of,
    size_remedy,
)
from featcache.segmentation import (
    LEFT_OUT_COLUMNS,
    Framing,
    Picture,
    kept_records,
    left_out_row,
    pictures_in,
    ruler_of,
    settings_there,
    sides_of,
    write_csv,
)
from featcache.training import Run

SETTINGS_FILE, COUNT_FILE, PAGE_FILE = "settings.json", "count.json", "index.html"
RECALL, PRECISION = Rate(0.96, 30), Rate(0.955, 26)
"""Of the segmenter, in a laboratory that it has not seen: mean and spread of those of three laboratories. See
docs/explanation/counting.md."""
_SEED = 17
_CELL_COLUMNS = (
    *("image", "x_min", "y_min", "x_max", "y_max", "label", "probability", "unsure", "why", "unlike", "at_border"),
    *("score", "cell_px", "nucleus_px"),
)


@dataclass(frozen=True)
class Counted:
    """How many white cells of each class there are in some smears.

    Attributes
    ----------
    run : the name of the run that named them
    images : a dict for each picture: path, image, cells, classes {label: n}, unsure, unlike, at_border
    total : {label: {n, estimate, low, high, share, share_low, share_high}}: cells that were named so, and the interval
        (95 %) of the true number of cells of that class in these fields; the share is that of the blood
    cells : a dict for each cell: image, box, label, probability, unsure, why, unlike, ...
    left_out : a dict for each thing that was left out, and each picture with nothing to count: image, reason, box
    based_on : how often the run takes one class for another is known from that
    folder : where it was written; None where it was not
    """

    run: str
    images: tuple[dict[str, Any], ...]
    total: Mapping[str, Mapping[str, float]]
    cells: tuple[dict[str, Any], ...]
    left_out: tuple[dict[str, Any], ...]
    based_on: str
    folder: Path | None = None

    @property
    def page(self) -> Path | None:
        """The HTML page."""
        return self.folder / PAGE_FILE if self.folder else None

    @property
    def empty(self) -> tuple[str, ...]:
        """The pictures in which no cell was counted."""
        return tuple(image["image"] for image in self.images if not image["cells"])

    @property
    def unsure(self) -> int:
        """Cells whose class should be looked at."""
        return sum(image["unsure"] for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "run": self.run,
            "images": list(self.images),
            "total": {label: dict(of) for label, of in self.total.items()},
            "cells": len(self.cells),
            "unsure": self.unsure,
            "unlike": sum(bool(cell["unlike"]) for cell in self.cells),
            "fields": len(self.images),
            "fields_without_cells": list(self.empty),
            "based_on": self.based_on,
            "left_out": list(self.left_out),
        }


def count(
    source: str | Path | Sequence[str | Path],
    run: Run | str | Path,
    *,
    out: str | Path | None = None,
    project: Project | None = None,
    weights: str | None = None,
    method: Literal["stain", "colour"] = "stain",
    red_cell_px: float | None = None,
    border: Literal["count", "leave_out"] = "count",
    margin: float | None = None,
    background: Literal["keep", "white", "black", "mean"] = "keep",
    unsure_below: float = 0.7,
    confidence: float | None = None,
    false_alarms: float = 0.05,
    tta: int = 1,
    um_per_px: float | None = None,
    engine: str = "auto",
    batch_rows: int | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Counted:
    """Count the white cells of whole smears by class: the segmenter finds them, a trained run names them.

    Writes into `out`: pictures/ with the cells marked, cells.csv, counts.csv (a line for each field), left_out.csv,
    count.json and index.html. What was made with the same settings is kept: an interrupted call continues.

    `low` and `high` bound the true number of cells of a class in these fields, with 95 % probability. They hold what
    the run takes for another class, by rows that it was not trained on, and what the segmenter misses or finds in
    error. See docs/explanation/counting.md for how, and for what they rest on.

    Parameters
    ----------
    source : a picture, a folder of pictures at any depth, or several of both
    run : a run, its folder, or its name in the project; or the file of a bundle
    out : folder to write to; new, empty, or written by `count` with the same settings; None writes nothing
    project : where runs are looked for; by default the one around the current folder
    weights : file of the network's weights, where they are not those of ImageNet
    method : how nuclei are told from all else: "stain" (deconvolution and a threshold) or "colour" (clustering)
    red_cell_px : diameter of a red cell in pixels; None measures it in each picture
    border : what becomes of cells that the border of a picture cuts: "count" them as unsure, or "leave_out"
    margin : room around a cell in its crop, as a share of its longer side; None measures some of the run's training
        images, and takes 0.1 where they are not at hand
    background : what surrounds a cell in its crop: "keep", "white", "black" or "mean", as in the run's crops
    unsure_below : a cell is unsure if the calibrated probability of its class is below this
    confidence : a cell is unsure, too, if its set of classes at this confidence is not one class; see `predict`
    false_alarms : share of cells like the training images that may be marked as unlike, which makes them unsure
    tta : test-time augmentation: the mean over so many views of each cell
    um_per_px : side of a pixel of the pictures in micrometres, instead of what their files say; for runs on views of
        one magnification only. Such views show as much around a cell as the run's do, so `margin` does not count
    engine, batch_rows : as of `extract`
    offline : whether no network connection is made, for weights neither
    progress : told how far it is

    Raises
    ------
    DatasetError : there is no picture
    RunError : there is no such run, it is damaged or keeps no model
    UsageError : the run tells several labels an image
    ProjectError : `out` holds something else, or cannot be written
    WeightsError : the network's weights are not at hand, or others

    Examples
    --------
    >>> import featcache as fc
    >>> from pathlib import Path
    >>> from featcache.synthetic import generate
    >>> run = fc.fit_head(fc.extract(fc.init(per_class=8), "pixels", input_size_px=16), epochs=2)
    >>> generate(Path("smears"), 1, smears=2)
    >>> done = fc.count("smears/images", run, out="counts")
    >>> len(done.images), sum(of["n"] for of in done.total.values()) == len(done.cells)
    (2, True)
    """
    options = CountOptions(method, red_cell_px, border, margin, background, unsure_below)
    if tta < 1:
        raise UsageError(f"`tta={tta}`: expected a whole number of at least 1")
    trained = open_trained(run, project)
    if has_several_labels(trained):
        raise UsageError(
            f"{trained.name}: tells several labels an image, and a cell is counted once", "Name a run of one label"
        )
    check_doubt(trained, confidence=confidence, false_alarms=false_alarms)
    # Read first: it refuses what keeps no model before smears are read.
    recipe = trained.recipe if isinstance(trained, Bundle) else recipe_of(trained)
    check_um_per_px(um_per_px, recipe, name=trained.name)
    space = recipe.space
    network = {"weights": weights, "engine": engine, "batch_rows": batch_rows}
    sources = [Path(source)] if isinstance(source, (str, Path)) else [Path(one) for one in source]
    asked = {**asdict(options), "confidence": confidence, "false_alarms": false_alarms, "tta": tta}
    asked |= {"um_per_px": um_per_px} if space.um_per_px else {}
    with _folder_of(out) as folder, without_network(offline):
        pictures = [replace(picture, white=space.white) for picture in pictures_in(sources, folder)]
        settings = {**asked, "run": trained.name, "trained": _identity(trained)}
        crops, ruler_px = _settled(folder, settings, pictures, trained, project)
        judging = Judging(
            options,
            crops,
            ruler_px,
            confidence,
            false_alarms,
            tta,
            space.input_size_px,
            Framing.of(space),
            um_per_px,
        )
        records = _all_records(pictures, trained, folder=folder, judging=judging, network=network, told=shown(progress))
        done = _counted(trained, pictures, records, size_remedy(um_per_px, recipe))
        if out is None:
            return done
        made = replace(done, folder=folder)
        _write(made, folder, crops=crops, pictures=pictures)
        return made


@contextmanager
def _folder_of(out: str | Path | None) -> Iterator[Path]:
    """The folder to write to, or one that is gone afterwards."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="featcache-") as name:
            yield resolved(Path(name))
        return
    folder = resolved(Path(out))
    try:
        yield folder
    except FeatcacheError:
        raise  # some of them are an OSError, too, and say what is wrong themselves
    except OSError as error:
        raise ProjectError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _identity(trained: Run | Bundle) -> str:
    """What tells a run from a later one of its name."""
    return sha256_file(trained.path) if isinstance(trained, Bundle) else str(trained.config.get("created", ""))


def _settled(
    folder: Path,
    asked: Mapping[str, Any],
    pictures: Sequence[Picture],
    trained: Run | Bundle,
    project: Project | None,
) -> tuple[Crops, float]:
    """How cells are cut out, and how large red cells are: as for what the folder holds already, else measured."""
    there = settings_there(folder / SETTINGS_FILE, asked, what="cells that were counted")
    try:
        if there is not None:
            return Crops(**there["crops"]), float(there["ruler_px"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProjectError(f"{folder / SETTINGS_FILE}: is not of cells that were counted by featcache") from error
    crops = crops_of(trained, project=project, margin=asked["margin"])
    ruler_px = ruler_of(sides_of(pictures))
    make_folder(folder)
    write_json(folder / SETTINGS_FILE, {**asked, "crops": asdict(crops), "ruler_px": ruler_px})
    return crops, ruler_px


def _all_records(
    pictures: Sequence[Picture],
    trained: Run | Bundle,
    *,
    folder: Path,
    judging: Judging,
    network: Mapping[str, Any],
    told: Progress,
) -> dict[str, dict[str, Any]]:
    """What is known of each picture, by its path: from an earlier call, or found now."""
    records = kept_records(folder, pictures, is_record=_is_record)
    todo = [picture for picture in pictures if picture.image not in records]
    if not todo:
        return records
    predictor = Predictor.of(trained, **network, progress=told)
    predictor.refuse_given("the cells of a smear")
    with told.begin("counting", len(pictures)) as advance:
        advance(len(records))
        for record in count_fields(todo, predictor, folder=folder, judging=judging, progress=told, advance=advance):
            records[record["image"]] = record
    return records


def _is_record(record: Mapping[str, Any]) -> bool:
    return {"red_cell_px", "is_read"} <= record.keys() and all(
        isinstance(cell, dict) and cell.keys() == CELL_KEYS for cell in record["cells"]
    )


def _counted(
    trained: Run | Bundle, pictures: Sequence[Picture], records: Mapping[str, Mapping[str, Any]], remedy: str
) -> Counted:
    """The tables of all pictures. remedy : where none of them can be read"""
    classes = tuple(trained.record.classes) if isinstance(trained, Bundle) else classes_of(trained)
    images, cells, left_out = [], [], []
    for picture in pictures:
        record = records[picture.image]
        images.append(_image(picture, record, classes))
        cells += [{"image": picture.image, **cell} for cell in record["cells"]]
        left_out += [left_out_row(picture.image, item) for item in record["left_out"]]
    if not any(record["is_read"] for record in records.values()):
        raise DatasetError(f"no picture can be read: {left_out[0]['image']}: {left_out[0]['reason']}", remedy)
    named = np.array([[image["classes"][label] for label in classes] for image in images], np.int64)
    total, based_on = _total(
        trained, named, np.array([cell["probabilities"] for cell in cells]).reshape(-1, len(classes))
    )
    return Counted(
        trained.name, tuple(images), dict(zip(classes, total, strict=True)), tuple(cells), tuple(left_out), based_on
    )


def _image(picture: Picture, record: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    of = Counter(cell["label"] for cell in record["cells"])
    return {
        "path": str(picture.path),
        "image": picture.image,
        "cells": len(record["cells"]),
        "classes": {label: of[label] for label in classes},
        **{name: sum(bool(cell[name]) for cell in record["cells"]) for name in ("unsure", "unlike", "at_border")},
    }


def _total(
    trained: Run | Bundle, named: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> tuple[list[dict[str, float]], str]:
    """Of each class the number of cells and its intervals; and what they rest on."""
    random, known = np.random.default_rng(_SEED), confusion_of(trained)
    if known is None:
        drawn = by_probability(probabilities, random=random)
        based_on = "the calibrated probabilities of the cells, since the run's validation and test rows are not at hand"
    else:
        drawn = by_confusion(named.sum(axis=0), known[0], random=random)
        based_on = f"{known[1]} groups of the run's validation and test rows"
    found = intervals(named, drawn, recall=RECALL, precision=PRECISION, random=random)
    n = named.sum(axis=0).tolist()
    return [
        {"n": count, **{name: round(value, 4) for name, value in asdict(of).items()}}
        for count, of in zip(n, found, strict=True)
    ], based_on


def _write(done: Counted, folder: Path, *, crops: Crops, pictures: Sequence[Picture]) -> None:
    """The tables, count.json, and last the page."""
    classes = list(done.total)
    shares = [
        {**cell, **{f"p_{label}": p for label, p in zip(classes, cell["probabilities"], strict=True)}}
        for cell in done.cells
    ]
    write_csv(folder / "cells.csv", (*_CELL_COLUMNS, *(f"p_{label}" for label in classes)), rows=shares)
    write_csv(folder / "left_out.csv", LEFT_OUT_COLUMNS, rows=done.left_out)
    fields = [{**image, **{f"n_{label}": n for label, n in image["classes"].items()}} for image in done.images]
    columns = ("image", "cells", *(f"n_{label}" for label in classes), "unsure", "unlike", "at_border")
    write_csv(folder / "counts.csv", columns, rows=fields)
    write_json(folder / COUNT_FILE, done.to_dict())
    names = {picture.image: picture.name for picture in pictures}
    write_text(folder / PAGE_FILE, page.of(done.to_dict(), folder, crops=asdict(crops), names=names))
