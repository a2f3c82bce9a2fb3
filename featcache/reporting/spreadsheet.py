"""report.csv and report.xlsx: the measures of a report as numbers, for other programs."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from featcache.core.files import safe_cell
from featcache.reporting.blocks import OF_ONE_RUN, Report, Table
from featcache.reporting.text import clean

_COLUMNS = (
    *("run", "label", "kind", "network", "mode", "data_set", "split", "class", "measure", "value", "low", "high"),
    *("rows", "groups"),
)
_MISTAKES = ("run", "label", "path", "true", "predicted", "confidence")
_NO_TITLE = re.compile(r"[\[\]:*?/\\']")
_LONGEST_TITLE, _WIDEST, _LONGEST_CELL = 31, 60, 32_000
_MOST_ROWS = 1_000_000
_MOST_SHEETS = 60
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def csv(report: Report) -> str:
    """A line for each measure of each run, split and class, with its interval; no text is a formula."""
    frame = pd.DataFrame([_safe(line) for line in report.measures], columns=list(_COLUMNS))
    frame[["rows", "groups"]] = frame[["rows", "groups"]].astype("Int64")
    return str(frame.to_csv(index=False, lineterminator="\n"))


def xlsx(report: Report) -> bytes:
    """The same as a workbook, with the mistakes, and each table over several runs on a sheet of its own."""
    from openpyxl import Workbook

    book = Workbook()
    book.remove(book.active)
    _sheet(book, "measures", _COLUMNS, rows=[[line.get(name) for name in _COLUMNS] for line in report.measures])
    _sheet(book, "mistakes", _MISTAKES, rows=[[line.get(name) for name in _MISTAKES] for line in report.mistakes])
    shared = (section for section in report.sections if section.level < OF_ONE_RUN)
    tables = [block for section in shared for block in section.blocks if isinstance(block, Table)]
    for number, table in enumerate(tables[:_MOST_SHEETS], start=1):
        cells = [[_number(cell) for cell in row] for row in (*table.rows, *table.foot)]
        _sheet(book, f"{number} {table.title}", table.headers, rows=cells)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def _sheet(book: Any, title: str, headers: Sequence[str], *, rows: Sequence[Sequence[Any]]) -> None:
    from openpyxl.styles import Font

    sheet = book.create_sheet(_NO_TITLE.sub(" ", clean(title))[:_LONGEST_TITLE].strip() or "table")
    for row, cells in enumerate((headers, *rows[:_MOST_ROWS]), start=1):
        for column, value in enumerate(cells, start=1):
            cell = sheet.cell(row, column)
            if isinstance(value, str):
                cell.value = clean(value)[:_LONGEST_CELL]
                cell.data_type = "s"  # never a formula
            elif value is not None:
                cell.value = value
    for column, header in enumerate(headers, start=1):
        sheet.cell(1, column).font = Font(bold=True)
        widest = max((len(str(cells[column - 1])) for cells in rows[:100]), default=0)
        sheet.column_dimensions[sheet.cell(1, column).column_letter].width = min(max(widest, len(header)) + 2, _WIDEST)
    sheet.freeze_panes = "A2"


def _number(cell: str) -> str | float:
    plain = cell.replace(",", "")
    return float(plain) if _NUMBER.fullmatch(plain) else cell


def _safe(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: safe_cell(value) if isinstance(value, str) else value for name, value in line.items()}
