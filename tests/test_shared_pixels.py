"""Images that show the same pixels: found whatever was done to one of them, and joined into one group."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import Run

import featcache as fc
from featcache.core.errors import DatasetError
from featcache.core.progress import SILENT
from featcache.core.project import ImageFolders
from featcache.datasets.shared_pixels import SharedPixels, find_shared_pixels
from featcache.synthetic.drawing import render_smear, write_cells

FIELD_PX = 300


def smear(index: int, width_px: int = FIELD_PX, height_px: int = FIELD_PX) -> np.ndarray:
    picture, _ = render_smear(["neutrophil", "monocyte"], 5, index=index, width_px=width_px, height_px=height_px)
    return cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)


def put(folder: Path, **pictures: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        assert cv2.imwrite(str(folder / f"{name}.png"), picture)


def found_in(folder: Path) -> tuple[SharedPixels, ...]:
    return find_shared_pixels(ImageFolders(folder), sorted(path.name for path in folder.iterdir()))


@pytest.fixture(scope="module")
def fields() -> list[np.ndarray]:
    return [smear(index) for index in range(8)]


def turned(picture: np.ndarray, degrees: float) -> np.ndarray:
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REFLECT)


CHANGES = {
    "compressed": lambda p: cv2.imdecode(cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR),
    "smaller": lambda p: cv2.resize(p, (200, 200), interpolation=cv2.INTER_AREA),
    "brighter": lambda p: cv2.convertScaleAbs(p, alpha=0.8, beta=40),
    "mirrored": lambda p: cv2.flip(p, 1),
    "upside down": lambda p: cv2.flip(p, 0),
    "quarter turn": lambda p: cv2.rotate(p, cv2.ROTATE_90_CLOCKWISE),
    "turned": lambda p: turned(p, 33),
    "cut": lambda p: p[40:, 25:],
    "gray": lambda p: cv2.cvtColor(p, cv2.COLOR_BGR2GRAY),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_among_others(change: str, fields: list[np.ndarray], tmp_path: Path) -> None:
    put(tmp_path, copy=CHANGES[change](fields[3]), **{f"f{number}": field for number, field in enumerate(fields)})
    (pair,) = found_in(tmp_path)
    assert (pair.a, pair.b) == ("copy.png", "f3.png")
    assert pair.share > 0.7
    assert pair.correlation > 0.75


def test_a_mirrored_copy_lies_where_it_does(fields: list[np.ndarray], tmp_path: Path) -> None:
    put(tmp_path, a=cv2.flip(fields[0], 1), b=fields[0])
    (pair,) = found_in(tmp_path)
    assert pair.is_near_duplicate
    np.testing.assert_allclose(pair.corners, [(1, 0), (0, 0), (0, 1), (1, 1)], atol=0.02)


@pytest.mark.parametrize(("right", "down"), [(150, 0), (0, 180), (100, 120), (40, -60)])
def test_fields_that_overlap_are_found_and_laid_where_they_do(right: int, down: int, tmp_path: Path) -> None:
    wide = smear(20, 700, 700)
    top, left = 200, 150
    first = wide[top : top + FIELD_PX, left : left + FIELD_PX]
    second = wide[top + down : top + down + FIELD_PX, left + right : left + right + FIELD_PX]
    put(tmp_path, a=first, b=second, **{f"f{number}": smear(number) for number in range(3)})
    (pair,) = found_in(tmp_path)
    assert (pair.a, pair.b) == ("a.png", "b.png")
    expected = (FIELD_PX - right) * (FIELD_PX - abs(down)) / FIELD_PX**2
    assert pair.share == pytest.approx(expected, abs=0.03)
    np.testing.assert_allclose(pair.corners[0], (-right / FIELD_PX, -down / FIELD_PX), atol=0.02)
    assert not pair.is_near_duplicate


def test_independent_cells_and_odd_images_make_no_pair(tmp_path: Path) -> None:
    write_cells(tmp_path / "cells", 15, seed=4, size_px=96)
    cells = {path.stem: cv2.imread(str(path)) for path in sorted((tmp_path / "cells").rglob("*.png"))}
    folder = tmp_path / "all"
    flat = {f"flat{value}": np.full((90, 90, 3), value, np.uint8) for value in (0, 200, 255)}
    noise = {f"noise{n}": np.random.default_rng(n).integers(0, 256, (90, 90, 3), np.uint8) for n in range(2)}
    put(folder, **cells, **flat, **noise, dot=np.zeros((1, 1, 3), np.uint8), line=np.zeros((1, 500, 3), np.uint8))
    (folder / "broken.png").write_bytes(b"\x89PNG")
    assert found_in(folder) == ()
    assert find_shared_pixels(ImageFolders(folder), []) == ()


def test_dark_round_cells_on_a_plain_ground_make_no_pair(tmp_path: Path) -> None:
    """They are alike but for their outlines and what is in their nuclei."""
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    for number in range(24):
        rng = np.random.default_rng(number)
        rough = cv2.resize(rng.normal(0, 35, (14, 14)).astype(np.float32), (200, 200), interpolation=cv2.INTER_CUBIC)
        waves = sum(rng.normal(0, 3 / n) * np.cos(n * angles + rng.uniform(0, 6)) for n in range(2, 6))
        outline = np.stack([100 + (50 + waves) * np.cos(angles), 100 + (50 + waves) * np.sin(angles)], axis=1)
        cell = cv2.fillPoly(np.zeros((200, 200), np.float32), [np.rint(outline).astype(np.int32)], 1)
        soft = cv2.GaussianBlur(cell, (0, 0), 3)
        gray = 235 + rng.normal(0, 1, cell.shape) - soft * (130 + rough)
        put(tmp_path, **{f"c{number}": np.clip(gray, 0, 255).astype(np.uint8)})
    assert found_in(tmp_path) == ()


def test_a_scale_bar_on_every_image_makes_no_pair(fields: list[np.ndarray], tmp_path: Path) -> None:
    for field in (marked := [field.copy() for field in fields]):
        cv2.putText(field, "20 um", (200, 270), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2)
        cv2.rectangle(field, (200, 280), (280, 286), (0, 0, 0), -1)
    put(tmp_path, **{f"f{number}": field for number, field in enumerate(marked)})
    assert found_in(tmp_path) == ()


def test_the_same_pairs_each_time(fields: list[np.ndarray], tmp_path: Path) -> None:
    put(tmp_path, a=fields[0], b=turned(fields[0], 12), c=fields[1], d=fields[1][30:], e=fields[2])
    assert found_in(tmp_path) == found_in(tmp_path)
    assert [(pair.a, pair.b) for pair in found_in(tmp_path)] in (
        [("a.png", "b.png"), ("c.png", "d.png")],
        [("c.png", "d.png"), ("a.png", "b.png")],
    )


@pytest.fixture
def project(fields: list[np.ndarray], tmp_path: Path) -> fc.Project:
    """Two classes in three splits; a part of a training field is tested on, a validation field is trained on."""
    splits = {"train": (0, 1), "val": (2, 3), "test": (4, 5)}
    for split, numbers in splits.items():
        for label, number in zip(("light", "dark"), numbers, strict=True):
            put(tmp_path / "images" / split / label, **{f"f{number}": fields[number]})
    put(tmp_path / "images" / "train" / "light", g0=fields[6])
    put(tmp_path / "images" / "test" / "light", copy0=fields[0][20:])
    put(tmp_path / "images" / "train" / "dark", copy3=cv2.flip(fields[3], 1), third=fields[7])
    put(tmp_path / "images" / "train" / "light", copy3b=fields[6][:, 10:])
    return fc.init(tmp_path / "images", tmp_path, progress=SILENT)


def test_pairs_of_two_sides_are_joined(project: fc.Project) -> None:
    done = fc.check_dataset(project, progress=SILENT)
    names = [(Path(pair.a).stem, Path(pair.b).stem) for pair in done.pairs]
    assert {frozenset(pair) for pair in names} == {
        frozenset(pair) for pair in (("copy0", "f0"), ("copy3", "f3"), ("copy3b", "g0"))
    }
    assert {Path(pair.a).stem for pair in done.across} == {"copy0", "copy3"}
    assert done.drawn == project.folder / "shared-pixels.png"
    assert cv2.imread(str(done.drawn)).shape[1] > 600
    before = pd.read_csv(project.dataset_file).set_index("path")

    with pytest.raises(DatasetError, match=r"the groups were not joined, since then .* 'val' has no images of dark"):
        fc.check_dataset(project, fix=True, progress=SILENT)  # its only dark image would be trained on
    pd.testing.assert_frame_equal(pd.read_csv(project.dataset_file).set_index("path"), before)


def test_fix_moves_as_little_as_it_can(project: fc.Project, fields: list[np.ndarray]) -> None:
    put(project.images_folder / "val" / "dark", more=smear(40))
    project = fc.init(project.images_folder, project.folder, progress=SILENT)
    before = pd.read_csv(project.dataset_file).set_index("path")
    done = fc.check_dataset(project, fix=True, progress=SILENT)
    after = pd.read_csv(project.dataset_file).set_index("path")
    assert (done.joined, done.moved) == (3, 2)
    assert set(after.index) == set(before.index)
    group = {Path(path).stem: group for path, group in after["group"].items()}
    split = {Path(path).stem: split for path, split in after["split"].items()}
    for a, b in (("copy0", "f0"), ("copy3", "f3"), ("copy3b", "g0")):
        assert (group[a], split[a]) == (group[b], split[b])
    others = [path for path in before.index if Path(path).stem in ("f1", "f2", "f4", "f5", "more", "third")]
    pd.testing.assert_frame_equal(after.loc[others], before.loc[others])
    again = fc.check_dataset(project, fix=True, progress=SILENT)
    assert (again.pairs, again.joined, again.moved, again.drawn) == ((), 0, 0, None)
    again = fc.init(project.images_folder, project.folder, progress=SILENT)
    kept = pd.read_csv(again.dataset_file).set_index("path")
    assert kept["group"].to_dict() == after["group"].to_dict()


def test_the_command(project: fc.Project, run: Run) -> None:
    (project.images_folder / "test" / "light" / "f4.png").write_bytes(b"broken")
    shown = run("dataset", "check", cwd=project.folder)
    assert shown.code == 0
    assert "3 pairs of images show the same pixels" in shown.out
    assert "on two sides of a split" in shown.out and "next: featcache dataset check --fix" in shown.out
    value = run("dataset", "check", "--json", "--out", "pairs.png", cwd=project.folder).value
    assert [set(pair) for pair in value["pairs"]] == [{"a", "b", "share", "correlation", "across"}] * 3
    assert sum(pair["across"] for pair in value["pairs"]) == 2
    assert (project.folder / "pairs.png").is_file()
    assert run("dataset", "check", "--no-compare", "--json", cwd=project.folder).value["pairs"] == []
    refused = run("dataset", "check", "--fix", "--out", "no/folder/p.png", cwd=project.folder)
    assert "cannot be written" in refused.error


def test_init_says_so_of_large_fields(run: Run, tmp_path: Path) -> None:
    wide = [smear(index, 620, 440) for index in range(8)]
    lines = ["path,label,split"]
    for number, field in enumerate(wide):
        put(tmp_path, **{f"f{number}": field[:, :420]})
        lines.append(f"f{number}.png,{('light', 'dark')[number % 2]},{('train', 'val', 'test', 'train')[number // 2]}")
    put(tmp_path, again=wide[0][:, 200:])
    lines.append("again.png,light,test")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    made = run("init", "list.csv", "--into", "p", "--json", cwd=tmp_path)
    said = [remark for remark in made.value["remarks"] if "same pixels" in remark]
    assert said == [
        "again.png and f0.png show the same pixels, in two splits: 'featcache dataset check --project p --fix' joins "
        "such images into one group"
    ]
