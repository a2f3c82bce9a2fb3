"""The two tables of a cache, as Parquet: its rows, and its copy of the dataset manifest.

A table may have more rows than fit into memory as Python's objects: it is read and written a part at a time.
"""

from __future__ import annotations

import hashlib
import threading
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featcache.core.errors import CacheError, refuse_shortage
from featcache.core.files import beside
from featcache.core.recipe import FeatureSpace, canonical_json
from featcache.core.threads import in_threads
from featcache.datasets import SPLITS, LabelledImage
from featcache.images import ADDED_PARAMETERS, Box, named_parameters
from featcache.store.pages import Sizes, sizes_of
from featcache.store.row_keys import Ids, IdsBuilder, KeysBuilder, RowKeys, are_different, ids_of, texts_of
from featcache.store.row_names import row_ids, wrong_rows

ROW_COLUMNS = ["row", "image_id", "view", "row_id"]
DATASET_COLUMNS = ["image_id", "path", "label", "split", "group", "x_min", "y_min", "x_max", "y_max"]
_MAX_ROWS_PER_BYTE, _MAX_GROWTH, _MAX_SMALL_BYTES = 2, 200, 1 << 20
"""Real tables have one row a byte at most, and are a fortieth of what they hold at least."""
TEXT_COLUMNS = {"image_id", "row_id", "path", "label", "split", "group"}
_GROUP_ROWS = 1 << 20
"""Rows of a row group: what Arrow writes together."""
_PART_ROWS = 1 << 16
"""Rows that are in memory together."""


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


@runtime_checkable
class HasKeys(Protocol):
    """Rows that know which view of which image each is without being made."""

    def keys(self) -> RowKeys:
        """Of all rows, in their order."""


def keys_of(rows: Sequence[Row]) -> RowKeys:
    """Which view of which image each row is."""
    return rows.keys() if isinstance(rows, HasKeys) else RowKeys.of((row.image_id, row.view) for row in rows)


