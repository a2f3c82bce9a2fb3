"""The report's files: report.md, and report.html, one page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from featcache.core.errors import RunError
from featcache.core.files import write_bytes, write_text
from featcache.reporting import content, markdown
from featcache.reporting.content import Group, Image, Report, RunPart
from featcache.reporting.figures import CONFUSION_FILE, CURVES_FILE
from featcache.reporting.tables import Table
from featcache.training import Run

MARKDOWN_FILE = "report.md"
HTML_FILE = "report.html"
_SMALL_PX = 1100  # images below this width stand beside text: a confusion matrix of up to six classes or so
_DENSE = 10  # tables of more columns are set tighter


def write_report(runs: Sequence[Run], out: Path) -> tuple[Path, Path]:
    """Write report.md and report.html into `out`, with the figures over all runs that report.md shows.

    A run that cannot be read is listed with the reason. Raises RunError where there is no run, or where
    `out` cannot be written.
    """
    if not runs:
        raise RunError(f"{out}: no finished run", "Train one with `featcache.fit_head()`")
    report = content.gather(runs)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for image in (image for group in report.groups for image in group.images):
            write_bytes(out / image.name, image.data)
        write_text(out / MARKDOWN_FILE, markdown.render(report, out))
        write_text(out / HTML_FILE, render(report))
    except OSError as error:
        raise RunError(f"{out}: the report cannot be written: {error.strerror or error}") from error
    return out / MARKDOWN_FILE, out / HTML_FILE


def render(report: Report) -> str:
    """The report as one HTML page, images and style sheet inside; it loads nothing and runs nothing."""
    style = _resource("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    numbers = {id(part): number for number, part in enumerate(_parts(report), start=1)}
    return Template(_resource("page.html")).substitute(
        style=style,
        # No script, no frame, no form, no load: the page shows text that came from others.
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        count=escape(report.count),
        created=escape(report.created),
        note=f'<p class="note">{escape(report.note)}</p>' if report.note else "",
        groups="\n".join(_group(group, numbers, named=bool(report.note)) for group in report.groups),
        crossed=_crossed(report.cross_validations),
        problems=_problems(report),
        reading="\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in content.HOW_TO_READ),
    )


def _group(group: Group, numbers: dict[int, int], named: bool) -> str:
    targets = [f"#run-{numbers[id(part)]}" for part in group.parts]
    title = "Means over runs of one kind and backbone"
    means = f"<h3>{title}</h3>{_table(group.means, title)}" if group.means else ""
    return "\n".join(
        (
            '<section class="group">',
            f"<h2>Data set {escape(group.dataset) or 'without a name'}</h2>" if named else "",
            f'<p class="best">{escape(group.best)}</p>',
            "<h2>Runs</h2>",
            _table(group.summary, "Summary of runs", targets),
            means,
            f"<h2>{escape(group.title_of_classes)}</h2>",
            _table(group.per_class, group.title_of_classes, targets),
            "<h2>Curves of all runs</h2>" if group.images else "",
            *(_image(image, image.name.split("-")[1].split(".")[0].capitalize()) for image in group.images),
            *(_run(part, numbers[id(part)]) for part in group.parts),
            "</section>",
        )
    )


def _crossed(table: Table | None) -> str:
    title = "Cross-validations"
    return f'<section class="group"><h2>{title}</h2>{_table(table, title)}</section>' if table else ""


def _run(part: RunPart, number: int) -> str:
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in part.facts)
    confused = "".join(f"<li>{escape(sentence)}</li>" for sentence in part.confused)
    captions = {CURVES_FILE: "Loss and accuracy per epoch", CONFUSION_FILE: "Confusion matrix on test"}
    figures = {image.name: _image(image, captions[image.name]) for image in part.images}
    return "\n".join(
        (
            f'<section class="run" id="run-{number}">',
            f"<h2>{escape(part.record.name)}</h2>",
            f'<dl class="facts">{facts}</dl>',
            _table(part.splits, f"Measures of {part.record.name}"),
            figures.get(CURVES_FILE, ""),
            '<div class="pair">',
            figures.get(CONFUSION_FILE, ""),
            "<div><h3>Most confused on test</h3>",
            f"<ul>{confused}</ul></div></div>" if confused else "<p>None: every row is right.</p></div></div>",
            "</section>",
        )
    )


def _table(table: Table, label: str, targets: Sequence[str] = ()) -> str:
    """A table in a box that scrolls sideways; `targets` are what the first cell of each row links to."""
    kinds = ["text" if table.is_text(column) else "number" for column in range(len(table.headers))]
    head = "".join(f'<th scope="col" class="{k}">{escape(h)}</th>' for h, k in zip(table.headers, kinds, strict=True))
    body = []
    for number, (first, *cells) in enumerate(table.rows):
        name = f'<a href="{targets[number]}">{escape(first)}</a>' if targets else escape(first)
        marked = (
            f"<strong>{escape(cell)}</strong>" if (number, column) in table.best else escape(cell)
            for column, cell in enumerate(cells, start=1)
        )
        columns = "".join(f'<td class="{kind}">{cell}</td>' for cell, kind in zip(marked, kinds[1:], strict=True))
        body.append(f'<tr><th scope="row">{name}</th>{columns}</tr>')
    dense = ' class="dense"' if len(table.headers) > _DENSE else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table{dense}>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table></div>"
    )


def _image(image: Image, caption: str) -> str:
    width, height = image.size_px
    kind = "small" if width < _SMALL_PX else "wide"
    data = base64.b64encode(image.data).decode()
    return (
        f'<figure class="{kind}"><img src="data:image/png;base64,{data}" alt="{escape(image.alt)}" '
        f'width="{width}" height="{height}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _problems(report: Report) -> str:
    if not report.problems:
        return ""
    items = "".join(f"<li><strong>{escape(p.name)}</strong>: {escape(p.reason)}</li>" for p in report.problems)
    return f'<section class="problems"><h2>Not readable</h2><ul>{items}</ul></section>'


def _parts(report: Report) -> Iterable[RunPart]:
    return (part for group in report.groups for part in group.parts)


def _resource(name: str) -> str:
    return resources.files("featcache.reporting").joinpath(name).read_text(encoding="utf-8")
