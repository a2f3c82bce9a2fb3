"""SqueezeNet 1.1: the accuracy of AlexNet with a fiftieth of its parameters (Iandola et al. 2016, arXiv:1602.07360).

A fire module squeezes to few channels with 1x1 filters and expands with as many 1x1 as 3x3 filters. Version 1.1,
which its authors released after the paper, has a stem of 3x3 filters and pools earlier: 2.4 times fewer operations.
There is no batch normalisation; kernels begin as Glorot and Bengio draw them, as in the release. The release rectifies
the class scores, too. Here they are not: with few classes all of them may begin below zero, and then nothing trains.

    input (s, s, 3) -> stem 3x3/2, 64 -> pool -> fire2, fire3 -> pool -> fire4, fire5 -> pool -> fire6 to fire9, 512

Convolution and pooling of stride 2 do not pad. Where a window does not fit at the end, the release rounds up and this
network down; at 224 px all of them fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones.import_keras import import_keras
from featcache.backbones.zoo.building import finished, image_input

if TYPE_CHECKING:
    import keras

# (channels squeezed to, channels of either kind of filter) of fire2 to fire9; None is a pooling
_FIRES = ((16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256))


def SqueezeNet(  # noqa: N802  # named as the builders of keras.applications are
    weights: str | Path | None = None,
    include_top: bool = False,
    *,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    seed: int = 0,
) -> keras.Model:
    """SqueezeNet 1.1 as a functional Keras model.

    Parameters
    ----------
    weights : None for random ones, else the path of a weights file
    include_top : end in `classes` probabilities instead of the last feature map
    input_shape : (h, w, 3), at least 32 px
    classes : number of classes, with `include_top`
    seed : decides what the top's dropout drops

    Returns
    -------
    keras.Model from (n, h, w, 3) to (n, h', w', 512), h' = 13 for h = 224 and 1 for h = 32; or (n, classes)

    Raises
    ------
    ValueError : `input_shape` is too small or has other than 3 channels.
    WeightsError : the file is missing, damaged or of another network.
    """
    inputs = image_input(input_shape)
    layers = import_keras().layers
    x = layers.Conv2D(64, 3, 2, activation="relu", name="conv1")(inputs)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    number = 2
    for fire in _FIRES:
        if fire is None:
            x = layers.MaxPooling2D(3, 2, name=f"pool{number - 1}")(x)
        else:
            x = _fire(x, f"fire{number}", *fire)
            number += 1

    def top(x: Any, classes: int) -> Any:
        x = layers.Dropout(0.5, seed=seed, name="drop9")(x)
        x = layers.Conv2D(classes, 1, name="conv10")(x)
        x = layers.GlobalAveragePooling2D(name="pool10")(x)
        return layers.Softmax(name="softmax")(x)

    return finished("squeezenet", inputs, x=x, weights=weights, classes=classes if include_top else None, top=top)


def _fire(x: Any, name: str, squeezed: int, expanded: int) -> Any:
    """(h, w, c) -> (h, w, 2 * expanded), through `squeezed` channels."""
    layers = import_keras().layers
    x = layers.Conv2D(squeezed, 1, activation="relu", name=f"{name}_squeeze1x1")(x)
    small = layers.Conv2D(expanded, 1, activation="relu", name=f"{name}_expand1x1")(x)
    large = layers.Conv2D(expanded, 3, padding="same", activation="relu", name=f"{name}_expand3x3")(x)
    return layers.Concatenate(name=f"{name}_concat")([small, large])
