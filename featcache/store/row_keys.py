"""Which view of which image each row of a cache is, as arrays: what names a cache is computed from them.

An image_id of 64 hex digits takes 32 bytes here, once for each image, and a row takes twelve more. Python's own objects
take a thousand.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featcache.core.recipe import Recipe, cache_digest

_DIGITS = 64
_PART_ROWS = 1 << 17
_MOST = 1 << 62

Ids = NDArray[Any]
"""Names of m images or rows: (m, 32), uint8, of names of 64 hex digits; else (m,), of Python's texts."""


@dataclass(frozen=True)
class RowKeys:
    """(image, view) of n rows.

    images : every image once, in the order of their first rows
    image : (n,), int32: which of the images
    view : (n,), int32 or int64
    """

    images: Ids
    image: NDArray[np.int32]
    view: NDArray[np.integer[Any]]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, int]]) -> RowKeys:
        """Of rows as pairs of image_id and view."""
        builder, pairs = KeysBuilder(), iter(pairs)
        while part := list(islice(pairs, _PART_ROWS)):
            ids, views = zip(*part, strict=True)
            builder.add(pa.array(ids, pa.string()), np.array(views, np.int64))
        return builder.done()

    @classmethod
    def of_views(cls, image_ids: Iterable[str], views: NDArray[np.int32]) -> RowKeys:
        """Of images with so many views each, image by image. An image that comes twice is one."""
        builder, ids = IdsBuilder(), iter(image_ids)
        while part := list(islice(ids, _PART_ROWS)):
            builder.add(ids_of(pa.array(part, pa.string())))
        first, number = _numbered(names := builder.done())
        starts = np.cumsum(views, dtype=np.int64) - views
        view = (np.arange(int(views.sum())) - np.repeat(starts, views)).astype(np.int32)
        used = np.repeat(number, views)
        if views.all():
            return cls(names if len(first) == len(names) else names[first], used, view)
        of = np.flatnonzero(np.bincount(used, minlength=len(first)))  # an image without a view is none of the cache
        return cls(names[first[of]], np.searchsorted(of, used).astype(np.int32), view)

    def __len__(self) -> int:
        return len(self.image)

    def __eq__(self, other: object) -> bool:
        """Whether the rows are the same, in the same order."""
        if not isinstance(other, RowKeys):
            return NotImplemented
        numbers = np.array_equal(self.image, other.image) and np.array_equal(self.view, other.view)
        return numbers and are_same(self.images, other.images)

    __hash__ = None  # type: ignore[assignment]

    def chosen(self, numbers: NDArray[np.intp]) -> RowKeys:
        """Those of some rows."""
        of = self.image[numbers]
        first = np.full(len(self.images), len(of), np.int64)
        np.minimum.at(first, of, np.arange(len(of)))
        used = np.flatnonzero(first < len(of))
        used = used[np.argsort(first[used])]
        place = np.empty(len(self.images), np.int32)
        place[used] = np.arange(len(used))
        return RowKeys(self.images[used], place[of], self.view[numbers])

    def places_of(self, other: RowKeys) -> NDArray[np.intp]:
        """Where each row of `other` stands here. KeyError where one does not."""
        if self == other:
            return np.arange(len(self))
        span, image = max(self._span, other._span), places_in(other.images, self.images).astype(np.int64)
        if not self._have_numbers(span) or not other._have_numbers(span):
            of = {pair: place for place, pair in enumerate(self)}
            return np.array([of[pair] for pair in other], np.intp)
        ours, theirs = self.image * np.int64(span) + self.view, image[other.image] * span + other.view
        order = np.argsort(ours)
        places = order[np.minimum(np.searchsorted(ours[order], theirs), len(ours) - 1)]
        if (ours[places] != theirs).any() or (image < 0).any():
            raise KeyError("a row that is not there")
        return places

    def pairs_with(self, other: RowKeys) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The rows that both have, of which each has any row once: their places here, increasing, and in `other`."""
        if self == other:
            return np.arange(len(self)), np.arange(len(self))
        span, image = max(self._span, other._span), places_in(other.images, self.images).astype(np.int64)[other.image]
        if not self._have_numbers(span) or not other._have_numbers(span):
            of = {pair: place for place, pair in enumerate(self)}
            found = sorted((of[pair], place) for place, pair in enumerate(other) if pair in of)
            return np.array([ours for ours, _ in found], np.intp), np.array([theirs for _, theirs in found], np.intp)
        known = np.flatnonzero(image >= 0)
        ours, theirs = self.image * np.int64(span) + self.view, (image * span + other.view)[known]
        _, here, there = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
        order = np.argsort(here)
        return here[order], known[there[order]]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for start in range(0, len(self), _PART_ROWS):
            part = slice(start, start + _PART_ROWS)
            yield from zip(texts_of(self.images[self.image[part]]), self.view[part].tolist(), strict=True)

    def image_ids(self) -> Iterator[str]:
        """The id of each image, once."""
        for start in range(0, len(self.images), _PART_ROWS):
            yield from texts_of(self.images[start : start + _PART_ROWS])

    def repeats(self) -> bool:
        """Whether a row stands there twice."""
        keys = self._sorted
        return len(set(self)) < len(self) if keys is None else bool((keys[1:] == keys[:-1]).any())

    def digest(self, recipe: Recipe) -> str:
        """`featcache.core.recipe.cache_digest` of the rows."""
        keys = self._sorted
        if keys is None or self.images.ndim == 1:
            return cache_digest(recipe, self)
        order, text = order_of(self.images), hashlib.sha256(f'["{recipe.digest}",['.encode())
        for start in range(0, len(keys), _PART_ROWS):
            rank, view = np.divmod(keys[start : start + _PART_ROWS], self._span)
            text.update(b"," if start else b"")
            text.update(_pairs(hex_of(self.images[order[rank]]), view))
        text.update(b"]]")
        return text.hexdigest()

    @property
    def _span(self) -> int:
        return int(self.view.max(initial=0)) + 1

    def _have_numbers(self, span: int) -> bool:
        """Whether image and view fit into one number."""
        return bool(self.view.min(initial=0) >= 0) and span <= _MOST // max(len(self.images), 1)

    @property
    def _sorted(self) -> NDArray[np.int64] | None:
        """A number for each row, in the order of (image_id, view); None where there are no such numbers."""
        if not self._have_numbers(self._span):
            return None
        rank = np.empty(len(self.images), np.int64)
        rank[order_of(self.images)] = np.arange(len(self.images))
        keys = rank[self.image]
        keys *= self._span
        keys += self.view
        keys.sort()
        return keys


class KeysBuilder:
    """Makes `RowKeys` of parts of a table, one behind the other."""

    def __init__(self) -> None:
        self._runs = IdsBuilder()
        self._lengths: list[NDArray[np.int32]] = []
        self._views: list[NDArray[np.integer[Any]]] = []

    def add(self, image_id: pa.Array, view: NDArray[np.int64]) -> None:
        """More rows. image_id : text, plain or by a dictionary, none of it missing"""
        if not len(view):
            return
        ids, lengths = _runs(image_id)
        self._runs.add(ids)
        self._lengths.append(lengths.astype(np.int32))
        small = view.min() >= -(2**31) and view.max() < 2**31
        self._views.append(view.astype(np.int32) if small else view)

    def done(self) -> RowKeys:
        """All of them."""
        if not self._views:
            return RowKeys(np.empty((0, _DIGITS // 2), np.uint8), np.empty(0, np.int32), np.empty(0, np.int32))
        runs, lengths, views = self._runs.done(), np.concatenate(self._lengths), np.concatenate(self._views)
        first, number = _numbered(runs)
        images = runs if len(first) == len(runs) else runs[first]
        return RowKeys(images, number if len(number) == len(views) else np.repeat(number, lengths), views)


class IdsBuilder:
    """Makes names of parts of a column, one behind the other, in memory that grows instead of being copied."""

    def __init__(self) -> None:
        self._packed = bytearray()
        self._others: list[Ids] = []

    def add(self, ids: Ids) -> None:
        """More names."""
        if ids.ndim == 2 and not self._others:
            self._packed += ids.tobytes()
        else:
            self._others.append(ids)

    def done(self) -> Ids:
        """All of them."""
        packed = np.frombuffer(self._packed, np.uint8).reshape(-1, _DIGITS // 2)
        return joined([packed, *self._others]) if self._others else packed


def ids_of(texts: pa.Array | pa.ChunkedArray) -> Ids:
    """The names in a column of text."""
    chunks = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    return joined([_ids(chunk) for chunk in chunks if len(chunk)] or [np.empty((0, _DIGITS // 2), np.uint8)])


def joined(parts: Sequence[Ids]) -> Ids:
    """One behind the other; as Python's texts unless all have 64 hex digits."""
    if all(part.ndim == 2 for part in parts):
        return np.concatenate(parts) if len(parts) > 1 else parts[0]
    return np.concatenate([_as_objects(part) for part in parts])


