"""Reports: the right numbers in tables, Markdown and HTML; hostile names harmless; damage named and survived."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featcache.core.errors import RunError
from featcache.reporting import figures, page, tables
from featcache.reporting.records import best_by_validation, read_records
from featcache.training import runs
from featcache.training.history import Epoch

CELLS = ("eosinophil", "lymphocyte", "monocyte")
HOSTILE = ('<script>alert("1")</script>', "a|b `c` *d*", "Größe 'é' & $x$")
NAN = float("nan")


def measures(confusion: list[list[int]], classes: tuple[str, ...]) -> dict[str, Any]:
    """Measures of a split as featcache.measures gives them, from its confusion matrix alone."""
    counts = np.array(confusion)
    support, right = counts.sum(axis=1), counts.diagonal()
    accuracy = float(right.sum() / counts.sum())
    return {
        "rows": int(counts.sum()),
        "groups": 10,
        "loss": round(1 - accuracy, 6),
        "accuracy": accuracy,
        "intervals": {"accuracy": [max(0.0, accuracy - 0.05), min(1.0, accuracy + 0.05)]},
        "balanced_accuracy": float((right / support).mean()) if support.all() else None,
        "majority": float(support.max() / counts.sum()),
        "per_class": {
            c: {"recall": float(right[i] / support[i]) if support[i] else None} for i, c in enumerate(classes)
        },
        "confusion": confusion,
    }


def make_run(
    results: Path,
    name: str,
    test: list[list[int]],
    val: list[list[int]] | None,
    classes: tuple[str, ...] = CELLS,
    **config: Any,
) -> runs.Run:
    """A run on disk: four epochs, and the measures that the confusion matrices give."""
    course = [Epoch(e, 1 / e, 1 - 0.5 / e, 1 / e if val else NAN, 0.5 if val else NAN, 0.003, 0.1) for e in range(1, 5)]
    base = {
        "kind": "head",
        "backbone": "vgg16",
        "cache_name": "vgg16-12ab34cd",
        "weights": "imagenet",
        "recipe": {"space": {"input_size_px": 224, "preprocessing": "caffe"}},
        "classes": list(classes),
        "head": {"hidden": [256], "dropout": 0.5, "lr": 1e-5, "batch": 16},
        "solver": "gram",
        "why": "41 times fewer operations than primal",
        "dataset": "3f9c21ab",
        "created": "2025-05-05T12:00:00+00:00",
    }
    splits = {"train": measures(test, classes), "test": measures(test, classes)}
    if val:
        splits["val"] = measures(val, classes)
    kept = {key: value for key, value in {**base, **config}.items() if value is not None}
    with runs.new_run(results, name) as folder:
        figures.write_curves(pd.DataFrame(course), folder / figures.CURVES_FILE, title=name)
        figures.write_confusion(test, classes, path=folder / figures.CONFUSION_FILE)
        runs.write_run(
            folder, kept, metrics={"epochs": 4, "seconds": 12.5, "s_per_epoch": 0.1, **splits}, history=course
        )
    return runs.Run(results / name)


GOOD, FAIR = [[9, 1, 0], [0, 10, 0], [0, 0, 10]], [[8, 1, 1], [0, 10, 0], [3, 0, 7]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of four runs on two data sets, one of them hostile, and of three damaged ones. Read only."""
    results = tmp_path_factory.mktemp("project") / "results of (all)"
    make_run(results, "head-a", FAIR, GOOD)
    make_run(results, "head-b", GOOD, FAIR, backbone="xception")
    make_run(results, "scratch-c", FAIR, None, kind="scratch", cache_name=None, solver=None, why=None)
    hostile = 'head-"x" <script> | ü'
    make_run(results, hostile, [[5, 5, 0], [1, 9, 0], [0, 0, 0]], None, HOSTILE, dataset="<i>", backbone="<b>|")
    for name in ("broken-json", "broken-keys", "no-picture", "ill-picture"):
        shutil.copytree(results / "head-a", results / name)
    (results / "broken-json" / "config.json").write_text("{")
    (results / "broken-keys" / "metrics.json").write_text('{"epochs": 3}')
    (results / "no-picture" / figures.CURVES_FILE).unlink()
    (results / "ill-picture" / figures.CURVES_FILE).write_bytes(b"GIF89a")
    return results


