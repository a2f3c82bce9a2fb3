"""How near two computations of the same features are, in terms of what a cache promises."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.cuts import in_float32
from featcache.backbones.engines.contract import Engine
from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import Network
from featcache.backbones.preprocess import preprocess
from featcache.core.closeness import deviations
from featcache.core.errors import BackboneError
from featcache.core.recipe import LOW_PRECISIONS

RELATIVE, ABSOLUTE = 1e-4, 1e-4
"""Tolerance for float32 in a cache's manifest: |new - old| <= RELATIVE * |old| + ABSOLUTE * max |old| of the row."""


def deviation(new: NDArray[np.float32], old: NDArray[np.float32], *, precision: str = "float32") -> float:
    """The largest difference of features of shape (n, ...) as a share of what is allowed; see `deviations`."""
    if precision == "float32":
        shares = deviations(new, old, relative=RELATIVE, absolute=ABSOLUTE)
    else:
        shares = deviations(new, old, norm=LOW_PRECISIONS[precision])
    return float(shares.max(initial=0.0))


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
