"""Tables over runs, as rows of text: for the terminal and every file of a report alike.

Every function takes runs of one data set, since accuracies on different data sets do not compare; `per_class` gives one
table a data set. Damaged runs are left out: `featcache.reporting.records.read_records` says which, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from featcache.reporting.blocks import Table
from featcache.reporting.labels import epochs_of, kind_of, mode_of
from featcache.reporting.records import (
    CrossValidation,
    MeanMeasure,
    Measures,
    RunRecord,
    best_by_validation,
    by_dataset,
    read_records,
)
from featcache.reporting.text import clean, counted, interval, number, percent, with_interval
from featcache.training import Run

MOST_CLASSES = 20


def per_class(runs: Sequence[Run]) -> list[Table]:
    """Recall on test in percent with its 95 % interval, by run's name: one row a run, one column a class."""
    return [
        replace(recalls(records, {record.name: record.name for record in records}), foot=())
        for records in by_dataset(read_records(runs)[0]).values()
    ]


def dataset_note(runs: Sequence[Run]) -> str:
    """A warning where runs were made on several data sets, else ""."""
    return dataset_note_of(read_records(runs)[0])


def dataset_note_of(records: Sequence[RunRecord]) -> str:
    """`dataset_note` of what is read already."""
    count = len(by_dataset(records))
    return f"The runs were made on {count} different data sets: compare only within one." if count > 1 else ""


