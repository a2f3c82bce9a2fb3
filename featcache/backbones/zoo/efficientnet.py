"""EfficientNet B0 to B7 as Keras builds them for their ImageNet weights, whatever the weights are.

Keras puts one more layer into these networks when it is asked for ImageNet weights, and only then: a rescaling
by 1 / sqrt(deviation) behind the normalisation, since the published statistics hold deviations where a
normalisation expects variances. Without that layer the published weights load and answer wrongly.

    pixels 0..255 -> rescaling (1/255) -> normalization (in the weights) -> rescaling_1 -> stem -> ...
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featcache.backbones.import_keras import import_keras

if TYPE_CHECKING:
    import keras

_DEVIATION = (0.229, 0.224, 0.225)  # of ImageNet's pixels, RGB in 0..1


def _as_for_imagenet(name: str) -> Callable[..., keras.Model]:
    """The builder `name` of keras.applications, with the layer that goes with ImageNet weights."""

    def build(weights: None = None, include_top: bool = False, *, input_shape: Any = None) -> keras.Model:
        keras = import_keras()
        plain = getattr(keras.applications, name)(weights=weights, include_top=include_top, input_shape=input_shape)

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            output = layer(*args, **kwargs)
            if isinstance(layer, keras.layers.Normalization):
                output = keras.layers.Rescaling([1 / math.sqrt(value) for value in _DEVIATION])(output)
            return output

        return keras.models.clone_model(plain, clone_function=lambda layer: layer, call_function=call)

    return build


EfficientNetB0 = _as_for_imagenet("EfficientNetB0")
EfficientNetB1 = _as_for_imagenet("EfficientNetB1")
EfficientNetB2 = _as_for_imagenet("EfficientNetB2")
EfficientNetB3 = _as_for_imagenet("EfficientNetB3")
EfficientNetB4 = _as_for_imagenet("EfficientNetB4")
EfficientNetB5 = _as_for_imagenet("EfficientNetB5")
EfficientNetB6 = _as_for_imagenet("EfficientNetB6")
EfficientNetB7 = _as_for_imagenet("EfficientNetB7")
