"""The classifier of pixels, as numbers, and the file that keeps it. The file of a stranger runs nothing."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError
from featcache.core.npz import NPZ_DAMAGE, npz_of, reading_npz, write_npz
from featcache.core.recipe import FeatureSpace, Recipe, WeightsSource, digest
from featcache.segmentation.framing import CellCut
from featcache.segmentation.pixel_values import COLOURS, Floats

FORMAT = 1
COPY = "segmenter"
"""What the copy of a segmenter is called in the provenance of a cache."""
CLASSES = ("background", "cytoplasm", "nucleus")
MOST_CHANNELS, MOST_UNITS, SIDES_PX = 512, 1024, (16, 1024)
"""Channels of a map and hidden units at most, and sides of the square that pixels are classified in."""
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

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of what decides its masks: the numbers, the network with its weights and layer, the side.

        Where the weights were called what, and what it was fitted to, decides nothing.
        """
        arrays = {}
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(self.classifier, name), "<f4")
            arrays[name] = [list(array.shape), sha256(array.tobytes()).hexdigest()]
        return digest({"format": FORMAT, "space": self.space.to_dict(), "side_px": self.side_px, "arrays": arrays})

    @property
    def method(self) -> str:
        """The name of this way to segment, wherever the file lies."""
        return f"fitted-{self.digest}"

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_npz(path, self._arrays())

    @property
    def text(self) -> str:
        """The file as text, to be kept in a record."""
        return base64.b64encode(npz_of(self._arrays())).decode()

    def without_names(self) -> Self:
        """The same without the name of a file of weights."""
        return replace(self, weights="a file") if WeightsSource.read(self.weights).kind == "file" else self

    def _arrays(self) -> dict[str, NDArray[Any]]:
        about = {
            "format": FORMAT,
            "recipe": Recipe(self.space).to_dict(),
            **{name: getattr(self, name) for name in _ABOUT if name not in ("format", "recipe")},
        }
        text = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
        return {"about": text, **{name: getattr(self.classifier, name) for name in _ARRAYS}}

    @classmethod
    def read(cls, path: Path) -> Self:
        """The inverse of `write`. Raises DatasetError for anything else."""
        if not path.is_file():
            raise DatasetError(f"{path}: there is no such file")
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise DatasetError(f"{path}: is larger than any segmenter that featcache fits")
            return cls._read(path.read_bytes(), str(path))
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error

    @classmethod
    def of_text(cls, text: object, where: str) -> Self:
        """The inverse of `text`. where : for the message. Raises DatasetError for anything else."""
        try:
            if not isinstance(text, str) or len(text) > 2 * _MOST_BYTES:
                raise ValueError("no text, or too long")
            return cls._read(base64.b64decode(text, validate=True), where)
        except (binascii.Error, ValueError) as error:
            raise DatasetError(f"{where}: is no segmenter that this featcache fits: {error!s:.200}") from error

    @classmethod
    def kept(cls, provenance: Mapping[str, Any], segmentation: str, *, where: str) -> Self | None:
        """The copy that the provenance of a cache holds; None where it needs none, or holds none.

        Raises DatasetError for a copy that is not the segmenter which the recipe names.
        """
        if not CellCut.fitted_of(segmentation) or COPY not in provenance:
            return None
        known = cls.of_text(provenance[COPY], f"{where}: its fitted segmenter")
        known.refuse_other(segmentation, where=where)
        return known

    def refuse_other(self, segmentation: str, *, where: str) -> None:
        """Raise DatasetError unless it is the one that a recipe names as its `segmentation`. where : the copy is"""
        if (wanted := CellCut.fitted_of(segmentation)) != self.digest:
            raise DatasetError(
                f"{where}: its cells are cut out by the fitted segmenter {wanted[:16]}.., and the copy there is of "
                f"{self.digest[:16]}..: it was replaced or is damaged",
                "Get it again from where it came",
            )

    @classmethod
    def _read(cls, data: bytes, where: str) -> Self:
        try:
            with reading_npz(io.BytesIO(data)) as arrays:
                if set(arrays) != {"about", *_ARRAYS}:
                    raise ValueError("it holds other arrays")
                about = json.loads(arrays["about"].tobytes().decode())
                return cls._of(about, {name: arrays[name] for name in _ARRAYS})
        except (*NPZ_DAMAGE, RecursionError) as error:
            raise DatasetError(f"{where}: is no segmenter that this featcache fits: {error!s:.200}") from error

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
        if not 1 <= units <= MOST_UNITS:
            raise ValueError(f"{units} hidden units")
        if not COLOURS < n <= MOST_CHANNELS + COLOURS or any(arrays[name].shape != shapes[name] for name in _ARRAYS):
            raise ValueError("its arrays do not fit together")
        if any(of.dtype != np.float32 or not (np.abs(of) <= _LARGEST).all() for of in arrays.values()):
            raise ValueError("its numbers are not finite, too large, or not float32")
        if not (arrays["scale"] >= _LEAST_SCALE).all():
            raise ValueError("a scale that is too small")
        rest = {name: about[name] for name in _ABOUT if name not in ("format", "recipe")}
        return cls(PixelClassifier(**arrays), Recipe.from_dict(about["recipe"]).space, **rest)