class TableFile:
    """A Parquet file, read a part at a time, each value checked to be of its kind.

    Raises CacheError for one that is damaged, lacks some of `columns`, or would fill the memory. How much it holds is
    told by its pages, not its footer; and text is read as numbers of a dictionary before it is known how much it is.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self._columns = path, columns
        with self._explaining():
            self._bytes, self._said = _measured(path)
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                self.group_rows = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
        self._check_schema(schema)
        self.schema = schema
        self._kinds = {field.name: field.type for field in schema}

    def __len__(self) -> int:
        return sum(self.group_rows)

    def batches(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None, encoded: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """The rows, some ten thousand at a time.

        columns, groups : which ones; all by default
        encoded : leave text that lies in a dictionary as it is
        """
        names = list(self._kinds) if columns is None else list(columns)
        texts = 0
        for some in self._together(range(len(self.group_rows)) if groups is None else groups):
            for part in self._parts_of(some, names):
                texts += sum(_text_bytes(column) for column in part.columns if pa.types.is_dictionary(column.type))
                _refuse_bombs(self.path, self._bytes, 0, texts)
                for name, column in zip(names, part.columns, strict=True):
                    self._check_values(name, column)
                yield part if encoded else self._decoded(part)
            give_back()

    def _together(self, groups: Iterable[int]) -> Iterator[list[int]]:
        """Row groups, a million rows at a time: Arrow lets go of what it has read only when the file is closed."""
        some, rows = list[int](), 0
        for group in groups:
            some.append(group)
            rows += self.group_rows[group]
            if rows >= _GROUP_ROWS:
                yield some
                some, rows = [], 0
        if some:
            yield some

    def _parts_of(self, groups: Sequence[int], names: list[str]) -> Iterator[pa.RecordBatch]:
        """The parts of some row groups."""
        with (
            self._explaining(),
            pq.ParquetFile(self.path, read_dictionary=self._said.texts, buffer_size=1 << 16) as file,
        ):
            for part in file.iter_batches(_PART_ROWS, row_groups=list(groups), columns=names, use_threads=False):
                part.validate(full=True)  # what follows trusts the numbers of dictionaries
                yield part.select(names)

    def _decoded(self, part: pa.RecordBatch) -> pa.RecordBatch:
        with self._explaining():
            names = part.schema.names
            columns = [pc.cast(part.column(name), _plain(self._kinds[name])) for name in names]
            return pa.RecordBatch.from_arrays(columns, names)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All of it in memory."""
        names = list(self._kinds) if columns is None else list(columns)
        kinds = pa.schema([(name, _plain(self._kinds[name])) for name in names])
        return pa.Table.from_batches(self.batches(names), kinds)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except CacheError:
            raise
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            refuse_shortage(error, self.path)
            raise CacheError(f"{self.path}: cannot be read as Parquet: {error}") from error

    def _check_schema(self, schema: pa.Schema) -> None:
        missing = [column for column in self._columns if column not in schema.names]
        if missing:
            raise CacheError(f"{self.path}: no column {', '.join(missing)}")
        twice = [name for name, times in Counter(schema.names).items() if times > 1]
        if twice:
            raise CacheError(f"{self.path}: the column {twice[0]!r:.80} stands there twice")
        for field in schema:
            if field.name in self._columns:
                if field.name in TEXT_COLUMNS and not _is_text(field.type):
                    raise CacheError(f"{self.path}: the column {field.name} does not hold text alone")
            elif not any(is_kind(field.type) for is_kind in _PARAMETERS):
                raise CacheError(
                    f"{self.path}: the column {field.name!r:.80} is {field.type!s:.80}, expected numbers or text"
                )

    def _check_values(self, name: str, column: pa.Array) -> None:
        """No text is missing; and no parameter of a view, of which the columns besides are."""
        if name in self._columns:
            if name in TEXT_COLUMNS and column.null_count:
                raise CacheError(f"{self.path}: the column {name} does not hold text alone")
            if name in ("row", "view") and column.null_count:
                raise CacheError(f"{self.path}: the column {name} does not hold whole numbers")
        elif column.null_count or (
            pa.types.is_floating(column.type) and not np.isfinite(column.to_numpy(zero_copy_only=False)).all()
        ):
            raise CacheError(f"{self.path}: the column {name!r:.80} has cells without a value")


def give_back() -> None:
    """Have Arrow give memory that it does not use to the operating system: it keeps what a large table took."""
    pa.default_memory_pool().release_unused()


