"""Two runs on the same images: by how much one is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featcache.core.errors import RunError
from featcache.core.files import plain_cell
from featcache.datasets import encoded
from featcache.measures import Judged, JudgedLabels, compare, judge
from featcache.training.predictions import read_predictions

if TYPE_CHECKING:
    from featcache.training.runs import Run

_KEY = ["image_id", "view"]


def compare_runs(one: Run, other: Run, *, split: str) -> pd.DataFrame:
    """A line a measure: difference (the first minus the second), low, high; groups are drawn for both alike.

    Raises RunError where the runs were not judged on the same images with the same labels and groups, or cannot be
    read.
    """
    (first, judged), (second, others) = (_judged(run, split) for run in (one, other))
    same = all(one.config.get(name) == other.config.get(name) for name in ("classes", "label_separator"))
    if not same or not first.equals(second):
        raise RunError(
            f"{one.name} and {other.name} were not judged on the same images with the same labels and groups",
            "Compare runs of one data set",
        )
    found = compare(judged, others)
    return pd.DataFrame([{"measure": name, **values} for name, values in found.items()])


def _judged(run: Run, split: str) -> tuple[pd.DataFrame, list[Judged | JudgedLabels]]:
    """The images that a run was judged on, and what it said of them; of a cross-validation in each repeat."""
    from featcache.training.runs import PREDICTIONS_FILE

    path = run.folder / PREDICTIONS_FILE
    try:
        frame = read_predictions(path, None if run.is_cross_validation else [split]).lines
        columns = [f"p_{label}" for label in run.config["classes"]]
        if "repeat" not in frame:
            frame = frame[frame["label"] != ""].assign(repeat=0)
        parts = [part.sort_values(_KEY) for _, part in frame.groupby("repeat")]
        images = parts[0][[*_KEY, "label", "group"]].reset_index(drop=True)
        return images, [_of(part, columns, run.config) for part in parts]
    except (OSError, ValueError, LookupError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def _of(part: pd.DataFrame, columns: list[str], config: Mapping[str, Any]) -> Judged | JudgedLabels:
    texts, separator = part["label"].map(plain_cell).tolist(), config.get("label_separator", "")
    y = encoded(texts, separator, classes=config["classes"])
    if (y < 0).any():
        raise ValueError("it holds labels that are no classes of the run")
    return judge(part[columns].to_numpy(np.float64), y, groups=part["group"].to_numpy(str))
