"""Views: the augmentation plan, its parameters, and rendering with OpenCV.

View 0 of an image is the plain one; views 1, 2, ... are augmented. Every parameter follows from
(seed, image_id, view) and its own name alone, so nothing depends on order, worker or batch, and a new
kind of parameter leaves the others as they were.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.core.recipe import Augmentation, FillMode
from featcache.images.squares import Pixels
from featcache.images.stains import with_stains

_BORDERS: dict[FillMode, int] = {
    "constant": cv2.BORDER_CONSTANT,
    "nearest": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT,
    "wrap": cv2.BORDER_WRAP,
}
_GREY = np.array([0.299, 0.587, 0.114])
"""Weights of R, G, B in the luma of ITU-R BT.601."""


@dataclass(frozen=True)
class ViewParameters:
    """What one view does to an image. The defaults are the plain view.

    rotation_deg : counter-clockwise
    shift_x, shift_y : as fractions of the side, to the right and down
    brightness : added, as a fraction of full white
    contrast, saturation : factors
    hue_deg : turn about the grey axis
    fill_value : grey level of points outside the border, where fill_mode is "constant"
    zoom : factor of the size
    haematoxylin, eosin : factors of the amount of each stain
    blur : standard deviation of a Gaussian blur, as a fraction of the side
    noise, noise_seed : standard deviation as a fraction of full white, and what decides the noise
    """

    rotation_deg: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_deg: float = 0.0
    fill_mode: FillMode = "constant"
    fill_value: int = 0
    zoom: float = 1.0
    haematoxylin: float = 1.0
    eosin: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The parameters by which a row is named: those of `ADDED_PARAMETERS` only where they do something."""
        return named_parameters(asdict(self))


PLAIN = ViewParameters()
ADDED_PARAMETERS: Mapping[str, Any] = {
    name: getattr(PLAIN, name) for name in ("zoom", "haematoxylin", "eosin", "blur", "noise", "noise_seed")
}
"""Parameters that rows of earlier versions are named without, as the plain view has them."""


