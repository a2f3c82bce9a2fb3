"""The command line as people and machines use it: help, the JSON contract, the main job from end to end."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import cv2
import numpy as np
import pytest
from conftest import EXTRACT, FEATCACHE, Made, Run, contents, run_command

import featcache
from featcache.backbones import specs_of
from featcache.backbones.preprocess import MODES
from featcache.backbones.registry import STUDY
from featcache.cli import COMMANDS, cli
from featcache.core.errors import BackboneError
from featcache.core.recipe import Preprocessing

ROOT = Path(__file__).parents[1]
RUN_FILES = {
    "config.json",
    "history.csv",
    "state.npz",
    "metrics.json",
    "predictions.csv",
    "doubt.npz",
    "head.npz",
    "curves.png",
    "confusion.png",
}
SPLITS = ("train", "val", "test")


def commands_below(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands_below(command, (*path, name))


TREE = dict(commands_below(cli))


# Help


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_every_command_and_option_has_help(path: tuple[str, ...]) -> None:
    command = TREE[path]
    assert command.help
    assert len(command.help) > 20
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{' '.join(path)} {option.opts}"
    if not isinstance(command, click.Group):
        assert any("--json" in option.opts for option in command.params)


def test_every_listed_command_says_in_a_line_what_it_does() -> None:
    assert list(COMMANDS) == [path[0] for path in TREE if len(path) == 1]
    assert all(COMMANDS.values())


def test_help_fits_a_terminal(run: Run, tmp_path: Path) -> None:
    for path in ((), *TREE):
        shown = run(*path, "--help", cwd=tmp_path)
        assert (shown.code, shown.err) == (0, "")
        assert max(map(len, shown.out.splitlines())) <= 80
        cut_off = re.sub(r"\[?[A-Z|]+\]?\.\.\.|\[?ARGS\]?\.\.\.", "", shown.out)
        assert "..." not in cut_off


def test_no_command_shows_the_help(run: Run, tmp_path: Path) -> None:
    shown = run(cwd=tmp_path)
    assert shown.code in (0, 2)
    assert "Commands:" in shown.out + shown.err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("extrac",), "did you mean extract or export?"),
        (("fit_head",), "did you mean fit-head?"),
        (("lss",), "did you mean ls?"),
        (("xyzzy",), "known are adapt, attribution, bundle, check, convert, count, cross-validate, dataset,"),
        (("dataset", "chek"), "check"),
    ],
)
def test_an_unknown_command_offers_near_names(run: Run, tmp_path: Path, typed: tuple[str, ...], offered: str) -> None:
    refused = run(*typed, cwd=tmp_path)
    assert refused.code == 2
    assert offered in refused.error


def test_version(run: Run, tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).out.split()[-1] == featcache.__version__


def test_cli_py_works_from_a_checkout(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, ROOT / "cli.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "featcache init FOLDER" in done.stdout


# The JSON contract


def is_measure(value: Any, classes: list[str]) -> None:
    """{loss, accuracy, per_class, ...} of one split."""
    assert {"loss", "accuracy", "per_class"} <= set(value)
    assert isinstance(value["loss"], float)
    assert 0 <= value["accuracy"] <= 1
    assert list(value["per_class"]) == classes
    assert all(isinstance(of["recall"], float) for of in value["per_class"].values())
    assert set(value["intervals"]) >= {"accuracy", "macro_f1", "loss"}
    assert value["rows"] == sum(map(sum, value["confusion"]))


def has_types(value: dict[str, Any], types: dict[str, type]) -> None:
    assert {key: type(value[key]) for key in types} == types


def test_json_of_init(made: Made) -> None:
    value = made.init.value
    assert set(value) == {"project", "layout", "about", "images", "classes", "digest", "left_out", "remarks"}
    assert value["project"] == str(made.folder)
    assert (value["layout"], value["images"], value["left_out"]) == ("class-folders", 24, [])
    assert set(value["classes"]["monocyte"]) == set(SPLITS)
    assert len(value["digest"]) == 64


def test_json_of_extract(made: Made, project: Path, run: Run) -> None:
    types = {
        "cache": str,
        "path": str,
        "rows": int,
        "computed": int,
        "reused": int,
        "copied": int,
        "copied_from": list,
        "format": str,
        "dtype": str,
        "skipped": int,
        "seconds": float,
        "images_per_s": float,
    }
    first = made.extract.value
    has_types(first, types)
    assert (first["rows"], first["computed"], first["reused"], first["skipped"]) == (72, 72, 0, 0)
    assert (first["copied"], first["copied_from"], first["format"], first["dtype"]) == (0, [], "zarr", "float32")
    assert Path(first["path"]) == made.folder / "cache" / first["cache"]
    assert first["seconds"] > 0 < first["images_per_s"]
    before = contents(project)
    again = run(*EXTRACT, "--json", cwd=project).value
    has_types(again, types)
    assert (again["cache"], again["rows"]) == (first["cache"], 72)
    assert (again["computed"], again["reused"], again["images_per_s"]) == (0, 72, 0.0)
    assert contents(project) == before


def test_all_models_are_those_of_the_study_and_wrong_names_are_said_at_once() -> None:
    assert [spec.model for spec in specs_of(["all", "mobilenet"])] == [*STUDY, "mobilenet"]
    with pytest.raises(BackboneError, match="did you mean vgg19 or vgg16"):
        specs_of(["vgg61"])


def test_the_preprocessings_on_offer_are_those_there_are() -> None:
    assert set(get_args(Preprocessing)) == set(MODES)


def test_json_of_several_models_is_a_list(project: Path, run: Run) -> None:
    args = ("--model", "mobilenetv2", "--model", "MobileNet-V2", *EXTRACT[3:])
    value = run("extract", *args, "--json", cwd=project).value
    assert [item["computed"] for item in value] == [0, 0]


def test_json_of_fit_head_ls_info_and_report(project: Path, run: Run) -> None:
    fitted = run("fit-head", "--epochs", "3", "--json", cwd=project)
    value = fitted.value
    classes = ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]
    has_types(
        value,
        {"run": str, "path": str, "cache": str, "solver": str, "epochs": int, "seconds": float, "s_per_epoch": float},
    )
    for split in SPLITS:
        is_measure(value[split], classes)
    assert (value["epochs"], value["solver"], value["reused"]) == (3, "gram", False)
    assert Path(value["path"]) == project / "results" / value["run"]
    assert {path.name for path in Path(value["path"]).iterdir()} == RUN_FILES

    (listed,) = run("ls", "--json", cwd=project).value
    has_types(listed, {"name": str, "path": str, "status": str, "rows": int, "shape": list, "dtype": str, "bytes": int})
    assert (listed["name"], listed["status"], listed["shape"]) == (value["cache"], "finished", [72, 2, 2, 1280])

    info = run("info", "--json", cwd=project).value
    manifest = json.loads((Path(listed["path"]) / "manifest.json").read_text())
    assert {key: info[key] for key in manifest} == manifest
    assert set(info) == {*manifest, "path", "recipe"}
    assert info["path"] == listed["path"]
    for name in (value["cache"], value["cache"][:13], listed["path"], f"cache/{value['cache']}"):
        assert run("info", name, "--json", cwd=project).value == info

    report = run("report", "--json", cwd=project).value
    assert report["runs"] == [value["run"]]
    assert Path(report["markdown"]).is_absolute()
    assert value["run"] in Path(report["html"]).read_text()


def test_json_of_models(run: Run, tmp_path: Path) -> None:
    value = run("models", "--json", cwd=tmp_path).value
    lite0 = next(item for item in value if item["name"] == "efficientnet-lite0")
    assert (lite0["input_size_px"], lite0["feature_shape"], lite0["weights"]) == (224, [7, 7, 1280], "installed")
    assert {item["weights"] for item in value} <= {"installed", "cached", "download", "none"}
    (small,) = run("models", "ResNet-20", "--json", cwd=tmp_path).value
    assert (small["weights_file"], small["weights"]) == ("", "none")


def test_models_at_hand_and_the_layers_of_one(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (there,) = run("models", "--offline", "--json", cwd=tmp_path).value
    assert there["name"] == "efficientnet-lite0"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5").touch()
    listed = run("models", "--offline", cwd=tmp_path).out
    assert [line.split()[0] for line in listed.splitlines()] == ["backbone", "vgg16", "efficientnet-lite0"]
    assert "30.7 GFLOP" in listed
    (one,) = run("models", "EfficientNetB0", "--json", cwd=tmp_path).value
    assert (one["name"], one["operations"], one["study"]) == ("efficientnet-b0", 769_069_504, False)
    layers = run("models", "mobilenetv2", "--layers", "--input-size", "64", "--json", cwd=tmp_path).value
    assert layers[-1] == {"name": "out_relu", "shape": [2, 2, 1280]}
    assert run("models", "mobilenetv2", "--layers", cwd=tmp_path).out.splitlines()[1].split() == ["Conv1", "112x112x32"]
    assert "--layers needs the NAME of a network" in run("models", "--layers", cwd=tmp_path).error
    assert "--input-size and --unsafe need --layers" in run("models", "--unsafe", cwd=tmp_path).error
    assert "did you mean vgg1" in run("models", "vgg17", cwd=tmp_path).error


def test_json_of_dataset_commands(project: Path, run: Run, made: Made) -> None:
    value = run("dataset", "check", "--json", cwd=project).value
    assert set(value) == {"images", "classes", "digest", "left_out", "pairs", "joined", "moved"}
    assert (value["images"], value["digest"]) == (24, made.init.value["digest"])
    drawn = run("dataset", "preview", "--views", "3", "--images", "1", "--out", "a/../sheet.png", "--json", cwd=project)
    assert drawn.code == 1  # there is no folder a
    drawn = run("dataset", "preview", "--views", "3", "--images", "1", "--out", "sheet.png", "--json", cwd=project)
    sheet = cv2.imread(drawn.value["path"])
    assert sheet is not None
    assert sheet.shape[0] > 4 * 128
    assert 3 * 128 < sheet.shape[1] < 4 * 128
    value = run("dataset", "generate", "cells", "--per-class", "1", "--size", "32", "--json", cwd=project).value
    assert value == {"path": str(project / "cells"), "images": 4}


def test_json_is_ascii_whatever_the_names_are(project: Path, run: Run) -> None:
    shutil.move(project / "leukocytes" / "monocyte", project / "leukocytes" / "monozyt é 血")
    done = run("init", "--relabel", "--resplit", "--json", cwd=project)
    assert done.out.isascii()
    assert "monozyt é 血" in done.value["classes"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_names_that_the_terminal_cannot_show_end_no_command(project: Path, encoding: str) -> None:
    shutil.move(project / "leukocytes" / "monocyte", project / "leukocytes" / "monozyt é 血 [red]x :cat:")
    env = {"PYTHONIOENCODING": encoding}
    shown = subprocess.run(
        [FEATCACHE, "init", "--relabel", "--resplit"], cwd=project, env={**os.environ, **env}, capture_output=True
    )
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"[red]x :cat:" in shown.stdout


# From end to end


def test_the_main_job(made: Made, tmp_path: Path, run: Run) -> None:
    """What the README does, in processes of their own; the first two commands were run for `made`."""
    project = shutil.copytree(made.folder, tmp_path / "project")
    cache = project / "cache" / made.cache.name
    before = contents(cache)
    again = run_command(*EXTRACT, cwd=project)
    assert (again.code, again.err) == (0, "")
    assert "all 72 rows are cached, nothing to compute" in again.out
    assert contents(cache) == before
    assert (cache / "manifest.json").stat().st_mtime_ns == (made.cache / "manifest.json").stat().st_mtime_ns

    fitted = run_command("fit-head", "--epochs", "3", cwd=project)
    assert fitted.code == 0
    assert fitted.err.startswith("Gram space: ")  # what it will take, said before
    assert fitted.err.count("\n") == 1
    assert "next: featcache report" in fitted.out
    (folder,) = (project / "results").glob("head-*")
    assert {path.name for path in folder.iterdir()} == RUN_FILES
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 3

    there = run("fit-head", "--epochs", "3", cwd=project)
    assert "this run exists already; --again trains it again" in there.out
    metrics = (folder / "metrics.json").read_bytes()
    predictions = (folder / "predictions.csv").read_bytes()
    anew = run("fit-head", "--epochs", "3", "--again", "--json", cwd=project).value
    assert (anew["reused"], anew["path"]) == (False, str(folder))
    assert (folder / "metrics.json").read_bytes() != metrics  # it took other seconds
    assert (folder / "predictions.csv").read_bytes() == predictions

    primal = run("fit-head", "--epochs", "2", "--solver", "primal", "--json", cwd=project).value
    assert (primal["solver"], primal["epochs"]) == ("primal", 2)
    assert {path.name for path in Path(primal["path"]).iterdir()} == RUN_FILES

    report = run("report", cwd=project)
    assert (report.code, report.err) == (0, "")
    page = (project / "results" / "report.html").read_text()
    assert folder.name in page
    assert primal["run"] in page
    assert set(project.iterdir()) == {
        project / name for name in ("cache", "dataset.csv", "featcache.toml", "leukocytes", "results")
    }

    for command in (("ls",), ("info",)):
        shown = run(*command, cwd=project)
        assert shown.err == ""
        assert cache.name in shown.out

    opened = featcache.open_cache(cache)
    X, y = opened.arrays(split="train")
    assert opened.features.shape == (72, 2, 2, 1280)
    assert X.shape == (64, 2, 2, 1280)
    assert X.dtype == np.float32
    assert list(opened.rows.columns) == ["row", "image_id", "path", "label", "split", "group", "view"]
    labels = opened.rows["label"][opened.rows["split"] == "train"]
    assert [opened.classes[number] for number in y] == list(labels)
    np.testing.assert_array_equal(X, np.asarray(opened.features)[opened.rows["split"] == "train"])


def test_a_command_finds_the_project_above_and_by_option(project: Path, run: Run, tmp_path: Path) -> None:
    inner = project / "leukocytes" / "monocyte"
    assert run("ls", "--json", cwd=inner).value == run("ls", "-C", str(project), "--json", cwd=tmp_path).value


def test_nothing_moves_on_standard_error_unless_it_is_a_terminal(made: Made, project: Path) -> None:
    quiet = run_command("dataset", "check", cwd=project)
    assert quiet.err == ""
    (project / "cache" / ".images.csv").unlink()
    master, slave = pty.openpty()
    try:
        env = {**os.environ, "TERM": "xterm"}
        subprocess.run([FEATCACHE, "dataset", "check"], cwd=project, env=env, stderr=slave, stdout=-3, check=True)
        assert b"checking images" in os.read(master, 65536)
    finally:
        os.close(master)
        os.close(slave)


def test_a_full_standard_output_is_one_message(project: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([FEATCACHE, "ls"], cwd=project, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "featcache: No space left on device\n")


def test_a_reader_that_goes_away_is_no_error_to_speak_of(project: Path) -> None:
    with subprocess.Popen(
        [FEATCACHE, "models"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
