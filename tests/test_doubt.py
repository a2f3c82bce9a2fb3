"""Doubt: calibration, prediction sets, and images unlike the training images, each against an independent path."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import multivariate_normal
from sklearn.calibration import calibration_curve

import featcache as fc
from featcache.core.errors import RunError, UsageError
from featcache.core.progress import SILENT
from featcache.doubt import DOUBT_FILE, Doubt, Likeness, pooled, reliability
from featcache.doubt.temperature import at_temperature, fit_temperature
from featcache.heads.classical import KINDS
from featcache.heads.stack import softmax
from featcache.synthetic.drawing import write_cells


def classified(n: int, seed: int = 0, sureness: float = 1.0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, classes) of a made-up classifier, and the true classes, drawn from softmax(logits)."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, classes))
    y = np.array([rng.choice(classes, p=row) for row in softmax(logits)])
    return softmax(sureness * logits), y


# --- temperature ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sureness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_probabilities_too_sure(sureness: float) -> None:
    p, y = classified(20_000, sureness=sureness)
    assert fit_temperature(p, y, weights=np.full(len(y), 1 / len(y))) == pytest.approx(sureness, rel=0.05)


def test_the_temperature_is_that_of_another_optimiser_on_logits() -> None:
    p, y = classified(200, seed=3, sureness=2.0)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y))
    logits = np.log(p) + 7.0  # a softmax does not see what is added to all

    def loss(x: np.ndarray) -> float:
        return float(-(weights * log_softmax(logits / x[0], axis=1)[np.arange(len(y)), y]).sum())

    found = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-6}).x[0]
    assert fit_temperature(p, y, weights=weights) == pytest.approx(found, rel=1e-3)


def test_no_temperature_changes_the_class_or_the_sum() -> None:
    p, _ = classified(50)
    p[0] = [1, 0, 0, 0]
    for temperature in (0.05, 1.0, 20.0):
        found = at_temperature(p, temperature)
        np.testing.assert_array_equal(found.argmax(axis=1), p.argmax(axis=1))
        np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(at_temperature(p[1:], 1.0), p[1:], atol=1e-12)


def test_reliability_is_what_scikit_learn_finds() -> None:
    p, y = classified(500, sureness=2.0, classes=3)
    found = reliability(p, y)
    right, confidence = calibration_curve(p.argmax(axis=1) == y, p.max(axis=1), n_bins=10)
    assert [one["accuracy"] for one in found["bins"]] == pytest.approx(right.tolist())
    assert [one["confidence"] for one in found["bins"]] == pytest.approx(confidence.tolist())
    rows = np.array([one["rows"] for one in found["bins"]])
    assert rows.sum() == found["rows"] == 500
    assert found["calibration_error"] == pytest.approx(float(rows @ np.abs(right - confidence)) / 500)
    assert found["calibration_error"] > reliability(at_temperature(p, 2.0), y)["calibration_error"]


# --- sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_sets_of_single_rows_are_those_of_the_textbook(level: float) -> None:
    """Split-conformal: the ceil((n + 1) level)-th smallest score of n."""
    p, y = classified(87, seed=5)
    doubt = Doubt.of(p, y, groups=np.arange(87))
    scores = np.sort(1 - p[np.arange(87), y])
    threshold = scores[int(np.ceil(88 * level - 1e-9)) - 1]
    new, _ = classified(300, seed=6)
    np.testing.assert_array_equal(doubt.sets(new, level), 1 - new <= threshold)


def test_sets_hold_the_true_class_as_often_as_was_asked_for_new_groups() -> None:
    """Groups of 1 to 9 rows, each with a difficulty of its own: a new group's rows are covered, on average."""
    rng = np.random.default_rng(0)

    def groups(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sizes = rng.integers(1, 10, n)
        numbers = np.repeat(np.arange(n), sizes)
        hard = np.where(rng.random(n) < 0.3, 0.2, 2.0)[numbers] * (10 - sizes[numbers]) / 5
        logits = rng.standard_normal((len(numbers), 4)) * hard[:, None] * 2
        y = np.array([rng.choice(4, p=row) for row in softmax(logits)])
        return softmax(2 * rng.permuted(logits, axis=1) * 0 + logits), y, numbers

    covered = []
    for _ in range(150):
        p, y, numbers = groups(60)
        doubt = Doubt.of(p, y, groups=numbers)
        new, true, new_numbers = groups(60)
        hit = doubt.sets(new, 0.9)[np.arange(len(true)), true]
        covered.append(np.mean([hit[new_numbers == number].mean() for number in np.unique(new_numbers)]))
    assert 0.885 < np.mean(covered) < 0.935


def test_rows_that_repeat_a_group_change_nothing() -> None:
    p, y = classified(40, seed=2)
    once = Doubt.of(p, y, groups=np.arange(40))
    repeats = np.repeat(np.arange(40), np.random.default_rng(0).integers(1, 6, 40))
    often = Doubt.of(p[repeats], y[repeats], groups=repeats)
    new, _ = classified(200, seed=9)
    np.testing.assert_array_equal(once.sets(new, 0.85), often.sets(new, 0.85))
    assert once.temperature == pytest.approx(often.temperature, rel=1e-3)


def test_too_few_groups_say_nothing() -> None:
    p, y = classified(8, seed=1)
    assert Doubt.of(p, y, groups=np.arange(8)).sets(p, 0.9).all()
    assert not Doubt.of(p, y, groups=np.arange(8)).sets(p, 0.5).all()


# --- likeness ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_rows", "width"), [(200, 50), (15, 400), (500, 6)])
def test_the_distance_is_that_of_the_whole_covariance_matrix(n_rows: int, width: int) -> None:
    """Its square is twice the negative logarithm of a Gaussian density with that matrix, but for a constant."""
    rng = np.random.default_rng(width)
    features = np.abs(rng.standard_normal((n_rows, width)) * np.linspace(0.2, 3, width))
    likeness = Likeness.of(features)
    assert likeness is not None
    new = np.abs(rng.standard_normal((9, width)))
    V = likeness.directions
    np.testing.assert_allclose(V @ V.T, np.eye(len(V)), atol=1e-8)
    covariance = V.T @ np.diag(likeness.variances - likeness.rest) @ V + likeness.rest * np.eye(width)
    gaussian = multivariate_normal(likeness.mean, covariance, allow_singular=True)
    rows = new / np.linalg.norm(new, axis=1, keepdims=True)
    constant = -2 * gaussian.logpdf(likeness.mean)
    np.testing.assert_allclose(likeness.distances(new) ** 2, -2 * gaussian.logpdf(rows) - constant, rtol=1e-5)


def test_likeness_does_not_see_how_bright_features_are() -> None:
    features = np.random.default_rng(0).random((30, 8))
    likeness = Likeness.of(features)
    assert likeness is not None
    np.testing.assert_allclose(likeness.distances(7 * features), likeness.distances(features))


@pytest.mark.parametrize(
    "features", [np.ones((10, 5)), np.zeros((10, 5)), np.ones((10, 1)), np.eye(2), np.repeat(np.eye(4), 3, axis=0)]
)
def test_features_without_spread_have_distances_that_are_numbers(features: np.ndarray) -> None:
    likeness = Likeness.of(features)
    assert likeness is not None
    assert np.isfinite(likeness.distances(np.vstack([features, -features, np.zeros_like(features)]))).all()


def test_one_row_has_no_likeness() -> None:
    assert Likeness.of(np.ones((1, 5))) is None


@pytest.mark.parametrize(("n_rows", "width"), [(300, 80), (40, 200), (6, 4)])
def test_directions_are_those_of_the_whole_decomposition(n_rows: int, width: int) -> None:
    rng = np.random.default_rng(n_rows)
    features = rng.standard_normal((n_rows, width)) * np.geomspace(3, 0.1, width) + 2
    found = Likeness.of(features)
    assert found is not None
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    _, lengths, directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    k = len(found.variances)
    np.testing.assert_allclose(found.variances, lengths[:k] ** 2 / (n_rows - 1), rtol=1e-3, atol=found.rest * 1.001)
    np.testing.assert_allclose(np.abs(found.directions[:3] @ directions[:3].T), np.eye(3), atol=1e-3)


def test_marked_are_as_many_as_was_said() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(40):
        features = rng.standard_normal((300, 12)) + 3
        likeness = Likeness.of(features[:100])
        p, y = classified(100)
        doubt = Doubt.of(p, y, groups=np.arange(100), likeness=likeness, features=features[100:200])
        shares.append(doubt.unlike(doubt.distances_of(features[200:]), 0.1).mean())
        assert doubt.unlike(doubt.distances_of(rng.standard_normal((50, 12)) - 3), 0.1).all()
    assert 0.08 < np.mean(shares) < 0.12
    few = Doubt.of(p[:5], y[:5], groups=np.arange(5), likeness=likeness, features=features[100:105])
    farthest = few.distances.max()
    assert few.unlike(np.array([farthest, 1.01 * farthest]), 0.05).tolist() == [False, True]


def test_maps_are_averaged_over_places() -> None:
    maps = np.random.default_rng(0).random((3, 4, 5, 6)).astype(np.float16)
    np.testing.assert_allclose(pooled(maps), maps.astype(np.float64).mean(axis=(1, 2)))


# --- the file ------------------------------------------------------------------------------------


def some_doubt(known: bool = True) -> Doubt:
    p, y = classified(12)
    features = np.random.default_rng(0).random((12, 5))
    groups = np.arange(12) // 2
    return Doubt.of(p, y, groups=groups, likeness=Likeness.of(features) if known else None, features=features)


@pytest.mark.parametrize("known", [True, False])
def test_what_is_read_is_what_was_written(tmp_path: Path, known: bool) -> None:
    doubt = some_doubt(known)
    doubt.save(tmp_path)
    read = Doubt.load(tmp_path)
    assert read is not None and (read.likeness is not None) == known
    p, _ = classified(30, seed=4)
    np.testing.assert_array_equal(read.sets(p, 0.8), doubt.sets(p, 0.8))
    np.testing.assert_array_equal(read.calibrated(p), doubt.calibrated(p))
    features = np.random.default_rng(1).random((4, 5))
    np.testing.assert_array_equal(read.distances_of(features), doubt.distances_of(features))
    assert Doubt.load(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": np.array(-1.0)},
        {"temperature": np.array(np.nan)},
        {"misses": np.zeros(3)},
        {"misses": np.array([])},
        {"shares": np.zeros(12)},
        {"shares": np.ones(12)},
        {"n_groups": np.array(0)},
        {"n_groups": np.array(13)},
        {"distances": np.full(12, np.nan)},
        {"mean": np.zeros(4)},
        {"mean": np.full(5, np.inf)},
        {"directions": np.zeros((2, 2, 2))},
        {"variances": np.zeros(5)},
        {"rest": np.array(0.0)},
        {"mean": np.array("text")},
        {"shares": None},
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, changed: dict[str, np.ndarray | None]) -> None:
    some_doubt().save(tmp_path)
    with np.load(tmp_path / DOUBT_FILE) as arrays:
        values = {**arrays, **changed}
    np.savez(tmp_path / DOUBT_FILE, **{name: value for name, value in values.items() if value is not None})
    with pytest.raises(RunError, match=r"doubt\.npz: cannot be read"):
        Doubt.load(tmp_path)


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> fc.Project:
    folder = tmp_path_factory.mktemp("doubt")
    write_cells(folder / "cells", 16, seed=2, size_px=64)
    return fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)


