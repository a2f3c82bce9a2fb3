"""Engines: from pixels to features. One small contract, of which Keras is the first implementation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import registry
from featcache.backbones.preprocess import check_mode, check_pixels, preprocess
from featcache.backbones.quiet_keras import import_keras
from featcache.errors import BackboneError, nearest

if TYPE_CHECKING:
    import keras

POOLINGS = ("none", "avg", "max")


def check_pooling(pooling: str) -> str:
    """`pooling`, if it is one of `POOLINGS`; else BackboneError."""
    if pooling not in POOLINGS:
        raise BackboneError(f"there is no pooling {pooling!r}: {nearest(pooling, POOLINGS)}")
    return pooling


class Engine(Protocol):
    """Runs one backbone. A row's features depend on that row's pixels alone.

    Attributes
    ----------
    name : which engine it is, for the manifest's provenance.
    feature_shape : shape of one row's features, (h, w, c), or (c,) where pooled.
    """

    name: str
    feature_shape: tuple[int, ...]

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of a batch of any length.

        Parameters
        ----------
        pixels : ndarray of shape (n, s, s, 3), uint8, RGB

        Returns
        -------
        ndarray of shape (n, *feature_shape), float32, C-contiguous

        Raises
        ------
        BackboneError : pixels of another shape or dtype.
        """
        ...


class KerasEngine:
    """An `Engine` on a Keras model, whichever backend Keras runs on.

    Parameters
    ----------
    model : from (n, s, s, 3) to (n, h, w, c), sizes fixed
    preprocessing : one of `preprocess.MODES`
    batch_size : rows a call of the model; the last batch is padded up to it
    pooling : "none", "avg" or "max" over h and w

    Raises
    ------
    BackboneError : an unknown preprocessing or pooling, a batch size below 1, or a model of another shape.
    """

    name = "keras"

    def __init__(self, model: keras.Model, preprocessing: str, batch_size: int = 32, pooling: str = "none") -> None:
        check_mode(preprocessing)
        check_pooling(pooling)
        if batch_size < 1:
            raise BackboneError(f"batch size: expected at least 1, got {batch_size}")
        feature_map = tuple(model.output_shape[1:])
        if len(feature_map) != 3 or None in feature_map:
            raise BackboneError(f"{model.name}: expected an output of fixed shape (n, h, w, c), got {feature_map}")
        self.feature_shape: tuple[int, ...] = feature_map if pooling == "none" else feature_map[2:]
        self._model = model
        self._input_shape = tuple(model.input_shape[1:])
        self._preprocessing = preprocessing
        self._batch_size = batch_size
        self._pooling = pooling

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Engine.features`."""
        check_pixels(pixels)
        if pixels.shape[1:] != self._input_shape:
            raise BackboneError(f"pixels: expected rows of shape {self._input_shape}, got {pixels.shape[1:]}")
        features = np.empty((len(pixels), *self.feature_shape), np.float32)
        for start in range(0, len(pixels), self._batch_size):
            rows = pixels[start : start + self._batch_size]
            features[start : start + len(rows)] = self._batch(rows)[: len(rows)]
        return features

    def _batch(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of up to `batch_size` rows, always computed as one full batch.

        Libraries choose other kernels for other shapes, and those round otherwise: with one shape
        for all calls, a row gets the same features in the last batch as in any other.
        """
        if missing := self._batch_size - len(rows):
            rows = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), np.uint8)])
        feature_map: NDArray[np.float32] = self._model.predict_on_batch(preprocess(rows, self._preprocessing))
        return _pooled(feature_map, self._pooling)


def _pooled(features: NDArray[np.float32], pooling: str) -> NDArray[np.float32]:
    """(n, h, w, c) -> (n, c), or as it is for "none"."""
    pooled: NDArray[np.float32] = features
    if pooling == "avg":
        pooled = features.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    elif pooling == "max":
        pooled = features.max(axis=(1, 2))
    return pooled


@dataclass(frozen=True)
class EngineInfo:
    """What an engine computes: the part of a recipe that the backbone decides.

    Attributes
    ----------
    backbone : name in the registry.
    layer : the layer whose output is taken.
    input_size_px : side of the square input.
    preprocessing : one of `preprocess.MODES`.
    pooling : "none", "avg" or "max".
    weights : "imagenet", "random-SEED" or a file's name; for people, never compared.
    weights_digest : see `weights.weights_digest`.
    feature_shape : shape of one row's features.
    engine : name of the engine and of what runs below it, for example "keras-tensorflow".
    """

    backbone: str
    layer: str
    input_size_px: int
    preprocessing: str
    pooling: str
    weights: str
    weights_digest: str
    feature_shape: tuple[int, ...]
    engine: str


def open_engine(
    name: str,
    weights: str | Path = "imagenet",
    seed: int = 0,
    input_size_px: int | None = None,
    preprocessing: str | None = None,
    pooling: str = "none",
    batch_size: int = 32,
) -> tuple[Engine, EngineInfo]:
    """An engine for the backbone called `name`, and the record of what it computes.

    Parameters
    ----------
    name : a backbone of the registry
    weights : "imagenet", "random" or a path; see `weights.load`
    seed : for random weights
    input_size_px : side of the square input; None for the backbone's own
    preprocessing : one of `preprocess.MODES`; None or "model" for the one the weights were trained with
    pooling : "none", "avg" or "max" over the feature map
    batch_size : rows a call of the model

    Raises
    ------
    BackboneError : an unknown backbone, preprocessing or pooling, or too small an input.
    WeightsError : the weights are missing, damaged or of another network.
    """
    from featcache.backbones import weights as weights_module

    backbone = registry.get(name)
    mode = backbone.preprocessing if preprocessing in (None, "model") else check_mode(str(preprocessing))
    check_pooling(pooling)
    size_px = weights_module.check_input_size(backbone, input_size_px)
    model = weights_module.load(backbone, weights, seed, size_px)
    engine = KerasEngine(model, mode, batch_size, pooling)
    info = EngineInfo(
        backbone=backbone.name,
        layer=backbone.layer,
        input_size_px=size_px,
        preprocessing=mode,
        pooling=pooling,
        weights=weights_module.label(weights, seed),
        weights_digest=weights_module.weights_digest(model),
        feature_shape=engine.feature_shape,
        engine=f"{engine.name}-{import_keras().backend.backend()}",
    )
    return engine, info
