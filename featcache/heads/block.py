"""SGD by blocks: exact minibatch SGD on many rows, in the weights themselves, without a matrix of N x N.

What Gram space does for few rows with many features, this does for many rows. A block S of rows in the epoch's order
meets the weights W (D, H) in two products, whatever the number of its minibatches:

    Z_S = X_S W          as W stood before the block
    K_SS = X_S X_S^T     below its diagonal
    W <- m W + m' V + X_S^T (c G_S)

In between the minibatches follow one after the other, each corrected for those before it by K_SS and their gradients
(featcache.heads.steps; m, m' and c follow from momentum and L2, see featcache.heads.gram). V is the velocity. Memory
holds W, V and a few blocks; features may stream from the store.

A first layer of few units costs less than K_SS would: its minibatches are taken one after the other, compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.heads import initializers as random
from featcache.heads.config import HeadConfig
from featcache.heads.cores import Cores
from featcache.heads.gram import accuracy_of, batch_rows
from featcache.heads.source import Source, refuse_not_finite
from featcache.heads.stack import Stack, flat, losses, put, targets_of
from featcache.heads.steps import ACTIVATIONS, NARROW, add_products, scaled_rows, train_block, train_rows
from featcache.training import Course, Epoch, refuse_divergence, timed

Array = NDArray[np.floating[Any]]
BLOCK_ROWS = 128
"""Rows of a block: K_SS costs the less the fewer they are, and the two products the less the more they are."""
_NARROW_ROWS = 1024
_BLOCK_BYTES = 32 << 20
"""Of features, at most, unless a single batch has more."""
_PART_ROWS = 64
_WEIGHT_ROWS = 1024
"""Of the first weights, that are changed at a time: what is added to them stays in the processor's cache."""


@dataclass
class State:
    """Where a training stands: all that it needs to go on.

    W, V : (D, H), the first weights and their velocity; V is empty without momentum
    rows : of the epoch under way that are done
    loss, right, seconds : of these, sums of their losses and of hits, and how long they took
    """

    W: Array
    V: Array
    stack: Stack
    history: list[Epoch] = field(default_factory=list)
    rows: int = 0
    loss: float = 0.0
    right: int = 0
    seconds: float = 0.0

    def copy(self) -> State:
        """The same, apart from this one."""
        same = (self.rows, self.loss, self.right, self.seconds)
        return State(self.W.copy(), self.V.copy(), self.stack.copy(), list(self.history), *same)


@dataclass(frozen=True)
class Block:
    """Rows of a block, ready to be trained on.

    X : (n, D), scaled; places : of the epoch's order; y : (n,), or (n, classes); weights : over the rows of a batch
    """

    X: Array
    places: slice
    y: NDArray[np.int64]
    targets: Array
    row_weights: Array
    weights: Array
    keep: NDArray[np.bool_]


