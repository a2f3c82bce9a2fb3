"""Classical heads by scikit-learn, for comparison: from features in memory, or from inner products alone.

Features are centred on the mean of the training rows and divided by one number, so that their mean squared norm is 1.
All that the heads then need of them are inner products of rows, which follow from the Gram matrix K = X X^T of what
was not centred. So `fit_classical` never sees a feature, and 100,352 of them cost it no more than 100:

    linear-svm, rbf-svm   a kernel machine by the centred K, or by exp(-distance^2)
    knn                   distance^2 = |x|^2 + |x'|^2 - 2 x x'
    logreg, mlp           coordinates of the rows in an orthonormal basis of what the training rows span

An L2-regularised linear model has its weights in that span and does not know the basis, so it is the same model.
A multilayer perceptron starts from other random weights in other coordinates: as good, but not the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpstrf
from sklearn.base import BaseEstimator, ClassifierMixin, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data
from threadpoolctl import threadpool_limits

from featcache.core.errors import HeadError, nearest
from featcache.heads import products
from featcache.heads.stack import sigmoid, softmax
from featcache.store import Features

Array = NDArray[np.floating[Any]]
Kind = Literal["logreg", "linear-svm", "rbf-svm", "knn", "mlp"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_NOISE = 1000
"""Times the rounding error of a product: what of a row lies outside of the others by no more than that is nothing."""


def classical_head(kind: str, seed: int = 0, *, balanced: bool = True) -> Pipeline:
    """A scikit-learn classifier of features X (n, n_features) with `predict_proba`, of those that `KINDS` names.

    logreg : logistic regression (softmax), L2 penalty, C = 10
    linear-svm : one-vs-one, C = 1; its probabilities are the softmax of its decision values, and not calibrated
    rbf-svm : the same with the kernel exp(-|x - x'|^2)
    knn : 5 neighbours, voting with the inverse of their distance
    mlp : one hidden layer of 256 units, by Adam, until the loss stops falling or for 200 epochs; on features of mean
        variance 1

    seed : of the mlp; the others have no chance in them
    balanced : rare classes count as much as frequent ones: class_weight="balanced". knn knows no weights

    Raises HeadError for another kind.
    """
    return Pipeline([("centre", Centred(kind == "mlp")), ("head", Balanced(_estimator(kind, seed), balanced))])


def _estimator(kind: str, seed: int, by_products: bool = False) -> Any:
    """The classifier of centred features; or, `by_products`, of a kernel or distances."""
    svm = partial(SVC, C=1.0, break_ties=True, cache_size=500)
    makers: dict[str, Callable[[], Any]] = {
        "logreg": lambda: LogisticRegression(C=10.0, tol=1e-5, max_iter=5000),
        "linear-svm": lambda: svm(kernel="precomputed" if by_products else "linear"),
        "rbf-svm": lambda: svm(kernel="precomputed") if by_products else svm(kernel="rbf", gamma=1.0),
        "knn": lambda: KNeighborsClassifier(weights="distance", metric="precomputed" if by_products else "euclidean"),
        "mlp": lambda: MLPClassifier((256,), max_iter=200, random_state=seed),
    }
    if kind not in makers:
        raise HeadError(f"unknown head {kind!r}: {nearest(kind, makers)}")
    return makers[kind]()


class Centred(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features minus the mean of the training rows, divided by one number: their mean squared norm becomes 1.

    wide : it becomes the number of features instead, so that these have a mean variance of 1

    Scaling each feature on its own would make much of features that are nearly constant, and inner products of rows
    would not tell what becomes of them.
    """

    def __init__(self, wide: bool = False) -> None:
        self.wide = wide

    def fit(self, X: Any, y: Any = None) -> Centred:
        """Learn mean_ (n_features,) and scale_, what is divided by."""
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        self.mean_ = X.mean(axis=0, dtype=np.float64)
        squares = ((X - self.mean_) ** 2).sum(axis=1)
        self.scale_ = float(np.sqrt(squares.mean() / (X.shape[1] if self.wide else 1))) or 1.0
        return self

    def transform(self, X: Any) -> Array:
        """(X - mean_) / scale_, float64."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return np.asarray((X - self.mean_) / self.scale_)


class Balanced(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that weighs classes by their rarity, and has probabilities even where the one inside has none.

    Those are the softmax of its decision values; of two classes, the sigmoid.
    """

    def __init__(self, estimator: Any, balanced: bool = True) -> None:
        self.estimator = estimator
        self.balanced = balanced

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Balanced:
        """Fit on rows X with labels y (n,); sample_weight (n,) multiplies the weights of the classes."""
        takes_weights = has_fit_parameter(self.estimator, "sample_weight")
        if sample_weight is not None and not takes_weights:
            raise HeadError(f"{type(self.estimator).__name__} takes no weights of rows")
        weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        if self.balanced:  # a class counts by the weights of its rows
            classes, numbers = np.unique(y, return_inverse=True)
            weights = weights * (weights.sum() / len(classes) / np.bincount(numbers, weights))[numbers]
        self.estimator_ = clone(self.estimator)
        with warnings.catch_warnings():
            if isinstance(self.estimator, MLPClassifier):  # to stop after so many epochs is its definition here
                warnings.simplefilter("ignore", ConvergenceWarning)
            self.estimator_.fit(X, y, **({"sample_weight": weights} if takes_weights else {}))
        self.classes_ = self.estimator_.classes_
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of each row."""
        return np.asarray(self.estimator_.predict(X))

    def predict_proba(self, X: Any) -> Array:
        """Probabilities (n, n_classes), in the order of `classes_`."""
        if hasattr(self.estimator_, "predict_proba"):
            return np.asarray(self.estimator_.predict_proba(X))
        decision = self.estimator_.decision_function(X)
        if decision.ndim == 2:
            return softmax(decision)
        return np.column_stack([sigmoid(-decision), sigmoid(decision)])


def squared_norms(features: Features, numbers: NDArray[np.intp]) -> Array:
    """|x|^2 of rows of a cache, (n,), float64; streamed."""
    norms = np.empty(len(numbers))
    for place, block in products.blocks(features, numbers, dtype=np.float32):
        norms[place] = np.einsum("nd,nd->n", block, block, dtype=np.float64)
    return norms


@dataclass(frozen=True)
class _Centring:
    """Inner products of features as `Centred` would make them, from those of features as they are.

    means : (N,), of each row of K; mean : of all of K; square : scale_^2
    """

    means: Array
    mean: float
    square: float

    @classmethod
    def of(cls, K: Array) -> _Centring:
        means = K.mean(axis=1, dtype=np.float64)
        mean = float(means.mean())
        return cls(means, mean, float(np.mean(np.diagonal(K), dtype=np.float64)) - mean or 1.0)

    def inner(self, K: Array) -> Array:
        """(n, N), float64, from products (n, N) of rows with the training rows."""
        centred = K - K.mean(axis=1, dtype=np.float64)[:, None]
        centred -= self.means - self.mean
        centred /= self.square
        return np.asarray(centred)

    def norms(self, K: Array, squared_norms: Array) -> Array:
        """Squared norms (n,) of rows, from those of the features as they are."""
        return np.asarray((squared_norms - 2 * K.mean(axis=1, dtype=np.float64) + self.mean) / self.square)


@dataclass(frozen=True)
class Coordinates:
    """An orthonormal basis of what training rows span, by Cholesky's factorisation of their Gram matrix, pivoted.

    rows : (r,), the training rows that the basis was made from, one after the other
    L : (r, r), lower triangle: their coordinates
    """

    rows: NDArray[np.intp]
    L: Array

    @classmethod
    def of(cls, K: Array, tolerance: float) -> Coordinates:
        """Of a Gram matrix (N, N); rows that lie outside of the span of others by less than `tolerance`, as a squared
        length, are counted as inside of it."""
        factor, pivots, rank, _ = dpstrf(K, tol=tolerance, lower=1)
        return cls(pivots[:rank] - 1, np.tril(factor[:rank, :rank]))

    def __call__(self, K: Array) -> Array:
        """Coordinates (n, r) of rows, from their products (n, N) with the training rows."""
        return np.asarray(solve_triangular(self.L, K[:, self.rows].T, lower=True).T)


@dataclass(frozen=True)
class ClassicalModel:
    """A fitted classical head that knows rows by their inner products with the training rows."""

    kind: Kind
    n_classes: int
    head: Balanced
    centring: _Centring
    own_norms: Array
    coordinates: Coordinates | None

    @property
    def needs_norms(self) -> bool:
        """Whether `probabilities` needs the squared norms of the rows: it goes by distances."""
        return self.kind in ("rbf-svm", "knn")

    def probabilities(self, K: Array, squared_norms: Array | None = None) -> Array:
        """Probabilities (n, n_classes), float64, of n rows.

        K : (n, N), their inner products with the training rows, of features as they are
        squared_norms : (n,), see `squared_norms`

        Raises HeadError where the norms are needed and missing.
        """
        if self.needs_norms and squared_norms is None:
            raise HeadError(f"{self.kind} goes by distances: expected the squared norms of the rows")
        norms = None if squared_norms is None else self.centring.norms(K, squared_norms)
        found = self.head.predict_proba(self._representation(self.centring.inner(K), norms))
        probabilities = np.zeros((len(K), self.n_classes))
        probabilities[:, self.head.classes_] = found
        return probabilities

    def _representation(self, inner: Array, norms: Array | None) -> Array:
        """What the head takes: kernel, distances or coordinates."""
        if self.coordinates is not None:
            found = self.coordinates(inner)
            return found * np.sqrt(found.shape[1]) if self.kind == "mlp" else found
        if norms is None or not self.needs_norms:
            return inner
        squares = np.maximum(norms[:, None] + self.own_norms - 2 * inner, 0)
        return np.asarray(np.exp(-squares) if self.kind == "rbf-svm" else np.sqrt(squares))


def fit_classical(
    kind: str,
    K: Array,
    *,
    y: NDArray[np.int64],
    seed: int = 0,
    balanced: bool = True,
    sample_weight: Array | None = None,
    n_classes: int | None = None,
) -> ClassicalModel:
    """Fit one of `KINDS` on training rows that are known by their Gram matrix.

    K : (N, N), inner products of features as they are; only read
    y : (N,), class numbers
    sample_weight : (N,), multiplies the weights of the classes
    n_classes : where the last ones have no row

    `classical_head(kind).fit(X, y)` gives the same model from K = X X^T, but for the mlp, see above. In memory are
    a few arrays of the size of K, float64.

    Raises HeadError for an unknown kind, for rows of one class, and for weights that the kind does not take.
    """
    head = Balanced(_estimator(kind, seed, by_products=True), balanced)
    if len(np.unique(y)) < 2:
        raise HeadError(f"only rows of class {y[0]}: at least two classes are needed")
    if kind == "knn":
        head.estimator.n_neighbors = min(head.estimator.n_neighbors, len(y))
    centring = _Centring.of(K)
    inner = centring.inner(K)
    own_norms = np.diagonal(inner).copy()
    coordinates = None
    if kind in ("logreg", "mlp"):
        rounding = float(np.finfo(K.dtype).eps * np.diagonal(K).max() / centring.square)
        coordinates = Coordinates.of(inner, _NOISE * rounding)
    classes = int(y.max()) + 1 if n_classes is None else n_classes
    model = ClassicalModel(kind, classes, head, centring, own_norms, coordinates)  # type: ignore[arg-type]
    with threadpool_limits(1, user_api="blas"):  # its steps are small: threads cost more than they do
        head.fit(model._representation(inner, own_norms), y, sample_weight=sample_weight)
    return model
