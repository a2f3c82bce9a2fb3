"""The plain view of an image: its box, or the white cell that is found in it, as a square.

How cells are cut is a part of the feature space, so of the name of every row: `CellCut` is its spelling there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self

import cv2
import numpy as np

from featcache.core.errors import ArgumentsError, DatasetError
from featcache.core.project import LARGEST_WHITE, colour_of
from featcache.core.recipe import BLACK, FeatureSpace, Transform
from featcache.images import (
    NORMALISERS,
    OF_ARRAY,
    Box,
    Pixels,
    PixelSize,
    cut_and_resize,
    in_box,
    room_of_window,
    window,
)
from featcache.segmentation.contract import Cell, Mask, Segmenter
from featcache.segmentation.crops import around, fill_around
from featcache.segmentation.given import GivenMask
from featcache.segmentation.options import Background
from featcache.segmentation.picture import SEGMENTERS

CELL_CUT_VERSION = 1
"""Raised by hand when a segmenter, or the cut around its cells, gives other pixels; a golden test guards it."""

NOT_CUT, GIVEN, FITTED = "none", "given", "fitted-"
_SPELLING = re.compile(
    r"(stain|colour|given|fitted-[0-9a-f]{64})-([0-9]+):(keep|white|black|mean):(0|[0-9]\.[0-9]{1,6}|[0-9])"
)
NO_CELL = "no white cell was found in it"


class Plain(NamedTuple):
    """A plain view, (size_px, size_px, 3), uint8, RGB; and what is to be said of it, or ""."""

    pixels: Pixels
    remark: str = ""


@dataclass(frozen=True)
class CellCut:
    """How a white cell is found in an image and cut out.

    method : the name of a segmenter, of a fitted one with its digest; "given" for masks that come with the images
    background : what surrounds it: "keep", "white", "black" or "mean"
    margin : room around it, as a share of its longer side
    """

    method: str
    background: Background
    margin: float

    def __str__(self) -> str:
        margin = f"{self.margin:.6f}".rstrip("0").rstrip(".")
        return f"{self.method}-{CELL_CUT_VERSION}:{self.background}:{margin}"

    @property
    def fitted(self) -> str:
        """The digest of the fitted segmenter that finds the cell; "" where it is another one."""
        return self.method.removeprefix(FITTED) if self.method.startswith(FITTED) else ""

    @classmethod
    def is_given(cls, segmentation: str) -> bool:
        """Whether the `segmentation` of a feature space takes the masks that come with the images."""
        return segmentation != NOT_CUT and cls.read(segmentation).method == GIVEN

    @classmethod
    def fitted_of(cls, segmentation: str) -> str:
        """The digest of the fitted segmenter that is named in the `segmentation` of a feature space; "" of others."""
        return "" if segmentation == NOT_CUT else cls.read(segmentation).fitted

    @classmethod
    @lru_cache(maxsize=64)
    def read(cls, text: str) -> Self:
        """The inverse of `str`. Raises DatasetError for what another version wrote."""
        match = _SPELLING.fullmatch(text)
        if not match or int(match[2]) != CELL_CUT_VERSION:
            raise DatasetError(f"segmentation {text!r:.80}: this featcache cannot cut cells so", "Update featcache")
        return cls(match[1], match[3], float(match[4]))  # type: ignore[arg-type]


class Framing(NamedTuple):
    """How an image becomes a square, as a feature space spells it.

    resize, interpolation, resize_px, padding, margin : see `featcache.images.cut_and_resize`
    segmentation : how the cell in the box, or in the middle of the image, is cut out; "none" where it is not
    colour : how the colours are brought to one appearance, by those of the cell that was found, or of the whole view
    white : how files are read, before: see `featcache.images.read_picture`
    um_per_px : side of a pixel of the view in micrometres: the view is a `featcache.images.window` then, and
        `resize`, `resize_px` and `margin` do not count. 0 where physical sizes do not count
    """

    resize: str = "stretch"
    segmentation: str = NOT_CUT
    colour: str = "none"
    interpolation: str = "area-bicubic"
    resize_px: int = 0
    padding: str = BLACK
    margin: float = 0.0
    white: int = 0
    um_per_px: float = 0.0

    @classmethod
    def of(cls, space: FeatureSpace) -> Self:
        """That of a feature space."""
        return cls(*(getattr(space, name) for name in cls._fields))

    @classmethod
    def asked(cls, views: Any, size_px: int, *, own: Transform | None = None, said: Collection[str] = ()) -> Self:
        """What [views] of featcache.toml asks for, of a network that takes squares of `size_px`.

        own : how the network's library makes images square, where it says so; taken if `views.as_trained`
        said : settings that were asked for by themselves: they hold for every network

        Raises ArgumentsError for settings that contradict the network's own.
        """
        cut = CellCut(views.segment, views.background, views.cell_margin)
        colour = next((name for name in NORMALISERS if name.startswith(f"{views.normalise}-")), "none")
        segmentation = NOT_CUT if views.segment == "none" else str(cut)
        square = Transform(
            views.resize, views.interpolation, _resize_px(views.crop_share, size_px), colour_of(views.padding)
        )
        if views.um_per_px:
            is_own = own is not None and views.as_trained and "interpolation" not in said
            filter_ = own.interpolation if own is not None and is_own else views.interpolation
            square = Transform("crop", filter_, size_px, colour_of(views.padding))
        elif own is not None and views.as_trained:
            square = _overridden(own, square, said)
        return cls(
            square.resize,
            segmentation,
            colour,
            square.interpolation,
            0 if square.resize_px == size_px else square.resize_px,
            square.padding,
            views.margin,
            0 if views.white == LARGEST_WHITE else views.white,
            views.um_per_px,
        )

    def scale(self, size: PixelSize) -> float:
        """Pixels of an image in one of the view; 0 where physical sizes do not count.

        Raises DatasetError where it is not known how large the pixels of the image are.
        """
        if self.um_per_px and not size.um:
            raise DatasetError(f"{size.problem}, and views have pixels of {self.um_per_px:g} µm")
        return self.um_per_px / size.um if self.um_per_px else 0.0


def _resize_px(share: float, size_px: int) -> int:
    """The side of which the input is this share: rounded down, as timm does it."""
    return math.floor(size_px / share)


def _overridden(own: Transform, asked: Transform, said: Collection[str]) -> Transform:
    """A network's own way, but for what was asked for by itself. Another `resize` leaves only its filter."""
    if "resize" in said and asked.resize != own.resize:
        interpolation = asked.interpolation if "interpolation" in said else own.interpolation
        return Transform(asked.resize, interpolation, asked.resize_px, asked.padding)
    for name, needed in (("padding", "pad"), ("crop_share", "crop")):
        if name in said and own.resize != needed:
            raise ArgumentsError(
                f"`{name}` is for `resize='{needed}'`, and the network's library says {own.resize}",
                f"Set `resize='{needed}'`, too",
            )
    return Transform(
        own.resize,
        asked.interpolation if "interpolation" in said else own.interpolation,
        asked.resize_px if "crop_share" in said else own.resize_px,
        asked.padding if "padding" in said else own.padding,
    )


