"""Looks into a file with a whole Keras model before Keras does: what it is made of, and whether that is safe.

A model's file names the classes that it is rebuilt from, and may carry code (a Lambda layer is Python bytecode).
Keras refuses much of that in its safe mode; here everything is refused that is not a plain part of Keras, with
the name of the layer, and nothing else of the file is looked at until that is done.

    .keras -> config.json in a zip; whole .h5 -> the attribute model_config
    -> configuration, checked -> name and digest of the architecture
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from featcache.backbones.import_keras import import_keras
from featcache.backbones.layer_names import stable_names
from featcache.backbones.weights_h5 import DAMAGED, refuse_outside
from featcache.core.errors import BackboneError
from featcache.core.recipe import digest

SUFFIXES = (".keras", ".h5", ".hdf5")
_CONFIG_BYTES = 1 << 26
_MEMBERS = ("metadata.json", "config.json", "model.weights.h5", "featcache.json")
"""Of a .keras file; the last one describes a model that was exported here."""
_MODULES = re.compile(
    r"keras|keras\.(layers|models|initializers|regularizers|constraints|activations|dtype_policies)"
    r"|keras\.src\.(layers|models|ops|applications|initializers|regularizers|constraints|dtype_policies)(\.\w+)*"
)
_HUB_MODULES = re.compile(r"keras_hub(\.src)?\.(models|layers)(\.\w+)*")
_KERAS_2 = re.compile(r"(tf_keras|tensorflow\.python\.keras|keras\.(src\.)?engine)\b")
BY_WEIGHTS = (
    "name the network and use the file for its weights, as in `model='mobilenetv2', weights=FILE` "
    "(`featcache.models()` lists the names)"
)
_MARKERS = {"__keras_tensor__", "__tuple__", "__numpy__", "__tensor__", "__bytes__", "__ellipsis__", "__slice__"}
_FOREIGN_CODE = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
_OUR_LAYERS = {"featcache>DropPathJoin": ("featcache.backbones.zoo.drop_path", "featcache.backbones.drop_path")}
"""Layers by their registered name, and where they are or were (version 0.1)."""
_NOT_ARCHITECTURE = re.compile(
    r"shared_object_id|build_config|compile_config|trainable|seed|network_seed|\w+_(initializer|regularizer|constraint)"
)


def is_of_keras_2(config: Any) -> bool:
    """Whether a .keras file names the modules of Keras 2, none of which is there any more."""
    return any(_KERAS_2.match(str(part.get("module"))) for _, part in _parts(config, ""))


def keras_version(path: Path) -> str:
    """The Keras that wrote a model's file, as "2.15.0"; "" where it does not say."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                version = json.loads(archive.read("metadata.json")).get("keras_version", "")
        else:
            with h5py.File(path, "r") as file:
                version = file.attrs.get("keras_version", "")
    except (*DAMAGED, RecursionError):
        return ""
    return version.decode(errors="replace") if isinstance(version, bytes) else str(version)


def read_config(path: Path, unsafe: bool = False) -> dict[str, Any]:
    """The configuration of the whole model in a .keras or .h5 file.

    Parameters
    ----------
    path : the file
    unsafe : do not look at what it would be rebuilt from

    Raises
    ------
    BackboneError : the file is missing, damaged, holds no whole model, or one with parts that are not Keras' own.
    """
    if not path.is_file():
        raise BackboneError(f"{path}: there is no such model file")
    try:
        text = _zipped_config(path, unsafe) if zipfile.is_zipfile(path) else _hdf5_config(path)
        config = json.loads(text)
        if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
            raise ValueError("its configuration is no network's")
        if is_of_keras_2(config):
            raise BackboneError(f"{path}: it was saved by Keras 2, and this is Keras 3: {BY_WEIGHTS}")
        if not unsafe:
            _check(config, str(path))
    except (*DAMAGED, RecursionError) as error:
        if isinstance(error, BackboneError):
            raise
        raise BackboneError(
            f"{path}: not a readable Keras model (damaged or cut off?): {error or type(error).__name__}"
        ) from error
    return config


def _zipped_config(path: Path, unsafe: bool) -> bytes:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename not in _MEMBERS and not (unsafe and member.filename.startswith("assets/")):
                raise BackboneError(f"{path}: expected {', '.join(_MEMBERS)} in it, found {member.filename!r:.80}")
            # Keras does not compress weights: what unpacks to much more was not written by it.
            if member.file_size > 2 * path.stat().st_size + _CONFIG_BYTES:
                raise BackboneError(f"{path}: {member.filename} would unpack to {member.file_size} bytes")
        if archive.getinfo("config.json").file_size > _CONFIG_BYTES:
            raise BackboneError(f"{path}: its configuration has more than {_CONFIG_BYTES} bytes")
        with archive.open("model.weights.h5") as packed, h5py.File(packed, "r") as weights:
            refuse_outside(weights)
        return archive.read("config.json")


