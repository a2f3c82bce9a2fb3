"""Rows that other caches hold: what one of them has computed is copied, not computed again.

A row is named by image, view parameters and feature space. Any cache of the same feature space may hold it, finished or
not, whatever its augmentation, splits and labels are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from featcache.core.errors import CacheError, CacheNotFoundError
from featcache.core.recipe import FeatureSpace
from featcache.store import ledger
from featcache.store.cache import Array, Features
from featcache.store.catalog import cache_folders
from featcache.store.contract import FeatureStore, Stored
from featcache.store.formats import layout_begun, open_store
from featcache.store.layout import FEATURES_FOLDER, LEDGER_FILE, RECIPE_FILE, ROWS_FILE, Format
from featcache.store.manifest import read_manifest
from featcache.store.row_keys import Ids, texts_of, which_are_in
from featcache.store.tables import Row, names_of, read_names
from featcache.store.writer import file_entry, read_recipe

_PART_ROWS = 1 << 16


@dataclass(frozen=True)
class _Place:
    source: _Source
    number: int


class DonorIndex:
    """Rows of one feature space in the caches of some folders.

    parents : folders of caches
    row_shape : shape of one row
    but : a cache's folder that does not count
    first : a cache's folder that rows are taken from before all others
    """

    def __init__(
        self,
        parents: Iterable[Path],
        space: FeatureSpace,
        *,
        row_shape: tuple[int, ...],
        but: Path | None = None,
        first: Path | None = None,
    ) -> None:
        folders = [folder for parent in parents for folder in cache_folders(parent) if folder != but]
        folders.sort(key=lambda folder: folder != first)
        found = (_source(folder, space, row_shape) for folder in folders)
        self._sources = [source for source in found if source is not None]
        self._places: dict[str, list[_Place]] = {}
        """Of rows that were looked for and are there; nothing of those that are not."""

    def look_for(self, rows: Sequence[Row]) -> None:
        """Find out which of `rows` are there. Nothing else is ever said to be."""
        if not self._sources:
            return
        wanted = names_of(rows)
        for source in self._sources:
            numbers = np.flatnonzero(which_are_in(source.row_ids, wanted))
            for start in range(0, len(numbers), _PART_ROWS):
                part = numbers[start : start + _PART_ROWS]
                for number, row_id in zip(part.tolist(), texts_of(source.row_ids[part]), strict=True):
                    self._places.setdefault(row_id, []).append(_Place(source, number))

    def __len__(self) -> int:
        return len(self._places)

    @property
    def n_caches(self) -> int:
        """Caches of that feature space there are."""
        return len(self._sources)

    def holds(self, row: Row) -> bool:
        """Whether a row can be copied: the shard that it lies in is read once and must have its digest."""
        return self._place(row) is not None

    def holder(self, row: Row) -> str:
        """Name of the cache that a row can be copied from; "" where there is none."""
        place = self._place(row)
        return place.source.folder.name if place else ""

    def fill(self, features: Array, rows: Sequence[Row]) -> Iterator[str]:
        """Copy into `features[i]` each `rows[i]` that `holds`. Yields the names of the caches it takes rows from."""
        taken: dict[_Source, list[tuple[int, int]]] = {}
        for index, row in enumerate(rows):
            if place := self._place(row):
                taken.setdefault(place.source, []).append((index, place.number))
        for source, pairs in taken.items():
            indices, numbers = np.array(pairs, np.intp).T
            features[indices] = source.features[numbers]
            yield source.folder.name

    def _place(self, row: Row) -> _Place | None:
        """The first place of a row whose shard is sound."""
        return next((p for p in self._places.get(row.row_id, []) if p.source.is_sound(p.number)), None)


class _Source:
    """One cache, finished or not, as far as its ledger says what is sound."""

    def __init__(
        self, folder: Path, store: FeatureStore, *, row_ids: Ids, records: dict[int, ledger.ShardRecord]
    ) -> None:
        self.folder = folder
        self.row_ids = row_ids
        self._store = store
        self._records = records
        self._sound: dict[int, bool] = {}

    @cached_property
    def features(self) -> Features:
        return Features(self._store)

    def is_sound(self, number: int) -> bool:
        shard = number // self._store.layout.rows_per_shard
        if shard not in self._sound:
            record = self._records.get(shard)
            in_place = record is not None and (record.start, record.stop) == self._store.layout.span(shard)
            self._sound[shard] = bool(
                record
                and in_place
                and self._store.stored(shard) == Stored(record.bytes, record.sha256)
                and self._decodes(shard)
            )
        return self._sound[shard]

    def _decodes(self, shard: int) -> bool:
        """What a ledger promises may be no features: whoever would copy such rows computes them instead."""
        try:
            self._store.read(*self._store.layout.span(shard))
        except CacheError:
            return False
        return True


def _source(folder: Path, space: FeatureSpace, row_shape: tuple[int, ...]) -> _Source | None:
    """The cache in `folder`, if it is one of that feature space and can be trusted; `verify` says why it cannot."""
    try:
        if read_recipe(folder).space != space:
            return None
        try:
            manifest = read_manifest(folder)
        except CacheNotFoundError:
            row_ids = read_names(folder / ROWS_FILE)
            format_: Format = "zarr" if (folder / FEATURES_FOLDER).is_dir() else "hdf5"
            begun = layout_begun(folder, len(row_ids), row_shape=row_shape, dtype=space.dtype, format_=format_)
            store = open_store(format_, folder, layout=begun)
        else:
            for name in (RECIPE_FILE, ROWS_FILE, LEDGER_FILE):
                if file_entry(folder / name) != manifest.files[name]:
                    return None
            row_ids = read_names(folder / ROWS_FILE)
            store = open_store(manifest.array.format, folder, layout=manifest.array.layout)
            layout = manifest.array.layout
            if (layout.row_shape, layout.dtype) != (row_shape, space.dtype) or len(row_ids) != manifest.rows:
                return None
        return _Source(folder, store, row_ids=row_ids, records=ledger.read(folder / LEDGER_FILE))
    except (OSError, CacheError):
        return None
