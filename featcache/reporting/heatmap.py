"""Heatmaps: what each place of an image adds to a logit, in colour over the image."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDE_PX = 448
_FOR, _AGAINST = np.array([214, 39, 40]), np.array([31, 119, 180])  # colour-blind people tell them apart
_MOST = 0.65
"""Share of the colour where most is added."""


def heatmap(picture: NDArray[np.uint8], places: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The image (s, s, 3), and beside it the same with its heatmap: ndarray (448, 896, 3), uint8, RGB.

    places : (h, w), what each adds to a logit. Red is for the class, blue against it; the largest has the full colour.
    """
    large = cv2.resize(picture, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_CUBIC)
    smooth = cv2.resize(places.astype(np.float32), (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_CUBIC)
    share = smooth / max(float(np.abs(places).max()), np.finfo(np.float32).tiny)
    colour = np.where(share[..., None] > 0, _FOR, _AGAINST)
    alpha = _MOST * np.clip(np.abs(share), 0, 1)[..., None]
    return np.hstack([large, np.rint(large * (1 - alpha) + colour * alpha).astype(np.uint8)])
