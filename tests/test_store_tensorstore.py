"""tensorstore as a reader: the contract of stores, the same numbers as zarr-python, no trace on the disk."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_store_contract import (
    FeatureStoreContract,
    dataset,
    fake_features,
    make_cache,
    small_shards,
    zarr_shard_bytes,
)

import featcache.store.tensorstore_reader as module
from featcache.core.errors import CacheError, MissingPackageError, UsageError
from featcache.store.cache import Cache, open_cache
from featcache.store.contract import FeatureStore
from featcache.store.features import Array, Features
from featcache.store.layout import Layout
from featcache.store.tensorstore_reader import TensorstoreReader, choose_reader
from featcache.store.zarr_store import ZarrStore

pytest.importorskip("tensorstore", reason="the optional reader is not installed")

N, SHAPE = 70, (3, 4, 5)
X = fake_features(N, SHAPE)


class ReadByTensorstore(ZarrStore):
    """A Zarr store whose rows are read by tensorstore."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        super().__init__(folder, layout)
        self._reader = TensorstoreReader(ZarrStore(folder, layout))

    def read(self, start: int, stop: int) -> Array:
        return self._reader.read(start, stop)


class TestReadByTensorstore(FeatureStoreContract):
    def make(self, parent: Path, layout: Layout) -> ZarrStore:
        return ReadByTensorstore(parent, layout)

    def shard_bytes(self, store: FeatureStore, shard: int) -> tuple[Path, np.ndarray]:
        return zarr_shard_bytes(store, shard)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    small_shards(monkeypatch, 32)
    return make_cache(tmp_path, dataset(N), X)


def shard_of(cache: Cache, number: int) -> Path:
    return cache.folder / "features.zarr" / "c" / str(number) / "0" / "0" / "0"


def test_it_is_taken_where_it_is_installed_and_no_other_is_named(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(cache.features._store, TensorstoreReader)
    assert isinstance(open_cache(cache.folder, reader="tensorstore").features._store, TensorstoreReader)
    assert isinstance(open_cache(cache.folder, reader="zarr").features._store, ZarrStore)
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    assert isinstance(open_cache(cache.folder).features._store, ZarrStore)
    with pytest.raises(MissingPackageError, match=r"pip install 'featcache\[fast\]'"):
        open_cache(cache.folder, reader="tensorstore")


@pytest.mark.parametrize("reader", ["", "h5py", "Zarr", None, 7])
def test_an_unknown_reader_is_a_usage_error(cache: Cache, reader: object) -> None:
    with pytest.raises(UsageError, match="expected auto, zarr or tensorstore"):
        open_cache(cache.folder, reader=reader)  # type: ignore[arg-type]


@pytest.mark.parametrize("reader", ["zarr", "tensorstore"])
def test_a_reader_of_zarr_is_refused_for_another_format(cache: Cache, reader: module.ReaderName) -> None:
    store = ZarrStore(cache.folder, cache.features.layout)
    store.format = "hdf5"
    assert choose_reader(store, "auto") is store
    with pytest.raises(UsageError, match="this one is hdf5"):
        choose_reader(store, reader)


def test_both_readers_give_the_same_numbers(cache: Cache) -> None:
    one, other = (open_cache(cache.folder, reader=name).features for name in ("zarr", "tensorstore"))
    for index in (slice(None), [69, 0, 33, 33, 16], 7, slice(5, 60, 9), []):
        np.testing.assert_array_equal(one[index], other[index], strict=True)
        np.testing.assert_array_equal(other[index], X[index], strict=True)


def test_spans_come_one_behind_the_other(cache: Cache) -> None:
    reader = cache.features._store
    assert isinstance(reader, TensorstoreReader)
    found = reader.read_spans([(3, 20), (30, 34), (5, 5), (69, 70), (0, 1)])
    np.testing.assert_array_equal(found, np.concatenate([X[3:20], X[30:34], X[69:], X[:1]]), strict=True)


def test_nothing_is_kept_or_written(cache: Cache) -> None:
    before = {path: path.read_bytes() for path in cache.folder.rglob("*") if path.is_file()}
    np.testing.assert_array_equal(np.asarray(cache.features), X)
    assert {path: path.read_bytes() for path in cache.folder.rglob("*") if path.is_file()} == before
    file = shard_of(cache, 1)
    whole = file.read_bytes()
    other = make_cache(cache.folder.parent / "other", dataset(N), -X)
    file.write_bytes(shard_of(other, 1).read_bytes())
    np.testing.assert_array_equal(cache.features[32:64], -X[32:64])
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CacheError, match="rows 32 to 64 cannot be read"):
        cache.features[32:64]
    file.write_bytes(whole)
    np.testing.assert_array_equal(cache.features[32:64], X[32:64])


def test_a_missing_shard_is_an_error_among_many_spans(cache: Cache) -> None:
    shard_of(cache, 1).unlink()
    for index in ([0, 40, 69], slice(None), 32):
        with pytest.raises(CacheError, match="cannot be read"):
            cache.features[index]
    np.testing.assert_array_equal(cache.features[[0, 69]], X[[0, 69]])


def test_a_zarr_json_with_a_flipped_bit_never_gives_other_numbers(cache: Cache) -> None:
    file = cache.folder / "features.zarr" / "zarr.json"
    whole, generator, caught = file.read_bytes(), np.random.default_rng(0), 0
    for place in generator.integers(0, 8 * len(whole), 200):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        file.write_bytes(bytes(flipped))
        try:
            found = TensorstoreReader(ZarrStore(cache.folder, cache.features.layout)).read(0, N)
        except CacheError:
            caught += 1
        else:
            np.testing.assert_array_equal(found, X)
    assert caught > 130


def test_it_can_be_pickled_and_read_elsewhere(cache: Cache) -> None:
    for features in (cache.features, open_cache(cache.folder, reader="zarr").features):
        np.testing.assert_array_equal(features[:5], X[:5])
        copy = pickle.loads(pickle.dumps(features))
        assert isinstance(copy, Features)
        np.testing.assert_array_equal(np.asarray(copy), X)


PROGRAM = """
import multiprocessing, sys
import numpy as np
import featcache

def read(features, queue):
    queue.put(np.asarray(features).sum())

if __name__ == "__main__":
    features = featcache.open_cache(sys.argv[1]).features
    expected = np.asarray(features).sum()
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=read, args=(features, queue))
        child.start()
        assert queue.get(timeout=60) == expected, method
        child.join()
        assert child.exitcode == 0, method
    assert np.asarray(features).sum() == expected
    print("all read the same")
"""


def test_children_of_a_process_that_has_read_can_read_too(cache: Cache, tmp_path: Path) -> None:
    """tensorstore ends a forked child that uses it."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, script, cache.folder], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "all read the same\n", done.stderr


def test_a_broken_installation_reads_with_zarr_python(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    for index in (slice(None), [69, 0, 33]):
        np.testing.assert_array_equal(cache.features[index], X[index])


def test_it_is_loaded_when_something_is_read_and_not_before(cache: Cache) -> None:
    program = """
import sys, featcache
cache = featcache.open_cache(sys.argv[1])
print("tensorstore" in sys.modules, len(cache.features[:1]), "tensorstore" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program, cache.folder], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1", "True"]
