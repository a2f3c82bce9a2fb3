"""The model card of a run, in Markdown: what it was trained on, how good it is, and what it does not know.

Made from the files of the run alone (Mitchell et al. 2019, "Model cards for model reporting").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from featcache.core.errors import RunError
from featcache.core.recipe import FeatureSpace
from featcache.datasets import SPLITS, labels_in
from featcache.doubt import DOUBT_FILE
from featcache.reporting import in_markdown
from featcache.training import PREDICTIONS_FILE, Run, read_predictions

_FEW = 20
"""Test originals of a class: with fewer, its recall says little."""


def model_card(run: Run, *, licence: str = "", contact: str = "") -> str:
    """The card as Markdown. Raises RunError for a run whose files cannot be read."""
    rows = _rows(run)
    try:
        return "\n".join(_lines(run, rows, licence, contact)) + "\n"
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RunError(f"{run.folder}: config.json or metrics.json is not whole: {error}") from error


def _rows(run: Run) -> pd.DataFrame:
    """predictions.csv: path, label, split, group and view of every row."""
    path = run.folder / PREDICTIONS_FILE
    try:
        return read_predictions(path, columns=["path", "label", "split", "group", "view"]).lines
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def _lines(run: Run, rows: pd.DataFrame, licence: str, contact: str) -> Iterator[str]:
    config, metrics, classes = run.config, run.metrics, run.config["classes"]
    space = config["recipe"]["space"]
    used = rows[(rows["split"] != "") & (rows["label"] != "")]
    plain = used[used["view"] == 0]
    yield f"# Model card: {in_markdown(run.name)}"
    separator = str(config.get("label_separator", ""))
    task = "Tells which of these labels an image has, several or none" if separator else "Names the class of an image"
    yield f"\n{task}: {', '.join(in_markdown(label) for label in classes)}."
    yield "\n## Model\n"
    yield from _table(
        ["", ""],
        [
            ["kind", config["kind"]],
            ["network", f"{space['backbone']}, layer {space['layer']}, pooling {space['pooling']}"],
            ["weights", f"{config.get('weights', '')}, digest {space['weights_digest'][:16]}"],
            ["input", FeatureSpace(**space).square],
            *([["cells are cut out", space["segmentation"]]] if space.get("segmentation", "none") != "none" else []),
            *([["colours are normalised", space["colour"]]] if "colour" in space else []),
            ["preprocessing", space["preprocessing"]],
            ["trained", f"{config.get('created', '')}, {metrics['epochs']} epochs"],
            ["settings", _settings(config)],
        ],
    )
    yield "\n## Data\n"
    yield (
        f"{len(plain)} images of {plain['group'].nunique()} groups, {len(used)} rows with augmented views, from "
        f"{_sources(plain)}. Digest of the data set: `{config['dataset'][:16]}`, of the cache: "
        f"`{config['cache'][:16]}`.\n"
    )
    labels = plain["label"].map(lambda text: labels_in(text, separator))
    found = plain.assign(label=labels).explode("label").groupby(["label", "split"]).size().to_dict()
    counts = {label: [int(found.get((label, split), 0)) for split in SPLITS] for label in classes}
    yield from _table(["class", *SPLITS], [[label, *map(str, counts[label])] for label in classes])
    yield "\n## How good it is\n"
    yield from _of_labels(metrics) if separator else _of_classes(metrics, classes)
    if calibration := metrics.get("calibration"):
        before, after = (calibration["test"][name]["calibration_error"] for name in ("before", "after"))
        yield (
            f"\nOn test images its probabilities are off by {100 * before:.1f} % on average, by {100 * after:.1f} % "
            f"after calibration (temperature {calibration['temperature']:.2f}, from the validation images)."
        )
    yield "\n## What it does not know\n"
    yield from (
        f"- {line}" for line in _limits(classes, counts, plain, (run.folder / DOUBT_FILE).is_file(), bool(separator))
    )
    yield "\n## Licence and contact\n"
    yield f"- Licence: {in_markdown(licence) or 'not stated'}"
    yield f"- Contact: {in_markdown(contact) or 'not stated'}"


def _limits(
    classes: Sequence[str], counts: Mapping[str, Sequence[int]], plain: pd.DataFrame, marks: bool, several: bool
) -> Iterator[str]:
    if several:
        yield f"It knows these {len(classes)} labels and no other, also of an image that shows anything else."
    else:
        yield f"Every image gets one of {len(classes)} classes, an image of anything else, too."
    for label in classes:
        n_train, _, n_test = counts[label]
        if n_test < _FEW:
            yield f"**{in_markdown(label)}**: {n_test} test images, {n_train} to train on: its recall says little."
    n_groups = plain["group"][plain["split"] == "test"].nunique()
    if n_groups < _FEW:
        yield f"The test split has {n_groups} groups: the intervals above are wide for that reason."
    yield (
        "Other stains, microscopes, cameras and laboratories than those of the data above were never seen. "
        + ("Predictions mark images whose features are unlike the training images." if marks else "")
    ).strip()


def _of_classes(metrics: Mapping[str, Any], classes: Sequence[str]) -> Iterator[str]:
    balanced = ["balanced accuracy, %", "majority-class baseline, %"]
    rows = [_measures(split, metrics[split], "balanced_accuracy", "majority") for split in SPLITS]
    yield from _table(["split", "rows", "groups", "accuracy, %", "95 % interval", *balanced], rows)
    yield "\nIntervals are over groups. Test images: lines are true, columns predicted.\n"
    confusion = metrics["test"]["confusion"]
    yield from _table(
        ["", *classes, "recall, %"],
        [
            [label, *map(str, line), _percent(metrics["test"]["per_class"][label]["recall"])]
            for label, line in zip(classes, confusion, strict=True)
        ],
    )


def _of_labels(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The same of several labels an image: a line for each label, with its own two by two counts."""
    more = ["macro F1, %", "most frequent combination, %"]
    rows = [_measures(split, metrics[split], "macro_f1", "majority") for split in SPLITS]
    yield from _table(["split", "rows", "groups", "exact match, %", "95 % interval", *more], rows)
    yield "\nIntervals are over groups. Test images, at a probability above one half:\n"
    counts = ["have it, found", "have it, missed", "have it not, named", "have it not"]
    yield from _table(
        ["label", *counts, "recall, %", "precision, %"],
        [
            [label, *map(str, (tp, fn, fp, tn)), *(_percent(of[name]) for name in ("recall", "precision"))]
            for label, of in metrics["test"]["per_class"].items()
            for (tn, fp), (fn, tp) in [of["confusion"]]
        ],
    )


def _measures(split: str, found: Mapping[str, Any], *more: str) -> list[str]:
    low, high = found["intervals"]["accuracy"]
    accuracy, *others = (_percent(found[name]) for name in ("accuracy", *more))
    interval = f"{100 * low:.1f} to {100 * high:.1f}"
    return [split, str(found["rows"]), str(found["groups"]), accuracy, interval, *others]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _settings(config: Mapping[str, Any]) -> str:
    settings = config.get("head") or config.get("training") or {}
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _sources(plain: pd.DataFrame) -> str:
    tops = sorted({path.partition("/")[0] for path in plain["path"] if "/" in path})
    if not tops:
        return "one folder"
    return f"{len(tops)} folders ({', '.join(map(in_markdown, tops[:12]))}{', ...' if len(tops) > 12 else ''})"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(in_markdown(cell) for cell in head)} |"
    yield f"|{' --- |' * len(head)}"
    for line in lines:
        yield f"| {' | '.join(in_markdown(str(cell)) for cell in line)} |"
