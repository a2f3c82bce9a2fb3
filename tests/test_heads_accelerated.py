"""The solvers by JAX, here on its CPU: against an own primal loop in float64, and against NumPy's in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_heads_gram import CLASSES, OPTIONS, D, N, compare, in_gram_space, in_primal_space, problem_of
from test_store_contract import dataset, fake_features, make_cache

from featcache.core.errors import HeadError, MissingPackageError
from featcache.heads import gram, initializers as random
from featcache.heads._fit_head import fit_head
from featcache.heads.config import HeadConfig
from featcache.heads.source import InMemory
from featcache.heads.stack import Stack
from featcache.heads.train import row_weights
from featcache.store.cache import Cache
from featcache.training.course import Course

jax = pytest.importorskip("jax", reason="JAX is not installed")
from featcache.heads import accelerated  # noqa: E402

CPU = jax.devices("cpu")[0]
BASE: dict[str, Any] = {"dropout": 0.3, "lr": 0.01, "epochs": 3, "scale": "none", "dtype": "float64", "seed": 3}


def gram_problem(
    data: tuple[np.ndarray, ...], config: HeadConfig, mean: bool = False
) -> tuple[gram.GramProblem, gram.State]:
    X, y, X_val, y_val = data
    (W0, b0), *rest = random.initial_weights(config, X.shape[1], n_classes=CLASSES)
    X, X_val = X.astype(config.dtype), X_val.astype(config.dtype)
    mean_of = np.full(len(X), 1 / len(X), X.dtype) if mean else None
    problem = gram.GramProblem(
        X @ X.T, X @ W0, y, row_weights(y, config), X_val @ X.T, X_val @ W0, y_val, factor=1.0, mean_of=mean_of
    )
    return problem, gram.start(problem, Stack(b0, rest, config))


def in_gram_space_by_jax(*given: Any) -> Any:
    *data, config = given
    problem, state = gram_problem(tuple(data), config)
    with accelerated.GramTraining(problem, state, device=CPU) as training:
        Course(config).run(training)
    assert state.A.dtype == config.dtype
    X = data[0].astype(config.dtype)
    W0 = random.initial_weights(config, X.shape[1], n_classes=CLASSES)[0][0]
    return [(W0 * X.dtype.type(state.s) + X.T @ state.A, state.stack.bias), *state.stack.layers], state.history


def by_blocks_by_jax(*given: Any) -> Any:
    X, y, X_val, y_val, config = given
    source = InMemory(X, y, weights=row_weights(y, config), X_val=X_val, y_val=y_val)
    n_classes = y.shape[1] if y.ndim == 2 else CLASSES
    (W0, b0), *rest = random.initial_weights(config, X.shape[1], n_classes=n_classes)
    state = accelerated.block.start(W0, Stack(b0, rest, config))
    with accelerated.BlockTraining(source, state, device=CPU) as training:
        Course(config).run(training)
        state = training.copy()
    assert state.W.dtype == config.dtype
    return [(state.W, state.stack.bias), *state.stack.layers], state.history


SOLVERS = {"gram": in_gram_space_by_jax, "block": by_blocks_by_jax}


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 rows, of which the last is filled up; the block solver's scans are of two of them."""
    monkeypatch.setattr(accelerated, "_BLOCK_ROWS", 64)
    monkeypatch.setattr(accelerated, "_SCAN_BYTES", 2 * 64 * D * 8)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("hidden", "batch"), [((), 16), ((8,), 7), ((32, 16), 16), ((32,), 333)])
def test_it_is_minibatch_sgd_step_for_step(solver: str, hidden: tuple[int, ...], batch: int) -> None:
    epochs = 12 if batch == N else 3
    compare(HeadConfig(hidden, batch=batch, **BASE | {"epochs": epochs}), problem_of(), SOLVERS[solver])


@pytest.mark.parametrize(
    ("solver", "option"),
    [
        *(("gram", option) for option in OPTIONS if option not in ("constant", "cosine", "step", "momentum", "l2")),
        *(("block", option) for option in ("nesterov-l2", "l2-of-each")),
    ],
)
def test_every_option_is_that_of_the_textbook(option: str, solver: str) -> None:
    """Both solvers share what is not of the first weights; rates and what one option of two adds are NumPy's."""
    compare(HeadConfig((12, 8), batch=16, **BASE | {"epochs": 3} | OPTIONS[option]), problem_of(), SOLVERS[solver])


def test_each_of_several_labels_has_weights_of_its_own() -> None:
    X, y, X_val, y_val = problem_of()
    several, several_val = (np.eye(CLASSES, dtype=np.int64)[labels] for labels in (y, y_val))
    several[::3, 1] = 1
    config = HeadConfig((24,), batch=16, output="sigmoid", class_weights="balanced", **BASE)
    compare(config, (X, several, X_val, several_val), by_blocks_by_jax)


