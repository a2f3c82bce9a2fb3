"""What every storage format must do: one suite that the tests of each format inherit; and small caches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.core.errors import CacheError
from featcache.core.files import PARTIAL_SUFFIX
from featcache.core.recipe import Augmentation, FeatureSpace, Recipe
from featcache.datasets.manifest import SPLITS, Dataset, LabelledImage
from featcache.extraction.rows import rows_of
from featcache.store.cache import Cache, open_cache
from featcache.store.contract import FeatureStore, Stored
from featcache.store.layout import Format, Layout
from featcache.store.tables import Row
from featcache.store.writer import CacheWriter

LABELS = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


def recipe(dtype: str = "float32", **augmentation: Any) -> Recipe:
    """A recipe of a backbone that does not exist."""
    space = FeatureSpace("tiny", "last", 32, "none", "none", "0" * 64, dtype)
    return Recipe(space, Augmentation(**augmentation))


def image(number: int, label: str, split: str, group: str = "") -> LabelledImage:
    """A line of a dataset; there is no file behind it."""
    identity = hashlib.sha256(str(number).encode()).hexdigest()
    return LabelledImage(f"{label}/{number:04d}.png", label, split, group or f"g{number}", identity)


def dataset(n_images: int, labels: Sequence[str] = LABELS) -> Dataset:
    """Images of every class in every split, from 3 * len(labels) of them on: the test split takes every fifth."""
    images = []
    for number in range(n_images):
        turn = number // len(labels)
        split = SPLITS[turn] if turn < 3 else ("test" if turn % 5 == 0 else "val" if turn % 5 == 1 else "train")
        images.append(image(number, labels[number % len(labels)], split))
    return Dataset(tuple(images), Path())


def fake_features(rows: int, row_shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Sparse and non-negative, as after a ReLU."""
    return np.maximum(np.random.default_rng(seed).standard_normal((rows, *row_shape)), 0).astype(dtype)


def fill(writer: CacheWriter, features: np.ndarray) -> list[int]:
    """Write what is missing; the shards that were."""
    missing = writer.missing
    for shard in missing:
        start, stop = writer.store.layout.span(shard)
        writer.write(shard, features[start:stop])
    return missing


def make_cache(
    parent: Path,
    images: Dataset,
    features: np.ndarray,
    views: int = 1,
    dtype: str = "float32",
    format_: Format = "zarr",
    **augmentation: Any,
) -> Cache:
    """A finished cache of given features, `views` rows an image."""
    how = recipe(dtype, **augmentation)
    rows = rows_of(images.images, [views] * len(images.images), recipe=how)
    with CacheWriter(parent, how, rows=rows, row_shape=features.shape[1:], format_=format_) as writer:
        fill(writer, features)
        writer.finish(images, {"engine": "none"})
    return open_cache(writer.folder)


