"""The main job on real smears, where they are at hand; they are only read."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from conftest import Run

import featcache

SHARED = Path(__file__).parents[2] / "shared"
SMEARS = SHARED / "data" / "bccd"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_1.0_224_notop.h5"


def paired() -> tuple[Counter[str], list[str]]:
    """By a path of its own: images of each label, and why each other smear cannot be used."""
    pairs: Counter[str] = Counter()
    unpaired = []
    with (SMEARS / "labels.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            labels = [label.strip() for label in line["label"].split(",") if label.strip()]
            text = (SMEARS / "annotations" / line["image"]).with_suffix(".xml").read_text()
            boxes = text.count("<name>WBC</name>")
            if labels and len(labels) == boxes and len(set(labels)) == 1:
                pairs[labels[0]] += boxes
            elif not labels:
                unpaired.append("unlabelled")
            elif len(labels) == boxes:
                unpaired.append("mixed")
            else:
                unpaired.append("other" if boxes else "no box")
    return pairs, unpaired


@pytest.mark.skipif(not SMEARS.is_dir(), reason="the smears of ../shared/data/bccd are not here")
@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"../shared/weights/{WEIGHTS.name} is not here")
def test_real_smears_from_end_to_end(run: Run, tmp_path: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in (SMEARS, *SMEARS.iterdir())}
    made = run("init", str(SMEARS), "--json", cwd=tmp_path).value
    assert made["layout"] == "voc"
    assert "Pascal VOC annotations with labels from labels.csv: one image a WBC box" in made["about"]
    assert list(made["classes"]) == ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]
    assert made["images"] == sum(sum(of.values()) for of in made["classes"].values())
    pairs, unpaired = paired()
    too_few = {label for label, number in pairs.items() if number < 3}
    assert made["images"] == sum(number for label, number in pairs.items() if label not in too_few)
    reasons = [item["reason"] for item in made["left_out"]]
    assert len(reasons) == len(unpaired) + sum(pairs[label] for label in too_few)
    assert sum("boxes with different labels" in reason for reason in reasons) == unpaired.count("mixed")
    assert sum("it has no label" in reason for reason in reasons) == unpaired.count("unlabelled")
    assert sum(" for 0 WBC boxes" in reason for reason in reasons) == unpaired.count("no box")
    assert {Path(item["path"]).name for item in made["left_out"]} <= {
        path.name for path in (SMEARS / "images").iterdir()
    }
    (overlap,) = [remark for remark in made["remarks"] if "show the same pixels" in remark]
    assert int(overlap.split()[0]) >= 20  # fields of this set that overlap
    args = ("--model", "mobilenetv2", "--weights", str(WEIGHTS), "--views", "1", "--input-size", "96")
    extracted = run("extract", *args, "--json", cwd=tmp_path).value
    assert (extracted["computed"], extracted["skipped"]) == (made["images"], 0)
    assert extracted["shape"] == [made["images"], 3, 3, 1280]
    fitted = run("fit-head", "--epochs", "150", "--hidden", "64", "--json", cwd=tmp_path).value
    assert fitted["test"]["accuracy"] > fitted["test"]["majority"] + 0.1
    rows = featcache.open_cache(extracted["path"]).rows
    assert len(rows) == made["images"]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
