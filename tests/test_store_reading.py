"""Reading in blocks and in shuffled batches: every row once, no chunk twice, in an order that can be drawn again."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from test_store_contract import dataset, fake_features, make_cache, small_shards

from featcache.core.errors import CacheError, UsageError
from featcache.store.batches import Batches, default_buffer_rows
from featcache.store.cache import Cache, open_cache
from featcache.store.features import Array, Features
from featcache.store.layout import Layout

N, SHAPE, VIEWS = 300, (3, 4), 2
IMAGES = dataset(N // VIEWS)
X = fake_features(N, SHAPE)
X[:, 0, 0] = np.arange(N)  # the row's number

SETTINGS: list[dict[str, Any]] = [
    {},
    {"shuffle": False},
    {"batch_size": 1, "buffer_rows": 1},
    {"batch_size": 7, "buffer_rows": 50},
    {"batch_size": 5, "buffer_rows": 3},
    {"batch_size": 16, "buffer_rows": 48, "shuffle": False},
    {"batch_size": 100, "buffer_rows": 1},
    {"batch_size": 1000, "epoch": 3},
    {"batch_size": 8, "buffer_rows": 20, "drop_last": True},
    {"batch_size": np.int64(8), "buffer_rows": 64, "seed": 2**64 - 1, "epoch": 2**40},
]


class Counting:
    """A store in memory that counts how often each chunk is read, and the most rows it was asked for at once."""

    def __init__(self, values: np.ndarray, rows_per_chunk: int = 16, rows_per_shard: int = 32) -> None:
        self.layout = Layout(len(values), values.shape[1:], str(values.dtype), rows_per_chunk, rows_per_shard)
        self.values = values
        self.reads: Counter[int] = Counter()
        self.calls = 0

    def read(self, start: int, stop: int) -> Array:
        step = self.layout.rows_per_chunk
        assert 0 <= start < stop <= len(self.values)
        self.reads.update(range(start // step, (stop - 1) // step + 1))
        self.calls += 1
        return self.values[start:stop].copy()


class CountingSpans(Counting):
    """The same, as a reader that takes several spans."""

    most_rows = 0

    def read_spans(self, spans: Sequence[tuple[int, int]]) -> Array:
        self.most_rows = max(self.most_rows, sum(stop - start for start, stop in spans))
        return np.concatenate([self.read(*span) for span in spans])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 64)
        return make_cache(tmp_path_factory.mktemp("shared"), IMAGES, X, VIEWS)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    small_shards(monkeypatch, 64)
    return make_cache(tmp_path, IMAGES, X, VIEWS)


def drawn(batches: Batches | Iterator[Any]) -> list[int]:
    """The row numbers in the batches, out of the features."""
    return [int(number) for X, _ in batches for number in X[:, 0, 0]]


# Scattered rows


@pytest.mark.parametrize("store", [Counting, CountingSpans])
@pytest.mark.parametrize(
    ("rows", "chunks"),
    [
        ([5, 290], {0, 18}),
        ([290, 5, 5, 290, 0], {0, 18}),
        ([31, 32], {1, 2}),
        ([0, 40, 80, 299], {0, 2, 5, 18}),
        (range(0, N, 7), set(range(19))),
        (slice(17, 30), {1}),
        (list(range(16)) + list(range(48, 64)), {0, 3}),
    ],
)
def test_only_the_chunks_that_are_touched_are_read(store: type[Counting], rows: Any, chunks: set[int]) -> None:
    counting = store(X)
    index = rows if isinstance(rows, slice) else list(rows)
    np.testing.assert_array_equal(Features(counting)[index], X[index], strict=True)
    assert counting.reads == dict.fromkeys(chunks, 1)


def test_few_rows_of_many_shards_are_read_in_few_calls() -> None:
    counting = CountingSpans(fake_features(3200, (4,)), rows_per_shard=160)
    blocks = list(Features(counting).blocks(np.arange(0, 3200, 160)))  # one chunk of each of 20 shards
    assert [len(block) for _, block in blocks] == [10, 10]
    assert counting.most_rows <= 160


@given(st.lists(st.integers(0, N - 1), max_size=200))
@settings(max_examples=200, deadline=None)
def test_blocks_of_any_numbers_are_bounded(numbers: list[int]) -> None:
    counting = CountingSpans(X)
    places = 0
    for where, block in Features(counting).blocks(np.array(numbers, int)):
        assert where.start == places
        places = where.stop
        np.testing.assert_array_equal(block, X[numbers[where]])
        assert len(block) <= 32
    assert places == len(numbers)
    assert counting.most_rows <= 32


@given(st.sets(st.integers(0, N - 1)), st.randoms())
@settings(max_examples=100, deadline=None)
def test_rows_in_any_order_read_each_chunk_once(numbers: set[int], random: Any) -> None:
    counting = Counting(X)
    order = list(numbers)
    random.shuffle(order)
    np.testing.assert_array_equal(Features(counting)[order], X[order])
    assert counting.reads == dict.fromkeys({number // 16 for number in numbers}, 1)


def test_the_same_row_again_and_again_is_bounded_too() -> None:
    counting = CountingSpans(X)
    assert max(len(block) for _, block in Features(counting).blocks(np.zeros(1000, int))) == 32


# Blocks


@pytest.mark.parametrize("split", ["train", "val", "test", None])
def test_blocks_are_the_arrays_of_a_split_in_pieces(shared: Cache, split: str | None) -> None:
    blocks = list(shared.blocks(split))
    features, y = shared.arrays(split)
    np.testing.assert_array_equal(np.concatenate([block for block, _ in blocks]), features, strict=True)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in blocks]), y, strict=True)
    assert all(0 < len(block) == len(labels) <= 64 for block, labels in blocks)
    assert len(list(shared.blocks())) == 5


def test_an_unknown_split_is_refused_when_asked_for_and_not_later(shared: Cache) -> None:
    calls = (shared.blocks, shared.batches, shared.to_tf, shared.to_torch, shared.to_sklearn)
    for call in calls:
        with pytest.raises(UsageError, match="expected train, val or test"):
            call("training")


# Batches


@pytest.mark.parametrize("split", ["train", "test", None])
@pytest.mark.parametrize("given_settings", SETTINGS, ids=str)
def test_every_row_of_the_split_comes_once_with_its_label(
    shared: Cache, split: str | None, given_settings: dict[str, Any]
) -> None:
    batches = shared.batches(split, **given_settings)
    wanted, all_labels = shared.numbers(split), shared.labels()
    seen: list[int] = []
    sizes = []
    for features, y in batches:
        numbers = features[:, 0, 0].astype(int)
        assert features.dtype == np.float32
        assert features.shape[1:] == SHAPE
        assert y.dtype == np.int64
        np.testing.assert_array_equal(features, X[numbers])
        np.testing.assert_array_equal(y, all_labels[numbers])
        seen.extend(numbers)
        sizes.append(len(y))
    assert len(sizes) == len(batches)
    assert set(sizes[:-1]) <= {batches.batch_size}
    assert seen == batches.order.tolist()
    if given_settings.get("drop_last"):
        assert set(sizes) == {8}
        assert len(set(seen)) == len(seen) == len(wanted) // 8 * 8
        assert set(seen) < set(wanted.tolist()) or len(wanted) % 8 == 0
    else:
        assert sorted(seen) == wanted.tolist()
    if given_settings.get("shuffle") is False:
        assert seen == wanted.tolist()


@given(
    numbers=st.sets(st.integers(0, N - 1), min_size=1),
    batch_size=st.integers(1, 60),
    buffer_rows=st.integers(1, 400),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    workers=st.integers(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_any_split_and_sizes(
    numbers: set[int], batch_size: int, buffer_rows: int, shuffle: bool, drop_last: bool, seed: int, workers: int
) -> None:
    counting = Counting(X)
    rows = np.array(sorted(numbers))
    if drop_last and len(rows) < batch_size:
        return
    batches = Batches(
        Features(counting), np.arange(N), rows, batch_size, buffer_rows, shuffle, seed, drop_last=drop_last
    )
    found = list(batches)
    assert len(found) == len(batches)
    assert counting.reads.total() == len(counting.reads) <= len({number // 16 for number in numbers})
    assert drawn(iter(found)) == batches.order.tolist()
    assert len(set(batches.order.tolist()) & numbers) == len(batches.order)
    assert all((features[:, 0, 0] == y).all() for features, y in found)
    shares = [y.tolist() for worker in range(workers) for _, y in batches.share(worker, workers)]
    assert sorted(shares) == sorted(y.tolist() for _, y in found)


def test_no_chunk_is_read_twice_in_an_epoch_and_others_not_at_all() -> None:
    for shuffle in (True, False):
        for buffer_rows in (1, 10, 33, 100, 1000):
            counting = Counting(X)
            rows = np.flatnonzero(np.arange(N) // 16 % 3)  # two chunks of three
            list(Batches(Features(counting), np.zeros(N, int), rows, 10, buffer_rows, shuffle))
            assert counting.reads == dict.fromkeys({int(row) // 16 for row in rows}, 1)


def test_order_is_a_function_of_seed_and_epoch(shared: Cache) -> None:
    def order(**changed: Any) -> list[int]:
        return drawn(shared.batches("train", 8, buffer_rows=64, **changed))

    first = order()
    assert order() == first == drawn(open_cache(shared.folder, reader="zarr").batches("train", 8, buffer_rows=64))
    batches = shared.batches("train", 8, buffer_rows=64)
    assert drawn(batches) == drawn(batches) == first
    others = [order(epoch=1), order(seed=1), order(seed=1, epoch=1), order(epoch=2), shared.numbers("train").tolist()]
    assert all(other != first for other in others)
    assert len({tuple(other) for other in others}) == len(others)
    assert drawn(batches.at(1)) == others[0]
    assert repr(batches.at(1)) == f"Batches({len(batches)} of 8 rows, seed 0, epoch 1)"
    assert drawn(pickle.loads(pickle.dumps(batches))) == first


ORDER_OF_SEED_3_EPOCH_5 = [39, 36, 45, 34, 46, 19, 44, 43, 37, 40, 47, 32]


def test_an_order_stays_what_it_was() -> None:
    """A run that is taken up again must see the batches that it would have seen."""
    batches = Batches(Features(Counting(X)), np.zeros(N, int), np.arange(48), 4, 20, seed=3, epoch=5)
    assert batches.order.tolist()[:12] == ORDER_OF_SEED_3_EPOCH_5


def test_a_split_that_fits_into_the_buffer_is_shuffled_perfectly() -> None:
    """Each row is as often at each place as chance has it: chi-squared over 16 places of 32 rows, 600 epochs."""
    features, counts = Features(Counting(X)), np.zeros((32, 32))
    for epoch in range(600):
        order = Batches(features, np.zeros(N, int), np.arange(32), 8, 32, epoch=epoch).order
        counts[np.arange(32), order] += 1
    expected = 600 / 32
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - 31 * 31) < 5 * np.sqrt(2 * 31 * 31)


def test_a_larger_split_is_shuffled_by_chunks_and_within_the_buffer() -> None:
    features = Features(Counting(fake_features(6400, (2,))))
    orders = [
        Batches(features, np.zeros(6400, int), np.arange(6400), 32, 640, epoch=epoch).order for epoch in range(40)
    ]
    for order in orders:
        for buffer in order.reshape(10, 640):
            chunks = np.unique(buffer // 16)
            assert len(chunks) <= 41
            assert np.abs(np.diff(buffer)).mean() > 1000  # neighbours in a batch come from anywhere
        place = np.argsort(order)
        apart = place.reshape(400, 16)
        assert (apart.max(1) // 640 - apart.min(1) // 640 <= 1).all()
    mean_place = np.mean([np.argsort(order) for order in orders], axis=0)
    assert abs(np.corrcoef(mean_place, np.arange(6400))[0, 1]) < 0.05 + 3 / np.sqrt(400)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: expected 1 or more"),
        ({"batch_size": -3}, "batch_size -3: expected 1 or more"),
        ({"batch_size": 2.0}, "batch_size 2.0: expected a whole number"),
        ({"batch_size": "8"}, "batch_size '8': expected a whole number"),
        ({"batch_size": True}, "batch_size True: expected a whole number"),
        ({"batch_size": None}, "batch_size None: expected a whole number"),
        ({"batch_size": 10**30}, "batch_size: too large"),
        ({"buffer_rows": 0}, "buffer_rows 0: expected 1 or more"),
        ({"buffer_rows": 1.5}, "buffer_rows 1.5: expected a whole number"),
        ({"seed": -1}, "seed -1: expected 0 or more"),
        ({"seed": 2**64}, "seed: too large"),
        ({"seed": None}, "seed None: expected a whole number"),
        ({"epoch": -1}, "epoch -1: expected 0 or more"),
        ({"split": "val", "batch_size": 1000, "drop_last": True}, "less than one batch of 1000"),
        ({"split": "Train"}, "split 'Train': expected train, val or test"),
    ],
    ids=str,
)
def test_what_cannot_be_is_a_usage_error_at_once(shared: Cache, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        shared.batches(**wrong)


def test_an_empty_split_is_a_usage_error(tmp_path: Path) -> None:
    images = dataset(4)  # all of them train
    cache = make_cache(tmp_path, images, X[:4])
    for call in (cache.batches, cache.to_tf):
        with pytest.raises(UsageError, match="split 'val' has no rows"):
            call("val")
    assert list(cache.blocks("val")) == []
    assert cache.arrays("val")[0].shape == (0, *SHAPE)
    assert drawn(cache.batches("train", 3)) != []


@pytest.mark.parametrize("reader", ["zarr", "tensorstore"])
def test_damage_in_the_middle_of_an_epoch_is_an_error_and_no_batch_of_zeros(cache: Cache, reader: Any) -> None:
    if reader == "tensorstore":
        pytest.importorskip("tensorstore", reason="the optional reader is not installed")
    cache = open_cache(cache.folder, reader=reader)
    file = cache.folder / "features.zarr" / "c" / "3" / "0" / "0"
    whole = file.read_bytes()
    damage = bytearray(whole)
    damage[10] ^= 255
    for content in (b"", bytes(damage), whole[: len(whole) // 2], None):
        seen: list[int] = []
        iterator = iter(cache.batches(None, 8, buffer_rows=16))
        seen += drawn(iter([next(iterator)]))
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(CacheError, match="cannot be read"):
            for features, y in iterator:
                np.testing.assert_array_equal(features, X[features[:, 0, 0].astype(int)])
                seen += y.tolist()
        assert len(seen) < N
        with pytest.raises(CacheError, match="cannot be read"):
            list(cache.blocks())
        file.write_bytes(whole)
    assert len(drawn(cache.batches(None))) == N


def test_batches_are_the_callers_own(shared: Cache) -> None:
    batches = shared.batches("train", 8)
    for features, y in batches:
        features[...] = -1
        y[...] = -1
    assert sorted(drawn(batches)) == shared.numbers("train").tolist()
    kept = [features for features, _ in batches]
    assert all(features.base is None for features in kept)


# Memory


class Made:
    """A store of many rows that takes no memory itself."""

    def __init__(self, n_rows: int) -> None:
        self.layout = Layout(n_rows, (64, 16), "float32", 16, 256)

    def read(self, start: int, stop: int) -> Array:
        return np.full((stop - start, 64, 16), 1, np.float32)


ROW_BYTES = 4096
SHARD_BYTES = 256 * ROW_BYTES


def peak_of(iterator: Iterator[Any]) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        for _ in iterator:
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_hold_a_buffer_two_shards_and_a_batch(shuffle: bool) -> None:
    n_rows = 16_384  # 64 MiB
    rows = np.flatnonzero(np.arange(n_rows) % 5)
    batches = Batches(Features(Made(n_rows)), np.zeros(n_rows, int), rows, 32, 1024, shuffle)
    numbers = 16 * 8 * n_rows
    assert peak_of(iter(batches)) < 1024 * ROW_BYTES + 2.5 * SHARD_BYTES + 2 * 32 * ROW_BYTES + numbers


def test_blocks_hold_no_more_than_three_shards() -> None:
    n_rows = 16_384
    features = Features(Made(n_rows))
    assert peak_of(features.blocks()) < 3 * SHARD_BYTES + 16 * 8 * n_rows
    assert peak_of(features.blocks(np.arange(0, n_rows, 5))) < 4 * SHARD_BYTES + 16 * 8 * n_rows


def test_the_default_buffer_has_256_mb() -> None:
    assert default_buffer_rows(Layout(10_000, (7, 7, 512), "float32", 16, 656), True) == 2674
    assert default_buffer_rows(Layout(10_000, (7, 7, 512), "float16", 16, 656), True) == 5349
    assert default_buffer_rows(Layout(10_000, (7, 7, 512), "float32", 16, 656), False) == 656
    assert default_buffer_rows(Layout(10, (10**6, 10, 10), "float32", 16, 16), True) == 1
