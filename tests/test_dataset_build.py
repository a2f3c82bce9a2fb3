"""From what a source names to a manifest: nothing twice, nothing torn, nothing moved, everything left out said."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.core.errors import DatasetError
from featcache.core.files import sha256_file
from featcache.datasets.build import Built, SplitRule, build, split_counts_text
from featcache.datasets.candidates import Candidate, Source
from featcache.datasets.manifest import SPLITS, LabelledImage, read_dataset, write_dataset
from featcache.datasets.sources import find_images
from featcache.images.identity import Box, image_id_of
from featcache.synthetic.drawing import write_image


def picture(path: Path, number: int, size: tuple[int, int] = (4, 6)) -> None:
    """A small image of its own, the same for the same number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8))


def class_folders(folder: Path, **numbers: int) -> Path:
    for place, (label, number) in enumerate(numbers.items()):
        for n in range(number):
            picture(folder / label / f"p{n // 2}-{n}.png", 1000 * place + n)
    return folder


def of(built: Built) -> dict[str, tuple[str, str, str]]:
    return {image.path: (image.label, image.split, image.group) for image in built.images}


def splits_of(built: Built) -> dict[str, str]:
    return {image.path: image.split for image in built.images}


def reasons(built: Built) -> dict[str, str]:
    return {item.path: item.reason for item in built.left_out}


def test_class_folders_become_a_manifest(tmp_path: Path) -> None:
    built = build(find_images(class_folders(tmp_path, a=20, b=9)))
    assert Counter(image.label for image in built.images) == {"a": 20, "b": 9}
    for label in "ab":
        assert {image.split for image in built.images if image.label == label} == set(SPLITS)
    for image in built.images:
        digest = sha256_file(tmp_path / image.path)
        assert (image.image_id, image.group, image.box) == (image_id_of(digest, None), digest[:16], None)
    assert list(built.images) == sorted(built.images, key=lambda i: (SPLITS.index(i.split), i.label, i.path))
    assert not built.left_out
    assert not built.remarks
    write_dataset(tmp_path / "dataset.csv", built.images)
    assert read_dataset(tmp_path / "dataset.csv", tmp_path).images == built.images
    assert sum(int(part.split()[0]) for part in split_counts_text(built.images).split(", ")) == 29


def test_the_names_of_files_decide_no_split(tmp_path: Path) -> None:
    one = build(find_images(class_folders(tmp_path / "one", a=20, b=20)))
    shutil.copytree(tmp_path / "one" / "a", tmp_path / "two" / "deep" / "a")
    shutil.copytree(tmp_path / "one" / "b", tmp_path / "two" / "deep" / "b" / "deeper")
    two = build(find_images(tmp_path / "two"))
    assert {i.image_id: i.split for i in one.images} == {i.image_id: i.split for i in two.images}


def test_files_that_cannot_be_used_are_left_out_with_the_reason(tmp_path: Path) -> None:
    class_folders(tmp_path, a=6, b=6)
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    (tmp_path / "a" / "text.png").write_text("hello")
    (tmp_path / "b" / "half.png").write_bytes((tmp_path / "b" / "p0-0.png").read_bytes()[:60])
    built = build(find_images(tmp_path))
    assert len(built.images) == 12
    assert reasons(built)["a/empty.png"] == "the file is empty"
    assert reasons(built)["a/text.png"] == "the file is no image that can be read"
    assert reasons(built)["b/half.png"].startswith("the file is damaged or truncated")


def test_names_that_dataset_csv_cannot_hold_are_left_out(tmp_path: Path) -> None:
    class_folders(tmp_path, a=6, b=6)
    names = ["back\\slash.png", "line\nend.png"]
    for number, name in enumerate(names):
        picture(tmp_path / "a" / name, 500 + number)
    source = find_images(tmp_path)
    source.candidates.append(Candidate("a/not utf-8 \udcff.png", "a"))
    source.candidates.append(Candidate("../outside.png", "a"))
    built = build(source)
    assert len(built.images) == 12
    assert len(built.left_out) == 4
    assert all(reason.startswith("dataset.csv cannot hold its name") for reason in reasons(built).values())
    for path in reasons(built):
        path.encode()


def test_a_class_without_a_usable_file_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path, a=6)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"no usable image with the label 'b'.*`without='b'`"):
        build(find_images(tmp_path))


def test_nothing_labelled_is_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,label\ngone.png,a\n")
    with pytest.raises(DatasetError, match="no labelled image found") as caught:
        build(find_images(tmp_path / "l.csv"))
    assert caught.value.left_out == (("gone.png", "there is no such file"),)
    (tmp_path / "l.csv").write_text("path,label\n")
    with pytest.raises(DatasetError, match="no labelled image found"):
        build(find_images(tmp_path / "l.csv"))


