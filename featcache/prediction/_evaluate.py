"""evaluate: how good a trained run is on the labelled images of another laboratory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, HeadError, RunError, UsageError
from featcache.core.machine import available_bytes
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.project import Project, find_project
from featcache.core.shown import shown
from featcache.datasets import Dataset, LabelledImage, LeftOut
from featcache.measures import Judged, evaluate as measured
from featcache.prediction._predict import rows_of, said
from featcache.prediction.alignment import Align, Alignment
from featcache.prediction.bundle import Bundle
from featcache.prediction.labelled import labelled_source, match_labels, seen_by, text_of
from featcache.prediction.opening import cache_of, classes_of, is_whole, item_of, recipe_of
from featcache.prediction.predictor import Predictor, has_several_labels, open_trained
from featcache.training import EVALUATION, Run, is_finished, runs

_NOT_TRAINED = ("kind", "cache_name", "why", "created", "course", "format")


@dataclass(frozen=True)
class Evaluated:
    """How good a run is on other images.

    Attributes
    ----------
    run : the evaluation, which `report` and `runs` show beside the run itself
    measures : of the images whose class the run knows, as in metrics.json; means over classes are over those that
        these images have
    mapping : {label there: class of the run}; "" of labels that it does not know
    unknown : {label: {rows, unlike, named: {class: rows}}}: what became of images whose class the run cannot know
    unlike : share of the judged images that are marked as unlike the training images; None where that is not known
    left_out : (path, reason) of what could not be used
    remarks : what people should know besides
    reused : whether the evaluation was there already
    """

    run: Run
    measures: Mapping[str, Any]
    mapping: Mapping[str, str]
    unknown: Mapping[str, Mapping[str, Any]]
    unlike: float | None
    left_out: tuple[LeftOut, ...] = ()
    remarks: tuple[str, ...] = ()
    reused: bool = False

    def _repr_html_(self) -> str:
        shown = {name: self.measures[name] for name in ("rows", "accuracy", "balanced_accuracy", "macro_f1")}
        return f"<b>{escape(self.run.name)}</b>{pd.Series(shown).to_frame('').to_html(header=False)}"


def evaluate(
    run: Run | str | Path,
    on: Project | str | Path,
    *,
    mapping: Mapping[str, str] = MappingProxyType({}),
    project: Project | None = None,
    weights: str | None = None,
    tta: int = 1,
    align: Align = "none",
    engine: str = "auto",
    batch_rows: int | None = None,
    offline: bool = False,
    strict: bool = False,
    again: bool = False,
    progress: Progress | None = None,
    **dataset: Any,
) -> Evaluated:
    """How good a trained run is on labelled images that it was not made of, such as those of another laboratory.

    Labels are matched by name: upper case, spaces and a plural do not matter. Images whose label is no class of the
    run are counted apart. Images that the run was trained on, or chosen by, are left out.

    Parameters
    ----------
    run : a run, its folder, or its name in the project; or the file of a bundle
    on : a project, or what `init` reads: class folders, a CSV, Pascal VOC or COCO annotations
    mapping : {label there: class of the run, or "" for none} where names differ
    project : where runs are looked for, and evaluations of bundles written; by default the one around the current
        folder
    weights, tta, engine, batch_rows, offline : as of `predict`
    align : bring the features of all these images together, without their labels, to the mean ("mean"), or to mean and
        deviation ("scale"), that the training images have in the run's cache; "none" takes them as they are
    strict : whether an image that cannot be used ends the call; else it is left out, with the reason
    again : evaluate even if the evaluation is there
    progress : told how far it is
    **dataset : values for [dataset] of how a source is read: label_column, group_pattern, without, voc_object, ...

    Raises
    ------
    RunError : there is no such run, it is damaged or keeps no model, or the evaluation cannot be written
    DatasetError : no image can be used, or none of a class that the run knows
    UsageError : the mapping names a label or class that there is not
    WeightsError : the network's weights are not at hand, or others

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> run = fc.fit_head(fc.extract(project, "pixels", input_size_px=16), epochs=2)
    >>> fc.evaluate(run, "leukocytes").measures["rows"]
    4
    """
    progress, started = shown(progress), time.perf_counter()
    if tta < 1:
        raise UsageError(f"`tta={tta}`: expected a whole number of at least 1")
    trained = open_trained(run, project)
    results = _results_of(trained, project)
    recipe = trained.recipe if isinstance(trained, Bundle) else recipe_of(trained)
    classes = tuple(trained.record.classes) if isinstance(trained, Bundle) else classes_of(trained)
    itself = trained.config if isinstance(trained, Run) else {}
    if has_several_labels(trained):
        raise UsageError(f"{trained.name}: tells several labels an image, and an evaluation takes runs of one label")
    data, left_out, remarks = labelled_source(
        on, dataset, margin=recipe.space.margin, unpack_into=results.parent, progress=progress
    )
    if strict and left_out:
        raise DatasetError(f"{left_out[0].path}: {left_out[0].reason}")
    seen = seen_by(trained)
    new = tuple(image for image in data.images if image.image_id not in seen)
    left_out += [
        LeftOut(image.path, f"{trained.name} was trained on it, or chosen by it")
        for image in data.images
        if image.image_id in seen
    ]
    if not new:
        raise DatasetError(f"{text_of(on)}: {trained.name} was trained on all of its images", "Name other images")
    found = match_labels({image.label for image in data.images}, classes, mapping=mapping)
    data = Dataset(new, data.folder, white=data.white)
    identity = {
        "kind": EVALUATION,
        "run": trained.name,
        "trained": str(itself.get("created", "")),
        "dataset": data.digest,
        "mapping": dict(sorted(found.items())),
        "tta": tta,
        **({"align": align} if align != "none" else {}),
    }
    name = runs.run_name(EVALUATION, recipe.space.backbone, identity=identity)
    if is_finished(results / name) and not again:
        return _read(Run(results / name), left_out, remarks)
    if not any(found.values()):
        raise DatasetError(
            f"{text_of(on)}: its labels ({', '.join(sorted(found))}) are no classes of {trained.name} "
            f"({', '.join(classes)})",
            "Name what stands for what with `mapping`",
        )
    alignment = _alignment(trained, align, rows=len(data.images) * tta)
    with without_network(offline):
        predictor = Predictor.of(trained, weights=weights, engine=engine, batch_rows=batch_rows, progress=progress)
        items = [item_of(one, data) for one in data.images]
        used, rows, not_read = rows_of(predictor, items, tta=tta, strict=strict, progress=progress, align=alignment)
    left_out += [LeftOut(path, reason) for path, reason in not_read]
    if not used:
        raise DatasetError(f"{text_of(on)}: no image can be used: {not_read[0][0]}: {not_read[0][1]}")
    by_name = {item.name: image for item, image in zip(items, data.images, strict=True)}
    images = [by_name[item.name] for item in used]
    says = said(
        trained.name,
        predictor.head,
        paths=tuple(image.path for image in images),
        rows=rows,
        doubt=predictor.doubt,
        confidence=None,
        false_alarms=0.05,
    )
    label = np.array([found[image.label] for image in images])
    known = label != ""
    if not known.any():
        raise DatasetError(f"{text_of(on)}: no image of a class that {trained.name} knows can be used")
    y = np.array([classes.index(one) for one in label[known]], np.int64)
    groups = np.array([image.group or image.image_id for image in images])
    judged = Judged(says.probabilities[known], y, groups=groups[known])
    measures = measured(judged, classes, present_only=True)
    metrics = {
        "epochs": 0,
        "seconds": round(time.perf_counter() - started, 3),
        "s_per_epoch": 0.0,
        "test": measures,
        "unknown": _unknown(images, known, labels=says.labels, unlike=says.unlike),
        "unlike": None if says.unlike is None else float(says.unlike[known].mean()),
    }
    config = {
        **{name: value for name, value in itself.items() if name not in _NOT_TRAINED},
        **identity,
        "on": text_of(on),
        "classes": list(classes),
        "backbone": recipe.space.backbone,
        "trained_on": itself.get("dataset", ""),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with runs.new_run(results, name) as folder:
        table = _table(images, label, there=[image.label for image in images])
        runs.write_predictions(folder, table, probabilities=says.probabilities, classes=classes)
        runs.write_config_and_metrics(folder, config, metrics=metrics)
    return _read(Run(results / name), left_out, remarks, reused=False)


def _alignment(trained: Run | Bundle, align: str, *, rows: int) -> Alignment | None:
    """None for "none". Raises HeadError where the features of so many rows do not fit into memory."""
    if align == "none":
        return None
    if isinstance(trained, Bundle) or is_whole(trained):
        raise UsageError(f"{trained.name}: `align` compares with the features in the cache of a run of a head")
    cache = cache_of(trained)
    needed, free = 3 * 4 * rows * int(np.prod(cache.features.shape[1:])), available_bytes()
    if needed > free:
        raise HeadError(
            f"to align {rows} views takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free",
            "Use a run on pooled features, or fewer images",
        )
    return Alignment.of(cache, align)


def _results_of(trained: Run | Bundle, project: Project | None) -> Path:
    if isinstance(trained, Run):
        return trained.folder.parent
    return (project or find_project(Path())).results_folder


def _unknown(
    images: Sequence[LabelledImage],
    known: NDArray[np.bool_],
    *,
    labels: NDArray[np.str_],
    unlike: NDArray[np.bool_] | None,
) -> dict[str, dict[str, Any]]:
    theirs = np.array([image.label for image in images])
    found = {}
    for label in sorted({*theirs[~known]}):
        of = (theirs == label) & ~known
        names, counts = np.unique(labels[of], return_counts=True)
        named = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
        found[str(label)] = {
            "rows": int(of.sum()),
            "unlike": None if unlike is None else int(unlike[of].sum()),
            "named": named,
        }
    return found


def _table(images: Sequence[LabelledImage], label: NDArray[np.str_], *, there: Sequence[str]) -> pd.DataFrame:
    """The rows of predictions.csv; those of labels that the run does not know are in no split."""
    return pd.DataFrame(
        {
            "path": [image.path for image in images],
            "label": label,
            "label_there": list(there),
            "split": np.where(label == "", "", "test"),
            "group": [image.group or image.image_id for image in images],
            "image_id": [image.image_id for image in images],
            "view": 0,
        }
    )


def _read(run: Run, left_out: Sequence[LeftOut], remarks: Sequence[str], *, reused: bool = True) -> Evaluated:
    metrics = run.metrics
    try:
        return Evaluated(
            run=run,
            measures=metrics["test"],
            mapping=run.config["mapping"],
            unknown=metrics["unknown"],
            unlike=metrics["unlike"],
            left_out=tuple(left_out),
            remarks=tuple(remarks),
            reused=reused,
        )
    except KeyError as error:
        raise RunError(f"{run.folder}: is no whole evaluation: {error} is missing", "Evaluate again") from error
