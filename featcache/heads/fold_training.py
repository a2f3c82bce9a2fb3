"""Heads on parts of one Gram matrix: a fold's kernel is a selection of the matrix of all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import HeadError
from featcache.core.progress import SILENT, Progress
from featcache.datasets import encoded
from featcache.heads import classical, gram, initializers as random, products
from featcache.heads.config import HeadConfig
from featcache.heads.folds import Fold, Labelled, Numbers, stratified
from featcache.heads.kernel import fits, kernel, labelled_rows
from featcache.heads.source import refuse_not_finite
from featcache.heads.stack import Stack, sigmoid, softmax
from featcache.heads.train import row_weights
from featcache.measures import JudgedLabels
from featcache.store import Cache
from featcache.training import Course

Array = NDArray[np.floating[Any]]
_LEAST = 1e-15


class AllRows:
    """What heads on any part of a cache share: its images, labels and the Gram matrix of all rows.

    images : DataFrame, a line an image: image_id, path, label, split, group, view
    image_of : (n,), number of the image of each row
    judged_by : "plain": an image's plain view; "views": the mean over all its views
    """

    def __init__(self, cache: Cache, judged_by: str = "plain", *, progress: Progress = SILENT) -> None:
        self.cache, self.progress = cache, progress
        self.rows = labelled_rows(cache)
        lines = cache.rows.iloc[self.rows]
        plain = lines[lines["view"] == 0].drop_duplicates("image_id")
        self.images = plain.drop(columns="row").reset_index(drop=True)
        self.image_of: Numbers = pd.Index(self.images["image_id"]).get_indexer(pd.Index(lines["image_id"]))
        self.y = cache.labels()[self.rows]
        self._is_judged = np.ones(len(lines), bool) if judged_by == "views" else (lines["view"] == 0).to_numpy()
        self._kernels: dict[str, Array] = {}
        self._first: dict[HeadConfig, tuple[Array, list[tuple[Array, Array]]]] = {}

    @cached_property
    def labelled(self) -> Labelled:
        """The images, as folds are made of them."""
        classes, separator = self.cache.classes, self.cache.label_separator
        labels = encoded(self.images["label"].tolist(), separator, classes=classes)
        return Labelled(labels, self.images["group"].to_numpy(str), classes)

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """Squared norms of all rows. Raises HeadError for features that are not finite."""
        norms = products.squared_norms(self.cache.features, self.rows)
        refuse_not_finite(norms[:, None], self.rows)
        return norms

    def kernel(self, dtype: str) -> Array:
        """The Gram matrix of all rows. Raises HeadError where that and a part of it do not fit into memory."""
        if dtype not in self._kernels:
            n = len(self.rows)
            if not fits((2 * n, n), dtype):
                raise HeadError(
                    f"the Gram matrix of {n} rows needs {n * n * np.dtype(dtype).itemsize / 2**30:.1f} GiB, and as "
                    "much again for the folds, which do not fit into memory"
                )
            _ = self.norms
            with self.progress.begin(f"Gram matrix of {self.cache.name}", n) as advance:
                self._kernels[dtype] = kernel(self.cache, self.rows, right=self.rows, dtype=dtype, on_rows=advance)
        return self._kernels[dtype]

    def first(self, config: HeadConfig) -> tuple[Array, list[tuple[Array, Array]]]:
        """X W0 of all rows, not scaled, and the layers behind W0 with its bias in front, before a training."""
        same = HeadConfig(hidden=config.hidden, scale=config.scale, seed=config.seed, dtype=config.dtype)
        if same not in self._first:
            self._first = {known: made for known, made in self._first.items() if known.seed == config.seed}
            width = products.width(self.cache.features)
            (W0, b0), *rest = random.initial_weights(config, width, n_classes=len(self.cache.classes))
            self._first[same] = products.times(self.cache.features, self.rows, W=W0), [(W0[:0], b0), *rest]
        return self._first[same]

    def rows_of(self, images: Numbers) -> Numbers:
        """All rows of some images."""
        return np.flatnonzero(np.isin(self.image_of, images))

    def judged_rows_of(self, images: Numbers) -> Numbers:
        """Those rows of some images that tell how an image is judged."""
        return np.flatnonzero(np.isin(self.image_of, images) & self._is_judged)

    def averaged(self, probabilities: Array, rows: Numbers, *, images: Numbers) -> Array:
        """Mean probabilities (images, classes) over the rows of each image."""
        places = np.searchsorted(images, self.image_of[rows])
        sums = np.zeros((len(images), probabilities.shape[1]))
        np.add.at(sums, places, probabilities)
        return np.asarray(sums / np.bincount(places, minlength=len(images))[:, None])


@dataclass(frozen=True)
class Dense:
    """Dense heads, trained in Gram space.

    Where a head ends by validation, an inner fold of the training images tells its best epoch; a second training on
    all of them ends there.

    points : settings to choose from by inner folds; none: `config` as it is
    inner_folds : how many of them; one of them tells the best epoch
    """

    config: HeadConfig
    points: Sequence[dict[str, Any]] = ()
    inner_folds: int = 3

    @property
    def dtype(self) -> str:
        """Of the Gram matrix."""
        return self.config.dtype

    @property
    def trainings(self) -> int:
        """How many a fold takes."""
        return 1 + len(self.points) * self.inner_folds

    def seeded(self, repeat: int) -> Dense:
        """The same with another seed for each repeat."""
        return replace(self, config=replace(self.config, seed=(self.config.seed + repeat) % 2**63))

    def refuse_untrainable(self, n_rows: int) -> None:
        """Raise HeadError for settings that Gram space does not have, or a batch larger than a fold's rows."""
        for config in [self.config, *(replace(self.config, **point) for point in self.points)]:
            if config.sgd_refuses:
                raise HeadError(f"cross-validation trains in Gram space, which does not support {config.sgd_refuses}")
            if config.batch > n_rows:
                raise HeadError(f"a batch of {config.batch} rows is more than the {n_rows} of a fold", "Set `batch`")

    def judge(
        self, inputs: AllRows, fold: Fold, *, stopped: Callable[[], bool], done: Callable[[], Any]
    ) -> tuple[Array, dict[str, Any]]:
        """Probabilities (images, classes) of some images by a head trained on others, and how that was trained.

        done : called after each training
        """
        point: dict[str, Any] = {}
        if self.points:
            point = self._chosen(inputs, fold.train, stopped=stopped, done=done)
        config = replace(self.config, **point)
        probabilities, epochs = self._trained(inputs, config, train=fold.train, judged=fold.judged, stopped=stopped)
        done()
        return probabilities, {"trained_epochs": epochs, **point}

    def _chosen(
        self, inputs: AllRows, train: Numbers, *, stopped: Callable[[], bool], done: Callable[[], Any]
    ) -> dict[str, Any]:
        """The settings that judge best over inner folds; the judged images of the outer one are not looked at."""
        y, merits = inputs.labelled.y[train], []
        inner = self._inner_folds(inputs, train)
        for point in self.points:
            config, found = replace(self.config, **point), np.zeros((len(train), len(inputs.cache.classes)))
            for fold in inner:
                try:
                    found[fold.judged], _ = self._trained(
                        inputs, config, train=train[fold.train], judged=train[fold.judged], stopped=stopped
                    )
                except HeadError:  # it diverges
                    found[fold.judged] = np.nan
                done()
            merits.append(_merit(found, y, config.monitor))
        if not np.isfinite(merits).any():
            raise HeadError("every combination of settings diverged in a fold: try smaller learning rates")
        return dict(self.points[int(np.nanargmax(merits))])

    def _inner_folds(self, inputs: AllRows, images: Numbers) -> list[Fold]:
        return stratified(inputs.labelled[images], self.inner_folds, seed=self.config.seed, setting="inner_folds")

    def _trained(
        self, inputs: AllRows, config: HeadConfig, *, train: Numbers, judged: Numbers, stopped: Callable[[], bool]
    ) -> tuple[Array, int]:
        """Probabilities of images by a head that was trained on others, and how many epochs that took."""
        rules = config
        if config.monitor.startswith("val") and (config.patience or config.restore_best):
            epochs = self._best_epoch(inputs, config, train, stopped)
            rules = replace(config, epochs=epochs, patience=0, restore_best=False)
        rows = inputs.rows_of(train)
        problem, stack = _problem(inputs, config, train=rows, val=rows[:0])
        course: Course[gram.State] = Course(rules, stopped=stopped)
        last = gram.train(problem, gram.start(problem, stack), course=course)
        of = inputs.judged_rows_of(judged)
        state = gram.on_features(problem, course.chosen(last))
        found = _judged(inputs, config, state, train=rows, rows=of, factor=problem.factor)
        return inputs.averaged(found, of, images=judged), len(last.history)

    def _best_epoch(self, inputs: AllRows, config: HeadConfig, images: Numbers, stopped: Callable[[], bool]) -> int:
        """The epoch that an inner fold likes best, of a training on the others."""
        inner = self._inner_folds(inputs, images)[0]
        train, val = inputs.rows_of(images[inner.train]), inputs.judged_rows_of(images[inner.judged])
        problem, stack = _problem(inputs, config, train=train, val=val)
        course: Course[gram.State] = Course(config, stopped=stopped)
        gram.train(problem, gram.start(problem, stack), course=course)
        return course.best_epoch


