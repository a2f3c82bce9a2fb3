"""Images that belong to no project, as a data set without labels: for caches of files, folders and arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import DatasetError
from featcache.core.files import resolved
from featcache.core.progress import SILENT, Progress
from featcache.datasets.build import default_group
from featcache.datasets.candidates import LeftOut
from featcache.datasets.current import stop_if_strict
from featcache.datasets.manifest import Dataset, LabelledImage
from featcache.images import Item, Pixels, identity_of_pixels, image_id_of, items_of, scan, white_of


def collect(
    source: Any, spool: Path, *, strict: bool = False, progress: Progress = SILENT
) -> tuple[Dataset, list[LeftOut]]:
    """The different images of a source (see `featcache.images.items_of`), without labels and splits.

    spool : folder that the arrays of a generator are kept in meanwhile; it must stay as long as the data set is used

    Raises DatasetError where there is no image that can be used, or one that cannot where `strict`.
    """
    is_stream = isinstance(source, Iterator)
    items = [_spooled(item, spool) if is_stream else item for item in items_of(source)]
    folder = _common_folder([item.path for item in items if item.path and not item.problem])
    paths = {item.name: _relative(item.path, folder) for item in items if item.path and not item.problem}
    with progress.begin("checking images", len(paths)) as advance:
        files = scan(folder, paths.values(), on_file=lambda: advance(1))
    found: dict[str, LabelledImage] = {}
    arrays: dict[str, Pixels] = {}
    left_out = []
    for item in items:
        if item.pixels is not None:
            name, identity, problem = item.name, identity_of_pixels(item.pixels), item.problem
        else:
            name = paths.get(item.name, item.name)
            file = files.get(name)
            identity, problem = (file.sha256 and file.identity, file.problem) if file else ("", item.problem)
        image_id = "" if problem else image_id_of(identity, item.box, um_per_px=item.um_per_px)
        if not problem and image_id in found:
            problem = f"it has the same pixels or bytes as {found[image_id].path}"
        if problem:
            left_out.append(LeftOut(name, problem))
            continue
        found[image_id] = LabelledImage(
            name, "", "", default_group(identity), image_id, item.box, um_per_px=item.um_per_px
        )
        if item.pixels is not None:
            arrays[name] = item.pixels
    stop_if_strict(left_out, strict)
    if not found:
        why = f": {left_out[0].path}: {left_out[0].reason}" if left_out else ""
        raise DatasetError(f"no image that can be used{why}")
    sizes = {name: file.size for name, file in files.items() if file.um_per_px or file.um_problem}
    return Dataset(tuple(found.values()), folder, arrays, white=white_of(files.values()), sizes=sizes), left_out


def _spooled(item: Item, spool: Path) -> Item:
    """The same, its array on the disk: a generator may yield more than memory holds."""
    if item.pixels is None:
        return item
    file = spool / f"{item.name}.npy"
    np.save(file, item.pixels)
    return Item(item.name, pixels=np.load(file, mmap_mode="r"))


def _common_folder(paths: list[Path]) -> Path:
    parents = {resolved(path).parent for path in paths}
    return Path(os.path.commonpath(parents)) if parents else Path.cwd()


def _relative(path: Path, folder: Path) -> str:
    return resolved(path).relative_to(folder).as_posix()
