"""Views at one magnification: the physical size of a pixel is found, said or refused, and cells keep their size."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import Run
from numpy.typing import NDArray
from PIL import Image

import featcache as fc
from featcache.core.errors import ArgumentsError, DatasetError, ProjectError, UsageError
from featcache.core.progress import SILENT
from featcache.core.project import ViewsSection, changed_views
from featcache.counting.fields import Judging, _item
from featcache.counting.known import Crops
from featcache.counting.options import CountOptions
from featcache.images import Box, PixelSize, image_id_of, room_of_window, window
from featcache.images.decode import read_picture
from featcache.images.physical import of_czi
from featcache.prediction import Predictor
from featcache.segmentation import Framing, SegmentOptions, plain_view, segment_picture
from featcache.synthetic.drawing import render_cell, render_smear, write_cells

GREY = np.arange(12 * 10, dtype=np.uint8).reshape(10, 12)
PX = 24


def tif(pixels: NDArray[Any] = GREY, **how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **how)
    return file.getvalue()


def ome(x: Any = None, y: Any = None, unit: str | None = None, pixels: NDArray[Any] = GREY) -> bytes:
    said = {"PhysicalSizeX": x, "PhysicalSizeY": x if y is None else y}
    units = {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    given = {name: value for name, value in {**said, **units}.items() if value is not None}
    return tif(pixels, ome=True, photometric="rgb" if pixels.ndim == 3 else "minisblack", metadata=given)


def size_in(data: bytes) -> PixelSize:
    return read_picture(data).size


# --- what files say -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "um"),
    [
        (0.25, "µm", 0.25),
        (0.25, None, 0.25),
        (250, "nm", 0.25),
        (0.00025, "mm", 0.25),
        (2500, "Å", 0.25),
        (0.25, "\u03bcm", 0.25),
        (1e-5, "in", 0.254),
    ],
)
def test_ome_says_it_in_many_units(value: float, unit: str | None, um: float) -> None:
    assert size_in(ome(value, unit=unit)) == PixelSize(pytest.approx(um), "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (ome(), "does not say how large"),
        (ome(1, unit="pixel"), "'pixel', which is no length"),
        (ome(1, unit="reference frame"), "no length"),
        (ome(0), "0 µm wide, which cannot be"),
        (ome(-0.5), "-0.5 µm wide, which cannot be"),
        (ome(float("nan")), "which cannot be"),
        (ome(float("inf")), "which cannot be"),
        (ome(3, unit="m"), "3e+06 µm wide, which cannot be"),
        (ome("abc"), "'abc' µm wide, which cannot be"),
        (ome(0.25, y=0.5), "not square: 0.25 µm by 0.5 µm"),
        (ome(0.25).replace(b'SizeX="12"', b'SizeX="99"'), "a picture of 99x10 px"),
        (ome(0.25).replace(b"</Pixels>", b"<//ixels>"), "cannot be read"),
    ],
)
def test_what_ome_cannot_mean_is_said(data: bytes, said: str) -> None:
    found = size_in(data)
    assert found.um == 0 and said in found.problem


def test_resolution_is_a_size_where_it_is_no_print() -> None:
    cm, inch = "CENTIMETER", "INCH"
    assert size_in(tif(resolution=(40_000, 40_000), resolutionunit=cm)).um == pytest.approx(0.25)
    assert size_in(tif(resolution=(101_600, 101_600), resolutionunit=inch)).um == pytest.approx(0.25)
    for dpi in (1, 72, 96, 300, 600, 1200):
        assert size_in(tif(resolution=(dpi, dpi), resolutionunit=inch)).um == 0
    assert size_in(tif(resolution=(40_000, 40_000), resolutionunit="NONE")).um == 0
    assert "not square" in size_in(tif(resolution=(40_000, 20_000), resolutionunit=cm)).problem
    assert "cannot be" in size_in(tif(resolution=(4e9, 4e9), resolutionunit=cm)).problem
    assert size_in(tif()).um == size_in(tif(resolution=(0, 0), resolutionunit=cm)).um == 0


def test_imagej_has_units_of_its_own() -> None:
    for unit, per_unit in (("micron", 4), ("um", 4), ("\\u00B5m", 4), ("nm", 0.004), ("mm", 4000)):
        data = tif(imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit})
        assert size_in(data).um == pytest.approx(0.25), unit
    for unit in ("pixel", "", "light years"):
        assert size_in(tif(imagej=True, resolution=(4, 4), metadata={"unit": unit})).um == 0


def test_other_files_do_not_say_it() -> None:
    for kind, more in (("PNG", {"dpi": (300, 300)}), ("JPEG", {"dpi": (72, 72)}), ("BMP", {})):
        file = io.BytesIO()
        Image.fromarray(GREY).save(file, kind, **more)
        assert size_in(file.getvalue()) == PixelSize(0.0, "the file does not say how large its pixels are")


@pytest.mark.parametrize(
    ("text", "um", "said"),
    [
        ("<A><Scaling><Items><Distance Id='X'><Value>2.5E-07</Value></Distance>"
         "<Distance Id='Y'><Value>2.5E-07</Value></Distance></Items></Scaling></A>", 0.25, ""),
        ("<A><Scaling><Distance Id='X'><Value>2.5E-07</Value></Distance></Scaling></A>", 0, "does not say"),
        ("<A><Scaling><Distance Id='X'><Value>x</Value></Distance></Scaling></A>", 0, "in numbers"),
        ("<A/>", 0, "does not say"),
        ("<A", 0, "does not say"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><Scaling>&b;</Scaling>", 0, "does not say"),
    ],
)  # fmt: skip
def test_metadata_of_czi_are_in_metres(text: str, um: float, said: str) -> None:
    found = of_czi(text)
    assert found.um == pytest.approx(um) and said in found.problem


# --- the window -----------------------------------------------------------------------------------


def noise(high: int, wide: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (high, wide, 3), np.uint8)


FILTERS = {"area": Image.Resampling.BOX, "bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}


@pytest.mark.parametrize("filter_", FILTERS)
@pytest.mark.parametrize(("times", "scale"), [(1 / 2, 2.0), (1 / 4, 4.0), (1, 1.0), (2, 0.5)])
def test_a_window_is_cut_out_of_the_whole_image_resized(filter_: str, times: float, scale: float) -> None:
    pixels = noise(160, 208)
    whole = Image.fromarray(pixels).resize((round(208 * times), round(160 * times)), FILTERS[filter_])
    for box, (x, y) in ((None, (104, 80)), (Box(60, 60, 100, 84), (80, 72))):
        left, top = round(x * times) - 6, round(y * times) - 6
        expected = np.asarray(whole)[top : top + 12, left : left + 12]
        found = window(pixels, box, size_px=12, scale=scale, interpolation=filter_)
        np.testing.assert_array_equal(found, expected)


def test_the_default_averages_to_shrink_and_curves_to_grow() -> None:
    pixels = noise(64, 64)
    for scale, filter_ in ((3.0, "area"), (1.0, "bicubic"), (0.3, "bicubic")):
        np.testing.assert_array_equal(
            window(pixels, None, size_px=16, scale=scale),
            window(pixels, None, size_px=16, scale=scale, interpolation=filter_),
        )


def test_beyond_the_image_is_padding() -> None:
    pixels = np.full((20, 30, 3), 200, np.uint8)
    found = window(pixels, None, size_px=50, scale=1.0, padding="#0a1428", interpolation="area")
    assert (found[15:35, 10:40] == 200).all()
    outside = np.ones((50, 50), bool)
    outside[15:35, 10:40] = False
    assert (found[outside] == (10, 20, 40)).all()
    assert (window(pixels, None, size_px=50, scale=1.0, padding="edge") == 200).all()
    corner = window(noise(40, 40), Box(0, 0, 4, 4), size_px=16, scale=1.0, interpolation="area")
    np.testing.assert_array_equal(corner[6:, 6:], noise(40, 40)[:10, :10])
    assert (corner[:6] == 0).all() and (corner[:, :6] == 0).all()


def test_absurd_magnifications_and_boxes_are_refused() -> None:
    for scale in (1e-9, 0.1, 5e4, 1e300, float("nan"), -1.0):
        with pytest.raises(DatasetError, match="px wide in the image"):
            window(noise(20, 20), None, size_px=16, scale=scale)
    with pytest.raises(DatasetError, match="reaches out"):
        window(noise(20, 20), Box(0, 0, 21, 5), size_px=16, scale=1.0)
    with pytest.raises(DatasetError, match="padding 'mean'"):
        window(noise(20, 20), None, size_px=64, scale=1.0, padding="mean")
    with pytest.raises(DatasetError, match="interpolation 'sinc'"):
        window(noise(20, 20), None, size_px=16, scale=1.0, interpolation="sinc")


def disc(side: int, radius: float) -> NDArray[np.uint8]:
    y, x = np.mgrid[:side, :side] + 0.5
    inside = (x - side / 2) ** 2 + (y - side / 2) ** 2 < radius**2
    return np.repeat(np.where(inside, 40, 220).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("segmentation", ["none", "stain-1:keep:0.1", "stain-1:white:0.5"])
def test_a_cell_keeps_its_size_whatever_the_camera(segmentation: str) -> None:
    framing = Framing(um_per_px=0.25, segmentation=segmentation)
    cell = render_cell("lymphocyte", 0, index=0, size_px=96)
    large = cv2.resize(cell, (192, 192), interpolation=cv2.INTER_CUBIC)
    views = [
        plain_view(pixels, None, size_px=64, framing=framing, size=PixelSize(um)).pixels.astype(float)
        for pixels, um in ((cell, 0.25), (large, 0.125))
    ]
    assert np.abs(views[0] - views[1]).mean() < (3 if segmentation == "none" else 12)
    for um, area in ((0.25, 400), (0.5, 1600), (0.1, 64)):  # a disc of a radius of 20 px
        view = plain_view(disc(120, 20), None, size_px=200, framing=Framing(um_per_px=0.25), size=PixelSize(um)).pixels
        seen = (view[..., 0] > 20) & (view[..., 0] < 130)
        assert seen.sum() == pytest.approx(np.pi * area, rel=0.06)


def test_an_image_of_unknown_size_has_no_such_view() -> None:
    with pytest.raises(DatasetError, match=r"an array does not say .* views have pixels of 0.25 µm"):
        plain_view(noise(9, 9), None, size_px=4, framing=Framing(um_per_px=0.25))


def test_a_cell_at_the_border_or_larger_than_its_window_is_in_the_middle() -> None:
    cell = render_cell("neutrophil", 0, index=1, size_px=96)
    part = np.ascontiguousarray(cell[:, 30:])
    for um in (0.02, 0.25, 1.0):  # much less than the cell, about as much, and far more
        framing = Framing(um_per_px=um, segmentation="stain-1:white:0.1")
        view, remark = plain_view(part, None, size_px=48, framing=framing, size=PixelSize(0.25))
        assert view.shape == (48, 48, 3) and not remark
        middle = view[20:28, 20:28].astype(float).mean()
        assert middle < 215


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ({"um_per_px": -1}, "greater than or equal to 0"),
        ({"um_per_px": 1e-6}, "expected 0, or 0.0001 to 1000"),
        ({"um_per_px": 1001}, "less than or equal to 1000"),
        ({"um_per_px": float("nan")}, "um_per_px"),
        ({"um_per_px": 0.5, "margin": 0.2}, "`margin` and `um_per_px` exclude each other"),
        ({"um_per_px": 0.5, "resize": "pad"}, "`resize` and `um_per_px` exclude each other"),
    ],
)
def test_what_contradicts_a_magnification_is_said(views: dict[str, Any], said: str) -> None:
    with pytest.raises((ProjectError, ArgumentsError), match=said):
        changed_views(ViewsSection(), views)


def test_another_way_to_make_a_square_takes_the_place_of_a_magnification() -> None:
    at_one = changed_views(ViewsSection(), {"um_per_px": 0.5, "padding": "white"})
    assert Framing.asked(at_one, 32) == Framing("crop", padding="#ffffff", um_per_px=0.5)
    assert changed_views(at_one, {"resize": "pad"}).um_per_px == 0
    cropped = ViewsSection(resize="crop", crop_share=0.5)
    assert Framing.asked(changed_views(cropped, {"um_per_px": 0.5}), 32) == Framing("crop", um_per_px=0.5)


def test_a_size_that_a_person_says_is_in_the_name_of_the_image() -> None:
    assert image_id_of("a" * 64, None, um_per_px=0.0) == "a" * 64
    names = {image_id_of("a" * 64, None, um_per_px=um) for um in (0.0, 0.25, 0.5, 1)}
    assert len(names) == 4 and image_id_of("a" * 64, None, um_per_px=1) in names


# --- sets of images -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cells by two cameras: pixels of 0.1 µm in a/, of 0.2 µm in b/; in c/ as PNG, which says nothing."""
    folder = tmp_path_factory.mktemp("sizes")
    write_cells(folder / "c", 6, seed=3, size_px=96)
    for path in sorted((folder / "c").rglob("*.png")):
        pixels = cv2.imread(str(path))[..., ::-1]
        small = cv2.resize(pixels, (48, 48), interpolation=cv2.INTER_AREA)
        for name, um, of in (("a", 0.1, pixels), ("b", 0.2, small)):
            there = folder / name / path.parent.name / f"{path.stem}.tif"
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(ome(um, pixels=np.ascontiguousarray(of)))
    return folder