_PARAMETERS = (
    *(pa.types.is_boolean, pa.types.is_int64, pa.types.is_float64),
    *(pa.types.is_string, pa.types.is_large_string),
)
"""What parameters of views are: truth values, numbers and text."""


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind)) or (
        pa.types.is_dictionary(kind) and _is_text(kind.value_type)
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    """The kind of a column in memory: text never as a dictionary, and of any length."""
    return pa.large_string() if _is_text(kind) else kind


def _measured(path: Path) -> tuple[int, Sizes]:
    size = path.stat().st_size
    said = sizes_of(path, most_text=_MAX_GROWTH * size + _MAX_SMALL_BYTES)
    _refuse_bombs(path, size, said.rows, said.bytes)
    return size, said


def _text_bytes(texts: pa.DictionaryArray) -> int:
    """Bytes of all values of an array, each with its own text."""
    return pc.sum(pc.take(pc.binary_length(texts.dictionary), texts.indices)).as_py() or 0


def _refuse_bombs(path: Path, size: int, rows: int, data: int) -> None:
    """Raise CacheError for a small file that would fill the memory."""
    if rows > _MAX_ROWS_PER_BYTE * size or data > _MAX_GROWTH * size + _MAX_SMALL_BYTES:
        raise CacheError(f"{path}: {size} bytes that say to be {rows} rows, {data} bytes: more than tables are")


# Rows


class LazyRows(Sequence[Row]):
    """Rows of which each is made when it is asked for."""

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._at(number)

    @abstractmethod
    def _at(self, number: int) -> Row:
        """The row of a number that there is."""


class StoredRows(LazyRows):
    """The rows of a table on the disk: those last asked for, and the ones beside them, are in memory.

    space : with the row_ids of another feature space
    """

    def __init__(self, path: Path, space: FeatureSpace | None = None) -> None:
        self._file, self._space = TableFile(path, ROW_COLUMNS), space
        self._starts = np.cumsum([0, *self._file.group_rows])
        self._reading: Iterator[pa.RecordBatch] = iter(())
        self._group, self._part, self._rows = -1, range(0), list[Row]()
        self._looking = threading.Lock()

    def __len__(self) -> int:
        return len(self._file)

    def _at(self, number: int) -> Row:
        with self._looking:
            if number not in self._part:
                self._go_to(number)
            return self._rows[number - self._part.start]

    def __iter__(self) -> Iterator[Row]:
        for part in self.parts():
            yield from _made(part)

    def keys(self) -> RowKeys:
        """Which view of which image each row is."""
        return read_keys(self._file.path)

    def parts(self, groups: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows as parts of a table, in row groups or in all of them."""
        for part in self._parts(range(len(self._file.group_rows)) if groups is None else groups):
            if self._space is None:
                yield part
            else:
                names = pa.array(row_ids(self._space, part, besides={*ROW_COLUMNS}), pa.large_string())
                yield part.set_column(part.schema.get_field_index("row_id"), "row_id", names)

    def _parts(self, groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """As they stand in the table."""
        return self._file.batches(groups=groups)

    def _go_to(self, number: int) -> None:
        """Have a row in memory. Who goes forward reads each part once."""
        group = int(np.searchsorted(self._starts, number, "right")) - 1
        if group != self._group or number < self._part.start:
            start = int(self._starts[group])
            self._group, self._reading, self._part = group, self.parts([group]), range(start, start)
        while self._part.stop <= number:
            part = next(self._reading)
            self._part = range(self._part.stop, self._part.stop + len(part))
        self._rows = _made(part)


class ChosenRows(StoredRows):
    """Some of the rows of a table on the disk: those with increasing `numbers`."""

    def __init__(self, path: Path, numbers: NDArray[np.intp], *, space: FeatureSpace | None = None) -> None:
        super().__init__(path, space)
        self._numbers, self._first_of = numbers, self._starts
        self._starts = np.searchsorted(numbers, self._starts)

    def __len__(self) -> int:
        return len(self._numbers)

    def keys(self) -> RowKeys:
        """Which view of which image each of them is."""
        return read_keys(self._file.path).chosen(self._numbers)

    def _parts(self, groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
        for group in groups:
            start = int(self._first_of[group])
            for part in self._file.batches(groups=[group]):
                first, last = np.searchsorted(self._numbers, [start, start + len(part)])
                if first < last:
                    yield part.take(pa.array(self._numbers[first:last] - start))
                start += len(part)


class RenamedRows(StoredRows):
    """The rows of a table on the disk under other image_ids, and so other row_ids.

    keys : which view of which image each row is, with these ids
    """

    def __init__(self, path: Path, keys: RowKeys, *, space: FeatureSpace) -> None:
        super().__init__(path, space)
        self._keys = keys

    def keys(self) -> RowKeys:
        """Which view of which image each row is."""
        return self._keys

    def _parts(self, groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
        for group in groups:
            start = int(self._starts[group])
            for part in self._file.batches(groups=[group]):
                of = self._keys.images[self._keys.image[start : start + len(part)]]
                named = pa.array(texts_of(of), pa.large_string())
                yield part.set_column(part.schema.get_field_index("image_id"), "image_id", named)
                start += len(part)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows.parquet: row, image_id, view, row_id, then a column a view parameter.

    Which parameters there are is known when all rows were seen: where later ones have more, the table is begun anew.
    """
    names: dict[str, None] = {}
    with beside(path) as partial:
        while not _write_parts(partial, rows, names):
            pass


def _write_parts(path: Path, rows: Sequence[Row], names: dict[str, None]) -> bool:
    """Write a table of rows that have these parameters. False where some have others, which then are among them."""
    parts = rows.parts() if isinstance(rows, StoredRows) else _parts_of(rows, names)
    first = next(parts, None)
    if first is None:
        _write(path, pd.DataFrame({"row": []}))
        return True
    schema = first.schema if "row" in first.schema.names else first.schema.insert(0, pa.field("row", pa.int64()))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        start, held = 0, _numbered(first, 0, schema)
        for part in parts:
            if not set(part.schema.names) <= set(schema.names):
                return False
            held = pa.concat_tables([held, _numbered(part, start + len(held), schema)])
            if len(held) >= _GROUP_ROWS:
                writer.write_table(held[:_GROUP_ROWS], row_group_size=_GROUP_ROWS)
                start, held = start + _GROUP_ROWS, held[_GROUP_ROWS:]
        if len(held):
            writer.write_table(held, row_group_size=_GROUP_ROWS)
    return True


def _numbered(part: pa.RecordBatch, start: int, schema: pa.Schema) -> pa.Table:
    """A part with its rows' numbers."""
    numbers = pa.array(np.arange(start, start + len(part)))
    columns = [numbers if name == "row" else part.column(name) for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)


def _parts_of(rows: Iterable[Row], names: dict[str, None]) -> Iterator[pa.RecordBatch]:
    """Rows as parts of a table. names : of their parameters, to which all are added that rows have"""
    there = iter(rows)
    while part := list(islice(there, _PART_ROWS)):
        names.update(dict.fromkeys(name for row in part for name in row.parameters))
        usual = {name: value for name, value in ADDED_PARAMETERS.items() if name in names}
        columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in part] for name in ROW_COLUMNS[1:]}
        for name in (*usual, *(name for name in names if name not in usual)):
            columns[name] = [row.parameters.get(name, usual.get(name)) for row in part]
        yield pa.RecordBatch.from_arrays([_column(values) for values in columns.values()], list(columns))


