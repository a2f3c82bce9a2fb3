"""Preprocessing as numbers that a graph can hold, and as its first layers: an order of channels, a factor and a sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.import_keras import import_keras
from featcache.backbones.preprocess import preprocess
from featcache.core.errors import BackboneError

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Affine:
    """x -> x[..., order] * scale + offset.

    Attributes
    ----------
    order : of the input's channels.
    scale, offset : ndarrays of shape (3,), float32, one for each output channel.
    """

    order: tuple[int, int, int]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]


def affine_of(mode: str) -> Affine | None:
    """What `preprocess` does in `mode`, found by asking it; None if these numbers do not say all of it.

    So every formula stands in one place. A graph rounds otherwise than the formula, by parts in ten million.
    """
    black = _values(mode, np.zeros((1, 3)))[0]
    bright = _values(mode, 255 * np.eye(3)) - black  # (input channel, output channel)
    order = np.abs(bright).argmax(axis=0)
    scale = bright[order, np.arange(3)] / 255
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 3))
    pixels[:256] = np.arange(256)[:, None]
    expected = _values(mode, pixels)
    if not np.allclose(pixels[:, order] * scale + black, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max()):
        return None
    first, second, third = (int(channel) for channel in order)
    return Affine((first, second, third), scale.astype(np.float32), black.astype(np.float32))


def preprocessed(pixels: keras.KerasTensor, mode: str) -> keras.KerasTensor:
    """What `preprocess` makes of pixels (n, s, s, 3) of 0 to 255, float32, by layers of Keras.

    Raises BackboneError where the numbers of an `Affine` do not say it.
    """
    keras = import_keras()
    affine = affine_of(mode)
    if affine is None:
        raise BackboneError(f"preprocessing {mode}: it cannot be made part of a network")
    if affine.order == (2, 1, 0):
        pixels = keras.ops.flip(pixels, axis=-1)
    if mode == "none":
        return pixels
    scale, offset = affine.scale.tolist(), affine.offset.tolist()
    return keras.layers.Rescaling(scale, offset, name="preprocessing", dtype="float32")(pixels)


def _values(mode: str, pixels: NDArray[np.generic]) -> NDArray[np.float64]:
    """Preprocessed pixels, (n, 3) -> (n, 3)."""
    values: NDArray[np.float64] = preprocess(pixels.astype(np.uint8)[None, None], mode)[0, 0].astype(np.float64)
    return values