def made(source: Path, into: Path, **settings: Any) -> fc.Project:
    return fc.init(source, into, split_counts=(4, 1, 1), progress=SILENT, **settings)


def by_name(cache: Any) -> dict[str, NDArray[Any]]:
    plain = cache.rows["view"] == 0
    names = [Path(path).stem for path in cache.rows["path"][plain]]
    return dict(zip(names, cache.features[cache.rows["row"][plain].to_numpy()].astype(float), strict=True))


AT_ONE = {"input_size_px": PX, "views": {"um_per_px": 0.4}, "progress": SILENT}


def test_two_cameras_give_the_same_views(sets: Path, tmp_path: Path, run: Run) -> None:
    projects = {name: made(sets / name, tmp_path / name) for name in "ab"}
    assert any("pixels are 0.1 µm wide, as is known of 24 of 24" in one for one in projects["a"].found.remarks)
    at_one = {name: fc.extract(project, "pixels", **AT_ONE) for name, project in projects.items()}
    as_ever = {
        name: fc.extract(project, "pixels", input_size_px=PX, progress=SILENT) for name, project in projects.items()
    }
    assert "um_per_px" not in json.loads((as_ever["a"].folder / "recipe.json").read_text())["space"]
    assert at_one["a"].recipe.space.um_per_px == 0.4 and "a window of 9.6 µm" in at_one["a"].recipe.space.square
    a, b = by_name(at_one["a"]), by_name(at_one["b"])
    assert max(np.abs(a[name] - b[name]).mean() for name in a) < 2
    picture = read_picture(next((sets / "a").rglob("*.tif")).read_bytes()).pixels
    name = next((sets / "a").rglob("*.tif")).stem
    np.testing.assert_array_equal(a[name], window(picture, None, size_px=PX, scale=4.0))
    checked = run("verify", at_one["a"].name, "--recompute", "8", cwd=projects["a"].folder)
    assert checked.code == 0, checked.err
    # Another one is another cache; in percent of itself it is not the view of a cell that fills the square.
    other = fc.extract(projects["a"], "pixels", input_size_px=PX, views={"um_per_px": 0.2}, progress=SILENT)
    assert other.name != at_one["a"].name


