"""Layouts that tools export and file systems add to: read as what they are, or refused with what was seen."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_dataset_sources import annotation, found, put, put_list, reasons, voc

from featcache.core.errors import DatasetError
from featcache.core.project import DatasetSection
from featcache.datasets.boxes import placed, turned
from featcache.datasets.build import Built, build
from featcache.datasets.candidates import UNKNOWN_SIZE
from featcache.datasets.sources import find_images
from featcache.images.decode import decode
from featcache.images.identity import Box
from featcache.images.scanning import ImageFile, scan

WBC = ("WBC", "11", "21", "50", "60")


def smear(path: Path, number: int, box: tuple[int, int, int, int] = (10, 20, 49, 59), orientation: int = 1) -> None:
    """A picture of 160x120 px as it is stored, with one dark cell in `box`, both corners of it included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.random.default_rng(number).integers(200, 240, (120, 160, 3)).astype(np.uint8))
    ImageDraw.Draw(picture).rectangle(box, fill=(60, 20, 90))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)


def sized(text: str, width: int, height: int) -> str:
    return text.replace("</annotation>", f"<size><width>{width}</width><height>{height}</height></size></annotation>")


def splits(built: Built) -> Counter[tuple[str, str]]:
    return Counter((image.label, image.split) for image in built.images)


# Folders that are no classes


def test_annotations_beside_pictures_in_split_folders_are_read(tmp_path: Path) -> None:
    """As Roboflow exports Pascal VOC."""
    for number, split in enumerate(("train", "train", "valid", "test")):
        for name in ("WBC", "RBC"):
            stem = f"s{number}_{name}_jpg.rf.0"
            smear(tmp_path / "export" / split / f"{stem}.jpg", number * 2 + (name == "RBC"))
            text = annotation((name, *WBC[1:]), filename=f"{stem}.jpg")
            put_list(tmp_path / "export" / split / f"{stem}.xml", text)
    source = find_images(tmp_path / "export")
    assert source.layout == "voc"
    assert "split already (test, train, valid): RBC, WBC" in source.about
    assert splits(build(source)) == {(name, s): n for name in ("RBC", "WBC") for s, n in
                                     (("train", 2), ("val", 1), ("test", 1))}  # fmt: skip


def test_lists_in_split_folders_are_read_with_their_boxes(tmp_path: Path) -> None:
    """As Roboflow exports CSV; the column width is the picture's, not the box's."""
    head = "filename,width,height,class,xmin,ymin,xmax,ymax"
    for split in ("train", "valid", "test"):
        put(tmp_path, f"{split}/a.jpg", f"{split}/b.jpg")
        put_list(tmp_path / split / "_annotations.csv", head, "a.jpg,160,120,x,1,2,30,40", "b.jpg,160,120,y,1,2,30,40")
    source = find_images(tmp_path)
    assert {(c.path, c.split, c.label, c.box, c.size) for c in source.candidates} == {
        (f"{folder}/{name}.jpg", split, label, Box(1, 2, 30, 40), (160, 120))
        for folder, split in (("train", "train"), ("valid", "val"), ("test", "test"))
        for name, label in (("a", "x"), ("b", "y"))
    }


def test_annotations_in_sub_folders_belong_to_the_pictures_of_the_same_sub_folders(tmp_path: Path) -> None:
    """As CVAT exports Pascal VOC."""
    for sub, name in (("A", "x"), ("B", "y")):
        put(tmp_path, f"task/JPEGImages/{sub}/f0.jpg", f"task/JPEGImages/{sub}/f1.jpg")
        for stem in ("f0", "f1"):
            text = annotation((name, *WBC[1:]), filename=f"{sub}/{stem}.jpg")
            put_list(tmp_path / "task" / "Annotations" / sub / f"{stem}.xml", text)
    source = find_images(tmp_path)
    assert found(source) == {(f"JPEGImages/{s}/{f}.jpg", n) for s, n in (("A", "x"), ("B", "y")) for f in ("f0", "f1")}
    assert not source.left_out


