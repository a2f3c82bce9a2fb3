"""Preprocessing: our formulas against Keras' own."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from featcache.backbones.engines.affine import affine_of
from featcache.backbones.preprocess import MODES, check_mode, mode_for, preprocess
from featcache.backbones.registry import BACKBONES
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import BackboneError


@pytest.fixture
def pixels():
    values = np.random.default_rng(0).integers(0, 256, (2, 17, 19, 3), dtype=np.uint8)
    values[0, 0, 0], values[0, 0, 1] = 0, 255
    return values


@pytest.mark.parametrize("row", [r for r in BACKBONES.values() if r.preprocess_input], ids=lambda row: row.name)
def test_equals_keras_to_the_last_bit(row, pixels):
    module, _, attribute = row.preprocess_input.partition(":")
    expected = getattr(import_module(module), attribute)(pixels.astype(np.float32))
    np.testing.assert_array_equal(preprocess(pixels, row.preprocessing), expected)


@pytest.mark.parametrize("mode", MODES)
def test_leaves_its_input_and_returns_new_memory(mode, pixels):
    before = pixels.copy()
    out = preprocess(pixels, mode)
    np.testing.assert_array_equal(pixels, before)
    assert not np.shares_memory(out, pixels)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    # The view of a mirrored picture has negative strides, that of a read-only one cannot be written.
    mirrored = pixels[:, :, ::-1]
    mirrored.flags.writeable = False
    np.testing.assert_array_equal(preprocess(mirrored, mode), out[:, :, ::-1])


@pytest.mark.parametrize(
    ("mode", "black", "white"),
    [("lite0", -127 / 128, 1.0), ("rescale", 0.0, 1.0), ("tf", -1.0, 1.0)],
)
def test_range(mode, black, white):
    ends = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(3, axis=3)
    np.testing.assert_array_equal(preprocess(ends, mode)[:, 0, 0, 0], np.array([black, white], np.float32))


def test_no_rows(pixels):
    assert preprocess(pixels[:0], "caffe").shape == (0, 17, 19, 3)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 4), np.uint8),
        [[1]],
    ],
    ids=["float", "three axes", "four channels", "list"],
)
def test_other_arrays_are_refused(bad):
    with pytest.raises(BackboneError, match="pixels: expected"):
        preprocess(bad, "tf")


def test_an_unknown_mode_offers_the_nearest():
    with pytest.raises(BackboneError, match=r"'coffee'.*caffe"):
        check_mode("coffee")


# --- mean, deviation and order of channels that a person asks for ---------------------------------


def test_mean_and_deviation_replace_the_networks_own():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    mode = mode_for(NetworkSpec("vgg16", mean=mean, std=std), lambda: "caffe")
    expected = (pixels / 255.0 - mean) / std
    np.testing.assert_allclose(preprocess(pixels, mode), expected, atol=1e-5)
    turned = mode_for(NetworkSpec("vgg16", mean=mean, std=std, colour_order="bgr"), lambda: "caffe")
    np.testing.assert_allclose(preprocess(pixels, turned), expected[..., ::-1], atol=1e-5)
    assert preprocess(pixels, turned).flags.c_contiguous
    assert mode_for(NetworkSpec("vgg16"), lambda: "caffe") == "caffe"
    assert mode_for(NetworkSpec("vgg16", mean=(0.5,) * 3, std=(0.5,) * 3), lambda: "caffe") == "tf"
    assert mode_for(NetworkSpec("x", preprocessing=turned), lambda: "caffe") == turned  # as a cache names it


@pytest.mark.parametrize("base", [*MODES, "mean-std:0.1,0.2,0.3:0.4,0.5,0.6"])
def test_the_other_order_is_a_scale_and_a_sum_of_turned_channels(base):
    if base == "caffe":
        return
    affine = affine_of(f"bgr:{base}")
    assert affine is not None
    assert affine.order == (2, 1, 0)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    found = pixels[..., list(affine.order)] * affine.scale + affine.offset
    np.testing.assert_allclose(found, preprocess(pixels, f"bgr:{base}"), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"mean": (0.5,) * 3}, "`mean` and `std` go together"),
        ({"std": (0.5,) * 3}, "`mean` and `std` go together"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3, "preprocessing": "tf"}, "`mean` and `preprocessing` exclude"),
        ({"mean": (0.5,) * 2, "std": (0.5,) * 3}, "a mean and deviation for red, green and blue"),
        ({"mean": (0.5,) * 3, "std": (0.0,) * 3}, "a mean and deviation for red, green and blue"),
        ({"mean": (float("nan"),) * 3, "std": (0.5,) * 3}, "a mean and deviation for red, green and blue"),
        ({"colour_order": "bgr"}, "'caffe' is in the order blue, green, red as it is"),
        ({"preprocessing": "bgr:bgr:tf"}, "there is no preprocessing"),
    ],
)
def test_scalings_that_make_no_sense_are_refused(asked, said):
    with pytest.raises(BackboneError, match=said):
        mode_for(NetworkSpec("vgg16", **asked), lambda: "caffe")
