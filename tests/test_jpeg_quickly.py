"""The quick way through JPEG files: the pixels of Pillow, and no file that Pillow refuses."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featcache.core.errors import ImageError
from featcache.images import decode, jpeg

KINDS: dict[str, dict[str, Any]] = {
    "420": {"subsampling": 2},
    "422": {"subsampling": 1},
    "444": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "rgb": {"keep_rgb": True},
}


def file_of(kind: str) -> bytes:
    rng = np.random.default_rng(3)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).resize((83, 61), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    smooth.save(data, "JPEG", **KINDS[kind])
    return data.getvalue()


def judged(data: bytes) -> Any:
    """The pixels, or that it is refused."""
    try:
        return decode.decode(data)
    except ImageError:
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_take_it(kind: str) -> None:
    data = file_of(kind)
    expected = np.array(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(jpeg.quick_pixels(data, (61, 83, 3)), expected, strict=True)
    assert jpeg.quick_pixels(data, (61, 84, 3)) is None
    assert jpeg.quick_pixels(data[:-2], (61, 83, 3)) is None
    assert jpeg.quick_pixels(data + b"\0", (61, 83, 3)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_become_what_pillow_makes_of_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, whole = random.Random(kind), file_of(kind)
    files = []
    for _ in range(80):
        data, at = bytearray(whole), draw.randrange(len(whole))
        match draw.choice(("flip", "cut", "close", "insert")):
            case "flip":
                data[at] = draw.randrange(256)
            case "cut":
                del data[at:]
            case "close":
                data[at:] = b"\xff\xd9"
            case "insert":
                data[at:at] = draw.randbytes(5)
        files.append(bytes(data))
    found = [judged(data) for data in files]
    monkeypatch.setattr(jpeg, "quick_pixels", lambda data, shape: None)
    for data, pixels in zip(files, found, strict=True):
        np.testing.assert_array_equal(pixels, judged(data))
    assert any(pixels is None for pixels in found)


def test_a_turned_file_is_turned() -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(file_of("420"))).save(turned, "JPEG", exif=exif)
    assert decode.decode(turned.getvalue()).shape == (83, 61, 3)
