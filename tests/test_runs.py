"""Runs: whole or not there, read back as written, damage named."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from featcache.core.errors import CacheNotFoundError, RunError
from featcache.core.files import plain_cell
from featcache.training import runs
from featcache.training.history import Epoch
from featcache.training.runs import (
    Run,
    is_finished,
    list_runs,
    new_run,
    run_name,
    training,
    write_predictions,
    write_run,
)

NAN = float("nan")
HISTORY = [
    Epoch(1, 1.3862943611198906, 0.25, 1.1, 0.5, 0.003, 0.01),
    Epoch(2, 1 / 3, 2 / 3, NAN, NAN, 1e-5, 1e-9),
]
CONFIG = {"kind": "head", "classes": ["a", "ß"], "head": {"hidden": [256]}}
METRICS = {
    "epochs": 2,
    "seconds": 0.5,
    "test": {"accuracy": 0.1 + 0.2, "per_class": {"a": {"recall": None}}, "intervals": {}},
}


def make_run(results: Path, name: str = "head-tiny-0", **metrics: object) -> Run:
    with new_run(results, name) as folder:
        write_run(folder, CONFIG, metrics={**METRICS, **metrics}, history=HISTORY)
    return Run(results / name)


def names(results: Path) -> list[str]:
    return sorted(path.name for path in results.iterdir())


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    results = tmp_path / "not" / "yet"
    run = make_run(results)
    assert names(results) == [run.name] == ["head-tiny-0"]
    assert run.config == {"format": 1, **CONFIG}
    assert run.metrics == {"format": 1, **METRICS}
    assert list(run.history.columns) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"]
    for entry, line in zip(HISTORY, run.history.to_dict("records"), strict=True):
        for field, value in vars(entry).items():
            assert line[field] == value or (math.isnan(value) and math.isnan(line[field]))


def test_the_name_is_that_of_everything_that_decides() -> None:
    one = run_name("head", "vgg16", identity={"a": 1, "b": [2]})
    assert one == run_name("head", "vgg16", identity={"b": [2], "a": 1})
    assert one != run_name("head", "vgg16", identity={"a": 1, "b": [3]})
    assert one.startswith("head-vgg16-")
    assert len(one) == len("head-vgg16-") + 8


def test_a_run_takes_the_place_of_an_older_one_as_a_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.folder / "curves.png").write_bytes(b"old")
    with new_run(tmp_path, run.name) as folder:
        assert Run(run.folder).metrics["epochs"] == 2
        write_run(folder, CONFIG, metrics={**METRICS, "epochs": 3}, history=HISTORY)
        assert Run(run.folder).metrics["epochs"] == 2
        assert list_runs(tmp_path) == [run]
    assert Run(run.folder).metrics["epochs"] == 3
    assert not (run.folder / "curves.png").exists()
    assert names(tmp_path) == [run.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
@pytest.mark.parametrize("before", [True, False])
def test_an_error_leaves_nothing_and_keeps_the_old_run(
    tmp_path: Path, error: type[BaseException], before: bool
) -> None:
    if before:
        make_run(tmp_path)
    with pytest.raises(error), new_run(tmp_path, "head-tiny-0") as folder:
        write_run(folder, CONFIG, metrics={**METRICS, "epochs": 9}, history=HISTORY)
        raise error
    assert names(tmp_path) == (["head-tiny-0"] if before else [])
    assert [run.metrics["epochs"] for run in list_runs(tmp_path)] == [2] * before


def test_an_error_of_the_system_is_a_run_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match="head-tiny-0: cannot be written: No space left"),
        new_run(tmp_path, "head-tiny-0"),
    ):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_an_error_of_featcache_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFoundError, match="gone"), new_run(tmp_path, "head-tiny-0"):
        raise CacheNotFoundError("gone")
    assert names(tmp_path) == []


def test_results_that_cannot_be_written_are_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(RunError, match="cannot be written"), new_run(tmp_path / "results", "head"):
        pytest.fail("there is no folder to write into")


def test_a_file_with_the_name_of_the_run_is_a_run_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "head-tiny-0").write_text("a file")
    with pytest.raises(RunError, match="cannot be written"):
        make_run(tmp_path)
    assert names(tmp_path) == ["head-tiny-0"]


def test_if_the_new_run_cannot_take_the_name_the_old_one_gets_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rename = make_run(tmp_path), os.replace

    def replace(source: Path, target: str | Path) -> Path:
        if Path(target) == run.folder and source.suffix != ".old":
            raise OSError(5, "Input/output error")
        rename(source, target)
        return Path(target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(RunError, match="Input/output error"), new_run(tmp_path, run.name):
        pass
    monkeypatch.undo()
    assert names(tmp_path) == [run.name]
    assert Run(run.folder).metrics["epochs"] == 2


def test_only_finished_runs_are_listed(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nowhere") == []
    (tmp_path / "README.md").write_text("runs")
    (tmp_path / "empty").mkdir()
    hidden = make_run(tmp_path, ".killed.partial")
    second, first = make_run(tmp_path, "head-b"), make_run(tmp_path, "head-a")
    (make_run(tmp_path, "head-c").folder / "metrics.json").unlink()
    assert list_runs(tmp_path) == [first, second]
    assert not is_finished(hidden.folder)
    assert not is_finished(tmp_path / "head-c")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"7", b"\xff", b"[" * 100_000, b'{"format": 2}', b'{"format": "1"}'],
    ids=range(9),
)
@pytest.mark.parametrize("name", ["config", "metrics"])
def test_a_damaged_record_is_a_run_error(tmp_path: Path, name: str, text: bytes) -> None:
    run = make_run(tmp_path)
    (run.folder / f"{name}.json").write_bytes(text)
    with pytest.raises(RunError, match=f"{name}.json"):
        getattr(run, name)


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff\xfe\x00", b"a,b\n1,2,3\n4\n1,2,3,4", b"epoch,loss\n1,2\n", b'"', b"\n\n", b"epoch\x00"],
    ids=range(7),
)
def test_a_damaged_history_is_a_run_error(tmp_path: Path, text: bytes) -> None:
    run = make_run(tmp_path)
    (run.folder / "history.csv").write_bytes(text)
    with pytest.raises(RunError, match=r"history\.csv"):
        _ = run.history


def test_a_number_that_is_none_in_the_history_is_a_run_error(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    file = run.folder / "history.csv"
    file.write_text(file.read_text().replace("1.1", "one"))
    with pytest.raises(RunError, match="val_loss"):
        _ = run.history


@pytest.mark.parametrize("name", ["config", "metrics", "history"])
def test_a_missing_file_is_a_run_error(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    next(run.folder.glob(f"{name}.*")).unlink()
    with pytest.raises(RunError, match="cannot be read"):
        getattr(run, name)


def test_predictions_hold_every_row_and_class(tmp_path: Path) -> None:
    rows = pd.DataFrame({"row": [0, 1], "path": ['a,"b".png', "ä.png"], "label": ["x", "y"]})
    probabilities = np.array([[0.25, 0.75], [0.9999999, 1e-7]], "float32")
    write_predictions(tmp_path, rows, probabilities=probabilities, classes=["x", "y"])
    found = pd.read_csv(tmp_path / "predictions.csv")
    assert list(found.columns) == ["row", "path", "label", "predicted", "p_x", "p_y"]
    assert list(found["path"]) == list(rows["path"])
    assert list(found["predicted"]) == ["y", "x"]
    np.testing.assert_allclose(found[["p_x", "p_y"]], probabilities, atol=5.1e-7)
    assert list(rows.columns) == ["row", "path", "label"]


def test_labels_survive_in_predictions_whatever_they_look_like(tmp_path: Path) -> None:
    labels = ["nan", "None", "NA", "1", "=cmd|'/c calc'!A1", "'=x", "-1", "@a", "+", "'"]
    rows = pd.DataFrame({"row": range(len(labels)), "path": labels, "label": labels, "x": -0.5})
    write_predictions(tmp_path, rows, probabilities=np.eye(len(labels)), classes=labels)
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for column in ("path", "label", "predicted"):
        assert [plain_cell(line[column]) for line in lines] == labels
        assert not any(line[column].startswith(("=", "+", "-", "@")) for line in lines)
    assert {line["x"] for line in lines} == {"-0.5"}


def test_a_training_writes_and_removes_nothing_behind_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis").write_text("mine")
    (tmp_path / "head-x.training").symlink_to(outside)
    refused = pytest.raises(RunError, match="is a link, and a training would write elsewhere")
    with refused, training(tmp_path, "head-x", config={}, again=True):
        raise AssertionError
    (tmp_path / "head-x.training").unlink()
    (tmp_path / "head-x.training").mkdir()
    (tmp_path / "head-x.training" / "state.npz").symlink_to(outside / "thesis")
    (tmp_path / "head-x.training" / "below").symlink_to(outside)
    with training(tmp_path, "head-x", config={}) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "leases"]
    assert [path.name for path in outside.iterdir()] == ["thesis"]


def test_measures_of_version_0_1_are_read_as_those_of_now() -> None:
    folder = Path(__file__).parent / "data" / "v0.1" / "project" / "results" / "head-mobilenetv2-6ab20b80"
    written = json.loads((folder / "metrics.json").read_text())["test"]
    found = runs.Run(folder).metrics["test"]
    assert found["intervals"] == {"accuracy": written["accuracy_interval"]}
    assert {label: of["recall"] for label, of in found["per_class"].items()} == written["per_class"]
    assert found["confusion"] == written["confusion"]


def test_runs_on_the_same_images_are_compared(tmp_path: Path) -> None:
    results = Path(__file__).parent / "data" / "v0.1" / "project" / "results"
    head, logreg, other = (
        runs.Run(results / name)
        for name in ("head-mobilenetv2-6ab20b80", "logreg-mobilenetv2-6899c3d2", "head-pixels-ae7232e1")
    )
    table = head.compare(logreg).set_index("measure")
    both = [run.metrics["test"]["accuracy"] for run in (head, logreg)]
    assert table.loc["accuracy", "difference"] == pytest.approx(both[0] - both[1])
    assert (table["low"] <= table["difference"]).all()
    assert (table["difference"] <= table["high"]).all()
    assert (head.compare(head)[["difference", "low", "high"]] == 0).all(axis=None)
    changed = shutil.copytree(other.folder, tmp_path / "changed")
    text = (changed / "predictions.csv").read_text()
    (changed / "predictions.csv").write_text(text.replace(",test,", ",val,", 1))
    with pytest.raises(RunError, match="not judged on the same images"):
        head.compare(runs.Run(changed))
    (changed / "predictions.csv").unlink()
    with pytest.raises(RunError, match=r"predictions\.csv: cannot be read"):
        head.compare(runs.Run(changed))