def _column(values: list[Any]) -> pa.Array:
    """As pandas would store them: numbers that are whole and others alike as float64, a gap as NaN."""
    kinds = set(map(type, values))
    if kinds == {str}:
        return pa.array(values, pa.large_string())
    if float in kinds and kinds <= {int, float}:
        return pa.array(list(map(float, values)))
    return pa.array(values, from_pandas=True)


def read_keys(path: Path) -> RowKeys:
    """Which view of which image each row of rows.parquet is. Parameters and row_ids are not looked at.

    Raises CacheError if it is damaged, if its rows are not 0, 1, 2, ..., or if one stands there twice.
    """
    file, builder, start = TableFile(path, ROW_COLUMNS), KeysBuilder(), 0
    _refuse_fractions(file)
    for part in file.batches(("row", "image_id", "view"), encoded=True):
        row, image_id, view = part.columns
        _refuse_gaps(path, row, start)
        builder.add(image_id, view.to_numpy())
        start += len(part)
    keys = builder.done()
    if keys.repeats():
        raise _disordered(path)
    return keys


def read_rows(path: Path) -> pd.DataFrame:
    """rows.parquet as a DataFrame. Raises CacheError if it is damaged or its rows are not 0, 1, 2, ...

    Views of one image whose parameters happen to be the same share a row_id: they are rows of their own.
    """
    file = TableFile(path, ROW_COLUMNS)
    _refuse_fractions(file)
    table = file.table()
    builder = KeysBuilder()
    for part in table.to_batches():
        builder.add(part.column("image_id"), part.column("view").to_numpy())
    _refuse_gaps(path, table["row"], 0)
    if builder.done().repeats():
        raise _disordered(path)
    return _frame(table)


def names_of(rows: Sequence[Row]) -> Ids:
    """The row_id of each row; see `featcache.store.row_keys`."""
    names, there = IdsBuilder(), iter(() if isinstance(rows, StoredRows) else rows)
    for stored in rows.parts() if isinstance(rows, StoredRows) else ():
        names.add(ids_of(stored.column("row_id")))
    while part := list(islice(there, _PART_ROWS)):
        names.add(ids_of(pa.array([row.row_id for row in part], pa.large_string())))
    return names.done()


