"""The batches of a cache in TensorFlow, PyTorch and scikit-learn."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_store_contract import dataset, fake_features, make_cache, small_shards

from featcache.backbones.import_keras import import_keras
from featcache.core.errors import MissingPackageError, UsageError
from featcache.store.cache import Cache

N, SHAPE, VIEWS = 120, (3, 4), 2
IMAGES = dataset(N // VIEWS)
X = fake_features(N, SHAPE)
X[:, 0, 0] = np.arange(N)  # the row's number


def cache_in(folder: Path, dtype: str = "float32") -> Cache:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 32)
        return make_cache(folder, IMAGES, X.astype(dtype), VIEWS, dtype=dtype)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return cache_in(tmp_path_factory.mktemp("adapters"))


def drawn(batches: Any) -> list[int]:
    """The row numbers in the batches, out of the features."""
    return [int(number) for features, _ in batches for number in np.asarray(features)[:, 0, 0]]


# TensorFlow


@pytest.fixture(scope="module")
def tf() -> Any:
    import_keras()  # the quiet way, before TensorFlow is imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow

    return tensorflow


def test_tf_has_the_batches_of_one_epoch_after_the_other(cache: Cache, tf: Any) -> None:
    data = cache.to_tf("train", 7, seed=5, epoch=2, buffer_rows=24)
    assert isinstance(data, tf.data.Dataset)
    assert data.element_spec == (tf.TensorSpec((None, *SHAPE), tf.float32), tf.TensorSpec((None,), tf.int64))
    batches = cache.batches("train", 7, seed=5, buffer_rows=24)
    assert len(batches.rows) % 7
    assert int(data.cardinality()) == len(data) == len(batches)
    for epoch in (2, 3, 4):
        found = list(data)
        assert len(found) == len(batches)
        for (features, y), (expected, labels) in zip(found, batches.at(epoch), strict=True):
            np.testing.assert_array_equal(features.numpy(), expected, strict=True)
            np.testing.assert_array_equal(y.numpy(), labels, strict=True)


def test_tf_knows_whole_shapes_where_all_batches_are_whole(cache: Cache, tf: Any) -> None:
    dropping = cache.to_tf("train", 7, drop_last=True)
    assert dropping.element_spec[0].shape == (7, *SHAPE)
    assert {len(y) for _, y in dropping} == {7}
    assert len(dropping) == len(cache.numbers("train")) // 7
    assert cache.to_tf(None, 12).element_spec[1].shape == (12,)


def test_tf_one_hot(cache: Cache, tf: Any) -> None:
    data = cache.to_tf("val", 5, one_hot=True, shuffle=False)
    assert data.element_spec[1] == tf.TensorSpec((None, 4), tf.float32)
    y = np.concatenate([labels.numpy() for _, labels in data])
    assert (y.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(y.argmax(axis=1), cache.labels("val"))
    assert drawn(data) == cache.numbers("val").tolist() == drawn(data)


def test_tf_of_half_precision_is_single(tmp_path: Path, tf: Any) -> None:
    half = cache_in(tmp_path, "float16")
    features, _ = next(iter(half.to_tf("train", 8)))
    assert features.dtype == tf.float32
    assert next(iter(half.batches("train", 8)))[0].dtype == np.float16
    assert half.to_sklearn("val")[0].dtype == np.float32


def test_tf_left_in_the_middle_starts_the_next_epoch(cache: Cache, tf: Any) -> None:
    data = cache.to_tf("train", 8)
    next(iter(data))
    assert drawn(data) == drawn(cache.batches("train", 8, epoch=1))
    assert sorted(drawn(data.repeat(2))) == sorted(cache.numbers("train").tolist() * 2)


def test_keras_trains_on_it(cache: Cache, tf: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras

        model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(4)])
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-6), loss)
        data = cache.to_tf("train", 8, one_hot=True)
        history = model.fit(data, validation_data=cache.to_tf("val", 8, one_hot=True), epochs=2, verbose=0).history
    assert np.isfinite(history["val_loss"]).all()


def test_tf_says_what_is_damaged(tmp_path: Path, tf: Any) -> None:
    broken = cache_in(tmp_path)
    (broken.folder / "features.zarr" / "c" / "2" / "0" / "0").unlink()
    with pytest.raises(tf.errors.OpError, match=r"CacheError: .*features\.zarr: rows \d+ to \d+ cannot be read"):
        list(broken.to_tf(None, 8))


# What is loaded when, and what is not installed


def test_nothing_is_loaded_before_it_is_asked_for(cache: Cache) -> None:
    program = """
