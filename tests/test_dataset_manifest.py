"""dataset.csv: what is written is what is read, and what nobody can use is refused by file and line."""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from featcache.core.errors import DatasetError
from featcache.datasets.manifest import (
    SPLITS,
    Dataset,
    LabelledImage,
    check,
    in_order,
    parse_box,
    read_csv,
    read_dataset,
    safe_relative,
    write_dataset,
)
from featcache.images.identity import Box, image_id_of

HEAD = "path,label,split\n"
BOXES = "path,label,split,x_min,y_min,x_max,y_max\n"


def image(path: str = "a.png", label: str = "x", split: str = "train", group: str = "", **more: Any) -> LabelledImage:
    return LabelledImage(path, label, split, group or path, more.pop("image_id", path), **more)


# A control character, a line end or a space at either end is no part of a cell.
cells = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs"), include_characters=" ,\"';|"),
    min_size=1,
    max_size=12,
).filter(lambda text: text == text.strip())
paths = st.lists(
    cells.map(lambda text: text.replace("/", "_").replace("\\", "_").replace(":", "_")).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=3,
).map("/".join)
boxes = st.builds(lambda x, y, w, h: Box(x, y, x + w, y + h), *[st.integers(0, 5000)] * 2, *[st.integers(1, 5000)] * 2)
images_lists = st.lists(
    st.builds(
        LabelledImage,
        paths,
        cells,
        st.sampled_from(SPLITS),
        cells | st.just(""),
        cells | st.just(""),
        st.none() | boxes,
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda item: (item.path, item.box),
)
in_folder = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@in_folder
@given(images=images_lists)
def test_what_is_written_is_read(tmp_path: Path, images: list[LabelledImage]) -> None:
    file = tmp_path / "dataset.csv"
    write_dataset(file, images)
    dataset = read_dataset(file, tmp_path)
    assert dataset.images == tuple(images)
    assert dataset.digest == Dataset(tuple(images), Path("elsewhere")).digest


def test_box_columns_are_written_only_where_there_is_a_box(tmp_path: Path) -> None:
    file = tmp_path / "dataset.csv"
    write_dataset(file, [image("ä, b/1.png", 'say "x"')])
    assert file.read_bytes().decode() == (
        'path,label,split,group,image_id\n"ä, b/1.png","say ""x""",train,"ä, b/1.png","ä, b/1.png"\n'
    )
    write_dataset(file, [image("a.png"), image("b.png", box=Box(0, 1, 2, 3))])
    assert file.read_text().splitlines()[1:] == ["a.png,x,train,a.png,,,,,a.png", "b.png,x,train,b.png,0,1,2,3,b.png"]


@given(images=images_lists, rng=st.randoms())
def test_digest_takes_lines_in_any_order(images: list[LabelledImage], rng: random.Random) -> None:
    shuffled = list(images)
    rng.shuffle(shuffled)
    assert Dataset(tuple(images), Path()).digest == Dataset(tuple(shuffled), Path()).digest
    assert in_order(images) == in_order(shuffled)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "b.png"},
        {"label": "y"},
        {"split": "val"},
        {"group": "h"},
        {"image_id": "j"},
        {"box": None},
        {"box": Box(1, 2, 3, 5)},
        {"box": Box(0, 2, 3, 4)},
    ],
)
def test_digest_changes_with_any_cell(change: dict[str, Any]) -> None:
    one = image("a.png", "x", "train", "g", box=Box(1, 2, 3, 4))
    rest = (image("c.png"), image("d.png"))
    assert Dataset((one, *rest), Path()).digest != Dataset((replace(one, **change), *rest), Path()).digest


def test_digest_changes_when_a_line_goes_or_comes_twice() -> None:
    one, two = image("a.png"), image("b.png")
    assert len({Dataset(some, Path()).digest for some in ((one,), (one, two), (one, two, two))}) == 3


def test_digest_of_a_whole_image_beside_a_box_of_it() -> None:
    whole = image("a.png", group="g", image_id="i")
    boxed = replace(whole, box=Box(0, 0, 1, 1))
    assert Dataset((whole, boxed), Path()).digest == Dataset((boxed, whole), Path()).digest


def test_counts_and_classes() -> None:
    dataset = Dataset((image("a", "y"), image("b", "x", "test"), image("c", "y")), Path())
    assert dataset.classes == ("x", "y")
    assert dataset.counts() == {"x": {"train": 0, "val": 0, "test": 1}, "y": {"train": 2, "val": 0, "test": 0}}


