"""Writing a cache: recipe first, whole shards, a ledger line each, the manifest last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.dataset.manifest import Dataset, LabelledImage
from featcache.errors import CacheError, CacheWriteError
from featcache.files import sha256_file, write_json
from featcache.recipe import Recipe, cache_digest, cache_name, canonical_json
from featcache.store import ledger
from featcache.store.layout import (
    DATASET_FILE,
    FEATURES_FOLDER,
    LEDGER_FILE,
    MANIFEST_FILE,
    RECIPE_FILE,
    ROWS_FILE,
    layout_for,
)
from featcache.store.manifest import CACHE_FORMAT, ArrayEntry, FileEntry, Manifest
from featcache.store.tables import Row, read_rows, write_dataset_copy, write_rows
from featcache.store.zarr import ZarrStore


class CacheWriter:
    """A cache in the making. Made again over an unfinished one, it goes on where that stopped.

    parent : folder of caches
    rows : every row in its order
    row_shape : shape of one row's features

    Raises CacheError if there are no rows, if one stands there twice or if the folder holds another cache,
    CacheWriteError if it cannot be written.
    """

    def __init__(self, parent: Path, recipe: Recipe, rows: Sequence[Row], row_shape: tuple[int, ...]) -> None:
        named = Counter((row.image_id, row.view) for row in rows)
        if not named or max(named.values()) > 1:
            raise CacheError(f"no cache of {len(rows)} rows, {len(named)} of them different: list each row once")
        self.digest = cache_digest(recipe, named)
        self.folder = parent / cache_name(recipe.space.backbone, self.digest)
        self.recipe = recipe
        self.rows = rows
        layout = layout_for(len(rows), row_shape, recipe.space.dtype)
        self.store = ZarrStore(self.folder / FEATURES_FOLDER, layout)
        with writing(self.folder):
            self._start()
            self._done = {shard: record for shard, record in self._recorded().items() if self._sound(record)}

    @property
    def missing(self) -> list[int]:
        """Shards that are still to be written."""
        return [shard for shard in range(self.store.layout.n_shards) if shard not in self._done]

    @property
    def rows_done(self) -> int:
        """Rows in finished shards."""
        return sum(record.stop - record.start for record in self._done.values())

    def write(self, shard: int, features: NDArray[np.floating[Any]]) -> None:
        """Put one shard in its place and note it in the ledger. NaN and Inf are refused with their rows."""
        start, stop = self.store.layout.span(shard)
        with np.errstate(over="ignore"):  # what is too large for the dtype becomes Inf, and is refused
            features = np.asarray(features, self.store.layout.dtype)
        finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
        if not finite.all():
            bad = [start + int(index) for index in np.flatnonzero(~finite)]
            raise CacheError(f"{self.folder.name}: NaN or Inf in the features of {len(bad)} rows: {bad[:10]}")
        with writing(self.folder):
            self.store.write_shard(shard, features)
            file = self.store.shard_file(shard)
            record = ledger.ShardRecord(shard, start, stop, file.stat().st_size, sha256_file(file))
            ledger.append(self.folder / LEDGER_FILE, record)
        self._done[shard] = record

    def finish(self, dataset: Dataset, provenance: dict[str, Any]) -> Manifest:
        """Write the dataset copy and, last, the manifest. Raises CacheError while shards are missing."""
        if self.missing:
            raise CacheError(f"{self.folder.name}: shards {self.missing[:5]} are still missing")
        with writing(self.folder):
            write_dataset_copy(self.folder / DATASET_FILE, images_of(dataset, {row.image_id for row in self.rows}))
            manifest = Manifest(
                format=CACHE_FORMAT,
                name=self.folder.name,
                digest=self.digest,
                recipe_digest=self.recipe.digest,
                dataset_digest=dataset.digest,
                rows=len(self.rows),
                array=ArrayEntry.of(self.store.layout),
                files=self._entries(),
                provenance=provenance,
            )
            manifest.write(self.folder)
        return manifest

    def _start(self) -> None:
        """Recipe, then rows, then the empty array; or check that what lies here is this very cache."""
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe_file, rows_file = self.folder / RECIPE_FILE, self.folder / ROWS_FILE
        if not recipe_file.is_file():
            write_json(recipe_file, self.recipe.to_dict())
        elif self._recipe_found(recipe_file) != canonical_json(self.recipe.to_dict()):
            raise CacheError(f"{self.folder}: holds a cache of another recipe; move it away")
        if not rows_file.is_file() or not self._same_rows(rows_file):
            self._start_over(rows_file)
        self.store.create()

    def _recipe_found(self, recipe_file: Path) -> str:
        try:
            return canonical_json(json.loads(recipe_file.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise CacheError(f"{recipe_file}: not a recipe: {error}; move {self.folder.name} away") from error

    def _same_rows(self, rows_file: Path) -> bool:
        try:
            found = read_rows(rows_file)
        except CacheError:  # nobody can say which rows the shards hold
            return False
        listed = zip(found["image_id"], found["view"], found["row_id"], strict=True)
        return list(listed) == [(row.image_id, row.view, row.row_id) for row in self.rows]

    def _start_over(self, rows_file: Path) -> None:
        """No rows yet, or the same in another order: shards of another order are worth nothing."""
        for stale in (MANIFEST_FILE, LEDGER_FILE):  # the manifest first: what follows is not what it promises
            (self.folder / stale).unlink(missing_ok=True)
        write_rows(rows_file, self.rows)

    def _recorded(self) -> dict[int, ledger.ShardRecord]:
        n_shards = self.store.layout.n_shards
        recorded = ledger.read(self.folder / LEDGER_FILE)
        return {shard: record for shard, record in recorded.items() if 0 <= shard < n_shards}

    def _sound(self, record: ledger.ShardRecord) -> bool:
        file = self.store.shard_file(record.shard)
        return (
            (record.start, record.stop) == self.store.layout.span(record.shard)
            and file.is_file()
            and file.stat().st_size == record.bytes
            and sha256_file(file) == record.sha256
        )

    def _entries(self) -> dict[str, FileEntry]:
        """Every file of the cache but the manifest; digests of shards are those of the ledger."""
        entries = {
            name: file_entry(self.folder / name)
            for name in (RECIPE_FILE, ROWS_FILE, DATASET_FILE, LEDGER_FILE, f"{FEATURES_FOLDER}/zarr.json")
        }
        for shard, record in sorted(self._done.items()):
            name = self.store.shard_file(shard).relative_to(self.folder).as_posix()
            entries[name] = FileEntry(bytes=record.bytes, sha256=record.sha256)
        return entries


def images_of(dataset: Dataset, image_ids: set[str]) -> list[LabelledImage]:
    """The dataset's lines for these images. Raises CacheError where it does not name each of them once."""
    images = [image for image in dataset.images if image.image_id in image_ids]
    if len(images) != len(image_ids) or {image.image_id for image in images} != image_ids:
        raise CacheError(
            f"the dataset names {len({image.image_id for image in images})} of the {len(image_ids)} images of the "
            f"cache, on {len(images)} lines: it must name each once; 'featcache extract' makes a cache of another set"
        )
    return images


def file_entry(path: Path) -> FileEntry:
    """Size and digest of a file as it is now."""
    return FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the operating system says while `folder` is written into one CacheWriteError."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        raise CacheWriteError(
            f"{folder}: cannot be written: {error.strerror or error}. What was finished is kept; "
            "mend the cause and run the same command again"
        ) from error
