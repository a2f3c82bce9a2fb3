"""Images that belong to no data set: files, folders, arrays in memory, and whatever yields these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featcache.core.errors import DatasetError, ImageError
from featcache.core.files import sha256_bytes
from featcache.images.decode import read_bytes, read_picture
from featcache.images.folders import look
from featcache.images.identity import Box, identity_of, image_id_of
from featcache.images.physical import PixelSize
from featcache.images.squares import Pixels

OF_ARRAY = PixelSize(0.0, "an array does not say how large its pixels are")
_EXPECTED = "expected uint8 of shape (n, h, w, 3) or (h, w, 3), RGB from 0 to 255"


class Read(NamedTuple):
    """What names an image (see `image_id_of`), the pixels (h, w, 3) of the whole file or array, how large they are."""

    image_id: str
    pixels: Pixels
    size: PixelSize


@dataclass(frozen=True)
class Item:
    """One image of a source.

    name : its path as it was given, or "image 17" of an array
    path, pixels : one of them is there
    box : the part of the file that is the image; None for all of it
    mask : file of the mask that comes with it
    white : as of `read_picture`, where it is known of this file; None takes that of whoever reads it
    problem : why it cannot be used; "" where nothing is known to be wrong
    um_per_px : side of a pixel, where a person and not the file says it; 0 where nobody does
    """

    name: str
    path: Path | None = None
    pixels: Pixels | None = None
    box: Box | None = None
    mask: Path | None = None
    problem: str = ""
    white: int | None = None
    um_per_px: float = 0.0

    def read(self, white: int = 0) -> Read:
        """The image. Raises ImageError with the reason where it cannot be used.

        white : as of `read_picture`
        """
        if self.problem:
            raise ImageError(self.problem)
        mask_sha256 = sha256_bytes(read_bytes(self.mask)) if self.mask else ""
        if self.pixels is not None:
            identity, pixels, size = identity_of_pixels(self.pixels), self.pixels, OF_ARRAY
        else:
            data = read_bytes(Path(self.path or ""))
            picture = read_picture(data, white if self.white is None else self.white)
            identity = identity_of(sha256_bytes(data), picture.rules)
            pixels, size = picture.pixels, picture.size
        image_id = image_id_of(identity, self.box, mask_sha256=mask_sha256, um_per_px=self.um_per_px)
        return Read(image_id, pixels, PixelSize(self.um_per_px) if self.um_per_px else size)


def identity_of_pixels(pixels: Pixels) -> str:
    """Name of an array (h, w, 3): SHA-256 of a header with its size, and its bytes. No file has the same."""
    header = f"featcache pixels {pixels.shape[0]} {pixels.shape[1]}\n".encode()
    return sha256_bytes(header + np.ascontiguousarray(pixels).tobytes())


def items_of(source: Any) -> Iterator[Item]:
    """The images of a source, one after the other: a generator is read only as far as it is asked.

    source : a file, a folder (all images below it), an array (n, h, w, 3) or (h, w, 3) of uint8, a Pillow image, or
        something that yields these

    What is no image among others is an item with a problem. Raises DatasetError for a source that is none, or that
    ends with an error.
    """
    number = 0
    for value in _values(source):
        for item in _items(value, number):
            yield item
            number += 1


def _values(source: Any) -> Iterator[Any]:
    if isinstance(source, (str, Path, np.ndarray)) or hasattr(source, "convert"):
        if isinstance(source, (str, Path)) and not Path(source).exists():
            raise DatasetError(f"{source}: there is no such file or folder")
        if isinstance(source, np.ndarray):
            _check(source)
        yield source
        return
    if not isinstance(source, Iterable):
        raise DatasetError(f"{type(source).__name__}: expected files, folders, arrays or what yields them")
    given, iterator = 0, iter(source)
    while True:
        try:
            value = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # the user's own code
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise DatasetError(f"the images ended after {given} with {what:.300}") from error
        given += 1
        yield value


def _items(value: Any, number: int) -> Iterator[Item]:
    if isinstance(value, Item):
        yield value
    elif isinstance(value, (str, Path)):
        yield from _files(Path(value))
    elif isinstance(value, np.ndarray) and value.ndim == 4:
        yield from (_array(pixels, number + place) for place, pixels in enumerate(value))
    else:
        yield _array(value, number)


def _files(path: Path) -> Iterator[Item]:
    if not path.is_dir():
        yield Item(str(path), path, problem="" if path.exists() else "there is no such file")
        return
    for found, problem in look(path):
        yield Item(str(found), found, problem=problem)


def _array(value: Any, number: int) -> Item:
    name = f"image {number}"
    if hasattr(value, "convert"):  # a Pillow image
        return Item(name, pixels=np.asarray(value.convert("RGB")))
    try:
        _check(value)
    except DatasetError as error:
        return Item(name, problem=str(error))
    return Item(name, pixels=value)


def _check(value: Any) -> None:
    """Raise DatasetError for what is no array of images."""
    if not isinstance(value, np.ndarray):
        raise DatasetError(f"{type(value).__name__}: {_EXPECTED}, or the name of a file")
    if value.dtype != np.uint8:
        raise DatasetError(f"an array of {value.dtype}: {_EXPECTED}")
    if value.ndim not in (3, 4) or value.shape[-1] != 3 or 0 in value.shape[-3:]:
        raise DatasetError(f"an array of shape {value.shape}: {_EXPECTED}")
