"""Image files of every kind that users have: decoded to upright 8-bit RGB, or refused with a reason."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from PIL import Image

from featcache.core.errors import ImageError
from featcache.images.decode import MAX_PIXELS, decode, is_image_name, read_bytes
from featcache.synthetic.drawing import render_cell

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB16 = RNG.integers(0, 65_536, (5, 7, 3), dtype=np.uint16)
GREY16 = RNG.integers(0, 65_536, (5, 7), dtype=np.uint16)
RGBA16 = RNG.integers(0, 65_536, (5, 7, 4), dtype=np.uint16)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def by_opencv(suffix: str, pixels: NDArray[Any]) -> bytes:
    """`pixels` in RGB(A) order, written with their own depth."""
    if pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return bytes(cv2.imencode(suffix, pixels)[1].tobytes())


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png16(pixels: NDArray[np.uint16], colour: int, *extra: bytes) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(pixels.shape[1], pixels.shape[0], 16, colour, rows, *extra)


def exif_chunk(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))


def tiff(pixels: NDArray[Any], order: str = "<", orientation: int = 1, size: tuple[int, int] | None = None) -> bytes:
    """An uncompressed TIFF with the pixels' own kind of number, written by hand; `size` lies about it."""
    height, width = pixels.shape[:2]
    width, height = size or (width, height)
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    bits = pixels.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]
    tags = 11
    lists_at = 8 + 2 + 12 * tags + 4
    lists = struct.pack(f"{order}{samples}H", *[bits] * samples) + struct.pack(f"{order}{samples}H", *[kind] * samples)

    def entry(tag: int, value: int, count: int = 1, long: bool = False) -> bytes:
        cell = struct.pack(order + "HH", value, 0) if count == 1 and not long else struct.pack(order + "I", value)
        return struct.pack(order + "HHI", tag, 4 if long else 3, count) + cell

    entries = [
        entry(256, width, long=True),
        entry(257, height, long=True),
        entry(258, bits if samples == 1 else lists_at, samples),
        entry(259, 1),
        entry(262, 2 if samples >= 3 else 1),
        entry(273, lists_at + len(lists), long=True),
        entry(274, orientation),
        entry(277, samples),
        entry(278, height, long=True),
        entry(279, len(data), long=True),
        entry(339, kind if samples == 1 else lists_at + 2 * samples, samples),
    ]
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, tags)
    return start + b"".join(entries) + b"\0\0\0\0" + lists + data


def eight_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """v / 257, rounded, as RGB."""
    scaled = np.rint(pixels.astype(np.float64) / 257).astype(np.uint8)
    return scaled if scaled.ndim == 3 else np.repeat(scaled[:, :, None], 3, axis=2)


def over_white(pixels: NDArray[Any], alpha: NDArray[Any], full: float) -> NDArray[np.float64]:
    part = alpha.astype(np.float64)[..., None] / full
    return 255 * (pixels.astype(np.float64) / full * part + 1 - part)


# Kinds of pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_decode_gives_rgb_as_it_is(kind: str) -> None:
    decoded = decode(saved(Image.fromarray(RGB), kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(decoded, RGB)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
def test_decode_makes_grey_rgb(kind: str) -> None:
    np.testing.assert_array_equal(decode(saved(Image.fromarray(GREY), kind)), np.repeat(GREY[:, :, None], 3, 2))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_decode_makes_one_bit_black_and_white(kind: str) -> None:
    bits = GREY > 127
    expected = np.repeat(bits[:, :, None] * np.uint8(255), 3, 2)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(bits), kind)), expected)


