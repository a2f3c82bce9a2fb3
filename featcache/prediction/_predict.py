"""predict: the class of each image, and the probability of every class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, RunError, UsageError
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.shown import shown
from featcache.doubt import DOUBT_FILE, Doubt
from featcache.extraction import stream
from featcache.heads import TrainedHead
from featcache.images import Item
from featcache.measures import labels_named
from featcache.prediction.alignment import Alignment
from featcache.prediction.bundle import Bundle
from featcache.prediction.opening import (
    as_cache,
    check_um_per_px,
    items_in,
    names_of_rows,
    refuse_size_of_rows,
    size_remedy,
    with_sizes,
)
from featcache.prediction.predictor import Predictor, doubt_of, has_several_labels, head_for, open_trained
from featcache.store import Cache
from featcache.training import Run

_BETWEEN = " | "


@dataclass(frozen=True)
class Predictions:
    """What a run says of some images.

    Attributes
    ----------
    run : its name
    classes : labels, in the order of the columns of `probabilities`
    paths : of each image; "image 17" of an array
    probabilities : ndarray of shape (n, classes), float, as the run's own predictions.csv has them
    calibrated : the same as sure as validation images have shown them to be right; None of runs that an earlier
        featcache trained
    sets : (n, classes), bool: the classes that an image may be of, at the confidence that was asked for; or None
    unlike : (n,), bool: whether an image is unlike the training images; None where that is not known
    left_out : (path, reason) of what could not be used
    several_labels : whether each label is told by itself, and an image may have several of them, or none
    """

    run: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    probabilities: NDArray[np.floating[Any]]
    calibrated: NDArray[np.floating[Any]] | None = None
    sets: NDArray[np.bool_] | None = None
    unlike: NDArray[np.bool_] | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    several_labels: bool = False

    @property
    def labels(self) -> NDArray[np.str_]:
        """The most probable class of each image, (n,); of several labels an image all of them, " | " between."""
        if self.several_labels:
            return np.array([_BETWEEN.join(labels) for labels in self.label_sets], dtype=str)
        return np.asarray(np.array(self.classes, dtype=str)[self.probabilities.argmax(axis=1)])

    @property
    def label_sets(self) -> list[tuple[str, ...]]:
        """The labels of each image: those with a probability above one half; of one class an image that one."""
        if self.several_labels:
            return labels_named(self.probabilities, self.classes)
        return [(str(label),) for label in self.labels]

    @property
    def confidence(self) -> NDArray[np.floating[Any]] | None:
        """The calibrated probability of the class that is named, (n,)."""
        if self.calibrated is None:
            return None
        return np.asarray(np.take_along_axis(self.calibrated, self.probabilities.argmax(axis=1)[:, None], axis=1)[:, 0])

    def set_of(self, number: int) -> tuple[str, ...] | None:
        """The classes that an image may be of; () where the run would miss too often if it named one."""
        if self.sets is None:
            return None
        return tuple(label for label, inside in zip(self.classes, self.sets[number], strict=True) if inside)

    def to_frame(self) -> pd.DataFrame:
        """One line an image: path, class, a column p_LABEL for each class; confidence, set, unlike where known.

        The classes of a set stand behind each other with " | " between them. Of several labels an image, the column is
        `labels` instead of `class`, in the same way.
        """
        columns = {f"p_{label}": self.probabilities[:, number] for number, label in enumerate(self.classes)}
        known: dict[str, Any] = {"confidence": self.confidence, "unlike": self.unlike}
        if self.sets is not None:
            known["set"] = [_BETWEEN.join(self.set_of(number) or ()) for number in range(len(self))]
        doubt = {name: known[name] for name in ("confidence", "set", "unlike") if known.get(name) is not None}
        name = "labels" if self.several_labels else "class"
        return pd.DataFrame({"path": list(self.paths), name: self.labels, **columns, **doubt})

    def to_dict(self) -> dict[str, Any]:
        """The same as a value for JSON.

        {run, classes, rows: [{path, class, probabilities, confidence, set, unlike}], left_out}; what is not known is
        None. Of several labels an image, rows are {path, labels, probabilities, unlike}.
        """
        unlike = [None] * len(self) if self.unlike is None else self.unlike.tolist()
        return {
            "run": self.run,
            "classes": list(self.classes),
            "rows": self._rows_of_labels(unlike) if self.several_labels else self._rows_of_classes(unlike),
            "left_out": [{"path": path, "reason": reason} for path, reason in self.left_out],
        }

    def _rows_of_labels(self, unlike: Sequence[bool | None]) -> list[dict[str, Any]]:
        columns = (self.paths, self.label_sets, self.probabilities.tolist(), unlike)
        return [
            {
                "path": path,
                "labels": list(labels),
                "probabilities": dict(zip(self.classes, row, strict=True)),
                "unlike": odd,
            }
            for path, labels, row, odd in zip(*columns, strict=True)
        ]

    def _rows_of_classes(self, unlike: Sequence[bool | None]) -> list[dict[str, Any]]:
        confidence = [None] * len(self) if self.confidence is None else self.confidence.tolist()
        sets = [None if self.sets is None else list(self.set_of(number) or ()) for number in range(len(self))]
        columns = (self.paths, self.labels, self.probabilities.tolist(), confidence, sets, unlike)
        return [
            {
                "path": path,
                "class": str(label),
                "probabilities": dict(zip(self.classes, row, strict=True)),
                "confidence": sure,
                "set": inside,
                "unlike": odd,
            }
            for path, label, row, sure, inside, odd in zip(*columns, strict=True)
        ]

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
    confidence: float | None = None,
    false_alarms: float = 0.05,
    um_per_px: float | None = None,
    engine: str = "auto",
    batch_rows: int | None = None,
    offline: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """The class of each image, and the probability of every class, by a trained head or whole network.

    Parameters
    ----------
    run : a run, its folder, or its name in the project; or the file of a bundle, which needs no project
    source : files, folders, arrays uint8 (n, h, w, 3), or what yields these; a `Cache` or its folder, whose rows are
        used as they are, without a network; a `Project` or its folder: the images and boxes of dataset.csv
    project : where runs are looked for; by default the one around the current folder
    weights : file of the network's weights, where they are not those of ImageNet; known again by their digest
    tta : test-time augmentation: the mean over so many views of each image, the plain one included
    confidence : find for each image a set of classes that holds the true one with this probability, such as 0.9
    um_per_px : side of a pixel of the images in micrometres, instead of what their files say; for runs on views of one
        magnification only
    false_alarms : share of images like the training images that `unlike` may mark, too
    engine, batch_rows : as of `extract`
    offline : whether no network connection is made, for weights neither
    strict : whether an image that cannot be used ends the call; else it is left out, with the reason
    progress : told how far it is

    Returns
    -------
    Predictions, in the order of the source: `labels` (n,), `probabilities` (n, classes), `to_frame()`; of a run on
    several labels an image, `label_sets` has those of each

    Raises
    ------
    RunError : there is no such run, it is damaged, a classical head of an earlier featcache, which kept no model; or
        a confidence is asked of a run that kept nothing of its validation images
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
    found = open_trained(run, project)
    check_doubt(found, confidence=confidence, false_alarms=false_alarms)
    asked: dict[str, Any] = {"confidence": confidence, "false_alarms": false_alarms}
    with without_network(offline):
        cache = as_cache(source)
        if cache is not None:
            refuse_size_of_rows(cache, um_per_px)
            return _of_cache(found, cache, **asked)
        predictor = Predictor.of(found, weights=weights, engine=engine, batch_rows=batch_rows, progress=progress)
        check_um_per_px(um_per_px, predictor.recipe, name=predictor.name)
        items = with_sizes(items_in(source), um_per_px)
        used, rows, left_out = rows_of(predictor, items, tta=tta, strict=strict, progress=progress)
    if not used:
        why = f": {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise DatasetError(f"no image to predict{why}", size_remedy(um_per_px, predictor.recipe))
    doubt, paths = predictor.doubt, tuple(item.name for item in used)
    made = said(predictor.name, predictor.head, paths=paths, rows=rows, doubt=doubt, **asked)
    return replace(made, left_out=tuple(left_out))


