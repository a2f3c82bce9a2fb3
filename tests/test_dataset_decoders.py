"""Every decoder against what was encoded, over a corpus of kinds x depths x layouts: equal, or refused by name.

The expected pixels are those that an independent program was given to write (tifffile with imagecodecs, Pillow,
OpenCV, or bytes laid out by hand); for lossy kinds, what Pillow or imagecodecs read from the file.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import run_command
from numpy.typing import NDArray
from PIL import Image
from test_dataset_images import chunk, png, saved

from featcache.core.errors import ImageError
from featcache.core.files import sha256_bytes
from featcache.core.recipe import FeatureSpace
from featcache.datasets.manifest import Dataset, LabelledImage
from featcache.extraction.rendering import render_views
from featcache.images.decode import decode, read_picture
from featcache.images.identity import image_id_of
from featcache.images.pixels import _Room
from featcache.images.scanning import scan
from featcache.images.views import PLAIN

H, W = 37, 53
_YY, _XX = np.mgrid[0:H, 0:W]
RGB = np.stack([_XX * 4, _YY * 6, 255 - _XX * 3], -1).astype(np.uint8)
GREY = (_XX * 2 + _YY * 3).astype(np.uint8)
ALPHA = np.clip(_XX * 5 + _YY, 1, 255).astype(np.uint8)


def grey3(grey: NDArray[Any]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, -1).astype(np.uint8)


def deep(pixels: NDArray[np.uint8], bits: int) -> NDArray[Any]:
    """Pixels of 8 bits as numbers of `bits` bits."""
    return np.rint(pixels / 255 * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def shallow(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return np.rint(pixels / (2**bits - 1) * 255).astype(np.uint8)


def tif(pixels: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def over_white(colour: NDArray[Any], alpha: NDArray[Any], full: int) -> NDArray[np.uint8]:
    part = alpha[..., None] / full
    return np.rint(colour / full * 255 * part + 255 * (1 - part)).astype(np.uint8)


Case = tuple[bytes, NDArray[np.uint8]]
LOSSLESS = (None, "lzw", "deflate", "packbits", "zstd", "lzma")
ORDERS = ("<", ">")


def tiffs() -> Iterator[tuple[str, Case]]:
    """Depths x compressions x byte orders x layouts x photometric interpretations, BigTIFF among them."""
    for bits, codec, order, big in itertools.product((8, 16), LOSSLESS, ORDERS, (False, True)):
        for tile, predictor in itertools.product((None, (16, 32)), (False, True)):
            if predictor and codec in (None, "packbits"):
                continue
            form = {"compression": codec, "byteorder": order, "bigtiff": big, "tile": tile, "predictor": predictor}
            name = f"tiff {bits} {codec} {order} {'big' if big else ''} {tile} {predictor}"
            rgb, grey = deep(RGB, bits), deep(GREY, bits)
            yield f"{name} rgb", (tif(rgb, photometric="rgb", **form), shallow(rgb, bits))
            planes = np.ascontiguousarray(np.moveaxis(rgb, -1, 0))
            planar = tif(planes, photometric="rgb", planarconfig="separate", **form)
            yield f"{name} planar", (planar, shallow(rgb, bits))
            yield f"{name} grey", (tif(grey, photometric="minisblack", **form), grey3(shallow(grey, bits)))
            white = tif(2**bits - 1 - grey, photometric="miniswhite", **form)
            yield f"{name} white is zero", (white, grey3(shallow(grey, bits)))


def tiff_depths() -> Iterator[tuple[str, Case]]:
    for bits, order in itertools.product((1, 2, 4, 6, 9, 10, 12, 14, 15), ORDERS):
        grey = deep(GREY, bits)
        for photometric in ("minisblack", "miniswhite"):
            values = grey if photometric == "minisblack" else 2**bits - 1 - grey
            data = tif(packable(values, bits, order), photometric=photometric, byteorder=order, **packing(bits))
            yield f"tiff of {bits} bits {order} {photometric}", (data, grey3(shallow(grey, bits)))
    for bits in (9, 10, 12, 14):
        said = [(281, "H", 1, 2**bits - 1, False)]
        grey = deep(GREY, bits)
        yield f"tiff MaxSampleValue {2**bits - 1}", (tif(grey, extratags=said), grey3(shallow(grey, bits)))
    statistic = tif(deep(GREY, 16), extratags=[(281, "H", 1, 50_000, False)])
    yield "tiff MaxSampleValue as a statistic", (statistic, grey3(GREY))
    contradiction = tif(deep(GREY, 16), extratags=[(281, "H", 1, 4095, False)])
    yield "tiff MaxSampleValue below the values", (contradiction, grey3(GREY))


def packing(bits: int) -> dict[str, int]:
    return {} if bits == 1 else {"bitspersample": bits}


def packable(values: NDArray[Any], bits: int, order: str) -> NDArray[Any]:
    """tifffile packs the swapped numbers of big-endian files (TIFF 6.0 packs bits alike in both): swapped back."""
    if bits == 1:
        return values.astype(bool)
    return values.byteswap() if order == ">" and bits > 8 else values


def tiff_extras() -> Iterator[tuple[str, Case]]:
    for bits, planar in itertools.product((8, 16), (False, True)):
        full = 2**bits - 1
        rgb, grey, alpha = deep(RGB, bits), deep(GREY, bits), deep(ALPHA, bits)
        zeros = np.zeros_like(alpha)

        def stack(*parts: NDArray[Any], planar: bool = planar) -> tuple[NDArray[Any], dict[str, Any]]:
            pixels = np.dstack(parts)
            if planar:
                return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), {"planarconfig": "separate"}
            return pixels, {"planarconfig": "contig"}

        for codec in (None, "deflate"):
            for extra in (zeros, alpha):
                pixels, how = stack(rgb, extra)
                data = tif(pixels, photometric="rgb", extrasamples=["unspecified"], compression=codec, **how)
                where = f"{bits} {planar} {codec} {'zeros' if extra is zeros else 'values'}"
                yield f"tiff rgb + unspecified {where}", (data, RGB)
            pixels, how = stack(rgb, alpha)
            data = tif(pixels, photometric="rgb", extrasamples=["unassalpha"], compression=codec, **how)
            yield f"tiff rgba {bits} {planar} {codec}", (data, over_white(rgb, alpha, full))
            pixels, how = stack(np.rint(rgb * (alpha[..., None] / full)).astype(rgb.dtype), alpha)
            data = tif(pixels, photometric="rgb", extrasamples=["assocalpha"], compression=codec, **how)
            yield f"tiff premultiplied {bits} {planar} {codec}", (data, over_white(rgb, alpha, full))
            pixels, how = stack(rgb, zeros, alpha)
            data = tif(pixels, photometric="rgb", extrasamples=["unspecified", "unassalpha"], compression=codec, **how)
            yield f"tiff rgb + two {bits} {planar} {codec}", (data, over_white(rgb, alpha, full))
        if not planar:
            pixels = np.dstack([grey, alpha])
            data = tif(pixels, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
            yield f"tiff grey + alpha {bits}", (data, over_white(np.dstack([grey] * 3), alpha, full))


def tiff_maps() -> Iterator[tuple[str, Case]]:
    colours = np.random.default_rng(3).integers(0, 256, (3, 256)).astype(np.uint16)
    index = GREY
    for name, stored in (("65535", colours * 257), ("255", colours)):
        for codec in (None, "lzw"):
            data = tif(index, photometric="palette", colormap=stored, compression=codec)
            yield f"tiff colour map to {name} {codec}", (data, colours.T[index].astype(np.uint8))


def tiff_pictures() -> Iterator[tuple[str, Case]]:
    """Pictures within a TIFF: lossless ones as they were, others as imagecodecs reads them."""
    for codec, args in (("jpeg2000", {"level": 0}), ("webp", {"lossless": True}), ("png", {})):
        for order, big, tile in itertools.product(ORDERS, (False, True), (None, (32, 32))):
            form = {"byteorder": order, "bigtiff": big, "tile": tile}
            data = tif(RGB, photometric="rgb", compression=codec, compressionargs=args, **form)
            yield f"tiff of {codec} {order} {big} {tile}", (data, tifffile.imread(io.BytesIO(data)))
            if not args.get("level"):
                assert codec == "jpeg2000" or np.array_equal(tifffile.imread(io.BytesIO(data)), RGB)
    smooth = cv2.GaussianBlur(RGB, (5, 5), 2)
    for order, tile in itertools.product(ORDERS, (None, (32, 32))):
        data = tif(smooth, photometric="rgb", compression="jpeg", byteorder=order, tile=tile)
        yield f"tiff of jpeg {order} {tile}", (data, tifffile.imread(io.BytesIO(data)))
    for codec in ("group3", "group4", "tiff_ccitt"):
        yield f"tiff of fax {codec}", _by_pillow(Image.fromarray(GREY > 127), codec)
    yield "tiff of inks", _by_pillow(Image.fromarray(RGB).convert("CMYK"), None)
    yield "tiff of jpeg by libtiff", _by_pillow(Image.fromarray(smooth), "jpeg")


def _by_pillow(picture: Image.Image, codec: str | None) -> Case:
    data = saved(picture, "TIFF", **({"compression": codec} if codec else {}))
    return data, np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def nets() -> Iterator[tuple[str, Case]]:
    """PBM, PGM and PPM, binary and in words, for every kind of largest value."""
    for most in (1, 3, 15, 100, 255, 256, 1023, 4095, 16_383, 40_000, 65_535):
        kind = ">u2" if most > 255 else "u1"
        for letter, words, pixels in (("5", "2", GREY), ("6", "3", RGB)):
            values = np.rint(pixels / 255 * most)
            right = np.rint(values / most * 255).astype(np.uint8)
            right = grey3(right) if right.ndim == 2 else right
            head = f" {W} {H} {most}\n".encode()
            yield f"P{letter} {most}", (b"P" + letter.encode() + head + values.astype(kind).tobytes(), right)
            text = " ".join(map(str, values.astype(int).ravel()))
            yield f"P{words} {most}", (b"P" + words.encode() + head + text.encode(), right)
    bits = GREY > 127
    yield "P4", (f"P4 {W} {H}\n".encode() + np.packbits(~bits, axis=1).tobytes(), grey3(bits * 255))


def bitmaps() -> Iterator[tuple[str, Case]]:
    for top_down in (False, True):
        for alpha, name in ((np.zeros((H, W), np.uint8), "zeros"), (np.full((H, W), 255, np.uint8), "opaque")):
            yield f"bmp V4, alpha {name} {top_down}", (bitmap32(alpha, top_down), RGB)
    for mode in ("RGB", "L", "1", "P"):
        picture = Image.fromarray(RGB).convert(mode)
        yield f"bmp {mode}", (saved(picture, "BMP"), np.array(picture.convert("RGB")))


def bitmap32(alpha: NDArray[np.uint8], top_down: bool = False) -> bytes:
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    size = W * H * 4
    head = struct.pack("<IiiHHIIiiII4I", 108, W, -H if top_down else H, 1, 32, 3, size, 2835, 2835, 0, 0, *masks)
    rows = np.dstack([RGB[:, :, ::-1], alpha])
    start = b"BM" + struct.pack("<IHHI", 14 + 108 + size, 0, 0, 122)
    return start + head + b"BGRs" + bytes(48) + (rows if top_down else rows[::-1]).tobytes()


def pngs() -> Iterator[tuple[str, Case]]:
    for bits, colour in itertools.product((1, 2, 4, 8, 16), (0, 2, 4, 6)):
        if bits < 8 and colour:
            continue
        grey, rgb, alpha = deep(GREY, bits), deep(RGB, bits), deep(ALPHA, bits)
        parts = {0: (grey,), 2: (rgb,), 4: (grey, alpha), 6: (rgb, alpha)}[colour]
        pixels = np.dstack(parts)
        full = 2**bits - 1
        right = grey3(shallow(grey, bits)) if colour in (0, 4) else shallow(rgb, bits)
        if colour in (4, 6):
            right = over_white(np.dstack([grey] * 3) if colour == 4 else rgb, alpha, full)
        yield f"png {bits} {colour}", (by_hand(pixels, bits, colour), right)
        text = chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000)
        squeezed = chunk(b"zTXt", b"Raw\0\0" + zlib.compress(b"y" * 9_000_000))
        yield f"png {bits} {colour} with large texts", (by_hand(pixels, bits, colour, text, squeezed), right)


def by_hand(pixels: NDArray[Any], bits: int, colour: int, *extra: bytes) -> bytes:
    if bits == 16:
        lines = [b"\0" + line.astype(">u2").tobytes() for line in pixels]
    elif bits == 8:
        lines = [b"\0" + line.astype(np.uint8).tobytes() for line in pixels]
    else:
        planes = np.unpackbits(pixels.astype(np.uint8)[:, :, :1], axis=2)[:, :, 8 - bits :]
        lines = [b"\0" + np.packbits(line.ravel()).tobytes() for line in planes]
    return png(W, H, bits, colour, b"".join(lines), *extra)


def jpegs() -> Iterator[tuple[str, Case]]:
    for progressive, sampling, mode, restart in itertools.product(
        (False, True), (0, 1, 2), ("RGB", "L", "CMYK"), (0, 3)
    ):
        picture = Image.fromarray(RGB).convert(mode)
        how = {"progressive": progressive, "subsampling": sampling, "restart_marker_blocks": restart}
        data = saved(picture, "JPEG", quality=92, **how)
        right = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        yield f"jpeg {progressive} {sampling} {mode} {restart}", (data, right)
        yield f"jpeg {progressive} {sampling} {mode} {restart} without its end", (data[:-2], right)


SOURCES: tuple[Callable[[], Iterator[tuple[str, Case]]], ...] = (
    tiffs,
    tiff_depths,
    tiff_extras,
    tiff_maps,
    tiff_pictures,
    nets,
    bitmaps,
    pngs,
    jpegs,
)


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_is_read_as_it_was_written(source: Callable[[], Iterator[tuple[str, Case]]]) -> None:
    wrong, refused, seen = [], [], 0
    for name, (data, right) in source():
        seen += 1
        try:
            found = decode(data)
        except ImageError as error:
            refused.append(f"{name}: {error}")
            continue
        exact = 0 if name.startswith("jpeg") else 1
        if found.shape != right.shape or np.abs(found.astype(int) - right).max() > exact:
            wrong.append(name)
    assert not wrong
    assert not refused
    assert seen >= 4


# Several pictures in one file


def pages(*parts: tuple[NDArray[Any], dict[str, Any]], **options: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, **options) as writer:
        for pixels, how in parts:
            writer.write(pixels, **{"metadata": None, **how})
    return file.getvalue()


RED = np.full((H, W, 3), (200, 10, 10), np.uint8)


def test_a_thumbnail_that_comes_first_is_not_taken_for_the_picture() -> None:
    small = np.ascontiguousarray(RED[::4, ::4])
    for flag in ({"subfiletype": 1}, {"extratags": [(255, "H", 1, 2, True)]}):
        found = read_picture(pages((small, {"photometric": "rgb", **flag}), (RGB, {"photometric": "rgb"})))
        np.testing.assert_array_equal(found.pixels, RGB)
        assert "thumbnail" in found.remark
        assert found.rules == 2, "version 0.1 took the thumbnail"


def test_a_picture_below_its_thumbnail_is_found() -> None:
    data = pages(
        (np.ascontiguousarray(RED[::4, ::4]), {"photometric": "rgb", "subfiletype": 1, "subifds": 1}),
        (RGB, {"photometric": "rgb"}),
    )
    np.testing.assert_array_equal(decode(data), RGB)


def test_masks_are_not_taken_for_the_picture() -> None:
    mask = np.zeros((H, W), bool)
    data = pages((mask, {"photometric": "minisblack", "subfiletype": 4}), (RGB, {"photometric": "rgb"}))
    np.testing.assert_array_equal(decode(data), RGB)


def test_of_several_pages_the_first_is_taken_and_said() -> None:
    found = read_picture(pages((RGB, {"photometric": "rgb"}), (RED, {"photometric": "rgb"})))
    np.testing.assert_array_equal(found.pixels, RGB)
    assert "first was taken" in found.remark
    stack = read_picture(tif(np.stack([GREY, GREY[::-1]]), imagej=True, metadata={"axes": "ZYX"}))
    np.testing.assert_array_equal(stack.pixels, grey3(GREY))
    assert "first was taken" in stack.remark


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_taken_and_said(kind: str) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(RED)]
    found = read_picture(saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
    assert "first was taken" in found.remark
    assert read_picture(saved(frames[0], kind)).remark == ""


@pytest.mark.parametrize("how", ["imagej", "ome"])
def test_colours_in_separate_planes_are_refused(how: str) -> None:
    data = tif(np.moveaxis(RGB, -1, 0).copy(), photometric="minisblack", metadata={"axes": "CYX"}, **{how: True})
    with pytest.raises(ImageError, match="3 channels as separate planes"):
        decode(data)


# Refused by name


REFUSED = {
    "jpeg xl": (tif(RGB, photometric="rgb", compression="jpegxl"), "compressed with JPEGXL"),
    "jpeg xr": (tif(RGB, photometric="rgb", compression="jpegxr"), "compressed with JPEGXR"),
    "lerc": (tif(RGB, photometric="rgb", compression="lerc"), "compressed with LERC"),
    "aperio": (
        tif(RGB, photometric="rgb", compression="aperio_jp2000_ycbc"),
        "compressed with APERIO_JP2000_YCBC .33003",
    ),
    "lab": (tif(RGB, photometric="cielab"), "stored as CIELAB"),
    "raw sensor": (tif(deep(GREY, 16), photometric="cfa"), "stored as CFA"),
    "linear raw": (tif(deep(RGB, 16), photometric="linear_raw"), "stored as LINEAR_RAW"),
    "float": (tif(RGB.astype(np.float32), photometric="rgb"), "floating-point"),
    "half": (tif(GREY.astype(np.float16)), "floating-point"),
    "signed": (tif(GREY.astype(np.int16)), "signed"),
    "32 bits": (tif(GREY.astype(np.uint32)), "32 bits"),
    "volume": (tif(np.stack([GREY] * 16), volumetric=True, tile=(16, 16, 16)), "volume"),
    "unnamed channels": (
        tif(RGB, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"] * 2),
        "does not say which colours",
    ),
    "ink and jpeg": (
        tif(np.dstack([RGB, GREY]), photometric="separated", compression="jpeg"),
        "inks cannot be read",
    ),
    "transparent": (
        tif(np.dstack([RGB, GREY * 0]), photometric="rgb", extrasamples=["unassalpha"]),
        "every pixel of it is transparent",
    ),
    "transparent png": (saved(Image.fromarray(np.dstack([RGB, GREY * 0])), "PNG"), "every pixel of it is transparent"),
    "short map": (
        tif(GREY, photometric="palette", colormap=np.zeros((3, 256), np.uint16)).replace(
            struct.pack("<HHI", 320, 3, 768), struct.pack("<HHI", 320, 3, 48)
        ),
        "damaged",
    ),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_has_no_certain_reading_is_refused_by_name(kind: str) -> None:
    data, reason = REFUSED[kind]
    with pytest.raises(ImageError, match=reason):
        decode(data)


def test_a_tiff_cut_short_is_refused_whatever_its_compression() -> None:
    for codec in (*LOSSLESS, "jpeg", "jpeg2000", "webp", "png"):
        file = io.BytesIO()
        tifffile.imwrite(file, RGB, photometric="rgb", compression=codec)
        whole = file.getvalue()
        with tifffile.TiffFile(io.BytesIO(whole)) as read:
            page = read.pages.first
            start, length = page.dataoffsets[0], page.databytecounts[0]
        for cut in (start + length // 4, start + length // 2, start + length - 20):
            with pytest.raises(ImageError):
                decode(whole[:cut])


def test_a_jpeg_without_its_end_is_refused_where_scans_or_blocks_are_missing() -> None:
    for progressive in (False, True):
        data = saved(Image.fromarray(RGB), "JPEG", quality=92, progressive=progressive)
        right = decode(data)
        for length in range(len(data) // 3, len(data) - 2, 7):
            for cut in (data[:length], data[:length] + b"\xff\xd9") if progressive else (data[:length],):
                try:
                    found = decode(cut)
                except ImageError:
                    continue
                ends = cut is not data[:length]  # what is cut in a scan and then closed looks whole to every decoder
                assert ends or np.array_equal(found, right)


# Memory


def test_a_strip_that_unpacks_to_more_than_it_says_takes_no_memory() -> None:
    zeros = bytes(120_000_000)
    data = bytearray(tif(RGB, photometric="rgb", compression="deflate"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tags = file.pages.first.tags
        offset_at, count_at = tags[273].valueoffset, tags[279].valueoffset
    bomb = zlib.compress(zeros, 1)
    struct.pack_into("<I", data, offset_at, len(data))
    struct.pack_into("<I", data, count_at, len(bomb))
    peak = peak_of(bytes(data) + bomb)
    assert peak < 60_000_000


def test_a_tile_larger_than_its_picture_takes_no_memory() -> None:
    data = bytearray(tif(np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(64, 64), compression="deflate"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tags = file.pages.first.tags
        places = [tags[322].valueoffset, tags[323].valueoffset]
    for at in places:
        struct.pack_into("<H", data, at, 65_520)
    with pytest.raises(ImageError, match="too large"):
        decode(bytes(data))


def test_a_picture_in_a_tile_is_no_larger_than_the_tile() -> None:
    data = tif(RGB, photometric="rgb", compression="png")
    big = png(20_000, 5_000, 8, 2, b"\0" * 100)
    changed = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages.first.tags
        offset_at, count_at = tags[273].valueoffset, tags[279].valueoffset
    struct.pack_into("<I", changed, offset_at, len(changed))
    struct.pack_into("<I", changed, count_at, len(big))
    with pytest.raises(ImageError, match="larger than the picture"):
        decode(bytes(changed) + big)


def peak_of(data: bytes) -> int:
    """Bytes by which decoding raises this process' highest memory, or an ImageError of no matter what."""
    tracemalloc.start()
    with contextlib.suppress(ImageError):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_wide_pictures_are_bounded_by_their_decoded_bytes() -> None:
    with pytest.raises(ImageError, match="too large: 10000x8000 px of 8 bytes"):
        decode(png(10_000, 8_000, 16, 6, b"\0" * 100))


