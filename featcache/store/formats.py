"""The storage formats by name. Each is imported when a cache in it is opened."""

from __future__ import annotations

from pathlib import Path

from featcache.store.contract import FeatureStore
from featcache.store.layout import Format, Layout


def open_store(format_: Format, folder: Path, *, layout: Layout) -> FeatureStore:
    """The feature array in a cache's folder, to be created, written or read."""
    if format_ == "zarr":
        from featcache.store.zarr_store import ZarrStore

        return ZarrStore(folder, layout)
    from featcache.store.hdf5_store import Hdf5Store

    return Hdf5Store(folder, layout)
