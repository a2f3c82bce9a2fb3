"""Stains, zoom, blur and noise as augmentation; normalised colours; balanced views: against independent paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.color import hed2rgb, rgb2hed, rgb2lab

import featcache as fc
from featcache.core.errors import DatasetError
from featcache.core.progress import SILENT
from featcache.core.project import ViewsSection
from featcache.core.recipe import Augmentation, FeatureSpace, Recipe
from featcache.datasets import LabelledImage, plan_views
from featcache.images.stains import macenko, reinhard, with_stains
from featcache.images.views import PLAIN, ViewParameters, render, view_parameters
from featcache.segmentation import Framing, plain_view
from featcache.synthetic.drawing import render_cell, write_cells

CELL = render_cell("eosinophil", 5, index=0, size_px=96)
WHOLE = np.ones(CELL.shape[:2], bool)


def test_amounts_of_stain_are_those_of_scikit_image() -> None:
    """Its densities are logarithms to another base, of values without the shift by one: both agree within a level."""
    changed = with_stains(CELL.astype(np.float32), 1.3, eosin=0.7)
    stains = rgb2hed(np.clip((CELL.astype(float) + 1) / 256, 0, 1)) * [1.3, 0.7, 1.0]
    expected = hed2rgb(stains) * 256 - 1
    # scikit-image cuts negative amounts off, which bare glass has: compare where there are none
    sure = (rgb2hed((CELL.astype(float) + 1) / 256) > 0.01).all(axis=2) & (changed < 254).all(axis=2)
    assert sure.sum() > 500
    np.testing.assert_allclose(changed[sure], expected[sure], atol=1.0)
    np.testing.assert_allclose(with_stains(CELL.astype(np.float32), 1, eosin=1), CELL, atol=0.01)


def test_reinhard_brings_mean_and_deviation_of_a_cell_to_the_same_values() -> None:
    mask = np.zeros(CELL.shape[:2], bool)
    mask[24:72, 24:72] = True
    warm = np.clip(CELL * [1.0, 0.85, 0.7], 0, 255).astype(np.uint8)
    means = [rgb2lab(reinhard(one, mask))[mask].mean(axis=0) for one in (CELL, warm)]
    np.testing.assert_allclose(means[0], means[1], atol=3)
    before = [rgb2lab(one)[mask].mean(axis=0) for one in (CELL, warm)]
    assert np.abs(before[0] - before[1]).max() > 8


def test_macenko_finds_the_stains_that_a_picture_was_made_of() -> None:
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.2, 1.8, (64, 64, 2))
    amounts[:16, :, 1], amounts[16:32, :, 0] = 0.0, 0.0
    pictures = []
    for vectors in ([[0.60, 0.70, 0.39], [0.20, 0.90, 0.39]], [[0.50, 0.75, 0.43], [0.25, 0.85, 0.46]]):
        density = amounts @ (np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True))
        pictures.append(np.rint(240 * np.exp(-density) - 1).clip(0, 255).astype(np.uint8))
    one, other = (macenko(picture, np.ones((64, 64), bool)).astype(int) for picture in pictures)
    before = np.abs(pictures[0].astype(int) - pictures[1]).mean()
    assert np.abs(one - other).mean() < 0.5 * before


@pytest.mark.parametrize("normalise", [reinhard, macenko])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_pictures_without_colour_stay_pictures(normalise: object, value: int) -> None:
    flat = np.full((32, 32, 3), value, np.uint8)
    found = normalise(flat, np.ones((32, 32), bool))  # type: ignore[operator]
    assert found.dtype == np.uint8 and found.shape == flat.shape


def test_zoom_blur_and_noise_do_what_they_say() -> None:
    square = np.zeros((101, 101, 3), np.uint8)
    square[40:61, 40:61] = 255
    larger = render(square, replace(PLAIN, zoom=1.5))
    assert (larger[..., 0] > 127).sum() == pytest.approx(21**2 * 1.5**2, rel=0.1)
    blurred = render(square, replace(PLAIN, blur=0.02))
    expected = cv2.GaussianBlur(square.astype(np.float32), (0, 0), 0.02 * 101, borderType=cv2.BORDER_REFLECT)
    np.testing.assert_allclose(blurred, expected, atol=1)
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = render(grey, replace(PLAIN, noise=0.05, noise_seed=7)).astype(float)
    assert noisy.std() == pytest.approx(0.05 * 255, rel=0.02) and abs(noisy.mean() - 128) < 0.2
    np.testing.assert_array_equal(noisy, render(grey, replace(PLAIN, noise=0.05, noise_seed=7)))
    assert (noisy != render(grey, replace(PLAIN, noise=0.05, noise_seed=8))).any()


def test_noise_is_the_same_for_ever() -> None:
    grey = np.full((4, 4, 3), 128, np.uint8)
    found = render(grey, replace(PLAIN, noise=0.1, noise_seed=2**32 - 1))
    assert found[0, :, 0].tolist() == NOISE_THEN


NOISE_THEN = [145, 135, 127, 114]


def test_what_does_nothing_changes_no_name() -> None:
    added = {"zoom", "haematoxylin", "eosin", "blur", "noise", "noise_seed"}
    assert not added & set(view_parameters(Augmentation(), "a", view=3).to_dict())
    strong = Augmentation(zoom=0.2, stain=0.2, blur=0.01, noise=0.02)
    assert added <= set(view_parameters(strong, "a", view=3).to_dict())
    assert ViewParameters(**view_parameters(strong, "a", view=3).to_dict()) == view_parameters(strong, "a", view=3)
    assert not {"zoom", "stain", "blur", "noise"} & set(Augmentation().to_dict())
    recipe = Recipe(FeatureSpace("pixels", "pixels", 16, "none", "none", "0" * 64), strong)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_caches_with_all_of_it_are_read_verified_and_computed_again(tmp_path: Path) -> None:
    write_cells(tmp_path / "cells", 6, seed=1, size_px=48)
    project = fc.init(
        tmp_path / "cells",
        tmp_path,
        views={"train": 3, "normalise": "reinhard", "segment": "stain"},
        augmentation={"zoom": 0.2, "stain": 0.3, "blur": 0.01, "noise": 0.05},
        progress=SILENT,
    )
    cache = fc.extract(project, "pixels", input_size_px=24, progress=SILENT)
    assert cache.recipe.space.colour == "reinhard-1" and cache.recipe.augmentation.stain == 0.3
    checked = fc.verify(cache, recompute=6, progress=SILENT)
    assert checked.sound and checked.recomputed is not None and checked.recomputed.largest_deviation == 0
    plain = fc.extract(project, "pixels", input_size_px=24, augmentation={"zoom": 0, "stain": 0}, progress=SILENT)
    first = cache.views["row_id"][cache.views["view"] == 0]
    assert set(first) <= set(plain.views["row_id"]) and plain.name != cache.name


def test_colours_are_those_of_the_cell_where_one_is_cut_out() -> None:
    glass = np.full((200, 200, 3), 240, np.uint8)
    glass[52:148, 52:148] = CELL
    views = [
        plain_view(picture, None, size_px=64, framing=Framing("stretch", "stain-1:white:0.1", "reinhard-1")).pixels
        for picture in (glass, np.clip(glass * 0.85, 0, 255).astype(np.uint8))
    ]
    assert np.abs(views[0].astype(int) - views[1]).mean() < 6
    assert (views[0][0, 0] == 255).all()
    with pytest.raises(DatasetError, match="cannot change colours so"):
        plain_view(CELL, None, size_px=64, framing=Framing(colour="magic-1"))


def test_balanced_classes_have_as_many_train_rows_as_the_largest() -> None:
    counts = {"a": 10, "b": 3, "c": 1}
    images = [
        LabelledImage(f"{label}{number}", label, split, "", f"{label}{split}{number}")
        for label, count in counts.items()
        for split in ("train", "val", "test")
        for number in range(count)
    ]
    found = plan_views(images, ViewsSection(train=4, balance=True))
    of = {
        (label, split): sum(
            views for image, views in zip(images, found, strict=True) if (image.label, image.split) == (label, split)
        )
        for label in counts
        for split in ("train", "val")
    }
    assert [of[label, "train"] for label in counts] == [40, 40, 40]
    assert [of[label, "val"] for label in counts] == [10, 3, 1]
    with pytest.raises(DatasetError, match="balance"):
        plan_views(images, ViewsSection(balance=True), label_separator=";")
