"""Reading a cache: features as a lazy array, rows as a DataFrame, splits whole, in blocks and in shuffled batches."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import CacheError, UsageError
from featcache.core.leases import Leases
from featcache.core.recipe import FeatureSpace, Recipe, cache_name
from featcache.datasets import SPLITS, Dataset, LabelledImage, encoded, labels_in
from featcache.store import adapters
from featcache.store.batches import Batches, default_buffer_rows
from featcache.store.features import Array, Features
from featcache.store.formats import open_store
from featcache.store.layout import DATASET_FILE, LABELS_WAITING_FILE, LEASES_FOLDER, RECIPE_FILE, ROWS_FILE
from featcache.store.manifest import LABEL_SEPARATOR, ROW_COUNTS, Counts, Manifest, counts_said, read_manifest
from featcache.store.tensorstore_reader import ReaderName, choose_reader
from featcache.store.writer import DatasetCopy, file_entry, images_of, read_recipe, writing

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from featcache.store.row_keys import Ids, RowKeys
    from featcache.store.tables import ChosenRows, Coded, Lines, StoredRows
    from featcache.store.torch_adapter import TorchBatches

_PART_ROWS = 1 << 16
_MOST_HELD = 1 << 21
"""Rows whose ids are held, once they were read."""

__all__ = ["Array", "Cache", "Features", "open_cache"]


class Cache:
    """A finished cache. `featcache.open_cache` opens one.

    Opening checks the manifest, the recipe against the name, and that every file is there in its size;
    `verify` reads every byte.
    """

    extracted: Any = None
    """What `featcache.extract` did for it, where it just did."""
    converted: Any = None
    """What `featcache.convert` did for it, where it just did."""
    pulled: Any = None
    """What `featcache.pull` did for it, where it just did."""
    url = ""
    """The remote that it lies on, where its features come from there when they are read."""
    kept_in: Path
    """The folder of caches that it lies in, or that has what is read of it."""
    _original: Cache | None = None
    relabelled_images = 0
    """Images whose label, split or group is not that of the cache's own copy (`relabelled`)."""

    def __init__(self, folder: Path, reader: ReaderName = "auto") -> None:
        self.folder = folder
        self.kept_in = folder.parent
        self.manifest: Manifest = read_manifest(folder)
        for more in (True, True, False):
            try:
                self._check_sizes()
                break
            except CacheError:  # somebody may be giving it other labels
                if not more:
                    raise
                self.manifest = read_manifest(folder)
        self._finish_stopped_replacing()
        self.recipe = self._read_recipe()
        self._reader: ReaderName = reader
        if reader != "auto":
            _ = self.features  # which that reader may not be there for

    @property
    def name(self) -> str:
        """Folder name: backbone and the first eight digits of the digest."""
        return self.manifest.name

    @cached_property
    def features(self) -> Features:
        """The features of all rows, (n, h, w, c) or (n, c), read from the store when they are indexed."""
        array = self.manifest.array
        return Features(choose_reader(open_store(array.format, self.folder, layout=array.layout), self._reader))

    @cached_property
    def views(self) -> pd.DataFrame:
        """rows.parquet: row, image_id, view, row_id and each view's parameters."""
        from featcache.store.tables import read_rows

        _ = self.keys  # whether they are those of the manifest
        return read_rows(self.folder / ROWS_FILE)

    @cached_property
    def keys(self) -> RowKeys:
        """Which view of which image each row is, checked: they must be those that the cache is named by."""
        from featcache.store.tables import read_keys

        self._check_digest(ROWS_FILE)
        keys = read_keys(self.folder / ROWS_FILE)
        if len(keys) != self.manifest.rows or keys.digest(self.recipe) != self.manifest.digest:
            raise CacheError(f"{self.name}: {ROWS_FILE} is not the one of the manifest")
        return keys

    def stored_rows(self, space: FeatureSpace | None = None) -> StoredRows:
        """The rows as records, read from the table when they are asked for; checked as `keys` are.

        space : with the row_ids that they have in another feature space
        """
        from featcache.store.tables import StoredRows

        _ = self.keys
        return StoredRows(self.folder / ROWS_FILE, space)

    def chosen_rows(self, numbers: NDArray[np.intp], space: FeatureSpace | None = None) -> ChosenRows:
        """`stored_rows` of increasing numbers."""
        from featcache.store.tables import ChosenRows

        _ = self.keys
        return ChosenRows(self.folder / ROWS_FILE, numbers, space=space)

    def dataset_file(self) -> Path:
        """The dataset copy on the disk, checked to be that of the manifest."""
        self._check_digest(DATASET_FILE)
        return file_of(self.folder, self.manifest, name=DATASET_FILE)

    def row_names(self, space: FeatureSpace | None = None) -> Ids:
        """The row_id of each row, or what it is in another feature space; see `featcache.store.row_keys`."""
        from featcache.store.tables import names_of

        return names_of(self.stored_rows(space))

    def dataset_copy(self) -> Dataset | DatasetCopy:
        """The dataset copy, for a cache of the same images: as it lies on the disk, unless it has other labels here."""
        from featcache.store.tables import images_in

        if self._original is not None:
            return Dataset(images_in(self.dataset), self.folder, label_separator=self.label_separator)
        self._check_digest(DATASET_FILE)
        return DatasetCopy(file_of(self.folder, self.manifest, name=DATASET_FILE), self.label_separator)

    @cached_property
    def lines(self) -> Lines:
        """The images, labels and splits of the dataset copy."""
        from featcache.store.row_keys import ids_of
        from featcache.store.tables import Coded, Lines, read_lines

        if self._original is not None:
            frame = self.dataset
            return Lines(ids_of(_arrow(frame["image_id"])), Coded.of(frame["label"]), Coded.of(frame["split"]))
        self._check_digest(DATASET_FILE)
        return read_lines(file_of(self.folder, self.manifest, name=DATASET_FILE))

    @cached_property
    def line(self) -> NDArray[np.int32]:
        """For each row, which of `lines` its image is, (rows,)."""
        from featcache.store.row_counts import lines_of

        try:
            line = lines_of(self.keys, self.lines)
        except CacheError as error:
            raise CacheError(f"{self.name}: {error}") from error
        _ = self.view, self.label, self.split
        self.let_go()
        return line

    def let_go(self) -> None:
        """Of many rows, forget the ids: they are the largest of what is held. Who wants them reads them again."""
        if self.manifest.rows > _MOST_HELD:
            for name in ("keys", "lines"):
                self.__dict__.pop(name, None)

    @cached_property
    def view(self) -> NDArray[np.integer[Any]]:
        """The view of each row, (rows,); 0 is the plain one."""
        return self.keys.view

    @cached_property
    def label(self) -> Coded:
        """The label of each image of the dataset copy."""
        return self.lines.label

    @cached_property
    def split(self) -> Coded:
        """The split of each image of the dataset copy."""
        return self.lines.split

    def misnamed_rows(self) -> list[int]:
        """The rows whose row_id is not that of their image, view and feature space. CacheError for a damaged table."""
        from featcache.store.tables import misnamed_rows

        _ = self.keys
        return misnamed_rows(self.folder / ROWS_FILE, self.recipe.space)

    def check_labels(self) -> None:
        """Raise CacheError unless the dataset copy names every image, and the manifest counts rows as the tables do."""
        from featcache.store.row_counts import count_rows, short

        said = self.manifest.provenance.get(ROW_COUNTS)
        counts = short(count_rows(self.line, self.label, split=self.split))
        if said is not None and said != counts:
            raise CacheError(f"{self.name}: the rows of labels and splits are not as many as the manifest says")

    def row_counts(self) -> Counts:
        """{label: {split: rows}}, as the manifest says; counted where it says nothing."""
        said = None if self._original else counts_said(self.manifest.provenance, self.manifest.rows)
        if said is not None:
            return said
        from featcache.store.row_counts import count_rows

        return count_rows(self.line, self.label, split=self.split)

    @cached_property
    def groups(self) -> NDArray[np.int32]:
        """The group of each row as a number, (rows,): the names of groups sort as their numbers do."""
        return self.group_of_line[self.line]

    @cached_property
    def group_of_line(self) -> NDArray[np.int32]:
        """The group of each of `lines` as a number, as of `groups`."""
        import pyarrow.compute as pc

        from featcache.store.tables import give_back

        rank = pc.rank(_arrow(self.texts("group")), tiebreaker="dense").to_numpy().astype(np.int32)
        rank -= np.int32(1)
        give_back()
        return np.asarray(rank)

    @cached_property
    def dataset(self) -> pd.DataFrame:
        """The cache's copy of the dataset manifest: image_id, path, label, split, group and box."""
        from featcache.store.tables import read_dataset_copy

        self._check_digest(DATASET_FILE)
        return read_dataset_copy(file_of(self.folder, self.manifest, name=DATASET_FILE))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One line a row: row, image_id, path, label, split, group, view; in the order of `features`.

        Of more than two million rows, label and split are categories, and row and view have 32 bits.
        """
        import pandas as pd

        from featcache.store.tables import give_back

        line = self.line
        is_large = len(line) > _MOST_HELD
        one_each = len(line) == len(self.label.number) and bool((line == np.arange(len(line))).all())
        columns: dict[str, Any] = {"row": np.arange(len(line), dtype=np.int32 if is_large else np.int64)}
        for name in ("image_id", "path", "label", "split", "group"):
            if is_large and name in ("label", "split"):
                of = self.label if name == "label" else self.split
                columns[name] = pd.Categorical.from_codes(of.number[line], categories=pd.Index(of.values))
                continue
            texts = self.texts(name).array
            columns[name] = texts if one_each else texts.take(line)
            give_back()
        columns["view"] = self.view if is_large else self.view.astype(np.int64)
        return pd.DataFrame(columns, copy=False)

    def row_parts(self) -> Iterator[pd.DataFrame]:
        """`rows`, some ten thousand at a time: all of them may be more than fits into memory."""
        import pandas as pd

        line, start, stop = self.line, 0, 0
        if len(line) and (self._original is not None or bool((line[1:] < line[:-1]).any())):
            for first in range(0, len(line), _PART_ROWS):  # in another order than the images
                yield self.rows.iloc[first : first + _PART_ROWS]
            return
        for lines in self.line_parts():
            stop += len(lines)
            rows = np.searchsorted(line, [stop - len(lines), stop])
            for first in range(rows[0], rows[1], _PART_ROWS):
                last = min(first + _PART_ROWS, rows[1])
                frame = lines.iloc[line[first:last] - (stop - len(lines))].reset_index(drop=True)
                frame.insert(0, "row", np.arange(first, last))
                yield frame.assign(view=self.view[first:last].astype(np.int64)).set_index(pd.RangeIndex(first, last))
                start = last
        if start < len(line):
            raise CacheError(f"{self.name}: {DATASET_FILE} was replaced meanwhile")

    def line_parts(self) -> Iterator[pd.DataFrame]:
        """image_id, path, label, split and group of the dataset copy, some lines at a time."""
        from featcache.store.tables import DATASET_COLUMNS, TableFile

        file = TableFile(self.dataset_file(), DATASET_COLUMNS)
        return (part.to_pandas() for part in file.batches(DATASET_COLUMNS[:5]))

    def torn_groups(self) -> tuple[int, str, list[str]] | None:
        """How many groups have rows in several splits, and the first of them with these splits, by name."""
        split_of, n_splits = self.split, len(self.split.values)
        chosen = np.flatnonzero((self._rows_of_line > 0) & ~_is(split_of, ""))
        pairs = np.unique(self.group_of_line[chosen].astype(np.int64) * n_splits + split_of.number[chosen])
        group, split = np.divmod(pairs, max(n_splits, 1))
        torn = np.unique(group[1:][np.diff(group) == 0])
        if not len(torn):
            return None
        name = str(self.texts("group").iloc[int(np.argmax(self.group_of_line == torn[0]))])
        return len(torn), name, sorted(split_of.values[number] for number in split[group == torn[0]])

    def texts(self, name: str) -> pd.Series[str]:
        """A column of the dataset copy: path, label, split or group of each of `lines`."""
        from featcache.store.tables import read_texts

        if "dataset" in self.__dict__:
            return self.dataset[name].copy()
        self._check_digest(DATASET_FILE)
        return read_texts(file_of(self.folder, self.manifest, name=DATASET_FILE), name)

    @cached_property
    def label_separator(self) -> str:
        """Between the labels of an image that may have several; "" where each has one."""
        return str(self.manifest.provenance.get(LABEL_SEPARATOR, ""))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """All labels of rows in a split, sorted; `arrays` counts them from 0 in this order."""
        return tuple(sorted(set().union(*(self.labels_of(split) for split in SPLITS))))

    def labels_of(self, split: str) -> set[str]:
        """The labels of the rows in a split."""
        chosen = (self._rows_of_line > 0) & _is(self.split, split)
        texts = (self.label.values[number] for number in np.unique(self.label.number[chosen]))
        return {label for text in texts for label in labels_in(text, self.label_separator)}

    @cached_property
    def _rows_of_line(self) -> NDArray[np.int32]:
        """How many rows each of `lines` has."""
        return np.bincount(self.line, minlength=len(self.label.number)).astype(np.int32)

    def numbers(self, split: str | None = None) -> NDArray[np.intp]:
        """Row numbers of a split that have a label, increasing; those of every row where split is None."""
        if split is None:
            return np.arange(len(self.features))
        if split not in SPLITS:
            raise UsageError(f"split {split!r}: expected train, val or test")
        return np.flatnonzero((_is(self.split, split) & ~_is(self.label, ""))[self.line])

    def labels(self, split: str | None = None) -> NDArray[np.int64]:
        """Class numbers of a split's rows, int64; of all rows -1 where there is no label.

        Where an image may have several labels, an indicator (n, classes) of 0 and 1 instead of (n,).
        """
        label = self.label
        codes = encoded(label.values, self.label_separator, classes=self.classes)
        line = self.line if split is None else self.line[self.numbers(split)]
        return codes[label.number[line]]

    def arrays(self, split: str | None = None) -> tuple[Array, NDArray[np.int64]]:
        """Features and class numbers of a split, read into memory.

        Returns
        -------
        X : ndarray of shape (n, h, w, c), or (n, c) where pooled
        y : ndarray of shape (n,), int64; `classes[y[i]]` is the label. Of several labels an image (n, classes), 0 or 1
        """
        return self.features[self.numbers(split)], self.labels(split)

    def blocks(self, split: str | None = None) -> Iterator[tuple[Array, NDArray[np.int64]]]:
        """Features and class numbers of a split in row order, a block of at most a shard's rows (16 MB) at a time.

        Yields X of shape (n, h, w, c), or (n, c) where pooled, and y of shape (n,), int64. Each chunk is read once.
        """
        numbers, y = self.numbers(split), self.labels(split)
        return ((X, y[place]) for place, X in self.features.blocks(numbers))

    def batches(
        self,
        split: str | None = "train",
        batch_size: int = 32,
        *,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = False,
        buffer_rows: int | None = None,
    ) -> Batches:
        """The batches of one epoch of a split: iterating yields (X, y), `len` is their number.

        Every row of the split comes once (but for a last batch that is left out with `drop_last`), and no chunk is
        read twice. The order follows from `seed` and `epoch` (and from the sizes, where the split is larger than the
        buffer), never from what was drawn before: `batches(...).order` are the row numbers, and batch i has those
        from i * batch_size on. `shuffle=False` gives row order.

        Shuffling is by blocks. The chunks of the split (rows that lie together, so a few images and their views)
        are put into random order; as many as hold `buffer_rows` rows are read, and rows are shuffled among them. A
        split that fits into the buffer is shuffled perfectly, each order as likely as any other. Of a larger one,
        each buffer is a random choice of chunks: rows of one chunk meet in one buffer (or two that follow each
        other), so where neighbours in the cache are of one class, the shares of the classes vary between buffers as
        among buffer_rows / 16 independent rows.

        In memory are one buffer, at most two shards (16 MB each) while it is filled, one batch, and 8 bytes a row
        for each of a few arrays of row numbers. `buffer_rows` is by default what fits into 256 MB; it is rounded
        down to whole batches, and is a batch at least.

        Raises UsageError where the split is unknown or empty, or a number is out of its range.
        """
        numbers = self.numbers(split)
        if not len(numbers):
            raise UsageError(f"{self.name}: split {split!r} has no rows")
        if buffer_rows is None:
            buffer_rows = default_buffer_rows(self.features.layout, shuffle)
        return Batches(
            features=self.features,
            labels=self.labels(),
            rows=numbers,
            batch_size=batch_size,
            buffer_rows=buffer_rows,
            shuffle=shuffle,
            seed=seed,
            epoch=epoch,
            drop_last=drop_last,
        )

    def to_tf(self, split: str | None = "train", batch_size: int = 32, *, one_hot: bool = False, **options: Any) -> Any:
        """A `tf.data.Dataset` of the batches of a split: (X float32, y int64), or y one-hot float32.

        options : as of `batches`; the first iteration is epoch `epoch`, and each one more is the next epoch

        Shapes and the number of batches are known to TensorFlow. Damage that is met while reading comes as
        TensorFlow's own error, with the message of the CacheError in it.
        """
        return adapters.to_tf(self.batches(split, batch_size, **options), len(self.classes), one_hot=one_hot)

    def to_torch(self, split: str | None = "train", batch_size: int = 32, **options: Any) -> TorchBatches:
        """A `torch.utils.data.IterableDataset` of the batches of a split: (X float32, y int64).

        options : as of `batches`

        Use `DataLoader(dataset, batch_size=None)`, with workers if you like, and call `dataset.set_epoch(epoch)`
        before each epoch. Raises UsageError where PyTorch is not installed.
        """
        return adapters.to_torch(self.batches(split, batch_size, **options))

    def to_sklearn(self, split: str | None = None) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.str_]]:
        """What scikit-learn takes, read into memory: X, y and groups of a split, or of all rows.

        Returns
        -------
        X : ndarray of shape (n, n_features), float32: each row flattened
        y : ndarray of shape (n,): labels as text. Of several labels an image (n, classes), 0 or 1
        groups : ndarray of shape (n,): rows of one group (one patient, one image with its views) belong together;
            give it to `cross_val_score(..., groups=groups, cv=GroupKFold())`
        """
        numbers = self.numbers(split)
        X = np.empty((len(numbers), int(np.prod(self.features.shape[1:]))), np.float32)
        for place, block in self.features.blocks(numbers):
            X[place] = block.reshape(len(block), -1)
        lines = self.rows.iloc[numbers]
        y = self.labels(split) if self.label_separator else lines["label"].to_numpy(dtype=str)
        return X, y, lines["group"].to_numpy(dtype=str)

    def replace_dataset(self, dataset: Dataset) -> bool:
        """Take over the labels, splits, groups and paths of `dataset`; no feature byte is touched.

        Returns whether anything changed. The manifest is what commits: the new copy waits beside under
        another name, and whoever opens the cache after a crash gives it its own.
        """
        if dataset.digest == self.manifest.dataset_digest:
            return False
        with writing(self.folder), self._replacing() as leases, leases.holding("labels"):
            self.manifest = read_manifest(self.folder)  # another process may have been quicker
            changed = dataset.digest != self.manifest.dataset_digest
            if changed:
                self._finish_replacing()  # it may have been stopped: what is promised must not be written over
                self._replace_labels(dataset)
        self._forget(("dataset", "label_separator"))
        return changed

    def _forget(self, names: Sequence[str] = ()) -> None:
        """What follows from labels, splits and groups is looked at again."""
        for name in (
            *names,
            "lines",
            "line",
            "label",
            "split",
            "groups",
            "group_of_line",
            "rows",
            "classes",
            "_rows_of_line",
        ):
            self.__dict__.pop(name, None)

    @contextmanager
    def _replacing(self) -> Iterator[Leases]:
        leases = Leases(self.folder / LEASES_FOLDER)
        try:
            yield leases
        finally:
            leases.close()
            with suppress(OSError):  # others wait in it
                leases.folder.rmdir()

    def _replace_labels(self, dataset: Dataset) -> None:
        from featcache.store.row_counts import counts_in
        from featcache.store.tables import write_dataset_copy

        waiting = self.folder / LABELS_WAITING_FILE
        write_dataset_copy(waiting, images_of(dataset, set(self.keys.image_ids())))
        self.manifest = self.manifest.with_labels(
            file_entry(waiting),
            dataset_digest=dataset.digest,
            separator=dataset.label_separator,
            counts=counts_in(self.folder / ROWS_FILE, waiting),
        )
        self.manifest.write(self.folder)
        self._finish_replacing()

    def relabelled(self, images: Sequence[LabelledImage], changed: int, *, label_separator: str | None = None) -> Cache:
        """This cache with other labels, splits and groups, which `images` gives for all of its images.

        Nothing on the disk changes. `manifest.dataset_digest` is that of the images, so that runs are named by it.

        changed : how many of the images differ from the cache's own copy
        label_separator : of these labels; None for the cache's own
        """
        separator = self.label_separator if label_separator is None else label_separator
        other = copy(self)
        other._original = self  # of a cache on a remote, what is kept here goes with it
        lines = {image.image_id: image for image in images}
        frame = self.dataset.copy()
        for name in ("label", "split", "group"):
            frame[name] = [getattr(lines[image_id], name) for image_id in frame["image_id"]]
        other._forget()
        other.__dict__.update(dataset=frame, relabelled_images=changed, label_separator=separator)
        digest = Dataset(tuple(images), self.folder, label_separator=separator).digest
        other.manifest = self.manifest.model_copy(update={"dataset_digest": digest})
        return other

    def bytes(self) -> int:
        """Size of all files on disk."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def _repr_html_(self) -> str:
        space = self.recipe.space
        what = f"{space.backbone}, {space.layer}, {space.input_size_px} px, pooling {space.pooling}"
        shape = "x".join(map(str, self.features.shape))
        import pandas as pd

        counts = pd.DataFrame(self.row_counts()).T.fillna(0).astype(int).to_html()
        return f"<b>{escape(self.name)}</b><p>{escape(what)}; {shape} {self.features.dtype}</p>{counts}"

    def __repr__(self) -> str:
        return f"Cache({self.name}: {self.features.shape} {self.features.dtype})"

    def _read_recipe(self) -> Recipe:
        recipe = read_recipe(self.folder)
        if recipe.digest != self.manifest.recipe_digest:
            raise CacheError(f"{self.folder / RECIPE_FILE}: is not the recipe of the manifest")
        if self.manifest.name != cache_name(
            recipe.space.backbone, self.manifest.digest, format_=self.manifest.array.format
        ):
            raise CacheError(f"{self.folder}: the manifest's name {self.manifest.name} is not that of its digest")
        if recipe.space.dtype != self.manifest.array.dtype:
            raise CacheError(
                f"{self.folder / RECIPE_FILE}: says {recipe.space.dtype}, the features are {self.manifest.array.dtype}"
            )
        return recipe

    def _finish_replacing(self) -> None:
        """Give a waiting dataset copy its name, if it is the one that the manifest promises. Hold "labels" for it."""
        waiting = self.folder / LABELS_WAITING_FILE
        if file_of(self.folder, self.manifest, name=DATASET_FILE) == waiting:
            waiting.replace(self.folder / DATASET_FILE)

    def _finish_stopped_replacing(self) -> None:
        """The same for what a stopped process left; where that cannot be done it is read under the name that it has."""
        if file_of(self.folder, self.manifest, name=DATASET_FILE).name != LABELS_WAITING_FILE:
            return
        with suppress(OSError), self._replacing() as leases:  # it may only be read; or somebody else was quicker
            if leases.claim("labels"):
                self.manifest = read_manifest(self.folder)
                self._finish_replacing()

    def _check_sizes(self) -> None:
        dataset = str(file_of(self.folder, self.manifest, name=DATASET_FILE))
        for name, entry in self.manifest.files.items():
            path = dataset if name == DATASET_FILE else f"{self.folder}/{name}"  # texts: there may be very many
            try:
                try:
                    status = os.stat(path)  # noqa: PTH116
                except (FileNotFoundError, NotADirectoryError):
                    status = None
                if status is None or not stat.S_ISREG(status.st_mode):
                    raise CacheError(f"{self.name}: {name} is missing: its extract command computes it again")
                if status.st_size != entry.bytes:
                    raise CacheError(f"{self.name}: {name}: expected {entry.bytes} bytes, found {status.st_size}")
            except OSError as error:
                raise CacheError(f"{self.name}: {name:.80}: cannot be read: {error.strerror}") from error

    def _check_digest(self, name: str) -> None:
        """The tables are small, and a wrong one gives every feature another meaning: their bytes are checked."""
        try:
            try:
                found = file_entry(file_of(self.folder, self.manifest, name=name))
            except FileNotFoundError:  # labels that waited and have their name now
                found = file_entry(self.folder / name)
        except OSError as error:
            raise CacheError(f"{self.name}: {name}: cannot be read: {error.strerror}") from error
        if found != self.manifest.files[name]:
            raise CacheError(f"{self.name}: {name} is not that of the manifest; was it replaced? Open it again")


def _is(column: Coded, text: str) -> NDArray[np.bool_]:
    """Which lines of a column are this text."""
    return np.isin(column.number, [number for number, value in enumerate(column.values) if value == text])


def _arrow(texts: Any) -> pa.Array:
    """A column of text in Arrow's memory."""
    import pyarrow as pa

    found = pa.array(texts, pa.large_string())
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def file_of(folder: Path, manifest: Manifest, *, name: str) -> Path:
    """Where a file that a manifest promises lies.

    Labels that were replaced by a process which was stopped before its last step still wait beside.
    """
    waiting = folder / LABELS_WAITING_FILE
    if name == DATASET_FILE and waiting.is_file() and not waiting.is_symlink():
        with suppress(OSError):
            if file_entry(waiting) == manifest.files.get(name):
                return waiting
    return folder / name


def open_cache(path: str | Path, reader: ReaderName = "auto") -> Cache:
    """Open a finished cache by its folder.

    reader : what decodes a Zarr cache: "zarr" (zarr-python) or "tensorstore" (faster; `pip install
        'featcache[fast]'`); by default tensorstore where it is installed

    Raises CacheNotFoundError where there is none or it was never finished, CacheError where it is damaged.
    """
    return Cache(Path(path), reader)
