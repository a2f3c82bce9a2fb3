"""SGD in Gram space: exact minibatch SGD on a Dense layer of D inputs, at a cost that does not know D.

Plain SGD changes the first weight matrix only by sums of outer products of training inputs, so

    W = W0 + X^T A        X: (N, D) training features, A: (N, H), zero at the start

and W is never needed while training: rows B have the first products Z_B = P0_B + K_B A with P0 = X W0 and
the Gram matrix K = X X^T, and an update on rows B changes only the rows of the batch, A_B -= lr dL/dZ_B.

Updates are delayed to keep the work in matrix products. For a block S of rows in the epoch's order,
P_S = P0_S + K_S A is one product; its minibatches follow one after the other, each corrected by what the
block has changed so far, Z_b = P_b + K_SS[b, :done] dA[:done]; then A_S += dA. Every row stands once in an
epoch, so this is the same algorithm, step for step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from featcache.heads import random
from featcache.heads.config import HeadConfig
from featcache.heads.history import Epoch, refuse_divergence, timed
from featcache.heads.stack import Stack, cross_entropy

Array = NDArray[np.floating[Any]]
_BLOCK_ROWS = 256


@dataclass
class GramProblem:
    """A head's training in Gram space. N training rows, M validation rows, H units of the first layer.

    K : (N, N), inner products of training rows
    P0 : (N, H), X W0
    y : (N,), int64
    weights : (N,), of each row's loss
    K_val, P0_val, y_val : (M, N), (M, H), (M,); M may be 0
    """

    K: Array
    P0: Array
    y: NDArray[np.int64]
    weights: Array
    K_val: Array
    P0_val: Array
    y_val: NDArray[np.int64]


def train(
    problem: GramProblem, stack: Stack, config: HeadConfig, on_epoch: Callable[[Epoch], object] = lambda _: None
) -> tuple[Array, list[Epoch]]:
    """Train a head; `stack` is updated in place.

    Returns
    -------
    A : (N, H): the first weights are W0 + X^T A
    history : an entry an epoch
    """
    A = np.zeros_like(problem.P0)
    blas = ThreadpoolController()
    history = []
    for epoch in range(config.epochs):
        with timed() as clock, np.errstate(all="ignore"):  # what diverges is refused below, in words
            loss, accuracy = _run_epoch(problem, A, stack, config, epoch, blas)
            val_loss, val_accuracy = _validate(problem, A, stack)
        lr = config.lr_at(_updates(problem, config, epoch))
        entry = Epoch(epoch + 1, loss, accuracy, val_loss, val_accuracy, lr, clock.seconds)
        refuse_divergence(entry)
        history.append(entry)
        on_epoch(entry)
    return A, history


def _updates(problem: GramProblem, config: HeadConfig, epoch: int) -> int:
    """Updates made before an epoch."""
    return epoch * -(-len(problem.y) // config.batch)


def _run_epoch(
    problem: GramProblem, A: Array, stack: Stack, config: HeadConfig, epoch: int, blas: ThreadpoolController
) -> tuple[float, float]:
    """One pass over the training rows; mean loss and accuracy over its batches, each before its update.

    A block's one large product takes every core. Its minibatches are too small for that: threads would
    wait for each other longer than they compute, many times longer on a machine that has other work.
    """
    n_rows, batch = len(problem.y), config.batch
    order = random.order(config.seed, epoch, n_rows)
    block_rows = max(_BLOCK_ROWS // batch, 1) * batch
    update = _updates(problem, config, epoch)
    loss, correct = 0.0, 0
    for start in range(0, n_rows, block_rows):
        S = order[start : start + block_rows]
        K_S = problem.K[S]  # (S, N)
        K_SS = K_S[:, S]  # (S, S)
        P_S = problem.P0[S] + K_S @ A  # (S, H)
        dA = np.zeros_like(P_S)
        with blas.limit(limits=1, user_api="blas"):
            for done in range(0, len(S), batch):
                b = slice(done, min(done + batch, len(S)))
                Z = P_S[b] + K_SS[b, :done] @ dA[:done]
                masks = _masks(config, epoch, (start + done) // batch, len(Z), stack)
                lr = config.lr_at(update)
                batch_loss, batch_correct, dZ = stack.step(
                    Z, problem.y[S[b]], problem.weights[S[b]], lr, masks, config.dropout
                )
                dA[b] = -lr * dZ
                loss, correct, update = loss + batch_loss, correct + batch_correct, update + 1
        A[S] += dA
    return loss / n_rows, correct / n_rows


def _masks(config: HeadConfig, epoch: int, batch: int, n: int, stack: Stack) -> list[NDArray[np.bool_]]:
    if config.dropout == 0:
        return []
    return [
        random.keep_mask(config.seed, epoch, batch, layer, (n, W.shape[0]), config.dropout)
        for layer, (W, _) in enumerate(stack.layers)
    ]


def _validate(problem: GramProblem, A: Array, stack: Stack) -> tuple[float, float]:
    if not len(problem.y_val):
        return float("nan"), float("nan")
    logits = stack.forward(problem.P0_val + problem.K_val @ A)
    loss = float(cross_entropy(logits, problem.y_val).mean(dtype=np.float64))
    return loss, float((logits.argmax(axis=1) == problem.y_val).mean())
