"""Sets a model's weights from an HDF5 file, all of them or none.

Three layouts are told apart by what is in the file, not by its name:

    legacy         /<layer>/<weight names>, order in the attributes layer_names and weight_names
    legacy whole   the same below /model_weights
    Keras 3        /layers/<class>[_<k>]/vars/<i>; a .keras file is a zip with this one inside

Keras' own loader leaves silent gaps: legacy files are matched by position alone, and what a Keras 3
file holds beyond the model is ignored. Here every tensor of the file must find its weight and every
weight its tensor, and the file is checked in full before the first weight is set.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featcache.errors import WeightsError

if TYPE_CHECKING:
    import keras

_IN_KERAS_ZIP = "model.weights.h5"
# Names that Keras has given to unnamed layers over the years: they say nothing about the layer's place.
_AUTOMATIC = re.compile(
    r"(conv2d|convolution2d|depthwise_conv2d|separable_conv2d|batch_?normalization|dense|normalization)(_\d+)?"
)


def assign_file(model: keras.Model, path: Path) -> None:
    """Set every weight of `model` from the HDF5 or .keras file at `path`.

    Raises
    ------
    WeightsError : the file is missing, damaged or of another network; `model` is then unchanged.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    try:
        if zipfile.is_zipfile(path):
            source: Any = io.BytesIO(_unzipped(path, model))
        else:
            source = path
        with h5py.File(source, "r") as file:
            pairs = list(_matched(model, file, str(path)))
    # What h5py and zipfile raise on damaged files is not documented further than this.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path}: not a readable Keras weights file (damaged or cut off?): {error or type(error).__name__}"
        ) from error
    for weight, value in pairs:
        weight.assign(value)


def _unzipped(path: Path, model: keras.Model) -> bytes:
    """The weights within a .keras file. Nothing else of it is read: its configuration can name code."""
    limit = 16 * model.count_params() + 2**26
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(_IN_KERAS_ZIP).file_size
        if size > limit:  # float32 weights and two more copies for an optimizer fit in
            raise WeightsError(f"{path}: not of this network: {size} bytes of weights are too many")
        return archive.read(_IN_KERAS_ZIP)


def _matched(model: keras.Model, file: h5py.File, where: str) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """(weight, value) for every weight of the model, of equal shapes."""
    layers = [layer for layer in model.layers if layer.weights]
    if "layer_names" in file.attrs or "layer_names0" in file.attrs:
        stored = _in_model_order(_legacy_layers(file), layers, where)
    elif "model_weights" in file:
        stored = _in_model_order(_legacy_layers(file["model_weights"]), layers, where)
    elif "layers" in file:
        stored = _keras3_layers(file, layers, where)
    else:
        raise WeightsError(f"{where}: an HDF5 file, but none with a Keras network's weights")
    for layer, (name, datasets) in zip(layers, stored, strict=False):
        called = layer.name if layer.name == name else f"{layer.name} (in the file: {name})"
        place = f"{where}: layer {called}"
        if len(datasets) != len(layer.weights):
            raise WeightsError(
                f"{place}: not of this network: expected {len(layer.weights)} tensors, found {len(datasets)}"
            )
        for weight, dataset in zip(layer.weights, datasets, strict=True):
            yield weight, _value(dataset, tuple(weight.shape), place)
    if len(stored) != len(layers):
        raise WeightsError(
            f"{where}: not of this network: expected {len(layers)} layers with weights, found {len(stored)}"
        )


def _value(dataset: Any, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
    """The dataset's values as float32; its shape is checked before a byte is read."""
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise WeightsError(f"{where}: expected a tensor within the file itself")
    if dataset.shape != shape:
        raise WeightsError(f"{where}: not of this network: expected shape {shape}, found {dataset.shape}")
    if dataset.dtype.kind != "f":
        raise WeightsError(f"{where}: expected floating-point values, found {dataset.dtype}")
    value = np.asarray(dataset[()], np.float32)
    if not np.isfinite(value).all():
        raise WeightsError(f"{where}: damaged: it holds values that are not finite")
    return value


# --- legacy ---------------------------------------------------------------------------------------

_Stored = list[tuple[str, list[Any]]]  # (layer's name in the file, its datasets in order)


def _legacy_layers(group: Any) -> _Stored:
    """Every layer with weights, in the file's order."""
    stored = []
    for name in _names(group, "layer_names"):
        weights = _names(_member(group, name), "weight_names")
        if weights:
            stored.append((name, [_member(group, f"{name}/{weight}") for weight in weights]))
    return stored


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names kept as an attribute; long ones are split into attribute0, attribute1, ..."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts = []
        while (key := f"{attribute}{len(parts)}") in group.attrs:
            parts.append(group.attrs[key])
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def _member(group: Any, path: str) -> Any:
    """The group or dataset at `path`, every step of it within this file."""
    for step in path.split("/"):
        if isinstance(group.get(step, getlink=True), h5py.ExternalLink):
            raise ValueError(f"{path} is a link to another file")
        group = group[step]
    return group


def _in_model_order(stored: _Stored, layers: list[Any], where: str) -> _Stored:
    """The file's layers in the order of the model's.

    By position, as Keras does, because unnamed layers are numbered anew in every process. Layers
    with names of their own must stand where the model has them, or be sorted by name.
    """
    if len(stored) != len(layers):
        return stored  # another network: the caller finds the first layer that differs
    in_file, in_model = [name for name, _ in stored], [layer.name for layer in layers]
    known = {name for name in in_model if not _AUTOMATIC.fullmatch(name)}
    if all(a == b for a, b in zip(in_file, in_model, strict=True) if a in known):
        return stored
    if set(in_file) == set(in_model):
        by_name = dict(stored)
        return [(name, by_name[name]) for name in in_model]
    position = next(i for i, name in enumerate(in_file) if name in known and name != in_model[i])
    raise WeightsError(
        f"{where}: not of this network: where layer {in_model[position]} is expected, "
        f"the file has layer {in_file[position]}"
    )


# --- Keras 3 --------------------------------------------------------------------------------------


def _keras3_layers(file: h5py.File, layers: list[Any], where: str) -> _Stored:
    """The layers of the file under the names that Keras 3 gives them: class and number in the model."""
    root = _base(file)
    left = {name for name in root if "vars" in root[name] and len(root[name]["vars"])}
    stored: _Stored = []
    counts: dict[str, int] = {}
    for layer in layers:
        name = _snake_case(type(layer).__name__)
        number = counts[name] = counts.get(name, -1) + 1
        name = f"{name}_{number}" if number else name
        if name not in left:
            raise WeightsError(f"{where}: layer {layer.name}: not of this network: the file has no {name}")
        left.remove(name)
        variables = _member(root, f"{name}/vars")
        stored.append((name, [_member(variables, str(i)) for i in range(len(variables))]))
    stored.extend((name, []) for name in sorted(left))  # too many: the caller says so
    return stored


def _base(file: h5py.File) -> Any:
    """The group of layers; in a whole model with a single nested network, that network's."""
    root = _member(file, "layers")
    nested = [name for name in root if "layers" in root[name]]
    return _member(root, f"{nested[0]}/layers") if len(nested) == 1 else root


def _snake_case(name: str) -> str:
    """A class name as Keras 3 writes it in weights files: SeparableConv2D -> separable_conv2d."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
