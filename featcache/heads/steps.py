"""The minibatches of a block, one after the other, compiled: everything of an SGD step that is too small for NumPy.

A step on 16 rows and 256 units is 40 array operations of a microsecond each, of which most is overhead, and an epoch
has hundreds. Compiled they take a tenth. The mathematics is that of featcache.heads.gram; W is the first weight
matrix, and each layer behind it has its weights transposed, (n_out, n_in), in one flat array with its biases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  what numba calls; loaded here, so that limits of threads reach it

ACTIVATIONS = ("linear", "relu", "elu", "tanh", "sigmoid")
"""Their places here are what `train_block` calls them."""

_LINEAR, _RELU, _ELU, _TANH, _SIGMOID = range(len(ACTIVATIONS))
NARROW = 16
"""Outputs of a layer up to which plain loops are faster than a call of BLAS."""


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled on first use, for float32 and float64 apart, and kept on the disk for the next process where it can be.

    Sums may be taken in another order and products fused (the same on every call); NaN and Inf stay what they are.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "reassoc"}}
    try:
        return numba.njit(function, cache=True, **options)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder to keep it in
        return numba.njit(function, **options)  # type: ignore[no-any-return]


@_compiled
def _activate(activation, x, keep, kept, gate):  # type: ignore[no-untyped-def]
    """x (n, units) becomes its activation times its mask; gate (n, units) takes the slope times the mask."""
    if activation == _RELU:  # apart from the others: in vector instructions
        for i in range(x.shape[0]):
            for k in range(x.shape[1]):
                gate[i, k] = kept if x[i, k] > 0 else kept * 0
                x[i, k] = x[i, k] * 0 if x[i, k] <= 0 else x[i, k] * kept  # NaN stays
    for i in range(x.shape[0] if activation != _RELU else 0):
        for k in range(x.shape[1]):
            value = x[i, k]
            if activation == _ELU:
                active = np.expm1(value) if value <= 0 else value
                slope = kept * (active + 1) if value <= 0 else kept
            elif activation == _TANH:
                active = np.tanh(value)
                slope = kept * (1 - active * active)
            elif activation == _SIGMOID:
                active = (1 + np.tanh(value / 2)) / 2
                slope = kept * active * (1 - active)
            else:
                active, slope = value, kept
            x[i, k], gate[i, k] = active * kept, slope
    if keep.shape[1]:
        for i in range(x.shape[0]):
            for k in range(x.shape[1]):
                x[i, k] *= keep[i, k]
                gate[i, k] *= keep[i, k]


@_compiled
def _forward(x, W, bias, y):  # type: ignore[no-untyped-def]
    """y (n, n_out) = x W^T + bias, x (n, n_in), W (n_out, n_in)."""
    if W.shape[0] > NARROW:
        np.dot(x, W.T, y)
        for i in range(y.shape[0]):
            for c in range(y.shape[1]):
                y[i, c] += bias[c]
        return
    for i in range(x.shape[0]):
        for c in range(W.shape[0]):
            total = bias[c]
            for k in range(x.shape[1]):
                total += x[i, k] * W[c, k]
            y[i, c] = total


@_compiled
def _backward(delta, x, W, gate, dx, dW):  # type: ignore[no-untyped-def]
    """dW (n_out, n_in) = delta^T x; dx (n, n_in) = (delta W) * gate."""
    if W.shape[0] > NARROW:
        np.dot(delta.T, x, dW)
        np.dot(delta, W, dx)
        for i in range(dx.shape[0]):
            for k in range(dx.shape[1]):
                dx[i, k] *= gate[i, k]
        return
    dW[:] = 0
    for i in range(x.shape[0]):
        for c in range(W.shape[0]):
            d = delta[i, c]
            for k in range(x.shape[1]):
                dW[c, k] += d * x[i, k]
    for i in range(x.shape[0]):
        for k in range(x.shape[1]):
            dx[i, k] = 0
        for c in range(W.shape[0]):
            d = delta[i, c]
            for k in range(x.shape[1]):
                dx[i, k] += d * W[c, k]
        for k in range(x.shape[1]):
            dx[i, k] *= gate[i, k]


@_compiled
def _loss_gradient(logits, targets, weights, is_sigmoid, delta):  # type: ignore[no-untyped-def]
    """delta (n, classes): gradient of the weighted loss by the logits; weights (n, 1), or (n, classes) of sigmoids."""
    n, n_classes = logits.shape
    for i in range(n):
        if is_sigmoid:
            for c in range(n_classes):
                delta[i, c] = ((1 + np.tanh(logits[i, c] / 2)) / 2 - targets[i, c]) / n_classes
                delta[i, c] *= weights[i, c if weights.shape[1] > 1 else 0]
        else:
            largest = logits[i, 0]
            for c in range(1, n_classes):
                largest = max(largest, logits[i, c])
            total = largest * 0
            for c in range(n_classes):
                delta[i, c] = np.exp(logits[i, c] - largest)
                total += delta[i, c]
            for c in range(n_classes):
                delta[i, c] = (delta[i, c] / total - targets[i, c]) * weights[i, 0]


@_compiled
def _gradients(z, keep, kept, targets, weights, values, sizes, activation, is_sigmoid, work, dZ, logits, gradient):  # type: ignore[no-untyped-def]
    """Gradients of a minibatch's loss by z (n, units), which is overwritten, and by `values`; and its logits.

    work : (2, at least n times all units), for activations and slopes
    """
    n, layers = z.shape[0], len(sizes) - 1
    x, place, column, at = z, 0, 0, sizes[0]
    for layer in range(layers):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        gate = work[1, place : place + n * n_in].reshape(n, n_in)
        _activate(activation, x, keep[:, column : column + n_in], kept, gate)
        place, column = place + n * n_in, column + n_in
        y = work[0, place : place + n * n_out].reshape(n, n_out)
        W = values[at : at + n_in * n_out].reshape(n_out, n_in)
        at += n_in * n_out
        _forward(x, W, values[at : at + n_out], y)
        at += n_out
        x = y
    _copy(x, logits)
    delta = np.empty_like(logits)
    _loss_gradient(logits, targets, weights, is_sigmoid, delta)
    for layer in range(layers - 1, -1, -1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        _sum_rows(delta, gradient[at - n_out : at])
        at -= n_out + n_in * n_out
        place -= n * n_in
        x = work[0, place : place + n * n_in].reshape(n, n_in)
        gate = work[1, place : place + n * n_in].reshape(n, n_in)
        W = values[at : at + n_in * n_out].reshape(n_out, n_in)
        dx = np.empty((n, n_in), z.dtype)
        _backward(delta, x, W, gate, dx, gradient[at : at + n_in * n_out].reshape(n_out, n_in))
        delta = dx
    _copy(delta, dZ)
    _sum_rows(delta, gradient[: sizes[0]])


@_compiled
def _copy(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        for k in range(x.shape[1]):
            y[i, k] = x[i, k]


@_compiled
def _sum_rows(x, total):  # type: ignore[no-untyped-def]
    total[:] = 0
    for i in range(x.shape[0]):
        for k in range(x.shape[1]):
            total[k] += x[i, k]


@_compiled
def _update(values, velocity, gradient, decay, lr, momentum, nesterov):  # type: ignore[no-untyped-def]
    """SGD on flat arrays; decay : of each value, what L2 adds to its gradient."""
    if not len(velocity):
        for k in range(len(values)):
            values[k] -= lr * (gradient[k] + decay[k] * values[k])
        return
    for k in range(len(values)):
        change = -lr * (gradient[k] + decay[k] * values[k])
        velocity[k] = momentum * velocity[k] + change
        values[k] += momentum * velocity[k] + change if nesterov else velocity[k]


@_compiled
def _products_now(P0, PA, PV, K, G, alpha, first, s, of_A, of_V, out):  # type: ignore[no-untyped-def]
    """out (m, units): (s W0 + of_A A + of_V V + sum alpha_j G_j) of rows first..first+m, j the rows before `first`."""
    c = np.empty(3, P0.dtype)
    c[0], c[1], c[2] = s, of_A, of_V
    for i in range(len(out)):
        for k in range(out.shape[1]):
            out[i, k] = c[0] * P0[first + i, k] + c[1] * PA[first + i, k]
        if len(PV):
            for k in range(out.shape[1]):
                out[i, k] += c[2] * PV[first + i, k]
    if first:
        scaled, more = np.empty((len(out), first), P0.dtype), np.empty(out.shape, P0.dtype)
        single = alpha[:first].astype(P0.dtype)
        for i in range(len(out)):
            for j in range(first):
                scaled[i, j] = K[first + i, j] * single[j]
        np.dot(scaled, G[:first], more)
        for i in range(len(out)):
            for k in range(out.shape[1]):
                out[i, k] += more[i, k]


@_compiled
def _correct(z, K, alpha, G, first, last):  # type: ignore[no-untyped-def]
    """z (n, units) += sum of alpha_j K_j G_j over rows first..last of the block; four at a time, to touch z less."""
    c = np.empty(4, z.dtype)
    for j in range(first, last - 3, 4):
        for i in range(z.shape[0]):
            for more in range(4):
                c[more] = K[i, j + more] * alpha[j + more]
            for k in range(z.shape[1]):
                z[i, k] += c[0] * G[j, k] + c[1] * G[j + 1, k] + c[2] * G[j + 2, k] + c[3] * G[j + 3, k]
    for j in range(last - (last - first) % 4, last):
        for i in range(z.shape[0]):
            c[0] = K[i, j] * alpha[j]
            for k in range(z.shape[1]):
                z[i, k] += c[0] * G[j, k]


@_compiled
def _follow(step, C, first, last):  # type: ignore[no-untyped-def]
    """C (2, n) becomes step (2, 2) times it, in columns first..last."""
    for j in range(first, last):
        of_A, of_V = C[0, j], C[1, j]
        C[0, j] = step[0, 0] * of_A + step[0, 1] * of_V
        C[1, j] = step[1, 0] * of_A + step[1, 1] * of_V


@_compiled
def train_block(  # type: ignore[no-untyped-def]
    P0, PA, PV, K, s, u,
    keep, kept, targets, weights, rates,
    values, velocity, decay, sizes,
    l2, momentum, nesterov, factor, batch, part, activation, is_sigmoid,
):  # fmt: skip
    """SGD over the n rows of a block, `batch` at a time. `values` and `velocity` are updated in place.

    P0, PA, PV : (n, units), products of the rows with W0, X^T A and X^T V of before the block; PV (0, units) without
        momentum. The weights are s W0 + X^T A, their velocity u W0 + X^T V
    K : (n, n), inner products of the rows; only what is below its diagonal is read
    keep : (n, all hidden units) bool, dropout masks, or (n, 0); kept : what a unit that takes part is multiplied by
    targets, weights, rates : (n, classes); (n, 1) or (n, classes), over the rows of a batch; (batches,)
    values, velocity, decay : flat, what is trained behind the first weights, and what L2 adds; velocity may be empty
    sizes : units of the first layer, of each further one, classes
    part : rows within which a batch is corrected for those before it; a multiple of `batch`

    Returns G (n, units), gradients by the first products; C (2, n) and M (2, 2), float64: A and V behind the block are
    M (A, V) and in the block's rows C G more, s and u are M (s, u); logits (n, classes), each before its update.
    """
    n, units = P0.shape
    G, logits = np.empty_like(P0), np.empty_like(targets)
    C, M, m, step = np.zeros((2, n)), np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))
    M[0, 0] = M[1, 1] = 1
    gradient = np.empty_like(values)
    work = np.empty((2, batch * sizes.sum()), P0.dtype)
    Q, Q_velocity = np.empty((part, units), P0.dtype), np.empty((part if len(PV) else 0, units), P0.dtype)
    c = np.empty(2, P0.dtype)
    for first in range(0, n, part):
        last = min(first + part, n)
        of_s, of_u = M[0, 0] * s + M[0, 1] * u, M[1, 0] * s + M[1, 1] * u
        _products_now(P0, PA, PV, K, G, C[0], first, of_s, M[0, 0], M[0, 1], Q[: last - first])
        if len(PV):
            _products_now(P0, PA, PV, K, G, C[1], first, of_u, M[1, 0], M[1, 1], Q_velocity[: last - first])
        m[0, 0] = m[1, 1] = 1  # what the part has done so far to the weights and the velocity of its beginning
        m[0, 1] = m[1, 0] = 0
        for start in range(first, last, batch):
            stop = min(start + batch, last)
            z = work[0, : (stop - start) * units].reshape(stop - start, units)
            c[0], c[1] = m[0, 0], m[0, 1]
            for i in range(start, stop):
                for k in range(units):
                    z[i - start, k] = c[0] * Q[i - first, k] + values[k]
                if len(PV):
                    for k in range(units):
                        z[i - start, k] += c[1] * Q_velocity[i - first, k]
            _correct(z, K[start:stop], C[0], G, first, start)
            b = slice(start, stop)
            _gradients(
                z, keep[b], kept, targets[b], weights[b], values, sizes, activation, is_sigmoid, work, G[b], logits[b],
                gradient,
            )  # fmt: skip
            lr = rates[start // batch]
            _update(values, velocity, gradient, decay, P0.dtype.type(lr), P0.dtype.type(momentum), nesterov)
            shrink, again = lr * l2, momentum if nesterov else 0.0
            step[0, 0], step[0, 1] = 1 - shrink * (1 + again), momentum * (again if nesterov else 1.0)
            step[1, 0], step[1, 1] = -shrink, momentum
            _follow(step, m, 0, 2)
            _follow(step, C, first, start)
            for j in range(start, stop):
                C[0, j], C[1, j] = -lr * factor * (1 + again), -lr * factor
        _follow(m, C, 0, first)
        _follow(m, M, 0, 2)
    return G, C, M, logits


@_compiled
def mix(A, V, M):  # type: ignore[no-untyped-def]
    """A and V, (n, units), become M (A, V), in place."""
    c = np.empty(4, A.dtype)
    c[0], c[1], c[2], c[3] = M[0, 0], M[0, 1], M[1, 0], M[1, 1]
    for i in range(A.shape[0]):
        for k in range(A.shape[1]):
            a, v = A[i, k], V[i, k]
            A[i, k] = c[0] * a + c[1] * v
            V[i, k] = c[2] * a + c[3] * v


@_compiled
def add_rows(A, S, c, G):  # type: ignore[no-untyped-def]
    """A[S] += c G, in place: A (N, units), S, c (n,), G (n, units)."""
    for i in range(len(S)):
        factor = A.dtype.type(c[i])
        for k in range(A.shape[1]):
            A[S[i], k] += factor * G[i, k]


@_compiled
def add_products(W, V, M, to_W, to_V):  # type: ignore[no-untyped-def]
    """W and V, (n, units), become M (W, V) + (to_W, to_V), in place; V and to_V (0, units) without momentum."""
    c = np.empty(4, W.dtype)
    c[0], c[1], c[2], c[3] = M[0, 0], M[0, 1], M[1, 0], M[1, 1]
    for i in range(W.shape[0]):
        if len(V):
            for k in range(W.shape[1]):
                w, v = W[i, k], V[i, k]
                W[i, k] = c[0] * w + c[1] * v + to_W[i, k]
                V[i, k] = c[2] * w + c[3] * v + to_V[i, k]
        else:
            for k in range(W.shape[1]):
                W[i, k] = c[0] * W[i, k] + to_W[i, k]


@_compiled
def scaled_rows(X, scale, offset, out):  # type: ignore[no-untyped-def]
    """out (n, D) = scale X + offset (D,)."""
    for i in range(X.shape[0]):
        for k in range(X.shape[1]):
            out[i, k] = scale * X[i, k] + offset[k]


@_compiled
def _update_wide(W, V, X, dZ, lr, l2, momentum, nesterov, gradient):  # type: ignore[no-untyped-def]
    """SGD on first weights W (units, D) and their velocity V, by X (n, D) and the gradients dZ (n, units).

    gradient : (D,), to work in
    """
    n, last = X.shape[0], X.shape[0] % 4
    for c in range(W.shape[0]):
        for k in range(W.shape[1]):
            gradient[k] = l2 * W[c, k]
        for i in range(0, n - last, 4):  # four at a time, to touch the gradient less
            d0, d1, d2, d3 = dZ[i, c], dZ[i + 1, c], dZ[i + 2, c], dZ[i + 3, c]
            for k in range(W.shape[1]):
                gradient[k] += d0 * X[i, k] + d1 * X[i + 1, k] + d2 * X[i + 2, k] + d3 * X[i + 3, k]
        for i in range(n - last, n):
            d = dZ[i, c]
            for k in range(W.shape[1]):
                gradient[k] += d * X[i, k]
        if not len(V):
            for k in range(W.shape[1]):
                W[c, k] -= lr * gradient[k]
        else:
            for k in range(W.shape[1]):
                change = -lr * gradient[k]
                V[c, k] = momentum * V[c, k] + change
                W[c, k] += momentum * V[c, k] + change if nesterov else V[c, k]


@_compiled
def train_rows(  # type: ignore[no-untyped-def]
    X, W, V,
    keep, kept, targets, weights, rates,
    values, velocity, decay, sizes,
    l2, momentum, nesterov, batch, activation, is_sigmoid,
):  # fmt: skip
    """SGD over the n rows X (n, D), `batch` at a time, for a first layer of few units; all is updated in place.

    W, V : (units, D), the first weights and their velocity; V (0, D) without momentum. The others as of `train_block`

    Returns logits (n, classes), each before its update.
    """
    n, units = len(X), W.shape[0]
    logits, gradient, of_W = np.empty_like(targets), np.empty_like(values), np.empty(X.shape[1], X.dtype)
    work, dZ = np.empty((2, batch * sizes.sum()), X.dtype), np.empty((batch, units), X.dtype)
    single, decays = X.dtype.type(momentum), X.dtype.type(l2)
    for start in range(0, n, batch):
        stop = min(start + batch, n)
        z = work[0, : (stop - start) * units].reshape(stop - start, units)
        for i in range(start, stop):
            for c in range(units):
                total = values[c]
                for k in range(X.shape[1]):
                    total += X[i, k] * W[c, k]
                z[i - start, c] = total
        b = slice(start, stop)
        d = dZ[: stop - start]
        _gradients(
            z, keep[b], kept, targets[b], weights[b], values, sizes, activation, is_sigmoid, work, d, logits[b],
            gradient,
        )  # fmt: skip
        lr = X.dtype.type(rates[start // batch])
        _update(values, velocity, gradient, decay, lr, single, nesterov)
        _update_wide(W, V, X[b], d, lr, decays, single, nesterov, of_W)
    return logits


@_compiled
def gather(K, S, with_mean, square, K_S, K_SS):  # type: ignore[no-untyped-def]
    """K_S (n, N) = K[S], and what is below the diagonal of K_SS (n, n) = K[S][:, S], centred; K (N, N).

    with_mean (N,), square : inner products of the rows with the mean that is subtracted, and its square
    """
    for i in range(len(S)):
        row = S[i]
        for k in range(K.shape[1]):
            K_S[i, k] = K[row, k]
        for j in range(i):
            K_SS[i, j] = K_S[i, S[j]] - with_mean[row] - with_mean[S[j]] + square


@_compiled
def _mixed(x):  # type: ignore[no-untyped-def]
    """Each bit of a uint32 flips half of those of the result: the finalizer of MurmurHash3 (Appleby 2011)."""
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    x = np.uint32((x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16)))


@_compiled
def draw_mask(first_key, second_key, start, threshold, keep):  # type: ignore[no-untyped-def]
    """keep (n, units) bool: whether a number drawn for (keys, place, unit) from 0..2^32-1 is `threshold` or more.

    The number is a hash of its place, `start` counting the rows: no stream has to be drawn in order, and sixteen are
    computed at once.
    """
    of_columns = np.uint32(first_key)
    of_rows, last = np.uint32(first_key >> np.uint64(32)), np.uint32(second_key)
    for i in range(keep.shape[0]):
        row = _mixed(np.uint32(start + i) ^ of_rows)
        for k in range(keep.shape[1]):
            unit = _mixed(np.uint32(np.uint32(k) * np.uint32(0x9E3779B9)) ^ of_columns)
            keep[i, k] = np.int64(_mixed(np.uint32(unit + row)) ^ last) >= threshold
