"""Builds a backbone with given weights, frozen, and names the weights by what they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.imagenet import fetch
from featcache.backbones.import_keras import import_keras
from featcache.backbones.registry import Backbone
from featcache.backbones.weights_h5 import assign_file
from featcache.core.errors import BackboneError, WeightsError
from featcache.core.files import expanded

if TYPE_CHECKING:
    import keras


_DRAWING = ("RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling")
"""Initializers of Keras that draw, but for those that are a VarianceScaling: Glorot's, He's and LeCun's."""


def load(
    backbone: Backbone, spec: str | Path = "imagenet", *, seed: int = 0, input_size_px: int | None = None
) -> keras.Model:
    """`backbone` without its top, with the weights that `spec` names, not trainable.

    Parameters
    ----------
    backbone : a row of the registry
    spec : "imagenet", "random" or the path of a weights file: .h5 (legacy), .weights.h5, a whole .keras or .h5
        model of the backbone or around it, or .pth for EfficientNet-Lite0. A file called imagenet or random is
        named as ./imagenet.
    seed : decides random weights, equal in every process and on every machine
    input_size_px : side of the square input; None for the backbone's own

    Returns
    -------
    keras.Model from (n, s, s, 3), preprocessed, to (n, h, w, c)

    Raises
    ------
    BackboneError : `input_size_px` is below the backbone's minimum.
    WeightsError : the weights are missing, damaged or of another network.
    """
    check_input_size(backbone, input_size_px)  # first what can be said at once: building takes seconds
    source = source_of(backbone, spec)
    model = build(backbone, input_size_px)
    if source is None:
        randomize(model, seed)
    elif source.suffix == ".pth":
        _assign_checkpoint(backbone, model, source)
    else:
        assign_file(model, source)
    model.trainable = False
    return model


def build(backbone: Backbone, input_size_px: int | None = None) -> keras.Model:
    """`backbone` without its top, its kernels zero: whoever builds it assigns them, and drawing takes half of the time.

    Raises
    ------
    BackboneError : `input_size_px` is below the backbone's minimum.
    """
    size_px = check_input_size(backbone, input_size_px)
    import_keras()  # the quiet way, before the builder's module imports it
    module, _, attribute = backbone.builder.partition(":")
    builder = getattr(import_module(module), attribute)
    with drawing_zeros():
        return builder(weights=None, include_top=False, input_shape=(size_px, size_px, 3))


@contextmanager
def drawing_zeros() -> Iterator[None]:
    """Within it, Keras' initializers give zeros where they would draw."""
    keras = import_keras()
    kinds = [getattr(keras.initializers, name) for name in _DRAWING]
    calls = [kind.__call__ for kind in kinds]

    def zeros(_: Any, shape: Sequence[int], dtype: Any = None, **__: Any) -> Any:
        return keras.ops.zeros(shape, dtype)

    try:
        for kind in kinds:
            kind.__call__ = zeros
        yield
    finally:
        for kind, call in zip(kinds, calls, strict=True):
            kind.__call__ = call


def check_input_size(backbone: Backbone, input_size_px: int | None) -> int:
    """The side of the input in pixels, None being the backbone's own; BackboneError below its minimum."""
    size_px = backbone.input_size_px if input_size_px is None else input_size_px
    if size_px < backbone.min_size_px:
        raise BackboneError(f"{backbone.name}: input size {size_px} px: expected at least {backbone.min_size_px} px")
    return size_px


def weights_digest(model: keras.Model) -> str:
    """SHA-256, in hex, of all weights of `model`: equal for equal tensors, whatever file they came from.

    The digest is over every tensor of `model.weights` in that order (layers in the model's order,
    within a layer as the layer made them, moving statistics included). For each tensor it takes the
    ASCII line ``<dtype> <d0>,<d1>,...\\n``, for example ``float32 3,3,3,64\\n``, then the values in C
    order, little-endian. Names of layers and weights are not part of it: Keras numbers some anew in
    every process.
    """
    return tensors_digest(model.weights)


def tensors_digest(weights: Iterable[keras.Variable]) -> str:
    """`weights_digest` of some weights, in their order."""
    digest = hashlib.sha256()
    for weight in weights:
        value = np.asarray(weight.numpy())
        digest.update(f"{value.dtype.name} {','.join(map(str, value.shape))}\n".encode("ascii"))
        digest.update(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def source_of(backbone: Backbone, spec: str | Path) -> Path | None:
    """The file that `spec` means; None for random weights."""
    if spec == "random":
        return None
    if spec == "imagenet":
        return fetch(backbone)
    path = expanded(spec)
    if not path.is_file():
        hint = "" if path.suffix else " (or did you mean 'imagenet' or 'random'?)"
        raise WeightsError(f"{backbone.name}: there is no weights file {path}{hint}")
    return path


def _assign_checkpoint(backbone: Backbone, model: keras.Model, path: Path) -> None:
    from featcache.backbones import torch_checkpoint
    from featcache.backbones.zoo import efficientnet_lite0

    if backbone.name != "efficientnet-lite0":
        raise WeightsError(f"{path}: only efficientnet-lite0 takes PyTorch checkpoints, not {backbone.name}")
    efficientnet_lite0.assign_checkpoint(model, torch_checkpoint.read_checkpoint(path), where=str(path))


def randomize(model: keras.Model, seed: int) -> None:
    """Draw every kernel anew, Glorot-uniform as Keras' layers do by default, from (seed, its number).

    Keras draws from a process-wide generator, so its own values depend on what was built before.
    Vectors (biases, batch normalisation) start as constants and stay so, and so do whole numbers, as of positions.
    """
    for number, weight in enumerate(model.weights):
        if len(weight.shape) >= 2 and "float" in weight.dtype:
            weight.assign(glorot_uniform(tuple(weight.shape), np.random.default_rng([seed, number])))


def glorot_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Values of variance 2 / (fan in + fan out) for a kernel of shape (..., in, out)."""
    window = math.prod(shape[:-2])
    limit = math.sqrt(6 / (window * (shape[-2] + shape[-1])))
    values: NDArray[np.float32] = rng.random(shape, np.float32)
    return (2 * values - 1) * np.float32(limit)
