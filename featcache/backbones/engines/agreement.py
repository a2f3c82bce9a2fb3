"""How near two computations of the same features are, in terms of what a cache promises."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.cuts import in_float32
from featcache.backbones.engines.contract import Engine
from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import Network
from featcache.backbones.preprocess import preprocess
from featcache.core.errors import BackboneError
from featcache.core.recipe import LOW_PRECISIONS

RELATIVE, ABSOLUTE = 1e-4, 1e-4
"""Tolerance for float32 in a cache's manifest: |new - old| <= RELATIVE * |old| + ABSOLUTE * max |old| of the row."""


def deviation(new: NDArray[np.float32], old: NDArray[np.float32], *, precision: str = "float32") -> float:
    """The largest difference of features of shape (n, ...) as a share of what is allowed; inf for what is no number."""
    old = old.reshape(len(old), -1).astype(np.float64)
    new = new.reshape(old.shape).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf
        off = np.where(old == new, 0.0, np.abs(new - old))
        if precision == "float32":
            allowed = RELATIVE * np.abs(old) + ABSOLUTE * np.abs(old).max(axis=1, keepdims=True)
        else:
            off, allowed = np.linalg.norm(off, axis=1), LOW_PRECISIONS[precision] * np.linalg.norm(old, axis=1)
        off = off / np.maximum(allowed, np.finfo(np.float64).tiny)
    return float(np.nan_to_num(off, nan=np.inf).max(initial=0.0))


def check_agreement(engine: Engine, network: Network) -> None:
    """Raise BackboneError unless `engine` gives for a row of random pixels what Keras itself gives in float32."""
    keras, cut = import_keras(), network.cuts[0]
    side = cut.space.input_size_px
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    with in_float32(network.model):
        outputs = keras.tree.flatten(network.model(preprocess(pixels, cut.space.preprocessing), training=False))
    for new, old, at in zip(engine.features(pixels), outputs, network.cuts, strict=True):
        if (off := deviation(new, keras.ops.convert_to_numpy(old), precision=cut.space.precision)) > 1:
            raise BackboneError(
                f"{cut.space.backbone}: the engine {engine.name} and Keras disagree at layer {at.space.layer}: "
                f"expected a difference within the tolerance of a cache, got {off:.3g} times that",
                "Set `engine='keras'`",
            )
