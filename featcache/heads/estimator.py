"""`HeadClassifier`: the head as a scikit-learn estimator, trained in Gram space or by blocks on features in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from featcache.core import machine
from featcache.core.errors import HeadError
from featcache.heads import block, gram, initializers as random
from featcache.heads.config import Activation, HeadConfig, Monitor, Scale, Schedule, Solver
from featcache.heads.cost import choose_solver
from featcache.heads.source import InMemory
from featcache.heads.stack import Stack, forward, sigmoid, softmax
from featcache.training import Course, Epoch

Array = NDArray[np.floating[Any]]
ArrayLike = Any
"""What scikit-learn takes: an array, a DataFrame, lists of numbers."""

_PART_ROWS = 8192

_CONFIGURED = (
    "dropout", "activation", "lr", "schedule", "decay", "step_epochs", "step_factor", "momentum", "nesterov",
    "label_smoothing", "batch", "epochs", "scale", "monitor", "patience", "restore_best", "val_every", "dtype",
)  # fmt: skip


def _is_watched(estimator: HeadClassifier) -> bool:
    """Whether there is a best epoch to speak of."""
    return bool(estimator.patience or estimator.restore_best)


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Dense(hidden, activation), Dropout(dropout) for each hidden layer, then Dense(classes), trained by SGD.

    The head that `featcache fit-head` trains, on a feature matrix in memory: the same rows in the same order and the
    same settings give the same weights. Keras is not loaded. Few rows are trained in Gram space, where the number of
    features hardly matters; many rows block by block, which needs no matrix of n_rows^2 numbers.

    Parameters
    ----------
    hidden : tuple of int, units of each hidden layer; one number is one layer, () trains a softmax layer alone
    dropout : float, fraction of each hidden layer's units left out in training
    activation : "relu", "elu", "tanh", "sigmoid" or "linear"
    lr : float, learning rate of the first update
    schedule : "inverse-time", "constant", "cosine" or "step": how `lr` falls
    decay : float, decay per update of the inverse-time schedule
    step_epochs, step_factor : the step schedule multiplies `lr` by `step_factor` every `step_epochs` epochs
    momentum, nesterov : as of Keras' SGD
    l2 : float, adds ``l2 |W|^2`` to the loss for the weights of every layer; or a tuple, of each layer in turn
    label_smoothing : float, part of each target that is spread evenly over the classes
    batch : int, rows an update; all rows where there are fewer
    epochs : int
    scale : "centred" subtracts the mean of the training rows and multiplies the features by one number, so that one
        learning rate suits all; "norm" only multiplies, "none" does neither
    class_weight : "balanced", dict {class: weight} or None. Only the ratios of weights matter, here and in
        `sample_weight`: they are divided by their mean. Not used where rows have several labels
    monitor, patience, restore_best, val_every : when the training ends early and which epoch's weights are kept;
        "val_loss" and "val_accuracy" need `X_val` and `y_val` in `fit`
    random_state : int, RandomState or None; decides initial weights, batch order and dropout masks
    dtype : "float32" or "float64", of the arithmetic, the weights and what is predicted
    solver : "gram", "block", or "auto", whichever takes fewer operations and fits; they give the same but for rounding

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,); of several labels a row, the columns' numbers
    coefs_, intercepts_ : lists of ndarrays (n_in, n_out) and (n_out,), of each layer; the first takes X as it was given
    scale_ : float, what the features were multiplied by in training; it is part of coefs_[0]
    history_ : DataFrame with a line an epoch: epoch, loss, accuracy, val_loss, val_accuracy, lr, seconds; of several
        labels a row the accuracies are of rows with all labels right, as `score` has it
    n_iter_ : int, epochs that were trained
    solver_ : "gram" or "block"
    best_epoch_ : int, counted from 1; where `patience` or `restore_best` asked for it
    n_features_in_, feature_names_in_ : as of every estimator

    X may have more than two dimensions (rows of (h, w, c)): each row is flattened.
    """

    def __init__(
        self,
        hidden: int | Sequence[int] = (256,),
        *,
        dropout: float = 0.5,
        activation: Activation = "relu",
        lr: float = 0.002,
        schedule: Schedule = "inverse-time",
        decay: float = 0.0,
        step_epochs: int = 1000,
        step_factor: float = 0.5,
        momentum: float = 0.0,
        nesterov: bool = False,
        l2: float | Sequence[float] = 0.1,
        label_smoothing: float = 0.0,
        batch: int = 16,
        epochs: int = 100,
        scale: Scale = "centred",
        class_weight: str | dict[Any, float] | None = "balanced",
        monitor: Monitor = "val_loss",
        patience: int = 0,
        restore_best: bool = False,
        val_every: int = 1,
        random_state: int | np.random.RandomState | None = 0,
        dtype: str = "float32",
        solver: Literal["auto", "gram", "block"] = "auto",
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.activation = activation
        self.lr = lr
        self.schedule = schedule
        self.decay = decay
        self.step_epochs = step_epochs
        self.step_factor = step_factor
        self.momentum = momentum
        self.nesterov = nesterov
        self.l2 = l2
        self.label_smoothing = label_smoothing
        self.batch = batch
        self.epochs = epochs
        self.scale = scale
        self.class_weight = class_weight
        self.monitor = monitor
        self.patience = patience
        self.restore_best = restore_best
        self.val_every = val_every
        self.random_state = random_state
        self.dtype = dtype
        self.solver = solver

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
    ) -> HeadClassifier:
        """Train on rows X (n, ...) with labels y (n,), or an indicator (n, n_classes) of several labels a row.

        sample_weight : (n,), of each row's loss; rows of weight 0 are left out
        X_val, y_val : rows that the training is watched on, as columns val_loss and val_accuracy of `history_`
        """
        config = self._config()
        _refuse_missing_labels(y, "y")
        X, y = validate_data(self, _flat(X), y, dtype=config.dtype, multi_output=True, ensure_min_samples=2)
        X, y, weights = _weighed(X, y, sample_weight)
        numbers = self._encode_classes(y.toarray() if hasattr(y, "toarray") else y)
        several = numbers.ndim == 2
        config = replace(config, output="sigmoid" if several else "softmax")
        X_held, y_held = self._validation(X, numbers, X_val, y_val)
        if _is_watched(self) and self.monitor.startswith("val") and not len(X_held):
            raise HeadError(f"monitor {self.monitor!r}: expected X_val and y_val in fit, or monitor 'loss'")
        posed = _Posed(X, numbers, X_held, y_held, weights, self._row_weights(numbers, weights).astype(config.dtype))
        self.solver_ = self._solver(posed, config)
        if self.solver_ == "gram":
            self.scale_, layers, history, best = _in_gram_space(posed, config, len(self.classes_))
        else:
            self.scale_, layers, history, best = _by_blocks(posed, config, len(self.classes_))
        self.coefs_, self.intercepts_ = [W for W, _ in layers], [b for _, b in layers]
        self.history_ = pd.DataFrame([asdict(entry) for entry in history])
        self.n_iter_ = len(history)
        if _is_watched(self):
            self.best_epoch_ = best
        self._several_labels = several
        return self

    def decision_function(self, X: ArrayLike) -> Array:
        """Logits (n, n_classes); of two classes the second's minus the first's, (n,)."""
        logits = self._logits(X)
        if len(self.classes_) == 2 and not self._several_labels:
            return np.asarray(logits[:, 1] - logits[:, 0])
        return logits

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities (n, n_classes), in the order of `classes_`; of several labels a row, each for itself."""
        logits = self._logits(X)
        return sigmoid(logits) if self._several_labels else softmax(logits)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest class of each row (n,); of several labels a row, an indicator (n, n_classes)."""
        logits = self._logits(X)
        if self._several_labels:
            return (logits > 0).astype(np.int64)
        return np.asarray(self.classes_[logits.argmax(axis=1)])

    def _logits(self, X: ArrayLike) -> Array:
        check_is_fitted(self)
        X = validate_data(self, _flat(X), dtype=self.coefs_[0].dtype, reset=False)
        (W, *others), (b, *biases) = self.coefs_, self.intercepts_
        return forward(X @ W + b, list(zip(others, biases, strict=True)), activation=self.activation)

    def _config(self) -> HeadConfig:
        """The settings as `featcache fit-head` knows them. Raises HeadError where one is out of its range."""
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = check_random_state(seed).randint(2**31 - 1)
        l2: Any = self.l2
        return HeadConfig(
            hidden=tuple(self.hidden) if np.iterable(self.hidden) else (self.hidden,),
            l2=tuple(l2) if isinstance(l2, (list, tuple)) else l2,
            class_weights="none",
            seed=int(seed),
            **{name: getattr(self, name) for name in _CONFIGURED},
        )

    def _solver(self, posed: _Posed, config: HeadConfig) -> Solver:
        """The solver. Raises HeadError for an unknown one, and for a Gram matrix that is asked for and does not fit."""
        if self.solver not in ("auto", "gram", "block"):
            raise HeadError(f"solver {self.solver!r:.80}: expected 'auto', 'gram' or 'block'")
        n_rows, n_val = len(posed.X), len(posed.X_val)
        if self.solver == "gram":
            _refuse_too_many(n_rows, n_val, config)
        return choose_solver(
            n_rows,
            n_val,
            n_inputs=posed.X.shape[1],
            n_classes=len(self.classes_),
            config=replace(config, batch=min(config.batch, n_rows)),
            asked=self.solver,
        ).solver

    def _encode_classes(self, y: NDArray[Any]) -> NDArray[np.int64]:
        """Class numbers (n,) of `y`, or its indicator (n, n_classes); sets `classes_`."""
        check_classification_targets(y)
        if type_of_target(y) == "multilabel-indicator":
            self.classes_ = np.arange(y.shape[1])
            return y.astype(np.int64)
        self.classes_, numbers = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise HeadError(f"only the class {self.classes_[0]}: at least two classes are needed")
        return numbers

    def _validation(
        self, X: Array, numbers: NDArray[np.int64], X_val: ArrayLike | None, y_val: ArrayLike | None
    ) -> tuple[Array, NDArray[np.int64]]:
        """Validation rows (m, n_features) and their classes, as those of the training rows; m is 0 without them."""
        if (X_val is None) != (y_val is None):
            raise HeadError("X_val and y_val: expected both or none")
        if X_val is None:
            return X[:0], numbers[:0]
        X_val = validate_data(self, _flat(X_val), dtype=X.dtype, reset=False)
        _refuse_missing_labels(y_val, "y_val")
        y_val = check_array(y_val, ensure_2d=False, dtype=None)
        check_consistent_length(X_val, y_val)
        if numbers.ndim == 2:
            if y_val.shape[1:] != numbers.shape[1:]:
                raise HeadError(f"y_val of shape {y_val.shape}: expected {numbers.shape[1]} columns")
            return X_val, y_val.astype(np.int64)
        unknown = set(np.unique(column_or_1d(y_val)).tolist()) - set(self.classes_.tolist())
        if unknown:
            raise HeadError(f"y_val has the classes {sorted(unknown)}, which no training row has")
        return X_val, np.searchsorted(self.classes_, column_or_1d(y_val))

    def _row_weights(self, numbers: NDArray[np.int64], weights: Array) -> Array:
        """Weights of class and row, of mean 1; "balanced" counts a class by the weights of its rows."""
        if numbers.ndim == 1 and isinstance(self.class_weight, str):
            if self.class_weight != "balanced":
                raise HeadError(f"class_weight {self.class_weight!r}: expected 'balanced', a dict or None")
            weights = weights / np.bincount(numbers, weights)[numbers]
        elif numbers.ndim == 1 and self.class_weight is not None:
            weights = weights * self._class_weights()[numbers]
        if not weights.any():
            raise HeadError("class_weight is 0 for every row")
        return np.asarray(weights / weights.mean())

    def _class_weights(self) -> Array:
        """The weight of each class, from a dict by label; 1 for those that it does not name."""
        given = self.class_weight
        if not isinstance(given, Mapping):
            raise HeadError(f"class_weight {given!r:.80}: expected 'balanced', a dict or None")
        classes = self.classes_.tolist()
        unknown = [label for label in given if label not in classes]
        if unknown:
            raise HeadError(f"class_weight names {unknown[0]!r}, which no row has: the classes are {classes!r:.200}")
        weights: list[Any] = list(given.values())
        wrong = [weight for weight in weights if not (isinstance(weight, Real) and 0 <= float(weight) < np.inf)]
        if wrong:
            raise HeadError(f"class_weight {wrong[0]!r:.80}: expected a number of at least 0")
        return np.array([float(given.get(label, 1.0)) for label in classes])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


