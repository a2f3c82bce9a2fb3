"""Products with features that are streamed from a cache, against plain NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_store_contract import dataset, fake_features, make_cache, small_shards

from featcache.core import machine
from featcache.heads import products
from featcache.store.cache import Features

N, SHAPE = 150, (3, 2, 5)
X = fake_features(N, SHAPE)
FLAT = X.reshape(N, -1).astype("float64")
SUBSETS = [np.arange(N), np.arange(3, 140, 7), np.array([149, 0, 75, 75, 3, 148, 17, 16, 15]), np.array([], int)]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 32)
        features = make_cache(tmp_path_factory.mktemp("features"), dataset(N), X).features
    assert features._store.layout.n_shards == 5
    return features


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-6)])
@pytest.mark.parametrize("numbers", SUBSETS, ids=len)
def test_products_are_those_of_numpy(features: Features, numbers: np.ndarray, dtype: str, tolerance: float) -> None:
    generator = np.random.default_rng(1)
    W, A = generator.standard_normal((30, 7)).astype(dtype), generator.standard_normal((len(numbers), 7)).astype(dtype)
    for found, expected in (
        (products.times(features, numbers, W=W), FLAT[numbers] @ W),
        (products.transposed_times(features, numbers, A=A), FLAT[numbers].T @ A),
        (products.inner(features, numbers, right=SUBSETS[1], dtype=dtype), FLAT[numbers] @ FLAT[SUBSETS[1]].T),
        (products.inner(features, numbers, right=numbers, dtype=dtype), FLAT[numbers] @ FLAT[numbers].T),
    ):
        assert found.dtype == dtype
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=tolerance * max(np.abs(expected).max(initial=1), 1))
    if len(numbers):
        expected_norm = (FLAT[numbers] ** 2).sum(axis=1).mean()
        assert products.squared_norms(features, numbers).mean() == pytest.approx(expected_norm, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("free_bytes", [0, 64 * 30 * 4 * 4, 1 << 40])
def test_the_gram_matrix_is_symmetric_to_the_bit_however_little_memory_there_is(
    features: Features, dtype: str, free_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: free_bytes)
    spans = list(products._held_spans(features, N, dtype))
    assert len(spans) == (1 if free_bytes == 1 << 40 else 3)
    assert [number for span in spans for number in range(N)[span]] == list(range(N))
    unsorted = np.random.default_rng(2).permutation(N)
    for numbers in (np.arange(N), unsorted):
        K = products.inner(features, numbers, right=numbers, dtype=dtype)
        np.testing.assert_array_equal(K, K.T)
        np.testing.assert_allclose(K, FLAT[numbers] @ FLAT[numbers].T, rtol=1e-5)
        val = products.inner(features, SUBSETS[2], right=numbers, dtype=dtype)
        np.testing.assert_allclose(val, FLAT[SUBSETS[2]] @ FLAT[numbers].T, rtol=1e-5)


def test_blocks_are_flat_and_bounded(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_BLOCK_BYTES", 48 * 30 * 8)
    seen = list(products.blocks(features, np.arange(N), dtype="float64"))
    assert [block.shape for _, block in seen] == [(48, 30)] * 3 + [(6, 30)]
    assert all(block.dtype == np.float64 for _, block in seen)
    np.testing.assert_array_equal(np.concatenate([block for _, block in seen]), FLAT)


def test_free_memory_is_between_nothing_and_all_there_is(tmp_path: Path) -> None:
    import os

    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1 << 20 < machine.available_bytes() <= everything
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.available_bytes() > free * 0.7  # what caches files is free too
