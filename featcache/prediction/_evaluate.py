"""evaluate: how good a trained run is on the labelled images of another laboratory."""

from __future__ import annotations

import time
import unicodedata
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

from featcache.core.errors import DatasetError, RunError, UsageError, nearest
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.project import PROJECT_FILE, DatasetSection, Project, changed, find_project
from featcache.core.shown import shown
from featcache.datasets import Dataset, LabelledImage, LeftOut, dataset_of, labelled_images
from featcache.images import Item
from featcache.measures import Judged, evaluate as measured
from featcache.prediction._predict import rows_of, said
from featcache.prediction.bundle import Bundle
from featcache.prediction.opening import classes_of, name_of, recipe_of
from featcache.prediction.predictor import Predictor, has_several_labels, open_trained
from featcache.training import EVALUATION, PREDICTIONS_FILE, Run, is_finished, runs

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
    data, left_out, remarks = _source(on, dataset, progress, results.parent)
    if strict and left_out:
        raise DatasetError(f"{left_out[0].path}: {left_out[0].reason}")
    seen = _seen(trained)
    new = tuple(image for image in data.images if image.image_id not in seen)
    left_out += [
        LeftOut(image.path, f"{trained.name} was trained on it, or chosen by it")
        for image in data.images
        if image.image_id in seen
    ]
    if not new:
        raise DatasetError(f"{_text(on)}: {trained.name} was trained on all of its images", "Name other images")
    found = match_labels({image.label for image in data.images}, classes, mapping=mapping)
    data = Dataset(new, data.folder)
    identity = {
        "kind": EVALUATION,
        "run": trained.name,
        "trained": str(itself.get("created", "")),
        "dataset": data.digest,
        "mapping": dict(sorted(found.items())),
        "tta": tta,
    }
    name = runs.run_name(EVALUATION, recipe.space.backbone, identity=identity)
    if is_finished(results / name) and not again:
        return _read(Run(results / name), left_out, remarks)
    if not any(found.values()):
        raise DatasetError(
            f"{_text(on)}: its labels ({', '.join(sorted(found))}) are no classes of {trained.name} "
            f"({', '.join(classes)})",
            "Name what stands for what with `mapping`",
        )
    with without_network(offline):
        predictor = Predictor.of(trained, weights=weights, engine=engine, batch_rows=batch_rows, progress=progress)
        items = [Item(name_of(one.path, one.box), data.folder / one.path, box=one.box) for one in data.images]
        used, rows, not_read = rows_of(predictor, items, tta=tta, strict=strict, progress=progress)
    left_out += [LeftOut(path, reason) for path, reason in not_read]
    if not used:
        raise DatasetError(f"{_text(on)}: no image can be used: {not_read[0][0]}: {not_read[0][1]}")
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
        raise DatasetError(f"{_text(on)}: no image of a class that {trained.name} knows can be used")
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
        "on": _text(on),
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


def match_labels(labels: set[str], classes: Sequence[str], *, mapping: Mapping[str, str]) -> dict[str, str]:
    """{label: the class of the same name, or of `mapping`; "" where there is none}.

    Raises UsageError for a label or class in `mapping` that there is not.
    """
    for theirs, ours in mapping.items():
        if theirs not in labels:
            raise UsageError(f"`mapping`: {theirs!r:.80} is no label there: {nearest(theirs, sorted(labels))}")
        if ours and ours not in classes:
            raise UsageError(f"`mapping`: {ours!r:.80} is no class of the run: {nearest(ours, classes)}")
    by_name: dict[str, list[str]] = {}
    for one in classes:
        by_name.setdefault(_plain(one), []).append(one)
    found = {}
    for label in sorted(labels):
        alike = by_name.get(_plain(label), [])
        found[label] = mapping.get(label, label if label in classes else alike[0] if len(alike) == 1 else "")
    return found


def _plain(label: str) -> str:
    """A label without what people write now so, now so."""
    letters = "".join(letter for letter in unicodedata.normalize("NFKC", label).casefold() if letter.isalnum())
    return letters.removesuffix("s") if len(letters) > 3 else letters


def _source(
    on: Project | str | Path, dataset: Mapping[str, Any], progress: Progress, unpack_into: Path
) -> tuple[Dataset, list[LeftOut], tuple[str, ...]]:
    """The labelled images of a project, or of what `init` reads."""
    if not isinstance(on, Project) and (Path(on) / PROJECT_FILE).is_file():
        on = find_project(Path(on))
    if isinstance(on, Project):
        if dataset:
            raise UsageError(f"{on.folder}: is a project, which says itself how it is read: leave out {min(dataset)!r}")
        read = dataset_of(on)
        return Dataset(tuple(image for image in read.images if image.label), read.folder), [], ()
    section = changed(DatasetSection(), dataset)
    with progress.begin("checking images", 0) as advance:
        data, built = labelled_images(Path(on), section, unpack_into=unpack_into, on_file=lambda: advance(1))
    return data, list(built.left_out), tuple(built.remarks)


def _results_of(trained: Run | Bundle, project: Project | None) -> Path:
    if isinstance(trained, Run):
        return trained.folder.parent
    return (project or find_project(Path())).results_folder


def _seen(trained: Run | Bundle) -> set[str]:
    """The ids of the images that a run was trained on or chosen by; of a bundle nobody knows."""
    path = trained.folder / PREDICTIONS_FILE if isinstance(trained, Run) else None
    if path is None or not path.is_file():
        return set()
    try:
        frame = pd.read_csv(path, usecols=["image_id", "split"], dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    return set(frame["image_id"][frame["split"].isin(["train", "val"])])


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


def _text(on: Project | str | Path) -> str:
    return str(on.folder if isinstance(on, Project) else on)
