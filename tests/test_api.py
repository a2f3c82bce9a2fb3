"""The public functions: each does what its command does, and says in its docstring what it takes."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache.core.errors import ArgumentsError, DatasetError, FeatcacheError, RunError, UsageError
from featcache.core.progress import SILENT
from featcache.synthetic.drawing import write_cells

PUBLIC = [name for name in fc.__all__ if name not in ("__version__", "errors")]
RETURNED = (
    *("Adapted", "Attribution", "Bundled", "Cache", "Checked", "CheckedDataset", "Counted", "Evaluated", "Exported"),
    "FittedSegmenter",
    *("Predictions", "Project", "Relabelled", "Report", "Run", "SegmentedFolder", "Study", "StudyPlan"),
)
CALLED = [name for name in PUBLIC if name not in RETURNED]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_of_docstrings_run(name: str, here: Path) -> None:
    tests = doctest.DocTestFinder(recurse=False).find(getattr(fc, name), name, globs={})
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        runner.run(test)
    assert runner.failures == 0


@pytest.mark.parametrize("name", CALLED)
def test_docstrings_name_every_parameter(name: str) -> None:
    lines = re.findall(r"^((?:\*{0,2}\w+, )*\*{0,2}\w+) :", inspect.getdoc(getattr(fc, name)) or "", re.MULTILINE)
    named = {each.strip("* ") for line in lines for each in line.split(",")}
    assert set(inspect.signature(getattr(fc, name)).parameters) - named == set()


@pytest.mark.parametrize("name", CALLED)
def test_what_has_three_parameters_has_named_ones(name: str) -> None:
    positional = [
        parameter
        for parameter in inspect.signature(getattr(fc, name)).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    assert len(positional) <= 2


@pytest.fixture
def project(here: Path) -> fc.Project:
    return fc.init(per_class=8, progress=SILENT)


def test_the_whole_job(project: fc.Project, here: Path) -> None:
    assert project.found.layout == "class-folders"
    cache = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    assert cache.extracted.computed == len(cache.features)
    assert fc.extract(project, "pixels", input_size_px=16, progress=SILENT).extracted.computed == 0
    run = fc.fit_head(project, epochs=3, hidden=(8,), progress=SILENT)
    assert run.folder.parent == project.results_folder
    same = fc.fit_head(cache, epochs=3, hidden=(8,), progress=SILENT)
    assert same.fitted.reused
    assert same.name == run.name
    found = run.predict("leukocytes", progress=SILENT)
    assert len(found) == 32
    written = fc.report(project)
    assert run.name in written.html.read_text()
    fc.push(cache, str(here / "lab"), progress=SILENT)
    fc.push(run, str(here / "lab"), progress=SILENT)
    pulled = fc.pull(f"{here / 'lab'}/{cache.name}", to=here / "elsewhere", progress=SILENT)
    np.testing.assert_array_equal(pulled.features[:], cache.features[:])
    assert isinstance(fc.pull(f"{here / 'lab'}/{run.name}", to=here / "elsewhere", progress=SILENT), fc.Run)
    with fc.open_cache(f"{here / 'lab'}/{cache.name}") as remote:  # type: ignore[attr-defined]
        np.testing.assert_array_equal(remote.features[:3], cache.features[:3])
    for shown in (project, cache, run, found, written):
        assert "<" in shown._repr_html_()
    assert "<td></td><td>train</td><td>val</td><td>test</td>" in project._repr_html_()
    assert "<html" not in written._repr_html_()  # but as text, in a frame


def test_labels_of_now_are_trained_on(project: fc.Project) -> None:
    cache = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    text = project.dataset_file.read_text()
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if ",monocyte,train," in line)
    lines[at] = lines[at].replace(",monocyte,", ",lymphocyte,")
    project.dataset_file.write_text("\n".join(lines) + "\n")
    run = fc.fit_head(cache, epochs=1, progress=SILENT)
    assert run.config["relabelled_images"] == 1


def test_images_without_labels(here: Path) -> None:
    write_cells(here / "cells", 2, seed=3, size_px=48)
    files = sorted((here / "cells").rglob("*.png"))
    arrays = np.stack([np.asarray(Image.open(file)) for file in files])
    of_folder = fc.extract("cells", "pixels", input_size_px=16, to="a", progress=SILENT)
    of_list = fc.extract(files, "pixels", input_size_px=16, to="b", progress=SILENT)
    of_arrays = fc.extract(arrays, "pixels", input_size_px=16, to="c", progress=SILENT)
    of_generator = fc.extract((array for array in arrays), "pixels", input_size_px=16, to="d", progress=SILENT)
    assert of_folder.name == of_list.name != of_arrays.name == of_generator.name
    assert (of_folder.folder.parent, of_list.folder.parent) == (here / "a", here / "b")
    expected = of_folder.features[:]
    for cache in (of_list, of_arrays, of_generator):
        np.testing.assert_array_equal(cache.features[:], expected)
        assert fc.verify(cache, progress=SILENT).sound
    assert set(of_folder.rows["label"]) == set(of_folder.rows["split"]) == {""}
    assert of_folder.classes == ()
    assert len(of_folder.numbers("train")) == 0
    with pytest.raises(FeatcacheError, match="the split 'train' has no images"):
        fc.fit_head(of_folder, epochs=1, progress=SILENT)


def bad_sources() -> list[tuple[str, Any, str]]:
    good = np.zeros((2, 8, 8, 3), np.uint8)

    def ends_early() -> Any:
        yield good[0]
        raise OSError("the camera is gone")

    return [
        ("dtype", good.astype(np.float32), "an array of float32: expected uint8 of shape"),
        ("shape", good[..., :2], r"an array of shape \(2, 8, 8, 2\): expected uint8"),
        ("grey", good[..., 0], r"an array of shape \(2, 8, 8\)"),
        ("none", "no-such-folder", "no-such-folder: there is no such file or folder"),
        ("number", 7, "int: expected files, folders, arrays"),
        ("empty", [], "no image that can be used"),
        ("early", ends_early(), "the images ended after 1 with OSError: the camera is gone"),
    ]


@pytest.mark.parametrize(("kind", "source", "message"), bad_sources())
def test_what_is_no_image_is_said(kind: str, source: Any, message: str, here: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        fc.extract(source, "pixels", input_size_px=16, to="a", progress=SILENT)
    assert not list(here.rglob("features*"))


def test_one_that_is_no_image_among_others(here: Path) -> None:
    write_cells(here / "cells", 2, seed=3, size_px=48)
    files: list[Any] = sorted((here / "cells").rglob("*.png"))
    (here / "text.png").write_text("no image")
    mixed = [*files, here / "text.png", np.zeros((9, 7, 3), np.uint8), np.zeros((3, 3), np.uint8), files[0]]
    cache = fc.extract(mixed, "pixels", input_size_px=16, to="a", progress=SILENT)
    assert len(cache.features) == len(files) + 1
    reasons = [item.reason for item in cache.extracted.left_out]
    assert len(reasons) == 3
    assert any("same pixels or bytes" in reason for reason in reasons)
    with pytest.raises(DatasetError, match="3 images cannot be used"):
        fc.extract(mixed, "pixels", input_size_px=16, to="b", strict=True, progress=SILENT)


def test_unlabelled_images_of_a_project_are_cached_and_not_trained_on(here: Path) -> None:
    write_cells(here / "cells", 8, seed=3, size_px=48)
    write_cells(here / "new", 1, seed=4, size_px=48)
    rows = ["path,label,split"]
    rows += [f"{file.relative_to(here).as_posix()},{file.parent.name}," for file in sorted(here.glob("cells/*/*.png"))]
    rows += [f"{file.relative_to(here).as_posix()},," for file in sorted(here.glob("new/*/*.png"))]
    (here / "list.csv").write_text("\n".join(rows) + "\n")
    project = fc.init("list.csv", "p", progress=SILENT)
    assert any("4 images have no label" in remark for remark in project.found.remarks)
    cache = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    assert (cache.rows["label"] == "").sum() == 4
    assert len(cache.classes) == 4
    run = fc.fit_head(cache, epochs=1, progress=SILENT)
    assert set(run.config["classes"]) == set(cache.classes)
    again = fc.init(into="p", progress=SILENT)
    assert again.found.dataset.digest == project.found.dataset.digest


def test_settings_that_there_are_none_of(project: fc.Project) -> None:
    cache = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    with pytest.raises(UsageError, match="no setting 'epoch': did you mean"):
        fc.fit_head(cache, epoch=3, progress=SILENT)
    with pytest.raises(RunError, match="no run of that name"):
        fc.predict("nothing", "leukocytes", project=project, progress=SILENT)


def test_two_hospitals_in_one_list(here: Path) -> None:
    write_cells(here / "ours" / "cells", 6, seed=3, size_px=48)
    write_cells(here / "theirs" / "cells", 2, seed=4, size_px=48)
    (here / "ours" / "list").mkdir()
    rows = ["path,label,split"]
    for number, file in enumerate(sorted((here / "ours").glob("cells/*/*.png"))):
        rows.append(f"../cells/{file.parent.name}/{file.name},{file.parent.name},{'val' if number % 3 else 'train'}")
    rows += [f"{file},{file.parent.name},test" for file in sorted((here / "theirs").glob("cells/*/*.png"))]
    (here / "ours" / "list" / "list.csv").write_text("\n".join(rows) + "\n")
    project = fc.init(here / "ours" / "list" / "list.csv", "p", progress=SILENT)
    counts = project.found.dataset.counts()
    assert all(of == {"train": 2, "val": 4, "test": 2} for of in counts.values())
    assert len(fc.extract(project, "pixels", input_size_px=16, progress=SILENT).numbers("test")) == 8


def spoil(file: Path) -> bytes:
    """Change a byte in the middle of a file. Returns what it held."""
    before = file.read_bytes()
    at = len(before) // 2
    file.write_bytes(before[:at] + bytes([before[at] ^ 255]) + before[at + 1 :])
    return before


def test_a_damaged_cache_is_repaired_and_computed_again(project: fc.Project, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    shard = next(file for file in cache.folder.glob("features.zarr/c/**/*") if file.is_file())
    before = spoil(shard)
    monkeypatch.chdir("/")  # the project is the one that the cache lies in
    found = fc.verify(cache, recompute=3, progress=SILENT)
    assert (found.sound, found.damage, found.repaired_rows, found.recomputed) == (False, None, None, None)
    found = fc.verify(cache, repair=True, recompute=3, seed=1, progress=SILENT)
    assert found.sound
    assert [cache.folder / problem.file for problem in found.damage.problems] == [shard]
    assert found.repaired_rows > 0
    assert (len(found.recomputed.rows), found.recomputed.deviating) == (3, ())
    assert shard.read_bytes() == before


def test_what_calls_would_do(project: fc.Project, here: Path) -> None:
    expected = fc.extract(project, "pixels", input_size_px=16, dry_run=True, progress=SILENT)
    assert (expected.explained.state, expected.bytes) == ("miss", expected.explained.compute * 16 * 16 * 3)
    assert not list(here.rglob("features*"))
    (alone,) = fc.extract("leukocytes", ["pixels"], to="a", input_size_px=16, dry_run=True, progress=SILENT)
    assert alone.explained.rows == 32
    cache = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    assert expected.explained.name == cache.name
    planned = fc.push(None, str(here / "lab"), pseudonyms="secret", dry_run=True, progress=SILENT)
    assert (planned.name, planned.remote) == (cache.name, f"file://{here / 'lab'}")
    assert not (here / "lab").exists()
    assert not (here / "secret").exists()
    sent = fc.push(None, str(here / "lab"), progress=SILENT)
    assert planned.bytes == pytest.approx(sent.sent_bytes, rel=0.05)
    assert fc.pull(f"{here / 'lab'}/{cache.name}", to="there", progress=SILENT).pulled.remote == sent.remote
    assert fc.convert(cache, format="hdf5", progress=SILENT).converted.source == cache.name


def test_views_of_each_image_replace_a_total(here: Path) -> None:
    project = fc.init(per_class=8, views={"train_rows": 30}, progress=SILENT)
    rows = [fc.explain(project, "pixels", input_size_px=16, views=views)[0].rows for views in ({}, {"train": 2})]
    n_train = sum(of["train"] for of in project.found.dataset.counts().values())
    assert rows == [30 + 32 - n_train, 2 * n_train + 32 - n_train]
    with pytest.raises(ArgumentsError, match="`train` and `train_rows` exclude each other"):
        fc.extract(project, "pixels", views={"train": 2, "train_rows": 30}, progress=SILENT)
    again = fc.init(views={"train": 3}, split=(50, 25, 25), resplit=True, progress=SILENT)
    assert (again.settings.views.train_rows, again.settings.dataset.split_counts) == (None, None)


def test_layers_of_a_network(here: Path) -> None:
    layers = fc.models("mobilenetv2", layers=True, input_size_px=96)
    assert ("out_relu", (3, 3, 1280)) in [(layer.name, tuple(layer.output_shape)) for layer in layers]
    assert [row.name for row in fc.models("vgg16")] == ["vgg16"]
    assert {row.name for row in fc.models(offline=True)} < {row.name for row in fc.models()}
    for wrong in ({"layers": True}, {"unsafe": True}, {"input_size_px": 96}):
        with pytest.raises(ArgumentsError, match="`layers`"):
            fc.models(**wrong)
