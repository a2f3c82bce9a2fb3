"""What a report says, whatever it is written in: read once here, rendered by `markdown` and `page`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from featcache.core.errors import RunError
from featcache.reporting import figures, tables
from featcache.reporting.figures import CONFUSION_FILE, CURVES_FILE, curves_of_all
from featcache.reporting.records import (
    Measures,
    Problem,
    RunRecord,
    best_by_validation,
    by_dataset,
    read_cross_validations,
    read_history,
    read_records,
)
from featcache.reporting.text import clean, counted, interval, number, percent, plain
from featcache.training import Run

HOW_TO_READ = (
    "Accuracy is in percent of a split's rows (one row is one view of one image); loss is the mean cross-entropy "
    "in nats. An empty cell: the run does not know the class, or the split has no row of it.",
    "The 95 % interval is over groups (all views of one original, one patient or one slide), since rows of one group "
    "are not independent. Where intervals overlap widely, one run is not shown to be better than the other.",
    "The majority-class baseline is the accuracy of always naming the most frequent class; balanced accuracy is the "
    "mean recall of the classes, and does not gain from frequent ones.",
    "The best run is chosen by validation accuracy, never by test: the best of many on test flatters itself. "
    "Bold in the table of classes marks the highest value of a column and is no choice either.",
    "In a confusion matrix a row is a true class and a column what was predicted; percent are of the row. In "
    "curves of more than 300 epochs a line is the mean of neighbouring epochs; in a run's own curves a band then "
    "reaches from their lowest to their highest. Curves of training are measured during the epoch with dropout on, "
    "so they may run below validation; the tables' measures of train are of the finished model, without dropout.",
)


_MOST_NAMED = 30


@dataclass(frozen=True)
class Image:
    """A PNG image of the report.

    name : file name; data : its bytes; size_px : (width, height); alt : what it shows, in words
    """

    name: str
    data: bytes
    size_px: tuple[int, int]
    alt: str


@dataclass(frozen=True)
class RunPart:
    """One run's section."""

    record: RunRecord
    facts: tuple[tuple[str, str], ...]
    splits: tables.Table
    images: tuple[Image, ...]
    confused: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Runs of one data set: what compares."""

    dataset: str
    best: str
    summary: tables.Table
    means: tables.Table | None
    per_class: tables.Table
    images: tuple[Image, ...]
    parts: tuple[RunPart, ...]

    @property
    def title_of_classes(self) -> str:
        """The heading of `per_class`."""
        known = {label for part in self.parts for label in part.record.config.classes}
        shown = len(self.per_class.headers) - 1
        which = f", the {shown} worst of {len(known):,}" if shown < len(known) else ""
        return f"Recall per class on test, in percent{which}"


@dataclass(frozen=True)
class Report:
    """Everything that a report says."""

    created: str
    count: str
    note: str
    groups: tuple[Group, ...]
    cross_validations: tables.Table | None
    problems: tuple[Problem, ...]


def gather(runs: Sequence[Run]) -> Report:
    """Read runs and draw what a report needs. What cannot be read is listed in `problems`."""
    crossed, others, damaged = read_cross_validations(runs)
    records, problems = read_records(others)
    problems += damaged
    groups = [_group(number, group, problems) for number, group in enumerate(by_dataset(records).values(), start=1)]
    return Report(
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        count=counted(len(runs), "run"),
        note=tables.dataset_note_of(records),
        groups=tuple(groups),
        cross_validations=tables.cross_validations_of(crossed),
        problems=tuple(problems),
    )


def _group(number: int, records: Sequence[RunRecord], problems: list[Problem]) -> Group:
    parts = tuple(_part(record, problems) for record in records)
    return Group(
        dataset=clean(records[0].config.dataset)[:12],
        best=_best_sentence(records),
        summary=tables.summary_of(records),
        means=tables.means_of(records) if len(records) > 1 else None,
        per_class=tables.per_class_of(records),
        images=_images_of_all(number, records, problems),
        parts=parts,
    )


def _best_sentence(records: Sequence[RunRecord]) -> str:
    best = best_by_validation(records)
    if best is None or best.results.val is None:
        return "No run has validation rows, so none is named best."
    of = "The only run" if len(records) == 1 else "Best by validation accuracy"
    span = interval(best.test.intervals.get("accuracy"))
    return (
        f"{of}: {best.name}, {percent(best.results.val.accuracy)} % on validation and "
        f"{percent(best.test.accuracy)} % on test" + (f" (95 % interval {span} %)." if span else ".")
    )


def _part(record: RunRecord, problems: list[Problem]) -> RunPart:
    images = []
    drawn = [(CONFUSION_FILE, _alt_of_confusion(record), _confusion)]
    if not record.is_classical:
        drawn.insert(0, (CURVES_FILE, _alt_of_curves(record), _curves))
    for name, alt, draw in drawn:
        try:
            images.append(_read_image(record, name, alt, draw))
        except RunError as error:
            problems.append(Problem(record.name, f"{error}; the rest of the run is shown"))
    return RunPart(record, facts(record), _splits(record), tuple(images), tuple(tables.most_confused(record)))


def _read_image(record: RunRecord, name: str, alt: str, draw: Callable[[RunRecord], bytes]) -> Image:
    """A run's picture; drawn now where a run was written and its pictures not, since they come last."""
    try:
        return image_of(name, (record.run.folder / name).read_bytes(), alt=alt)
    except FileNotFoundError:
        return image_of(name, draw(record), alt=alt)
    except OSError as error:
        raise RunError(f"{name}: {error.strerror or 'cannot be read'}") from error


