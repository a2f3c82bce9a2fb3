"""Optical density: how much light the dyes take away, relative to the bright background of the same picture.

By Beer and Lambert's law, density is proportional to the amount of dye, and layers add up. Thresholds on it hold for
bright and dark pictures, and for yellow and white light alike.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.images import Pixels
from featcache.segmentation.contract import Mask

Floats = NDArray[np.float32]

_MOST = 1.2
"""Densities above are not told apart: below a sixteenth of the light, 8 bits hold little but noise."""
_LEAST = -0.3
_PLENTY = 200
"""Shorter side of a picture from which every second pixel tells its background."""
_DARKEST = 40
"""A picture whose brightest pixels lie below this value, of 255, shows nothing."""
_LIT, _BLACK, _BRIGHT = 0.25, 0.22, 0.5
"""Shares of the brightest value: what the background can be among; what lies outside an eyepiece; what lies inside."""
_CORNER, _RIM = 0.005, 0.012
"""Black corners have this share of the picture at least; the rim of an eyepiece is this wide, of the longer side."""


def background_of(pixels: Pixels) -> NDArray[np.float64] | None:
    """Colour of the bright background, (3,): the median of the tenth of lit pixels that is brightest in green.

    None where the picture is black.
    """
    pixels = np.ascontiguousarray(pixels[::2, ::2]) if min(pixels.shape[:2]) > _PLENTY else pixels
    brightest = brightest_of(pixels)
    top = quantile(np.bincount(brightest.ravel(), minlength=256), 0.99)
    if top < _DARKEST:
        return None
    lit = brightest > _LIT * top
    green = np.bincount(pixels[..., 1][lit], minlength=256)
    chosen = pixels[lit & (pixels[..., 1] >= quantile(green, 0.9))]
    return np.array([quantile(np.bincount(chosen[:, channel], minlength=256), 0.5) for channel in range(3)], float)


def brightest_of(pixels: Pixels) -> NDArray[np.uint8]:
    """The largest channel of each pixel: (height, width), uint8."""
    red, green, blue = cv2.split(pixels)
    return np.asarray(cv2.max(cv2.max(red, green), blue))


def quantile(counts: NDArray[np.intp], share: float) -> int:
    """The smallest value that this share of all values do not exceed, by their histogram."""
    total = np.cumsum(counts)
    return int(np.searchsorted(total, share * total[-1]))


def density_of(pixels: Pixels, background: NDArray[np.float64]) -> Floats:
    """Optical density of each channel, (height, width, 3), float32: log10 of background over pixel."""
    values = np.log10(background + 1) - np.log10(np.arange(256, dtype=float) + 1)[:, None]
    table = np.clip(values, _LEAST, _MOST).astype(np.float32)[:, None, :]
    return np.asarray(cv2.LUT(pixels, table))


def purple_of(density: Floats) -> Floats:
    """How purple each pixel is: what red and green lose less what blue loses, (height, width), float32.

    The azure of a nucleus takes red and green light; haemoglobin and eosin take green and blue.
    """
    return np.asarray(density[..., 0] + density[..., 1] - density[..., 2])


def field_of(pixels: Pixels, background: NDArray[np.float64]) -> Mask:
    """The part of a picture that light reaches: all of it, or the field of an eyepiece without its rim."""
    brightest = brightest_of(pixels)
    height, width = brightest.shape
    top = float(background.max())
    black = (brightest < _BLACK * top).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(black)
    corners = {int(labels[y, x]) for y in (0, -1) for x in (0, -1)} - {0}
    if not any(stats[corner, cv2.CC_STAT_AREA] > _CORNER * height * width for corner in corners):
        return np.ones((height, width), bool)
    bright = (brightest > _BRIGHT * top).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(bright)
    if len(stats) < 2:
        return np.zeros((height, width), bool)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    outlines, _ = cv2.findContours((labels == largest).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    inside = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(np.concatenate(outlines)), 1)
    rim = max(2, round(_RIM * max(height, width)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * rim + 1, 2 * rim + 1))
    return np.asarray(cv2.erode(inside, kernel, borderType=cv2.BORDER_REPLICATE)) > 0


def shrunk(pixels: Pixels, scale: float) -> Pixels:
    """A picture made smaller by averaging over areas; from a scale of 1 on as it is."""
    if scale >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def some_of(values: Floats, most: int = 20_000) -> Floats:
    """At most so many of the values (n, ...), at even steps: enough for a quantile."""
    return values[:: max(1, len(values) // most)]


def otsu(values: Floats, *, bins: int = 256) -> float:
    """The threshold that parts values best into two classes (Otsu 1979); for equal values, that value."""
    values = some_of(values)
    low, high = float(values.min()), float(np.quantile(values, 0.999))
    if not high > low:
        return low
    counts, edges = np.histogram(values, bins, (low, high))
    middles = (edges[1:] + edges[:-1]) / 2
    below, mean = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    is_split = (below > 0) & (above > 0)
    gain = np.zeros(bins)
    gain[is_split] = (mean[-1] * below - mean * below[-1])[is_split] ** 2 / (below * above)[is_split]
    return float(middles[int(np.argmax(gain))])
