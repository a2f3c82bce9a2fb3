"""Extraction with cells cut out: what the pixels are, and that the cut is a part of every name."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Run
from watching import Watching

import featcache as fc
from featcache.core.errors import DatasetError, ProjectError
from featcache.images import Box, cut_and_resize
from featcache.segmentation.framing import CellCut, Framing, plain_view
from featcache.segmentation.picture import SEGMENTERS
from featcache.synthetic.drawing import render_cell

CELL = render_cell("neutrophil", 3, index=0, size_px=96)
CUT = "stain-1:white:0.1"


def on_glass(cell: np.ndarray, *, height: int = 200, width: int = 260, at: tuple[int, int] = (50, 80)) -> np.ndarray:
    """A cell's picture on a larger one of bare glass."""
    picture = np.full((height, width, 3), 244, np.uint8)
    picture[at[0] : at[0] + cell.shape[0], at[1] : at[1] + cell.shape[1]] = cell
    return picture


def test_a_cell_is_in_the_middle_of_a_square_as_large_as_its_box_and_margin() -> None:
    (cell,) = SEGMENTERS["stain"].cut_out(CELL).cells
    box, size_px = cell.box, 64
    side = max(box.x_max - box.x_min, box.y_max - box.y_min)
    kept, remark = plain_view(CELL, None, size_px=size_px, framing=Framing(segmentation="stain-1:keep:0"))
    left, top = box.x_min - (side - (box.x_max - box.x_min)) // 2, box.y_min - (side - (box.y_max - box.y_min)) // 2
    square = Box(left, top, left + side, top + side)
    assert remark == "" and left >= 0 and top >= 0
    np.testing.assert_array_equal(kept, cut_and_resize(CELL, square, size_px=size_px))


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0)])
def test_what_is_not_the_cell_is_of_one_colour(background: str, value: int) -> None:
    view, _ = plain_view(CELL, None, size_px=96, framing=Framing(segmentation=f"colour-1:{background}:0.25"))
    corners = view[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == value).all()
    assert np.ptp(view[40:56, 40:56].astype(int)) > 20


def test_a_cell_in_a_box_of_a_smear_is_the_same_as_in_a_crop() -> None:
    smear = on_glass(CELL)
    of_box, _ = plain_view(smear, Box(80, 50, 176, 146), size_px=64, framing=Framing(segmentation=CUT))
    of_crop, _ = plain_view(
        np.ascontiguousarray(smear[26:170, 56:200]), None, size_px=64, framing=Framing(segmentation=CUT)
    )
    assert np.abs(of_box.astype(int) - of_crop).mean() < 2


def test_a_cell_that_the_border_cuts_is_mirrored_or_filled() -> None:
    half = np.ascontiguousarray(CELL[:, 48:])
    for background in ("keep", "mean"):
        view, _ = plain_view(
            half, Box(0, 0, 48, 96), size_px=64, framing=Framing(segmentation=f"stain-1:{background}:0.5")
        )
        assert view.shape == (64, 64, 3)


def test_an_image_without_a_cell_is_used_whole_and_that_is_said() -> None:
    glass = np.full((80, 120, 3), 240, np.uint8)
    view, remark = plain_view(glass, None, size_px=32, framing=Framing("crop", CUT))
    np.testing.assert_array_equal(view, cut_and_resize(glass, None, size_px=32, resize="crop"))
    assert "no white cell" in remark


@pytest.mark.parametrize("text", ["stain-2:white:0.1", "stain-1:pink:0.1", "magic-1:keep:0", "stain-1:white", ""])
def test_a_way_to_cut_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="cannot cut cells so"):
        plain_view(CELL, None, size_px=32, framing=Framing(segmentation=text))


GOLDEN = {
    Framing("stretch", "stain-1:keep:0.1"): [
        192.9,
        187.3,
        200.9,
        173.8,
        170.1,
        197.7,
        180.9,
        176.8,
        204.3,
        174.5,
        167.3,
        196.6,
    ],
    Framing("stretch", "colour-1:white:0.1"): [
        218.5,
        206.9,
        221.5,
        199.9,
        190.4,
        219.1,
        203.3,
        192.9,
        221.7,
        201.4,
        191.7,
        221.5,
    ],
    Framing("stretch", "none", "reinhard-1"): [
        159.7,
        123.4,
        178.9,
        144.1,
        108.3,
        167.8,
        156.1,
        122.4,
        184.6,
        152.3,
        111.1,
        169.5,
    ],
    Framing("stretch", "stain-1:keep:0.1", "macenko-1"): [
        193.9,
        156.7,
        181.2,
        171.6,
        139.4,
        168.8,
        178.1,
        150.8,
        176.9,
        172.6,
        136.4,
        165.2,
    ],
}
"""Mean values of the quarters of a view, channel by channel."""


