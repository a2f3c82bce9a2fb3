"""Two classical segmenters. They differ in how they tell nuclei from all else; what follows is the same for both."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.images import Box, Pixels
from featcache.segmentation.contract import Cell, Mask, Rejected, Segmented
from featcache.segmentation.density import background_of, density_of, field_of, otsu, purple_of, shrunk
from featcache.segmentation.judging import Part, filled, judged, part_of, why_nothing
from featcache.segmentation.maps import NuclearMap, Sees, View, view_of
from featcache.segmentation.nuclei import Nuclei, diameter, near, nuclei_of
from featcache.segmentation.outline import outlines_of
from featcache.segmentation.scale import NUCLEUS_IN_RED_CELLS, red_cell_px as measured

_LOOK_PX = 400
"""Longer side of the small picture, or of the window of a large one, that sizes are measured on."""
_SEEN_PX = 9.0
"""A red cell is measured on a picture where it has this many pixels at least."""
_WORK_PX = 32.0
"""Diameter of a red cell in the picture that is segmented: larger pictures are made smaller."""
_CROP_PX = 96
"""Longer side of a crop that is segmented."""
_LEAST_PX = 5.0
"""Diameter of red cells below which nuclei have too few pixels."""
_MOST_WORK = 60_000_000
"""Pixels of a picture that is segmented at once."""
_TRIED = 0.15
"""Area of a nucleus, in red cells, from which an outline is sought."""
_PARTLY, _NEARLY = (0.25, 0.88), (0.05, 0.95)
"""Two outlines are of one cell if they share this part of the smaller, and their union fills this part of its hull."""
_ACROSS = 2.6
"""Circle around all lobes of a nucleus, at most, in diameters of red cells."""
_MIDDLE, _CENTRE = 0.25, 0.4
"""Parts of a nucleus in a crop: their nearest point and their own middle lie this near to the middle, of its side."""
_CROP_SPECK = 0.003
"""Area of a part of a nucleus, at least, of the crop."""
_CROP_CONTRAST = 0.12
"""How much more purple a nucleus is than the rest of the crop, at least."""


class ClassicalSegmenter:
    """A segmenter made of a way to see nuclei. See `featcache.segmentation.contract.Segmenter`."""

    def __init__(self, sees: Sees) -> None:
        self._sees = sees

    def find(self, pixels: Pixels, *, red_cell_px: float | None = None) -> Segmented:
        """Every white cell of a smear."""
        look = shrunk(pixels, _LOOK_PX / max(pixels.shape[:2]))
        background = background_of(look)
        if background is None:
            return _nothing("black: there is no light in it")
        red_px = red_cell_px or _red_cells_of(pixels, look, background)
        if red_px == 0:
            return _nothing(why_nothing(pixels, background))
        if red_px < _LEAST_PX:
            return _nothing(f"cells are too small to see: red cells of about {red_px:.1f} pixels", red_px)
        scale = min(1.0, _WORK_PX / red_px)
        if pixels.shape[0] * pixels.shape[1] * scale**2 > _MOST_WORK:
            return _nothing("too large to be segmented at once: cut it into fields of view", red_px)
        view = view_of(pixels, background, scale=scale, red_px=red_px * scale)
        seen = self._sees(view)
        nuclei = seen and nuclei_of(seen.values, view.field, threshold=seen.threshold, red_px=view.red_px)
        if not seen or not nuclei:
            return _nothing(why_nothing(pixels, background), red_px)
        return _found(view, seen, nuclei, size=(pixels.shape[0], pixels.shape[1]), red_cell_px=red_px)

    def cut_out(self, pixels: Pixels) -> Segmented:
        """The one cell in the middle of a crop."""
        scale = min(1.0, _CROP_PX / max(pixels.shape[:2]))
        background = background_of(shrunk(pixels, scale))
        if background is None:
            return _nothing("black: there is no light in it")
        view = view_of(pixels, background, scale=scale, red_px=_CROP_PX / 3)
        nuclei = _middle_nucleus(view)
        if nuclei is None:
            return _nothing(why_nothing(pixels, background))
        red_px = max(
            2 * float(np.sqrt(nuclei.areas_px[0] / NUCLEUS_IN_RED_CELLS / np.pi)), diameter(nuclei.outlines[0]) / 1.75
        )
        polygon = outlines_of(view.density, nuclei, field=view.field, red_px=red_px)[0]
        part = part_of(view, nuclei, number=1, polygon=polygon)
        box, mask, nucleus = _full(replace(part, nucleus=_inner(view, part)), view, size=pixels.shape[:2])
        at_border = box.x_min == 0 or box.y_min == 0 or (box.y_max, box.x_max) == pixels.shape[:2]
        return Segmented((Cell(box, mask, nucleus, 1.0, at_border),), (), red_px / scale)


def _red_cells_of(pixels: Pixels, look: Pixels, background: NDArray[np.float64]) -> float:
    """Diameter of the red cells of a picture, pixels; 0 where it shows no cells.

    It is measured on a small picture, `look`; where cells are too small there, in the middle of larger ones.
    """
    scale = min(1.0, _LOOK_PX / max(pixels.shape[:2]))
    while True:
        density = density_of(look, background)
        red_px = measured(density, purple_of(density), field=field_of(look, background))
        if red_px >= _SEEN_PX or scale == 1:
            return float(red_px / scale)
        scale = min(1.0, 3 * scale)
        look = shrunk(_middle_of(pixels, round(_LOOK_PX / scale)), scale)


def side_in_red_cells(pixels: Pixels) -> float | None:
    """The shorter side of a picture in diameters of red cells; None where there is nothing to measure."""
    look = shrunk(pixels, _LOOK_PX / max(pixels.shape[:2]))
    background = background_of(look)
    red_px = 0.0 if background is None else _red_cells_of(pixels, look, background)
    return min(pixels.shape[:2]) / red_px if red_px else None


def _nothing(reason: str, red_px: float = 0.0) -> Segmented:
    return Segmented((), (Rejected(reason),), red_px)


def _middle_of(pixels: Pixels, side_px: int) -> Pixels:
    top, left = (max(0, (length - side_px) // 2) for length in pixels.shape[:2])
    return pixels[top : top + side_px, left : left + side_px]


def _found(view: View, seen: NuclearMap, nuclei: Nuclei, *, size: tuple[int, int], red_cell_px: float) -> Segmented:
    """Outline and judge each nucleus."""
    tried = nuclei.only(nuclei.areas_px > _TRIED * view.red_area_px)
    polygons: list[NDArray[np.float64]] = []
    if len(tried):
        polygons = outlines_of(view.density, tried, field=view.field, red_px=view.red_px)
        if pairs := _of_one_cell(view, tried, polygons):
            tried = tried.joined(pairs)
            polygons = outlines_of(view.density, tried, field=view.field, red_px=view.red_px)
    cells, left_out = [], []
    for number, polygon in enumerate(polygons, 1):
        one = judged(view, seen, nuclei=tried, number=number, polygon=polygon)
        box, mask, nucleus = _full(one.part, view, size=size)
        if one.reason:
            left_out.append(Rejected(one.reason, box))
        else:
            cells.append(Cell(box, mask, nucleus, one.score, one.at_border))
    if specks := len(nuclei) - int((nuclei.areas_px > _TRIED * view.red_area_px).sum()):
        left_out.append(
            Rejected(f"{specks} {'speck' if specks == 1 else 'specks'} smaller than a nucleus: platelets or dirt")
        )
    if not cells and not left_out:
        left_out.append(Rejected("no white cell"))
    cells.sort(key=lambda cell: (cell.box.y_min, cell.box.x_min))
    return Segmented(tuple(cells), tuple(left_out), red_cell_px)


def _of_one_cell(view: View, nuclei: Nuclei, polygons: list[NDArray[np.float64]]) -> list[tuple[int, int]]:
    """Pairs of nuclei, counted from 0, whose outlines overlap as those of two lobes in one cell do."""
    pairs = []
    for a, b in near(nuclei.outlines, 2.2 * view.red_px):
        if diameter(np.concatenate([nuclei.outlines[a], nuclei.outlines[b]])) > _ACROSS * view.red_px:
            continue
        corner = np.floor(np.minimum(polygons[a].min(axis=0), polygons[b].min(axis=0))) - 1
        far = np.ceil(np.maximum(polygons[a].max(axis=0), polygons[b].max(axis=0))) + 2
        shape = tuple((far - corner).astype(int)[::-1])
        one, other = filled(polygons[a] - corner, shape), filled(polygons[b] - corner, shape)
        shared = float((one & other).sum()) / max(1, min(one.sum(), other.sum()))
        hull = cv2.contourArea(cv2.convexHull(np.argwhere(one | other).astype(np.float32)))
        solid = float((one | other).sum()) / max(1.0, hull)
        if any(shared > least and solid > full for least, full in (_PARTLY, _NEARLY)):
            pairs.append((a, b))
    return pairs


def _full(part: Part, view: View, *, size: tuple[int, ...]) -> tuple[Box, Mask, Mask]:
    """The box of a cell, its mask and its nucleus at the size of the original picture."""
    corner = np.array(part.corner)
    x0, y0 = (max(int(low / view.scale) - 2, 0) for low in corner)
    far = (corner + part.mask.shape[::-1]) / view.scale
    x1, y1 = (min(int(np.ceil(high)) + 2, most) for high, most in zip(far, size[::-1], strict=True))
    window = (x0, y0, x1, y1)
    core = _enlarged(part.nucleus, corner, window, scale=view.scale)
    end = corner + part.mask.shape[::-1]
    inside = _enlarged(view.field[corner[1] : end[1], corner[0] : end[0]], corner, window, scale=view.scale)
    polygon = (part.polygon + 0.5) / view.scale - 0.5 - (x0, y0)
    whole = filled(polygon, (y1 - y0, x1 - x0)) & inside | core
    if not whole.any():  # smaller than a pixel of a tiny picture
        whole = np.ones_like(whole)
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    top, bottom, left, right = (int(one) for one in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    box = Box(x0 + left, y0 + top, x0 + right, y0 + bottom)
    return box, whole[top:bottom, left:right], core[top:bottom, left:right]


def _enlarged(mask: Mask, corner: NDArray[np.intp], window: tuple[int, int, int, int], *, scale: float) -> Mask:
    """A mask at `corner` of the view as it is in a window (x_min, y_min, x_max, y_max) of the original."""
    x0, y0, x1, y1 = window
    to_small = np.array(
        [[scale, 0, (x0 + 0.5) * scale - 0.5 - corner[0]], [0, scale, (y0 + 0.5) * scale - 0.5 - corner[1]]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (x1 - x0, y1 - y0)
    large = cv2.warpAffine(mask.astype(np.float32), to_small, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(large > 0.5)


def _middle_nucleus(view: View) -> Nuclei | None:
    """The nucleus in the middle of a crop as number 1, what else is purple as number 2; None where there is none."""
    height, width = view.field.shape
    side = min(height, width)
    inside = np.clip(view.purple[view.field], 0, None)
    if len(inside) < 100:
        return None
    threshold = otsu(inside)
    above = inside > threshold
    if not above.any() or above.all() or inside[above].mean() - inside[~above].mean() < _CROP_CONTRAST:
        return None
    dark = ((view.purple > threshold) & view.field).astype(np.uint8)
    dark = cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, middles = cv2.connectedComponentsWithStats(dark)
    y, x = np.mgrid[:height, :width]
    away = np.hypot(y - height / 2, x - width / 2)
    numbers = np.zeros(count, np.int32)
    for label in range(1, count):
        if stats[label, cv2.CC_STAT_AREA] > _CROP_SPECK * height * width:
            is_near = away[labels == label].min() < _MIDDLE * side
            is_central = np.hypot(middles[label][0] - width / 2, middles[label][1] - height / 2) < _CENTRE * side
            numbers[label] = 1 if is_near and is_central else 2
    of = numbers[labels]
    if not (of == 1).any():
        return None
    found, _ = cv2.findContours((of == 1).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = np.concatenate(found)[:, 0].astype(np.float32)
    return Nuclei(of, (outline,), np.array([float((of == 1).sum())]))


def _inner(view: View, part: Part) -> Mask:
    """The nucleus of a crop's cell by a threshold within the cell alone."""
    x0, y0 = part.corner
    purple = view.purple[y0 : y0 + part.mask.shape[0], x0 : x0 + part.mask.shape[1]]
    inner = part.mask & (purple > otsu(purple[part.mask]))
    return inner if inner.any() else part.nucleus
