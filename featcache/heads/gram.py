"""SGD in Gram space: exact minibatch SGD on a Dense layer of D inputs, at a cost that does not know D.

SGD changes the first weight matrix only by sums of outer products of training inputs, so

    W = s W0 + X^T A        X: (N, D) training features, A: (N, H), zero at the start, s = 1

and W is never needed while training: rows B have the first products Z_B = s P0_B + K_B A with P0 = X W0 and the Gram
matrix K = X X^T, and the gradient by W is X_B^T dL/dZ_B. L2 shrinks s and A alike; momentum keeps a velocity
u W0 + X^T V of the same form.

Updates are delayed to keep the work in matrix products. For a block S of rows in the epoch's order K_S A (and K_S V)
is one product; its minibatches follow one after the other (featcache.heads.steps). Within the block
A_t = a A + v V + (rows of S) alpha_i g_i, with g_i the gradients so far and numbers a, v, alpha_i that follow the
optimizer's own recurrence, so each minibatch is corrected by K_SS alone. Every row stands once in an epoch: this is the
same algorithm, step for step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.heads import initializers as random
from featcache.heads.cores import Cores
from featcache.heads.stack import Stack, flat, losses, put, targets_of
from featcache.heads.steps import ACTIVATIONS, add_rows, gather, mix, train_block
from featcache.training import Course, Epoch, refuse_divergence, timed

Array = NDArray[np.floating[Any]]
BLOCK_ROWS = 512
_PART_ROWS = 64


@dataclass
class GramProblem:
    """A head's training in Gram space. N training rows, M validation rows, H units of the first layer.

    K : (N, N), inner products of training rows
    P0 : (N, H), X W0
    y : (N,), int64; or (N, classes), 0 or 1, where a row may have several labels
    weights : (N,), of each row's loss; or (N, classes), of each label's, where a row may have several
    K_val, P0_val, y_val : (M, N), (M, H), (M,) or (M, classes); M may be 0
    factor : what K and K_val are to be multiplied by: where features are scaled, its square. K itself is only read
    mean_of : (N,), of sum 1: the training rows' mean by these weights is subtracted from all rows; None subtracts none
    """

    K: Array
    P0: Array
    y: NDArray[np.int64]
    weights: Array
    K_val: Array
    P0_val: Array
    y_val: NDArray[np.int64]
    factor: float = 1.0
    mean_of: Array | None = None

    @cached_property
    def with_mean(self) -> Array:
        """(N,), inner products of the training rows with the mean that is subtracted."""
        return np.zeros(len(self.K), self.K.dtype) if self.mean_of is None else self.K @ self.mean_of

    def centred(self, M: Array) -> Array:
        """What K is to be multiplied by for the products with centred rows: X_c^T M = X^T (this); M (N, H)."""
        return M if self.mean_of is None else M - np.outer(self.mean_of, M.sum(axis=0))


@dataclass
class State:
    """Where a training stands after some epochs: all that the next one needs.

    A, V : (N, H), of the first weights and of their velocity, s W0 + X^T A and u W0 + X^T V, times problem.factor; V is
        empty without momentum
    """

    A: Array
    V: Array
    stack: Stack
    s: float = 1.0
    u: float = 0.0
    history: list[Epoch] = field(default_factory=list)

    def copy(self) -> State:
        """The same, apart from this one."""
        history = list(self.history)
        return State(self.A.copy(), self.V.copy(), self.stack.copy(), s=self.s, u=self.u, history=history)


def start(problem: GramProblem, stack: Stack) -> State:
    """The state before the first epoch."""
    A = np.zeros_like(problem.P0)
    return State(A, np.zeros_like(A) if stack.config.momentum else A[:0], stack)


def on_features(problem: GramProblem, state: State) -> State:
    """The same head on rows as they are: where the mean was subtracted, that becomes a part of A and of the bias."""
    if problem.mean_of is None:
        return state
    moved = state.copy()
    moved.A = problem.centred(state.A)
    moved.stack.bias -= problem.with_mean @ moved.A + problem.mean_of @ problem.P0 * state.s
    return moved


def train(problem: GramProblem, state: State, *, course: Course[State] | None = None) -> State:
    """Train on, from wherever `state` stands, as the course says; it is updated in place.

    course : by default that of the head's settings

    Raises HeadError for a training that diverges.
    """
    with Training(problem, state) as training:
        (course or Course(state.stack.config)).run(training)
    return state


@dataclass
class _Block:
    """What a block of rows needs, gathered while the block before it is computed.

    places : of the epoch's order; S : row numbers; K_S : (n, N); K_SS : (n, n), half of it; the rest is of the rows S
    """

    places: slice
    S: NDArray[np.int64]
    K_S: Array
    K_SS: Array
    P0: Array
    targets: Array
    weights: Array
    keep: NDArray[np.bool_]


class Training:
    """One training: buffers, a thread that gathers, and the epochs."""

    def __init__(self, problem: GramProblem, state: State) -> None:
        self.problem = problem
        self.state = state
        self.config = state.stack.config
        n_classes = len(state.stack.arrays()[-1])
        self.targets = targets_of(problem.y, n_classes, config=self.config)
        self.targets_val = targets_of(problem.y_val, n_classes, config=self.config)
        self.block_rows = max(BLOCK_ROWS // self.config.batch, 1) * self.config.batch
        self.part_rows = max(_PART_ROWS // self.config.batch, 1) * self.config.batch
        rows = min(self.block_rows, len(problem.K))
        self.kept = problem.K.dtype.type(1 / (1 - self.config.dropout))
        self.sizes = np.array([len(state.stack.bias), *(len(b) for _, b in state.stack.layers)])
        self.P0, self.P0_val = problem.P0, problem.P0_val
        self.square_of_mean: Any = problem.K.dtype.type(0)
        if problem.mean_of is not None:
            self.square_of_mean = problem.with_mean @ problem.mean_of
            mean = problem.mean_of @ problem.P0
            self.P0, self.P0_val = problem.P0 - mean, problem.P0_val - mean
        self.decay = flat(state.stack.decays(), problem.K.dtype)
        self.buffers = [np.empty((rows, len(problem.K)), problem.K.dtype) for _ in range(2)]
        self.cores = Cores("featcache-gram")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cores.__exit__()

    @property
    def history(self) -> list[Epoch]:
        """An entry an epoch."""
        return self.state.history

    def copy(self) -> State:
        """The state of now."""
        return self.state.copy()

    def epoch(self, pause: Callable[[], object]) -> Epoch:
        """One pass over the training rows, and a look at the validation rows."""
        with timed() as clock, np.errstate(all="ignore"):  # what diverges is refused below, in words
            measured = self._pass(len(self.history))
        entry = Epoch(len(self.history) + 1, *measured, clock.seconds)
        refuse_divergence(entry)
        return entry

    def _pass(self, epoch: int) -> tuple[float, float, float, float, float]:
        """Returns loss, accuracy (of batches, each before its update), val_loss, val_accuracy, first learning rate."""
        problem, config = self.problem, self.config
        n_rows = len(problem.K)
        updates = -(-n_rows // config.batch)
        order = random.order(config.seed, epoch, n_rows)
        rates = np.array([config.lr_at(epoch * updates + number, updates) for number in range(updates)])
        logits = self._train(epoch, order, rates)
        weighted = losses(logits, self.targets[order], output=config.output, weights=problem.weights[order])
        looks = (epoch + 1) % config.val_every == 0 or epoch + 1 == config.epochs
        val = self._validate() if looks else (float("nan"), float("nan"))
        loss = float(weighted.mean(dtype=np.float64))
        return loss, accuracy_of(logits, problem.y[order]), *val, float(rates[0])

    def _train(self, epoch: int, order: NDArray[np.int64], rates: Array) -> Array:
        """Train on all rows in this order; their logits (N, classes), each before its update."""
        n_rows, stack, dtype = len(order), self.state.stack, self.problem.K.dtype
        logits = np.empty_like(self.targets)
        values, velocity = flat(stack.arrays(), dtype), flat(stack.velocities, dtype)
        coming = self.cores.pool.submit(self._gather, order, 0, epoch)
        for start in range(0, n_rows, self.block_rows):
            block = coming.result()
            products = [self._product(block.K_S, M) if len(M) else M for M in (self.state.A, self.state.V)]
            if block.places.stop < n_rows:  # not sooner: it would share the cores with the product
                coming = self.cores.pool.submit(self._gather, order, block.places.stop, epoch)
            logits[block.places] = self._block(block, products, rates[start // self.config.batch :], values, velocity)
        put(values, stack.arrays())
        put(velocity, stack.velocities)
        return logits

    def _weights_over_batches(self, S: NDArray[np.int64], places: slice) -> Array:
        """Of rows S at places of the epoch's order, over the rows of their minibatch."""
        sizes = batch_rows(places, self.config.batch, n_rows=len(self.problem.K))
        return (self.problem.weights[S].reshape(len(S), -1) / sizes[:, None]).astype(self.problem.K.dtype)

    def _gather(self, order: NDArray[np.int64], start: int, epoch: int) -> _Block:
        """What the block from `start` on needs; in one of two buffers, while the other is in use."""
        problem = self.problem
        places = slice(start, min(start + self.block_rows, len(order)))
        S = order[places]
        K_S = self.buffers[start // self.block_rows % 2][: len(S)]
        K_SS = np.empty((len(S), len(S)), K_S.dtype)
        gather(problem.K, S, problem.with_mean, self.square_of_mean, K_S, K_SS)
        keep = random.keep_masks(self.config, epoch, places=places, units=self.sizes[:-1].tolist())
        return _Block(
            places=places,
            S=S,
            K_S=K_S,
            K_SS=K_SS,
            P0=self.P0[S],
            targets=self.targets[S],
            weights=self._weights_over_batches(S, places),
            keep=keep,
        )

    def _block(self, block: _Block, products: Sequence[Array], rates: Array, values: Array, velocity: Array) -> Array:
        """Train on the rows of a block, and bring A, V, and the values behind the first weights up to date."""
        state, config = self.state, self.config
        G, C, M, logits = train_block(
            block.P0, *products, block.K_SS, state.s, state.u,
            block.keep, self.kept, block.targets, block.weights, rates,
            values, velocity, self.decay, self.sizes,
            2 * config.l2_of(0), config.momentum, config.nesterov, self.problem.factor,
            config.batch, self.part_rows, ACTIVATIONS.index(config.activation), config.output == "sigmoid",
        )  # fmt: skip
        state.s, state.u = map(float, M @ (state.s, state.u))
        if config.momentum:
            self.cores.each(lambda part: mix(state.A[part], state.V[part], M), len(state.A))
            add_rows(state.V, block.S, C[1], G)
        elif config.l2_of(0):
            state.A *= G.dtype.type(M[0, 0])
        add_rows(state.A, block.S, C[0], G)
        return np.asarray(logits)

    def _product(self, K: Array, M: Array) -> Array:
        """Products K (n, N) of rows with the training rows, centred where the problem says so, times M (N, H)."""
        result, M = np.empty((len(K), M.shape[1]), M.dtype), self.problem.centred(M)
        self.cores.each(lambda part: np.dot(K[part], M, result[part]), len(K))
        if self.problem.mean_of is not None:
            result -= self.problem.with_mean @ M
        return result

    def _val_products(self) -> Array:
        """Of the validation rows with A, (M, H)."""
        return self._product(self.problem.K_val, self.state.A)

    def _validate(self) -> tuple[float, float]:
        problem, state = self.problem, self.state
        if not len(problem.K_val):
            return float("nan"), float("nan")
        Z = self._val_products()
        Z += self.P0_val * Z.dtype.type(state.s)
        logits = state.stack.forward(Z)
        loss = losses(logits, self.targets_val, output=self.config.output).mean(dtype=np.float64)
        return float(loss), accuracy_of(logits, problem.y_val)


def batch_rows(places: slice, batch: int, *, n_rows: int) -> NDArray[np.int64]:
    """Of each place in an epoch's order, how many rows its batch has: the last one may have fewer than the others."""
    return np.asarray(np.minimum(batch, n_rows - np.arange(places.start, places.stop) // batch * batch))


def accuracy_of(logits: Array, y: NDArray[np.int64]) -> float:
    """Share of rows whose largest logit is the right one; of several labels a row, of rows with all of them right."""
    right = logits.argmax(axis=1) == y if y.ndim == 1 else ((logits > 0) == y.astype(bool)).all(axis=1)
    return float(right.mean())
