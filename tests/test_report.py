"""Reports: the right numbers in tables, Markdown and HTML; hostile names harmless; damage named and survived."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import openpyxl
import pandas as pd
import pytest
from PIL import Image

import featcache as fc
from featcache.core.errors import RunError
from featcache.core.files import resolved
from featcache.measures import Judged, compare
from featcache.reporting import charts, latex, report, tables
from featcache.reporting.blocks import Paragraph, Report, Section, Table
from featcache.reporting.judging import differ, mistakes_of, read_judgement
from featcache.reporting.labels import labels_of, mode_of
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
            c: {
                "rows": int(support[i]),
                "groups": int(support[i]),
                "recall": float(right[i] / support[i]) if support[i] else None,
                "intervals": {"recall": [0.25, 1.0]} if support[i] else {},
            }
            for i, c in enumerate(classes)
        },
        "confusion": confusion,
    }


def predictions(confusion: list[list[int]], classes: tuple[str, ...]) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows and probabilities that have this confusion: the images of a class in order, each a group."""
    lines: list[dict[str, Any]] = []
    probabilities = []
    for true, counts in enumerate(confusion):
        for number, predicted in enumerate(np.repeat(np.arange(len(counts)), counts)):
            name = f"{true}-{number}"
            image_id = hashlib.sha256(name.encode()).hexdigest()
            lines.append(
                {"row": len(lines), "image_id": image_id, "path": f"{name}.png", "label": classes[true]}
                | {"split": "test", "group": name, "view": 0}
            )
            rest = np.full(len(counts), 0.2 / len(counts))
            rest[predicted] += 0.8 - 0.01 * number
            probabilities.append(rest / rest.sum())
    return pd.DataFrame(lines), np.array(probabilities)


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
    judged = predictions(test, classes)
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
        runs.write_predictions(folder, judged[0], probabilities=judged[1], classes=classes)
        runs.write_run(
            folder, kept, metrics={"epochs": 4, "seconds": 12.5, "s_per_epoch": 0.1, **splits}, history=course
        )
    return runs.Run(results / name)


