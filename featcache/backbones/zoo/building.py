"""Parts that featcache's own networks share: the image that goes in, convolutions, and the top.

These networks are made to be trained from random weights, at any size from 32 px. Padding is "same". Kernels begin
as He et al. 2015 (Delving deep into rectifiers, equation 12) draw them, which keeps the variance behind a ReLU;
statistics of batch normalisation follow the last few dozen batches, so that a training of minutes has them too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones.import_keras import import_keras
from featcache.backbones.weights_h5 import assign_file

if TYPE_CHECKING:
    import keras

MIN_SIZE_PX = 32


def image_input(input_shape: tuple[int, int, int]) -> Any:
    """The input of a network for images of `input_shape`.

    Raises
    ------
    ValueError : `input_shape` is too small or has other than 3 channels.
    """
    if len(input_shape) != 3 or input_shape[2] != 3 or min(input_shape[:2]) < MIN_SIZE_PX:
        raise ValueError(f"input_shape: expected (h, w, 3), h and w at least {MIN_SIZE_PX}, got {input_shape}")
    return import_keras().Input(input_shape)


def conv(x: Any, channels: int, *, kernel: int, name: str, stride: int = 1, relu: bool = True) -> Any:
    """Convolution, batch normalisation and, if `relu`, ReLU: layers NAME_conv, NAME_bn, NAME_relu."""
    layer = import_keras().layers.Conv2D(
        channels,
        kernel,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )
    return normalised(layer(x), name, relu=relu)


def normalised(x: Any, name: str, *, relu: bool = True) -> Any:
    """Batch normalisation and, if `relu`, ReLU: layers NAME_bn, NAME_relu."""
    layers = import_keras().layers
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def pooled_top(x: Any, classes: int) -> Any:
    """Probabilities of `classes` from the mean over a feature map."""
    layers = import_keras().layers
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.Dense(classes, activation="softmax", name="fc")(x)


def finished(
    name: str,
    inputs: Any,
    *,
    x: Any,
    weights: str | Path | None,
    classes: int | None,
    top: Callable[[Any, int], Any] = pooled_top,
) -> keras.Model:
    """The network from `inputs` to the feature map `x`, or through `top` to `classes`, with the weights of a file."""
    model: keras.Model = import_keras().Model(inputs, x if classes is None else top(x, classes), name=name)
    if weights is not None:
        assign_file(model, Path(weights))
    return model
