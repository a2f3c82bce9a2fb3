"""Segmentation: white cells as boxes and masks, judged by painted pictures whose cells are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from featcache.core.errors import UsageError
from featcache.segmentation import SegmentOptions
from featcache.segmentation.contract import Cell, Segmented, Segmenter
from featcache.segmentation.crops import crop_of
from featcache.segmentation.density import background_of, density_of, otsu
from featcache.segmentation.outline import _JUMP, _STIFF, _closed_paths
from featcache.segmentation.picture import SEGMENTERS, job_of, segment_picture
from featcache.synthetic.drawing import CLASSES, render_cell, render_smear

Picture = NDArray[np.uint8]
Disc = tuple[float, float, float]
EMPTY, RED, CYTOPLASM, NUCLEUS, PLATELET = (
    (228, 222, 214),
    (200, 150, 140),
    (190, 160, 205),
    (95, 55, 150),
    (130, 90, 170),
)
RED_PX = 42


@pytest.fixture(params=sorted(SEGMENTERS))
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return SEGMENTERS[request.param]


def disc(picture: Picture, at: Disc, colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    inside = (x - at[0]) ** 2 + (y - at[1]) ** 2 <= at[2] ** 2
    picture[inside] = colour
    return np.asarray(inside)


def smear(
    white: Sequence[tuple[float, float]] = (),
    *,
    size: tuple[int, int] = (360, 480),
    platelets: Sequence[Disc] = (),
    radius: float = 38,
    nucleus: float = 25,
) -> tuple[Picture, list[NDArray[np.bool_]], list[NDArray[np.bool_]]]:
    """A field of red cells with round white cells, and the masks of cells and nuclei."""
    rng = np.random.default_rng(5)
    picture = np.full((*size, 3), EMPTY, np.uint8)
    for y, x in itertools.product(range(20, size[0], 54), range(20, size[1], 54)):
        if all(np.hypot(x - a, y - b) > radius + RED_PX / 2 + 2 for a, b in white):
            disc(picture, (x + rng.uniform(-3, 3), y + rng.uniform(-3, 3), RED_PX / 2), RED)
    cells = [disc(picture, (x, y, radius), CYTOPLASM) for x, y in white]
    nuclei = [disc(picture, (x, y, nucleus), NUCLEUS) for x, y in white]
    for platelet in platelets:
        disc(picture, platelet, PLATELET)
    soft = cv2.GaussianBlur(picture, (0, 0), 1.2)
    noisy = np.clip(soft + rng.normal(0, 2.0, soft.shape), 0, 255)
    return noisy.astype(np.uint8), cells, nuclei


def share(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def resized(picture: Picture, factor: float) -> Picture:
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=how), np.uint8)


def whole(found: Segmented, cell: Cell, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape[:2], bool)
    mask[cell.box.y_min : cell.box.y_max, cell.box.x_min : cell.box.x_max] = cell.mask
    assert cell.mask[0].any() and cell.mask[-1].any() and cell.mask[:, 0].any() and cell.mask[:, -1].any()
    assert not (cell.nucleus & ~cell.mask).any()
    assert 0 < cell.score <= 1 and cell in found.cells
    return mask


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_masks_are_those_of_the_painted_cells_at_any_magnification(segmenter: Segmenter, factor: float) -> None:
    picture, cells, nuclei = smear([(130, 100), (330, 240)])
    large = resized(picture, factor)
    found = segmenter.find(large)
    assert len(found.cells) == 2
    assert found.red_cell_px == pytest.approx(factor * RED_PX, rel=0.25)
    labels = found.labels(*large.shape[:2])
    assert set(np.unique(labels)) == {0, 128, 255}
    for painted, core, cell in zip(cells, nuclei, found.cells, strict=True):
        known = resized(painted.astype(np.uint8) * 255, factor) > 127
        assert share(whole(found, cell, large.shape), known) > 0.85
        inner = resized(core.astype(np.uint8) * 255, factor) > 127
        part = np.zeros_like(inner)
        part[cell.box.y_min : cell.box.y_max, cell.box.x_min : cell.box.x_max] = cell.nucleus
        assert share(part, inner) > 0.8
        assert not cell.at_border
    assert share(labels > 0, resized(np.logical_or(*cells).astype(np.uint8) * 255, factor) > 127) > 0.85


def test_generated_smears_have_the_cells_that_were_drawn(segmenter: Segmenter) -> None:
    best = []
    for index, labels in enumerate(itertools.combinations_with_replacement(CLASSES, 2)):
        picture, boxes = render_smear(labels, 11, index=index)
        drawn = [np.array([box.x_min, box.y_min, box.x_max, box.y_max]) for box in boxes if box.name == "WBC"]
        found = segmenter.find(picture)
        assert len(found.cells) == len(drawn) == 2
        for known in drawn:
            overlaps = []
            for cell in found.cells:
                box = np.array([cell.box.x_min, cell.box.y_min, cell.box.x_max, cell.box.y_max])
                sides = np.minimum(box[2:], known[2:]) - np.maximum(box[:2], known[:2])
                common = np.prod(np.clip(sides, 0, None))
                overlaps.append(common / (np.prod(box[2:] - box[:2]) + np.prod(known[2:] - known[:2]) - common))
            best.append(max(overlaps))
    assert min(best) > 0.5 and float(np.mean(best)) > 0.9


def test_a_smear_of_red_cells_and_platelets_has_no_white_cell_and_says_so(segmenter: Segmenter) -> None:
    clump = [(200 + 12 * (i % 3), 150 + 12 * (i // 3), 4.5) for i in range(5)]
    for platelets in ((), [(100, 100, 7.0), (300, 200, 6.0)], clump):
        picture, _, _ = smear(platelets=platelets)
        found = segmenter.find(picture)
        assert not found.cells and found.left_out
        assert not found.labels(*picture.shape[:2]).any()
        if platelets:
            said = " ".join(item.reason for item in found.left_out)
            assert "platelet" in said or "clump" in said


def test_two_cells_that_touch_are_two(segmenter: Segmenter) -> None:
    picture, _, _ = smear([(180, 180), (252, 180)])
    assert len(segmenter.find(picture).cells) == 2
    bare, _, _ = smear([(180, 180), (234, 180)], radius=29, nucleus=28)  # nuclei that touch each other
    assert len(segmenter.find(bare).cells) == 2


def test_lobes_of_one_nucleus_are_one_cell(segmenter: Segmenter) -> None:
    picture, cells, _ = smear([(240, 180)], nucleus=1)
    for x, y in ((225, 165), (258, 172), (236, 203)):
        disc(picture, (x, y, 12), NUCLEUS)
    found = segmenter.find(cv2.GaussianBlur(picture, (0, 0), 1.2))
    assert len(found.cells) == 1
    assert share(whole(found, found.cells[0], picture.shape), cells[0]) > 0.8


def test_cells_that_the_border_cuts_are_marked(segmenter: Segmenter) -> None:
    picture, cells, _ = smear([(130, 10), (330, 240)])
    found = segmenter.find(picture)
    assert [cell.at_border for cell in found.cells] == [True, False]
    assert found.cells[0].box.y_min == 0
    assert share(whole(found, found.cells[0], picture.shape), cells[0]) > 0.8


def test_the_black_corners_of_an_eyepiece_hold_nothing(segmenter: Segmenter) -> None:
    picture, cells, _ = smear([(240, 180)])
    y, x = np.mgrid[:360, :480]
    light = np.clip((172 - np.hypot(x - 240, y - 180)) / 6, 0.02, 1)
    found = segmenter.find((picture * light[..., None]).astype(np.uint8))
    assert len(found.cells) == 1
    assert share(whole(found, found.cells[0], picture.shape), cells[0]) > 0.8


def hostile() -> dict[str, Picture]:
    rng = np.random.default_rng(0)
    picture, _, _ = smear([(130, 100)])
    noise = rng.integers(0, 256, (200, 300, 3)).astype(np.uint8)
    return {
        "black": np.zeros((200, 300, 3), np.uint8),
        "white": np.full((200, 300, 3), 255, np.uint8),
        "grey": np.full((200, 300, 3), 128, np.uint8),
        "one pixel": np.full((1, 1, 3), 200, np.uint8),
        "one line": noise[:1],
        "six pixels": noise[:2, :3],
        "noise": noise,
        "over-exposed": np.clip(picture.astype(int) + 140, 0, 255).astype(np.uint8),
        "nearly dark": (picture * 0.12).astype(np.uint8),
        "without focus": cv2.GaussianBlur(picture, (0, 0), 25),
        "far away": resized(picture, 0.05),
        "half red": np.hstack([np.full((200, 150, 3), (250, 0, 0)), np.full((200, 150, 3), 255)]).astype(np.uint8),
        "channels swapped": np.ascontiguousarray(picture[..., ::-1]),
    }


REASONS = {
    "black": "black",
    "white": "blank",
    "grey": "blank",
    "one pixel": "blank",
    "over-exposed": "over-exposed",
    "nearly dark": "black",
}


@pytest.mark.parametrize("name", hostile())
def test_what_shows_no_cell_gives_a_reason_and_no_error(segmenter: Segmenter, name: str) -> None:
    picture = hostile()[name]
    before = picture.copy()
    for found in (segmenter.find(picture), segmenter.cut_out(picture)):
        assert found.cells or found.left_out
        assert found.labels(*picture.shape[:2]).shape == picture.shape[:2]
        assert all(item.reason for item in found.left_out)
    assert np.array_equal(picture, before)
    if name in REASONS:
        found = segmenter.find(picture)
        assert not found.cells
        assert found.left_out[0].reason.startswith(REASONS[name])


@pytest.mark.parametrize("light", [0.35, 0.7])
def test_light_and_its_colour_do_not_matter(segmenter: Segmenter, light: float) -> None:
    picture, cells, _ = smear([(240, 180)])
    for colour in ((1, 1, 1), (1, 0.95, 0.6)):
        found = segmenter.find((picture * light * np.array(colour)).astype(np.uint8))
        assert len(found.cells) == 1
        assert share(whole(found, found.cells[0], picture.shape), cells[0]) > 0.8


def test_a_known_diameter_takes_the_place_of_the_measured_one() -> None:
    picture, _, _ = smear([(240, 180)])
    found = segment_picture(picture, SegmentOptions(red_cell_px=47), job="smear")
    assert found.red_cell_px == 47 and len(found.cells) == 1
    tiny = segment_picture(picture, SegmentOptions(red_cell_px=400), job="smear")
    assert not tiny.cells and tiny.left_out


def test_of_a_crop_the_cell_in_the_middle_is_taken(segmenter: Segmenter) -> None:
    picture, cells, nuclei = smear([(100, 100), (196, 100)])
    window = np.s_[45:155, 45:155]
    found = segmenter.cut_out(np.ascontiguousarray(picture[window]))
    assert len(found.cells) == 1
    labels = found.labels(110, 110)
    assert share(labels > 0, cells[0][window]) > 0.85
    assert share(labels == 255, nuclei[0][window]) > 0.8
    for index, label in enumerate(CLASSES):
        crop = segmenter.cut_out(render_cell(label, 3, index=index))
        assert len(crop.cells) == 1


def test_the_background_of_a_crop_is_replaced() -> None:
    picture, _, _ = smear([(130, 100)])
    cell = segment_picture(picture, SegmentOptions(), job="smear").cells[0]
    kept = crop_of(picture, cell, background="keep", margin=0.1)
    room = round(0.1 * max(cell.mask.shape))
    assert kept.shape == (cell.mask.shape[0] + 2 * room, cell.mask.shape[1] + 2 * room, 3)
    inside = np.pad(cell.mask, room)
    for background, colour in (("white", 255), ("black", 0), ("mean", np.rint(kept[~inside].mean(axis=0)))):
        crop = crop_of(picture, cell, background=background, margin=0.1)  # type: ignore[arg-type]
        assert np.array_equal(crop[inside], kept[inside])
        assert (crop[~inside] == colour).all()
    clear = crop_of(picture, cell, background="transparent", margin=0.1)
    assert np.array_equal(clear[..., :3], kept) and np.array_equal(clear[..., 3] > 0, inside)
    at_edge = Cell(cell.box.__class__(0, 0, 3, 2), np.ones((2, 3), bool), np.ones((2, 3), bool), 1.0)
    assert crop_of(picture, at_edge, background="mean", margin=0.0).shape == (2, 3, 3)


def test_the_median_of_a_folder_tells_crops_from_smears() -> None:
    assert job_of([2.9, 3.4, 9.0]) == "cell"
    assert job_of([4.5, 5.2, 30.0]) == "smear"
    assert job_of([]) == "smear"


def test_wrong_options_are_refused() -> None:
    for wrong in ({"method": "magic"}, {"red_cell_px": 1.0}, {"background": "blue"}, {"margin": -1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            SegmentOptions(**wrong)  # type: ignore[arg-type]


def test_otsu_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(2)
    for parts in ((0.1, 0.6), (0.3, 0.35), (0.0, 1.0)):
        values = np.concatenate([rng.normal(mean, 0.08, 3000) for mean in parts]).astype(np.float32)
        clipped = np.clip(values, values.min(), np.quantile(values, 0.999))
        assert otsu(values) == pytest.approx(threshold_otsu(clipped), abs=0.02)
    assert otsu(np.full(50, 0.25, np.float32)) == pytest.approx(0.25)


def test_density_is_the_logarithm_of_lost_light() -> None:
    picture, _, _ = smear()
    background = background_of(picture)
    assert background is not None
    assert np.abs(background - EMPTY).max() < 8
    density = density_of(np.array([[[20, 100, 250]]], np.uint8), np.array([200.0, 200.0, 200.0]))
    assert density[0, 0] == pytest.approx([np.log10(201 / 21), np.log10(201 / 101), np.log10(201 / 251)], abs=1e-6)
    assert background_of(np.zeros((50, 50, 3), np.uint8)) is None


def test_the_closed_path_is_the_best_of_all() -> None:
    """Against every closed path of a small grid, by brute force."""
    rng = np.random.default_rng(4)
    angles, radii = 6, 4
    for gain in rng.normal(0, 1, (8, 1, angles, radii)):

        def value(path: Sequence[int], gain: NDArray[np.float64] = gain) -> float:
            steps = np.abs(np.diff([*path, path[0]]))
            bad = -np.inf if steps.max() > _JUMP else 0.0
            return float(sum(gain[0, place, radius] for place, radius in enumerate(path)) - _STIFF * steps.sum() + bad)

        best = max(value(path) for path in itertools.product(range(radii), repeat=angles))
        found = [int(radius) for radius in _closed_paths(gain)[0]]
        assert value(found) == pytest.approx(best, abs=1.0)
        assert np.abs(np.diff(found)).max() <= _JUMP
