"""dataset segment: what it writes, how it continues, and what it leaves out."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run
from numpy.typing import NDArray

import featcache as fc
from featcache.core.errors import DatasetError, ProjectError, UsageError
from featcache.core.progress import SILENT, Silent
from featcache.synthetic.drawing import render_cell, render_smear, write_cells


def save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels)


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four smears with 1, 2, 1 and 0 white cells, the last of them blank."""
    folder = tmp_path_factory.mktemp("smears")
    for index, labels in enumerate((["monocyte"], ["lymphocyte", "neutrophil"], ["eosinophil"])):
        save(folder / f"s{index}.png", render_smear(labels, 7, index=index, width_px=400, height_px=300)[0])
    save(folder / "s3.png", np.full((300, 400, 3), 210, np.uint8))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_masks_tables_crops_and_overlays_agree(smears: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "cells"
    value = run("dataset", "segment", str(smears), "--out", str(out), "--json", cwd=tmp_path).value
    assert value["images"] == 4 and value["job"] == "smear" and value["folder"] == str(out)
    cells = rows(out / "cells.csv")
    assert [cell["image"] for cell in cells] == ["s0.png", "s1.png", "s1.png", "s2.png"]
    assert list(cells[0])[:6] == ["image", "x_min", "y_min", "x_max", "y_max", "score"]
    assert [{key: str(one[key]) for key in ("image", "x_min", "score")} for one in value["cells"]] == [
        {key: cell[key] for key in ("image", "x_min", "score")} for cell in cells
    ]
    for name in ("s0", "s1", "s2", "s3"):
        mask = cv2.imread(str(out / f"masks/{name}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (300, 400) and mask.dtype == np.uint8
        assert set(np.unique(mask)) == ({0} if name == "s3" else {0, 128, 255})
        of = [cell for cell in cells if cell["image"] == f"{name}.png"]
        outside = mask.copy()
        for cell in of:
            left, top, right, bottom = (int(cell[side]) for side in ("x_min", "y_min", "x_max", "y_max"))
            part = mask[top:bottom, left:right]
            assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
            assert (part > 0).sum() == int(cell["cell_px"]) and (part == 255).sum() == int(cell["nucleus_px"])
            outside[top:bottom, left:right] = 0
            crop = cv2.imread(str(out / cell["crop"]))
            room = round(0.1 * max(part.shape))
            original = cv2.imread(str(smears / cell["image"]))
            x, y = max(left - room, 0), max(top - room, 0)
            assert np.array_equal(crop, original[y : bottom + room, x : right + room])
        assert not outside.any()
        assert cv2.imread(str(out / f"overlays/{name}.jpg")).shape == (300, 400, 3)
    left_out = rows(out / "left_out.csv")
    assert ("s3.png", "blank: nearly one colour") in {(row["image"], row["reason"]) for row in left_out}
    assert len(value["left_out"]) == len(left_out)
    crops = rows(out / "crops.csv")
    assert [(row["path"], row["group"]) for row in crops] == [(cell["crop"], cell["image"]) for cell in cells]


def test_of_class_folders_a_project_is_made_whose_groups_are_the_originals(tmp_path: Path, run: Run) -> None:
    write_cells(tmp_path / "leukocytes", 4, seed=5, size_px=120)
    shown = run("dataset", "segment", "leukocytes", "--out", "cut", "--background", "black", cwd=tmp_path)
    assert shown.code == 0 and "16 white cells in 16 pictures of one cell each" in shown.out
    project = fc.init(tmp_path / "cut/crops.csv", tmp_path / "p", split_counts=(2, 1, 1), progress=SILENT)
    assert {label: sum(of.values()) for label, of in project.found.dataset.counts().items()} == dict.fromkeys(
        ("eosinophil", "lymphocyte", "monocyte", "neutrophil"), 4
    )
    assert {image.group for image in project.found.dataset.images} == {
        path.relative_to(tmp_path / "leukocytes").as_posix() for path in (tmp_path / "leukocytes").rglob("*.png")
    }
    one = cv2.imread(str(tmp_path / "cut" / rows(tmp_path / "cut/crops.csv")[0]["path"]))
    assert (one[0, 0] == 0).all()


class _Interrupted(Silent):
    """Asks to stop after a number of steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def begin(self, what: str, total: int) -> Any:
        @contextmanager
        def counting() -> Iterator[Any]:
            def advance(steps: int) -> None:
                self.after -= steps

            yield advance

        return counting()

    @contextmanager
    def stopping(self) -> Iterator[Any]:
        yield lambda: self.after <= 0


def test_an_interrupted_call_continues_and_ends_like_one_that_was_not(smears: Path, tmp_path: Path) -> None:
    folder, whole, parted = tmp_path / "in", tmp_path / "whole", tmp_path / "parted"
    for number in range(10):
        shutil.copytree(smears, folder / str(number))
    done = fc.segment(folder, whole, progress=SILENT)
    with pytest.raises(KeyboardInterrupt):
        fc.segment(folder, parted, progress=_Interrupted(1))
    assert not (parted / "cells.csv").exists()
    records = [json.loads(path.read_text()) for path in (parted / ".pictures").glob("*.json")]
    before = {parted / name: (parted / name).stat().st_mtime_ns for record in records for name in record["files"]}
    assert 0 < len(records) < done.images
    fc.segment(folder, parted, progress=SILENT)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert files_of(whole) == files_of(parted)


def test_what_changed_is_made_again_and_what_is_gone_is_removed(smears: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for path in smears.iterdir():
        save(folder / path.name, cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))
    fc.segment(folder, out, progress=SILENT)
    save(folder / "s0.png", np.full((60, 80, 3), 200, np.uint8))
    (folder / "s1.png").unlink()
    (out / "masks/s2.png").unlink()
    done = fc.segment(folder, out, progress=SILENT)
    assert [cell["image"] for cell in done.cells] == ["s2.png"] and done.images == 3
    assert {path.name for path in (out / "masks").iterdir()} == {"s0.png", "s2.png", "s3.png"}
    assert {path.name for path in (out / "crops").iterdir()} == {"s2-1.png"}
    assert cv2.imread(str(out / "masks/s0.png")).shape[:2] == (60, 80)


def test_bad_pictures_are_rows_with_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    good = render_smear(["lymphocyte"], 3, index=0, width_px=320, height_px=240)[0]
    save(folder / "deep/er/good.png", good)
    save(folder / "sixteen.png", cv2.cvtColor(good, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)
    save(folder / "grey.png", cv2.cvtColor(good, cv2.COLOR_RGB2GRAY))
    alpha = np.dstack([good[..., ::-1], np.full(good.shape[:2], 255, np.uint8)])
    assert cv2.imwrite(str(folder / "alpha.png"), alpha)
    save(folder / "pixel.png", np.full((1, 1, 3), 100, np.uint8))
    save(folder / "black.png", np.zeros((50, 60, 3), np.uint8))
    (folder / "text.png").write_text("no picture")
    (folder / "empty.jpg").touch()
    (folder / "cut.png").write_bytes((folder / "grey.png").read_bytes()[:900])
    (folder / "other.tga").write_bytes(b"x")
    (folder / "notes.txt").write_text("not looked at")
    done = fc.segment(folder, tmp_path / "out", job="smear", progress=SILENT)
    found = {cell["image"] for cell in done.cells}
    assert {"deep/er/good.png", "alpha.png"} <= found
    assert (tmp_path / "out/masks/deep/er/good.png").is_file()
    reasons = {row["image"]: row["reason"] for row in done.left_out if row["x_min"] is None}
    assert {"pixel.png", "black.png", "text.png", "empty.jpg", "cut.png", "other.tga"} <= set(reasons)
    assert reasons["empty.jpg"] == "the file is empty" and "black" in reasons["black.png"]
    assert not {"text.png", "empty.jpg", "cut.png", "other.tga"} & {path.name for path in tmp_path.rglob("out/masks/*")}
    assert done.images == 6


def test_pictures_of_one_stem_do_not_overwrite_each_other(tmp_path: Path) -> None:
    pixels = render_cell("monocyte", 1, index=0, size_px=100)
    for name in ("a.png", "A.jpg", "b.png", "b.png.jpg"):
        save(tmp_path / "in" / name, pixels)
    fc.segment(tmp_path / "in", tmp_path / "out", job="cell", progress=SILENT)
    assert {path.name for path in (tmp_path / "out/masks").iterdir()} == {
        "a.png.png",
        "A.jpg.png",
        "b.png",
        "b.png.jpg.png",
    }


def test_one_picture_and_a_folder_within_its_own(smears: Path, tmp_path: Path) -> None:
    picture = tmp_path / "in/s0.png"
    save(picture, cv2.cvtColor(cv2.imread(str(smears / "s0.png")), cv2.COLOR_BGR2RGB))
    assert fc.segment(picture, tmp_path / "one", progress=SILENT).images == 1
    first = fc.segment(tmp_path / "in", tmp_path / "in/out", background="transparent", progress=SILENT)
    again = fc.segment(tmp_path / "in", tmp_path / "in/out", background="transparent", progress=SILENT)
    assert first == again and first.images == 1
    crop = cv2.imread(str(tmp_path / "in/out" / first.cells[0]["crop"]), cv2.IMREAD_UNCHANGED)
    assert crop.shape[2] == 4 and set(np.unique(crop[..., 3])) == {0, 255}


def test_other_files_and_other_settings_are_never_overwritten(smears: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    refused = run("dataset", "segment", str(smears), "--out", str(tmp_path / "mine"), cwd=tmp_path)
    assert refused.code == 1 and "holds other files" in refused.err and "--out" in refused.err
    assert files_of(tmp_path / "mine") == {"thesis.txt": b"years of work"}
    fc.segment(smears, tmp_path / "out", progress=SILENT)
    before = files_of(tmp_path / "out")
    for other in ({"background": "white"}, {"method": "colour"}, {"job": "cell"}, {"margin": 0.2}):
        with pytest.raises(ProjectError, match="other settings"):
            fc.segment(smears, tmp_path / "out", progress=SILENT, **other)  # type: ignore[arg-type]
    assert files_of(tmp_path / "out") == before
    (tmp_path / "out/segment.json").write_text(json.dumps({"method": "stain"}))
    with pytest.raises(ProjectError, match=r"segment\.json"):
        fc.segment(smears, tmp_path / "out", progress=SILENT)


def test_what_cannot_be_segmented_is_said(tmp_path: Path, smears: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        fc.segment(tmp_path / "nowhere", tmp_path / "out", progress=SILENT)
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="no picture"):
        fc.segment(tmp_path / "none", tmp_path / "out", progress=SILENT)
    with pytest.raises(UsageError, match="margin"):
        fc.segment(smears, tmp_path / "out", margin=9.0, progress=SILENT)
    with pytest.raises(ProjectError, match="the folder of the pictures"):
        fc.segment(smears, smears, progress=SILENT)
    (tmp_path / "file").touch()
    with pytest.raises(ProjectError):
        fc.segment(smears, tmp_path / "file", progress=SILENT)
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_only_costs_the_work(smears: Path, tmp_path: Path) -> None:
    first = fc.segment(smears, tmp_path / "out", progress=SILENT)
    outside = tmp_path / "thesis.txt"
    outside.write_text("years of work")
    records = sorted((tmp_path / "out/.pictures").iterdir())
    for path, text in zip(records, ("{", "[]", '{"image": "s1.png"}'), strict=False):
        path.write_text(text)
    foreign = {"image": "x.png", "stamp": "1:1", "cells": [], "left_out": [], "files": ["../thesis.txt"]}
    records[-1].write_text(json.dumps(foreign))
    assert fc.segment(smears, tmp_path / "out", progress=SILENT) == first
    assert outside.read_text() == "years of work"


def test_platelets_of_a_field_without_white_cells_are_not_taken_for_them(tmp_path: Path) -> None:
    """Red cells of the other fields say how large cells are; and what was seen is said."""
    for index in range(9):
        name, labels = ("without", []) if index < 2 else ("with", ["monocyte"])
        save(tmp_path / f"in/{name}-{index}.png", render_smear(labels, 7, index=index, width_px=400, height_px=300)[0])
    alone = fc.segment(tmp_path / "in/without-1.png", tmp_path / "alone", progress=SILENT)
    done = fc.segment(tmp_path / "in", tmp_path / "out", progress=SILENT)
    assert alone.cells  # which nothing in the one picture can tell
    assert {cell["image"] for cell in done.cells} == {f"with-{index}.png" for index in range(2, 9)}
    said = [item for item in done.left_out if item["image"] == "without-1.png"]
    assert any("wide in the other fields" in item["reason"] for item in said)
    ruler = json.loads((tmp_path / "out/segment.json").read_text())["ruler_px"]
    (tmp_path / "in/without-0.png").touch()
    again = fc.segment(tmp_path / "in", tmp_path / "out", progress=SILENT)  # by the same ruler
    assert again.cells == done.cells
    assert json.loads((tmp_path / "out/segment.json").read_text())["ruler_px"] == ruler
