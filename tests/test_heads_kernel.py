"""Gram matrices kept beside a cache: right, computed once, never trusted blindly, on the disk where memory is short."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_heads_train import CONFIG, separable
from test_store_contract import dataset, make_cache, small_shards

from featcache.core.errors import HeadError
from featcache.heads import kernel as module, products
from featcache.heads.kernel import kernel, kernels_folder
from featcache.heads.train import SharedInputs, train_head
from featcache.store.cache import Cache, open_cache

IMAGES = dataset(120)
X = separable(IMAGES, (3, 2, 8))
EXACT = X.reshape(len(X), -1).astype("float64")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    small_shards(monkeypatch, 16)
    return make_cache(tmp_path, IMAGES, X)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shape of every matrix that is computed."""
    shapes: list[tuple[int, int]] = []
    inner = products.inner

    def counted(features: Any, left: Any, *, right: Any, **options: Any) -> Any:
        shapes.append((len(left), len(right)))
        return inner(features, left, right=right, **options)

    monkeypatch.setattr(products, "inner", counted)
    return shapes


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little that no matrix of these tests fits, nor all features."""
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: 4096)


def course(cache: Cache, **settings: Any) -> Any:
    trained = train_head(cache, replace(CONFIG, **settings), solver="gram")
    return [(entry.loss, entry.val_loss) for entry in trained.history], trained.head.layers[0][0]


def files(cache: Cache) -> list[str]:
    return sorted(path.suffix for path in kernels_folder(cache.folder).iterdir())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-6)])
@pytest.mark.parametrize("free_bytes", [4096, 1 << 40])
def test_it_is_right_and_symmetric(
    cache: Cache, dtype: str, tolerance: float, free_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: free_bytes)
    train, val = cache.numbers("train"), cache.numbers("val")
    for _ in range(2):  # computed, then read
        K, K_val = kernel(cache, train, right=train, dtype=dtype), kernel(cache, val, right=train, dtype=dtype)
        assert K.dtype == K_val.dtype == dtype
        np.testing.assert_array_equal(K, K.T)
        np.testing.assert_allclose(K, EXACT[train] @ EXACT[train].T, rtol=tolerance)
        np.testing.assert_allclose(K_val, EXACT[val] @ EXACT[train].T, rtol=tolerance)
        assert isinstance(K, np.memmap) == isinstance(K_val, np.memmap) == (free_bytes == 4096)


def test_every_head_uses_the_same(cache: Cache, computed: list[tuple[int, int]]) -> None:
    n, m = len(cache.numbers("train")), len(cache.numbers("val"))
    material = SharedInputs(cache)
    for seed in range(3):
        train_head(cache, replace(CONFIG, seed=seed), solver="gram", material=material)
        train_head(open_cache(cache.folder), replace(CONFIG, hidden=(4,), lr=0.01 * (1 + seed)), solver="gram")
    assert computed == [(n, n), (m, n)]
    assert files(cache) == [".json", ".json", ".npy", ".npy"]


def test_other_rows_and_another_dtype_are_another_one(cache: Cache, computed: list[tuple[int, int]]) -> None:
    train = cache.numbers("train")
    for rows, dtype in (
        (train, "float32"),
        (train, "float64"),
        (train[1:], "float32"),
        (train[::-1].copy(), "float32"),
    ):
        K = kernel(cache, rows, right=rows, dtype=dtype)
        np.testing.assert_allclose(K, EXACT[rows] @ EXACT[rows].T, rtol=1e-6)
    assert len(computed) == 4
    kernel(cache, train, right=train, dtype="float32")
    assert len(computed) == 4


def test_other_features_of_the_same_recipe_are_another_one(cache: Cache, computed: list[tuple[int, int]]) -> None:
    """As another engine computes them, or as a repaired cache has them."""
    train = cache.numbers("train")
    kernel(cache, train, right=train, dtype="float32")
    shutil.rmtree(cache.folder)
    other = make_cache(cache.folder.parent, IMAGES, X * np.float32(1.0001))
    assert other.folder == cache.folder
    K = kernel(other, train, right=train, dtype="float32")
    assert len(computed) == 2
    np.testing.assert_allclose(K, EXACT[train] @ EXACT[train].T * 1.0001**2, rtol=1e-6)


@pytest.mark.parametrize(
    "damage",
    [
        lambda npy, record: npy.write_bytes(npy.read_bytes()[:-1]),
        lambda npy, record: npy.write_bytes(npy.read_bytes()[:-1] + b"\x00"),
        lambda npy, record: npy.write_bytes(b""),
        lambda npy, record: npy.unlink(),
        lambda npy, record: record.unlink(),
        lambda npy, record: record.write_text("{"),
        lambda npy, record: record.write_text("[" * 100_000),
        lambda npy, record: _forged(npy, record, np.zeros((2, 2), "float32")),
        lambda npy, record: _forged(npy, record, np.array([{}], object)),
    ],
    ids=["cut", "flipped", "empty", "gone", "no record", "half a record", "deep record", "other shape", "pickle"],
)
def test_a_damaged_one_is_computed_again(
    cache: Cache, computed: list[tuple[int, int]], damage: Callable[[Path, Path], object]
) -> None:
    train = cache.numbers("train")
    expected = kernel(cache, train, right=train, dtype="float32")
    (npy,) = kernels_folder(cache.folder).glob("*.npy")
    damage(npy, npy.with_suffix(".json"))
    np.testing.assert_array_equal(kernel(cache, train, right=train, dtype="float32"), expected)
    assert len(computed) == 2
    kernel(cache, train, right=train, dtype="float32")
    assert len(computed) == 2


def _forged(npy: Path, record: Path, array: np.ndarray) -> None:
    np.save(npy, array, allow_pickle=True)
    record.write_text(json.dumps(module._record(npy)))


def test_on_the_disk_it_trains_the_same(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very matrix, in memory and mapped; and one that was computed with less memory, but for its last bits."""
    losses, W = course(cache, dropout=0.5)
    monkeypatch.setattr(module, "fits", lambda *_: False)
    mapped, W_mapped = course(cache, dropout=0.5)
    assert losses == mapped
    np.testing.assert_array_equal(W, W_mapped)
    shutil.rmtree(kernels_folder(cache.folder))
    again, W_again = course(cache, dropout=0.5)
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    np.testing.assert_allclose(W_again, W, atol=1e-5)


