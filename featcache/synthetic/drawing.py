"""Generated blood smears and white cells of four classes: data that needs no download and no licence.

Each picture is a pure function of its label(s), seed and index. The classes overlap on purpose, so that a
good pipeline scores well and a careless one visibly worse.

    image = render_cell("monocyte", seed=0, index=7)        # one white cell, 240x240
    write_cells(Path("leukocytes"), per_class=60)           # class folders of PNG files
    write_smears(Path("smears"), count=20)                  # images/, annotations/ (Pascal VOC), labels.csv
"""

from __future__ import annotations

import csv
import io
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, nearest
from featcache.synthetic import _cells
from featcache.synthetic._cells import Field, Outline

CLASSES: tuple[str, ...] = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")

MIN_SIZE_PX = 16
CELL_VIEW = 240.0  # units across one crop; a unit is a pixel of a 640x480 smear
SMEAR_VIEW = (640.0, 480.0)
BACKGROUND = 0.03  # optical density of the empty slide
_STORED_BYTES = 65_535  # the most that a stored block of deflate holds


@dataclass(frozen=True)
class Box:
    """One annotated object: `name` is WBC, RBC or Platelets; pixels, both corners inside the image."""

    name: str
    x_min: int
    y_min: int
    x_max: int
    y_max: int


def render_cell(label: str, seed: int, *, index: int, size_px: int = 240) -> NDArray[np.uint8]:
    """Draw one white cell among red ones.

    Parameters
    ----------
    label : one of `CLASSES`
    seed, index : non-negative; with the label they decide the picture, whatever was drawn before
    size_px : side of the square picture; another size shows the same cells

    Returns
    -------
    image : ndarray of shape (size_px, size_px, 3), uint8, RGB

    Raises
    ------
    DatasetError
        The label is unknown or the size is under 16 px.
    """
    rng = generator(seed, class_number(label), index)
    field = empty_field(size_px, size_px, scale=size_px / CELL_VIEW, rng=rng)
    x, y = CELL_VIEW / 2.0 + rng.uniform(-18.0, 18.0, 2)
    paint_cells(field, [(label, _cells.white_outline(label, x, y=y, rng=rng))], rng=rng)
    return _cells.develop(field, rng)


def render_smear(
    labels: Sequence[str], seed: int, *, index: int, width_px: int = 640, height_px: int = 480
) -> tuple[NDArray[np.uint8], list[Box]]:
    """Draw a field of view with one white cell for each of `labels`, apart from one another.

    Returns
    -------
    image : ndarray of shape (height_px, width_px, 3), uint8, RGB
    boxes : the white cells in the order of `labels`, then red cells, then platelets

    Raises
    ------
    DatasetError
        A label is unknown, the size is under 16 px, or the white cells do not fit.
    """
    rng = generator(seed, *(class_number(label) for label in labels), index, 1)  # 1: no cell has it
    scale = min(width_px / SMEAR_VIEW[0], height_px / SMEAR_VIEW[1])
    field = empty_field(width_px, height_px, scale=scale, rng=rng)
    painted = paint_cells(field, place_white_cells(labels, field, rng=rng), rng=rng)
    boxes = [pixel_box(name, shape, field=field) for name, shape in painted]
    return _cells.develop(field, rng), [box for box in boxes if box is not None]


def write_cells(folder: Path, per_class: int, *, seed: int = 0, size_px: int = 240) -> list[Path]:
    """Write `per_class` cells of every class as `folder/<class>/<class>-0001.png`; returns the paths."""
    paths = []
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(1, per_class + 1):
            path = folder / label / f"{label}-{index:04d}.png"
            write_image(path, render_cell(label, seed, index=index, size_px=size_px))
            paths.append(path)
    return paths


def is_generated(folder: Path, per_class: int, *, seed: int = 0, size_px: int = 240) -> bool:
    """Whether a folder is what `write_cells` writes: by all names in it, and by the last picture of each class."""
    if not folder.is_dir():
        return False
    last = {f"{label}/{label}-{per_class:04d}.png": label for label in CLASSES}
    names = {f"{label}/{label}-{index:04d}.png" for label in CLASSES for index in range(1, per_class + 1)}
    if {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} != names:
        return False
    drawn = {
        name: encoded(Path(name), render_cell(label, seed, index=per_class, size_px=size_px))
        for name, label in last.items()
    }
    return all((folder / name).read_bytes() == data for name, data in drawn.items())


