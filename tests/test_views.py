"""Views: parameters that depend on nothing but their names, plans that add up, pixels where they belong."""

from __future__ import annotations

import colorsys
import math
import random
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from featcache.core.errors import DatasetError
from featcache.core.project import ViewsSection
from featcache.core.recipe import FILL_MODES, Augmentation, canonical_json
from featcache.datasets.manifest import SPLITS, LabelledImage
from featcache.datasets.view_plan import plan_views
from featcache.images.identity import Box
from featcache.images.squares import cut_and_resize
from featcache.images.views import PLAIN, ViewParameters, contact_sheet, render, view_parameters
from featcache.synthetic.drawing import render_cell

GOLDEN = Path(__file__).parent / "data" / "views.npz"
RNG = np.random.default_rng(3)
NOISE = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
SMOOTH = cut_and_resize(render_cell("neutrophil", 0, index=0, size_px=64), None, size_px=64)


# Parameters

augmentations = st.builds(
    Augmentation,
    seed=st.integers(0, 2**63 - 1),
    rotation_deg=st.floats(0, 180),
    shift=st.floats(0, 0.5),
    horizontal_flip=st.booleans(),
    vertical_flip=st.booleans(),
    brightness=st.floats(0, 0.5),
    contrast=st.floats(0, 0.5),
    saturation=st.floats(0, 1),
    hue_deg=st.floats(0, 180),
    fill_modes=st.lists(st.sampled_from(FILL_MODES), min_size=1, max_size=4, unique=True).map(tuple),
    fill_value=st.integers(0, 255),
    zoom=st.floats(0, 0.5),
    stain=st.floats(0, 0.5),
    blur=st.floats(0, 0.05),
    noise=st.floats(0, 0.5),
)
views = st.integers(1, 10**6)


@given(augmentations, st.text(max_size=10), views)
def test_parameters_are_pure_and_within_bounds(plan: Augmentation, image_id: str, view: int) -> None:
    found = view_parameters(plan, image_id, view=view)
    assert found == view_parameters(replace(plan), image_id, view=view)
    tiny = 1e-9  # they are rounded to nine places
    assert abs(found.rotation_deg) <= plan.rotation_deg + tiny
    assert abs(found.shift_x) <= plan.shift + tiny
    assert abs(found.shift_y) <= plan.shift + tiny
    assert abs(found.brightness) <= plan.brightness + tiny
    assert abs(found.contrast - 1) <= plan.contrast + tiny
    assert abs(found.saturation - 1) <= plan.saturation + tiny
    assert abs(found.hue_deg) <= plan.hue_deg + tiny
    assert plan.horizontal_flip or not found.flip_horizontal
    assert plan.vertical_flip or not found.flip_vertical
    assert found.fill_mode in plan.fill_modes
    assert found.fill_value == plan.fill_value
    assert view_parameters(plan, image_id, view=0) == PLAIN


GOLDEN_PARAMETERS = {
    "rotation_deg": -19.792458187,
    "shift_x": 0.04489055,
    "shift_y": 0.026342912,
    "flip_horizontal": False,
    "flip_vertical": True,
    "brightness": 0.000766572,
    "contrast": 1.111165073,
    "saturation": 1.067286336,
    "hue_deg": -2.787901797,
    "fill_mode": "wrap",
    "fill_value": 0,
}


def test_parameters_are_what_they_were() -> None:
    """Every cached row is named by these numbers."""
    assert view_parameters(Augmentation(), "golden", view=1).to_dict() == GOLDEN_PARAMETERS


