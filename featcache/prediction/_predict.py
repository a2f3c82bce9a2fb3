"""predict: the class of each image, and the probability of every class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.backbones import Engine, whole_network
from featcache.core.errors import DatasetError, RunError, UsageError
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.recipe import Recipe
from featcache.core.shown import shown
from featcache.extraction import Rendering, stream
from featcache.images import Item
from featcache.prediction.opening import (
    as_cache,
    classes_of,
    head_of,
    is_whole,
    items_in,
    names_of_rows,
    open_features,
    open_run,
    open_whole,
    recipe_of,
    refuse_whole,
)
from featcache.store import Cache
from featcache.training import MODEL_FILE, Run


@dataclass(frozen=True)
class Predictions:
    """What a run says of some images.

    run : its name
    classes : labels, in the order of the columns of `probabilities`
    paths : of each image; "image 17" of an array
    probabilities : ndarray of shape (n, classes), float
    left_out : (path, reason) of what could not be used
    """

    run: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    probabilities: NDArray[np.floating[Any]]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def labels(self) -> NDArray[np.str_]:
        """The most probable class of each image, (n,)."""
        return np.asarray(np.array(self.classes, dtype=str)[self.probabilities.argmax(axis=1)])

    def to_frame(self) -> pd.DataFrame:
        """One line an image: path, class, and a column p_LABEL for each class."""
        columns = {f"p_{label}": self.probabilities[:, number] for number, label in enumerate(self.classes)}
        return pd.DataFrame({"path": list(self.paths), "class": self.labels, **columns})

    def to_dict(self) -> dict[str, Any]:
        """The same as a value for JSON: {run, classes, rows: [{path, class, probabilities}], left_out}."""
        return {
            "run": self.run,
            "classes": list(self.classes),
            "rows": [
                {"path": path, "class": str(label), "probabilities": dict(zip(self.classes, row, strict=True))}
                for path, label, row in zip(self.paths, self.labels, self.probabilities.tolist(), strict=True)
            ],
            "left_out": [{"path": path, "reason": reason} for path, reason in self.left_out],
        }

    def __len__(self) -> int:
        return len(self.paths)

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, float_format="{:.3f}".format, max_rows=20))


def predict(
    run: Run | str | Path,
    source: Any,
    *,
    project: Project | None = None,
    weights: str | None = None,
    tta: int = 1,
    engine: str = "auto",
    batch_rows: int | None = None,
    offline: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """The class of each image, and the probability of every class, by a trained head or whole network.

    Parameters
    ----------
    run : a run, its folder, or its name in the project
    source : files, folders, arrays uint8 (n, h, w, 3), or what yields these; a `Cache` or its folder, whose rows are
        used as they are, without a network; a `Project` or its folder: the images and boxes of dataset.csv
    project : where runs are looked for; by default the one around the current folder
    weights : file of the network's weights, where they are not those of ImageNet; known again by their digest
    tta : test-time augmentation: the mean over so many views of each image, the plain one included
    engine, batch_rows : as of `extract`
    offline : whether no network connection is made, for weights neither
    strict : whether an image that cannot be used ends the call; else it is left out, with the reason
    progress : told how far it is

    Returns
    -------
    Predictions, in the order of the source: `labels` (n,), `probabilities` (n, classes), `to_frame()`

    Raises
    ------
    RunError : there is no such run, it is damaged, or a classical head of an earlier featcache, which kept no model
    WeightsError : the network's weights are not at hand, or others
    HeadError : the cache holds features of another network
    DatasetError : no image can be used, or one where `strict`

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> run = fc.fit_head(fc.extract(project, "pixels", input_size_px=16), epochs=2)
    >>> fc.predict(run, "leukocytes/monocyte").probabilities.shape
    (8, 4)
    """
    progress = shown(progress)
    if tta < 1:
        raise UsageError(f"`tta={tta}`: expected a whole number of at least 1")
    found = open_run(run, project)
    with without_network(offline):
        cache = as_cache(source)
        if cache is not None:
            return _of_cache(found, cache)
        predictor = _Predictor.of(found, weights, engine=engine, batch_rows=batch_rows, progress=progress)
        items: Iterable[Item] = items_in(source)
        total = len(items) if isinstance(items, list) else 0
        paths, rows, left_out = [], [], []
        with progress.stopping() as stopped, progress.begin(f"predicting by {found.name}", total) as advance:
            for one in stream(
                items,
                predictor.engine,
                rendering=predictor.rendering(tta),
                finish=predictor.finish,
                stopped=stopped,
            ):
                advance(1)
                if one.values is None:
                    left_out.append((one.item.name, one.problem))
                    if strict:
                        raise DatasetError(f"{one.item.name}: {one.problem}")
                else:
                    paths.append(one.item.name)
                    rows.append(one.values.mean(axis=0))
    if not rows:
        why = f": {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise DatasetError(f"no image to predict{why}")
    return Predictions(found.name, predictor.classes, tuple(paths), _numbers(found, np.stack(rows)), tuple(left_out))


@dataclass(frozen=True)
class _Predictor:
    """Pixels to probabilities: an engine, and what is done with its output."""

    recipe: Recipe
    classes: tuple[str, ...]
    engine: Engine
    finish: Callable[[NDArray[Any]], NDArray[Any]]

    def rendering(self, views: int) -> Rendering:
        """How images become the network's input: as for the run."""
        space = self.recipe.space
        return Rendering(space.input_size_px, space.resize, self.recipe.augmentation, views)

    @classmethod
    def of(
        cls, run: Run, weights: str | None, *, engine: str, batch_rows: int | None, progress: Progress
    ) -> _Predictor:
        """The one of a run."""
        recipe, classes = recipe_of(run), classes_of(run)
        with progress.begin("opening the network", 1) as advance:
            if is_whole(run):
                network = whole_network(run.folder / MODEL_FILE)
                opened = open_whole(run, network, engine=engine, batch_rows=batch_rows, progress=progress)
                made = cls(recipe, classes, opened, lambda probabilities: probabilities)
            else:
                head, dtype = head_of(run), np.dtype(recipe.space.dtype)
                opened = open_features(run, weights, engine=engine, batch_rows=batch_rows, progress=progress)
                made = cls(recipe, classes, opened, lambda X: head.probabilities_of(X.astype(dtype, copy=False)))
            advance(1)
        return made


def _of_cache(run: Run, cache: Cache) -> Predictions:
    """Of the rows that a cache holds."""
    refuse_whole(run, cache)
    head = head_of(run)
    return Predictions(run.name, head.classes, names_of_rows(cache), _numbers(run, head.probabilities(cache)))


def _numbers(run: Run, probabilities: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """The probabilities, if they are numbers: huge weights in a damaged model make NaN."""
    if not np.isfinite(probabilities).all():
        raise RunError(f"{run.name}: its probabilities are not finite: the model is damaged", "Train the run again")
    return probabilities
