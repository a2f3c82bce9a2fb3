"""predictions.csv, read some lines at a time: a run may have judged more rows than fit into memory as texts."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from featcache.core.strict_json import MAX_TEXT_BYTES

_TEXTS = ("image_id", "path", "label", "split", "group", "predicted")
_PART_ROWS = 1 << 16
_MOST_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Predictions:
    """Lines of a table of predictions, each under its number, from 0, and how many the table has."""

    lines: pd.DataFrame
    of: int


def is_large(path: Path) -> bool:
    """Whether a table should be read only in part. Raises OSError where it is not there."""
    return path.stat().st_size > MAX_TEXT_BYTES


def read_predictions(
    path: Path, splits: Sequence[str] | None = None, *, columns: list[str] | None = None
) -> Predictions:
    """A table of predictions; texts are read as text. Raises OSError, ValueError or LookupError for a damaged one.

    splits : whose lines are wanted; all by default, and where the table does not say splits
    columns : those that are wanted
    """
    kept, of = list[pd.DataFrame](), 0
    with path.open("rb", buffering=0) as file, closing(_Lines(file)) as lines:
        parts: Iterator[pd.DataFrame] = pd.read_csv(
            io.BufferedReader(lines, 1 << 18),
            chunksize=_PART_ROWS,
            keep_default_na=False,
            dtype=dict.fromkeys(_TEXTS, str),
            usecols=columns,
        )
        for part in parts:
            of += len(part)
            kept.append(part if splits is None or "split" not in part else part[part["split"].isin(splits)])
    if not kept:
        raise ValueError("it has no lines")
    return Predictions(pd.concat(kept), of)


class _Lines(io.RawIOBase):
    """A file of text none of whose lines is so long that one of them fills the memory; else ValueError."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file, self._since = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int | None:
        """As of `io.RawIOBase`."""
        n = self._file.readinto(buffer)  # type: ignore[arg-type]
        if n:
            last = memoryview(buffer)[:n].tobytes().rfind(b"\n")  # type: ignore[arg-type]
            self._since = self._since + n if last < 0 else n - last - 1
            if self._since > _MOST_LINE_BYTES:
                raise ValueError(f"it has a line of more than {_MOST_LINE_BYTES} bytes")
        return n