def read_names(path: Path) -> Ids:
    """The row_id of each row of rows.parquet, which is checked as by `read_keys`."""
    read_keys(path)
    return names_of(StoredRows(path))


def misnamed_rows(path: Path, space: FeatureSpace) -> list[int]:
    """The rows of a table whose row_id is not that of their image, view and feature space.

    Raises CacheError if it is damaged.
    """
    wrong, start = list[int](), 0

    def wrong_of(part: pa.RecordBatch) -> tuple[int, list[int]]:
        return len(part), wrong_rows(space, part, besides={*ROW_COLUMNS})

    for rows, places in in_threads(wrong_of, TableFile(path, ROW_COLUMNS).batches()):
        wrong += [start + place for place in places]
        start += rows
    return wrong


def _refuse_fractions(file: TableFile) -> None:
    wrong = [name for name in ("row", "view") if not pa.types.is_int64(file.schema.field(name).type)]
    if wrong:
        raise CacheError(f"{file.path}: the column {wrong[0]} does not hold whole numbers")


def _refuse_gaps(path: Path, row: pa.Array | pa.ChunkedArray, start: int) -> None:
    if row.null_count or not np.array_equal(row.to_numpy(), np.arange(start, start + len(row))):
        raise _disordered(path)


def _disordered(path: Path) -> CacheError:
    return CacheError(f"{path}: the rows are not numbered one after the other, or stand there twice")


def rows_in(frame: pd.DataFrame) -> list[Row]:
    """The lines of a row table as records."""
    parameters = [name for name in frame.columns if name not in ROW_COLUMNS]
    # As lists of columns: records of the frame take four times as long, and caches have many rows.
    columns = [frame[name].to_numpy().tolist() for name in ("image_id", "view", "row_id", *parameters)]
    return _records(parameters, columns)


def _made(part: pa.RecordBatch) -> list[Row]:
    parameters = [name for name in part.schema.names if name not in ROW_COLUMNS]
    return _records(parameters, [part.column(n).to_pylist() for n in ("image_id", "view", "row_id", *parameters)])


def _records(parameters: Sequence[str], columns: Sequence[Sequence[Any]]) -> list[Row]:
    lines = zip(*columns, strict=True)
    return [
        Row(i, view, row, named_parameters(dict(zip(parameters, values, strict=True))))
        for i, view, row, *values in lines
    ]


# The dataset copy


def write_dataset_copy(path: Path, images: Sequence[LabelledImage]) -> None:
    """Write dataset.parquet: the lines of the dataset manifest for the images of a cache."""
    records = [
        (i.image_id, i.path, i.label, i.split, i.group, *(astuple(i.box) if i.box else (None,) * 4)) for i in images
    ]
    frame = pd.DataFrame(records, columns=DATASET_COLUMNS)
    with beside(path) as partial:
        _write(partial, frame.astype(dict.fromkeys(DATASET_COLUMNS[5:], "Int64")))


def write_lines(path: Path, parts: Iterable[pa.RecordBatch]) -> None:
    """Write a dataset copy of parts that have its columns."""
    texts = [(name, pa.large_string()) for name in DATASET_COLUMNS[:5]]
    schema = pa.schema([*texts, *((name, pa.int64()) for name in DATASET_COLUMNS[5:])])
    with beside(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for part in parts:
            columns = [pc.cast(part.column(field.name), field.type) for field in schema]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema), row_group_size=_GROUP_ROWS)


