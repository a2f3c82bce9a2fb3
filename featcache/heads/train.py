"""Train a head on a cache: choose a solver, bring it what it needs, turn its result into a `Head`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import HeadError
from featcache.core.progress import SILENT, Progress
from featcache.heads import accelerated, block, checkpoint, gram, initializers as random, primal, products
from featcache.heads.checkpoint import AnyState
from featcache.heads.config import Device, HeadConfig, Solver
from featcache.heads.cost import Choice, choose_solver
from featcache.heads.head import MULTI_LABEL, Head
from featcache.heads.kernel import kernel
from featcache.heads.source import refuse_not_finite, source_of
from featcache.heads.stack import Stack
from featcache.store import Cache
from featcache.training import Course, Earlier, Epoch, OnEpoch

Array = NDArray[np.floating[Any]]
Layers = list[tuple[Array, Array]]


@dataclass(frozen=True)
class Trained:
    """A head, the course of its training and the solver that did it.

    epoch : whose weights the head has, counted from 1
    state, best : from which training can go on; best is None without restore_best
    resumed_at : epochs that were not trained now, but by an earlier call
    resumed_from : the name of the run or training that had them
    """

    head: Head
    history: list[Epoch]
    choice: Choice
    epoch: int
    state: checkpoint.State
    best: checkpoint.State | None = None
    resumed_at: int = 0
    resumed_from: str = ""


class SharedInputs:
    """What every head on one cache needs: labels, norms and Gram matrices, each made once."""

    def __init__(self, cache: Cache, progress: Progress = SILENT) -> None:
        self.cache = cache
        self.train, self.val = cache.numbers("train"), cache.numbers("val")
        self.y, self.y_val = cache.labels("train"), cache.labels("val")
        self._progress = progress
        self._kernels: dict[str, tuple[Array, Array]] = {}

    @cached_property
    def moments(self) -> tuple[NDArray[np.float64], float]:
        """Mean (D,) and mean squared norm of the training rows. Raises HeadError where one has features that are no
        finite numbers."""
        mean, norms = products.moments(self.cache.features, self.train)
        return mean, self._finite(float(norms.mean()), self.train)

    @cached_property
    def test_norm(self) -> float:
        """Mean squared norm of a test row: what cannot be measured in the end is said at the beginning."""
        return self._mean_squared_norm(self.cache.numbers("test"))

    @cached_property
    def val_norm(self) -> float:
        """Of a validation row."""
        return self._mean_squared_norm(self.val)

    def _mean_squared_norm(self, numbers: NDArray[np.intp]) -> float:
        return self._finite(float(products.squared_norms(self.cache.features, numbers).mean()), numbers)

    def _finite(self, norm: float, numbers: NDArray[np.intp]) -> float:
        if not np.isfinite(norm):
            for place, block in products.blocks(self.cache.features, numbers, dtype=np.float32):
                refuse_not_finite(block, numbers[place])
            raise HeadError(f"{self.cache.name}: features too large to be squared in float32")
        return norm

    def kernels(self, dtype: str) -> tuple[Array, Array]:
        """train x train and val x train."""
        if dtype not in self._kernels:
            with self._progress.begin(f"Gram matrix of {self.cache.name}", len(self.train) + len(self.val)) as advance:
                pairs = ((self.train, self.train), (self.val, self.train))
                K, K_val = (
                    kernel(self.cache, left, right=right, dtype=dtype, on_rows=advance) for left, right in pairs
                )
            self._kernels[dtype] = (K, K_val)
        return self._kernels[dtype]

    def prepare(self, config: HeadConfig, solver: Solver) -> None:
        """Make now what takes longest, so that an interruption can end it at once.

        Raises HeadError for features that are no finite numbers, of which no Gram matrix is kept.
        """
        self.scale(config)
        _ = self.moments, self.val_norm
        if solver == "gram":
            self.kernels(config.dtype)

    def first_products(self, W0: Array, scale: float) -> tuple[Array, Array]:
        """X W0 of the training and the validation rows, scaled. Raises HeadError for features that are not finite."""
        found = [products.times(self.cache.features, numbers, W=W0) for numbers in (self.train, self.val)]
        for P0, numbers in zip(found, (self.train, self.val), strict=True):
            refuse_not_finite(P0, numbers)
        return found[0] * W0.dtype.type(scale), found[1] * W0.dtype.type(scale)

    def scale(self, config: HeadConfig) -> float:
        """The number that the features are multiplied by."""
        _ = self.test_norm
        if config.scale == "none":
            return 1.0
        mean, norm = self.moments
        return random.scale_of(
            random.centred_squared_norm(norm, float(mean @ mean)) if config.scale == "centred" else norm
        )


def plan_head(cache: Cache, config: HeadConfig, *, solver: Solver | Choice = "auto", device: Device = "cpu") -> Choice:
    """The solver that `train_head` would use; a choice that was made before. Raises HeadError for the untrainable."""
    _refuse_untrainable(cache, config)
    if isinstance(solver, Choice):
        return solver
    n_train, n_val = len(cache.numbers("train")), len(cache.numbers("val"))
    return choose_solver(
        n_train,
        n_val,
        n_inputs=products.width(cache.features),
        n_classes=len(cache.classes),
        config=config,
        asked=solver,
        device=device,
    )


def train_head(
    cache: Cache,
    config: HeadConfig,
    *,
    solver: Solver | Choice = "auto",
    on_epoch: OnEpoch = lambda _: None,
    material: SharedInputs | None = None,
    saved: Path | None = None,
    earlier: Sequence[Path] = (),
    identity: str = "",
    stopped: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a head on the rows of split "train", watched on those of split "val".

    material : shared by several heads on one cache
    saved : file that keeps the state of the training, for the next call to go on from
    earlier : further files of such states; the one with most epochs, of this identity, is gone on from
    identity : of all that decides the course of the training but its number of epochs
    stopped : looked at before the first epoch and after each; once it says True, the state is saved and
        KeyboardInterrupt raised

    Raises HeadError for a cache that cannot be trained on, and for a training that diverges.
    """
    choice = plan_head(cache, config, solver=solver)
    material = material or SharedInputs(cache)
    layers = random.initial_weights(config, products.width(cache.features), n_classes=len(cache.classes))
    scale = material.scale(config)
    last: checkpoint.State
    states: _States[Any] = _States(saved, earlier, identity)
    course: Course[Any] = Course(config, on_epoch, stopped)
    if choice.solver == "primal":
        last = _in_primal_space(material, layers, scale=scale, config=config, course=course, states=states)
        final = course.chosen(last)
        trained = final.layers
    elif choice.solver == "block":
        last = _by_blocks(
            material, layers, scale=scale, config=config, course=course, states=states, device=choice.device
        )
        final = course.chosen(last)
        trained = [(final.W, final.stack.bias), *final.stack.layers]
    else:
        last = _in_gram_space(
            material, layers, scale=scale, config=config, course=course, states=states, device=choice.device
        )
        final = course.chosen(last)
        trained = _formed(material, layers, scale, final, config)
    return Trained(
        head=_head(cache, scale, _on_features(material, trained, scale, config), config),
        history=last.history,
        choice=choice,
        epoch=len(final.history),
        state=last,
        best=course.best,
        resumed_at=course.resumed_at,
        resumed_from=course.resumed_from,
    )


