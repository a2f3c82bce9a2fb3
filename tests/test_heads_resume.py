"""A training that is killed, interrupted or made longer ends as one that was left alone, to the last bit."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import Shops, lines
from test_heads_train import separable
from test_store_contract import dataset, make_cache
from watching import Watching
from workshop import Workshop

from featcache.core.errors import HeadError, RemoteError, RunError
from featcache.heads import block
from featcache.heads._fit_head import fit_head
from featcache.heads.config import HeadConfig
from featcache.remotes.urls import open_remote
from featcache.reporting import figures, live
from featcache.sharing.bundle import bundle_of_run
from featcache.sharing.catalog import find
from featcache.sharing.receive import pull
from featcache.sharing.send import push
from featcache.store.cache import Cache
from featcache.training import checkpoint, runs
from featcache.training.results import Fitted
from featcache.training.runs import Run, own_states

IMAGES = dataset(72)
PLAIN = HeadConfig((8,), 0.5, lr=0.01, epochs=12, batch=7)
CONFIGS = {
    "plain": PLAIN,
    "momentum": replace(PLAIN, momentum=0.9, nesterov=True, lr=0.001, l2=0.001, hidden=(8, 5)),
    "best": replace(PLAIN, momentum=0.5, restore_best=True, val_every=3, patience=9),
    "double": replace(PLAIN, dtype="float64", output="sigmoid", activation="tanh", schedule="cosine"),
}
PRIMAL = {
    "adam": replace(PLAIN, optimizer="adam", restore_best=True, schedule="cosine", val_every=2),
    "l1": replace(PLAIN, l1=0.01, momentum=0.9, lr=0.001, hidden=(8, 5)),
    "plain": PLAIN,
}
CUTS = [(after, name, "gram") for after in (1, 5, 11) for name in CONFIGS]
CUTS += [(1, "adam", "primal"), (5, "plain", "primal"), (11, "l1", "primal")]
"""After how many epochs which training is interrupted; each of Keras takes seconds."""
KILLS, KILLED_EPOCHS, PAUSE_S = 8, 40, 0.01
PRIMAL_KILLS, PRIMAL_EPOCHS = 2, 16
STEPS = 16


@pytest.fixture(scope="module")
def cache(quick: Path) -> Cache:
    return make_cache(quick / "resume", IMAGES, separable(IMAGES, (3, 2, 8)))


@pytest.fixture
def results(quick: Path, tmp_path: Path) -> Path:
    folder = quick / "resume-results"
    folder.mkdir(exist_ok=True)
    return folder / tmp_path.name


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("write_curves", "write_confusion"):
        monkeypatch.setattr(figures, name, lambda *args, **options: None)


def result(run: Path) -> dict[str, Any]:
    """All of a run but how long it took, when that was and how it is called."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in run.iterdir()}
    found["history.csv"] = [line.rpartition(",")[0] for line in lines(run / "history.csv")]
    with np.load(run / "state.npz") as state:
        arrays = {name: state[name] for name in state.files}
    for name in ("history", "best.history"):  # but the seconds
        if name in arrays:
            arrays[name] = arrays[name][:, :6]
    found["state.npz"] = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}
    for name, fields in {"metrics.json": ("seconds", "s_per_epoch"), "config.json": ("created", "why")}.items():
        record = json.loads(found[name])
        found[name] = {key: value for key, value in record.items() if key not in fields}
    return found


def same(run: Path, expected: dict[str, Any]) -> None:
    found = result(run)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


Whole = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def whole(cache: Cache, quick: Path) -> Whole:
    """What a training that is left alone ends as: whole(config, solver). Each is trained once."""

    @functools.cache
    def trained(config: HeadConfig, solver: Any = "gram") -> dict[str, Any]:
        folder = Path(tempfile.mkdtemp(dir=quick))
        return result(fit_head(cache, folder, config=config, solver=solver).run.folder)

    return trained