@pytest.mark.parametrize("pixels", [GREY16, RGB16], ids=["grey", "colour"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_decode_scales_16_bits_by_257(pixels: NDArray[np.uint16], suffix: str) -> None:
    np.testing.assert_array_equal(decode(by_opencv(suffix, pixels)), eight_bits(pixels))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("pixels", [GREY16, RGB16], ids=["grey", "colour"])
def test_decode_reads_16_bit_tiff_of_either_byte_order(pixels: NDArray[np.uint16], order: str) -> None:
    np.testing.assert_array_equal(decode(tiff(pixels, order)), eight_bits(pixels))


def test_decode_16_bit_extremes() -> None:
    pixels = np.array([[0, 128, 129, 32_767, 32_896, 65_406, 65_407, 65_535]], dtype=np.uint16)
    assert decode(by_opencv(".png", pixels))[0, :, 0].tolist() == [0, 0, 1, 127, 128, 254, 255, 255]


def test_decode_reads_16_bit_pgm() -> None:
    data = b"P5 7 5 65535\n" + GREY16.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode(data), eight_bits(GREY16))


def test_decode_puts_8_bit_alpha_over_white() -> None:
    alpha = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    rgba = Image.fromarray(np.dstack([RGB, alpha]))
    np.testing.assert_allclose(decode(saved(rgba, "PNG")), over_white(RGB, alpha, 255), atol=1.01)
    la = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    expected = over_white(np.repeat(GREY[:, :, None], 3, 2), alpha, 255)
    np.testing.assert_allclose(decode(saved(la, "PNG")), expected, atol=1.01)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_decode_puts_16_bit_alpha_over_white(suffix: str) -> None:
    expected = over_white(RGBA16[:, :, :3], RGBA16[:, :, 3], 65_535)
    np.testing.assert_allclose(decode(by_opencv(suffix, RGBA16)), expected, atol=0.51)


def test_decode_puts_16_bit_grey_alpha_over_white() -> None:
    data = png16(RGBA16[:, :, :2], 4)
    grey = np.repeat(RGBA16[:, :, :1], 3, 2)
    np.testing.assert_allclose(decode(data), over_white(grey, RGBA16[:, :, 1], 65_535), atol=0.51)


@pytest.mark.parametrize("colour", [0, 2], ids=["grey", "rgb"])
@pytest.mark.parametrize("bits", [8, 16])
def test_decode_shows_white_where_one_colour_is_declared_transparent(bits: int, colour: int) -> None:
    pixels = (RGB16 if colour == 2 else GREY16) >> (16 - bits)
    kind = ">u2" if bits == 16 else "u1"
    clear = np.atleast_1d(pixels[1, 2]).astype(">u2").tobytes()
    rows = b"".join(b"\0" + row.astype(kind).tobytes() for row in pixels)
    decoded = decode(png(7, 5, bits, colour, rows, chunk(b"tRNS", clear)))
    expected = eight_bits(pixels if bits == 16 else pixels.astype(np.uint16) * 257)
    expected[1, 2] = 255
    np.testing.assert_array_equal(decoded, expected)


def test_decode_palette_with_and_without_transparency() -> None:
    palette = Image.fromarray(RGB).quantize(16)
    colours = np.array(palette.convert("RGB"))
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(saved(palette, kind)), colours)
    clear = int(np.array(palette)[2, 3])
    expected = colours.copy()
    expected[np.array(palette) == clear] = 255
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(decode(saved(palette, kind, transparency=clear)), expected)


def test_decode_cmyk_jpeg_has_the_right_colours() -> None:
    patches = np.zeros((32, 96, 3), dtype=np.uint8)
    patches[:, :32] = (220, 40, 30)
    patches[:, 32:64] = (240, 240, 240)
    patches[:, 64:] = (60, 30, 120)
    decoded = decode(saved(Image.fromarray(patches).convert("CMYK"), "JPEG", quality=95)).astype(int)
    for left in (8, 40, 72):
        inside = np.s_[8:24, left : left + 16]
        assert abs(decoded[inside] - patches[inside]).max() <= 6


