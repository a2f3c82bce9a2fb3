"""A report as GitHub Markdown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from featcache.reporting.content import HOW_TO_READ, Group, Image, Report, RunPart
from featcache.reporting.tables import Table
from featcache.reporting.text import in_markdown


def render(report: Report, out: Path) -> str:
    """The report as Markdown whose image links hold from the folder `out`."""
    return "\n".join(_lines(report, out)) + "\n"


def _lines(report: Report, out: Path) -> Iterator[str]:
    yield "# featcache report"
    yield f"\n{report.count}, {report.created}"
    if report.note:
        yield f"\n> {in_markdown(report.note)}"
    for group in report.groups:
        if report.note:
            yield f"\n# Data set {in_markdown(group.dataset) or 'without a name'}"
        yield from _group_lines(group)
        for part in group.parts:
            yield from _run_lines(part, out)
    if report.cross_validations:
        yield "\n## Cross-validations\n"
        yield from _table_lines(report.cross_validations)
    if report.problems:
        yield "\n## Not readable\n"
        yield from (f"- **{in_markdown(problem.name)}**: {in_markdown(problem.reason)}" for problem in report.problems)
    yield "\n## How to read this"
    yield from (f"\n{paragraph}" for paragraph in HOW_TO_READ)


def _group_lines(group: Group) -> Iterator[str]:
    yield f"\n{in_markdown(group.best)}"
    yield "\n## Runs\n"
    yield from _table_lines(group.summary)
    if group.means:
        yield "\n### Means over runs of one kind and backbone\n"
        yield from _table_lines(group.means)
    yield f"\n## {group.title_of_classes}\n"
    yield from _table_lines(group.per_class)
    if group.images:
        yield "\n## Curves of all runs"
    for image in group.images:
        yield f"\n{_image(image, image.name)}"


def _run_lines(part: RunPart, out: Path) -> Iterator[str]:
    yield f"\n## {in_markdown(part.record.name)}\n"
    yield from (f"- **{name}**: {in_markdown(value)}" for name, value in part.facts)
    yield ""
    yield from _table_lines(part.splits)
    for image in part.images:
        if not (part.record.run.folder / image.name).is_file():
            continue  # drawn for the page, which holds its pictures itself
        yield f"\n{_image(image, relative(part.record.run.folder / image.name, out))}"
    yield "\nMost confused on test:\n"
    yield from (f"- {in_markdown(sentence)}" for sentence in part.confused or ("none: every row is right",))


def _table_lines(table: Table) -> Iterator[str]:
    yield _row(in_markdown(header) for header in table.headers)
    yield _row("---" if table.is_text(column) else "---:" for column in range(len(table.headers)))
    for number, cells in enumerate(table.rows):
        yield _row(
            f"**{in_markdown(cell)}**" if (number, column) in table.best else in_markdown(cell)
            for column, cell in enumerate(cells)
        )


def _row(cells: Iterator[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _image(image: Image, url: str) -> str:
    return f"![{in_markdown(image.alt)}]({url})"


def relative(path: Path, folder: Path) -> str:
    """URL of a file as seen from a folder; an absolute one where they share no root, as on two drives."""
    try:
        return quote(Path(os.path.relpath(path, folder)).as_posix())
    except ValueError:
        return path.absolute().as_uri()