def test_image_id_tells_boxes_apart() -> None:
    ids = {image_id_of("ab", box) for box in (None, Box(0, 0, 1, 1), Box(0, 0, 1, 2))} | {image_id_of("ac", None)}
    assert len(ids) == 4
    assert image_id_of("ab", None) == "ab"


# Lists from outside


def read(tmp_path: Path, content: str | bytes) -> Dataset:
    file = tmp_path / "dataset.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_dataset(file, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        HEAD + "a.png,x,train\n",
        "\ufeff" + HEAD + "a.png,x,train\n",
        (HEAD + "a.png,x,train\n").replace("\n", "\r\n"),
        (HEAD + "a.png,x,train").replace("\n", "\r"),
        "split, label , path\ntrain, x, a.png\n",
        "path,label,split,group,note,\na.png,x,train,,,\n",
        "path,label,split,group,x_min,y_min,x_max,y_max,image_id\na.png,x,train\n",
        "\n\n" + HEAD + "\n,,\n./a.png,x,train\n\n",
    ],
    ids=["plain", "bom", "crlf", "cr", "columns", "trailing comma", "short lines", "blank lines"],
)
def test_read_dataset_takes_what_people_write(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content).images == (LabelledImage("a.png", "x", "train", "", ""),)


def test_read_dataset_keeps_words_that_look_like_nothing(tmp_path: Path) -> None:
    dataset = read(tmp_path, "path,label,split,group\nNA.png,nan,train,null\nb.png,None,val,007\n")
    assert [(i.path, i.label, i.group) for i in dataset.images] == [("NA.png", "nan", "null"), ("b.png", "None", "007")]


OUTSIDE = [
    "../a.png",
    "b/../../a.png",
    "b\\..\\a.png",
    "/etc/a.png",
    "C:\\a.png",
    "c:a.png",
    "\\\\server\\share\\a.png",
    "//server/a.png",
    ".",
    "./",
    "",
    "nul\0.png",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_read_dataset_refuses_paths_that_leave_the_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.csv, line 3: path"):
        read(tmp_path, HEAD + f"a.png,x,train\n{path},x,train\n")
    with pytest.raises(DatasetError):
        safe_relative(path, "here")


@pytest.mark.parametrize("path", ["a/b.png", "12:30/a.png", "a..b/..c.png", "Ä ö/ß.png", "C/a.png", "aa:b.png"])
def test_safe_relative_keeps_harmless_paths(path: str) -> None:
    assert safe_relative(path, "") == path


@pytest.mark.parametrize("length", [10_000, 200_000])
def test_read_dataset_takes_cells_of_any_length(tmp_path: Path, length: int) -> None:
    """Also beyond the 131,072 characters at which Python's csv ends by default."""
    assert len(read(tmp_path, HEAD + "a" * length + ",x,train\n").images[0].path) == length


BAD_BOXES = [
    "nan,0,1,1",
    "0,0,inf,1",
    "1e400,0,1,1",
    "0,0,1e300,1e300",
    "0,0,99999999999999999999,5",
    "-1,0,1,1",
    "5,0,5,1",
    "0,5,1,2",
    ",,1,1",
    "0,0,1,",
    "0x1,0,9,9",
    "a,b,c,d",
    '"1,5",0,3,3',
]


@pytest.mark.parametrize("box", BAD_BOXES)
def test_read_dataset_refuses_boxes_that_are_none(tmp_path: Path, box: str) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.csv, line 3: box .*four whole numbers"):
        read(tmp_path, BOXES + f"a.png,x,train,,,,\nb.png,x,train,{box}\n")


def test_parse_box_takes_numbers_with_a_fraction() -> None:
    found = parse_box({"x_min": "0.4", "y_min": "1.0", "x_max": " 2.6 ", "y_max": "1e1"}, "")
    assert found == Box(0, 1, 3, 10)
    assert parse_box({}, "") is None
    assert parse_box({"x_min": " ", "y_max": ""}, "") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (HEAD, "no images are listed"),
        ("path,split\na,train\n", "no column label; found path, split"),
        ("path|label|split\na|x|train\n", "no column label, path, split; found path|label|split"),
        (HEAD + "a.png,x,Train\n", "line 2: split 'Train'"),
        (HEAD + "a.png,x,holdout\n", "line 2: split 'holdout'"),
        (HEAD + "a.png,x,train\n./a.png,y,val\n", "line 3: a.png is listed twice"),
        (BOXES + "a.png,x,train,0,0,1,1\na.png,y,val,0,0,1,1\n", "line 3: a.png is listed twice"),
        (HEAD + "a.png,x,train,9\n", "line 2: 4 cells for 3 columns"),
        ("path,label,split,path\na,x,train,b\n", "line 1: two columns are named 'path'"),
        (HEAD + '"a\nb.png",x,train\n\nc.png,x,nope\n', "line 5: split 'nope'"),
        (HEAD + 'b.png,x,train\n"a.png,x,train\nc.png,x,val\n', "line 3: cannot be read as CSV"),
        ((HEAD + "b.png,x,train\nä.png,x,train\n").encode("latin-1"), "line 3: is not UTF-8"),
        ((HEAD + "ä.png,x,train\n").encode("utf-16"), "line 1: is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "line 1: is not UTF-8"),
    ],
)
def test_read_dataset_says_what_is_wrong_and_where(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, content)
    assert message in str(caught.value)
    assert str(tmp_path / "dataset.csv") in str(caught.value)


