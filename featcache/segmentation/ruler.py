"""The red cells of a whole folder, which say how large cells are where a picture alone has nothing to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from featcache.core.errors import ImageError
from featcache.images import Pixels
from featcache.segmentation.classical import side_in_red_cells
from featcache.segmentation.contract import Segmented, Segmenter
from featcache.segmentation.options import SegmentOptions
from featcache.segmentation.picture import segment_picture
from featcache.segmentation.pictures import Picture

_LOOKED_AT, _FEWEST = 24, 3
"""Of the pictures, to measure red cells in; and from how many a median is trusted."""
_ANOTHER = 1.6
"""By how much red cells of a field are larger or smaller than in the others, from which it is remarked on."""


def sides_of(pictures: Sequence[Picture]) -> list[tuple[float, float]]:
    """Of some pictures of a folder: the shorter side in diameters of red cells, and such a diameter in pixels."""
    usable = [picture for picture in pictures if not picture.problem]
    found = []
    for picture in usable[:: max(1, len(usable) // _LOOKED_AT)]:
        try:
            pixels = picture.read()
        except ImageError:
            continue
        if side := side_in_red_cells(pixels):
            found.append((side, min(pixels.shape[:2]) / side))
    return found


def ruler_of(sides: Sequence[tuple[float, float]]) -> float:
    """The diameter of red cells in most of the pictures, pixels; 0 where too few show any."""
    return round(median(red_px for _, red_px in sides), 1) if len(sides) >= _FEWEST else 0.0


def segment_field(
    pixels: Pixels, options: SegmentOptions, *, ruler_px: float, segmenter: Segmenter | None = None
) -> tuple[Segmented, str]:
    """Every white cell of a smear, and what is said of it where red cells have another size than elsewhere, or "".

    A field without white cells may have nothing to measure but platelets, and where red cells lie in sheets they are
    taken for large ones. Where cells seem smaller than elsewhere, or seem larger and none is white, they are therefore
    taken to be as large as in the other fields.

    ruler_px : of `ruler_of`; 0 where it is not known
    """
    seen = segment_picture(pixels, options, job="smear", segmenter=segmenter)
    red_px = seen.red_cell_px
    if options.red_cell_px or not red_px or not ruler_px or 1 / _ANOTHER < red_px / ruler_px < _ANOTHER:
        return seen, ""
    taken = "left as it is"
    if red_px < ruler_px or not seen.cells:
        seen = segment_picture(pixels, replace(options, red_cell_px=ruler_px), job="smear", segmenter=segmenter)
        taken = f"they are taken to be {ruler_px:.0f} px wide here, too"
    return seen, (
        f"another magnification, or no red cells to measure: they seem {red_px:.0f} px, and {ruler_px:.0f} px "
        f"wide in the other fields; {taken}"
    )
