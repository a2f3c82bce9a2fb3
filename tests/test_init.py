"""init and what follows it: a folder becomes a project, again and again, and nothing is half done."""

from __future__ import annotations

import io
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from watching import Watching

from featcache.core.errors import DatasetError, FeatcacheError, ProjectError
from featcache.core.project import DATASET_FILE, PROJECT_FILE, find_project, read_settings
from featcache.datasets._init import GENERATED_FOLDER, Initialised, init
from featcache.datasets._preview import preview
from featcache.datasets.current import current_dataset
from featcache.datasets.manifest import SPLITS, read_dataset
from featcache.datasets.options import InitOptions
from featcache.images.decode import decode
from featcache.images.identity import Box
from featcache.synthetic.drawing import CLASSES, write_image, write_smears


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(number).integers(0, 256, (8, 9, 3), dtype=np.uint8))


def class_folders(folder: Path, number: int = 12, labels: str = "ab") -> Path:
    for place, label in enumerate(labels):
        for n in range(number):
            picture(folder / label / f"s{n // 2}-{n}.png", 1000 * place + n)
    return folder


def splits(done: Initialised) -> dict[str, str]:
    return {image.path: image.split for image in done.dataset.images}


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the scan's memory, which may stay."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".images.csv")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_init_writes_what_later_commands_read(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    done = init(tmp_path / "images", tmp_path / "project")
    project = find_project(tmp_path / "project")
    assert project.settings == done.project.settings
    assert (project.settings.dataset.source, project.settings.dataset.images) == ("../images", "../images")
    listed = read_dataset(project.dataset_file, project.images)
    assert listed.images == done.dataset.images
    assert listed.digest == done.dataset.digest
    assert all((listed.folder / image.path).is_file() for image in listed.images)
    assert current_dataset(project) == (listed, [])
    assert (done.layout, list(done.left_out)) == ("class-folders", [])
    assert list(done.remarks) == ["24 of 24 images are not square: they keep their shape, padded (`resize='pad'`)"]
    assert (project.settings.views.resize, project.settings.views.as_trained) == ("pad", True)
    assert set(files(tmp_path / "project")) == {PROJECT_FILE, DATASET_FILE}
    assert str(tmp_path) not in (tmp_path / "project" / PROJECT_FILE).read_text()


def test_init_inside_the_image_folder_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "images" / "wrapped")
    (tmp_path / "images" / "cache").mkdir()
    monkeypatch.chdir(tmp_path / "images")
    first = init(Path(), Path())
    picture(Path("results/run/curves.png"), 1)
    picture(Path("cache/x/y/1.png"), 2)
    preview(find_project(Path()))
    before = files(tmp_path)
    for place, into in ((Path(), Path()), (None, Path()), (tmp_path / "images", Path()), (None, tmp_path / "images")):
        again = init(place, into)
        assert again.dataset.images == first.dataset.images
        assert not again.left_out
        assert again.layout == "class-folders"
    assert files(tmp_path) == before


def test_init_after_a_failed_one_in_the_same_folder(tmp_path: Path) -> None:
    """The first one leaves its memory of the scan in cache/, which is no class folder."""
    class_folders(tmp_path)
    shutil.copy(tmp_path / "a" / "s0-0.png", tmp_path / "b" / "copy.png")
    before = files(tmp_path)
    with pytest.raises(DatasetError, match="same bytes under different labels"):
        init(tmp_path, tmp_path)
    assert files(tmp_path) == before
    (tmp_path / "b" / "copy.png").unlink()
    assert len(init(tmp_path, tmp_path).dataset.images) == 24


@pytest.mark.parametrize("asked", [{}, {"split_counts": (6, 3, 3)}, {"group_pattern": r"/(s\d+)-", "split_seed": 3}])
def test_init_again_after_adding_images_moves_no_split(tmp_path: Path, asked: dict[str, Any]) -> None:
    class_folders(tmp_path / "images")
    first = init(tmp_path / "images", tmp_path, options=InitOptions(dataset=asked))
    for n in range(30):
        picture(tmp_path / "images" / "ab"[n % 2] / f"s{n % 9}-new{n}.png", 4000 + n)
    again = init(None, tmp_path)
    assert splits(first).items() <= splits(again).items()
    assert again.project.settings == first.project.settings
    groups = {(image.group, image.split) for image in again.dataset.images}
    assert len({group for group, _ in groups}) == len(groups)
    assert len(again.dataset.images) == (24 if "split_counts" in asked else 54)