def test_read_csv_of_no_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no such file. `featcache.init\(into="):
        read_csv(tmp_path / "dataset.csv")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_csv(tmp_path)


@in_folder
@given(
    content=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: (BOXES + text).encode("utf-8", "replace"))
)
def test_read_dataset_of_anything_is_a_dataset_or_a_dataset_error(tmp_path: Path, content: bytes) -> None:
    try:
        dataset = read(tmp_path, content)
    except DatasetError as error:
        assert "dataset.csv" in str(error)
    else:
        assert dataset.images
        assert len(dataset.digest) == 64


@pytest.mark.parametrize("sides", [(-1, 0, 1, 1), (0, 0, 0, 1), (3, 0, 2, 1), (0, 5, 1, 5)])
def test_box_refuses_what_holds_no_pixel(sides: tuple[int, int, int, int]) -> None:
    with pytest.raises(DatasetError, match="expected 0 <= x_min < x_max"):
        Box(*sides)


# What no honest training can use


def spread(labels: str = "xy", splits: tuple[str, ...] = SPLITS) -> list[LabelledImage]:
    return [image(f"{label}{split}.png", label, split) for label in labels for split in splits]


def test_check_takes_a_good_set() -> None:
    check(spread(), "here")


@pytest.mark.parametrize(
    ("images", "messages"),
    [
        ([], ["no usable image"]),
        (spread("x"), ["all images have the label 'x'", "at least two classes"]),
        (spread(splits=("train", "val")), ["the split 'test' has no images", "resplit=True"]),
        (spread()[:-1], ["the split 'test' has no images of y", "resplit=True"]),
        (
            [*spread(), image("one", "x", "train", "gü"), image("two", "x", "test", "gü")],
            ["1 groups stand in several splits ('gü' in test and train)", "resplit=True"],
        ),
    ],
)
def test_check_says_what_is_wrong_and_what_to_do(images: list[LabelledImage], messages: list[str]) -> None:
    with pytest.raises(DatasetError, match=r"^here: ") as caught:
        check(images, "here")
    assert all(message in str(caught.value) for message in messages)


def test_check_does_not_offer_new_splits_where_they_do_not_help() -> None:
    with pytest.raises(DatasetError) as caught:
        check(spread("x", ("train",)), "here")
    assert "resplit" not in str(caught.value)


def test_labels_that_look_like_formulas_or_like_nothing_survive(tmp_path: Path) -> None:
    texts = ["=cmd|'/c calc'!A1", "'=x", "''-x", "-1", "@a", "+1", "'", "nan", "None", "NA", "1", "NULL"]
    written = [image(path=f"{text.replace('/', '_')}.png", label=text, group=text) for text in texts]
    write_dataset(tmp_path / "dataset.csv", written)
    assert list(read_dataset(tmp_path / "dataset.csv", tmp_path).images) == written
    with (tmp_path / "dataset.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for line in csv.reader(file) for cell in line[:4]]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


def test_a_list_by_hand_may_hold_labels_that_begin_like_formulas(tmp_path: Path) -> None:
    (tmp_path / "dataset.csv").write_text(HEAD + "a.png,-1,train\nb.png,+1,val\n")
    found = read_dataset(tmp_path / "dataset.csv", tmp_path)
    assert [one.label for one in found.images] == ["-1", "+1"]
