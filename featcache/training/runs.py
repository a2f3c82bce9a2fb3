"""Runs: one training each, in one folder of results/, written as a whole; and read back for reports."""

from __future__ import annotations

import io
import os
import shutil
import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import FeatcacheError, HeadError, RunError
from featcache.core.files import (
    PARTIAL_SUFFIX,
    UNSAFE,
    beside,
    is_hidden,
    meant_by,
    replace_folder,
    safe_cell,
    sync,
    visible_folders,
    write_json,
    write_text,
)
from featcache.core.leases import Leases
from featcache.core.project import refuse_unwritable
from featcache.core.recipe import digest
from featcache.core.strict_json import MAX_TEXT_BYTES, read_bounded, read_json
from featcache.datasets import SPLITS, joined
from featcache.measures import labels_named
from featcache.training.comparison import compare_runs
from featcache.training.history import Epoch, course_in_words

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
HISTORY_FILE = "history.csv"
PREDICTIONS_FILE = "predictions.csv"
STATE_FILE = "state.npz"
MODEL_FILE = "model.keras"
SEGMENTER_FILE = "segmenter.npz"
"""The fitted segmenter that cuts out the cells which a run is trained on."""
PULLED_FILE = "files.json"
"""What a pull writes into each run that it brings; no run's own file may have that name."""
TRAINING_SUFFIX = ".training"
RUN_FORMAT = 1
CROSS_VALIDATION = "cross-validation"
"""The kind of runs that judge every image, and have no model and no splits."""
ENSEMBLE = "ensemble"
"""The kind of runs that average others, and have no model of their own."""
EVALUATION = "evaluation"
"""The kind of runs that judge another run on other images."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    fitted, pulled : what the training or the pull did, where it just did
    """

    folder: Path
    fitted: Any = field(default=None, compare=False, repr=False)
    pulled: Any = field(default=None, compare=False, repr=False)

    def predict(self, source: Any, **options: Any) -> Any:
        """The class of each image: `featcache.predict` with this run."""
        from featcache.prediction import predict

        return predict(self, source, **options)

    def attribution(self, source: Any, **options: Any) -> Any:
        """Which places of images speak for their class: `featcache.attribution` with this run."""
        from featcache.prediction import attribution

        return attribution(self, source, **options)

    def bundle(self, **options: Any) -> Any:
        """One zip file that predicts anywhere: `featcache.bundle` of this run."""
        from featcache.deployment import bundle

        return bundle(self, **options)

    def export(self, **options: Any) -> Any:
        """One model that other programs run: `featcache.export` of this run."""
        from featcache.deployment import export

        return export(self, **options)

    def compare(self, other: Run, *, split: str = "test") -> pd.DataFrame:
        """By how much this run is better than another one on the same images: difference, low and high of each measure.

        The interval (95 %) is of the difference: groups are drawn for both runs alike.
        """
        return compare_runs(self, other, split=split)

    @property
    def is_cross_validation(self) -> bool:
        """Whether it tells how good heads are, and keeps none."""
        return self.config.get("kind") == CROSS_VALIDATION

    def _repr_html_(self) -> str:
        """A table of the accuracy in each split, and the curves; of a cross-validation the measures."""
        if self.is_cross_validation:
            measured = pd.DataFrame(self.metrics["measures"]).T.round(3).to_html()
            return f"<b>{escape(self.name)}</b>{measured}"
        lines = "".join(
            f"<tr><td>{split}</td><td>{100 * self.metrics[split]['accuracy']:.2f} %</td></tr>"
            for split in ("train", "val", "test")
        )
        curves = self.folder / "curves.png"
        picture = b64encode(curves.read_bytes()).decode() if curves.is_file() else ""
        image = f'<img src="data:image/png;base64,{picture}" style="max-width: 40em">' if picture else ""
        return f"<b>{escape(self.name)}</b><table><tr><th></th><th>accuracy</th></tr>{lines}</table>{image}"

    @property
    def name(self) -> str:
        """Folder name."""
        return self.folder.name

    @property
    def course(self) -> str:
        """Its training in words: where it was best, whether it overfits or ended too soon; "" where there is nothing to
        say."""
        of_settings = self.config.get("training") or self.config.get("head") or {}
        kept = self.metrics.get("epoch_of_head", self.metrics.get("epoch_of_model", len(self.epochs)))
        return course_in_words(self.epochs, int(kept), monitor=str(of_settings.get("monitor", "val_loss")))

    @property
    def is_own(self) -> bool:
        """Whether it was trained here, and not pulled."""
        return is_own(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What was trained on what: kind, cache, digests, head or network, solver."""
        return self._read_json(CONFIG_FILE)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """epochs, seconds, s_per_epoch and the measures of train, val and test."""
        found = self._read_json(METRICS_FILE)
        return {**found, **{split: _as_now(found[split]) for split in SPLITS if split in found}}

    @cached_property
    def history(self) -> pd.DataFrame:
        """One line an epoch: epoch, loss, accuracy, val_loss, val_accuracy, lr, seconds."""
        path = self.folder / HISTORY_FILE
        try:
            frame = pd.read_csv(io.BytesIO(read_bounded(path, MAX_TEXT_BYTES)))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read: {error}") from error
        if frame.empty:
            raise RunError(f"{path}: no epoch")
        for column in (item.name for item in fields(Epoch)):
            if column not in frame or not pd.api.types.is_numeric_dtype(frame[column]):
                raise RunError(f"{path}: no column {column} of numbers")
        if not pd.api.types.is_integer_dtype(frame["epoch"]):
            raise RunError(f"{path}: the column epoch does not hold whole numbers")
        return frame

    @property
    def epochs(self) -> list[Epoch]:
        """The history as records."""
        names = [item.name for item in fields(Epoch)]
        return [Epoch(int(line[0]), *map(float, line[1:])) for line in self.history[names].itertuples(index=False)]

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            value = read_json(path)
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read: {error}") from error
        if not isinstance(value, dict) or value.get("format", RUN_FORMAT) != RUN_FORMAT:
            raise RunError(f"{path}: not of this featcache's format ({RUN_FORMAT})")
        return value


def _as_now(measures: Any) -> Any:
    """Measures of a split as they are written now: of each class, version 0.1.0 wrote the recall alone."""
    if not isinstance(measures, dict) or "intervals" in measures or not isinstance(measures.get("per_class"), dict):
        return measures
    written = {name: value for name, value in measures.items() if name != "accuracy_interval"}
    of_all = {"accuracy": measures["accuracy_interval"]} if "accuracy_interval" in measures else {}
    per_class = {label: {"recall": recall, "intervals": {}} for label, recall in measures["per_class"].items()}
    return {**written, "intervals": of_all, "per_class": per_class}


def run_name(kind: str, backbone: str, *, identity: dict[str, Any]) -> str:
    """Name of a run: what it is, and eight digits of the digest of everything that decides its result."""
    return f"{kind}-{backbone}-{digest(identity)[:8]}"


def list_runs(results: Path) -> list[Run]:
    """Every finished run in `results`, by name."""
    return [Run(folder) for folder in visible_folders(results) if is_finished(folder)]


def find_run(results: Path, name: str) -> Run:
    """The run of a name, or whose name begins so. Raises RunError where there is none, or more than one."""
    there = [run.folder for run in list_runs(results)]
    meant = meant_by(name, there)
    if len(meant) != 1:
        names = ", ".join(folder.name for folder in (meant or there)) or "none"
        raise RunError(f"{name!r:.200}: {'several runs' if meant else 'no run'} of that name (there: {names})")
    return Run(meant[0])


def is_finished(folder: Path) -> bool:
    """Whether a folder is a run. Runs get their name only when they are whole."""
    return not is_hidden(folder) and (folder / METRICS_FILE).is_file()


def is_own(folder: Path) -> bool:
    """Whether a run, or a training, was made here: not pulled, and not behind a link."""
    marked = os.path.lexists(folder / PULLED_FILE)
    return not (marked or folder.is_symlink() or (folder / STATE_FILE).is_symlink())


def own_states(results: Path) -> list[Path]:
    """The folders of runs and trainings in `results` that were made here and keep a state to go on from.

    A state decides the result of what goes on from it, and nobody can see what is in one: those of others do not count.
    """
    found = (folder for folder in visible_folders(results) if (folder / STATE_FILE).is_file())
    return [folder for folder in found if is_own(folder)]


@contextmanager
def new_run(results: Path, name: str) -> Iterator[Path]:
    """A folder to write a run into; it takes its name, and an older one's place, when the block ends well."""
    final = results / name
    partial = results / f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"
    old = partial.with_name(partial.name + ".old")
    try:
        partial.mkdir(parents=True)
        yield partial
        replace_folder(final, partial, old=old)
        sync(results)
    except FeatcacheError:
        raise
    except OSError as error:
        raise RunError(f"{final}: cannot be written: {error.strerror or error}") from error
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def training(results: Path, name: str, *, config: dict[str, Any], again: bool = False) -> Iterator[Path | None]:
    """The folder of a training under way, `name`.training; None where its run is there already.

    The folder goes when the block ends, and stays where it does not. It goes too where there is nothing in it to go on
    from, or where the training itself has failed (HeadError): it would fail again.

    again : train it even so, and forget what an earlier attempt left there

    Raises RunError where another process trains this run, or where the folder cannot be written.
    """
    if is_finished(results / name) and not again:
        yield None
        return
    refuse_unwritable(results)
    folder = results / f"{name}{TRAINING_SUFFIX}"
    leases = Leases(folder / "leases")
    if folder.is_symlink():
        raise RunError(f"{folder}: is a link, and a training would write elsewhere: remove it")
    try:
        leases.folder.mkdir(parents=True, exist_ok=True)
        if not leases.claim("training"):
            raise RunError(f"{folder}: another process trains this run; wait for it, or train with another seed")
        if is_finished(results / name) and not again:  # by another process, just now
            _remove_at_once(folder)
            yield None
            return
        if again or not is_own(folder):
            for left in folder.iterdir():
                if left == leases.folder:
                    continue
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
        write_json(folder / CONFIG_FILE, {"format": RUN_FORMAT, **config})
        done = False
        try:
            yield folder
            done = True
        except HeadError:
            done = True
            raise
        finally:
            if done or not (folder / STATE_FILE).is_file():
                _remove_at_once(folder)  # before the lease: who claims it next makes a folder of its own
    except OSError as error:
        if isinstance(error, FeatcacheError):
            raise
        raise RunError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        leases.close()


def _remove_at_once(folder: Path) -> None:
    partial = folder.with_name(f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}")
    with suppress(OSError):  # what is left of it is for gc
        folder.replace(partial)
        shutil.rmtree(partial, ignore_errors=True)


def write_history(folder: Path, history: Sequence[Epoch]) -> None:
    """Write history.csv, a line an epoch."""
    frame = pd.DataFrame([asdict(entry) for entry in history])
    write_text(folder / HISTORY_FILE, frame.to_csv(index=False, lineterminator="\n"))


def write_run(folder: Path, config: dict[str, Any], *, metrics: dict[str, Any], history: Sequence[Epoch]) -> None:
    """Write config.json, history.csv and, last, metrics.json."""
    write_history(folder, history)
    write_config_and_metrics(folder, config, metrics=metrics)


def write_config_and_metrics(folder: Path, config: dict[str, Any], *, metrics: dict[str, Any]) -> None:
    """Write config.json and, last, metrics.json."""
    write_json(folder / CONFIG_FILE, {"format": RUN_FORMAT, **config})
    write_json(folder / METRICS_FILE, {"format": RUN_FORMAT, **metrics})


def write_predictions(
    folder: Path,
    rows: pd.DataFrame | Iterable[pd.DataFrame],
    *,
    probabilities: NDArray[np.floating[Any]],
    classes: Sequence[str],
    label_separator: str = "",
) -> None:
    """Write predictions.csv: every row of the cache, the predicted label, the probability of each class.

    rows : all of them, or part by part
    label_separator : where a row may have several labels, what stands between those that are predicted
    """
    columns, start = [f"p_{label}" for label in classes], 0
    with beside(folder / PREDICTIONS_FILE) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        for part in [rows] if isinstance(rows, pd.DataFrame) else rows:
            found = probabilities[start : start + len(part)]
            if label_separator:
                named = [joined(labels, label_separator) for labels in labels_named(found, classes)]
            else:
                named = [classes[index] for index in found.argmax(axis=1)]
            predicted = pd.Series(named, part.index, name="predicted", dtype=object)
            frame = pd.concat([part, predicted, pd.DataFrame(found.round(6), part.index, columns)], axis=1)
            file.write(csv_of(frame, header=not start))
            start += len(part)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all. Raises RunError where it cannot be written."""
    try:
        write_text(path, csv_of(frame))
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error


def csv_of(frame: pd.DataFrame, *, header: bool = True) -> str:
    """A table as CSV, its texts as `featcache.core.files.safe_cell` writes them, its numbers as they are."""
    safe = frame.copy()
    for name in safe.select_dtypes(exclude=["number", "bool"]).columns:
        if any(value[:1] in UNSAFE for value in safe[name] if isinstance(value, str)):  # of which hardly any is one
            safe[name] = safe[name].map(lambda value: safe_cell(value) if isinstance(value, str) else value)
    return str(safe.to_csv(index=False, header=header, lineterminator="\n"))
