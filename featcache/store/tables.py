"""The two tables of a cache, as Parquet: its rows, and its copy of the dataset manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featcache.core.errors import CacheError, refuse_shortage
from featcache.core.files import beside
from featcache.datasets import SPLITS, LabelledImage
from featcache.images import ADDED_PARAMETERS, Box, named_parameters
from featcache.store.pages import sizes_of

ROW_COLUMNS = ["row", "image_id", "view", "row_id"]
DATASET_COLUMNS = ["image_id", "path", "label", "split", "group", "x_min", "y_min", "x_max", "y_max"]
_MAX_ROWS_PER_BYTE, _MAX_GROWTH, _MAX_SMALL_BYTES = 2, 200, 1 << 20
"""Real tables have one row a byte at most, and are a fortieth of what they hold at least."""
TEXT_COLUMNS = {"image_id", "row_id", "path", "label", "split", "group"}


@dataclass(frozen=True)
class Row:
    """One (image, view) of a cache.

    row_id : names the value: image, view parameters and feature space (`featcache.core.recipe.row_id`)
    parameters : the view's own
    """

    image_id: str
    view: int
    row_id: str
    parameters: Mapping[str, Any]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows.parquet: row, image_id, view, row_id, then a column a view parameter."""
    names = {name for row in rows for name in row.parameters}
    added = {name: value for name, value in ADDED_PARAMETERS.items() if name in names}
    frame = pd.DataFrame(
        [{"image_id": r.image_id, "view": r.view, "row_id": r.row_id, **added, **r.parameters} for r in rows]
    )
    frame.insert(0, "row", range(len(frame)))
    _write(path, frame)


def read_rows(path: Path) -> pd.DataFrame:
    """rows.parquet as a DataFrame. Raises CacheError if it is damaged or its rows are not 0, 1, 2, ...

    Views of one image whose parameters happen to be the same share a row_id: they are rows of their own.
    """
    frame = _read(path, ROW_COLUMNS)
    wrong = [name for name in ("row", "view") if frame[name].dtype != np.int64]
    if wrong:
        raise CacheError(f"{path}: the column {wrong[0]} does not hold whole numbers")
    if not np.array_equal(frame["row"], np.arange(len(frame))) or frame.duplicated(["image_id", "view"]).any():
        raise CacheError(f"{path}: the rows are not numbered one after the other, or stand there twice")
    return frame


def write_dataset_copy(path: Path, images: Sequence[LabelledImage]) -> None:
    """Write dataset.parquet: the lines of the dataset manifest for the images of a cache."""
    records = [
        (i.image_id, i.path, i.label, i.split, i.group, *(astuple(i.box) if i.box else (None,) * 4)) for i in images
    ]
    frame = pd.DataFrame(records, columns=DATASET_COLUMNS)
    _write(path, frame.astype(dict.fromkeys(DATASET_COLUMNS[5:], "Int64")))


def read_dataset_copy(path: Path) -> pd.DataFrame:
    """dataset.parquet as a DataFrame. Raises CacheError if it is damaged or names an image twice."""
    frame = _read(path, DATASET_COLUMNS)
    if frame["image_id"].duplicated().any():
        raise CacheError(f"{path}: an image is listed twice")
    for name in DATASET_COLUMNS[5:]:
        if not frame[name].dropna().map(_is_whole).all():
            raise CacheError(f"{path}: the column {name} does not hold whole numbers")
    strange = set(frame["split"]) - {*SPLITS, ""}
    if strange:
        raise CacheError(f"{path}: split {min(strange)!r:.80}: expected train, val, test or nothing")
    return frame


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()


def images_in(frame: pd.DataFrame) -> tuple[LabelledImage, ...]:
    """The lines of a dataset copy as records."""
    images = []
    for line in frame.to_dict("records"):
        sides = [line[name] for name in DATASET_COLUMNS[5:]]
        box = None if any(map(pd.isna, sides)) else Box(*map(int, sides))
        images.append(
            LabelledImage(
                path=line["path"],
                label=line["label"],
                split=line["split"],
                group=line["group"],
                image_id=line["image_id"],
                box=box,
            )
        )
    return tuple(images)


