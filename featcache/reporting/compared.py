"""Runs of one data set: what they said of its images, and how they compare."""

from __future__ import annotations

from dataclasses import dataclass, field

from featcache.core.errors import RunError
from featcache.reporting.judging import Difference, Judgement, Mistake, differ, mistakes_of, read_judgement
from featcache.reporting.labels import labels_of
from featcache.reporting.records import (
    Problem,
    RunRecord,
    best_by_validation,
)
from featcache.reporting.text import clean

_MOST_COMPARED = 40


@dataclass
class Group:
    """Runs of one data set: what compares.

    judgements : of runs whose predictions can be read; differences : of the chosen run from others on test, by name
    """

    number: int
    records: list[RunRecord]
    labels: dict[str, str]
    chosen: RunRecord | None
    judgements: dict[str, Judgement] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    mistakes: dict[str, list[Mistake]] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """The beginning of its digest."""
        return clean(self.records[0].config.dataset)[:12] or "without a name"

    def place(self, record: RunRecord) -> str:
        """The run's place on the page."""
        return f"run-{self.number}-{self.records.index(record) + 1}"

    def label(self, record: RunRecord) -> str:
        """What the run is called here."""
        return self.labels[record.name]


def judged(number: int, records: list[RunRecord], *, problems: list[Problem]) -> Group:
    """Runs of one data set, what they said of its images, and how they compare with the chosen one."""
    group = Group(number, records, labels_of(records), best_by_validation(records))
    for record in records:
        try:
            judgement = read_judgement(record)
        except RunError as error:
            problems.append(Problem(record.name, f"{error}; the rest of the run is shown"))
            continue
        group.judgements[record.name] = judgement
        group.mistakes[record.name] = mistakes_of(judgement)
    first = group.judgements.get(group.chosen.name) if group.chosen else None
    for record in records[:_MOST_COMPARED]:
        other = group.judgements.get(record.name)
        if first is None or other is None or record is group.chosen:
            continue
        if found := differ(first, other):
            group.differences[record.name] = found
    return group
