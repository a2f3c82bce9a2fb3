"""EfficientNet-Lite0 in Keras, and its ImageNet weights from a PyTorch checkpoint.

EfficientNet-B0 made for small processors: no squeeze-and-excite, ReLU6 for swish. The published
weights were trained in TensorFlow and only carried over to PyTorch, so padding ("same", which for
stride 2 pads more at the end) and the epsilon of batch normalisation are TensorFlow's.

    input (s, s, 3) -> stem 3x3/2, 32 -> 16 inverted residual blocks -> head 1x1, 1280 -> (s/32, s/32, 1280)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.import_keras import import_keras
from featcache.backbones.torch_checkpoint import read_checkpoint
from featcache.core.errors import WeightsError

if TYPE_CHECKING:
    import keras

_EPSILON = 1e-3
_MIN_SIZE_PX = 32

# (blocks, kernel, stride of the first, expansion, channels) of the seven stages
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def EfficientNetLite0(  # noqa: N802  # named as the builders of keras.applications are
    weights: str | Path | None = None,
    include_top: bool = False,
    *,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
) -> keras.Model:
    """EfficientNet-Lite0 as a functional Keras model.

    Parameters
    ----------
    weights : None for random ones, else the path of a PyTorch checkpoint (.pth, old serialization)
    include_top : end in `classes` probabilities instead of the last feature map
    input_shape : (h, w, 3), preprocessed with mode "lite0"
    classes : number of classes, with `include_top`

    Returns
    -------
    keras.Model from (n, h, w, 3) to (n, ceil(h/32), ceil(w/32), 1280), or (n, classes)

    Raises
    ------
    ValueError : `input_shape` is too small or has other than 3 channels.
    WeightsError : the checkpoint is unreadable or of another network.
    """
    keras = import_keras()
    if len(input_shape) != 3 or input_shape[2] != 3 or min(input_shape[:2]) < _MIN_SIZE_PX:
        raise ValueError(f"input_shape: expected (h, w, 3), h and w at least {_MIN_SIZE_PX}, got {input_shape}")
    inputs = keras.Input(input_shape)
    x = _conv(inputs, 32, 3, "stem", stride=2)
    index = 0
    for blocks, kernel, first_stride, expansion, channels in _STAGES:
        for number in range(blocks):
            stride = first_stride if number == 0 else 1
            x = _block(x, f"block{index}", kernel=kernel, stride=stride, expansion=expansion, channels=channels)
            index += 1
    x = _conv(x, 1280, 1, "head")
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        x = keras.layers.Dropout(0.2, name="dropout")(x)
        x = keras.layers.Dense(classes, activation="softmax", name="fc")(x)
    model = keras.Model(inputs, x, name="efficientnet_lite0")
    if weights is not None:
        assign_checkpoint(model, read_checkpoint(weights), where=str(weights))
    return model


def _conv(x: Any, channels: int, kernel: int, name: str, stride: int = 1, relu: bool = True) -> Any:
    """Convolution, batch normalisation and, if `relu`, ReLU6: layers NAME_conv, NAME_bn, NAME_relu."""
    layers = import_keras().layers
    x = layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _block(x: Any, name: str, kernel: int, stride: int, expansion: int, channels: int) -> Any:
    """An inverted residual block: widen 1x1, filter each channel, narrow 1x1 without activation."""
    layers = import_keras().layers
    incoming = x
    if expansion > 1:
        x = _conv(x, incoming.shape[-1] * expansion, 1, f"{name}_expand")
    x = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv")(x)
    x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_depthwise_bn")(x)
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
    x = _conv(x, channels, 1, f"{name}_project", relu=False)
    if stride == 1 and incoming.shape[-1] == channels:
        x = layers.Add(name=f"{name}_add")([x, incoming])
    return x


# --- weights --------------------------------------------------------------------------------------


def assign_checkpoint(model: keras.Model, tensors: dict[str, NDArray[Any]], *, where: str) -> None:
    """Set every weight of `model` from the tensors of a PyTorch state dict.

    Parameters
    ----------
    model : an EfficientNetLite0; without top the classifier's two tensors are left out
    tensors : the state dict, as `read_checkpoint` gives it
    where : what messages call the checkpoint

    Raises
    ------
    WeightsError : a tensor is missing, is left over, has another shape or is not finite.
    """
    unused = dict(tensors)
    for layer in model.layers:
        if not layer.weights:
            continue
        values = [_taken(unused, key, convert, where) for key, convert in _entries(layer.name)]
        for weight, value in zip(layer.weights, values, strict=True):
            if tuple(weight.shape) != value.shape:
                raise WeightsError(
                    f"{where}: layer {layer.name}: expected shape {tuple(weight.shape)}, found {value.shape}"
                )
            weight.assign(value)
    with_top = any(layer.name == "fc" for layer in model.layers)
    left = [key for key in unused if not key.endswith("num_batches_tracked")]
    if not with_top:
        left = [key for key in left if key not in ("_fc.weight", "_fc.bias")]
    if left:
        raise WeightsError(f"{where}: not of EfficientNet-Lite0: tensor {left[0]!r:.80} has no layer")


def _taken(
    unused: dict[str, NDArray[Any]], key: str, convert: Callable[[NDArray[Any]], NDArray[Any]], where: str
) -> NDArray[np.float32]:
    """Tensor `key` in Keras' layout, removed from `unused` so that none serves twice."""
    if key not in unused:
        raise WeightsError(f"{where}: not of EfficientNet-Lite0: tensor {key!r} is missing")
    tensor = unused.pop(key)
    if tensor.dtype.kind != "f" or not np.isfinite(tensor).all():
        raise WeightsError(f"{where}: tensor {key!r}: expected finite floating-point values")
    try:
        return np.ascontiguousarray(convert(tensor), dtype=np.float32)
    except ValueError:
        raise WeightsError(f"{where}: tensor {key!r}: unexpected shape {tensor.shape}") from None


def _conv_kernel(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor.transpose(2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out)


def _depthwise_kernel(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor.transpose(2, 3, 0, 1)  # (channel, 1, h, w) -> (h, w, channel, 1)


def _dense_kernel(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor.transpose(1, 0)  # (out, in) -> (in, out)


def _as_is(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor


_TORCH_CONV = {"stem": "_conv_stem", "head": "_conv_head"}
_TORCH_BN = {"stem": "_bn0", "head": "_bn1", "expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}


def _entries(layer: str) -> Iterator[tuple[str, Callable[[NDArray[Any]], NDArray[Any]]]]:
    """(checkpoint's name, conversion) of every weight of `layer`, in the order of Keras' layer.weights."""
    if layer == "fc":
        yield "_fc.weight", _dense_kernel
        yield "_fc.bias", _as_is
        return
    place, _, kind = layer.rpartition("_")  # block3_expand_conv -> block3_expand, conv
    block, _, part = place.rpartition("_")  # -> block3, expand; stem -> "", stem
    prefix = f"_blocks.{block.removeprefix('block')}." if block else ""
    if kind == "conv":
        name = _TORCH_CONV.get(part, f"_{part}_conv")
        yield f"{prefix}{name}.weight", _depthwise_kernel if part == "depthwise" else _conv_kernel
        return
    for value in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}{_TORCH_BN[part]}.{value}", _as_is