def interrupted(cache: Cache, results: Path, config: HeadConfig, after: int, solver: Any = "gram") -> Path:
    """Train, and be asked to stop in an epoch; the folder that is left."""
    with pytest.raises(KeyboardInterrupt):
        fit_head(cache, results, config=config, solver=solver, progress=Watching(lambda: _Stop(after)))
    (folder,) = results.glob("*.training")
    return folder


class _Stop:
    def __init__(self, after: int) -> None:
        self.left = after

    def __enter__(self) -> Any:
        return self.asked

    def __exit__(self, *_: object) -> None: ...

    def asked(self) -> bool:
        self.left -= 1  # the first look is before the first epoch
        return self.left < 0


# Kills


def test_random_kills_change_nothing(cache: Cache, results: Path, shops: Shops) -> None:
    def trial(shop: Workshop, name: str) -> set[int]:
        generator, folder = random.Random(name), results / name
        config = replace(CONFIGS[name], epochs=KILLED_EPOCHS, patience=0)
        asked = (cache.folder, folder / "killed", config.to_dict())
        whole = shop.run("fit", cache.folder, folder / "whole", config.to_dict()).returned["run"]
        stopped_at = []
        for _ in range(KILLS):
            before, further = epochs_in(folder / "killed"), generator.randrange(7)
            worker = shop.start("fit", *asked, pause_s=PAUSE_S)
            while epochs_in(folder / "killed") < before + further and not worker.ended():
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 2 * PAUSE_S))
            if not worker.ended():
                worker.send(9)
            assert worker.wait().code == -9
            stopped_at.append(epochs_in(folder / "killed"))
        done = shop.run("fit", *asked).returned
        assert done["resumed_at"] > KILLED_EPOCHS / 4
        same(folder / "killed" / whole, result(folder / "whole" / whole))
        return set(stopped_at)

    for seen in shops.each(trial, ["momentum", "best"]):
        assert len(seen) > KILLS / 2  # it was killed all along its way


BLOCK_KILLS = int(os.environ.get("FEATCACHE_BLOCK_KILLS", "3"))


def test_random_kills_of_a_training_by_blocks_change_nothing(cache: Cache, results: Path, shops: Shops) -> None:
    """In the middle of an epoch, too, and where the features stream now and then: first layers wide and narrow."""

    def trial(shop: Workshop, name: str) -> list[int]:
        generator, folder = random.Random(name), results / name
        hidden = (8, 5) if name == "momentum" else (24,)
        config = replace(CONFIGS[name], epochs=KILLED_EPOCHS, patience=0, hidden=hidden)
        asked = (cache.folder, folder / "killed", config.to_dict())
        options: dict[str, Any] = {"solver": "block", "block_rows": 14}
        whole = shop.run("fit", cache.folder, folder / "whole", config.to_dict(), **options).returned["run"]
        for number in range(BLOCK_KILLS):
            before = epochs_in(folder / "killed")
            until = before + generator.randrange(1, max(KILLED_EPOCHS // BLOCK_KILLS, 2))
            worker = shop.start("fit", *asked, **options, streams=number % 2 > 0, pause_s=PAUSE_S)
            while epochs_in(folder / "killed") < until and not worker.ended():
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 2 * PAUSE_S))
            worker.send(9)
            worker.wait()
        done = shop.run("fit", *asked, **options, streams=True).returned
        same(folder / "killed" / whole, result(folder / "whole" / whole))
        return [done["resumed_at"] or 0]

    for seen in shops.each(trial, ["momentum", "best"]):
        assert seen != [0]


def test_a_training_by_blocks_goes_on_in_the_middle_of_an_epoch(
    cache: Cache, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "BLOCK_ROWS", 14)
    for number, config in enumerate((replace(PLAIN, hidden=(24,)), replace(CONFIGS["best"], hidden=(24,)))):
        expected = result(fit_head(cache, results / f"whole{number}", config=config, solver="block").run.folder)
        for after in (1, 2, 5, 11):
            cut = results / f"{number}-{after}"
            folder = interrupted(cache, cut, config, after, "block")
            with np.load(folder / "state.npz") as state:
                assert after == 1 or state["under_way"][0] > 0 or len(state["history"])
            done = fit_head(cache, cut, config=config, solver="block")
            same(done.run.folder, expected)
            assert done.resumed_from