import sys, featcache
cache = featcache.open_cache(sys.argv[1])
for X, y in cache.batches("train", 8): pass
list(cache.blocks()), cache.to_sklearn(), cache.features[[3, 80]]
print([name for name in ("tensorflow", "keras", "torch", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program, cache.folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("method", "package"), [("to_tf", "tensorflow"), ("to_torch", "torch")])
def test_a_library_that_is_missing_is_named(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, method: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "featcache.store.torch_adapter", raising=False)
    with pytest.raises(
        MissingPackageError, match=rf"{method} requires {package}.*: pip install 'featcache\[{package}\]'$"
    ):
        getattr(cache, method)("train")


@pytest.mark.parametrize("method", ["to_tf", "to_torch"])
def test_what_cannot_be_is_said_before_a_library_is_loaded(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    for name in ("tensorflow", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="batch_size 0: expected 1 or more"):
        getattr(cache, method)("train", 0)


# PyTorch


@pytest.fixture(scope="module")
def torch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch", reason="PyTorch is not installed: it is no dependency of the tests")


def test_torch_has_the_batches(cache: Cache, torch: Any) -> None:
    data = cache.to_torch("train", 8, seed=5, buffer_rows=24)
    batches = cache.batches("train", 8, seed=5, buffer_rows=24)
    assert isinstance(data, torch.utils.data.IterableDataset)
    assert len(data) == len(batches)
    for epoch in (0, 1, 7):
        data.set_epoch(epoch)
        for (features, y), (expected, labels) in zip(data, batches.at(epoch), strict=True):
            assert (features.dtype, y.dtype) == (torch.float32, torch.int64)
            np.testing.assert_array_equal(features.numpy(), expected)
            np.testing.assert_array_equal(y.numpy(), labels)
    assert drawn(data) == drawn(data)
    with pytest.raises(UsageError, match="epoch -1"):
        data.set_epoch(-1)


LOADERS = """
    import sys, warnings
    import numpy as np
    import torch
    from featcache import open_cache

    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than the machine has cores
    cache = open_cache(sys.argv[1])

    def rows(batches):
        return [tuple(int(number) for number in features[:, 0, 0]) for features, _ in batches]

    spawned = {"multiprocessing_context": "spawn", "persistent_workers": True}
    for workers, more in ((0, {}), (3, {}), (2, spawned)):
        np.asarray(cache.features)  # a reader with threads has been at work before a worker is forked
        data = cache.to_torch("train", 8, buffer_rows=16)
        loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers, **more)
        assert len(loader) == len(data)
        orders = set()
        for epoch in (0, 1, 2):
            data.set_epoch(epoch)
            found = rows(loader)
            assert sorted(found) == sorted(rows(cache.batches("train", 8, buffer_rows=16, epoch=epoch)))
            orders.add(tuple(found))
        assert len(orders) == 3
        print(workers, more)
"""


def test_torch_workers_share_the_batches(cache: Cache, torch: Any) -> None:
    """In a process of its own: a fork beside the threads of other tests' engines proves nothing."""
    command = [sys.executable, "-c", textwrap.dedent(LOADERS), cache.folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3), done.stderr


# scikit-learn


@pytest.mark.parametrize("split", ["train", "val", None])
def test_sklearn_has_flat_rows_labels_and_groups(cache: Cache, split: str | None) -> None:
    features, y, groups = cache.to_sklearn(split)
    expected, numbers = cache.arrays(split)
    np.testing.assert_array_equal(features, expected.reshape(len(expected), -1), strict=True)
    assert y.tolist() == [cache.classes[number] for number in numbers]
    assert (y.dtype.kind, groups.dtype.kind) == ("U", "U")
    assert groups.tolist() == cache.rows.loc[cache.numbers(split), "group"].tolist()
    assert features.flags.writeable


def test_sklearn_takes_them(cache: Cache) -> None:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GroupKFold, cross_val_score

    features, y, groups = cache.to_sklearn("train")
    scores = cross_val_score(RidgeClassifier(), features, y, groups=groups, cv=GroupKFold(3), error_score="raise")
    assert scores.shape == (3,)
    for train, test in GroupKFold(3).split(features, y, groups):
        assert not set(groups[train]) & set(groups[test])
    assert set(RidgeClassifier().fit(features, y).predict(cache.to_sklearn("test")[0])) <= set(cache.classes)
