"""A trained head: its weights, what it predicts, its file (.npz), and the same for Keras (.keras)."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import FeatcacheError, HeadError, refuse_shortage
from featcache.core.npz import NPZ_DAMAGE, reading_npz, write_npz
from featcache.heads import products
from featcache.heads.stack import ACTIVATIONS, forward, one_vs_one, sigmoid, softmax
from featcache.store import Cache

Array = NDArray[np.floating[Any]]
HEAD_FILE = "head.npz"
MULTI_LABEL = "multi-label"
"""Output of a head whose rows may have several labels: the sigmoid of each."""
_MOST_ROWS = 1 << 18
"""Whose first products are in memory together."""
_OUTPUTS = ("softmax", "sigmoid", "one-vs-one", MULTI_LABEL)


@dataclass(frozen=True)
class Head:
    """x -> scale x -> Dense, activation (and dropout in training) for each hidden layer -> Dense, output.

    row_shape : shape of one row of features
    layers : weights (n_in, n_out) and biases (n_out,); the first takes the flattened row
    output : "softmax", "sigmoid", "one-vs-one" (see `one_vs_one`), or `MULTI_LABEL`
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
        refuse_other_space(cache, self.space)
        numbers = cache.numbers() if numbers is None else numbers
        W = self.layers[0][0]
        found = np.empty((len(numbers), len(self.classes)), W.dtype)
        for start in range(0, len(numbers), _MOST_ROWS):
            part = slice(start, start + _MOST_ROWS)
            found[part] = self._finished(products.times(cache.features, numbers[part], W=W))
        return found

    def probabilities_of(self, X: Array) -> Array:
        """Class probabilities of features in memory, (n, *row_shape): ndarray of shape (n, classes).

        Raises HeadError for features of another shape.
        """
        W = self.layers[0][0]
        return self._finished(flattened(X, self.row_shape).astype(W.dtype, copy=False) @ W)

    def _finished(self, Z: Array) -> Array:
        """Probabilities from first products X W (n, units)."""
        (W, b), *rest = self.layers
        logits = forward(Z * W.dtype.type(self.scale) + b, rest, activation=self.activation)
        if self.output == "one-vs-one":
            return one_vs_one(logits, len(self.classes))
        return softmax(logits) if self.output_activation == "softmax" else sigmoid(logits)

    @property
    def has_several_labels(self) -> bool:
        """Whether each label is told by itself, and a row may have several of them, or none."""
        return self.output == MULTI_LABEL

    @property
    def output_activation(self) -> str:
        """What Keras calls the function that makes probabilities of the logits."""
        return "sigmoid" if self.has_several_labels else self.output

    def save(self, folder: Path) -> None:
        """Write head.npz into `folder`."""
        arrays = {f"{kind}{i}": a for i, pair in enumerate(self.layers) for kind, a in zip("Wb", pair, strict=True)}
        names = ("activation", "output", "space", "classes", "scale", "row_shape")
        described = {name: np.array(getattr(self, name)) for name in names}
        write_npz(folder / HEAD_FILE, {**described, **_float32(arrays)})

    @classmethod
    def load(cls, folder: Path, dropout: float = 0.0) -> Head:
        """The head that `save` wrote into `folder`; its weights are float32.

        dropout : which head.npz does not say, since predictions do not need it

        Raises HeadError for a file that is missing or damaged.
        """
        with reading_head(folder) as arrays:
            return cls.of(arrays, dropout)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], dropout: float = 0.0) -> Head:
        """The head that arrays of head.npz describe. Raises ValueError or LookupError where they make none."""
        n_layers = sum(name.startswith("W") for name in arrays)
        head = cls(
            row_shape=tuple(int(n) for n in arrays["row_shape"]),
            scale=float(arrays["scale"]),
            layers=[(arrays[f"W{number}"], arrays[f"b{number}"]) for number in range(n_layers)],
            dropout=dropout,
            classes=tuple(str(label) for label in arrays["classes"]),
            activation=str(arrays["activation"]),
            output=str(arrays["output"]),
            space=str(arrays["space"]),
        )
        head.refuse_misfits(math.prod(head.row_shape))
        return head

    def refuse_misfits(self, width: int) -> None:
        """Raise ValueError for layers that do not fit rows of `width` values, each other or the classes, or are NaN."""
        if self.activation not in ACTIVATIONS or self.output not in _OUTPUTS:
            raise ValueError(f"activation {self.activation!r:.40} or output {self.output!r:.40} is none of a head's")
        n = len(self.classes)
        sides = [width, *(W.shape[-1] for W, _ in self.layers[:-1])]
        sides.append(n * (n - 1) // 2 if self.output == "one-vs-one" else n)
        found = [shape for W, b in self.layers for shape in (W.shape, b.shape)]
        expected = [shape for n_in, n_out in pairwise(sides) for shape in ((n_in, n_out), (n_out,))]
        if n < 2 or found != expected:
            raise ValueError(f"its arrays have the shapes {found!s:.200}: expected {expected!s:.200}")
        weights = {f"{kind}{i}": a for i, pair in enumerate(self.layers) for kind, a in zip("Wb", pair, strict=True)}
        refuse_odd_numbers({"scale": np.array(self.scale), **weights})

    def write_keras(self, path: Path) -> None:
        """Write a .keras file of a Sequential model, from features to probabilities, without loading Keras.

        The format: a zip of config.json (the layers), metadata.json and model.weights.h5 (the variables of a
        layer under layers/<name>/vars/<number>). A test loads it with Keras in safe mode and compares.

        Raises HeadError for an output that Keras does not have.
        """
        if self.output == "one-vs-one":
            raise HeadError("a head of pairs of classes that vote is none of Keras' layers")
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
        layers.append(_layer("Dense", "classes", units=units, activation=self.output_activation))
        return {
            "module": "keras",
            "class_name": "Sequential",
            "config": {"name": "head", "trainable": True, "dtype": "float32", "layers": layers},
            "registered_name": None,
            "build_config": {"input_shape": [None, *self.row_shape]},
        }


def flattened(X: Array, row_shape: Sequence[int]) -> Array:
    """Features (n, *row_shape) as (n, D). Raises HeadError for another shape."""
    if X.shape[1:] != tuple(row_shape):
        raise HeadError(f"features of shape {X.shape[1:]}: the head takes {tuple(row_shape)}")
    return X.reshape(len(X), -1)


def refuse_other_space(cache: Cache, space: str) -> None:
    """Raise HeadError for a cache of another feature space than that of a head; "" is any."""
    if space and cache.recipe.space.digest != space:
        raise HeadError(
            f"{cache.name}: its features ({cache.recipe.space.backbone}, {cache.recipe.space.layer}, pooling "
            f"{cache.recipe.space.pooling}) are not those that the head was trained on: the backbone, its weights "
            "or how it was fed differ"
        )


def refuse_odd_numbers(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError for an array that does not hold floats, or holds NaN or infinity."""
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64) or not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are no finite float32 or float64")


@contextmanager
def reading_head(folder: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The arrays of a folder's head.npz. What is wrong with them, and what the block finds wrong, becomes HeadError."""
    path = folder / HEAD_FILE
    try:
        with reading_npz(path) as arrays:
            yield arrays
    except NPZ_DAMAGE as error:
        if isinstance(error, FeatcacheError):
            raise
        refuse_shortage(error, path)
        raise HeadError(f"{path}: cannot be read: {error}") from error


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
