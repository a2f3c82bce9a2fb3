"""verify: is a cache what it promises to be; compute some of its rows again and compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import CacheError, CacheNotFoundError, DatasetError
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.core.recipe import Recipe
from featcache.datasets import Dataset, LabelledImage, current_dataset
from featcache.extraction.opening import network_of
from featcache.extraction.rendering import render_views
from featcache.extraction.segmenters import cutting_again
from featcache.images import view_parameters
from featcache.segmentation import Segmenter, SegmenterFile
from featcache.store import ROWS_FILE, Row, Verified, open_cache, read_manifest, verify

_BATCH_ROWS = 64


@dataclass(frozen=True)
class Recomputed:
    """Rows that were computed again. A deviation of 1 is all that the manifest's tolerance allows."""

    rows: tuple[int, ...]
    deviating: tuple[int, ...]
    largest_deviation: float


def verify_cache(folder: Path, progress: Progress = SILENT) -> Verified:
    """`featcache.store._verify.verify`, with progress."""
    try:
        total = sum(entry.bytes for entry in read_manifest(folder).files.values())
    except CacheNotFoundError:
        raise
    except CacheError:
        total = 0
    with progress.begin(f"verifying {folder.name}", total) as advance:
        return verify(folder, advance)


def recompute(
    project: Project, folder: Path, *, n_rows: int, weights: str | None = None, seed: int | None = None
) -> Recomputed:
    """Render and extract `n_rows` rows of a sound cache again, chosen at random, and compare.

    weights : where the network's weights are, as for `extract`; None for what the manifest says
    seed : chooses the rows; None for others every time

    Raises DatasetError if none of the cache's images is at hand, BackboneError or WeightsError for a network
    that cannot be had or is another one.
    """
    opened = open_cache(folder)
    dataset, _ = current_dataset(project)
    by_id = {image.image_id: image for image in dataset.images}
    keys = opened.keys
    there = np.array([image_id in by_id for image_id in keys.image_ids()], bool)
    at_hand = np.flatnonzero(there[keys.image])
    if not len(at_hand):
        raise DatasetError(
            f"{project.dataset_file}: lists none of the images of {opened.name}: rows can only be computed again where "
            "the images are"
        )
    some = np.random.default_rng(seed).choice(at_hand, min(n_rows, len(at_hand)), replace=False)
    numbers = np.sort(some)
    _, engine = network_of(
        opened.recipe.space, opened.manifest.provenance, weights=weights, memory=project.cache_folder
    )
    segmentation = opened.recipe.space.segmentation
    copy = SegmenterFile.kept(opened.manifest.provenance, segmentation, where=opened.name)
    segmenter = cutting_again(project, segmentation, copy=copy, where=opened.name, weights=weights)
    stored = opened.stored_rows()
    rows = [stored[number] for number in numbers.tolist()]
    largest, deviating = 0.0, []
    for first in range(0, len(rows), _BATCH_ROWS):
        batch = rows[first : first + _BATCH_ROWS]
        old = opened.features[numbers[first : first + _BATCH_ROWS]]
        pixels = np.concatenate([_rendered(row, by_id, dataset, opened.recipe, segmenter) for row in batch])
        with np.errstate(over="ignore"):
            new = engine().features(pixels)[0].astype(old.dtype)
        worst = opened.manifest.tolerance.deviations(new, old)
        largest = max(largest, float(worst.max()))
        deviating += [int(number) for number, much in zip(numbers[first:], worst, strict=False) if much > 1]
    return Recomputed(tuple(int(number) for number in numbers), tuple(deviating), largest)


def _rendered(
    row: Row, images: Mapping[str, LabelledImage], dataset: Dataset, recipe: Recipe, segmenter: Segmenter | None
) -> NDArray[np.uint8]:
    parameters = view_parameters(recipe.augmentation, row.image_id, view=row.view)
    if dict(row.parameters) != parameters.to_dict():
        raise CacheError(f"{ROWS_FILE}: view {row.view} of {row.image_id[:16]}.. is not what the recipe makes of it")
    image = images[row.image_id]
    return np.stack(render_views(image, dataset, space=recipe.space, parameters=[parameters], segmenter=segmenter))
