"""fit-head without its command line: what a run holds, what ends it early, what is refused before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from test_heads_train import CONFIG, IMAGES, cache_of, separable
from test_store_contract import image, make_cache

from featcache.backbones.import_keras import import_keras
from featcache.core.errors import HeadError
from featcache.core.machine import usable_cores
from featcache.core.project import Project, Settings
from featcache.datasets.manifest import Dataset
from featcache.heads import products
from featcache.heads._fit_head import fit_head
from featcache.heads.config import PRESETS, Activation, HeadConfig
from featcache.heads.head import Head
from featcache.heads.resume import interrupted
from featcache.heads.train import Choice, choose_solver, train_head
from featcache.reporting import figures
from featcache.reporting._report import report
from featcache.reporting.one_run import facts
from featcache.reporting.records import read_record
from featcache.store.cache import Cache

NOISY = replace(CONFIG, lr=0.003, epochs=60, dropout=0.5, seed=2, scale="norm")
"""Validation is at its best long before the end."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    features = separable(IMAGES, (3, 2, 8)) + np.random.default_rng(1).standard_normal((120, 3, 2, 8)) * 6
    return make_cache(tmp_path_factory.mktemp("cache"), IMAGES, features.astype("float32"))


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("write_curves", "write_confusion"):
        monkeypatch.setattr(figures, name, lambda *args, **options: None)


# The reason


def test_the_reason_of_the_solver_is_in_the_run(cache: Cache, tmp_path: Path) -> None:
    run = fit_head(cache, tmp_path, config=CONFIG).run
    assert "times fewer operations than" in run.config["why"]
    assert fit_head(cache, tmp_path, config=replace(CONFIG, seed=1), solver="gram").run.config["why"] == "asked for"
    assert (
        fit_head(cache, tmp_path, config=replace(CONFIG, seed=2), solver=Choice("gram", "because")).run.config["why"]
        == "because"
    )


# Ending early, and the best epoch


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy", "loss"])
def test_patience_ends_a_training(cache: Cache, tmp_path: Path, monitor: Any) -> None:
    whole = train_head(cache, NOISY, solver="gram").history
    patient = fit_head(cache, tmp_path, config=replace(NOISY, monitor=monitor, patience=6), solver="gram").run
    values = [(-1 if monitor == "val_accuracy" else 1) * getattr(entry, monitor) for entry in whole]
    best, ends = 0, len(whole)
    for number, value in enumerate(values, start=1):
        best = number if not best or value < values[best - 1] else best
        if number - best >= 6:
            ends = number
            break
    assert patient.metrics["epochs"] == ends == len(patient.history)
    assert list(patient.history["loss"]) == pytest.approx([entry.loss for entry in whole[:ends]], rel=1e-12)


@pytest.mark.parametrize("val_every", [1, 4])
def test_the_best_epoch_is_kept(cache: Cache, tmp_path: Path, val_every: int) -> None:
    run = fit_head(cache, tmp_path, config=replace(NOISY, restore_best=True, val_every=val_every), solver="gram").run
    history = run.history
    looked = history["val_loss"].notna()
    assert list(history["epoch"][looked]) == list(range(val_every, 61, val_every))
    best = int(history["epoch"][history["val_loss"].idxmin()])
    assert run.metrics["epoch_of_head"] == best < 60
    assert run.metrics["val"]["loss"] == pytest.approx(history["val_loss"].min(), rel=1e-4)
    assert run.course.startswith(f"val_loss was best in epoch {best}, whose weights are kept; it overfits: after")
    last = fit_head(cache, tmp_path, config=NOISY, solver="gram").run
    assert last.metrics["epoch_of_head"] == 60
    assert last.metrics["val"]["loss"] == pytest.approx(last.history["val_loss"].iloc[-1], rel=1e-4)