def test_decode_takes_the_first_frame() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        decoded = decode(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert (decoded == (200, 0, 0)).all(), kind


# Orientation

TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_turns_images_upright(orientation: int) -> None:
    """What each orientation means is written here once more, by numpy, from the EXIF standard's pictures."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = TURNED[orientation]
    blocks = np.kron(RGB[:2, :3], np.ones((16, 16, 1), dtype=np.uint8))
    jpeg = decode(saved(Image.fromarray(blocks), "JPEG", quality=100, subsampling=0, exif=exif))
    assert jpeg.shape == turn(blocks).shape
    np.testing.assert_allclose(jpeg.astype(int), turn(blocks), atol=6)
    for decoded, pixels in (
        (decode(saved(Image.fromarray(RGB), "PNG", exif=exif)), RGB),
        (decode(png16(GREY16, 0, exif_chunk(orientation))), eight_bits(GREY16)),
        (decode(png16(RGB16, 2, exif_chunk(orientation))), eight_bits(RGB16)),
        (decode(tiff(RGB, orientation=orientation)), RGB),
        (decode(tiff(GREY16, orientation=orientation)), eight_bits(GREY16)),
        (decode(tiff(RGB16, ">", orientation)), eight_bits(RGB16)),
        (decode(tiff(RGB16, "<", orientation)), eight_bits(RGB16)),
    ):
        np.testing.assert_array_equal(decoded, turn(pixels))


def test_decode_ignores_an_orientation_that_does_not_exist() -> None:
    np.testing.assert_array_equal(decode(tiff(GREY16, orientation=9)), eight_bits(GREY16))
    np.testing.assert_array_equal(decode(tiff(RGB16, orientation=0)), eight_bits(RGB16))


# What cannot be read


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint32])
@pytest.mark.parametrize("order", ["<", ">"])
def test_decode_refuses_numbers_without_a_known_range(dtype: Any, order: str) -> None:
    is_floating = np.dtype(dtype).kind == "f"
    said = "which of them is white is not known" if is_floating else "8 or 16 bits"
    for pixels in (GREY16, RGB16) if is_floating else (GREY16,):
        with pytest.raises(ImageError, match=said) as caught:
            decode(tiff((pixels / 70 if is_floating else pixels).astype(dtype), order))
        assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("order", ["<", ">"])
def test_floating_point_as_bright_as_16_bits_is_read_as_these(order: str) -> None:
    for pixels in (GREY16, RGB16):
        np.testing.assert_array_equal(decode(tiff(pixels.astype(np.float32), order)), decode(tiff(pixels, order)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image at all, only text\n" * 20,
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"II*\0",
        b"MM\0+",
        b"II*\0\x08\0\0\0",
    ],
)
def test_decode_refuses_what_is_no_image(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data)


def test_decode_starts_no_program_for_eps() -> None:
    with pytest.raises(ImageError, match="no image that can be read"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


CELL = render_cell("eosinophil", 0, index=0, size_px=48)
CELL16 = CELL.astype(np.uint16) * 257
FILES = {
    "png": saved(Image.fromarray(CELL), "PNG"),
    "jpeg": saved(Image.fromarray(CELL), "JPEG"),
    "png16": by_opencv(".png", CELL16),
    "grey16": by_opencv(".png", CELL16[:, :, 0]),
    "tiff16": by_opencv(".tif", CELL16),
    "tiff": saved(Image.fromarray(CELL), "TIFF", compression="tiff_lzw"),
    "gif": saved(Image.fromarray(CELL), "GIF"),
    "bmp": saved(Image.fromarray(CELL), "BMP"),
    "webp": saved(Image.fromarray(CELL), "WEBP"),
    "palette": saved(Image.fromarray(CELL).quantize(32), "PNG", transparency=3),
    "cmyk": saved(Image.fromarray(CELL).convert("CMYK"), "JPEG"),
    "raw-tiff": tiff(CELL16, ">", 6),
    "float-tiff": tiff(CELL16.astype(np.float32)),
}


@pytest.mark.parametrize("kind", ["png", "jpeg", "png16", "grey16", "tiff16", "palette", "cmyk", "bmp", "webp"])
def test_decode_refuses_a_truncated_file_at_any_length(kind: str) -> None:
    whole = FILES[kind]
    assert decode(whole).shape == (48, 48, 3)
    ends_at = whole.rfind(b"IEND") - 4 if whole[1:4] == b"PNG" else len(whole) - 2
    for length in [*range(0, 64, 3), *range(64, ends_at, max(ends_at // 60, 1))]:
        try:
            decoded = decode(whole[:length])
        except ImageError:
            continue
        assert length > ends_at - 16, "only a checksum may be missing"
        np.testing.assert_array_equal(decoded, decode(whole))


def only_pixels_or_image_error(data: bytes) -> None:
    try:
        decoded = decode(data)
    except ImageError as error:
        assert str(error)
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3
    assert min(decoded.shape) > 0


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from(sorted(FILES)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    early=st.booleans(),
)
def test_decode_of_a_damaged_file_gives_pixels_or_image_error(
    kind: str, edits: list[tuple[float, int]], early: bool
) -> None:
    data = bytearray(FILES[kind])
    reach = min(160, len(data)) if early else len(data)
    for place, byte in edits:
        data[min(int(place * reach), reach - 1)] ^= byte
    only_pixels_or_image_error(bytes(data))


@settings(max_examples=60, deadline=None)
@given(head=st.sampled_from([data[:12] for data in FILES.values()]), rest=st.binary(max_size=200))
def test_decode_of_noise_behind_a_right_start_gives_pixels_or_image_error(head: bytes, rest: bytes) -> None:
    only_pixels_or_image_error(head + rest)


def bombs() -> dict[str, bytes]:
    return {
        "png": png(60_000, 60_000, 8, 2, b"\0" * 100),
        "png under Pillow's own limit": png(13_000, 13_000, 8, 2, b"\0" * 100),
        "png16": png(13_000, 13_000, 16, 2, b"\0" * 100),
        "png widest": png(2**31 - 1, 1, 8, 0, b"\0" * 100),
        "tiff": tiff(RGB16, size=(40_000, 40_000)),
        "tiff16": tiff(RGB16, size=(12_000, 12_000)),
        "tiff that only OpenCV reads": tiff(RGB16.astype(np.float32), size=(12_000, 12_000)),
        "ppm": b"P6 40000 40000 255\n" + b"\0" * 100,
        "bmp": FILES["bmp"][:18] + struct.pack("<ii", 40_000, 40_000) + FILES["bmp"][26:],
        "gif": FILES["gif"][:6] + struct.pack("<HH", 65_000, 65_000) + FILES["gif"][10:],
    }


@pytest.mark.parametrize("kind", sorted(bombs()))
def test_decode_refuses_huge_dimensions_without_allocating(kind: str) -> None:
    data = bombs()[kind]
    assert len(data) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="too large") as caught:
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert f"{MAX_PIXELS:,}" in str(caught.value)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30_000), (30_000, 1), (2, 9_999)])
def test_decode_reads_absurdly_thin_images(shape: tuple[int, int]) -> None:
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(pixels), "PNG")), pixels)


# Files


def test_read_bytes_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("empty.png", "empty"),
        ("missing.png", "no such file"),
        ("empty.png/below.png", "cannot be read"),
        ("folder.png", "cannot be read"),
        ("nul\0.png", "cannot be read"),
        ("x" * 300 + ".png", "cannot be read"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_bytes(tmp_path / name)


def test_read_bytes_gives_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(FILES["png"])
    assert read_bytes(tmp_path / "a.png") == FILES["png"]


@pytest.mark.parametrize(
    ("name", "is_image"),
    [("a.png", True), ("a.JPG", True), ("a.b.TIFF", True), (".a.png", False), ("png", False), ("a.txt", False)],
)
def test_is_image_name(name: str, is_image: bool) -> None:
    assert is_image_name(Path(name)) is is_image
