"""Runs as reports need them: read from disk, checked once, trusted after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from featcache.core.errors import RunError
from featcache.reporting.text import clean
from featcache.training import CONFIG_FILE, METRICS_FILE, Run

HISTORY_COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


_T = TypeVar("_T", bound=_Record)


class ClassMeasures(_Record):
    """Measures of one class, as `featcache.measures.evaluate` gives them.

    confusion : of a label where a row may have several: rows without and with it, columns that did not and did get it
    """

    rows: Count | None = None
    groups: Count | None = None
    precision: Fraction | None = None
    recall: Fraction | None = None
    specificity: Fraction | None = None
    f1: Fraction | None = None
    roc_auc: Fraction | None = None
    average_precision: Fraction | None = None
    confusion: tuple[tuple[Count, Count], tuple[Count, Count]] | None = None
    intervals: dict[str, tuple[FiniteFloat, FiniteFloat]] = {}


class Measures(_Record):
    """Measures of one split, as `featcache.measures.evaluate` gives them.

    intervals : 95 %, over groups; loss : nats; confusion : rows true, columns predicted
    """

    rows: Count
    accuracy: Fraction
    groups: Count | None = None
    loss: FiniteFloat | None = None
    intervals: dict[str, tuple[FiniteFloat, FiniteFloat]] = {}
    balanced_accuracy: Fraction | None = None
    macro_f1: Fraction | None = None
    micro_f1: Fraction | None = None
    hamming_loss: Fraction | None = None
    majority: Fraction | None = None
    per_class: dict[str, ClassMeasures] = {}
    confusion: list[list[Count]] = []

    def recall(self, label: str) -> float | None:
        """Of a class; None where it is not known, or no row is of it."""
        return self.per_class[label].recall if label in self.per_class else None


class _Config(_Record):
    kind: str = "head"
    backbone: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    label_separator: str = ""
    cache_name: str | None = None
    cache: Any = None
    weights: Any = None
    recipe: dict[str, Any] = {}
    head: dict[str, Any] = {}
    training: dict[str, Any] = {}
    solver: str | None = None
    why: str | None = None
    cores: int | None = None
    dataset: str = ""
    created: str = ""
    run: str = ""
    on: str = ""


class _Bin(_Record):
    rows: Count
    confidence: Fraction
    accuracy: Fraction


class Reliability(_Record):
    """How sure a run is and how often it is right, as of `featcache.doubt.reliability`."""

    rows: Count
    calibration_error: Fraction
    bins: tuple[_Bin, ...]


class BeforeAndAfter(_Record):
    """Reliability before the temperature is used, and after."""

    before: Reliability
    after: Reliability


class Calibration(_Record):
    """Calibration of a run: its temperature, and what it does on plain validation and test rows."""

    temperature: FiniteFloat
    val: BeforeAndAfter | None = None
    test: BeforeAndAfter | None = None


class UnknownClass(_Record):
    """Images of a class that an evaluated run cannot know, and what it named them."""

    rows: Count
    unlike: Count | None = None
    named: dict[str, Count] = {}


class _Results(_Record):
    epochs: Count
    seconds: FiniteFloat
    s_per_epoch: FiniteFloat | None = None
    train: Measures | None = None
    val: Measures | None = None
    test: Measures
    calibration: Calibration | None = None
    unknown: dict[str, UnknownClass] = {}
    unlike: Fraction | None = None

    @model_validator(mode="after")
    def _test_is_whole(self) -> _Results:
        of_labels = all(label.confusion for label in self.test.per_class.values())
        if not self.test.per_class or not (self.test.confusion or of_labels):
            raise ValueError("test: per_class and confusion are needed")
        return self


class MeanMeasure(_Record):
    """A measure of a cross-validation: mean over repeats, and 95 % interval over groups."""

    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class JudgedClass(_Record):
    """A class in a cross-validation."""

    groups: Count
    recall: MeanMeasure | None = None


class _Judged(_Record):
    folds: Count
    repeats: Count
    images: Count
    groups: Count
    majority: Fraction
    measures: dict[str, MeanMeasure]
    per_class: dict[str, JudgedClass] = {}


@dataclass(frozen=True)
class CrossValidation:
    """A cross-validation whose files hold what a report needs."""

    run: Run
    config: _Config
    results: _Judged


@dataclass(frozen=True)
class RunRecord:
    """A run whose config.json and metrics.json hold what a report needs."""

    run: Run
    config: _Config
    results: _Results

    @property
    def name(self) -> str:
        """The run's name on one line."""
        return clean(self.run.name)

    @property
    def is_classical(self) -> bool:
        """Whether scikit-learn fitted it: there are no epochs then."""
        return self.config.solver == "scikit-learn"

    @property
    def has_several_labels(self) -> bool:
        """Whether an image may have several labels, each of which is told by itself."""
        return bool(self.config.label_separator)

    @property
    def accuracy_is(self) -> str:
        """What its accuracy is called: of several labels an image, only those count that have all of them right."""
        return "exact match" if self.has_several_labels else "accuracy"

    @property
    def kind(self) -> str:
        """head, scratch, ...; of a classical head which one."""
        kind = self.config.head.get("kind") if self.is_classical else self.config.kind
        return clean(kind or self.config.kind)

    @property
    def test(self) -> Measures:
        """Measures on the test split: the only one that every run has."""
        return self.results.test

    @property
    def splits(self) -> dict[str, Measures]:
        """Measures of each split that the run has."""
        named = {"train": self.results.train, "validation": self.results.val, "test": self.results.test}
        return {name: measures for name, measures in named.items() if measures is not None}