def test_more_epochs_continue_what_the_usual_rules_have_ended(cache: Cache, tmp_path: Path) -> None:
    usual = replace(NOISY, patience=PRESETS["default"].patience, restore_best=True)
    ended = fit_head(cache, tmp_path, config=usual, solver="gram").run.metrics
    assert ended["epoch_of_head"] + usual.patience == ended["epochs"] < 60
    more = fit_head(cache, tmp_path, config=usual, solver="gram", more_epochs=5).run
    assert (more.metrics["epochs"], more.metrics["epoch_of_head"]) == (ended["epochs"] + 5, ended["epoch_of_head"])
    fit_head(cache, tmp_path, config=NOISY, solver="gram")  # the longest now, whose last epoch was kept
    longest = fit_head(cache, tmp_path, config=usual, solver="gram", more_epochs=5).run
    assert (longest.metrics["epochs"], longest.metrics["epoch_of_head"]) == (65, 65)


# What is refused


def test_features_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    lines = [(label, split) for split in ("train", "val", "test") for label in "ab"] * 6
    images = Dataset(tuple(image(n, label, split) for n, (label, split) in enumerate(lines)), Path())
    for split in ("train", "val", "test"):
        for value in (np.nan, np.inf):
            features = np.random.default_rng(0).standard_normal((36, 6)).astype("float32")
            whole = make_cache(tmp_path / f"{split}{value}", images, features)
            bad = whole.numbers(split)[[1, 3]]
            features[bad, 2] = value
            broken = _with_features(whole, features)
            for solver in ("gram", "primal"):
                for scale in ("centred", "norm", "none"):
                    config = replace(CONFIG, batch=4, epochs=2, scale=scale)  # type: ignore[arg-type]
                    with pytest.raises(HeadError, match=rf"NaN or infinite, in rows? {bad[0]}"):
                        fit_head(broken, tmp_path / "results", config=config, solver=solver)  # type: ignore[arg-type]
    assert list((tmp_path / "results").iterdir()) == []


def _with_features(cache: Cache, features: np.ndarray) -> Cache:
    """The same cache as if it had been written with these, which a writer refuses."""

    class Broken:
        shape, dtype = features.shape, features.dtype

        def __getitem__(self, numbers: Any) -> Any:
            return features[numbers]

        def blocks(self, numbers: Any) -> Any:
            for start in range(0, len(numbers), 7):
                yield slice(start, min(start + 7, len(numbers))), features[numbers[start : start + 7]]

    cache.__dict__["features"] = Broken()
    return cache


def test_a_class_that_a_split_lacks_is_refused(tmp_path: Path) -> None:
    lines = [(label, split) for split in ("train", "val", "test") for label in "ab"] * 6
    cache = cache_of(tmp_path, [line for line in lines if line != ("a", "val")])
    with pytest.raises(HeadError, match=r"the split 'val' has no rows of a\. Change dataset\.csv"):
        fit_head(cache, tmp_path / "results", config=replace(CONFIG, batch=4))
    assert not (tmp_path / "results").exists()


def test_too_little_memory_is_said_before_anything_is_read(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: 4096)
    monkeypatch.setattr(products, "blocks", None)
    for solver in ("gram", "primal", "auto"):
        with pytest.raises(HeadError, match=r"solver needs .* GiB for 8 units .* GiB are free"):
            fit_head(cache, tmp_path / "results", config=CONFIG, solver=solver)  # type: ignore[arg-type]
    assert not (tmp_path / "results").exists()


def test_a_gram_matrix_larger_than_memory_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: 4 << 30)
    assert (
        choose_solver(60_000, 1000, n_inputs=4096, n_classes=4, config=HeadConfig(epochs=1000), asked="gram").solver
        == "gram"
    )  # K: 13 GiB


# Heads know what they are for


def test_a_head_refuses_features_of_another_space(cache: Cache, tmp_path: Path) -> None:
    head = train_head(cache, CONFIG, solver="gram").head
    half = make_cache(tmp_path, IMAGES, separable(IMAGES, (3, 2, 8)).astype("float16"), dtype="float16")
    with pytest.raises(HeadError, match="not those that the head was trained on"):
        head.probabilities(half)
    assert head.probabilities(cache).shape == (120, 4)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
