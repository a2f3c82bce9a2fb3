"""SGD in Gram space and by blocks on an accelerator, by JAX: the blocks of an epoch are one compiled scan.

The mathematics is that of featcache.heads.gram, featcache.heads.block and featcache.heads.steps, and so are the order
of the rows, the dropout masks, and the state that is kept. What differs is the order of sums, so the last bits. Rows
that fill up the last block have the weight 0, and minibatches of such rows alone change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import HeadError
from featcache.core.extras import is_installed, require_extra
from featcache.heads import block, gram, initializers as random
from featcache.heads.config import HeadConfig
from featcache.heads.source import Source
from featcache.heads.stack import Stack, flat

Array = NDArray[np.floating[Any]]
_SCAN_BYTES = 256 << 20
"""Of features that the block solver has on the accelerator at a time."""
_BLOCK_ROWS = 512


def gpu() -> Any:
    """The first accelerator that JAX finds. Raises MissingPackageError without JAX, HeadError where it finds none."""
    require_extra("jax", "`device='gpu'`")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others use the accelerator, too
    import jax

    found = jax.devices()[0]
    if found.platform == "cpu":
        raise HeadError(
            "`device='gpu'`: JAX finds no accelerator here", "Set `device='cpu'`, or install JAX for your accelerator"
        )
    return found


def has_gpu() -> bool:
    """Whether JAX finds an accelerator. Where nothing is installed that could find one, JAX is not loaded."""
    if not is_installed("jax") or not (entry_points(group="jax_plugins") or find_spec("jax_plugins")):
        return False
    try:
        return gpu() is not None
    except (HeadError, RuntimeError):  # what JAX raises where an accelerator is broken
        return False


class Settings(NamedTuple):
    """What is compiled into a scan; the arrays of a training are given to it."""

    batch: int
    activation: str
    is_sigmoid: bool
    dropout: float
    momentum: float
    nesterov: bool
    l2: tuple[float, ...]
    hidden: tuple[int, ...]
    factor: float

    @classmethod
    def of(cls, config: HeadConfig, factor: float = 1.0) -> Settings:
        """Of a head. factor : see `featcache.heads.gram.GramProblem`"""
        l2 = tuple(config.l2_of(layer) for layer in range(len(config.hidden) + 1))
        return cls(
            config.batch,
            config.activation,
            config.output == "sigmoid",
            config.dropout,
            config.momentum,
            config.nesterov,
            l2,
            config.hidden,
            factor,
        )


class _Rows(NamedTuple):
    """Rows in blocks, (blocks, rows of a block, ...), and their minibatches, (blocks, batches of a block).

    numbers, places : of each row, in the data and in the order of the epoch
    are_real : whether a minibatch has any row but those that fill up
    """

    numbers: Any
    places: Any
    weights: Any
    targets: Any
    rates: Any
    are_real: Any


@contextmanager
def _exactly(device: Any) -> Iterator[Any]:
    """JAX on a device, with float64 where it is asked for, and float32 products that are not rounded to fewer bits."""
    import jax

    in_64_bits = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with in_64_bits(True), jax.default_matmul_precision("highest"), jax.default_device(device):
        try:
            yield jax
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise HeadError(f"the memory of {device} is too small for this training", "Set `device='cpu'`") from error


class GramTraining(gram.Training):
    """A training in Gram space whose arrays lie on a device."""

    def __init__(self, problem: gram.GramProblem, state: gram.State, *, device: Any) -> None:
        super().__init__(problem, state)
        self.device, self.settings = device, Settings.of(self.config, problem.factor)
        self.block_rows = _block_rows(self.config, len(problem.K))
        stack = state.stack
        with _exactly(device) as jax:
            self.K, self.K_val = jax.device_put((problem.K, problem.K_val))
            self.fixed = jax.device_put((self.P0, problem.with_mean, self.square_of_mean, problem.mean_of))
            own = (state.A, state.V, stack.arrays(), stack.velocities, np.float64(state.s), np.float64(state.u))
            self.on_device = jax.device_put(own)

    def __exit__(self, *_: object) -> None:
        self._bring()
        super().__exit__()

    def copy(self) -> gram.State:
        """The state of now."""
        self._bring()
        return super().copy()

    def _bring(self) -> None:
        A, V, arrays, velocities, s, u = self.on_device
        self.state.A, self.state.V, self.state.s, self.state.u = np.array(A), np.array(V), float(s), float(u)
        _fill(self.state.stack, arrays, velocities)

    def _train(self, epoch: int, order: NDArray[np.int64], rates: Array) -> Array:
        config, places = self.config, np.arange(len(order))
        weights = self._weights_over_batches(order, slice(0, len(order)))
        rows = _in_blocks((order, places, weights, self.targets[order]), rates, self.block_rows, config.batch)
        with _exactly(self.device) as jax:
            scan = _gram_scan(self.settings, self.problem.mean_of is not None)
            keys = random.mask_keys(config, epoch)
            self.on_device, logits = scan(self.on_device, self.K, self.fixed, *jax.device_put((rows, keys)))
            found = np.asarray(logits).reshape(-1, logits.shape[-1])
        _, _, arrays, velocities, s, _ = self.on_device
        self.state.s = float(s)
        _fill(self.state.stack, arrays, velocities)
        return found[: len(order)]

    def _val_products(self) -> Array:
        with _exactly(self.device) as jax:
            product = jax.jit(_product)
            return np.array(product(self.K_val, self.on_device[0], self.fixed))


class BlockTraining(block.Training):
    """A training by blocks whose weights lie on a device; rows come to it some blocks at a time."""

    narrow = 0

    def __init__(
        self,
        source: Source,
        state: block.State,
        *,
        scale: float = 1.0,
        mean: NDArray[np.float64] | None = None,
        device: Any,
    ) -> None:
        super().__init__(source, state, scale=scale, mean=mean)
        self.device, self.settings = device, Settings.of(self.config)
        self.block_rows = _block_rows(self.config, len(source.y))
        of_block = self.block_rows * source.width * self.W.dtype.itemsize
        self.batches = max(_SCAN_BYTES // of_block, 1) * self.block_rows // self.config.batch
        with _exactly(device) as jax:
            self.on_device = jax.device_put((self.W, self.V, state.stack.arrays(), state.stack.velocities))

    def copy(self) -> block.State:
        """The state of now, apart from this training."""
        self._bring()
        return super().copy()

    def _bring(self) -> None:
        W, V, arrays, velocities = self.on_device
        self.W, self.V, stack = np.array(W), np.array(V), self.state.stack
        _fill(stack, arrays, velocities)
        self.values, self.velocity = (flat(of, self.W.dtype) for of in (stack.arrays(), stack.velocities))

    def _validate(self, first: bool) -> tuple[float, float]:
        self._bring()
        return super()._validate(first)

    def _trained(self, epoch: int, rates: Array) -> Generator[tuple[block.Block, Array], None, None]:
        """As of `block.Training`; what is trained on together is many blocks."""
        config, start = self.config, self.state.rows
        with closing(
            self.source.blocks(config.batch, config.seed, epoch=epoch, batches=self.batches, start=start)
        ) as raw:
            while (found := self._next(raw, start, epoch)) is not None:
                yield found, self._scanned(found, epoch, rates)
                start = found.places.stop

    def _keep(self, epoch: int, places: slice) -> NDArray[np.bool_]:
        """None: the masks are drawn on the device."""
        return np.empty((places.stop - places.start, 0), np.bool_)

    def _scanned(self, found: block.Block, epoch: int, rates: Array) -> Array:
        batch, places = self.config.batch, np.arange(found.places.start, found.places.stop)
        of_rows = rates[found.places.start // batch :][: -(-len(places) // batch)]
        rows = _in_blocks((places, places, found.weights, found.targets), of_rows, self.block_rows, batch)
        with _exactly(self.device) as jax:
            given = (_padded(found.X, self.block_rows), rows, random.mask_keys(self.config, epoch))
            self.on_device, logits = _block_scan(self.settings)(self.on_device, *jax.device_put(given))
            return np.asarray(logits).reshape(-1, logits.shape[-1])[: len(places)]


def _block_rows(config: HeadConfig, n_rows: int) -> int:
    """Whole batches, at least one, and no more than hold all rows."""
    return min(max(_BLOCK_ROWS // config.batch, 1), -(-n_rows // config.batch)) * config.batch


def _fill(stack: Stack, arrays: Sequence[Any], velocities: Sequence[Any]) -> None:
    for here, there in zip((*stack.arrays(), *stack.velocities), (*arrays, *velocities), strict=True):
        here[...] = np.asarray(there)


def _padded(rows: NDArray[Any], of_block: int) -> NDArray[Any]:
    """(n, ...) as (blocks, rows of a block, ...), with zeros behind."""
    n_blocks = -(-len(rows) // of_block)
    filled = np.zeros((n_blocks * of_block, *rows.shape[1:]), rows.dtype)
    filled[: len(rows)] = rows
    return filled.reshape(n_blocks, of_block, *rows.shape[1:])


def _in_blocks(of_rows: Sequence[NDArray[Any]], rates: Array, of_block: int, batch: int) -> _Rows:
    """of_rows : numbers, places, weights and targets (n, ...); rates : of their minibatches"""
    of_batches = (rates, np.ones(len(rates), np.bool_))
    return _Rows(*(_padded(rows, of_block) for rows in of_rows), *(_padded(of, of_block // batch) for of in of_batches))


# What is compiled. The head behind the first weights is a list: the first bias, then weights (n_in, n_out) and biases.


def _product(K: Any, M: Any, fixed: Any) -> Any:
    """Products K (n, N) of rows with the training rows, centred where there is a mean, times M (N, H)."""
    _, with_mean, _, mean_of = fixed
    if mean_of is None:
        return K @ M
    M = M - mean_of[:, None] * M.sum(axis=0)
    return K @ M - with_mean @ M


@cache
def _gram_scan(settings: Settings, is_centred: bool) -> Callable[..., Any]:
    """An epoch in Gram space: the state and the logits of each row before its update."""
    import jax

    def of_block(K: Any, fixed: Any, keys: Any, carry: Any, rows: _Rows) -> Any:
        A, V, head, velocity, s, u = carry
        P0, with_mean, square, _ = fixed
        S = rows.numbers
        K_S = K[S]
        K_SS = K_S[:, S]
        if is_centred:
            K_SS = K_SS - with_mean[S][:, None] - with_mean[S] + square
        products = (P0[S], _product(K_S, A, fixed), _product(K_S, V, fixed) if settings.momentum else None)
        G, C, M, (head, velocity), logits = _minibatches(settings, products, K_SS, (s, u), (head, velocity), rows, keys)
        c, m = C.astype(A.dtype), M.astype(A.dtype)
        if settings.momentum:
            A, V = m[0, 0] * A + m[0, 1] * V, m[1, 0] * A + m[1, 1] * V
            V = V.at[S].add(c[1][:, None] * G)
        elif settings.l2[0]:
            A = m[0, 0] * A
        A = A.at[S].add(c[0][:, None] * G)
        return (A, V, head, velocity, M[0, 0] * s + M[0, 1] * u, M[1, 0] * s + M[1, 1] * u), logits

    def epoch(carry: Any, K: Any, fixed: Any, rows: _Rows, keys: Any) -> Any:
        return jax.lax.scan(lambda carry, part: of_block(K, fixed, keys, carry, part), carry, rows)

    return jax.jit(epoch)  # type: ignore[no-any-return]


@cache
def _block_scan(settings: Settings) -> Callable[..., Any]:
    """Many blocks of rows X (blocks, n, D): the weights and the logits of each row before its update."""
    import jax

    def of_block(keys: Any, carry: Any, part: Any) -> Any:
        W, V, head, velocity = carry
        X, rows = part
        products = (None, X @ W, X @ V if settings.momentum else None)
        G, C, M, (head, velocity), logits = _minibatches(
            settings, products, X @ X.T, None, (head, velocity), rows, keys
        )
        c, m = C.astype(W.dtype), M.astype(W.dtype)
        to_W = X.T @ (c[0][:, None] * G)
        if settings.momentum:
            to_V = X.T @ (c[1][:, None] * G)
            W, V = m[0, 0] * W + m[0, 1] * V + to_W, m[1, 0] * W + m[1, 1] * V + to_V
        else:
            W = m[0, 0] * W + to_W
        return (W, V, head, velocity), logits

    def blocks(carry: Any, X: Any, rows: _Rows, keys: Any) -> Any:
        return jax.lax.scan(lambda carry, part: of_block(keys, carry, part), carry, (X, rows))

    return jax.jit(blocks)  # type: ignore[no-any-return]


def _minibatches(
    settings: Settings, products: Any, K: Any, of_first: Any, trained: Any, rows: _Rows, keys: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """`featcache.heads.steps.train_block`: G, C and M, what is trained behind the first weights, and logits.

    products : P0 (or None: there is none), PA, PV; of_first : s, u; trained : the head and its velocity
    """
    import jax
    import jax.numpy as jnp

    P0, PA, PV = products
    (n, units), dtype, batch = PA.shape, PA.dtype, settings.batch
    again = settings.momentum if settings.nesterov else 0.0
    keep = _masks(settings, keys, rows.places)

    def by_batch(rows: Any) -> Any:
        return None if rows is None else rows.reshape(n // batch, batch, *rows.shape[1:])

    def update(carry: Any, part: Any) -> Any:
        M, C, G, (head, velocity) = carry
        start, P0, PA, PV, K, keep, weights, targets, rate, is_real = part
        m = M.astype(dtype)
        z = m[0, 0] * PA + (K * C[0].astype(dtype)) @ G + head[0]
        if P0 is not None:
            z = z + (M[0, 0] * of_first[0] + M[0, 1] * of_first[1]).astype(dtype) * P0
        if PV is not None:
            z = z + m[0, 1] * PV
        dz, gradients, logits = _gradients(settings, z, head[1:], keep, targets, weights)
        changed = _updated(settings, head, velocity, gradients, rate.astype(dtype))
        trained = jax.tree.map(lambda new, old: jnp.where(is_real, new, old), changed, (head, velocity))
        shrink = 2 * settings.l2[0] * rate
        one, moved = jnp.ones_like(rate), settings.momentum * (again if settings.nesterov else 1.0)
        step = jnp.stack([1 - shrink * (1 + again), moved * one, -shrink, settings.momentum * one]).reshape(2, 2)
        step = jnp.where(is_real, step, jnp.eye(2))
        of_rows = jnp.where(is_real, -rate * settings.factor, 0.0) * jnp.array([1 + again, 1.0])
        C = jax.lax.dynamic_update_slice(step @ C, jnp.tile(of_rows[:, None], (1, batch)), (0, start))
        return (step @ M, C, jax.lax.dynamic_update_slice(G, dz, (start, 0)), trained), logits

    parts = (
        *(jnp.arange(0, n, batch), by_batch(P0), by_batch(PA), by_batch(PV), by_batch(K), by_batch(keep)),
        *(by_batch(rows.weights), by_batch(rows.targets), rows.rates, rows.are_real),
    )
    begin = (jnp.eye(2, dtype=jnp.float64), jnp.zeros((2, n), jnp.float64), jnp.zeros((n, units), dtype), trained)
    (M, C, G, trained), logits = jax.lax.scan(update, begin, parts)
    return G, C, M, trained, logits


def _updated(settings: Settings, head: Any, velocity: Any, gradients: Any, rate: Any) -> tuple[list[Any], list[Any]]:
    """One step of SGD on what stands behind the first weights."""
    values, speeds = [], []
    for place, (value, gradient) in enumerate(zip(head, gradients, strict=True)):
        decay = 2 * settings.l2[(place + 1) // 2] if value.ndim == 2 else 0.0
        change = -rate * (gradient + decay * value)
        if settings.momentum:
            speeds.append(settings.momentum * velocity[place] + change)
            change = settings.momentum * speeds[-1] + change if settings.nesterov else speeds[-1]
        values.append(value + change)
    return values, speeds


def _gradients(settings: Settings, z: Any, layers: Any, keep: Any, targets: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Of a minibatch's loss by z (n, units) and by the head, in its order; and the logits."""
    import jax
    import jax.numpy as jnp

    pairs, inputs, gates, column, x = list(zip(layers[::2], layers[1::2], strict=True)), [], [], 0, z
    for W, b in pairs:
        active, slope = _activated(settings.activation, x)
        kept = jnp.asarray(1 / (1 - settings.dropout), z.dtype)
        kept = kept if keep is None else kept * keep[:, column : column + x.shape[1]]
        inputs.append(active * kept)
        gates.append(slope * kept)
        column += x.shape[1]
        x = inputs[-1] @ W + b
    if settings.is_sigmoid:
        delta = (jax.nn.sigmoid(x) - targets) / x.shape[1] * weights
    else:
        delta = (jax.nn.softmax(x) - targets) * weights
    found = list[Any]()
    for (W, _), active, gate in zip(reversed(pairs), reversed(inputs), reversed(gates), strict=True):
        found = [active.T @ delta, delta.sum(axis=0), *found]
        delta = (delta @ W.T) * gate
    return delta, [delta.sum(axis=0), *found], jnp.asarray(x)