def test_images_of_unknown_size_are_left_out_by_name(sets: Path, tmp_path: Path, run: Run) -> None:
    mixed = shutil.copytree(sets / "a", tmp_path / "mixed")
    for path in sorted((sets / "c" / "monocyte").glob("*.png"))[:2]:
        pixels = cv2.imread(str(path))
        cv2.imwrite(str(mixed / "monocyte" / f"x{path.name}"), pixels)
    project = fc.init(mixed, tmp_path / "p", progress=SILENT)
    assert any("known of 24 of 26 images" in one for one in project.found.remarks), project.found.remarks
    done = run("extract", "--model", "pixels", "--input-size", "24", "--um-per-px", "0.4", "--json", cwd=project.folder)
    left_out = done.value["left_out"] if isinstance(done.value, dict) else done.value[0]["left_out"]
    assert [one["reason"] for one in left_out] == ["the file does not say how large its pixels are"] * 2
    assert "featcache init --um-per-px NUMBER" in done.err
    refused = run(
        *("extract", "--model", "pixels", "--input-size", "20", "--um-per-px", "0.4", "--strict"), cwd=project.folder
    )
    assert "does not say how large its pixels are" in refused.error
    bare = made(sets / "c", tmp_path / "bare")
    refused = run("extract", "--model", "pixels", "--um-per-px", "0.4", cwd=bare.folder)
    assert "and so of all images" in refused.error and "featcache init --um-per-px NUMBER" in refused.error
    assert not list(bare.cache_folder.glob("pixels-*"))


