"""The bit depth of a set is found where no file says it: 12 bits in 16 are as bright as the same cells in 8 bits."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import Run
from numpy.typing import NDArray

import featcache as fc
from featcache.core.errors import DatasetError, ImageError, ProjectError
from featcache.core.progress import SILENT
from featcache.images import ImageFile, white_of
from featcache.images.decode import read_picture
from featcache.synthetic.drawing import CLASSES, render_cell, render_smear

SIDE = 48


def in_bits(pixels: NDArray[np.uint8], bits: int) -> NDArray[np.uint16]:
    """The same picture as a camera of so many bits takes it; read back, each value is the one that it was."""
    return np.rint(pixels.astype(np.float64) * ((1 << bits) - 1) / 255).astype(np.uint16)


def write(path: Path, pixels: NDArray[Any]) -> None:
    """By the name's ending: PNG, PGM (grey) or TIFF. None says how many bits are used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib")
    else:
        cv2.imwrite(str(path), pixels[..., ::-1])


def write_set(folder: Path, bits: int, suffix: str = ".png", first: int = 0) -> Path:
    for label in CLASSES:
        for number in range(first, first + 6):
            cell = cv2.resize(render_cell(label, 0, index=number), (SIDE, SIDE))
            cell[0, 0] = 250  # no set is brighter than what is lit
            write(
                folder / label / f"{number}{suffix}", cell if bits == 8 else in_bits(np.asarray(cell, np.uint8), bits)
            )
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for name, bits, suffix in (("8", 8, ".png"), ("10", 10, ".png"), ("12", 12, ".tif"), ("14", 14, ".png")):
        write_set(folder / name, bits, suffix)
    return folder


def views_of(source: Path, into: Path, **options: Any) -> tuple[fc.Project, Any]:
    project = fc.init(source, into, split_counts=(4, 1, 1), progress=SILENT, **options)
    return project, fc.extract(project, "pixels", input_size_px=32, progress=SILENT)


def by_path(cache: Any) -> dict[str, NDArray[Any]]:
    plain = cache.rows["view"] == 0
    names = [Path(path).with_suffix("").as_posix() for path in cache.rows["path"][plain]]
    return dict(zip(names, cache.features[cache.rows["row"][plain].to_numpy()], strict=True))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_set_of_fewer_bits_than_its_type_is_as_bright_as_it_was(sets: Path, tmp_path: Path, bits: int) -> None:
    project, cache = views_of(sets / str(bits), tmp_path / "wide")
    _, narrow = views_of(sets / "8", tmp_path / "narrow")
    assert project.settings.views.white == (1 << bits) - 1 == cache.recipe.space.white
    assert narrow.recipe.space.white == 0
    assert "white" not in json.loads((narrow.folder / "recipe.json").read_text())["space"]
    found, expected = by_path(cache), by_path(narrow)
    assert found.keys() == expected.keys()
    for name, view in found.items():
        np.testing.assert_array_equal(view, expected[name], err_msg=name)


def test_the_command_says_what_it_took(sets: Path, tmp_path: Path, run: Run) -> None:
    said = run("init", str(sets / "12"), "--into", "a", cwd=tmp_path).out
    assert "24 images seem to use 12 bits, and do not say so" in said
    assert "4,095 is taken for white; set another with --range 65535" in said
    assert "white = 4095" in (tmp_path / "a" / "featcache.toml").read_text()
    assert (
        "65,535 is taken for white"
        in run("init", str(sets / "12"), "--into", "b", "--range", "65535", cwd=tmp_path).out
    )
    refused = run("init", str(sets / "12"), "--into", "c", "--range", "1023", cwd=tmp_path).error
    assert "--range 1023" in refused and "Set --range 4095" in refused
    assert not (tmp_path / "c" / "featcache.toml").exists()
    assert "white" not in run("init", str(sets / "8"), "--into", "d", cwd=tmp_path).out


def test_the_largest_of_the_type_is_named_as_where_nothing_is_said(sets: Path, tmp_path: Path) -> None:
    _, as_it_is = views_of(sets / "12", tmp_path / "a", views={"white": 65_535})
    assert as_it_is.recipe.space.white == 0
    assert max(view.max() for view in by_path(as_it_is).values()) < 20


def test_another_call_may_take_another(sets: Path, tmp_path: Path) -> None:
    project, cache = views_of(sets / "12", tmp_path / "a")
    other = fc.extract(project, "pixels", input_size_px=32, views={"white": 8191}, progress=SILENT)
    assert other.name != cache.name
    with pytest.raises(DatasetError, match=r"above the value of white, 2,000"):
        fc.extract(project, "pixels", input_size_px=32, views={"white": 2000}, progress=SILENT)
    there = {path.name for path in project.cache_folder.iterdir() if not path.name.startswith(".")}
    assert there >= {cache.name, other.name}