GOOD, FAIR = [[9, 1, 0], [0, 10, 0], [0, 0, 10]], [[8, 1, 1], [0, 10, 0], [3, 0, 7]]
NEAR = [[8, 1, 1], [0, 10, 0], [1, 0, 9]]
POOR = [[4, 3, 3], [5, 4, 1], [4, 3, 3]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of four runs on two data sets, one of them hostile, and of damaged ones. Read only."""
    results = tmp_path_factory.mktemp("project") / "results of (all)"
    make_run(results, "head-a", FAIR, GOOD)
    make_run(results, "head-b", GOOD, FAIR, backbone="xception")
    make_run(results, "scratch-c", POOR, GOOD, kind="scratch", cache_name=None, solver=None, why=None)
    hostile = 'head-"x" <script> | ü'
    make_run(results, hostile, [[5, 5, 0], [1, 9, 0], [0, 0, 0]], None, HOSTILE, dataset="<i>", backbone="<b>|=1+1")
    for name in ("broken-json", "broken-keys", "no-predictions", "ill-predictions", "ill-history"):
        shutil.copytree(results / "head-a", results / name)
    (results / "broken-json" / "config.json").write_text("{")
    (results / "broken-keys" / "metrics.json").write_text('{"epochs": 3}')
    (results / "no-predictions" / "predictions.csv").unlink()
    (results / "ill-predictions" / "predictions.csv").write_text("image_id,path\nx,y\n")
    (results / "ill-history" / "history.csv").write_text("epoch,loss\n1,2\n")
    return results


@pytest.fixture(scope="module")
def written(made: Path) -> tuple[str, str, Path]:
    """The Markdown and the HTML of `made`, and the folder they lie in: another one than results."""
    out = made.parent / "sub" / "report"
    done = report(made, out)
    assert (done.markdown, done.html) == (out / "report.md", out / "report.html")
    return done.markdown.read_text("utf-8"), done.html.read_text("utf-8"), out


class Page(HTMLParser):
    """What a page holds: tags with their attributes, the text of cells by row, all text but that of scripts."""

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
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\xa0", " ").split())


def records_of(folder: Path, *names: str) -> list[Any]:
    return read_records([runs.Run(folder / name) for name in names])[0]


# --- tables and names ----------------------------------------------------------------------------


def test_summary_has_one_row_a_run(made: Path) -> None:
    records = records_of(made, "head-a", "head-b")
    table = tables.summary(records, labels_of(records))
    assert [row[0] for row in table.rows] == ["vgg16, head", "xception, head"]
    row = dict(zip(table.headers, table.rows[0], strict=True))
    assert (row["epochs"], row["time, s"], row["validation, %"]) == ("4", "12.5", "97")
    assert (row["accuracy, % (95 %)"], row["balanced, %"], row["loss"]) == ("83 (78–88)", "83", "0.167")
    assert table.best == {(0, table.headers.index("validation, %"))}


def test_percentages_have_the_decimals_that_the_groups_carry(tmp_path: Path) -> None:
    many = [[1200, 3], [0, 1500]]
    run = make_run(tmp_path, "many", many, None, ("a", "b"))
    (table,) = tables.per_class([run])
    assert table.rows[0][1].startswith("99.75 ("), "1,203 groups"
    few = make_run(tmp_path, "few", [[2, 1], [0, 3]], None, ("a", "b"))
    assert tables.per_class([few])[0].rows[0][1] == "67 (25–100)"


def test_per_class_is_the_union_of_classes(tmp_path: Path) -> None:
    made = [
        make_run(tmp_path, "a", FAIR, FAIR),
        make_run(tmp_path, "b", [[9, 1], [0, 10]], None, ("lymphocyte", "neutrophil")),
        make_run(tmp_path, "c", [[9, 1, 0], [0, 10, 0], [0, 0, 0]], None),
    ]
    (table,) = tables.per_class(made)
    assert table.headers == ("run", *CELLS, "neutrophil", "accuracy")
    span = " (25–100)"
    assert table.rows == (
        ("a", f"80{span}", f"100{span}", f"70{span}", "", "83 (78–88)"),
        ("b", "", f"90{span}", "", f"100{span}", "95 (90–100)"),
        ("c", f"90{span}", f"100{span}", "", "", "95 (90–100)"),
    )


def test_means_are_over_networks_of_one_mode(made: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "head-d", GOOD, GOOD)
    records = [*records_of(made, "head-a", "head-b", "scratch-c"), *records_of(tmp_path, "head-d")]
    modes = tables.by_mode(records)
    assert list(modes) == ["head, 4 epochs", "from scratch, 4 epochs"], "no mean mixes heads with whole networks"
    labels = labels_of(records)
    table = tables.recalls(modes["head, 4 epochs"], labels)
    (foot,) = table.foot
    # vgg16 has two runs (80 and 90 %), xception one (90 %): each network counts once.
    assert foot[:2] == ("mean of 2 networks", "88"), foot
    assert not tables.recalls(modes["from scratch, 4 epochs"], labels).foot


def test_runs_are_named_by_what_differs(tmp_path: Path) -> None:
    head = {"hidden": [256], "dropout": 0.5, "lr": 1e-5, "batch": 16}
    make_run(tmp_path, "a", GOOD, GOOD, head={**head, "epochs": 100})
    make_run(tmp_path, "b", GOOD, GOOD, head={**head, "epochs": 5000})
    make_run(tmp_path, "c", GOOD, GOOD, head={**head, "epochs": 100, "lr": 0.003})
    make_run(tmp_path, "d", GOOD, GOOD, backbone="xception", head={**head, "epochs": 100})
    make_run(tmp_path, "e", GOOD, GOOD, solver="scikit-learn", head={"kind": "logreg", "seed": 0})
    records = records_of(tmp_path, *"abcde")
    assert list(labels_of(records).values()) == [
        "vgg16, head, 100 epochs, learning rate 1e-05",
        "vgg16, head, 5,000 epochs, learning rate 1e-05",
        "vgg16, head, 100 epochs, learning rate 0.003",
        "xception, head",
        "vgg16, logreg",
    ]
    assert [mode_of(record) for record in records][-3:] == ["head, 100 epochs", "head, 100 epochs", "logreg"]
    make_run(tmp_path, "f", GOOD, GOOD, head={**head, "epochs": 100})
    labels = labels_of(records_of(tmp_path, *"abf"))
    assert len(set(labels.values())) == 3, "equal settings are told apart by the run's name"


def test_dataset_note_only_where_there_are_several(made: Path) -> None:
    assert "2 different data sets: compare only within one" in tables.dataset_note(runs.list_runs(made))
    assert tables.dataset_note([runs.Run(made / "head-a")]) == ""


def test_the_run_shown_first_is_chosen_by_validation_and_never_by_test(made: Path) -> None:
    records = records_of(made, "head-b", "head-a")
    best = best_by_validation(records)
    assert best is not None and best.name == "head-a"
    assert best_by_validation(records_of(made, "no-such-run")) is None


# --- what runs said of each image ----------------------------------------------------------------


def test_mistakes_are_those_of_the_predictions_the_most_confident_first(made: Path) -> None:
    (record,) = records_of(made, "head-a")
    found = mistakes_of(read_judgement(record))
    pairs = [(mistake.label, mistake.predicted) for mistake in found]
    assert sorted(pairs) == sorted(
        [("eosinophil", "lymphocyte"), ("eosinophil", "monocyte"), *[("monocyte", "eosinophil")] * 3]
    )
    confidences = [mistake.confidence for mistake in found]
    assert confidences == sorted(confidences, reverse=True)


def test_differences_are_paired_and_those_of_the_measures(made: Path) -> None:
    first, second = (read_judgement(record) for record in records_of(made, "head-b", "scratch-c"))
    found = differ(first, second)
    assert found is not None
    judged = []
    for name in ("head-b", "scratch-c"):
        frame = pd.read_csv(made / name / "predictions.csv").sort_values("image_id")
        y = frame["label"].map({label: place for place, label in enumerate(CELLS)}).to_numpy(np.int64)
        p = frame[[f"p_{label}" for label in CELLS]].to_numpy()
        judged.append(Judged(p, y, groups=frame["group"].to_numpy(str)))
    expected = compare(*judged)["accuracy"]
    assert found.low == pytest.approx(expected["low"]) and found.high == pytest.approx(expected["high"])
    assert (found.low > 0, found.verdict) == (True, "higher")
    same = differ(first, first)
    assert same is not None and same.verdict == "not distinguishable"


def test_runs_judged_on_other_images_are_not_compared(made: Path, tmp_path: Path) -> None:
    (record,) = records_of(made, "head-a")
    folder = shutil.copytree(made / "head-a", tmp_path / "other")
    frame = pd.read_csv(folder / "predictions.csv")
    frame.loc[0, "group"] = "another"
    frame.to_csv(folder / "predictions.csv", index=False)
    (other,) = records_of(tmp_path, "other")
    assert differ(read_judgement(record), read_judgement(other)) is None


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("p_monocyte", "x", "cannot be read"),
        ("p_monocyte", -0.5, "no probabilities"),
        ("p_monocyte", NAN, "cannot be read|no probabilities"),
        ("label", "unknown", "no classes of the run"),
        ("view", None, "no column view"),
    ],
)
def test_damaged_predictions_are_named(made: Path, tmp_path: Path, column: str, value: Any, reason: str) -> None:
    folder = shutil.copytree(made / "head-a", tmp_path / "run")
    frame = pd.read_csv(folder / "predictions.csv")
    if value is None:
        frame = frame.drop(columns=column)
    else:
        frame[column] = value
    frame.to_csv(folder / "predictions.csv", index=False)
    (record,) = records_of(tmp_path, "run")
    with pytest.raises(RunError, match=reason):
        read_judgement(record)


# --- the page ------------------------------------------------------------------------------------


def test_html_loads_nothing_and_runs_its_own_scripts_alone(written: tuple[str, str, Path]) -> None:
    found = Page(written[1])
    assert found.open == []
    assert {tag for tag, _ in found.tags}.isdisjoint({"link", "iframe", "object", "form", "i", "b", "base"})
    for _, attributes in found.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("src", "data:image/").startswith("data:image/")
    policy = next(meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    scripts = re.findall(r'<script type="module">(.*?)</script>', written[1], re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


@pytest.fixture(scope="module")
def three(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of three heads and of a network from scratch, of one data set."""
    results = tmp_path_factory.mktemp("three")
    for name in ("head-a", "head-b", "scratch-c"):
        shutil.copytree(made / name, results / name)
    make_run(results, "head-d", NEAR, POOR, backbone="densenet121")
    return Page(report(results).html.read_text("utf-8"))


def test_html_says_first_what_was_asked_and_found(three: Page) -> None:
    text = three.text
    asked = text.index("Asked: which of 3 classes (eosinophil, lymphocyte and monocyte) does an image show?")
    answer = text.index("vgg16, head: accuracy 83 % (95 % interval: 78 to 88 %); majority-class baseline: 33 %.")
    chosen = text.index("Chosen by validation accuracy (97 %).")
    few = text.index("Few test originals: eosinophil (10), lymphocyte (10), monocyte (10).")
    assert asked < answer < chosen < few < text.index("Runs")
    assert "On test it is not distinguishable from “densenet121, head”." in text
    assert "It is less accurate on test than “xception, head”." in text
    assert "It is more accurate on test than “vgg16, from scratch”." in text
    assert "best" not in text[: text.index("Runs")].lower()


def test_transfer_stands_against_scratch(three: Page) -> None:
    rows = three.rows
    (row,) = [row for row in rows if row[:2] == ["vgg16", "head"]]
    assert row[2:6] == ["83 (78–88)", "37 (32–42)", "0.167", "0.633"]
    assert row[7] == "more accurate"
    assert not [row for row in rows if row[:2] == ["xception", "head"]], "nothing to compare it with"


def test_html_holds_the_right_numbers_and_all_text_as_text(written: tuple[str, str, Path]) -> None:
    found = Page(written[1])
    span = " (25–100)"
    assert ["run", *CELLS, "accuracy"] in found.rows
    assert ["xception, head", f"90{span}", f"100{span}", f"100{span}", "97 (92–100)"] in found.rows
    assert ["run", *HOSTILE, "accuracy"] in found.rows
    assert ["eosinophil", "8", "1", "1", "10"] in found.rows, "the confusion matrix is a table"
    assert "Dense(256, ReLU), Dropout(0.5), Dense(3, softmax)" in found.text
    assert "SGD, learning rate 1e-05, batch 16" in found.text
    assert "featcache fit-head --cache vgg16-12ab34cd --hidden 256 --dropout 0.5 --lr 1e-05 --batch 16" in found.text
    targets = {attributes["href"][1:] for attributes in found.all("a")}
    assert targets <= {attributes["id"] for _, attributes in found.tags if "id" in attributes}


def test_every_figure_has_words_and_a_picture_without_scripts(written: tuple[str, str, Path]) -> None:
    images = Page(written[1]).all("img")
    assert images
    for attributes in images:
        assert len(attributes["alt"]) > 20
        kind, _, data = attributes["src"].partition(";base64,")
        assert kind == "data:image/svg+xml" and b"<svg" in base64.b64decode(data)


@pytest.mark.parametrize("which", [0, 1])
def test_damage_is_listed_with_its_reason_and_without_folders(
    written: tuple[str, str, Path], made: Path, which: int
) -> None:
    text = re.sub(r"[*\\]|</?strong>", "", written[which])
    assert "broken-json: config.json: cannot be read: Expecting property name" in text
    assert "broken-keys: metrics.json: seconds: Field required (and 1 more)" in text
    assert "no-predictions: predictions.csv: is missing; the rest of the run is shown" in text
    assert "ill-predictions: predictions.csv: no column" in text
    assert "ill-history: history.csv: no column accuracy of numbers; left out of the curves" in text
    assert str(made) not in text


def test_a_report_of_damaged_runs_only(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "broken-json", tmp_path / "results" / "broken-json")
    done = report(tmp_path / "results", tmp_path / "out")
    assert "Not readable" in done.html.read_text("utf-8")
    names = ["report.csv", "report.html", "report.md", "report.tex", "report.xlsx"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


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


def test_a_report_without_runs_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no finished run. Train one with `featcache.fit_head"):
        report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named_before_any_work(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file: the report cannot be written: "):
        report(made, tmp_path / "file")


MANY = tuple(f"class {number:04}" for number in range(1000))


def test_a_thousand_classes_are_written_in_bounds(tmp_path: Path) -> None:
    confusion = np.eye(1000, dtype=int) * 3
    confusion[7, 8] = 5
    run = make_run(tmp_path / "runs", "head-many", confusion.tolist(), None, MANY)
    done = report(run.folder.parent, tmp_path / "out")
    assert done.html.stat().st_size < 4_000_000
    found = Page(done.html.read_text("utf-8"))
    assert max(len(row) for row in found.rows) <= tables.MOST_CLASSES + 2
    assert "the 20 worst of 1,000" in found.text
    assert "class 0007 taken for class 0008: 5 of 8" in found.text


def test_a_sweep_and_a_cross_validation_are_in_it(made: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(made / "head-a", results / "head-a")
    swept = results / "sweep-vgg16-1"
    swept.mkdir()
    (swept / "heads.csv").write_text("lr,val_loss,spread,epoch,diverged\n0.1,0.4,0.01,7,0\n0.3,0.5,0.02,9,0\n9,,,0,1\n")
    about = {"head": {"monitor": "val_loss"}, "cache": "vgg16-12ab34cd", "seeds": 2, "winner": "head-a"}
    (swept / "sweep.json").write_text(json.dumps(about))
    broken = results / "sweep-vgg16-2"
    broken.mkdir()
    (broken / "sweep.json").write_text("{}")
    crossed = {"folds": 5, "repeats": 2, "images": 120, "groups": 120, "majority": 0.4}
    mean = {"mean": 0.9, "low": 0.84, "high": 0.95}
    crossed |= {"measures": {"accuracy": mean}, "per_class": {"eosinophil": {"groups": 15, "recall": mean}}}
    with runs.new_run(results, "cv-vgg16-1") as folder:
        config = {"kind": "cross-validation", "backbone": "vgg16", "classes": list(CELLS), "head": {}}
        runs.write_config_and_metrics(folder, config, metrics=crossed)
    found = Page(report(results).html.read_text("utf-8"))
    assert ["0.1", "0.4000", "0.010", "7"] in found.rows
    assert [row[1] for row in found.rows if row[0] == "9"] == ["diverged"]
    assert "sweep-vgg16-2 : is no whole sweep" in found.text or "sweep-vgg16-2: is no whole sweep" in found.text
    (row,) = [row for row in found.rows if row[0] == "cv-vgg16-1"]
    assert row[1] == "90.0 (84.0–95.0)" and "90 (84–95)" in row and "5 × 2" in row


# --- other files ---------------------------------------------------------------------------------


def test_markdown_tables_are_whole_and_its_figures_are_there(written: tuple[str, str, Path]) -> None:
    markdown, _, out = written
    assert "| xception, head | 90 (25–100) | 100 (25–100) | 100 (25–100) | 97 (92–100) |" in markdown
    assert "&lt;script&gt;alert" in markdown
    assert "<" not in markdown
    lines = markdown.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("| ---"):
            widths = {len(re.findall(r"(?<!\\)\|", other)) for other in (lines[number - 1], line, lines[number + 1])}
            assert len(widths) == 1
    links = re.findall(r"!\[[^\n]*\]\(([^)]+)\)", markdown)
    assert links
    for link in links:
        with Image.open(out / unquote(link)) as image:
            assert image.format == "PNG" and image.width > 400


def test_figures_of_an_earlier_report_go(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "head-a", tmp_path / "results" / "head-a")
    for name in ("report-old.png", "other.png"):
        (tmp_path / "results" / name).write_bytes(b"")
    report(tmp_path / "results")
    assert not (tmp_path / "results" / "report-old.png").exists()
    assert (tmp_path / "results" / "other.png").exists()


def test_csv_has_a_line_a_measure_and_no_formula(written: tuple[str, str, Path]) -> None:
    lines = list(csv.DictReader((written[2] / "report.csv").read_text("utf-8").splitlines()))
    (line,) = [
        line
        for line in lines
        if (line["run"], line["split"], line["class"], line["measure"]) == ("head-b", "test", "eosinophil", "recall")
    ]
    assert (float(line["value"]), float(line["low"]), line["rows"]) == (0.9, 0.25, "10")
    for line in lines:
        assert not any(str(cell).startswith(("=", "+", "@")) for cell in line.values())


def test_excel_holds_numbers_and_no_formula(made: Path, tmp_path: Path) -> None:
    evil = ('=HYPERLINK("http://x")', "+1", "@SUM(A1)")
    make_run(tmp_path / "results", "head-evil", FAIR, GOOD, evil)
    book = openpyxl.load_workbook(report(tmp_path / "results").excel)
    assert book.sheetnames[:2] == ["measures", "mistakes"]
    kinds = {cell.data_type for sheet in book for row in sheet.iter_rows() for cell in row}
    assert "f" not in kinds
    assert "n" in kinds
    values = [row[9].value for row in book["measures"].iter_rows(min_row=2)]
    assert all(isinstance(value, int | float) for value in values)
    assert book["mistakes"].max_row == 6, "five mistakes below the header"


def test_latex_escapes_whatever_a_name_is() -> None:
    table = Table(("run", "a_b"), (("50 % & #1 {x} ~^\\ $y$ <z> [1]", "1"),), n_text=1, title="A_title")
    text = latex.render(Report("t", "a", (Section("s", (table, Paragraph("100 % of it", "copy"))),)))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"50 \% \& \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$y\$" in body
    assert r"\caption{A\_title}" in body and r"100 \% of it" in body
    assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")
    for command in ("toprule", "midrule", "bottomrule", "end{tabular}", "end{table}"):
        assert body.count(f"\\{command}") == 1


def test_long_curves_are_thinned_and_keep_their_extremes() -> None:
    x = np.arange(5000.0)
    y = np.sin(x / 50)
    y[1234], y[4321], y[77] = 9.0, -9.0, NAN
    short_x, short_y = charts.thinned(x, y)
    assert len(short_y) <= 300
    assert (short_y.max(), short_y.min()) == (9.0, -9.0)
    assert (np.diff(short_x) > 0).all() and (short_x[0], short_x[-1]) == (0, 4999)
    assert charts.thinned(x[:9], y[:9])[1].tolist() == y[:9].tolist()


def test_a_large_report_is_small_and_shows_every_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for network in range(8):
        for kind in ("head", "scratch", "fine-tune"):
            run = make_run(tmp_path / "runs", f"{kind}-net{network}", FAIR, GOOD, kind=kind, backbone=f"net{network}")
            epochs = np.arange(1, 5001)
            noise = rng.normal(0, 0.02, 5000)
            course = {"epoch": epochs, "loss": np.exp(-epochs / 900) + 0.1 + abs(noise), "accuracy": 0.9 + noise / 2}
            course |= {"val_loss": course["loss"] * 1.1, "val_accuracy": 0.85 + noise / 2, "lr": 0.1, "seconds": 0.1}
            pd.DataFrame(course).to_csv(run.folder / "history.csv", index=False)
    done = report(tmp_path / "runs", tmp_path / "out")
    assert done.html.stat().st_size < 8_000_000
    text = done.html.read_text("utf-8")
    specs = [json.loads(spec) for spec in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    lines = [value for spec in specs for value in spec["data"]["values"] if "epoch" in value]
    assert len(lines) == 4 * 24
    assert {line["network"] for line in lines} == {f"net{number}" for number in range(8)}
    assert max(len(line["epoch"]) for line in lines) <= 300
    rows = Page(text).rows
    assert [row for row in rows if row[:2] == ["mean of 8 networks", "head"]], "mean loss of transfer and scratch"


# --- with a project ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A project of generated cells with two heads that make mistakes."""
    folder = tmp_path_factory.mktemp("cells")
    made = fc.init(per_class=16, into=folder)
    cache = fc.extract(made, "pixels", input_size_px=16)
    fc.fit_head(cache, epochs=2, hidden=(4,))
    fc.fit_head(cache, epochs=3, hidden=(4,))
    yield made


def test_of_a_project_it_shows_mistakes_map_images_and_methods(project: Any) -> None:
    done = fc.report(project)
    found = Page(done.html.read_text("utf-8"))
    cards = [image for image in found.all("img") if image["src"].startswith("data:image/jpeg")]
    wrong = pd.read_csv(done.runs[0].folder / "predictions.csv")
    assert cards and len(cards) <= 24
    for card in cards:
        with Image.open(io.BytesIO(base64.b64decode(card["src"].partition(",")[2]))) as image:
            assert max(image.size) == 176
        assert any(f"{path}" in card["alt"] for path in wrong["path"])
    assert "Map of the features (PCA)" in found.text
    assert "No image of dataset.csv is left out." in found.text
    assert "Images of 4 classes (eosinophil, lymphocyte, monocyte and neutrophil) were divided into" in found.text
    assert "passes saved" in found.text
    assert str(project.folder) not in done.html.read_text("utf-8")


def test_pictures_never_leave_the_projects_folders(project: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder)
    copy = fc.open_project(folder)
    wrong = [mistake for run in runs.list_runs(copy.results_folder) for mistake in _mistakes(run)]
    image = copy.images / wrong[0].path
    outside = tmp_path / "outside.png"
    image.rename(outside)
    image.symlink_to(outside)
    changed = copy.images / next(mistake.path for mistake in wrong if mistake.path != wrong[0].path)
    Image.new("RGB", (20, 20)).save(changed)
    text = Page(fc.report(copy).html.read_text("utf-8")).text
    assert "lies outside of the project's folders of images" in text or "has changed since it was judged" in text
    assert resolved(outside).is_file()


def _mistakes(run: Any) -> list[Any]:
    return mistakes_of(read_judgement(records_of(run.folder.parent, run.name)[0]))


def test_near_duplicates_are_looked_for_when_asked(project: Any, tmp_path: Path) -> None:
    done = fc.report(project, to=tmp_path, near_duplicates=True)
    text = done.html.read_text("utf-8")
    assert "No two images of different groups show the same pixels." in text or "that show the same:" in text
    assert "Near-duplicates were not looked for" not in text


def test_a_cache_that_is_gone_costs_only_the_map(project: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, ignore=shutil.ignore_patterns("cache"))
    text = Page(fc.report(folder).html.read_text("utf-8")).text
    assert "the map of its features is left out" in text
    assert "Mistakes" in text


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine to open the page with")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


SCROLL = """async () => {
  for (let y = 0; y < document.body.scrollHeight; y += 600) {
    scrollTo(0, y);
    await new Promise((done) => setTimeout(done, 60));
  }
  scrollTo(0, 0);
}"""


@pytest.mark.parametrize(("width_px", "scheme"), [(390, "dark"), (768, "light"), (1280, "light")])
def test_a_browser_shows_it_at_every_width(project: Any, browser: Any, width_px: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    html = project.results_folder / "report.html"
    if not html.is_file():
        fc.report(project)
    tab = browser.new_context(viewport={"width": width_px, "height": 844}, color_scheme=scheme).new_page()
    asked: list[str] = []
    failed: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: failed.append(str(error)))
    tab.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    tab.goto(html.as_uri())
    answer = tab.locator(".answer").first.bounding_box()
    assert answer["y"] + answer["height"] < 844, "the answer is on the first screen"
    tab.evaluate(SCROLL)
    tab.wait_for_selector("#map-1 figure.drawn svg", timeout=30_000)
    assert tab.evaluate("document.documentElement.scrollWidth") == width_px
    clipped = """[...document.querySelectorAll(".live svg")].filter((svg) =>
      svg.getBoundingClientRect().right > document.documentElement.clientWidth).length"""
    assert tab.evaluate(clipped) == 0
    violations = Axe().run(tab).response["violations"]
    serious = [(found["id"], found["nodes"][0]["html"]) for found in violations if found["impact"] in SERIOUS]
    assert not serious
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert not failed
    tab.context.close()


SERIOUS = ("serious", "critical")


def test_tables_are_sorted_by_their_headers(project: Any, browser: Any) -> None:
    if not (project.results_folder / "report.html").is_file():
        fc.report(project)
    tab = browser.new_page()
    tab.goto((project.results_folder / "report.html").as_uri())
    table = tab.locator("#answer-1 table")
    head = table.locator("thead th").nth(0)
    first = table.locator("tbody tr th").first
    head.locator("button").click()
    assert (head.get_attribute("aria-sort"), first.text_content()) == ("ascending", "eosinophil")
    head.locator("button").press("Enter")
    assert (head.get_attribute("aria-sort"), first.text_content()) == ("descending", "neutrophil")
    table.locator("thead th").nth(1).locator("button").click()
    assert head.get_attribute("aria-sort") is None
    cells = [float(text.split()[0]) for text in table.locator("tbody td:nth-child(2)").all_text_contents()]
    assert cells == sorted(cells)
    tab.close()


def test_it_prints_with_what_is_folded(project: Any, browser: Any) -> None:
    if not (project.results_folder / "report.html").is_file():
        fc.report(project)
    tab = browser.new_page()
    tab.goto((project.results_folder / "report.html").as_uri())
    assert tab.locator("details:not([open])").count() > 0
    pdf = tab.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 3
    assert tab.locator("details:not([open])").count() == 0
    tab.close()


def test_without_scripts_the_tables_and_pictures_are_there(project: Any, browser: Any) -> None:
    if not (project.results_folder / "report.html").is_file():
        fc.report(project)
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((project.results_folder / "report.html").as_uri())
    assert tab.locator("figure.chart img").first.bounding_box()["height"] > 50
    assert tab.locator("#answer-1 table").bounding_box()["height"] > 50
    context.close()


def test_writing_a_report_alone_loads_the_plotting_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from featcache.reporting import draw, followed, page, report, tables\n"
        "assert not {'vl_convert', 'openpyxl', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
