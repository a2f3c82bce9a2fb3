"""FractalNet of 20 layers with drop-path, in its form for CIFAR (Larsson et al. 2017, arXiv:1605.07648).

A fractal of C columns is f_1(x) = conv(x), f_(c+1)(x) = the mean of conv(x) and f_c(f_c(x)): column c, from 0 for
the shallowest, is 2^c convolutions of the block in a row, and columns join where their convolutions end together.

    input (s, s, 3) -> 5 blocks of 3 columns, 64, 128, 256, 512 and 512 channels, each then pooled 2x2
        -> (s/32, s/32, 512)

Depth is that of the deepest column, 5 * 2^2 = 20. A convolution is 3x3, then dropout (0, 0.1, 0.2, 0.3 and 0.4 in the
five blocks), batch normalisation and ReLU. The paper names 16, 32, 64, 128 and 128 channels for the networks of its
table 3, and this construction has that table's parameters for 1 to 6 columns: 0.3, 0.8, 2.1, 4.8, 10.2 and 21.1 M.
With four times the channels it has 33.7 M. Tables of other papers give 38.6 M for it, which does not follow from this
construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones.import_keras import import_keras
from featcache.backbones.zoo.building import finished, image_input, normalised
from featcache.backbones.zoo.drop_path import drop_path_join_class
from featcache.backbones.zoo.stochastic_depth import seed_of

if TYPE_CHECKING:
    import keras

_COLUMNS = 3
_CHANNELS = (64, 128, 256, 512, 512)
_DROPOUT = (0.0, 0.1, 0.2, 0.3, 0.4)
_DROP_PATH = 0.15
_GLOBAL_SHARE = 0.5


def FractalNet(  # noqa: N802  # named as the builders of keras.applications are
    weights: str | Path | None = None,
    include_top: bool = False,
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 1000,
    seed: int = 0,
) -> keras.Model:
    """FractalNet of 20 layers as a functional Keras model; half of the batches take one column (global drop-path).

    Parameters
    ----------
    weights : None for random ones, else the path of a weights file
    include_top : end in `classes` probabilities instead of the last feature map
    input_shape : (h, w, 3), at least 32 px
    classes : number of classes, with `include_top`
    seed : decides what dropout and drop-path drop

    Returns
    -------
    keras.Model from (n, h, w, 3) to (n, h // 32, w // 32, 512), or (n, classes)

    Raises
    ------
    ValueError : `input_shape` is too small or has other than 3 channels.
    WeightsError : the file is missing, damaged or of another network.
    """
    inputs = image_input(input_shape)
    x = fractal(inputs, _COLUMNS, channels=_CHANNELS, seed=seed)
    return finished("fractalnet", inputs, x=x, weights=weights, classes=classes if include_top else None)


def fractal(x: Any, columns: int, *, channels: Sequence[int], seed: int) -> Any:
    """Blocks of `columns` columns, one for each of `channels`; at most as many as there are rates of dropout."""
    layers = import_keras().layers
    seeds = iter(range(1, 1 << 20))  # 0 is the network's own

    def own_seed() -> int:
        return seed_of(seed, next(seeds))

    def conv(x: Any, channels: int, *, rate: float, name: str) -> Any:
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
        if rate:
            x = layers.Dropout(rate, seed=own_seed(), name=f"{name}_dropout")(x)
        return normalised(x, name)

    def join(paths: list[Any], ended: list[int], name: str) -> Any:
        if len(paths) == 1:
            return paths[0]
        kind = drop_path_join_class()
        shared = seed_of(seed, 0)
        return kind(
            ended,
            columns,
            rate=_DROP_PATH,
            global_share=_GLOBAL_SHARE,
            network_seed=shared,
            seed=own_seed(),
            name=f"{name}_join",
        )(paths)

    for number, (width, rate) in enumerate(zip(channels, _DROPOUT, strict=False), 1):

        def block_conv(x: Any, name: str, width: int = width, rate: float = rate) -> Any:
            return conv(x, width, rate=rate, name=name)

        x = _block(x, f"block{number}", columns, block_conv, join)
        x = layers.MaxPooling2D(2, name=f"block{number}_pool")(x)
    return x


def _block(
    x: Any,
    name: str,
    columns: int,
    conv: Callable[[Any, str], Any],
    join: Callable[[list[Any], list[int], str], Any],
) -> Any:
    """One fractal: step by step along its deepest column, with the convolutions of every column that ends there."""
    begins = [x] * columns  # where each column's next convolution begins
    joined = x
    for step in range(1, 2 ** (columns - 1) + 1):
        ended = [column for column in range(columns) if step % 2 ** (columns - 1 - column) == 0]
        paths = [conv(begins[column], f"{name}_step{step}_column{column}") for column in ended]
        joined = join(paths, ended, f"{name}_step{step}")
        for column in ended:
            begins[column] = joined
    return joined