def lines_of(project: fc.Project) -> list[dict[str, str]]:
    with project.dataset_file.open() as file:
        return list(csv.DictReader(file))


def test_a_person_says_it_of_a_whole_set(sets: Path, tmp_path: Path, run: Run) -> None:
    plain = made(sets / "c", tmp_path / "p")
    assert "um_per_px" not in lines_of(plain)[0]
    ids = {line["path"]: (line["image_id"], line["split"]) for line in lines_of(plain)}
    said = run("init", str(sets / "c"), "--um-per-px", "0.1", "--into", str(plain.folder), cwd=tmp_path)
    assert said.code == 0 and "pixels are 0.1 µm wide, as is known of 24 of 24 images" in said.out
    project = fc.open_project(plain.folder)
    assert project.settings.dataset.um_per_px == 0.1 and project.settings.views.um_per_px == 0
    lines = lines_of(project)
    assert {line["um_per_px"] for line in lines} == {"0.1"}
    assert all(line["image_id"] != ids[line["path"]][0] and line["split"] == ids[line["path"]][1] for line in lines)
    cache = fc.extract(project, "pixels", **AT_ONE)
    a = by_name(fc.extract(made(sets / "a", tmp_path / "a"), "pixels", **AT_ONE))
    found = by_name(cache)
    assert all((found[name] == a[name]).all() for name in a)
    # What was edited stays, whatever is said of the others.
    text = project.dataset_file.read_text().replace(",0.1\n", ",0.3\n", 1)
    project.dataset_file.write_text(text)
    again = made(sets / "c", plain.folder, um_per_px=0.2)
    assert sorted(line["um_per_px"] for line in lines_of(again)) == ["0.2"] * 23 + ["0.3"]
    both = made(sets / "a", tmp_path / "both", um_per_px=0.2)
    assert any("the file says that they are 0.1 µm wide; what was asked for counts" in r for r in both.found.remarks)


