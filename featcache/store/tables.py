"""The two tables of a cache, as Parquet: its rows, and its copy of the dataset manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from featcache.dataset.manifest import LabelledImage
from featcache.errors import CacheError
from featcache.files import beside

ROW_COLUMNS = ["row", "image_id", "view", "row_id"]
DATASET_COLUMNS = ["image_id", "path", "label", "split", "group", "x_min", "y_min", "x_max", "y_max"]
TEXT_COLUMNS = {"image_id", "row_id", "path", "label", "split", "group"}


@dataclass(frozen=True)
class Row:
    """One (image, view) of a cache.

    row_id : names the value: image, view parameters and feature space (`featcache.recipe.row_id`)
    parameters : the view's own
    """

    image_id: str
    view: int
    row_id: str
    parameters: Mapping[str, Any]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows.parquet: row, image_id, view, row_id, then a column a view parameter."""
    frame = pd.DataFrame([{"image_id": r.image_id, "view": r.view, "row_id": r.row_id, **r.parameters} for r in rows])
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
    return frame


def _write(path: Path, frame: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    with beside(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        frame = pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise CacheError(f"{path}: cannot be read as Parquet: {error}") from error
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise CacheError(f"{path}: no column {', '.join(missing)}")
    for column in TEXT_COLUMNS.intersection(columns):
        if not all(isinstance(value, str) for value in frame[column]):
            raise CacheError(f"{path}: the column {column} does not hold text alone")
    return pd.DataFrame(frame)
