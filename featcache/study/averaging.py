"""Ensembles: the average of what several runs say of the same images, as a run of its own."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import RunError
from featcache.core.files import plain_cell, sha256_bytes
from featcache.core.strict_json import MAX_TEXT_BYTES, read_bounded
from featcache.datasets import SPLITS
from featcache.heads import measured_images
from featcache.measures import Judged, evaluate
from featcache.reporting import draw
from featcache.training import (
    CROSS_VALIDATION,
    ENSEMBLE,
    PREDICTIONS_FILE,
    Epoch,
    Run,
    is_finished,
    refuse_several_labels,
    runs,
)

Array = NDArray[np.floating[Any]]
_ROW = ["image_id", "view", "label", "split", "group"]
_JUDGED = ["repeat", "fold", "image_id", "view", "label", "group"]
_PATH = "path"
"""A file may have been moved between two runs."""
_MOST_LETTERS = 40


def average(
    results: Path, members: Sequence[Run], *, name: str, facts: Mapping[str, Any] | None = None
) -> tuple[Run, bool]:
    """Average the probabilities of runs, and write that as a run; whether it was there already.

    The members must have judged the same views of the same images, with the same classes, labels, splits and groups;
    cross-validations in the same folds.

    name : of the ensemble
    facts : what config.json says besides, such as how the members were chosen

    Raises RunError for members that do not compare or cannot be read, and where the run cannot be written.
    """
    members = sorted({run.name: run for run in members}.values(), key=lambda run: run.name)
    for run in members:
        refuse_several_labels(run.config.get("label_separator", ""), "an ensemble")
    _refuse_unlike(members)
    first = members[0]
    kind = CROSS_VALIDATION if first.is_cross_validation else ENSEMBLE
    identity = {"kind": kind, "ensemble": name, "members": [run.name for run in members]}
    backbones = sorted({str(run.config.get("backbone", "")) for run in members})
    joined = "+".join(backbones)
    backbone = joined if len(joined) <= _MOST_LETTERS else f"{len(backbones)}-networks"
    folder_name = runs.run_name("cv-ensemble" if first.is_cross_validation else ENSEMBLE, name, identity=identity)
    data = [_bytes_of(run) for run in members]
    digests = {run.name: sha256_bytes(each) for run, each in zip(members, data, strict=True)}
    if is_finished(results / folder_name) and Run(results / folder_name).config.get("member_digests") == digests:
        return Run(results / folder_name), True
    started = time.perf_counter()
    rows, probabilities = _averaged(members, data)
    config = {
        **identity,
        "member_digests": digests,
        **(facts or {}),
        "backbone": backbone,
        "classes": list(first.config["classes"]),
        "dataset": first.config.get("dataset", ""),
        "head": {"kind": ENSEMBLE} if first.is_cross_validation else {ENSEMBLE: name},
        "solver": "average",
        "why": f"the mean of the probabilities of {len(members)} runs",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with runs.new_run(results, folder_name) as folder:
        runs.write_predictions(folder, rows, probabilities=probabilities, classes=first.config["classes"])
        write = _write_crossed if first.is_cross_validation else _write_judged
        write(folder, members, config=config, rows=rows, probabilities=probabilities, started=started)
    made = Run(results / folder_name)
    return (made if first.is_cross_validation else draw(made, with_curves=False)), False


def _refuse_unlike(members: Sequence[Run]) -> None:
    """Raise RunError for runs of other kinds or class sets, that cannot be averaged."""
    if not members:
        raise RunError("an ensemble of no run")
    first = members[0]
    for run in members:
        if run.is_cross_validation != first.is_cross_validation:
            raise RunError(f"{first.name} and {run.name}: one is a cross-validation, and the other is none")
        for other in (first, run):
            classes = other.config.get("classes")
            if not isinstance(classes, list) or not classes or not all(isinstance(label, str) for label in classes):
                raise RunError(f"{other.folder}: config.json: its classes cannot be read")
        if run.config["classes"] != first.config["classes"]:
            raise RunError(
                f"{first.name} and {run.name} know other classes ({', '.join(first.config['classes'])}; "
                f"{', '.join(run.config['classes'])}): only runs of one data set can be averaged"
            )


def _averaged(members: Sequence[Run], data: Sequence[bytes]) -> tuple[pd.DataFrame, Array]:
    """The rows that all members judged, and the mean of their probabilities (rows, classes)."""
    rows, total = _predictions(members[0], data[0])
    for run, each in zip(members[1:], data[1:], strict=True):
        others, probabilities = _predictions(run, each)
        if not rows.drop(columns=_PATH, errors="ignore").equals(others.drop(columns=_PATH, errors="ignore")):
            raise RunError(
                f"{members[0].name} and {run.name} were not judged on the same views of the same images, with the same "
                "labels, splits, groups and folds: only such runs can be averaged"
            )
        total = total + probabilities
    return rows, np.asarray(total / len(members))


def _bytes_of(run: Run) -> bytes:
    path = run.folder / PREDICTIONS_FILE
    try:
        return read_bounded(path, MAX_TEXT_BYTES)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def _predictions(run: Run, data: bytes) -> tuple[pd.DataFrame, Array]:
    """What a run was judged on, a line each in one order, and its probabilities (rows, classes), with a sum of one."""
    names = _JUDGED if run.is_cross_validation else _ROW
    columns = [f"p_{label}" for label in run.config["classes"]]
    try:
        frame = pd.read_csv(io.BytesIO(data), keep_default_na=False)
        frame = frame.sort_values([name for name in ("repeat", "image_id", "view") if name in frame])
        rows = frame[[*names, *(name for name in [_PATH] if name in frame)]].reset_index(drop=True)
        for name in ("label", "split", "group", _PATH):
            if name in rows:
                rows[name] = [plain_cell(str(cell)) for cell in rows[name]]
        probabilities = frame[columns].to_numpy(np.float64)
    except (ValueError, LookupError) as error:
        raise RunError(f"{run.folder / PREDICTIONS_FILE}: cannot be read: {error}") from error
    if not (np.isfinite(probabilities).all() and (probabilities.sum(axis=1) > 0).all()):
        raise RunError(f"{run.folder / PREDICTIONS_FILE}: holds probabilities that are none")
    return rows, np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))


def _write_judged(
    folder: Path,
    members: Sequence[Run],
    *,
    config: Mapping[str, Any],
    rows: pd.DataFrame,
    probabilities: Array,
    started: float,
) -> None:
    classes = config["classes"]
    y = rows["label"].map({label: number for number, label in enumerate(classes)})
    groups, known = rows["group"].to_numpy(str), y.notna().to_numpy()
    measures = {}
    for split in SPLITS:
        numbers = np.flatnonzero(known & (rows["split"] == split).to_numpy())
        if not len(numbers):
            raise RunError(f"{members[0].name}: has no predictions of the split {split!r}")
        labels = y.to_numpy()[numbers].astype(np.int64)
        measures[split] = evaluate(Judged(probabilities[numbers], labels, groups=groups[numbers]), classes)
    seconds = time.perf_counter() - started
    found = {"epochs": 1, "seconds": round(_seconds(members) + seconds, 3), "s_per_epoch": seconds, **measures}
    runs.write_run(folder, dict(config), metrics=found, history=[Epoch.only(measures, seconds)])


def _write_crossed(
    folder: Path,
    members: Sequence[Run],
    *,
    config: Mapping[str, Any],
    rows: pd.DataFrame,
    probabilities: Array,
    started: float,
) -> None:
    first = members[0].metrics
    found = {
        "folds": first["folds"],
        "repeats": first["repeats"],
        "trainings": sum(int(run.metrics["trainings"]) for run in members),
        "seconds": round(_seconds(members) + time.perf_counter() - started, 3),
        **measured_images(rows, probabilities, classes=config["classes"]),
    }
    runs.write_config_and_metrics(folder, dict(config), metrics=found)


def _seconds(members: Sequence[Run]) -> float:
    return sum(float(run.metrics.get("seconds", 0.0)) for run in members)