def rows_in(frame: pd.DataFrame) -> list[Row]:
    """The lines of a row table as records."""
    parameters = [name for name in frame.columns if name not in ROW_COLUMNS]
    # As lists of columns: records of the frame take four times as long, and caches have many rows.
    columns = [frame[name].to_numpy().tolist() for name in ("image_id", "view", "row_id", *parameters)]
    lines = zip(*columns, strict=True)
    return [
        Row(i, view, row, named_parameters(dict(zip(parameters, values, strict=True))))
        for i, view, row, *values in lines
    ]


def _write(path: Path, frame: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    with beside(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = _bounded_table(path)
        frame = table.to_pandas(use_threads=False)  # small; and a process may have no more
    except CacheError:
        raise
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        refuse_shortage(error, path)
        raise CacheError(f"{path}: cannot be read as Parquet: {error}") from error
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise CacheError(f"{path}: no column {', '.join(missing)}")
    twice = [name for name, times in Counter(table.column_names).items() if times > 1]
    if twice:
        raise CacheError(f"{path}: the column {twice[0]!r:.80} stands there twice")
    for column in TEXT_COLUMNS.intersection(columns):
        if not _is_text(table[column], frame[column]):
            raise CacheError(f"{path}: the column {column} does not hold text alone")
    for other in table.schema:
        if other.name not in columns:
            _check_parameter(path, other, frame[other.name])
    return pd.DataFrame(frame)


def _is_text(column: pa.ChunkedArray, values: pd.Series[Any]) -> bool:
    """Whether each value is text; the type says so where the column is as it is written here."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return not column.null_count
    return all(isinstance(value, str) for value in values.tolist())


def _bounded_table(path: Path) -> pa.Table:
    """The table in a file, each value in a place of its own. Raises CacheError for one that would fill the memory.

    By what its pages say, not its footer; and text is read as numbers of a dictionary before it is known how much.
    """
    size = path.stat().st_size
    said = sizes_of(path)
    _refuse_bombs(path, size, said.rows, said.bytes)
    schema = pq.read_schema(path)
    with pq.ParquetFile(path, read_dictionary=said.texts) as file:
        table = file.read(use_threads=False).replace_schema_metadata(None)
    table.validate(full=True)  # what follows trusts the numbers of dictionaries
    for place, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type):
            _refuse_bombs(path, size, table.num_rows, sum(map(_text_bytes, column.chunks)))
            table = table.set_column(place, schema.field(place).name, column.cast(schema.field(place).type))
    return table


def _text_bytes(texts: pa.DictionaryArray) -> int:
    """Bytes of all values of an array, each with its own text."""
    return pc.sum(pc.take(pc.binary_length(texts.dictionary), texts.indices)).as_py() or 0


def _refuse_bombs(path: Path, size: int, rows: int, data: int) -> None:
    """Raise CacheError for a small file that would fill the memory."""
    if rows > _MAX_ROWS_PER_BYTE * size or data > _MAX_GROWTH * size + _MAX_SMALL_BYTES:
        raise CacheError(f"{path}: {size} bytes that say to be {rows} rows, {data} bytes: more than tables are")


def _check_parameter(path: Path, field: pa.Field, values: pd.Series[Any]) -> None:
    """The columns besides are parameters of views: numbers, truth values and text, none of them missing."""
    kinds = (pa.types.is_boolean, pa.types.is_int64, pa.types.is_float64, pa.types.is_string, pa.types.is_large_string)
    if not any(is_kind(field.type) for is_kind in kinds):
        raise CacheError(f"{path}: the column {field.name!r:.80} is {field.type!s:.80}, expected numbers or text")
    if values.isna().any() or (pa.types.is_float64(field.type) and not np.isfinite(values).all()):
        raise CacheError(f"{path}: the column {field.name!r:.80} has cells without a value")