def train_course(
    material: SharedInputs, config: HeadConfig, *, solver: Solver, stopped: Callable[[], bool] = lambda: False
) -> list[Epoch]:
    """The history of a head, without the head: the first weights are not formed, test rows only checked to be finite.

    stopped : looked at before the first epoch and after each; once it says True, KeyboardInterrupt is raised
    """
    layers = random.initial_weights(
        config, products.width(material.cache.features), n_classes=len(material.cache.classes)
    )
    scale = material.scale(config)
    if solver == "primal":
        return _in_primal_space(material, layers, scale, config, Course(config, stopped=stopped)).history
    if solver == "block":
        return _by_blocks(material, layers, scale, config, Course(config, stopped=stopped)).history
    return _in_gram_space(material, layers, scale, config, Course(config, stopped=stopped)).history


@dataclass(frozen=True)
class _States(Generic[AnyState]):
    """Where the states of a training are: in the file that it writes, and in those that earlier ones wrote."""

    saved: Path | None = None
    earlier: Sequence[Path] = ()
    identity: str = ""

    def found(self, like: AnyState) -> Iterator[Earlier[AnyState, AnyState]]:
        """Those of this training."""
        for file in (*self.earlier, *([self.saved] if self.saved else [])):
            pair = checkpoint.load(file, self.identity, like=like)
            if pair is not None:
                rows = pair[0].rows if isinstance(pair[0], block.State) else 0
                yield Earlier(file.parent.name, pair[0].history, *pair, parts=rows)

    def saver(self, copy: Callable[[], AnyState], course: Course[AnyState]) -> Callable[[], object] | None:
        """Writes what `copy` gives, and the best so far."""
        if (saved := self.saved) is None:
            return None
        return lambda: checkpoint.save(saved, copy(), best=course.best, identity=self.identity)


