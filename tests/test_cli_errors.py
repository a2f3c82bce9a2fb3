"""Bad input, command by command: one message that says what, where and what to do; nothing half-written."""

from __future__ import annotations

import functools
import json
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import h5py
import pandas as pd
import pytest
from conftest import EXTRACT, Made, Run, contents

RANDOM = ("--weights", "random", "--input-size", "64")


def refused(run: Run, cwd: Path, *args: str) -> str:
    """The message of a command that refuses and leaves every file as it was."""
    before = contents(cwd)
    message = run(*args, cwd=cwd).error
    assert contents(cwd) == before
    return message


def edit(project: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(project / "dataset.csv", index=False)


def lines(project: Path) -> pd.DataFrame:
    return pd.read_csv(project / "dataset.csv", dtype=str)


# No project, or a broken one


@pytest.mark.parametrize(
    "args", [("ls",), ("info",), ("report",), ("fit-head",), ("dataset", "check"), ("dataset", "preview"), EXTRACT]
)
def test_no_project_here(run: Run, tmp_path: Path, args: tuple[str, ...]) -> None:
    message = refused(run, tmp_path, *args)
    assert f"no featcache.toml in {tmp_path} or above it. Run 'featcache init FOLDER'" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[dataset", "not readable as TOML"),
        ("\0", "not readable as TOML"),
        ("[views]\ntrain = 0", "views.train: Input should be greater than or equal to 1, found 0"),
        ("[view]\ntrain = 1", "view: Extra inputs are not permitted"),
        ("[augmentation]\nshift = 'much'", "augmentation.shift"),
        ("[folders]\ncache = 'x'\nresults = 'x'", "must be two folders"),
    ],
)
def test_broken_settings(run: Run, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "featcache.toml").write_text(text)
    for args in (("ls",), EXTRACT):
        message = refused(run, tmp_path, *args)
        assert message.startswith(f"featcache: {tmp_path}/featcache.toml: ")
        assert said in message


def test_the_project_option_names_no_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is a file" in refused(run, tmp_path, "ls", "-C", "file")
    assert "no featcache.toml in" in refused(run, tmp_path, "ls", "-C", "nowhere")


# init


@pytest.mark.parametrize("names", [(), ("a.txt", "b.txt"), (".hidden/x.png",), ("one/a.txt", "two/b.txt")])
def test_init_without_images(run: Run, tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text")
    message = refused(run, tmp_path, "init", "given")
    assert "given" in message
    assert not (tmp_path / "featcache.toml").exists()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("nowhere",), 1, "nowhere"),
        (("--split", "70/30"), 2, "expected numbers like 70/15/15"),
        (("--split", "nan/1/1"), 2, "expected numbers like"),
        (("--split-counts", "1.5/1/1"), 2, "--split-counts"),
        (("--per-class", "2"), 2, "--per-class"),
        (("--group-pattern", "("), 1, "not a regular expression"),
        (("--shift", "0.9"), 2, "--shift"),
        (("--rotation", "nan"), 1, "rotation_deg"),
        (("--margin", "nan"), 1, "margin"),
        (("--views", "0"), 2, "--views"),
        (("--seed", str(2**70)), 1, "seed"),
        (("--into", "file"), 2, "is a file"),
    ],
)
def test_init_with_impossible_options(run: Run, tmp_path: Path, args: tuple[str, ...], code: int, said: str) -> None:
    (tmp_path / "file").touch()
    ran = run("init", *args, cwd=tmp_path)
    assert ran.code == code
    assert said in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_generate_into_a_folder_with_something_in_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "mine.txt").touch()
    assert "is not empty: name a new folder" in refused(run, tmp_path, "dataset", "generate", "cells")


