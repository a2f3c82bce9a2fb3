"""Cross-validation: every image is judged by heads that were not trained on its group, all on one Gram matrix."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import HeadError, UsageError, nearest
from featcache.core.npz import write_npz
from featcache.core.progress import SILENT, Progress
from featcache.core.recipe import digest
from featcache.datasets import encoded
from featcache.heads._sweep import grid
from featcache.heads.fold_training import AllRows, Classical, Dense
from featcache.heads.folds import Fold, judging_source, leaving_groups_out, stratified
from featcache.heads.kernel import features_digest
from featcache.heads.protocol import TUNED, Protocol
from featcache.heads.train import refuse_other_output
from featcache.measures import evaluate, judge
from featcache.store import Cache
from featcache.training import (
    CROSS_VALIDATION,
    Fitted,
    checkpoint,
    described,
    explaining_damage,
    runs,
)

Array = NDArray[np.floating[Any]]
FOLDS_FILE = "folds.csv"


def points_of(tune: Mapping[str, Sequence[Any]] | Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of the values that are to be tried. Raises UsageError for a setting that cannot be tuned."""
    for name in tune:
        if name not in TUNED:
            raise UsageError(f"`tune`: {name!r:.80} cannot be tuned: {nearest(name, TUNED)}")
    space = tune if isinstance(tune, Mapping) else {name: TUNED[name] for name in tune}
    return grid(space) if space else []


def cross_validate(
    cache: Cache,
    results: Path,
    *,
    head: Dense | Classical,
    protocol: Protocol,
    seed: int = 0,
    again: bool = False,
    progress: Progress = SILENT,
) -> Fitted:
    """Judge every image by heads that were trained without its group, and write that as a run.

    Stopped, it keeps the trainings that are done; the same call goes on with the others.

    Raises HeadError for folds that cannot be made and heads that cannot be trained, RunError where the run cannot be
    written.
    """
    if len(cache.classes) < 2:
        raise HeadError(f"{cache.name}: at least two classes are needed, of images with a label and a split")
    if isinstance(head, Dense):
        refuse_other_output(cache, head.config)
    inputs = AllRows(cache, protocol.judge, progress=progress)
    folds = _folds(inputs, protocol, seed)
    head.refuse_untrainable(min(len(inputs.rows_of(fold.train)) for fold in folds))
    identity = _identity(cache, head, protocol)
    name = runs.run_name("cv", cache.recipe.space.backbone, identity=identity)
    started = time.perf_counter()
    with runs.training(results, name, config={**identity, "cache_name": cache.name}, again=again) as folder:
        if folder is None:
            return Fitted(runs.Run(results / name), cache.name, reused=True)
        with explaining_damage(cache):
            done = _Done(folder / runs.STATE_FILE, digest([identity, features_digest(cache)]))
            resumed = done.load()
            _train(inputs, folds, head, done, progress)
        with runs.new_run(results, name) as made:
            _write(made, inputs, identity=identity, folds=folds, done=done, trainings=head.trainings * len(folds))
    seconds = time.perf_counter() - started
    progress.note(f"{len(folds) - resumed} folds in {seconds:.1f} s")
    return Fitted(runs.Run(results / name), cache.name, reused=False, resumed_at=resumed)


def _folds(inputs: AllRows, protocol: Protocol, seed: int) -> list[Fold]:
    images = inputs.labelled
    if protocol.leave_group_out:
        return leaving_groups_out(images)
    if protocol.test_on is not None:
        return judging_source(images, inputs.images["path"].tolist(), source=protocol.test_on)
    return stratified(images, protocol.folds, repeats=protocol.repeats, seed=seed)


@dataclass
class _Done:
    """The folds that are judged already, in their order, and the file that keeps them.

    probabilities : (images, classes) of each
    lines : what is told of each: seconds, the epoch, settings that were chosen
    """

    file: Path
    identity: str
    probabilities: list[Array] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)

    def load(self) -> int:
        """Take over what an earlier call has left; how many folds that is."""

        def made(arrays: Any) -> tuple[list[Array], list[dict[str, Any]]] | None:
            if str(arrays["identity"]) != self.identity:
                return None
            lines = json.loads(str(arrays["lines"]))
            return [np.asarray(arrays[f"p{number}"], np.float64) for number in range(len(lines))], lines

        if (found := checkpoint.read(self.file, made)) is not None:
            self.probabilities, self.lines = found
        return len(self.lines)

    def save(self) -> None:
        """Write them."""
        arrays = {f"p{number}": array for number, array in enumerate(self.probabilities)}
        write_npz(self.file, {"identity": np.array(self.identity), "lines": np.array(json.dumps(self.lines)), **arrays})


