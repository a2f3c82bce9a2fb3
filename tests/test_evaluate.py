"""evaluate: a run on the labelled images of another laboratory, against scikit-learn and what predict says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Run
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

import featcache as fc
from featcache.core.errors import DatasetError, FeatcacheError, RunError, UsageError
from featcache.core.progress import SILENT
from featcache.prediction.alignment import Alignment
from featcache.prediction.labelled import match_labels
from featcache.synthetic.drawing import write_cells

CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[fc.Project, fc.Run]:
    folder = tmp_path_factory.mktemp("ours")
    write_cells(folder / "cells", 12, seed=2, size_px=32)
    project = fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)
    cache = fc.extract(project, "pixels", input_size_px=12, progress=SILENT)
    return project, fc.fit_head(cache, epochs=20, progress=SILENT)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of another laboratory in folders with other names: two classes of ours, one in two folders, one of none."""
    folder = tmp_path_factory.mktemp("theirs")
    write_cells(folder / "made", 9, seed=77, size_px=40)
    cells = folder / "cells"
    for source, to in (("monocyte", "Monocytes"), ("neutrophil", "segmented"), ("eosinophil", "blast")):
        shutil.copytree(folder / "made" / source, cells / to)
    (cells / "band").mkdir()
    for path in sorted((cells / "segmented").iterdir())[:3]:
        path.rename(cells / "band" / path.name)
    return cells


MAPPING = {"segmented": "neutrophil", "band": "neutrophil"}


@pytest.fixture(autouse=True)
def no_evaluations(made: tuple[fc.Project, fc.Run]) -> None:
    for folder in made[0].results_folder.glob("evaluation-*"):
        shutil.rmtree(folder)