def _hdf5_config(path: Path) -> str | bytes:
    with h5py.File(path, "r", locking=False) as file:
        if "model_config" not in file.attrs:
            raise BackboneError(
                f"{path}: it holds no whole model",
                "If it holds weights only, set `model` to the backbone and `weights` to this file",
            )
        refuse_outside(file)
        config: str | bytes = file.attrs["model_config"]
        return config


# --- safety ---------------------------------------------------------------------------------------


def _check(config: Any, where: str) -> None:
    """Raise BackboneError at the first part of a configuration that is not Keras' own, or runs code of the file."""
    for layer, reason in foreign_parts(config):
        raise BackboneError(
            f"{where}: layer {layer!r:.80}: {reason}; a model from someone else can run any code this way",
            "If you trust it, set `unsafe=True`",
        )


def foreign_parts(config: Any, *, hub: bool = False) -> Iterator[tuple[str, str]]:
    """(layer, reason) for every part of a configuration that is not Keras' own, or runs code of the file.

    hub : whether parts of Keras Hub are as good
    """
    for layer, part in _parts(config, "the model itself"):
        if hub and _is_of_hub(part):
            continue
        if reason := _refusal(part):
            yield layer, reason


def _parts(value: Any, layer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the layer around it, part) for every object that a configuration would have made."""
    if isinstance(value, list):
        for item in value:
            yield from _parts(item, layer)
    if not isinstance(value, dict):
        return
    if "class_name" in value or "module" in value or "registered_name" in value:
        inner = value.get("config")
        layer = str(inner["name"]) if isinstance(inner, dict) and "name" in inner and "layers" not in inner else layer
        yield layer, value
    for key, item in value.items():
        if key != "compile_config":  # losses and metrics, which are never rebuilt
            yield from _parts(item, layer)


def _is_of_hub(part: dict[str, Any]) -> bool:
    """Whether a part of a configuration is a class that Keras Hub has registered under its own name."""
    name, module = part.get("class_name"), part.get("module")
    is_class = isinstance(name, str) and name.isidentifier() and part.get("registered_name") == f"keras_hub>{name}"
    return is_class and isinstance(module, str) and _HUB_MODULES.fullmatch(module) is not None


def _refusal(part: dict[str, Any]) -> str:
    """Why a part of a configuration is not made; "" where it may be."""
    name, module, registered = part.get("class_name"), part.get("module"), part.get("registered_name")
    if not isinstance(name, str):
        return f"it has no class but {name!r:.80}"
    if name in _FOREIGN_CODE:
        return f"{name} runs code that is not Keras' own"
    if module is None and registered in (None, name):
        known = name in _MARKERS or (name.isidentifier() and _is_keras_class(name))
        return "" if known else f"{name!r:.80} is no class of Keras"
    if registered in _OUR_LAYERS and registered == f"featcache>{name}" and module in _OUR_LAYERS[registered]:
        return ""
    if not isinstance(module, str) or not _MODULES.fullmatch(module) or not name.isidentifier() or name == "function":
        return f"{module}.{name}"[:120] + " is not part of Keras"
    return "" if registered in (None, name) else f"{registered!r:.80} is not part of Keras"


def _is_keras_class(name: str) -> bool:
    keras = import_keras()
    places = (keras.layers, keras.models, keras.initializers, keras.regularizers, keras.constraints, keras)
    return name in ("Functional", "DTypePolicy") or any(
        isinstance(getattr(place, name, None), type) for place in places
    )


# --- architecture ---------------------------------------------------------------------------------


def architecture_name(config: dict[str, Any]) -> str:
    """A name made of what a network is: its own name and eight digits of a digest of its configuration.

    Left out are names that Keras numbers anew in every process, and what does not change what a network
    computes: whether it is trained, initial weights, regularizers, losses.
    """
    top = _stable(config)
    slug = re.sub(r"[^a-z0-9]+", "-", str(top["config"].get("name", "model")).lower()).strip("-") or "model"
    return f"{slug[:40]}-{digest(top)[:8]}"


def is_own_name(backbone: str) -> bool:
    """Whether it is such a name, and not that of a row of the registry."""
    return re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{8}", backbone) is not None


def _stable(config: dict[str, Any]) -> Any:
    """A network's configuration with stable names for it and everything in it."""
    name = str(config["config"].get("name", ""))
    (own,) = stable_names([(str(config["class_name"]), name)])
    return _renamed(config, {name: own})


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """A configuration with other names for layers, those of each nested network by its own list of layers."""
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if not isinstance(value, dict):
        return names.get(value, value) if isinstance(value, str) else value
    layers = value.get("layers")
    inner = _names_within(layers) if isinstance(layers, list) else names
    return {
        key: _renamed(item, names if key == "name" or inner is names else inner)
        for key, item in value.items()
        if not _NOT_ARCHITECTURE.fullmatch(key)
    }


def _names_within(layers: list[Any]) -> dict[str, str]:
    """The stable name of each layer in a network's list, by the name that it has there."""
    found = [layer for layer in layers if isinstance(layer, dict) and isinstance(layer.get("config"), dict)]
    named = [(str(layer.get("class_name")), str(layer["config"].get("name", layer.get("name")))) for layer in found]
    return dict(zip((name for _, name in named), stable_names(named), strict=True))