@pytest.mark.usefixtures("little_memory")
def test_half_is_computed_and_only_a_part_of_the_features_held(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the disk: no array that is made has the size of the matrix or of the features."""
    read, real = [], products._read

    def counted(features: Any, numbers: Any, *others: Any) -> None:
        read.append(len(numbers))
        real(features, numbers, *others)

    monkeypatch.setattr(products, "_read", counted)
    monkeypatch.setattr(products, "_BLOCK_ROWS", 16)
    rows = cache.numbers()
    spans = products._held_spans(cache.features, len(rows), "float32")
    assert max(span.stop - span.start for span in spans) <= 64  # the least that is held
    assert len(spans) > 1
    kernel(cache, rows, right=rows, dtype="float32")
    assert max(read) <= 64
    assert sum(read) == len(rows) + sum(span.start for span in spans)  # each span once, and all rows before it


@pytest.mark.usefixtures("little_memory")
def test_a_disk_without_room_is_said_before_anything_is_computed(
    cache: Cache, computed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    train = cache.numbers("train")
    with pytest.raises(HeadError, match=r"\.gram: the Gram matrix of \d+ x \d+ rows needs .* Set `solver='block'`"):
        kernel(cache, train, right=train, dtype="float32")
    assert computed == []


def unwritable(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "_kept", refuse)


def test_a_cache_that_cannot_be_written_beside_still_trains(
    cache: Cache, computed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, W = course(cache)
    shutil.rmtree(kernels_folder(cache.folder))
    unwritable(cache, monkeypatch)
    again, W_again = course(cache)
    assert losses == again
    np.testing.assert_array_equal(W, W_again)
    assert len(computed) == 4
    assert not kernels_folder(cache.folder).exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_still_trains(cache: Cache) -> None:
    cache.folder.parent.chmod(0o555)
    try:
        course(cache)
    finally:
        cache.folder.parent.chmod(0o755)


@pytest.mark.usefixtures("little_memory")
def test_neither_memory_nor_a_folder_is_an_error(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    unwritable(cache, monkeypatch)
    train = cache.numbers("train")
    with pytest.raises(HeadError, match=r"\.gram: cannot be written \(Permission denied\).* Set `solver=\'block\'`"):
        kernel(cache, train, right=train, dtype="float32")


def test_an_error_leaves_nothing_beside(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", fail)
    train = cache.numbers("train")
    with pytest.raises(KeyboardInterrupt):
        kernel(cache, train, right=train, dtype="float32")
    assert list(kernels_folder(cache.folder).iterdir()) == []


def test_progress_counts_every_row(cache: Cache) -> None:
    train, val = cache.numbers("train"), cache.numbers("val")
    for _ in range(2):
        done: list[int] = []
        kernel(cache, val, right=train, dtype="float32", on_rows=done.append)
        assert sum(done) == len(val)
