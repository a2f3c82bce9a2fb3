"""TIFF: one picture out of the many things that a TIFF can hold, read by tifffile with its declared range and colours.

What is read is an allow-list: kinds of pixels and compressions whose reading is certain. All else is refused by name.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache.core.errors import ImageError
from featcache.images.physical import of_tiff
from featcache.images.pixels import FLOATING, ROOM, Decoded, Samples, check_size, finished

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_PAGES = 1000
_BIG_SEGMENT = 4
"""A strip or tile may decode to so many times the samples that the page declares for it."""

_LOSSLESS = frozenset({1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000})
"""None, fax (three kinds), LZW, Deflate, PackBits, old Deflate, LZMA, Zstandard."""
_PICTURES = {7: "JPEG", 33005: "JPEG 2000", 34712: "JPEG 2000", 34933: "PNG", 50001: "WebP"}
"""Each strip or tile is a small picture of its own."""
_BY_LIBTIFF = frozenset({6})
"""Old JPEG, which Pillow reads through libtiff."""

_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
"""Photometric interpretation -> colour channels: white is 0, black is 0, RGB, palette, CMYK, YCbCr."""
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = _COLOURS
_ASSOCIATED, _UNASSOCIATED = 1, 2
_FLOATING_POINT = 3
_ORIENTATION = 274
_MAX_SAMPLE = 281

logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False


def read_tiff(data: bytes, white: int = 0, *, is_look: bool = False) -> Decoded | None:
    """The first full-size picture of a TIFF; None for a kind that Pillow reads rightly and tifffile does not.

    white, is_look : as of `featcache.images.pixels.finished`

    Raises
    ------
    ImageError
        With the reason. Damaged files raise what tifffile and the codecs raise.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data), _multifile=False) as file:
        page, remark = _picture(file)
        wanted = check_size(
            page.imagewidth, page.imagelength, bytes_per_pixel=-(-_bits(page) // 8) * page.samplesperpixel
        )
        _check_kind(page)
        if page.compression in _BY_LIBTIFF and page is file.pages.first:
            return None
        _check_segments(page, data)
        with ROOM.taken(wanted):
            samples = _samples(page, _pixels(page), remark)
            return replace(finished(samples, white, is_look=is_look), size=of_tiff(file, page))


def _picture(file: TiffFile) -> tuple[TiffPage, str]:
    """The page to read, and what to say where it is not the only picture."""
    pages: list[Any] = list(islice(file.pages, _MOST_PAGES))
    pictures = [page for page in pages if not _is_reduced(page) and not page.is_mask]
    if not pictures:
        inner = [page for outer in pages for page in outer.pages or ()]
        pictures = [page for page in inner if not _is_reduced(page)] or pages[:1]
    page = pictures[0]
    _refuse_parted_colours(file, page, len(pictures))
    if len(pictures) > 1:
        return page, "it holds several pictures (pages); the first was taken"
    planes = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
    if planes > 1:
        return page, "it is a stack of several planes; the first was taken"
    return page, "" if page is pages[0] else "its first page is a thumbnail; the full picture was taken"


def _is_reduced(page: TiffPage) -> bool:
    return page.is_reduced or page.tags.valueof(255, 1) == 2


def _refuse_parted_colours(file: TiffFile, page: TiffPage, pages: int) -> None:
    """ImageJ and OME-TIFF keep the channels of one picture as pages: the first alone would be a wrong picture."""
    channels = 1
    if file.is_imagej:
        channels = int((file.imagej_metadata or {}).get("channels", 1))
    elif file.is_ome and pages > 1:
        found = re.search(r'SizeC="(\d{1,6})"', file.ome_metadata or "")
        channels = int(found[1]) if found else 1
    if channels > 1 and page.samplesperpixel == 1:
        raise ImageError(f"it holds {channels} channels as separate planes: merge them into one RGB picture")


def _bits(page: TiffPage) -> int:
    bits: Any = page.bitspersample
    if isinstance(bits, tuple):
        raise ImageError(f"its channels have {', '.join(map(str, bits))} bits: save it with 8 or 16 bits a channel")
    return int(bits)


def _check_kind(page: TiffPage) -> None:
    """Refuse by name what has no certain reading as colours."""
    if page.compression not in _LOSSLESS | _BY_LIBTIFF | set(_PICTURES):
        name = getattr(page.compression, "name", "method")
        raise ImageError(
            f"the file is compressed with {name} ({int(page.compression)}), which cannot be read here: "
            "save it uncompressed, or with LZW or Deflate"
        )
    if _is_floating(page):
        _check_floating(page)
    elif page.sampleformat not in (1, 4) or not 1 <= _bits(page) <= 16:
        kind = {2: "signed", 3: "floating-point"}.get(int(page.sampleformat), "")
        raise ImageError(
            f"the image holds {f'{kind} ' if kind else ''}pixels of {_bits(page)} bits, whose range is unknown: "
            "save it with 8 or 16 bits a channel"
        )
    colours = _COLOURS.get(int(page.photometric))
    if colours is None or (page.photometric == _YCBCR and page.compression not in (6, 7)):
        name = getattr(page.photometric, "name", page.photometric)
        raise ImageError(f"its colours are stored as {name}, which cannot be read here: save it as RGB")
    if page.photometric == _CMYK and (page.compression in _PICTURES or page.tags.valueof(332, 1) != 1):
        raise ImageError("its inks cannot be read here: save it as RGB")
    if page.imagedepth > 1:
        raise ImageError(f"it is a volume of {page.imagedepth} planes: save one plane")
    extra = page.samplesperpixel - colours
    if extra < 0 or (colours == 1 and extra and _alpha(page, colours) is None):
        raise ImageError(
            f"it has {page.samplesperpixel} channels and does not say which colours they are: save it as RGB or grey"
        )


def _is_floating(page: TiffPage) -> bool:
    return page.sampleformat == _FLOATING_POINT and _bits(page) in (16, 32, 64)


def _check_floating(page: TiffPage) -> None:
    """Refuse floating point whose colours need a range that no file says."""
    if page.photometric not in (_BLACK_IS_ZERO, _RGB) or page.samplesperpixel != _COLOURS[int(page.photometric)]:
        raise ImageError("it holds floating-point pixels that are not plain RGB or grey: save it with 8 or 16 bits")


def _check_segments(page: TiffPage, data: bytes) -> None:
    """Every strip and tile must lie in the file and decode to no more than the page says: neither zeros nor bombs."""
    expected = int(np.prod(page.chunked))
    places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if len(places) < expected or any(at <= 0 or n <= 0 or at + n > len(data) for at, n in places[:expected]):
        raise ImageError("the file is damaged or truncated (a part of the picture is missing)")
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    height = height if page.is_tiled else min(height, page.imagelength)
    check_size(
        width,
        height,
        bytes_per_pixel=max(_bits(page) // 8, 2) * (1 if page.planarconfig == 2 else page.samplesperpixel),
    )
    if page.compression in _PICTURES:
        for at, n in places[:expected]:
            with Image.open(io.BytesIO(data[at : at + n]), formats=("PNG", "JPEG", "JPEG2000", "WEBP")) as part:
                if part.size[0] * part.size[1] > _BIG_SEGMENT * max(width * height, 1024):
                    raise ImageError("the file is damaged (a part of the picture is larger than the picture)")


def _pixels(page: TiffPage) -> NDArray[Any]:
    """(height, width, channels), whatever the planes' order and however short a side is."""
    try:
        pixels = page.asarray(maxworkers=1)
    except ImportError as error:
        raise ImageError(f"the file needs a codec that is not installed here ({error})") from error
    shape = (page.imagelength, page.imagewidth)
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        return np.moveaxis(pixels.reshape(page.samplesperpixel, *shape), 0, -1)
    return pixels.reshape(*shape, page.samplesperpixel)


def _alpha(page: TiffPage, colours: int) -> tuple[int, int] | None:
    """(place, kind) of the alpha channel among the samples."""
    if page.photometric == _PALETTE:
        return None
    declared: Sequence[int] = tuple(map(int, page.extrasamples))
    if not declared and page.samplesperpixel == colours + 1:
        return colours, _UNASSOCIATED  # not said to be anything: other readers take it for this
    return next(
        ((colours + at, kind) for at, kind in enumerate(declared) if kind in (_ASSOCIATED, _UNASSOCIATED)), None
    )


def _samples(page: TiffPage, pixels: NDArray[Any], remark: str) -> Samples:
    colours = _COLOURS[int(page.photometric)]
    bits = _bits(page)
    if _is_floating(page):
        turn = int(page.tags.valueof(_ORIENTATION, 1))
        return Samples(np.ascontiguousarray(pixels), FLOATING, orientation=turn, remark=remark, rules=2)
    full = _full(page, bits, pixels)
    alpha = _alpha(page, colours)
    if alpha and not page.extrasamples and not pixels[:, :, alpha[0]].any():
        alpha = None
    colour = pixels[:, :, :colours]
    if page.photometric == _WHITE_IS_ZERO:
        colour = (full - colour.astype(np.uint16)).astype(np.uint8 if full < 256 else np.uint16)
    if page.photometric == _PALETTE:
        colour, full = _coloured(page, colour[:, :, 0]), 255
    return Samples(
        colour=np.ascontiguousarray(colour.astype(np.uint8) if colour.dtype == np.bool_ else colour),
        full=full,
        alpha=np.ascontiguousarray(pixels[:, :, alpha[0]]) if alpha else None,
        is_premultiplied=alpha is not None and alpha[1] == _ASSOCIATED,
        is_inks=page.photometric == _CMYK,
        orientation=int(page.tags.valueof(_ORIENTATION, 1)),
        remark=remark,
        is_declared=full != (1 << bits) - 1 or bits not in (8, 16),
        rules=1 if _was_read_rightly(page, bits, full, remark) else 2,
    )


def _was_read_rightly(page: TiffPage, bits: int, full: int, remark: str) -> bool:
    """Whether version 0.1 read such a file as it is read now."""
    if page.compression not in _LOSSLESS | {7} or "thumbnail" in remark or _ASSOCIATED in page.extrasamples:
        return False
    if bits <= 8:
        has_odd_map = page.photometric == _PALETTE and _has_small_map(page)
        return not has_odd_map and (page.planarconfig == 1 or 0 not in page.extrasamples)
    is_interleaved = page.planarconfig == 1 or page.samplesperpixel == 1
    is_usual = page.photometric in (_BLACK_IS_ZERO, _RGB) and page.samplesperpixel != 2 and 0 not in page.extrasamples
    return bits == 16 and full == 65_535 and is_interleaved and is_usual


def _full(page: TiffPage, bits: int, pixels: NDArray[Any]) -> int:
    """The value of white: of the type, or where MaxSampleValue says that fewer of its bits are used.

    By TIFF 6.0 that tag is a mere statistic; only all ones (4095, say) are a depth, and only if no value lies above.
    """
    declared = page.tags.valueof(_MAX_SAMPLE)
    most = max(declared) if isinstance(declared, tuple) else declared
    is_depth = isinstance(most, int) and 255 <= most < (1 << bits) - 1 and most & (most + 1) == 0
    return most if is_depth and int(pixels.max(initial=0)) <= most else (1 << bits) - 1


def _has_small_map(page: TiffPage) -> bool:
    """Whether a colour map holds 0 to 255, as some programs write it, and not 0 to 65535."""
    return page.colormap is not None and bool(page.colormap.max(initial=0) <= 255)


def _coloured(page: TiffPage, index: NDArray[Any]) -> NDArray[np.uint8]:
    if page.colormap is None or int(index.max(initial=0)) >= page.colormap.shape[1]:
        raise ImageError("the file is damaged (its colour map lacks colours that the picture uses)")
    colours = page.colormap if _has_small_map(page) else page.colormap // 256
    return np.asarray(colours.T[index], dtype=np.uint8)
