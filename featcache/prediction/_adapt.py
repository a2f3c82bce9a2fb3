"""adapt: a head for another laboratory, from a run and a few labelled images of that laboratory.

Old and new rows go into one Gram matrix K = X X^T, of which the old part is the one that lies beside the cache. A
logistic regression with weights of rows is fitted to K; on features its weights A of products become X^T A. So the many
fits of a learning curve never see a feature.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, HeadError, RunError, UsageError
from featcache.core.machine import available_bytes
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.recipe import digest
from featcache.core.shown import shown
from featcache.datasets import Dataset, LabelledImage, LeftOut
from featcache.extraction import stream
from featcache.heads import Head, JointRegression
from featcache.measures import Judged, evaluate as measured_by
from featcache.prediction.labelled import labelled_source, match_labels, seen_by, text_of
from featcache.prediction.opening import cache_of, classes_of, head_of, is_whole, item_of, open_run, recipe_of
from featcache.prediction.predictor import Predictor, has_several_labels
from featcache.store import Cache
from featcache.training import (
    Epoch,
    Run,
    described,
    explaining_damage,
    is_finished,
    measured,
    pooled_rows_of,
    runs,
    write_results,
)

_STEPS = (5, 10, 20, 40, 80)
"""Images of a class that the learning curve is made for."""
_DRAWS = 5
"""Times that images are drawn for a point of the curve."""
_CURVE_ROWS = 1500
"""Old rows, at most, that the fits of the curve take: plain views first."""
_MOST_VIEWS = 8
"""Views of a new image, at most."""
_JUDGED = 40
"""Images of a class that are computed besides those that were asked for, to judge by."""

Array = NDArray[np.floating[Any]]
Numbers = NDArray[np.intp]


@dataclass(frozen=True)
class CurvePoint:
    """How good heads are with so many labelled images a class, judged by the new images that they have not seen.

    per_class : 0: none, the old rows alone
    draws : heads that were fitted, each with other images
    balanced_accuracy, low, high : the mean, the worst and the best
    """

    per_class: int
    draws: int
    balanced_accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Adapted:
    """A head for another laboratory.

    Attributes
    ----------
    run : the new run; its test is that of the old one
    used : {class: new images that it was fitted to}
    before, after : measures of the old run and of the new one on the new images that neither has seen; None where there
        are none
    curve : what more labels bring
    left_out : (path, reason) of what could not be used
    remarks : what people should know besides
    reused : whether the run was there already
    """

    run: Run
    used: Mapping[str, int]
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    curve: tuple[CurvePoint, ...]
    left_out: tuple[LeftOut, ...] = ()
    remarks: tuple[str, ...] = ()
    reused: bool = False

    def _repr_html_(self) -> str:
        table = pd.DataFrame([asdict(point) for point in self.curve]).to_html(index=False)
        return f"<b>{escape(self.run.name)}</b>{table}"


@dataclass(frozen=True)
class _New:
    """New images, and their features once they are computed.

    label : (n,), class numbers; group : (n,)
    features : (n, views, ...), in the dtype of the cache
    white : as of `featcache.images.read_picture`
    """

    images: tuple[LabelledImage, ...]
    label: NDArray[np.int64]
    group: NDArray[np.str_]
    features: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    white: int = 0

    def only(self, kept: NDArray[Any]) -> _New:
        return replace(
            self,
            images=tuple(np.array(self.images, object)[kept]),
            label=self.label[kept],
            group=self.group[kept],
            features=self.features[kept] if len(self.features) else self.features,
        )

    def drawn(self, per_class: int | None, seed: int) -> NDArray[np.bool_]:
        """(n,): so many images of each class, by (seed, image) alone; None: all of them."""
        order = np.array([_place(image.image_id, seed) for image in self.images])
        chosen = np.zeros(len(order), bool)
        for number in np.unique(self.label):
            of = np.flatnonzero(self.label == number)
            chosen[of[np.argsort(order[of], kind="stable")][:per_class]] = True
        return chosen

    def apart_from(self, used: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(n,): images whose group none of the used ones is of."""
        return ~used & ~np.isin(self.group, self.group[used])


