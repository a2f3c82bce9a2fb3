"""The list of runs: what it says of each, its order, tags and notes, comparisons and removal."""

from __future__ import annotations

import json
import threading

import click
import numpy as np
import pandas as pd
import pytest
from conftest import Run

import featcache as fc
from featcache.cli.runs import command
from featcache.core.errors import RunError, UsageError
from featcache.core.progress import SILENT
from featcache.reporting._runs import SORTS
from featcache.synthetic.drawing import write_cells
from featcache.training import annotate, read_notes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> fc.Project:
    """A project with two heads, a classical one and a cross-validation."""
    folder = tmp_path_factory.mktemp("runs")
    write_cells(folder / "cells", 8, seed=2, size_px=32)
    project = fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)
    cache = fc.extract(project, "pixels", input_size_px=8, progress=SILENT)
    for epochs in (2, 3):
        fc.fit_head(cache, epochs=epochs, hidden=(4,), solver="gram", progress=SILENT)
    fc.fit_head(cache, head="knn", progress=SILENT)
    fc.cross_validate(cache, folds=3, head="knn", progress=SILENT)
    return project


@pytest.fixture
def project(made: fc.Project) -> fc.Project:
    (made.results_folder / "notes.json").unlink(missing_ok=True)
    return made


def test_every_run_is_listed_with_what_its_files_say(project: fc.Project) -> None:
    listed = {one.name: one for one in fc.runs(project)}
    assert set(listed) == {folder.name for folder in project.results_folder.iterdir() if folder.is_dir()}
    kinds = sorted(one.kind for one in listed.values())
    assert kinds == ["cross-validation", "head", "head", "knn"]
    for one in listed.values():
        metrics = json.loads((one.folder / "metrics.json").read_text("utf-8"))
        if one.kind == "cross-validation":
            assert one.measure("accuracy") == metrics["measures"]["accuracy"]["mean"]
            assert (one.rows, one.epochs) == (metrics["images"], None)
        else:
            test = metrics["test"]
            assert (one.measure("macro_f1"), one.measure("loss")) == (test["macro_f1"], test["loss"])
            assert list(one.interval or ()) == test["intervals"]["accuracy"]
            assert one.rows == test["rows"]
        assert one.problem == ""
    assert sorted(one.epochs or 0 for one in listed.values() if one.kind == "head") == [2, 3]


def test_the_order_and_the_choice(project: fc.Project) -> None:
    by_loss = [one.measure("loss") for one in fc.runs(project, sort="loss")]
    assert by_loss == sorted(by_loss)
    by_accuracy = [one.measure("accuracy") for one in fc.runs(project, sort="accuracy")]
    assert by_accuracy == sorted(by_accuracy, reverse=True)
    assert [one.name for one in fc.runs(project, sort="name")] == sorted(one.name for one in fc.runs(project))
    assert {one.kind for one in fc.runs(project, kind="head")} == {"head"}
    assert fc.runs(project, backbone="vgg16") == []
    (order,) = [param for param in command.params if param.name == "sort"]
    assert isinstance(order.type, click.Choice)
    assert tuple(order.type.choices) == SORTS
    with pytest.raises(UsageError, match="did you mean accuracy"):
        fc.runs(project, sort="acuracy")


def test_a_damaged_run_is_listed_with_its_problem_and_comes_last(project: fc.Project) -> None:
    broken = project.results_folder / "head-broken"
    broken.mkdir()
    (broken / "metrics.json").write_text('{"format": 1}')
    try:
        listed = fc.runs(project, sort="accuracy")
        assert (listed[-1].name, listed[-1].measures) == ("head-broken", None)
        assert "config.json" in listed[-1].problem
    finally:
        (broken / "metrics.json").unlink()
        broken.rmdir()


