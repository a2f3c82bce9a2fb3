"""One picture, by the options: which segmenter and which job."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

from featcache.images import Pixels
from featcache.segmentation.classical import ClassicalSegmenter
from featcache.segmentation.contract import Segmented, Segmenter
from featcache.segmentation.maps import by_colour, by_stain
from featcache.segmentation.options import SegmentOptions

SEGMENTERS: dict[str, Segmenter] = {"stain": ClassicalSegmenter(by_stain), "colour": ClassicalSegmenter(by_colour)}
"""By the name of the method."""
_CROP_SIDE = 4.2
"""Shorter side of a picture, in diameters of red cells, below which it shows one cell."""

Job = Literal["smear", "cell"]


def segment_picture(
    pixels: Pixels, options: SegmentOptions, *, job: Job, segmenter: Segmenter | None = None
) -> Segmented:
    """White cells of one picture, (height, width, 3), uint8, RGB.

    job : "smear": every white cell; "cell": the one in the middle
    segmenter : None for that of the options' method
    """
    segmenter = segmenter or SEGMENTERS[options.method]
    if job == "cell":
        return segmenter.cut_out(pixels)
    return segmenter.find(pixels, red_cell_px=options.red_cell_px)


def job_of(sides: Sequence[float]) -> Job:
    """What the pictures of a folder show, by their shorter sides in diameters of red cells: the median decides."""
    return "cell" if sides and median(sides) < _CROP_SIDE else "smear"
