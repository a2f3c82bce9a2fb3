"""runs: every run of a project with what it is and how good it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.core.errors import RunError, UsageError, nearest
from featcache.reporting.records import read_cross_validation, read_record
from featcache.training import NO_NOTE, Note, Run, list_runs, read_notes

MEASURES = ("accuracy", "balanced_accuracy", "macro_f1", "loss")
_FALLING = ("accuracy", "balanced_accuracy", "macro_f1")
SORTS = ("created", "name", *MEASURES)


@dataclass(frozen=True)
class ListedRun:
    """A run, and how good it is: on its test split, or over all images of a cross-validation.

    rows, groups : that it was judged on
    measures : accuracy, balanced_accuracy, macro_f1, loss (nats); None where it is not known
    interval : of the accuracy, 95 %
    problem : why the run cannot be read; "" for a whole one
    """

    name: str
    folder: Path
    kind: str = ""
    backbone: str = ""
    cache: str = ""
    created: str = ""
    epochs: int | None = None
    rows: int | None = None
    groups: int | None = None
    measures: Mapping[str, float | None] | None = None
    interval: tuple[float, float] | None = None
    note: Note = NO_NOTE
    problem: str = ""

    def measure(self, name: str) -> float | None:
        """One of `measures`."""
        return (self.measures or {}).get(name)


def runs(
    results: Path,
    *,
    kind: str | None = None,
    backbone: str | None = None,
    tags: Collection[str] = (),
    sort: str = "created",
) -> list[ListedRun]:
    """Every run in a folder, or those of a kind, of a backbone, with all of some tags; the best or the oldest first.

    sort : "created", "name", "accuracy", "balanced_accuracy", "macro_f1" or "loss"

    Raises UsageError for another order, RunError for damaged notes. A damaged run is listed with what is wrong.
    """
    if sort not in SORTS:
        raise UsageError(f"`sort={sort!r:.80}`: {nearest(sort, SORTS)}")
    notes = read_notes(results)
    listed = [_listed(run, notes.get(run.name, NO_NOTE)) for run in list_runs(results)]
    found = [
        one
        for one in listed
        if kind in (None, one.kind) and backbone in (None, one.backbone) and set(tags) <= set(one.note.tags)
    ]
    if sort not in MEASURES:
        return sorted(found, key=lambda one: (getattr(one, sort), one.name))
    sign = -1 if sort in _FALLING else 1

    def merit(one: ListedRun) -> tuple[bool, float, str]:
        value = one.measure(sort)
        return value is None, 0.0 if value is None else sign * value, one.name

    return sorted(found, key=merit)


def differences(one: Run, other: Run) -> list[tuple[str, Any, Any]]:
    """(setting, of the first, of the second) of all that is set differently; None where one has no such setting."""
    first, second = (dict(flat(run.config)) for run in (one, other))
    names = sorted({*first, *second} - {"created", "course"})
    return [(name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)]


def _listed(run: Run, note: Note) -> ListedRun:
    measures: Mapping[str, float | None]
    groups: int | None
    try:
        if run.is_cross_validation:
            crossed = read_cross_validation(run)
            config, kind, epochs = crossed.config, crossed.config.kind, None
            rows, groups = crossed.results.images, crossed.results.groups
            means = crossed.results.measures
            measures = {name: means[name].mean if name in means else None for name in MEASURES}
            interval = (means["accuracy"].low, means["accuracy"].high) if "accuracy" in means else None
        else:
            record = read_record(run)
            config, kind = record.config, record.kind
            epochs = None if record.is_classical else record.results.epochs
            rows, groups = record.test.rows, record.test.groups
            measures = {name: getattr(record.test, name) for name in MEASURES}
            interval = record.test.intervals.get("accuracy")
    except RunError as error:
        return ListedRun(run.name, run.folder, note=note, problem=str(error))
    return ListedRun(
        name=run.name,
        folder=run.folder,
        kind=kind,
        backbone=config.backbone,
        cache=config.cache_name or "",
        created=config.created,
        epochs=epochs,
        rows=rows,
        groups=groups,
        measures=measures,
        interval=interval,
        note=note,
    )


def flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """(name.name, value) of all values below, such as ("head.lr", 0.002)."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", inner