def named_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without those that were added later and do nothing."""
    return {
        name: value
        for name, value in parameters.items()
        if name not in ADDED_PARAMETERS or value != ADDED_PARAMETERS[name]
    }


def view_parameters(augmentation: Augmentation, image_id: str, *, view: int) -> ViewParameters:
    """Parameters of one view of one image. View 0 is plain under every augmentation."""
    if view == 0:
        return PLAIN

    def unit(name: str) -> float:
        """A number in [0, 1) that only (seed, image_id, view, name) decide; SHA-256 stands for the generator."""
        identity = f"{augmentation.seed}\n{image_id}\n{view}\n{name}"
        return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:6], "big") / 2**48

    def within(name: str, bound: float) -> float:
        """Uniform in [-bound, bound), rounded so that every language prints it alike."""
        return round((2 * unit(name) - 1) * bound, 9) + 0.0  # -0.0 becomes 0.0

    modes = augmentation.fill_modes
    return ViewParameters(
        rotation_deg=within("rotation", augmentation.rotation_deg),
        shift_x=within("shift_x", augmentation.shift),
        shift_y=within("shift_y", augmentation.shift),
        flip_horizontal=augmentation.horizontal_flip and unit("flip_horizontal") < 0.5,
        flip_vertical=augmentation.vertical_flip and unit("flip_vertical") < 0.5,
        brightness=within("brightness", augmentation.brightness),
        contrast=1 + within("contrast", augmentation.contrast),
        saturation=1 + within("saturation", augmentation.saturation),
        hue_deg=within("hue", augmentation.hue_deg),
        fill_mode=modes[int(unit("fill_mode") * len(modes))],
        fill_value=augmentation.fill_value,
        zoom=1 + within("zoom", augmentation.zoom),
        haematoxylin=1 + within("haematoxylin", augmentation.stain),
        eosin=1 + within("eosin", augmentation.stain),
        blur=round(unit("blur") * augmentation.blur, 9),
        noise=round(unit("noise") * augmentation.noise, 9),
        noise_seed=int(unit("noise_seed") * 2**32) if augmentation.noise else 0,
    )


# Rendering


def render(plain: Pixels, parameters: ViewParameters) -> Pixels:
    """One view of a plain square image: geometry in one warp, stains, colour in one matrix, blur, noise.

    plain : ndarray of shape (size, size, 3), uint8, RGB; never changed
    """
    if parameters == PLAIN:
        return plain
    warped = cv2.warpAffine(
        plain,
        _geometry(parameters, plain.shape[0]),
        (plain.shape[1], plain.shape[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=_BORDERS[parameters.fill_mode],
        borderValue=(parameters.fill_value,) * 3,
    )
    values = warped.astype(np.float32)
    if (parameters.haematoxylin, parameters.eosin) != (1, 1):
        values = with_stains(values, parameters.haematoxylin, eosin=parameters.eosin)
    coloured = cv2.transform(values, _colour(parameters).astype(np.float32))
    if parameters.blur:
        coloured = cv2.GaussianBlur(coloured, (0, 0), parameters.blur * plain.shape[0], borderType=cv2.BORDER_REFLECT)
    if parameters.noise:  # of the generator whose numbers no version of NumPy changes
        noise = np.random.RandomState(parameters.noise_seed).standard_normal(coloured.shape)
        coloured = coloured + (255 * parameters.noise * noise).astype(np.float32)
    return np.asarray(cv2.add(coloured, 0, dtype=cv2.CV_8U))  # rounded half to even, and kept within 0 to 255


def _geometry(parameters: ViewParameters, size_px: int) -> NDArray[np.float64]:
    """The (2, 3) matrix from source to view pixels: flips, rotation and zoom about the centre; then the shift."""
    angle = math.radians(parameters.rotation_deg)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    flips = np.diag([-1.0 if parameters.flip_horizontal else 1.0, -1.0 if parameters.flip_vertical else 1.0])
    linear = parameters.zoom * rotation @ flips
    centre = np.full(2, (size_px - 1) / 2)
    shift = size_px * np.array([parameters.shift_x, parameters.shift_y])
    return np.column_stack([linear, centre - linear @ centre + shift])


def _colour(parameters: ViewParameters) -> NDArray[np.float64]:
    """The (3, 4) matrix on RGB in [0, 255]: hue, saturation, contrast about mid-grey, brightness."""
    matrix = parameters.contrast * _saturation(parameters.saturation) @ _hue(parameters.hue_deg)
    offset = 127.5 * (1 - parameters.contrast) + 255 * parameters.brightness
    return np.column_stack([matrix, np.full(3, offset)])


def _saturation(factor: float) -> NDArray[np.float64]:
    return factor * np.eye(3) + (1 - factor) * np.outer(np.ones(3), _GREY)


def _hue(degrees: float) -> NDArray[np.float64]:
    """Rotation about the grey axis (1, 1, 1) by Rodrigues' formula."""
    angle = math.radians(degrees)
    axis = np.ones(3) / math.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)


def png_of(pixels: Pixels) -> bytes:
    """An image (h, w, 3), uint8, RGB, as a PNG file."""
    _, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def contact_sheet(tiles: Sequence[Sequence[Pixels]], captions: Sequence[str], *, tile_px: int = 128) -> Pixels:
    """Views side by side, one image a line, its caption above: ndarray (height, width, 3), uint8, RGB.

    tiles : for each image its views; a line may be shorter than the others
    """
    gap, text_px = 6, 22
    columns = max(len(line) for line in tiles)
    line_px = tile_px + text_px + gap
    sheet = np.full((line_px * len(tiles) + gap, columns * (tile_px + gap) + gap, 3), 255, np.uint8)
    for row, (line, caption) in enumerate(zip(tiles, captions, strict=True)):
        top = row * line_px + gap
        printable = caption.encode("ascii", "replace").decode()
        cv2.putText(sheet, printable, (gap, top + 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
        for column, tile in enumerate(line):
            left = gap + column * (tile_px + gap)
            small = cv2.resize(tile, (tile_px, tile_px), interpolation=cv2.INTER_AREA)
            sheet[top + text_px : top + text_px + tile_px, left : left + tile_px] = small
    return sheet
