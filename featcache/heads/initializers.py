"""Randomness of a training, from counters and not from state: any epoch can be drawn without those before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.steps import draw_mask

SCALED_SQUARED_NORM = 25_600.0
"""Mean squared norm of a training row after `scale="centred"` or "norm"."""

_DRAWN_ROWS = 8192
_ROUNDING = 1e-6
_ORDER, _DROPOUT, _WEIGHTS = range(3)

Array = NDArray[np.floating[Any]]


def _generator(seed: int, purpose: int, *counter: int) -> np.random.Generator:
    """A stream of its own for each (seed, purpose, counter): Philox is keyed by them, nothing is advanced."""
    words = np.array([0, *counter, *([0] * (3 - len(counter)))], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=words))


def scale_of(mean_squared_norm: float) -> float:
    """What features are multiplied by, given their mean squared norm over the training rows.

    Rounded to float32, so that every solver has the same.
    """
    if not mean_squared_norm:
        raise HeadError("all features of the training rows are zero")
    return float(np.float32(np.sqrt(SCALED_SQUARED_NORM / mean_squared_norm)))


def centred_squared_norm(mean_squared_norm: float, norm_of_mean: float) -> float:
    """Mean squared norm of rows whose mean is subtracted, from that of the rows as they are and |mean|^2.

    Raises HeadError where nothing is left but rounding: rows that are all alike.
    """
    left = mean_squared_norm - norm_of_mean
    if left <= _ROUNDING * mean_squared_norm:
        raise HeadError("all training rows have the same features: nothing can be learned from them")
    return left


def order(seed: int, epoch: int, n_rows: int) -> NDArray[np.int64]:
    """Order of the training rows in an epoch: a permutation of 0..n_rows-1, int64."""
    return _generator(seed, _ORDER, epoch).permutation(n_rows)


def keep_mask(
    seed: int, epoch: int, *, layer: int, start: int, stop: int, units: int, dropout: float
) -> NDArray[np.bool_]:
    """Which units of a hidden layer take part for the rows at places start..stop of an epoch's order.

    Returns an ndarray of shape (stop - start, units), bool.
    """
    keep = np.empty((stop - start, units), np.bool_)
    draw_mask(*_mask_numbers(seed, epoch, layer), start, round(dropout * 2**32), keep)
    return keep


def _mask_numbers(seed: int, epoch: int, layer: int) -> NDArray[np.uint64]:
    return np.asarray(_generator(seed, _DROPOUT, epoch, layer).bit_generator.random_raw(2))


def mask_keys(config: HeadConfig, epoch: int) -> NDArray[np.uint32]:
    """What `featcache.heads.steps.draw_mask` hashes places with, (hidden layers, 3): of columns, of rows, and last."""
    keys = np.empty((len(config.hidden), 3), np.uint32)
    for layer in range(len(keys)):
        first, second = _mask_numbers(config.seed, epoch, layer)
        keys[layer] = first & np.uint64(2**32 - 1), first >> np.uint64(32), second & np.uint64(2**32 - 1)
    return keys


def keep_masks(config: HeadConfig, epoch: int, *, places: slice, units: Sequence[int]) -> NDArray[np.bool_]:
    """`keep_mask` of every hidden layer, side by side: (places, all units); (places, 0) without dropout.

    units : of each hidden layer
    """
    start, stop = places.start, places.stop
    if not config.dropout or not units:
        return np.empty((stop - start, 0), np.bool_)
    masks = [
        keep_mask(config.seed, epoch, layer=layer, start=start, stop=stop, units=n, dropout=config.dropout)
        for layer, n in enumerate(units)
    ]
    return np.concatenate(masks, axis=1)


def initial_weights(config: HeadConfig, n_inputs: int, *, n_classes: int) -> list[tuple[Array, Array]]:
    """Weights (n_in, n_out) and biases (n_out,) of every layer before training, in config.dtype.

    Glorot-uniform weights, zero biases (Glorot & Bengio 2010; Keras' default). Unless scale="none" the first
    hidden layer is drawn for inputs of mean squared norm 25,600: normal of variance 2 / 25,600 (He et al. 2015,
    with the number of inputs replaced by what their squares add up to).
    """
    sizes = [n_inputs, *config.hidden, n_classes]
    layers = []
    for layer, (n_in, n_out) in enumerate(pairwise(sizes)):
        generator = _generator(config.seed, _WEIGHTS, layer)
        W = np.empty((n_in, n_out), np.float32)
        for start in range(
            0, n_in, _DRAWN_ROWS
        ):  # a part at a time: drawn in float64, they would take twice the memory
            shape = W[start : start + _DRAWN_ROWS].shape
            if layer == 0 and config.scale != "none" and config.hidden:
                W[start : start + _DRAWN_ROWS] = generator.standard_normal(shape) * np.sqrt(2 / SCALED_SQUARED_NORM)
            else:
                bound = np.sqrt(6 / (n_in + n_out))
                W[start : start + _DRAWN_ROWS] = generator.uniform(-bound, bound, shape)
        # Rounded to float32 in both modes, so that they start from the same numbers.
        layers.append((W.astype(config.dtype, copy=False), np.zeros(n_out, config.dtype)))
    return layers
