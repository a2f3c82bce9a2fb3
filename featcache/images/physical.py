"""How large a pixel is, in micrometres: as files of microscopes say it, and what of that can be believed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from featcache.core.recipe import UM_PER_PX

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from tifffile import TiffFile, TiffPage

_UM = {
    **{"m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "å": 1e-4},
    **{"micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "millimeter": 1e3, "nanometer": 1e-3},
    **{"in": 25_400.0, "inch": 25_400.0, "thou": 25.4, "mil": 25.4},
}
"""Micrometres in a unit, by its name in small letters."""
_INCH, _CENTIMETRE = 2, 3
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_LARGEST_OF_TAGS_UM = 10.0
"""Of a larger pixel, resolution tags speak of paper or a screen: 72, 96 and 300 dots an inch are 353, 265 and 85."""
_SQUARE = 0.01
"""Share by which width and height of a pixel may differ."""
_MOST_XML = 1 << 26


class PixelSize(NamedTuple):
    """Side of a pixel in micrometres, 0 where nobody knows it; and why not, or ""."""

    um: float = 0.0
    problem: str = ""


UNKNOWN = PixelSize(0.0, "the file does not say how large its pixels are")


def pixel_size(across_um: float, down_um: float) -> PixelSize:
    """What a file says of its pixels, if that can be: they are square, and neither atoms nor millimetres large."""
    least, most = UM_PER_PX
    for side in (across_um, down_um):
        if not (math.isfinite(side) and least <= side <= most):
            return PixelSize(0.0, f"the file says that its pixels are {side:g} µm wide, which cannot be")
    if abs(across_um - down_um) > _SQUARE * max(across_um, down_um):
        return PixelSize(0.0, f"the file says that its pixels are not square: {across_um:g} µm by {down_um:g} µm")
    return PixelSize(float(f"{across_um:.9g}"))


def of_tiff(file: TiffFile, page: TiffPage) -> PixelSize:
    """Of a page of a TIFF: by OME-XML, by what ImageJ writes, or else by its resolution."""
    if file.is_ome:
        return _of_ome(file.ome_metadata or "", page)
    across, down = (_number(page.tags.valueof(tag)) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    if across <= 0 or down <= 0:
        return UNKNOWN
    if file.is_imagej:  # pixels in a unit that ImageJ names in words of its own
        unit = _um_in(str((file.imagej_metadata or {}).get("unit", "")))
        return pixel_size(unit / across, unit / down) if unit else UNKNOWN
    unit = {_INCH: 25_400.0, _CENTIMETRE: 1e4}.get(int(_number(page.tags.valueof(_RESOLUTION_UNIT, _INCH))), 0.0)
    if not unit or max(unit / across, unit / down) > _LARGEST_OF_TAGS_UM:
        return UNKNOWN
    return pixel_size(unit / across, unit / down)


def _number(value: Any) -> float:
    """A number or fraction of a tag; 0 for anything else."""
    try:
        over, under = value if isinstance(value, tuple) else (value, 1)
        return float(over) / float(under)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 0.0


def _um_in(unit: str) -> float:
    """Micrometres in a unit; 0 for what is none, as "pixel"."""
    plain = unit.strip().replace("\\u00B5", "µ").replace("\u03bc", "µ").lower()  # a Greek letter, and ImageJ's spelling
    return _UM.get(plain, 0.0)


def _of_ome(text: str, page: TiffPage) -> PixelSize:
    """By the first image of OME-XML, if it is of a picture of this size."""
    pixels = _element(text, "Pixels")
    if pixels is None:
        return PixelSize(0.0, "its OME-XML cannot be read")
    sides = (pixels.get("SizeX", ""), pixels.get("SizeY", ""))
    if sides != (str(page.imagewidth), str(page.imagelength)):
        return PixelSize(0.0, f"its OME-XML is of a picture of {'x'.join(sides):.40} px")
    found = []
    for axis in "XY":
        value, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if value is None:
            return UNKNOWN
        if not (um := _um_in(unit)):
            return PixelSize(0.0, f"the file says how large its pixels are in {unit!r:.40}, which is no length")
        try:
            found.append(float(value) * um)
        except ValueError:
            return PixelSize(0.0, f"the file says that its pixels are {value!r:.40} {unit:.40} wide, which cannot be")
    return pixel_size(*found)


def of_czi(metadata: str) -> PixelSize:
    """By the metadata of a CZI file, which are in metres."""
    scaling = _element(metadata, "Scaling")
    if scaling is None:
        return UNKNOWN
    found = {}
    for distance in scaling.iter("Distance"):
        try:
            found[distance.get("Id")] = float(distance.findtext("Value", "")) * 1e6
        except ValueError:
            return PixelSize(0.0, "the file does not say in numbers how large its pixels are")
    return pixel_size(found["X"], found["Y"]) if {"X", "Y"} <= found.keys() else UNKNOWN


def _element(text: str, name: str) -> Element | None:
    """The first element of a name, of any namespace; None where there is none, or the text is no XML."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    if len(text) > _MOST_XML:
        return None
    try:
        root: Element = fromstring(text)
    except (ParseError, DefusedXmlException, ValueError):
        return None
    return next((one for one in root.iter() if isinstance(one.tag, str) and one.tag.rpartition("}")[2] == name), None)