def feature_bytes(folder: Path) -> dict[str, bytes]:
    """Every file under a cache's folder of features, by its path."""
    files = (path for path in sorted((folder / "features.zarr").rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def small_shards(monkeypatch: pytest.MonkeyPatch, rows_per_shard: int = 16) -> None:
    """Caches made in this test have shards of few rows."""
    monkeypatch.setattr("featcache.store.layout._MAX_ROWS_PER_SHARD", rows_per_shard)


def rows_for(images: Dataset, views: int = 1, how: Recipe | None = None) -> list[Row]:
    """The rows of `views` views an image."""
    return rows_of(images.images, [views] * len(images.images), recipe=how or recipe())


def zarr_shard_bytes(store: FeatureStore, shard: int) -> tuple[Path, np.ndarray]:
    """The file that a shard of a Zarr cache lies in, and the places of the shard's bytes in it: all."""
    file = store.folder.joinpath("features.zarr", "c", str(shard), *("0" for _ in store.layout.row_shape))
    return file, np.arange(file.stat().st_size)


class FeatureStoreContract:
    """Inherit, name the test class Test..., say how a store is made and where the bytes of a shard lie."""

    LAYOUTS = (
        Layout(70, (2, 3, 4), "float32", 16, 32),
        Layout(64, (5,), "float32", 16, 32),
        Layout(3, (2, 2, 2), "float16", 16, 1024),
        Layout(40, (4, 4, 3), "uint8", 16, 32),
    )

    def make(self, parent: Path, layout: Layout) -> FeatureStore:
        raise NotImplementedError

    def others(self, layout: Layout) -> tuple[Layout, ...]:
        """Layouts that the array as it lies there can be told from."""
        return others(layout)

    def shard_bytes(self, store: FeatureStore, shard: int) -> tuple[Path, np.ndarray]:
        """The file that a shard lies in, and the places of the shard's bytes in it."""
        raise NotImplementedError

    @pytest.fixture(params=LAYOUTS, ids=lambda layout: "x".join(map(str, layout.shape)))
    def layout(self, request: pytest.FixtureRequest) -> Layout:
        return request.param

    @pytest.fixture
    def features(self, layout: Layout) -> np.ndarray:
        return fake_features(layout.n_rows, layout.row_shape, dtype=layout.dtype)

    def written(self, parent: Path, layout: Layout, features: np.ndarray, order: Sequence[int] = ()) -> FeatureStore:
        """A store of these features, in the state that this suite is about."""
        return written(self.make(parent, layout), features, order)

    def test_shards_go_in_in_any_order_and_the_last_may_be_short(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        backwards = list(reversed(range(layout.n_shards)))
        store = self.written(tmp_path, layout, features, backwards)
        found = store.read(0, layout.n_rows)
        assert found.dtype == layout.dtype
        np.testing.assert_array_equal(found, features)

    def test_any_span_can_be_read_by_another_store(self, tmp_path: Path, layout: Layout, features: np.ndarray) -> None:
        self.written(tmp_path, layout, features)
        store = self.make(tmp_path, layout)
        borders = [0, 1, 15, 16, 17, 31, 32, 33, layout.n_rows - 1, layout.n_rows]
        for start in borders:
            for stop in (border for border in borders if start <= border <= layout.n_rows):
                np.testing.assert_array_equal(store.read(start, stop), features[start:stop])

    def test_the_same_rows_give_the_same_bytes(self, tmp_path: Path, layout: Layout, features: np.ndarray) -> None:
        self.written(tmp_path / "one", layout, features)
        self.written(tmp_path / "other", layout, features, list(reversed(range(layout.n_shards))))
        found = all_bytes(tmp_path / "one")
        assert found
        assert found == all_bytes(tmp_path / "other")

    def test_a_shard_of_zeros_is_stored_and_zeros(self, tmp_path: Path, layout: Layout) -> None:
        zeros = np.zeros(layout.shape, layout.dtype)
        store = self.written(tmp_path, layout, zeros)
        sizes = [stored.bytes for shard in range(layout.n_shards) if (stored := store.stored(shard))]
        assert len(sizes) == layout.n_shards
        assert min(sizes) > 0
        np.testing.assert_array_equal(store.read(0, layout.n_rows), zeros)

    def test_what_writing_says_is_stored_lies_there_before_and_behind_the_end(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        store = self.make(tmp_path, layout)
        store.create()
        said: dict[int, Stored] = {}
        for shard in range(layout.n_shards):
            assert store.stored(shard) is None
            start, stop = layout.span(shard)
            said[shard] = store.write_shard(shard, features[start:stop])
        assert {shard: self.make(tmp_path, layout).stored(shard) for shard in said} == said
        store.finish()
        assert {shard: self.make(tmp_path, layout).stored(shard) for shard in said} == said

    def test_a_finished_array_is_the_files_that_it_says_and_finishing_again_changes_nothing(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        store = self.written(tmp_path, layout, features)
        store.finish()
        finished = all_bytes(tmp_path)
        assert sorted(finished) == sorted(store.files())
        shards = [shard for shard in store.files().values() if shard is not None]
        assert shards in ([], list(range(layout.n_shards)))
        for name, shard in store.files().items():
            if shard is not None:
                digest = hashlib.sha256(finished[name]).hexdigest()
                assert store.stored(shard) == Stored(len(finished[name]), digest)
        again = self.make(tmp_path, layout)
        again.create()
        again.finish()
        assert all_bytes(tmp_path) == finished
        np.testing.assert_array_equal(again.read(0, layout.n_rows), features)

    def test_rows_of_another_number_shape_or_dtype_are_refused(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        store = self.make(tmp_path, layout)
        store.create()
        start, stop = layout.span(layout.n_shards - 1)
        right = features[start:stop]
        for wrong in (right[:-1], np.concatenate([right, right]), right[..., :-1], right.astype("float64"), right[0]):
            with pytest.raises(ValueError, match="expected"):
                store.write_shard(layout.n_shards - 1, wrong)
        assert store.stored(layout.n_shards - 1) is None

    def test_creating_again_keeps_what_is_there(self, tmp_path: Path, layout: Layout, features: np.ndarray) -> None:
        self.written(tmp_path, layout, features)
        for mend in (False, True):
            again = self.make(tmp_path, layout)
            again.create(mend)
            np.testing.assert_array_equal(again.read(0, layout.n_rows), features)

    def test_an_array_of_another_description_is_refused(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        self.written(tmp_path, layout, features)
        for other in self.others(layout):
            with pytest.raises(CacheError, match="expected"):
                self.make(tmp_path, other).create()

    def test_writing_leaves_nothing_behind(self, tmp_path: Path, layout: Layout, features: np.ndarray) -> None:
        store = self.written(tmp_path, layout, features)
        with pytest.raises(ValueError, match="expected"):
            store.write_shard(0, features[:1, ..., :1])
        assert not [path for path in tmp_path.rglob("*") if PARTIAL_SUFFIX in path.name]

    def test_a_shard_can_be_written_again_and_changes_alone(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        store = self.written(tmp_path, layout, features)
        before = [store.stored(shard) for shard in range(layout.n_shards)]
        last, changed = layout.n_shards - 1, features.copy()
        start, stop = layout.span(last)
        changed[start:stop] += 1
        said = store.write_shard(last, changed[start:stop])
        for end in (lambda: None, store.finish):
            end()
            assert [store.stored(shard) for shard in range(layout.n_shards)] == [*before[:-1], said]
            np.testing.assert_array_equal(self.make(tmp_path, layout).read(0, layout.n_rows), changed)

    def test_a_missing_or_empty_shard_is_an_error_and_not_zeros(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        store = self.written(tmp_path, layout, features)
        last = layout.n_shards - 1
        file, places = self.shard_bytes(store, last)
        alone = len(places) == file.stat().st_size or layout.n_shards == 1 or file != self.shard_bytes(store, 0)[0]
        for spoil in (lambda: file.write_bytes(b""), file.unlink):
            spoil()
            with pytest.raises(CacheError, match="cannot be read"):
                store.read(0, layout.n_rows)
            if spoil == file.unlink:
                assert store.stored(last) is None
        if alone:
            start, _ = layout.span(last)
            np.testing.assert_array_equal(store.read(0, start), features[:start])

    def test_a_flipped_bit_or_a_truncated_shard_never_gives_other_numbers(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        store = self.written(tmp_path, layout, features)
        stored = store.stored(0)
        file, places = self.shard_bytes(store, 0)
        whole = file.read_bytes()
        start, stop = layout.span(0)
        generator = np.random.default_rng(0)
        caught = 0
        for place in generator.choice(places, 60):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(generator.integers(8))
            caught += is_caught(store, file, bytes(flipped), features[start:stop])
            assert store.stored(0) != stored
        assert caught > 50
        for length in generator.integers(1, len(whole), 20):
            assert is_caught(store, file, whole[:length], features[start:stop])
            assert store.stored(0) != stored
        file.write_bytes(whole)
        assert store.stored(0) == stored


def written(store: FeatureStore, features: np.ndarray, order: Sequence[int] = ()) -> FeatureStore:
    """The store with every shard of `features`, not finished."""
    store.create()
    for shard in order or range(store.layout.n_shards):
        start, stop = store.layout.span(shard)
        store.write_shard(shard, features[start:stop])
    return store


def others(layout: Layout) -> tuple[Layout, ...]:
    """Layouts that differ in one thing each."""
    return (
        replace(layout, n_rows=layout.n_rows + 1),
        replace(layout, row_shape=(*layout.row_shape[:-1], 9)),
        replace(layout, dtype="float64"),
        replace(layout, rows_per_shard=layout.rows_per_shard * 2),
        replace(layout, rows_per_chunk=8),
    )


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def is_caught(store: FeatureStore, file: Path, damaged: bytes, rows: np.ndarray) -> bool:
    """Whether reading the first rows says that their file was damaged; if it does not, they must be right."""
    file.write_bytes(damaged)
    try:
        found = store.read(0, len(rows))
    except CacheError:
        return True
    np.testing.assert_array_equal(found, rows)  # bits that no decoder looks at
    return False
