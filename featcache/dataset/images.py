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
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from featcache.errors import ImageError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"})
MAX_PIXELS = 120_000_000
"""Larger files are refused unread: as RGB they would take more than 360 MB."""

MAX_FILE_BYTES = 1 << 30
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""What may be in the file, whatever its name; others, EPS say, would start programs to draw them."""

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112
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
"""What Pillow and OpenCV are known to raise on damaged files."""

# OpenCV would print what is wrong with a file; the reason is in the ImageError.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def is_image_name(path: Path) -> bool:
    """Whether a file's name says that it is an image (hidden files never are)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


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
    """An image file's bytes as upright RGB.

    Grey, palette and CMYK become RGB; 16 bits a channel become 8 (v / 257, rounded); a transparent
    part shows white behind it; the EXIF orientation is applied; of several frames the first counts.

    Returns
    -------
    ndarray of shape (height, width, 3), uint8

    Raises
    ------
    ImageError
        With the reason: no image, truncated, too large, or pixels of a kind that has no plain reading.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                picture = Image.open(io.BytesIO(data), formats=_FORMATS)
            except UnidentifiedImageError:
                return _decode_by_opencv(data)
            _check_size(*picture.size)
            return _to_rgb(picture, data)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large: at most {MAX_PIXELS:,} pixels are read") from error
    except _BAD_FILE as error:
        raise ImageError(f"the file is damaged or truncated ({error})") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"the image is too large: {width}x{height} px, at most {MAX_PIXELS:,} pixels are read")


def _to_rgb(picture: Image.Image, data: bytes) -> NDArray[np.uint8]:
    if picture.mode.startswith("I") or picture.mode == "F" or _has_16_bits(picture):
        raw, orientation = _read_raw(picture, data)
        return _orient(_to_8_bits(raw), orientation)
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, rgba)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _has_16_bits(picture: Image.Image) -> bool:
    """Whether Pillow is about to drop the low bytes of a colour image with 16 bits a channel."""
    return any(";16" in str(tile) for tile in getattr(picture, "tile", []))


def _read_raw(picture: Image.Image, data: bytes) -> tuple[NDArray[np.generic], int]:
    """Pixels with their own depth, (h, w) or (h, w, channels), RGB order; and the turn they still need."""
    if picture.mode == "F":
        raise ImageError("the image holds floating-point pixels, whose range is unknown: save it with 8 or 16 bits")
    orientation = picture.getexif().get(_ORIENTATION, 1)
    picture.load()  # finds a truncated file, of which OpenCV may return the part that is there
    raw = None
    if not picture.mode.startswith("I;16"):
        raw = cv2.imdecode(np.frombuffer(_unturned(data), np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is not None:
        return _opencv_to_rgb(raw), orientation
    pixels = np.array(picture)
    clear = picture.info.get("transparency")
    if pixels.ndim == 2 and isinstance(clear, int):
        opaque = np.where(pixels == clear, 0, 65_535).astype(pixels.dtype)
        pixels = np.stack([pixels, opaque], axis=2)
    return pixels, picture.getexif().get(_ORIENTATION, 1)  # loading a TIFF has turned it already


def _decode_by_opencv(data: bytes) -> NDArray[np.uint8]:
    """Kinds of TIFF that Pillow does not know."""
    if not data.startswith(_TIFF_MAGIC):
        raise ImageError("the file is no image that can be read")
    header = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
    file = io.BytesIO(data)
    file.seek(header.next)
    header.load(file)
    _check_size(int(header[TiffImagePlugin.IMAGEWIDTH]), int(header[TiffImagePlugin.IMAGELENGTH]))
    raw = cv2.imdecode(np.frombuffer(_unturned(data), np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise ImageError("the file is no image that can be read")
    return _orient(_to_8_bits(_opencv_to_rgb(raw)), int(header.get(_ORIENTATION, 1)))


def _unturned(data: bytes) -> bytes:
    """A TIFF without its orientation, which one OpenCV applies and the next does not; other files as they are."""
    if not data.startswith(_TIFF_MAGIC):
        return data
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[2:4]
    start_at, start, count, entry_bytes, value_at = (8, "Q", "Q", 20, 12) if big else (4, "I", "H", 12, 8)
    (directory,) = struct.unpack_from(order + start, data, start_at)
    (entries,) = struct.unpack_from(order + count, data, directory)
    turned = bytearray(data)
    for number in range(entries):
        at = directory + struct.calcsize(count) + number * entry_bytes
        if struct.unpack_from(order + "H", data, at) == (_ORIENTATION,):
            struct.pack_into(order + "H", turned, at + value_at, 1)
    return bytes(turned)


def _opencv_to_rgb(raw: NDArray[np.generic]) -> NDArray[np.generic]:
    if raw.ndim == 3 and raw.shape[2] >= 3:
        order = [2, 1, 0, *range(3, raw.shape[2])]
        return raw[:, :, order]
    return raw


def _to_8_bits(raw: NDArray[np.generic]) -> NDArray[np.uint8]:
    """(h, w), (h, w, 1), RGB or RGBA of 8 or 16 bits to RGB of 8 bits, over white where transparent."""
    if raw.dtype == np.uint8:
        scaled: NDArray[np.floating] = raw.astype(np.float32)
    elif _holds_16_bits(raw):
        scaled = raw.astype(np.float32) / 257
    else:
        raise ImageError(f"the image holds {raw.dtype} pixels: save it with 8 or 16 bits a channel")
    if scaled.ndim == 2:
        scaled = scaled[:, :, None]
    if scaled.shape[2] in (2, 4):
        alpha = scaled[:, :, -1:] / 255
        scaled = scaled[:, :, :-1] * alpha + 255 * (1 - alpha)
    if scaled.shape[2] not in (1, 3):
        raise ImageError(f"the image has {scaled.shape[2]} channels; 1 to 4 can be read")
    rgb = np.broadcast_to(scaled, (*scaled.shape[:2], 3))
    return np.rint(rgb).astype(np.uint8)


def _holds_16_bits(raw: NDArray[np.generic]) -> bool:
    """Whether pixels are 0 to 65535, in any byte order, or in the wider numbers that Pillow reads them into."""
    wide = raw.dtype == np.int32 and int(raw.min()) >= 0 and int(raw.max()) <= 65_535
    return wide or (raw.dtype.kind == "u" and raw.dtype.itemsize == 2)


def _orient(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation to pixels that were read without it."""
    if orientation in (2, 4):
        pixels = pixels[:, ::-1] if orientation == 2 else pixels[::-1]
    elif orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
        flips = {5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[orientation]
        pixels = pixels[:: flips[0], :: flips[1]]
    elif orientation == 3:
        pixels = pixels[::-1, ::-1]
    return np.ascontiguousarray(pixels)