@given(augmentations, st.text(max_size=10), views, st.integers(0, 2**63 - 1), st.floats(0, 0.5))
def test_each_parameter_is_drawn_by_its_own_name(
    plan: Augmentation, image_id: str, view: int, seed: int, other: float
) -> None:
    """Changing one setting leaves what the others give, so a new kind of parameter moves none of the old."""
    before = view_parameters(plan, image_id, view=view).to_dict()
    changes: dict[str, tuple[Any, set[str]]] = {
        "rotation_deg": (other, {"rotation_deg"}),
        "shift": (other, {"shift_x", "shift_y"}),
        "horizontal_flip": (not plan.horizontal_flip, {"flip_horizontal"}),
        "vertical_flip": (not plan.vertical_flip, {"flip_vertical"}),
        "brightness": (other, {"brightness"}),
        "contrast": (other, {"contrast"}),
        "saturation": (other, {"saturation"}),
        "hue_deg": (other, {"hue_deg"}),
        "fill_modes": (("reflect",), {"fill_mode"}),
        "fill_value": (7, {"fill_value"}),
        "zoom": (other, {"zoom"}),
        "stain": (other, {"haematoxylin", "eosin"}),
        "blur": (other, {"blur"}),
        "noise": (other, {"noise", "noise_seed"}),
    }
    assert set(changes) | {"seed"} == {item.name for item in fields(Augmentation)}
    for name, (value, affected) in changes.items():
        after = view_parameters(replace(plan, **{name: value}), image_id, view=view).to_dict()
        assert {key for key in before | after if before.get(key) != after.get(key)} <= affected


def test_parameters_differ_between_seeds_images_and_views() -> None:
    plan = Augmentation()
    drawn = [view_parameters(plan, image_id, view=view) for image_id in ("a", "b", "a\n1") for view in (1, 2, 11)]
    drawn += [view_parameters(replace(plan, seed=1), "a", view=view) for view in (1, 2)]
    assert len(set(drawn)) == len(drawn)
    assert len({one.rotation_deg for one in drawn}) == len(drawn)
    assert all(one.shift_x != one.shift_y for one in drawn)


def test_parameters_are_spread_evenly() -> None:
    drawn = [view_parameters(Augmentation(), "image", view=view) for view in range(1, 4001)]
    rotations = np.array([one.rotation_deg for one in drawn])
    quarters = np.histogram(rotations, bins=4, range=(-20, 20))[0]
    assert abs(quarters - 1000).max() < 5 * math.sqrt(750)
    modes = Counter(one.fill_mode for one in drawn)
    assert all(abs(modes[mode] - 1000) < 5 * math.sqrt(750) for mode in FILL_MODES)
    both = Counter((one.flip_horizontal, one.flip_vertical) for one in drawn)
    assert all(abs(number - 1000) < 5 * math.sqrt(750) for number in both.values())
    shifts = np.array([(one.shift_x, one.shift_y, one.brightness, one.hue_deg) for one in drawn])
    assert abs(np.corrcoef(np.column_stack([rotations, shifts]).T) - np.eye(5)).max() < 0.08


def test_settings_at_zero_leave_no_minus_zero() -> None:
    """-0.0 is written otherwise than 0.0 and would give one row two names."""
    plan = Augmentation(0, 0, 0, False, False, 0, 0, 0, 0, ("constant",))
    for view in range(1, 30):
        assert canonical_json(view_parameters(plan, "a", view=view).to_dict()) == canonical_json(PLAIN.to_dict())


# Plans


def originals(counts: dict[str, int], labels: str = "abcd") -> list[LabelledImage]:
    return [
        LabelledImage(f"{label}{split}{n}", label, split, "", f"{label}{split}{n}")
        for label in labels
        for split, number in counts.items()
        for n in range(number)
    ]


PAPER = originals({"train": 100, "val": 10, "test": 10})
TOTALS = ViewsSection(train_rows=4394, val_rows=440, test_rows=440)


def test_the_study_s_plan_adds_up() -> None:
    counts = plan_views(PAPER, TOTALS)
    rows = Counter[str]()
    for split, total in (("train", 4394), ("val", 440), ("test", 440)):
        of = {}
        for label in "abcd":
            own = [n for image, n in zip(PAPER, counts, strict=True) if (image.split, image.label) == (split, label)]
            assert max(own) - min(own) <= 1
            assert min(own) >= 1
            of[label] = sum(own)
        assert max(of.values()) - min(of.values()) <= 1
        assert sum(of.values()) == total
        rows[split] = sum(of.values())
    assert sum(counts) == sum(rows.values()) == 4394 + 440 + 440


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(SPLITS)), min_size=1, max_size=60),
    st.integers(3, 500),
    st.randoms(),
)
def test_any_total_is_met_evenly_in_any_order(kinds: list[tuple[str, str]], total: int, rng: random.Random) -> None:
    images = [LabelledImage(str(n), label, split, "", f"id{n}") for n, (label, split) in enumerate(kinds)]
    wanted = ViewsSection(train_rows=total, val=3, test_rows=total)
    counts = dict(zip(images, plan_views(images, wanted), strict=True))
    for split in ("train", "test"):
        per_label: dict[str, list[int]] = {}
        for image in images:
            if image.split == split:
                per_label.setdefault(image.label, []).append(counts[image])
        sums = [sum(own) for own in per_label.values()]
        assert not sums or (sum(sums) == total and max(sums) - min(sums) <= 1)
        assert all(max(own) - min(own) <= 1 for own in per_label.values())
    assert all(counts[image] == 3 for image in images if image.split == "val")
    shuffled = list(images)
    rng.shuffle(shuffled)
    assert dict(zip(shuffled, plan_views(shuffled, wanted), strict=True)) == counts