# extract


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--model", "vgg61"), "there is no backbone 'vgg61': did you mean vgg19 or vgg16?"),
        (("--model", "efficientnet-lite"), "did you mean efficientnet-lite0"),
        (("--model", "mobilenetv2", "--model", "resnet5", *RANDOM), "did you mean resnet50"),
        (("--model", "vgg16", "--weights", "gone.h5"), "vgg16: there is no weights file gone.h5"),
        (("--model", "vgg16", "--weights", "imagnet"), "did you mean 'imagenet' or 'random'?"),
        (("--model", "xception", "--weights", "random", "--input-size", "70"), "expected at least 71 px"),
        (("--model", "mobilenetv2", *RANDOM, "--train-rows", "3"), "3 train rows for 4 classes"),
        (("--model", "mobilenetv2", *RANDOM, "--views", "200000"), "found 200000"),
        (("--model", "mobilenetv2", *RANDOM, "--shift", "3"), "shift"),
    ],
)
def test_extract_with_impossible_options(run: Run, project: Path, args: tuple[str, ...], said: str) -> None:
    assert said in refused(run, project, "extract", *args)


@pytest.mark.parametrize("args", [(), ("--model", "vgg16", "--pooling", "mean"), ("--model", "vgg16", "--views", "x")])
def test_extract_used_wrongly(run: Run, project: Path, args: tuple[str, ...]) -> None:
    assert run("extract", *args, cwd=project).code == 2
    refused(run, project, "extract", *args)


def test_weights_that_cannot_be_downloaded(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = project.parent / "keras home"
    monkeypatch.setenv("KERAS_HOME", str(home))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    message = refused(run, project, "extract", "--model", "vgg16")
    file = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert f"/vgg16/{file} to {home}/models/{file}, or name another file with --weights PATH" in message
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_weights_of_another_network(run: Run, project: Path) -> None:
    with h5py.File(project / "other.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense"]
        group = file.create_group("dense")
        group.attrs["weight_names"] = [b"dense/kernel:0"]
        group["dense/kernel:0"] = [[1.0]]
    (project / "text.weights.h5").write_text("not a weights file")
    for name in ("other.h5", "text.weights.h5"):
        message = refused(run, project, "extract", "--model", "mobilenetv2", "--weights", name, "--input-size", "64")
        assert name in message


def test_a_cache_folder_that_cannot_be_written(run: Run, project: Path) -> None:
    shutil.rmtree(project / "cache")
    (project / "cache").touch()
    message = refused(run, project, *EXTRACT)
    assert message.startswith(f"featcache: {project}/cache: cannot be written")
    assert "name another folder under [folders] in featcache.toml" in message


def test_the_list_of_images_is_gone_or_broken(run: Run, project: Path) -> None:
    frame = lines(project)
    for text, said in (
        ("", "is empty"),
        ("path,label\na,b\n", "no column split"),
        (frame.to_csv(index=False).replace(",train,", ",training,", 1), "line 2: split 'training'"),
        (frame.assign(path="../x.png").to_csv(index=False), "without '..'"),
    ):
        (project / "dataset.csv").write_text(text)
        for args in (EXTRACT, ("fit-head",), ("dataset", "check")):
            assert said in refused(run, project, *args)
    (project / "dataset.csv").unlink()
    for args in (EXTRACT, ("fit-head",), ("dataset", "check"), ("dataset", "preview")):
        assert "dataset.csv: there is no such file. 'featcache init' writes one" in refused(run, project, *args)


def test_all_images_are_gone(run: Run, project: Path) -> None:
    shutil.rmtree(project / "leukocytes")
    assert "no usable image" in refused(run, project, *EXTRACT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.assign(split=f["split"].replace("test", "train")), "the split 'test' has no images"),
        (lambda f: f[(f["split"] != "val") | (f["label"] != "monocyte")], "the split 'val' has no images of monocyte"),
        (lambda f: f.assign(label="monocyte"), "at least two classes are needed"),
        (lambda f: f.assign(group="one patient"), "a group must stay on one side"),
    ],
)
def test_splits_that_nobody_can_train_on(run: Run, project: Path, change, said: str) -> None:  # type: ignore[no-untyped-def]
    edit(project, change(lines(project)))
    assert said in refused(run, project, "dataset", "check")
    done = run("extract", "--model", "pixels", "--input-size", "16", cwd=project)
    assert done.code == 0
    assert "no head can be trained on these images yet: dataset.csv: " in done.err
    assert said in done.err
    refused(run, project, "fit-head", "--cache", "pixels")


# fit-head, info, ls, report