def adapt(
    run: Run | str | Path,
    labelled: Project | str | Path,
    *,
    per_class: int | None = None,
    weight: float = 1.0,
    seed: int = 0,
    mapping: Mapping[str, str] = MappingProxyType({}),
    project: Project | None = None,
    weights: str | None = None,
    engine: str = "auto",
    batch_rows: int | None = None,
    offline: bool = False,
    strict: bool = False,
    again: bool = False,
    progress: Progress | None = None,
    **dataset: Any,
) -> Adapted:
    """Fit a head to the rows of a run and to a few labelled images of another laboratory. It takes seconds.

    The new head is a logistic regression on the run's features, whatever head the run has. Within old and new rows
    classes count alike. A learning curve says what more labels bring: heads with 5, 10, 20 images a class, each judged
    by the other new images.

    Parameters
    ----------
    run : a run of a head, its folder, or its name in the project; its cache must be there
    labelled : a project, or what `init` reads, with labelled images of the other laboratory
    per_class : use so many images of each class; None: all of them. The others judge the head
    seed : of the choice of images
    weight : of all new rows together, when all old ones together have 1
    mapping : {label there: class of the run, or "" for none} where names differ
    project : where runs and caches are looked for; by default the one around the current folder
    weights, engine, batch_rows, offline : as of `predict`
    strict : whether an image that cannot be used ends the call; else it is left out, with the reason
    again : fit it even if the run is there
    progress : told how far it is
    **dataset : values for [dataset] of how a source is read: label_column, group_pattern, without, voc_object, ...

    Raises
    ------
    RunError : there is no such run, it keeps no head on features, or the new one cannot be written
    CacheNotFoundError : the run's cache is not in the project
    DatasetError : no new image can be used
    HeadError : the new rows do not fit into memory
    UsageError : a setting is out of its range
    WeightsError : the network's weights are not at hand, or others

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> run = fc.fit_head(fc.extract(project, "pixels", input_size_px=16), epochs=2)
    >>> from pathlib import Path
    >>> from featcache.synthetic import generate
    >>> _ = generate(Path("elsewhere"), 4, seed=7)
    >>> fc.adapt(run, "elsewhere", per_class=2).used["monocyte"]
    2
    """
    progress, started = shown(progress), time.perf_counter()
    _refuse_settings(per_class, weight)
    trained = open_run(run, project)
    if is_whole(trained) or has_several_labels(trained):
        what = "is a whole network" if is_whole(trained) else "tells several labels an image"
        raise RunError(f"{trained.name}: {what}, and a head of one label on cached features is needed")
    old_head, classes = head_of(trained), classes_of(trained)
    cache = cache_of(trained)
    new, left_out, remarks = _new_images(
        labelled, dataset, trained, classes=classes, mapping=mapping, strict=strict, progress=progress
    )
    used = new.drawn(per_class, seed)
    identity = _identity(cache, trained, new.only(used), weight=weight, judged=new.only(~used))
    results = trained.folder.parent
    name = runs.run_name("adapted", cache.recipe.space.backbone, identity=identity)
    if is_finished(results / name) and not again:
        return _read(Run(results / name), left_out, remarks, reused=True)
    if per_class is not None:
        new = new.only(new.drawn(per_class + max(_JUDGED, 2 * per_class), seed))
    new, not_read = _with_features(new, cache, trained, weights, engine, batch_rows, offline, progress)
    left_out += not_read
    if strict and not_read:
        raise DatasetError(f"{not_read[0].path}: {not_read[0].reason}")
    used = new.drawn(per_class, seed)
    judged = new.apart_from(used)
    with explaining_damage(cache), runs.new_run(results, name) as folder:
        rows = _Rows(cache, new, weight=weight, progress=progress)
        curve = tuple(_curve(rows, seed, progress))
        head = rows.head(used)
        head.save(folder)
        probabilities = head.probabilities(cache)
        splits = measured(cache, probabilities)
        found = {
            "used": {classes[number]: int((new.label[used] == number).sum()) for number in np.unique(new.label[used])},
            "before": _measures(old_head.probabilities_of, new, judged, classes),
            "after": _measures(head.probabilities_of, new, judged, classes),
            "curve": [asdict(point) for point in curve],
        }
        write_results(
            folder,
            cache,
            config={
                **identity,
                "on": text_of(labelled),
                **described(cache, "by scikit-learn, on the Gram matrix of old and new rows"),
            },
            probabilities=probabilities,
            splits=splits,
            history=[Epoch.only(splits, time.perf_counter() - started)],
            started=started,
            timing={"adaptation": found},
            pooled_rows=pooled_rows_of(cache),
            more_like=new.features[used].reshape(-1, *new.features.shape[2:]),
        )
    return _read(Run(results / name), left_out, remarks, reused=False)


