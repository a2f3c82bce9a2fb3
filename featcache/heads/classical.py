"""Classical heads by scikit-learn, for comparison: from features in memory, or from inner products alone.

Features are centred on the mean of the training rows and divided by one number, so that their mean squared norm is 1.
All that the heads then need of them are inner products of rows, which follow from the Gram matrix K = X X^T of what
was not centred. So `fit_classical` never sees a feature, and 100,352 of them cost it no more than 100:

    linear-svm, rbf-svm   a kernel machine by the centred K, or by exp(-distance^2)
    knn                   distance^2 = |x|^2 + |x'|^2 - 2 x x'
    logreg, mlp           coordinates of the rows in an orthonormal basis of what the training rows span

An L2-regularised linear model has its weights in that span and does not know the basis, so it is the same model.
scikit-learn fits the numbers, and what is kept of it are arrays: weights of the inner products, or the rows that
distances go to. On features, weights A of the products become weights X^T A; no estimator of scikit-learn is kept.
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
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data
from threadpoolctl import threadpool_limits

from featcache.core.errors import HeadError, nearest
from featcache.heads.distance_head import Neighbours, decided, on_kernel, squared_distances
from featcache.heads.head import MULTI_LABEL, Head
from featcache.heads.stack import sigmoid, softmax

Array = NDArray[np.floating[Any]]
Kind = Literal["logreg", "linear-svm", "rbf-svm", "knn", "mlp"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SEVERAL_LABELS: tuple[Kind, ...] = ("logreg", "mlp")
"""Those whose rows may have several labels."""
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

    def undone(self, S: Array) -> tuple[Array, Array]:
        """A (N, units) and b (units,) with K A + b = inner(K) S."""
        return (S - S.mean(axis=0)) / self.square, (self.mean - self.means) @ S / self.square


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

    def on_products(self, W: Array) -> Array:
        """Weights (r, units) of coordinates, as weights of the products with `rows`."""
        return np.asarray(solve_triangular(self.L, W, lower=True, trans="T"))


@dataclass(frozen=True)
class DistanceModel:
    """A fitted classical head that goes by distances to training rows.

    rows : their numbers among the training rows
    square : what squared distances of features as they are are divided by
    decide : what makes probabilities of them; see `DistanceHead`
    """

    rows: NDArray[np.intp]
    square: float
    decide: Neighbours | Head


def probabilities(model: Head | DistanceModel, K: Array, *, norms: Array, train_norms: Array) -> Array:
    """Class probabilities (n, classes) of rows, from their products K (n, N) with the training rows.

    norms, train_norms : squared norms of the rows (n,) and of the training rows (N,)
    """
    if isinstance(model, Head):
        return model.probabilities_of(K)
    squares = squared_distances(K[:, model.rows], norms, norms=train_norms[model.rows]) / model.square
    return decided(model.decide, squares)


def fit_classical(
    kind: str,
    K: Array,
    *,
    y: NDArray[np.int64],
    seed: int = 0,
    balanced: bool = True,
    sample_weight: Array | None = None,
) -> Head | DistanceModel:
    """Fit one of `KINDS` on training rows that are known by their Gram matrix.

    K : (N, N), inner products of features as they are; only read
    y : (N,), class numbers, of which none is missing; or (N, classes), 0 or 1, where a row may have several labels:
        `logreg` is then fitted to each label by itself (one versus rest), and `mlp` has a sigmoid for each
    sample_weight : (N,), multiplies the weights of the classes

    Returns what goes by distances, or a Head on inner products (n, N) with the training rows. On features X, its first
    weights A (N, units) become X^T A.

    `classical_head(kind).fit(X, y)` gives the same model from K = X X^T, but for the mlp, see above. In memory are
    a few arrays of the size of K, float64.

    Raises HeadError for an unknown kind, for rows of one class, and for weights or several labels that the kind does
    not take.
    """
    if y.ndim == 2:
        return _of_several_labels(kind, K, y, seed, balanced)
    head = Balanced(_estimator(kind, seed, by_products=True), balanced)
    counts = np.bincount(y)
    if np.count_nonzero(counts) < 2:
        raise HeadError(f"only rows of class {y[0]}: at least two classes are needed")
    if not counts.all():
        raise HeadError(f"no rows of class {counts.argmin()}: number the classes without gaps")
    if kind == "knn":
        head.estimator.n_neighbors = min(head.estimator.n_neighbors, len(y))

    def fitted(representation: Array) -> Any:
        with threadpool_limits(1, user_api="blas"):  # its steps are small: threads cost more than they do
            return head.fit(representation, y, sample_weight=sample_weight).estimator_

    if kind in ("rbf-svm", "knn"):
        return _by_distances(kind, K, y, fitted)
    return _linear(kind, K, fitted)


def _of_several_labels(kind: str, K: Array, y: NDArray[np.int64], seed: int, balanced: bool) -> Head:
    """As `fit_classical`, of an indicator (N, classes)."""
    estimator = _estimator(kind, seed, by_products=True)
    if kind not in SEVERAL_LABELS:
        raise HeadError(
            f"`head={kind!r}` gives a row one class, and these rows may have several labels",
            f"Set `head` to {' or '.join(SEVERAL_LABELS)}",
        )
    have = y.sum(axis=0)
    if not ((have > 0) & (have < len(y))).all():
        label = int(((have == 0) | (have == len(y))).argmax())
        raise HeadError(f"{'no' if not have[label] else 'every'} training row has label {label}: nothing tells it")
    if kind == "logreg":
        estimator = OneVsRestClassifier(clone(estimator).set_params(class_weight="balanced" if balanced else None))

    def fitted(coordinates: Array) -> Any:
        with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
            if kind == "mlp":  # to stop after so many epochs is its definition here
                warnings.simplefilter("ignore", ConvergenceWarning)
            return estimator.fit(coordinates, y)

    return _linear(kind, K, fitted, several_labels=True)


def _by_distances(kind: str, K: Array, y: NDArray[np.int64], fitted: Callable[[Array], Any]) -> DistanceModel:
    norms, square = np.diagonal(K).astype(np.float64), _Centring.of(K).square
    squares = squared_distances(K, norms, norms=norms) / square
    if kind == "knn":
        k = fitted(np.sqrt(squares)).n_neighbors
        return DistanceModel(np.arange(len(y)), square, Neighbours(y, k, int(y.max()) + 1))
    machine = fitted(np.exp(-squares))
    return DistanceModel(machine.support_, square, on_kernel(*_pairs(machine), classes=_numbered(machine.classes_)))


def _linear(kind: str, K: Array, fitted: Callable[[Array], Any], several_labels: bool = False) -> Head:
    """A head whose first layer is linear in centred products, and so in the products as they are."""
    centring = _Centring.of(K)
    inner = centring.inner(K)
    if kind == "linear-svm":
        estimator = fitted(inner)
        (W, b), rest = _pairs(estimator), []
        rows, output = estimator.support_, "one-vs-one"
    else:
        rounding = float(np.finfo(K.dtype).eps * np.diagonal(K).max() / centring.square)
        coordinates = Coordinates.of(inner, _NOISE * rounding)
        found = coordinates(inner)
        wide = np.sqrt(found.shape[1]) if kind == "mlp" else 1.0
        estimator = fitted(found * wide)
        (W, b), *rest = _layers(estimator)
        rows, W = coordinates.rows, coordinates.on_products(W * wide)
        output = MULTI_LABEL if several_labels else "softmax"
    of_centred = np.zeros((len(K), W.shape[1]))
    of_centred[rows] = W
    A, offset = centring.undone(of_centred)
    return Head((len(K),), 1.0, [(A, b + offset), *rest], 0.0, _numbered(estimator.classes_), output=output)


def _numbered(classes: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(map(str, classes))


def _layers(estimator: Any) -> list[tuple[Array, Array]]:
    """Weights and biases up to the logits of each class; of two classes scikit-learn keeps those of the second."""
    if isinstance(estimator, MLPClassifier):
        *layers, (W, b) = zip(estimator.coefs_, estimator.intercepts_, strict=True)
    elif isinstance(estimator, OneVsRestClassifier):
        of_labels = [(one.coef_[0], one.intercept_[0]) for one in estimator.estimators_]
        layers, (W, b) = [], (np.stack([w for w, _ in of_labels], axis=1), np.array([b for _, b in of_labels]))
    else:
        layers, W, b = [], estimator.coef_.T, estimator.intercept_
    if W.shape[1] == 1:
        W, b = np.pad(W, ((0, 0), (1, 0))), np.pad(b, (1, 0))
    return [*layers, (W, b)]


def _pairs(machine: SVC) -> tuple[Array, Array]:
    """Weights (n_support, pairs) and biases (pairs,) of the decisions that `one_vs_one` takes.

    libsvm keeps of each support vector one weight for each other class: in row j - 1 for a class j behind its own, in
    row j for one before it.
    """
    n = len(machine.classes_)
    if n == 2:
        return machine.dual_coef_.T, machine.intercept_
    own = np.repeat(np.arange(n), machine.n_support_)
    pairs = list(zip(*np.triu_indices(n, 1), strict=True))
    W = np.zeros((len(own), len(pairs)))
    for pair, (i, j) in enumerate(pairs):
        W[own == i, pair] = -machine.dual_coef_[j - 1, own == i]
        W[own == j, pair] = -machine.dual_coef_[i, own == j]
    return W, -machine.intercept_