def test_no_cache_yet(run: Run, project: Path) -> None:
    shutil.rmtree(project / "cache")
    assert "(there: none). Make one with 'featcache extract --model NAME'" in refused(run, project, "fit-head")
    assert "no finished cache" in refused(run, project, "info")
    assert run("ls", "--json", cwd=project).value == []
    assert "no caches in" in run("ls", cwd=project).out
    assert "no finished cache 'x'" in refused(run, project, "fit-head", "--cache", "x")


def test_several_caches(run: Run, project: Path, made: Made) -> None:
    assert run(*EXTRACT, "--views", "1", cwd=project).code == 0
    names = [item["name"] for item in run("ls", "--json", cwd=project).value]
    assert len(names) == 2
    message = refused(run, project, "fit-head", "--cache", "mobile")
    assert message.endswith(f"several caches could be meant: {', '.join(names)}: name one of them")
    assert "no finished cache 'vgg'" in refused(run, project, "fit-head", "--cache", "vgg")
    assert "several caches" in refused(run, project, "info")
    value = run("fit-head", "--cache", made.cache.name[:-3], "--epochs", "1", "--json", cwd=project).value
    assert value["cache"] == made.cache.name


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--hidden", "abc"), 2, "expected numbers like 256 or 256,64"),
        (("--hidden", "0,0"), 1, "--hidden 0,0: expected"),
        (("--epochs", "0"), 2, "--epochs"),
        (("--batch", "65"), 1, "a batch of 65 rows is more than the 64 training rows"),
        (("--lr", "-1"), 2, "--lr"),
        (("--lr", "nan"), 1, "--lr nan: expected a number above 0"),
        (("--decay", "-1"), 2, "--decay"),
        (("--dropout", "1"), 2, "--dropout"),
        (("--solver", "adam"), 2, "--solver"),
        (("--lr", "1e9", "--epochs", "50"), 1, "diverges at learning rate 1e+09. Try --lr 1e+08"),
        (("--lr", "1e9", "--epochs", "50", "--solver", "primal"), 1, "diverges at learning rate 1e+09"),
    ],
)
def test_fit_head_with_impossible_options(run: Run, project: Path, args: tuple[str, ...], code: int, said: str) -> None:
    ran = run("fit-head", *args, cwd=project)
    assert ran.code == code
    assert said in ran.error
    assert not list((project / "results").glob("*"))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("manifest.json", lambda data: data[:-9], "manifest.json: cannot be read as JSON"),
        ("manifest.json", lambda data: data.replace(b'"rows": 72', b'"rows": 71'), "71 rows, but 72 in the array"),
        ("recipe.json", lambda data: data.replace(b"64", b"65"), "recipe.json: is not the recipe of the manifest"),
        ("dataset.parquet", lambda data: data[:50] + b"\xff" + data[51:], "is not that of the manifest"),
        ("features.zarr/c/0/0/0/0", lambda data: data[:-7], "expected"),
        (
            "features.zarr/c/0/0/0/0",
            lambda data: data[:999] + bytes(99) + data[1098:],
            "run the extract command that made it",
        ),
    ],
)
def test_fit_head_on_a_damaged_cache(run: Run, project: Path, made: Made, name: str, change, said: str) -> None:  # type: ignore[no-untyped-def]
    file = project / "cache" / made.cache.name / name
    file.write_bytes(change(file.read_bytes()))
    for args in ((), ("--cache", made.cache.name)):
        message = refused(run, project, "fit-head", "--epochs", "1", *args)
        assert said in message
        assert made.cache.name in message
    assert not list((project / "results").glob("*"))
    assert run("ls", cwd=project).code == 0


def test_fit_head_where_results_is_a_file(run: Run, project: Path) -> None:
    (project / "results").touch()
    message = refused(run, project, "fit-head", "--epochs", "1")
    assert f"{project}/results: cannot be written" in message
    refused(run, project, "report")


def test_fit_head_over_a_damaged_run(run: Run, project: Path) -> None:
    value = run("fit-head", "--epochs", "1", "--json", cwd=project).value
    for text in ("", "{}", json.dumps({"format": 1}), json.dumps({"format": 7})):
        (Path(value["path"]) / "config.json").write_text(text)
        assert "Set --again to train it again" in refused(run, project, "fit-head", "--epochs", "1")
    again = run("fit-head", "--epochs", "1", "--again", "--json", cwd=project).value
    assert again["test"] == value["test"]


