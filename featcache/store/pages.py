"""What a Parquet file unpacks to, by the headers of its pages: its footer may say otherwise.

Footer and headers are structs in the compact protocol of Thrift, of which a few fields are read here: FileMetaData and
PageHeader in parquet.thrift of apache/parquet-format. (pyarrow shows no page, and ends the process on some footers.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

_MAGIC = b"PAR1"
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_ABOUT = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""Kinds of pages, and the field of PageHeader that describes each."""
_ENCODING = {_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}
"""Where the description says how the values are written."""
_PLAIN = {0, 2, 3, 4, 8}
"""Values one after the other, or numbers of a dictionary; of others, few bytes could be much text."""
_TEXT = 6
_TYPES = {0, 1, 2, 4, 5, _TEXT}
"""Truth values, numbers and text; not INT96, and no bytes of a length that the footer gives."""
_REPEATED = 2
_MAX_COLUMNS = 256
_HEADER_BYTES = 1 << 12
_DICTIONARY_BYTES, _LENGTH_BYTES = 2 << 20, 4
_CODECS = {0: "uncompressed", 1: "snappy", 2: "gzip", 6: "zstd"}
"""Compressions by their numbers in a footer."""
_MAX_DEPTH = 8
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


@dataclass(frozen=True)
class Sizes:
    """rows : of all row groups; bytes : of all pages, unpacked

    texts : columns of text that are to be read as numbers of dictionaries: all values lie in such, or it is not
        known how much text they are
    """

    rows: int
    bytes: int
    texts: tuple[str, ...]