@dataclass(frozen=True)
class Classical:
    """Classifiers of scikit-learn, on the Gram matrix."""

    kind: str
    seed: int = 0
    dtype: str = "float32"
    trainings: int = 1

    def seeded(self, repeat: int) -> Classical:
        """The same with another seed for each repeat."""
        return replace(self, seed=self.seed + repeat)

    def refuse_untrainable(self, n_rows: int) -> None:
        """Raise HeadError for an unknown kind."""
        classical.classical_head(self.kind)

    def judge(
        self, inputs: AllRows, fold: Fold, *, stopped: Callable[[], bool], done: Callable[[], Any]
    ) -> tuple[Array, dict[str, Any]]:
        """As of `Dense`."""
        if stopped():
            raise KeyboardInterrupt
        K, rows, of = inputs.kernel(self.dtype), inputs.rows_of(fold.train), inputs.judged_rows_of(fold.judged)
        model = classical.fit_classical(self.kind, K[np.ix_(rows, rows)], y=inputs.y[rows], seed=self.seed)
        norms = np.diagonal(K).astype(np.float64)
        found = classical.probabilities(model, K[np.ix_(of, rows)], norms=norms[of], train_norms=norms[rows])
        done()
        return inputs.averaged(found, of, images=fold.judged), {}


def _problem(inputs: AllRows, config: HeadConfig, *, train: Numbers, val: Numbers) -> tuple[gram.GramProblem, Stack]:
    """The training of a head on some rows: parts of what is known of all rows."""
    K, (P0, layers) = inputs.kernel(config.dtype), inputs.first(config)
    of_train = K[np.ix_(train, train)]
    scale = 1.0
    if config.scale != "none":
        norm = float(inputs.norms[train].mean())
        is_centred = config.scale == "centred"
        scale = random.scale_of(
            random.centred_squared_norm(norm, float(of_train.mean(dtype=np.float64))) if is_centred else norm
        )
    problem = gram.GramProblem(
        K=of_train,
        P0=P0[train] * P0.dtype.type(scale),
        y=inputs.y[train],
        weights=row_weights(inputs.y[train], config),
        K_val=K[np.ix_(val, train)],
        P0_val=P0[val] * P0.dtype.type(scale),
        y_val=inputs.y[val],
        factor=scale**2,
        mean_of=np.full(len(train), 1 / len(train), K.dtype) if config.scale == "centred" else None,
    )
    (_, b0), *rest = layers
    return problem, Stack(b0.copy(), [(W.copy(), b.copy()) for W, b in rest], config)


