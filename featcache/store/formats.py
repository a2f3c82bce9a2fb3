"""The storage formats by name. Each is imported when a cache in it is opened."""

from __future__ import annotations

from pathlib import Path

from featcache.store import ledger
from featcache.store.contract import FeatureStore
from featcache.store.layout import LEDGER_FILE, Format, Layout, layouts_for


def open_store(format_: Format, folder: Path, *, layout: Layout) -> FeatureStore:
    """The feature array in a cache's folder, to be created, written or read."""
    if format_ == "zarr":
        from featcache.store.zarr_store import ZarrStore

        return ZarrStore(folder, layout)
    from featcache.store.hdf5_store import Hdf5Store

    return Hdf5Store(folder, layout)


def layout_begun(
    folder: Path, n_rows: int, *, row_shape: tuple[int, ...], dtype: str, format_: Format = "zarr"
) -> Layout:
    """`layout_for`, or of an unfinished cache in `folder` the one that its first shards were written in."""
    new, old = layouts_for(n_rows, row_shape, dtype=dtype, format_=format_)
    if new != old:
        for record in ledger.read(folder / LEDGER_FILE).values():
            if (record.start, record.stop) == old.span(record.shard) != new.span(record.shard):
                return old
            if (record.start, record.stop) == new.span(record.shard) != old.span(record.shard):
                return new
    return new
