"""Formats that annotation tools and publishers write: the same cells from each; what is odd is left out, with why."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from servers import S3
from test_dataset_layouts import smear
from test_dataset_sources import annotation, put, put_list, reasons

from featcache.core.errors import ArgumentsError, DatasetError, OfflineError
from featcache.core.project import DatasetSection
from featcache.datasets import InitOptions, init
from featcache.datasets.build import labelled
from featcache.datasets.candidates import Source
from featcache.datasets.labelled import labelled_images
from featcache.datasets.patterns import compiled
from featcache.datasets.sources import find_images
from featcache.images.identity import Box
from featcache.remotes import open_remote

NAMES = ("RBC", "WBC")
CELLS = [("WBC", 10, 20, 50, 60), ("RBC", 0, 0, 8, 9), ("WBC", 100, 70, 160, 120)]
"""Name, left, top, right and bottom in a picture of 160x120 px; right and bottom lie outside."""


def rows(source: Source) -> set[tuple[object, ...]]:
    return {(Path(one.path).name, one.label, one.box, one.image_id) for one in labelled(source).images}


def yolo_line(name: str, left: int, top: int, right: int, bottom: int) -> str:
    sides = ((left + right) / 320, (top + bottom) / 240, (right - left) / 160, (bottom - top) / 120)
    return f"{NAMES.index(name)} " + " ".join(f"{side:.6f}" for side in sides)


def write(kind: str, folder: Path, pictures: int = 3) -> Path:
    """The same smears and cells in one of the formats, as its tool writes them."""
    names = [f"s{number}.png" for number in range(pictures)]
    place = folder if kind == "createml" else folder / "images"
    for number, name in enumerate(names):
        smear(place / name, number)
    if kind == "voc":
        for name in names:
            cells = [(cell[0], *map(str, (cell[1] + 1, cell[2] + 1, cell[3], cell[4]))) for cell in CELLS]
            put_list(folder / "annotations" / f"{Path(name).stem}.xml", annotation(*cells, filename=name))
    elif kind == "yolo":
        put_list(folder / "data.yaml", "train: ../train/images", "nc: 2", "names: ['RBC', 'WBC']")
        for name in names:
            put_list(folder / "labels" / f"{Path(name).stem}.txt", *(yolo_line(*cell) for cell in CELLS))
    elif kind == "labelimg":
        put_list(folder / "classes.txt", *NAMES)
        for name in names:
            put_list(place / f"{Path(name).stem}.txt", *(yolo_line(*cell) for cell in CELLS))
    elif kind == "cvat":
        put_list(folder / "annotations.xml", cvat(names))
    elif kind == "createml":
        value = [{"image": name, "verified": False, "annotations": list(map(createml, CELLS))} for name in names]
        put_list(folder / "annotations.json", json.dumps(value))
    else:
        put_list(folder / "annotations" / "instances_default.json", json.dumps(coco(names)))
    return folder


def cvat(names: list[str]) -> str:
    boxes = "".join(
        f'<box label="{name}" source="manual" occluded="0" xtl="{a:.2f}" ytl="{b:.2f}" xbr="{c:.2f}" ybr="{d:.2f}" '
        'z_order="0"></box>'
        for name, a, b, c, d in CELLS
    )
    images = "".join(
        f'<image id="{i}" name="{n}" width="160" height="120">{boxes}</image>' for i, n in enumerate(names)
    )
    return f"<annotations><version>1.1</version><meta><task><id>1</id></task></meta>{images}</annotations>"


def createml(cell: tuple[str, int, int, int, int]) -> dict[str, object]:
    name, a, b, c, d = cell
    return {"label": name, "coordinates": {"x": (a + c) / 2, "y": (b + d) / 2, "width": c - a, "height": d - b}}


def coco(names: list[str]) -> dict[str, object]:
    return {
        "images": [{"id": i, "file_name": name, "width": 160, "height": 120} for i, name in enumerate(names)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": NAMES.index(n), "bbox": [a, b, c - a, d - b], "iscrowd": 0}
            for i in range(len(names))
            for n, a, b, c, d in CELLS
        ],
    }


@pytest.mark.parametrize("kind", ["coco", "yolo", "labelimg", "cvat", "createml"])
def test_the_same_cells_come_out_of_every_format(tmp_path: Path, kind: str) -> None:
    source = find_images(write(kind, tmp_path / kind))
    assert source.layout == ("yolo" if kind == "labelimg" else kind)
    assert rows(source) == rows(find_images(write("voc", tmp_path / "voc")))
    assert len(rows(source)) == 9
    assert not source.left_out


@pytest.mark.parametrize("kind", ["yolo", "cvat", "createml"])
def test_init_writes_the_same_dataset_twice_and_records_the_source(tmp_path: Path, kind: str) -> None:
    place = write(kind, tmp_path / "data", 12)
    done = init(place, tmp_path / "p", options=InitOptions())
    first = done.project.dataset_file.read_bytes()
    again = init(None, tmp_path / "p", options=InitOptions())
    assert done.layout == again.layout == kind
    assert again.project.dataset_file.read_bytes() == first


# YOLO


def test_splits_of_yolo_are_those_of_the_folders_or_of_the_lists(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        for tree in (f"a/{split}/images", f"b/images/{split}"):
            smear(tmp_path / tree / "1.png", number)
        for tree in (f"a/{split}/labels", f"b/labels/{split}"):
            put_list(tmp_path / tree / "1.txt", yolo_line(*CELLS[0]))
        smear(tmp_path / "c/images" / f"{number}.png", number)
        put_list(tmp_path / "c/labels" / f"{number}.txt", yolo_line(*CELLS[0]))
        put_list(tmp_path / f"c/{split}.txt", f"data/images/{number}.png")
    smear(tmp_path / "c/images/9.png", 9)
    put_list(tmp_path / "c/labels/9.txt", yolo_line(*CELLS[0]))
    for tree in "abc":
        put_list(tmp_path / tree / "data.yaml", "names:", "  0: RBC", "  1: WBC")
        source = find_images(tmp_path / tree)
        assert sorted(one.split for one in source.candidates) == ["test", "train", "val"]
    assert reasons(source) == {"images/9.png": "no list of a split names it"}


def test_lines_of_yolo_that_are_odd_are_left_out(tmp_path: Path) -> None:
    write("yolo", tmp_path, 1)
    lines = {
        "1 0.1 0.1 0.5 0.1 0.5 0.5": "",
        "7 0.5 0.5 0.1 0.1": "its class, 7, has no name",
        "1 1.5 0.5 0.1 0.1": "reaches out of the picture",
        "1 0.5 0.5 0 0.1": "without width or height",
        "1 0.5 0.5 0.1 0.1 0.9": "5 numbers after the class",
        "1 0.5 nan 0.1 0.1": "reaches out of the picture",
        "1 a b c d": "could not convert",
    }
    put_list(tmp_path / "labels/s0.txt", *lines)
    source = find_images(tmp_path)
    assert [one.box for one in source.candidates] == [Box(16, 12, 80, 60)]
    said = [item.reason for item in source.left_out]
    assert all(any(why in reason for reason in said) for why in lines.values() if why), said
    assert len(said) == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "nothing names them"),
        ("nc: 3\nnames: [a, b]", "says 3 classes"),
        ("names: [a", "cannot be read as YAML"),
        ("names: &x [a, b]\nmore: *x", "refers to parts of itself"),
        ("names: 5", "must be a list"),
        ("names: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ],
)
def test_yolo_without_names_that_can_be_read_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    write("yolo", tmp_path, 1)
    (tmp_path / "data.yaml").unlink()
    if text is not None:
        put_list(tmp_path / "data.yaml", text)
    with pytest.raises(DatasetError, match=said):
        find_images(tmp_path)


def test_a_turned_picture_with_yolo_boxes_is_left_out(tmp_path: Path) -> None:
    write("yolo", tmp_path, 2)
    smear(tmp_path / "images/s1.png", 5, orientation=6)
    built = labelled(find_images(tmp_path))
    assert {Path(one.path).name for one in built.images} == {"s0.png"}
    assert "EXIF orientation 6" in built.left_out[0].reason


# CVAT, CreateML, COCO


def test_jobs_and_shapes_of_cvat(tmp_path: Path) -> None:
    for number in range(2):
        smear(tmp_path / f"images/{number}.png", number)
    shapes = (
        '<box label="turned" xtl="40" ytl="50" xbr="80" ybr="70" rotation="90"/>'
        '<polygon label="outline" points="1.00,2.00;30.00,5.00;20.00,40.00"/>'
        '<ellipse label="round" cx="100" cy="60" rx="10" ry="5"/>'
        '<points label="dot" points="5,5"/><box label="thin" xtl="5" ytl="5" xbr="5" ybr="9"/><box label="no"/>'
        '<polygon label="bad" points="1,2;x,4;5,6"/>'
    )
    head = '<annotations><image id="{}" name="{}.png" width="160" height="120">{}</image>'
    put_list(tmp_path / "job_1.xml", head.format(0, 0, shapes) + '<image id="1" name="1.png"/></annotations>')
    put_list(
        tmp_path / "job_2.xml", head.format(1, 1, '<box label="x" xtl="1" ytl="1" xbr="9" ybr="9"/>') + "</annotations>"
    )
    source = find_images(tmp_path)
    assert {(one.path, one.label, one.box) for one in source.candidates} == {
        ("images/0.png", "turned", Box(50, 40, 70, 80)),
        ("images/0.png", "outline", Box(1, 2, 30, 40)),
        ("images/0.png", "round", Box(90, 55, 110, 65)),
        ("images/1.png", "x", Box(1, 1, 9, 9)),
    }
    assert len(source.left_out) == 4


def test_a_video_of_cvat_is_left_out_by_name(tmp_path: Path) -> None:
    smear(tmp_path / "images/0.png", 0)
    put_list(tmp_path / "annotations.xml", '<annotations><track id="0" label="x"/></annotations>')
    assert "tracks of a video" in reasons(find_images(tmp_path))["annotations.xml"]


@pytest.mark.parametrize("text", ['[{"image": "a", "annotations": 5}]', '[{"image": 3, "annotations": []', "[" * 9000])
def test_createml_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    write("createml", tmp_path, 1)
    put_list(tmp_path / "annotations.json", text + ' "annotations" "image"' * text.startswith("[["))
    with pytest.raises(DatasetError, match="cannot be read as CreateML"):
        find_images(tmp_path)


def test_crowds_of_coco_are_left_out_and_files_named_for_splits_make_them(tmp_path: Path) -> None:
    for split in ("train", "val"):
        smear(tmp_path / f"images/{split}.png", len(split))
        value = coco([f"{split}.png"])
        value["annotations"][0]["iscrowd"] = 1  # type: ignore[index]
        put_list(tmp_path / f"annotations/instances_{split}.json", json.dumps(value))
    source = find_images(tmp_path)
    assert {(one.path, one.split) for one in source.candidates} == {
        ("images/train.png", "train"),
        ("images/val.png", "val"),
    }
    assert all("a crowd of objects" in item.reason for item in source.left_out)
    assert len(source.left_out) == 2


# Archives


def zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"export/{file.relative_to(folder).as_posix()}")
    return path


def test_a_zip_is_unpacked_once_into_the_project(tmp_path: Path) -> None:
    folder = write("yolo", tmp_path / "data", 12)
    archive = zipped(tmp_path / "data.zip", folder)
    done = init(archive, tmp_path / "p", options=InitOptions())
    plain = init(folder, tmp_path / "q", options=InitOptions())
    assert done.dataset.digest == plain.dataset.digest
    (made,) = (tmp_path / "p/unpacked").iterdir()
    before = made.stat().st_mtime_ns
    first = done.project.dataset_file.read_bytes()
    assert init(None, tmp_path / "p", options=InitOptions()).project.dataset_file.read_bytes() == first
    assert made.stat().st_mtime_ns == before
    data, _ = labelled_images(archive, DatasetSection(), unpack_into=tmp_path / "r")
    assert {one.image_id for one in data.images} == {one.image_id for one in plain.dataset.images}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../out.png", "leads out"),
        ("/etc/out.png", "leads out"),
        ("a/../../out.png", "leads out"),
        ("C:/out.png", "leads out"),
        ("a\\..\\out.png", "leads out"),
        ("x/A.png", "twice"),
    ],
)
def test_a_zip_whose_paths_lead_out_is_not_unpacked(tmp_path: Path, name: str, said: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("x/a.png", b"1")
        entry = zipfile.ZipInfo("plain")
        entry.filename = name
        archive.writestr(entry, b"2")
    with pytest.raises(DatasetError, match=said):
        find_images(tmp_path / "bad.zip", unpack_into=tmp_path / "p")
    assert not list((tmp_path / "p").rglob("*.png"))
    assert not list(tmp_path.glob("out*"))


def test_bombs_links_and_encrypted_zips_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.png", "w") as file:
        for _ in range(100):
            file.write(bytes(1 << 20))
    with pytest.raises(DatasetError, match="which no pictures do"):
        find_images(path, unpack_into=tmp_path / "p")
    link = zipfile.ZipInfo("a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DatasetError, match="a link or a device"):
        find_images(path, unpack_into=tmp_path / "p")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"1")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="is encrypted"):
        find_images(path, unpack_into=tmp_path / "p")
    for damaged in (b"", b"PK\x03\x04" + bytes(40), bytes(data[: len(data) // 2])):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match="is damaged"):
            find_images(path, unpack_into=tmp_path / "p")
    assert not list((tmp_path / "p").rglob("*.png"))


# MedMNIST


def medmnist(path: Path, **changed: np.ndarray) -> Path:
    dice = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 16), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = dice.integers(0, 256, (number, 28, 28, 3), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(number) % 8).astype(np.uint8)[:, None]
    np.savez_compressed(path, **{**arrays, **changed})
    return path


def test_bloodmnist_keeps_its_splits_names_and_pixels(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "bloodmnist.npz")
    done = init(path, tmp_path / "p", options=InitOptions())
    assert done.dataset.counts()["immature granulocyte"] == {"train": 2, "val": 1, "test": 1}
    assert len(done.dataset.counts()) == 8
    with np.load(path) as arrays:
        (folder,) = (tmp_path / "p/unpacked").iterdir()
        for split in ("train", "val", "test"):
            files = sorted((folder / split).rglob("*.ppm"), key=lambda file: file.name)
            assert (np.stack([np.asarray(Image.open(file)) for file in files]) == arrays[f"{split}_images"]).all()
    again = init(None, tmp_path / "p", options=InitOptions())
    assert again.dataset.digest == done.dataset.digest


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_labels": np.array([[{}]] * 16, object)}, "holds Python objects"),
        ({"train_labels": np.full((16, 1), 9, np.uint8)}, "the label 9 is none of BloodMNIST's"),
        ({"train_labels": np.zeros((3, 1), np.uint8)}, "16 train_images and 3 train_labels"),
        ({"train_images": np.zeros((16, 4, 4, 3), np.float32)}, "expected pictures of bytes"),
        ({"train_labels": np.zeros((16, 2), np.uint8)}, "expected one number"),
    ],
)
def test_arrays_that_are_not_medmnists_are_refused(tmp_path: Path, changed: dict[str, np.ndarray], said: str) -> None:
    path = medmnist(tmp_path / "bloodmnist.npz", **changed)
    with pytest.raises(DatasetError, match=said):
        find_images(path, unpack_into=tmp_path / "p")
    assert not list((tmp_path / "p").rglob("*.ppm"))


# Patterns, masks, published sets


def test_labels_and_groups_from_paths(tmp_path: Path) -> None:
    put(tmp_path, "p1/day 1/blast_1.png", "p1/day 2/blast_2.png", "p2/normal_1.png", "odd.png")
    source = find_images(tmp_path, DatasetSection(label_from="{group}/**/{label}_*"))
    assert {(one.path, one.label, one.group) for one in source.candidates} == {
        ("p1/day 1/blast_1.png", "blast", "p1"),
        ("p1/day 2/blast_2.png", "blast", "p1"),
        ("p2/normal_1.png", "normal", "p2"),
    } or pytest.fail(str(source.candidates))
    assert list(reasons(source)) == ["odd.png"]
    assert "3 of 4 images" in source.about
    source = find_images(
        tmp_path, DatasetSection(label_from="**/{label}_{}".replace("_{}", "_?"), group_from="**/*_{group}")
    )
    assert {one.group for one in source.candidates} == {"1", "2"}
    with pytest.raises(DatasetError, match="no image's path fits"):
        find_images(tmp_path, DatasetSection(label_from="nowhere/{label}"))


@pytest.mark.parametrize("pattern", ["*", "{label}{label}", "{what}/{label}", "{label", "{group}"])
def test_patterns_that_say_no_label_are_refused(pattern: str) -> None:
    with pytest.raises(ArgumentsError, match="the pattern"):
        compiled(pattern, ("label", "group", "split"))


def test_masks_give_the_box_of_the_cell(tmp_path: Path) -> None:
    masks = {"one": [(10, 20, 50, 60)],
             "speck": [(10, 20, 50, 60), (0, 0, 2, 2)], "two": [(1, 1, 9, 9), (60, 60, 70, 70)],
             "none": [], "whole": [(0, 0, 160, 120)]}  # fmt: skip
    for number, (name, cells) in enumerate(masks.items()):
        smear(tmp_path / f"images/{name}.png", number)
        mask = np.zeros((120, 160), np.uint8)
        for a, b, c, d in cells:
            mask[b:d, a:c] = 128
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{name}.png")
    smear(tmp_path / "images/other.png", 9)
    Image.fromarray(mask[:50]).save(tmp_path / "masks/other.png")
    smear(tmp_path / "images/size.png", 10)
    Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), 10)).save(tmp_path / "masks/size.png")
    smear(tmp_path / "images/bare.png", 11)
    put_list(tmp_path / "labels.csv", "path,label", *(f"{path.name},x" for path in (tmp_path / "images").iterdir()))
    source = find_images(tmp_path, DatasetSection(masks="masks"))
    built = labelled(source)
    assert {(Path(one.path).stem, one.box) for one in built.images} == {
        ("one", Box(10, 20, 50, 60)),
        ("speck", Box(10, 20, 50, 60)),
    } or pytest.fail(str(built))
    why = {Path(item.path).stem: item.reason for item in built.left_out}
    assert "2 cells" in why["two"]
    assert "no cell" in why["none"]
    assert "whole picture" in why["whole"]
    assert "no mask" in why["bare"]
    assert "drawn on a picture of 40x40" in why["size"]


def test_published_sets_get_the_usual_names(tmp_path: Path) -> None:
    pbc = ("basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil", "platelet")
    put(tmp_path, *(f"pbc/PBC_dataset_normal_DIB/{name}/{name[:2].upper()}_1.jpg" for name in pbc))
    source = find_images(tmp_path / "pbc")
    assert source.layout == "pbc"
    assert "immature granulocyte" in {one.label for one in source.candidates}
    put(tmp_path, *(f"lisc/Main Dataset/{name}/1.bmp" for name in ("Baso", "eosi", "lymp", "mixt", "mono", "neut")))
    source = find_images(tmp_path / "lisc")
    assert (source.layout, len({one.label for one in source.candidates})) == ("lisc", 5)
    assert "several classes" in reasons(source)["mixt/1.bmp"]
    put(
        tmp_path,
        *(
            f"raabin/{part}/{name}/1.jpg"
            for part in ("Train", "TestA", "TestB")
            for name in ("Lymphocyte", "Neutrophil")
        ),
    )
    source = find_images(tmp_path / "raabin")
    assert {(one.label, one.split) for one in source.candidates} == {
        (name, split) for name in ("lymphocyte", "neutrophil") for split in ("train", "test")
    }
    assert "another microscope" in reasons(source)["TestB"]
    put(tmp_path, "idb/img/Im001_1.tif", "idb/img/Im131_0.tif")
    source = find_images(tmp_path / "idb")
    assert {(one.path.rpartition("/")[2], one.label) for one in source.candidates} == {
        ("Im001_1.tif", "lymphoblast"),
        ("Im131_0.tif", "healthy"),
    }


# Addresses


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A server of tmp_path/www, and what it was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/away.png":
                self.send_response(302)
                self.send_header("Location", "http://example.invalid/1.png")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    (tmp_path / "www").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www"))) as running:
        thread = Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()
        thread.join()


def test_addresses_are_fetched_once_and_checked(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, asked = server
    for number in range(8):
        smear(tmp_path / f"www/a {number}.png", number)
    (tmp_path / "www/page.png").write_text("<html>not here</html>")
    odd = ["page.png", "gone.png", "away.png"]
    lines = [f"{address}/a%20{number}.png,{'xy'[number % 2]}" for number in range(8)]
    others = [f"{address}/{name},x" for name in odd] + ["ftp://127.0.0.1/1.png,x", "http://me:secret@127.0.0.1/1.png,x"]
    place = put_list(tmp_path / "list.csv", "path,label", *lines, *others)
    elsewhere = put_list(tmp_path / "elsewhere.csv", "path,label", "http://example.invalid/1.png,x")
    with pytest.raises(OfflineError):
        init(elsewhere, tmp_path / "p", options=InitOptions(offline=True))
    done = init(place, tmp_path / "p", options=InitOptions())
    assert len(done.dataset.images) == 8
    assert len(asked) == 11
    why = {item.path.removeprefix(address): item.reason for item in done.left_out}
    assert "another host" in why["/away.png"]
    assert "404" in why["/gone.png"]
    assert len(why) == 5
    assert "secret" not in str(why)
    first = done.project.dataset_file.read_bytes()
    put_list(place, "path,label", *lines)
    again = init(place, tmp_path / "p", options=InitOptions(offline=True))
    assert again.project.dataset_file.read_bytes() == first
    assert len(asked) == 11


def bytes_of(path: Path, seed: int) -> bytes:
    smear(path, seed)
    return path.read_bytes()


def test_addresses_in_a_bucket_and_on_a_server_of_files(
    tmp_path: Path, s3: S3, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the credentials of the environment; one that does not suffice leaves out its image."""
    for name, value in s3.environment("writer").items():
        monkeypatch.setenv(name, value)
    store = open_remote(s3.url("smears"))
    lines = []
    for number in range(8):
        store.put(f"day 1/a {number}.png", bytes_of(tmp_path / f"{number}.png", number))
        label = "xy"[number % 2]
        lines.append(f"s3://lab/smears/day%201/a%20{number}.png?endpoint={s3.endpoint},{label}")
    there = (tmp_path / "0.png").as_uri()
    odd = [f"s3://lab/smears/gone.png?endpoint={s3.endpoint},x", "s3://me:secret@lab/1.png,x", "s3://lab?a=1,x"]
    place = put_list(tmp_path / "list.csv", "path,label", *lines, f"{there},x", *odd)
    done = init(place, tmp_path / "p", options=InitOptions())
    assert len(done.dataset.images) == 8
    reasons = {item.path: item.reason for item in done.left_out}
    assert any("same bytes" in reason or "twice" in reason for reason in reasons.values())  # the file is one of them
    assert len(reasons) == 4
    assert "secret" not in str(reasons)
    for name in s3.environment():
        monkeypatch.delenv(name)
    put_list(place, "path,label", *lines)
    again = init(place, tmp_path / "p", options=InitOptions(offline=True))  # all of them are there
    assert len(again.dataset.images) == 8