@dataclass(frozen=True)
class _Posed:
    """What a head learns from: training and validation rows, and the weights of the training rows.

    of_rows : (n,), weights of rows, by which the mean and the scale of the features are taken
    of_losses : (n,), weights of each row's loss
    """

    X: Array
    y: NDArray[np.int64]
    X_val: Array
    y_val: NDArray[np.int64]
    of_rows: Array
    of_losses: Array


_Trained = tuple[float, list[tuple[Array, Array]], list[Epoch], int]
"""Scale, layers for features as they are, history, best epoch."""


def _in_gram_space(posed: _Posed, config: HeadConfig, n_classes: int) -> _Trained:
    X, X_val, weights = posed.X, posed.X_val, posed.of_rows
    K = X @ X.T
    mean_of = (weights / weights.sum()).astype(X.dtype) if config.scale == "centred" else None
    scale = 1.0 if config.scale == "none" else _scale(K, weights, mean_of)
    single = X.dtype.type(scale)
    (W0, b0), *rest = random.initial_weights(config, X.shape[1], n_classes=n_classes)
    problem = gram.GramProblem(
        K=K,
        P0=X @ W0 * single,
        y=posed.y,
        weights=posed.of_losses,
        K_val=X_val @ X.T,
        P0_val=X_val @ W0 * single,
        y_val=posed.y_val,
        factor=scale**2,
        mean_of=mean_of,
    )
    course: Course[gram.State] = Course(config)
    last = gram.train(problem, gram.start(problem, Stack(b0, rest, config)), course=course)
    state = gram.on_features(problem, course.chosen(last))
    moved = X.T @ state.A
    moved += W0 * (X.dtype.type(state.s) * single)
    return scale, [(moved, state.stack.bias), *state.stack.layers], last.history, course.best_epoch