def test_images_and_annotations_in_each_split_folder_are_read(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        put(tmp_path, f"{split}/images/0.jpg", f"{split}/images/1.jpg")
        for stem, name in (("0", "x"), ("1", "y")):
            put_list(tmp_path / split / "labels" / f"{stem}.xml", annotation((name, *WBC[1:]), filename=f"{stem}.jpg"))
    source = find_images(tmp_path)
    assert {(c.path, c.label, c.split) for c in source.candidates} == {
        (f"{folder}/images/{stem}.jpg", name, split)
        for folder, split in (("train", "train"), ("valid", "val"), ("test", "test"))
        for stem, name in (("0", "x"), ("1", "y"))
    }


def test_split_folders_below_images_and_annotations_are_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        put(tmp_path, f"images/{split}/0.jpg")
        put_list(tmp_path / "annotations" / split / "0.xml", annotation(WBC, filename="0.jpg"))
    source = find_images(tmp_path)
    assert {(c.path, c.split) for c in source.candidates} == {
        (f"images/{s}/0.jpg", s) for s in ("train", "val", "test")
    }


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Training", "Testing"), ("train_set", "test_set")])
def test_split_folders_without_classes_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        put(tmp_path, f"{name}/1.jpg", f"{name}/2.jpg")
    with pytest.raises(DatasetError, match=rf"hold no class folders, but {2 * len(names)} \.jpg: expected"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("fold_0", "fold_1"),
        ("patient_001", "patient_002"),
        ("TestA", "TestB"),
        ("images", "masks"),
        ("p1", "P02"),
        ("part 1",),
    ],
)
def test_folders_that_are_named_for_anything_but_a_class_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{name}/{number}.jpg" for name in names for number in range(3)))
    with pytest.raises(DatasetError, match=r"do not look like names of classes|hold no class folders"):
        find_images(tmp_path)


@pytest.mark.parametrize(("outer", "is_group"), [("p", True), ("patient_0", True), ("fold_", False)])
def test_which_level_is_the_class_is_asked_where_all_hold_the_same_folders(
    tmp_path: Path, outer: str, is_group: bool
) -> None:
    for number in range(4):
        put(tmp_path, *(f"{outer}{number}/{name}/{number}{name}.png" for name in ("all", "hem")[: 1 + (number > 0)]))
    with pytest.raises(
        DatasetError, match=r"which folders are the classes\?.*\(all, hem\).*`class_level=2` for all, hem"
    ):
        find_images(tmp_path)
    source = find_images(tmp_path, DatasetSection(class_level=2))
    assert {c.label for c in source.candidates} == {"all", "hem"}
    assert {c.group for c in source.candidates} == ({f"{outer}{number}" for number in range(4)} if is_group else {""})
    assert len({c.label for c in find_images(tmp_path, DatasetSection(class_level=1)).candidates}) == 4


def test_a_workbook_beside_the_images_is_named(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "labels.xlsx")
    with pytest.raises(DatasetError, match=r"labels\.xlsx may hold labels: save the sheet as 'CSV"):
        find_images(tmp_path)


def test_patients_below_classes_are_no_question(tmp_path: Path) -> None:
    put(tmp_path, "blast/p1/1.png", "blast/p2/2.png", "normal/p3/3.png", "normal/p4/4.png", "normal/p1/5.png")
    assert {c.label for c in find_images(tmp_path).candidates} == {"blast", "normal"}