def write_smears(folder: Path, count: int, *, seed: int = 0, width_px: int = 640, height_px: int = 480) -> None:
    """Write `count` smears with `images/*.jpg`, Pascal VOC `annotations/*.xml` and `labels.csv`.

    The classes take turns; every eighth smear holds two white cells, both named in its row.
    """
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["image", "label"])
    for index in range(count):
        labels = smear_labels(index)
        image, boxes = render_smear(labels, seed, index=index, width_px=width_px, height_px=height_px)
        stem = f"smear-{index + 1:04d}"
        write_image(folder / "images" / f"{stem}.jpg", image)
        (folder / "annotations" / f"{stem}.xml").write_text(voc_xml(f"{stem}.jpg", image, boxes=boxes), "utf-8")
        rows.writerow([f"{stem}.jpg", ", ".join(labels)])
    (folder / "labels.csv").write_text(table.getvalue(), "utf-8")


def smear_labels(index: int) -> list[str]:
    """The white cells of smear `index`: one class in turn, and on every eighth smear a second."""
    first = CLASSES[index % len(CLASSES)]
    if index % 8 != 5:
        return [first]
    return [first, CLASSES[(index // 8) % len(CLASSES)]]


def generator(*identity: int) -> Generator:
    """Random numbers that follow from `identity` and nothing else."""
    if min(identity) < 0:
        raise DatasetError("the seed and the index of a generated picture must be 0 or more")
    return np.random.default_rng(identity)


def class_number(label: str) -> int:
    """The position of `label` in `CLASSES`."""
    if label not in CLASSES:
        raise DatasetError(f"unknown class {label!r} of generated cells; {nearest(label, CLASSES)}")
    return CLASSES.index(label)


def empty_field(width_px: int, height_px: int, *, scale: float, rng: Generator) -> Field:
    """A slide with nothing on it but a batch of stain."""
    if min(width_px, height_px) < MIN_SIZE_PX:
        raise DatasetError(
            f"a generated picture of {width_px}x{height_px} px is too small; ask for at least {MIN_SIZE_PX} px a side"
        )
    density = np.full((3, height_px, width_px), BACKGROUND, np.float32)
    return Field(density, scale, _cells.draw_stain(rng))


def view_size(field: Field) -> tuple[float, float]:
    """Width and height of a field in units."""
    _, height_px, width_px = field.density.shape
    return width_px / field.scale, height_px / field.scale


def place_white_cells(labels: Sequence[str], field: Field, *, rng: Generator) -> list[tuple[str, Outline]]:
    """An outline for every label, none over another and most of each inside the view."""
    width, height = view_size(field)
    placed: list[tuple[str, Outline]] = []
    for label in labels:
        for _ in range(200):
            x, y = rng.uniform(80.0, width - 80.0), rng.uniform(80.0, height - 80.0)
            shape = _cells.white_outline(label, x, y=y, rng=rng)
            if all(gap(shape, other) > 6.0 for _, other in placed):
                placed.append((label, shape))
                break
        else:
            raise DatasetError(f"{len(labels)} white cells do not fit into one smear; ask for fewer")
    return placed


def gap(one: Outline, other: Outline) -> float:
    """A lower bound of the free space between two cells in units; negative where they may overlap."""
    distance = math.hypot(one.x - other.x, one.y - other.y)
    return distance - one.reach - other.reach


def paint_cells(field: Field, white: Sequence[tuple[str, Outline]], *, rng: Generator) -> list[tuple[str, Outline]]:
    """Paint red cells, platelets and the `white` cells; returns every outline under its VOC name."""
    blockers = [shape for _, shape in white]
    red = scatter_red_cells(field, blockers, rng=rng)
    for shape in red:
        _cells.paint_red_cell(field, shape, rng=rng)
    platelets = scatter_platelets(field, blockers, rng=rng)
    for shape in platelets:
        _cells.paint_platelet(field, shape, rng=rng)
    for label, shape in white:
        _cells.paint_white_cell(field, label, shape=shape, rng=rng)
    named = (("WBC", blockers), ("RBC", red), ("Platelets", platelets))
    return [(name, shape) for name, shapes in named for shape in shapes]


def scatter_red_cells(field: Field, white: Sequence[Outline], *, rng: Generator) -> list[Outline]:
    """Red cells up to a random crowding; they touch and overlap one another, but only touch white cells."""
    width, height = view_size(field)
    tries = int(rng.uniform(12.0, 60.0) * (width + 80.0) * (height + 80.0) / (CELL_VIEW + 80.0) ** 2)
    overlap = rng.uniform(0.05, 0.45)
    red: list[Outline] = []
    for _ in range(tries):
        x, y = rng.uniform(-40.0, width + 40.0), rng.uniform(-40.0, height + 40.0)
        shape = _cells.red_outline(x, y, rng=rng)
        clear = all(gap(shape, other) > -14.0 for other in white)
        if clear and all(gap(shape, other) > -overlap * 2.0 * shape.radius for other in red):
            red.append(shape)
    return red


def scatter_platelets(field: Field, white: Sequence[Outline], *, rng: Generator) -> list[Outline]:
    """A few platelets, off the white cells."""
    width, height = view_size(field)
    count = rng.poisson(1.2 * width * height / CELL_VIEW**2)
    shapes = [
        _cells.outline(
            rng.uniform(0.0, width), rng.uniform(0.0, height), radius=rng.uniform(5.0, 11.0), wobble=0.12, rng=rng
        )
        for _ in range(count)
    ]
    return [shape for shape in shapes if all(gap(shape, other) > 2.0 for other in white)]


def pixel_box(name: str, shape: Outline, *, field: Field) -> Box | None:
    """The box around a cell, cut at the border of the image; None where too little of it is left."""
    _, height_px, width_px = field.density.shape
    x_min, y_min, x_max, y_max = (edge * field.scale for edge in shape.bounds())
    box = Box(
        name,
        max(math.floor(x_min), 0),
        max(math.floor(y_min), 0),
        min(math.ceil(x_max), width_px - 1),
        min(math.ceil(y_max), height_px - 1),
    )
    seen = max(box.x_max - box.x_min, 0) * max(box.y_max - box.y_min, 0)
    return box if seen > 0.15 * (x_max - x_min) * (y_max - y_min) else None


def voc_xml(file_name: str, image: NDArray[np.uint8], *, boxes: Sequence[Box]) -> str:
    """Pascal VOC annotation of `image`."""
    height_px, width_px, channels = image.shape
    objects = "".join(
        f"  <object>\n    <name>{box.name}</name>\n    <truncated>0</truncated>\n"
        f"    <difficult>0</difficult>\n    <bndbox>\n"
        f"      <xmin>{box.x_min}</xmin>\n      <ymin>{box.y_min}</ymin>\n"
        f"      <xmax>{box.x_max}</xmax>\n      <ymax>{box.y_max}</ymax>\n"
        f"    </bndbox>\n  </object>\n"
        for box in boxes
    )
    size = f"<width>{width_px}</width><height>{height_px}</height><depth>{channels}</depth>"
    return (
        f"<annotation>\n  <folder>images</folder>\n  <filename>{file_name}</filename>\n"
        f"  <size>{size}</size>\n{objects}</annotation>\n"
    )


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write RGB `image` in the format that the suffix of `path` names."""
    path.write_bytes(encoded(path, image))  # not cv2.imwrite: it fails silently, and on some file names


def encoded(path: Path, image: NDArray[np.uint8]) -> bytes:
    """RGB `image` as a file's bytes, in the format that the suffix of `path` names."""
    if path.suffix == ".png":
        return _stored_png(image)
    _, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def _stored_png(image: NDArray[np.uint8]) -> bytes:
    """A PNG whose bytes follow from its pixels alone: compressors differ, and images are named by their bytes.

    By the PNG specification (3rd edition) and RFC 1950 and 1951: unfiltered lines in stored blocks.
    """
    height, width, _ = image.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, width * 3)], axis=1).tobytes()
    blocks = [lines[start : start + _STORED_BYTES] for start in range(0, len(lines), _STORED_BYTES)]
    stored = b"".join(
        struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ 0xFFFF) + block
        for number, block in enumerate(blocks, start=1)
    )
    data = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(lines))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
