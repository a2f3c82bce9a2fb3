"""Sets a model's weights from an HDF5 or .keras file, all of them or none.

Keras' own loader leaves silent gaps: legacy files are matched by position alone, and what a Keras 3
file holds beyond the model is ignored. Here every weight must find its tensor and every tensor its weight, but
for the layers around the network in the file of a whole model, and the file is checked in full before the first
weight is set. Which tensor is whose: `weights_layouts`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featcache.backbones.weights_layouts import pairs_of
from featcache.core.errors import WeightsError

if TYPE_CHECKING:
    import keras

_IN_KERAS_ZIP = "model.weights.h5"
DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)
"""What h5py and zipfile raise on damaged files; it is not documented further than this."""


def assign_file(model: keras.Model, path: Path) -> None:
    """Set every weight of `model` from the HDF5 or .keras file at `path`.

    Raises
    ------
    WeightsError : the file is missing, damaged or of another network; `model` is then unchanged.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    try:
        zipped = zipfile.is_zipfile(path)
        source: Any = io.BytesIO(_unzipped(path, model)) if zipped else path
        with h5py.File(source, "r", locking=False) as file:
            values = list(_values(model, file, str(path), zipped))
    except DAMAGED as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path}: not a readable Keras weights file (damaged or cut off?): {error or type(error).__name__}"
        ) from error
    for weight, value in values:
        weight.assign(value)
    settle(model)


def refuse_outside(file: h5py.File) -> None:
    """Raise WeightsError where an HDF5 file leads out of itself: to other files of this machine, by link or storage."""
    groups: list[h5py.Group] = [file]
    seen: set[Any] = set()
    while groups:
        group = groups.pop()
        if (place := h5py.h5o.get_info(group.id).addr) in seen:
            continue
        seen.add(place)
        for name in group:
            if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                raise WeightsError(f"{name!r:.80} in it is a link to another file, which no weights file has")
            item = group.get(name)
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                raise WeightsError(f"{name!r:.80} in it lies in another file, as no weights do")


def settle(model: keras.Model) -> None:
    """Let layers that keep a copy of their weights, as normalisations do, take it anew after weights were set."""
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def _unzipped(path: Path, model: keras.Model) -> bytes:
    """The weights within a .keras file. Nothing else of it is read: its configuration can name code."""
    # Keras does not compress weights; those of a network, twice more for an optimizer, and a top fit in.
    limit = max(16 * model.count_params(), 2 * path.stat().st_size) + 2**26
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(_IN_KERAS_ZIP).file_size
        if size > limit:
            raise WeightsError(f"{path}: not of this network: {size} bytes of weights are too many")
        return archive.read(_IN_KERAS_ZIP)


def _values(
    model: keras.Model, file: h5py.File, where: str, whole: bool
) -> Iterator[tuple[Any, NDArray[np.floating[Any] | np.integer[Any]]]]:
    """(weight, value) for every weight of the model, of equal shapes."""
    for weight, dataset, place in pairs_of(model, file, where=where, whole=whole):
        kinds = "iu" if "int" in weight.dtype else "f"
        if dataset.dtype.kind not in kinds:
            expected = "whole numbers" if kinds == "iu" else "floating-point values"
            raise WeightsError(f"{place}: expected {expected}, found {dataset.dtype}")
        value = np.asarray(dataset[()], weight.dtype if weight.dtype in ("float64", "int32", "int64") else np.float32)
        if not np.isfinite(value).all():
            raise WeightsError(f"{place}: damaged: it holds values that are not finite")
        yield weight, value