# Duplicates


def test_the_same_bytes_are_kept_once(tmp_path: Path) -> None:
    class_folders(tmp_path, a=6, b=6)
    shutil.copy(tmp_path / "a" / "p0-0.png", tmp_path / "a" / "zz copy.png")
    built = build(find_images(tmp_path))
    assert len(built.images) == 12
    assert reasons(built) == {"a/zz copy.png": "it has the same bytes as a/p0-0.png"}


def split_folders(folder: Path, *splits: str, each: int = 4) -> Path:
    for place, split in enumerate(splits):
        for label in "ab":
            for n in range(each):
                picture(folder / split / label / f"{n}.png", 100 * place + 10 * n + ord(label) * 1000)
    return folder


@pytest.mark.parametrize(("where", "kept"), [("train", "test/a/0.png"), ("val", "test/a/0.png")])
def test_the_copy_in_the_test_split_is_the_one_kept(tmp_path: Path, where: str, kept: str) -> None:
    split_folders(tmp_path, "train", "val", "test")
    shutil.copy(tmp_path / kept, tmp_path / where / "a" / "copy.png")
    built = build(find_images(tmp_path))
    assert splits_of(built)[kept] == "test"
    reason = "it has the same bytes as test/a/0.png, where it is kept so that no test image is trained on"
    assert reasons(built) == {f"{where}/a/copy.png": reason}


def test_the_same_bytes_under_two_labels_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path, a=6, b=6, c=6)
    shutil.copy(tmp_path / "a" / "p0-0.png", tmp_path / "b" / "copy.png")
    with pytest.raises(DatasetError, match=r"a/p0-0\.png \(a\) and b/copy\.png \(b\)"):
        build(find_images(tmp_path))
    assert len(build(find_images(tmp_path), without=["b"]).images) == 12


def test_two_boxes_of_one_file_are_two_images_of_one_group(tmp_path: Path) -> None:
    lines = ["path,label,x_min,y_min,x_max,y_max"]
    for n in range(8):
        picture(tmp_path / f"{n}.png", n)
        lines += [f"{n}.png,a,0,0,3,2", f"{n}.png,b,3,2,9,9", f"{n}.png,b,3,2,6,4"]
    lines += ["0.png,a,6,0,9,9"]
    (tmp_path / "l.csv").write_text("\n".join(lines) + "\n")
    built = build(find_images(tmp_path / "l.csv"))
    assert len(built.images) == 16
    assert {image.box for image in built.images} == {Box(0, 0, 3, 2), Box(3, 2, 6, 4)}  # cut at the border
    assert len({image.group for image in built.images}) == 8
    by_group = {(image.group, image.split) for image in built.images}
    assert len(by_group) == 8
    said = [item.reason for item in built.left_out]
    assert sum("lies outside of the image (6x4 px)" in reason for reason in said) == 1
    assert sum("same bytes" in reason for reason in said) == 8


# Groups


def grouped_list(folder: Path, splits: bool) -> Source:
    lines = ["path,label,patient" + (",split" if splits else "")]
    for n in range(36):
        picture(folder / f"{n}.png", n)
        lines.append(f"{n}.png,{'ab'[n % 2]},patient {n // 3}" + (f",{SPLITS[n % 3]}" if splits else ""))
    (folder / "l.csv").write_text("\n".join(lines) + "\n")
    return find_images(folder / "l.csv")


def test_groups_of_a_list_are_never_torn(tmp_path: Path) -> None:
    built = build(grouped_list(tmp_path, splits=False))
    assert len(built.images) == 36
    assert len({(image.group, image.split) for image in built.images}) == 12


def test_groups_that_the_source_tears_are_refused(tmp_path: Path) -> None:
    source = grouped_list(tmp_path, splits=True)
    with pytest.raises(
        DatasetError, match=r"12 groups stand in several splits \('patient 0' in test and train and val"
    ):
        build(source)
    assert len(build(source, SplitRule(resplit=True)).images) == 36


@pytest.mark.parametrize(("pattern", "group"), [(r"/(p\d+)-", "p3"), (r"p\d+", "p3"), (r"(?<=/)(p\d+)-(\d+)", "p3")])
def test_a_pattern_finds_the_groups_in_the_paths(tmp_path: Path, pattern: str, group: str) -> None:
    built = build(find_images(class_folders(tmp_path, a=20, b=20)), SplitRule(group_pattern=pattern))
    assert of(built)["a/p3-6.png"][2] == of(built)["a/p3-7.png"][2] == of(built)["b/p3-7.png"][2] == group
    assert len({(image.group, image.split) for image in built.images}) == 10


