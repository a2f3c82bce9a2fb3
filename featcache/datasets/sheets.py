"""Lists that are no text: sheets of Excel, and Parquet files. Each cell becomes the text that a CSV would have."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from featcache.core.errors import DatasetError, refuse_shortage

EXCEL, PARQUET = (".xlsx", ".xlsm"), (".parquet", ".pq")
_MOST_BYTES, _MOST_CELLS = 1 << 29, 20_000_000
"""Of a list when it is unpacked, and of its cells."""


def is_sheet(path: Path) -> bool:
    """Whether a list is named as one of Excel or Parquet, and begins like one."""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(4)
        suffix = path.suffix.lower()
        return (suffix in EXCEL and start == b"PK\x03\x04") or (suffix in PARQUET and start == b"PAR1")
    return False


def rows_of_sheet(path: Path) -> Iterator[list[str]]:
    """The rows of a list, the names of the columns first. Raises DatasetError where it cannot be read.

    Of a workbook it is the first sheet, with the values of formulas that were last saved.
    """
    try:
        yield from _excel(path) if path.suffix.lower() in EXCEL else _parquet(path)
    except DatasetError:
        raise
    except Exception as error:  # both libraries raise what theirs raise, for a damaged file anything
        refuse_shortage(error, path)
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DatasetError(f"{path}: cannot be read: {said}") from error


def _excel(path: Path) -> Iterator[list[str]]:
    from openpyxl import load_workbook

    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
            raise DatasetError(f"{path}: is larger than any list when it is unpacked")
    book = load_workbook(path, read_only=True, data_only=True)
    try:
        sheet: Any = book.worksheets[0]
        cells = 0
        for row in sheet.iter_rows(values_only=True):
            cells += len(row)
            if cells > _MOST_CELLS:
                raise DatasetError(f"{path}: has more than {_MOST_CELLS:,} cells")
            yield [_text(value) for value in row]
    finally:
        book.close()


def _parquet(path: Path) -> Iterator[list[str]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        about = file.metadata
        unpacked = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
        if unpacked > _MOST_BYTES or about.num_rows * about.num_columns > _MOST_CELLS:
            raise DatasetError(f"{path}: is larger than any list")
        yield [str(name) for name in file.schema_arrow.names]
        for batch in file.iter_batches(4096):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield [_text(value) for value in values]


def _text(value: Any) -> str:
    """What a CSV would have: nothing for an empty cell, whole numbers without a point."""
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