def _judged(
    inputs: AllRows, config: HeadConfig, state: gram.State, *, train: Numbers, rows: Numbers, factor: float
) -> Array:
    """Probabilities (n, classes) of some rows, by a head that was trained on others.

    factor : of the problem that it was trained on
    """
    P0, _ = inputs.first(config)
    Z = inputs.kernel(config.dtype)[np.ix_(rows, train)] @ state.A
    Z += P0[rows] * P0.dtype.type(np.sqrt(factor) * state.s)
    logits = state.stack.forward(Z)
    return sigmoid(logits) if config.output == "sigmoid" else softmax(logits)


def _merit(probabilities: Array, y: NDArray[np.int64], monitor: str) -> float:
    """How well images were judged, the higher the better; NaN where a training diverged."""
    if y.ndim == 2:
        judged = JudgedLabels(probabilities, y, groups=np.arange(len(y)))
        merit = judged.is_right.mean() if monitor.endswith("accuracy") else -judged.values().overall["loss"][0]
        return float(merit) if np.isfinite(probabilities).all() else float("nan")
    if monitor.endswith("accuracy"):
        return float((probabilities.argmax(axis=1) == y).mean()) if np.isfinite(probabilities).all() else float("nan")
    share = probabilities[np.arange(len(y)), y] / probabilities.sum(axis=1)
    return float(np.log(np.maximum(share, _LEAST)).mean())