def test_measures_are_those_of_what_predict_says(made: tuple[fc.Project, fc.Run], theirs: Path) -> None:
    _, run = made
    done = fc.evaluate(run, theirs, mapping=MAPPING, progress=SILENT)
    predictions = fc.predict(run, theirs, progress=SILENT)
    folders = [Path(path).parent.name for path in predictions.paths]
    ours = np.array([{"Monocytes": "monocyte", "blast": ""}.get(name, "neutrophil") for name in folders])
    known = ours != ""
    y, named = ours[known], predictions.labels[known]
    measures = done.measures
    assert (measures["rows"], measures["groups"]) == (18, 18)
    assert measures["accuracy"] == pytest.approx(accuracy_score(y, named))
    recalls = recall_score(y, named, labels=["monocyte", "neutrophil"], average=None)
    assert measures["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert [measures["per_class"][label]["recall"] for label in CLASSES] == [None, None, *map(pytest.approx, recalls)]
    assert measures["confusion"] == confusion_matrix(y, named, labels=list(CLASSES)).tolist()
    low, high = measures["intervals"]["balanced_accuracy"]
    assert low <= measures["balanced_accuracy"] <= high
    assert done.mapping == {"Monocytes": "monocyte", "band": "neutrophil", "segmented": "neutrophil", "blast": ""}
    (blast,) = done.unknown.values()
    counts = pd.Series(predictions.labels[~known]).value_counts().to_dict()
    assert (blast["rows"], blast["named"]) == (9, counts)
    assert blast["unlike"] == int(predictions.unlike[~known].sum())
    assert done.unlike == pytest.approx(predictions.unlike[known].mean())
    frame = pd.read_csv(done.run.folder / "predictions.csv", keep_default_na=False)
    assert frame["split"].value_counts().to_dict() == {"test": 18, "": 9}
    assert frame.loc[frame["split"] == "", "label_there"].unique().tolist() == ["blast"]


def test_of_its_own_images_those_of_the_test_split_are_judged(made: tuple[fc.Project, fc.Run]) -> None:
    """A copy of the data set under other names: what the run has seen is known by its bytes."""
    project, run = made
    for source in (project, project.folder / "cells"):
        done = fc.evaluate(run, source, progress=SILENT, again=True)
        predicted = pd.read_csv(run.folder / "predictions.csv").query("split == 'test' and view == 0")
        assert done.measures["rows"] == len(predicted)
        accuracy = accuracy_score(predicted["label"], predicted["predicted"])
        assert done.measures["accuracy"] == pytest.approx(accuracy)
        assert sum("was trained on it" in item.reason for item in done.left_out) == 48 - len(predicted)


def test_images_that_were_all_seen_are_refused(made: tuple[fc.Project, fc.Run], tmp_path: Path) -> None:
    project, run = made
    seen = pd.read_csv(run.folder / "predictions.csv").query("split == 'train'")["path"].iloc[0]
    (tmp_path / "monocyte").mkdir()
    shutil.copy(project.folder / "cells" / seen, tmp_path / "monocyte/renamed.png")
    with pytest.raises(DatasetError, match="was trained on all"):
        fc.evaluate(run, tmp_path, progress=SILENT)


def test_an_evaluation_that_is_there_is_read(made: tuple[fc.Project, fc.Run], theirs: Path) -> None:
    _, run = made
    first = fc.evaluate(run, theirs, mapping=MAPPING, progress=SILENT)
    created = (first.run.folder / "config.json").stat().st_mtime_ns
    second = fc.evaluate(run, theirs, mapping=MAPPING, progress=SILENT)
    assert (first.reused, second.reused) == (False, True)
    assert (second.measures, second.unknown, second.unlike) == (first.measures, first.unknown, first.unlike)
    assert (second.run.folder / "config.json").stat().st_mtime_ns == created
    other = fc.evaluate(run, theirs, mapping={**MAPPING, "blast": "eosinophil"}, progress=SILENT)
    assert other.run.name != first.run.name and not other.unknown
    metrics = first.run.folder / "metrics.json"
    metrics.write_text(json.dumps({key: value for key, value in first.run.metrics.items() if key != "unknown"}))
    with pytest.raises(RunError, match="no whole evaluation"):
        fc.evaluate(run, theirs, mapping=MAPPING, progress=SILENT)
    assert not fc.evaluate(run, theirs, mapping=MAPPING, again=True, progress=SILENT).reused


def test_a_bundle_is_evaluated_too(
    made: tuple[fc.Project, fc.Run], theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, run = made
    of_run = fc.evaluate(run, theirs, mapping=MAPPING, progress=SILENT)
    bundle = run.bundle(out=tmp_path / "head.zip").path
    done = fc.evaluate(bundle, theirs, mapping=MAPPING, project=project, progress=SILENT)
    assert done.measures == of_run.measures
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FeatcacheError, match=r"featcache\.toml"):
        fc.evaluate(bundle, theirs, progress=SILENT)


def test_groups_splits_and_single_classes_of_a_list(made: tuple[fc.Project, fc.Run], theirs: Path) -> None:
    """One class alone, a column of splits with foreign words, groups of several images."""
    _, run = made
    paths = sorted((theirs / "Monocytes").iterdir())
    frame = pd.DataFrame({"path": [f"Monocytes/{path.name}" for path in paths], "label": "MONOCYTE"})
    frame["split"], frame["patient"] = "holdout", [str(number // 3) for number in range(len(paths))]
    frame.to_csv(theirs / "list.csv", index=False)
    try:
        done = fc.evaluate(run, theirs / "list.csv", group_column="patient", progress=SILENT)
    finally:
        (theirs / "list.csv").unlink()
    assert (done.measures["rows"], done.measures["groups"]) == (9, 3)
    assert done.measures["balanced_accuracy"] == done.measures["accuracy"]


def test_what_cannot_be_read_is_left_out_or_stops(
    made: tuple[fc.Project, fc.Run], theirs: Path, tmp_path: Path
) -> None:
    _, run = made
    cells = shutil.copytree(theirs / "Monocytes", tmp_path / "cells/monocyte").parent
    (cells / "monocyte/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = fc.evaluate(run, cells, progress=SILENT)
    assert done.measures["rows"] == 9
    assert [item.path for item in done.left_out] == ["monocyte/broken.png"]
    with pytest.raises(DatasetError, match="broken"):
        fc.evaluate(run, cells, strict=True, again=True, progress=SILENT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError):
        fc.evaluate(run, tmp_path / "empty", progress=SILENT)


def test_labels_are_matched_by_name() -> None:
    found = match_labels({"Monocytes", "NEUTROPHIL", "lympho cyte", "band", "mono"}, CLASSES, mapping={"band": ""})
    assert found == {
        "Monocytes": "monocyte",
        "NEUTROPHIL": "neutrophil",
        "band": "",
        "lympho cyte": "lymphocyte",
        "mono": "",
    }
    # Two classes that differ in what does not matter: only the exact name says which.
    assert match_labels({"a b", "AB", "ab"}, ("ab", "a-b"), mapping={}) == {"AB": "", "a b": "", "ab": "ab"}
    with pytest.raises(UsageError, match="no label there"):
        match_labels({"band"}, CLASSES, mapping={"bnad": "neutrophil"})
    with pytest.raises(UsageError, match="did you mean neutrophil"):
        match_labels({"band"}, CLASSES, mapping={"band": "neutrofil"})


def test_no_label_is_a_class(made: tuple[fc.Project, fc.Run], theirs: Path) -> None:
    project, run = made
    with pytest.raises(DatasetError, match="are no classes of"):
        fc.evaluate(run, theirs, mapping={"Monocytes": ""}, progress=SILENT)
    assert not list(project.results_folder.glob("evaluation-*"))


def test_on_the_command_line_and_in_the_report(made: tuple[fc.Project, fc.Run], theirs: Path, run: Run) -> None:
    project, trained = made
    call = ("evaluate", trained.name, "--on", theirs, "--map", "segmented=neutrophil", "--map", "band=neutrophil")
    said = run(*call, cwd=project.folder).out
    assert "Monocytes is monocyte" in said and "9 images of blast, which the run does not know" in said
    assert "not there: eosinophil, lymphocyte" in said
    value = run(*call, "--json", cwd=project.folder).value
    assert (value["of"], value["reused"], value["measures"]["rows"]) == (trained.name, True, 18)
    listed = run("runs", "--kind", "evaluation", "--json", cwd=project.folder).value
    assert [one["name"] for one in listed] == [value["run"]]
    text = fc.report(project, progress=SILENT).markdown.read_text("utf-8")
    assert "## On other images" in text and "blast: 9 images" in text
    assert str(theirs.parent) not in text  # where it lies is nothing for who gets the report
    for verb in ("predict", "export", "bundle"):
        arguments = [str(theirs)] if verb == "predict" else []
        assert "an evaluation keeps no model" in run(verb, value["run"], *arguments, cwd=project.folder).error
    assert (
        "expected LABEL=CLASS" in run("evaluate", trained.name, "--on", theirs, "--map", "x", cwd=project.folder).error
    )


def test_two_runs_compare_on_the_same_images(made: tuple[fc.Project, fc.Run], theirs: Path) -> None:
    project, run = made
    other = fc.fit_head(fc.open_cache(next(project.cache_folder.glob("pixels-????????"))), head="knn", progress=SILENT)
    one, two = (fc.evaluate(each, theirs, mapping=MAPPING, progress=SILENT) for each in (run, other))
    found = one.run.compare(two.run).set_index("measure")
    difference = one.measures["accuracy"] - two.measures["accuracy"]
    assert found.loc["accuracy", "difference"] == pytest.approx(difference)


def test_views_of_an_image_are_averaged(made: tuple[fc.Project, fc.Run], tmp_path: Path) -> None:
    _, run = made
    (tmp_path / "monocyte").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"monocyte/{number}.png")
    done = fc.evaluate(run, tmp_path, tta=4, progress=SILENT)
    frame = pd.read_csv(done.run.folder / "predictions.csv")
    columns = [f"p_{label}" for label in CLASSES]
    expected = fc.predict(run, tmp_path, tta=4, progress=SILENT).probabilities
    np.testing.assert_allclose(frame[columns], expected, atol=1e-6)
    assert done.run.name != fc.evaluate(run, tmp_path, progress=SILENT).run.name


def test_runs_of_several_labels_an_image_are_refused(theirs: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"path": [str(path) for path in sorted(theirs.rglob("*.png"))]})
    frame["label"] = [("a;b", "a", "b", ";")[number % 4] for number in range(len(frame))]
    frame.to_csv(tmp_path / "list.csv", index=False)
    project = fc.init(tmp_path / "list.csv", tmp_path, label_separator=";", progress=SILENT)
    run = fc.fit_head(fc.extract(project, "pixels", input_size_px=8, progress=SILENT), epochs=1, progress=SILENT)
    with pytest.raises(UsageError, match="several labels"):
        fc.evaluate(run, theirs, progress=SILENT)


def test_aligned_features_have_the_mean_and_deviation_of_the_training_images(
    made: tuple[fc.Project, fc.Run], theirs: Path
) -> None:
    project, run = made
    cache = fc.open_cache(project.cache_folder / run.config["cache_name"])
    train = cache.features[:][(cache.rows["split"] == "train") & (cache.rows["view"] == 0)].astype(np.float64)
    new = np.random.default_rng(0).gamma(2.0, 30.0, (50, *train.shape[1:]))
    shifted, scaled = (Alignment.of(cache, how)(new) for how in ("mean", "scale"))
    np.testing.assert_allclose(shifted.mean(axis=0), train.mean(axis=0), atol=1e-2)
    np.testing.assert_allclose(shifted.std(axis=0), new.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(scaled.mean(axis=0), train.mean(axis=0), atol=1e-2)
    assert np.corrcoef(scaled.std(axis=0).ravel(), train.std(axis=0).ravel())[0, 1] > 0.95
    plain = fc.evaluate(run, theirs, mapping=MAPPING, progress=SILENT)
    for how in ("mean", "scale"):
        done = fc.evaluate(run, theirs, mapping=MAPPING, align=how, progress=SILENT)  # type: ignore[arg-type]
        assert done.run.config["align"] == how and done.run.name != plain.run.name
        assert done.measures["rows"] == plain.measures["rows"]
    with pytest.raises(UsageError, match="align"):
        fc.evaluate(run, theirs, mapping=MAPPING, align="magic", progress=SILENT)  # type: ignore[arg-type]


def test_alignment_undoes_a_shift_of_all_features(made: tuple[fc.Project, fc.Run]) -> None:
    """Its own training images, all brighter by one amount, are named as before."""
    project, run = made
    cache = fc.open_cache(project.cache_folder / run.config["cache_name"])
    numbers = np.flatnonzero((cache.rows["split"] == "train") & (cache.rows["view"] == 0))
    own = cache.features[numbers].astype(np.float32)
    for how in ("mean", "scale"):
        np.testing.assert_allclose(Alignment.of(cache, how)(own + 37), own, atol=1e-2)
