"""CSV files as people, spreadsheets and laboratory systems write them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.core.errors import DatasetError
from featcache.core.project import init_call
from featcache.datasets.sheets import is_sheet, rows_of_sheet

if TYPE_CHECKING:
    import pandas as pd

_MAX_CELL_BYTES = 1 << 30
_OTHER_KINDS = (
    (b"PK\x03\x04", "a zip archive: unpack it and name the folder"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook: save the sheet as 'CSV UTF-8' in Excel"),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it and name the folder"),
    (b"Rar!", "a rar archive: unpack it and name the folder"),
    (b"PAR1", "a Parquet file: save it as CSV"),
    (b"\x89HDF", "an HDF5 file: name a folder of images or a CSV file"),
    (b"{", "a JSON file: name a folder of images or a CSV file"),
    (b"[", "a JSON file: name a folder of images or a CSV file"),
    (b"<", "an XML or HTML file: name the folder of images and annotations, or a CSV file"),
    (b"version https://git-lfs", "only a pointer to the file: run 'git lfs pull'"),
)
_EXCEL = "an Excel workbook: save the sheet as 'CSV UTF-8' in Excel"
Names = Callable[[Sequence[str]], Sequence[str] | None]
"""Names of the columns for a first line that holds none; None where it does."""


@dataclass(frozen=True)
class _Lines:
    """Lines with something in them, each as cells, and their numbers in the file."""

    cells: list[list[str]]
    numbers: list[int]


def read_csv(path: Path, names: Names = lambda first: None) -> pd.DataFrame:
    """A CSV with all cells as text, missing cells as ""; its index is the number of each line in the file.

    A sheet of Excel or a Parquet file is read as well, if it is named as such.

    names : gives names to the columns of a file that begins with data

    Raises DatasetError where it cannot be read, naming the line.
    """
    import pandas as pd

    lines = _lines_of_sheet(path) if is_sheet(path) else _lines(path, _text(path))
    if not lines.cells:
        raise DatasetError(f"{path}: is empty; expected a line with the names of the columns")
    given = names([cell.strip() for cell in lines.cells[0]])
    header = list(given) if given is not None else [name.strip() for name in lines.cells[0]]
    for number, cells in zip(lines.numbers, lines.cells, strict=True):
        if any(cell.strip() for cell in cells[len(header) :]):
            raise DatasetError(f"{path}, line {number}: {len(cells)} cells for {len(header)} columns")
    twice = [name for name, times in Counter(header).items() if name and times > 1]
    if twice:
        raise DatasetError(
            f"{path}, line {lines.numbers[0]}: two columns are named {twice[0]!r}; the first line must name the columns"
        )
    first = 0 if given is not None else 1
    rows = [(cells + [""] * len(header))[: len(header)] for cells in lines.cells[first:]]
    named = [place for place, name in enumerate(header) if name]
    cells_named = [[row[place] for place in named] for row in rows]
    columns = [header[place] for place in named]
    return pd.DataFrame(cells_named, columns=columns, index=lines.numbers[first:], dtype=object)


def _lines_of_sheet(path: Path) -> _Lines:
    numbered = [(number, row) for number, row in enumerate(rows_of_sheet(path), 1) if any(cell.strip() for cell in row)]
    return _Lines([row for _, row in numbered], [number for number, _ in numbered])


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: there is no such file", f"{init_call(into=path.parent)} writes one") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
    kind = next((kind for magic, kind in _OTHER_KINDS if data.lstrip().startswith(magic)), "")
    if kind:
        is_excel = data.startswith(b"PK") and (b"xl/" in data or path.suffix.lower() in (".xlsx", ".xlsm", ".ods"))
        raise DatasetError(f"{path}: is {_EXCEL if is_excel else kind}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{path}, line {line}: is not UTF-8 ({error.reason}): save the file as UTF-8") from error


def _lines(path: Path, text: str) -> _Lines:
    """The lines behind comments (#) and Excel's line sep=; that stand at the beginning."""
    skipped = _skipped(text)
    body = text[sum(map(len, skipped)) :]
    delimiter = next((line.strip()[4] for line in skipped if _is_sep(line)), "") or _delimiter(body)
    lines, start = _Lines([], []), len(skipped) + 1
    csv.field_size_limit(_MAX_CELL_BYTES)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.cells.append(cells)
                lines.numbers.append(start)
            start = len(skipped) + reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(f"{path}, line {start}: cannot be read as CSV: {error}") from error
    return lines


def _skipped(text: str) -> list[str]:
    skipped = []
    for line in io.StringIO(text, newline=""):
        if line.strip() and not line.lstrip().startswith("#") and not _is_sep(line):
            break
        skipped.append(line)
    return skipped


def _is_sep(line: str) -> bool:
    return line.strip().lower().startswith("sep=") and len(line.strip()) == 5


def _delimiter(text: str) -> str:
    """A comma; or the semicolon or tab that spreadsheets write, where the first line has no comma."""
    header = text.lstrip().partition("\n")[0]
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def header_of(path: Path) -> list[str]:
    """The first line of a CSV with names in it; an unreadable file has none."""
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16).decode("utf-8-sig", "replace")
        body = start[sum(map(len, _skipped(start))) :]
        line = next(iter(io.StringIO(body, newline="")), "")
        reader = csv.reader([line], delimiter=_delimiter(line), skipinitialspace=True)
        return [name.strip() for name in next(filter(any, reader), [])]
    except (OSError, csv.Error):
        return []