# What people are told of a set


def a_set(folder: Path, write: Callable[[str, int], tuple[str, bytes]]) -> None:
    for label, number in itertools.product(("eosinophil", "monocyte"), range(4)):
        name, data = write(label, number)
        (folder / "cells" / label).mkdir(parents=True, exist_ok=True)
        (folder / "cells" / label / name).write_bytes(data)


def noisy(number: int, label: str, bits: int) -> NDArray[np.uint16]:
    rng = np.random.default_rng([number, len(label)])
    return rng.integers(0, 2**bits, (24, 24, 3), dtype=np.uint16)


def test_init_remarks_on_a_set_that_uses_few_of_its_bits(tmp_path: Path) -> None:
    a_set(tmp_path, lambda label, n: (f"{n}.tif", tif(noisy(n, label, 12), photometric="rgb")))
    said = run_command("init", "cells", cwd=tmp_path, check=True).out
    assert re.search(r"brightest value 4,0\d\d of 65,535", said)


def test_init_is_silent_where_the_file_says_its_bits_or_uses_all(tmp_path: Path) -> None:
    a_set(tmp_path, lambda label, n: (f"{n}.tif", tif(noisy(n, label, 16), photometric="rgb")))
    assert "brightest" not in run_command("init", "cells", cwd=tmp_path, check=True).out
    a_set(tmp_path, lambda label, n: (f"{n}.tif", tif(noisy(n, label, 12), photometric="rgb", bitspersample=12)))
    assert "brightest" not in run_command("init", "cells", cwd=tmp_path, check=True).out


