"""dataset relabel: labels that are corrected, and what goes on with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run

import featcache as fc
from featcache.core.errors import DatasetError, UsageError
from featcache.core.progress import SILENT
from featcache.datasets.manifest import LabelledImage, read_dataset, write_dataset
from featcache.images import Box
from featcache.synthetic.drawing import write_cells


@pytest.fixture
def project(tmp_path: Path) -> fc.Project:
    write_cells(tmp_path / "cells", 8, seed=2, size_px=32)
    return fc.init(tmp_path / "cells", tmp_path / "p", split_counts=(4, 2, 2), progress=SILENT)


def listed(project: fc.Project) -> dict[str, LabelledImage]:
    return {image.path: image for image in read_dataset(project.dataset_file, project.images).images}


def test_a_corrected_label_is_trained_on_without_another_extract(project: fc.Project, run: Run) -> None:
    cache = fc.extract(project, "pixels", input_size_px=8, progress=SILENT)
    before = listed(project)
    one, other = [p for p, i in before.items() if (i.label, i.split) == ("monocyte", "train")][:2]
    value = run(
        "dataset", "relabel", one, before[other].image_id[:12], "--to", "neutrophil", "--json", cwd=project.folder
    ).value
    assert {line["path"] for line in value["changed"]} == {one, other}
    assert {(line["from"], line["to"]) for line in value["changed"]} == {("monocyte", "neutrophil")}
    assert (value["classes"]["monocyte"]["train"], value["classes"]["neutrophil"]["train"]) == (2, 6)
    now = listed(project)
    assert {path for path in now if now[path].label != before[path].label} == {one, other}
    assert {path: (i.split, i.group, i.image_id) for path, i in now.items()} == {
        path: (i.split, i.group, i.image_id) for path, i in before.items()
    }
    trained = fc.fit_head(project, epochs=1, progress=SILENT)
    assert trained.fitted.cache == cache.name
    assert trained.metrics["train"]["per_class"]["neutrophil"]["groups"] == 6


def test_labels_of_a_file_and_labels_taken_away(project: fc.Project, run: Run) -> None:
    paths = [path for path, image in listed(project).items() if image.split == "train"]
    (project.folder / "by hand.csv").write_text(f"image,label\n{paths[0]},lymphocyte\n{paths[-1]},\n", encoding="utf-8")
    shown = run("dataset", "relabel", "--from", "by hand.csv", cwd=project.folder)
    assert shown.code == 0 and "no label" in shown.out and "next: featcache fit-head" in shown.out
    now = listed(project)
    assert (now[paths[0]].label, now[paths[-1]].label) == ("lymphocyte", "")
    again = run("dataset", "relabel", "--from", "by hand.csv", "--json", cwd=project.folder).value
    assert again["changed"] == []
    assert run("dataset", "relabel", paths[1], "--none", "--json", cwd=project.folder).value["changed"][0]["to"] == ""


def test_a_new_class_is_said_to_be_one(project: fc.Project) -> None:
    images = listed(project)
    by_split = {split: [p for p, i in images.items() if i.split == split][:1] for split in ("train", "val", "test")}
    labels = {path: "basophil" for paths in by_split.values() for path in paths}
    text = project.dataset_file.read_bytes()
    with pytest.raises(UsageError, match="'basophil' is no class so far"):
        fc.relabel(project, labels)
    with pytest.raises(DatasetError, match=r"no label was changed, since then .*'test' has no images of basophil"):
        fc.relabel(project, {by_split["train"][0]: "basophil"}, new_class=True)
    assert project.dataset_file.read_bytes() == text
    done = fc.relabel(project, labels, new_class=True)
    assert done.new_classes == ("basophil",) and "basophil" in done.dataset.classes


def test_what_names_no_image_or_several_is_refused(project: fc.Project, run: Run) -> None:
    images = list(listed(project).values())
    cells = [
        LabelledImage(images[0].path, images[0].label, images[0].split, "g", f"{n}" * 64, Box(0, 0, 9, 9 + n))
        for n in (1, 2)
    ]
    write_dataset(project.dataset_file, [*images[1:], *cells])
    text = project.dataset_file.read_bytes()
    with pytest.raises(DatasetError, match=r"means 2 images\. Name one by its image_id: 111111111111, 222222222222"):
        fc.relabel(project, {images[0].path: "monocyte"})
    with pytest.raises(DatasetError, match=r"no image 'nothing\.png'"):
        fc.relabel(project, {"nothing.png": "monocyte"})
    with pytest.raises(DatasetError, match="is to have two labels"):
        fc.relabel(project, {"1" * 12: "monocyte", "1" * 13: "neutrophil"})
    with pytest.raises(UsageError, match=r"'monocyt' is no class so far.*monocyte"):
        fc.relabel(project, {images[1].path: "monocyt"})
    (project.folder / "odd.csv").write_text("path,label\na,b\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="no column 'image'"):
        fc.relabel(project, project.folder / "odd.csv")
    (project.folder / "odd.csv").write_text("image,label\na,b\na,c\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"line 3: 'a' has another label further up"):
        fc.relabel(project, project.folder / "odd.csv")
    assert project.dataset_file.read_bytes() == text
    for args in (
        (),
        ("a.png",),
        ("a.png", "--to", "x", "--none"),
        ("a.png", "--to", "x", "--from", "odd.csv"),
        ("--to", "x"),
    ):
        assert run("dataset", "relabel", *args, cwd=project.folder).code == 2
