"""Sweeps and seeds: one Gram matrix, a winner chosen on validation, test rows looked at once."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_heads_train import CONFIG, IMAGES, separable
from test_store_contract import make_cache
from watching import Watching

from featcache.core.errors import HeadError
from featcache.heads import _sweep as module, products
from featcache.heads._sweep import fit_seeds, grid, random_points, sweep
from featcache.heads.head import Head
from featcache.heads.kernel import kernels_folder
from featcache.heads.train import train_head
from featcache.store.cache import Cache
from featcache.training import results
from featcache.training.history import best_of

FAR_TOO_FAST = 1e6


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    features = separable(IMAGES, (3, 2, 8)) + np.random.default_rng(1).standard_normal((120, 3, 2, 8)) * 6
    return make_cache(tmp_path_factory.mktemp("cache"), IMAGES, features.astype("float32"))


def test_grid_and_random_points() -> None:
    space = {"lr": [0.1, 0.2, 0.3], "hidden": [(), (8, 4)]}
    points = grid(space)
    assert len(points) == 6
    assert points[0] == {"lr": 0.1, "hidden": ()}
    some = random_points(space, 4, seed=7)
    assert some == random_points(space, 4, seed=7)
    assert len({str(point) for point in some}) == 4
    assert all(point in points for point in some)
    assert {str(random_points(space, 2, seed=seed)) for seed in range(9)} != {str(random_points(space, 2, seed=0))}
    assert random_points(space, 99, seed=0) == points


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_the_best_on_validation_wins(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monitor: Any
) -> None:
    shutil.rmtree(kernels_folder(cache.folder), ignore_errors=True)
    matrices, predictions, measured = [], [], []
    inner, probabilities, evaluate = products.inner, Head.probabilities, results.evaluate
    monkeypatch.setattr(products, "inner", lambda *a, **o: (matrices.append(1), inner(*a, **o))[1])
    monkeypatch.setattr(Head, "probabilities", lambda *a, **o: (predictions.append(1), probabilities(*a, **o))[1])
    monkeypatch.setattr(results, "evaluate", lambda *a, **o: (measured.append(1), evaluate(*a, **o))[1])
    config = replace(CONFIG, monitor=monitor, hidden=(8, 4), epochs=12)
    points = grid({"lr": [0.0001, FAR_TOO_FAST, 0.003, 0.03], "dropout": [0.0, 0.5]})
    done = sweep(cache, tmp_path, config=config, points=points, seeds=2, solver="gram")
    assert (len(matrices), len(predictions), len(measured)) == (2, 1, 3)

    table = done.table
    assert list(table.columns) == ["lr", "dropout", monitor, "spread", "epoch", "diverged"]
    assert list(table["diverged"]) == [0] * 6 + [2] * 2
    assert set(table["lr"][6:]) == {FAR_TOO_FAST}
    assert table[monitor][6:].isna().all()
    values = list(table[monitor][:6])
    assert values == sorted(values, reverse=monitor == "val_accuracy")

    for line in table[:6].to_dict("records"):
        found = []
        for seed in (0, 1):
            head = replace(config, lr=line["lr"], dropout=line["dropout"], seed=seed)
            history = train_head(cache, head, solver="gram").history
            found.append(getattr(history[best_of(history, head.monitor) - 1], monitor))
        assert line[monitor] == pytest.approx(np.mean(found))
        assert line["spread"] == pytest.approx(np.std(found, ddof=1), abs=1e-12)

    run = done.winner.run
    assert run.config["head"]["lr"] == table["lr"][0]
    assert run.config["head"]["dropout"] == table["dropout"][0]
    assert run.config["head"]["restore_best"]
    assert {path.name for path in done.folder.iterdir()} == {"heads.csv", "sweep.json", module.figures.SWEEP_FIGURE}
    written = pd.read_csv(done.folder / "heads.csv")
    assert list(written.columns) == list(table.columns)
    assert len(written) == 8
    described = json.loads((done.folder / "sweep.json").read_text())
    assert (described["winner"], described["seeds"], len(described["points"])) == (run.name, 2, 8)
    assert (done.folder / module.figures.SWEEP_FIGURE).read_bytes().startswith(b"\x89PNG")


def test_layers_and_epochs_can_be_swept(cache: Cache, tmp_path: Path) -> None:
    points = grid({"hidden": [(), (8,), (8, 4)], "epochs": [2, 9]})
    done = sweep(cache, tmp_path, config=CONFIG, points=points, solver="gram")
    assert len(done.table) == 6
    assert (done.table["epoch"] <= done.table["epochs"]).all()
    again = sweep(cache, tmp_path, config=CONFIG, points=points, solver="gram")
    assert (again.folder, again.winner.reused) == (done.folder, True)
    pd.testing.assert_frame_equal(again.table, done.table)


def test_nothing_to_sweep_and_nothing_that_converges(cache: Cache, tmp_path: Path) -> None:
    for points in ([], grid({})):
        with pytest.raises(HeadError, match="nothing to sweep over"):
            sweep(cache, tmp_path, config=CONFIG, points=points)
    config = replace(CONFIG, hidden=(8, 4))
    with pytest.raises(HeadError, match="every combination diverged"):
        sweep(cache, tmp_path, config=config, points=grid({"lr": [FAR_TOO_FAST, 2 * FAR_TOO_FAST]}), solver="gram")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_said_before_anything_is_trained(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train_course", None)
    for point in ({"dropout": 1.0}, {"batch": 1000}, {"hidden": (0,)}):
        with pytest.raises(HeadError):
            sweep(cache, tmp_path, config=CONFIG, points=[{"lr": 0.1}, point])


def test_a_sweep_can_be_interrupted(cache: Cache, tmp_path: Path) -> None:
    left = iter(range(15))
    stopping = lambda: contextlib.nullcontext(lambda: next(left, None) is None)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        sweep(
            cache,
            tmp_path,
            config=CONFIG,
            points=grid({"lr": [0.01, 0.02]}),
            solver="gram",
            progress=Watching(stopping),
        )
    assert list(tmp_path.iterdir()) == []


def test_seeds(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices, inner = [], products.inner
    monkeypatch.setattr(products, "inner", lambda *a, **o: (matrices.append(1), inner(*a, **o))[1])
    for name in ("write_curves", "write_confusion"):
        monkeypatch.setattr(module.figures, name, lambda *args, **options: None)
    config = replace(CONFIG, seed=5, dtype="float64")
    done = fit_seeds(cache, tmp_path, config=config, seeds=3, solver="gram")
    assert len(matrices) == 2
    assert [one.run.config["head"]["seed"] for one in done.fitted] == [5, 6, 7]
    assert len(done.table) == 9
    for line in done.table.to_dict("records"):
        values = [one.run.metrics[line["split"]][line["measure"]] for one in done.fitted]
        assert (line["mean"], line["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert all(one.reused for one in fit_seeds(cache, tmp_path, config=config, seeds=3, solver="gram").fitted)
