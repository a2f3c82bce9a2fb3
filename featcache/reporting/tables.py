"""Tables over runs, as rows of text: for the terminal, Markdown and the page alike.

Every function takes runs and gives one table a data set, since accuracies on different data sets do not
compare. Damaged runs are left out: `featcache.reporting.records.read_records` says which, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from featcache.reporting.records import (
    CrossValidation,
    MeanMeasure,
    Measures,
    RunRecord,
    best_by_validation,
    by_dataset,
    read_records,
)
from featcache.reporting.text import clean, interval, number, percent, shorten
from featcache.training import Run

SUMMARY_HEADERS = (
    "run",
    "test, %",
    "test 95 %",
    "validation, %",
    "train, %",
    "balanced, %",
    "baseline, %",
    "test loss",
    "epochs",
    "time, s",
    "s/epoch",
    "kind",
    "backbone",
    "weights",
)
MOST_CLASSES = 20
_VALIDATION = SUMMARY_HEADERS.index("validation, %")


@dataclass(frozen=True)
class Table:
    """Headers and rows of text.

    dataset : digest of the data set that its runs were made on
    n_text, n_text_last : how many columns are words, at the beginning and at the end; the rest are numbers, to be set
        flush right
    best : (row, column) of the cells to set in bold
    """

    dataset: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int
    best: frozenset[tuple[int, int]] = frozenset()
    n_text_last: int = 0

    def is_text(self, column: int) -> bool:
        """Whether a column holds words."""
        return column < self.n_text or column >= len(self.headers) - self.n_text_last


def summary(runs: Sequence[Run]) -> list[Table]:
    """One row a run: what it is, how long it took, how good it is. Bold: the best on validation."""
    return [summary_of(records) for records in by_dataset(read_records(runs)[0]).values()]


def per_class(runs: Sequence[Run]) -> list[Table]:
    """Recall on test in percent: one row a run, one column a class. Bold: the best of each column.

    Of many classes the twenty that are recognised worst.

    Columns are the union of the runs' classes; a cell is "" where a run does not know the class, or where
    no test row is of it.
    """
    return [per_class_of(records) for records in by_dataset(read_records(runs)[0]).values()]


def dataset_note(runs: Sequence[Run]) -> str:
    """A warning where runs were made on several data sets, else ""."""
    return dataset_note_of(read_records(runs)[0])


def dataset_note_of(records: Sequence[RunRecord]) -> str:
    """`dataset_note` of what is read already."""
    count = len(by_dataset(records))
    return f"The runs were made on {count} different data sets: compare only within one." if count > 1 else ""


def summary_of(records: Sequence[RunRecord]) -> Table:
    """`summary` of runs of one data set."""
    best = best_by_validation(records)
    marked = frozenset((row, _VALIDATION) for row, record in enumerate(records) if record is best)
    rows = tuple(_summary_row(record) for record in records)
    return Table(_dataset(records), SUMMARY_HEADERS, rows, n_text=1, best=marked, n_text_last=3)


def _summary_row(record: RunRecord) -> tuple[str, ...]:
    config, results, test = record.config, record.results, record.test
    return (
        record.name,
        percent(test.accuracy),
        interval(test.intervals.get("accuracy")),
        percent(results.val.accuracy if results.val else None),
        percent(results.train.accuracy if results.train else None),
        percent(test.balanced_accuracy),
        percent(test.majority),
        number(test.loss),
        "" if record.is_classical else str(results.epochs),
        number(results.seconds),
        "" if record.is_classical else number(results.s_per_epoch),
        clean(", ".join(part for part in (record.kind, config.solver) if part)),
        clean(config.backbone),
        shorten(clean(config.weights or ""), 24),
    )


def per_class_of(records: Sequence[RunRecord]) -> Table:
    """`per_class` of runs of one data set."""
    classes = list(dict.fromkeys(label for record in records for label in record.config.classes))
    if len(classes) > MOST_CLASSES:
        classes = sorted(classes, key=lambda label: _mean_of_known(record.test.recall(label) for record in records))
        classes = classes[:MOST_CLASSES]
    values = [[record.test.recall(label) for label in classes] for record in records]
    rows = tuple((record.name, *(percent(value) for value in row)) for record, row in zip(records, values, strict=True))
    headers = ("run", *(clean(label) for label in classes))
    return Table(_dataset(records), headers, rows, n_text=1, best=_highest(values) if len(records) > 1 else frozenset())


def _mean_of_known(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else 1.0


def _highest(values: Sequence[Sequence[float | None]]) -> frozenset[tuple[int, int]]:
    """(row, column + 1) of the highest value of each column, all of them where several are equal."""
    best = set()
    for column, cells in enumerate(zip(*values, strict=True)):
        top = max((cell for cell in cells if cell is not None), default=None)
        best |= {(row, column + 1) for row, cell in enumerate(cells) if cell is not None and cell == top}
    return frozenset(best)


def means_of(records: Sequence[RunRecord]) -> Table | None:
    """Means over the runs of one kind on one backbone, of one data set; None where no two runs share both."""
    kinds: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        kinds.setdefault((record.kind, clean(record.config.backbone)), []).append(record)
    if all(len(members) == 1 for members in kinds.values()):
        return None
    rows = tuple(
        (
            *kind,
            str(len(members)),
            number(_mean(member.results.seconds for member in members)),
            number(_mean(_loss(member.results.train) for member in members)),
            number(_mean(_loss(member.results.val) for member in members)),
            number(_mean(member.test.loss for member in members)),
            percent(_mean(member.test.accuracy for member in members)),
        )
        for kind, members in kinds.items()
    )
    headers = ("kind", "backbone", "runs", "mean time, s", "train loss", "validation loss", "test loss", "test, %")
    return Table(_dataset(records), headers, rows, n_text=2)


def cross_validations_of(found: Sequence[CrossValidation]) -> Table | None:
    """One row a cross-validation, percent with 95 % intervals; None where there is none."""
    measures = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}
    headers = [header for name in measures.values() for header in (f"{name}, %", "95 %")]
    rows = tuple(
        (
            clean(one.run.name),
            *(cell for name in measures for cell in _mean_and_interval(one.results.measures.get(name))),
            percent(one.results.majority),
            f"{one.results.images:,}",
            f"{one.results.groups:,}",
            f"{one.results.folds} x {one.results.repeats}",
            clean(one.config.head.get("kind") or "dense"),
            clean(one.config.backbone),
            clean(one.config.dataset)[:12],
        )
        for one in found
    )
    counts = ("baseline, %", "images", "groups", "folds", "head", "backbone", "data set")
    return Table("", ("run", *headers, *counts), rows, n_text=1, n_text_last=3) if rows else None


def _mean_and_interval(measure: MeanMeasure | None) -> tuple[str, str]:
    return (percent(measure.mean), interval((measure.low, measure.high))) if measure else ("", "")


def most_confused(record: RunRecord, top: int = 3) -> list[str]:
    """The most frequent mistakes on test, a sentence each, the most frequent first."""
    labels, confusion = record.config.classes, record.test.confusion
    mistakes = [
        (count, sum(row), labels[true], labels[predicted])
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    mistakes.sort(key=lambda mistake: -mistake[0])
    return [
        f"{clean(true)} taken for {clean(predicted)}: {count} of {support} ({percent(count / support)} %)"
        for count, support, true, predicted in mistakes[:top]
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean, or None where a value is missing: a mean over fewer runs would not compare."""
    known = list(values)
    numbers = [value for value in known if value is not None]
    return fmean(numbers) if numbers and len(numbers) == len(known) else None


def _loss(split: Measures | None) -> float | None:
    return split.loss if split else None


def _dataset(records: Sequence[RunRecord]) -> str:
    return clean(records[0].config.dataset) if records else ""
