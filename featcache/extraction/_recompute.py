"""verify: is a cache what it promises to be; compute some of its rows again and compare."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Cut, Engine, NetworkSpec, is_own_name, space_of
from featcache.core.errors import CacheError, CacheNotFoundError, DatasetError, WeightsError
from featcache.core.progress import Track, silent
from featcache.core.project import Project
from featcache.core.recipe import FeatureSpace, Precision, Recipe
from featcache.datasets import LabelledImage, current_dataset
from featcache.extraction.plan import network_for
from featcache.extraction.rendering import render_views
from featcache.images import view_parameters
from featcache.store import ROWS_FILE, Row, Verified, open_cache, read_manifest, rows_in, verify

_BATCH_ROWS = 64


@dataclass(frozen=True)
class Recomputed:
    """Rows that were computed again. A deviation of 1 is all that the manifest's tolerance allows."""

    rows: tuple[int, ...]
    deviating: tuple[int, ...]
    largest_deviation: float


def verify_cache(folder: Path, track: Track = silent) -> Verified:
    """`featcache.store._verify.verify`, with progress."""
    try:
        total = sum(entry.bytes for entry in read_manifest(folder).files.values())
    except CacheNotFoundError:
        raise
    except CacheError:
        total = 0
    with track(f"verifying {folder.name}", total) as advance:
        return verify(folder, advance)


def recompute(
    project: Project, folder: Path, n_rows: int, weights: str | None = None, seed: int | None = None
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
    at_hand = [number for number, row in enumerate(rows_in(opened.views)) if row.image_id in by_id]
    if not at_hand:
        raise DatasetError(
            f"{project.dataset_file}: lists none of the images of {opened.name}: rows can only be computed again where "
            "the images are"
        )
    some = np.random.default_rng(seed).choice(at_hand, min(n_rows, len(at_hand)), replace=False)
    numbers = np.sort(some)
    _, engine = network_of(project, opened.recipe.space, opened.manifest.provenance, weights)
    rows = rows_in(opened.views.iloc[numbers])
    tolerance = opened.manifest.tolerance
    largest, deviating = 0.0, []
    for first in range(0, len(rows), _BATCH_ROWS):
        batch = rows[first : first + _BATCH_ROWS]
        old = opened.features[numbers[first : first + _BATCH_ROWS]].reshape(len(batch), -1)
        pixels = np.concatenate([_rendered(row, by_id, dataset.folder, opened.recipe) for row in batch])
        with np.errstate(over="ignore"):
            (new,) = engine().features(pixels)
            new = new.astype(old.dtype).reshape(len(batch), -1)
        old, new = old.astype(np.float64), new.astype(np.float64)
        allowed = tolerance.relative * np.abs(old) + tolerance.absolute * np.abs(old).max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf; and where nothing is allowed
            off = np.where(old == new, 0.0, np.abs(new - old) / np.maximum(allowed, np.finfo(float).tiny))
        worst = np.where(np.isnan(old) & np.isnan(new), 0.0, np.nan_to_num(off, nan=np.inf)).max(axis=1)
        largest = max(largest, float(worst.max()))
        deviating += [int(number) for number, much in zip(numbers[first:], worst, strict=False) if much > 1]
    return Recomputed(tuple(int(number) for number in numbers), tuple(deviating), largest)


def _rendered(row: Row, images: Mapping[str, LabelledImage], folder: Path, recipe: Recipe) -> NDArray[np.uint8]:
    parameters = view_parameters(recipe.augmentation, row.image_id, row.view)
    if dict(row.parameters) != parameters.to_dict():
        raise CacheError(f"{ROWS_FILE}: view {row.view} of {row.image_id[:16]}.. is not what the recipe makes of it")
    return np.stack(render_views(images[row.image_id], folder, recipe.space, [parameters]))


def network_of(
    project: Project, space: FeatureSpace, provenance: Mapping[str, Any], weights: str | None = None
) -> tuple[Cut, Callable[[], Engine]]:
    """The network that a feature space is of. Raises BackboneError or WeightsError where it cannot be had.

    weights : as for `extract`; None for what the provenance says. Of a network that is not in the registry, its model
    """
    made_with = str(provenance.get("weights", "imagenet"))
    random = re.fullmatch(r"random-([0-9]{1,18})", made_with)
    source = weights or ("random" if random else made_with)
    if weights is None and source not in ("imagenet", "random", ""):  # pixels have none
        raise WeightsError(f"made with the weights file {made_with}", "Say where it is with `weights=PATH`")
    known = not is_own_name(space.backbone)
    if not known and weights is None:
        raise WeightsError(f"made with the model {space.backbone}", "Say where its file is with `weights=PATH`")
    spec = NetworkSpec(
        model=space.backbone if known else source,
        weights=source if known else "imagenet",
        weights_seed=int(random[1]) if random else 0,
        input_size_px=space.input_size_px,
        preprocessing=space.preprocessing,
        layers=(space.layer,),
        pooling=space.pooling,
        precision=cast(Precision, space.precision),
    )
    (cut,), engine = network_for(project, spec)
    found = space_of(cut, space.dtype, space.resize)
    if found != space:
        ours, theirs = asdict(found), asdict(space)
        fields = [
            f"{name} {ours[name]!s:.20} here, {theirs[name]!s:.20} there" for name in ours if ours[name] != theirs[name]
        ]
        raise WeightsError(f"{space.backbone}: this is not the network of the cache: {'; '.join(fields)}")
    return cut, engine
