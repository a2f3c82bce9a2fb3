"""CZI files: the pixels and the physical size that were written, and what cannot be read is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import featcache as fc
from featcache.core.errors import ImageError
from featcache.core.progress import SILENT
from featcache.images.czi import _samples
from featcache.images.decode import decode, is_image_name, read_picture
from featcache.synthetic.drawing import CLASSES, render_cell

RGB = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)


def test_without_the_package_a_line_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_image_name(Path("a.CZI"))
    monkeypatch.setattr("featcache.images.czi.is_installed", lambda name: False)
    with pytest.raises(ImageError, match=r"pip install 'featcache\[czi\]'"):
        decode(b"ZISRAWFILE" + bytes(1000))


czi = pytest.importorskip("pylibCZIrw.czi", reason="pylibCZIrw is not installed: pip install 'featcache[czi]'")


def written(
    file: Path,
    pixels: NDArray[Any] = RGB,
    *,
    planes: tuple[dict[str, int], ...] = ({"C": 0},),
    scenes: int = 1,
    compression: str = "uncompressed:",
    um: float | None = 0.25,
) -> bytes:
    """A file with the same pixels in every plane and scene, RGB or grey."""
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = pixels[..., ::-1] if pixels.shape[-1] == 3 else pixels
    with czi.create_czi(str(file), compression_options=compression) as document:
        for plane in planes:
            for scene in range(scenes):
                more: dict[str, Any] = {"scene": scene, "location": (1000 * scene, 0)} if scenes > 1 else {}
                document.write(data=np.ascontiguousarray(stored), plane=plane, **more)
        sizes = {} if um is None else {"scale_x": um * 1e-6, "scale_y": um * 1e-6}
        document.write_metadata(document_name="cells", **sizes)
    return file.read_bytes()


@pytest.mark.parametrize("compression", ["uncompressed:", "zstd0:", "zstd1:"])
def test_the_pixels_are_those_that_were_written(tmp_path: Path, compression: str) -> None:
    found = read_picture(written(tmp_path / "a.czi", compression=compression))
    np.testing.assert_array_equal(found.pixels, RGB)
    assert (found.rules, found.remark, found.brightest, found.full) == (1, "", int(RGB.max()), 255)
    assert found.size.um == pytest.approx(0.25)
    assert read_picture(written(tmp_path / "b.czi", um=None)).size.um == 0


def test_wide_pixels_are_scaled_by_white(tmp_path: Path) -> None:
    wide = np.rint(RGB.astype(float) * 4095 / 255).astype(np.uint16)
    data = written(tmp_path / "wide.czi", wide)
    np.testing.assert_array_equal(read_picture(data, 4095).pixels, RGB)
    assert read_picture(data).full == 65_535 and read_picture(data).brightest == wide.max()
    grey = read_picture(written(tmp_path / "grey.czi", wide[..., :1]), 4095)
    np.testing.assert_array_equal(grey.pixels, np.repeat(RGB[..., :1], 3, axis=2))
    with pytest.raises(ImageError, match="above the value of white, 1,023"):
        read_picture(data, 1023)


@pytest.mark.parametrize(
    ("said", "full", "is_declared"),
    [("12", 4095, True), ("16", 65_535, False), ("10", 65_535, False), ("", 65_535, False)],
)
def test_bits_that_the_metadata_say_count_if_no_value_lies_above(said: str, full: int, is_declared: bool) -> None:
    wide = np.full((2, 3, 3), 4000, np.uint16)
    found = _samples(wide, 2, f"<A><ComponentBitCount>{said}</ComponentBitCount></A>" if said else "<A/>", "")
    assert (found.full, found.is_declared) == (full, is_declared)


def test_of_several_pictures_the_first_is_taken_and_channels_are_refused(tmp_path: Path) -> None:
    stack = written(tmp_path / "z.czi", planes=({"C": 0, "Z": 0}, {"C": 0, "Z": 1}))
    assert read_picture(stack).remark == "it is a stack of several planes; the first was taken"
    scenes = read_picture(written(tmp_path / "s.czi", scenes=3))
    np.testing.assert_array_equal(scenes.pixels, RGB)
    assert scenes.remark == "it holds 3 scenes; the first was taken"
    channels = written(tmp_path / "c.czi", RGB[..., :1], planes=({"C": 0}, {"C": 1}))
    with pytest.raises(ImageError, match="it holds 2 channels as separate planes"):
        decode(channels)
    floating = written(tmp_path / "f.czi", RGB[..., :1].astype(np.float32))
    with pytest.raises(ImageError, match="pixels of the kind Gray32Float"):
        decode(floating)


def test_what_was_cut_off_or_changed_is_refused_or_read(tmp_path: Path) -> None:
    data = written(tmp_path / "a.czi")
    for end in (10, 100, 600, len(data) // 2, len(data) - 2000):
        with pytest.raises(ImageError):
            decode(data[:end])
    random = np.random.default_rng(4)
    for _ in range(25):
        changed = np.frombuffer(data, np.uint8).copy()
        changed[random.integers(0, len(data), 20)] = random.integers(0, 256, 20)
        try:
            assert decode(changed.tobytes()).dtype == np.uint8
        except ImageError as error:
            assert "Traceback" not in str(error)


def test_a_set_of_such_files_is_a_project_with_sizes(tmp_path: Path) -> None:
    for label in CLASSES:
        for number in range(6):
            written(tmp_path / "cells" / label / f"{number}.czi", render_cell(label, 0, index=number, size_px=40))
    project = fc.init(tmp_path / "cells", tmp_path / "p", split_counts=(4, 1, 1), progress=SILENT)
    assert any("pixels are 0.25 µm wide, as is known of 24 of 24 images" in one for one in project.found.remarks)
    cache = fc.extract(project, "pixels", input_size_px=20, views={"um_per_px": 0.5}, progress=SILENT)
    assert len(set(cache.rows["path"])) == 24 and cache.recipe.space.um_per_px == 0.5
