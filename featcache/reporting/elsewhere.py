"""Evaluations in a report: how good runs are on the images of others, beside their own test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from featcache.reporting import tables
from featcache.reporting.blocks import OF_ONE_RUN, Block, Items, Paragraph, Section, Table
from featcache.reporting.records import RunRecord
from featcache.reporting.text import clean, counted, with_interval


def elsewhere(
    evaluations: Sequence[RunRecord], records: Mapping[str, RunRecord], *, labels: Mapping[str, str]
) -> list[Section]:
    """The section on other images, and one for each evaluation.

    records : the runs of this report, by name; labels : what they are called in it
    """
    if not evaluations:
        return []
    rows = []
    for record in evaluations:
        of = records.get(record.config.run)
        own = (_cell(of, "accuracy"), _cell(of, "balanced_accuracy")) if of else ("", "")
        here = (_cell(record, "accuracy"), _cell(record, "balanced_accuracy"))
        rows.append((_called(record, labels), _on(record), *own, *here, f"{record.test.groups or 0:,}"))
    headers = ("run", "on", "own test: accuracy, %", "balanced, %", "there: accuracy, %", "balanced, %", "originals")
    table = Table(headers, tuple(rows), n_text=2, title="Runs on other images, with 95 % intervals")
    note = (
        "A balanced accuracy is the mean recall of those classes that the images have. Images of classes that a run "
        "does not know are in none of the measures, and are counted below."
    )
    sections = [Section("On other images", (table, Paragraph(note, "quiet")), id="elsewhere")]
    for number, record in enumerate(evaluations, start=1):
        blocks: list[Block] = [tables.classes_of(record), tables.confusion(record)]
        if record.results.unknown:
            blocks += [Paragraph("Classes that the run does not know:"), Items(_unknown(record))]
        title = f"{_called(record, labels)} on {_on(record)}"
        sections.append(Section(title, tuple(blocks), id=f"elsewhere-{number}", level=OF_ONE_RUN, folded=True))
    return sections


def _called(record: RunRecord, labels: Mapping[str, str]) -> str:
    return labels.get(record.config.run, clean(record.config.run))


def _on(record: RunRecord) -> str:
    """The name of the folder or list: where it lies is nothing for who gets the report."""
    return clean(PurePath(record.config.on).name) or "the current folder"


def _cell(record: RunRecord, measure: str) -> str:
    return with_interval(getattr(record.test, measure), record.test.intervals.get(measure), cases=record.test.groups)


def _unknown(record: RunRecord) -> tuple[str, ...]:
    lines = []
    for label, of in record.results.unknown.items():
        named = ", ".join(f"{count:,} {clean(name)}" for name, count in of.named.items())
        marked = "" if of.unlike is None else f"; {of.unlike:,} of them unlike the training images"
        lines.append(f"{clean(label)}: {counted(of.rows, 'image')}, named {named}{marked}")
    return tuple(lines)
