"""What runs said of each test image: their mistakes, and by how much one is better than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import RunError
from featcache.core.files import plain_cell, safe_cell
from featcache.datasets import encoded, labels_in
from featcache.measures import Judged, JudgedLabels, compare, judge, labels_named
from featcache.reporting.records import RunRecord
from featcache.reporting.text import labels_in_words, percent, signed
from featcache.training import PREDICTIONS_FILE, is_large, read_predictions

_NEEDED = {"image_id", "path", "label", "split", "group", "view", "predicted"}


@dataclass(frozen=True)
class Judgement:
    """The rows that a run judged, plain views and others, and its probabilities (rows, classes).

    rows : each under its number in the cache; of very many only those of the test split
    label_separator : between the labels of a row that may have several
    of_rows : how many it judged
    """

    rows: pd.DataFrame
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]
    label_separator: str = ""
    of_rows: int = 0

    def of(self, split: str) -> Judgement:
        """The labelled rows of one split."""
        chosen = ((self.rows["split"] == split) & (self.rows["label"] != "")).to_numpy()
        return replace(self, rows=self.rows[chosen].reset_index(drop=True), probabilities=self.probabilities[chosen])

    @property
    def y(self) -> NDArray[np.int64]:
        """(rows,), class numbers; of several labels a row an indicator (rows, classes)."""
        return encoded(self.rows["label"].tolist(), self.label_separator, classes=self.classes)


@dataclass(frozen=True)
class Mistake:
    """A plain test image that was given another class, or not all of its labels and no other.

    label, predicted : of several labels all of them, in words
    confidence : probability of the class that it was given; of several labels, of the most confident wrong decision
    missed, added : of several labels, those that it has and did not get, and the other way round, with probabilities
    """

    image_id: str
    path: str
    label: str
    predicted: str
    confidence: float
    missed: tuple[tuple[str, float], ...] = ()
    added: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Difference:
    """Accuracy of one run minus that of another on the same test images, with its 95 % interval."""

    difference: float
    low: float
    high: float
    cases: int

    @property
    def verdict(self) -> str:
        """In words."""
        if self.low > 0 or self.high < 0:
            return "higher" if self.low > 0 else "lower"
        return "not distinguishable"

    @property
    def verdict_of_first(self) -> str:
        """What a table says of the first run."""
        return {"higher": "more accurate", "lower": "less accurate"}.get(self.verdict, self.verdict)

    @property
    def text(self) -> str:
        """In percentage points, with its interval."""
        spread = f"{signed(self.low, self.cases)} to {signed(self.high, self.cases)}"
        return f"{signed(self.difference, self.cases)} ({spread})"


def read_judgement(record: RunRecord) -> Judgement:
    """A run's predictions.csv. Raises RunError where it is not whole."""
    path = record.run.folder / PREDICTIONS_FILE
    try:
        found = read_predictions(path, ["test"] if is_large(path) else None)
        columns = [f"p_{label}" for label in record.config.classes]
        named = {safe_cell(column): column for column in columns}
        frame = found.lines.rename(columns=named)
        if missing := (_NEEDED | set(columns)) - set(frame.columns):
            raise RunError(f"{PREDICTIONS_FILE}: no column {min(missing):.80}")
        for name in _NEEDED - {"view"}:
            frame[name] = frame[name].map(plain_cell)
        probabilities = frame[columns].to_numpy(np.float64)
    except FileNotFoundError as error:
        raise RunError(f"{PREDICTIONS_FILE}: is missing") from error
    except (OSError, ValueError, LookupError) as error:
        raise RunError(f"{PREDICTIONS_FILE}: cannot be read: {error}") from error
    separator, texts = record.config.label_separator, set(frame["label"][frame["split"] == "test"])
    is_some = separator or (probabilities.sum(axis=1) > 0).all()  # of several labels, a row may have none of them
    if not np.isfinite(probabilities).all() or (probabilities < 0).any() or not is_some:
        raise RunError(f"{PREDICTIONS_FILE}: holds what are no probabilities")
    if {label for text in texts for label in labels_in(text, separator)} - set(record.config.classes):
        raise RunError(f"{PREDICTIONS_FILE}: holds labels that are no classes of the run")
    return Judgement(frame, probabilities, record.config.classes, separator, found.of)


def mistakes_of(judgement: Judgement) -> list[Mistake]:
    """The plain test images that were given another class, or another set of labels, the most confident first."""
    test = judgement.of("test")
    wrong = np.flatnonzero(~_judged(test).is_right & (test.rows["view"] == 0).to_numpy())
    found = [_mistake(test, int(number)) for number in wrong]
    return sorted(found, key=lambda one: (-one.confidence, one.path))


def _mistake(test: Judgement, number: int) -> Mistake:
    row, p, separator = test.rows.iloc[number], test.probabilities[number], test.label_separator
    if not separator:
        named = int(p.argmax())
        return Mistake(row["image_id"], row["path"], row["label"], test.classes[named], float(p[named]))
    has, gets = set(labels_in(row["label"], separator)), set(labels_named(p[None], test.classes)[0])
    share = dict(zip(test.classes, p.tolist(), strict=True))
    missed, added = (tuple((label, share[label]) for label in sorted(some)) for some in (has - gets, gets - has))
    confidence = max([1 - of for _, of in missed] + [of for _, of in added])
    label, predicted = (labels_in_words(separator.join(sorted(some)), separator) for some in (has, gets))
    return Mistake(row["image_id"], row["path"], label, predicted, confidence, missed, added)


def differ(one: Judgement, other: Judgement) -> Difference | None:
    """By how much the first is more accurate on test; None where they were not judged on the same rows."""
    sides = [_in_order(judgement.of("test")) for judgement in (one, other)]
    key = ["image_id", "view", "label", "group"]
    first, second = (side.rows[key] for side in sides)
    kinds = [(side.classes, side.label_separator) for side in (one, other)]
    if kinds[0] != kinds[1] or not len(first) or not first.equals(second):
        return None
    judged = [_judged(side) for side in sides]
    found = compare(*judged)["accuracy"]
    return Difference(found["difference"], found["low"], found["high"], judged[0].n_groups)


def _in_order(judgement: Judgement) -> Judgement:
    order = judgement.rows.sort_values(["image_id", "view"]).index.to_numpy()
    rows = judgement.rows.iloc[order].reset_index(drop=True)
    return replace(judgement, rows=rows, probabilities=judgement.probabilities[order])


def _judged(judgement: Judgement) -> Judged | JudgedLabels:
    return judge(judgement.probabilities, judgement.y, groups=judgement.rows["group"].to_numpy(str))


def confused_most(record: RunRecord, top: int = 3) -> list[str]:
    """The most frequent mistakes on test, a sentence each, the most frequent first."""
    labels, confusion = record.config.classes, record.test.confusion
    found = [
        (count, sum(row), labels[true], labels[predicted])
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    found.sort(key=lambda mistake: -mistake[0])
    return [_sentence(*mistake, cases=record.test.groups) for mistake in found[:top]]


def _sentence(count: int, support: int, true: str, predicted: str, *, cases: int | None) -> str:
    return f"{true} taken for {predicted}: {count:,} of {support:,} ({percent(count / support, cases)} %)"


def shared_by(mistake: Mistake, others: Sequence[set[str]]) -> int:
    """How many of several runs make a mistake in the same image."""
    return sum(mistake.image_id in wrong for wrong in others)