def _refuse_settings(per_class: int | None, weight: float) -> None:
    if per_class is not None and per_class < 1:
        raise UsageError(f"`per_class={per_class}`: expected a whole number of at least 1")
    if not (math.isfinite(weight) and weight > 0):
        raise UsageError(f"`weight={weight}`: expected a number above 0")


def _new_images(
    labelled: Project | str | Path,
    dataset: Mapping[str, Any],
    trained: Run,
    *,
    classes: tuple[str, ...],
    mapping: Mapping[str, str],
    strict: bool,
    progress: Progress,
) -> tuple[_New, list[LeftOut], tuple[str, ...]]:
    """New images of the classes of a run."""
    data, left_out, remarks = labelled_source(
        labelled,
        dataset,
        margin=recipe_of(trained).space.margin,
        unpack_into=trained.folder.parent.parent,
        progress=progress,
    )
    if strict and left_out:
        raise DatasetError(f"{left_out[0].path}: {left_out[0].reason}")
    found = match_labels({image.label for image in data.images}, classes, mapping=mapping)
    seen, images = seen_by(trained), []
    for image in data.images:
        if image.image_id in seen:
            left_out.append(LeftOut(image.path, f"{trained.name} was trained on it, or chosen by it"))
        elif not found[image.label]:
            left_out.append(LeftOut(image.path, f"{image.label} is no class of {trained.name}"))
        else:
            mask = str(data.folder / image.mask) if image.mask else ""
            images.append(replace(image, path=str(data.folder / image.path), mask=mask))
    if not images:
        raise DatasetError(
            f"{text_of(labelled)}: no image of it can be used to adapt {trained.name}"
            + (f": {left_out[0].path}: {left_out[0].reason}" if left_out else ""),
            "Name what stands for what with `mapping`",
        )
    label = np.array([classes.index(found[image.label]) for image in images], np.int64)
    group = np.array([image.group or image.image_id for image in images])
    return _New(tuple(images), label, group, white=data.white), left_out, remarks


def _identity(cache: Cache, trained: Run, used: _New, *, weight: float, judged: _New) -> dict[str, Any]:
    """All that decides the new run."""
    return {
        "kind": "head",
        "cache": cache.manifest.digest,
        "dataset": cache.manifest.dataset_digest,
        "head": {"kind": "logreg", "seed": 0},
        "solver": "scikit-learn",
        "adapted": {
            "from": trained.name,
            "weight": float(weight),
            "images": sorted(image.image_id for image in used.images),
            "labels": digest(_labels(used)),
            "judged_by": digest(_labels(judged)),
        },
    }


def _labels(new: _New) -> list[list[Any]]:
    return sorted([image.image_id, int(label)] for image, label in zip(new.images, new.label, strict=True))