@pytest.fixture(scope="module")
def written(made: Path) -> tuple[str, str, Path]:
    """The Markdown and the HTML of `made`, and the folder they lie in: another one than results."""
    out = made.parent / "sub" / "report"
    markdown, html = page.write_report(runs.list_runs(made), out)
    assert (markdown, html) == (out / "report.md", out / "report.html")
    return markdown.read_text("utf-8"), html.read_text("utf-8"), out


class Page(HTMLParser):
    """What a page holds: tags with their attributes, the text of cells by row, the style sheet, all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_summary_has_one_row_a_run_and_one_table_a_data_set(made: Path) -> None:
    first, second = tables.summary(runs.list_runs(made))[::-1]
    assert [row[0] for row in first.rows] == ["head-a", "head-b", "ill-picture", "no-picture", "scratch-c"]
    row = dict(zip(first.headers, first.rows[0], strict=True))
    assert row["kind"] == "head, gram"
    assert (row["epochs"], row["time, s"], row["s/epoch"]) == ("4", "12.5", "0.100")
    assert (row["validation, %"], row["test, %"], row["test 95 %"]) == ("96.67", "83.33", "78.33–88.33")
    assert (row["test loss"], row["balanced, %"], row["baseline, %"]) == ("0.167", "83.33", "33.33")
    assert first.headers[:4] == ("run", "test, %", "test 95 %", "validation, %"), "what is asked stands first"
    assert first.rows[4][first.headers.index("kind")] == "scratch"
    assert dict(zip(second.headers, second.rows[0], strict=True))["balanced, %"] == ""


def test_per_class_is_the_union_of_classes_with_the_best_marked(tmp_path: Path) -> None:
    made = [
        make_run(tmp_path, "a", FAIR, FAIR),
        make_run(tmp_path, "b", [[9, 1], [0, 10]], None, ("lymphocyte", "neutrophil")),
        make_run(tmp_path, "c", [[9, 1, 0], [0, 10, 0], [0, 0, 0]], None),
    ]
    (table,) = tables.per_class(made)
    assert table.headers == ("run", *CELLS, "neutrophil")
    assert table.rows == (
        ("a", "80.00", "100.00", "70.00", ""),
        ("b", "", "90.00", "", "100.00"),
        ("c", "90.00", "100.00", "", ""),
    )
    assert table.best == {(2, 1), (0, 2), (2, 2), (0, 3), (1, 4)}


def test_dataset_note_only_where_there_are_several(made: Path) -> None:
    assert "2 different data sets: compare only within one" in tables.dataset_note(runs.list_runs(made))
    assert tables.dataset_note([runs.Run(made / "head-a")]) == ""


def test_the_best_run_is_chosen_by_validation_and_never_by_test(made: Path) -> None:
    records, _ = read_records([runs.Run(made / name) for name in ("head-b", "scratch-c", "head-a")])
    best = best_by_validation(records)
    assert best is not None
    assert best.name == "head-a"
    assert best_by_validation(records[1:2]) is None


def test_means_mix_neither_networks_nor_kinds(made: Path, tmp_path: Path) -> None:
    again = make_run(tmp_path, "head-d", GOOD, GOOD)
    names = ("head-a", "head-b", "scratch-c")
    records, _ = read_records([*(runs.Run(made / name) for name in names), again])
    table = tables.means_of(records)
    assert table is not None
    assert [row[:3] for row in table.rows] == [
        ("head", "vgg16", "2"),
        ("head", "xception", "1"),
        ("scratch", "vgg16", "1"),
    ]
    assert table.rows[0][-1] == "90.00"
    assert tables.means_of(records[:3]) is None, "nothing to take a mean of"


def test_a_classical_head_has_no_epochs_and_no_curves(tmp_path: Path) -> None:
    logreg = make_run(
        tmp_path / "runs", "logreg-a", GOOD, GOOD, solver="scikit-learn", head={"kind": "logreg", "seed": 0}
    )
    (table,) = tables.summary([logreg])
    row = dict(zip(table.headers, table.rows[0], strict=True))
    assert (row["epochs"], row["s/epoch"], row["kind"]) == ("", "", "logreg, scikit-learn")
    _, html = page.write_report([logreg, make_run(tmp_path / "runs", "head-a", GOOD, GOOD)], tmp_path / "out")
    names = [image["alt"] for image in Page(html.read_text("utf-8")).all("img")]
    assert not [name for name in names if "logreg" in name and "Loss" in name]


MANY = tuple(f"class {number:04}" for number in range(1000))


def test_a_thousand_classes_are_drawn_and_written_in_bounds(tmp_path: Path) -> None:
    confusion = np.eye(1000, dtype=int) * 3
    confusion[7, 8] = 5
    run = make_run(tmp_path / "runs", "head-many", confusion.tolist(), None, MANY)
    _, html = page.write_report([run], tmp_path / "out")
    with Image.open(run.folder / figures.CONFUSION_FILE) as picture:
        assert max(picture.size) < 2000, "the picture does not grow with the classes"
    assert html.stat().st_size < 3_000_000
    found = Page(html.read_text("utf-8"))
    assert max(len(row) for row in found.rows) <= tables.MOST_CLASSES + 1
    assert "the 20 worst of 1,000" in " ".join(found.words)
    assert "class 0007" in {cell for row in found.rows for cell in row}, "the worst class is among those shown"


def test_most_confused_names_pairs_by_count(made: Path) -> None:
    records, _ = read_records([runs.Run(made / "head-a")])
    assert tables.most_confused(records[0], top=1) == ["monocyte taken for eosinophil: 3 of 10 (30.00 %)"]


def test_html_loads_nothing_and_runs_nothing(written: tuple[str, str, Path]) -> None:
    found = Page(written[1])
    assert found.open == []
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "form", "i", "b", "base"})
    for _, attributes in found.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import|https?:|file:", written[1])
    policy = next(meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_html_holds_every_picture_with_words_for_it(written: tuple[str, str, Path]) -> None:
    images = Page(written[1]).all("img")
    assert len(images) == 2 + 6 * 2 - 1
    for attributes in images:
        assert len(attributes["alt"]) > 20
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2]))) as image:
            assert image.size == (int(attributes["width"]), int(attributes["height"]))
            image.load()


def test_html_holds_the_right_numbers_and_all_text_as_text(written: tuple[str, str, Path]) -> None:
    found = Page(written[1])
    assert ["run", *CELLS] in found.rows
    assert ["head-b", "90.00", "100.00", "100.00"] in found.rows
    assert ["run", *HOSTILE] in found.rows
    assert ['head-"x" <script> | ü', "50.00", "90.00", ""] in found.rows
    assert [len(row) for row in found.rows].count(len(tables.SUMMARY_HEADERS)) == 2 + 6
    text = " ".join(found.words)
    assert "Best by validation accuracy: head-a, 96.67 % on validation and 83.33 % on test" in text
    assert "Dense(256, ReLU), Dropout(0.5), Dense(3, softmax)" in text
    assert "SGD, learning rate 1e-05, batch 16" in text
    assert "8 runs" in text
    targets = {attributes["href"][1:] for attributes in found.all("a")}
    assert targets == {attributes["id"] for attributes in found.all("section") if "id" in attributes}


@pytest.mark.parametrize("which", [0, 1])
def test_damage_is_listed_with_its_reason_and_without_folders(
    written: tuple[str, str, Path], made: Path, which: int
) -> None:
    text = re.sub(r"[*\\]|</?strong>", "", written[which])
    assert "broken-json: config.json: cannot be read: Expecting property name" in text
    assert "broken-keys: metrics.json: seconds: Field required (and 1 more)" in text
    assert "ill-picture: curves.png: not a PNG image; the rest of the run is shown" in text
    assert str(made) not in text


def test_markdown_tables_are_whole_and_links_hold_from_another_folder(written: tuple[str, str, Path]) -> None:
    markdown, _, out = written
    assert "| head-b | **90.00** | **100.00** | **100.00** |" in markdown
    assert "&lt;script&gt;alert" in markdown
    assert "<" not in markdown
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")]
    assert set(widths) == {len(tables.SUMMARY_HEADERS) + 1, 4 + 1, 8 + 1}
    links = re.findall(r"!\[[^\n]*\]\(([^)]+)\)", markdown)
    assert len(links) == 2 + 6 * 2 - 2
    for link in links:
        assert not link.startswith(("/", "file:"))
        assert (out / unquote(link)).is_file()


def test_write_report_of_damaged_runs_only(made: Path, tmp_path: Path) -> None:
    _, html = page.write_report([runs.Run(made / "broken-json")], tmp_path)
    assert "Not readable" in html.read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("config.json", {"classes": []}, "classes: Tuple should have at least 1 item"),
        ("config.json", {"classes": ["one"]}, "confusion: expected 1 x 1 counts"),
        ("config.json", {"backbone": 7}, "backbone: Input should be a valid string"),
        ("metrics.json", {"test": {"rows": 3, "accuracy": 1.5}}, "test.accuracy: Input should be less than"),
        ("metrics.json", {"test": {"rows": 3, "accuracy": 0.5}}, "per_class and confusion are needed"),
        ("metrics.json", {"seconds": NAN}, "metrics.json: cannot be read: NaN is no JSON number"),
    ],
)
def test_read_records_says_what_is_wrong(
    made: Path, tmp_path: Path, file: str, change: dict[str, Any], reason: str
) -> None:
    folder = shutil.copytree(made / "head-a", tmp_path / "run")
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **change}))
    records, (problem,) = read_records([runs.Run(folder)])
    assert not records
    assert (problem.name, reason in problem.reason) == ("run", True), problem.reason


@pytest.mark.parametrize("content", ["", "epoch,loss\n1,2\n", "epoch,loss,accuracy,val_loss,val_accuracy\n1,x,1,1,1\n"])
def test_a_damaged_history_costs_only_the_curves_of_all(made: Path, tmp_path: Path, content: str) -> None:
    for name in ("head-a", "head-b"):
        shutil.copytree(made / name, tmp_path / name)
    (tmp_path / "head-a" / "history.csv").write_text(content)
    _, html = page.write_report(runs.list_runs(tmp_path), tmp_path)
    text = html.read_text("utf-8")
    assert "history.csv: " in text
    assert "left out of the curves of all runs" in text
    assert "Curves of all runs</h2>" not in text


def test_a_picture_that_is_none_is_named_and_not_inlined(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "head-a", tmp_path / "head-a")
    (folder / figures.CONFUSION_FILE).write_text("<svg onload='alert(1)'/>")
    _, html = page.write_report(runs.list_runs(tmp_path), tmp_path)
    assert "confusion.png: not a PNG image" in html.read_text("utf-8")
    assert len(Page(html.read_text("utf-8")).all("img")) == 1


def test_write_report_without_runs_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no finished run. Train one with `featcache.fit_head"):
        page.write_report([], tmp_path)
    assert not list(tmp_path.iterdir())


def test_write_report_where_nothing_can_be_written(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="the report cannot be written"):
        page.write_report([runs.Run(made / "head-a")], tmp_path / "file")


def test_a_browser_shows_the_page(written: tuple[str, str, Path], tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine to open the page with")
    picture = tmp_path / "page.png"
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [chromium, *quiet.split(), "--disable-component-update", "--disable-sync", "--window-size=1200,1800"]
    own = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    subprocess.run(
        [*command, *own, (written[2] / "report.html").as_uri()], check=True, timeout=120, capture_output=True
    )
    with Image.open(picture) as image:
        shown = np.asarray(image.convert("RGB"))
    assert shown.shape[:2] == (1800, 1200)
    # The style sheet's page colour, so the policy let it in; dark ink; and a curve's blue, so images show.
    assert (shown[5, 5] == (0xF6, 0xF7, 0xF8)).all()
    assert (shown.max(axis=2) < 80).mean() > 0.002
    assert (np.abs(shown.astype(int) - (0x00, 0x72, 0xB2)).max(axis=2) < 25).sum() > 50
