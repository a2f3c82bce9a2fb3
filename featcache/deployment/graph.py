"""A run as one Keras model, from pixels to probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featcache.backbones import PIXELS, at_last_map, import_keras, preprocessed, whole_network, without_drop_path
from featcache.core.errors import RunError
from featcache.core.offline import offline as without_network
from featcache.core.recipe import FeatureSpace
from featcache.extraction import loaded_network
from featcache.heads import probabilities_of
from featcache.prediction import classes_of, head_of, is_whole, recipe_of
from featcache.training import MODEL_FILE, Run

if TYPE_CHECKING:
    import keras

PIXELS_NAME, PROBABILITIES, FEATURES = "pixels", "probabilities", "features"
"""What the input and the outputs are called, in every format."""

_FLOAT16_DIGITS, _FLOAT16_LEAST = 10, 2.0**-14
"""Binary digits behind the point of a float16, and the least of those that have all of them."""


def graph_of(
    run: Run, *, weights: str | None = None, offline: bool = False, with_features: bool = False
) -> keras.Model:
    """A run as one Keras model of Keras' own layers: what `predict` computes, from rendered images.

    Parameters
    ----------
    run : a head on features, or a whole network
    weights : file of the backbone's weights, as of `predict`
    offline : whether no network connection is made, for weights neither
    with_features : whether the features have an output, too

    Returns
    -------
    keras.Model from `pixels` (n, s, s, 3), uint8, RGB to probabilities (n, classes), float32; `with_features` to
    {"probabilities", "features"}, where features, float32, are what the head takes: (h, w, c) or (c,); of a whole
    network its last feature map

    Raises
    ------
    RunError, HeadError : the run is damaged, or keeps no model
    BackboneError, WeightsError : the run's network cannot be had
    """
    keras = import_keras()
    space, classes = recipe_of(run).space, classes_of(run)
    pixels = keras.Input((space.input_size_px, space.input_size_px, 3), dtype="uint8", name=PIXELS_NAME)
    x = keras.ops.cast(pixels, "float32")
    with without_network(offline):
        features, probabilities = _of_whole(run, x) if is_whole(run) else _of_head(run, x, weights=weights)
    if probabilities.shape[-1] != len(classes):
        raise RunError(f"{run.folder}: its model has {probabilities.shape[-1]} classes, config.json {len(classes)}")
    outputs = {PROBABILITIES: probabilities, FEATURES: features} if with_features else probabilities
    model = keras.Model(pixels, outputs, name="featcache")
    model.trainable = False
    return model


def outputs_of(model: keras.Model) -> dict[str, Any]:
    """The outputs of a model of `graph_of` by their names, in the order of `model.outputs`."""
    if not isinstance(model.output, dict):
        return {PROBABILITIES: model.outputs[0]}
    names = {id(tensor): name for name, tensor in model.output.items()}
    return {names[id(tensor)]: tensor for tensor in model.outputs}


def _of_head(run: Run, x: Any, *, weights: str | None) -> tuple[Any, Any]:
    """Features and probabilities of a head on a backbone."""
    space, head = recipe_of(run).space, head_of(run)
    features = x
    if space.backbone != PIXELS:
        network = loaded_network(space, {"weights": run.config.get("weights", "")}, weights=weights)
        backbone = _plain(network.model, network.model.outputs)
        features = _stored(backbone(preprocessed(x, space.preprocessing)), space)
    return features, probabilities_of(features, head)


def _of_whole(run: Run, x: Any) -> tuple[Any, Any]:
    """The last feature map and the probabilities of a whole network, which has its weights with it."""
    whole = whole_network(run.folder / MODEL_FILE)
    if whole.cuts[0].space.input_size_px != x.shape[1]:
        raise RunError(
            f"{run.folder}: {MODEL_FILE} takes {whole.cuts[0].space.input_size_px} px, config.json {x.shape[1]}"
        )
    before, _ = at_last_map(whole)
    model = _plain(whole.model, [*before.model.outputs, *whole.model.outputs])
    features, probabilities = model(x)
    return features, import_keras().layers.Activation("linear", name=PROBABILITIES, dtype="float32")(probabilities)


def _plain(model: keras.Model, outputs: Any) -> keras.Model:
    """A network to these of its tensors, of Keras' own layers alone."""
    keras = import_keras()
    return without_drop_path(keras.Model(model.inputs[0], outputs if len(outputs) > 1 else outputs[0], name="backbone"))


def _stored(features: Any, space: FeatureSpace) -> Any:
    """Features as a cache keeps them. Rounded by arithmetic: a cast to float16 and back, converters leave out."""
    if space.dtype != "float16":
        return features
    ops = import_keras().ops
    exponents = ops.floor(ops.log2(ops.maximum(ops.absolute(features), _FLOAT16_LEAST)))
    step = ops.power(2.0, ops.subtract(exponents, float(_FLOAT16_DIGITS)))
    return ops.multiply(ops.round(ops.divide(features, step)), step)
