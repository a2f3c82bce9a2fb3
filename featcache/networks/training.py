"""The training of a whole network: parts, updates, epochs; the same from any of them on."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import is_out_of_memory
from featcache.core.errors import ScratchError
from featcache.heads import accuracy_of, losses, softmax
from featcache.networks import checkpoint
from featcache.networks.checkpoint import Arrays, Standing
from featcache.networks.classifier import Classifier
from featcache.networks.config import ScratchConfig
from featcache.networks.feed import Feed, Part
from featcache.networks.views import Views
from featcache.store import Array
from featcache.training import Course, Earlier, Epoch, OnEpoch

_PREDICTED_ROWS = 32


@dataclass
class StageTimes:
    """Seconds that a training spent: waiting for rows, in updates, in looking at validation rows, in checkpoints."""

    input: float = 0.0
    train: float = 0.0
    validate: float = 0.0
    checkpoint: float = 0.0

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Adds the wall-clock time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)


@dataclass
class Training:
    """A classifier under training on the rows of a feed.

    identity : digest of all that decides each epoch
    folder : where its state is kept
    """

    classifier: Classifier
    feed: Feed
    validation: Views
    config: ScratchConfig
    identity: str
    folder: Path
    standing: Standing = field(default_factory=Standing)
    shares: StageTimes = field(default_factory=StageTimes)
    images: int = 0

    def __post_init__(self) -> None:
        self._n_trained = -1
        self.course: Course[Arrays] = Course(self.config, save=self._checkpoint)

    @property
    def history(self) -> list[Epoch]:
        """An entry an epoch."""
        return self.standing.history

    def copy(self) -> Arrays:
        """The variables of the model."""
        return [np.array(variable.numpy()) for variable in self._of_model()]

    def resume(self, earlier: Sequence[Path] = ()) -> int:
        """Go on where a state of this training, here or in a folder of `earlier`, stands. Returns its epochs."""
        furthest = self.course.go_on(
            Earlier(folder.name, found[0].history, found[:2], found[2], found[0].part)
            for folder in (self.folder, *earlier)
            if (found := checkpoint.load(folder, self.identity))
        )
        if furthest is None:
            return 0
        self.standing, variables = furthest
        epoch = len(self.history)
        self._compile(epoch if self.standing.part else max(epoch - 1, 0))  # as it was when the state was saved
        if [value.shape for value in variables] != [tuple(variable.shape) for variable in self._variables()]:
            self.standing, self.course = Standing(), Course(self.config, save=self._checkpoint)
            return 0
        for variable, value in zip(self._variables(), variables, strict=True):
            variable.assign(value)
        return epoch

    def train(self, on_epoch: OnEpoch = lambda _: None, stopped: Callable[[], bool] = lambda: False) -> None:
        """Train on to config.epochs, from wherever it stands, or until `patience` is over.

        on_epoch : told the history after each epoch
        stopped : once it says True, the state is saved after the part in hand, and KeyboardInterrupt raised

        Raises ScratchError for a loss that is no finite number, and for parts that do not fit into memory.
        """
        self.course.on_epoch, self.course.stopped = on_epoch, stopped
        self.course.run(self)
        self._checkpoint()

    def probabilities(self, blocks: Iterator[tuple[slice, Array]], n_rows: int) -> NDArray[np.float32]:
        """Class probabilities of rows, given as blocks of pixels: ndarray of shape (n_rows, classes)."""
        result: NDArray[np.float32] | None = None
        for place, pixels in blocks:
            logits = self._logits(pixels)
            if result is None:
                result = np.empty((n_rows, logits.shape[1]), np.float32)
            result[place] = softmax(logits)
        if result is None:
            raise ScratchError("there are no rows to predict")
        return result

    def take_best(self) -> int:
        """Give the classifier the weights of the epoch that config.restore_best asks for. Returns it, from 1."""
        if self.course.best is None:
            return len(self.history)
        for variable, value in zip(self._of_model(), self.course.best, strict=True):
            variable.assign(value)
        return self.course.best_epoch

    def frozen_digest(self) -> str:
        """Digest of the weights that no epoch trains."""
        return self.classifier.frozen_digest(self.config.most_blocks(len(self.classifier.blocks)))

    def keep_state(self, folder: Path) -> None:
        """Copy the state into the folder of the finished run: a longer training may go on from it."""
        for path in self.folder.glob("*.npz"):
            shutil.copyfile(path, folder / path.name)

    # --- an epoch ---------------------------------------------------------------------------------

    def epoch(self, pause: Callable[[], object]) -> Epoch:
        """One pass over the training rows, from the part on where it stands, and a look at the validation rows."""
        standing, number = self.standing, len(self.history)
        self._compile(number)
        started = time.perf_counter() - standing.seconds
        parts = self.feed.epoch(number, standing.part)
        for _ in range(standing.part, self.feed.parts):
            with self.shares.of("input"):
                part = next(parts)
            with self.shares.of("train"):
                self._step(part)
            standing.seconds = time.perf_counter() - started
            pause()
        with self.shares.of("validate"):
            val_loss, val_accuracy = self._validate()
        if not (math.isnan(val_accuracy) or math.isfinite(val_loss)):
            self._refuse_not_finite(val_loss, (number + 1) * self.feed.updates - 1)
        self.standing = Standing(standing.history)
        return Epoch(
            epoch=number + 1,
            loss=standing.loss / standing.rows,
            accuracy=standing.right / standing.rows,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=self.config.lr_at(number * self.feed.updates, self.feed.updates),
            seconds=time.perf_counter() - started,
        )

    def _step(self, part: Part) -> None:
        standing, config, model = self.standing, self.config, self.classifier.model
        update = len(self.history) * self.feed.updates + standing.part // config.accumulate
        model.optimizer.learning_rate = config.lr_at(update, self.feed.updates)
        with self._explaining_memory():
            logs = model.train_on_batch(part.x, part.y, part.weights, return_dict=True)
        if not math.isfinite(float(logs["loss"])):
            self._refuse_not_finite(float(logs["loss"]), update)
        standing.part += 1
        standing.loss += float(logs["rows_loss"]) / part.factor
        standing.right += float(logs["rows_right"])
        standing.rows += part.n_rows
        self.images += part.n_rows

    def _refuse_not_finite(self, loss: float, update: int) -> None:
        kept = self.folder / checkpoint.STATE_FILE
        state = f"; the last checkpoint is {kept}" if kept.is_file() else ""
        rate = self.config.lr_at(update, self.feed.updates)
        raise ScratchError(
            f"the loss is {loss} in epoch {len(self.history) + 1}, step {update % self.feed.updates + 1} of "
            f"{self.feed.updates}, at learning rate {rate:.3g}{state}",
            f"Try `lr={self.config.lr / 10:g}`, or `clip_norm=1`",
        )

    def _validate(self) -> tuple[float, float]:
        number = len(self.history) + 1
        if not len(self.validation) or (number % self.config.val_every and number < self.config.epochs):
            return math.nan, math.nan
        logits, y = self._logits(self.validation.pixels), self.validation.y
        of_rows = losses(logits.astype(np.float64), np.eye(logits.shape[1])[y], output="softmax")
        return float(of_rows.mean()), accuracy_of(logits, y)

    def _logits(self, pixels: Any) -> NDArray[np.float32]:
        """In inference mode, padded to batches of one size."""
        model, rows = self.classifier.predictor, _PREDICTED_ROWS
        parts = []
        with self._explaining_memory():
            for start in range(0, len(pixels), rows):
                x = np.zeros((rows, *pixels.shape[1:]), np.float32)
                block = pixels[start : start + rows]
                x[: len(block)] = block
                parts.append(np.asarray(model.predict_on_batch(x))[: len(block)])
        return np.concatenate(parts)

    # --- checkpoints ------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Save the state, if it is sound: a loss that was finite may have led to weights that are not."""
        with self.shares.of("checkpoint"):
            variables = [np.array(variable.numpy()) for variable in self._variables()]
            if not all(np.isfinite(array).all() for array in variables if array.dtype.kind == "f"):
                return
            checkpoint.save(
                self.folder,
                self.identity,
                standing=self.standing,
                variables=variables,
                best=self.course.best,
                best_epoch=self.course.best_epoch,
            )

    def _compile(self, epoch: int) -> None:
        n_trained = self.config.blocks_at(epoch, len(self.classifier.blocks))
        if n_trained != self._n_trained:
            self.classifier.compile(n_trained)
            self._n_trained = n_trained

    def _of_model(self) -> list[Any]:
        measured = {id(variable) for variable in self.classifier.model.metrics_variables}
        return [variable for variable in self.classifier.model.variables if id(variable) not in measured]

    def _variables(self) -> list[Any]:
        return [*self._of_model(), *self.classifier.model.optimizer.variables]

    @contextmanager
    def _explaining_memory(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            config = self.config
            rows = config.part_rows
            hint = f"Try `batch={config.batch}, accumulate={2 * config.accumulate}`, which gives the same updates"
            if rows % 2:
                hint = "Try a smaller `input_size_px` or `batch`"
            raise ScratchError(f"{rows} rows at a time do not fit into memory", hint) from error