@pytest.mark.parametrize("pattern", [r"q\d", r"(q)?", r"x*", r"p\d+|(y)"])
def test_a_pattern_that_finds_nothing_is_refused(tmp_path: Path, pattern: str) -> None:
    source = find_images(class_folders(tmp_path, a=6, b=6))
    with pytest.raises(DatasetError, match=r"a/p0-0\.png: the group pattern .* finds nothing"):
        build(source, SplitRule(group_pattern=pattern))


# Labels and classes


def test_labels_can_be_left_out(tmp_path: Path) -> None:
    source = find_images(class_folders(tmp_path, a=6, b=6, c=6))
    assert {image.label for image in build(source, without=["c"]).images} == {"a", "b"}
    with pytest.raises(DatasetError, match="no image has the label d, e to leave out"):
        build(source, without=["e", "a", "d"])
    with pytest.raises(DatasetError, match="at least two classes are needed"):
        build(source, without=["a", "b"])


@pytest.mark.parametrize("number", [1, 2])
def test_a_class_of_one_or_two_images_is_left_out_with_a_remark(tmp_path: Path, number: int) -> None:
    built = build(find_images(class_folders(tmp_path, a=6, b=6, few=number)))
    assert {image.label for image in built.images} == {"a", "b"}
    assert len(built.left_out) == number
    assert built.left_out[0].reason == "its class 'few' is too small to be in train, val and test"
    (remark,) = built.remarks
    assert remark.startswith(f"class 'few' is left out: it has {number} image")


def test_a_class_of_one_group_is_left_out_however_many_images_it_has(tmp_path: Path) -> None:
    lines = ["path,label,group"]
    for n in range(30):
        picture(tmp_path / f"{n}.png", n)
        lines.append(f"{n}.png,{'abc'[n % 3]},{'one' if n % 3 == 2 else n}")
    (tmp_path / "l.csv").write_text("\n".join(lines) + "\n")
    built = build(find_images(tmp_path / "l.csv"))
    assert {image.label for image in built.images} == {"a", "b"}


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="all images have the label 'a': at least two classes are needed"):
        build(find_images(class_folders(tmp_path, a=9)))


