"""Zarr v3 as a store: the contract, plain zarr reading what it wrote, and damage to zarr.json."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from test_store_contract import FeatureStoreContract, fake_features

from featcache.errors import CacheError
from featcache.store.layout import Layout
from featcache.store.zarr import ZarrStore

LAYOUT = Layout(70, (2, 3, 4), "float32", 16, 32)


class TestZarrStore(FeatureStoreContract):
    def make(self, parent: Path, layout: Layout) -> ZarrStore:
        return ZarrStore(parent / "features.zarr", layout)


@pytest.fixture
def store(tmp_path: Path) -> ZarrStore:
    store = ZarrStore(tmp_path / "features.zarr", LAYOUT)
    store.create()
    for shard in range(LAYOUT.n_shards):
        start, stop = LAYOUT.span(shard)
        store.write_shard(shard, fake_features(*LAYOUT.shape[:1], LAYOUT.row_shape)[start:stop])
    return store


def test_plain_zarr_reads_the_array(store: ZarrStore) -> None:
    array = zarr.open_array(store.folder, mode="r")
    assert array.metadata.zarr_format == 3
    assert (array.shape, array.dtype, array.chunks, array.shards) == (
        (70, 2, 3, 4),
        np.dtype("float32"),
        (16, 2, 3, 4),
        (32, 2, 3, 4),
    )
    np.testing.assert_array_equal(array[:], fake_features(70, (2, 3, 4)))
    codecs = (store.folder / "zarr.json").read_text()
    assert '"checksum": true' in codecs
    assert '"crc32c"' in codecs


def test_only_shards_and_their_description_are_in_the_folder(store: ZarrStore) -> None:
    names = {path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*") if path.is_file()}
    assert names == {"zarr.json", "c/0/0/0/0", "c/1/0/0/0", "c/2/0/0/0"}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "null", "7", '"zarr"', "[" * 100_000, '{"zarr_format": 3}', "\x00", "{'a': 1}"],
    ids=range(11),
)
def test_a_zarr_json_that_is_none_is_one_error(store: ZarrStore, text: str) -> None:
    (store.folder / "zarr.json").write_text(text)
    with pytest.raises(CacheError):
        ZarrStore(store.folder, LAYOUT).read(0, 70)


def test_a_zarr_json_with_a_flipped_bit_never_gives_other_numbers(store: ZarrStore) -> None:
    file, features = store.folder / "zarr.json", fake_features(70, (2, 3, 4))
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


def test_shards_have_64_mb_or_1024_rows() -> None:
    from featcache.store.layout import layout_for

    assert layout_for(5000, (512,), "float32").rows_per_shard == 1024
    assert layout_for(5000, (7, 7, 512), "float32").rows_per_shard == 656  # 62.8 MiB
    assert layout_for(5000, (64, 64, 2048), "float32").rows_per_shard == 16  # one chunk is the least
    assert layout_for(5000, (7, 7, 512), "float32").n_shards == 8