def test_views_an_image() -> None:
    counts = plan_views(PAPER, ViewsSection(train=5, val=2, test=1))
    assert all({"train": 5, "val": 2, "test": 1}[i.split] == n for i, n in zip(PAPER, counts, strict=True))


def test_a_total_below_the_number_of_images_leaves_some_without_a_view() -> None:
    counts = plan_views(PAPER, ViewsSection(train_rows=42, val_rows=4, test=1))
    train = [(i.label, n) for i, n in zip(PAPER, counts, strict=True) if i.split == "train"]
    assert sum(n for _, n in train) == 42
    assert {n for _, n in train} == {0, 1}
    assert Counter(label for label, n in train if n) == {"a": 11, "b": 11, "c": 10, "d": 10}


def test_a_larger_total_only_adds_views() -> None:
    small, large = (plan_views(PAPER, ViewsSection(train_rows=rows)) for rows in (1001, 1057))
    assert all(one <= two for one, two in zip(small, large, strict=True))


def test_a_total_below_the_number_of_classes_is_refused() -> None:
    with pytest.raises(DatasetError, match="3 val rows for 4 classes"):
        plan_views(PAPER, ViewsSection(val_rows=3))


def test_a_total_for_a_split_without_images_is_no_matter() -> None:
    assert plan_views(originals({"train": 2}), ViewsSection(train=1, val_rows=3)) == [1] * 8


# The plain view


def test_cut_takes_the_box_and_nothing_else() -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[5:25, 30:50] = (10, 200, 90)
    assert (cut_and_resize(pixels, Box(30, 5, 50, 25), size_px=20) == (10, 200, 90)).all()
    marked = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(cut_and_resize(marked, Box(30, 5, 50, 25), size_px=20), marked[5:25, 30:50])
    np.testing.assert_array_equal(cut_and_resize(marked, Box(40, 20, 60, 40), size_px=20), marked[20:, 40:])


@pytest.mark.parametrize("box", [Box(0, 0, 61, 40), Box(0, 0, 60, 41), Box(60, 0, 61, 1)])
def test_cut_refuses_a_box_that_reaches_out(box: Box) -> None:
    with pytest.raises(DatasetError, match=r"reaches out of an image of 60x40 px"):
        cut_and_resize(np.zeros((40, 60, 3), np.uint8), box, size_px=8)