def _curves(record: RunRecord) -> bytes:
    return figures.curves(read_history(record.run), record.name)


def _confusion(record: RunRecord) -> bytes:
    return figures.confusion_matrix(record.test.confusion, record.config.classes)


def image_of(name: str, data: bytes, *, alt: str) -> Image:
    """A PNG image with the size that its header gives. Raises RunError for anything else."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 33:
        raise RunError(f"{name}: not a PNG image")
    width, height = struct.unpack(">II", data[16:24])
    return Image(name, data, (width, height), alt)


def _images_of_all(number: int, records: Sequence[RunRecord], problems: list[Problem]) -> tuple[Image, ...]:
    drawable = []
    for record in records:
        if record.is_classical:
            continue  # no epochs, no curves
        try:
            read_history(record.run)
            drawable.append(record.run)
        except RunError as error:
            problems.append(Problem(record.name, f"{error}; left out of the curves of all runs"))
    if len(drawable) < 2:
        return ()
    images = curves_of_all(drawable)
    ending = "" if number == 1 else f"-{number}"
    return tuple(
        image_of(
            f"report-{measure}{ending}.png",
            data,
            alt=f"{measure} per epoch of {counted(len(drawable), 'run')}; training left, validation right",
        )
        for measure, data in images.items()
    )


def _alt_of_curves(record: RunRecord) -> str:
    ends = "; ".join(
        f"{name} at the end: {percent(split.accuracy)} % accuracy, loss {number(split.loss)}"
        for name, split in record.splits.items()
        if name != "test"
    )
    return f"Loss and accuracy of {record.name} over {counted(record.results.epochs, 'epoch')}. {ends}"


def _alt_of_confusion(record: RunRecord) -> str:
    confusion = record.test.confusion
    right = sum(row[index] for index, row in enumerate(confusion))
    return f"Confusion matrix of {record.name} on test: {right:,} of {record.test.rows:,} rows right"


def facts(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """What a run is, as (name, value) pairs; what its kind does not have is left out."""
    config, results = record.config, record.results
    space = config.recipe.get("space")
    space = space if isinstance(space, dict) else {}
    input_ = [f"{plain(space['input_size_px'])} px" if "input_size_px" in space else ""]
    input_ += [
        f"{key} {plain(space[key])}" for key in ("preprocessing", "layer", "pooling", "segmentation") if key in space
    ]
    seconds = f"{number(results.seconds)} s"
    if results.s_per_epoch is not None and not record.is_classical:
        seconds += f", {number(results.s_per_epoch)} s an epoch"
    pairs = (
        ("backbone", plain(config.backbone)),
        ("weights", plain(config.weights or "")),
        ("input", ", ".join(part for part in input_ if part)),
        ("cache", plain(config.cache_name or "")),
        ("head", _layers(record)),
        ("optimizer", _optimizer(record)),
        (
            "solver",
            f"{plain(config.solver)} ({plain(config.why)})"
            if config.solver and config.why
            else plain(config.solver or ""),
        ),
        ("cores", _cores(record)),
        ("classes", _some(config.classes)),
        ("data", "; ".join(_size(name, split) for name, split in record.splits.items())),
        ("data set", clean(config.dataset)[:12]),
        ("time", seconds),
        ("created", clean(config.created).replace("T", " ").replace("+00:00", " UTC")),
    )
    return tuple((name, value) for name, value in pairs if value)


def _cores(record: RunRecord) -> str:
    if record.config.cores is None or record.is_classical:
        return ""
    by_keras = record.config.solver != "gram"
    return f"{record.config.cores}" + ("; on another number the last digits differ" if by_keras else "")


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MOST_NAMED:,} more" if len(labels) > _MOST_NAMED else ""
    return ", ".join(clean(label) for label in labels[:_MOST_NAMED]) + more


def _size(name: str, split: Measures) -> str:
    groups = "" if split.groups is None else f" of {counted(split.groups, 'group')}"
    return f"{name} {counted(split.rows, 'row')}{groups}"


def _layers(record: RunRecord) -> str:
    head = record.config.head
    hidden = head.get("hidden")
    if not isinstance(hidden, list):
        return ""
    dropout = f", Dropout({plain(head['dropout'])})" if head.get("dropout") else ""
    layers = [f"Dense({plain(units)}, ReLU){dropout}" for units in hidden]
    return ", ".join([*layers, f"Dense({len(record.config.classes)}, softmax)"])


def _optimizer(record: RunRecord) -> str:
    """Every setting that layers do not show; the study's words for those that it names."""
    words = {"lr": "learning rate", "scale": "feature scale", "dtype": "arithmetic"}
    settings = {key: value for key, value in record.config.head.items() if key not in ("hidden", "dropout")}
    settings |= {key: value for key, value in record.config.training.items() if value not in (0, None, "none")}
    first = [] if "optimizer" in settings else ["SGD"] if "lr" in settings else []
    return ", ".join([*first, *(f"{words.get(key, clean(key))} {plain(value)}" for key, value in settings.items())])


def _splits(record: RunRecord) -> tables.Table:
    rows = tuple(
        (
            name,
            f"{split.rows:,}",
            "" if split.groups is None else f"{split.groups:,}",
            number(split.loss),
            percent(split.accuracy),
            interval(split.intervals.get("accuracy")),
            percent(split.balanced_accuracy),
            percent(split.majority),
        )
        for name, split in record.splits.items()
    )
    headers = ("split", "rows", "groups", "loss", "accuracy, %", "95 %", "balanced, %", "baseline, %")
    return tables.Table(record.config.dataset, headers, rows, n_text=1)
