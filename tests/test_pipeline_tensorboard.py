"""fit-head --tensorboard: event files that TensorFlow's own reader reads, live, each epoch once."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from test_heads_resume import IMAGES, PLAIN, _no_figures, interrupted, separable  # noqa: F401
from test_store_contract import make_cache
from watching import Watching

from featcache.backbones.import_keras import import_keras
from featcache.core.errors import MissingPackageError
from featcache.heads._fit_head import fit_head
from featcache.heads.config import HeadConfig
from featcache.reporting import live
from featcache.store.cache import Cache
from featcache.training import tensorboard
from featcache.training.results import Fitted
from featcache.training.runs import Run as Finished

CONFIG = replace(PLAIN, val_every=5, epochs=12)


@pytest.fixture(scope="module")
def cache(quick: Path) -> Cache:
    return make_cache(quick / "tensorboard", IMAGES, separable(IMAGES, (3, 2, 8)))


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What a log holds, {tag: {step: value}}; a step that stands there twice is an error."""
    import_keras()  # the quiet way, before TensorFlow is imported
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    found: dict[str, dict[int, float]] = defaultdict(dict)
    for file in sorted((folder / "tensorboard").iterdir()):
        for record in tf.data.TFRecordDataset(str(file)):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert event.step not in found[value.tag]
                found[value.tag][event.step] = value.simple_value
    return dict(found)


def same(found: dict[str, dict[int, float]], run: Finished) -> None:
    """Each epoch of the history once, and what was not looked at not at all."""
    assert set(found) == {"loss", "accuracy", "val_loss", "val_accuracy", "lr"}
    for name, values in found.items():
        column = run.history[name]
        assert list(values) == [epoch for epoch, value in enumerate(column, start=1) if not math.isnan(value)]
        assert list(values.values()) == pytest.approx(list(column.dropna()), rel=1e-6)


def fit(cache: Cache, results: Path, config: HeadConfig = CONFIG, **options: Any) -> Fitted:
    return fit_head(cache, results, config=config, solver="gram", tensorboard=True, **options)


def test_a_run_has_its_history_as_a_log(cache: Cache, tmp_path: Path) -> None:
    run = fit(cache, tmp_path).run
    found = scalars(run.folder)
    assert list(found["val_loss"]) == [5, 10, 12]
    same(found, run)
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_it_is_there_to_read_while_it_trains(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY_S", 0.0)
    seen: list[list[int]] = []

    def read(history: Sequence[Any]) -> None:
        if len(history) in (1, 6):
            (folder,) = tmp_path.glob("*.training")
            seen.append(list(scalars(folder)["lr"]))

    fit(cache, tmp_path, progress=Watching(on_epochs=read))
    assert seen == [[1], [1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("logged", [True, False])
def test_one_that_goes_on_has_each_epoch_once(
    cache: Cache, tmp_path: Path, logged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not what was interrupted had a log, which may also be ahead of the state."""
    with monkeypatch.context() as patch:
        if logged:
            patch.setattr(
                "test_heads_resume.fit_head", lambda *args, **options: fit_head(*args, **options, tensorboard=True)
            )
        folder = interrupted(cache, tmp_path, CONFIG, 7)
    assert (folder / "tensorboard").is_dir() == logged
    if logged:
        assert list(scalars(folder)["loss"]) == list(range(1, 8))
        log = tensorboard.EventLog(folder)
        log.close()
        (folder / "tensorboard" / "events.out.tfevents.1.cut").write_bytes(b"half an event")
    done = fit(cache, tmp_path)
    assert done.resumed_at == 7
    same(scalars(done.run.folder), done.run)


def test_again_begins_anew(cache: Cache, tmp_path: Path) -> None:
    first = fit(cache, tmp_path)
    interrupted_again = fit(cache, tmp_path, again=True)
    assert not interrupted_again.reused
    same(scalars(first.run.folder), interrupted_again.run)


def test_a_run_that_is_there_gets_the_log_that_it_lacks(cache: Cache, tmp_path: Path) -> None:
    run = fit_head(cache, tmp_path, config=CONFIG, solver="gram").run
    assert not (run.folder / "tensorboard").exists()
    assert fit(cache, tmp_path).reused
    same(scalars(run.folder), run)


def test_without_the_library_it_is_refused_before_training(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, project: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'featcache\[tensorboard\]'"):
        fit(cache, tmp_path)
    assert list(tmp_path.glob("head*")) == []
    ran = run("fit-head", "--tensorboard", "--epochs", "2", "--solver", "gram", cwd=project)
    assert ran.code == 1
    assert "pip install 'featcache[tensorboard]'" in ran.error
    assert not list((project / "results").glob("head*"))