def test_init_again_keeps_settings_but_those_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    init(tmp_path / "images", tmp_path, options=InitOptions(views={"train": 9}, augmentation={"seed": 5}))
    done = init(None, tmp_path, options=InitOptions(views={"val": 3}))
    settings = done.project.settings
    assert (settings.views.train, settings.views.val, settings.augmentation.seed) == (9, 3, 5)
    assert read_settings(tmp_path / PROJECT_FILE) == settings


def test_init_keeps_settings_where_dataset_csv_was_deleted_to_start_over(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    init(tmp_path / "images", tmp_path, options=InitOptions(views={"train": 9}))
    (tmp_path / DATASET_FILE).unlink()
    done = init(None, tmp_path)
    assert done.project.settings.views.train == 9
    assert len(done.dataset.images) == 24


def test_init_makes_new_splits_only_when_asked(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 40)
    first = init(tmp_path / "images", tmp_path)
    assert splits(init(None, tmp_path, options=InitOptions(dataset={"split_seed": 7}))) == splits(first)
    assert splits(init(None, tmp_path, options=InitOptions(resplit=True))) != splits(first)


def test_a_new_group_pattern_is_not_ignored(tmp_path: Path) -> None:
    """Images split one by one tear the groups that a pattern finds later: said, and mended by --resplit."""
    class_folders(tmp_path / "images", 40)
    init(tmp_path / "images", tmp_path)
    before = files(tmp_path)
    pattern = {"group_pattern": r"/(s\d+)-"}
    with pytest.raises(DatasetError, match=r"groups stand in several splits.*resplit=True"):
        init(None, tmp_path, options=InitOptions(dataset=pattern))
    assert files(tmp_path) == before
    done = init(None, tmp_path, options=InitOptions(dataset=pattern, resplit=True))
    assert len({(image.group, image.split) for image in done.dataset.images}) == 20


def one_of_train(file: Path) -> str:
    """An image of class a that its split can do without."""
    return next(line.split(",")[0] for line in file.read_text().splitlines() if ",a,train," in line)


def test_labels_edited_by_hand_are_not_overwritten_unasked(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    init(tmp_path / "images", tmp_path)
    file = tmp_path / DATASET_FILE
    name = one_of_train(file)
    file.write_text(file.read_text().replace(f"{name},a,", f"{name},b,"))
    before = files(tmp_path)
    done = init(None, tmp_path)
    said = f"kept 1 edited label of dataset.csv ({name}: b); set `relabel=True` to take those of the source"
    assert done.remarks == (said,)
    assert set(file.read_text().splitlines()) == set(before[DATASET_FILE].decode().splitlines())
    done = init(None, tmp_path, options=InitOptions(relabel=True))
    assert {image.path: image.label for image in done.dataset.images}[name] == "a"


def test_a_label_edited_by_hand_stays_where_its_image_is_saved_anew(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    init(tmp_path / "images", tmp_path)
    file = tmp_path / DATASET_FILE
    name = one_of_train(file)
    file.write_text(file.read_text().replace(f"{name},a,", f"{name},b,"))
    picture(tmp_path / "images" / name, 4711)
    assert {image.path: image.label for image in init(None, tmp_path).dataset.images}[name] == "b"


def test_images_are_found_whatever_the_unicode_form_of_their_names(tmp_path: Path) -> None:
    """A project that is copied from macOS to Linux, or the images alone."""
    composed, apart = (unicodedata.normalize(form, "a/zellé.png") for form in ("NFC", "NFD"))
    class_folders(tmp_path / "images")
    picture(tmp_path / "images" / composed, 99)
    done = init(tmp_path / "images", tmp_path)
    (tmp_path / "images" / composed).rename(tmp_path / "images" / apart)
    dataset, left_out = current_dataset(done.project)
    assert not left_out
    assert {image.image_id for image in dataset.images} == {image.image_id for image in done.dataset.images}
    assert apart in {image.path for image in read_dataset(tmp_path / DATASET_FILE, tmp_path / "images").images}


def test_groups_and_splits_edited_by_hand_stay(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    first = init(tmp_path / "images", tmp_path)
    train = next(image for image in first.dataset.images if image.split == "train")
    file = tmp_path / DATASET_FILE
    line = f"{train.path},{train.label},train,{train.group}"
    file.write_text(file.read_text().replace(line, f"{train.path},{train.label},val,patient 7"))
    again = {image.path: image for image in init(None, tmp_path).dataset.images}
    assert (again[train.path].split, again[train.path].group) == ("val", "patient 7")


def test_a_dataset_csv_that_is_not_ours_is_not_overwritten(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / DATASET_FILE).write_text("path,label\na/s0-0.png,a\n")
    before = files(tmp_path)
    for place in (None, tmp_path):
        with pytest.raises(ProjectError, match="Rename it"):
            init(place, tmp_path)
    assert files(tmp_path) == before
    (tmp_path / DATASET_FILE).rename(tmp_path / "list.csv")
    with pytest.raises(DatasetError, match="no class can be used"):
        init(tmp_path / "list.csv", tmp_path)


# Errors leave nothing behind


@pytest.mark.parametrize("target", ["file", "file/below"])
@pytest.mark.parametrize("generated", [True, False])
def test_a_target_that_cannot_be_written_is_one_message(tmp_path: Path, target: str, generated: bool) -> None:
    class_folders(tmp_path / "images")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ProjectError, match=r"file.*cannot be written"):
        init(None if generated else tmp_path / "images", tmp_path / target, options=InitOptions(per_class=3))
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("blocked", [PROJECT_FILE, DATASET_FILE])
def test_an_error_while_writing_leaves_no_part(tmp_path: Path, blocked: str) -> None:
    class_folders(tmp_path / "images")
    init(tmp_path / "images", tmp_path / "p")
    before = files(tmp_path / "p")
    (tmp_path / "p" / blocked).unlink()
    (tmp_path / "p" / blocked / "folder").mkdir(parents=True)
    with pytest.raises(FeatcacheError, match=blocked.replace(".", r"\.") + "|cannot be written"):
        init(tmp_path / "images", tmp_path / "p")
    left = {path.name for path in (tmp_path / "p").iterdir()}
    assert left == {PROJECT_FILE, DATASET_FILE, "cache"}
    other = ({PROJECT_FILE, DATASET_FILE} - {blocked}).pop()
    assert (tmp_path / "p" / other).read_bytes() == before[other]


def test_an_interrupted_drawing_leaves_no_folder_that_counts_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.datasets import _init as module

    def interrupted(folder: Path, *_: object, **__: object) -> None:
        picture(folder / CLASSES[0] / "1.png", 1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_cells", interrupted)
        with pytest.raises(KeyboardInterrupt):
            init(None, tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(init(None, tmp_path, options=InitOptions(per_class=4)).dataset.images) == 16


def test_strict_stops_at_the_first_image_left_out(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    (tmp_path / "images" / "a" / "broken.png").write_text("no image")
    with pytest.raises(
        DatasetError, match=r"1 images cannot be used \(`strict`\): a/broken\.png: the file is no image"
    ):
        init(tmp_path / "images", tmp_path / "p", options=InitOptions(strict=True))
    assert not files(tmp_path / "p")
    done = init(tmp_path / "images", tmp_path / "p")
    assert [item.path for item in done.left_out] == ["a/broken.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (InitOptions(dataset={"split": (70, 30)}), "split"),
        (InitOptions(dataset={"group_pattern": "("}), "group_pattern: .*not a regular expression"),
        (InitOptions(views={"train": 0}), "train"),
        (InitOptions(augmentation={"shift": 0.9}), "shift"),
    ],
)
def test_wrong_options_are_named_before_anything_is_read(tmp_path: Path, options: InitOptions, message: str) -> None:
    with pytest.raises(ProjectError, match=message):
        init(tmp_path / "nowhere", tmp_path, options=options)
    assert not files(tmp_path)


def test_names_that_are_not_utf8_are_one_message_or_left_out(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "images")
    try:
        shutil.copy(folder / "a" / "s0-0.png", folder / "a" / "\udcff.png")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes only names in UTF-8")
    done = init(folder, tmp_path / "p")
    assert len(done.dataset.images) == 24
    assert [item.path for item in done.left_out] == ["a/?.png"]
    folder.rename(tmp_path / "\udcfe")
    with pytest.raises(ProjectError, match="cannot be written as UTF-8"):
        init(tmp_path / "\udcfe", tmp_path / "q")
    assert not files(tmp_path / "q")


# The generated set, and VOC


def test_the_generated_set(tmp_path: Path) -> None:
    steps: list[int] = []

    done = init(None, tmp_path / "new", options=InitOptions(per_class=16), progress=Watching(advance=steps.append))
    assert done.layout == "class-folders"
    assert done.about == "generated leukocytes, 16 of each class, in leukocytes/"
    assert done.dataset.counts() == {label: {"train": 10, "val": 3, "test": 3} for label in CLASSES}
    assert sum(steps) == 1 + 64
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "cache", DATASET_FILE, PROJECT_FILE, GENERATED_FOLDER
    }  # fmt: skip
    again = init(None, tmp_path / "new")
    assert again.dataset.images == done.dataset.images
    same = init(None, tmp_path / "same", options=InitOptions(per_class=16))
    assert same.dataset.digest == done.dataset.digest


def test_a_folder_in_the_place_of_the_generated_set_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / GENERATED_FOLDER)
    before = files(tmp_path)
    with monkeypatch.context() as patched:
        patched.chdir(tmp_path.parent)
        hint = rf"`featcache.init\('{tmp_path.name}/leukocytes', into='{tmp_path.name}'\)` takes it as it is"
        with pytest.raises(ProjectError, match=hint):
            init(None, tmp_path)
    assert files(tmp_path) == before


def test_the_whole_on_voc(tmp_path: Path) -> None:
    write_smears(tmp_path / "smears", 24, width_px=320, height_px=240)
    done = init(tmp_path / "smears", tmp_path, options=InitOptions(dataset={"margin": 0.1, "split": (50, 25, 25)}))
    assert done.layout == "voc"
    counts = Counter(image.label for image in done.dataset.images)
    assert set(counts) == set(CLASSES)
    assert all(image.box is not None for image in done.dataset.images)
    assert all("different labels" in item.reason for item in done.left_out)
    assert len({image.path for image in done.dataset.images}) + len(done.left_out) == 24
    for image in done.dataset.images[:5]:
        height, width, _ = decode((done.dataset.folder / image.path).read_bytes()).shape
        assert image.box is not None
        assert image.box.x_max <= width
        assert image.box.y_max <= height
    assert {image.split for image in done.dataset.images} == set(SPLITS)
    again = init(None, tmp_path)
    assert again.dataset.images == done.dataset.images
    assert current_dataset(again.project)[0].digest == done.dataset.digest
    assert preview(again.project, per_class=1, n_views=2, size_px=32).is_file()


# The data set as it is now


def test_an_edited_image_gets_its_new_name(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    done = init(tmp_path / "images", tmp_path)
    first = done.dataset.images[0]
    picture(tmp_path / "images" / first.path, 99_999)
    dataset, left_out = current_dataset(done.project)
    assert not left_out
    assert dataset.images[0].image_id != first.image_id
    assert (dataset.images[0].split, dataset.images[0].group) == (first.split, first.group)
    assert dataset.images[1:] == done.dataset.images[1:]
    assert read_dataset(done.project.dataset_file, tmp_path / "images").images == dataset.images


def test_images_that_are_gone_or_broken_are_left_out_and_stay_listed(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    done = init(tmp_path / "images", tmp_path)
    listed = (tmp_path / DATASET_FILE).read_bytes()
    gone, broken = done.dataset.images[0].path, done.dataset.images[1].path
    (tmp_path / "images" / gone).unlink()
    (tmp_path / "images" / broken).write_bytes(b"")
    dataset, left_out = current_dataset(done.project)
    assert [(item.path, item.reason) for item in left_out] == [
        (gone, "there is no such file"),
        (broken, "the file is empty"),
    ]
    assert dataset.images == done.dataset.images[2:]
    assert (tmp_path / DATASET_FILE).read_bytes() == listed
    with pytest.raises(DatasetError, match=r"2 images cannot be used \(`strict`\)"):
        current_dataset(done.project, strict=True)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DatasetError, match=r"no usable image: .*: there is no such file"):
        current_dataset(done.project)


def test_a_list_written_by_hand_gets_its_ids_and_groups(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    done = init(tmp_path / "images", tmp_path)
    lines = [f"{image.path},{image.label},{image.split}" for image in done.dataset.images]
    (tmp_path / DATASET_FILE).write_text("path,label,split\n" + "\n".join(lines) + "\n")
    assert current_dataset(done.project)[0] == done.dataset
    assert read_dataset(done.project.dataset_file, tmp_path / "images").images == done.dataset.images


def test_two_lines_with_the_same_bytes_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    done = init(tmp_path / "images", tmp_path)
    one, two = done.dataset.images[0].path, done.dataset.images[-1].path
    shutil.copy(tmp_path / "images" / one, tmp_path / "images" / two)
    with pytest.raises(DatasetError, match="have the same bytes"):
        current_dataset(done.project)


def test_a_box_that_reaches_out_is_left_out(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    done = init(tmp_path / "images", tmp_path)
    lines = ["path,label,split,x_min,y_min,x_max,y_max"]
    lines += [f"{image.path},{image.label},{image.split},0,0,9,8" for image in done.dataset.images]
    lines[1] = lines[1].replace("9,8", "10,8")
    (tmp_path / DATASET_FILE).write_text("\n".join(lines) + "\n")
    dataset, left_out = current_dataset(done.project)
    assert len(dataset.images) == 23
    assert [item.reason for item in left_out] == ["the box reaches out of the image (9x8 px)"]


def test_preview_is_a_png_with_every_class(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", labels="abc")
    project = init(tmp_path / "images", tmp_path).project
    path = preview(project, per_class=2, n_views=3, size_px=32)
    assert path == tmp_path / "contact-sheet.png"
    sheet = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape == (6 * (128 + 22 + 6) + 6, 3 * (128 + 6) + 6, 3)
    out = preview(project, tmp_path / "sheet.of views", per_class=1, n_views=1, size_px=16)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_preview_shows_the_views_that_are_extracted_whatever_dataset_csv_says(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    done = init(tmp_path / "images", tmp_path)
    before = preview(done.project).read_bytes()
    file = tmp_path / DATASET_FILE
    lines = file.read_text().splitlines()
    file.write_text("\n".join([",".join(line.split(",")[:-1]) for line in lines]) + "\n")
    assert preview(done.project).read_bytes() == before


def test_preview_says_what_it_cannot_read_or_write(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    done = init(tmp_path / "images", tmp_path)
    with pytest.raises(ProjectError, match="cannot be written"):
        preview(done.project, tmp_path / "nowhere" / "sheet.png")
    first = done.dataset.images[0].path
    (tmp_path / "images" / first).write_bytes(io.BytesIO().getvalue())
    with pytest.raises(DatasetError, match=f"{first}: the file is empty"):
        preview(done.project)


@pytest.mark.parametrize("label", ["nan", "None", "NA", "null", "true", "1", "1e5", "=cmd|' /C'", 'ä, "b"; c', "#x"])
def test_labels_survive_whatever_they_look_like(tmp_path: Path, label: str) -> None:
    class_folders(tmp_path / "images", 6)
    lines = ["path,label", *(f"{name}/s{n // 2}-{n}.png,{name}" for name in "b" for n in range(6))]
    quoted = '"' + label.replace('"', '""') + '"'
    lines += [f"a/s{n // 2}-{n}.png,{quoted}" for n in range(6)]
    (tmp_path / "images" / "list.csv").write_text("\n".join(lines) + "\n")
    done = init(tmp_path / "images" / "list.csv", tmp_path)
    assert set(done.dataset.classes) == {"b", label}
    assert read_dataset(tmp_path / DATASET_FILE, tmp_path / "images").images == done.dataset.images
    assert init(None, tmp_path).dataset.images == done.dataset.images


def test_a_blank_folder_name_is_no_label(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    picture(tmp_path / "images" / " " / "1.png", 77)
    done = init(tmp_path / "images", tmp_path)
    assert set(done.dataset.classes) == {"a", "b"}
    assert [item.reason for item in done.left_out] == ["its folder's name is blank, and would be its label"]


def test_a_split_edited_by_hand_stays_where_the_source_gives_another(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        class_folders(tmp_path / "images" / split, 6, "ab")
        for path in (tmp_path / "images" / split).rglob("*.png"):
            picture(path, 100 * number + 7 * int(path.stem.split("-")[1]) + ord(path.parent.name))
    init(tmp_path / "images", tmp_path)
    file = tmp_path / DATASET_FILE
    file.write_text(file.read_text().replace("train/a/s0-0.png,a,train", "train/a/s0-0.png,a,test"))
    done = init(None, tmp_path)
    assert splits(done)["train/a/s0-0.png"] == "test"
    (remark,) = done.remarks
    assert remark.startswith("kept 1 edited split of dataset.csv (train/a/s0-0.png: test)")
    assert splits(init(None, tmp_path, options=InitOptions(relabel=True)))["train/a/s0-0.png"] == "train"


def test_columns_that_were_named_once_are_remembered(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 6)
    lines = ["scan,kind,l,t,w,h", *(f"{name}/s{n // 2}-{n}.png,{name},1,2,3,4" for name in "ab" for n in range(6))]
    (tmp_path / "images" / "list.csv").write_text("\n".join(lines) + "\n")
    named = {"path_column": "scan", "label_column": "kind", "box_columns": ("l", "t", "w", "h")}
    done = init(tmp_path / "images" / "list.csv", tmp_path, options=InitOptions(dataset=named))
    assert {image.box for image in done.dataset.images} == {Box(1, 2, 4, 6)}
    assert init(None, tmp_path).dataset.images == done.dataset.images
