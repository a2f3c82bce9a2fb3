"""Train a head on a cache: choose a solver, bring it what it needs, turn its result into a `Head`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError
from featcache.heads import gram, products, random
from featcache.heads.config import HeadConfig, Solver
from featcache.heads.head import Head
from featcache.heads.history import Epoch
from featcache.heads.stack import Stack
from featcache.store.cache import Cache

Array = NDArray[np.floating[Any]]
_OPERATIONS_A_WEIGHT = 240
"""What reading and writing the first weights costs an update: 3 passes of 4 bytes, 20 operations a byte of memory."""

OnEpoch = Callable[[Epoch], object]


@dataclass(frozen=True)
class Choice:
    """A solver and, for people, why it."""

    solver: Solver
    why: str


@dataclass(frozen=True)
class Trained:
    """A head, the course of its training and the solver that did it."""

    head: Head
    history: list[Epoch]
    choice: Choice


def choose_solver(
    n_train: int, n_val: int, n_inputs: int, n_classes: int, config: HeadConfig, asked: Solver = "auto"
) -> Choice:
    """Gram space or primal, by counting operations and memory; `asked` decides if it is not "auto".

    Raises HeadError where what is asked for does not fit into memory.
    """
    size = np.dtype(config.dtype).itemsize
    units = config.hidden[0] if config.hidden else n_classes
    gram_bytes = (n_train + n_val) * n_train * size
    primal_bytes = (n_train + n_val) * n_inputs * size
    fits = {"gram": gram_bytes, "primal": primal_bytes}
    free = products.available_bytes() * 0.8
    gram_cost = (n_train + 2 * n_val) * n_train * n_inputs + 2 * config.epochs * (n_train + n_val) * n_train * units
    updates = -(-n_train // config.batch)
    primal_cost = config.epochs * (6 * n_train + 2 * n_val + _OPERATIONS_A_WEIGHT * updates) * n_inputs * units
    if asked == "auto":
        cheaper: Solver = "gram" if gram_cost <= primal_cost else "primal"
        other: Solver = "primal" if cheaper == "gram" else "gram"
        chosen = cheaper if fits[cheaper] < free or fits[other] >= free else other
        ratio = max(gram_cost, primal_cost) / min(gram_cost, primal_cost)
        why = (
            f"{ratio:.0f} times fewer operations than {other}"
            if chosen == cheaper
            else f"{cheaper} needs {fits[cheaper] / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free"
        )
    else:
        chosen, why = asked, "asked for"
    if fits[chosen] >= free:
        raise HeadError(
            f"the {chosen} solver needs {fits[chosen] / 2**30:.1f} GiB for {n_train} + {n_val} rows of {n_inputs} "
            f"features, and {free / 2**30:.1f} GiB are free: use fewer rows, pooled features or a larger machine"
        )
    return Choice(chosen, why)


def plan_head(cache: Cache, config: HeadConfig, solver: Solver = "auto") -> Choice:
    """The solver that `train_head` would use. Raises HeadError for what cannot be trained."""
    _refuse_untrainable(cache, config)
    n_train, n_val = len(cache.numbers("train")), len(cache.numbers("val"))
    return choose_solver(n_train, n_val, products.width(cache.features), len(cache.classes), config, solver)


def train_head(
    cache: Cache, config: HeadConfig, solver: Solver = "auto", on_epoch: OnEpoch = lambda _: None
) -> Trained:
    """Train a head on the rows of split "train", watched on those of split "val".

    Raises HeadError for a cache that cannot be trained on, and for a training that diverges.
    """
    choice = plan_head(cache, config, solver)
    train, val = cache.numbers("train"), cache.numbers("val")
    layers = random.initial_weights(config, products.width(cache.features), len(cache.classes))
    scale = _scale(cache, train, config)
    solve = _in_gram_space if choice.solver == "gram" else _in_primal_space
    layers, history = solve(cache, train, val, layers, scale, config, on_epoch)
    layers = [(W.astype(np.float32), b.astype(np.float32)) for W, b in layers]
    head = Head(cache.features.shape[1:], scale, layers, config.dropout, cache.classes)
    return Trained(head, history, choice)


def _in_gram_space(
    cache: Cache,
    train: NDArray[np.intp],
    val: NDArray[np.intp],
    layers: list[tuple[Array, Array]],
    scale: float,
    config: HeadConfig,
    on_epoch: OnEpoch,
) -> tuple[list[tuple[Array, Array]], list[Epoch]]:
    features = cache.features
    (W0, b0), *rest = layers
    factor = W0.dtype.type(scale)
    K = products.inner(features, train, train, config.dtype)
    K_val = products.inner(features, val, train, config.dtype)
    for matrix in (K, K_val):
        matrix *= factor**2  # in place: a second K is not in the memory that was counted
    problem = gram.GramProblem(
        K=K,
        P0=products.times(features, train, W0) * factor,
        y=cache.labels("train"),
        weights=row_weights(cache.labels("train"), config),
        K_val=K_val,
        P0_val=products.times(features, val, W0) * factor,
        y_val=cache.labels("val"),
    )
    stack = Stack(b0, rest)
    A, history = gram.train(problem, stack, config, on_epoch)
    W = W0 + products.transposed_times(features, train, A * factor)
    return [(W, stack.bias), *stack.layers], history


def _in_primal_space(
    cache: Cache,
    train: NDArray[np.intp],
    val: NDArray[np.intp],
    layers: list[tuple[Array, Array]],
    scale: float,
    config: HeadConfig,
    on_epoch: OnEpoch,
) -> tuple[list[tuple[Array, Array]], list[Epoch]]:
    from featcache.heads import primal  # loads Keras

    X, X_val = (_flat(cache.features[numbers], config) for numbers in (train, val))
    y = cache.labels("train")
    weights = row_weights(y, config)
    return primal.train(X, y, weights, X_val, cache.labels("val"), layers, scale, config, on_epoch)


def _flat(features: Array, config: HeadConfig) -> Array:
    return np.asarray(features.reshape(len(features), -1), dtype=config.dtype)


def _scale(cache: Cache, train: NDArray[np.intp], config: HeadConfig) -> float:
    """The number that the features are multiplied by, rounded to float32 so that every solver has the same."""
    if config.scale == "none":
        return 1.0
    mean = products.mean_squared_norm(cache.features, train)
    if mean == 0:
        raise HeadError(f"{cache.name}: all features of the training rows are zero")
    return float(np.float32(np.sqrt(random.SCALED_SQUARED_NORM / mean)))


def row_weights(y: NDArray[np.int64], config: HeadConfig) -> Array:
    """Weight of each training row's loss, (N,), in config.dtype. "balanced" is scikit-learn's formula."""
    counts = np.bincount(y)
    weights = len(y) / (np.count_nonzero(counts) * counts[y]) if config.class_weights == "balanced" else np.ones(len(y))
    return np.asarray(weights, dtype=config.dtype)


def _refuse_untrainable(cache: Cache, config: HeadConfig) -> None:
    again = "change dataset.csv or run 'featcache init --resplit', then 'featcache extract' again"
    for split in ("train", "val", "test"):
        if not len(cache.numbers(split)):
            raise HeadError(f"{cache.name}: the split {split!r} has no images: {again}")
    if len(cache.classes) < 2:
        raise HeadError(f"{cache.name}: only the class {cache.classes[0]!r}: at least two are needed")
    n_train = len(cache.numbers("train"))
    if config.batch > n_train:
        raise HeadError(f"a batch of {config.batch} rows is more than the {n_train} training rows: use --batch")
