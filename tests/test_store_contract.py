"""What every storage format must do: one suite that the tests of each format inherit; and small caches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.dataset.manifest import SPLITS, Dataset, LabelledImage
from featcache.errors import CacheError
from featcache.extract import rows_of
from featcache.files import PARTIAL_SUFFIX
from featcache.recipe import Augmentation, FeatureSpace, Recipe
from featcache.store.cache import Cache, open_cache
from featcache.store.contract import FeatureStore
from featcache.store.layout import Layout
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
    parent: Path, images: Dataset, features: np.ndarray, views: int = 1, dtype: str = "float32", **augmentation: Any
) -> Cache:
    """A finished cache of given features, `views` rows an image."""
    how = recipe(dtype, **augmentation)
    rows = rows_of(images.images, [views] * len(images.images), how)
    writer = CacheWriter(parent, how, rows, features.shape[1:])
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


def rows_for(images: Dataset, views: int = 1) -> list[Row]:
    """The rows of `views` views an image."""
    return rows_of(images.images, [views] * len(images.images), recipe())


class FeatureStoreContract:
    """Inherit, name the test class Test..., and say how a store is made."""

    LAYOUTS = (
        Layout(70, (2, 3, 4), "float32", 16, 32),
        Layout(64, (5,), "float32", 16, 32),
        Layout(3, (2, 2, 2), "float16", 16, 1024),
    )

    def make(self, parent: Path, layout: Layout) -> FeatureStore:
        raise NotImplementedError

    @pytest.fixture(params=LAYOUTS, ids=lambda layout: "x".join(map(str, layout.shape)))
    def layout(self, request: pytest.FixtureRequest) -> Layout:
        return request.param

    @pytest.fixture
    def features(self, layout: Layout) -> np.ndarray:
        return fake_features(layout.n_rows, layout.row_shape, dtype=layout.dtype)

    def written(self, parent: Path, layout: Layout, features: np.ndarray, order: Sequence[int] = ()) -> FeatureStore:
        store = self.make(parent, layout)
        store.create()
        for shard in order or range(layout.n_shards):
            start, stop = layout.span(shard)
            store.write_shard(shard, features[start:stop])
        return store

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
        one, other = tmp_path / "one", tmp_path / "other"
        first = self.written(one, layout, features)
        second = self.written(other, layout, features, list(reversed(range(layout.n_shards))))
        for shard in range(layout.n_shards):
            assert first.shard_file(shard).read_bytes() == second.shard_file(shard).read_bytes()

    def test_a_shard_of_zeros_is_a_file_and_zeros(self, tmp_path: Path, layout: Layout) -> None:
        zeros = np.zeros(layout.shape, layout.dtype)
        store = self.written(tmp_path, layout, zeros)
        assert all(store.shard_file(shard).stat().st_size > 0 for shard in range(layout.n_shards))
        np.testing.assert_array_equal(store.read(0, layout.n_rows), zeros)

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
        assert not store.shard_file(layout.n_shards - 1).exists()

    def test_creating_again_keeps_what_is_there(self, tmp_path: Path, layout: Layout, features: np.ndarray) -> None:
        self.written(tmp_path, layout, features)
        again = self.make(tmp_path, layout)
        again.create()
        np.testing.assert_array_equal(again.read(0, layout.n_rows), features)

    def test_an_array_of_another_description_is_refused(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        self.written(tmp_path, layout, features)
        others = (
            Layout(layout.n_rows + 1, layout.row_shape, layout.dtype, 16, layout.rows_per_shard),
            Layout(layout.n_rows, (*layout.row_shape[:-1], 9), layout.dtype, 16, layout.rows_per_shard),
            Layout(layout.n_rows, layout.row_shape, "float64", 16, layout.rows_per_shard),
            Layout(layout.n_rows, layout.row_shape, layout.dtype, 16, layout.rows_per_shard * 2),
            Layout(layout.n_rows, layout.row_shape, layout.dtype, 8, layout.rows_per_shard),
        )
        for other in others:
            with pytest.raises(CacheError, match="expected"):
                self.make(tmp_path, other).create()

    def test_what_an_interrupted_writer_left_is_swept_away(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        self.written(tmp_path, layout, features)
        folder, file = tmp_path / f".abc{PARTIAL_SUFFIX}", tmp_path / f".def{PARTIAL_SUFFIX}.json"
        folder.mkdir()
        (folder / "zarr.json").write_text("{")
        file.write_text("{")
        self.make(tmp_path, layout).create()
        assert not folder.exists()
        assert not file.exists()

    def test_writing_leaves_nothing_behind(self, tmp_path: Path, layout: Layout, features: np.ndarray) -> None:
        store = self.written(tmp_path, layout, features)
        with pytest.raises(ValueError, match="expected"):
            store.write_shard(0, features[:1, ..., :1])
        assert not [path for path in tmp_path.rglob("*") if PARTIAL_SUFFIX in path.name]

    def test_a_missing_or_empty_shard_is_an_error_and_not_zeros(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        store = self.written(tmp_path, layout, features)
        last = layout.n_shards - 1
        store.shard_file(last).write_bytes(b"")
        with pytest.raises(CacheError, match="empty"):
            store.read(0, layout.n_rows)
        store.shard_file(last).unlink()
        with pytest.raises(CacheError, match="cannot be read"):
            store.read(0, layout.n_rows)
        start, _ = layout.span(last)
        np.testing.assert_array_equal(store.read(0, start), features[:start])

    def test_a_flipped_bit_or_a_truncated_shard_never_gives_other_numbers(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        store = self.written(tmp_path, layout, features)
        file = store.shard_file(0)
        whole = file.read_bytes()
        start, stop = layout.span(0)
        generator = np.random.default_rng(0)
        caught = 0
        for place in generator.integers(0, 8 * len(whole), 60):
            flipped = bytearray(whole)
            flipped[place // 8] ^= 1 << (place % 8)
            caught += self._is_caught(store, file, bytes(flipped), features[start:stop])
        assert caught > 50
        for length in generator.integers(1, len(whole), 20):
            assert self._is_caught(store, file, whole[:length], features[start:stop])

    def _is_caught(self, store: FeatureStore, file: Path, damaged: bytes, rows: np.ndarray) -> bool:
        file.write_bytes(damaged)
        try:
            found = store.read(0, len(rows))
        except CacheError:
            return True
        np.testing.assert_array_equal(found, rows)  # bits that no decoder looks at
        return False