def rows_of(
    predictor: Predictor,
    items: Iterable[Item],
    *,
    tta: int,
    strict: bool,
    progress: Progress,
    align: Alignment | None = None,
) -> tuple[list[Item], NDArray[np.float64], list[tuple[str, str]]]:
    """The images that can be used, (n, classes + 1) probabilities and distances of them, and (name, reason) of others.

    align : applied to the features of all images together, which are then held in memory

    Raises DatasetError at the first image that cannot be used, where `strict`.
    """
    total = len(items) if isinstance(items, list) else 0
    used, rows, left_out, whole = [], [], [], []
    with progress.stopping() as stopped, progress.begin(f"predicting by {predictor.name}", total) as advance:
        for one in stream(
            items,
            predictor.engine,
            rendering=predictor.rendering(tta),
            finish=predictor.rounded if align else predictor.probabilities_and_distances,
            stopped=stopped,
        ):
            advance(1)
            if one.values is None:
                left_out.append((one.item.name, one.problem))
                if strict:
                    raise DatasetError(f"{one.item.name}: {one.problem}")
            else:
                used.append(one.item)
                rows.append(one.values)
                whole += [f"{one.remark}; the first: {one.item.name}"] if one.remark else []
    if whole:
        progress.note(f"images used whole: {len(whole)} ({whole[0]})")
    if align and rows:
        aligned = predictor.probabilities_and_distances(align(np.concatenate(rows)))
        rows = list(aligned.reshape(len(rows), tta, -1))
    return used, np.array([_averaged(values) for values in rows]), left_out


