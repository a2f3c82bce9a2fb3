"""From pixels to what a network was trained on, one explicit formula a mode.

Weights and preprocessing belong together: a network fed with another scale still answers, only
worse. The mode is therefore part of every recipe. NumPy only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import BackboneError, nearest

# Means and deviations of ImageNet's training pixels: BGR in 0..255 as Caffe's models were trained,
# RGB in 0..1 as Torch's were.
_CAFFE_MEAN_BGR = np.array([103.939, 116.779, 123.68], np.float32)
_TORCH_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_TORCH_STD = np.array([0.229, 0.224, 0.225], np.float32)

MODES: dict[str, str] = {
    "caffe": "RGB -> BGR, minus (103.939, 116.779, 123.68)",
    "tf": "x / 127.5 - 1",
    "torch": "(x / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)",
    "lite0": "(x - 127) / 128",
    "rescale": "x / 255",
    "none": "x, since the network's own first layers do the rest",
}
"""Every mode and its formula, x in 0..255."""


BGR = "bgr:"
"""Before a mode: its three channels in the opposite order."""
MEAN_STD = "mean-std"
_MEAN_STD = re.compile(rf"{MEAN_STD}:([-0-9.e]+(?:,[-0-9.e]+){{2}}):([-0-9.e]+(?:,[-0-9.e]+){{2}})")


def mode_of(mean: Sequence[float], std: Sequence[float]) -> str:
    """The mode that is (x / 255 - mean) / std, RGB: one of `MODES` where that is the same, else "mean-std:...:...".

    Raises BackboneError for what are not three usable numbers each.
    """
    means, stds = tuple(float(x) for x in mean), tuple(float(x) for x in std)
    if (
        len(means) != 3
        or len(stds) != 3
        or not all(abs(x) < 1e3 for x in means)
        or not all(1e-3 < x < 1e3 for x in stds)
    ):
        raise BackboneError(
            f"preprocessing: expected a mean and deviation for red, green and blue, got {means}, {stds}"
        )
    known = {((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "torch", ((0.5,) * 3, (0.5,) * 3): "tf"}
    known[((0.0,) * 3, (1.0,) * 3)] = "rescale"
    numbers = (",".join(f"{x:.9g}" for x in three) for three in (means, stds))
    return known.get((means, stds), ":".join((MEAN_STD, *numbers)))


def _numbers_of(mode: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Mean and deviation of a mode that `mode_of` spelled; None of any other."""
    match = _MEAN_STD.fullmatch(mode)
    if not match:
        return None
    try:
        means, stds = ([float(x) for x in three.split(",")] for three in match.groups())
        if mode_of(means, stds) != mode:
            return None
    except (ValueError, BackboneError):
        return None
    return np.array(means, np.float32), np.array(stds, np.float32)


def mode_for(spec: NetworkSpec, own: Callable[[], str]) -> str:
    """The preprocessing that a person asks for, else what `own` gives.

    Raises
    ------
    BackboneError : an unknown mode, or settings that contradict each other.
    """
    asked = None if spec.preprocessing in (None, "model") else str(spec.preprocessing)
    numbers = {"mean": spec.mean, "std": spec.std}
    if given := [name for name, value in numbers.items() if value is not None]:
        if asked is not None:
            raise BackboneError(f"`{given[0]}` and `preprocessing` exclude each other: give one of them")
        if len(given) == 1:
            raise BackboneError("`mean` and `std` go together: give both, of red, green and blue in 0..1")
        mode = mode_of(*map(tuple, numbers.values()))  # type: ignore[arg-type]
    else:
        mode = own() if asked is None else check_mode(asked)
    if spec.colour_order == "bgr":
        return check_mode(BGR + mode)
    return mode


def check_mode(mode: str) -> str:
    """`mode`, if it is one of `MODES`, or as `mode_of` spells it; with "bgr:" before it where that is another order.

    Raises
    ------
    BackboneError : it is none; the message offers the nearest ones.
    """
    base = mode.removeprefix(BGR)
    if base != mode and base == "caffe":
        raise BackboneError(
            "preprocessing 'caffe' is in the order blue, green, red as it is", "Leave out `colour_order`"
        )
    if base not in MODES and _numbers_of(base) is None:
        raise BackboneError(f"there is no preprocessing {mode!r}: {nearest(mode, MODES)}")
    return mode


def formulas() -> str:
    """Every mode and its formula, for a message."""
    return "; ".join([*(f"{mode}: {formula}" for mode, formula in MODES.items()), "or set `mean` and `std`"])


def preprocess(pixels: NDArray[np.uint8], mode: str) -> NDArray[np.float32]:
    """What a network trained with `mode` expects for `pixels`, which stay as they are.

    Parameters
    ----------
    pixels : ndarray of shape (n, h, w, 3), uint8, RGB
    mode : one of `MODES`, or as `mode_of` spells it

    Returns
    -------
    ndarray of shape (n, h, w, 3), float32, C-contiguous, always new memory

    Raises
    ------
    BackboneError : another shape or dtype, or an unknown mode.
    """
    check_mode(mode)
    check_pixels(pixels)
    if mode.startswith(BGR):
        return np.ascontiguousarray(preprocess(pixels, mode.removeprefix(BGR))[..., ::-1])
    if mode == "caffe":
        x = pixels[..., ::-1].astype(np.float32, order="C")
        x -= _CAFFE_MEAN_BGR
        return x
    x = pixels.astype(np.float32, order="C")
    # In place and in this order, so that every value is rounded exactly as Keras rounds it.
    if mode == "tf":
        x /= 127.5
        x -= 1
    elif mode == "torch":
        x /= 255
        x -= _TORCH_MEAN
        x /= _TORCH_STD
    elif mode == "lite0":
        x -= 127
        x /= 128
    elif mode == "rescale":
        x /= 255
    elif numbers := _numbers_of(mode):
        x /= 255
        x -= numbers[0]
        x /= numbers[1]
    return x


def check_pixels(pixels: Any) -> None:
    """Raise BackboneError unless `pixels` is an ndarray of shape (n, h, w, 3), uint8."""
    if not isinstance(pixels, np.ndarray):
        raise BackboneError(f"pixels: expected a NumPy array (n, h, w, 3) of uint8, got {type(pixels).__name__}")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise BackboneError(f"pixels: expected shape (n, h, w, 3) of uint8, got {pixels.shape} of {pixels.dtype}")
