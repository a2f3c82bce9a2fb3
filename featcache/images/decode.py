"""Image files: read, hashed, checked and decoded to upright 8-bit RGB, whatever they came as."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from featcache.core.errors import ImageError, refuse_shortage
from featcache.core.extras import install_line, is_installed
from featcache.images import czi, jpeg, jpeg2000, tiff
from featcache.images.pixels import MAX_PIXELS, ROOM, Decoded, Samples, check_size, finished, over_white

IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"),
        *(".jp2", ".j2k", ".heic", ".heif", ".avif", ".czi"),
    }
)

MAX_FILE_BYTES = 1 << 29
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
"""What may be in the file, whatever its name; others, EPS say, would start programs to draw them."""

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD_BYTES = 25
"""Of a PNG, up to the bits of a sample."""
_NARROW = (b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")
"""How files begin that have 8 bits at most: JPEG, GIF, BMP, WebP."""
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"})
_BAD_FILE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    cv2.error,
)
"""What Pillow, tifffile, imagecodecs and OpenCV are known to raise on damaged files."""

# OpenCV would print what is wrong with a file; the reason is in the ImageError.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def is_image_name(path: Path) -> bool:
    """Whether a file's name says that it is an image (hidden files never are)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def may_be_wide(path: Path) -> bool:
    """Whether a file may have more than 8 bits a sample, by how it begins; True where it cannot be looked at."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return True
    if head.startswith(_PNG):
        return len(head) < _HEAD_BYTES or head[-1] > 8
    return not head.startswith(_NARROW)


def read_bytes(path: Path) -> bytes:
    """All bytes of an image file. Raises ImageError with the reason where that cannot be."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise ImageError("the file is empty")
        if size > MAX_FILE_BYTES:
            raise ImageError(f"the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("there is no such file") from error
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror}") from error
    except ImageError:
        raise
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"the file cannot be read: {error}") from error


def decode(data: bytes) -> NDArray[np.uint8]:
    """An image file's bytes as upright RGB: the pixels of `read_picture`."""
    return read_picture(data).pixels