def rows_streamed(
    predictor: Predictor, items: Iterable[Item], *, tta: int, stopped: Callable[[], bool]
) -> Iterator[tuple[Item, NDArray[np.float64] | None, str]]:
    """Each image with its probabilities and distance (classes + 1), in order; or with None and why it has none."""
    finish = predictor.probabilities_and_distances
    for one in stream(items, predictor.engine, rendering=predictor.rendering(tta), finish=finish, stopped=stopped):
        yield one.item, None if one.values is None else _averaged(one.values), one.problem


def _averaged(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Of the views of an image, (views, classes + 1): the mean probabilities, and the distance of the plain one."""
    return np.append(values[:, :-1].mean(axis=0), values[0, -1])


def check_doubt(trained: Run | Bundle, *, confidence: float | None, false_alarms: float) -> None:
    """Raises UsageError for a share that is none and where an image may have several labels, RunError where a run
    cannot say how sure it is."""
    for name, share in {"confidence": confidence, "false_alarms": false_alarms}.items():
        if share is not None and not 0 < share < 1:
            raise UsageError(f"`{name}={share}`: expected a number between 0 and 1")
    if confidence is not None and has_several_labels(trained):
        raise UsageError(
            f"`confidence` finds classes of which one is right, and {trained.name} tells several labels an image",
            "Leave out `confidence`: each label has its own probability",
        )
    if confidence is not None and doubt_of(trained) is None:
        raise RunError(
            f"{trained.name}: keeps no {DOUBT_FILE}, which says what its validation images were, as runs of an earlier "
            "featcache",
            "Train it once more with `again=True`",
        )


def _of_cache(run: Run | Bundle, cache: Cache, **asked: Any) -> Predictions:
    """Of the rows that a cache holds."""
    head, doubt = head_for(run, cache), doubt_of(run)
    probabilities = head.probabilities(cache)
    distances = np.full(len(probabilities), np.nan)
    if doubt:
        for place, block in cache.features.blocks():
            distances[place] = doubt.distances_of(block)
    rows = np.column_stack([probabilities, distances])
    return said(run.name, head, paths=names_of_rows(cache), rows=rows, doubt=doubt, **asked)


def said(
    name: str,
    head: TrainedHead,
    *,
    paths: tuple[str, ...],
    rows: NDArray[np.float64],
    doubt: Doubt | None,
    confidence: float | None,
    false_alarms: float,
) -> Predictions:
    """What probabilities of a head and a distance (n, classes + 1) say.

    Raises RunError for probabilities that are no numbers: huge weights in a damaged model make NaN.
    """
    probabilities, distances = rows[:, :-1], rows[:, -1]
    if not np.isfinite(probabilities).all():
        raise RunError(f"{name}: its probabilities are not finite: the model is damaged", "Train the run again")
    unlike = doubt.unlike(distances, false_alarms) if doubt is not None and doubt.likeness else None
    if doubt is None or head.has_several_labels:
        several = head.has_several_labels
        return Predictions(name, head.classes, paths, probabilities, unlike=unlike, several_labels=several)
    return Predictions(
        name,
        head.classes,
        paths,
        probabilities,
        calibrated=doubt.calibrated(probabilities),
        sets=doubt.sets(probabilities, confidence) if confidence is not None else None,
        unlike=unlike,
    )
