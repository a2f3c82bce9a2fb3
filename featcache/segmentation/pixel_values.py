"""What is known of each pixel of a crop: an early feature map of a network, the stains, and the way to the middle."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.images import Pixels, cut_and_resize
from featcache.segmentation.density import density_of, purple_of

Floats = NDArray[np.float32]

COLOURS = 10
"""Values of a pixel that come of its colour and place."""
_AROUND = 0.03
"""Standard deviation of the blur that shows what surrounds a pixel, as a share of the side."""
_LEVELS = (0.5, 0.98)
"""Quantiles of purple in a crop: what is not nucleus, and what is."""
_AT_ONCE = 32
"""Channels that OpenCV enlarges at once: its versions differ in how many they take."""


def colours_of(crop: Pixels, background: NDArray[np.float64], *, side_px: int) -> Floats:
    """Of each pixel of a crop made square: (side, side, COLOURS), float32.

    Optical density of red, green and blue, and purple; the same of its surroundings; purple between the levels of this
    crop; distance to the middle.
    """
    density = density_of(cut_and_resize(crop, None, size_px=side_px), background)
    purple = purple_of(density)
    low, high = np.quantile(purple, _LEVELS)
    own = np.dstack([density, purple])
    place = (np.arange(side_px, dtype=np.float32) + 0.5) / side_px - 0.5
    away = np.hypot(place[:, None], place[None])
    return np.dstack(
        [own, cv2.GaussianBlur(own, (0, 0), _AROUND * side_px), (purple - low) / max(high - low, 0.05), away]
    ).astype(np.float32)


def values_of(maps: NDArray[np.generic], colours: Floats) -> Floats:
    """All that is known of each pixel: (side, side, channels + COLOURS), float32.

    maps : (height, width, channels) of the network; enlarged to the size of the colours
    """
    side_px = colours.shape[0]
    parts = []
    for first in range(0, maps.shape[2], _AT_ONCE):
        some = np.ascontiguousarray(maps[..., first : first + _AT_ONCE], np.float32)
        large = cv2.resize(some, (side_px, side_px), interpolation=cv2.INTER_LINEAR)
        parts.append(large.reshape(side_px, side_px, -1))
    return np.concatenate([*parts, colours], axis=2)
