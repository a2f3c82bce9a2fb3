"""Runs in MLflow: a real database of MLflow's own client, read back by it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

import featcache as fc
from featcache.core.errors import MissingPackageError, RunError, UsageError
from featcache.core.progress import SILENT
from featcache.synthetic.drawing import write_cells
from featcache.training import annotate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's use of SQLAlchemy

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'featcache[mlflow]'")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> fc.Project:
    """A project with a head, a classical one and a cross-validation."""
    folder = tmp_path_factory.mktemp("mlflow") / "cells-of-june"
    folder.mkdir()
    write_cells(folder / "cells", 8, seed=2, size_px=32)
    project = fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)
    cache = fc.extract(project, "pixels", input_size_px=8, progress=SILENT)
    fc.fit_head(cache, epochs=3, hidden=(4,), progress=SILENT)
    fc.fit_head(cache, head="knn", progress=SILENT)
    fc.cross_validate(cache, folds=3, head="knn", progress=SILENT)
    return project


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them: to make them takes seconds."""
    path = tmp_path_factory.mktemp("tables") / "runs.db"
    client_of(path).search_experiments()
    return path


@pytest.fixture
def database(tables: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tables, tmp_path / "runs.db"))


def client_of(database: Path) -> Any:
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{database}")


def in_mlflow(database: Path, experiment: str = "cells-of-june") -> dict[str, Any]:
    client = client_of(database)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {one.data.tags["featcache.run"]: one for one in found}


def test_settings_curves_measures_and_files_are_there(project: fc.Project, database: Path, tmp_path: Path) -> None:
    logged = fc.log_to_mlflow(project, to=str(database), progress=SILENT)
    assert [one.name for one in logged] == sorted(one.name for one in fc.runs(project))
    assert all(one.new for one in logged)
    there = in_mlflow(database)
    assert {name: one.info.run_id for name, one in there.items()} == {one.name: one.mlflow_id for one in logged}
    client = client_of(database)
    for listed in fc.runs(project):
        run, one = fc.Run(listed.folder), there[listed.name]
        assert one.info.status == "FINISHED"
        assert one.data.params["backbone"] == "pixels"
        files = {found.path for found in client.list_artifacts(one.info.run_id)}
        assert {"config.json", "metrics.json"} <= files
        assert {Path(name).suffix for name in files} <= {".json", ".csv", ".png"}  # knn keeps training rows in rows.npy
        if listed.kind == "cross-validation":
            accuracy = run.metrics["measures"]["accuracy"]
            for name, value in (("accuracy", "mean"), ("accuracy.low", "low"), ("accuracy.high", "high")):
                assert one.data.metrics[name] == pytest.approx(accuracy[value])
        else:
            test = run.metrics["test"]
            low, high = test["intervals"]["accuracy"]
            assert one.data.metrics["test.accuracy"] == pytest.approx(test["accuracy"])
            assert [one.data.metrics[f"test.accuracy.{end}"] for end in ("low", "high")] == pytest.approx([low, high])
            recall = test["per_class"]["monocyte"]["recall"]
            assert one.data.metrics["test.recall.monocyte"] == pytest.approx(recall)
        if listed.kind == "head":
            assert one.data.params["head.epochs"] == "3"
            curve = client.get_metric_history(one.info.run_id, "val_loss")
            assert [(point.step, point.value) for point in sorted(curve, key=lambda point: point.step)] == [
                (epoch, pytest.approx(value))
                for epoch, value in run.history[["epoch", "val_loss"]].itertuples(index=False)
            ]
    assert not (project.folder / "mlruns").exists()
    assert (tmp_path / "mlartifacts").is_dir()


def test_what_is_there_is_not_written_again_and_halves_are(project: fc.Project, database: Path, run: Run) -> None:
    head, *others = [one.name for one in fc.runs(project)]
    first = run("runs", "mlflow", head, "--to", database, "--json", cwd=project.folder).value
    assert [(one["name"], one["new"]) for one in first] == [(head, True)]
    client_of(database).set_terminated(first[0]["mlflow_id"], status="RUNNING")  # as an interruption leaves it
    second = {one.name: one for one in fc.log_to_mlflow(project, to=str(database), progress=SILENT)}
    assert second[head].new and second[head].mlflow_id != first[0]["mlflow_id"]
    annotate(project.results_folder, head, add=["good"], text="for the poster")
    said = run("runs", "mlflow", "--to", database, cwd=project.folder).out
    assert f"0 runs written, {1 + len(others)} there already" in said
    tags = in_mlflow(database)[head].data.tags
    assert (tags["featcache.tags"], tags["mlflow.note.content"]) == ("good", "for the poster")


def test_with_the_model_and_under_another_name(project: fc.Project, database: Path) -> None:
    (head,) = [one.name for one in fc.runs(project, kind="head")]
    (one,) = fc.log_to_mlflow(
        project, to=f"sqlite:///{database}", names=[head[:8]], experiment="mine", with_model=True, progress=SILENT
    )
    files = {found.path for found in client_of(database).list_artifacts(one.mlflow_id)}
    assert {"head.npz", "state.npz"} <= files
    assert set(in_mlflow(database, "mine")) == {head}


@pytest.mark.parametrize(
    ("to", "error", "said"),
    [
        ("", UsageError, "name a server"),
        (".", UsageError, "not a folder"),
        ("file:///tmp/mlruns", UsageError, "not a folder"),
        ("http://127.0.0.1:9", RunError, "cannot be reached"),
        ("nonsense://there", RunError, "refuses"),
    ],
)
def test_addresses_that_are_none(project: fc.Project, to: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        fc.log_to_mlflow(project, to=to, progress=SILENT)


def test_a_file_that_is_no_database(project: fc.Project, tmp_path: Path) -> None:
    (tmp_path / "runs.db").write_text("notes of mine")
    with pytest.raises(RunError, match="refuses"):
        fc.log_to_mlflow(project, to=str(tmp_path / "runs.db"), progress=SILENT)
    assert (tmp_path / "runs.db").read_text() == "notes of mine"


def test_without_mlflow_the_line_that_installs_it(project: fc.Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("featcache.core.extras.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="mlflow"):
        fc.log_to_mlflow(project, to="runs.db", progress=SILENT)


def test_a_damaged_run_is_named(project: fc.Project, database: Path) -> None:
    broken = project.results_folder / "head-pixels-00000000"
    broken.mkdir()
    try:
        (broken / "metrics.json").write_text(json.dumps({"format": 1}))
        with pytest.raises(RunError, match=r"head-pixels-00000000"):
            fc.log_to_mlflow(project, to=str(database), names=[broken.name], progress=SILENT)
    finally:
        (broken / "metrics.json").unlink()
        broken.rmdir()