def _by_blocks(posed: _Posed, config: HeadConfig, n_classes: int) -> _Trained:
    X, weights = posed.X, posed.of_rows
    norms = np.concatenate([np.einsum("nd,nd->n", rows, rows, dtype=np.float64) for rows in _parts(X)])
    mean = _mean(X, weights) if config.scale == "centred" else None
    scale = (
        1.0
        if config.scale == "none"
        else _scale_by(float(np.average(norms, weights=weights)), None if mean is None else float(mean @ mean))
    )
    (W0, b0), *rest = random.initial_weights(config, X.shape[1], n_classes=n_classes)
    source = InMemory(X, posed.y, weights=posed.of_losses, X_val=posed.X_val, y_val=posed.y_val)
    course: Course[block.State] = Course(config)
    first = block.start(W0, Stack(b0, rest, config))
    last = block.train(source, first, scale=scale, mean=mean, course=course)
    state = course.chosen(last)
    W = state.W * X.dtype.type(scale)
    bias = state.stack.bias if mean is None else state.stack.bias - (mean @ W).astype(W.dtype)
    return scale, [(W, bias), *state.stack.layers], last.history, course.best_epoch


def _mean(X: Array, weights: Array) -> NDArray[np.float64]:
    """(D,), of rows by their weights (n,)."""
    mean = np.zeros(X.shape[1])
    for rows, shares in zip(_parts(X), _parts(weights / weights.sum()), strict=True):
        mean += shares @ rows.astype(np.float64)
    return mean