def sizes_of(path: Path, *, most_text: int) -> Sizes:
    """Look at every page of a flat table, by its header alone, and at the lengths in its dictionaries.

    most_text : bytes that a column of text may be where each value has its own


    Raises ValueError where the pages are not those of the footer, or where a value in them may be any number of values.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        footer = _footer(file, size)
        columns = [_Struct(fields) for fields in footer.list(2)[1:]]
        if not 0 < len(columns) <= _MAX_COLUMNS:
            raise ValueError(f"{len(columns)} columns")
        if any(c.get(5) or c.number(1) not in _TYPES or c.get(3) == _REPEATED for c in columns):
            raise ValueError("a column that does not hold a number or a text in each row")
        rows = unpacked = 0
        texts: list[float] = [0.0] * len(columns)
        in_dictionary = [True] * len(columns)
        for group in map(_Struct, footer.list(4)):
            chunks = [_Struct(fields).struct(3) for fields in group.list(1) if 1 not in fields]  # in no other file
            if len(chunks) != len(columns):
                raise ValueError("row groups of other columns")
            rows += group.number(3)
            for number, chunk in enumerate(chunks):
                found = _Pages(file, chunk, size=size)
                unpacked += found.unpacked(group.number(3))
                if columns[number].number(1) == _TEXT:
                    texts[number] += found.text_bytes
                    in_dictionary[number] &= not found.plain_bytes
    names = [
        cast("bytes", column.get(4, b"")).decode()
        for column, n_bytes, encoded in zip(columns, texts, in_dictionary, strict=True)
        if column.number(1) == _TEXT and (encoded or n_bytes > most_text)
    ]
    return Sizes(rows, unpacked, tuple(names))


class _Struct(dict[int, Any]):
    """A struct by the numbers of its fields. Raises ValueError where one is not there, or of another kind."""

    def number(self, field: int) -> int:
        return cast("int", self._of(field, int))

    def list(self, field: int) -> list[dict[int, Any]]:
        found = self._of(field, list)
        if not all(isinstance(item, dict) for item in found):
            raise ValueError("a list of what it should not hold")
        return cast("list[dict[int, Any]]", found)

    def struct(self, field: int) -> _Struct:
        return _Struct(self._of(field, dict))

    def _of(self, field: int, kind: type) -> Any:
        if not isinstance(value := self.get(field), kind):
            raise ValueError("a header that says too little")
        return value


def _footer(file: BinaryIO, size: int) -> _Struct:
    file.seek(max(0, size - 8))
    end = file.read()
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or length > size - 12:
        raise ValueError("no Parquet file, or not all of it")
    file.seek(size - 8 - length)
    return _Reader(file.read(length), 0).struct()


class _Pages:
    """The pages of one column in one row group, of which the headers are read.

    plain_bytes : of the pages whose values are no numbers of a dictionary, as far as `unpacked` has seen
    """

    def __init__(self, file: BinaryIO, chunk: _Struct, *, size: int) -> None:
        start, length = chunk.number(9), chunk.number(7)
        if 11 in chunk:
            start = min(start, chunk.number(11) or start)
        if start < 0 or length < 0 or start + length > size:
            raise ValueError("a column outside of the file")
        self._file, self._place, self._end = file, start, start + length
        self._codec = _CODECS.get(chunk.number(4), "")
        self.plain_bytes = self._encoded = 0
        self._longest: float = 0.0

    @property
    def text_bytes(self) -> float:
        """Bytes of a column of text, at most, where each value has its own; infinite where nobody can say."""
        return self.plain_bytes + (self._encoded * (self._longest + _LENGTH_BYTES) if self._encoded else 0)

    def unpacked(self, rows: int) -> int:
        """Bytes that all of them unpack to."""
        total = values = 0
        while self._place < self._end:
            header, length = self._header()
            kind, unpacked, packed = header.number(1), header.number(2), header.number(3)
            if kind not in _ABOUT or min(unpacked, packed) < 0:
                raise ValueError("a page that holds no values")
            about = header.struct(_ABOUT[kind])
            if about.number(_ENCODING[kind]) not in _PLAIN:
                raise ValueError("a page in an encoding that tables of a cache have not")
            if kind != _DICTIONARY:
                values += about.number(1)
            elif about.number(1) > unpacked:
                raise ValueError("a dictionary of more values than bytes")
            if kind == _DICTIONARY:
                self._longest = max(self._longest, self._longest_text(self._place + length, packed, unpacked))
            elif about.number(_ENCODING[kind]) == 0:
                self.plain_bytes += unpacked
            else:
                self._encoded += about.number(1)
            total += unpacked
            self._place += length + packed
        if self._place != self._end or values != rows:
            raise ValueError(f"{values} values in the pages of a column of {rows} rows")
        return total

    def _longest_text(self, place: int, packed: int, unpacked: int) -> float:
        """The longest text of a dictionary; infinite where it is none, or larger than Arrow makes them."""
        if unpacked > _DICTIONARY_BYTES or not self._codec:
            return math.inf
        self._file.seek(place)
        data = self._file.read(packed)
        if self._codec != "uncompressed":
            data = pa.decompress(data, unpacked, self._codec, asbytes=True)
        longest = place = 0
        while place + _LENGTH_BYTES <= len(data):
            length = int.from_bytes(data[place : place + _LENGTH_BYTES], "little")
            longest, place = max(longest, length), place + _LENGTH_BYTES + length
        return longest if place == len(data) else math.inf

    def _header(self) -> tuple[_Struct, int]:
        """The header at this place, and its length: it is short, unless long texts are the least and the largest."""
        for most in (_HEADER_BYTES, self._end - self._place):
            self._file.seek(self._place)
            reader = _Reader(self._file.read(min(most, self._end - self._place)), 0)
            try:
                return reader.struct(), reader.place
            except ValueError:
                if most == self._end - self._place:
                    raise
        raise AssertionError


class _Reader:
    """Thrift's compact protocol. Raises ValueError for what is none."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self.place = data, place

    def struct(self, depth: int = 0) -> _Struct:
        """A struct's numbers, bytes, lists and structs; all else is passed over."""
        found, field = _Struct(), 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            found[field] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("a header without end")
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind in (_LIST, _SET):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(count)]  # each takes a byte, of those that are
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError("a header with what no header has")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        start, self.place = self.place, self.place + count
        if self.place > len(self._data):
            raise ValueError("a page that is cut off")
        return self._data[start : self.place]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number without end")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