def by_kind(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by what was trained: heads, whole networks, ..."""
    return _grouped(records, kind_of)


def by_mode(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by what was trained and for how many epochs: the modes of the study's tables."""
    return _grouped(records, mode_of)


def summary(
    records: Sequence[RunRecord], labels: Mapping[str, str], *, title: str = "", links: Mapping[str, str] | None = None
) -> Table:
    """One row a run of a kind: how good it is, how long it took. Bold: the best on validation."""
    several = any(record.has_several_labels for record in records)
    headers = (
        "run",
        f"{_accuracy_is(records)}, % (95 %)",
        *(("Hamming loss, %", "micro F1, %", "macro F1, %") if several else ("balanced, %",)),
        "loss",
        "validation, %",
        "training, %",
        "epochs",
        "time, s",
    )
    best = best_by_validation(records) if len(records) > 1 else None
    rows = tuple(_summary_row(record, labels[record.name]) for record in records)
    marked = frozenset((row, headers.index("validation, %")) for row, r in enumerate(records) if r is best)
    places = tuple((links or {}).get(record.name, "") for record in records)
    return Table(headers, rows, n_text=1, best=marked, title=title, links=places)


def _summary_row(record: RunRecord, label: str) -> tuple[str, ...]:
    test, results = record.test, record.results
    return (
        label,
        with_interval(test.accuracy, test.intervals.get("accuracy"), cases=test.groups),
        *_more_measures(record, test),
        number(test.loss),
        percent(results.val.accuracy, results.val.groups) if results.val else "",
        percent(results.train.accuracy, results.train.groups) if results.train else "",
        "" if record.is_classical else f"{results.epochs:,}",
        number(results.seconds),
    )


def _accuracy_is(records: Sequence[RunRecord]) -> str:
    """Runs of one data set all have one label an image, or all several."""
    return records[0].accuracy_is if records else "accuracy"


def _more_measures(record: RunRecord, split: Measures) -> tuple[str, ...]:
    names = ("hamming_loss", "micro_f1", "macro_f1") if record.has_several_labels else ("balanced_accuracy",)
    return tuple(percent(getattr(split, name), split.groups) for name in names)


def recalls(records: Sequence[RunRecord], labels: Mapping[str, str], *, title: str = "") -> Table:
    """Recall of each class on test with its interval: a row a run; of many classes the twenty recognised worst.

    Below them, where networks differ, the mean over networks, each counted once.
    """
    classes = list(dict.fromkeys(label for record in records for label in record.config.classes))
    more = ""
    if len(classes) > MOST_CLASSES:
        known = len(classes)
        classes = sorted(classes, key=lambda label: _mean_of_known(record.test.recall(label) for record in records))
        classes = classes[:MOST_CLASSES]
        more = f", the {MOST_CLASSES} worst of {known:,} classes"
    rows = tuple((labels[r.name], *(_recall(r.test, label) for label in classes), _accuracy(r.test)) for r in records)
    headers = ("run", *(clean(label) for label in classes), _accuracy_is(records))
    foot = _means_of_networks(records, classes)
    return Table(headers, rows, n_text=1, title=title + more, foot=foot)


def _means_of_networks(records: Sequence[RunRecord], classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    networks = _grouped(records, lambda record: clean(record.config.backbone))
    if len(networks) < 2:
        return ()
    cases = min((record.test.groups or 0 for record in records), default=0)

    def mean(value: Callable[[RunRecord], float | None]) -> str:
        of_each = [mean_of([value(record) for record in members]) for members in networks.values()]
        return percent(mean_of(of_each), cases)

    cells = [mean(lambda record, label=label: record.test.recall(label)) for label in classes]  # type: ignore[misc]
    return ((f"mean of {len(networks)} networks", *cells, mean(lambda record: record.test.accuracy)),)


def _recall(split: Measures, label: str) -> str:
    found = split.per_class.get(label)
    if found is None:
        return ""
    return with_interval(found.recall, found.intervals.get("recall"), cases=found.groups or found.rows)


def _accuracy(split: Measures) -> str:
    return with_interval(split.accuracy, split.intervals.get("accuracy"), cases=split.groups)


def classes_of(record: RunRecord) -> Table:
    """Every measure of each class on test, with intervals."""
    names = {"recall": "recall, %", "precision": "precision, %", "specificity": "specificity, %", "f1": "F1, %"}
    if record.has_several_labels:
        names |= {"roc_auc": "ROC AUC, %", "average_precision": "average precision, %"}
    headers = ("label" if record.has_several_labels else "class", "test originals", *names.values())
    rows = []
    for label in record.config.classes:
        found = record.test.per_class.get(label)
        if found is None:
            continue
        cases = found.groups or found.rows
        cells = [with_interval(getattr(found, name), found.intervals.get(name), cases=cases) for name in names]
        rows.append((clean(label), f"{cases:,}" if cases is not None else "", *cells))
    title = f"Each {headers[0]} on test, with 95 % intervals"
    return Table(headers, tuple(rows), n_text=1, title=title)


def of_each_label(record: RunRecord) -> Table:
    """The two by two counts of each label on test, where a row may have several."""
    rows = []
    for label, found in record.test.per_class.items():
        if found.confusion is not None:
            (without, named), (missed, right) = found.confusion
            rows.append((clean(label), *(f"{count:,}" for count in (right, missed, named, without))))
    headers = ("label", "has it, found", "has it, missed", "has it not, named", "has it not, not named")
    return Table(headers, tuple(rows), n_text=1, title="Rows of test by label, at a probability above one half")


def confusion(record: RunRecord) -> Table:
    """The confusion matrix on test: rows true, columns predicted, tinted by the share of the row."""
    names = [clean(label) for label in record.config.classes]
    rows: list[tuple[str, ...]] = []
    heat: dict[tuple[int, int], float] = {}
    for place, (name, counts) in enumerate(zip(names, record.test.confusion, strict=True)):
        total = sum(counts)
        rows.append((name, *(f"{count:,}" for count in counts), f"{total:,}"))
        heat |= {(place, column): count / total for column, count in enumerate(counts, start=1) if count}
    title = "Confusion matrix on test, in rows: a row is a true class, a column what was predicted"
    return Table(("true", *names, "all"), tuple(rows), n_text=1, heat=heat, title=title)


def splits_of(record: RunRecord) -> Table:
    """Measures of each split."""
    rows = tuple(
        (
            name,
            f"{split.rows:,}",
            "" if split.groups is None else f"{split.groups:,}",
            number(split.loss),
            _accuracy(split),
            *_more_measures(record, split),
            percent(split.majority, split.groups),
        )
        for name, split in record.splits.items()
    )
    more: tuple[str, ...] = ("balanced accuracy, %", "majority class, %")
    if record.has_several_labels:
        more = ("Hamming loss, %", "micro F1, %", "macro F1, %", "most frequent combination, %")
    headers = ("split", "rows", "groups", "loss", f"{record.accuracy_is}, % (95 %)", *more)
    return Table(headers, rows, n_text=1, title="Each split")


def times(records: Sequence[RunRecord], labels: Mapping[str, str]) -> Table:
    """What each training took."""
    rows = tuple(
        (
            labels[record.name],
            "" if record.is_classical else f"{epochs_of(record):,}",
            "" if record.is_classical else f"{record.results.epochs:,}",
            number(record.results.seconds),
            "" if record.is_classical else number(record.results.s_per_epoch),
            "" if record.config.cores is None else str(record.config.cores),
        )
        for record in records
    )
    headers = ("run", "epochs asked for", "epochs trained", "time, s", "time an epoch, s", "cores")
    return Table(headers, rows, n_text=1, title="Time of each training", foot=_total_time(records))


def _total_time(records: Sequence[RunRecord]) -> tuple[tuple[str, ...], ...]:
    return (
        (
            counted(len(records), "run") + " together",
            "",
            "",
            number(sum(r.results.seconds for r in records)),
            "",
            "",
        ),
    )


def cross_validations_of(found: Sequence[CrossValidation]) -> Table | None:
    """One row a cross-validation, percent with 95 % intervals; None where there is none."""
    names = {"accuracy": "accuracy, %", "balanced_accuracy": "balanced accuracy, %", "macro_f1": "macro F1, %"}
    majority = "majority class, %"
    if all(one.config.label_separator for one in found):
        names = {"accuracy": "exact match, %", "hamming_loss": "Hamming loss, %", "micro_f1": "micro F1, %"}
        names["macro_f1"], majority = "macro F1, %", "most frequent combination, %"
    classes = list(dict.fromkeys(label for one in found for label in one.results.per_class))[:MOST_CLASSES]
    rows = tuple(
        (
            clean(one.run.name),
            *(_mean_and_interval(one.results.measures.get(name), one.results.groups) for name in names),
            percent(one.results.majority, one.results.groups),
            *(_class_of(one, label) for label in classes),
            f"{one.results.images:,}",
            f"{one.results.groups:,}",
            f"{one.results.folds} × {one.results.repeats}",
            clean(one.config.head.get("kind") or "dense"),
            clean(one.config.backbone),
        )
        for one in found
    )
    recall = (f"recall of {clean(label)}, %" for label in classes)
    counts = (majority, *recall, "images", "groups", "folds × repeats", "head", "network")
    title = "Cross-validations: every image is judged by heads that were not trained on its group"
    return Table(("run", *names.values(), *counts), rows, n_text=1, n_text_last=2, title=title) if rows else None


def _class_of(one: CrossValidation, label: str) -> str:
    found = one.results.per_class.get(label)
    return _mean_and_interval(found.recall, found.groups) if found else ""


def _mean_and_interval(measure: MeanMeasure | None, cases: int) -> str:
    return f"{percent(measure.mean, cases)} ({interval((measure.low, measure.high), cases)})" if measure else ""


def _grouped(records: Sequence[RunRecord], key: Callable[[RunRecord], str]) -> dict[str, list[RunRecord]]:
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def _mean_of_known(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else 1.0


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean, or None where a value is missing: a mean over fewer runs would not compare."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers and len(numbers) == len(values) else None
