"""report.md: a report as GitHub Markdown; its figures are PNG files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

from featcache.reporting.blocks import Block, Chart, Facts, Gallery, Image, Items, Paragraph, Report, Table
from featcache.reporting.text import in_markdown


def render(report: Report) -> str:
    """The report as Markdown."""
    return "\n".join(_lines(report)) + "\n"


def file_of(chart: Chart) -> str:
    """The name of a chart's picture."""
    return f"report-{chart.name}.png"


def _lines(report: Report) -> Iterator[str]:
    yield f"# {in_markdown(report.title)}"
    yield f"\n{in_markdown(report.about)}"
    for section in report.sections:
        yield f"\n{'#' * max(section.level, 2)} {in_markdown(section.title)}"
        for block in section.blocks:
            yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Table():
            yield f"\n{in_markdown(block.title)}\n" if block.title else ""
            yield from _table(block)
        case Paragraph(text, tone):
            written = f"**{in_markdown(text)}**" if tone == "answer" else in_markdown(text)
            yield f"\n{'> ' if tone in ('note', 'copy') else ''}{written}"
        case Items():
            yield ""
            leads = block.leads or ("",) * len(block.items)
            for lead, item in zip(leads, block.items, strict=True):
                yield f"- {f'**{in_markdown(lead)}**: ' if lead else ''}{in_markdown(item)}"
        case Facts(pairs):
            yield ""
            yield from (f"- **{in_markdown(name)}**: {in_markdown(value)}" for name, value in pairs)
        case Chart():
            yield f"\n![{in_markdown(block.alt)}]({quote(file_of(block))})"
        case Image():
            yield f"\n{in_markdown(block.alt)}; the picture is in report.html."
        case Gallery():
            yield f"\n{in_markdown(block.title)}; the pictures are in report.html:\n"
            for card in block.cards:
                yield "- " + ", ".join(f"{in_markdown(name)} {in_markdown(value)}" for name, value in card.lines)


def _table(table: Table) -> Iterator[str]:
    yield _row([in_markdown(header) for header in table.headers])
    yield _row(["---" if table.is_text(column) else "---:" for column in range(len(table.headers))])
    for number, cells in enumerate((*table.rows, *table.foot)):
        yield _row(
            [
                f"**{in_markdown(cell)}**" if (number, column) in table.best else in_markdown(cell)
                for column, cell in enumerate(cells)
            ]
        )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