def chosen_lines(path: Path, chosen: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    """Those lines of a dataset copy that are chosen, (lines,), a part at a time."""
    start = 0
    for part in TableFile(path, DATASET_COLUMNS).batches(DATASET_COLUMNS):
        yield part.filter(pa.array(chosen[start : start + len(part)]))
        start += len(part)


def digest_of_lines(path: Path, label_separator: str) -> str:
    """`featcache.datasets.Dataset.digest` of a dataset copy, of which the texts are in memory, and no object a line."""
    names = [*DATASET_COLUMNS[1:], DATASET_COLUMNS[0]]
    table, keys = TableFile(path, DATASET_COLUMNS).table(names), {}
    for name in names:
        if name not in TEXT_COLUMNS:
            table = table.set_column(names.index(name), name, pc.cast(table[name], pa.int64()))
        keys[name] = table[name] if name in TEXT_COLUMNS else pc.fill_null(table[name], -1)
    order = pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in names])
    digest = hashlib.sha256(b"[")
    begun = bool(label_separator)
    if begun:
        digest.update(canonical_json(["label_separator", label_separator]).encode())
    for start in range(0, len(order), _PART_ROWS):
        lines = table.take(order[start : start + _PART_ROWS])
        cells = zip(*(lines.column(name).to_pylist() for name in names), strict=True)
        digest.update(b"," if begun else b"")
        digest.update(canonical_json([list(line) for line in cells])[1:-1].encode())
        begun = True
    digest.update(b"]")
    return digest.hexdigest()


def read_dataset_copy(path: Path) -> pd.DataFrame:
    """dataset.parquet as a DataFrame. Raises CacheError if it is damaged or names an image twice."""
    read_lines(path)
    return _frame(TableFile(path, DATASET_COLUMNS).table())


@dataclass(frozen=True)
class Coded:
    """A column of few different texts: `values[number[i]]` is the text of line i. number : (n,), int32"""

    values: tuple[str, ...]
    number: NDArray[np.int32]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Coded:
        """Of a column of a DataFrame."""
        number, values = pd.factorize(np.asarray(texts, object))
        return cls(tuple(values), number.astype(np.int32))


@dataclass(frozen=True)
class Lines:
    """What a dataset copy says of each image for training. ids : see `featcache.store.row_keys`"""

    ids: Ids
    label: Coded
    split: Coded


def read_lines(path: Path) -> Lines:
    """The images, labels and splits of dataset.parquet. The boxes are looked at, too.

    Raises CacheError if it is damaged or names an image twice.
    """
    file, ids = TableFile(path, DATASET_COLUMNS), IdsBuilder()
    label, split = _Encoder(), _Encoder()
    for part in file.batches(("image_id", "label", "split", *DATASET_COLUMNS[5:]), encoded=True):
        ids.add(ids_of(part.column("image_id")))
        label.add(part.column("label"))
        split.add(part.column("split"))
        for name in DATASET_COLUMNS[5:]:
            if not _are_whole(part.column(name)):
                raise CacheError(f"{path}: the column {name} does not hold whole numbers")
    found = Lines(ids.done(), label.done(), split.done())
    if not are_different(found.ids):
        raise CacheError(f"{path}: an image is listed twice")
    strange = set(found.split.values) - {*SPLITS, ""}
    if strange:
        raise CacheError(f"{path}: split {min(strange)!r:.80}: expected train, val, test or nothing")
    return found


def read_texts(path: Path, name: str) -> pd.Series[str]:
    """A column of text of dataset.parquet."""
    return _frame(TableFile(path, DATASET_COLUMNS).table((name,)))[name]


class _Encoder:
    """Makes `Coded` of parts of a column."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._parts: list[NDArray[np.int32]] = []

    def add(self, texts: pa.Array) -> None:
        encoded = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
        values = encoded.dictionary.to_pylist()
        of = np.array([self._numbers.setdefault(value, len(self._numbers)) for value in values], np.int32)
        self._parts.append(of[encoded.indices.to_numpy(zero_copy_only=False)])

    def done(self) -> Coded:
        return Coded(tuple(self._numbers), np.concatenate([np.empty(0, np.int32), *self._parts]))


def _are_whole(column: pa.Array) -> bool:
    """Whether all numbers that there are are whole ones."""
    if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        return True
    if not pa.types.is_floating(column.type):
        return bool(column.null_count == len(column))
    values = column.drop_null().to_numpy(zero_copy_only=False)
    return bool((np.isfinite(values) & (values == np.trunc(values))).all())


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


def _frame(table: pa.Table) -> pd.DataFrame:
    return pd.DataFrame(table.to_pandas(use_threads=False))  # small; and a process may have no more


def _write(path: Path, frame: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, path, compression="zstd")
