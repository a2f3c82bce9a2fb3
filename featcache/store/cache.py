"""Reading a cache: features as a lazy array, rows as a DataFrame, X and y of a split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray

from featcache.dataset.manifest import SPLITS, Dataset
from featcache.errors import CacheError, UsageError
from featcache.recipe import Recipe, cache_digest, cache_name
from featcache.store.layout import DATASET_FILE, FEATURES_FOLDER, RECIPE_FILE, ROWS_FILE
from featcache.store.manifest import Manifest, read_manifest
from featcache.store.tables import read_dataset_copy, read_rows, write_dataset_copy
from featcache.store.writer import file_entry, images_of, writing
from featcache.store.zarr import ZarrStore

Array = NDArray[np.floating[Any]]
_WAITING_FILE = f"{DATASET_FILE}.next"


class Features:
    """The feature array of a cache, read from the store when it is indexed.

    Takes what NumPy takes along the first axis (a number, a slice, a list or array of row numbers, a
    mask), then any further indices; `numpy.asarray` reads it whole.
    """

    def __init__(self, store: ZarrStore) -> None:
        self._store = store
        self.shape = store.layout.shape
        self.dtype = np.dtype(store.layout.dtype)
        self.ndim = len(self.shape)
        self.size = int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        first, *rest = (index if isinstance(index, tuple) else (index,)) or (Ellipsis,)
        if first is Ellipsis:
            return np.asarray(self)[index]
        if first is None or isinstance(first, (bool, np.bool_)):
            raise IndexError(f"features: {first} (a new axis) cannot come first; index the rows, then reshape")
        numbers = np.arange(len(self))[first]
        rows = self._rows(np.ravel(numbers))
        # What is left is NumPy's own business: the rows that were read stand for the first index.
        read: Any = slice(None) if isinstance(first, slice) else np.arange(numbers.size).reshape(numbers.shape)
        return rows[(read if numbers.ndim else 0, *rest)]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("features lie on disk: they cannot be had without a copy")
        return self._rows(np.arange(len(self))).astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"Features(shape={self.shape}, dtype={self.dtype})"

    def blocks(self, numbers: NDArray[np.integer[Any]] | None = None) -> Iterator[tuple[slice, Array]]:
        """The rows `numbers` (all by default) in that order, a bounded block at a time.

        Yields (where in `numbers` the block stands, its features). Increasing numbers read each chunk once.
        """
        numbers = np.arange(len(self)) if numbers is None else np.asarray(numbers)
        step = self._store.layout.rows_per_shard
        shard_of = numbers // step
        borders = np.flatnonzero(np.diff(shard_of)) + 1
        for part in np.split(np.arange(len(numbers)), borders):
            if len(part):
                wanted = numbers[part]
                start, stop = int(wanted.min()), int(wanted.max()) + 1
                block = self._store.read(start, stop)
                if stop - start != len(wanted) or not np.array_equal(wanted, np.arange(start, stop)):
                    block = block[wanted - start]
                yield slice(int(part[0]), int(part[-1]) + 1), block

    def _rows(self, numbers: NDArray[np.integer[Any]]) -> Array:
        """Rows by number in any order, each chunk read about once."""
        result = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        order = np.argsort(numbers, kind="stable")
        for place, block in self.blocks(numbers[order]):
            result[order[place]] = block
        return result


class Cache:
    """A finished cache. `featcache.open_cache` opens one.

    Opening checks the manifest, the recipe against the name, and that every file is there in its size;
    `verify` reads every byte.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._finish_replacing()
        self._check_sizes()
        self.recipe = self._read_recipe()
        self.features = Features(ZarrStore(folder / FEATURES_FOLDER, self.manifest.array.layout))

    @property
    def name(self) -> str:
        """Folder name: backbone and the first eight digits of the digest."""
        return self.manifest.name

    @cached_property
    def views(self) -> pd.DataFrame:
        """rows.parquet: row, image_id, view, row_id and each view's parameters."""
        self._check_digest(ROWS_FILE)
        frame = read_rows(self.folder / ROWS_FILE)
        found = cache_digest(self.recipe, zip(frame["image_id"], map(int, frame["view"]), strict=True))
        if found != self.manifest.digest or len(frame) != self.manifest.rows:
            raise CacheError(f"{self.name}: {ROWS_FILE} is not the one of the manifest")
        return frame

    @cached_property
    def dataset(self) -> pd.DataFrame:
        """The cache's copy of the dataset manifest: image_id, path, label, split, group and box."""
        self._check_digest(DATASET_FILE)
        return read_dataset_copy(self.folder / DATASET_FILE)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One line a row: row, image_id, path, label, split, group, view; in the order of `features`."""
        lines = self.dataset[["image_id", "path", "label", "split", "group"]]
        joined = self.views[["row", "image_id", "view"]].merge(lines, on="image_id", how="left", validate="m:1")
        if joined["label"].isna().any():
            raise CacheError(f"{self.name}: {DATASET_FILE} does not name every image of the cache")
        return joined[["row", "image_id", "path", "label", "split", "group", "view"]]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """All labels, sorted; `arrays` counts them from 0 in this order."""
        return tuple(sorted(self.rows["label"].unique()))

    def numbers(self, split: str | None = None) -> NDArray[np.intp]:
        """Row numbers of a split, increasing; all where split is None."""
        if split is None:
            return np.arange(len(self.features))
        if split not in SPLITS:
            raise UsageError(f"split {split!r}: expected train, val or test")
        return np.flatnonzero((self.rows["split"] == split).to_numpy())

    def labels(self, split: str | None = None) -> NDArray[np.int64]:
        """Class numbers of a split's rows, int64."""
        codes = pd.Categorical(self.rows["label"], categories=list(self.classes)).codes.astype(np.int64)
        return np.asarray(codes[self.numbers(split)])

    def arrays(self, split: str | None = None) -> tuple[Array, NDArray[np.int64]]:
        """Features and class numbers of a split, read into memory.

        Returns
        -------
        X : ndarray of shape (n, h, w, c), or (n, c) where pooled
        y : ndarray of shape (n,), int64; `classes[y[i]]` is the label
        """
        return self.features[self.numbers(split)], self.labels(split)

    def replace_dataset(self, dataset: Dataset) -> bool:
        """Take over the labels, splits, groups and paths of `dataset`; no feature byte is touched.

        Returns whether anything changed. The manifest is what commits: the new copy waits beside under
        another name, and whoever opens the cache after a crash gives it its own.
        """
        if dataset.digest == self.manifest.dataset_digest:
            return False
        with writing(self.folder):
            waiting = self.folder / _WAITING_FILE
            write_dataset_copy(waiting, images_of(dataset, set(self.views["image_id"])))
            files = {**self.manifest.files, DATASET_FILE: file_entry(waiting)}
            self.manifest = self.manifest.model_copy(update={"files": files, "dataset_digest": dataset.digest})
            self.manifest.write(self.folder)
            self._finish_replacing()
        for name in ("dataset", "rows", "classes"):
            self.__dict__.pop(name, None)
        return True

    def bytes(self) -> int:
        """Size of all files on disk."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def __repr__(self) -> str:
        return f"Cache({self.name}: {self.features.shape} {self.features.dtype})"

    def _read_recipe(self) -> Recipe:
        path = self.folder / RECIPE_FILE
        try:
            recipe = Recipe.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CacheError(f"{path}: not a recipe: {error}") from error
        if recipe.digest != self.manifest.recipe_digest:
            raise CacheError(f"{path}: is not the recipe of the manifest")
        if self.manifest.name != cache_name(recipe.space.backbone, self.manifest.digest):
            raise CacheError(f"{self.folder}: the manifest's name {self.manifest.name} is not that of its digest")
        return recipe

    def _finish_replacing(self) -> None:
        """Give a waiting dataset copy its name, if it is the one that the manifest promises."""
        waiting = self.folder / _WAITING_FILE
        if waiting.is_file() and file_entry(waiting) == self.manifest.files.get(DATASET_FILE):
            with writing(self.folder):
                waiting.replace(self.folder / DATASET_FILE)

    def _check_sizes(self) -> None:
        for name, entry in self.manifest.files.items():
            path = self.folder / name
            try:
                if not path.is_file():
                    raise CacheError(f"{self.name}: {name} is missing: 'featcache extract' computes it again")
                if path.stat().st_size != entry.bytes:
                    raise CacheError(f"{self.name}: {name}: expected {entry.bytes} bytes, found {path.stat().st_size}")
            except OSError as error:
                raise CacheError(f"{self.name}: {name:.80}: cannot be read: {error.strerror}") from error

    def _check_digest(self, name: str) -> None:
        """The tables are small, and a wrong one gives every feature another meaning: their bytes are checked."""
        try:
            found = file_entry(self.folder / name)
        except OSError as error:
            raise CacheError(f"{self.name}: {name}: cannot be read: {error.strerror}") from error
        if found != self.manifest.files[name]:
            raise CacheError(f"{self.name}: {name} is not that of the manifest; was it replaced? Open it again")


def open_cache(path: str | Path) -> Cache:
    """Open a finished cache by its folder.

    Raises CacheNotFoundError where there is none or it was never finished, CacheError where it is damaged.
    """
    return Cache(Path(path))
