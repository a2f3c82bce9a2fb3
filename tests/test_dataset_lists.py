"""Lists as spreadsheets, ImageJ, RetinaNet and laboratory systems write them: no box column is ignored in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_dataset_sources import found, put, put_list, reasons

from featcache.core.errors import DatasetError
from featcache.core.project import DatasetSection
from featcache.datasets.csv_files import read_csv
from featcache.datasets.sources import find_images
from featcache.images.identity import Box

BOX = Box(10, 30, 40, 70)


@pytest.mark.parametrize(
    ("columns", "cells"),
    [
        ("BX,BY,Width,Height", "10,30,30,40"),
        ("x,y,w,h", "10,30,30,40"),
        ("bbox_x,bbox_y,bbox_width,bbox_height", "10,30,30,40"),
        ("left,top,width,height", "10,30,30,40"),
        ("x_min,y_min,x_max,y_max", "10,30,40,70"),
        ("xmin,xmax,ymin,ymax", "10,40,30,70"),
        ("x1,y1,x2,y2", "10,30,40,70"),
        ("X0,Y0,X1,Y1", "10,30,40,70"),
        ("Left,Top,Right,Bottom", "10.2,29.8,40,70"),
    ],
)
def test_boxes_are_read_whatever_their_columns_are_called(tmp_path: Path, columns: str, cells: str) -> None:
    put(tmp_path, "1.png")
    source = find_images(put_list(tmp_path / "l.csv", f"path,label,{columns}", f"1.png,a,{cells}"))
    assert [c.box for c in source.candidates] == [BOX]


@pytest.mark.parametrize(
    "columns", ["x,y", "bbox", "x_center,y_center,width,height", "xmin,ymin", "BX,BY", "polygon", "x1,y1,x2", "roi"]
)
def test_columns_that_look_like_a_box_and_are_none_are_not_ignored(tmp_path: Path, columns: str) -> None:
    put(tmp_path, "1.png")
    path = put_list(tmp_path / "l.csv", f"path,label,{columns}", "1.png,a" + ",5" * (columns.count(",") + 1))
    with pytest.raises(DatasetError, match=r"look like a part of a box.*`box_columns="):
        find_images(path)
    assert [c.box for c in find_images(path, DatasetSection(box_columns=("none",))).candidates] == [None]


def test_columns_can_be_named(tmp_path: Path) -> None:
    put(tmp_path, "1.png")
    path = put_list(tmp_path / "l.csv", "path,scan,kind,a,b,c,d,who,part", "gone,1.png,z,10,30,40,70,p1,test")
    named = {"path_column": "scan", "label_column": "Kind", "group_column": "who", "split_column": "part"}
    source = find_images(path, DatasetSection(**named, box_columns=("a", "b", "c", "d")))
    assert found(source) == {("1.png", "z", "test", "p1")}
    assert source.candidates[0].box == BOX
    wide = DatasetSection(**named, box_columns=("a", "b", "width", "d"))
    with pytest.raises(DatasetError, match=r"no column 'width' \(`box_columns`\); found path, scan, kind"):
        find_images(path, wide)


def test_names_without_endings_and_with_others_find_their_images(tmp_path: Path) -> None:
    put(tmp_path, "images/c0.png", "images/c1.PNG", "part_1/c2.png", "images/c3.jpg", "images/c3.png")
    lines = ("L0,images/c0,a,60", "L0,c1.png,b,60", "L1,c2,a,60", "L1,c3,a,60")
    source = find_images(put_list(tmp_path / "ham.csv", "lesion_id,image_id,dx,age", *lines))
    assert found(source) == {
        ("images/c0.png", "a", "L0"), ("images/c1.PNG", "b", "L0"), ("part_1/c2.png", "a", "L1")
    }  # fmt: skip
    assert "it may be any of several files" in reasons(source)["c3"]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\npath;label\r\n1.png;a\r\n",
        "# exported by LIMS, 2024\n\npath,label\n1.png,a\n",
        "1.png,a\n",
        "path,label,thumb\n1.png,a," + "A" * 200_000 + "\n",
        "\ufeffpath\tlabel\n1.png\ta\n",
    ],
    ids=["sep", "comment", "headerless", "long cell", "tab"],
)
def test_lists_are_read_as_they_are_exported(tmp_path: Path, text: str) -> None:
    put(tmp_path, "1.png")
    (tmp_path / "l.csv").write_text(text, "utf-8", newline="")
    assert found(find_images(tmp_path / "l.csv")) == {("1.png", "a")}


def test_a_list_of_retinanet_has_no_header(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    source = find_images(put_list(tmp_path / "l.csv", "1.png,10,30,40,70,a", "2.png,,,,,"))
    assert [(c.path, c.label, c.box) for c in source.candidates] == [("1.png", "a", BOX), ("2.png", "", None)]
    with pytest.raises(DatasetError, match="expected a column path"):
        find_images(put_list(tmp_path / "l.csv", "1.png,5,a,b"))


def test_lines_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    path = put_list(tmp_path / "l.csv", "sep=,", "# a comment", "", "path,label,split", "", "1.png,a,never")
    put(tmp_path, "1.png")
    with pytest.raises(DatasetError, match=r"l\.csv, line 6: split 'never'"):
        find_images(path)


def test_a_column_of_fold_numbers_makes_no_splits_and_that_is_said(tmp_path: Path) -> None:
    put(tmp_path, *(f"{n}.png" for n in range(5)))
    source = find_images(put_list(tmp_path / "l.csv", "path,label,fold", *(f"{n}.png,a,{n}" for n in range(5))))
    assert {c.split for c in source.candidates} == {""}
    assert source.remarks == ["the column fold holds numbers and not train, val and test: it makes no splits"]
    path = put_list(tmp_path / "l.csv", "path,label,split", "1.png,a,0")
    with pytest.raises(DatasetError, match="Set `split_column='none'` to ignore the splits of the list"):
        find_images(path)
    assert len(find_images(path, DatasetSection(split_column="none")).candidates) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PK\x03\x04 xl/workbook.xml", "an Excel workbook: save the sheet as 'CSV UTF-8'"),
        (b"PK\x03\x04 cells/1.png", "a zip archive: unpack it"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Excel workbook"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b'{"images": []}', "a JSON file"),
        (b"<annotation/>", "an XML or HTML file"),
        (b"PAR1\x15", "a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "only a pointer"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "l.csv").write_bytes(data)
    with pytest.raises(DatasetError, match=said):
        read_csv(tmp_path / "l.csv")
