"""Networks that are not in the registry: a model from a file, or one that a function of the user's builds."""

from __future__ import annotations

import inspect
import json
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from featcache.backbones.import_keras import import_keras
from featcache.backbones.model_file import BY_WEIGHTS, SUFFIXES, architecture_name, keras_version, read_config
from featcache.backbones.preprocess import formulas
from featcache.backbones.weights import randomize
from featcache.backbones.weights_h5 import assign_file
from featcache.backbones.zoo.drop_path import drop_path_join_class
from featcache.core.errors import BackboneError, WeightsError
from featcache.core.files import expanded
from featcache.core.recipe import WeightsSource

if TYPE_CHECKING:
    import keras

_BUILDER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_BUILDER_SIDE_PX = 224
_AGAIN = "save it as .keras with the Keras that made it"


@dataclass(frozen=True)
class OwnModel:
    """A network that is not in the registry.

    Attributes
    ----------
    model : as it was saved or built, with its weights
    name : made of its architecture, the same on every machine and for every name of the file
    side_px : side of its square input
    weights : where they come from; of no kind where they are whatever Keras drew
    """

    model: keras.Model
    name: str
    side_px: int
    weights: WeightsSource


def is_file(model: str) -> bool:
    """Whether `model` means a file."""
    return model.lower().endswith(SUFFIXES)


def is_builder(model: str) -> bool:
    """Whether `model` means a function, "module:attribute"."""
    return not is_file(model) and _BUILDER.fullmatch(model) is not None


def open_own(model: str, input_size_px: int | None, *, unsafe: bool = False) -> OwnModel:
    """The network that a file holds or a function builds.

    Parameters
    ----------
    model : path of a .keras or whole .h5 file, or "module:attribute"
    input_size_px : side of the square input; None for the model's own
    unsafe : whether a file may bring code of its own

    Raises
    ------
    BackboneError : there is no such model, it is damaged or unsafe, or not from one RGB image of that size.
    """
    if is_file(model):
        path = expanded(model)
        config = read_config(path, unsafe)
        network, weights = _from_file(path, unsafe), WeightsSource("file", name=path.name)
    else:
        network, weights = _from_builder(model, input_size_px)
        config = json.loads(network.to_json())
    return OwnModel(network, architecture_name(config), _side(network, model, input_size_px), weights)


def _from_file(path: Path, unsafe: bool) -> keras.Model:
    keras = import_keras()
    drop_path_join_class()  # Keras knows this layer from now on
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = keras.saving.load_model(path, compile=False, safe_mode=not unsafe)
    except Exception as error:
        version = keras_version(path)
        hint = f"it was saved by Keras {version}: {BY_WEIGHTS}" if version.startswith(("1", "2")) else _AGAIN
        if "unable to lock file" in str(error):
            hint = "this disk has no locks: set HDF5_USE_FILE_LOCKING=FALSE"
        raise BackboneError(f"{path}: Keras cannot load it: {one_line(error)}; {hint}") from error
    return _checked(model, str(path))


def function_of(name: str) -> Callable[..., Any]:
    """The function "module:attribute" of the user's; its module may also be a file of the working directory.

    Raises
    ------
    BackboneError : there is no such function.
    """
    module, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last: a file of this folder takes no library's place
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackboneError(f"{name}: there is no such function to build a model ({error})") from error
    if not callable(found):
        raise BackboneError(f"{name}: expected a function, got {type(found).__name__}")
    return cast("Callable[..., Any]", found)


def one_line(error: Exception) -> str:
    """What Keras says, which is often a page with colours, as the beginning of one line."""
    words = re.sub(r"\x1b\[\d*m", "", str(error)).split()
    return " ".join(words)[:200] or type(error).__name__


def _from_builder(name: str, input_size_px: int | None) -> tuple[keras.Model, WeightsSource]:
    """What a function builds, and where its weights come from.

    A function that takes weights, include_top and input_shape is called as those of keras.applications are, for a
    network with random weights; any other one without arguments, and its network's weights are its own.
    """
    import_keras()  # the quiet way, before the builder's module imports it
    builder = function_of(name)
    attribute = name.partition(":")[2]
    parameters = inspect.signature(builder).parameters
    if {"weights", "include_top", "input_shape"} <= set(parameters):
        side_px = input_size_px or _BUILDER_SIDE_PX
        model = builder(weights=None, include_top=False, input_shape=(side_px, side_px, 3))
        return _checked(model, name), WeightsSource("")
    return _checked(builder(), name), WeightsSource("file", name=attribute)


def _checked(model: Any, where: str) -> keras.Model:
    models = import_keras().models
    if not isinstance(model, models.Model) or not (
        isinstance(model, models.Sequential) or hasattr(model, "operations")
    ):
        raise BackboneError(f"{where}: expected a Functional or Sequential Keras model, got {type(model).__name__}")
    if isinstance(model, models.Sequential) and not model.built:
        raise BackboneError(f"{where}: the model has no input shape yet: begin it with keras.Input((h, w, 3))")
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise BackboneError(f"{where}: expected one input of shape (n, s, s, 3), got {shape}")
    return model


def _side(model: keras.Model, where: str, input_size_px: int | None) -> int:
    own: int | None = model.input_shape[1]
    side_px = own if input_size_px is None else input_size_px
    if side_px is None:
        raise BackboneError(f"{where}: it takes images of any size", "Set `input_size_px`")
    if own not in (None, side_px):
        raise BackboneError(f"{where}: input size {side_px} px: the model was made for {own} px")
    return side_px


def preprocessing_of(own: OwnModel) -> str:
    """The preprocessing of a model that nobody says one of: "none" where its first layers prepare the pixels.

    Raises
    ------
    BackboneError : none of its first layers does.
    """
    keras = import_keras()
    for layer in own.model._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)):
            return "none"
        if layer.weights and not isinstance(layer, keras.Model):
            break
    raise BackboneError(
        f"{own.name}: the file does not say how the model scales pixels",
        f"Set `preprocessing` to one of these formulas, x from 0 to 255: {formulas()}",
    )


def with_weights(own: OwnModel, spec: str, *, seed: int) -> OwnModel:
    """A model with random weights, those of a file, or for "imagenet", the default, those that it came with.

    Raises
    ------
    WeightsError : the file is missing, damaged or of another network, or the model came without weights.
    """
    if spec == "imagenet":
        if not own.weights.kind:
            raise WeightsError(
                f"{own.name}: there are no ImageNet weights for it",
                "Name a file with `weights=PATH`, or set `weights='random'`",
            )
        return own
    model = own.model
    if spec == "random":
        if own.weights.kind:  # biases and statistics become again what they are before a training
            model = import_keras().models.clone_model(model)
        randomize(model, seed)
    else:
        assign_file(model, expanded(spec))
    return replace(own, model=model, weights=WeightsSource.of(spec, seed))