def read_picture(data: bytes, white: int = 0, *, is_look: bool = False) -> Decoded:
    """An image file's bytes as upright RGB, and how it was read.

    Grey, palette and CMYK become RGB; other depths become 8 bits (v / white * 255, rounded), by the range that the
    file declares; a transparent part shows white behind it; the EXIF orientation is applied; of several pages or
    frames the first full picture counts.

    white : value of white in a file of more than 8 bits that does not say it; 0: the largest of its type
    is_look : whether the pixels are only looked at; those of floating point then have the range of this file

    Returns
    -------
    Decoded
        Its pixels have the shape (height, width, 3), uint8.

    Raises
    ------
    ImageError
        With the reason: no image, truncated, too large, or pixels of a kind that has no certain reading.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if data.startswith(czi.MAGIC):
                return czi.read_czi(data, white)
            if data.startswith(tiff.MAGIC) and (decoded := tiff.read_tiff(data, white, is_look=is_look)) is not None:
                return decoded
            return _by_pillow(data, white)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("the file is no image that can be read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large: at most {MAX_PIXELS:,} pixels are read") from error
    except _BAD_FILE as error:
        refuse_shortage(error, "an image")
        raise ImageError(f"the file is damaged or truncated ({error})") from error


def _by_pillow(data: bytes, white: int) -> Decoded:
    try:
        return _picture(data, white)
    except UnidentifiedImageError:
        raise
    except (OSError, ValueError):
        whole = _without_metadata(data) if data.startswith(_PNG) else jpeg.with_end(data)
        if whole is None or whole == data:
            raise
        return _picture(whole, white)


def _picture(data: bytes, white: int) -> Decoded:
    picture = Image.open(io.BytesIO(data), formats=_formats(data))
    is_wide = picture.mode.startswith("I") or picture.mode == "F" or _has_16_bits(picture)
    depths = jpeg2000.depths_of(data) if picture.format == "JPEG2000" else []
    is_wide = is_wide or max(depths, default=8) > 8
    wanted = check_size(picture.width, picture.height, bytes_per_pixel=len(picture.getbands()) * (2 if is_wide else 1))
    remark = "it holds several frames; the first was taken" if getattr(picture, "is_animated", False) else ""
    with ROOM.taken(wanted):
        if is_wide:
            return finished(jpeg2000.read_wide(data, depths) if depths else _wide(picture, data), white)
        if picture.format == "JPEG" and picture.mode == "RGB" and picture.getexif().get(_ORIENTATION, 1) == 1:
            pixels = jpeg.quick_pixels(data, (picture.height, picture.width, 3))
            if pixels is not None:
                return Decoded(pixels, 1, remark, int(pixels.max()), 255)
        return _narrow(picture, remark)


def _formats(data: bytes) -> tuple[str, ...]:
    """The formats that a file may be in; that of telephones, HEIC, is read by a package of its own."""
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS or data[8:32].find(b"avif") >= 0:
        return _FORMATS
    if not is_installed("pillow_heif"):
        raise ImageError(f"it is a HEIC file, which pillow-heif reads, which is not installed: {install_line('heic')}")
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return ("HEIF",)


def _narrow(picture: Image.Image, remark: str) -> Decoded:
    """A picture of up to 8 bits a channel."""
    form = picture.format
    is_mapped = picture.mode in ("1", "P", "PA", "CMYK")
    ImageOps.exif_transpose(picture, in_place=True)  # which copies nothing where it is upright
    rules = 1
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (0, 0):
            return Decoded(over_white(rgba), remark=remark)
        if form != "BMP":
            raise ImageError("every pixel of it is transparent: nothing is left of the picture")
        picture, rules = rgba, 2  # BMP has a fourth byte that most programs leave at zero
    pixels = np.array(picture if picture.mode == "RGB" else picture.convert("RGB"), dtype=np.uint8)
    return Decoded(pixels, rules, remark, *((0, 0) if is_mapped else (int(pixels.max()), 255)))


def _has_16_bits(picture: Image.Image) -> bool:
    """Whether Pillow is about to drop the low bytes of a colour image with 16 bits a channel."""
    return any(";16" in str(tile) for tile in getattr(picture, "tile", []))


def _wide(picture: Image.Image, data: bytes) -> Samples:
    """A picture of 16 bits a channel: grey ones by Pillow, whose colours have 8 bits only; colours by OpenCV."""
    if picture.mode == "F":
        raise ImageError("the image holds floating-point pixels, whose range is unknown: save it with 8 or 16 bits")
    orientation = picture.getexif().get(_ORIENTATION, 1)
    is_grey, tiles = picture.mode.startswith("I"), list(getattr(picture, "tile", []))
    picture.load()  # finds a truncated file, of which OpenCV may return the part that is there
    if is_grey:
        pixels, clear = np.array(picture), picture.info.get("transparency")
        if pixels.min() < 0 or pixels.max() > 65_535:
            raise ImageError(f"the image holds {pixels.dtype} pixels: save it with 8 or 16 bits a channel")
        alpha = np.where(pixels == clear, 0, 65_535).astype(np.uint16) if isinstance(clear, int) else None
        was_raw = all(tile[0] != "ppm" for tile in tiles)  # of other PGMs, version 0.1 did not know the largest value
        colour = pixels[:, :, None].astype(np.uint16)
        return Samples(colour, 65_535, alpha, orientation=orientation, is_declared=not was_raw, rules=2 - was_raw)
    picture.close()
    raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16:
        raise ImageError("the file is no image that can be read")
    raw = raw[:, :, None] if raw.ndim == 2 else raw
    is_colour, has_alpha = raw.shape[2] >= 3, raw.shape[2] in (2, 4)
    colour = raw[:, :, 2::-1] if is_colour else raw[:, :, :1]
    return Samples(colour, 65_535, raw[:, :, -1] if has_alpha else None, orientation=orientation)


def _without_metadata(data: bytes) -> bytes | None:
    """A PNG with the chunks alone that decide pixels: large texts and profiles make Pillow refuse the file."""
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if data[at + 4 : at + 8] in _PIXEL_CHUNKS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)