def test_tags_and_notes(project: fc.Project, run: Run) -> None:
    one, other, *_ = fc.runs(project, kind="head")
    assert run("runs", "tag", one.name, "good", "Ärztin", cwd=project.folder).code == 0
    assert run("runs", "note", one.name, "for the poster", "--json", cwd=project.folder).value == {
        "run": one.name,
        "tags": ["good", "Ärztin"],
        "note": "for the poster",
    }
    annotate(project.results_folder, other.name, add=["good"])
    assert [each.name for each in fc.runs(project, tags=["good", "Ärztin"])] == [one.name]
    assert len(fc.runs(project, tags=["good"])) == 2
    listed = run("runs", "--tag", "Ärztin", "--json", cwd=project.folder).value
    assert [(each["name"], each["note"]) for each in listed] == [(one.name, "for the poster")]
    assert "for the poster" in run("runs", cwd=project.folder).out
    run("runs", "tag", one.name, "good", "Ärztin", "--remove", cwd=project.folder)
    run("runs", "note", one.name, "", cwd=project.folder)
    assert set(read_notes(project.results_folder)) == {other.name}
    assert not list(one.folder.glob("notes*"))


@pytest.mark.parametrize("tag", ["", "a b", "a,b", "x" * 65, "a\nb"])
def test_what_is_no_tag_is_refused(project: fc.Project, tag: str) -> None:
    with pytest.raises(UsageError, match="expected up to 64 letters"):
        annotate(project.results_folder, "run", add=[tag])
    assert not (project.results_folder / "notes.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"run": 3}', '{"run": {"tags": [1]}}', '{"run": {"text": []}}'])
def test_damaged_notes_are_said_and_kept(project: fc.Project, text: str) -> None:
    path = project.results_folder / "notes.json"
    path.write_text(text)
    for use in (lambda: fc.runs(project), lambda: annotate(project.results_folder, "run", add=["a"])):
        with pytest.raises(RunError, match=r"notes\.json: cannot be read"):
            use()
    assert path.read_text() == text


def test_notes_of_several_at_once_are_all_kept(project: fc.Project) -> None:
    def note(number: int) -> None:
        annotate(project.results_folder, f"run-{number}", text=str(number))

    threads = [threading.Thread(target=note, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {note.text for note in read_notes(project.results_folder).values()} == {str(n) for n in range(12)}


def test_two_runs_are_compared(project: fc.Project, run: Run) -> None:
    one, other, *_ = fc.runs(project, kind="head")
    value = run("runs", "compare", one.name, other.name, "--json", cwd=project.folder).value
    assert (value["a"], value["b"]) == (one.name, other.name)
    found = {line["measure"]: line for line in value["measures"]}
    predicted = [pd.read_csv(each.folder / "predictions.csv").query("split == 'test'") for each in (one, other)]
    accuracy = [float((frame["predicted"] == frame["label"]).mean()) for frame in predicted]
    assert found["accuracy"]["difference"] == pytest.approx(np.subtract(*accuracy))
    assert found["accuracy"]["low"] <= found["accuracy"]["difference"] <= found["accuracy"]["high"]
    shown = run("runs", "compare", one.name, other.name, cwd=project.folder).out
    assert "head.epochs" in shown
    same = run("runs", "compare", one.name, one.name, cwd=project.folder).out
    assert "not distinguishable" in same and "their settings are the same" in same
    crossed = fc.runs(project, kind="cross-validation")[0]
    assert "not judged on the same images" in run("runs", "compare", one.name, crossed.name, cwd=project.folder).error


def test_diff_takes_runs(project: fc.Project, run: Run) -> None:
    one, other = sorted(fc.runs(project, kind="head"), key=lambda each: each.epochs or 0)  # made in the same second
    fields = run("diff", one.name, other.name, "--json", cwd=project.folder).value["fields"]
    assert {"field": "head.epochs", "ours": 2, "theirs": 3} in fields


def test_runs_are_removed_after_a_question(project: fc.Project, run: Run) -> None:
    (crossed,) = fc.runs(project, kind="cross-validation")
    assert run("runs", "rm", crossed.name, "--dry-run", "--json", cwd=project.folder).value["removed"] is False
    assert "add --yes" in run("runs", "rm", crossed.name, cwd=project.folder).error
    assert crossed.folder.is_dir()
    value = run("runs", "rm", crossed.name[:5], "--yes", "--json", cwd=project.folder).value
    assert [item["path"] for item in value["items"]] == [str(crossed.folder)]
    assert not crossed.folder.exists()
    assert "no run of that name" in run("runs", "rm", crossed.name, "--yes", cwd=project.folder).error
    assert "several runs of that name" in run("runs", "rm", "head", "--yes", cwd=project.folder).error
    assert len(fc.runs(project)) == 3