def test_shrinking_by_a_whole_factor_is_the_mean_of_areas() -> None:
    pixels = RNG.integers(0, 256, (48, 96, 3), dtype=np.uint8)
    means = pixels.reshape(16, 3, 16, 6, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(cut_and_resize(pixels, None, size_px=16), means, atol=0.51)


@pytest.mark.parametrize("shape", [(400, 10), (10, 400)])
def test_shrinking_one_side_while_the_other_grows_does_not_alias(shape: tuple[int, int]) -> None:
    """Stripes of one pixel along the long side can only become grey; sampling them gives a pattern."""
    pixels = np.zeros((*shape, 3), dtype=np.uint8)
    pixels[(slice(None, None, 2), slice(None)) if shape[0] > shape[1] else (slice(None), slice(None, None, 2))] = 254
    plain = cut_and_resize(pixels, None, size_px=40)
    assert abs(plain.astype(int) - 127).max() <= 1


def test_padding_and_cropping_keep_the_aspect_ratio() -> None:
    disc = cv2.circle(np.full((40, 80, 3), 200, np.uint8), (40, 20), 15, (90, 10, 10), -1)
    for resize, side_px in (("pad", 40), ("crop", 20)):
        plain = cut_and_resize(disc, None, size_px=side_px * 2, resize=resize)
        rows, columns = (np.flatnonzero((plain == (90, 10, 10)).all(2).any(axis)) for axis in (1, 0))
        assert abs(np.ptp(rows) - np.ptp(columns)) <= 2
        assert abs(rows.mean() - (side_px - 0.5)) < 1
    padded = cut_and_resize(disc, None, size_px=80, resize="pad")
    assert not padded[:20].any()
    assert not padded[60:].any()
    np.testing.assert_array_equal(padded[20:60], disc)
    np.testing.assert_array_equal(cut_and_resize(disc, None, size_px=40, resize="crop"), disc[:, 20:60])
    square = disc[:, 20:60]
    for resize in ("pad", "crop"):
        np.testing.assert_array_equal(
            cut_and_resize(square, None, size_px=30, resize=resize), cut_and_resize(square, None, size_px=30)
        )
    for shape in ((1, 3000), (3000, 1)):
        assert cut_and_resize(np.full((*shape, 3), 7, np.uint8), None, size_px=224, resize="pad").max() == 7
    with pytest.raises(DatasetError, match="resize 'fit': expected one of stretch, pad, crop"):
        cut_and_resize(disc, None, size_px=40, resize="fit")


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (1, 40_000), (40_000, 1), (5, 7), (224, 224)])
def test_any_shape_becomes_a_square_of_its_own_memory(shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), (9, 99, 199), dtype=np.uint8)
    plain = cut_and_resize(pixels, None, size_px=224)
    assert plain.shape == (224, 224, 3)
    assert (plain == (9, 99, 199)).all()
    assert plain.flags.c_contiguous
    assert not np.shares_memory(plain, pixels)


# Geometry


def test_the_plain_view_and_views_that_change_nothing_are_the_image() -> None:
    for mode in FILL_MODES:
        np.testing.assert_array_equal(render(NOISE, ViewParameters(fill_mode=mode, fill_value=99)), NOISE)
    np.testing.assert_array_equal(render(NOISE, PLAIN), NOISE)


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (ViewParameters(flip_horizontal=True), lambda a: np.flip(a, 1)),
        (ViewParameters(flip_vertical=True), lambda a: np.flip(a, 0)),
        (ViewParameters(flip_horizontal=True, flip_vertical=True), lambda a: np.rot90(a, 2)),
        (ViewParameters(rotation_deg=90), lambda a: np.rot90(a, 1)),
        (ViewParameters(rotation_deg=-90), lambda a: np.rot90(a, -1)),
        (ViewParameters(rotation_deg=180), lambda a: np.rot90(a, 2)),
        (ViewParameters(rotation_deg=90, flip_horizontal=True), lambda a: np.rot90(np.flip(a, 1), 1)),
        (ViewParameters(rotation_deg=-90, flip_vertical=True), lambda a: np.rot90(np.flip(a, 0), -1)),
    ],
)
def test_flips_and_quarter_turns_are_numpy_s(size: int, parameters: ViewParameters, expected: Any) -> None:
    """Flip first, then turn counter-clockwise."""
    pixels = NOISE[:size, :size].copy()
    for mode in FILL_MODES:
        found = render(pixels, replace(parameters, fill_mode=mode))
        np.testing.assert_array_equal(found, expected(pixels))


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 2), (-4, 0), (0, -5), (2, -3), (-7, 6)])
def test_a_shift_moves_a_dot_to_the_right_and_down(right: int, down: int) -> None:
    dot = np.zeros((20, 20, 3), dtype=np.uint8)
    dot[9, 10] = (255, 128, 3)
    moved = render(dot, ViewParameters(shift_x=right / 20, shift_y=down / 20))
    assert np.argwhere(moved.any(axis=2)).tolist() == [[9 + down, 10 + right]]
    np.testing.assert_array_equal(moved[9 + down, 10 + right], (255, 128, 3))


