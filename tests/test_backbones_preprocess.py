"""Preprocessing: our formulas against Keras' own."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from featcache.backbones.preprocess import MODES, check_mode, preprocess
from featcache.backbones.registry import BACKBONES
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