def _activated(activation: str, x: Any) -> tuple[Any, Any]:
    """Values and slopes. NaN stays NaN."""
    import jax
    import jax.numpy as jnp

    if activation == "relu":
        return jnp.maximum(x, 0), (x > 0).astype(x.dtype)
    if activation == "elu":
        active = jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0)))
        return active, jnp.where(x > 0, 1, active + 1)
    if activation == "tanh":
        active = jnp.tanh(x)
        return active, 1 - active * active
    if activation == "sigmoid":
        active = jax.nn.sigmoid(x)
        return active, active * (1 - active)
    return x, jnp.ones_like(x)


def _masks(settings: Settings, keys: Any, places: Any) -> Any:
    """`featcache.heads.initializers.keep_masks`, to the bit; None without dropout. keys : of each hidden layer"""
    import jax.numpy as jnp

    if not settings.dropout or not settings.hidden:
        return None
    masks = []
    for layer, units in enumerate(settings.hidden):
        of_columns, of_rows, last = keys[layer]
        row = _mixed(places.astype(jnp.uint32) ^ of_rows)
        unit = _mixed(jnp.arange(units, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9) ^ of_columns)
        masks.append((_mixed(unit + row[:, None]) ^ last).astype(jnp.int64) >= round(settings.dropout * 2**32))
    return jnp.concatenate(masks, axis=1)


def _mixed(x: Any) -> Any:
    """`featcache.heads.steps._mixed`."""
    import jax.numpy as jnp

    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
