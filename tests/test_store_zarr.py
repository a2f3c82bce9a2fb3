"""Zarr v3 as a store: the contract, plain zarr reading what it wrote, and damage to zarr.json."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import zarr
from test_store_contract import (
    FeatureStoreContract,
    dataset,
    fake_features,
    recipe,
    rows_for,
    written,
    zarr_shard_bytes,
)

from featcache.core.errors import CacheError
from featcache.store.contract import FeatureStore
from featcache.store.layout import FORMATS, Format, Layout, layout_for
from featcache.store.writer import CacheWriter
from featcache.store.zarr_store import ZarrStore

LAYOUT = Layout(70, (2, 3, 4), "float32", 16, 32)


class TestZarrStore(FeatureStoreContract):
    def make(self, parent: Path, layout: Layout) -> ZarrStore:
        return ZarrStore(parent, layout)

    def shard_bytes(self, store: FeatureStore, shard: int) -> tuple[Path, np.ndarray]:
        return zarr_shard_bytes(store, shard)


@pytest.fixture
def store(tmp_path: Path) -> ZarrStore:
    store = ZarrStore(tmp_path, LAYOUT)
    written(store, fake_features(70, LAYOUT.row_shape))
    return store


def test_plain_zarr_reads_the_array(store: ZarrStore) -> None:
    array = zarr.open_array(store.path, mode="r")
    assert array.metadata.zarr_format == 3
    assert (array.shape, array.dtype, array.chunks, array.shards) == (
        (70, 2, 3, 4),
        np.dtype("float32"),
        (16, 2, 3, 4),
        (32, 2, 3, 4),
    )
    np.testing.assert_array_equal(array[:], fake_features(70, (2, 3, 4)))
    codecs = (store.path / "zarr.json").read_text()
    assert '"checksum": true' in codecs
    assert '"crc32c"' in codecs


def test_only_shards_and_their_description_are_in_the_folder(store: ZarrStore) -> None:
    names = {path.relative_to(store.path).as_posix() for path in store.folder.rglob("*") if path.is_file()}
    assert names == {"zarr.json", "c/0/0/0/0", "c/1/0/0/0", "c/2/0/0/0"}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "null", "7", '"zarr"', "[" * 100_000, '{"zarr_format": 3}', "\x00", "{'a': 1}"],
    ids=range(11),
)
def test_a_zarr_json_that_is_none_is_one_error(store: ZarrStore, text: str) -> None:
    (store.path / "zarr.json").write_text(text)
    with pytest.raises(CacheError):
        ZarrStore(store.folder, LAYOUT).read(0, 70)


def test_a_zarr_json_with_a_flipped_bit_never_gives_other_numbers(store: ZarrStore) -> None:
    file, features = store.path / "zarr.json", fake_features(70, (2, 3, 4))
    whole, generator, caught = file.read_bytes(), np.random.default_rng(0), 0
    for place in generator.integers(0, 8 * len(whole), 300):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        file.write_bytes(bytes(flipped))
        try:
            found = ZarrStore(store.folder, LAYOUT).read(0, 70)
        except CacheError:
            caught += 1
        else:
            np.testing.assert_array_equal(found, features)
    assert caught > 200


@pytest.mark.parametrize("text", ["", "{", '{"zarr_format": 3}'])
def test_a_zarr_json_that_is_none_is_mended_only_where_that_is_asked(store: ZarrStore, text: str) -> None:
    description = store.path / "zarr.json"
    whole = description.read_bytes()
    description.write_text(text)
    with pytest.raises(CacheError):
        ZarrStore(store.folder, LAYOUT).create()
    assert description.read_text() == text
    again = ZarrStore(store.folder, LAYOUT)
    again.create(mend=True)
    assert description.read_bytes() == whole
    np.testing.assert_array_equal(again.read(0, 70), fake_features(70, (2, 3, 4)))


@pytest.mark.parametrize("format_", FORMATS)
def test_shards_are_a_power_of_two_of_rows_and_of_whole_chunks(format_: Format) -> None:
    for row_shape in ((512,), (7, 7, 512), (64, 64, 2048), (1,), (3, 5, 7)):
        for dtype in ("float32", "float16"):
            layout = layout_for(5000, row_shape, dtype=dtype, format_=format_)
            row_bytes = math.prod(row_shape) * np.dtype(dtype).itemsize
            assert layout.rows_per_shard % layout.rows_per_chunk == 0
            for rows in (layout.rows_per_shard, layout.rows_per_chunk):
                assert rows & (rows - 1) == 0
            assert layout.rows_per_shard * row_bytes <= max(row_bytes, 16 << 20)
            assert layout.rows_per_shard <= 256
            assert layout.n_shards == math.ceil(5000 / layout.rows_per_shard)


@pytest.mark.parametrize("format_", FORMATS)
def test_caches_of_many_small_rows_have_some_thousand_shards(format_: Format) -> None:
    few = layout_for(256 * 4096, (8,), dtype="float32", format_=format_)
    assert few.rows_per_shard == 256
    many = layout_for(10_000_000, (8,), dtype="float32", format_=format_)
    assert many.rows_per_shard == 4096
    assert many.rows_per_shard % many.rows_per_chunk == 0
    wide = layout_for(10_000_000, (7, 7, 1280), dtype="float32", format_=format_)
    assert wide.rows_per_shard == 64, "these are large as they are"
    assert layout_for(10_000_000, (1280,), dtype="float32", format_=format_).rows_per_shard == 512


def test_what_was_begun_in_smaller_shards_goes_on_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.store.layout._MAX_ROWS_PER_SHARD", 8)
    how, rows, X = recipe(), rows_for(dataset(40)), fake_features(40, (8,))
    with CacheWriter(tmp_path, how, rows=rows, row_shape=(8,)) as writer:
        writer.write(1, X[8:16])
    monkeypatch.setattr("featcache.store.layout._FEW_SHARDS", 2)
    with CacheWriter(tmp_path, how, rows=rows, row_shape=(8,)) as writer:
        assert writer.store.layout.rows_per_shard == 8
        assert writer.missing == [0, 2, 3, 4]
    fresh = tmp_path / "fresh"
    with CacheWriter(fresh, how, rows=rows, row_shape=(8,)) as writer:
        assert writer.store.layout.rows_per_shard == 32
        writer.write(0, X[:32])
    with CacheWriter(fresh, how, rows=rows, row_shape=(8,)) as writer:
        assert writer.missing == [1]