@pytest.mark.parametrize(
    ("mode", "numpy_mode"), [("constant", "constant"), ("nearest", "edge"), ("reflect", "symmetric"), ("wrap", "wrap")]
)
@pytest.mark.parametrize(("right", "down"), [(5, 0), (0, 5), (-4, 3), (6, -6)])
def test_fill_modes_are_numpy_s(mode: Any, numpy_mode: Any, right: int, down: int) -> None:
    options = {"constant_values": 77} if mode == "constant" else {}
    padded = np.pad(NOISE, ((6, 6), (6, 6), (0, 0)), mode=numpy_mode, **options)
    expected = padded[6 - down : 22 - down, 6 - right : 22 - right]
    parameters = ViewParameters(shift_x=right / 16, shift_y=down / 16, fill_mode=mode, fill_value=77)
    np.testing.assert_array_equal(render(NOISE, parameters), expected)


def test_a_turn_goes_about_the_centre_and_the_shift_comes_after() -> None:
    """An independent path: bilinear sampling in float64, one pixel at a time."""
    parameters = ViewParameters(17.0, 0.06, -0.04, True, False, fill_mode="constant", fill_value=40)
    size = SMOOTH.shape[0]
    found = render(SMOOTH, parameters).astype(np.float64)
    centre, angle = (size - 1) / 2, math.radians(parameters.rotation_deg)
    for row, column in RNG.integers(0, size, (300, 2)):
        x = column - parameters.shift_x * size - centre
        y = row - parameters.shift_y * size - centre
        # Back by the turn: counter-clockwise on a screen, where y points down.
        x, y = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
        x, y = centre - x, centre + y
        np.testing.assert_allclose(found[row, column], bilinear(SMOOTH, x, y, 40), atol=2.5)


def bilinear(pixels: NDArray[np.uint8], x: float, y: float, fill: int) -> NDArray[np.float64]:
    left, top = math.floor(x), math.floor(y)
    total = np.zeros(3)
    for row, column, weight in (
        (top, left, (top + 1 - y) * (left + 1 - x)),
        (top, left + 1, (top + 1 - y) * (x - left)),
        (top + 1, left, (y - top) * (left + 1 - x)),
        (top + 1, left + 1, (y - top) * (x - left)),
    ):
        inside = 0 <= row < pixels.shape[0] and 0 <= column < pixels.shape[1]
        total += weight * (pixels[row, column].astype(np.float64) if inside else fill)
    return total


# Colour


def colour(rgb: tuple[float, float, float], **parameters: float) -> NDArray[np.int64]:
    pixels = np.full((4, 4, 3), rgb, dtype=np.uint8)
    found = render(pixels, ViewParameters(**parameters))  # type: ignore[arg-type]
    assert (found == found[0, 0]).all()
    return found[0, 0].astype(np.int64)


@pytest.mark.parametrize("grey", [0, 1, 77, 128, 255])
@pytest.mark.parametrize("change", [{"hue_deg": 50.0}, {"saturation": 0.2}, {"saturation": 1.7}])
def test_grey_stays_grey_under_hue_and_saturation(grey: int, change: dict[str, float]) -> None:
    assert colour((grey,) * 3, **change).tolist() == [grey] * 3


def test_brightness_adds_and_clips() -> None:
    assert colour((10, 100, 250), brightness=0.1).tolist() == [36, 126, 255]  # 25.5 more, to even
    assert colour((10, 100, 250), brightness=-0.2).tolist() == [0, 49, 199]


def test_contrast_turns_about_mid_grey() -> None:
    assert colour((27, 127, 228), contrast=0.5).tolist() == [77, 127, 178]
    assert colour((100, 130, 228), contrast=1.5).tolist() == [86, 131, 255]


def test_saturation_is_the_way_from_the_luma() -> None:
    rgb = np.array([200, 60, 90])
    luma = rgb @ (0.299, 0.587, 0.114)
    for factor in (0.0, 0.5, 0.8, 1.2):
        expected = np.clip(luma + factor * (rgb - luma), 0, 255)
        np.testing.assert_allclose(colour((200, 60, 90), saturation=factor), expected, atol=0.51)


def test_a_third_of_a_turn_of_the_hue_is_the_next_channel() -> None:
    assert colour((200, 60, 90), hue_deg=120).tolist() == [90, 200, 60]
    assert colour((200, 60, 90), hue_deg=-120).tolist() == [60, 90, 200]