@pytest.fixture
def shops_with_keras(quick: Path) -> Iterator[Shops]:
    """As `shops`, for trainings that would each import Keras."""
    both = Shops(quick / "shops-with-keras", keras=True)
    yield both
    both.close()


def test_random_kills_of_a_primal_training_change_nothing(cache: Cache, results: Path, shops_with_keras: Shops) -> None:
    """Optimizer, dropout and best weights go on to the last bit; on machines with and without room for the features."""

    def trial(shop: Workshop, name: str) -> list[int]:
        generator, folder = random.Random(name), results / name
        config = replace(PRIMAL[name], epochs=PRIMAL_EPOCHS)
        asked = (cache.folder, folder / "killed", config.to_dict())
        whole = shop.run("fit", cache.folder, folder / "whole", config.to_dict(), solver="primal").returned["run"]
        stopped_at = [0]
        for number in range(PRIMAL_KILLS):
            until = stopped_at[-1] + generator.randrange(1, PRIMAL_EPOCHS // PRIMAL_KILLS)
            worker = shop.start("fit", *asked, solver="primal", streams=number % 2 > 0, pause_s=PAUSE_S)
            while epochs_in(folder / "killed") < until and not worker.ended():
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 2 * PAUSE_S))
            worker.send(9)
            assert worker.wait().code == -9
            stopped_at.append(epochs_in(folder / "killed"))
        done = shop.run("fit", *asked, solver="primal", streams=True).returned
        assert done["resumed_at"] >= stopped_at[-1] - 1
        same(folder / "killed" / whole, result(folder / "whole" / whole))
        return stopped_at

    for seen in shops_with_keras.each(trial, ["adam", "l1"]):
        assert sorted(set(seen)) == seen  # it got further each time


def epochs_in(results: Path) -> int:
    """How far the training in a folder is, as anybody can see."""
    return max((len(lines(file)) - 1 for file in results.glob("*.training/history.csv")), default=0)


def test_a_kill_before_any_step_of_writing_changes_nothing(cache: Cache, results: Path, shops: Shops) -> None:
    """Between and inside the writing of checkpoints, of the history and of the run."""
    settings = replace(CONFIGS["best"], epochs=3).to_dict()
    log = results.with_name(results.name + ".log")
    whole = shops.both[0].run("fit", cache.folder, results / "whole", settings, fault=("traced", log)).returned["run"]
    expected, n_steps = result(results / "whole" / whole), len(lines(log))
    assert n_steps > 60

    def trial(shop: Workshop, step: int) -> int | None:
        folder = results / str(step)
        killed = shop.run("fit", cache.folder, folder, settings, fault=("killed", step))
        assert killed.code in (-9, 0), (step, killed)
        done = shop.run("fit", cache.folder, folder, settings).returned
        same(folder / whole, expected)
        shutil.rmtree(folder)
        return None if done["reused"] else int(done["resumed_at"])

    steps = {*random.Random(0).sample(range(n_steps), STEPS), n_steps - 1}
    resumed = shops.each(trial, sorted(steps))
    assert set(resumed) == {0, 1, 2, 3, None}  # None: the run was there, and only its training had to go


# Interruptions


@pytest.mark.parametrize(("after", "name", "solver"), CUTS)
def test_an_interrupted_training_goes_on(
    cache: Cache, results: Path, whole: Whole, after: int, name: str, solver: Any
) -> None:
    config = (CONFIGS if solver == "gram" else PRIMAL)[name]
    expected = whole(config, solver)
    folder = interrupted(cache, results / "cut", config, after, solver)
    assert {"config.json", "state.npz"} <= {path.name for path in folder.iterdir()}
    assert runs.list_runs(results / "cut") == []
    done = fit_head(cache, results / "cut", config=config, solver=solver)
    assert (done.resumed_at, done.reused) == (after, False)
    same(done.run.folder, expected)
    assert [path.name for path in (results / "cut").iterdir()] == [done.run.name]
    assert fit_head(cache, results / "cut", config=config, solver=solver).reused


