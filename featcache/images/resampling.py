"""Resizing with the filters of Pillow, which are those of torchvision and timm: antialiased where an image shrinks.

Pixels of 8 bits go through Pillow as they are. Others, of which Pillow takes no colours, go channel by channel as
float32, with the same filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FILTERS: Mapping[str, Image.Resampling] = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Region = tuple[float, float, float, float]
"""left, top, right, bottom, in pixels; fractions of pixels are taken for what they are."""
Number = TypeVar("Number", np.uint8, np.uint16, np.float32)


def resampled(
    pixels: NDArray[Number], filter_: str, *, width_px: int, height_px: int, region: Region | None = None
) -> NDArray[Number]:
    """A region of an image, or all of it, in another size.

    A region has the pixels that the same region of the whole image, resized by the same factors, has.

    pixels : ndarray of shape (height, width, c), uint8, uint16 or float32; of uint8, c is 3
    filter_ : one of `FILTERS`
    """
    size, how = (width_px, height_px), FILTERS[filter_]
    if pixels.dtype == np.uint8:
        return np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, how, region), pixels.dtype)
    planes = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, how, region))
        for plane in np.moveaxis(pixels, -1, 0)
    ]
    made = np.stack(planes, axis=-1)
    if pixels.dtype == np.uint16:
        made = np.rint(made).clip(0, 65535)
    return made.astype(pixels.dtype)
