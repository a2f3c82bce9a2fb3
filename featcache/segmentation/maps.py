"""Two ways to tell nuclei from all else in a smear: stain deconvolution with a threshold, and clustering of colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.images import Pixels
from featcache.segmentation.contract import Mask
from featcache.segmentation.density import Floats, density_of, field_of, purple_of, shrunk
from featcache.segmentation.scale import levels

_NUCLEAR = 0.4
"""Where the threshold lies between the levels of red cells and of nuclei."""
_TOP = 0.4
"""Area whose mean is the level of nuclei, in red cells."""
_CLUSTERS, _SAMPLE = 4, 3000


@dataclass(frozen=True)
class View:
    """A picture at the scale that it is segmented at.

    density, purple, field : see `featcache.segmentation.density`
    scale : its pixels over those of the original
    red_px : diameter of a red cell, in its pixels
    """

    density: Floats
    purple: Floats
    field: Mask
    scale: float
    red_px: float

    @property
    def red_area_px(self) -> float:
        """Area of a red cell."""
        return float(np.pi / 4 * self.red_px**2)


def view_of(pixels: Pixels, background: NDArray[np.float64], *, scale: float, red_px: float) -> View:
    """A picture, made smaller by `scale`; the purple of it is smoothed by a little of a red cell's diameter."""
    small = shrunk(pixels, scale)
    density = density_of(small, background)
    smooth = cv2.GaussianBlur(purple_of(density), (0, 0), max(0.6, 0.03 * red_px))
    return View(density, smooth, field_of(small, background), scale, red_px)


@dataclass(frozen=True)
class NuclearMap:
    """How nuclear each pixel is.

    threshold : a pixel with a larger value is nuclear
    low, high : how purple red cells are, and nuclei
    """

    values: Floats
    threshold: float
    low: float
    high: float


Sees: TypeAlias = Callable[[View], NuclearMap | None]
"""Gives the nuclear map of a picture; None where it has no nuclei."""


def by_stain(view: View) -> NuclearMap | None:
    """Nuclei are where azure is much denser than in red cells: a threshold between the two levels."""
    known = levels(view.density, view.purple, field=view.field, nucleus_px=_TOP * view.red_area_px)
    if known is None:
        return None
    low, high = known
    return NuclearMap(view.purple, low + _NUCLEAR * (high - low), low, high)


def by_colour(view: View) -> NuclearMap | None:
    """Nuclei are those of the clusters of colours that are most purple (k-means in CIE L*a*b*).

    The colours are relative to the background. Since nuclei can be a thousandth of a smear, the sample that is
    clustered holds all grades of purple alike.
    """
    known = levels(view.density, view.purple, field=view.field, nucleus_px=_TOP * view.red_area_px)
    if known is None:
        return None
    low, high = known
    light = np.clip(np.float32(10) ** -view.density, 0, 1)
    blurred = cv2.GaussianBlur(light, (0, 0), max(0.6, 0.03 * view.red_px))
    colours = cv2.cvtColor(blurred, cv2.COLOR_RGB2LAB)
    purple = view.purple[view.field]
    sample = _balanced(purple)
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 0.1)
    chosen = colours[view.field][sample]
    _, labels, centres = cv2.kmeans(chosen, _CLUSTERS, None, stop, 2, cv2.KMEANS_PP_CENTERS)
    counts = np.bincount(labels[:, 0], minlength=_CLUSTERS)
    means = np.bincount(labels[:, 0], purple[sample], minlength=_CLUSTERS) / np.maximum(counts, 1)
    is_nuclear = means >= min(low + _NUCLEAR * (high - low), means.max())
    away = np.stack([np.sqrt(((colours - centre) ** 2).sum(axis=2)) for centre in centres])
    if is_nuclear.all():
        return None
    nuclear, other = away[is_nuclear].min(axis=0), away[~is_nuclear].min(axis=0)
    share = other / np.maximum(other + nuclear, 1e-6)
    return NuclearMap(share.astype(np.float32), 0.5, low, high)


def _balanced(purple: Floats) -> NDArray[np.intp]:
    """Places of values: at even steps of their rank, and as many at even steps of their size."""
    order = np.argsort(purple, kind="stable")
    number = min(_SAMPLE, len(order))
    ranks = np.linspace(0, len(order) - 1, number).astype(np.intp)
    sizes = np.linspace(purple[order[0]], purple[order[-1]], number)
    at = np.clip(np.searchsorted(purple[order], sizes), 0, len(order) - 1)
    return np.asarray(order[np.concatenate([ranks, at])])