def _place(image_id: str, seed: int) -> int:
    """Where an image stands among others, for a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{image_id}".encode()).digest()[:7], "big")


def _with_features(
    new: _New,
    cache: Cache,
    trained: Run,
    weights: str | None,
    engine: str,
    batch_rows: int | None,
    offline: bool,
    progress: Progress,
) -> tuple[_New, list[LeftOut]]:
    """The new images with features of as many views as train images have; and what cannot be read."""
    train = cache.rows[cache.rows["split"] == "train"]
    views = min(max(round(len(train) / train["image_id"].nunique()), 1), _MOST_VIEWS)
    row_bytes = int(np.prod(cache.features.shape[1:])) * 4
    needed, free = len(new.images) * views * row_bytes * 2, available_bytes()
    if needed > free:
        raise HeadError(
            f"the features of {len(new.images)} new images need {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB "
            "are free",
            "Use fewer of them with `per_class`",
        )
    items = [item_of(one, Dataset((), Path(), white=new.white)) for one in new.images]
    with without_network(offline):
        predictor = Predictor.of(trained, weights=weights, engine=engine, batch_rows=batch_rows, progress=progress)
        kept, values, left_out = np.zeros(len(items), bool), [], []
        with progress.stopping() as stopped, progress.begin("new images", len(items)) as advance:
            computed = stream(
                items,
                predictor.engine,
                rendering=predictor.rendering(views),
                finish=predictor.rounded,
                stopped=stopped,
            )
            for number, one in enumerate(computed):
                advance(1)
                if one.values is None:
                    left_out.append(LeftOut(one.item.name, one.problem))
                else:
                    kept[number] = True
                    values.append(one.values)
    if not values:
        raise DatasetError(f"no new image can be used: {left_out[0].path}: {left_out[0].reason}")
    return replace(new.only(kept), features=np.stack(values)), left_out


class _Rows:
    """Old train rows and the views of new images, with their Gram matrix."""

    def __init__(self, cache: Cache, new: _New, *, weight: float, progress: Progress) -> None:
        self.cache, self.new, self._weight = cache, new, weight
        self.views = new.features.shape[1]
        self.old = cache.numbers("train")
        self.old_y = cache.labels("train")
        flat = new.features.reshape(len(new.label) * self.views, -1).astype(np.float32)
        self._regression = JointRegression(cache, self.old, new=flat, progress=progress)
        view = cache.view[self.old]
        self.few = np.sort(np.argsort(view, kind="stable")[:_CURVE_ROWS])

    def _new_rows(self, images: NDArray[np.bool_]) -> Numbers:
        """Numbers of all views of new images, among the new rows."""
        return np.flatnonzero(np.repeat(images, self.views))

    def _fitted(self, old: Numbers, images: NDArray[np.bool_]) -> tuple[Head, Numbers]:
        """A model of products with these rows, and the numbers of the rows among all."""
        new = self._new_rows(images)
        y = np.concatenate([self.old_y[old], np.repeat(self.new.label[images], self.views)])
        weights = np.concatenate(
            [_alike(self.old_y[old], 1.0), _alike(y[len(old) :], self._weight)],
        )
        rows = np.concatenate([old, len(self.old) + new])
        return self._regression.fit(rows, y, weights=weights / weights.mean()), rows

    def head(self, images: NDArray[np.bool_]) -> Head:
        """The head on features that is fitted to all old rows and these images."""
        model, rows = self._fitted(np.arange(len(self.old)), images)
        return self._regression.on_features(model, rows)

    def balanced_accuracy(self, images: NDArray[np.bool_], judged: NDArray[np.bool_]) -> float:
        """Of a model that is fitted to some of the old rows and these images, on the plain views of others."""
        model, rows = self._fitted(self.few, images)
        plain = len(self.old) + self.views * np.flatnonzero(judged)
        named = model.probabilities_of(self._regression.products(plain, rows)).argmax(axis=1)
        y = self.new.label[judged]
        return float(np.mean([np.mean(named[y == number] == number) for number in np.unique(y)]))


def _alike(y: NDArray[np.int64], total: float) -> Array:
    """Weights of rows by which their classes count alike, and all together `total`."""
    if not len(y):
        return np.empty(0)
    counts = np.bincount(y)
    weights = np.asarray(1.0 / counts[y])
    return np.asarray(weights * (total / weights.sum()))


def _curve(rows: _Rows, seed: int, progress: Progress) -> Iterator[CurvePoint]:
    """Points for as many images as each class has, and some to judge by."""
    new = rows.new
    fewest = int(np.bincount(new.label)[np.unique(new.label)].min())
    steps = [step for step in _STEPS if step + 2 <= fewest]
    none = np.zeros(len(new.label), bool)
    with progress.begin("learning curve", 1 + _DRAWS * len(steps)) as advance:
        alone = rows.balanced_accuracy(none, ~none)
        advance(1)
        yield CurvePoint(0, 1, alone, alone, alone)
        for step in steps:
            found = []
            for draw in range(_DRAWS):
                used = new.drawn(step, seed + 1 + draw)
                judged = new.apart_from(used)
                if judged.any():
                    found.append(rows.balanced_accuracy(used, judged))
                advance(1)
            if found:
                yield CurvePoint(step, len(found), float(np.mean(found)), min(found), max(found))


def _measures(
    probabilities_of: Any, new: _New, judged: NDArray[np.bool_], classes: Sequence[str]
) -> dict[str, Any] | None:
    """Of a head, on the plain views of new images; None of no image."""
    if not judged.any():
        return None
    found = Judged(probabilities_of(new.features[judged, 0]), new.label[judged], groups=new.group[judged])
    return measured_by(found, classes, present_only=True)


def _read(run: Run, left_out: Sequence[LeftOut], remarks: Sequence[str], *, reused: bool) -> Adapted:
    try:
        found = run.metrics["adaptation"]
        return Adapted(
            run=run,
            used=found["used"],
            before=found["before"],
            after=found["after"],
            curve=tuple(CurvePoint(**point) for point in found["curve"]),
            left_out=tuple(left_out),
            remarks=tuple(remarks),
            reused=reused,
        )
    except (KeyError, TypeError) as error:
        raise RunError(f"{run.folder}: is no whole adaptation: {error} is missing", "Adapt again") from error