def test_a_project_that_was_there_keeps_its_white(sets: Path, tmp_path: Path) -> None:
    project, cache = views_of(sets / "12", tmp_path / "a", views={"white": 0})
    again, same = views_of(sets / "12", tmp_path / "a")
    assert (project.settings.views.white, again.settings.views.white) == (0, 0)
    assert same.name == cache.name


def test_images_that_became_brighter_are_left_out_with_the_reason(sets: Path, tmp_path: Path) -> None:
    source = write_set(tmp_path / "cells", 12)
    project, _ = views_of(source, tmp_path / "a")
    write(source / CLASSES[0] / "0.png", np.full((SIDE, SIDE, 3), 60_000, np.uint16))
    cache = fc.extract(project, "pixels", input_size_px=32, progress=SILENT)
    (left_out,) = cache.extracted.left_out
    assert left_out.path == f"{CLASSES[0]}/0.png"
    assert "its brightest value is 60,000, above the value of white, 4,095" in left_out.reason


def test_a_head_reads_new_images_as_its_own(sets: Path, tmp_path: Path) -> None:
    """By the white of its training set; a labelled set of another laboratory by its own."""
    _, wide = views_of(sets / "12", tmp_path / "a")
    run = fc.fit_head(wide, head="logreg", progress=SILENT)
    said = run.predict([sets / "12", sets / "8"], progress=SILENT)
    assert not said.left_out
    half = len(said.paths) // 2
    np.testing.assert_array_equal(said.probabilities[:half], said.probabilities[half:])
    write(tmp_path / "bright.png", np.full((SIDE, SIDE, 3), 60_000, np.uint16))
    with pytest.raises(DatasetError, match=r"above the value of white, 4,095"):
        run.predict(tmp_path / "bright.png", progress=SILENT)
    _, narrow = views_of(sets / "8", tmp_path / "b")
    other = fc.fit_head(narrow, head="logreg", progress=SILENT)
    of_8, of_14 = (
        fc.evaluate(other, write_set(tmp_path / f"new{bits}", bits, first=20), progress=SILENT).measures
        for bits in (8, 14)
    )
    for name in ("rows", "accuracy", "confusion"):
        assert of_8[name] == of_14[name], name


def test_images_without_a_project_are_read_by_the_brightest_of_them(sets: Path, tmp_path: Path) -> None:
    cache = fc.extract(sets / "12", "pixels", input_size_px=32, to=tmp_path / "caches", progress=SILENT)
    assert cache.recipe.space.white == 4095


def test_mixed_depths_are_remarked(tmp_path: Path, run: Run) -> None:
    """12 bits beside 8 are each read by their own; 12 bits beside 16 cannot be told from dark ones, which is said."""
    source = write_set(tmp_path / "cells", 8)
    write(source / CLASSES[0] / "0.png", in_bits(np.full((SIDE, SIDE, 3), 250, np.uint8), 12))
    said = run("init", "cells", "--into", "a", cwd=tmp_path).out
    assert "1 images seem to use 12 bits, and do not say so; the 23 others say what is white, or have 8 bits" in said
    write(source / CLASSES[0] / "1.png", in_bits(np.full((SIDE, SIDE, 3), 250, np.uint8), 16))
    said = run("init", "cells", "--into", "b", cwd=tmp_path).out
    assert f"{CLASSES[0]}/0.png: no value above 4,095, as of 12 bits, and others of 16 bits reach 64,250" in said
    assert "white = 0" in (tmp_path / "b" / "featcache.toml").read_text()


@pytest.mark.parametrize(
    ("brightest", "white"),
    [
        ((), 0),
        ((0,), 0),
        ((200,), 255),
        ((256,), 1023),
        ((1024, 3), 4095),
        ((4096,), 16_383),
        ((16_384,), 0),
        ((65_535, 9), 0),
    ],
)
def test_white_is_of_the_depth_that_the_brightest_value_needs(brightest: tuple[int, ...], white: int) -> None:
    files = [ImageFile("", brightest=value, full=65_535) for value in brightest]
    assert white_of([*files, ImageFile("", brightest=255, full=255), ImageFile("", problem="damaged")]) == white


# One file


def png(pixels: NDArray[np.uint16]) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1].tobytes())


def test_what_says_its_depth_has_it_whatever_is_asked() -> None:
    grey = np.array([[0, 1000, 2047]], ">u2")
    pgm = b"P5\n3 1\n2047\n" + grey.tobytes()
    np.testing.assert_array_equal(read_picture(pgm, 4095).pixels, read_picture(pgm).pixels)
    narrow = cv2.imencode(".png", np.array([[[10, 20, 30]]], np.uint8))[1].tobytes()
    np.testing.assert_array_equal(read_picture(narrow, 4095).pixels, read_picture(narrow).pixels)