def test_only_small_classes_are_refused_with_their_numbers(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no class can be used: class 'a' .* 2 images .*; class 'b' .* 1 image "):
        build(find_images(class_folders(tmp_path, a=2, b=1)))


# Splits of the source


def test_splits_of_the_source_are_kept(tmp_path: Path) -> None:
    built = build(find_images(split_folders(tmp_path, "train", "val", "test")))
    assert all(image.path.startswith(image.split) for image in built.images)
    fresh = build(find_images(tmp_path), SplitRule(resplit=True))
    assert any(not image.path.startswith(image.split) for image in fresh.images)


def test_train_and_test_only_take_val_from_train(tmp_path: Path) -> None:
    built = build(find_images(split_folders(tmp_path, "train", "test", each=20)))
    places = Counter((image.path.split("/")[0], image.split, image.label) for image in built.images)
    assert all(places["test", "test", label] == 20 for label in "ab")
    assert {key[:2] for key in places} == {("test", "test"), ("train", "train"), ("train", "val")}
    assert all(1 <= places["train", "val", label] <= 10 for label in "ab")
    (remark,) = built.remarks
    moved = sum(places["train", "val", label] for label in "ab")
    assert remark == f"no val split was given: {moved} of the train images were taken for it, by hash"


def test_a_val_split_taken_from_train_stays_when_images_are_added(tmp_path: Path) -> None:
    before = build(find_images(split_folders(tmp_path, "train", "test", each=5)))
    for n in range(40):
        picture(tmp_path / "train" / "ab"[n % 2] / f"new{n}.png", 7000 + n)
    after = build(find_images(tmp_path), kept=before.images)
    assert splits_of(before).items() <= splits_of(after).items()


@pytest.mark.parametrize(("present", "absent"), [(("train", "val"), "test"), (("val", "test"), "train")])
def test_a_missing_split_is_refused_with_what_to_do(tmp_path: Path, present: tuple[str, ...], absent: str) -> None:
    source = find_images(split_folders(tmp_path, *present))
    with pytest.raises(DatasetError, match=f"the split '{absent}' has no images.*`resplit=True` makes"):
        build(source)
    assert {image.split for image in build(source, SplitRule(resplit=True)).images} == set(SPLITS)


def test_a_class_that_is_not_in_the_test_split_is_refused(tmp_path: Path) -> None:
    split_folders(tmp_path, "train", "val", "test")
    shutil.rmtree(tmp_path / "test" / "b")
    with pytest.raises(DatasetError, match="the split 'test' has no images of b"):
        build(find_images(tmp_path))


def test_a_list_with_some_splits_gets_the_others(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for n in range(60):
        picture(tmp_path / f"{n}.png", n)
        lines.append(f"{n}.png,{'ab'[n % 2]},{'test' if n < 10 else ''}")
    (tmp_path / "l.csv").write_text("\n".join(lines) + "\n")
    built = build(find_images(tmp_path / "l.csv"))
    assert all(splits_of(built)[f"{n}.png"] == "test" for n in range(10))
    assert {image.split for image in built.images} == set(SPLITS)


def test_fixed_counts(tmp_path: Path) -> None:
    rule = SplitRule(counts={"train": 8, "val": 2, "test": 2})
    built = build(find_images(class_folders(tmp_path, a=15, b=12)), rule)
    assert Counter((i.label, i.split) for i in built.images) == {
        (label, split): number for label in "ab" for split, number in (("train", 8), ("val", 2), ("test", 2))
    }
    assert set(reasons(built).values()) == {"it is beyond the number of images asked for a class"}
    assert len(built.left_out) == 3
    with pytest.raises(DatasetError, match=r"b: 3 of 11 missing in train"):
        build(find_images(tmp_path), SplitRule(counts={"train": 11, "val": 2, "test": 2}))


# Built again


@pytest.mark.parametrize("counts", [None, {"train": 8, "val": 2, "test": 2}], ids=["by hash", "by counts"])
def test_known_images_keep_split_and_group(tmp_path: Path, counts: dict[str, int] | None) -> None:
    rule = SplitRule(counts=counts)
    class_folders(tmp_path, a=12, b=12)
    first = build(find_images(tmp_path), rule)
    kept = [replace(image, group=f"hand {image.path}") for image in first.images]
    old = {image.path: (image.split, image.group) for image in kept}
    for n in range(40):  # added
        picture(tmp_path / "ab"[n % 2] / f"0 new {n}.png", 5000 + n)
    (tmp_path / "a" / "p0-0.png").rename(tmp_path / "a" / "renamed.png")
    old["a/renamed.png"] = old.pop("a/p0-0.png")
    picture(tmp_path / "b" / "p1-3.png", 9999)  # edited
    after = build(find_images(tmp_path), rule, kept=kept)
    found = {image.path: (image.split, image.group) for image in after.images}
    assert {path: found[path] for path in old} == old
    assert len(after.images) == (64 if counts is None else 24)


def test_known_images_without_a_group_get_their_own(tmp_path: Path) -> None:
    """A dataset.csv written by hand may have no groups: that does not make all its images one group."""
    first = build(find_images(class_folders(tmp_path, a=9, b=9)))
    again = build(find_images(tmp_path), kept=[replace(image, group="") for image in first.images])
    assert again.images == first.images


def test_splits_of_the_source_win_over_known_ones(tmp_path: Path) -> None:
    first = build(find_images(split_folders(tmp_path, "train", "val", "test")))
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "test" / "a" / "moved.png")
    again = build(find_images(tmp_path), kept=first.images)
    assert splits_of(again)["test/a/moved.png"] == "test"


def test_a_new_image_of_a_known_group_joins_it(tmp_path: Path) -> None:
    class_folders(tmp_path, a=20, b=20)
    rule = SplitRule(group_pattern=r"/(p\d+)-")
    first = build(find_images(tmp_path), rule)
    for n in range(10):
        picture(tmp_path / "a" / f"p{n}-late.png", 8000 + n)
    again = build(find_images(tmp_path), rule, kept=first.images)
    assert len({(image.group, image.split) for image in again.images}) == 10
    assert splits_of(first).items() <= splits_of(again).items()


def test_the_order_of_the_candidates_changes_nothing(tmp_path: Path) -> None:
    source = find_images(class_folders(tmp_path, a=9, b=9))
    shutil.copy(tmp_path / "a" / "p0-0.png", tmp_path / "a" / "copy.png")
    source = find_images(tmp_path)
    turned = replace(source, candidates=source.candidates[::-1])
    assert build(turned).images == build(source).images


def test_every_file_is_counted_for_the_progress_bar(tmp_path: Path) -> None:
    read: list[LabelledImage | None] = []
    build(find_images(class_folders(tmp_path, a=6, b=6)), on_file=lambda: read.append(None))
    assert len(read) == 12
