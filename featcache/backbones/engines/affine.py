"""Preprocessing as numbers that a graph can hold: an order of channels, a factor and a sum each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import preprocess


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


def _values(mode: str, pixels: NDArray[np.generic]) -> NDArray[np.float64]:
    """Preprocessed pixels, (n, 3) -> (n, 3)."""
    values: NDArray[np.float64] = preprocess(pixels.astype(np.uint8)[None, None], mode)[0, 0].astype(np.float64)
    return values