def _in_gram_space(
    material: SharedInputs,
    layers: Layers,
    scale: float,
    config: HeadConfig,
    course: Course[gram.State],
    states: _States[gram.State] = _States(),
    device: Device = "cpu",
) -> gram.State:
    (W0, b0), *rest = layers
    P0, P0_val = material.first_products(W0, scale)
    K, K_val = material.kernels(config.dtype)
    n_train = len(material.y)
    problem = gram.GramProblem(
        K=K,
        P0=P0,
        y=material.y,
        weights=row_weights(material.y, config),
        K_val=K_val,
        P0_val=P0_val,
        y_val=material.y_val,
        factor=float(scale) ** 2,
        mean_of=np.full(n_train, 1 / n_train, K.dtype) if config.scale == "centred" else None,
    )
    stack = Stack(b0.copy(), [(W.copy(), b.copy()) for W, b in rest], config)
    first = gram.start(problem, stack)
    state = course.go_on(states.found(first)) or first
    made = accelerated.GramTraining(problem, state, device=accelerated.gpu()) if device == "gpu" else None
    with made or gram.Training(problem, state) as training:
        course.save = states.saver(training.copy, course)
        course.run(training)
    return state


def _by_blocks(
    material: SharedInputs,
    layers: Layers,
    scale: float,
    config: HeadConfig,
    course: Course[block.State],
    states: _States[block.State] = _States(),
    device: Device = "cpu",
) -> block.State:
    (W0, b0), *rest = layers
    weights = row_weights(material.y, config)
    source = source_of(
        material.cache, material.y, weights=weights, y_val=material.y_val, batch=config.batch, holds_all=False
    )
    mean = material.moments[0] if config.scale == "centred" else None
    first = block.start(W0, Stack(b0.copy(), [(W.copy(), b.copy()) for W, b in rest], config))
    state = course.go_on(states.found(first)) or first
    made = (
        accelerated.BlockTraining(source, state, scale=scale, mean=mean, device=accelerated.gpu())
        if device == "gpu"
        else None
    )
    with made or block.Training(source, state, scale=scale, mean=mean) as training:
        course.save = states.saver(training.copy, course)
        course.run(training)
        return training.copy()