def test_splits_below_classes_are_splits(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{split}/1.png" for name in "ab" for split in ("train", "val", "test")))
    source = find_images(tmp_path)
    assert {(c.label, c.split) for c in source.candidates} == {(n, s) for n in "ab" for s in ("train", "val", "test")}


def coco(*pictures: str, width: int = 160, name: str = "WBC", bbox: object = (10, 20, 40, 40)) -> str:
    return json.dumps(
        {
            "images": [{"id": n, "file_name": one, "width": width, "height": 120} for n, one in enumerate(pictures)],
            "categories": [{"id": 7, "name": name}, {"id": 8, "name": "RBC"}],
            "annotations": [
                *({"id": n, "image_id": n, "category_id": 7, "bbox": bbox} for n, _ in enumerate(pictures)),
                {"id": 99, "image_id": 0, "category_id": 8, "bbox": [1, 1, 5, 5]},
            ],
        }
    )


def test_coco_is_read_beside_the_pictures_of_each_split_and_in_a_folder_of_annotations(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        put(tmp_path, f"roboflow/{split}/{split}.jpg", f"usual/{split}/{split}.jpg")
        put_list(tmp_path / "roboflow" / split / "_annotations.coco.json", coco(f"{split}.jpg"))
        put_list(tmp_path / "usual" / "annotations" / f"instances_{split}.json", coco(f"{split}.jpg"))
    for name in ("roboflow", "usual"):
        source = find_images(tmp_path / name)
        assert source.layout == "coco"
        assert {(c.path, c.split, c.label, c.box, c.size) for c in source.candidates} == {
            (f"{folder}/{folder}.jpg", split, label, box, (160, 120))
            for folder, split in (("train", "train"), ("valid", "val"), ("test", "test"))
            for label, box in (("WBC", Box(10, 20, 50, 60)), ("RBC", Box(1, 1, 6, 6)))
        }
        assert not source.left_out


@pytest.mark.parametrize("bbox", [[1, 2], "x", [1, 2, float("nan"), 4], [5, 5, 0, 4], None])
def test_an_odd_box_of_coco_is_left_out(tmp_path: Path, bbox: object) -> None:
    put(tmp_path, "images/1.jpg", "images/2.jpg")
    put_list(tmp_path / "annotations.json", coco("1.jpg", "gone.jpg", bbox=bbox))
    source = find_images(tmp_path)
    assert [c.label for c in source.candidates] == ["RBC"]
    assert reasons(source)["gone.jpg"] == "there is no such image"
    assert "an object is left out (WBC)" in reasons(source)["1.jpg"]


@pytest.mark.parametrize("text", ['{"images": 1, "annotations": [], "categories": []}', '"images" "annotations" "bbox"',
                                  '{"images": [], "annotations": [{"image_id": 3}], "categories": []}'])  # fmt: skip
def test_coco_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    put(tmp_path, "images/1.jpg")
    with pytest.raises(DatasetError, match=r"cannot be read as COCO annotations|which is not in the file"):
        find_images(put_list(tmp_path / "all.json", text).parent)


def test_yolo_without_names_and_labelme_are_refused_by_name(tmp_path: Path) -> None:
    for split in ("train", "val"):
        put(tmp_path, f"yolo/images/{split}/1.jpg", f"labelme/{split}/1.jpg")
        put_list(tmp_path / "yolo" / "labels" / split / "1.txt", "0 .5 0.5 0.25 1")
        put_list(tmp_path / "labelme" / split / "1.json", '{"shapes": [], "imagePath": "1.jpg"}')
    for name, said in (("yolo", "in the YOLO format"), ("labelme", "annotations of labelme")):
        with pytest.raises(DatasetError, match=said):
            find_images(tmp_path / name)


# Boxes on the right pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_that_was_drawn_before_turning_is_turned_with_the_picture(tmp_path: Path, orientation: int) -> None:
    """Where <size> cannot tell whether it was, the box is left out."""
    smear(tmp_path / "1.png", 0, orientation=orientation)
    (file,) = scan(tmp_path, ["1.png"]).values()
    if orientation in (2, 3, 4):
        with pytest.raises(DatasetError, match=f"orientation {orientation} turns the picture, and nothing says"):
            placed(Box(10, 20, 50, 60), (160, 120), file=file, path=tmp_path / "1.png")
        box = turned(Box(10, 20, 50, 60), (160, 120), orientation=orientation)
    else:
        box = placed(Box(10, 20, 50, 60), (160, 120), file=file, path=tmp_path / "1.png")
    pixels = decode((tmp_path / "1.png").read_bytes())
    assert (pixels[box.y_min : box.y_max, box.x_min : box.x_max] == (60, 20, 90)).all()
    assert (
        placed(box, (file.width_px, file.height_px), file=file, path=tmp_path / "1.png") == box
        if orientation > 4
        else True
    )


def test_a_box_of_a_picture_of_another_size_is_left_out_with_both_sizes(tmp_path: Path) -> None:
    for stem in ("1", "2"):
        smear(tmp_path / "images" / f"{stem}.png", int(stem))
    put_list(tmp_path / "annotations" / "1.xml", sized(annotation(WBC), 160, 120))
    put_list(tmp_path / "annotations" / "2.xml", sized(annotation(("RBC", *WBC[1:])), 320, 240))
    with pytest.raises(DatasetError, match="no usable image with the label 'RBC'") as caught:
        build(find_images(tmp_path))
    said = "the box was drawn on a picture of 320x240 px, and the file has 160x120 px"
    assert caught.value.left_out == (("images/2.png", said),)


def test_a_turned_picture_whose_annotation_gives_no_size_is_left_out(tmp_path: Path) -> None:
    smear(tmp_path / "1.png", 0, orientation=6)
    with pytest.raises(DatasetError, match="save the picture upright"):
        placed(Box(1, 1, 5, 5), UNKNOWN_SIZE, file=ImageFile("", 120, 160), path=tmp_path / "1.png")
    assert placed(Box(1, 1, 5, 5), None, file=ImageFile("", 120, 160), path=tmp_path / "1.png") == Box(1, 1, 5, 5)


@pytest.mark.parametrize("lines", [(), ("1.jpg,a", "2.jpg,b", "3.jpg,c")])
def test_an_annotation_is_of_the_picture_of_its_own_name(tmp_path: Path, lines: tuple[str, ...]) -> None:
    texts = {str(n): annotation(("WBC", f"{n}1", "1", f"{n}9", "9"), filename=f"{n % 3 + 1}.jpg") for n in (1, 2, 3)}
    source = find_images(voc(tmp_path, texts, *lines))
    assert {(c.path, c.box and c.box.x_min) for c in source.candidates} == {
        (f"images/{n}.jpg", 10 * n) for n in (1, 2, 3)
    }
    (remark,) = source.remarks
    assert remark.startswith("3 annotations name another picture that is there in <filename> (1.xml: 2.jpg, ")


def test_an_annotation_of_another_name_is_of_the_picture_that_it_names_unless_that_has_its_own(tmp_path: Path) -> None:
    texts = {"1": annotation(WBC, filename="1.jpg"), "2": annotation(WBC, filename="2.jpg")}
    voc(tmp_path, texts)
    (tmp_path / "annotations" / "2.xml").rename(tmp_path / "annotations" / "b.xml")
    put_list(tmp_path / "annotations" / "old.xml", annotation(("RBC", "1", "1", "5", "5"), filename="1.jpg"))
    source = find_images(tmp_path)
    assert {(c.path, c.label) for c in source.candidates} == {("images/1.jpg", "WBC"), ("images/2.jpg", "WBC")}
    assert reasons(source)["annotations/old.xml"] == "1.jpg has another annotation, 1.xml"


ODD = {
    "swapped": annotation(("WBC", "50", "60", "11", "21")),
    "odd red cell": annotation(WBC, ("RBC", "40", "5", "nan", "40")),
    "polygon": annotation(WBC).replace("</annotation>", "<object><name>RBC</name><polygon/></object></annotation>"),
    "nameless": annotation(WBC, ("", "1", "1", "9", "9")),
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
@pytest.mark.parametrize("lines", [("1.jpg,a",), ()])
def test_one_odd_object_leaves_the_good_cell(tmp_path: Path, text: str, lines: tuple[str, ...]) -> None:
    source = find_images(voc(tmp_path, {"1": text}, *lines))
    assert [(c.label, c.box) for c in source.candidates] == [("a" if lines else "WBC", Box(10, 20, 50, 60))]


def test_an_odd_box_of_the_wanted_object_still_counts_as_one(tmp_path: Path) -> None:
    """Else the one label of the smear could come to the wrong cell of two."""
    voc(tmp_path, {"1": annotation(WBC, ("WBC", "nan", "1", "9", "9")), "2": annotation(WBC)}, "1.jpg,a", "2.jpg,b")
    source = find_images(tmp_path)
    assert [c.path for c in source.candidates] == ["images/2.jpg"]
    assert reasons(source)["images/1.jpg"] == "1 label (a) for 2 WBC boxes"


def test_one_box_with_two_labels_is_left_out_and_the_others_stay(tmp_path: Path) -> None:
    for number in range(8):
        smear(tmp_path / "images" / f"{number}.png", number)
        both = [WBC, ("RBC", *WBC[1:])] if number == 0 else [("WR"[number % 2] + "BC", *WBC[1:])]
        put_list(tmp_path / "annotations" / f"{number}.xml", sized(annotation(*both), 160, 120))
    built = build(find_images(tmp_path))
    assert len(built.images) == 7
    assert [(item.path, item.reason) for item in built.left_out] == [
        ("images/0.png", "one box has different labels: RBC, WBC")
    ]


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "latin-1", "utf-16"])
def test_annotations_in_any_encoding_that_they_declare_are_read(tmp_path: Path, encoding: str) -> None:
    name = "é" if encoding == "latin-1" else "細胞"
    voc(tmp_path, {"1": ""}, "1.jpg,a")
    text = f'\n<?xml version="1.0" encoding="{encoding}"?>' + annotation(WBC, (name, "1", "1", "9", "9"))
    (tmp_path / "annotations" / "1.xml").write_bytes(text.strip().encode(encoding))
    assert [c.box for c in find_images(tmp_path).candidates] == [Box(10, 20, 50, 60)]


def test_entities_are_refused_in_plain_words(tmp_path: Path) -> None:
    text = '<!DOCTYPE a [<!ENTITY a "WBC">]>' + annotation(("&a;", *WBC[1:]))
    source = find_images(voc(tmp_path, {"1": text, "2": annotation(WBC)}))
    assert "declares XML entities of its own" in reasons(source)["annotations/1.xml"]


# What vanishes, and what sneaks in


SYSTEM = ("@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", ".thumbnails", "System Volume Information", "@Recycle",
          "~snapshot", "found.000", "#snapshot")  # fmt: skip


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_of_the_system_are_neither_classes_nor_images(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a/1.png", "b/2.png", f"a/{name}/1.png/THUMB.jpg", f"{name}/3.png")
    source = find_images(tmp_path)
    assert found(source) == {("a/1.png", "a"), ("b/2.png", "b")}
    assert set(reasons(source)) == {f"a/{name}", name}


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path, "set/a/1.png", "set/b/2.png", "store/3.png")
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "store")
    (tmp_path / "set" / "b" / "up").symlink_to("..")
    (tmp_path / "set" / "round").symlink_to(".")
    source = find_images(tmp_path / "set")
    assert found(source) == {("a/1.png", "a"), ("a/more/3.png", "a"), ("b/2.png", "b")}
    assert set(reasons(source).values()) == {"a link to a folder that it lies in: not followed"}
    assert set(reasons(source)) >= {"b/up"}


