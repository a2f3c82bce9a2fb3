"""Residual networks to train from scratch: bottlenecks with stochastic depth or groups, and the small ones for CIFAR.

- ResNet-20 and ResNet-110: He et al. 2016 (arXiv:1512.03385), section 4.2: 3 stages of n blocks of two 3x3
  convolutions, 16, 32 and 64 channels, 6n + 2 layers; shortcuts without parameters (their option A).
- ResNet-50: the same paper, table 1; the stride of a stage is that of its first 3x3 convolution, as in the
  implementation by Facebook that the two papers below built upon.
- Stochastic depth: Huang et al. 2016 (arXiv:1603.09382), see `stochastic_depth`. Block l of L drops its branch with
  probability l / L * 0.5 (their equation 4 with p_L = 0.5), also where the shortcut is a projection.
- ResNeXt-50 32x4d: Xie et al. 2017 (arXiv:1611.05431), table 1: bottlenecks of twice the width, whose 3x3
  convolution has 32 groups.

    input (s, s, 3) -> stem -> stages of blocks relu(shortcut + branch) -> (s/4, s/4, 64) or (s/32, s/32, 2048)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones.import_keras import import_keras
from featcache.backbones.zoo.building import conv, finished, image_input, normalised
from featcache.backbones.zoo.grouped_conv import grouped_conv_class
from featcache.backbones.zoo.stochastic_depth import dropped, linear_rates, seed_of

if TYPE_CHECKING:
    import keras

_LAST_RATE = 0.5
_SHAPE = tuple[int, int, int]
_Drop = Callable[[Any, str], Any]


def ResNet20(  # noqa: N802  # named as the builders of keras.applications are
    weights: str | Path | None = None,
    include_top: bool = False,
    *,
    input_shape: _SHAPE = (32, 32, 3),
    classes: int = 1000,
) -> keras.Model:
    """ResNet-20 for CIFAR as a functional Keras model: small enough to be trained in minutes on a processor.

    Parameters
    ----------
    weights : None for random ones, else the path of a weights file
    include_top : end in `classes` probabilities instead of the last feature map
    input_shape : (h, w, 3), at least 32 px
    classes : number of classes, with `include_top`

    Returns
    -------
    keras.Model from (n, h, w, 3) to (n, ceil(h/4), ceil(w/4), 64), or (n, classes)

    Raises
    ------
    ValueError : `input_shape` is too small or has other than 3 channels.
    WeightsError : the file is missing, damaged or of another network.
    """
    return _small(
        "resnet20",
        3,
        last_rate=0.0,
        weights=weights,
        include_top=include_top,
        input_shape=input_shape,
        classes=classes,
        seed=0,
    )


def ResNet110SD(  # noqa: N802
    weights: str | Path | None = None,
    include_top: bool = False,
    *,
    input_shape: _SHAPE = (32, 32, 3),
    classes: int = 1000,
    seed: int = 0,
) -> keras.Model:
    """ResNet-110 for CIFAR with stochastic depth.

    seed : decides which branches are dropped; all else as in `ResNet20`
    """
    return _small(
        "resnet110_sd",
        18,
        last_rate=_LAST_RATE,
        weights=weights,
        include_top=include_top,
        input_shape=input_shape,
        classes=classes,
        seed=seed,
    )


def ResNet50SD(  # noqa: N802
    weights: str | Path | None = None,
    include_top: bool = False,
    *,
    input_shape: _SHAPE = (224, 224, 3),
    classes: int = 1000,
    seed: int = 0,
) -> keras.Model:
    """ResNet-50 with stochastic depth, to (n, ceil(h/32), ceil(w/32), 2048).

    seed : decides which branches are dropped; all else as in `ResNet20`
    """
    return _large(
        "resnet50_sd",
        64,
        groups=1,
        last_rate=_LAST_RATE,
        weights=weights,
        include_top=include_top,
        input_shape=input_shape,
        classes=classes,
        seed=seed,
    )


def ResNeXt50(  # noqa: N802
    weights: str | Path | None = None,
    include_top: bool = False,
    *,
    input_shape: _SHAPE = (224, 224, 3),
    classes: int = 1000,
) -> keras.Model:
    """ResNeXt-50 32x4d, to (n, ceil(h/32), ceil(w/32), 2048); all else as in `ResNet20`."""
    return _large(
        "resnext50",
        128,
        groups=32,
        last_rate=0.0,
        weights=weights,
        include_top=include_top,
        input_shape=input_shape,
        classes=classes,
        seed=0,
    )


# --- networks -------------------------------------------------------------------------------------


def _small(
    name: str,
    blocks: int,
    last_rate: float,
    weights: str | Path | None,
    include_top: bool,
    input_shape: _SHAPE,
    classes: int,
    seed: int,
) -> keras.Model:
    """The form for CIFAR: a stem of 16 channels, 3 stages of `blocks` basic blocks."""
    inputs = image_input(input_shape)
    drop = _dropping(3 * blocks, last_rate, seed)
    x = conv(inputs, 16, kernel=3, name="stem")
    for stage, channels in enumerate((16, 32, 64), 1):
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and stage > 1 else 1
            x = _basic(x, f"conv{stage}_block{block}", channels, stride, drop)
    return finished(name, inputs, x=x, weights=weights, classes=classes if include_top else None)


def _large(
    name: str,
    width: int,
    groups: int,
    last_rate: float,
    weights: str | Path | None,
    include_top: bool,
    input_shape: _SHAPE,
    classes: int,
    seed: int,
) -> keras.Model:
    """The form for ImageNet of 50 layers: `width` channels within the blocks of the first stage."""
    inputs = image_input(input_shape)
    drop = _dropping(16, last_rate, seed)
    x = conv(inputs, 64, kernel=7, name="stem", stride=2)
    x = import_keras().layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and stage > 0 else 1
            x = _bottleneck(
                x,
                f"conv{stage + 2}_block{block}",
                width=width << stage,
                channels=256 << stage,
                stride=stride,
                groups=groups,
                drop=drop,
            )
    return finished(name, inputs, x=x, weights=weights, classes=classes if include_top else None)


def _dropping(blocks: int, last_rate: float, seed: int) -> _Drop:
    """A function that drops the next block's branch: from (branch, the block's name) to the branch."""
    numbered = iter(enumerate(linear_rates(blocks, last_rate)))

    def drop(branch: Any, name: str) -> Any:
        number, rate = next(numbered)
        return dropped(branch, rate, seed=seed_of(seed, number), name=f"{name}_drop") if rate else branch

    return drop


# --- blocks ---------------------------------------------------------------------------------------


def _basic(x: Any, name: str, channels: int, stride: int, drop: _Drop) -> Any:
    """Two 3x3 convolutions beside the input, whose every `stride`-th pixel is taken, with zeros for new channels."""
    branch = conv(x, channels, kernel=3, name=f"{name}_1", stride=stride)
    branch = conv(branch, channels, kernel=3, name=f"{name}_2", relu=False)
    if stride > 1:
        x = import_keras().layers.AveragePooling2D(1, stride, name=f"{name}_subsample")(x)
    if x.shape[-1] != channels:
        x = _widened(x, channels, f"{name}_widen")
    return _joined(x, branch, name, drop)


def _widened(x: Any, channels: int, name: str) -> Any:
    """`x` with zeros behind its channels. Read as (n, channels, h, w), its channels are what a padding calls width."""
    padding = ((0, 0), (0, channels - x.shape[-1]))
    return import_keras().layers.ZeroPadding2D(padding, data_format="channels_first", name=name)(x)


def _bottleneck(x: Any, name: str, width: int, channels: int, stride: int, groups: int, drop: _Drop) -> Any:
    """Narrow 1x1, filter 3x3 in `groups`, widen 1x1, beside the input or, where shapes differ, its 1x1 projection."""
    branch = conv(x, width, kernel=1, name=f"{name}_1")
    if groups == 1:
        branch = conv(branch, width, kernel=3, name=f"{name}_2", stride=stride)
    else:
        branch = _grouped(branch, width, f"{name}_2", stride, groups)
    branch = conv(branch, channels, kernel=1, name=f"{name}_3", relu=False)
    if stride > 1 or x.shape[-1] != channels:
        x = conv(x, channels, kernel=1, name=f"{name}_0", stride=stride, relu=False)
    return _joined(x, branch, name, drop)


def _grouped(x: Any, channels: int, name: str, stride: int, groups: int) -> Any:
    layer = grouped_conv_class()(
        channels,
        3,
        stride,
        padding="same",
        groups=groups,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )
    return normalised(layer(x), name)


def _joined(shortcut: Any, branch: Any, name: str, drop: _Drop) -> Any:
    layers = import_keras().layers
    x = layers.Add(name=f"{name}_add")([shortcut, drop(branch, name)])
    return layers.ReLU(name=f"{name}_out")(x)