def places_in(ids: Ids, among: Ids) -> NDArray[np.int32]:
    """Where each of `ids` stands in `among`, which has each name once; -1 where it does not."""
    if are_same(ids, among):
        return np.arange(len(ids), dtype=np.int32)
    _, number = _numbered(joined([among, ids]))
    of = np.full(len(number), -1, np.int32)
    of[number[: len(among)]] = np.arange(len(among))
    return of[number[len(among) :]]


def which_are_in(ids: Ids, among: Ids) -> NDArray[np.bool_]:
    """Which of the names are among others. Either may have a name more than once."""
    _, number = _numbered(joined([among, ids]))
    there = np.zeros(len(number), bool)
    there[number[: len(among)]] = True
    return there[number[len(among) :]]


def are_alike(ids: Ids, others: Ids) -> NDArray[np.bool_]:
    """Which of the names are the same as the others in their places."""
    if ids.ndim != others.ndim:
        ids, others = _as_objects(ids), _as_objects(others)
    same = ids == others
    return np.asarray(same if same.ndim == 1 else same.all(axis=1))


def are_same(ids: Ids, others: Ids) -> bool:
    """Whether the names are the same, in the same order."""
    return ids.shape == others.shape and all(
        bool((ids[start : start + _PART_ROWS] == others[start : start + _PART_ROWS]).all())
        for start in range(0, len(ids), _PART_ROWS)
    )


