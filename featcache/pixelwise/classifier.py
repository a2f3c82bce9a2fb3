"""The classifier of pixels, as numbers, and the file that keeps it. The file of a stranger runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError
from featcache.core.files import sha256_file
from featcache.core.npz import NPZ_DAMAGE, reading_npz, write_npz
from featcache.core.recipe import FeatureSpace, Recipe
from featcache.pixelwise.pixels import COLOURS, Floats

FORMAT = 1
CLASSES = ("background", "cytoplasm", "nucleus")
MOST_CHANNELS, SIDES_PX = 512, (16, 1024)
"""Channels of a map at most, and sides of the square that pixels are classified in."""
_MOST_BYTES = 16 << 20
_LARGEST, _LEAST_SCALE = 1e6, 1e-6
"""Numbers beyond these are none that a fit gives, and would overflow."""
_ARRAYS = ("mean", "scale", "hidden", "hidden_bias", "out", "out_bias")
_ABOUT = {"format": int, "recipe": dict, "weights": str, "side_px": int, "pictures": int, "cells": int, "pixels": dict}
"""What a file says of itself, and the types of it."""


@dataclass(frozen=True)
class PixelClassifier:
    """A hidden layer with rectified linear units, and softmax.

    Attributes
    ----------
    mean, scale : of each value of a pixel, which is standardised first: (n,)
    hidden, hidden_bias : (n, units) and (units,)
    out, out_bias : (units, 3) and (3,), for `CLASSES`
    """

    mean: Floats
    scale: Floats
    hidden: Floats
    hidden_bias: Floats
    out: Floats
    out_bias: Floats

    @classmethod
    def fit(cls, values: Floats, classes: NDArray[np.int64], *, units: int, passes: int, seed: int) -> Self:
        """Fit it to pixels, (n, values), and their classes by number, (n,); all three must be there."""
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        mean = values.mean(axis=0, dtype=np.float64)
        scale = np.maximum(values.std(axis=0, dtype=np.float64), 2 * _LEAST_SCALE)
        network = MLPClassifier(
            (units,), batch_size=min(512, len(values)), learning_rate_init=3e-3, max_iter=passes, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as many passes as were asked for
            network.fit((values - mean) / scale, classes)
        (hidden, out), (hidden_bias, out_bias) = network.coefs_, network.intercepts_
        arrays = (mean, scale, hidden, hidden_bias, out, out_bias)
        return cls(*(np.asarray(array, np.float32) for array in arrays))

    def probabilities(self, values: Floats) -> Floats:
        """Of each class: (..., values) to (..., 3)."""
        inner = np.maximum((values - self.mean) / self.scale @ self.hidden + self.hidden_bias, 0)
        scores = inner @ self.out + self.out_bias
        grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(grown / grown.sum(axis=-1, keepdims=True), np.float32)


@dataclass(frozen=True)
class SegmenterFile:
    """What a file of a fitted segmenter holds.

    Attributes
    ----------
    classifier : of pixels
    space : the feature space of the maps; it holds the digest of the network's weights
    weights : where these came from
    side_px : side of the square that pixels are classified in
    pictures, cells : that it was fitted to
    pixels : of each class
    """

    classifier: PixelClassifier
    space: FeatureSpace
    weights: str
    side_px: int
    pictures: int
    cells: int
    pixels: Mapping[str, int]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        about = {
            "format": FORMAT,
            "recipe": Recipe(self.space).to_dict(),
            **{name: getattr(self, name) for name in _ABOUT if name not in ("format", "recipe")},
        }
        text = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
        write_npz(path, {"about": text, **{name: getattr(self.classifier, name) for name in _ARRAYS}})

    @classmethod
    def read(cls, path: Path) -> Self:
        """The inverse of `write`. Raises DatasetError for anything else."""
        if not path.is_file():
            raise DatasetError(f"{path}: there is no such file")
        if path.stat().st_size > _MOST_BYTES:
            raise DatasetError(f"{path}: is larger than any segmenter that featcache fits")
        try:
            with reading_npz(path) as arrays:
                if set(arrays) != {"about", *_ARRAYS}:
                    raise ValueError("it holds other arrays")
                about = json.loads(arrays["about"].tobytes().decode())
                return cls._of(about, {name: arrays[name] for name in _ARRAYS})
        except (*NPZ_DAMAGE, RecursionError) as error:
            raise DatasetError(f"{path}: is no segmenter that this featcache fits: {error!s:.200}") from error

    @classmethod
    def _of(cls, about: Any, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Raises ValueError or TypeError for what does not fit together."""
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        if about.keys() != _ABOUT.keys() or any(type(about[name]) is not kind for name, kind in _ABOUT.items()):
            raise ValueError("what it says of itself is incomplete")
        if set(about["pixels"]) != set(CLASSES) or any(type(count) is not int for count in about["pixels"].values()):
            raise ValueError("its pixels are of other classes")
        if not SIDES_PX[0] <= about["side_px"] <= SIDES_PX[1]:
            raise ValueError(f"{about['side_px']} pixels a side")
        n, units = arrays["hidden"].shape
        shapes = {"mean": (n,), "scale": (n,), "hidden": (n, units), "hidden_bias": (units,)}
        shapes |= {"out": (units, len(CLASSES)), "out_bias": (len(CLASSES),)}
        if not COLOURS < n <= MOST_CHANNELS + COLOURS or any(arrays[name].shape != shapes[name] for name in _ARRAYS):
            raise ValueError("its arrays do not fit together")
        if any(of.dtype != np.float32 or not (np.abs(of) <= _LARGEST).all() for of in arrays.values()):
            raise ValueError("its numbers are not finite, too large, or not float32")
        if not (arrays["scale"] >= _LEAST_SCALE).all():
            raise ValueError("a scale that is too small")
        rest = {name: about[name] for name in _ABOUT if name not in ("format", "recipe")}
        return cls(PixelClassifier(**arrays), Recipe.from_dict(about["recipe"]).space, **rest)


def method_of(path: Path) -> str:
    """What tells one file of a segmenter from another, wherever it lies."""
    return f"fitted-{sha256_file(path)[:16]}"
