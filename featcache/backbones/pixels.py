"""The backbone that is none: rendered views as they are, kept as uint8, so that they are decoded and rendered once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.engines.batches import check_rows
from featcache.backbones.network import Cut
from featcache.backbones.registry import PIXELS
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import BackboneError
from featcache.core.files import sha256_bytes
from featcache.core.recipe import FeatureSpace, WeightsSource

LAYER = "input"
DTYPE = "uint8"
NO_WEIGHTS_DIGEST = sha256_bytes(b"")
"""As of the weights of a network that has none: SHA-256 of nothing."""

_DEFAULT_PX = 224
_LEAST_PX, _MOST_PX = 8, 1024


def cut_of(spec: NetworkSpec) -> Cut:
    """What a cache of pixels holds: (s, s, 3) a row, RGB, every value as it was rendered.

    Raises BackboneError for a size that is none, and where the spec asks for what only a network has.
    """
    as_they_are = {
        "weights": spec.weights in ("imagenet", ""),
        "preprocessing": spec.preprocessing in (None, "model", "none"),
        "mean": spec.mean is None,
        "std": spec.std is None,
        "colour_order": spec.colour_order == "rgb",
        "layers": tuple(spec.layers) in ((), (LAYER,)),
        "pooling": spec.pooling == "none",
        "precision": spec.precision in ("float32", "auto"),
    }
    refuse([option for option, is_so in as_they_are.items() if not is_so])
    size_px = _DEFAULT_PX if spec.input_size_px is None else spec.input_size_px
    if not _LEAST_PX <= size_px <= _MOST_PX:
        raise BackboneError(f"{PIXELS}: `input_size_px={size_px}`: expected {_LEAST_PX} to {_MOST_PX} px")
    space = FeatureSpace(
        backbone=PIXELS,
        layer=LAYER,
        input_size_px=size_px,
        preprocessing="none",
        pooling="none",
        weights_digest=NO_WEIGHTS_DIGEST,
        dtype=DTYPE,
    )
    return Cut(space, WeightsSource(""), (size_px, size_px, 3))


def refuse(options: Sequence[str]) -> None:
    """Raise BackboneError, naming the options, where there are any."""
    if options:
        raise BackboneError(
            f"{PIXELS}: {', '.join(f'`{option}`' for option in options)}: pixels pass through no network and are "
            "stored unchanged, as uint8",
            "Leave it out, or extract the networks in a command of their own",
        )


class PixelsEngine:
    """An `Engine` that hands pixels through."""

    name = PIXELS
    batch_rows = calls_at_once = 1

    def __init__(self, cut: Cut) -> None:
        self.feature_shapes: Sequence[tuple[int, ...]] = [cut.feature_shape]
        self._size_px = cut.space.input_size_px

    def features(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[np.uint8]]:
        """See `Engine.features`; uint8, in the memory of `pixels`."""
        check_rows(pixels, self._size_px)
        return [np.ascontiguousarray(pixels)]

    def resized(self, batch_rows: int) -> Self:
        """See `Engine.resized`; nothing depends on it here."""
        return self
