"""Whether the rows of a table have the row_ids that image, view parameters and feature space give, many at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featcache.core.recipe import FeatureSpace, row_id
from featcache.images import ADDED_PARAMETERS, named_parameters
from featcache.store.row_keys import are_alike, ids_of, texts_of

_IN_DIGITS = (1e-4, 1e15)
"""Between these, numbers have the same digits in Arrow and in Python, which writes others with an exponent."""


def row_ids(space: FeatureSpace, rows: pa.RecordBatch, *, besides: set[str]) -> list[str]:
    """`featcache.core.recipe.row_id` of the rows in a part of a table.

    besides : columns that are no parameters of views
    """
    return texts_of(_digests(space, rows, besides))


def _digests(space: FeatureSpace, rows: pa.RecordBatch, besides: set[str]) -> NDArray[np.uint8]:
    """The row_ids as bytes, (n, 32)."""
    names = sorted(name for name in rows.schema.names if name not in besides)
    found = np.empty((len(rows), 32), np.uint8)
    for places, added in _alike(rows, names):
        some = rows if len(places) == len(rows) else rows.take(pa.array(places))
        of = [name for name in names if name not in ADDED_PARAMETERS or name in added]
        found[places] = _hashed(_texts(space, some, of))
    return found


def wrong_rows(space: FeatureSpace, rows: pa.RecordBatch, *, besides: set[str]) -> list[int]:
    """Places of the rows in a part of a table whose row_id is another than `row_ids` gives."""
    said, names = rows.column("row_id"), [name for name in rows.schema.names if name not in besides]
    differing = np.flatnonzero(~are_alike(ids_of(said), _digests(space, rows, besides))).tolist()
    return [place for place in differing if said[place].as_py() != _row_id(space, rows, names, place)]


def _alike(rows: pa.RecordBatch, names: list[str]) -> Iterator[tuple[NDArray[np.intp], set[str]]]:
    """Rows that are named with the same parameters: their places, and which of `ADDED_PARAMETERS` these are."""
    added = [name for name in names if name in ADDED_PARAMETERS]
    pattern = np.zeros(len(rows), np.int64)
    for bit, name in enumerate(added):
        pattern |= _differs(rows.column(name), ADDED_PARAMETERS[name]).astype(np.int64) << bit
    for number in np.unique(pattern).tolist():
        yield np.flatnonzero(pattern == number), {name for bit, name in enumerate(added) if number >> bit & 1}


def _differs(column: pa.Array, usual: float) -> NDArray[np.bool_]:
    if _is_text(column.type):
        return np.ones(len(column), bool)
    return np.asarray(column.to_numpy(zero_copy_only=False) != usual)


def _texts(space: FeatureSpace, rows: pa.RecordBatch, names: list[str]) -> pa.Array:
    """What the row_id of each row is a digest of: canonical JSON of [image_id, parameters, feature space]."""
    parts: list[Any] = ["[", _quoted(rows.column("image_id")), ",{"]
    for number, name in enumerate(names):
        parts += [("," if number else "") + json.dumps(name, ensure_ascii=False) + ":", _json_of(rows.column(name))]
    parts += [f'}},"{space.digest}"]']
    merged: list[Any] = []
    for part in parts:
        if merged and isinstance(part, str) and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return _put_together(*merged)


def _put_together(*parts: Any) -> pa.Array:
    """Texts, one or a column of them each, as one text a row."""
    kind = pa.large_string()
    return pc.binary_join_element_wise(
        *(pa.scalar(part, kind) if isinstance(part, str) else part for part in parts), pa.scalar("", kind)
    )


def _quoted(texts: pa.Array) -> pa.Array:
    """Texts as JSON."""
    texts = pc.cast(texts, pa.large_string())
    if pc.all(pc.match_substring_regex(texts, r"\A[0-9A-Za-z._-]*\z")).as_py():
        return _put_together('"', texts, '"')
    return pa.array([json.dumps(text, ensure_ascii=False) for text in texts.to_pylist()], pa.large_string())


def _json_of(column: pa.Array) -> Any:
    """The values of a column as JSON: one text where all are the same, else a column of texts."""
    values = column.to_numpy(zero_copy_only=False)
    if (values == values[0]).all() and (
        values[0] or not pa.types.is_floating(column.type)
    ):  # 0.0 and -0.0 are the same
        return json.dumps(column[0].as_py(), ensure_ascii=False)
    if pa.types.is_boolean(column.type):
        return pc.cast(column, pa.large_string())
    if _is_text(column.type):
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        quoted = [json.dumps(text, ensure_ascii=False) for text in encoded.dictionary.to_pylist()]
        return pc.take(pa.array(quoted, pa.large_string()), encoded.indices)
    texts = pc.cast(column, pa.large_string())
    if not pa.types.is_floating(column.type):
        return texts
    whole = values == np.trunc(values)
    texts = pc.if_else(pa.array(whole), _put_together(texts, ".0"), texts)
    least, most = _IN_DIGITS
    odd = (np.abs(values) >= most) | ((np.abs(values) < least) & (values != 0))
    if odd.any():
        said = [json.dumps(value) if is_odd else None for value, is_odd in zip(values.tolist(), odd, strict=True)]
        texts = pc.coalesce(pa.array(said, pa.large_string()), texts)
    return texts


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _hashed(texts: pa.Array) -> NDArray[np.uint8]:
    """The SHA-256 of each text, (n, 32)."""
    sha256, data = hashlib.sha256, pc.cast(texts, pa.large_binary()).to_pylist()
    return np.frombuffer(b"".join([sha256(text).digest() for text in data]), np.uint8).reshape(-1, 32)


def _row_id(space: FeatureSpace, rows: pa.RecordBatch, names: list[str], place: int) -> str:
    """The same of one row, by its definition."""
    values = {name: rows.column(name)[place].as_py() for name in names}
    return row_id(space, rows.column("image_id")[place].as_py(), parameters=named_parameters(values))
