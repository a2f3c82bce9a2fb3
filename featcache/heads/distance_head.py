"""Heads that decide by distances to training rows, which they keep: nearest neighbours, and support vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.files import beside
from featcache.core.npz import open_npy, write_npz
from featcache.heads import products
from featcache.heads.head import (
    HEAD_FILE,
    Array,
    Head,
    flattened,
    reading_head,
    refuse_odd_numbers,
    refuse_other_space,
)
from featcache.store import Cache

ROWS_FILE = "rows.npy"


@dataclass(frozen=True)
class Neighbours:
    """The k nearest rows vote, each with the inverse of its distance.

    labels : (n_rows,), class numbers
    """

    labels: NDArray[np.int64]
    k: int
    n_classes: int

    def probabilities(self, squares: Array, exact: Callable[[NDArray[np.intp]], Array] | None = None) -> Array:
        """Shares of the votes (n, n_classes). Rows at distance 0 have all of them.

        squares : (n, n_rows), squared distances
        exact : gives those to some rows (n, k) without the rounding of `squares`
        """
        near = np.argpartition(squares, self.k - 1, axis=1)[:, : self.k]
        nearest = np.take_along_axis(squares, near, axis=1) if exact is None else exact(near)
        with np.errstate(divide="ignore"):
            votes = 1 / np.sqrt(nearest)
        same = np.isinf(votes)
        votes = np.where(same.any(axis=1, keepdims=True), same, votes)
        counts = np.einsum("nk,nkc->nc", votes, np.eye(self.n_classes)[self.labels[near]])
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def squared_distances(products: Array, squared_norms: Array, *, norms: Array) -> Array:
    """|x - x'|^2 (n, n_rows), float64, from products x x' (n, n_rows) and the squared norms of both sides."""
    return np.maximum(squared_norms[:, None] + norms - 2.0 * products, 0)


def row_norms(X: Array) -> Array:
    """Squared norms (n,) of rows (n, D), float64."""
    return np.asarray(np.einsum("nd,nd->n", X, X, dtype=np.float64))


@dataclass(frozen=True)
class DistanceHead:
    """A classifier by distances to rows of features.

    row_shape : shape of one row of features
    rows : (n_rows, D), flattened; in rows.npy they are float32
    square : what squared distances are divided by
    decide : nearest neighbours; or a head on exp(-squared distance), as a support vector machine has
    space : digest of the feature space of `rows`; it refuses features of another
    """

    row_shape: tuple[int, ...]
    rows: Array
    square: float
    decide: Neighbours | Head
    classes: tuple[str, ...]
    space: str = ""

    has_several_labels = False

    @cached_property
    def norms(self) -> Array:
        """Squared norms of `rows`, (n_rows,), float64."""
        return row_norms(self.rows)

    def probabilities(self, cache: Cache) -> Array:
        """Class probabilities of all rows of a cache, streamed from it: ndarray of shape (n, classes).

        Raises HeadError for a cache of another feature space.
        """
        refuse_other_space(cache, self.space)
        blocks = products.blocks(cache.features, cache.numbers(), dtype=np.float32)
        return np.concatenate([self._of(X) for _, X in blocks])

    def probabilities_of(self, X: Array) -> Array:
        """Class probabilities of features in memory, (n, *row_shape): ndarray of shape (n, classes).

        Raises HeadError for features of another shape.
        """
        return self._of(flattened(X, self.row_shape).astype(self.rows.dtype, copy=False))

    def _of(self, X: Array) -> Array:
        squares = squared_distances(X @ self.rows.T, row_norms(X), norms=self.norms) / self.square

        def exact(near: NDArray[np.intp]) -> Array:
            return np.stack([row_norms(self.rows[some] - x) for some, x in zip(near, X, strict=True)]) / self.square

        return decided(self.decide, squares, exact=exact)

    def save(self, folder: Path) -> None:
        """Write head.npz into `folder`; rows.npy lies there already, see `write_rows`."""
        arrays = {name: np.array(getattr(self, name)) for name in ("row_shape", "square", "classes", "space")}
        if isinstance(self.decide, Head):
            ((W, b),) = self.decide.layers
            arrays |= {"kind": np.array("rbf"), "W0": W, "b0": b}
        else:
            arrays |= {"kind": np.array("neighbours"), "labels": self.decide.labels, "k": np.array(self.decide.k)}
        write_npz(folder / HEAD_FILE, arrays)


def decided(
    decide: Neighbours | Head, squares: Array, *, exact: Callable[[NDArray[np.intp]], Array] | None = None
) -> Array:
    """Class probabilities from squared distances (n, n_rows); `exact` as of `Neighbours.probabilities`."""
    if isinstance(decide, Head):
        return decide.probabilities_of(np.exp(-squares))
    return decide.probabilities(squares, exact)


TrainedHead = Head | DistanceHead


def write_rows(folder: Path, cache: Cache, *, numbers: NDArray[np.intp]) -> NDArray[np.float32]:
    """Write rows of a cache into rows.npy, streamed, and open them: (n, D), float32, on the disk."""
    path = folder / ROWS_FILE
    shape = (len(numbers), products.width(cache.features))
    with beside(path) as partial, partial.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _, block in products.blocks(cache.features, numbers, dtype="<f4"):
            file.write(block.tobytes())
    return open_npy(path)


def load_head(folder: Path, *, in_memory: bool = False) -> TrainedHead:
    """The head that `save` wrote into `folder`, of whichever kind.

    in_memory : read the features of its rows, too; else they stay on the disk

    Raises HeadError for a file that is missing or damaged.
    """
    with reading_head(folder) as arrays:
        if "kind" not in arrays:
            return Head.of(arrays)
        head = _with_rows(folder, arrays)
        return replace(head, rows=np.array(head.rows)) if in_memory else head


def _with_rows(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> DistanceHead:
    """The head of arrays in head.npz and of rows.npy. Raises ValueError or LookupError where they make none."""
    classes = tuple(str(label) for label in arrays["classes"])
    row_shape = tuple(int(side) for side in arrays["row_shape"])
    rows = open_npy(folder / ROWS_FILE)
    if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != np.prod(row_shape):
        raise ValueError(f"{ROWS_FILE} has the shape {rows.shape!s:.80} of {rows.dtype}: expected rows of {row_shape}")
    decide = _decision(arrays, len(rows), classes)
    head = DistanceHead(row_shape, rows, float(arrays["square"]), decide, classes, str(arrays["space"]))
    refuse_odd_numbers({"square": np.array(head.square), ROWS_FILE: head.norms})
    if head.square <= 0:
        raise ValueError(f"square is {head.square}: expected a positive number")
    return head


def _decision(arrays: Mapping[str, NDArray[Any]], n_rows: int, classes: tuple[str, ...]) -> Neighbours | Head:
    kind = str(arrays["kind"])
    if kind == "rbf":
        head = on_kernel(arrays["W0"], arrays["b0"], classes=classes)
        head.refuse_misfits(n_rows)
        return head
    if kind != "neighbours":
        raise ValueError(f"kind {kind!r:.40}: expected rbf or neighbours")
    labels, k = arrays["labels"], int(arrays["k"])
    if labels.shape != (n_rows,) or labels.dtype != np.int64 or not 1 <= k <= n_rows:
        raise ValueError(f"labels of shape {labels.shape!s:.80} or k = {k} do not fit {n_rows} rows")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"a label of a row is none of the {len(classes)} classes")
    return Neighbours(labels, k, len(classes))


def on_kernel(W: Array, b: Array, *, classes: tuple[str, ...]) -> Head:
    """A support vector machine on kernel values (n, n_rows), with weights (n_rows, pairs) and biases (pairs,)."""
    return Head((len(W),), 1.0, [(W, b)], 0.0, classes, output="one-vs-one")
