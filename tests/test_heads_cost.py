"""What a training is expected to take: near the truth, quickly known, with advice where nothing fits."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_heads_train import CONFIG, IMAGES, separable
from test_store_contract import make_cache

from featcache.core.errors import HeadError
from featcache.core.units import duration
from featcache.heads import cost
from featcache.heads.config import HeadConfig
from featcache.heads.cost import Choice, choose_solver, expect
from featcache.heads.train import SharedInputs, train_head
from featcache.store.cache import Cache

GRAM, BLOCK, PRIMAL = (Choice(solver, "asked for") for solver in ("gram", "block", "primal"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path, IMAGES, separable(IMAGES, (3, 2, 8)))


def test_a_gram_matrix_is_said_to_be_computed_until_it_is_kept(cache: Cache) -> None:
    n, m = len(cache.numbers("train")), len(cache.numbers("val"))
    before = expect(cache, CONFIG, choice=GRAM)
    assert (before.gram_bytes, before.gram_kept, before.gram_in_memory) == ((n + m) * n * 4, False, True)
    SharedInputs(cache).prepare(CONFIG, "gram")
    after = expect(cache, CONFIG, choice=GRAM)
    assert (after.gram_kept, after.gram_bytes) == (True, before.gram_bytes)
    assert not expect(cache, replace(CONFIG, dtype="float64"), choice=GRAM).gram_kept
    assert "(kept beside the cache)" in str(after)
    assert "(to be computed, and kept beside the cache)" in str(before)
    primal = expect(cache, CONFIG, choice=PRIMAL)
    assert (primal.gram_bytes, primal.gram_kept) == (0, False)
    assert "Gram matrix" not in str(primal)


def test_a_matrix_that_memory_does_not_hold_is_said_to_be_used_from_the_disk(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: 4096)
    found = expect(cache, CONFIG, choice=GRAM)
    assert not found.gram_in_memory
    assert "used from the disk" in str(found)


def test_the_time_grows_with_what_there_is_to_do(cache: Cache) -> None:
    for choice in (GRAM, BLOCK, PRIMAL):
        one, many = (expect(cache, replace(CONFIG, epochs=epochs), choice=choice) for epochs in (10, 10_000))
        assert many.epochs_s > 100 * one.epochs_s
    small, large = (expect(cache, replace(CONFIG, hidden=(units,)), choice=GRAM) for units in (8, 2048))
    assert large.epochs_s > 2 * small.epochs_s
    assert large.memory_bytes - small.memory_bytes > 2040 * 48 * 4 * 4
    plain, adam = (expect(cache, replace(CONFIG, optimizer=name), choice=PRIMAL) for name in ("sgd", "adam"))  # type: ignore[arg-type]
    assert adam.epochs_s > plain.epochs_s
    assert adam.memory_bytes > plain.memory_bytes


def test_the_time_of_the_epochs_is_about_right(cache: Cache) -> None:
    """Within a factor of ten either way, on a machine that does other things too."""
    config = replace(CONFIG, hidden=(256,), epochs=200)
    expected = expect(cache, config, choice=GRAM).epochs_s
    taken = sum(entry.seconds for entry in train_head(cache, config, solver="gram").history)
    assert taken / 10 < expected < taken * 10


@pytest.mark.parametrize("hidden", [(), (1024,), (256, 64)])
def test_the_calibration_takes_well_under_a_second(cache: Cache, hidden: tuple[int, ...]) -> None:
    cost._operations_a_s.cache_clear()
    config = HeadConfig(hidden, epochs=5000, batch=16, momentum=0.9, schedule="cosine", restore_best=True)
    began = time.perf_counter()
    expect(cache, config, choice=GRAM)
    assert time.perf_counter() - began < 2.0  # on two busy cores


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "adam"}, {"l1": 0.1}, {"output": "sigmoid"}, {"dtype": "float64"}, {"batch": 5000}, {"patience": 1}],
    ids=str,
)
def test_every_kind_of_head_can_be_estimated(cache: Cache, changes: dict[str, Any]) -> None:
    for choice in [GRAM, BLOCK, PRIMAL][2 * bool(replace(CONFIG, **changes).sgd_refuses) :]:
        found = expect(cache, replace(CONFIG, **changes), choice=choice)
        assert found.epochs_s > 0 < found.before_s


# Where nothing fits


@pytest.fixture
def half_a_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: 2**29)


def choose(size: tuple[int, int, int, int], config: HeadConfig, asked: Any) -> Choice:
    n_train, n_val, n_inputs, n_classes = size
    return choose_solver(n_train, n_val, n_inputs=n_inputs, n_classes=n_classes, config=config, asked=asked)


@pytest.mark.parametrize("asked", ["gram", "block", "primal", "auto"])
def test_what_would_fit_is_said_and_fits(half_a_gib: None, asked: Any) -> None:
    size = (20_000, 100, 200_000, 4)
    with pytest.raises(HeadError, match=r"This would fit: `hidden=\(\d+,\)` or fewer units") as caught:
        choose(size, HeadConfig(), asked)
    most = int(re.findall(r"hidden=\((\d+),\)", str(caught.value))[0])
    assert 1 <= most < 256
    solver: Any = re.findall(r"the (\w+) solver", str(caught.value))[0]
    assert choose(size, HeadConfig(hidden=(most,)), solver).solver == solver
    with pytest.raises(HeadError, match="units on"):
        choose(size, HeadConfig(hidden=(most + 1,)), solver)


def test_the_other_solver_is_named_where_it_would_fit(half_a_gib: None) -> None:
    size = (200_000, 100, 512, 4)
    with pytest.raises(HeadError, match=r"This would fit: `solver='block'` or `hidden=\(\d+,\)` or fewer units"):
        choose(size, HeadConfig(), "gram")
    assert choose(size, HeadConfig(), "block").solver == "block"


def test_features_too_many_for_one_unit_are_to_be_pooled(half_a_gib: None) -> None:
    with pytest.raises(HeadError, match=r"are free. Use pooled features: extract with `pooling='avg'`"):
        choose((100, 10, 100_000_000, 4), HeadConfig(), "primal")


def test_durations() -> None:
    found = [duration(seconds) for seconds in (0.034, 3.4, 9.99, 90, 400, 9000)]
    assert found == ["0.034 s", "3.4 s", "10 s", "90 s", "7 min", "2.5 h"]