@pytest.mark.parametrize("activation", get_args(Activation))
def test_keras_and_numpy_predict_the_same(cache: Cache, tmp_path: Path, activation: Any, output: Any) -> None:
    config = HeadConfig((6, 5), 0.2, activation=activation, output=output, epochs=3, batch=8, lr=0.01)
    trained = train_head(cache, config, solver="gram").head
    head = replace(trained, scale=trained.scale * 0.05)  # logits are then of a size at which float32 is good for 1e-6
    head.save(tmp_path)
    head.write_keras(tmp_path / "head.keras")
    expected = head.probabilities(cache)
    X = np.asarray(cache.features)
    model = import_keras().saving.load_model(tmp_path / "head.keras", safe_mode=True)
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, atol=2e-6)
    with np.load(tmp_path / "head.npz", allow_pickle=False) as a:
        layers = [(a[f"W{i}"], a[f"b{i}"]) for i in range(3)]
        found = Head(
            tuple(a["row_shape"]), float(a["scale"]), layers, 0.0, tuple(a["classes"]), str(a["activation"]),
            str(a["output"]), str(a["space"]),
        )  # fmt: skip
    np.testing.assert_array_equal(found.probabilities(cache), expected)


# --resume


def test_what_an_interrupted_training_was_of(cache: Cache, tmp_path: Path) -> None:
    project = Project(tmp_path, Settings())
    run = fit_head(
        cache, project.results_folder, config=replace(CONFIG, hidden=(8, 4), l2=(0.1, 0.0, 0.2)), solver="gram"
    ).run
    given = {"epochs": 70, "lr": 0.001, "solver": "gram"}
    name, config, solver, device = interrupted(project, run.name, given=given)
    assert (name, solver, device) == (cache.name, "gram", "cpu")
    assert config == replace(CONFIG, hidden=(8, 4), l2=(0.1, 0.0, 0.2), epochs=70)
    assert interrupted(project, f"{run.name}.training", given={"cache": cache.name[:6]})[1].epochs == 10
    with pytest.raises(Exception, match=r"lr is 0\.001 there, 0.5 here; hidden is .8, 4. there, .8,. here; solver is"):
        interrupted(project, run.name, given={"lr": 0.5, "hidden": (8,), "solver": "primal"})
    for name in ("", "x", "..", "a\0b", "x" * 5000):
        with pytest.raises(Exception, match=r"no training .* \(interrupted ones there: none\)"):
            interrupted(project, name, given={})
    for text in ("{", "[]", "{}", '{"head": {"lr": -1}, "solver": "gram", "cache_name": "x"}', "[" * 100_000):
        (run.folder / "config.json").write_text(text)
        with pytest.raises(Exception, match=r"config\.json: cannot be read"):
            interrupted(project, run.name, given={})


def test_a_run_says_on_how_many_cores_it_was_trained(cache: Cache, tmp_path: Path) -> None:
    """Sums of Keras are split among the cores: under one name, last digits may differ."""
    run = fit_head(cache, tmp_path, config=HeadConfig(epochs=1, optimizer="adam")).run
    assert run.config["cores"] == usable_cores()
    assert ("cores", f"{usable_cores()}; on another number the last digits differ") in facts(read_record(run))


def test_a_run_stays_where_its_pictures_cannot_be_drawn(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # nobody draws in the other tests

    def no_memory(*_: object, **__: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(figures, "confusion_matrix", no_memory)
    monkeypatch.setattr(figures, "curves", no_memory)
    run = fit_head(cache, tmp_path, config=HeadConfig(epochs=1)).run
    assert not (run.folder / figures.CURVES_FILE).exists()
    monkeypatch.undo()
    assert run.name in report(tmp_path).html.read_text("utf-8"), "the report needs no pictures"
