"""dataset segment: the labels of boxes, lists and projects become labels of cells."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run

import featcache as fc
from featcache.core.errors import DatasetError
from featcache.core.progress import SILENT
from featcache.core.project import DatasetSection
from featcache.datasets import labelled_images
from featcache.images import Box
from featcache.segmentation.labelling import Known, iou_of, labels_for
from featcache.synthetic import generate

CELL = Box(0, 0, 100, 100)


@pytest.mark.parametrize(
    ("box", "label"),
    [
        (Box(0, 0, 100, 100), "a"),
        (Box(0, 0, 100, 50), "a"),  # exactly a half
        (Box(0, 0, 100, 49), ""),
        (Box(20, 20, 100, 100), "a"),
        (Box(40, 0, 140, 100), ""),
        (Box(200, 200, 300, 300), ""),
    ],
)
def test_a_cell_gets_the_label_of_a_box_that_it_overlaps_by_half(box: Box, label: str) -> None:
    assert labels_for([CELL], [Known("a", box)], is_smear=True) == [label]


def test_overlap_is_that_of_drawn_pixels() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        x, y = np.sort(rng.choice(40, (2, 2), replace=False), axis=1), np.sort(rng.choice(40, (2, 2), replace=False))
        if (np.diff(x) == 0).any() or (np.diff(y, axis=1) == 0).any():
            continue
        boxes = [Box(*map(int, (x[n, 0], y[n, 0], x[n, 1], y[n, 1]))) for n in range(2)]
        drawn = np.zeros((2, 40, 40), bool)
        for number, box in enumerate(boxes):
            drawn[number, box.y_min : box.y_max, box.x_min : box.x_max] = True
        assert iou_of(*boxes) == pytest.approx((drawn[0] & drawn[1]).sum() / (drawn[0] | drawn[1]).sum())


def test_each_box_labels_one_cell_and_the_best_pair_comes_first() -> None:
    near, better = Box(0, 0, 100, 70), Box(0, 0, 100, 95)
    assert labels_for([near, better], [Known("a", CELL)], is_smear=True) == ["", "a"]
    two = [Known("a", Box(0, 0, 100, 80)), Known("b", Box(0, 0, 100, 96))]
    assert labels_for([CELL], two, is_smear=True) == ["b"]
    assert labels_for([CELL, Box(0, 0, 100, 75)], two, is_smear=True) == ["b", "a"]
    same = [Known("a", Box(0, 0, 100, 90)), Known("b", Box(0, 10, 100, 100))]
    assert labels_for([CELL], same, is_smear=True) == [""]
    assert labels_for([], two, is_smear=True) == []


def test_the_label_of_a_picture_is_that_of_its_only_cell() -> None:
    whole = [Known("a")]
    assert labels_for([CELL], whole, is_smear=True) == ["a"]
    assert labels_for([CELL, CELL], whole, is_smear=True) == ["", ""]
    assert labels_for([CELL], [Known("a"), Known("b")], is_smear=False) == [""]
    assert labels_for([CELL], [*whole, Known("b", Box(500, 0, 600, 100))], is_smear=True) == [""]


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotated smears: images, annotations and labels."""
    folder = tmp_path_factory.mktemp("smears") / "smears"
    generate(folder, 1, smears=12)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_boxes_of_annotations_label_crops_and_init_takes_them(smears: Path, tmp_path: Path, run: Run) -> None:
    done = run("dataset", "segment", str(smears), "--out", "cut", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    known = labelled_images(smears, DatasetSection())[0].images
    cells, crops = rows(tmp_path / "cut/cells.csv"), rows(tmp_path / "cut/crops.csv")
    assert [cell["label"] for cell in done.value["cells"]] == [crop["label"] for crop in crops]
    assert [cell["label"] for cell in cells] == [crop["label"] for crop in crops]
    expected: Counter[str] = Counter()
    for cell in cells:
        box = Box(*(int(cell[name]) for name in ("x_min", "y_min", "x_max", "y_max")))
        alike = [one for one in known if one.path == cell["image"] and one.box and iou_of(box, one.box) >= 0.5]
        assert cell["label"] == (alike[0].label if alike else "")
        expected[cell["label"]] += 1
    assert sum(expected.values()) - expected[""] >= 0.8 * len(known)
    taken = run("init", "cut/crops.csv", "--into", "p", "--json", cwd=tmp_path)
    assert taken.code in (0, 1) and "Traceback" not in taken.err, taken.err
    if taken.code == 0:
        groups = {line["group"] for line in rows(tmp_path / "p/dataset.csv")}
        assert groups <= {cell["image"] for cell in cells}


def test_labels_come_from_elsewhere_too_and_change_without_segmenting_anew(
    smears: Path, tmp_path: Path, run: Run
) -> None:
    images = smears / "images"
    bare = fc.segment(images, tmp_path / "cut", progress=SILENT)
    assert {cell["label"] for cell in bare.cells} == {""}
    crop = tmp_path / "cut" / bare.cells[0]["crop"]
    before = crop.stat().st_mtime_ns
    again = fc.segment(images, tmp_path / "cut", labels=smears, progress=SILENT)
    assert any(cell["label"] for cell in again.cells) and crop.stat().st_mtime_ns == before
    labels = [cell["label"] for cell in again.cells]
    project = fc.init(smears, tmp_path / "p", progress=SILENT)
    labels = [label if label in project.found.dataset.classes else "" for label in labels]  # without small ones
    of_project = fc.segment(images, tmp_path / "cut", labels=project.folder, progress=SILENT)
    assert [cell["label"] for cell in of_project.cells] == labels and any(labels)
    itself = fc.segment(project.folder, tmp_path / "own", progress=SILENT)
    assert [cell["label"] for cell in itself.cells] == labels
    with pytest.raises(DatasetError):
        fc.segment(images, tmp_path / "cut", labels=images, progress=SILENT)
    gone = run("dataset", "segment", str(images), "--labels", "gone", "--out", "new", cwd=tmp_path)
    assert gone.code == 1 and "gone" in gone.err and not (tmp_path / "new").exists()


def test_broken_annotations_cost_labels_and_no_cells(smears: Path, tmp_path: Path, run: Run) -> None:
    import shutil

    shutil.copytree(smears, tmp_path / "s")
    annotations: list[Any] = sorted((tmp_path / "s/annotations").glob("*.xml"))
    annotations[0].write_text("<annotation><object>")
    annotations[1].write_bytes(b"\xff\xfe no text")
    done = run("dataset", "segment", "s", "--out", "cut", "--json", cwd=tmp_path)
    assert done.code == 0 and done.value["images"] == 12, done.err
    for path in annotations:
        path.write_text("nothing")
    done = run("dataset", "segment", "s", "--out", "cut", "--json", cwd=tmp_path)
    assert done.code == 0 and done.value["images"] == 12 and {cell["label"] for cell in done.value["cells"]} == {""}