def _train(inputs: AllRows, folds: Sequence[Fold], head: Dense | Classical, done: _Done, progress: Progress) -> None:
    """Judge the folds that are not done yet."""
    if len(done.lines) < len(folds):
        inputs.kernel(head.dtype)  # before an interruption is only noted: it ends this at once
    clock = checkpoint.Clock()
    what = f"cross-validating: {len(folds)} folds" + (f" x {head.trainings} trainings" if head.trainings > 1 else "")
    with progress.stopping() as stopped, progress.begin(what, len(folds) * head.trainings) as advance:
        advance(len(done.lines) * head.trainings)
        try:
            for fold in folds[len(done.lines) :]:
                start = time.perf_counter()
                probabilities, told = head.seeded(fold.repeat).judge(
                    inputs, fold, stopped=stopped, done=lambda: advance(1)
                )
                done.probabilities.append(probabilities)
                done.lines.append({"seconds": round(time.perf_counter() - start, 3), **told})
                if clock.is_due():
                    with clock.writing():
                        done.save()
        except KeyboardInterrupt:
            if done.lines:
                done.save()
            raise


def _identity(cache: Cache, head: Dense | Classical, protocol: Protocol) -> dict[str, Any]:
    """All that decides the result."""
    if isinstance(head, Dense):
        of_head = {"head": head.config.to_dict(), "tune": [dict(point) for point in head.points], "solver": "gram"}
    else:
        of_head = {"head": {"kind": head.kind, "seed": head.seed}, "tune": [], "solver": "scikit-learn"}
    return {
        "kind": CROSS_VALIDATION,
        "cache": cache.manifest.digest,
        "dataset": cache.manifest.dataset_digest,
        **of_head,
        "protocol": asdict(protocol),
    }


def _write(
    folder: Path,
    inputs: AllRows,
    *,
    identity: Mapping[str, Any],
    folds: Sequence[Fold],
    done: _Done,
    trainings: int,
) -> None:
    cache, names = inputs.cache, [{"repeat": fold.repeat + 1, "fold": fold.number + 1} for fold in folds]
    lines = [
        {**name, "trained_on": len(fold.train), "judged": len(fold.judged), **told}
        for name, fold, told in zip(names, folds, done.lines, strict=True)
    ]
    parts = [inputs.images.iloc[fold.judged].assign(**name) for name, fold in zip(names, folds, strict=True)]
    rows, found = pd.concat(parts, ignore_index=True), np.concatenate(done.probabilities)
    of_labels: dict[str, Any] = {"classes": cache.classes, "label_separator": cache.label_separator}
    runs.write_predictions(folder, rows, probabilities=found, **of_labels)
    runs.write_table(folder / FOLDS_FILE, pd.DataFrame(lines))
    results = {
        "folds": folds[-1].number + 1,
        "repeats": folds[-1].repeat + 1,
        "trainings": trainings,
        "seconds": round(sum(line["seconds"] for line in lines), 3),
        **measured_images(rows, found, **of_labels),
    }
    config = {**identity, **described(cache, "by parts of one Gram matrix")}
    runs.write_config_and_metrics(folder, config, metrics=results)


def measured_images(
    rows: pd.DataFrame, probabilities: Array, *, classes: Sequence[str], label_separator: str = ""
) -> dict[str, Any]:
    """Measures of all images that were judged: the mean over repeats, and the interval over groups.

    rows : a line for each image in each repeat: image_id, label, group, repeat
    label_separator : between the labels of an image that may have several
    """
    y = encoded(rows["label"].tolist(), label_separator, classes=classes)
    groups, repeats = rows["group"].to_numpy(str), rows["repeat"].to_numpy()
    judged = []
    for repeat in np.unique(repeats):
        of = np.flatnonzero(repeats == repeat)
        of = of[np.argsort(rows["image_id"].to_numpy()[of], kind="stable")]
        judged.append(judge(probabilities[of], y[of], groups=groups[of]))
    found = evaluate(judged, classes)
    return {
        "images": found["rows"],
        "groups": found["groups"],
        "majority": found["majority"],
        "measures": _with_means(found),
        "per_class": {
            label: {"images": of["rows"], "groups": of["groups"], **_with_means(of), **_confusion(of)}
            for label, of in found["per_class"].items()
        },
        **_confusion(found),
    }


def _confusion(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of all classes; or of several labels an image of each."""
    return {"confusion": found["confusion"]} if "confusion" in found else {}


def _with_means(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {name: {"mean": found[name], "low": low, "high": high} for name, (low, high) in found["intervals"].items()}
