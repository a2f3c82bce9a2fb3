"""Labelled images that a trained run is judged on: read as `init` reads them, and not split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from featcache.core.project import DatasetSection
from featcache.datasets.build import Built, labelled
from featcache.datasets.manifest import Dataset
from featcache.datasets.sources import find_images


def labelled_images(
    place: Path,
    asked: DatasetSection,
    *,
    unpack_into: Path | None = None,
    on_file: Callable[[], object] = lambda: None,
) -> tuple[Dataset, Built]:
    """The labelled images of a folder or list, however few there are of a class.

    asked : how the source is read; its splits are not looked at
    unpack_into : folder that a .zip or .npz is unpacked in; by default the one that it lies in

    Raises DatasetError where the place is of no known layout, or no image can be used.
    """
    source = find_images(place, asked.model_copy(update={"split_column": "none"}), unpack_into=unpack_into)
    built = labelled(
        source, without=asked.without, group_pattern=asked.group_pattern, um_per_px=asked.um_per_px, on_file=on_file
    )
    return Dataset(built.images, source.images, white=built.white), built