def test_transparency_of_the_whole_type_stays_what_it_was() -> None:
    """Of cameras' 12 bits and an alpha of 16: half of white before white."""
    colour = np.array([[[4095, 2048, 0, 65_535], [4095, 0, 0, 0], [4095, 0, 0, 32_768]]], np.uint16)
    found = read_picture(png(colour), 4095).pixels[0, :, ::-1]
    np.testing.assert_allclose(found, [[255, 128, 0], [255, 255, 255], [255, 127, 127]], atol=1)


def test_values_above_white_are_refused_not_cut() -> None:
    with pytest.raises(ImageError, match=r"brightest value is 4,096, above the value of white, 4,095"):
        read_picture(png(np.array([[[0, 4096, 0]]], np.uint16)), 4095)


def test_white_outside_of_16_bits_is_refused(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="white: Input should be less than or equal to 65535"):
        fc.init(sets / "8", tmp_path / "a", views={"white": 65_536}, progress=SILENT)


# --- cells in smears ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two smears with 8 bits, and with 12 in 16."""
    folder = tmp_path_factory.mktemp("smears")
    for index, labels in enumerate((["monocyte"], ["lymphocyte", "neutrophil"])):
        pixels = render_smear(labels, 7, index=index, width_px=400, height_px=300)[0]
        pixels[0, 0] = 250
        write(folder / "8" / f"{index}.png", pixels)
        write(folder / "12" / f"{index}.png", in_bits(pixels, 12))
    return folder


def masks_of(folder: Path) -> dict[str, NDArray[Any]]:
    return {path.name: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (folder / "masks").iterdir()}


def test_smears_of_12_bits_have_the_cells_of_8(sets: Path, smears: Path, tmp_path: Path, run: Run) -> None:
    narrow = fc.segment(smears / "8", tmp_path / "narrow", progress=SILENT)
    done = run("dataset", "segment", str(smears / "12"), "--out", "wide", cwd=tmp_path)
    assert "2 images seem to use 12 bits" in done.err + done.out
    assert "4,095 is taken for white; set another with --range 65535" in done.err + done.out
    assert json.loads((tmp_path / "wide" / "segment.json").read_text())["white"] == 4095
    assert json.loads((tmp_path / "narrow" / "segment.json").read_text())["white"] == 0
    found, expected = masks_of(tmp_path / "wide"), masks_of(tmp_path / "narrow")
    assert narrow.cells and found.keys() == expected.keys()
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, expected[name], err_msg=name)
    # What is there keeps its white, whatever lies beside it by now; another one is another setting.
    brighter = shutil.copytree(smears / "12", tmp_path / "more")
    fc.segment(brighter, tmp_path / "grown", progress=SILENT)
    write(brighter / "bright.png", np.full((40, 40, 3), 60_000, np.uint16))
    again = fc.segment(brighter, tmp_path / "grown", progress=SILENT)
    assert [one["image"] for one in again.left_out if "above the value of white, 4,095" in one["reason"]] == [
        "bright.png"
    ]
    for white in (65_535, 8191):
        with pytest.raises(ProjectError, match="other settings"):
            fc.segment(brighter, tmp_path / "grown", white=white, progress=SILENT)
    fc.segment(brighter, tmp_path / "grown", white=4095, progress=SILENT)


def test_a_range_that_is_asked_for_counts(smears: Path, tmp_path: Path, run: Run) -> None:
    done = run("dataset", "segment", str(smears / "12"), "--out", "dark", "--range", "65535", cwd=tmp_path)
    assert "seem to use" not in done.err + done.out
    assert json.loads((tmp_path / "dark" / "segment.json").read_text())["white"] == 0
    assert "0 white cells" in done.out
    failed = run("dataset", "segment", str(smears / "12"), "--out", "x", "--range", "70000", cwd=tmp_path)
    assert "70000" in failed.error and not (tmp_path / "x").exists()
    (tmp_path / "dark" / "segment.json").write_text(
        (tmp_path / "dark" / "segment.json").read_text().replace('"white": 0', '"white": "x"')
    )
    with pytest.raises(ProjectError, match="is not of cells that featcache segmented"):
        fc.segment(smears / "12", tmp_path / "dark", progress=SILENT)


def test_a_project_says_what_is_white_in_its_pictures(sets: Path, tmp_path: Path) -> None:
    project = fc.init(sets / "12", tmp_path / "p", split_counts=(4, 1, 1), views={"white": 8191}, progress=SILENT)
    fc.segment(project.folder, tmp_path / "cells", progress=SILENT)
    assert json.loads((tmp_path / "cells" / "segment.json").read_text())["white"] == 8191


