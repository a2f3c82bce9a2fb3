"""Writing a cache: recipe first, whole shards, a ledger line each, the manifest last."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import CacheError, CacheWriteError, FeatcacheError, UsageError, refuse_shortage
from featcache.core.files import PARTIAL_SUFFIX, beside, sha256_file, write_json
from featcache.core.leases import POLL_S, Leases
from featcache.core.recipe import LOW_PRECISIONS, FeatureSpace, Recipe, cache_name
from featcache.core.strict_json import read_json, strict_json
from featcache.datasets import Dataset, LabelledImage
from featcache.store import ledger
from featcache.store.contract import Stored
from featcache.store.formats import layout_begun, open_store
from featcache.store.layout import (
    DATASET_FILE,
    LEASES_FOLDER,
    LEDGER_FILE,
    MANIFEST_FILE,
    PARTS_FOLDER,
    RECIPE_FILE,
    REPAIR_LEDGER_FILE,
    ROWS_FILE,
    Format,
    Layout,
)
from featcache.store.manifest import (
    CACHE_FORMAT,
    ArrayEntry,
    FileEntry,
    Manifest,
    Tolerance,
    leads_out,
    read_manifest,
    with_labels_said,
)

if TYPE_CHECKING:
    from featcache.store.row_keys import RowKeys
    from featcache.store.tables import Row

TOLERANCES = {
    "float32": Tolerance(relative=1e-4, absolute=1e-4),
    "float16": Tolerance(relative=1e-3, absolute=1e-3),
    "uint8": Tolerance(relative=0.0, absolute=0.0),
}
"""By the dtype of the features, which the network computed in float32."""
_MAX_RECIPE_BYTES = 1 << 20
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
_SMALLEST_FLOAT16 = float(np.finfo(np.float16).smallest_normal)


@dataclass(frozen=True)
class DatasetCopy:
    """The dataset copy of another cache, of the same images."""

    file: Path
    label_separator: str


class CacheWriter:
    """A cache in the making. Made again over an unfinished one, it goes on where that stopped.

    Several writers, in as many processes, may be at work on one cache: each claims a shard before it computes it.
    Use it as a context; what is still claimed at the end is given back.

    parent : folder of caches
    rows : every row; what was begun with them in another order goes on in that
    row_shape : shape of one row's features
    allow_nonfinite : whether NaN and Inf may be stored
    kept : the shards of a finished, damaged cache that are sound. What the cache promises (manifest and ledger) stays
        until all others are made again: a repair that is killed can be begun once more
    layout : of the array; by default that of a new cache, or of what was begun

    Raises CacheError if there are no rows, if one stands there twice or if the folder holds another cache,
    CacheWriteError if it cannot be written.
    """

    def __init__(
        self,
        parent: Path,
        recipe: Recipe,
        *,
        rows: Sequence[Row],
        row_shape: tuple[int, ...],
        format_: Format = "zarr",
        allow_nonfinite: bool = False,
        kept: Sequence[ledger.ShardRecord] | None = None,
        layout: Layout | None = None,
    ) -> None:
        from featcache.store.tables import keys_of

        self._keys = keys_of(rows)
        if not rows or self._keys.repeats():
            raise CacheError(f"no cache of {len(rows)} rows, of which some stand there twice: list each row once")
        self.digest = self._keys.digest(recipe)
        self.folder = parent / cache_name(recipe.space.backbone, self.digest, format_=format_)
        self.recipe = recipe
        self.rows = rows
        dtype = recipe.space.dtype
        if layout is None:
            layout = layout_begun(self.folder, len(rows), row_shape=row_shape, dtype=dtype, format_=format_)
        self.store = open_store(format_, self.folder, layout=layout)
        self.faint_rows = 0
        """Rows, of those written here, whose largest value is too small for float16 to keep more than a few digits."""
        self._allow_nonfinite = allow_nonfinite
        self._done: dict[int, ledger.ShardRecord] = {}
        self._missing = dict.fromkeys(range(self.store.layout.n_shards))
        self._noted: dict[int, ledger.ShardRecord] = {record.shard: record for record in kept or ()}
        """What the ledger says of shards that are missing: their files are not, or not yet, what it says."""
        self.rows_done = 0
        """Rows in finished shards."""
        self._kept = kept
        self._ledger_file = self.folder / (LEDGER_FILE if kept is None else REPAIR_LEDGER_FILE)
        self._ledger = ledger.Follower(self._ledger_file)
        self._noting = threading.RLock()
        self._manifest_before = b""
        self._leases = self._opened_leases()
        with writing(self.folder):
            self._refuse_links()
            (self.folder / LEASES_FOLDER).mkdir(parents=True, exist_ok=True)
            with self._leases.holding("start"):
                self._start()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._leases.close()
        if self._is_finished():
            # Parts, too: this process may have slept while another finished.
            for folder in (self.folder / LEASES_FOLDER, self.folder / PARTS_FOLDER):
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def keys(self) -> RowKeys:
        """Which view of which image each of `rows` is, in their order."""
        from featcache.store.tables import keys_of

        return keys_of(self.rows)

    @property
    def missing(self) -> list[int]:
        """Shards that are still to be written, as far as this writer has seen."""
        return list(self._missing)

    def is_missing(self, shard: int) -> bool:
        """Whether a shard is among `missing`."""
        return shard in self._missing

    def refresh(self) -> None:
        """See which shards other writers have finished since."""
        if self._missing:
            with writing(self.folder), self._noting:
                self._noted.update(self._recorded())
                for shard, record in list(self._noted.items()):
                    if shard not in self._missing or self._sound(record):
                        del self._noted[shard]
                        self._finished(record)

    def _finished(self, record: ledger.ShardRecord) -> None:
        """A shard is in its place; one that others finished too counts once."""
        with self._noting:
            if record.shard in self._missing:
                del self._missing[record.shard]
                self._done[record.shard] = record
                self.rows_done += record.stop - record.start

    def claim(self) -> int | None:
        """A shard that nobody else is at work on, for this writer to write; None where there is none now."""
        self.refresh()
        with writing(self.folder):
            for shard in self.missing:
                if self._leases.claim(str(shard)):
                    if not self._was_finished(shard):
                        return shard
                    self._leases.release(str(shard))
        return None

    def _was_finished(self, shard: int) -> bool:
        """Whether the last holder of a shard finished it just before."""
        self.refresh()
        return shard in self._done

    def wait(self) -> None:
        """Let a moment pass, for others to finish what they hold."""
        time.sleep(POLL_S)

    def write(self, shard: int, features: NDArray[np.number[Any]]) -> None:
        """Put one shard in its place, note it in the ledger and give back its claim.

        Raises CacheError for values that may not or cannot be stored, with their rows.
        """
        features = self._storable(shard, np.asarray(features))
        with writing(self.folder):
            if not (self.folder / RECIPE_FILE).is_file():
                raise FileNotFoundError(errno.ENOENT, "it has vanished")
            if not self._leases.lost(str(shard)):  # else this process slept: others finish the cache, or have done so
                self._put(shard, features)
        self._leases.release(str(shard))

    def _put(self, shard: int, features: NDArray[np.number[Any]]) -> None:
        """Write and record a shard, unless this process slept meanwhile, was taken for dead, and another did so.

        A finished cache must find no further line in its ledger.
        """
        try:
            stored = self.store.write_shard(shard, features)
        except (OSError, CacheError):
            self.refresh()
            if shard not in self._done:
                raise
            return
        with self._noting:
            self.refresh()
            if shard in self._done:
                return
            record = ledger.ShardRecord(shard, *self.store.layout.span(shard), stored.bytes, stored.sha256)
            ledger.append(self._ledger_file, record)
            self._finished(record)

    def finish(
        self, dataset: Dataset | DatasetCopy, provenance: dict[str, Any], *, dataset_digest: str = ""
    ) -> Manifest:
        """Write the dataset copy and, last, the manifest. Raises CacheError while shards are missing.

        dataset_digest : of the whole data set, where `dataset` is the cache's own copy of a part of it, or a file
        """
        from featcache.store.row_counts import counts_in

        if self.missing:
            raise CacheError(f"{self.folder.name}: shards {self.missing[:5]} are still missing")
        with writing(self.folder), self._leases.holding("finish"):
            if self._is_finished():  # another writer was quicker
                return read_manifest(self.folder)
            self.store.finish()
            ledger.write(self.folder / LEDGER_FILE, self._done.values())
            self._write_labels(dataset)
            counts = counts_in(self.folder / ROWS_FILE, self.folder / DATASET_FILE)
            self._sweep()
            manifest = Manifest(
                format=CACHE_FORMAT,
                name=self.folder.name,
                digest=self.digest,
                recipe_digest=self.recipe.digest,
                dataset_digest=dataset_digest or (dataset.digest if isinstance(dataset, Dataset) else ""),
                rows=len(self.rows),
                array=ArrayEntry.of(self.store),
                files=self._entries(),
                tolerance=tolerance_of(self.recipe.space),
                provenance=with_labels_said(provenance, dataset.label_separator, counts=counts),
            ).sealed()
            manifest.write(self.folder)
            (self.folder / REPAIR_LEDGER_FILE).unlink(missing_ok=True)
        return manifest

    def _opened_leases(self) -> Leases:
        """Who is at work on what."""
        return Leases(self.folder / LEASES_FOLDER)

    def _recorded(self) -> dict[int, ledger.ShardRecord]:
        """The shards that this writer and others have finished; at least those since the last call."""
        return self._ledger.fresh()

    def _is_finished(self) -> bool:
        """Whether there is a manifest that is not the one of a cache which is being repaired."""
        there = _bytes_of(self.folder / MANIFEST_FILE)
        return bool(there) and (self._kept is None or there != self._manifest_before)

    def _write_labels(self, dataset: Dataset | DatasetCopy) -> None:
        """The dataset copy. One that a repair found to be right stays, to the byte: the manifest of before names it."""
        if isinstance(dataset, DatasetCopy):
            with beside(self.folder / DATASET_FILE) as partial:
                shutil.copyfile(dataset.file, partial)
            return
        from featcache.store.tables import images_in, read_dataset_copy, write_dataset_copy

        file, images = self.folder / DATASET_FILE, images_of(dataset, set(self._keys.image_ids()))
        if self._kept is not None:
            with suppress(CacheError, OSError, ValueError, TypeError, KeyError):
                promised = FileEntry(**strict_json(self._manifest_before)["files"][DATASET_FILE])
                if file_entry(file) == promised and list(images_in(read_dataset_copy(file))) == images:
                    return
        write_dataset_copy(file, images)

    def _start(self) -> None:
        """Recipe, then rows, then the empty array; or check that what lies here is this very cache."""
        recipe_file, rows_file = self.folder / RECIPE_FILE, self.folder / ROWS_FILE
        remove_folders(self.folder, (RECIPE_FILE, ROWS_FILE, LEDGER_FILE, DATASET_FILE, MANIFEST_FILE))
        remove_folders(self.folder, self.store.files())
        if not self._holds_recipe():
            write_json(recipe_file, self.recipe.to_dict())
        in_order = self._rows_in_order_of(rows_file)
        if in_order is None:
            self._start_over(rows_file)
        else:
            self.rows = in_order
        self._manifest_before = _bytes_of(self.folder / MANIFEST_FILE)
        self._sweep()
        try:
            self.store.create()
            self.refresh()
        except CacheError:
            self.store.create(mend=True)
            self.refresh()
            for record in list(self._done.values()):
                if not self._readable(record):
                    self._forget(record)
        if self._kept is None and self._manifest_before and self.missing:  # it does not hold what its manifest promises
            (self.folder / MANIFEST_FILE).unlink(missing_ok=True)

    def _forget(self, record: ledger.ShardRecord) -> None:
        """A shard that is recorded, and cannot be read."""
        del self._done[record.shard]
        self._missing = dict.fromkeys(sorted((*self._missing, record.shard)))
        self.rows_done -= record.stop - record.start

    def _refuse_links(self) -> None:
        """Raise CacheError where a file would be written, or removed, behind a link that leads out of the cache."""
        tables = (RECIPE_FILE, ROWS_FILE, LEDGER_FILE, DATASET_FILE, MANIFEST_FILE, LEASES_FOLDER, PARTS_FOLDER)
        for name in (*tables, *self.store.files()):
            if leads_out(self.folder, name):
                raise CacheError(f"{self.folder.name}: {name} is a link that leads out of the cache: remove it first")

    def _holds_recipe(self) -> bool:
        """Whether the recipe is there. Raises CacheError for that of another cache whose digest begins alike."""
        try:
            found = read_recipe(self.folder)
        except CacheError:
            return False
        if found == self.recipe:
            return True
        from featcache.store.tables import read_keys

        with suppress(CacheError):
            digest = read_keys(self.folder / ROWS_FILE).digest(found)
            if self.folder.name == cache_name(found.space.backbone, digest, format_=self.store.format):
                raise UsageError(f"{self.folder}: holds another cache, whose digest begins alike: move it away")
        return False

    def _rows_in_order_of(self, rows_file: Path) -> Sequence[Row] | None:
        """This cache's rows as they were numbered before; None where nobody can say what the shards hold."""
        from featcache.store.tables import StoredRows, misnamed_rows, names_of, read_keys

        if not rows_file.is_file():
            return None
        try:
            there, found = read_keys(rows_file), StoredRows(rows_file)
            if len(there) != len(self._keys):
                return None
            places = self._keys.places_of(there)
            if not np.array_equal(names_of(found), names_of(self.rows)[places]):
                return None
            if isinstance(self.rows, list):
                return [self.rows[place] for place in places]
            return None if misnamed_rows(rows_file, self.recipe.space) else found
        except (CacheError, KeyError):
            return None

    def _start_over(self, rows_file: Path) -> None:
        """No rows yet, or a table that is damaged: what the shards hold is not known."""
        from featcache.store.tables import StoredRows, write_rows

        if self._kept is None:
            (self.folder / MANIFEST_FILE).unlink(missing_ok=True)  # first: what follows is not what it promises
        else:
            self._kept = []
        self._noted.clear()
        for stale in (LEDGER_FILE, REPAIR_LEDGER_FILE):
            (self.folder / stale).unlink(missing_ok=True)
        write_rows(rows_file, self.rows)
        if not isinstance(self.rows, list):  # else they are in memory
            self.rows = StoredRows(rows_file)

    def _sweep(self) -> None:
        """Remove what interrupted writers left beside their files, unless somebody else is at work."""
        if self._leases.others():
            return
        for leftover in [*self.folder.rglob(f".*{PARTIAL_SUFFIX}*")]:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            elif leftover.parent != self.folder / LEASES_FOLDER:  # those are made and gone in a moment
                leftover.unlink(missing_ok=True)

    def _storable(self, shard: int, features: NDArray[np.number[Any]]) -> NDArray[np.number[Any]]:
        """The features in the layout's dtype, after a look at their range. Pixels are what they are, or refused."""
        if self.store.layout.dtype == "uint8":
            return np.ascontiguousarray(features)
        start, _ = self.store.layout.span(shard)
        flat = features.reshape(len(features), -1)
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(features.sum(dtype=np.float32))  # one quick pass; what makes it doubtful is looked at
        bad = np.flatnonzero(~np.isfinite(flat).all(axis=1)) if not finite else np.zeros(0, np.intp)
        if len(bad) and not self._allow_nonfinite:
            raise CacheError(
                f"{self.folder.name}: NaN or Inf in the features of {len(bad)} rows: {self._named(start + bad)}",
                "Check these images and the weights, or set `allow_nonfinite=True` to store them",
            )
        if self.store.layout.dtype == "float16":
            large = np.flatnonzero((np.isfinite(flat) & (np.abs(flat) > _LARGEST_FLOAT16)).any(axis=1))
            if len(large):
                raise CacheError(
                    f"{self.folder.name}: float16 holds values up to {_LARGEST_FLOAT16:.0f}, and {len(large)} rows "
                    f"have larger ones: {self._named(start + large)}",
                    "Set `dtype='float32'`",
                )
            largest = np.abs(flat).max(axis=1)
            self.faint_rows += int(((largest > 0) & (largest < _SMALLEST_FLOAT16)).sum())
        return np.ascontiguousarray(features, self.store.layout.dtype)

    def _named(self, numbers: NDArray[np.intp]) -> str:
        named = ((number, self.rows[number]) for number in numbers[:5])
        listed = ", ".join(f"{number} (image {row.image_id[:12]}, view {row.view})" for number, row in named)
        return listed + (", ..." if len(numbers) > 5 else "")

    def _sound(self, record: ledger.ShardRecord) -> bool:
        in_place = (record.start, record.stop) == self.store.layout.span(record.shard)
        return in_place and self.store.stored(record.shard) == Stored(record.bytes, record.sha256)

    def _readable(self, record: ledger.ShardRecord) -> bool:
        try:
            self.store.read(record.start, record.stop)
        except CacheError:
            return False
        return True

    def _entries(self) -> dict[str, FileEntry]:
        """Every file of the cache but the manifest; shards that are files have the digest of the ledger."""
        files: dict[str, int | None] = dict.fromkeys((RECIPE_FILE, ROWS_FILE, DATASET_FILE, LEDGER_FILE))
        entries = {}
        for name, shard in {**files, **self.store.files()}.items():
            if shard is None:
                entries[name] = file_entry(self.folder / name)
            else:
                entries[name] = FileEntry(bytes=self._done[shard].bytes, sha256=self._done[shard].sha256)
        return entries