def test_init_says_which_page_was_taken(tmp_path: Path) -> None:
    def write(label: str, number: int) -> tuple[str, bytes]:
        cell = noisy(number, label, 8).astype(np.uint8)
        return f"{number}.tif", pages((cell, {"photometric": "rgb"}), (RED, {"photometric": "rgb"}))

    a_set(tmp_path, write)
    said = run_command("init", "cells", cwd=tmp_path, check=True).out
    assert "and 7 more: it holds several pictures (pages); the first was taken" in said


def test_what_version_0_1_read_wrongly_has_another_name_now(tmp_path: Path) -> None:
    """So that no cached feature of the wrong pixels is taken for one of the right ones."""
    planes = np.ascontiguousarray(np.moveaxis(deep(RGB, 16), -1, 0))
    for name, data, is_same in (
        ("planar.tif", tif(planes, photometric="rgb", planarconfig="separate"), False),
        ("twelve.tif", tif(deep(GREY, 12), bitspersample=12), False),
        ("plain.tif", tif(RGB, photometric="rgb", compression="lzw"), True),
        ("sixteen.tif", tif(deep(RGB, 16), photometric="rgb"), True),
        ("plain.png", saved(Image.fromarray(RGB), "PNG"), True),
        ("few.pgm", b"P5 2 1 4095\n\x0f\xff\x00\x00", False),
        ("some.bmp", bitmap32(np.zeros((H, W), np.uint8)), False),
    ):
        (tmp_path / name).write_bytes(data)
        file = scan(tmp_path, [name])[name]
        assert (file.identity == sha256_bytes(data)) is is_same, name
        image = LabelledImage(name, "a", "train", "g", image_id_of(file.identity, None))
        (view,) = render_views(
            image,
            Dataset((image,), tmp_path),
            space=FeatureSpace("tiny", "last", 24, "none", "none", "0" * 64),
            parameters=[PLAIN],
        )
        assert view.shape == (24, 24, 3)
        if not is_same:
            assert file.rules == 2


def test_large_pictures_are_decoded_one_after_the_other() -> None:
    """Whatever the number of threads: the room for decoded bytes is one for all."""
    room, inside, most = _Room(100), 0, 0
    lock = threading.Lock()

    def decode_one(wanted: int) -> None:
        nonlocal inside, most
        with room.taken(wanted):
            with lock:
                inside += wanted
                most = max(most, inside)
            time.sleep(0.002)
            with lock:
                inside -= wanted

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode_one, [60, 30, 250, 10, 45, 55, 99, 1] * 4))
    assert most == 250, "what is larger than all room is decoded alone"
    assert inside == 0
