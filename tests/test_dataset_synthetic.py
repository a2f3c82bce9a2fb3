"""Generated cells and smears: reproducible, well formed, and neither too easy nor too hard."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from defusedxml import ElementTree
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.core.errors import DatasetError
from featcache.images.decode import decode
from featcache.synthetic.drawing import (
    CLASSES,
    encoded,
    render_cell,
    render_smear,
    smear_labels,
    write_cells,
    write_smears,
)


@pytest.mark.parametrize("label", CLASSES)
def test_render_cell_is_a_pure_function_of_its_arguments(label: str) -> None:
    first = render_cell(label, seed=3, index=5, size_px=96)
    render_cell("monocyte", seed=0, index=0, size_px=64)
    np.random.default_rng(0).normal()
    np.testing.assert_array_equal(first, render_cell(label, seed=3, index=5, size_px=96))


@pytest.mark.parametrize("size_px", [16, 17, 64, 240, 331])
def test_render_cell_size_and_dtype(size_px: int) -> None:
    image = render_cell("neutrophil", seed=0, index=1, size_px=size_px)
    assert image.shape == (size_px, size_px, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


def test_render_cell_differs_by_label_seed_and_index() -> None:
    pictures = [
        render_cell("eosinophil", 0, index=0, size_px=48),
        render_cell("eosinophil", 0, index=1, size_px=48),
        render_cell("eosinophil", 1, index=0, size_px=48),
        render_cell("neutrophil", 0, index=0, size_px=48),
    ]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


@pytest.mark.parametrize("label", CLASSES)
@pytest.mark.parametrize("size_px", [60, 120, 480])
def test_render_cell_shows_the_same_at_every_size(label: str, size_px: int) -> None:
    def small(image: NDArray[np.uint8]) -> NDArray[Any]:
        return np.asarray(cv2.resize(image, (40, 40), interpolation=cv2.INTER_AREA), np.float64)

    reference = small(render_cell(label, seed=2, index=4))
    difference = np.abs(small(render_cell(label, seed=2, index=4, size_px=size_px)) - reference)
    another = np.abs(small(render_cell(label, seed=2, index=5)) - reference)
    assert difference.mean() < 3.0 < another.mean()


def test_render_cell_holds_a_dark_cell_about_in_the_middle() -> None:
    for label in CLASSES:
        for index in range(5):
            red = cv2.GaussianBlur(render_cell(label, 0, index=index)[..., 0].astype(np.float32), (0, 0), 8)
            y, x = np.unravel_index(np.argmin(red), red.shape)  # a nucleus takes most of the red light
            assert np.hypot(x - 120, y - 120) < 100, (label, index)


def test_unknown_label_names_the_nearest() -> None:
    with pytest.raises(DatasetError, match="did you mean neutrophil"):
        render_cell("neutrophyl", seed=0, index=0)
    with pytest.raises(DatasetError, match="known are eosinophil, lymphocyte"):
        render_smear(["xyz"], seed=0, index=0)


def test_too_small_or_negative_is_an_error() -> None:
    with pytest.raises(DatasetError, match="at least 16 px"):
        render_cell("monocyte", seed=0, index=0, size_px=15)
    with pytest.raises(DatasetError, match="at least 16 px"):
        render_smear(["monocyte"], seed=0, index=0, width_px=640, height_px=8)
    with pytest.raises(DatasetError, match="0 or more"):
        render_cell("monocyte", seed=-1, index=0)


def test_too_many_white_cells_is_an_error() -> None:
    with pytest.raises(DatasetError, match="do not fit"):
        render_smear(["monocyte"] * 40, seed=0, index=0, width_px=64, height_px=48)


@pytest.mark.parametrize(("width_px", "height_px"), [(640, 480), (320, 240), (300, 500)])
def test_render_smear_boxes(width_px: int, height_px: int) -> None:
    labels = ["monocyte", "neutrophil", "eosinophil"]
    image, boxes = render_smear(labels, seed=1, index=2, width_px=width_px, height_px=height_px)
    assert image.shape == (height_px, width_px, 3)
    assert image.dtype == np.uint8
    assert [box.name for box in boxes[:3]] == ["WBC"] * 3
    assert {box.name for box in boxes[3:]} <= {"RBC", "Platelets"}
    for box in boxes:
        assert 0 <= box.x_min < box.x_max < width_px
        assert 0 <= box.y_min < box.y_max < height_px


def test_render_smear_is_deterministic_and_keeps_white_cells_apart() -> None:
    for index in range(4):
        image, boxes = render_smear(["monocyte", "monocyte"], 0, index=index, width_px=320, height_px=240)
        again, boxes_again = render_smear(["monocyte", "monocyte"], 0, index=index, width_px=320, height_px=240)
        np.testing.assert_array_equal(image, again)
        assert boxes == boxes_again
        first, second = (box for box in boxes if box.name == "WBC")
        apart = (
            np.hypot(
                first.x_min + first.x_max - second.x_min - second.x_max,
                first.y_min + first.y_max - second.y_min - second.y_max,
            )
            / 2
        )
        widths = first.x_max - first.x_min + second.x_max - second.x_min
        heights = first.y_max - first.y_min + second.y_max - second.y_min
        assert apart > 0.9 * min(widths, heights) / 2  # discs apart, though corners of boxes may meet


def test_render_smear_box_holds_the_nucleus() -> None:
    image, boxes = render_smear(["lymphocyte"], seed=0, index=0)
    box = boxes[0]
    red = image[..., 0].astype(float)
    assert red[box.y_min : box.y_max, box.x_min : box.x_max].mean() < red.mean() - 10.0


def test_write_cells_makes_class_folders(tmp_path: Path) -> None:
    paths = write_cells(tmp_path / "cells", per_class=2, seed=4, size_px=32)
    assert sorted(folder.name for folder in (tmp_path / "cells").iterdir()) == list(CLASSES)
    assert len(paths) == 8
    assert paths[0] == tmp_path / "cells" / "eosinophil" / "eosinophil-0001.png"
    decoded = cv2.cvtColor(cv2.imread(str(paths[-1])), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(decoded, render_cell("neutrophil", seed=4, index=2, size_px=32))


def test_write_cells_writes_the_same_bytes_again(tmp_path: Path) -> None:
    first = write_cells(tmp_path / "a", per_class=1, size_px=32)
    second = write_cells(tmp_path / "b", per_class=1, size_px=32)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_write_smears_makes_the_voc_layout(tmp_path: Path) -> None:
    write_smears(tmp_path, count=8, width_px=160, height_px=120)
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"smear-{n:04d}.jpg" for n in range(1, 9)]
    assert sum("," in row["label"] for row in rows) == 1
    for row in rows:
        labels = row["label"].split(", ")
        assert set(labels) <= set(CLASSES)
        image = cv2.imread(str(tmp_path / "images" / row["image"]))
        assert image is not None
        assert image.shape == (120, 160, 3)
        tree = ElementTree.parse(tmp_path / "annotations" / row["image"].replace(".jpg", ".xml"))
        assert tree.findtext("filename") == row["image"]
        assert (tree.findtext("size/width"), tree.findtext("size/height")) == ("160", "120")
        names = [node.findtext("name") for node in tree.iter("object")]
        assert names.count("WBC") == len(labels)
        for node in tree.iter("bndbox"):
            x_min, y_min, x_max, y_max = (int(node.findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax"))
            assert 0 <= x_min < x_max < 160
            assert 0 <= y_min < y_max < 120


def test_smear_labels_cover_all_classes_and_pairs() -> None:
    labels = [smear_labels(index) for index in range(32)]
    assert {label for names in labels for label in names} == set(CLASSES)
    assert sum(len(names) == 2 for names in labels) == 4


def colour_statistics(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean and standard deviation of each channel, (6,)."""
    return np.concatenate([image.mean((0, 1)), image.std((0, 1))])


