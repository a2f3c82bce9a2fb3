"""Whole studies: done once, gone on with after kills, and honest about what could not be done."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Run, contents, start_command
from sklearn.metrics import accuracy_score, log_loss

import featcache as fc
from featcache.core.errors import DatasetError, ProjectError, RunError
from featcache.core.files import visible_folders
from featcache.core.progress import SILENT, Silent
from featcache.study import Study
from featcache.study.averaging import average
from featcache.synthetic.drawing import write_cells

TINY = """\
[dataset]
per_class = 8
split_counts = [4, 2, 2]
[views]
train = 2
[networks.eight]
model = "pixels"
input_size_px = 8
[networks.twelve]
model = "pixels"
input_size_px = 12
[heads.a]
epochs = 2
hidden = [4]
seeds = 2
[heads.b]
epochs = 3
hidden = [4]
[cross_validate.cv]
folds = 2
[ensembles.best]
choose = "cv"
measure = "accuracy"
best = 2
[ensembles.heads]
members = ["head/a"]
[ensembles.crossed]
members = ["cross-validate/cv/b"]
"""
SIZES = {"densenet121": 8, "densenet169": 9, "densenet201": 10, "inceptionv3": 11, "vgg16": 12, "vgg19": 13}
SIZES |= {"xception": 14}
SMALL = {
    "dataset.per_class": 8,
    "datasets.second.dataset.split_counts": [4, 2, 2],
    "datasets.second.views": {"train_rows": 26, "val_rows": 10, "test_rows": 10},
    "datasets.first.dataset.split": [2, 1, 1],
    "datasets.first.views.train_rows": {"eosinophil": 9, "lymphocyte": 8, "monocyte": 7, "neutrophil": 6},
    "datasets.first.views.val_rows": 8,
    "datasets.first.views.test_rows": 8,
    **{f"networks.{name}": {"model": "pixels", "input_size_px": size} for name, size in SIZES.items()},
    "networks.resnet50": {"model": "resnet20", "weights": "random", "input_size_px": 32},
    "heads.100.epochs": 2,
    "heads.5000.epochs": 4,
    "scratch.100.networks": ["resnet50"],
    "scratch.100.epochs": 1,
}
"""The study of featcache with small settings: seven networks are pixels of some size, and one is small and residual."""


def study(folder: Path, **options: Any) -> Study:
    (folder / "tiny.toml").write_text(TINY)
    made = fc.run_study(folder / "tiny.toml", into=folder / "s", progress=SILENT, **options)
    assert isinstance(made, Study)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that is done; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    assert study(folder).is_whole
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of it of the test's own."""
    return shutil.copytree(whole, tmp_path / "copy")


def without_times(value: Any) -> Any:
    """JSON without what is other each time."""
    times = ("seconds", "s_per_epoch", "created", "shares_s", "images_per_s")
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in times}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def told(results: Path) -> dict[str, Any]:
    """What all runs in a folder say, but for times."""
    return {
        folder.name: (
            (folder / "predictions.csv").read_text(),
            without_times(json.loads((folder / "metrics.json").read_text())),
            without_times(json.loads((folder / "config.json").read_text())),
        )
        for folder in sorted(results.iterdir())
        if (folder / "metrics.json").is_file()
    }


