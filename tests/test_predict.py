"""predict: new images named by trained runs of every kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import Run

import featcache as fc
from featcache.backbones import import_keras
from featcache.core.errors import DatasetError, HeadError, RunError, UsageError, WeightsError
from featcache.core.progress import SILENT
from featcache.heads.classical import KINDS, classical_head
from featcache.images.decode import decode
from featcache.synthetic.drawing import write_cells

NETWORK: dict[str, Any] = {"weights": "random", "input_size_px": 32, "pooling": "avg", "engine": "keras"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> fc.Project:
    folder = tmp_path_factory.mktemp("predict")
    write_cells(folder / "cells", 6, seed=2, size_px=64)
    return fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)


@pytest.fixture(scope="module")
def cache(project: fc.Project) -> fc.Cache:
    return fc.extract(project, "mobilenetv2", **NETWORK, progress=SILENT)


@pytest.fixture(scope="module")
def head_run(cache: fc.Cache) -> fc.Run:
    return fc.fit_head(cache, epochs=3, hidden=(8,), solver="gram", progress=SILENT)


@pytest.fixture(scope="module")
def pixels_run(project: fc.Project) -> fc.Run:
    return fc.fit_head(fc.extract(project, "pixels", input_size_px=16, progress=SILENT), epochs=3, progress=SILENT)


def written(run: fc.Run) -> pd.DataFrame:
    """What the run itself says of the plain views."""
    frame = pd.read_csv(run.folder / "predictions.csv")
    return frame[frame["view"] == 0].set_index("path").sort_index()


def same(found: fc.Predictions, expected: pd.DataFrame, project: fc.Project, atol: float = 2e-5) -> None:
    frame = found.to_frame()
    frame["path"] = [Path(path).relative_to(project.images_folder).as_posix() for path in frame["path"]]
    frame = frame.set_index("path").sort_index()
    assert list(frame.index) == list(expected.index)
    for label in found.classes:
        np.testing.assert_allclose(frame[f"p_{label}"], expected[f"p_{label}"], atol=atol)
    assert list(frame["class"]) == list(expected["predicted"])


def test_new_images_get_what_the_run_says_of_them(project: fc.Project, head_run: fc.Run) -> None:
    same(head_run.predict(project.images_folder, engine="keras", progress=SILENT), written(head_run), project)


def test_arrays_and_generators_get_what_files_get(project: fc.Project, pixels_run: fc.Run) -> None:
    files = sorted(project.images_folder.rglob("*.png"))
    arrays = np.stack([decode(file.read_bytes()) for file in files])
    of_files = pixels_run.predict(files, progress=SILENT).probabilities
    for source in (arrays, list(arrays), (array for array in arrays)):
        np.testing.assert_array_equal(pixels_run.predict(source, progress=SILENT).probabilities, of_files)
    assert pixels_run.predict(arrays[0], progress=SILENT).paths == ("image 0",)


def test_rows_of_a_cache_need_no_network(cache: fc.Cache, head_run: fc.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **options: Any) -> None:
        raise AssertionError("a network was opened")

    monkeypatch.setattr("featcache.prediction.opening.network_of", refused)
    found = head_run.predict(cache, progress=SILENT)
    frame = pd.read_csv(head_run.folder / "predictions.csv")
    np.testing.assert_allclose(found.probabilities, frame[[f"p_{label}" for label in found.classes]], atol=1e-6)
    assert head_run.predict(cache.folder, progress=SILENT).paths == found.paths
    assert any(path.endswith(" view 1") for path in found.paths)


def test_boxes_of_a_project_are_cut_out(tmp_path: Path, pixels_run: fc.Run) -> None:
    image = np.full((60, 80, 3), 200, np.uint8)
    image[10:30, 20:44] = (30, 60, 90)
    cv2.imwrite(str(tmp_path / "smear.png"), image[..., ::-1])
    (tmp_path / "featcache.toml").write_text("")
    (tmp_path / "dataset.csv").write_text("path,label,split,x_min,y_min,x_max,y_max\nsmear.png,,,20,10,44,30\n")
    found = pixels_run.predict(fc.open_project(tmp_path), progress=SILENT)
    assert found.paths == ("smear.png [20, 10, 44, 30]",)
    crop = pixels_run.predict(image[10:30, 20:44], progress=SILENT)
    np.testing.assert_array_equal(found.probabilities, crop.probabilities)


def test_test_time_augmentation_is_the_mean_over_views(project: fc.Project, pixels_run: fc.Run) -> None:
    cache = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    train = cache.rows[cache.rows["split"] == "train"]
    of_rows = pixels_run.predict(cache, progress=SILENT).probabilities
    found = pixels_run.predict(project.images_folder, tta=2, progress=SILENT)
    at = {
        Path(path).relative_to(project.images_folder).as_posix(): row
        for path, row in zip(found.paths, found.probabilities, strict=True)
    }
    for path, rows in train.groupby("path"):
        np.testing.assert_allclose(at[str(path)], of_rows[rows["row"]].mean(axis=0), rtol=1e-5)


@pytest.fixture(scope="module", params=[2, 4])
def unequal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> fc.Cache:
    """A cache of unequal classes, two or four: their weights in the training differ."""
    folder = tmp_path_factory.mktemp("unequal")
    write_cells(folder / "cells", 8, seed=3, size_px=48)
    labels = sorted(path.name for path in (folder / "cells").iterdir())
    for label in labels[request.param :]:
        shutil.rmtree(folder / "cells" / label)
    for file in sorted((folder / "cells" / labels[0]).iterdir())[:3]:
        file.unlink()
    project = fc.init(folder / "cells", folder, views={"train": 3}, progress=SILENT)
    return fc.extract(project, "mobilenetv2", **{**NETWORK, "pooling": "none"}, progress=SILENT)


@pytest.mark.parametrize("kind", ["dense", "logreg"])
def test_a_head_alone_is_exported_for_keras(unequal: fc.Cache, kind: str, tmp_path: Path) -> None:
    run = fc.fit_head(unequal, head=kind, **({"epochs": 2} if kind == "dense" else {}), progress=SILENT)
    done = fc.export(run, format="head", out=tmp_path / "head.keras", progress=SILENT)
    assert (done.format, done.input_size_px, done.bytes) == ("head", None, done.path.stat().st_size)
    model = import_keras().saving.load_model(done.path, safe_mode=True)
    expected = run.predict(unequal, progress=SILENT).probabilities
    np.testing.assert_allclose(model.predict(np.asarray(unequal.features), verbose=0), expected, atol=2e-6)
    with pytest.raises(UsageError, match="exists already"):
        fc.export(run, format="head", out=done.path, progress=SILENT)


@pytest.mark.parametrize("kind", ["linear-svm", "knn"])
def test_a_head_that_is_no_layers_is_not_exported_alone(
    unequal: fc.Cache, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = fc.fit_head(unequal, head=kind, progress=SILENT)
    with pytest.raises(HeadError, match=f"{run.name}: a head .* none of Keras' layers"):
        fc.export(run, format="head", progress=SILENT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_classical_head_predicts_what_its_estimator_does(unequal: fc.Cache, kind: str, tmp_path: Path) -> None:
    project = fc.open_project(unequal.folder)
    run = fc.fit_head(unequal, head=kind, progress=SILENT)
    files = {path.name for path in run.folder.iterdir()}
    assert ("rows.npy" in files) == (kind in ("rbf-svm", "knn"))
    of_rows = run.predict(unequal, progress=SILENT).probabilities
    if kind != "mlp":  # which starts from other random weights
        X, y = (array.astype("float64") for array in unequal.arrays("train"))
        own = classical_head(kind).fit(X.reshape(len(X), -1), y)
        features = unequal.features[:].reshape(len(of_rows), -1).astype("float64")
        np.testing.assert_allclose(of_rows, own.predict_proba(features), atol=1e-3)
    frame = pd.read_csv(run.folder / "predictions.csv")
    np.testing.assert_allclose(of_rows, frame[[f"p_{label}" for label in unequal.classes]], atol=1e-6)
    assert (of_rows.max(axis=1) > 0.6).any()
    same(run.predict(project.images_folder, engine="keras", progress=SILENT), written(run), project)
    fc.push(run, str(tmp_path / "lab"), progress=SILENT)
    theirs = fc.pull(f"{tmp_path / 'lab'}/{run.name}", to=tmp_path / "theirs", progress=SILENT)
    np.testing.assert_array_equal(theirs.predict(unequal, progress=SILENT).probabilities, of_rows)


@pytest.mark.parametrize("kind", ["logreg", "linear-svm", "knn"])
def test_a_classical_head_predicts_the_mean_over_views(unequal: fc.Cache, kind: str) -> None:
    project = fc.open_project(unequal.folder)
    run = fc.fit_head(unequal, head=kind, progress=SILENT)
    train = unequal.rows[unequal.rows["split"] == "train"]
    of_rows = run.predict(unequal, progress=SILENT).probabilities
    files = [project.images_folder / path for path in sorted(set(train["path"]))]
    found = run.predict(files, tta=3, engine="keras", progress=SILENT)
    for row, (_, rows) in zip(found.probabilities, train.groupby("path"), strict=True):
        np.testing.assert_allclose(row, of_rows[rows["row"]].mean(axis=0), atol=2e-5)


def test_a_whole_network_predicts(project: fc.Project) -> None:
    run = fc.fit_scratch(
        project,
        "networks:small",
        preprocessing="tf",
        recipe="study",
        epochs=1,
        batch=8,
        input_size_px=32,
        top="avg",
        progress=SILENT,
    )
    same(run.predict(project.images_folder, progress=SILENT), written(run), project, atol=2e-4)
    with pytest.raises(UsageError, match="is a whole network, which takes images"):
        run.predict(fc.extract(project, "pixels", input_size_px=32, progress=SILENT), progress=SILENT)


def test_what_is_no_image_is_left_out_or_refused(project: fc.Project, pixels_run: fc.Run, tmp_path: Path) -> None:
    files: list[Any] = sorted(project.images_folder.rglob("*.png"))[:3]
    (tmp_path / "text.png").write_text("no image")
    mixed = [files[0], tmp_path / "text.png", files[1], np.zeros((4, 4), np.uint8), files[2], files[0]]
    found = pixels_run.predict(mixed, progress=SILENT)
    assert found.paths == tuple(map(str, (*files, files[0])))
    assert [path for path, _ in found.left_out] == [str(tmp_path / "text.png"), "image 3"]
    np.testing.assert_array_equal(found.probabilities[0], found.probabilities[3])
    with pytest.raises(DatasetError, match=r"text\.png: the file is no image"):
        pixels_run.predict(mixed, strict=True, progress=SILENT)
    with pytest.raises(DatasetError, match="no image to predict"):
        pixels_run.predict([], progress=SILENT)


def test_other_weights_and_other_features_are_refused(cache: fc.Cache, head_run: fc.Run, tmp_path: Path) -> None:
    for weights, message in (
        ("random-7", "weights_digest"),
        ("own.h5", r"made with the weights file own.h5 \(digest "),
    ):
        other = tmp_path / weights
        shutil.copytree(head_run.folder, other)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "weights": weights}))
        with pytest.raises(WeightsError, match=message):
            fc.predict(other, np.zeros((1, 8, 8, 3), np.uint8), progress=SILENT)
    wide = fc.extract(fc.open_project(cache.folder), "pixels", input_size_px=16, progress=SILENT)
    with pytest.raises(HeadError, match="its features"):
        head_run.predict(wide, progress=SILENT)


def test_damaged_runs_are_said(head_run: fc.Run, tmp_path: Path) -> None:
    image = np.zeros((1, 8, 8, 3), np.uint8)
    other = tmp_path / "other"
    shutil.copytree(head_run.folder, other)
    config = json.loads((other / "config.json").read_text())
    for changes, message in (
        ({"classes": ["a", "b"]}, "head.npz knows the classes"),
        ({"classes": 3}, "its classes cannot be read"),
        ({"recipe": {}}, "its recipe cannot be read"),
    ):
        (other / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(RunError, match=message):
            fc.predict(other, image, progress=SILENT)
    (other / "config.json").write_text(json.dumps(config))
    (other / "head.npz").unlink()
    with pytest.raises(RunError, match="keeps no model"):
        fc.predict(other, image, progress=SILENT)


def _edited(run: fc.Run, folder: Path, **arrays: Any) -> Path:
    """A copy of a run with some arrays of head.npz replaced; those that are None are missing."""
    shutil.copytree(run.folder, folder)
    with np.load(run.folder / "head.npz") as there:
        changed = {name: value for name, value in {**there, **arrays}.items() if value is not None}
    np.savez(folder / "head.npz", **changed)
    return folder


DAMAGE: dict[str, list[dict[str, Any]]] = {
    "logreg": [
        {"W0": np.ones((3, 4), "f4")},
        {"b0": np.full(4, np.nan, "f4")},
        {"b0": np.ones(3, "f4")},
        {"scale": np.array(np.inf)},
        {"W0": None},
        {"activation": np.array("exec")},
        {"output": np.array("one-vs-one")},
        {"row_shape": np.array([2**31, 2**31, 4])},
        {"W0": np.full((768, 4), 1, "i8")},
        {"W0": np.full((768, 4), 3e38, "f4")},
    ],
    "linear-svm": [{"output": np.array("softmax")}, {"b0": np.ones(7, "f4")}],
    "rbf-svm": [
        {"W0": np.ones((3, 6))},
        {"W0": None},
        {"b0": np.full(6, np.nan)},
        {"square": np.array(0.0)},
        {"square": np.array(np.nan)},
        {"kind": np.array("pickle")},
        {"row_shape": np.array([4])},
    ],
    "knn": [
        {"labels": np.zeros(3, "i8")},
        {"labels": "too large"},
        {"labels": "negative"},
        {"labels": "floats"},
        {"k": np.array(0)},
        {"k": np.array(10**9)},
        {"classes": np.array(["a"])},
    ],
}


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_head_ends_in_one_message(project: fc.Project, kind: str, tmp_path: Path) -> None:
    cache = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    run = fc.fit_head(cache, head=kind, progress=SILENT)
    n_train = len(cache.numbers("train"))
    odd = {
        "too large": np.full(n_train, 4),
        "negative": np.full(n_train, -1),
        "floats": np.full(n_train, 0.5),
    }
    for number, arrays in enumerate(DAMAGE[kind]):
        changed = {name: odd[value] if isinstance(value, str) else value for name, value in arrays.items()}
        with pytest.raises(
            (HeadError, RunError), match=r"head\.npz: cannot be read: |not finite: the model is damaged"
        ):
            fc.predict(_edited(run, tmp_path / str(number), **changed), cache, progress=SILENT)


@pytest.mark.parametrize("kind", ["rbf-svm", "knn"])
def test_damaged_rows_of_a_head_end_in_one_message(project: fc.Project, kind: str, tmp_path: Path) -> None:
    cache = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    run = fc.fit_head(cache, head=kind, progress=SILENT)
    rows, path = np.load(run.folder / "rows.npy"), tmp_path / "run" / "rows.npy"
    shutil.copytree(run.folder, path.parent)
    whole = path.read_bytes()
    for array in (rows[:-1], rows[:, :-1], rows.astype("f8"), rows[0], rows * np.float32(np.nan), rows.astype(object)):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(HeadError, match=r"head\.npz: cannot be read: "):
            fc.predict(path.parent, cache, progress=SILENT)
    lies = whole.replace(f"({len(rows)}, ".encode(), b"(9999999999, ".ljust(0))
    for data in (b"", whole[:1000], whole[:-1], whole + b"x", lies, b"PK\x05\x06" + bytes(18), bytes(5000)):
        path.write_bytes(data)
        with pytest.raises(HeadError, match=r"head\.npz: cannot be read: "):
            fc.predict(path.parent, cache, progress=SILENT)
    path.unlink()
    with pytest.raises(HeadError, match=r"head\.npz: cannot be read: .*rows\.npy"):
        fc.predict(path.parent, cache, progress=SILENT)


def test_the_command(project: fc.Project, pixels_run: fc.Run, run: Run, tmp_path: Path) -> None:
    files = sorted(project.images_folder.rglob("*.png"))[:2]
    value = run("predict", pixels_run.name, *map(str, files), "--json", cwd=project.folder).value
    assert set(value) == {"run", "classes", "rows", "left_out"}
    assert value["run"] == pixels_run.name
    assert [row["path"] for row in value["rows"]] == [str(file) for file in files]
    for row in value["rows"]:
        assert set(row) == {"path", "class", "probabilities", "confidence", "set", "unlike"}
        assert row["set"] is None and isinstance(row["unlike"], bool) and 0 < row["confidence"] <= 1
        assert set(row["probabilities"]) == set(value["classes"])
        assert row["class"] == max(row["probabilities"], key=row["probabilities"].get)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    out = tmp_path / "out.csv"
    run("predict", str(pixels_run.folder), str(project.images_folder), "--csv", str(out), cwd=tmp_path)
    assert len(pd.read_csv(out)) == 24
    ended = run("predict", "nothing", str(files[0]), cwd=project.folder)
    assert (ended.code, "no run of that name" in ended.err) == (1, True)
