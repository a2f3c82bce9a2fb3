"""From a layer's raw output to features: (h, w, c) of maps however they lie, and the tokens of a vision transformer.

    (n, c, h, w) or (n, h, w, c) -> (n, h, w, c)
    (n, t, c), t = prefix + g * g -> CLS (n, c); patches (n, g, g, c); both

A vision transformer puts tokens of its own before those of the patches: CLS, then registers. Registers are never kept,
and an average is of patches alone. NumPy only, so that every engine's outputs become features in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import BackboneError, nearest
from featcache.core.recipe import Pooling, Tokens

TOKENS = get_args(Tokens)
_MOST_PREFIX = 16
_LEAST_GRID = 2


@dataclass(frozen=True)
class Prefix:
    """What stands before the tokens of the patches.

    Attributes
    ----------
    n : how many tokens
    has_cls : whether the first of them is CLS
    """

    n: int
    has_cls: bool


@dataclass(frozen=True)
class Shaping:
    """How the raw outputs of a layer become features.

    Attributes
    ----------
    axes : the raw output's axes in the order (n, h, w, c); () to leave them
    tokens : those that are kept, as in a feature space; "none" where the layer gives no tokens
    pooling : over all axes between batch and channels
    prefix : of tokens
    feature_shape : of one row
    """

    axes: tuple[int, ...]
    tokens: str
    pooling: str
    prefix: Prefix
    feature_shape: tuple[int, ...]

    def __call__(self, raw: NDArray[np.generic]) -> NDArray[np.float32]:
        """Features, (n, *feature_shape), of a raw output (n, ...)."""
        with np.errstate(invalid="ignore", over="ignore"):  # what is no number is found where features are stored
            return self._shaped(raw.astype(np.float32, copy=False))

    def _shaped(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.axes:
            x = x.transpose(self.axes)
        if self.tokens != "none":
            x = self._chosen(x)
        if self.pooling == "avg":
            return np.asarray(x.mean(axis=tuple(range(1, x.ndim - 1)), dtype=np.float32))
        if self.pooling == "max":
            return np.asarray(x.max(axis=tuple(range(1, x.ndim - 1))))
        return x

    def _chosen(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        cls, patches = x[:, 0], x[:, self.prefix.n :]
        if self.tokens == "cls":
            return cls
        if self.tokens == "cls+avg":
            return np.concatenate([cls, patches.mean(axis=1, dtype=np.float32)], axis=1)
        if self.tokens == "all":
            return np.concatenate([cls[:, None], patches], axis=1) if self.prefix.has_cls else patches
        side = math.isqrt(patches.shape[1])
        return patches.reshape(len(x), side, side, x.shape[2])


def check_tokens(tokens: str | None) -> None:
    """Raise BackboneError unless `tokens` is one of `TOKENS`, or None."""
    if tokens is not None and tokens not in TOKENS:
        raise BackboneError(f"there are no tokens {tokens!r}: {nearest(tokens, TOKENS)}")


def shaping_of(
    shape: tuple[int, ...],
    *,
    pooling: Pooling,
    tokens: str | None,
    grid: int | None = None,
    prefix: Prefix | None = None,
    is_last: bool = False,
    label: str = "",
) -> Shaping:
    """How raw outputs of one row's `shape` become features.

    Parameters
    ----------
    shape : of one row: (c,), (t, c), (c, h, w) or (h, w, c)
    pooling : as asked; nothing is pooled where there is one axis
    tokens : as asked; None for CLS where there is one and nothing is pooled, else patches
    grid : side of the square of patches, where it is known; else it is found only where tokens are asked for
    prefix : what stands before the patches, where it is known; else all that is not patches
    is_last : whether channels come last where a map's sizes do not say so
    label : network and layer, for errors

    Raises
    ------
    BackboneError : the output has another number of axes, tokens are asked for that it does not have, or an average
        of what may not be averaged.
    """
    check_tokens(tokens)
    if len(shape) not in (1, 2, 3) or 0 in shape:
        raise BackboneError(f"{label} gives {_words(shape)} an image: expected 1, 2 or 3 axes")
    guessed = prefix_of(shape[0], grid) if grid or tokens else None
    if len(shape) == 2 and (known := prefix or guessed) is not None:
        return _of_tokens(shape, pooling, tokens, known, label)
    if tokens is not None:
        seen = f"{_words(shape)} an image"
        if len(shape) == 2:
            square = f"{grid} x {grid} patches" if grid else "a square of patches"
            seen += f", and {shape[0]} tokens are no {square} with a few before it"
        raise BackboneError(f"{label} gives {seen}: `tokens={tokens}` cannot be taken of it", "Leave out `tokens`")
    if len(shape) == 2 and pooling != "none":
        raise BackboneError(
            f"{label} gives {_words(shape)} an image: which of them are patches is not known, so they are not averaged",
            "Leave out `pooling`, or name another layer",
        )
    axes: tuple[int, ...] = ()
    if len(shape) == 3 and not is_channels_last(shape, is_last):
        axes, shape = (0, 2, 3, 1), (shape[1], shape[2], shape[0])
    pooled = pooling if len(shape) > 1 else "none"
    return Shaping(axes, "none", pooled, Prefix(0, False), shape if pooled == "none" else shape[-1:])


def _of_tokens(shape: tuple[int, ...], pooling: str, tokens: str | None, prefix: Prefix, label: str) -> Shaping:
    n_tokens, channels = shape
    side = math.isqrt(n_tokens - prefix.n)
    if tokens is None:
        tokens = "cls" if prefix.has_cls and pooling == "none" else "patches"
    if tokens in ("cls", "cls+avg") and not prefix.has_cls:
        raise BackboneError(f"{label} gives no CLS token, only {side} x {side} patches", "Set `tokens='patches'`")
    if tokens == "all" and pooling != "none":
        raise BackboneError(
            f"{label}: `tokens=all` with `pooling={pooling}` would mix CLS into the {pooling} of the patches",
            "Set `tokens='patches'`, or `tokens='cls+avg'` without `pooling`",
        )
    kept = n_tokens - prefix.n + prefix.has_cls
    shapes = {
        "cls": (channels,),
        "cls+avg": (2 * channels,),
        "all": (kept, channels),
        "patches": (side, side, channels),
    }
    pooled = pooling if tokens == "patches" else "none"
    return Shaping((), tokens, pooled, prefix, shapes[tokens] if pooled == "none" else (channels,))


def prefix_of(n_tokens: int, grid: int | None) -> Prefix | None:
    """What stands before a square of patches: by its side where that is known, else as few tokens as can be.

    None where the number of tokens is not that of such a square.
    """
    side = grid or math.isqrt(n_tokens)
    n = n_tokens - side * side
    return Prefix(n, n > 0) if side >= _LEAST_GRID and 0 <= n <= _MOST_PREFIX else None


def is_channels_last(shape: tuple[int, ...], otherwise: bool) -> bool:
    """Whether a map of three axes is (h, w, c): maps of square images are square; `otherwise` where all are equal."""
    first, second, third = shape
    return otherwise if first == second == third else first == second


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"
