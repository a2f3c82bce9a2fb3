"""Rows of a cache that is being pulled which other caches here hold: their shards are made of them, not fetched."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featcache.core.errors import CacheError
from featcache.store import Cache, DonorIndex, FileEntry, ZarrStore, layouts_for


class LocalShards:
    """Shards of a Zarr cache, of which the tables are here, that are made of rows of the caches in `parent`.

    One that was made counts only where its file has the digest that the manifest promises: nothing is believed. Where
    it has not, another version of the codec was at work, and none is made any more.
    """

    def __init__(self, cache: Cache, parent: Path) -> None:
        self._layout = layout = cache.manifest.array.layout
        self._store = ZarrStore(cache.folder, layout)
        self._shards: dict[str, int] = {}
        if cache.manifest.array.format != "zarr" or layout not in layouts_for(
            layout.n_rows, layout.row_shape, dtype=layout.dtype
        ):
            return
        self._reach = DonorIndex([parent], cache.recipe.space, row_shape=layout.row_shape)
        if self._reach.n_caches:
            self._rows = cache.stored_rows()
            self._reach.look_for(self._rows)
            self._shards = {name: shard for name, shard in self._store.files().items() if shard is not None}

    def make(self, name: str, entry: FileEntry) -> bool:
        """Write a shard's file. False, and no file, where its rows are not all here or it is not what it must be."""
        if (shard := self._shards.get(name)) is None:
            return False
        start, stop = self._layout.span(shard)
        rows = self._rows[start:stop]
        if not all(map(self._reach.holds, rows)):
            return False
        features = np.empty((len(rows), *self._layout.row_shape), self._layout.dtype)
        try:
            list(self._reach.fill(features, rows))
        except CacheError:  # changed since it was looked at
            return False
        stored = self._store.write_shard(shard, features)
        if (stored.bytes, stored.sha256) != (entry.bytes, entry.sha256):
            self._store.shard_file(shard).unlink()
            self._shards = {}
            return False
        return True
