"""Extraction with cells cut out by a fitted segmenter: names, copies that travel, hostile files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run
from test_fit_segmenter import FIT, painted, save, write
from test_store_contract import feature_bytes

import featcache as fc
from featcache.core.errors import DatasetError, FeatcacheError, ProjectError, UsageError, WeightsError
from featcache.core.progress import SILENT
from featcache.extraction import opened_segmenter
from featcache.images import Item
from featcache.prediction import Predictor
from featcache.segmentation import COPY, CellCut, Framing, SegmenterFile, plain_view
from featcache.store import read_manifest

PIXELS: dict[str, Any] = {"input_size_px": 32, "progress": SILENT}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks in `train`, segmenters in `one.npz` and `two.npz`, and a project of two classes in `p`."""
    folder = tmp_path_factory.mktemp("cut")
    write(folder / "train", range(8))
    for name, seed in (("one", 0), ("two", 1)):
        fc.fit_segmenter(folder / "train/images", folder / "train/masks", out=folder / f"{name}.npz", seed=seed, **FIT)
    for seed in range(12):
        picture, _ = painted(200 + seed)
        if seed % 2:
            picture = cv2.convertScaleAbs(picture, alpha=0.8)
        save(folder / f"cells/{'odd' if seed % 2 else 'even'}/{seed}.png", picture)
    save(folder / "cells/odd/none.png", np.full((80, 80, 3), 235, np.uint8))
    fc.init(folder / "cells", folder / "p", progress=SILENT)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Any:
    """A copy of the project, beside copies of the images and the segmenter."""
    for name in ("p", "cells"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copy(made / "one.npz", tmp_path / "one.npz")
    return fc.open_project(tmp_path / "p")


def views(path: Path, **more: Any) -> dict[str, Any]:
    return {"views": {"segment": str(path), "background": "white", **more}}


def test_views_are_those_of_the_segmenter_and_the_name_is_of_what_decides_them(
    made: Path, project: Any, tmp_path: Path, run: Run
) -> None:
    how = ("--model", "pixels", "--input-size", "32", "--background", "white")
    first = run("extract", *how, "--segment", "../one.npz", "--json", cwd=project.folder)
    assert first.code == 0, first.err
    cache = fc.open_cache(first.value["path"])
    known = SegmenterFile.read(made / "one.npz")
    assert cache.recipe.space.segmentation == f"fitted-{known.digest}-1:white:0.1"
    assert str(tmp_path) not in (cache.folder / "manifest.json").read_text()
    shutil.move(tmp_path / "one.npz", tmp_path / "moved.npz")
    again = run("extract", *how, "--segment", str(tmp_path / "moved.npz"), "--json", cwd=tmp_path / "p")
    assert again.value["path"] == first.value["path"] and again.value["computed"] == 0
    replace(known, pictures=99, weights="elsewhere.h5").write(tmp_path / "told.npz")
    assert SegmenterFile.read(tmp_path / "told.npz").digest == known.digest
    other = fc.extract(project, "pixels", **views(made / "two.npz"), **PIXELS)
    stain = fc.extract(project, "pixels", views={"segment": "stain", "background": "white"}, **PIXELS)
    assert len({cache.name, other.name, stain.name}) == 3
    segmenter = opened_segmenter(known)
    for number in np.flatnonzero(cache.rows["view"].to_numpy() == 0):
        picture = cv2.imread(str(tmp_path / "cells" / cache.rows["path"][number]))[..., ::-1]
        cells = segmenter.cut_out(np.ascontiguousarray(picture)).cells
        assert bool(cells) == ("none" not in cache.rows["path"][number])
        expected = plain_view(
            np.ascontiguousarray(picture), None, size_px=32, framing=Framing.of(cache.recipe.space), segmenter=segmenter
        )
        np.testing.assert_array_equal(cache.features[number], expected.pixels)
        assert bool(expected.remark) != bool(cells)


@pytest.mark.parametrize("change", ["classifier", "side", "size", "weights"])
def test_all_that_decides_a_mask_is_in_the_digest(made: Path, change: str) -> None:
    known = SegmenterFile.read(made / "one.npz")
    changes: dict[str, Any] = {
        "classifier": {"classifier": replace(known.classifier, out=known.classifier.out + np.float32(1e-3))},
        "side": {"side_px": known.side_px + 1},
        "size": {"space": replace(known.space, input_size_px=48)},
        "weights": {"space": replace(known.space, weights_digest="0" * 64)},
    }
    assert replace(known, **changes[change]).digest != known.digest
    assert SegmenterFile.of_text(known.text, "here").digest == known.digest


def test_a_cache_and_its_runs_need_the_file_no_more(made: Path, project: Any, tmp_path: Path) -> None:
    cache = fc.extract(
        project, "mobilenetv2", weights="random", pooling="avg", input_size_px=32, progress=SILENT,
        **views(tmp_path / "one.npz"),
    )  # fmt: skip
    (tmp_path / "one.npz").unlink()
    checked = fc.verify(cache, recompute=4).recomputed
    assert checked is not None and not checked.deviating
    run = fc.fit_head(cache, epochs=3, progress=SILENT)
    known = SegmenterFile.read(run.folder / "segmenter.npz")
    assert known.digest == CellCut.fitted_of(cache.recipe.space.segmentation)
    of_cache, of_files = run.predict(cache), run.predict(tmp_path / "cells", progress=SILENT)
    places = [of_cache.paths.index(Path(path).relative_to(tmp_path / "cells").as_posix()) for path in of_files.paths]
    np.testing.assert_allclose(of_files.probabilities, of_cache.probabilities[places], atol=1e-5)
    for seed in range(4):
        save(tmp_path / f"new/{'odd' if seed % 2 else 'even'}/{seed}.png", painted(300 + seed)[0])
    judged = fc.evaluate(run, on=tmp_path / "new", progress=SILENT)
    assert judged.measures["rows"] == 4 and not judged.left_out
    remote = str(tmp_path / "shared")
    fc.push(cache, remote, progress=SILENT)
    fc.push(run, remote, progress=SILENT)
    there = fc.init(tmp_path / "cells", tmp_path / "q", progress=SILENT)
    pulled = fc.pull(cache.name, remote=remote, project=there, progress=SILENT)
    assert fc.verify(pulled, recompute=2).recomputed.largest_deviation <= 1
    other = fc.pull(run.name, remote=remote, project=there, progress=SILENT)
    np.testing.assert_allclose(
        other.predict(tmp_path / "cells", progress=SILENT).probabilities, of_files.probabilities, atol=1e-5
    )
    with pytest.raises(UsageError, match="fitted segmenter"):
        fc.bundle(run, out=tmp_path / "b.zip", progress=SILENT)
    shutil.copy(made / "two.npz", run.folder / "segmenter.npz")
    with pytest.raises(DatasetError, match="was replaced or is damaged"):
        run.predict(tmp_path / "cells", progress=SILENT)
    (run.folder / "segmenter.npz").write_bytes(b"PK nothing")
    with pytest.raises(DatasetError, match="no segmenter"):
        run.predict(tmp_path / "cells", progress=SILENT)
    (run.folder / "segmenter.npz").unlink()
    with pytest.raises(DatasetError, match="no copy of that is there"):
        run.predict(tmp_path / "cells", progress=SILENT)


def test_a_copy_that_was_replaced_is_found(made: Path, project: Any) -> None:
    cache = fc.extract(project, "pixels", **views(made / "one.npz"), **PIXELS)
    manifest = read_manifest(cache.folder)
    other = {**manifest.provenance, COPY: SegmenterFile.read(made / "two.npz").text}
    manifest.model_copy(update={"provenance": other}).sealed().write(cache.folder)
    with pytest.raises(DatasetError, match="was replaced"):
        fc.verify(fc.open_cache(cache.folder), recompute=1)
    for text in ("", "no base64!", 7, "AAAA"):
        with pytest.raises(DatasetError, match="no segmenter"):
            SegmenterFile.kept({COPY: text}, cache.recipe.space.segmentation, where="c")


def test_the_project_keeps_where_it_is_and_private_copies_no_name(made: Path, tmp_path: Path, run: Run) -> None:
    known = SegmenterFile.read(made / "one.npz")
    assert replace(known, weights="anna.h5").without_names().weights == "a file"
    shutil.copy(made / "one.npz", tmp_path / "s.npz")
    home = tmp_path / "deep/p"
    done = run("init", str(made / "cells"), "--into", "deep/p", "--segment", "s.npz", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert 'segment = "../../s.npz"' in (tmp_path / "deep/p/featcache.toml").read_text()
    made_ = run("extract", "--model", "pixels", "--input-size", "32", "--json", cwd=home)
    assert made_.code == 0, made_.err
    assert run("push", "--remote", str(tmp_path / "shared"), "--private", cwd=home).code == 0
    (manifest,) = (tmp_path / "shared").rglob("manifest*.json")
    copy = json.loads(manifest.read_text())["provenance"][COPY]
    kept = SegmenterFile.of_text(copy, "there")
    assert kept.digest == known.digest
    sheet = run("dataset", "preview", "--views", "1", "--json", cwd=home)
    plain = run(
        "dataset", "preview", "--views", "1", "--segment", "none", "--out", "plain.png", cwd=tmp_path / "deep/p"
    )
    assert sheet.code == 0 and plain.code == 0, sheet.err + plain.err
    one, other = (cv2.imread(str(tmp_path / "deep/p" / name)) for name in ("contact-sheet.png", "plain.png"))
    assert one.shape == other.shape and (one != other).any()
    of_network = run(
        "dataset", "preview", "--model", "pixels", "--views", "1", "--out", "n.png", cwd=tmp_path / "deep/p"
    )
    assert of_network.code == 0 and (cv2.imread(str(tmp_path / "deep/p/n.png")) == one).all()


def test_workers_get_what_is_in_the_file(made: Path, project: Any, tmp_path: Path, monkeypatch: Any) -> None:
    alone = fc.extract(project, "pixels", **views(made / "one.npz"), **PIXELS)
    expected = feature_bytes(alone.folder)
    shutil.rmtree(project.cache_folder)
    monkeypatch.chdir(tmp_path)
    there = fc.extract(project, "pixels", cluster="local:1", **views(Path("one.npz")), **PIXELS)
    assert feature_bytes(there.folder) == expected


def test_what_is_no_segmenter_is_said_before_anything_is_made(
    made: Path, project: Any, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "bad.npz").write_bytes((made / "one.npz").read_bytes()[:-40])
    how = ("--model", "pixels", "--input-size", "32", "--segment")
    for name, said in (
        ("bad.npz", "no segmenter"),
        ("gone.npz", "no such file"),
        ("cells", "expected none, stain, colour"),
    ):
        asked = str(tmp_path / name) if name != "cells" else "cells"
        refused = run("extract", *how, asked, cwd=project.folder)
        assert refused.code == 1 and said in " ".join(refused.err.split()), refused.err
    assert not list(project.cache_folder.glob("pixels*"))
    refused = run("init", "cells", "--into", "new", "--segment", "bad.npz", cwd=tmp_path)
    assert refused.code == 1 and not (tmp_path / "new").exists()
    with pytest.raises(FeatcacheError, match="segment_weights"):
        fc.extract(project, "pixels", views={"segment": "stain", "segment_weights": "w.h5"}, **PIXELS)
    with pytest.raises(ProjectError):
        fc.extract(project, "pixels", views={"segment": "magic"}, **PIXELS)


def test_the_network_of_a_segmenter_may_be_in_a_file(made: Path, project: Any, tmp_path: Path, run: Run) -> None:
    import keras

    weights = tmp_path / "mine.weights.h5"
    keras.utils.set_random_seed(5)
    keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(64, 64, 3)).save_weights(weights)
    fitted = fc.fit_segmenter(
        made / "train/images", made / "train/masks", out=tmp_path / "s.npz", model="mobilenetv2",
        weights=str(weights), input_size_px=64, per_picture=20, passes=3, progress=SILENT,
    )  # fmt: skip
    assert fitted.layer and SegmenterFile.read(tmp_path / "s.npz").weights == "mine.weights.h5"
    with pytest.raises(WeightsError, match=r"fitted segmenter .*segment_weights"):
        fc.extract(project, "pixels", offline=True, **views(tmp_path / "s.npz"), **PIXELS)
    cache = fc.extract(project, "pixels", **views(tmp_path / "s.npz", segment_weights=str(weights)), **PIXELS)
    own = fc.extract(
        project, "mobilenetv2", weights=str(weights), pooling="avg", input_size_px=64, progress=SILENT,
        **views(tmp_path / "s.npz"),
    )  # fmt: skip
    assert own.recipe.space.segmentation == cache.recipe.space.segmentation
    toml = project.folder / "featcache.toml"
    toml.write_text(toml.read_text().replace("[views]", '[views]\nsegment_weights = "../mine.weights.h5"', 1))
    assert run("verify", "--recompute", "2", cache.name, cwd=project.folder).code == 0


def test_counting_adapting_and_serving_cut_new_cells_as_the_run_does(made: Path, project: Any, tmp_path: Path) -> None:
    cache = fc.extract(
        project, "mobilenetv2", weights="random", pooling="avg", input_size_px=32, progress=SILENT,
        **views(made / "one.npz"),
    )  # fmt: skip
    run = fc.fit_head(cache, epochs=3, progress=SILENT)
    (tmp_path / "one.npz").unlink()
    for seed in range(2):
        save(tmp_path / f"smears/{seed}.png", painted(800 + seed, cells=3)[0])
    counted = fc.count([tmp_path / "smears"], run=run, out=tmp_path / "counted", progress=SILENT)
    assert sum(image["cells"] for image in counted.images) > 0
    for seed in range(8):
        save(tmp_path / f"new/{'odd' if seed % 2 else 'even'}/{seed}.png", painted(900 + seed)[0])
    adapted = fc.adapt(run, tmp_path / "new", progress=SILENT)
    assert SegmenterFile.read(adapted.run.folder / "segmenter.npz").digest == CellCut.fitted_of(
        cache.recipe.space.segmentation
    )
    predictor = Predictor.of(run, progress=SILENT)
    rendered = predictor.rendering()(Item("x", pixels=painted(900)[0]))
    known = opened_segmenter(SegmenterFile.read(made / "one.npz"))
    framing = Framing.of(cache.recipe.space)
    expected = plain_view(painted(900)[0], None, size_px=32, framing=framing, segmenter=known).pixels
    np.testing.assert_array_equal(rendered.views[0], expected)


def test_a_study_names_the_file_from_the_current_folder(made: Path, tmp_path: Path, run: Run) -> None:
    shutil.copy(made / "one.npz", tmp_path / "one.npz")
    shutil.copytree(made / "cells", tmp_path / "cells")
    (tmp_path / "study.toml").write_text(
        'title = "cut"\n[dataset]\nsource = "cells"\n[views]\nsegment = "one.npz"\n'
        '[extract]\npooling = "avg"\n[networks.mobilenetv2]\nweights = "random"\ninput_size_px = 32\n'
        "[heads.one]\nepochs = 2\n"
    )
    done = run("run", "study.toml", "--into", "s", cwd=tmp_path)
    assert done.code == 0, done.err
    (recipe,) = tmp_path.rglob("recipe.json")
    assert SegmenterFile.read(made / "one.npz").method in recipe.read_text()