def _in_primal_space(
    material: SharedInputs,
    layers: Layers,
    scale: float,
    config: HeadConfig,
    course: Course[primal.State],
    states: _States[primal.State] = _States(),
) -> primal.State:
    weights = row_weights(material.y, config)
    source = source_of(material.cache, material.y, weights=weights, y_val=material.y_val, batch=config.batch)
    mean = material.moments[0] if config.scale == "centred" else None
    with primal.opened(source, layers, scale=scale, mean=mean, config=config) as training:
        first = training.copy()
        training.restore(course.go_on(states.found(first)) or first)
        course.save = states.saver(training.copy, course)
        course.run(training)
        return training.copy()


def _formed(material: SharedInputs, layers: Layers, scale: float, state: gram.State, config: HeadConfig) -> Layers:
    """The weights of every layer, the first formed by one pass over the features."""
    W0, A = layers[0][0], state.A
    if config.scale == "centred":  # (X - mean)^T A = X^T (A - mean of A)
        A = A - A.mean(axis=0)
    moved = products.transposed_times(material.cache.features, material.train, A=A / W0.dtype.type(scale))
    moved += W0 * W0.dtype.type(state.s)
    return [(moved, state.stack.bias), *state.stack.layers]


def _on_features(material: SharedInputs, layers: Layers, scale: float, config: HeadConfig) -> Layers:
    """The same head on features as they are: the mean that was subtracted becomes a part of the first bias."""
    if config.scale != "centred":
        return layers
    (W, b), *rest = layers
    mean = material.moments[0].astype(W.dtype)
    return [(W, b - W.dtype.type(scale) * (mean @ W)), *rest]


def _head(cache: Cache, scale: float, layers: Layers, config: HeadConfig) -> Head:
    single = [(W.astype(np.float32), b.astype(np.float32)) for W, b in layers]
    space = cache.recipe.space.digest
    row_shape = cache.features.shape[1:]
    return Head(
        row_shape=row_shape,
        scale=scale,
        layers=single,
        dropout=config.dropout,
        classes=cache.classes,
        activation=config.activation,
        output=MULTI_LABEL if cache.label_separator else config.output,
        space=space,
    )


def row_weights(y: NDArray[np.int64], config: HeadConfig) -> Array:
    """Weight of each training row's loss, (N,), in config.dtype. "balanced" is scikit-learn's formula.

    Of several labels a row, y (N, classes), that of each label by itself: the rows that have it and those that have it
    not, (N, classes).
    """
    if y.ndim == 2:
        if config.class_weights != "balanced":
            return np.ones(len(y), config.dtype)
        have = y.sum(axis=0)
        counts = np.where(y == 1, have, len(y) - have)
        is_told = (have > 0) & (have < len(y))  # what all rows have, or none, has nothing to be balanced with
        return np.where(is_told, len(y) / (2 * counts), 1.0).astype(config.dtype)
    counts = np.bincount(y)
    weights = len(y) / (np.count_nonzero(counts) * counts[y]) if config.class_weights == "balanced" else np.ones(len(y))
    return np.asarray(weights, dtype=config.dtype)


def refuse_other_output(cache: Cache, config: HeadConfig) -> None:
    """Raise HeadError for a head of one class a row, where an image may have several labels."""
    if cache.label_separator and config.output != "sigmoid":
        raise HeadError(
            f"`output={config.output!r}` gives an image one class, and one of {cache.name} may have several labels",
            "Set `output='sigmoid'`",
        )


def _refuse_untrainable(cache: Cache, config: HeadConfig) -> None:
    again = "Change dataset.csv, or run `featcache.init(resplit=True)` and extract this cache again"
    for split in ("train", "val", "test"):
        if not len(cache.numbers(split)):
            raise HeadError(f"{cache.name}: the split {split!r} has no images", again)
    if len(cache.classes) < 2:
        raise HeadError(f"{cache.name}: only the class {cache.classes[0]!r}: at least two are needed")
    refuse_other_output(cache, config)
    n_train = len(cache.numbers("train"))
    if config.batch > n_train:
        raise HeadError(f"a batch of {config.batch} rows is more than the {n_train} training rows", "Set `batch`")
