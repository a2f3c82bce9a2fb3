"""report.html: one page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from html import escape as _escape
from importlib import resources
from string import Template
from typing import Any

from featcache.reporting import charts, vega
from featcache.reporting.blocks import (
    OF_ONE_RUN,
    Block,
    Chart,
    Facts,
    Gallery,
    Image,
    Items,
    Paragraph,
    Report,
    Section,
    Table,
)

_PERCENT = re.compile(r"(?<=\d) %")
_LONG = 60
"""Characters of a cell that is set as a line of code."""


def render(report: Report) -> str:
    """The report as one HTML page with all that it shows inside; it loads nothing."""
    style, script, engine = _resource("page.css"), _resource("page.js"), vega.script()
    policy = (
        # The page shows text that came from others: nothing is loaded or sent, and only these scripts run.
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(engine)} {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    answers = [section for section in report.sections if section.id.startswith("answer-")]
    first = answers[0] if len(answers) == 1 else None
    rest = [section for section in report.sections if section is not first]
    return Template(_resource("page.html")).substitute(
        style=style,
        policy=policy,
        title=escape(report.title),
        about=escape(report.about),
        answer=_section(first, kind="first") if first else "",
        contents="".join(_contents(rest)),
        sections="\n".join(_section(section) for section in rest),
        themes=_json({"light": charts.theme(dark=False), "dark": charts.theme(dark=True)}),
        vega=engine,
        script=script,
    )


def _contents(sections: Sequence[Section]) -> Iterator[str]:
    """Of several data sets, each is one entry, and what is about all of them."""
    several = any(section.level == 1 for section in sections)
    for section in sections:
        of_one = section.level == 2 and section.id[-1:].isdigit()
        if section.id and section.level < OF_ONE_RUN and not (several and of_one):
            yield f'<li><a href="#{escape(section.id)}">{escape(section.title)}</a></li>'


def _section(section: Section, *, kind: str = "") -> str:
    place = f' id="{escape(section.id)}"' if section.id else ""
    level = min(max(section.level, 2), 4)
    kind = kind or ("group" if section.level == 1 else "")
    title = f"<h{level}>{escape(section.title)}</h{level}>"
    body = "\n".join(_blocks(section.blocks))
    if section.level == OF_ONE_RUN:
        state = "" if section.folded else " open"
        return f"<details{place}{state}><summary>{title}</summary>\n{body}\n</details>"
    of = f' class="{kind}"' if kind else ""
    return f"<section{place}{of}>\n{title}\n{body}\n</section>"


def _blocks(blocks: Sequence[Block]) -> Iterator[str]:
    """Charts that follow each other stand side by side."""
    together: list[str] = []
    for block in blocks:
        if isinstance(block, Chart):
            together.append(_chart(block))
            continue
        yield from _side_by_side(together)
        together = []
        yield _block(block)
    yield from _side_by_side(together)


def _side_by_side(drawn: Sequence[str]) -> Iterator[str]:
    if len(drawn) > 1:
        yield f'<div class="charts">{"".join(drawn)}</div>'
    else:
        yield from drawn


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Paragraph(text, tone):
            return f'<p class="{tone}">{escape(text)}</p>' if tone else f"<p>{escape(text)}</p>"
        case Items():
            return _items(block)
        case Facts(pairs, large):
            cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
            return f'<dl class="facts{" large" if large else ""}">{cells}</dl>'
        case Chart():
            return _chart(block)
        case Image():
            return _image(block)
        case Gallery():
            return _gallery(block)


def _items(block: Items) -> str:
    leads = block.leads or ("",) * len(block.items)
    lines = (
        f"<li>{f'<strong>{escape(lead)}</strong>: ' if lead else ''}{escape(item)}</li>"
        for lead, item in zip(leads, block.items, strict=True)
    )
    return f"<ul>{''.join(lines)}</ul>"


def _table(table: Table) -> str:
    """A table in a box that scrolls sideways."""
    kinds = ["text" if table.is_text(column) else "number" for column in range(len(table.headers))]
    head = "".join(f'<th scope="col" class="{k}">{escape(h)}</th>' for h, k in zip(table.headers, kinds, strict=True))
    body = "\n".join(_row(table, number, kinds) for number in range(len(table.rows)))
    foot = "".join(_foot(cells, kinds) for cells in table.foot)
    sortable = ' class="sortable"' if len(table.rows) > 1 else ""
    label = escape(table.title or "Table")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table{sortable}>'
        f"<caption><span>{label}</span></caption><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
        + (f"<tfoot>{foot}</tfoot>" if foot else "")
        + "</table></div>"
    )


def _row(table: Table, number: int, kinds: Sequence[str]) -> str:
    cells = []
    place = table.links[number] if table.links else ""
    for column, (cell, kind) in enumerate(zip(table.rows[number], kinds, strict=True)):
        text = f"<strong>{escape(cell)}</strong>" if (number, column) in table.best else escape(cell)
        if column == 0 and table.n_text:
            name = f'<a href="{escape(place)}">{text}</a>' if place else text
            cells.append(f'<th scope="row">{name}</th>')
            continue
        heat = round(10 * table.heat.get((number, column), 0))
        more = f" heat-{heat}" if heat else " long" if len(cell) > _LONG else ""
        cells.append(f'<td class="{kind}{more}">{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _foot(cells: Sequence[str], kinds: Sequence[str]) -> str:
    first, *others = cells
    columns = "".join(f'<td class="{kind}">{escape(cell)}</td>' for cell, kind in zip(others, kinds[1:], strict=True))
    return f'<tr><th scope="row">{escape(first)}</th>{columns}</tr>'


def _chart(chart: Chart) -> str:
    """The chart as a picture, and what scripts draw in its place."""
    still = base64.b64encode(vega.svg(chart.spec, charts.theme(dark=False)).encode()).decode()
    return (
        f'<figure class="chart"><img src="data:image/svg+xml;base64,{still}" alt="{escape(chart.alt)}">'
        f'<div class="live" aria-hidden="true"></div><script type="application/json">{_json(chart.spec)}</script>'
        f"<figcaption>{escape(chart.title)}</figcaption></figure>"
    )


def _image(image: Image) -> str:
    width, height = image.size_px
    return (
        f'<figure class="image"><img src="{_data_url("png", image.data)}" alt="{escape(image.alt)}" '
        f'width="{width}" height="{height}"><figcaption>{escape(image.alt)}</figcaption></figure>'
    )


def _gallery(gallery: Gallery) -> str:
    cards = []
    for card in gallery.cards:
        lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in card.lines)
        shown = (
            f'<img src="{_data_url("jpeg", card.jpeg)}" alt="{escape(card.alt)}">'
            if card.jpeg
            else '<div class="none">no picture</div>'
        )
        cards.append(f"<li>{shown}<dl>{lines}</dl></li>")
    return f'<ul class="gallery" aria-label="{escape(gallery.title)}">{"".join(cards)}</ul>'


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def escape(text: str) -> str:
    """Text as HTML shows it; a number and its % stay on one line."""
    return _PERCENT.sub("\N{NO-BREAK SPACE}%", _escape(text))


def _json(value: Any) -> str:
    """JSON that cannot end the script that it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return resources.files("featcache.reporting").joinpath(name).read_text(encoding="utf-8")