@pytest.mark.parametrize("framing", GOLDEN, ids=lambda framing: "/".join(framing[:3]))
def test_views_are_what_they_were(framing: Framing) -> None:
    """Or a version is raised: rows are named by it. Machines differ by rounding, so means are compared."""
    view = plain_view(CELL, None, size_px=64, framing=framing).pixels
    quarters = view.reshape(2, 32, 2, 32, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(quarters.ravel(), GOLDEN[framing], atol=1.0)


@pytest.mark.parametrize("margin", [0.0, 0.1, 1.0, 2.0, 0.123457, 0.00001])
def test_a_cut_is_spelt_in_one_way(margin: float) -> None:
    cut = CellCut("stain", "mean", margin)
    assert CellCut.read(str(cut)) == cut


def test_the_box_must_be_within_the_image() -> None:
    with pytest.raises(DatasetError, match="reaches out"):
        plain_view(CELL, Box(0, 0, 500, 20), size_px=32, framing=Framing(segmentation=CUT))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of cells on glass, and an image of glass alone."""
    folder = tmp_path_factory.mktemp("cells")
    for label in ("lymphocyte", "neutrophil"):
        (folder / label).mkdir()
        for index in range(6):
            picture = on_glass(render_cell(label, 1, index=index, size_px=96))
            assert cv2.imwrite(str(folder / label / f"{index}.png"), picture[..., ::-1])
    assert cv2.imwrite(str(folder / "lymphocyte/none.png"), np.full((90, 90, 3), 236, np.uint8))
    return folder


def test_caches_of_cut_cells_are_named_apart_and_predict_cuts_as_they_were(cells: Path, tmp_path: Path) -> None:
    project = fc.init(cells, tmp_path / "p")
    plain = fc.extract(project, "pixels", input_size_px=32)
    watching = Watching()
    white = fc.extract(
        project, "pixels", input_size_px=32, views={"segment": "stain", "background": "white"}, progress=watching
    )
    assert any("images used whole: 1 (" in note and "none.png" in note for note in watching.notes)
    black = fc.extract(project, "pixels", input_size_px=32, views={"segment": "stain", "background": "black"})
    assert len({plain.name, white.name, black.name}) == 3
    assert white.recipe.space.segmentation == CUT and plain.recipe.space.segmentation == "none"
    assert not set(plain.views["row_id"]) & set(white.views["row_id"])
    row = next(number for number, view in enumerate(white.rows["view"]) if view == 0)
    path = cells / white.rows["path"][row]
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    expected, _ = plain_view(picture, None, size_px=32, framing=Framing(segmentation=CUT))
    np.testing.assert_array_equal(white.features[row], expected)
    checked = fc.verify(white, recompute=3).recomputed
    assert checked is not None and checked.largest_deviation == 0


def test_heads_of_cut_cells_are_given_cut_cells_to_predict(cells: Path, tmp_path: Path) -> None:
    project = fc.init(cells, tmp_path / "p", views={"segment": "stain", "background": "black"})
    cache = fc.extract(project, "mobilenetv2", weights="random", input_size_px=32, pooling="avg")
    run = fc.fit_head(cache, epochs=5)
    of_cache, of_files = run.predict(cache), run.predict(cells)
    known = {path: number for number, path in enumerate(of_cache.paths)}
    places = [known[Path(path).relative_to(cells).as_posix()] for path in of_files.paths]
    np.testing.assert_allclose(of_files.probabilities, of_cache.probabilities[places], atol=1e-5)
    watching = Watching()
    glass = np.full((2, 40, 40, 3), 240, np.uint8)
    assert len(run.predict(glass, progress=watching)) == 2
    assert [
        note for note in watching.notes if "images used whole: 2 (no white cell was found in it; the first: " in note
    ]


def test_the_command_cuts(cells: Path, tmp_path: Path, run: Run) -> None:
    how = ("--segment", "colour", "--background", "mean", "--cell-margin", "0.3")
    assert run("init", str(cells), "--into", "p", *how, cwd=tmp_path).code == 0
    made = run("extract", "--model", "pixels", "--input-size", "32", "--json", cwd=tmp_path / "p")
    assert made.code == 0, made.err
    (recipe,) = tmp_path.glob("p/cache/*/recipe.json")
    assert "colour-1:mean:0.3" in recipe.read_text()
    with pytest.raises(ProjectError):
        fc.extract(tmp_path / "p", "pixels", input_size_px=32, views={"segment": "magic"})
