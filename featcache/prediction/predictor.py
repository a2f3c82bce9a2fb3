"""A trained run made ready to predict: a network that computes features, a head on them, and its doubt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Engine, at_last_map, whole_network
from featcache.core.errors import UsageError
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.recipe import Recipe
from featcache.doubt import Doubt
from featcache.extraction import Rendering
from featcache.heads import Head, TrainedHead
from featcache.prediction.bundle import Bundle, is_bundle
from featcache.prediction.opening import (
    classes_of,
    head_of,
    is_whole,
    open_features,
    open_run,
    open_whole,
    recipe_of,
    segmenter_of,
)
from featcache.segmentation import CellCut, Framing, Segmenter
from featcache.store import Cache
from featcache.training import MODEL_FILE, Run


def open_trained(run: Run | str | Path, project: Project | None = None) -> Run | Bundle:
    """A run, as of `open_run`; or the bundle in a .zip file."""
    return Bundle.read(Path(run)) if isinstance(run, (str, Path)) and is_bundle(run) else open_run(run, project)


def doubt_of(trained: Run | Bundle) -> Doubt | None:
    """What a run kept of its validation images; None of runs that an earlier featcache trained."""
    return trained.head_and_doubt[1] if isinstance(trained, Bundle) else Doubt.load(trained.folder)


def has_several_labels(trained: Run | Bundle) -> bool:
    """Whether a run tells each label by itself, so that an image may have several."""
    if isinstance(trained, Bundle):
        return trained.head_and_doubt[0].has_several_labels
    return bool(trained.config.get("label_separator"))


def head_for(trained: Run | Bundle, cache: Cache) -> TrainedHead:
    """The head of a run, for the features of a cache. Raises UsageError for a whole network."""
    if trained.record.is_whole if isinstance(trained, Bundle) else is_whole(trained):
        raise UsageError(f"{trained.name}: is a whole network, which takes images, not the features of {cache.name}")
    return trained.head_and_doubt[0] if isinstance(trained, Bundle) else head_of(trained)


@dataclass(frozen=True)
class Predictor:
    """Pixels to probabilities.

    name : of the run
    engine : computes features; of a whole network its last feature map
    head : on these features; of a whole network what follows its last feature map
    dtype : that features are rounded to, as they were for the training
    is_whole : whether it is a whole network, and no head on features
    doubt : None of runs that an earlier featcache trained
    segmenter : the fitted one that cuts cells out, where it is one
    """

    name: str
    recipe: Recipe
    engine: Engine
    head: TrainedHead
    dtype: np.dtype[Any]
    is_whole: bool
    doubt: Doubt | None
    segmenter: Segmenter | None = None

    @classmethod
    def of(
        cls,
        trained: Run | Bundle,
        *,
        weights: str | None = None,
        engine: str = "auto",
        batch_rows: int | None = None,
        progress: Progress,
    ) -> Self:
        """The one of a run or bundle. Raises RunError for a damaged one, WeightsError without its network's weights."""
        with progress.begin("opening the network", 1) as advance:
            if isinstance(trained, Bundle):
                made = cls._of_bundle(trained, weights, engine)
            else:
                made = cls._of_run(trained, weights, engine=engine, batch_rows=batch_rows, progress=progress)
            advance(1)
        return made

    @classmethod
    def _of_run(cls, run: Run, weights: str | None, *, engine: str, batch_rows: int | None, progress: Progress) -> Self:
        recipe, doubt = recipe_of(run), Doubt.load(run.folder)
        head: TrainedHead
        if is_whole(run):
            network, top = at_last_map(whole_network(run.folder / MODEL_FILE))
            shape = network.cuts[0].feature_shape
            head = Head(shape, top.scale, top.layers, 0.0, classes_of(run), activation=top.activation)
            opened = open_whole(run, network, engine=engine, batch_rows=batch_rows, progress=progress)
            dtype = np.dtype(np.float32)
        else:
            head, dtype = head_of(run), np.dtype(recipe.space.dtype)
            opened = open_features(run, weights, engine=engine, batch_rows=batch_rows, progress=progress)
        segmenter = segmenter_of(run, recipe, weights=weights, progress=progress)
        return cls(run.name, recipe, opened, head, dtype, is_whole(run), doubt, segmenter)

    @classmethod
    def _of_bundle(cls, bundle: Bundle, weights: str | None, engine: str) -> Self:
        if weights is not None or engine != "auto":
            raise UsageError(
                f"{bundle.path}: a bundle brings its own weights and runtime: leave out `weights` and `engine`"
            )
        head, doubt = bundle.head_and_doubt
        dtype = np.dtype(bundle.record.dtype)
        return cls(bundle.name, bundle.recipe, bundle.engine(), head, dtype, bundle.record.is_whole, doubt)

    def rendering(self, views: int = 1) -> Rendering:
        """How images become the network's input: as for the run."""
        space = self.recipe.space
        return Rendering(space.input_size_px, Framing.of(space), self.recipe.augmentation, views, self.segmenter)

    def refuse_given(self, what: str) -> None:
        """Raise UsageError where cells are cut out by masks that come with images. what : comes without a mask"""
        if CellCut.is_given(self.recipe.space.segmentation):
            raise UsageError(
                f"{self.name}: its cells are cut out by the masks that come with images, and {what} has none",
                "Train a head on cells that are found, with `segment='stain'`",
            )

    def rounded(self, features: NDArray[Any]) -> NDArray[Any]:
        """Features as a cache keeps them."""
        return features.astype(self.dtype, copy=False)

    def probabilities_and_distances(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Of features (n, ..., c): (n, classes + 1), the last column the distance from the training images, or NaN."""
        features = self.rounded(features)
        distances = self.doubt.distances_of(features) if self.doubt else np.full(len(features), np.nan)
        return np.column_stack([self.head.probabilities_of(features), distances])