@dataclass(frozen=True)
class Problem:
    """What a report could not read, and why."""

    name: str
    reason: str


def read_record(run: Run) -> RunRecord:
    """A run's configuration and metrics. Raises RunError, with the reason, for a damaged run."""
    config = _parsed(_Config, run.config, CONFIG_FILE)
    results = _parsed(_Results, run.metrics, METRICS_FILE)
    size = len(config.classes)
    for split in (results.train, results.val, results.test):
        confusion = split.confusion if split else []
        if confusion and (len(confusion) != size or any(len(row) != size for row in confusion)):
            raise RunError(f"{METRICS_FILE}: confusion: expected {size} x {size} counts, one row and column a class")
    return RunRecord(run, config, results)


def read_cross_validation(run: Run) -> CrossValidation:
    """A cross-validation's configuration and measures. Raises RunError, with the reason, for a damaged one."""
    results = _parsed(_Judged, run.metrics, METRICS_FILE)
    return CrossValidation(run, _parsed(_Config, run.config, CONFIG_FILE), results)


def read_cross_validations(runs: Sequence[Run]) -> tuple[list[CrossValidation], list[Run], list[Problem]]:
    """Those of some runs that are cross-validations, the others, and why some cannot be read."""
    found, others, problems = [], [], []
    for run in runs:
        try:
            if run.is_cross_validation:
                found.append(read_cross_validation(run))
            else:
                others.append(run)
        except RunError as error:
            problems.append(Problem(clean(run.name), _without_folder(error, run)))
    return found, others, problems


def read_records(runs: Sequence[Run]) -> tuple[list[RunRecord], list[Problem]]:
    """Every run that can be read, in order, and why the others cannot."""
    records, problems = [], []
    for run in runs:
        try:
            records.append(read_record(run))
        except RunError as error:
            problems.append(Problem(clean(run.name), _without_folder(error, run)))
    return records, problems


def read_history(run: Run) -> pd.DataFrame:
    """A run's history with its columns checked. Raises RunError, with the reason, for a damaged one."""
    try:
        return run.history
    except RunError as error:
        raise RunError(_without_folder(error, run)) from error


def best_by_validation(records: Sequence[RunRecord]) -> RunRecord | None:
    """The run with the highest validation accuracy, of equals the one with the lowest validation loss.

    Never chosen by test: the best of many on test is no estimate of anything.
    """
    watched = [(record, record.results.val) for record in records if record.results.val and record.results.val.rows]
    if not watched:
        return None

    def merit(pair: tuple[RunRecord, Measures]) -> tuple[float, float]:
        loss = pair[1].loss
        return pair[1].accuracy, -loss if loss is not None else -np.inf

    return max(watched, key=merit)[0]


def by_dataset(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Records by the digest of the data set they were made on, in order of appearance."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.config.dataset, []).append(record)
    return groups


def _parsed(model: type[_T], value: dict[str, Any], file: str) -> _T:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False)
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {len(others)} more)" if others else ""
        reason = first["msg"].removeprefix("Value error, ")
        raise RunError(f"{file}: {where + ': ' if where else ''}{reason}{more}") from error


def _without_folder(error: RunError, run: Run) -> str:
    """The reason without the run's own folder: a report is sent to others, the run's name says where."""
    return clean(str(error).replace(f"{run.folder}/", "").replace(str(run.folder), run.name))
