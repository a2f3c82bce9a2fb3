"""Masks that come with images: read in each form, made rows of, part of every name, and taken by `segment='given'`."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from conftest import Run
from numpy.typing import NDArray
from PIL import Image
from test_fit_segmenter import disc, painted, save

import featcache as fc
from featcache.core.errors import DatasetError, FeatcacheError, ImageError, UsageError
from featcache.core.progress import SILENT
from featcache.core.recipe import digest
from featcache.datasets.csv_files import read_csv
from featcache.images import Box, cut_and_resize, image_id_of
from featcache.segmentation import Framing, plain_view, read_mask

Array = NDArray[Any]
PIXELS: dict[str, Any] = {"input_size_px": 32, "progress": SILENT}


def png(array: Array, mode: str | None = None) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array, mode).save(data, "PNG") if mode is None else Image.fromarray(array).convert(mode).save(
        data, "PNG"
    )
    return data.getvalue()


def tiff(array: Array) -> bytes:
    data = io.BytesIO()
    tifffile.imwrite(data, array)
    return data.getvalue()


def two_cells(dtype: type, first: int, second: int) -> Array:
    """Two squares that touch."""
    mask = np.zeros((40, 60), dtype)
    mask[10:30, 5:25], mask[10:30, 25:45] = first, second
    return mask


def test_of_0_128_and_255_parts_that_do_not_touch_are_cells() -> None:
    mask = np.zeros((50, 90), np.uint8)
    for x in (20, 65):
        disc(mask, (x, 25, 15), 128)
        disc(mask, (x + 3, 24, 7), 255)
    mask[2, 2] = 255  # a slip of the pen
    read = read_mask(png(mask))
    assert not read.is_numbered and read.boxes == (Box(5, 10, 36, 41), Box(50, 10, 81, 41))
    cell = read.cell_in(Box(60, 0, 90, 50))
    assert cell is not None and cell.box == read.boxes[1]
    inside = mask[10:41, 50:81]
    np.testing.assert_array_equal(cell.mask, inside > 0)
    np.testing.assert_array_equal(cell.nucleus, inside == 255)
    assert read.cell_in(Box(0, 0, 4, 4)) is None
    soft = cv2.imencode(".jpg", mask, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    assert len(read_mask(soft).boxes) == 2


@pytest.mark.parametrize("value", [1, 7, 128, 255])
def test_of_two_values_any_is_the_cell(value: int) -> None:
    mask = (two_cells(np.uint8, 1, 1) * value).astype(np.uint8)
    assert read_mask(png(mask)).boxes == (Box(5, 10, 45, 30),)


@pytest.mark.parametrize(
    "data",
    [
        png(two_cells(np.uint8, 1, 2)),
        png(two_cells(np.uint8, 40, 3)),
        png(two_cells(np.uint16, 1, 2)),
        png(two_cells(np.uint16, 300, 70)),
        tiff(two_cells(np.uint16, 1000, 2)),
        tiff(two_cells(np.float32, 1, 2)),
    ],
)
def test_a_number_for_each_cell_parts_cells_that_touch(data: bytes) -> None:
    read = read_mask(data)
    assert read.is_numbered and set(read.boxes) == {Box(5, 10, 25, 30), Box(25, 10, 45, 30)}
    cell = read.cell_in(Box(20, 0, 40, 40))
    assert cell is not None and cell.box == Box(25, 10, 45, 30) and cell.mask.all()


def test_places_in_a_table_of_colours_number_cells_and_greys_do_not() -> None:
    mask = two_cells(np.uint8, 1, 2)
    coloured, grey = Image.fromarray(mask, "P"), Image.fromarray(mask, "P")
    coloured.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    grey.putpalette([0, 0, 0, 255, 255, 255, 255, 255, 255])
    read = []
    for picture in (coloured, grey):
        data = io.BytesIO()
        picture.save(data, "PNG")
        read.append(read_mask(data.getvalue()))
    assert len(read[0].boxes) == 2 and len(read[1].boxes) == 1
    colours = np.dstack([two_cells(np.uint8, 200, 0), two_cells(np.uint8, 0, 90), two_cells(np.uint8, 0, 0)])
    assert len(read_mask(png(colours)).boxes) == 1


def shades() -> Array:
    y, x = np.mgrid[:60, :60]
    return np.clip(255 - 6 * np.hypot(y - 30, x - 30), 0, 255).astype(np.uint8)


def rings() -> Array:
    mask = np.zeros((60, 60), np.uint8)
    disc(mask, (30, 30, 20), 1)
    disc(mask, (30, 30, 9), 2)
    return mask


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(np.zeros((20, 20), np.uint8)), "no cell"),
        (png(np.full((20, 20), 255, np.uint8)), "whole picture"),
        (png(shades()), "other values"),
        (png(np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)), "whole picture|other values"),
        (png(rings()), "cytoplasm and nucleus"),
        (tiff(two_cells(np.float64, 1, 2)), "floating-point pixels"),
        (tiff(two_cells(np.float32, 0.5, 2)), "other numbers than whole ones"),
        (tiff(two_cells(np.int32, -1, 2)), "signed pixels of 32 bits"),
        (b"", "empty|image"),
        (b"GIF89a nothing", "image|damaged"),
        (png(two_cells(np.uint8, 1, 2))[:80], "damaged|image"),
    ],
)
def test_what_is_no_mask_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        read_mask(data)


def test_the_mask_is_a_part_of_an_images_name() -> None:
    assert image_id_of("a" * 64, None) == "a" * 64
    box, mask = Box(1, 2, 3, 4), "b" * 64
    assert image_id_of("a" * 64, box, mask_sha256=mask) == digest(["a" * 64, [1, 2, 3, 4], {"mask": mask}])
    assert len({image_id_of("a" * 64, one, mask_sha256=of) for one in (None, box) for of in ("", mask, "c" * 64)}) == 6


def test_views_show_the_cell_of_the_mask_alone() -> None:
    picture, mask = painted(3)
    framing = Framing(segmentation="given-1:black:0")
    view, remark = plain_view(picture, None, size_px=40, framing=framing, mask=read_mask(png(mask)))
    y, x = np.nonzero(mask)
    height, width = np.ptp(y) + 1, np.ptp(x) + 1
    side = max(height, width)
    left, top = x.min() - (side - width) // 2, y.min() - (side - height) // 2
    black = np.where(mask[..., None] > 0, picture, 0).astype(np.uint8)
    expected = cut_and_resize(black, Box(left, top, left + side, top + side), size_px=40)
    assert not remark
    np.testing.assert_array_equal(view, expected)
    _, remark = plain_view(picture, None, size_px=40, framing=framing)
    assert "no mask" in remark
    with pytest.raises(DatasetError, match="50x90"):
        plain_view(picture, None, size_px=40, framing=framing, mask=read_mask(png(mask[:, :50])))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of two classes in `images`, masks of the same names in `masks`, and `list.csv`."""
    folder = tmp_path_factory.mktemp("given")
    lines = []
    for seed in range(12):
        label = "dark" if seed % 2 else "light"
        picture, mask = painted(400 + seed)
        picture = (picture * (0.7 if seed % 2 else 1)).astype(np.uint8)
        save(folder / f"images/{label}/{seed}.png", picture)
        save(folder / f"masks/{label}/{seed}.png", mask)
        lines.append([f"images/{label}/{seed}.png", label, f"masks/{label}/{seed}.png"])
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "mask"], *lines])
    return folder


