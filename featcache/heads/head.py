"""A trained head: its weights, what it predicts, and its two files (.keras, .npz)."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import HeadError, refuse_shortage
from featcache.core.files import beside
from featcache.core.npz import NPZ_DAMAGE, reading_npz
from featcache.heads import products
from featcache.heads.stack import forward, sigmoid, softmax
from featcache.store import Cache

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Head:
    """x -> scale x -> Dense, activation (and dropout in training) for each hidden layer -> Dense, output.

    row_shape : shape of one row of features
    layers : weights (n_in, n_out) and biases (n_out,); the first takes the flattened row
    space : digest of the feature space that it was trained in; it refuses features of another
    """

    row_shape: tuple[int, ...]
    scale: float
    layers: Sequence[tuple[Array, Array]]
    dropout: float
    classes: tuple[str, ...]
    activation: str = "relu"
    output: str = "softmax"
    space: str = ""

    def probabilities(self, cache: Cache, numbers: NDArray[np.intp] | None = None) -> Array:
        """Class probabilities of rows of a cache (all by default), streamed from it: ndarray of shape (n, classes).

        Raises HeadError for a cache of another feature space.
        """
        if self.space and cache.recipe.space.digest != self.space:
            raise HeadError(
                f"{cache.name}: its features ({cache.recipe.space.backbone}, {cache.recipe.space.layer}, pooling "
                f"{cache.recipe.space.pooling}) are not those that the head was trained on: the backbone, its weights "
                "or how it was fed differ"
            )
        Z = products.times(cache.features, cache.numbers() if numbers is None else numbers, W=self.layers[0][0])
        return self._finished(Z)

    def probabilities_of(self, X: Array) -> Array:
        """Class probabilities of features in memory, (n, *row_shape): ndarray of shape (n, classes).

        Raises HeadError for features of another shape.
        """
        if X.shape[1:] != tuple(self.row_shape):
            raise HeadError(f"features of shape {X.shape[1:]}: the head takes {tuple(self.row_shape)}")
        W = self.layers[0][0]
        return self._finished(X.reshape(len(X), -1).astype(W.dtype, copy=False) @ W)

    def _finished(self, Z: Array) -> Array:
        """Probabilities from first products X W (n, units)."""
        (W, b), *rest = self.layers
        logits = forward(Z * W.dtype.type(self.scale) + b, rest, activation=self.activation)
        return sigmoid(logits) if self.output == "sigmoid" else softmax(logits)

    def save(self, folder: Path) -> None:
        """Write head.keras and head.npz into `folder`."""
        with beside(folder / "head.keras") as partial:
            self._write_keras(partial)
        with beside(folder / "head.npz") as partial:
            arrays = {f"{kind}{i}": a for i, pair in enumerate(self.layers) for kind, a in zip("Wb", pair, strict=True)}
            names = ("activation", "output", "space", "classes", "scale", "row_shape")
            described = {name: np.array(getattr(self, name)) for name in names}
            np.savez(partial, **described, **_float32(arrays))  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path, dropout: float = 0.0) -> Head:
        """The head that `save` wrote into `folder`; its weights are float32.

        dropout : which head.npz does not say, since predictions do not need it

        Raises HeadError for a file that is missing or damaged.
        """
        path = folder / "head.npz"
        try:
            with reading_npz(path) as arrays:
                n_layers = sum(name.startswith("W") for name in arrays)
                layers = [(arrays[f"W{number}"], arrays[f"b{number}"]) for number in range(n_layers)]
                return cls(
                    row_shape=tuple(int(n) for n in arrays["row_shape"]),
                    scale=float(arrays["scale"]),
                    layers=layers,
                    dropout=dropout,
                    classes=tuple(str(label) for label in arrays["classes"]),
                    activation=str(arrays["activation"]),
                    output=str(arrays["output"]),
                    space=str(arrays["space"]),
                )
        except NPZ_DAMAGE as error:
            refuse_shortage(error, path)
            raise HeadError(f"{path}: cannot be read: {error}") from error

    def _write_keras(self, path: Path) -> None:
        """A .keras archive of a Sequential model, written without loading Keras.

        The format: a zip of config.json (the layers), metadata.json and model.weights.h5 (the variables of a
        layer under layers/<name>/vars/<number>). A test loads it with Keras in safe mode and compares.
        """
        weights = io.BytesIO()
        with h5py.File(weights, "w") as file:
            for number, (W, b) in enumerate(self.layers):
                group = file.create_group(f"layers/{_snake('Dense', number)}/vars")
                group["0"], group["1"] = W.astype(np.float32), b.astype(np.float32)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, data in (
                ("metadata.json", json.dumps({"keras_version": "3.8.0", "date_saved": "1980-01-01@00:00:00"}).encode()),
                ("config.json", json.dumps(self._keras_config()).encode()),
                ("model.weights.h5", weights.getvalue()),
            ):
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)

    def _keras_config(self) -> dict[str, Any]:
        layers = [
            _layer("InputLayer", "features", batch_shape=[None, *self.row_shape], dtype="float32"),
            _layer("Flatten", "flatten"),
            _layer("Rescaling", "scale", scale=self.scale, offset=0.0),
        ]
        for number, (W, _) in enumerate(self.layers[:-1]):
            layers.append(_layer("Dense", f"hidden_{number + 1}", units=W.shape[1], activation=self.activation))
            layers.append(_layer("Dropout", f"dropout_{number + 1}", rate=self.dropout))
        units = self.layers[-1][0].shape[1]
        layers.append(_layer("Dense", "classes", units=units, activation=self.output))
        return {
            "module": "keras",
            "class_name": "Sequential",
            "config": {"name": "head", "trainable": True, "dtype": "float32", "layers": layers},
            "registered_name": None,
            "build_config": {"input_shape": [None, *self.row_shape]},
        }


def _layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": {"name": name, **({"trainable": True, "dtype": "float32"} if kind != "InputLayer" else {}), **config},
        "registered_name": None,
    }


def _snake(kind: str, number: int) -> str:
    """How Keras names the weights of the n-th layer of a kind: dense, dense_1, dense_2, ..."""
    return kind.lower() if number == 0 else f"{kind.lower()}_{number}"


def _float32(arrays: dict[str, Array]) -> dict[str, Any]:
    return {name: array.astype(np.float32) for name, array in arrays.items()}