def stamps(folder: Path) -> dict[str, int]:
    """When each file was written, but for the report and memories."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in found
        if not path.name.startswith(".") and not path.name.startswith("report")
    }


def frame_of(run: fc.Run) -> pd.DataFrame:
    keys = [name for name in ("repeat", "image_id", "view") if name in (run.folder / "predictions.csv").read_text()]
    return pd.read_csv(run.folder / "predictions.csv").sort_values(keys).reset_index(drop=True)


# The whole


def test_all_steps_are_done_once(copied: Path) -> None:
    before = stamps(copied / "s")
    again = study(copied)
    assert {step.state for step in again.steps if step.kind != "report"} == {"there"}
    assert stamps(copied / "s") == before
    assert len(again.runs) == 2 * 3 + 4 + 3
    assert again.report is not None
    page = again.report.html.read_text()
    assert all(run.name in page for run in again.runs)
    assert "<table>" in again._repr_html_()
    assert {one.kind for one in fc.runs(copied / "s")} == {"head", "cross-validation", "ensemble"}
    assert not any(one.problem for one in fc.runs(copied / "s"))


def test_only_what_is_new_is_done(copied: Path) -> None:
    more = study(copied, changes={"heads.c": {"epochs": 1}}, only=["head/c"])
    assert [(step.id, step.state) for step in more.steps] == [
        ("dataset", "there"),
        ("extract/eight", "there"),
        ("head/c/eight", "made"),
        ("extract/twelve", "there"),
        ("head/c/twelve", "made"),
        ("report", "made"),
    ]


def test_other_views_need_no_new_project(copied: Path) -> None:
    before = (copied / "s" / "dataset.csv").read_bytes()
    done = study(copied, changes={"views.train": 3}, only=["extract"])
    assert [step.state for step in done.steps[:3]] == ["there", "made", "made"]
    assert (copied / "s" / "dataset.csv").read_bytes() == before
    assert fc.open_project(copied / "s").settings.views.train == 3


# Ensembles


def test_an_ensemble_is_the_mean_of_its_members(whole: Path) -> None:
    done = {step.id: step for step in study(whole).steps}
    members = [run for name in ("head/a/eight", "head/a/twelve") for run in done[name].runs]
    assert len(members) == 4
    (made,) = done["ensemble/heads"].runs
    frames = [frame_of(run) for run in members]
    columns = [f"p_{label}" for label in made.config["classes"]]
    p = np.mean([frame[columns].to_numpy() / frame[columns].to_numpy().sum(1, keepdims=True) for frame in frames], 0)
    own = frame_of(made)
    np.testing.assert_allclose(own[columns].to_numpy(), p, atol=1e-6)
    assert (own["image_id"] == frames[0]["image_id"]).all()
    for split in ("train", "val", "test"):
        of = (frames[0]["split"] == split).to_numpy()
        y = frames[0]["label"][of]
        named = np.array(made.config["classes"])[p[of].argmax(1)]
        assert made.metrics[split]["accuracy"] == pytest.approx(accuracy_score(y, named))
        assert made.metrics[split]["loss"] == pytest.approx(log_loss(y, p[of], labels=made.config["classes"]), abs=1e-6)
    assert made.config["members"] == sorted(run.name for run in members)
    assert not made.compare(members[0]).empty


def test_a_cross_validated_ensemble_is_the_mean_over_unseen_images(whole: Path) -> None:
    done = {step.id: step for step in study(whole).steps}
    members = [done[f"cross-validate/cv/b/{name}"].runs[0] for name in ("eight", "twelve")]
    (made,) = done["ensemble/crossed"].runs
    assert made.is_cross_validation
    columns = [f"p_{label}" for label in made.config["classes"]]
    p = np.mean([frame_of(run)[columns].to_numpy() for run in members], 0)
    own = frame_of(made)
    np.testing.assert_allclose(own[columns].to_numpy(), p, atol=1e-6)
    named = np.array(made.config["classes"])[p.argmax(1)]
    assert made.metrics["measures"]["accuracy"]["mean"] == pytest.approx(accuracy_score(own["label"], named))
    assert (own["fold"] == frame_of(members[0])["fold"]).all()


def test_the_choice_is_the_best_of_cross_validation_and_sees_no_test_image(whole: Path) -> None:
    done = {step.id: step for step in study(whole).steps}
    (made,) = done["ensemble/best"].runs
    values = {}
    for name in ("eight", "twelve"):
        for head in ("a", "b"):
            (judge,) = done[f"cross-validate/cv/{head}/{name}"].runs
            values[f"head/{head}/{name}"] = judge.metrics["measures"]["accuracy"]["mean"]
            assert set(frame_of(judge)["split"]) == {"train", "val"}
            assert judge.metrics["images"] == 4 * 6
    best = sorted(values, key=lambda name: (-values[name], name))[:2]
    assert set(made.config["members"]) == {run.name for name in best for run in done[name].runs}
    listed = [(one["step"], one["value"]) for one in made.config["choice"]["candidates"]]
    assert listed == sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))


def test_labels_of_test_images_do_not_change_the_choice(copied: Path) -> None:
    before = study(copied)
    table = pd.read_csv(copied / "s" / "dataset.csv", dtype=str, keep_default_na=False)
    at = table.index[table["split"] == "test"]
    table.loc[at, "label"] = np.roll(table.loc[at, "label"].to_numpy(), 2)
    table.to_csv(copied / "s" / "dataset.csv", index=False)
    after = study(copied)

    def judged(made: Study) -> dict[str, Any]:
        return {
            step.id: without_times(step.runs[0].metrics["measures"])
            for step in made.steps
            if step.kind == "cross-validate"
        }

    assert judged(before) == judged(after)
    assert [run.name for run in before.runs] != [run.name for run in after.runs]


def test_what_cannot_be_averaged_is_refused(copied: Path) -> None:
    done = {step.id: step for step in study(copied).steps}
    head, crossed = done["head/b/eight"].runs[0], done["cross-validate/cv/b/eight"].runs[0]
    other = done["head/b/twelve"].runs[0]
    results = copied / "s" / "results"
    with pytest.raises(RunError, match="an ensemble of no run"):
        average(results, [], name="x")
    with pytest.raises(RunError, match="one is a cross-validation, and the other is none"):
        average(results, [head, crossed], name="x")
    fewer = pd.read_csv(other.folder / "predictions.csv").iloc[1:]
    fewer.to_csv(other.folder / "predictions.csv", index=False)
    with pytest.raises(RunError, match="were not judged on the same views of the same images"):
        average(results, [head, other], name="x")
    (other.folder / "predictions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match=r"predictions.csv: cannot be read"):
        average(results, [head, other], name="x")
    (other.folder / "predictions.csv").unlink()
    with pytest.raises(RunError, match=r"predictions.csv: cannot be read"):
        average(results, [head, other], name="x")
    config = json.loads((other.folder / "config.json").read_text())
    (other.folder / "config.json").write_text(json.dumps({**config, "classes": ["a", "b"]}))
    with pytest.raises(RunError, match="know other classes"):
        average(results, [head, fc.Run(other.folder)], name="x")
    for ensemble in (done["ensemble/heads"].runs[0], done["ensemble/crossed"].runs[0]):
        with pytest.raises(RunError, match="keeps no"):
            ensemble.predict(copied / "s" / "leukocytes")


def test_a_member_that_was_trained_again_makes_the_ensemble_new(copied: Path) -> None:
    done = {step.id: step for step in study(copied).steps}
    run = done["head/a/eight"].runs[0]
    frame = pd.read_csv(run.folder / "predictions.csv")
    columns = [f"p_{label}" for label in run.config["classes"]]
    frame[columns] = 0.25
    frame.to_csv(run.folder / "predictions.csv", index=False)
    again = {step.id: step for step in study(copied).steps}
    assert again["ensemble/heads"].state == "made"
    assert again["ensemble/heads"].runs[0].name == done["ensemble/heads"].runs[0].name
    assert study(copied).steps[-2].state == "there"


# What fails


def test_a_network_without_weights_leaves_the_others(tmp_path: Path, run: Run) -> None:
    changes = {"networks.vgg": {"model": "vgg16", "weights": str(tmp_path / "no.h5"), "input_size_px": 32}}
    made = study(tmp_path, changes=changes)
    assert set(made.failed) == {"extract/vgg"}
    assert "there is no weights file" in made.failed["extract/vgg"]
    states = {step.id: (step.state, step.because_of) for step in made.steps}
    assert states["head/a/vgg"] == states["ensemble/heads"] == ("failed", "extract/vgg")
    assert states["ensemble/best"][0] == states["head/a/twelve"][0] == "made"
    assert made.report is not None
    sets = [word for key, value in changes["networks.vgg"].items() for word in ("--set", f"networks.vgg.{key}={value}")]
    ran = run("run", "tiny.toml", "--into", "s", *sets, cwd=tmp_path)
    assert ran.code == 1
    assert "not done: extract/vgg: vgg16: there is no weights file" in ran.out
    assert "Name their file by --set networks.vgg.weights=PATH (" in ran.out
    assert "steps need it)" in ran.out
    assert "wrote s/results/report.html" in ran.out
    value = json.loads(run("run", "tiny.toml", "--into", "s", *sets, "--json", cwd=tmp_path).out)
    assert set(value) == {"recipe", "folder", "steps", "report"}
    assert set(value["steps"][0]) == {"id", "kind", "state", "seconds", "cache", "runs", "reason", "because_of"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset.per_class": 9}, "its images are not the cells that the recipe asks for"),
        ({"dataset.split_counts": [3, 2, 2]}, r"split_counts is \[4, 2, 2\] there, \[3, 2, 2\] here"),
        ({"dataset.split": [2, 1, 1]}, r"split_counts is \[4, 2, 2\] there, not set here"),
        ({"dataset.source": "elsewhere"}, r"source is leukocytes there, .*elsewhere here"),
        ({"augmentation.seed": 3}, "its images are not the cells"),
    ],
)
def test_a_folder_with_another_data_set_is_left_alone(changes: Mapping[str, Any], message: str, copied: Path) -> None:
    before = stamps(copied)
    for dry_run in (False, True):
        with pytest.raises(ProjectError, match=f"holds another data set than the recipe: .*{message}"):
            fc.run_study(copied / "tiny.toml", into=copied / "s", changes=changes, dry_run=dry_run, progress=SILENT)
    assert stamps(copied) == before


def test_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    write_cells(tmp_path / "cells", 8, seed=1, size_px=32)
    changes = {"dataset.source": "cells", "dataset.classes": ["eosinophil", "basophil"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(DatasetError, match=r"have the classes eosinophil, lymphocyte, .*recipe says basophil, eos"):
            study(tmp_path, changes=changes)
        changes["dataset.classes"] = ["eosinophil", "neutrophil"]
        changes["dataset.without"] = ["lymphocyte", "monocyte"]
        shutil.rmtree(tmp_path / "s")
        assert study(tmp_path, changes=changes, only=["extract/eight"]).is_whole


def test_folds_that_cannot_be_filled_are_said(copied: Path) -> None:
    failed = study(copied, changes={"cross_validate.cv.folds": 7}, only=["cross-validate/cv/a/eight"]).failed
    assert "has images of 6 groups, which cannot fill 7 folds" in failed["cross-validate/cv/a/eight"]
    table = pd.read_csv(copied / "s" / "dataset.csv", dtype=str, keep_default_na=False)
    table.loc[table["split"] == "train", "group"] = "one"
    table.to_csv(copied / "s" / "dataset.csv", index=False)
    failed = study(copied, only=["cross-validate/cv/a/eight"]).failed
    assert "the group 'one' has 16 of the 24 images" in failed["cross-validate/cv/a/eight"]


def test_wrong_usage_is_said_at_once(tmp_path: Path, run: Run) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.replace("folds", "fold"))
    assert "tiny.toml, line 20: cross_validate.cv.fold: there is no such setting: did you mean folds" in (
        run("run", "tiny.toml", cwd=tmp_path).error
    )
    (tmp_path / "tiny.toml").write_text(TINY)
    assert "expected KEY=VALUE" in run("run", "tiny.toml", "--set", "x", cwd=tmp_path).error
    assert "--set heads.a.epoch: there is no such setting: did you mean epochs" in (
        run("run", "tiny.toml", "--set", "heads.a.epoch=3", cwd=tmp_path).error
    )
    assert "--only elefant: no step is called so" in run("run", "tiny.toml", "--only", "elefant", cwd=tmp_path).error
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


class Late(Silent):
    """Asked to stop when nothing looks any more: at the last of `calls` times that it is asked."""

    def __init__(self, calls: float) -> None:
        self.left = calls
        self.asked = 0

    @contextmanager
    def stopping(self) -> Iterator[Callable[[], bool]]:
        def stopped() -> bool:
            self.asked += 1
            return self.asked >= self.left

        yield stopped


def test_an_interruption_at_the_end_of_a_step_ends_the_study(copied: Path) -> None:
    def go(epochs: int, only: str, progress: Late) -> float:
        changes = {"heads.b.epochs": epochs}
        fc.run_study(copied / "tiny.toml", into=copied / "s", changes=changes, only=[only], progress=progress)
        return progress.asked

    asked = [go(epochs, "head/b/eight", Late(np.inf)) for epochs in (4, 5)]
    before = set((copied / "s" / "results").glob("head-*"))
    with pytest.raises(KeyboardInterrupt):
        go(6, "head/b", Late(2 * asked[1] - asked[0]))
    assert len(set((copied / "s" / "results").glob("head-*")) - before) == 1


# Dry runs


def test_a_dry_run_writes_nothing(tmp_path: Path, copied: Path, run: Run) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    before = contents(tmp_path)
    plan = run("run", "tiny.toml", "--dry-run", "--json", cwd=tmp_path).value
    assert contents(tmp_path) == before
    assert set(plan) == {"recipe", "folder", "steps", "seconds", "bytes", "unknown"}
    steps = {step["id"]: step for step in plan["steps"]}
    assert {step["state"] for step in steps.values()} == {"to do"}
    assert steps["dataset"]["note"] == "32 images; rows: 32 train, 8 val, 8 test"
    assert steps["extract/eight"]["bytes"] == 48 * 8 * 8 * 3
    assert steps["head/a/eight"]["note"] == "2 trainings of 2 epochs"
    assert plan["bytes"] > 0
    assert not plan["unknown"]
    there = run("run", "tiny.toml", "--into", str(copied / "s"), "--dry-run", cwd=tmp_path)
    assert there.out.splitlines()[-1] == "all steps are done"
    shutil.rmtree(next((copied / "s" / "results").glob("head-*")))
    one = run("run", "tiny.toml", "--into", str(copied / "s"), "--dry-run", cwd=tmp_path)
    last = one.out.splitlines()[-1]
    assert last.startswith(("2 to do: about ", "3 to do: about "))  # with the one or two ensembles that average it
    broken = ["--set", "networks.vgg16.weights=no.h5", "--dry-run"]
    shown = run("run", "tiny.toml", *broken, cwd=tmp_path)
    assert shown.code == 0
    assert "impossible" in shown.out


@pytest.mark.parametrize("name", ["leukocytes-study", "leukocytes-best"])
def test_the_recipes_of_featcache_can_be_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    changes: dict[str, Any] = {"dataset.per_class": 120 if name.endswith("study") else 12}
    changes |= {"networks.tiny": {"model": "pixels", "input_size_px": 8}}
    only = ["second/head"] if name.endswith("study") else []
    plan = fc.run_study(name, into=tmp_path / "s", changes=changes, only=only, dry_run=True, progress=SILENT)
    assert not (tmp_path / "s").exists()
    steps = {step.id.removeprefix("second/"): step for step in plan.steps}
    assert {step.state for step in steps.values()} == {"to do"}
    assert "are downloaded first" in steps["extract/vgg16"].note
    assert steps["extract/vgg16"].seconds is None
    assert steps["extract/tiny"].seconds is not None
    if name.endswith("study"):
        assert steps["dataset"].note == "480 images; rows: 4,394 train, 440 val, 440 test"
        assert steps["extract/vgg16"].bytes == (4394 + 880) * 7 * 7 * 512 * 4
        assert steps["head/5000/vgg16"].seconds > steps["head/100/vgg16"].seconds > 0


# The study of featcache, killed


def test_the_study_is_killed_again_and_again_and_ends_with_the_same_report(tmp_path: Path) -> None:
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={toml(value)}")]
    args = ("run", "leukocytes-study", "--into", "s", *sets)
    for folder in ("undisturbed", "killed"):
        (tmp_path / folder).mkdir()
    only = ("--only", "second")
    more = ("--only", "first/extract", "--only", "first/head/100")
    ended = start_command(*args, *only, *more, cwd=tmp_path / "undisturbed").wait(600)
    assert ended.code == 0, ended.err
    assert "44 done, 0 there already" in ended.out
    kills, chance = 0, random.Random(5)
    while kills < 2:
        worker = start_command(*args, *only, cwd=tmp_path / "killed")
        seen = len(worker.read("err").splitlines())
        wanted = seen + chance.randint(0, 9)
        while not worker.ended(0.01):
            if len([line for line in worker.read("err").splitlines() if "made in" in line]) >= wanted:
                time.sleep(chance.random())
                break
        if worker.ended():
            break
        worker.send(signal.SIGKILL)
        assert worker.wait(60).code == -signal.SIGKILL
        kills += 1
    assert kills == 2
    ended = start_command(*args, *only, cwd=tmp_path / "killed").wait(600)
    assert ended.code == 0, ended.err
    results = tmp_path / "killed" / "s" / "results"
    found, expected = told(results), told(tmp_path / "undisturbed" / "s" / "results")
    assert len(found) == 8 * 2 + 1
    assert found == {name: expected[name] for name in found}
    assert {path.name for path in visible_folders(results)} == set(found)
    page = (results / "report.md").read_text()
    assert all(name in page for name in found)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)