def test_a_small_turn_of_the_hue_turns_it_that_way() -> None:
    """Against the standard library's HLS: towards yellow from red; the mean of the channels stays."""
    before, after = (180, 60, 60), colour((180, 60, 60), hue_deg=12)
    hue = colorsys.rgb_to_hls(*(after / 255))[0] * 360
    assert 8 < hue < 16
    assert abs(after.sum() - sum(before)) <= 2


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(0, 255)] * 3),
    st.floats(0.5, 1.5),
    st.floats(0, 2),
    st.floats(-180, 180),
    st.floats(-0.5, 0.5),
)
def test_colour_is_hue_then_saturation_then_contrast_then_brightness(
    rgb: tuple[int, int, int], contrast: float, saturation: float, hue_deg: float, brightness: float
) -> None:
    """Step by step, the hue as a turn about the grey axis in an orthonormal basis."""
    grey, red = np.ones(3) / math.sqrt(3), np.array([2.0, -1.0, -1.0]) / math.sqrt(6)
    third = np.cross(grey, red)
    value = np.array(rgb, dtype=np.float64)
    along, across = value @ red, value @ third
    angle = math.radians(hue_deg)
    value = (value @ grey) * grey
    value += (along * math.cos(angle) - across * math.sin(angle)) * red
    value += (along * math.sin(angle) + across * math.cos(angle)) * third
    luma = value @ (0.299, 0.587, 0.114)
    value = luma + saturation * (value - luma)
    value = 127.5 + contrast * (value - 127.5) + 255 * brightness
    found = colour(rgb, contrast=contrast, saturation=saturation, hue_deg=hue_deg, brightness=brightness)
    np.testing.assert_allclose(found, np.clip(value, 0, 255), atol=0.51)


@settings(deadline=None, max_examples=60)
@given(augmentations, views)
def test_render_changes_no_input_and_gives_pixels(plan: Augmentation, view: int) -> None:
    pixels = NOISE.copy()
    pixels.flags.writeable = False
    parameters = view_parameters(plan, "a", view=view)
    found = render(pixels, parameters)
    assert found.shape == pixels.shape
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(pixels, NOISE)
    np.testing.assert_array_equal(found, render(pixels, parameters))


# What caches hold


def golden_views(original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole image, then a box of it, each plain and as augmented views; (n, 48, 48, 3)."""
    found = []
    for box in (None, Box(10, 4, 70, 40)):
        plain = cut_and_resize(original, box, size_px=48)
        found += [render(plain, view_parameters(Augmentation(), "golden", view=view)) for view in range(5)]
    return np.stack(found)


def test_rendering_is_what_it_was() -> None:
    """Run this file as a script to store new ones, after raising RENDERING_VERSION in featcache/core/recipe.py."""
    with np.load(GOLDEN) as stored:
        original, expected = stored["original"], stored["views"]
    found = golden_views(original)
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    where = f"mean difference {difference.mean():.3f}, largest {difference.max()} grey levels"
    assert difference.mean() <= 0.5 and difference.max() <= 4, f"{where}: raise RENDERING_VERSION"


def test_the_golden_views_are_worth_comparing() -> None:
    """Each differs from the others by far more than the tolerance."""
    with np.load(GOLDEN) as stored:
        expected = stored["views"].astype(int)
    for one in range(len(expected)):
        for two in range(one):
            assert np.abs(expected[one] - expected[two]).mean() > 5


def test_contact_sheet_shows_every_tile_where_it_belongs() -> None:
    colours = [[(250, 0, 0), (0, 250, 0), (0, 0, 250)], [(9, 9, 9)]]
    tiles = [[np.full((20, 20, 3), rgb, np.uint8) for rgb in line] for line in colours]
    sheet = contact_sheet(tiles, ["one", "zwei ü"], tile_px=32)
    assert sheet.dtype == np.uint8
    for line in colours:
        for rgb in line:
            assert (sheet == rgb).all(axis=2).sum() == 32 * 32 or rgb == (9, 9, 9)
    left = [int(np.argwhere((sheet == rgb).all(axis=2))[:, 1].min()) for rgb in colours[0]]
    assert left == sorted(left)
    assert len(set(left)) == 3
    top = [int(np.argwhere((sheet == rgb).all(axis=2))[:, 0].min()) for rgb in ((250, 0, 0), (9, 9, 9))]
    assert top[0] < top[1]


if __name__ == "__main__":
    ORIGINAL = render_cell("eosinophil", 5, index=1, size_px=80)[8:72]
    np.savez_compressed(GOLDEN, original=ORIGINAL, views=golden_views(ORIGINAL))
