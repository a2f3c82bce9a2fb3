"""adapt: a head from a run and a few images of another laboratory, against scikit-learn on features."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from sklearn.linear_model import LogisticRegression

import featcache as fc
from featcache.core.errors import CacheNotFoundError, DatasetError, RunError, UsageError
from featcache.core.progress import SILENT
from featcache.heads.joint import JointRegression
from featcache.synthetic.drawing import write_cells

CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[fc.Project, fc.Cache, fc.Run]:
    folder = tmp_path_factory.mktemp("ours")
    write_cells(folder / "cells", 12, seed=2, size_px=32)
    project = fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)
    cache = fc.extract(project, "pixels", input_size_px=10, progress=SILENT)
    return project, cache, fc.fit_head(cache, epochs=20, progress=SILENT)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Darker cells of another seed, in three classes of ours and one that is not."""
    folder = tmp_path_factory.mktemp("theirs") / "cells"
    write_cells(folder, 12, seed=77, size_px=40)
    (folder / "eosinophil").rename(folder / "blast")
    return folder


def test_the_regression_is_that_of_scikit_learn_on_features(made: tuple[fc.Project, fc.Cache, fc.Run]) -> None:
    """Its coordinates are of the centred and scaled features, which an L2 penalty sees as the features themselves."""
    _, cache, _ = made
    old, old_y = cache.numbers("train"), cache.labels("train")
    rng = np.random.default_rng(0)
    new = (cache.features[old[:9]].reshape(9, -1) * 0.6 + rng.normal(0, 5, (9, 300))).astype(np.float32)
    y = np.concatenate([old_y, old_y[:9]])
    weights = rng.uniform(0.2, 3, len(y))
    joint = JointRegression(cache, old, new=new, progress=SILENT)
    rows = np.arange(len(y))
    head = joint.on_features(joint.fit(rows, y, weights=weights), rows)

    X = np.concatenate([cache.features[old].reshape(len(old), -1), new]).astype(np.float64)
    centred = X - X.mean(axis=0)
    scale = np.sqrt((centred**2).sum(axis=1).mean())
    expected = LogisticRegression(C=10.0, tol=1e-8, max_iter=20000).fit(centred / scale, y, sample_weight=weights)
    test = cache.features[cache.numbers("test")]
    shown = (test.reshape(len(test), -1) - X.mean(axis=0)) / scale
    np.testing.assert_allclose(head.probabilities_of(test), expected.predict_proba(shown), atol=2e-3)


def test_a_few_labels_make_a_run_like_any_other(made: tuple[fc.Project, fc.Cache, fc.Run], theirs: Path) -> None:
    project, cache, run = made
    done = fc.adapt(run, theirs, per_class=4, progress=SILENT)
    assert done.used == {"lymphocyte": 4, "monocyte": 4, "neutrophil": 4} and not done.reused
    assert {item.reason for item in done.left_out} == {f"blast is no class of {run.name}"}
    assert done.after is not None and done.before is not None and done.after["rows"] == done.before["rows"] == 24
    assert [point.per_class for point in done.curve] == [0, 5, 10]
    assert all(point.low <= point.balanced_accuracy <= point.high for point in done.curve)
    again = fc.adapt(run, theirs, per_class=4, progress=SILENT)
    assert again.reused and again.after == done.after and again.curve == done.curve
    assert done.run.name in {one.name for one in fc.runs(project)}
    of_cache = fc.predict(done.run, cache, progress=SILENT)
    assert of_cache.classes == CLASSES and np.isfinite(of_cache.probabilities).all()


def test_judged_images_are_those_that_evaluate_has_not_seen(
    made: tuple[fc.Project, fc.Cache, fc.Run], theirs: Path
) -> None:
    _, _, run = made
    done = fc.adapt(run, theirs, per_class=4, progress=SILENT)
    elsewhere = fc.evaluate(done.run, theirs, progress=SILENT)
    assert done.after is not None
    assert elsewhere.measures["rows"] == done.after["rows"]
    assert elsewhere.measures["balanced_accuracy"] == pytest.approx(done.after["balanced_accuracy"])
    before = fc.evaluate(run, theirs, progress=SILENT)
    assert before.measures["rows"] == 36


def test_no_image_of_a_used_group_judges(made: tuple[fc.Project, fc.Cache, fc.Run], theirs: Path) -> None:
    _, _, run = made
    done = fc.adapt(run, theirs, per_class=1, progress=SILENT, group_pattern=r"(\d)\.\w+$")
    used = set(done.run.config["adapted"]["images"])
    assert len(used) == 3 and done.after is not None and done.after["rows"] < 33


def test_all_images_without_a_number_and_weights_decide(
    made: tuple[fc.Project, fc.Cache, fc.Run], theirs: Path
) -> None:
    _, _, run = made
    whole = fc.adapt(run, theirs, progress=SILENT)
    assert whole.after is None and sum(whole.used.values()) == 36
    heavy = fc.adapt(run, theirs, weight=50.0, progress=SILENT)
    assert heavy.run.name != whole.run.name
    shift = [
        fc.predict(one.run, theirs / "monocyte", progress=SILENT).probabilities[:, 2].mean() for one in (whole, heavy)
    ]
    assert shift[1] > shift[0]


def test_the_command(made: tuple[fc.Project, fc.Cache, fc.Run], theirs: Path, run: Run) -> None:
    project, _, trained = made
    args = ("adapt", trained.name, "--with", str(theirs), "--map", "blast=eosinophil", "--per-class", "3")
    found = json.loads(run(*args, "--json", cwd=project.folder).out.splitlines()[-1])
    assert found["used"]["eosinophil"] == 3 and found["of"] == trained.name
    shown = run(*args, cwd=project.folder)
    assert "exists already" in shown.out and "balanced accuracy on 36 other images" in shown.out


def test_what_cannot_be_adapted_is_said(
    made: tuple[fc.Project, fc.Cache, fc.Run], theirs: Path, tmp_path: Path
) -> None:
    project, _, run = made
    for wrong in ({"per_class": 0}, {"weight": 0.0}, {"weight": float("nan")}):
        with pytest.raises(UsageError):
            fc.adapt(run, theirs, progress=SILENT, **wrong)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="can be used to adapt"):
        fc.adapt(run, theirs, progress=SILENT, mapping=dict.fromkeys(("lymphocyte", "monocyte", "neutrophil"), ""))
    copy = tmp_path / "copy"
    shutil.copytree(project.folder, copy)
    shutil.rmtree(copy / "cache")
    with pytest.raises(CacheNotFoundError):
        fc.adapt(copy / "results" / run.name, theirs, progress=SILENT)
    broken = theirs / "monocyte" / "broken.png"
    broken.write_bytes(b"no picture")
    try:
        assert any("broken.png" in item.path for item in fc.adapt(run, theirs, per_class=2, progress=SILENT).left_out)
        with pytest.raises(DatasetError):
            fc.adapt(run, theirs, per_class=2, strict=True, progress=SILENT)
    finally:
        broken.unlink()
    with pytest.raises(RunError):
        fc.adapt("no-such-run", theirs, project=project, progress=SILENT)