@pytest.mark.parametrize("cell", ["0", "-1", "x", "0,25", "1e9", "nan", "inf", "1e-9"])
def test_a_list_with_a_wrong_size_is_refused_by_its_line(sets: Path, tmp_path: Path, cell: str) -> None:
    lines = ["path,label,um_per_px", *(f"{path},{path.parent.name},0.1" for path in (sets / "c").rglob("*.png"))]
    lines[3] = lines[3].removesuffix("0.1") + f'"{cell}"'
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DatasetError, match=r"line 4: um_per_px .*: expected the side of a pixel, 0.0001 to 1000 µm"):
        made(tmp_path / "list.csv", tmp_path / "p")


def test_a_list_says_it_of_each_image(sets: Path, tmp_path: Path) -> None:
    paths = sorted((sets / "c").rglob("*.png"))
    rows = [f"{path},{path.parent.name},{'' if number == 0 else 0.1}" for number, path in enumerate(paths)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,um per px", *rows]) + "\n")
    project = fc.init(tmp_path / "list.csv", tmp_path / "p", progress=SILENT)
    assert sorted(line["um_per_px"] for line in lines_of(project)) == [""] + ["0.1"] * 23
    cache = fc.extract(project, "pixels", **AT_ONE)
    assert len(set(cache.rows["path"])) == 23
    project.dataset_file.write_text(project.dataset_file.read_text().replace(",0.1\n", ",zero\n", 1))
    with pytest.raises(DatasetError, match=r"line \d+: um_per_px 'zero'"):
        fc.extract(project, "pixels", **AT_ONE)


def test_files_without_a_project_say_it_themselves(sets: Path, tmp_path: Path) -> None:
    cache = fc.extract(sets / "b", "pixels", to=tmp_path / "cache", **AT_ONE)
    assert len(cache.rows) == 24
    with pytest.raises(DatasetError, match=r"image 0: an array does not say how large its pixels are"):
        fc.extract([noise(40, 40)], "pixels", to=tmp_path / "other", **AT_ONE)


def test_a_transformer_shows_files_at_one_magnification(sets: Path) -> None:
    made_of = fc.FeatureExtractor("pixels", input_size_px=PX, um_per_px=0.4)
    file = next((sets / "a").rglob("*.tif"))
    expected = window(read_picture(file.read_bytes()).pixels, None, size_px=PX, scale=4.0)
    np.testing.assert_array_equal(made_of.fit_transform([file]).reshape(PX, PX, 3), expected)
    with pytest.raises(DatasetError, match=r"image 0: an array does not say how large its pixels are"):
        made_of.transform(noise(40, 40))
    with pytest.raises(ArgumentsError, match="exclude each other"):
        fc.FeatureExtractor("pixels", um_per_px=0.4, resize="pad").fit()


# --- what follows from a run ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def head(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> fc.Run:
    project = made(sets / "a", tmp_path_factory.mktemp("head"))
    return fc.fit_head(fc.extract(project, "pixels", **AT_ONE), head="logreg", progress=SILENT)


def test_new_images_are_shown_as_the_run_saw_its_own(sets: Path, head: fc.Run, tmp_path: Path, run: Run) -> None:
    at_a, at_b = (fc.predict(head, sets / name, progress=SILENT) for name in "ab")
    assert len(at_a) == len(at_b) == 24
    assert np.abs(at_a.probabilities - at_b.probabilities).mean() < 0.1
    given = fc.predict(head, sets / "c", um_per_px=0.1, progress=SILENT)
    np.testing.assert_array_equal(given.probabilities, at_a.probabilities)
    two = [next((sets / "a").rglob("*.tif")), next((sets / "c").rglob("*.png"))]
    some = fc.predict(head, two, progress=SILENT)
    assert len(some) == 1 and some.left_out == (
        (str(two[1]), "the file does not say how large its pixels are, and views have pixels of 0.4 µm"),
    )
    refused = run("predict", str(head.folder), str(sets / "c"), cwd=tmp_path)
    assert "Say how wide a pixel is with --um-per-px NUMBER" in refused.error
    refused = run("predict", str(head.folder), str(sets / "c"), "--um-per-px", "0", cwd=tmp_path)
    assert refused.code == 2 and "--um-per-px" in refused.error
    done = run("predict", str(head.folder), str(sets / "c"), "--um-per-px", "0.1", "--json", cwd=tmp_path)
    assert len(done.value["rows"]) == 24
    heat = fc.attribution(head, two[1], um_per_px=0.1, progress=SILENT)
    assert heat.places.shape == (1, PX, PX)


def test_a_run_that_does_not_look_at_sizes_takes_none(sets: Path, head: fc.Run, tmp_path: Path) -> None:
    project = made(sets / "a", tmp_path)
    cache = fc.extract(project, "pixels", input_size_px=PX, progress=SILENT)
    plain = fc.fit_head(cache, head="logreg", progress=SILENT)
    with pytest.raises(UsageError, match="whatever their physical size"):
        fc.predict(plain, sets / "c", um_per_px=0.1, progress=SILENT)
    with pytest.raises(UsageError, match="whatever their physical size"):
        fc.count(sets / "c", plain, um_per_px=0.1, progress=SILENT)
    with pytest.raises(UsageError, match="is a cache, whose rows are used as they are"):
        fc.predict(plain, cache, um_per_px=0.1, progress=SILENT)
    for um in (0.0, -1.0, 1e6, float("nan")):
        with pytest.raises(UsageError, match="expected the side of a pixel"):
            fc.predict(head, sets / "c", um_per_px=um, progress=SILENT)


def test_another_laboratory_is_judged_at_the_same_magnification(sets: Path, head: fc.Run, tmp_path: Path) -> None:
    other = shutil.copytree(sets / "b", tmp_path / "b")
    judged = fc.evaluate(head, other, progress=SILENT)
    assert judged.measures["rows"] == 24
    said = fc.evaluate(head, sets / "c", um_per_px=0.1, progress=SILENT)
    assert said.measures["rows"] == 24
    with pytest.raises(DatasetError, match=r"no image can be used: .* does not say how large its pixels are"):
        fc.evaluate(head, sets / "c", progress=SILENT)


def test_cells_of_a_smear_are_shown_with_what_is_around_them(head: fc.Run, tmp_path: Path) -> None:
    smear = render_smear(["monocyte", "lymphocyte"], 7, index=0, width_px=400, height_px=300)[0]
    (tmp_path / "smears").mkdir()
    (tmp_path / "smears" / "known.tif").write_bytes(ome(0.1, pixels=smear))
    assert cv2.imwrite(str(tmp_path / "smears" / "unknown.png"), smear[..., ::-1])
    done = fc.count(tmp_path / "smears", head, out=tmp_path / "out", progress=SILENT)
    assert [one["image"] for one in done.left_out if "how large its pixels are" in one["reason"]] == ["unknown.png"]
    assert {cell["image"] for cell in done.cells} == {"known.tif"}
    both = fc.count(tmp_path / "smears", head, out=tmp_path / "both", um_per_px=0.1, progress=SILENT)
    assert len(both.cells) == 2 * len(done.cells)
    with pytest.raises(ProjectError, match="other settings"):
        fc.count(tmp_path / "smears", head, out=tmp_path / "both", um_per_px=0.2, progress=SILENT)
    with pytest.raises(DatasetError, match=r"no picture can be read: .*with `um_per_px=NUMBER`"):
        fc.count(tmp_path / "smears" / "unknown.png", head, progress=SILENT)
    # A cell that is cut out for the network gives the view that the whole picture gives.
    framing, size = Framing(um_per_px=0.4), PixelSize(0.1)
    judging = Judging(CountOptions(), Crops(0.1, True, True), 0.0, None, 0.05, 1, PX, framing)
    cells = segment_picture(smear, SegmentOptions(), job="smear").cells
    assert cells
    for cell in cells:
        item = _item("x", smear, cell, size=size, room_px=room_of_window(PX, 4.0), judging=judging)
        assert item.pixels is not None and item.pixels.size < smear.size
        found = plain_view(item.pixels, item.box, size_px=PX, framing=framing, size=PixelSize(item.um_per_px)).pixels
        expected = plain_view(smear, cell.box, size_px=PX, framing=framing, size=size).pixels
        np.testing.assert_array_equal(found, expected)


def test_a_service_takes_the_size_from_the_file_or_the_request(sets: Path, head: fc.Run, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="starlette is not installed: pip install 'featcache[serve]'")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'featcache[serve]'")
    from starlette.exceptions import HTTPException

    from featcache.serving.app import Limits, _Service

    def service_of(run: fc.Run) -> _Service:
        limits = Limits(max_bytes=1 << 20, read_s=1.0, waiting=1)
        return _Service(Predictor.of(run, progress=SILENT), limits, confidence=None, false_alarms=0.05)

    service = service_of(head)
    named = next((sets / "a").rglob("*.tif"))
    bare = sets / "c" / named.parent.name / f"{named.stem}.png"
    expected = window(read_picture(named.read_bytes()).pixels, None, size_px=PX, scale=4.0)
    for path, said in ((named, ""), (bare, "0.1")):
        um = service._um_per_px(said)
        np.testing.assert_array_equal(service._rendered("x", path.read_bytes(), um), expected)
    with pytest.raises(HTTPException) as refused:
        service._rendered("x", bare.read_bytes(), 0.0)
    assert refused.value.status_code == 400 and "how large its pixels are" in refused.value.detail
    project = made(sets / "a", tmp_path)
    cache = fc.extract(project, "pixels", input_size_px=8, progress=SILENT)
    plain = service_of(fc.fit_head(cache, head="logreg", progress=SILENT))
    for of, said in ((service, "0"), (service, "x"), (service, "nan"), (service, "1e9"), (plain, "0.1")):
        with pytest.raises(HTTPException) as refused:
            of._um_per_px(said)
        assert refused.value.status_code == 400 and refused.value.detail.startswith("um_per_px")
    assert service._um_per_px("") == plain._um_per_px("") == 0.0