AS_IT_IS = Framing()


def plain_view(
    pixels: Pixels,
    box: Box | None,
    *,
    size_px: int,
    framing: Framing = AS_IT_IS,
    segmenter: Segmenter | None = None,
    mask: GivenMask | None = None,
    size: PixelSize = OF_ARRAY,
) -> Plain:
    """The plain view of an image. Where no cell is found that is to be cut out, the remark says so.

    segmenter : the fitted one that the framing names; a classical one is known by its name
    mask : the one that comes with the image, where the framing asks for such
    size : how large the pixels of the image are

    Raises DatasetError for a box that reaches out of the image, for a way to cut or colour that is not known, and where
    the framing counts physical sizes and that of the image is not known.
    """
    segmentation, colour = framing.segmentation, framing.colour
    if colour != "none" and colour not in NORMALISERS:
        raise DatasetError(f"colour {colour!r:.80}: this featcache cannot change colours so", "Update featcache")
    in_box(pixels, box)  # refuses one that reaches out, whatever is found around it
    scale = framing.scale(size)
    cut = None if segmentation == NOT_CUT else CellCut.read(segmentation)
    if cut is not None and cut.method == GIVEN:
        cell, lacking = _given_cell(pixels, box, mask)
    else:
        cell, lacking = _cell_in(pixels, box, segmenter or _classical(cut)) if cut else None, NO_CELL
    if cut is None or cell is None:
        view = _squared(pixels, box, size_px=size_px, framing=framing, scale=scale)
        return Plain(_coloured(view, np.ones(view.shape[:2], bool), colour), lacking if cut else "")
    part, inside, place = _square_around(pixels, cell, _side_px(cell, cut.margin, size_px=size_px, scale=scale))
    part = _coloured(part, inside, colour)
    if cut.background != "keep":
        part = fill_around(part, inside, background=cut.background)
    if scale:
        return Plain(_squared(part, place, size_px=size_px, framing=framing, scale=scale))
    return Plain(cut_and_resize(part, None, size_px=size_px, interpolation=framing.interpolation))