def shape_statistics(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Size and shape of the nucleus, and the colour and grain of the ring around it, (12,)."""
    red, green, blue = (channel.astype(np.float32) for channel in cv2.split(image))
    bluish = np.clip((blue - red) + 60, 0, 255).astype(np.uint8)
    level, mask = cv2.threshold(bluish, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    count, marks, stats, _ = cv2.connectedComponentsWithStats(mask)
    biggest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) if count > 1 else 0
    nucleus = (marks == biggest).astype(np.uint8)
    contours, _ = cv2.findContours(nucleus, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=cv2.contourArea)
    area, length = float(nucleus.sum()), cv2.arcLength(contour, True)
    hull = cv2.contourArea(cv2.convexHull(contour)) + 1.0
    moments = np.log(np.abs(cv2.HuMoments(cv2.moments(nucleus, True))[:3, 0]) + 1e-9)
    ring = (cv2.dilate(nucleus, np.ones((9, 9), np.uint8)) - nucleus).astype(bool)
    redness = red - green
    grain = np.abs(redness - cv2.GaussianBlur(redness, (0, 0), 2))
    inner = [redness[ring].mean(), redness[ring].std(), (blue - red)[ring].mean(), grain[ring].mean()]
    return np.array([area**0.5, length / area**0.5, area / hull, *moments, *inner, level, length])


def test_colour_alone_does_not_tell_the_classes_but_shape_helps() -> None:
    """A careless pipeline must score visibly worse; chance is 0.25."""
    labels = [label for label in CLASSES for _ in range(50)]
    images = [render_cell(label, 0, index=index, size_px=120) for label in CLASSES for index in range(50)]
    colour = np.array([colour_statistics(image) for image in images])  # (200, 6)
    shape = np.array([shape_statistics(image) for image in images])  # (200, 12)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    by_colour = cross_val_score(model, colour, labels, cv=5).mean()
    by_both = cross_val_score(model, np.hstack([colour, shape]), labels, cv=5).mean()
    assert by_colour < 0.65
    assert 0.6 < by_both < 0.97
    assert by_both > by_colour + 0.1


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (240, 240), (64, 700)])
def test_png_bytes_follow_from_pixels_alone(size: tuple[int, int], tmp_path: Path) -> None:
    """Images are named by their bytes: no compressor of this machine has a say in them."""
    pixels = np.random.default_rng(5).integers(0, 256, (*size, 3), dtype=np.uint8)
    data = encoded(Path("a.png"), pixels)
    np.testing.assert_array_equal(decode(data), pixels)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))), pixels)
    if size == (3, 5):
        assert hashlib.sha256(data).hexdigest() == "d2a0dc09c726f4bdf320424220029f2ecf20237f95cfae053f42ecf333341c76"