def test_fit_head_where_a_split_has_no_row_of_a_class(run: Run, project: Path) -> None:
    frame = lines(project)
    cache = run(*EXTRACT, "--json", cwd=project).value["cache"]
    one = frame.index[(frame["split"] == "test") & (frame["label"] == "monocyte")]
    frame.loc[one, "label"] = "neutrophil"
    edit(project, frame)
    # what `extract` refuses may have been done by an older version, or through Python
    from featcache.datasets.manifest import read_dataset
    from featcache.store.cache import open_cache

    open_cache(project / "cache" / cache).replace_dataset(read_dataset(project / "dataset.csv", project / "leukocytes"))
    assert "the split 'test' has no rows of monocyte" in refused(run, project, "fit-head", "--epochs", "1")


def test_report_without_runs(run: Run, project: Path) -> None:
    assert "no" in refused(run, project, "report")
    (project / "results").mkdir()
    refused(run, project, "report")
    assert run("report", "--out", "dataset.csv", cwd=project).code == 2


def test_preview_into_a_folder_that_is_not_there(run: Run, project: Path) -> None:
    assert "nowhere/sheet.png: cannot be written" in refused(
        run, project, "dataset", "preview", "--out", "nowhere/sheet.png"
    )


# A full disk


@contextmanager
def files_up_to(n_bytes: int) -> Iterator[None]:
    """Writing more than `n_bytes` to any file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_extract_onto_a_full_disk(run: Run, project: Path, made: Made) -> None:
    shutil.rmtree(project / "cache" / made.cache.name)
    with files_up_to(100_000):
        message = run(*EXTRACT, cwd=project).error
    assert f"{made.cache.name}: cannot be written: File too large. What was finished is kept" in message
    assert [item["status"] for item in run("ls", "--json", cwd=project).value] == ["unfinished"]
    assert "it was never finished" in run("info", f"cache/{made.cache.name}", cwd=project).error
    assert run(*EXTRACT, "--json", cwd=project).value["computed"] == 72
    assert contents(project / "cache" / made.cache.name).keys() == contents(made.cache).keys()


def test_fit_head_onto_a_full_disk(run: Run, project: Path) -> None:
    with files_up_to(100_000):
        message = run("fit-head", "--epochs", "1", cwd=project).error
    assert "cannot be written: File too large" in message
    assert not list((project / "results").rglob("*"))
    assert run("fit-head", "--epochs", "1", cwd=project).code == 0


def test_init_onto_a_full_disk(run: Run, tmp_path: Path) -> None:
    with files_up_to(10_000):
        assert "File too large" in run("init", "--per-class", "3", cwd=tmp_path).error
    assert not list(tmp_path.iterdir())


def test_a_defect_is_one_message_and_keeps_its_traceback(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise EOFError("the end\nof it")  # which click would take for an interruption

    monkeypatch.setattr("featcache.store.list_caches", fail)
    log_file = functools.partial(tempfile.NamedTemporaryFile, dir=tmp_path)
    monkeypatch.setattr("featcache.cli.tempfile", SimpleNamespace(NamedTemporaryFile=log_file))
    ran = run("ls", cwd=project)
    assert ran.code == 1
    said = [line for line in ran.err.splitlines() if line]
    assert len(said) == 1
    assert said[0].startswith("featcache: internal error: EOFError: the end of it.")
    (log,) = tmp_path.glob("featcache-*.log")
    assert str(log) in said[0]
    assert "Traceback" in log.read_text()
    log_file = functools.partial(tempfile.NamedTemporaryFile, dir=tmp_path / "gone")
    monkeypatch.setattr("featcache.cli.tempfile", SimpleNamespace(NamedTemporaryFile=log_file))
    assert run("ls", cwd=project).err.strip().endswith("Please report it with the command")


def test_not_enough_memory_is_said(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("featcache.store.list_caches", fail)
    assert run("ls", cwd=project).error.startswith("featcache: not enough memory")