def read_recipe(folder: Path) -> Recipe:
    """The recipe of the cache in `folder`. Raises CacheError where it is damaged or missing."""
    path = folder / RECIPE_FILE
    try:
        return Recipe.from_dict(read_json(path, _MAX_RECIPE_BYTES))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        refuse_shortage(error, path)
        raise CacheError(f"{path}: not a recipe: {error}") from error


def images_of(dataset: Dataset, image_ids: set[str]) -> list[LabelledImage]:
    """The dataset's lines for these images. Raises CacheError where it does not name each of them once."""
    images = [image for image in dataset.images if image.image_id in image_ids]
    if len(images) != len(image_ids) or {image.image_id for image in images} != image_ids:
        raise CacheError(
            f"the dataset names {len({image.image_id for image in images})} of the {len(image_ids)} images of the "
            f"cache, on {len(images)} lines: it must name each once; extract makes a cache of another set"
        )
    return images


def remove_folders(folder: Path, names: Iterable[str]) -> None:
    """Remove the folders that stand where files of a cache must be: no file can be renamed into their place."""
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def tolerance_of(space: FeatureSpace) -> Tolerance:
    """How near rows of a feature space come when they are computed again."""
    if norm := LOW_PRECISIONS.get(space.precision):
        return Tolerance(relative=0.0, absolute=0.0, norm=norm)
    return TOLERANCES[space.dtype]


def _bytes_of(file: Path) -> bytes:
    """What a small file holds; nothing where it is not there."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return b""


def file_entry(path: Path) -> FileEntry:
    """Size and digest of a file as it is now."""
    return FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the operating system says while `folder` is written into one CacheWriteError."""
    try:
        yield
    except FeatcacheError:
        raise
    except OSError as error:
        raise CacheWriteError(
            f"{folder}: cannot be written: {error.strerror or error}. What was finished is kept; "
            "mend the cause and run the same command again"
        ) from error