def _squared(pixels: Pixels, box: Box | None, *, size_px: int, framing: Framing, scale: float) -> Pixels:
    """A box or the whole image as a square."""
    if scale:
        return window(
            pixels,
            box,
            size_px=size_px,
            scale=scale,
            interpolation=framing.interpolation,
            padding=framing.padding,
        )
    return cut_and_resize(
        pixels,
        box,
        size_px=size_px,
        resize=framing.resize,
        interpolation=framing.interpolation,
        resize_px=framing.resize_px,
        padding=framing.padding,
        margin=framing.margin,
    )


def _side_px(cell: Cell, margin: float, *, size_px: int, scale: float) -> int:
    """Side of the square in which a cell is shown: in proportion to the cell, or what a window at one scale takes."""
    longer = max(cell.box.x_max - cell.box.x_min, cell.box.y_max - cell.box.y_min)
    if scale:
        return max(room_of_window(size_px, scale), longer)
    return max(round(longer * (1 + 2 * margin)), 1)


def _coloured(pixels: Pixels, mask: Mask, colour: str) -> Pixels:
    return pixels if colour == "none" else NORMALISERS[colour](pixels, mask)


def _given_cell(pixels: Pixels, box: Box | None, mask: GivenMask | None) -> tuple[Cell | None, str]:
    """The cell of a box, or of the image, in its mask; and what to say where there is none."""
    if mask is None:
        return None, "no mask came with it"
    if mask.size != (pixels.shape[1], pixels.shape[0]):
        raise DatasetError(
            f"its mask has {mask.size[0]}x{mask.size[1]} pixels, and the picture {pixels.shape[1]}x{pixels.shape[0]}"
        )
    return mask.cell_in(box), "its mask shows no cell in its box"


def _classical(cut: CellCut) -> Segmenter:
    if cut.fitted:
        raise DatasetError(f"its cell is cut out by the fitted segmenter {cut.fitted[:16]}.., which is not at hand")
    return SEGMENTERS[cut.method]


def _cell_in(pixels: Pixels, box: Box | None, segmenter: Segmenter) -> Cell | None:
    """The cell in the middle of a box, or of the image; its own box is within the image."""
    height, width = pixels.shape[:2]
    place = Box(0, 0, width, height) if box is None else around(box, size=pixels.shape)
    found = segmenter.cut_out(np.ascontiguousarray(pixels[place.y_min : place.y_max, place.x_min : place.x_max]))
    return found.cells[0].moved(place.x_min, place.y_min) if found.cells else None


def _square_around(pixels: Pixels, cell: Cell, side: int) -> tuple[Pixels, Mask, Box]:
    """The cell in the middle of a square of a side, mirrored beyond the image; where in it the cell is; and its box."""
    box = cell.box
    width, height = box.x_max - box.x_min, box.y_max - box.y_min
    left, top = box.x_min - (side - width) // 2, box.y_min - (side - height) // 2
    inside = pixels[max(top, 0) : top + side, max(left, 0) : left + side]
    before = (max(-top, 0), max(-left, 0))
    after = (side - before[0] - inside.shape[0], side - before[1] - inside.shape[1])
    square = np.asarray(
        cv2.copyMakeBorder(inside, before[0], after[0], before[1], after[1], cv2.BORDER_REFLECT), np.uint8
    )
    mask = np.zeros(square.shape[:2], bool)
    rows, columns = slice(box.y_min - top, box.y_max - top), slice(box.x_min - left, box.x_max - left)
    mask[rows, columns] = cell.mask
    return square, mask, Box(columns.start, rows.start, columns.stop, rows.stop)