@pytest.mark.parametrize("name", ["x.jfif", "x.JPE", "x.jxl", "x.svs", "x.dib", "x.jpx", "x.dcm"])
def test_pictures_of_other_endings_are_listed(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a/1.png", "b/2.png", f"b/{name}")
    assert reasons(find_images(tmp_path))[f"b/{name}"].startswith(f"files that end in {Path(name).suffix} are not read")


def test_files_that_were_not_fetched_are_listed(tmp_path: Path) -> None:
    for number in range(6):
        smear(tmp_path / "a" / f"{number}.png", number)
        smear(tmp_path / "b" / f"{number}.png", 10 + number)
    (tmp_path / "a" / "annex.png").symlink_to("../.git/annex/objects/xx.png")
    put(tmp_path, "a/dvc.png.dvc", "a/.cloud.png.icloud")
    (tmp_path / "a" / "lfs.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (tmp_path / "a" / "pointer.png").write_text("/annex/objects/SHA256E-s1--00.png\n")
    built = build(find_images(tmp_path))
    assert len(built.images) == 12
    said = {item.path: item.reason for item in built.left_out}
    assert set(said) == {
        f"a/{name}" for name in ("annex.png", "dvc.png.dvc", ".cloud.png.icloud", "lfs.png", "pointer.png")
    }
    assert "git lfs pull" in said["a/lfs.png"]
    assert "git annex get" in said["a/annex.png"]


def test_a_folder_that_cannot_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.images import folders

    put(tmp_path, "a/1.png", "a/p/2.png", "b/3.png")
    scandir = folders.os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "p":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refusing)
    assert reasons(find_images(tmp_path)) == {"a/p": "the folder cannot be read: Permission denied"}


def test_names_compare_whatever_their_unicode_form(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "zellé") for form in ("NFC", "NFD"))
    for number, name in enumerate((apart, composed, composed)):
        put(tmp_path, f"set/{('train', 'val', 'test')[number]}/{name}/{number}.png")
        put(tmp_path, f"set/{('train', 'val', 'test')[number]}/b/{number}.png")
    assert {c.label for c in find_images(tmp_path / "set").candidates} == {composed, "b"}
    put(tmp_path, f"images/{apart}.png")
    source = find_images(put_list(tmp_path / "list.csv", "path,label", f"images/{composed}.png,{apart}"))
    assert [(c.path, c.label) for c in source.candidates] == [(f"images/{apart}.png", composed)]


def test_odd_labels_are_remarked(tmp_path: Path) -> None:
    for number in range(9):
        for name in ("Basophil", "basophil", "a;b"):
            smear(tmp_path / name / f"{number}.png", number + 100 * len(name) + ord(name[0]))
    remarks = build(find_images(tmp_path)).remarks
    assert "the classes 'Basophil' and 'basophil' differ in capital letters only, and are taken as different" in remarks
    of_list = "the label 'a;b' is taken as one class: `label_separator=';'` takes such lists as several labels an image"
    assert of_list in remarks