def are_different(ids: Ids) -> bool:
    """Whether each name stands there once."""
    return len(_numbered(ids)[0]) == len(ids)


def order_of(ids: Ids) -> NDArray[np.intp]:
    """What sorts the names."""
    if ids.ndim == 1:
        return np.argsort(ids, kind="stable")
    words = _words(ids)
    order = np.argsort(words[:, 0].astype(np.uint64))
    first = words[order, 0]
    return np.lexsort(words.T[::-1]) if (first[1:] == first[:-1]).any() else order


def hex_of(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(m, 32) bytes as (m, 64) hex digits."""
    return np.frombuffer(binascii.hexlify(np.ascontiguousarray(ids).data), np.uint8).reshape(len(ids), _DIGITS)


def texts_of(ids: Ids) -> list[str]:
    """Names as Python's texts."""
    if ids.ndim == 1:
        return list(ids)
    digits = hex_of(ids).tobytes().decode("ascii")
    return [digits[start : start + _DIGITS] for start in range(0, len(digits), _DIGITS)]


def _pairs(digits: NDArray[np.uint8], view: NDArray[np.int64]) -> bytes:
    """`["...",0],["...",1]`: canonical JSON of rows."""
    width = len(str(int(view.max())))
    text = np.zeros((len(view), _DIGITS + width + 6), np.uint8)
    text[:, :2] = np.frombuffer(b'["', np.uint8)
    text[:, 2 : 2 + _DIGITS] = digits
    text[:, 2 + _DIGITS : 4 + _DIGITS] = np.frombuffer(b'",', np.uint8)
    for place in range(width):
        power = 10 ** (width - 1 - place)
        digit = view // power
        text[:, 4 + _DIGITS + place] = np.where((digit > 0) | (power == 1), digit % 10 + ord("0"), 0)
    text[:, -2:] = np.frombuffer(b"],", np.uint8)
    flat = text.ravel()
    return (flat[flat > 0] if width > 1 else flat)[:-1].tobytes()


def _runs(texts: pa.Array) -> tuple[Ids, NDArray[np.int64]]:
    """The names in a column, one for all rows that follow each other under it, and how many rows these are."""
    if pa.types.is_dictionary(texts.type):
        numbers = texts.indices.to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
        names = _ids(texts.dictionary)[numbers[starts]]
    elif (names := _ids(texts)).ndim == 2:
        words = _words(names)
        starts = np.flatnonzero(np.r_[True, (words[1:] != words[:-1]).any(axis=1)])
        names = names[starts] if len(starts) < len(names) else names
    else:
        starts = np.arange(len(texts))
    return names, np.diff(starts, append=len(texts))


def _ids(texts: pa.Array) -> Ids:
    if pa.types.is_dictionary(texts.type):
        numbers: NDArray[np.int32] = texts.indices.to_numpy(zero_copy_only=False)
        return np.asarray(_ids(texts.dictionary)[numbers])
    packed = _packed(texts)
    return np.array([*texts.to_pylist(), None], object)[:-1] if packed is None else packed


def _packed(texts: pa.Array) -> NDArray[np.uint8] | None:
    """Texts of 64 hex digits each as bytes, (m, 32); None where others are among them."""
    if not len(texts):
        return np.empty((0, _DIGITS // 2), np.uint8)
    _, places, data = texts.buffers()
    offsets = np.frombuffer(places, np.int64 if pa.types.is_large_string(texts.type) else np.int32)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1]
    if (np.diff(offsets) != _DIGITS).any():
        return None
    digits = memoryview(data)[offsets[0] : offsets[-1]].tobytes()  # of which a comparison is quick
    try:
        packed = binascii.unhexlify(digits)
    except binascii.Error:
        return None
    return np.frombuffer(packed, np.uint8).reshape(len(texts), -1) if binascii.hexlify(packed) == digits else None


def _as_objects(ids: Ids) -> NDArray[np.object_]:
    return ids if ids.ndim == 1 else np.array([*texts_of(ids), None], object)[:-1]


def _numbered(ids: Ids) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Where each different name stands first, in that order; and which of these each name is."""
    if ids.ndim == 1:
        seen: dict[str, int] = {}
        number = np.fromiter((seen.setdefault(name, len(seen)) for name in ids), np.int32, len(ids))
        return np.unique(number, return_index=True)[1], number
    order = order_of(ids)
    words = _words(ids)
    different = np.ones(len(ids), bool)
    for start in range(1, len(ids), _PART_ROWS):  # in parts, since both sides are copies
        part = slice(start, min(start + _PART_ROWS, len(ids)))
        before = slice(part.start - 1, part.stop - 1)
        different[part] = (words[order[part]] != words[order[before]]).any(axis=1)
    if different.all():
        return np.arange(len(ids)), np.arange(len(ids), dtype=np.int32)
    lead = np.minimum.reduceat(order, np.flatnonzero(different))
    first = np.sort(lead)
    number = np.empty(len(ids), np.int32)
    number[order] = np.searchsorted(first, lead)[np.cumsum(different) - 1]
    return first, number


def _words(ids: NDArray[np.uint8]) -> NDArray[Any]:
    """(m, 4) numbers that sort as the names do."""
    return np.ascontiguousarray(ids).view(">u8")
