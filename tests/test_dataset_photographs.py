"""JPEG 2000 of slide scanners, HEIC and AVIF of telephones: equal to what was encoded, or refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from conftest import Run
from numpy.typing import NDArray
from PIL import Image
from test_dataset_decoders import ALPHA, GREY, RGB, deep, grey3, over_white, shallow

from featcache.core.errors import ImageError
from featcache.images import decode as decoding
from featcache.images.decode import decode, read_picture

EXIF_TURN = Image.Exif()
EXIF_TURN[0x0112] = 6


def jp2(pixels: NDArray[Any], **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, **options))


def by_pillow(pixels: NDArray[np.uint8], form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def heic(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    return by_pillow(pixels, "HEIF", quality=-1, chroma=444, **options)


@pytest.mark.parametrize("form", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_jpeg_2000_of_each_depth(form: str, bits: int) -> None:
    for pixels, right in ((RGB, RGB), (GREY, grey3(GREY))):
        wide = deep(pixels, bits)
        found = read_picture(jp2(wide, codecformat=form, bitspersample=bits))
        assert np.array_equal(
            found.pixels, np.broadcast_to(right if bits == 8 else shallow(deep(right, bits), bits), RGB.shape)
        )
        assert bits == 8 or (found.brightest, found.full) == (0, 0)  # the file says how many bits it uses


def test_jpeg_2000_by_pillow() -> None:
    assert np.array_equal(decode(by_pillow(RGB, "JPEG2000", irreversible=False)), RGB)
    clear = np.dstack([RGB, ALPHA])
    there = decode(by_pillow(clear, "JPEG2000", irreversible=False)).astype(int)
    assert np.abs(there - over_white(RGB, ALPHA, 255)).max() <= 1


@pytest.mark.parametrize("form", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [8, 16])
def test_jpeg_2000_cut_short_is_refused(form: str, bits: int) -> None:
    data = jp2(deep(RGB, bits), codecformat=form, bitspersample=bits)
    for length in range(30, len(data) - 2, 61):
        with pytest.raises(ImageError):
            decode(data[:length])


def test_jpeg_2000_of_other_kinds_is_refused() -> None:
    signed = bytearray(jp2(deep(GREY, 12), codecformat="j2k", bitspersample=12))
    signed[42] |= 0x80
    with pytest.raises(ImageError, match="signed pixels"):
        decode(bytes(signed))
    sycc = jp2(deep(RGB, 12), codecformat="jp2", bitspersample=12)
    at = sycc.index(b"colr") + 4
    changed = sycc[: at + 3] + (18).to_bytes(4, "big") + sycc[at + 7 :]
    with pytest.raises(ImageError, match="other than RGB and grey"):
        decode(changed)


def test_heic_is_what_was_encoded() -> None:
    there = decode(heic(RGB)).astype(int)
    assert np.abs(there - RGB).max() <= 2  # its colours are YCbCr of 8 bits, even where nothing else is lost
    assert there.shape == RGB.shape


def test_heic_is_turned_once() -> None:
    there = decode(heic(RGB, exif=EXIF_TURN.tobytes())).astype(int)
    assert there.shape == (RGB.shape[1], RGB.shape[0], 3)
    assert np.abs(there - np.rot90(RGB, -1)).max() <= 2


def test_heic_cut_short_is_refused() -> None:
    data = heic(RGB)
    for length in range(40, len(data), max(len(data) // 40, 1)):
        with pytest.raises(ImageError):
            decode(data[:length])


def test_heic_without_its_package_names_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(RGB)
    monkeypatch.setattr(decoding, "is_installed", lambda name: name != "pillow_heif")
    with pytest.raises(ImageError, match=r"pip install 'featcache\[heic\]'"):
        decode(data)


def test_avif_is_what_was_encoded() -> None:
    data = by_pillow(RGB, "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(decode(data).astype(int) - RGB).max() <= 3
    for length in range(40, len(data) - 1, max(len(data) // 40, 1)):
        with pytest.raises(ImageError):
            decode(data[:length])


def test_flipped_bytes_are_refused_or_read_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    for whole in (
        jp2(RGB, codecformat="jp2"),
        jp2(deep(RGB, 16), codecformat="j2k"),
        heic(RGB),
        by_pillow(RGB, "AVIF"),
    ):
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[int(generator.integers(12, len(whole)))] ^= int(generator.integers(1, 256))
            try:
                assert decode(bytes(damaged)).ndim == 3
            except ImageError:
                continue


def test_a_folder_of_them_is_a_data_set(tmp_path: Path, run: Run) -> None:
    for number in range(12):
        for label in ("a", "b"):
            pixels = np.roll(RGB, 3 * number + 40 * (label == "b"), axis=1)
            folder = tmp_path / "images" / label
            folder.mkdir(parents=True, exist_ok=True)
            kind = ("jp2", "heic", "avif")[number % 3]
            data = {
                "jp2": lambda p: jp2(p, codecformat="jp2"),
                "heic": heic,
                "avif": lambda p: by_pillow(p, "AVIF"),
            }[kind](pixels)
            (folder / f"{number}.{kind}").write_bytes(data)
    assert run("init", "images", "--json", cwd=tmp_path).value["images"] == 24
    told = run("extract", "--model", "pixels", "--input-size", "16", "--json", cwd=tmp_path).value
    assert told["skipped"] == 0
