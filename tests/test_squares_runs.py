"""How images become square, from init to predict: one recipe all the way, and what contradicts it is said."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Run as RunCommand
from PIL import Image

import featcache as fc
from featcache.core.errors import DatasetError, ProjectError, UsageError
from featcache.core.progress import SILENT, Silent
from featcache.core.project import Project, find_project, read_settings
from featcache.extraction import Rendering, preview
from featcache.extraction._explain import differences
from featcache.images import Item
from featcache.images.identity import Box
from featcache.images.squares import cut_and_resize
from featcache.segmentation import Framing

PX = 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures that are not square, and a list of boxes in them, of which one touches the border."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(1)
    lines = ["path,label,x_min,y_min,x_max,y_max"]
    for label, level in (("dark", 60), ("bright", 190)):
        for number in range(8):
            pixels = np.clip(random.normal(level, 40, (40 + 3 * number, 60, 3)), 0, 255).astype(np.uint8)
            name = f"{label}/{number}.png"
            (folder / label).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
            lines.append(f"{name},{label},{0 if number == 0 else 12},10,40,30")
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    return folder


def made(pictures: Path, into: Path, source: str = "", **settings: Any) -> Project:
    return fc.init(pictures / source, into, split_counts=(6, 1, 1), progress=SILENT, **settings)


HOW = {
    "padded": {"resize": "pad", "padding": "edge", "interpolation": "bicubic"},
    "cropped": {"resize": "crop", "crop_share": 0.8, "interpolation": "lanczos"},
    "plain crop": {"resize": "crop"},
}


@pytest.mark.parametrize("how", HOW.values(), ids=list(HOW))
def test_prediction_gets_the_pixels_of_the_cache(pictures: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    project = made(pictures, tmp_path, views={"train": 2})
    cache = fc.extract(project, "pixels", input_size_px=PX, views=how, progress=SILENT)
    space = cache.recipe.space
    assert space.resize == how["resize"]
    run = fc.fit_head(cache, epochs=2, hidden=(4,), progress=SILENT)
    rendering = Rendering(PX, Framing.of(fc.open_cache(cache.folder).recipe.space), cache.recipe.augmentation)
    named = pd.read_csv(run.folder / "predictions.csv").query("view == 0").set_index("image_id")
    images = cache.dataset.set_index("image_id")
    plain = cache.views.query("view == 0")
    paths = [str(project.images_folder / images.at[image_id, "path"]) for image_id in plain["image_id"]]
    for path, row in zip(paths, plain["row"], strict=True):
        pixels = np.asarray(Image.open(path))
        (view,) = rendering(Item(path, pixels=pixels)).views
        np.testing.assert_array_equal(view, cache.features[[row]][0])
        expected = cut_and_resize(
            pixels,
            None,
            size_px=PX,
            resize=space.resize,
            interpolation=space.interpolation,
            resize_px=space.resize_px,
            padding=space.padding,
        )
        np.testing.assert_array_equal(view, expected)
    predicted = run.predict(paths, progress=SILENT)
    columns = [f"p_{label}" for label in predicted.classes]
    np.testing.assert_allclose(
        predicted.probabilities, named.loc[list(plain["image_id"]), columns].to_numpy(), atol=1e-5
    )
    checked = fc.verify(cache, recompute=5, project=project, progress=SILENT)
    assert checked.sound
    assert not checked.recomputed.deviating  # type: ignore[union-attr]


def test_workers_make_the_same_squares(pictures: Path, tmp_path: Path) -> None:
    project = made(pictures, tmp_path, "boxes.csv", margin=0.25)
    way: dict[str, Any] = {"input_size_px": PX, "views": {**HOW["padded"], "train": 2}, "progress": SILENT}
    cache = fc.extract(project, "pixels", cluster="local:1", **way)
    expected = np.array(cache.features[:])
    shutil.rmtree(cache.folder)
    again = fc.extract(project, "pixels", **way)
    assert again.name == cache.name
    np.testing.assert_array_equal(again.features[:], expected)


def test_a_margin_is_in_the_recipe_and_not_in_the_boxes(pictures: Path, tmp_path: Path) -> None:
    project = made(pictures, tmp_path, "boxes.csv", margin=0.25)
    assert project.settings.views.margin == 0.25
    assert project.settings.dataset.margin == 0
    cache = fc.extract(project, "pixels", input_size_px=PX, views={"resize": "stretch"}, progress=SILENT)
    assert cache.recipe.to_dict()["space"]["margin"] == 0.25
    for image in project.found.dataset.images:
        pixels = np.asarray(Image.open(project.images_folder / image.path))
        (row,) = cache.views.query("image_id == @image.image_id and view == 0")["row"]
        expected = cut_and_resize(pixels, image.box, size_px=PX, margin=0.25)
        np.testing.assert_array_equal(cache.features[[row]][0], expected)
    assert any(image.box == Box(0, 10, 40, 30) for image in project.found.dataset.images)
    bare = fc.extract(project, "pixels", input_size_px=PX, views={"resize": "stretch", "margin": 0}, progress=SILENT)
    assert bare.name != cache.name
    assert set(bare.rows["image_id"]) == set(cache.rows["image_id"])
    run = fc.fit_head(cache, epochs=1, hidden=(4,), progress=SILENT)
    with pytest.raises(UsageError, match=r"the run leaves a margin of 0.25 around boxes itself: leave out `margin`"):
        fc.evaluate(run, pictures / "boxes.csv", margin=0.1, progress=SILENT)


def test_a_margin_around_nothing_is_refused(pictures: Path, tmp_path: Path) -> None:
    project = made(pictures, tmp_path)
    with pytest.raises(DatasetError, match=r"no image has a box: there is nothing to leave a `margin` of 0.25 around"):
        fc.extract(project, "pixels", input_size_px=PX, views={"margin": 0.25}, progress=SILENT)
    assert not list(project.cache_folder.glob("pixels-*"))
    for margin in (-0.1, 3.0, float("nan")):
        with pytest.raises(ProjectError, match="margin"):
            fc.extract(project, "pixels", input_size_px=PX, views={"margin": margin}, progress=SILENT)


def test_images_without_a_box_get_no_margin(pictures: Path, tmp_path: Path) -> None:
    lines = (pictures / "boxes.csv").read_text().splitlines()
    bare = [line if number % 8 else ",".join(line.split(",")[:2]) + ",,,," for number, line in enumerate(lines[1:])]
    (pictures / "some.csv").write_text("\n".join([lines[0], *bare]) + "\n")
    project = made(pictures, tmp_path, "some.csv", margin=0.25)
    notes: list[str] = []

    class Noting(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    cache = fc.extract(project, "pixels", input_size_px=PX, progress=Noting())
    assert "2 of 16 images have no box, and get no margin" in notes
    (image,) = [image for image in project.found.dataset.images if image.box is None][:1]
    pixels = np.asarray(Image.open(project.images_folder / image.path))
    (row,) = cache.views.query("image_id == @image.image_id and view == 0")["row"]
    np.testing.assert_array_equal(cache.features[[row]][0], cut_and_resize(pixels, None, size_px=PX, resize="pad"))


def test_boxes_that_were_enlarged_when_they_were_read_stay(pictures: Path, tmp_path: Path) -> None:
    """featcache.toml of a project that an earlier featcache made."""
    project = made(pictures, tmp_path, "boxes.csv")
    file = tmp_path / "featcache.toml"
    file.write_text(file.read_text().replace("margin = 0.0", "margin = 0.1", 1))
    assert find_project(tmp_path).settings.dataset.margin == 0.1
    for call in (
        lambda: fc.init(into=tmp_path, margin=0.25, progress=SILENT),
        lambda: fc.extract(find_project(tmp_path), "pixels", views={"margin": 0.25}, progress=SILENT),
    ):
        with pytest.raises(ProjectError, match="come on top"):
            call()
    assert project.settings.views.margin == 0


def test_new_projects_keep_shapes_and_old_ones_stay(pictures: Path, tmp_path: Path) -> None:
    project = made(pictures, tmp_path / "new")
    assert (project.settings.views.resize, project.settings.views.as_trained) == ("pad", True)
    kept = fc.extract(project, "pixels", input_size_px=PX, progress=SILENT)
    assert kept.recipe.space.resize == "pad"
    old = tmp_path / "old"
    old.mkdir()
    text = (tmp_path / "new" / "featcache.toml").read_text()
    names = ("as_trained", "interpolation", "crop_share", "padding", "resize = ")
    (old / "featcache.toml").write_text("\n".join(line for line in text.splitlines() if not line.startswith(names)))
    settings = read_settings(old / "featcache.toml")
    assert (settings.views.resize, settings.views.as_trained) == ("stretch", False)
    said = made(pictures, tmp_path / "said", views={"resize": "crop"})
    assert (said.settings.views.resize, said.settings.views.as_trained) == ("crop", False)
    both = made(pictures, tmp_path / "both", views={"resize": "crop", "as_trained": True})
    assert (both.settings.views.resize, both.settings.views.as_trained) == ("crop", True)
    again = fc.init(into=tmp_path / "both", views={"resize": "stretch", "as_trained": True}, progress=SILENT)
    assert again.found.remarks == ()
    remark, *_ = fc.init(into=tmp_path / "both", progress=SILENT).found.remarks
    assert remark == "16 of 16 images are not square and are stretched: `resize='pad'` keeps their shape"


def test_squares_keep_the_names_that_they_had(tmp_path: Path) -> None:
    project = fc.init(into=tmp_path, per_class=3, progress=SILENT)
    assert (project.settings.views.resize, project.settings.views.as_trained) == ("stretch", True)
    cache = fc.extract(project, "pixels", input_size_px=PX, progress=SILENT)
    assert not {"resize", "interpolation", "resize_px", "padding", "margin"} & set(cache.recipe.to_dict()["space"])


def test_explain_and_info_say_how(pictures: Path, tmp_path: Path, run: RunCommand) -> None:
    project = made(pictures, tmp_path)
    cropped = fc.extract(project, "pixels", input_size_px=PX, views=HOW["cropped"], progress=SILENT)
    stretched = fc.extract(project, "pixels", input_size_px=PX, views={"resize": "stretch"}, progress=SILENT)
    found = {item.field: (item.ours, item.theirs) for item in differences(cropped.recipe, stretched.recipe)}
    assert found == {
        "space.resize": ("crop", "stretch"),
        "space.interpolation": ("lanczos", "area-bicubic"),
        "space.resize_px": (20, 0),
    }
    assert {item.field for item in differences(stretched.recipe, cropped.recipe)} == set(found)
    shown = run("info", cropped.name, cwd=tmp_path).out
    assert "16 px, crop of 20 px, lanczos, preprocessing none" in " ".join(shown.split())
    (explained,) = fc.explain(project, "pixels", input_size_px=PX, views=HOW["cropped"], progress=SILENT)
    assert (explained.name, explained.state) == (cropped.name, "hit")
    assert explained.neighbours[0].name == stretched.name
    way = ("--resize", "crop", "--crop-share", "0.8", "--interpolation", "lanczos")
    ran = run("extract", "--model", "pixels", "--input-size", str(PX), *way, cwd=tmp_path)
    assert cropped.name in ran.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--resize", "crop", "--padding", "white"), "--padding is for --resize pad, not for --resize crop"),
        (("--resize", "pad", "--crop-share", "0.5"), "--crop-share is for --resize crop, not for --resize pad"),
        (("--resize", "pad", "--padding", "blurple"), "'blurple' is no colour"),
        (("--interpolation", "nearest"), "'nearest' is not one of"),
        (("--crop-share", "0"), "0.0 is not in the range"),
        (("--margin", "-1"), "-1.0 is not in the range"),
        (("--margin", "0.2"), "no image has a box: there is nothing to leave a --margin of 0.2 around"),
        (("--mean", "0.5,0.5,0.5"), "pixels: --mean: pixels pass through no network"),
    ],
)
def test_what_makes_no_sense_is_one_message(
    pictures: Path, tmp_path: Path, run: RunCommand, flags: tuple[str, ...], said: str
) -> None:
    made(pictures, tmp_path)
    ran = run("extract", "--model", "pixels", *flags, cwd=tmp_path)
    assert ran.code in (1, 2)
    assert said in " ".join(ran.err.split()), ran.err
    assert "Traceback" not in ran.err


def test_the_preview_shows_the_input(pictures: Path, tmp_path: Path, run: RunCommand) -> None:
    project = made(pictures, tmp_path, views={"resize": "stretch"})
    sheets = [np.asarray(Image.open(preview(project, n_views=1, per_class=1)))]
    for flags in (("--resize", "pad", "--padding", "white"), ("--model", "pixels", "--resize", "crop")):
        assert run("dataset", "preview", "--views", "1", "--images", "1", *flags, cwd=tmp_path).code == 0
        sheets.append(np.asarray(Image.open(tmp_path / "contact-sheet.png")))
    assert all(sheet.shape == sheets[0].shape for sheet in sheets)
    assert not any(np.array_equal(one, other) for one, other in pairwise(sheets))
    refused = run("dataset", "preview", "--input-size", "32", cwd=tmp_path)
    assert refused.code == 2
    assert "--weights and --input-size are for --model" in refused.err


def test_the_extractor_keeps_shapes() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (2, 20, 40, 3), dtype=np.uint8)
    found = fc.FeatureExtractor("pixels", input_size_px=PX).transform(wide).reshape(2, PX, PX, 3)
    for pixels, view in zip(wide, found, strict=True):
        np.testing.assert_array_equal(view, cut_and_resize(pixels, None, size_px=PX, resize="pad"))
    how = {"resize": "crop", "crop_share": 0.8, "interpolation": "bicubic"}
    found = fc.FeatureExtractor("pixels", input_size_px=PX, **how).transform(wide).reshape(2, PX, PX, 3)
    expected = cut_and_resize(wide[0], None, size_px=PX, resize="crop", interpolation="bicubic", resize_px=20)
    np.testing.assert_array_equal(found[0], expected)
    with pytest.raises(ProjectError, match="`padding` is for"):
        fc.FeatureExtractor("pixels", resize="crop", padding="white").transform(wide)
