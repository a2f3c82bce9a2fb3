"""Masks that come with images: in a folder of their own, or named in a list. Each cell of a mask is a row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featcache.core.errors import DatasetError, ImageError
from featcache.core.files import resolved
from featcache.datasets.candidates import Candidate, LeftOut, Source, composed
from featcache.images import look, read_bytes
from featcache.segmentation import GivenMask, read_mask

_ROOT = "masks"
"""Name of the root that masks lie in, where that is not the folder of the images."""


def with_masks(source: Source, folder: Path) -> Source:
    """The same, each image with the box around the cell of its mask: the picture of its name below `folder`.

    An image that has a box keeps it: the cell is the one in the box. A mask with a number for each cell gives one
    candidate a cell. Images are left out that have no mask, or several; whose mask shows no cell; or that have one
    label for several cells without numbers.
    """
    by_name: dict[str, list[Path]] = {}
    for path, reason in look(folder):
        if not reason:
            by_name.setdefault(composed(path.stem), []).append(path)
    if not by_name:
        raise DatasetError(f"{folder}: holds no masks")
    wanted: list[tuple[Candidate, Path]] = []
    for one in source.candidates:
        image = source.images / one.path
        if image.resolve().is_relative_to(folder.resolve()):
            source.left_out.append(LeftOut(one.path, "it is a mask"))
            continue
        found = by_name.get(composed(image.stem), [])
        near = [path for path in found if path.parent.name == image.parent.name]
        masks = near if len(found) > 1 else found
        if len(masks) == 1:
            wanted.append((one, masks[0]))
        else:
            reason = f"it may have any of {len(masks)} masks" if masks else "it has no mask"
            source.left_out.append(LeftOut(one.path, reason))
    were_there = bool(source.candidates)
    attach(source, wanted, below=folder, in_boxes=True)
    if were_there and not source.candidates:
        raise DatasetError(f"{folder}: no image has a mask that can be used: {source.left_out[-1].reason}")
    source.about += f"; cells by their masks in {folder.name}"
    return source


def is_root_of_masks(name: str) -> bool:
    """Whether a root has a name that roots of masks get."""
    return name.partition("-")[0] == _ROOT


def attach(source: Source, wanted: Sequence[tuple[Candidate, Path]], *, below: Path, in_boxes: bool) -> None:
    """Make candidates of images and the files of their masks the candidates of a source; note what is left out.

    below : a folder that all masks lie below
    in_boxes : whether the only cell of a mask gets a box; of several, each has one
    """
    done: list[Candidate] = []
    several = 0
    for one, file in wanted:
        try:
            cells = _cells_of(one, read_mask(read_bytes(file)), in_boxes)
        except (DatasetError, ImageError) as error:
            source.left_out.append(LeftOut(one.path, f"its mask, {file.name}: {error}"))
            continue
        several += len(cells) > 1
        path = _path_in(source, file, below)
        done += [replace(cell, mask=path) for cell in cells]
    if several:
        source.remarks.append(
            f"several cells a mask: {several} images give a row for each cell, with the label of the image"
        )
    source.candidates = done


def _cells_of(image: Candidate, mask: GivenMask, in_boxes: bool) -> list[Candidate]:
    """One candidate a cell. Raises DatasetError where nobody knows which cell the image is of."""
    width, height = mask.size
    image = replace(image, mask_size=mask.size)
    if image.box is not None:
        if image.box.x_min >= width or image.box.y_min >= height or mask.cell_in(image.box) is None:
            raise DatasetError("it shows no cell in the box")
        return [image]
    if len(mask.boxes) > 1 and image.label and not mask.is_numbered:
        raise DatasetError(f"it shows {len(mask.boxes)} cells: which has the label?")
    if len(mask.boxes) == 1 and not in_boxes:
        return [image]
    return [replace(image, box=box) for box in mask.boxes]


def _path_in(source: Source, file: Path, below: Path) -> str:
    """The path of a mask as those of the images: from their folder, or from a root, which may be a new one."""
    file = resolved(file)
    for name, root in source.roots.items():
        if file.is_relative_to(resolved(root)):
            return f"{name}/{file.relative_to(resolved(root)).as_posix()}"
    folder = resolved(source.folder)
    if file.is_relative_to(folder):
        path = file.relative_to(folder).as_posix()
        if resolved(source.images / path) == file:
            return path
    names = itertools.chain([_ROOT], (f"{_ROOT}-{number}" for number in itertools.count(2)))
    name = next(one for one in names if one not in source.roots and not (source.folder / one).exists())
    source.roots[name] = resolved(below)
    return f"{name}/{file.relative_to(resolved(below)).as_posix()}"