def _parts(values: Array) -> Iterator[Array]:
    return (values[start : start + _PART_ROWS] for start in range(0, len(values), _PART_ROWS))


def _refuse_missing_labels(y: Any, name: str) -> None:
    """scikit-learn finds NaN; None, and NaN among labels of other types, it would sort, or take for a class."""
    labels = np.asarray(y, dtype=object) if isinstance(y, (list, tuple)) else np.asarray(y)
    if labels.dtype != object or labels.ndim != 1:
        return
    missing = np.flatnonzero(pd.isna(labels))
    if missing.size:
        raise HeadError(f"{name}: row {missing[0]} has no label ({labels[missing[0]]!r}): leave rows without one out")
    kinds = sorted({type(label).__name__ for label in labels if not isinstance(label, Real)})
    if len(kinds) > 1 or (kinds and any(isinstance(label, Real) for label in labels)):
        raise HeadError(f"{name}: labels of several types, {', '.join(kinds)} among them: make all of them strings")


def _flat(X: Any) -> Any:
    """X with rows flattened, where they have a shape of their own."""
    return np.asarray(X).reshape(len(X), -1) if len(getattr(X, "shape", ())) > 2 else X


def _weighed(X: Array, y: NDArray[Any], sample_weight: ArrayLike | None) -> tuple[Array, NDArray[Any], Array]:
    """Rows whose weight is not 0, and their weights (n,), float64."""
    if sample_weight is None:
        return X, y, np.ones(len(X))
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    kept = weights > 0
    return (X, y, weights) if kept.all() else (X[kept], y[kept], weights[kept])


def _scale(K: Array, weights: Array, mean_of: Array | None) -> float:
    """What gives rows with the Gram matrix K the mean squared norm of `random.SCALED_SQUARED_NORM`, after their mean
    by `mean_of` is subtracted; 1 where all are zero, or alike."""
    norm = float(np.average(np.diagonal(K), weights=weights))
    return _scale_by(norm, None if mean_of is None else float(mean_of @ K @ mean_of))


def _scale_by(norm: float, norm_of_mean: float | None) -> float:
    """The same, from the mean squared norm of the rows and that of their mean, where it is subtracted."""
    if not norm:
        return 1.0
    if norm_of_mean is None:
        return random.scale_of(norm)
    try:
        return random.scale_of(random.centred_squared_norm(norm, norm_of_mean))
    except HeadError:
        return 1.0


def _refuse_too_many(n_rows: int, n_val: int, config: HeadConfig) -> None:
    needed, free = (n_rows + n_val) * n_rows * np.dtype(config.dtype).itemsize, machine.available_bytes()
    if needed > free:
        raise HeadError(
            f"the Gram matrix of {n_rows} rows needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free",
            "Set `solver='block'`",
        )
