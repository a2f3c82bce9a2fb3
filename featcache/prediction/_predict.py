"""predict: the class of each image, and the probability of every class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.backbones import CALIBRATION_FILE, Engine, open_engine, whole_network
from featcache.core.errors import DatasetError, ProjectError, RunError, UsageError
from featcache.core.files import meant_by
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.project import PROJECT_FILE, Project, find_project
from featcache.core.recipe import Recipe
from featcache.core.shown import shown
from featcache.datasets import read_dataset
from featcache.extraction import Rendering, network_of, stream
from featcache.heads import HEAD_FILE, TrainedHead, load_head
from featcache.images import Item, items_of
from featcache.store import RECIPE_FILE, Cache, open_cache
from featcache.training import MODEL_FILE, Run, is_finished, list_runs


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
        cache = _as_cache(source)
        if cache is not None:
            return _of_cache(found, cache)
        predictor = _Predictor.of(found, weights, engine=engine, batch_rows=batch_rows, progress=progress)
        items: Iterable[Item] = _items(source)
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


def open_run(run: Run | str | Path, project: Project | None = None) -> Run:
    """A run by its folder, or by its name, or how that begins, in a project. Raises RunError where there is none."""
    if isinstance(run, Run):
        return run
    if is_finished(Path(run)):
        return Run(Path(run))
    try:
        project = project or find_project(Path())
    except ProjectError as error:
        raise RunError(f"{run}: there is no such run ({error})") from error
    there = [one.folder for one in list_runs(project.results_folder)]
    name = str(run)
    meant = meant_by(name, there)
    if len(meant) != 1:
        names = ", ".join(folder.name for folder in (meant or there)) or "none"
        raise RunError(f"{name!r:.200}: {'several runs' if meant else 'no run'} of that name (there: {names})")
    return Run(meant[0])


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
        recipe, classes = _recipe_of(run), _classes_of(run)
        memory = _memory(run)
        with progress.begin("opening the network", 1) as advance:
            if (run.folder / MODEL_FILE).is_file():
                calibration = memory / CALIBRATION_FILE if memory else None
                made = cls(
                    recipe,
                    classes,
                    open_engine(
                        whole_network(run.folder / MODEL_FILE),
                        engine,
                        batch_rows=batch_rows,
                        memory=calibration,
                        on_event=progress.note,
                    ),
                    lambda probabilities: probabilities,
                )
            else:
                head = _head_of(run)
                _, opened = network_of(
                    recipe.space,
                    {"weights": run.config.get("weights", "")},
                    weights=weights,
                    memory=memory,
                    engine=engine,
                    batch_rows=batch_rows,
                    progress=progress,
                )
                dtype = np.dtype(recipe.space.dtype)
                made = cls(recipe, classes, opened(), lambda X: head.probabilities_of(X.astype(dtype, copy=False)))
            advance(1)
        return made


def _recipe_of(run: Run) -> Recipe:
    try:
        return Recipe.from_dict(run.config["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.folder}: config.json: its recipe cannot be read: {error}") from error


def _classes_of(run: Run) -> tuple[str, ...]:
    classes = run.config.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(label, str) for label in classes):
        raise RunError(f"{run.folder}: config.json: its classes cannot be read")
    return tuple(classes)


def _head_of(run: Run) -> TrainedHead:
    if not (run.folder / HEAD_FILE).is_file():
        raise RunError(
            f"{run.name}: keeps no model: it has no {HEAD_FILE}, as classical heads that an earlier featcache trained",
            "Train it once more with `featcache.fit_head(head=KIND, again=True)`",
        )
    head = load_head(run.folder)
    if head.classes != _classes_of(run):
        raise RunError(
            f"{run.folder}: head.npz knows the classes {', '.join(head.classes)}, config.json "
            f"{', '.join(_classes_of(run))}: one of the files was replaced",
            "Train the run again",
        )
    return head


def _memory(run: Run) -> Path | None:
    """The folder that remembers networks: of the project that the run lies in."""
    with suppress(ProjectError):
        return find_project(run.folder.parent).cache_folder
    return None


def _of_cache(run: Run, cache: Cache) -> Predictions:
    """Of the rows that a cache holds."""
    if (run.folder / MODEL_FILE).is_file():
        raise UsageError(f"{run.name}: is a whole network, which takes images, not the features of {cache.name}")
    head = _head_of(run)
    probabilities = head.probabilities(cache)
    rows = cache.rows
    names = [
        path if view == 0 else f"{path} view {view}" for path, view in zip(rows["path"], rows["view"], strict=True)
    ]
    return Predictions(run.name, head.classes, tuple(names), _numbers(run, probabilities))


def _numbers(run: Run, probabilities: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """The probabilities, if they are numbers: huge weights in a damaged model make NaN."""
    if not np.isfinite(probabilities).all():
        raise RunError(f"{run.name}: its probabilities are not finite: the model is damaged", "Train the run again")
    return probabilities


def _as_cache(source: Any) -> Cache | None:
    if isinstance(source, Cache):
        return source
    if isinstance(source, (list, tuple)):
        found = [cache for part in source if (cache := _as_cache(part)) is not None]
        if found and len(source) > 1:
            raise UsageError(f"{found[0].name}: is a cache: predict one cache at a time, or images")
        return found[0] if found else None
    if isinstance(source, (str, Path)) and (Path(source) / RECIPE_FILE).is_file():
        return open_cache(source)
    return None


def _items(source: Any) -> list[Item] | Iterator[Item]:
    """The images of a source; a list where their number is known without reading a generator."""
    if isinstance(source, (str, Path, np.ndarray, Project)) or hasattr(source, "convert"):
        parts = [source]
    elif isinstance(source, Iterable) and isinstance(source, Sized):
        parts = list(source)
    else:
        return items_of(source)
    return list(items_of([item for part in parts for item in (_of_project(part) or [part])]))


def _of_project(source: Any) -> list[Item]:
    """The images and boxes of a project, or of its folder; none of anything else."""
    if isinstance(source, (str, Path)) and (Path(source) / PROJECT_FILE).is_file():
        source = find_project(Path(source))
    if not isinstance(source, Project):
        return []
    dataset = read_dataset(source.dataset_file, source.images)
    source.images.refuse_missing(image.path for image in dataset.images)
    return [Item(_name(image.path, image.box), dataset.folder / image.path, box=image.box) for image in dataset.images]


def _name(path: str, box: Any) -> str:
    return path if box is None else f"{path} [{box.x_min}, {box.y_min}, {box.x_max}, {box.y_max}]"