def test_a_segmenter_is_fitted_to_12_bits_as_to_8(smears: Path, tmp_path: Path) -> None:
    fc.segment(smears / "8", tmp_path / "cells", progress=SILENT)
    asked: dict[str, Any] = {"model": "pixels", "input_size_px": 32, "job": "smear", "passes": 2, "progress": SILENT}
    files = [
        fc.fit_segmenter(smears / name, tmp_path / "cells" / "masks", out=tmp_path / f"{name}.npz", **asked)
        for name in ("8", "12")
    ]
    assert files[0].pixels == files[1].pixels and files[0].accuracy == files[1].accuracy
    with pytest.raises(DatasetError, match="there is no light in it"):
        fc.fit_segmenter(smears / "12", tmp_path / "cells" / "masks", out=tmp_path / "dark.npz", white=65_535, **asked)
    assert not (tmp_path / "dark.npz").exists()


# --- floating point -------------------------------------------------------------------------------


def floating(pixels: NDArray[Any], **how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", **how)
    return file.getvalue()


CELL = np.asarray(render_cell("monocyte", 0, index=0, size_px=40))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("white", [1, 255, 4095])
def test_floating_point_is_scaled_by_white(dtype: Any, white: int) -> None:
    data = floating((CELL * (white / 255)).astype(dtype))
    found = read_picture(data, white)
    assert np.abs(found.pixels.astype(int) - CELL).max() <= (dtype == np.float16)
    assert found.rules == 2 and found.brightest == math.ceil((CELL * (white / 255)).astype(dtype).max())
    grey = read_picture(floating((CELL[..., 0] / 255).astype(dtype), compression="zlib", predictor=True), 1)
    assert np.abs(grey.pixels[..., 1].astype(int) - CELL[..., 0]).max() <= (dtype == np.float16)


@pytest.mark.parametrize(
    ("pixels", "white", "said"),
    [
        (CELL / 255, 0, "up to 1, and which of them is white is not known"),
        (CELL / 255, 4095, "up to 1, and which of them is white is not known"),
        (CELL * 1.0, 0, "which of them is white is not known"),
        (CELL * 1.0, 1, "its brightest value is .*, above the value of white, 1"),
        (CELL / 255 + 0.9, 1, "its brightest value is 2, above the value of white, 1"),
        (CELL * 1e5, 0, "which of them is white is not known"),
        (CELL - 300.0, 255, "values below 0, down to -"),
        (np.where(CELL > 100, np.nan, 1.0), 1, "no finite numbers"),
        (np.where(CELL > 100, np.inf, 1.0), 1, "no finite numbers"),
    ],
)
def test_floating_point_of_no_certain_range_is_refused(pixels: NDArray[Any], white: int, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        read_picture(floating(pixels.astype(np.float32)), white)


def test_other_kinds_of_floating_point_are_refused() -> None:
    with pytest.raises(ImageError, match="not plain RGB or grey"):
        read_picture(floating(np.dstack([CELL, CELL[..., :1]]).astype(np.float32), extrasamples=["unassalpha"]), 255)
    white_is_zero = io.BytesIO()
    tifffile.imwrite(white_is_zero, CELL[..., 0].astype(np.float32), photometric="miniswhite")
    with pytest.raises(ImageError, match="not plain RGB or grey"):
        read_picture(white_is_zero.getvalue(), 255)
    assert read_picture(floating(CELL.astype(np.float32) * 257), 0).pixels.max() == CELL.max()


def test_the_range_of_a_floating_set_is_found(sets: Path, tmp_path: Path) -> None:
    for path in sorted((sets / "8").rglob("*.png")):
        pixels = cv2.imread(str(path))[..., ::-1]
        file = tmp_path / "floating" / path.parent.name / f"{path.stem}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(floating((pixels / 255).astype(np.float32)))
    project, cache = views_of(tmp_path / "floating", tmp_path / "p")
    assert project.settings.views.white == 1 == cache.recipe.space.white
    assert any("floating-point values, up to 1" in one for one in project.found.remarks)
    _, narrow = views_of(sets / "8", tmp_path / "narrow")
    found, expected = by_path(cache), by_path(narrow)
    for name, view in found.items():
        np.testing.assert_array_equal(view, expected[name], err_msg=name)
    # Beside 12 bits in 16 they would be black: they are left out by name.
    mixed = shutil.copytree(sets / "12", tmp_path / "mixed")
    odd = shutil.copy(next((tmp_path / "floating" / "monocyte").iterdir()), mixed / "monocyte" / "odd.tif")
    both = fc.init(mixed, tmp_path / "both", progress=SILENT)
    assert both.settings.views.white == 4095
    assert any("24 images hold whole numbers up to" in one for one in both.found.remarks)
    left_out = fc.extract(both, "pixels", input_size_px=32, progress=SILENT).extracted.left_out
    assert [one.path for one in left_out] == [f"monocyte/{Path(odd).name}"]