def test_an_interruption_before_the_first_epoch_leaves_nothing(cache: Cache, results: Path) -> None:
    for solver in ("gram", "block", "primal"):
        with pytest.raises(KeyboardInterrupt):
            fit_head(cache, results, config=PLAIN, solver=solver, progress=Watching(lambda: _Stop(0)))
        assert list(results.iterdir()) == []


def test_again_forgets_what_an_interruption_left(cache: Cache, results: Path) -> None:
    interrupted(cache, results, PLAIN, 5)
    assert fit_head(cache, results, config=PLAIN, solver="gram", again=True).resumed_at == 0
    assert fit_head(cache, results, config=PLAIN, solver="gram", again=True).resumed_at == 0


def test_a_damaged_state_is_not_gone_on_from(cache: Cache, results: Path, whole: Whole) -> None:
    expected = whole(PLAIN)
    folder = interrupted(cache, results / "cut", PLAIN, 5)
    state = bytearray((folder / "state.npz").read_bytes())
    state[len(state) // 2] ^= 1
    (folder / "state.npz").write_bytes(state)
    done = fit_head(cache, results / "cut", config=PLAIN, solver="gram")
    assert done.resumed_at == 0
    same(done.run.folder, expected)


def test_an_interrupted_training_with_more_epochs_is_gone_on_with(cache: Cache, results: Path, whole: Whole) -> None:
    longer = replace(PLAIN, epochs=20)
    expected = whole(longer)
    interrupted(cache, results / "cut", PLAIN, 5)
    done = fit_head(cache, results / "cut", config=longer, solver="gram")
    assert done.resumed_at == 5
    same(done.run.folder, expected)


# Longer ones


@pytest.mark.parametrize(("name", "resumed_at"), [("plain", 12), ("momentum", 12), ("best", 12), ("double", 0)])
def test_a_longer_training_begins_where_a_shorter_one_ended(
    cache: Cache, results: Path, whole: Whole, name: str, resumed_at: int
) -> None:
    """But for the cosine schedule, whose every rate depends on how long it is."""
    short = replace(CONFIGS[name], patience=0)
    long = replace(short, epochs=40)
    expected = whole(long)
    fit_head(cache, results / "grown", config=short, solver="gram")
    done = fit_head(cache, results / "grown", config=long, solver="gram")
    assert done.resumed_at == resumed_at
    same(done.run.folder, expected)
    assert fit_head(cache, results / "grown", config=short, solver="gram").reused


def test_a_pulled_state_is_never_gone_on_from(cache: Cache, results: Path, tmp_path: Path) -> None:
    """It was edited by whoever pushed it: what goes on from it would give his result out as one's own."""
    theirs = fit_head(cache, results / "theirs", config=replace(PLAIN, epochs=8), solver="gram").run
    with np.load(theirs.folder / "state.npz") as state:
        arrays = {name: array + 1 if name == "A" else array for name, array in state.items()}
    np.savez(theirs.folder / "state.npz", **arrays)
    parcel = bundle_of_run(theirs.folder)
    store = open_remote(str(tmp_path / "r"))
    push(store, parcel)
    (results / "mine").mkdir()
    pulled = pull(store, find(store, ""), parent=results / "mine").folder
    assert own_states(results / "mine") == []
    assert not Run(pulled).is_own
    done = fit_head(cache, results / "mine", config=PLAIN, solver="gram")
    assert (done.resumed_at, done.resumed_from) == (0, "")
    clean = fit_head(cache, results / "clean", config=PLAIN, solver="gram")
    assert result(done.run.folder) == result(clean.run.folder)
    with pytest.raises(HeadError, match="no finished run with these settings was trained here"):
        fit_head(cache, results / "mine", config=replace(PLAIN, lr=0.5 * PLAIN.lr), solver="gram", more_epochs=2)
    shutil.copytree(pulled, results / "mine" / f"{done.run.name}.training")
    assert fit_head(cache, results / "mine", config=PLAIN, solver="gram", again=True).resumed_at == 0
    longer = fit_head(cache, results / "mine", config=replace(PLAIN, epochs=14), solver="gram")
    assert (longer.resumed_at, longer.resumed_from) == (12, done.run.name)
    push(store, dataclasses.replace(parcel, name=f"{done.run.name}.training"))
    with pytest.raises(RemoteError, match="runs are not named so"):
        pull(store, find(store, f"{done.run.name}.training"), parent=results / "mine")


def test_a_shorter_training_does_not_begin_with_a_longer_one(cache: Cache, results: Path, whole: Whole) -> None:
    expected = whole(PLAIN)
    fit_head(cache, results / "other", config=replace(PLAIN, epochs=20), solver="gram")
    done = fit_head(cache, results / "other", config=PLAIN, solver="gram")
    assert done.resumed_at == 0
    same(done.run.folder, expected)


def test_a_look_at_validation_that_a_longer_training_would_not_take(cache: Cache, results: Path, whole: Whole) -> None:
    """Every training looks at its last epoch; the 12th of 20 is none that --val-every 5 looks at."""
    short = replace(PLAIN, val_every=5, restore_best=True, lr=0.05, scale="norm")
    expected = whole(replace(short, epochs=20))
    fit_head(cache, results / "grown", config=short, solver="gram")
    done = fit_head(cache, results / "grown", config=replace(short, epochs=20), solver="gram")
    assert done.resumed_at == 0
    same(done.run.folder, expected)


def test_patience_that_would_have_ended_a_training_sooner(cache: Cache, results: Path, whole: Whole) -> None:
    endless = replace(PLAIN, lr=0.2, scale="norm", epochs=40)
    patient = replace(endless, patience=2, epochs=60)
    expected = whole(patient)
    assert len(expected["history.csv"]) - 1 < 40
    fit_head(cache, results / "grown", config=endless, solver="gram")
    done = fit_head(cache, results / "grown", config=patient, solver="gram")
    assert done.resumed_at == 0
    same(done.run.folder, expected)


def test_more_epochs(cache: Cache, results: Path, whole: Whole) -> None:
    expected = whole(replace(PLAIN, epochs=30))
    with pytest.raises(HeadError, match="no finished run with these settings was trained here"):
        fit_head(cache, results / "grown", config=PLAIN, more_epochs=10)
    fit_head(cache, results / "grown", config=PLAIN, solver="gram")
    fit_head(cache, results / "grown", config=replace(PLAIN, epochs=20), solver="gram")
    other = fit_head(cache, results / "grown", config=replace(PLAIN, epochs=99, seed=1), solver="gram")
    (other.run.folder / "config.json").write_text("{")  # says nothing of the others
    done = fit_head(cache, results / "grown", config=PLAIN, more_epochs=10)
    assert (done.resumed_at, done.run.metrics["epochs"]) == (20, 30)
    same(done.run.folder, expected)
    with pytest.raises(HeadError, match="cosine schedule ends with its last epoch"):
        fit_head(cache, results / "grown", config=CONFIGS["double"], more_epochs=10)


def test_what_another_data_set_or_head_left_is_not_gone_on_from(cache: Cache, results: Path, quick: Path) -> None:
    interrupted(cache, results, PLAIN, 5)
    for other in (replace(PLAIN, seed=1), replace(PLAIN, lr=0.02), replace(PLAIN, dropout=0.4)):
        assert fit_head(cache, results, config=other, solver="gram").resumed_at == 0
    features = separable(IMAGES, (3, 2, 8)) + 1
    assert (
        fit_head(make_cache(results / "cache", IMAGES, features), results, config=PLAIN, solver="gram").resumed_at == 0
    )


def test_primal_trainings_grow_too(cache: Cache, results: Path, whole: Whole) -> None:
    """By --epochs and by --more-epochs, which takes the solver that the longest run had."""
    config = replace(PRIMAL["l1"], restore_best=True)
    expected = whole(replace(config, epochs=25), "primal")
    fit_head(cache, results / "grown", config=config, solver="primal")
    assert fit_head(cache, results / "grown", config=replace(config, epochs=15), solver="primal").resumed_at == 12
    done = fit_head(cache, results / "grown", config=config, more_epochs=10)
    assert (done.resumed_at, done.run.metrics["epochs"]) == (15, 25)
    same(done.run.folder, expected)
    fit_head(cache, results / "both", config=replace(PLAIN, epochs=9), solver="primal")
    fit_head(cache, results / "both", config=replace(PLAIN, epochs=7), solver="gram")
    for solver, length in (("auto", 10), ("gram", 8), ("primal", 11)):
        done = fit_head(cache, results / "both", config=PLAIN, solver=solver, more_epochs=1)  # type: ignore[arg-type]
        assert (done.run.config["solver"], done.run.metrics["epochs"]) == ("gram" if length == 8 else "primal", length)


def test_patience_goes_on_counting(cache: Cache, results: Path, whole: Whole) -> None:
    for solver in ("gram", "primal"):
        patient = replace(PLAIN, lr=0.2, scale="norm", epochs=40, patience=3, restore_best=True)
        expected = whole(patient, solver)
        ended = len(expected["history.csv"]) - 1
        assert 4 < ended < 40
        interrupted(cache, results / solver, patient, ended - 2, solver)
        done = fit_head(cache, results / solver, config=patient, solver=solver)  # type: ignore[arg-type]
        assert done.resumed_at == ended - 2
        same(done.run.folder, expected)


def test_the_states_of_the_solvers_are_not_taken_for_each_other(cache: Cache, results: Path) -> None:
    gram, primal = (fit_head(cache, results, config=PLAIN, solver=solver).run for solver in ("gram", "primal"))  # type: ignore[arg-type]
    (gram.folder / "state.npz").replace(primal.folder / "state.npz")
    assert fit_head(cache, results, config=replace(PLAIN, epochs=14), solver="primal").resumed_at == 0


# Two at once


def test_two_processes_cannot_train_one_run(cache: Cache, results: Path, shops: Shops) -> None:
    config = replace(PLAIN, epochs=1000)
    worker = shops.both[0].start("fit", cache.folder, results, config.to_dict(), pause_s=0.05)
    while not list(results.glob("*.training/state.npz")):
        time.sleep(0.005)
    began = time.monotonic()
    with pytest.raises(RunError, match=r"\.training: another process trains this run; wait for it, or train with"):
        fit_head(cache, results, config=config, solver="gram")
    assert time.monotonic() - began < 2
    assert (fit_head(cache, results, config=replace(config, epochs=5), solver="gram")).resumed_at in range(6)
    worker.send(9)
    worker.wait()
    assert fit_head(cache, results, config=replace(config, epochs=60), solver="gram").run.metrics["epochs"] == 60


def test_who_comes_as_another_one_finishes_finds_its_run(
    cache: Cache, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runs.training

    def late(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(runs, "training", real)
        first = fit_head(cache, results, config=PLAIN, solver="gram")
        assert not first.reused
        return real(*args, **options)

    monkeypatch.setattr(runs, "training", late)
    done: Fitted = fit_head(cache, results, config=PLAIN, solver="gram")
    assert done.reused
    assert [path.name for path in results.iterdir()] == [done.run.name]


# What is left


def test_a_training_that_fails_leaves_nothing(cache: Cache, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_S", 0)
    monkeypatch.setattr(checkpoint, "COST", 0)
    with pytest.raises(HeadError, match="diverges at learning rate"):
        fit_head(cache, results, config=replace(PLAIN, hidden=(8, 4), lr=1e6), solver="gram")
    assert list(results.iterdir()) == []


def test_history_is_there_to_read_while_it_trains(cache: Cache, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY_S", 0.0)
    seen = []

    def read(history: Any) -> None:
        (folder,) = results.glob("*.training")
        frame = runs.Run(folder).history
        assert len(frame) == len(history)
        assert list(frame["loss"]) == pytest.approx([entry.loss for entry in history], rel=1e-12)
        seen.append(len(frame))

    fit_head(cache, results, config=PLAIN, solver="gram", progress=Watching(on_epochs=read))
    assert seen == list(range(1, 13))
