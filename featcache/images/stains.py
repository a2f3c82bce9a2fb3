"""Colours of stained cells: changed for augmentation, and brought to one appearance for normalisation.

Light is absorbed in proportion to the amount of stain (Beer and Lambert), so stains add up as optical densities,
-log10((v + 1) / 256) of each channel. Both normalisations are functions of the image alone: all images, those that
train and those that come later, are brought to the same fixed appearance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Densities of haematoxylin, eosin and DAB in R, G, B (Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23, 291)."""
_TO_STAINS = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True))
_FROM_STAINS = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)

_LAB_MEAN, _LAB_SD = np.array([55.0, 27.0, -25.0]), np.array([13.0, 13.0, 18.0])
"""CIE Lab of a white cell's pixels, as Romanowsky stains show them: what images are brought to."""
_LEAST_SD = 1.0

_LIGHT = 240.0
_FAINT = 0.15
"""Density below which a pixel is background (Macenko et al.'s beta)."""
_EXTREME = 1.0
"""Percentile that stands for the extreme angles (their alpha)."""
_REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
_REFERENCE_MOST = np.array([1.9705, 1.0308])
"""Stain vectors and largest amounts that images are brought to: those of Macenko et al.'s own program."""
_LEAST_PIXELS = 50


def with_stains(pixels: NDArray[np.float32], haematoxylin: float, *, eosin: float) -> NDArray[np.float32]:
    """Pixels (h, w, 3), float32, 0 to 255, with the amounts of two stains multiplied (Tellez et al. 2018)."""
    change = (_TO_STAINS @ np.diag([haematoxylin, eosin, 1.0]) @ _FROM_STAINS).astype(np.float32)
    density = -np.log10((pixels + 1) / np.float32(256))
    changed = cv2.transform(density, np.ascontiguousarray(change.T))
    return np.asarray(256 * np.power(np.float32(10), -changed) - 1, np.float32)


def reinhard(pixels: Pixels, mask: Mask) -> Pixels:
    """Mean and deviation of CIE Lab within the mask brought to fixed ones (Reinhard et al. 2001, IEEE CG&A 21(5), 34).

    pixels : (h, w, 3), uint8, RGB; all of them are changed
    """
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    of_cell = lab[mask].astype(np.float64)
    mean, deviation = of_cell.mean(axis=0), np.maximum(of_cell.std(axis=0), _LEAST_SD)
    changed = (lab - mean) * (_LAB_SD / deviation) + _LAB_MEAN
    return _rounded(cv2.cvtColor(changed.astype(np.float32), cv2.COLOR_LAB2RGB) * 255)


def macenko(pixels: Pixels, mask: Mask) -> Pixels:
    """Two stain vectors and their amounts brought to fixed ones (Macenko et al. 2009, ISBI, 1107).

    The vectors are the extreme directions in the plane of the two largest principal components of the densities within
    the mask. Where too little there is stained to tell, the pixels stay as they are.
    """
    density = -np.log((pixels.astype(np.float64) + 1) / _LIGHT)
    stained = density[mask]
    stained = stained[(stained > _FAINT).all(axis=1)]
    if len(stained) < _LEAST_PIXELS:
        return pixels
    _, directions = np.linalg.eigh(np.cov(stained.T))
    plane = directions[:, 1:]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    projected = stained @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    first, last = (
        plane @ np.array([np.cos(angle), np.sin(angle)]) for angle in np.percentile(angles, [_EXTREME, 100 - _EXTREME])
    )
    vectors = np.stack([first, last] if first[0] > last[0] else [last, first])  # haematoxylin absorbs more red
    if np.linalg.cond(vectors) > 1 / np.finfo(np.float32).eps or (vectors.sum(axis=1) <= 0).any():
        return pixels
    amounts = density.reshape(-1, 3) @ np.linalg.pinv(vectors)
    most = np.percentile(stained @ np.linalg.pinv(vectors), 99, axis=0)
    if (most <= 0).any():
        return pixels
    changed = _LIGHT * np.exp(-(amounts * (_REFERENCE_MOST / most)) @ _REFERENCE) - 1
    return _rounded(changed.reshape(pixels.shape))


NORMALISERS: Mapping[str, Callable[[Pixels, Mask], Pixels]] = {"reinhard-1": reinhard, "macenko-1": macenko}
"""By the spelling in a feature space; the number is raised where other pixels come out."""


def _rounded(values: NDArray[Any]) -> Pixels:
    return np.asarray(np.rint(np.nan_to_num(values)).clip(0, 255), np.uint8)