@pytest.fixture(scope="module")
def cache(project: fc.Project) -> fc.Cache:
    return fc.extract(project, "efficientnet-lite0", input_size_px=64, progress=SILENT)


@pytest.fixture(scope="module")
def head_run(cache: fc.Cache) -> fc.Run:
    return fc.fit_head(cache, epochs=5, hidden=(8,), solver="gram", progress=SILENT)


def test_a_run_says_how_sure_it_is(cache: fc.Cache, head_run: fc.Run) -> None:
    said = head_run.metrics["calibration"]
    assert said["temperature"] > 0
    for split in ("val", "test"):
        plain = cache.rows[(cache.rows["split"] == split) & (cache.rows["view"] == 0)]
        assert said[split]["before"]["rows"] == said[split]["after"]["rows"] == len(plain)
    assert said["val"]["after"]["loss"] <= said["val"]["before"]["loss"] + 1e-9


def test_images_and_rows_are_judged_alike(project: fc.Project, cache: fc.Cache, head_run: fc.Run) -> None:
    files = [project.images_folder / path for path in cache.rows["path"][cache.rows["view"] == 0]]
    of_images = head_run.predict(files, confidence=0.7, progress=SILENT).to_frame()
    rows = head_run.predict(cache, confidence=0.7, progress=SILENT).to_frame()
    rows = rows[(cache.rows["view"] == 0).to_numpy()].reset_index(drop=True)
    assert list(of_images) == list(rows)
    for column in ("class", "set", "unlike"):
        assert list(of_images[column]) == list(rows[column]), column
    np.testing.assert_allclose(of_images["confidence"], rows["confidence"], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_head_has_doubt(cache: fc.Cache, kind: str) -> None:
    run = fc.fit_head(cache, head=kind, progress=SILENT)
    said = run.predict(cache, confidence=0.7, progress=SILENT)
    assert said.calibrated is not None and said.sets is not None and said.unlike is not None
    np.testing.assert_allclose(said.calibrated.sum(axis=1), 1)


def test_noise_is_unlike_cells(head_run: fc.Run) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    said = head_run.predict(noise, progress=SILENT)
    assert said.unlike is not None and said.unlike.all()


def test_sets_grow_with_the_confidence(cache: fc.Cache, head_run: fc.Run) -> None:
    sizes = []
    for level in (0.3, 0.6, 0.8, 0.99):
        said = head_run.predict(cache, confidence=level, progress=SILENT)
        assert said.sets is not None
        sizes.append(said.sets.sum())
    assert sizes == sorted(sizes)
    assert sizes[-1] == said.sets.size  # 64 images have too few groups for 0.99
    assert sizes[0] < sizes[-1]


def test_a_run_of_an_earlier_featcache_predicts_without_doubt(
    head_run: fc.Run, cache: fc.Cache, tmp_path: Path
) -> None:
    shutil.copytree(head_run.folder, tmp_path / "old")
    (tmp_path / "old" / DOUBT_FILE).unlink()
    said = fc.predict(tmp_path / "old", cache, progress=SILENT)
    assert (said.calibrated, said.sets, said.unlike) == (None, None, None)
    assert said.to_dict()["rows"][0]["unlike"] is None
    with pytest.raises(RunError, match=r"keeps no doubt\.npz"):
        fc.predict(tmp_path / "old", cache, confidence=0.9, progress=SILENT)


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"confidence": 0.0}, {"false_alarms": 1.5}])
def test_a_share_lies_between_0_and_1(head_run: fc.Run, cache: fc.Cache, options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected a number between 0 and 1"):
        head_run.predict(cache, **options, progress=SILENT)


def test_a_whole_network_has_doubt(project: fc.Project) -> None:
    quick = {"recipe": "study", "input_size_px": 32, "epochs": 1, "batch": 16}
    trained = fc.fit_scratch(project, "resnet20", **quick, progress=SILENT)
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    said = trained.predict(noise, confidence=0.7, progress=SILENT)
    assert said.calibrated is not None and said.unlike is not None and said.sets is not None
    cells = trained.predict(project.images_folder, progress=SILENT)
    assert cells.unlike is not None and cells.unlike.mean() < 0.3


def test_the_command_says_what_is_doubtful(project: fc.Project, head_run: fc.Run, run: Run, tmp_path: Path) -> None:
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), noise)
    images = [str(tmp_path / "noise.png"), str(sorted(project.images_folder.rglob("*.png"))[0])]
    asked = ("predict", head_run.name, *images, "--confidence", "0.7")
    said = run(*asked, cwd=project.folder)
    assert "unlike the training images" in said.out and "set" in said.out
    rows = run(*asked, "--json", cwd=project.folder).value["rows"]
    assert rows[0]["unlike"] is True and isinstance(rows[1]["set"], list)
    refused = run(*asked[:-1], "1.5", cwd=project.folder)
    assert (refused.code, "--confidence" in refused.err) == (2, True)
