"""attribution: a logit is a sum over the places of a feature map, and heatmaps show them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run

import featcache as fc
from featcache.core.errors import DatasetError, HeadError, UsageError
from featcache.core.progress import SILENT
from featcache.heads.attribution import attribute, is_exact
from featcache.heads.distance_head import load_head
from featcache.heads.head import Head
from featcache.heads.stack import ACTIVATIONS, forward, one_vs_one
from featcache.reporting import heatmap
from featcache.synthetic.drawing import write_cells

SHAPE = (3, 4, 5)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> fc.Project:
    folder = tmp_path_factory.mktemp("attribution")
    write_cells(folder / "cells", 6, seed=2, size_px=64)
    return fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)


@pytest.fixture(scope="module")
def cache(project: fc.Project) -> fc.Cache:
    return fc.extract(project, "pixels", input_size_px=16, progress=SILENT)


@pytest.fixture(scope="module")
def run_of_pixels(cache: fc.Cache) -> fc.Run:
    return fc.fit_head(cache, epochs=3, hidden=(8, 4), progress=SILENT)


def head_of(units: tuple[int, ...], activation: str) -> Head:
    random = np.random.default_rng(len(units))
    sides = (int(np.prod(SHAPE)), *units, 3)
    layers = [(random.normal(size=pair), random.normal(size=pair[1])) for pair in pairwise(sides)]
    return Head(SHAPE, 0.5, layers, 0.0, ("a", "b", "c"), activation=activation)


def logits_of(head: Head, X: Any) -> Any:
    (W, b), *rest = head.layers
    return forward(X.reshape(len(X), -1) @ W * head.scale + b, rest, activation=head.activation)


@pytest.mark.parametrize("units", [(), (7,), (7, 6)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_places_are_gradient_times_feature_and_add_up(units: tuple[int, ...], activation: str) -> None:
    head, X, step = head_of(units, activation), np.random.default_rng(9).normal(size=(6, *SHAPE)), 1e-6
    logits = logits_of(head, X)
    for number, label in enumerate(head.classes):
        found = attribute(head, X, name="x", label=label)
        np.testing.assert_allclose(found.logits, logits[:, number], atol=1e-12)
        np.testing.assert_allclose(found.places.sum(axis=(1, 2)) + found.rest, logits[:, number], atol=1e-4)
        gradient = np.zeros_like(X)
        for place in np.ndindex(SHAPE):
            moved = X.copy()
            moved[(slice(None), *place)] += step
            gradient[(slice(None), *place)] = (logits_of(head, moved)[:, number] - logits[:, number]) / step
        np.testing.assert_allclose(found.places, (gradient * X).sum(axis=-1), atol=1e-4)
    assert is_exact(head) == (not units or activation in ("relu", "linear"))
    chosen = attribute(head, X, name="x")
    np.testing.assert_array_equal(chosen.numbers, logits.argmax(axis=1))


def test_the_rest_is_what_biases_add() -> None:
    head = head_of((7,), "relu")
    without = Head(SHAPE, head.scale, [(W, 0 * b) for W, b in head.layers], 0.0, head.classes)
    found = attribute(without, np.random.default_rng(9).normal(size=(6, *SHAPE)), name="x")
    np.testing.assert_array_equal(found.rest, 0)


@pytest.mark.parametrize("kind", ["dense", "logreg", "mlp", "linear-svm"])
def test_heads_that_are_kept_add_up(cache: fc.Cache, kind: str) -> None:
    settings = {"epochs": 3, "hidden": (8,)} if kind == "dense" else {}
    run = fc.fit_head(cache, head=kind, **settings, progress=SILENT)
    head = load_head(run.folder)
    assert isinstance(head, Head)
    X = np.asarray(cache.features).astype(np.float64)
    logits = logits_of(head, X)
    if kind == "linear-svm":  # a class's decisions against each other class
        pairs = logits
        logits = np.zeros((len(X), 4))
        for pair, (i, j) in enumerate(zip(*np.triu_indices(4, 1), strict=True)):
            logits[:, i] -= pairs[:, pair]
            logits[:, j] += pairs[:, pair]
        np.testing.assert_allclose(one_vs_one(pairs, 4), head.probabilities_of(X), atol=1e-6)
    for number, label in enumerate(head.classes):
        found = run.attribution(cache, label=label, progress=SILENT)
        scale = np.abs(logits).max()
        np.testing.assert_allclose(found.logits, logits[:, number], atol=1e-4 * scale)
        np.testing.assert_allclose(found.places.sum(axis=(1, 2)) + found.rest, found.logits, atol=1e-4)
    assert found.exact


@pytest.mark.parametrize("kind", ["knn", "rbf-svm"])
def test_heads_by_distances_have_no_places(cache: fc.Cache, kind: str) -> None:
    run = fc.fit_head(cache, head=kind, progress=SILENT)
    with pytest.raises(HeadError, match=f"{run.name}: decides by distances"):
        run.attribution(cache, progress=SILENT)


def test_images_have_what_their_cached_rows_have(
    cache: fc.Cache, run_of_pixels: fc.Run, project: fc.Project, tmp_path: Path
) -> None:
    of_rows = run_of_pixels.attribution(cache, progress=SILENT)
    plain = {path: number for number, path in enumerate(of_rows.paths)}
    files = sorted(project.images_folder.rglob("*.png"))[:5]
    (tmp_path / "text.png").write_text("no image")
    found = run_of_pixels.attribution([*files, tmp_path / "text.png"], progress=SILENT)
    rows = [plain[file.relative_to(project.images_folder).as_posix()] for file in files]
    np.testing.assert_allclose(found.places, of_rows.places[rows], atol=1e-9)
    np.testing.assert_array_equal(found.labels, run_of_pixels.predict(files, progress=SILENT).labels)
    assert [path for path, _ in found.left_out] == [str(tmp_path / "text.png")]
    assert found.heatmap(0).shape == (448, 896, 3)
    with pytest.raises(UsageError, match="a cache keeps no images"):
        of_rows.heatmap(0)
    with pytest.raises(HeadError, match="no class 'macrophage': expected one of eosinophil"):
        run_of_pixels.attribution(files, label="macrophage", progress=SILENT)
    with pytest.raises(DatasetError, match=r"text\.png: the file is no image"):
        run_of_pixels.attribution([tmp_path / "text.png"], strict=True, progress=SILENT)
    with pytest.raises(DatasetError, match="no image to explain"):
        run_of_pixels.attribution([], progress=SILENT)


def test_pooled_features_have_no_places(project: fc.Project) -> None:
    network: dict[str, Any] = {"weights": "random", "input_size_px": 32, "pooling": "avg", "engine": "keras"}
    pooled = fc.extract(project, "mobilenetv2", **network, progress=SILENT)
    run = fc.fit_head(pooled, epochs=2, progress=SILENT)
    with pytest.raises(HeadError, match=r"features are pooled, .* Extract with `pooling='none'`"):
        run.attribution(pooled, progress=SILENT)


@pytest.mark.parametrize("top", ["avg", "dense"])
def test_a_whole_network_adds_up_at_its_last_map(project: fc.Project, top: str) -> None:
    settings: dict[str, Any] = {"recipe": "study", "epochs": 1, "batch": 8, "input_size_px": 32, "hidden": 6}
    run = fc.fit_scratch(project, "networks:small", **settings, preprocessing="tf", top=top, progress=SILENT)
    files = sorted(project.images_folder.rglob("*.png"))[:6]
    predicted = run.predict(files, progress=SILENT)
    of_labels = [run.attribution(files, label=label, progress=SILENT) for label in predicted.classes]
    for found in of_labels:
        np.testing.assert_allclose(found.places.sum(axis=(1, 2)) + found.rest, found.logits, atol=1e-4)
    assert not found.exact
    assert found.places.shape == (6, 8, 8)
    odds = np.exp(np.stack([found.logits for found in of_labels], axis=1))
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), predicted.probabilities, atol=1e-4)


def test_a_heatmap_is_red_for_the_class_and_blue_against_it() -> None:
    grey, places = np.full((32, 32, 3), 128, np.uint8), np.zeros((8, 8))
    places[1, 1], places[6, 6] = 1, -0.5
    plain, drawn = np.hsplit(heatmap(grey, places), 2)
    np.testing.assert_array_equal(plain, 128)
    for place, most, least in ((84, 0, 2), (364, 2, 0)):  # middles of the two places
        assert drawn[place, place, most] > 128 > drawn[place, place, least]
    np.testing.assert_array_equal(drawn[10, -10], 128)
    np.testing.assert_array_equal(heatmap(grey, np.zeros((8, 8))), 128)


def test_the_command_writes_a_picture_for_each_image(
    run: Run, run_of_pixels: fc.Run, project: fc.Project, tmp_path: Path
) -> None:
    files = sorted(project.images_folder.rglob("*.png"))[:2]
    asked = ("attribution", run_of_pixels.name, *map(str, files), "--class", "monocyte", "--to", str(tmp_path / "maps"))
    value = run(*asked, "--json", cwd=project.folder).value
    assert (value["run"], value["exact"]) == (run_of_pixels.name, True)
    for row, file in zip(value["rows"], files, strict=True):
        assert (row["path"], row["class"]) == (str(file), "monocyte")
        assert np.sum(row["places"]) + row["rest"] == pytest.approx(row["logit"], abs=1e-4)
        assert cv2.imread(row["heatmap"]).shape == (448, 896, 3)
    assert sorted(tmp_path.glob("maps/*")) == [Path(row["heatmap"]) for row in value["rows"]]
    assert "wrote 2 heatmaps into" in run(*asked, cwd=project.folder).out
    (tmp_path / "maps" / "x").touch()
    ended = run(*asked[:-1], str(tmp_path / "maps" / "x"), cwd=project.folder)
    assert ended.code in (1, 2)
    assert "Traceback" not in ended.err
