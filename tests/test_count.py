"""count: whole smears end to end, its intervals against an independent path, and what it does with bad input."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run, start_command
from numpy.typing import NDArray
from scipy.stats import multinomial

import featcache as fc
from featcache.core.errors import DatasetError, ProjectError, RunError, UsageError
from featcache.core.progress import SILENT, Silent
from featcache.counting.intervals import Rate, by_confusion, by_probability, design_effect, intervals
from featcache.counting.known import confusion_of
from featcache.synthetic.drawing import render_smear, write_cells

SIZE = {"width_px": 240, "height_px": 180}
SURE = Rate(1 - 1e-9, 1e12)
"""A segmenter that makes no mistakes."""


def save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> fc.Run:
    """A head on the pixels of generated cells, right in two of three cases."""
    folder = tmp_path_factory.mktemp("head")
    write_cells(folder / "cells", 40, seed=2, size_px=48)
    project = fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)
    return fc.fit_head(fc.extract(project, "pixels", input_size_px=12, progress=SILENT), head="logreg", progress=SILENT)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counter[str]]:
    """200 smears, and how many white cells of each class they have."""
    folder, random = tmp_path_factory.mktemp("slide"), np.random.default_rng(4)
    truth: Counter[str] = Counter()
    classes = np.array(["neutrophil", "lymphocyte", "monocyte", "eosinophil"])
    for index in range(200):
        labels = random.choice(classes, size=random.choice(3, p=[0.1, 0.7, 0.2]), p=[0.6, 0.28, 0.08, 0.04]).tolist()
        truth.update(labels)
        save(folder / f"field-{index:03d}.jpg", render_smear(labels, 9, index=index, **SIZE)[0])
    return folder, truth


@pytest.fixture(scope="module")
def few(slide: tuple[Path, Counter[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    for path in sorted(slide[0].iterdir())[:6]:
        shutil.copy2(path, folder)
    return folder


def test_a_slide_of_200_smears_killed_and_gone_on_with(
    slide: tuple[Path, Counter[str]], head: fc.Run, tmp_path: Path
) -> None:
    smears, truth = slide
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    done = fc.count(smears, head, out=whole, progress=SILENT)
    for label, of in done.total.items():
        assert of["low"] <= truth[label] <= of["high"], label
    assert abs(len(done.cells) - truth.total()) <= 0.05 * truth.total()
    assert len(done.images) == 200 and done.empty

    worker = start_command("count", str(smears), "--run", str(head.folder), "--out", str(parted), cwd=tmp_path)
    end = time.monotonic() + 120
    while len(list((parted / ".pictures").glob("*.json"))) < 20 and not worker.ended() and time.monotonic() < end:
        time.sleep(0.01)
    worker.send(signal.SIGKILL)
    assert worker.wait().code == -signal.SIGKILL, worker.read("err")
    whole_ones = [path for path in (parted / ".pictures").glob("*.json") if not path.name.startswith(".")]
    records = {path: path.stat().st_mtime_ns for path in whole_ones}
    assert 19 <= len(records) < 200 and not (parted / "count.json").exists()
    for path in [path for path in parted.rglob("*") if path.name.startswith(".") and path.is_file()]:
        path.unlink()  # what was half written
    fc.count(smears, head, out=parted, progress=SILENT)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in records.items())
    assert files_of(whole) == files_of(parted)


class _Stopped(Silent):
    """Asks to stop from the beginning."""

    @contextmanager
    def stopping(self) -> Iterator[Any]:
        yield lambda: True


def test_an_interruption_ends_a_count_of_empty_fields_too(head: fc.Run, tmp_path: Path) -> None:
    for number in range(8):
        save(tmp_path / f"in/{number}.png", np.full((60, 80, 3), 210, np.uint8))
    with pytest.raises(KeyboardInterrupt):
        fc.count(tmp_path / "in", head, out=tmp_path / "out", progress=_Stopped())
    assert not (tmp_path / "out/count.json").exists()
    assert len(fc.count(tmp_path / "in", head, out=tmp_path / "out", progress=SILENT).empty) == 8


def test_tables_pictures_and_json_agree(few: Path, head: fc.Run, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    value = run("count", str(few), "--run", str(head.folder), "--out", str(out), "--json", cwd=tmp_path).value
    classes = head.config["classes"]
    assert [image["path"] for image in value["images"]] == [str(path) for path in sorted(few.iterdir())]
    for image in value["images"]:
        assert list(image["classes"]) == classes and sum(image["classes"].values()) == image["cells"]
    for label, of in value["total"].items():
        assert of["n"] == sum(image["classes"][label] for image in value["images"])
        assert 0 <= of["low"] <= of["high"] and of["high"] >= 1
        assert 0 <= of["share_low"] <= of["share"] <= of["share_high"] <= 1
    cells = rows(out / "cells.csv")
    assert len(cells) == value["cells"] == sum(image["cells"] for image in value["images"])
    for cell in cells:
        shares = [float(cell[f"p_{label}"]) for label in classes]
        assert abs(sum(shares) - 1) < 1e-3 and (cell["unsure"] == "True") == bool(cell["why"])
    assert sum(cell["unsure"] == "True" for cell in cells) == value["unsure"]
    assert [(row["image"], row["cells"]) for row in rows(out / "counts.csv")] == [
        (image["image"], str(image["cells"])) for image in value["images"]
    ]
    assert {path.stem for path in (out / "pictures").iterdir()} == {path.stem for path in few.iterdir()}
    kept = json.loads((out / "count.json").read_text())
    assert kept == {key: item for key, item in value.items() if key not in ("folder", "page")}
    assert "pictures/field-000.jpg" in (out / "index.html").read_text()
    said = run("count", str(few), "--run", str(head.folder), cwd=tmp_path)
    assert said.code == 0 and f"{len(cells)} white cells in 6 fields" in said.out and "wrote" not in said.out


def test_named_cells_are_what_predict_says_of_the_crops(few: Path, head: fc.Run, tmp_path: Path) -> None:
    done = fc.count(few, head, margin=0.25, progress=SILENT)
    assert done.cells and done.folder is None
    crops = []
    for cell in done.cells:
        pixels = cv2.imread(str(few / cell["image"]))[..., ::-1]
        across, down = cell["x_max"] - cell["x_min"], cell["y_max"] - cell["y_min"]
        side, longer = round(0.25 * max(across, down)), max(across, down)
        left, top = cell["x_min"] - side - (longer - across) // 2, cell["y_min"] - side - (longer - down) // 2
        square = np.s_[max(top, 0) : top + longer + 2 * side, max(left, 0) : left + longer + 2 * side]
        crops.append(np.ascontiguousarray(pixels[square]))
    says = fc.predict(head, crops, progress=SILENT)
    assert says.confidence is not None and says.unlike is not None
    assert [cell["label"] for cell in done.cells] == says.labels.tolist()
    np.testing.assert_allclose([cell["probability"] for cell in done.cells], says.confidence, atol=6e-5)
    assert [cell["unlike"] for cell in done.cells] == says.unlike.tolist()


def test_a_cell_is_unsure_below_the_threshold_or_where_its_set_is_not_one_class(few: Path, head: fc.Run) -> None:
    none = fc.count(few, head, unsure_below=0.0, false_alarms=1e-9, progress=SILENT)
    every = fc.count(few, head, unsure_below=1.0, progress=SILENT)
    sets = fc.count(few, head, unsure_below=0.0, false_alarms=1e-9, confidence=0.99, progress=SILENT)
    assert {cell["why"] for cell in none.cells} <= {"", "cut by the border"} or none.unsure < len(none.cells)
    assert every.unsure == len(every.cells) == len(sets.cells)
    assert sets.unsure >= none.unsure and any("may be" in cell["why"] for cell in sets.cells)


def test_bad_pictures_are_said_and_counted_around(head: fc.Run, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "in"
    good = render_smear(["lymphocyte"], 3, index=0, width_px=320, height_px=240)[0]
    save(folder / "deep/good.png", good)
    save(folder / "blank.png", np.full((120, 160, 3), 210, np.uint8))
    save(folder / "white.png", np.full((120, 160, 3), 255, np.uint8))
    save(folder / "blurred.png", cv2.GaussianBlur(good, (0, 0), 14))
    save(folder / "pixel.png", np.full((1, 1, 3), 100, np.uint8))
    save(folder / "larger.png", cv2.resize(good, None, fx=5, fy=5))
    save(folder / "grey.png", cv2.cvtColor(good, cv2.COLOR_RGB2GRAY))
    save(folder / "crop.png", write_one(tmp_path))
    eyepiece = good.copy()
    cv2.circle(mask := np.zeros(good.shape[:2], np.uint8), (160, 120), 130, 1, -1)
    eyepiece[mask == 0] = 0
    save(folder / "eyepiece.png", eyepiece)
    save(folder / "=1+1.png", np.full((60, 60, 3), 200, np.uint8))
    (folder / "text.png").write_text("no picture")
    (folder / "empty.jpg").touch()
    out = tmp_path / "out"
    value = run("count", str(folder), "--run", str(head.folder), "--out", str(out), "--json", cwd=tmp_path).value
    cells = {image["image"]: image["cells"] for image in value["images"]}
    assert cells["deep/good.png"] == 1 and len(cells) == 12
    for name in ("blank.png", "white.png", "pixel.png", "text.png", "empty.jpg"):
        assert cells[name] == 0 and name in value["fields_without_cells"]
    said = Counter(item["image"] for item in value["left_out"])
    assert {"blank.png", "white.png", "blurred.png", "pixel.png", "text.png", "empty.jpg"} <= set(said)
    reasons = {item["image"]: item["reason"] for item in value["left_out"]}
    assert "one cell" in reasons["crop.png"] and "magnification" in reasons["larger.png"]
    assert rows(out / "left_out.csv")[0]["image"].startswith("'=") or "=1+1.png" not in said
    page = (out / "index.html").read_text()
    assert "pictures/deep/good.jpg" in page and 'href="pictures/text.jpg"' not in page


def write_one(tmp_path: Path) -> NDArray[np.uint8]:
    path = write_cells(tmp_path / "one", 1, seed=5, size_px=140)[0]
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


def test_cells_at_the_border_are_unsure_or_left_out(head: fc.Run, tmp_path: Path) -> None:
    pixels, boxes = render_smear(["monocyte"], 3, index=1, width_px=320, height_px=240)
    box = next(box for box in boxes if box.name == "WBC")
    cut = pixels[:, : (box.x_min + box.x_max) // 2]
    save(tmp_path / "in/cut.png", np.ascontiguousarray(cut))
    counted = fc.count(tmp_path / "in", head, progress=SILENT)
    assert [(cell["at_border"], cell["unsure"]) for cell in counted.cells] == [(True, True)]
    left = fc.count(tmp_path / "in", head, border="leave_out", progress=SILENT)
    assert not left.cells and any("border" in item["reason"] for item in left.left_out)


def test_several_sources_are_counted_once_each(few: Path, head: fc.Run, tmp_path: Path) -> None:
    other = tmp_path / "deep" / few.name
    shutil.copytree(few, other)
    one = sorted(few.iterdir())[0]
    done = fc.count([few, one, other], head, out=tmp_path / "out", progress=SILENT)
    assert len(done.images) == 12 and len({image["image"] for image in done.images}) == 12
    assert fc.count([one], head, progress=SILENT).images[0]["image"] == one.name


def test_what_cannot_be_counted_is_said(few: Path, head: fc.Run, tmp_path: Path, run: Run) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        fc.count(tmp_path / "nowhere", head, progress=SILENT)
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="no picture"):
        fc.count(tmp_path / "none", head, progress=SILENT)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.png").write_text("no picture")
    with pytest.raises(DatasetError, match=r"no picture can be read: a\.png"):
        fc.count(tmp_path / "text", head, progress=SILENT)
    with pytest.raises(UsageError, match="unsure_below"):
        fc.count(few, head, unsure_below=2.0, progress=SILENT)
    with pytest.raises(RunError):
        fc.count(few, tmp_path / "norun", progress=SILENT)
    fc.count(few, head, out=tmp_path / "out", progress=SILENT)
    before = files_of(tmp_path / "out")
    refused = run("count", str(few), "--run", str(head.folder), "--out", "out", "--margin", "1", cwd=tmp_path)
    assert "other settings" in refused.error and "--out" in refused.error
    assert files_of(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ProjectError, match="holds other files"):
        fc.count(few, head, out=tmp_path / "mine", progress=SILENT)


def test_a_run_of_several_labels_is_refused(few: Path, tmp_path: Path) -> None:
    paths = write_cells(tmp_path / "cells", 6, seed=1, size_px=32)
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name};cell\n" for path in paths]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(lines))
    project = fc.init(tmp_path / "list.csv", tmp_path / "p", label_separator=";", progress=SILENT)
    trained = fc.fit_head(fc.extract(project, "pixels", input_size_px=8, progress=SILENT), epochs=2, progress=SILENT)
    with pytest.raises(UsageError, match="several labels"):
        fc.count(few, trained, progress=SILENT)


def test_the_confusion_matrix_counts_each_group_once(head: fc.Run) -> None:
    found = confusion_of(head)
    assert found is not None
    matrix, groups = found
    frame = [row for row in rows(head.folder / "predictions.csv") if row["split"] in ("val", "test")]
    frame = [row for row in frame if row["view"] == "0"]
    classes = head.config["classes"]
    expected = np.zeros((4, 4))
    for row in frame:  # generated cells are a group each
        named = max(classes, key=lambda label: float(row[f"p_{label}"]))
        expected[classes.index(row["label"]), classes.index(named)] += 1
    np.testing.assert_allclose(matrix, expected)
    assert groups == len(frame)


# --- the intervals --------------------------------------------------------------------------------


def test_true_classes_agree_with_a_sum_over_all_of_them() -> None:
    """Two classes and few cells, where the posterior can be summed up on a grid."""
    named, confusion = np.array([7, 3]), np.array([[9.0, 1.0], [2.0, 6.0]])
    recall = (confusion.diagonal() + 0.5) / (confusion.sum(axis=1) + 1)
    prior = np.array([[recall.mean(), 1 - recall.mean()], [1 - recall.mean(), recall.mean()]])
    grid = (np.arange(60) + 0.5) / 60
    a, b, pi = (axis.ravel() for axis in np.meshgrid(grid, grid, grid, indexing="ij"))  # p(0|0), p(1|1), p(0)
    alpha = confusion + prior
    weight = a ** (alpha[0, 0] - 1) * (1 - a) ** (alpha[0, 1] - 1) * b ** (alpha[1, 1] - 1)
    weight = weight * (1 - b) ** (alpha[1, 0] - 1) * (pi * (1 - pi)) ** (1 / 2 - 1)
    expected = np.zeros(11)
    for i, j in product(range(8), range(4)):  # of the 7 and of the 3, how many are of class 0
        p0, p1 = pi * a, (1 - pi) * (1 - b)
        q0, q1 = pi * (1 - a), (1 - pi) * b
        ways = multinomial.pmf([i, 7 - i], 7, [0.5, 0.5]) * 2**7 * multinomial.pmf([j, 3 - j], 3, [0.5, 0.5]) * 2**3
        expected[i + j] += (weight * ways * p0**i * p1 ** (7 - i) * q0**j * q1 ** (3 - j)).sum()
    drawn = by_confusion(named, confusion, random=np.random.default_rng(0))
    found = np.bincount(drawn[:, 0], minlength=11) / len(drawn)
    assert (drawn.sum(axis=1) == 10).all()
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.03)


def test_intervals_cover_the_true_numbers() -> None:
    """Slides are drawn anew by the model's own assumptions: of 95 % intervals, about 95 in 100 must hold the truth."""
    random, held, never = np.random.default_rng(12), [], []
    composition, accuracy, tested = [0.62, 0.3, 0.07, 0.01], [0.95, 0.92, 0.8, 0.9], [40, 25, 10, 12]
    recall, precision = Rate(0.96, 30), Rate(0.955, 26)
    for _ in range(40):
        confuse = np.array(
            [random.dirichlet(np.where(np.arange(4) == i, 30 * p, 10 * (1 - p))) for i, p in enumerate(accuracy)]
        )
        confusion = np.array([random.multinomial(n, row) for n, row in zip(tested, confuse, strict=True)], float)
        true = random.multinomial(120, composition)
        found = random.binomial(true, recall.draws(random, 1))
        named = sum(random.multinomial(n, row) for n, row in zip(found, confuse, strict=True))
        false = random.negative_binomial(found.sum(), precision.draws(random, 1)[0])
        named = named + random.multinomial(false, (named + 0.1) / (named + 0.1).sum())
        drawn = by_confusion(named, confusion, random=random)
        of = intervals(named[None], drawn, recall=recall, precision=precision, random=random)
        held += [one.low <= n <= one.high for one, n in zip(of, true, strict=True)]
        never += [one.high for one, n in zip(of, named, strict=True) if n == 0]
    assert 0.89 <= np.mean(held) <= 0.995
    assert min(never, default=1) >= 1