def block_rows(config: HeadConfig, width: int, *, units: int) -> int:
    """Rows of a block: whole batches, at least one.

    width, units : features of a row; units of the first layer
    """
    most = _BLOCK_BYTES // (width * np.dtype(config.dtype).itemsize)
    rows = min(_NARROW_ROWS if units <= NARROW else BLOCK_ROWS, most)
    return max(rows // config.batch, 1) * config.batch


def start(W: Array, stack: Stack) -> State:
    """The state before the first epoch."""
    return State(W.copy(), np.zeros_like(W) if stack.config.momentum else W[:0].copy(), stack)


def train(
    source: Source,
    state: State,
    *,
    scale: float = 1.0,
    mean: NDArray[np.float64] | None = None,
    course: Course[State] | None = None,
) -> State:
    """Train on, from wherever `state` stands, as the course says; returns where it ends.

    scale : what the features are multiplied by
    mean : (D,), what is subtracted from them before
    course : by default that of the head's settings

    Raises HeadError for features that are no finite numbers, and for a training that diverges.
    """
    course = course or Course(state.stack.config)
    with Training(source, state, scale=scale, mean=mean) as training:
        course.run(training)
        return training.copy()


class Training:
    """One training: the threads, what is trained, and the history of its epochs.

    narrow : up to so many units of the first layer, minibatches are taken one after the other
    """

    narrow = NARROW

    def __init__(
        self, source: Source, state: State, *, scale: float = 1.0, mean: NDArray[np.float64] | None = None
    ) -> None:
        self.source, self.state = source, state
        self.config = config = state.stack.config
        dtype = state.W.dtype
        self.scale = dtype.type(scale)
        self.offset = np.zeros(source.width, dtype) if mean is None else (-scale * mean).astype(dtype)
        self.n_classes = len(state.stack.arrays()[-1])
        self.sizes = np.array([len(state.stack.bias), *(len(b) for _, b in state.stack.layers)])
        self.is_narrow = self.sizes[0] <= self.narrow
        self.batches = block_rows(config, source.width, units=int(self.sizes[0])) // config.batch
        self.part_rows = max(_PART_ROWS // config.batch, 1) * config.batch
        self.updates = -(-len(source.y) // config.batch)
        self.decay = flat(state.stack.decays(), dtype)
        self.kept = dtype.type(1 / (1 - config.dropout))
        self.values, self.velocity = flat(state.stack.arrays(), dtype), flat(state.stack.velocities, dtype)
        self.W, self.V = self._turned(state.W), self._turned(state.V)
        self.changes = [] if self.is_narrow else [np.empty_like(W) for W in (self.W, self.V) if len(W)]
        self.cores = Cores("featcache-block")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cores.__exit__()

    @property
    def history(self) -> list[Epoch]:
        """An entry an epoch."""
        return self.state.history

    def copy(self) -> State:
        """The state of now, apart from this training."""
        state = self.state
        state.W, state.V = self._turned(self.W), self._turned(self.V)
        put(self.values, state.stack.arrays())
        put(self.velocity, state.stack.velocities)
        return state.copy()

    def _turned(self, W: Array) -> Array:
        """The first weights as they are kept, (D, H), from those that are trained, (H, D) where H is small; or back."""
        return np.ascontiguousarray(W.T) if self.is_narrow and len(W) else W

    def epoch(self, pause: Callable[[], object]) -> Epoch:
        """One pass over the training rows, or what is left of it, and a look at the validation rows.

        pause : called after each block; where it raises, the state is one to go on from
        """
        state, config, number = self.state, self.config, len(self.history)
        n_rows, before = len(self.source.y), state.seconds
        rates = np.array([config.lr_at(number * self.updates + n, self.updates) for n in range(self.updates)])
        with timed() as clock, np.errstate(all="ignore"):  # what diverges is refused below, in words
            with closing(self._trained(number, rates)) as trained:
                for block, logits in trained:
                    weighted = losses(logits, block.targets, output=config.output, weights=block.row_weights)
                    state.loss += float(weighted.sum(dtype=np.float64))
                    state.right += round(accuracy_of(logits, block.y) * len(logits))
                    state.rows = block.places.stop
                    state.seconds = before + clock.so_far()
                    if not np.isfinite(state.loss):
                        break
                    pause()
            looks = (number + 1) % config.val_every == 0 or number + 1 == config.epochs
            val = self._validate(number < config.val_every) if looks else (float("nan"), float("nan"))
        loss, right = state.loss / n_rows, state.right / n_rows
        state.rows, state.loss, state.right, state.seconds = 0, 0.0, 0, 0.0
        entry = Epoch(number + 1, loss, right, *val, float(rates[0]), before + clock.seconds)
        refuse_divergence(entry)
        return entry

    def _trained(self, epoch: int, rates: Array) -> Generator[tuple[Block, Array], None, None]:
        """Train on what is left of an epoch; gives each block and its logits, each before its update."""
        batch = self.config.batch
        raw = self.source.blocks(batch, self.config.seed, epoch=epoch, batches=self.batches, start=self.state.rows)
        coming = self.cores.pool.submit(self._next, raw, self.state.rows, epoch)
        try:
            while (block := coming.result()) is not None:
                found = None if self.is_narrow else self._products(block)
                # not sooner: it would share the cores with the products
                coming = self.cores.pool.submit(self._next, raw, block.places.stop, epoch)
                of_block = rates[block.places.start // batch :]
                yield block, self._rows(block, of_block) if found is None else self._block(block, *found, of_block)
        finally:
            wait([coming])
            raw.close()

    def _next(self, raw: Iterator[Any], start: int, epoch: int) -> Block | None:
        found = next(raw, None)
        if found is None:
            return None
        rows, X = found
        source, config = self.source, self.config
        if epoch == 0:  # they are the same ever after
            refuse_not_finite(X, source.rows[rows])
        places = slice(start, start + len(rows))
        scaled = np.empty(X.shape, self.W.dtype)
        scaled_rows(X, self.scale, self.offset, scaled)
        y, of_rows = source.y[rows], source.weights[rows]
        sizes = batch_rows(places, config.batch, n_rows=len(source.y))
        return Block(
            X=scaled,
            places=places,
            y=y,
            targets=targets_of(y, self.n_classes, config=config),
            row_weights=of_rows,
            weights=(of_rows.reshape(len(rows), -1) / sizes[:, None]).astype(scaled.dtype),
            keep=self._keep(epoch, places),
        )

    def _keep(self, epoch: int, places: slice) -> NDArray[np.bool_]:
        """Dropout masks of rows."""
        return random.keep_masks(self.config, epoch, places=places, units=self.sizes[:-1].tolist())

    def _products(self, block: Block) -> tuple[Array, Array, Array]:
        """Of the rows of a block with W, V, and below the diagonal with each other; without need, (n, 0)."""
        X, W, V = block.X, self.W, self.V
        n, units = len(X), W.shape[1]
        XW, XV = np.empty((n, units), X.dtype), np.empty((n if len(V) else 0, units), X.dtype)
        K = np.empty((n, n if n > self.config.batch else 0), X.dtype)

        def of_rows(part: slice) -> None:
            np.dot(X[part], W, XW[part])
            if len(V):
                np.dot(X[part], V, XV[part])
            if K.size:
                K[part, : part.stop] = X[part] @ X[: part.stop].T

        self.cores.each(of_rows, n)
        return XW, XV, K

    def _block(self, block: Block, XW: Array, XV: Array, K: Array, rates: Array) -> Array:
        """Train on the rows of a block, and bring W, V, and the values behind the first weights up to date."""
        config, X = self.config, block.X
        G, C, M, logits = train_block(
            XW, XW, XV, K, 0.0, 0.0,
            block.keep, self.kept, block.targets, block.weights, rates,
            self.values, self.velocity, self.decay, self.sizes,
            2 * config.l2_of(0), config.momentum, config.nesterov, 1.0,
            config.batch, self.part_rows, ACTIVATIONS.index(config.activation), config.output == "sigmoid",
        )  # fmt: skip
        rows = [C[number].astype(G.dtype)[:, None] * G for number in range(1 + bool(config.momentum))]

        def of_weights(part: slice) -> None:
            for first in range(part.start, part.stop, _WEIGHT_ROWS):
                some = slice(first, min(first + _WEIGHT_ROWS, part.stop))
                changes = [change[some] for change in self.changes]
                for of_rows, change in zip(rows, changes, strict=True):
                    np.matmul(X[:, some].T, of_rows, out=change)
                add_products(self.W[some], self.V[some], M, changes[0], changes[-1] if len(self.V) else self.V)

        self.cores.each(of_weights, len(self.W))
        return np.asarray(logits)

    def _rows(self, block: Block, rates: Array) -> Array:
        """Train on the rows of a block where the first layer has few units."""
        config = self.config
        return np.asarray(train_rows(
            block.X, self.W, self.V,
            block.keep, self.kept, block.targets, block.weights, rates,
            self.values, self.velocity, self.decay, self.sizes,
            2 * config.l2_of(0), config.momentum, config.nesterov,
            config.batch, ACTIVATIONS.index(config.activation), config.output == "sigmoid",
        ))  # fmt: skip

    def _validate(self, first: bool) -> tuple[float, float]:
        """Loss and accuracy of the validation rows. Raises HeadError for features that are no finite numbers."""
        source, stack = self.source, self.state.stack
        if not len(source.y_val):
            return float("nan"), float("nan")
        put(self.values, stack.arrays())
        W, loss, right = self.W.T if self.is_narrow else self.W, 0.0, 0
        for place, X in source.val_blocks():
            if first:
                refuse_not_finite(X, source.rows_val[place])
            Z, scaled, y = np.empty((len(X), W.shape[1]), W.dtype), np.empty(X.shape, W.dtype), source.y_val[place]

            def of_rows(part: slice, X: Array = X, Z: Array = Z, scaled: Array = scaled) -> None:
                scaled_rows(X[part], self.scale, self.offset, scaled[part])
                np.dot(scaled[part], W, Z[part])

            self.cores.each(of_rows, len(X))
            logits = stack.forward(Z)
            targets = targets_of(y, self.n_classes, config=self.config)
            loss += float(losses(logits, targets, output=self.config.output).sum(dtype=np.float64))
            right += round(accuracy_of(logits, y) * len(y))
        return loss / len(source.y_val), right / len(source.y_val)
