"""A whole classifier taken apart at its last feature map: the network before it, and the weights of its top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import Network
from featcache.core.errors import BackboneError


@dataclass(frozen=True)
class Top:
    """Dense layers on a flattened feature map (h, w, c).

    Attributes
    ----------
    layers : weights (n_in, n_out) and biases (n_out,); the first also does the averaging, if there is some
    scale : what features are multiplied by first
    activation : of the hidden layers
    """

    layers: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]
    scale: float
    activation: str


def at_last_map(network: Network) -> tuple[Network, Top]:
    """The network up to its last feature map, and what follows it.

    Raises BackboneError, naming the layer, where more than pooling, scaling and dense layers follow.
    """
    keras = import_keras()
    model, (cut,) = network.model, network.cuts
    last = max(number for number, layer in enumerate(model.layers) if _rank(layer) == 4)
    feature_map = model.layers[last + 1].input
    shape = tuple(int(side) for side in feature_map.shape[1:])
    scale, activation, spread = 1.0, "linear", 1
    layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for layer in model.layers[last + 1 :]:
        if isinstance(layer, keras.layers.GlobalAveragePooling2D):
            spread = shape[0] * shape[1]
        elif isinstance(layer, keras.layers.Rescaling) and layer.offset == 0:
            scale *= float(layer.scale)
        elif isinstance(layer, keras.layers.Dense):
            W, b = layer.get_weights()
            layers.append((W if layers else np.tile(W / spread, (spread, 1)), b))
            name = layer.activation.__name__
            activation = activation if name in ("linear", "softmax") else name
        elif not isinstance(layer, (keras.layers.Flatten, keras.layers.Dropout, keras.layers.Softmax)):
            raise BackboneError(f"{cut.space.backbone}: layer {layer.name} is not one that a top is known to have")
    features = keras.Model(model.inputs[0], feature_map)
    at = replace(cut, space=replace(cut.space, layer=model.layers[last].name), feature_shape=shape)
    return Network(features, (at,)), Top(layers, scale, activation)


def _rank(layer: Any) -> int:
    output = layer.output
    return 0 if isinstance(output, (list, tuple)) else len(output.shape)
