"""Every layout that users keep images in is recognised, and what is wrong in it is said."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from featcache.core.errors import DatasetError
from featcache.core.project import DatasetSection
from featcache.datasets.candidates import Source
from featcache.datasets.sources import find_images
from featcache.images.identity import Box
from featcache.synthetic.drawing import CLASSES, smear_labels, write_cells, write_smears

PIXELS = b"not looked at here"


def put(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PIXELS)
    return folder


def put_list(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def found(source: Source) -> set[tuple[str, ...]]:
    return {tuple(part for part in (c.path, c.label, c.split, c.group) if part) for c in source.candidates}


def reasons(source: Source) -> dict[str, str]:
    return {item.path: item.reason for item in source.left_out}


# Class folders


def test_generated_cells_are_class_folders(tmp_path: Path) -> None:
    write_cells(tmp_path, 2, size_px=16)
    source = find_images(tmp_path)
    assert (source.layout, source.folder) == ("class-folders", tmp_path)
    assert source.about == "class folders: " + ", ".join(CLASSES)
    assert Counter(c.label for c in source.candidates) == dict.fromkeys(CLASSES, 2)
    assert not source.left_out


def test_class_folders_may_be_deep_and_hold_other_files(tmp_path: Path) -> None:
    put(tmp_path, "a/slide 1/x/1.png", "a/2.JPG", "b/ä/3.tiff", "b/notes.txt", "stray.png", "readme.md")
    put(tmp_path, "a/.ipynb_checkpoints/1.png", "a/.2.png", "__MACOSX/a/1.png", ".git/a.png", "a/__MACOSX/._1.png")
    source = find_images(tmp_path)
    assert found(source) == {("a/slide 1/x/1.png", "a"), ("a/2.JPG", "a"), ("b/ä/3.tiff", "b")}
    assert reasons(source) == {"stray.png": "it lies in no class folder"}


def test_wrapper_folders_are_passed(tmp_path: Path) -> None:
    put(tmp_path, "download/set 1/a/1.png", "download/set 1/b/2.png", "download/readme.txt")
    source = find_images(tmp_path)
    assert source.folder == tmp_path / "download" / "set 1"
    assert found(source) == {("a/1.png", "a"), ("b/2.png", "b")}


def test_an_empty_class_folder_is_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/notes.txt")
    with pytest.raises(DatasetError, match=r"b: a class folder without images: add some, or remove"):
        find_images(tmp_path)


def test_split_folders_under_any_of_their_names(tmp_path: Path) -> None:
    put(tmp_path, "TRAIN/a/1.png", "TRAIN/b/2.png", "valid/a/3.png", "valid/b/x/4.png", "Test/a/5.png", "Test/b/6.png")
    put(tmp_path, "TRAIN/loose.png", "extra/a/7.png", "top.png")
    source = find_images(tmp_path)
    assert source.layout == "split-folders"
    assert found(source) == {
        ("TRAIN/a/1.png", "a", "train"),
        ("TRAIN/b/2.png", "b", "train"),
        ("valid/a/3.png", "a", "val"),
        ("valid/b/x/4.png", "b", "val"),
        ("Test/a/5.png", "a", "test"),
        ("Test/b/6.png", "b", "test"),
    }
    assert reasons(source) == {
        "TRAIN/loose.png": "it lies in no class folder",
        "extra": "a folder beside train, val and test that is none of them",
        "top.png": "it lies in no class folder",
    }
    assert "a, b" in source.about


def test_an_empty_class_in_a_split_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "test/a/2.png", "test/b/readme.txt")
    with pytest.raises(DatasetError, match=r"test.b: a class folder without images"):
        find_images(tmp_path)


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    put(tmp_path, "test/1.png", "control/2.png")
    assert found(find_images(tmp_path)) == {("test/1.png", "test"), ("control/2.png", "control")}


@pytest.mark.parametrize("inside", [(), ("readme.txt",), (".hidden/1.png",), ("a/readme.txt", "b/readme.txt")])
def test_a_folder_without_images_is_refused(tmp_path: Path, inside: tuple[str, ...]) -> None:
    put(tmp_path, *inside)
    with pytest.raises(DatasetError, match=r"no images: expected class folders .* CSV .* Pascal VOC"):
        find_images(tmp_path)


def test_a_flat_folder_without_labels_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    with pytest.raises(DatasetError, match="2 images without a label: expected class folders"):
        find_images(tmp_path)


def test_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder or file"):
        find_images(tmp_path / "nowhere")


def test_what_is_the_project_s_own_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/1.png", "b/2.png", "cache/x/1.png", "results/run/curves.png", "sheet.png")
    put_list(tmp_path / "dataset.csv", "path,label", "a/1.png,z")
    own = [tmp_path / name for name in ("cache", "results", "dataset.csv", "sheet.png")]
    monkeypatch.chdir(tmp_path)
    relative = [path.relative_to(tmp_path) for path in own]
    for place, ignore in ((tmp_path, own), (Path(), relative), (tmp_path, relative), (Path(), own)):
        source = find_images(place, ignore=frozenset(ignore))
        assert found(source) == {("a/1.png", "a"), ("b/2.png", "b")}
        assert not source.left_out


def test_a_wrapper_is_passed_beside_the_project_s_own(tmp_path: Path) -> None:
    put(tmp_path, "images of it/a/1.png", "images of it/b/2.png", "cache/1.png")
    put_list(tmp_path / "dataset.csv", "path,label", "a/1.png,z")
    ignore = frozenset({tmp_path / "cache", tmp_path / "dataset.csv"})
    assert found(find_images(tmp_path, ignore=ignore)) == {("a/1.png", "a"), ("b/2.png", "b")}


# Lists


@pytest.mark.parametrize("path_column", ["path", "Image", "FILENAME", " file_name"])
@pytest.mark.parametrize("label_column", ["label", "Class", "category"])
def test_a_list_may_name_its_columns_otherwise(tmp_path: Path, path_column: str, label_column: str) -> None:
    put(tmp_path, "x/1.png", "2.png")
    path = put_list(
        tmp_path / "cells.csv",
        f"{path_column},{label_column},Subset,patient_id",
        "x/1.png,a,Training,p1",
        '2.png,"b, c",dev,p 2',
    )
    source = find_images(path)
    assert (source.layout, source.folder) == ("csv", tmp_path)
    assert found(source) == {("x/1.png", "a", "train", "p1"), ("2.png", "b, c", "val", "p 2")}
    assert "cells.csv" in source.about


def test_a_folder_with_a_list_and_images_beside(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "images/sub/2.png", "3.png")
    put_list(tmp_path / "LABELS.CSV", "path,label", "1.png,a", "sub\\2.png,b", "3.png,a", "images/1.png,a")
    put_list(tmp_path / "other.csv", "colour,size", "1,2")
    put_list(tmp_path / ".0123.partial.csv", "path,label", "1.png,z")
    source = find_images(tmp_path)
    assert source.layout == "csv"
    assert [(c.path, c.label) for c in source.candidates] == [
        ("images/1.png", "a"),
        ("images/sub/2.png", "b"),
        ("3.png", "a"),
        ("images/1.png", "a"),
    ]


def test_absolute_paths_become_relative_to_the_folder_that_holds_them_all(tmp_path: Path) -> None:
    put(tmp_path, "data/x/1.png", "data/y/2.png")
    path = put_list(
        tmp_path / "lists" / "l.csv", "path,label", f"{tmp_path}/data/x/1.png,a", f"{tmp_path}/data/y/../y/2.png,b"
    )
    source = find_images(path)
    assert source.folder == (tmp_path / "data").resolve()
    assert found(source) == {("x/1.png", "a"), ("y/2.png", "b")}


@pytest.mark.parametrize("place", ["l.csv", "./l.csv", "../lists/l.csv"])
def test_a_list_may_reach_beside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    put(tmp_path, "data/1.png", "lists/2.png")
    put_list(tmp_path / "lists" / "l.csv", "path,label", "../data/1.png,a", "2.png,b")
    monkeypatch.chdir(tmp_path / "lists")
    source = find_images(Path(place))
    assert source.folder.resolve() == tmp_path.resolve()
    assert found(source) == {("data/1.png", "a"), ("lists/2.png", "b")}


def test_a_list_says_why_a_line_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png", "folder/3.png")
    long = "x" * 400 + ".png"
    path = put_list(
        tmp_path / "l.csv",
        "path,label",
        "1.png,a",
        "2.png,",
        "gone.png,a",
        "folder,a",
        f"{long},a",
        "nul\0.png,a",
        ",a",
    )
    source = find_images(path)
    assert found(source) == {("1.png", "a"), ("2.png",)}
    gone = "there is no such file"
    assert reasons(source) == {
        **dict.fromkeys(("gone.png", "folder", long, "nul\0.png", ""), gone),
    }


def test_a_list_with_boxes(tmp_path: Path) -> None:
    put(tmp_path, "1.png")
    head = "path,label,X_min,Y_min,X_max,Y_max"
    source = find_images(put_list(tmp_path / "l.csv", head, "1.png,a,1,2,3,4", "1.png,b,5,6,7,8", "1.png,c"))
    assert [c.box for c in source.candidates] == [Box(1, 2, 3, 4), Box(5, 6, 7, 8), None]
    with pytest.raises(DatasetError, match=r"l\.csv, line 4: box"):
        find_images(put_list(tmp_path / "l.csv", head, "", "1.png,a,1,2,3,4", "1.png,a,3,2,1,4"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("path,colour", "1.png,a"), "a column label .*found path, colour"),
        (("path|label", "1.png;a"), "found path|label"),
        (("path,label,split", "1.png,a,train", "", "1.png,a,holdout"), "line 4: split 'holdout'"),
        (("path,label", '"1.png,a'), "line 2: cannot be read as CSV"),
        ((), "is empty|expected a column"),
    ],
)
def test_a_list_that_cannot_be_used_says_so(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    put(tmp_path, "1.png")
    with pytest.raises(DatasetError, match=message):
        find_images(put_list(tmp_path / "l.csv", *lines))


def test_a_list_in_another_encoding_is_named(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png")
    (tmp_path / "l.csv").write_bytes("path,label\n1.png,a\nä.png,b\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"l\.csv, line 3: is not UTF-8"):
        find_images(tmp_path)


def test_two_lists_are_one_too_many(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png")
    for name in ("one.csv", "two.csv"):
        put_list(tmp_path / name, "path,label", "1.png,a")
    with pytest.raises(DatasetError, match=r"several lists with labels \(one.csv, two.csv\): name one"):
        find_images(tmp_path)


def test_an_image_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.png"):
        find_images(put(tmp_path, "a.png") / "a.png")


# Pascal VOC


def annotation(*objects: tuple[str, str, str, str, str], filename: str = "1.jpg") -> str:
    items = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, a, b, c, d in objects
    )
    return f"<annotation><filename>{filename}</filename>{items}</annotation>"


WBC = ("WBC", "11", "21", "50", "60")


def voc(folder: Path, annotations: dict[str, str], *lines: str) -> Path:
    for stem, text in annotations.items():
        put(folder, f"images/{stem}.jpg")
        put_list(folder / "annotations" / f"{stem}.xml", text)
    if lines:
        put_list(folder / "labels.csv", "image,label", *lines)
    return folder


def test_generated_smears_are_voc(tmp_path: Path) -> None:
    write_smears(tmp_path, 8, width_px=320, height_px=240)
    source = find_images(tmp_path)
    assert (source.layout, source.folder) == ("voc", tmp_path)
    assert "labels.csv" in source.about
    with (tmp_path / "labels.csv").open() as file:
        listed = {row["image"]: row["label"].split(", ") for row in csv.DictReader(file)}
    one_class = {name: labels for name, labels in listed.items() if len(set(labels)) == 1}
    assert Counter(c.label for c in source.candidates) == Counter(
        label for labels in one_class.values() for label in labels
    )
    assert {c.path for c in source.candidates} == {f"images/{name}" for name in one_class}
    assert len(set(smear_labels(5))) == 2
    ((path, reason),) = reasons(source).items()
    assert path == "images/smear-0006.jpg"
    assert reason == "2 WBC boxes with different labels (lymphocyte, eosinophil): which is which is not said"


def test_voc_boxes_count_from_one_and_include_the_last_pixel(tmp_path: Path) -> None:
    source = find_images(voc(tmp_path, {"1": annotation(("wbc", "1", "2", "640", "480.4"))}, "1.jpg,a"))
    assert [c.box for c in source.candidates] == [Box(0, 1, 640, 480)]
    source = find_images(tmp_path, DatasetSection(margin=0.1))
    assert [c.box for c in source.candidates] == [Box(0, 0, 704, 544)]


def test_voc_pairs_labels_with_boxes_or_says_why_not(tmp_path: Path) -> None:
    two = annotation(WBC, ("RBC", "1", "1", "9", "9"), ("WBC", "100", "100", "150", "150"))
    texts = {"1": annotation(WBC), "2": two, "3": two, "4": two, "5": annotation(("RBC", "1", "1", "9", "9"))}
    texts |= {"6": annotation(WBC), "7": annotation(WBC)}
    voc(tmp_path, texts, "1.jpg,a", '2,"b, b"', "3.jpg,a", '4.jpg,"a; b"', "5.jpg,a", "6.jpg,", "gone.jpg,a", "8.jpg,a")
    put(tmp_path, "images/8.jpg")
    source = find_images(tmp_path)
    assert [(c.path, c.label) for c in source.candidates] == [
        ("images/1.jpg", "a"),
        ("images/2.jpg", "b"),
        ("images/2.jpg", "b"),
    ]
    assert len({(c.path, c.box) for c in source.candidates}) == 3
    assert reasons(source) == {
        "images/3.jpg": "1 label (a) for 2 WBC boxes",
        "images/4.jpg": "2 WBC boxes with different labels (a, b): which is which is not said",
        "images/5.jpg": "1 label (a) for 0 WBC boxes",
        "images/6.jpg": "it has no label",
        "images/7.jpg": "it has no line in labels.csv",
        "gone.jpg": "there is no such image",
        "images/8.jpg": "it has no annotation",
    }


BOMB = '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation>&b;</annotation>'
OUTER = '<!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/hostname">]><annotation><filename>&a;</filename></annotation>'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        "no xml",
        BOMB,
        OUTER,
        '<?xml version="1.0" encoding="no-such-code"?><annotation/>',
        "<annotations><image/></annotations>",
    ],
)
def test_voc_leaves_an_annotation_out_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    for lines in (("1.jpg,a", "2.jpg,a"), ()):
        source = find_images(voc(tmp_path / str(len(lines)), {"1": annotation(WBC), "2": text}, *lines))
        assert [c.path for c in source.candidates] == ["images/1.jpg"]
        assert reasons(source)["annotations/2.xml"].startswith("the annotation cannot be read (")


@pytest.mark.parametrize(
    "text",
    [
        annotation(("WBC", "inf", "1", "2", "3")),
        annotation(("WBC", "1", "1", "2", "-inf")),
        annotation(("WBC", "nan", "1", "2", "3")),
        annotation(("WBC", "", "1", "2", "3")),
        annotation(("", "1", "1", "2", "3")),
        annotation(("WBC", "a", "1", "2", "3")),
        "<annotation><object><name>WBC</name></object></annotation>",
        "<annotation><object><name>WBC</name><polygon><x1>1</x1></polygon></object></annotation>",
    ],
)
def test_voc_leaves_an_object_out_that_has_no_box_or_name(tmp_path: Path, text: str) -> None:
    source = find_images(voc(tmp_path, {"1": annotation(WBC), "2": text}))
    assert [c.path for c in source.candidates] == ["images/1.jpg"]
    assert reasons(source)["annotations/2.xml"].startswith("an object is left out")


def test_voc_without_labels_takes_the_objects_names(tmp_path: Path) -> None:
    one = annotation(("a", "1", "1", "9", "9"), ("b", "1", "1", "9", "9"), ("a", "1", "1", "9", "9"))
    voc(tmp_path, {"1": one, "2": annotation(("a", "5", "5", "9", "9"), filename="C:\\pics\\2.jpg")})
    put_list(tmp_path / "annotations" / "3.xml", annotation(WBC, filename="3.jpg"))
    source = find_images(tmp_path)
    assert source.about == "Pascal VOC annotations without a label file: one image a box (a, b)"
    assert [(c.path, c.label) for c in source.candidates] == [
        ("images/1.jpg", "a"),
        ("images/1.jpg", "b"),
        ("images/2.jpg", "a"),
    ]
    assert reasons(source) == {"annotations/3.xml": "there is no such image"}


def test_voc_object_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    voc(tmp_path, {"1": annotation(WBC, ("RBC", "1", "1", "9", "9"))}, "1.jpg,a")
    with pytest.raises(DatasetError, match=r"no object is named 'cell'; found WBC \(1\), RBC \(1\).*`voc_object`"):
        find_images(tmp_path, DatasetSection(voc_object="cell"))


def test_voc_in_a_wrapper_folder(tmp_path: Path) -> None:
    voc(tmp_path / "download" / "bccd", {"1": annotation(WBC)}, "1.jpg,a")
    source = find_images(tmp_path)
    assert (source.layout, source.folder) == ("voc", tmp_path / "download" / "bccd")


def test_voc_with_xml_beside_the_images(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    put_list(tmp_path / "1.xml", annotation(WBC))
    put_list(tmp_path / "._1.xml", "resource fork")
    source = find_images(tmp_path)
    assert (source.layout, [c.path for c in source.candidates]) == ("voc", ["1.jpg"])
    assert not source.left_out


def test_an_xml_file_beside_class_folders_is_no_annotation(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    put_list(tmp_path / "project.xml", "<project/>")
    assert find_images(tmp_path).layout == "class-folders"


def test_voc_images_of_one_name_are_left_out_unless_folders_tell_them_apart(tmp_path: Path) -> None:
    voc(tmp_path, {"x/1": annotation(WBC), "y/1": annotation(WBC), "z": annotation(WBC)})
    put(tmp_path, "images/v/z.jpg", "images/w/z.jpg")
    (tmp_path / "images" / "z.jpg").unlink()
    source = find_images(tmp_path)
    assert [c.path for c in source.candidates] == ["images/x/1.jpg", "images/y/1.jpg"]
    assert reasons(source)["annotations/z.xml"] == "it may be of several images (images/v/z.jpg, images/w/z.jpg)"
    put_list(tmp_path / "labels.csv", "image,label", "1.jpg,a", "x/1.jpg,b")
    source = find_images(tmp_path)
    assert [(c.path, c.label) for c in source.candidates] == [("images/x/1.jpg", "b")]
    assert reasons(source)["1.jpg"] == "2 images have this name"


def test_voc_ignores_pictures_of_the_project_itself(tmp_path: Path) -> None:
    voc(tmp_path, {"1": annotation(WBC)}, "1.jpg,a")
    put(tmp_path, "results/run/1.jpg")
    source = find_images(tmp_path, ignore=frozenset({tmp_path / "results"}))
    assert [c.path for c in source.candidates] == ["images/1.jpg"]


def test_voc_with_two_label_files_is_refused(tmp_path: Path) -> None:
    voc(tmp_path, {"1": annotation(WBC)}, "1.jpg,a")
    put_list(tmp_path / "more.csv", "image,label", "1.jpg,b")
    with pytest.raises(DatasetError, match="several label files"):
        find_images(tmp_path)


def test_a_list_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """Semicolons between the cells, box columns without an underscore."""
    write_cells(tmp_path / "cells", 1, size_px=32)
    lines = [f"cells/{label}/{label}-0001.png;{label};1;2;20;30" for label in CLASSES]
    (tmp_path / "list.csv").write_text("\n".join(["File;Class;xmin;ymin;xmax;ymax", *lines]))
    source = find_images(tmp_path / "list.csv")
    assert [candidate.label for candidate in source.candidates] == list(CLASSES)
    assert {candidate.box for candidate in source.candidates} == {Box(1, 2, 20, 30)}