def lines_of(project: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((project / "dataset.csv").read_text().splitlines()))


def test_a_folder_of_masks_beside_the_images(cells: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(cells, tmp_path / "d")
    how = ("--masks", "d/masks", "--segment", "given", "--background", "white", "--into", "p")
    done = run("init", "d/images", *how, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    lines = lines_of(tmp_path / "p")
    assert all(line["mask"] == f"masks/{line['path']}" for line in lines), lines[0]
    assert 'masks = "../d/masks"' in (tmp_path / "p/featcache.toml").read_text()
    made = run("extract", "--model", "pixels", "--input-size", "32", "--json", cwd=tmp_path / "p")
    assert made.code == 0, made.err
    cache = fc.open_cache(made.value["path"])
    assert cache.recipe.space.segmentation == "given-1:white:0.1"
    number = int(np.flatnonzero(cache.rows["view"].to_numpy() == 0)[0])
    assert (cache.features[number][[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    checked = fc.verify(cache, recompute=5).recomputed
    assert checked is not None and checked.largest_deviation == 0
    again = run("init", "--json", cwd=tmp_path / "p")
    assert again.code == 0 and lines_of(tmp_path / "p") == lines, again.err
    same = run("extract", "--model", "pixels", "--input-size", "32", "--json", cwd=tmp_path / "p")
    assert (same.value["path"], same.value["computed"]) == (made.value["path"], 0)
    changed = tmp_path / "d/masks" / lines[0]["mask"].removeprefix("masks/")
    mask = cv2.imread(str(changed), -1)
    save(changed, np.where(mask == 255, 128, mask).astype(np.uint8))
    other = run("extract", "--model", "pixels", "--input-size", "32", "--json", cwd=tmp_path / "p")
    views = sum(cache.rows["image_id"] == lines[0]["image_id"])
    assert other.value["path"] != made.value["path"] and other.value["computed"] == views
    changed.write_bytes(b"no picture")
    lost = run("extract", "--model", "pixels", "--input-size", "32", "--json", cwd=tmp_path / "p")
    (left,) = lost.value["left_out"]
    assert left["path"] == lines[0]["path"] and "mask" in left["reason"]
    sheet = run("dataset", "preview", "--json", cwd=tmp_path / "p")
    assert sheet.code in (0, 1) and "Traceback" not in sheet.err


@pytest.mark.parametrize("masks", ["masks", "d/masks"])
@pytest.mark.parametrize("inside", ["images", "."])
def test_masks_beside_images_in_one_folder_are_no_classes(
    cells: Path, tmp_path: Path, run: Run, masks: str, inside: str
) -> None:
    shutil.copytree(cells / "images", tmp_path / "d" / inside)
    shutil.copytree(cells / "masks", tmp_path / "d/masks")
    done = run("init", "d", "--masks", masks, "--into", "p", "--json", cwd=tmp_path)
    assert done.code == 0 and set(done.value["classes"]) == {"dark", "light"} and not done.value["left_out"], done.err
    assert len(lines_of(tmp_path / "p")) == 12
    again = run("init", "--json", cwd=tmp_path / "p")
    assert again.code == 0 and again.value["digest"] == done.value["digest"], again.err


@pytest.mark.parametrize("how", [(), ("--mask-column", "outline")])
def test_a_column_of_masks(cells: Path, tmp_path: Path, run: Run, how: tuple[str, ...]) -> None:
    shutil.copytree(cells, tmp_path / "d")
    path = tmp_path / "d/list.csv"
    if how:
        path.write_text(path.read_text().replace("mask\n", "outline\n").replace("mask\r\n", "outline\r\n"))
    done = run("init", "d/list.csv", *how, "--into", "p", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    lines = lines_of(tmp_path / "p")
    assert len(lines) == 12 and all(line["mask"].startswith("masks/") for line in lines) and "x_min" not in lines[0]
    project = fc.open_project(tmp_path / "p")
    whole = fc.extract(project, "pixels", **PIXELS)
    given = fc.extract(project, "pixels", views={"segment": "given"}, **PIXELS)
    assert whole.name != given.name and set(whole.rows["image_id"]) == set(given.rows["image_id"])
    path.write_text(path.read_text().replace("masks/light/4.png", ""))
    bare = fc.init(path, tmp_path / "b", mask_column=how[1] if how else "mask", progress=SILENT)
    assert len(bare.found.dataset.images) == 12
    some = fc.extract(bare, "pixels", views={"segment": "given"}, **PIXELS)
    assert [(Path(item.path).name, item.reason) for item in some.extracted.left_out] == [("4.png", "it has no mask")]
    assert some.rows["path"].nunique() == 11
    with pytest.raises(FeatcacheError, match="strict"):
        fc.extract(bare, "pixels", views={"segment": "given"}, strict=True, **PIXELS)
    without = run("init", "d/list.csv", "--mask-column", "none", "--into", "q", cwd=tmp_path)
    assert without.code == 0 and "mask" not in lines_of(tmp_path / "q")[0]
    refused = run("extract", "--model", "pixels", "--segment", "given", cwd=tmp_path / "q")
    assert refused.code == 1 and "no image has a mask" in refused.err


def test_masks_of_a_list_may_lie_elsewhere(cells: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(cells / "images", tmp_path / "d/images")
    shutil.copytree(cells / "masks", tmp_path / "m/masks")
    text = (cells / "list.csv").read_text().replace(",masks/", ",../m/masks/")
    (tmp_path / "d/list.csv").write_text(text)
    done = run("init", "d/list.csv", "--into", "p", "--json", cwd=tmp_path)
    assert done.code == 0 and not done.value["left_out"], done.err
    lines = lines_of(tmp_path / "p")
    assert all(line["mask"].startswith("masks/") and line["path"].startswith("images/") for line in lines), lines[0]
    again = run("init", "--json", cwd=tmp_path / "p")
    assert again.code == 0 and again.value["digest"] == done.value["digest"] and lines_of(tmp_path / "p") == lines
    shutil.move(tmp_path / "m", tmp_path / "moved")
    lost = run("extract", "--model", "pixels", "--segment", "given", cwd=tmp_path / "p")
    assert lost.code == 1 and "masks" in lost.err and "Traceback" not in lost.err, lost.err


def test_a_folder_without_the_masks_of_these_images_is_refused(cells: Path, tmp_path: Path, run: Run) -> None:
    save(tmp_path / "m/other.png", painted(1)[1])
    refused = run("init", str(cells / "images"), "--masks", "m", "--into", "p", cwd=tmp_path)
    assert refused.code == 1 and "no image has a mask that can be used: it has no mask" in refused.err, refused.err


@pytest.mark.parametrize("suffix", ["xlsx", "parquet"])
def test_a_column_of_masks_in_a_sheet(cells: Path, tmp_path: Path, run: Run, suffix: str) -> None:
    shutil.copytree(cells, tmp_path / "d")
    frame = pd.read_csv(tmp_path / "d/list.csv").assign(group=[float(number) for number in range(12)])
    write = frame.to_excel if suffix == "xlsx" else frame.to_parquet
    write(tmp_path / f"d/sheet.{suffix}", index=False)
    done = run("init", f"d/sheet.{suffix}", "--into", "p", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    lines = lines_of(tmp_path / "p")
    assert len(lines) == 12 and all(line["mask"] for line in lines) and {line["group"] for line in lines} >= {"0", "11"}
    data = (tmp_path / f"d/sheet.{suffix}").read_bytes()
    random = np.random.default_rng(4)
    changed = [bytearray(data) for _ in range(40)]
    for one in changed:
        one[random.integers(4, len(one))] = random.integers(256)
        (tmp_path / f"d/changed.{suffix}").write_bytes(bytes(one))
        with contextlib.suppress(DatasetError):
            read_csv(tmp_path / f"d/changed.{suffix}")
    for part in (data[:100], data[: len(data) // 2], data[:4] + b"\0" * 500 + data[500:], data[:-4] + b"nope"):
        (tmp_path / f"d/bad.{suffix}").write_bytes(part)
        bad = run("init", f"d/bad.{suffix}", "--into", "q", cwd=tmp_path)
        assert bad.code in (0, 1) and "Traceback" not in bad.err and (bad.code == 0 or f"bad.{suffix}" in bad.err)
        shutil.rmtree(tmp_path / "q", ignore_errors=True)


def test_the_same_picture_with_two_masks_is_one_image(cells: Path, tmp_path: Path) -> None:
    shutil.copytree(cells, tmp_path / "d")
    shutil.copy(tmp_path / "d/images/dark/1.png", tmp_path / "d/images/dark/twin.png")
    save(tmp_path / "d/masks/dark/twin.png", (painted(401)[1] > 0).astype(np.uint8))
    found = fc.init(tmp_path / "d/images", tmp_path / "p", masks=str(tmp_path / "d/masks"), progress=SILENT).found
    assert len(found.dataset.images) == 12
    assert [(Path(item.path).name, item.reason) for item in found.left_out] == [
        ("twin.png", "it has the same bytes as dark/1.png")
    ]


def test_boxes_stay_and_say_which_cell(tmp_path: Path) -> None:
    lines = [["path", "label", "x_min", "y_min", "x_max", "y_max", "mask"]]
    for seed in range(8):
        picture, mask = painted(700 + seed, cells=2)
        save(tmp_path / f"images/{seed}.png", picture)
        save(tmp_path / f"masks/{seed}.png", mask)
        lines += [
            [f"images/{seed}.png", label, left, 5, left + 80, 85, f"masks/{seed}.png"]
            for label, left in (("one", 5), ("other", 95))
        ]
    lines.append(["images/0.png", "one", 0, 0, 3, 3, "masks/0.png"])
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    project = fc.init(tmp_path / "list.csv", tmp_path / "p", progress=SILENT)
    assert len(project.found.dataset.images) == 16
    assert [item.reason for item in project.found.left_out] == ["its mask, 0.png: it shows no cell in the box"]
    cache = fc.extract(project, "pixels", views={"segment": "given", "background": "black", "cell_margin": 0}, **PIXELS)
    for number in np.flatnonzero(cache.rows["view"].to_numpy() == 0):
        line = cache.rows.iloc[number]
        seed, left = Path(line["path"]).stem, 0 if line["label"] == "one" else 90
        picture, mask = (cv2.imread(str(tmp_path / of / f"{seed}.png"), -1)[:, left : left + 90] for of in
                         ("images", "masks"))  # fmt: skip
        framing = Framing.of(cache.recipe.space)
        rgb = np.ascontiguousarray(picture[..., ::-1])
        expected, _ = plain_view(rgb, None, size_px=32, framing=framing, mask=read_mask(png(mask)))
        assert np.abs(cache.features[number].astype(int) - expected).mean() < 3


def test_masks_that_cannot_be_used_are_left_out_with_the_reason(cells: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(cells, tmp_path / "d")
    for seed in range(20, 32):
        label = "dark" if seed % 2 else "light"
        save(tmp_path / f"d/images/{label}/{seed}.png", painted(seed)[0])
        save(tmp_path / f"d/masks/{label}/{seed}.png", painted(seed)[1])
    mask = painted(0)[1]
    save(tmp_path / "d/masks/dark/21.png", mask[:40])
    save(tmp_path / "d/masks/light/22.png", mask * 0)
    (tmp_path / "d/masks/dark/23.png").unlink()
    (tmp_path / "d/masks/light/24.png").write_bytes(b"\x89PNG broken")
    save(tmp_path / "d/masks/dark/25.png", shades())
    save(tmp_path / "d/masks/light/26.png", np.full((90, 90), 255, np.uint8))
    several = np.zeros((90, 90), np.uint8)
    several[10:30, 10:30] = several[50:80, 50:80] = 255
    save(tmp_path / "d/masks/dark/27.png", several)
    expected = {"21": "90x40", "22": "no cell", "23": "no mask", "24": "image", "25": "other values", "26": "whole",
                "27": "which has the label"}  # fmt: skip
    done = run("init", "d/images", "--masks", "d/masks", "--into", "p", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    reasons = {Path(item["path"]).stem: item["reason"] for item in done.value["left_out"]}
    assert set(reasons) == set(expected)
    for name, said in expected.items():
        assert said in reasons[name], reasons[name]
    with (tmp_path / "d/list.csv").open("a", newline="") as file:
        lines = [[f"images/{n}.png", n.partition("/")[0], f"masks/{n}.png"] for n in ("dark/21", "light/22", "dark/23")]
        csv.writer(file).writerows(lines)
    listed = run("init", "d/list.csv", "--into", "q", "--json", cwd=tmp_path)
    assert listed.code == 0, listed.err
    reasons = {Path(item["path"]).stem: item["reason"] for item in listed.value["left_out"]}
    assert set(reasons) == {"21", "22", "23"} and "no such file" in reasons["23"]


def test_a_mask_with_numbers_gives_a_row_for_each_cell(tmp_path: Path, run: Run) -> None:
    lines = [["path", "label", "mask"]]
    for seed in range(10):
        label = "dark" if seed % 2 else "light"
        picture, mask = painted(500 + seed, cells=3)
        numbers = np.zeros(mask.shape, np.uint16)
        for cell in range(3):
            numbers[:, cell * 90 : (cell + 1) * 90] = (mask[:, cell * 90 : (cell + 1) * 90] > 0) * (cell + 1)
        save(tmp_path / f"images/{seed}.png", (picture * (0.7 if seed % 2 else 1)).astype(np.uint8))
        save(tmp_path / f"numbers/{seed}.png", numbers)
        lines.append([f"images/{seed}.png", label, f"numbers/{seed}.png"])
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    done = run("init", "list.csv", "--into", "p", "--json", cwd=tmp_path)
    assert done.code == 0 and any("several cells a mask" in remark for remark in done.value["remarks"]), done
    listed = lines_of(tmp_path / "p")
    assert len(listed) == 30 and len({line["image_id"] for line in listed}) == 30
    assert len({(line["path"], line["split"]) for line in listed}) == 10  # cells of one image stay together
    project = fc.open_project(tmp_path / "p")
    cache = fc.extract(project, "pixels", views={"segment": "given", "background": "black"}, **PIXELS)
    plain = cache.features[np.flatnonzero(cache.rows["view"].to_numpy() == 0)]
    assert len(plain) == 30 and (plain[:, 0, 0] == 0).all() and (plain[:, 16, 16].max(axis=1) > 40).all()


def test_heads_of_given_cells_are_given_masks_or_say_so(cells: Path, tmp_path: Path) -> None:
    project = fc.init(cells / "list.csv", tmp_path / "p", views={"segment": "given", "background": "black"})
    cache = fc.extract(project, "mobilenetv2", weights="random", pooling="avg", input_size_px=32, progress=SILENT)
    run = fc.fit_head(cache, epochs=3, progress=SILENT)
    of_cache, of_project = run.predict(cache), run.predict(project, progress=SILENT)
    places = [of_cache.paths.index(path) for path in of_project.paths]
    np.testing.assert_allclose(of_project.probabilities, of_cache.probabilities[places], atol=1e-5)
    with pytest.raises(FeatcacheError, match="no mask came with it"):
        run.predict(cells / "images", progress=SILENT)
    for seed in range(4):
        picture, mask = painted(600 + seed)
        save(tmp_path / f"new/images/{'dark' if seed % 2 else 'light'}/{seed}.png", picture)
        save(tmp_path / f"new/masks/{seed}.png", mask)
    judged = fc.evaluate(run, tmp_path / "new/images", masks=str(tmp_path / "new/masks"), progress=SILENT)
    assert judged.measures["rows"] == 4
    with pytest.raises(UsageError, match="masks that come with images"):
        fc.count([tmp_path / "new/images"], run=run, out=tmp_path / "c", progress=SILENT)
    with pytest.raises(FeatcacheError, match="of a project"):
        fc.FeatureExtractor("pixels", input_size_px=16, segment="given").fit()