def test_a_perfect_segmenter_and_head_leave_no_doubt_of_the_number_but_of_the_share() -> None:
    named = np.array([[3, 0], [5, 1], [4, 2]])
    sure = np.diag([1e9, 1e9])
    random = np.random.default_rng(1)
    drawn = by_confusion(named.sum(axis=0), sure, random=random)
    first, second = intervals(named, drawn, recall=SURE, precision=SURE, random=random)
    assert (first.low, first.high, second.low, second.high) == (12, 12, 3, 3)
    assert 0.4 < first.share_low < 0.65 and 0.9 < first.share_high < 1
    none = intervals(
        np.zeros((2, 2), np.int64), np.zeros((50, 2), np.int64), recall=SURE, precision=SURE, random=random
    )
    assert [(one.low, one.high) for one in none] == [(0, 1), (0, 1)]


def test_without_a_matrix_each_cell_counts_by_its_probability() -> None:
    p = np.array([[0.9, 0.1]] * 40 + [[0.5, 0.5]] * 20)
    drawn = by_probability(p, random=np.random.default_rng(0))
    assert abs(drawn[:, 0].mean() - 46) < 0.3
    assert abs(drawn[:, 0].var() - (40 * 0.09 + 20 * 0.25)) < 0.6
    assert by_probability(np.empty((0, 3)), random=np.random.default_rng(0)).sum() == 0


def test_fields_that_differ_more_than_chance_make_shares_wider() -> None:
    alike = np.array([[2, 1]] * 30)
    apart = np.array([[3, 0]] * 20 + [[0, 3]] * 10)
    assert design_effect(alike) == 1.0
    assert design_effect(apart) == pytest.approx(3 * 30 / 29)
    assert design_effect(np.zeros((4, 2), np.int64)) == design_effect(np.array([[5, 5]])) == 1.0