def test_a_mean_is_subtracted_as_by_numpy() -> None:
    config = HeadConfig((12,), batch=16, momentum=0.5, l2=0.01, **BASE)
    ended = []
    for by_jax in (False, True):
        problem, state = gram_problem(problem_of(), config, mean=True)
        if by_jax:
            with accelerated.GramTraining(problem, state, device=CPU) as training:
                Course(config).run(training)
        else:
            gram.train(problem, state)
        ended.append(state)
    expected, found = ended
    np.testing.assert_allclose(found.A, expected.A, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.V, expected.V, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose([found.s, found.u], [expected.s, expected.u], rtol=1e-12)
    for one, other in zip(found.history, expected.history, strict=True):
        np.testing.assert_allclose([one.loss, one.val_loss], [other.loss, other.val_loss], rtol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_single_precision_is_as_near_to_float64_as_numpys(solver: str) -> None:
    config = HeadConfig((32,), batch=16, l2=0.01, momentum=0.5, **BASE | {"dtype": "float32", "epochs": 8})
    _, exact = in_primal_space(*problem_of(), replace(config, dtype="float64"))
    losses = np.array([line[0] for line in exact])
    _, by_jax = SOLVERS[solver](*problem_of(), config)
    _, by_numpy = in_gram_space(*problem_of(), config)
    far, as_far = (np.abs([e.loss for e in found] / losses - 1).max() for found in (by_jax, by_numpy))
    assert far < max(4 * as_far, 2e-6)


@pytest.mark.parametrize("solver", ["gram", "block"])
def test_a_training_goes_on_to_the_last_bit(solver: str) -> None:
    config = HeadConfig((12,), batch=16, momentum=0.5, nesterov=True, l2=0.01, **BASE | {"epochs": 4})
    states = []
    for parts in ((4,), (1, 3)):
        X, y, X_val, y_val = data = problem_of()
        if solver == "gram":
            problem, state = gram_problem(data, config)
        else:
            source = InMemory(X, y, weights=row_weights(y, config), X_val=X_val, y_val=y_val)
            (W0, b0), *rest = random.initial_weights(config, D, n_classes=CLASSES)
            state = accelerated.block.start(W0, Stack(b0, rest, config))
        for epochs in parts:
            made = (
                accelerated.GramTraining(problem, state, device=CPU)
                if solver == "gram"
                else accelerated.BlockTraining(source, state, device=CPU)
            )
            with made as training:
                for _ in range(epochs):
                    training.history.append(training.epoch(lambda: None))
                state = training.copy()
        states.append(state)
    whole, in_parts = states
    first = ("A", "V") if solver == "gram" else ("W", "V")
    for name in first:
        np.testing.assert_array_equal(getattr(in_parts, name), getattr(whole, name))
    for one, other in zip(in_parts.stack.arrays(), whole.stack.arrays(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [e.loss for e in in_parts.history] == [e.loss for e in whole.history]


def test_the_masks_are_those_of_the_processor() -> None:
    config = HeadConfig((12, 5), dropout=0.3, seed=2**40 + 1)
    places = np.array([0, 1, 77, 5000])
    with accelerated._exactly(CPU):
        found = accelerated._masks(
            accelerated.Settings.of(config), random.mask_keys(config, 4), jax.numpy.asarray(places)
        )
    for place, row in zip(places.tolist(), np.asarray(found), strict=True):
        np.testing.assert_array_equal(
            row, random.keep_masks(config, 4, places=slice(place, place + 1), units=config.hidden)[0]
        )


@pytest.fixture
def cache(quick: Path) -> Iterator[Cache]:
    with tempfile.TemporaryDirectory(dir=quick) as folder:
        data = dataset(60)
        yield make_cache(Path(folder), data, fake_features(60, (8,)))


@pytest.mark.parametrize("solver", ["gram", "block"])
def test_a_run_says_where_it_was_computed_and_goes_on_there(
    cache: Cache, tmp_path: Path, solver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerated, "gpu", lambda: CPU)
    config = HeadConfig((6,), epochs=4, batch=8, patience=3, restore_best=True)
    here = fit_head(cache, tmp_path, config=config, solver=solver).run
    there = fit_head(cache, tmp_path, config=config, solver=solver, device="gpu").run
    assert here.name != there.name
    assert "device" not in here.config
    assert there.config["device"] == "gpu"
    np.testing.assert_allclose(there.history["loss"], here.history["loss"], rtol=1e-4)
    longer = fit_head(cache, tmp_path, config=config, solver=solver, device="gpu", more_epochs=2)
    assert longer.resumed_from == there.name
    assert longer.run.config["device"] == "gpu"
    assert len(longer.run.history) == 6


def test_no_accelerator_is_said_in_words_and_is_none_for_auto(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "devices", lambda *_: [CPU])
    config = HeadConfig((6,), epochs=1, batch=8)
    with pytest.raises(HeadError, match="finds no accelerator here"):
        fit_head(cache, tmp_path, config=config, device="gpu")
    assert not list(tmp_path.iterdir())
    assert not accelerated.has_gpu()
    done = fit_head(cache, tmp_path, config=config, device="auto")
    assert "device" not in done.run.config
    with pytest.raises(HeadError, match="the primal solver computes where Keras does"):
        fit_head(cache, tmp_path, config=config, solver="primal", device="gpu")
    monkeypatch.setattr("featcache.core.extras.is_installed", lambda package: package != "jax")
    with pytest.raises(MissingPackageError, match=r"featcache\[jax\]"):
        fit_head(cache, tmp_path, config=replace(config, epochs=2), device="gpu")
