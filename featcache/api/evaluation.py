"""How good heads are on images that they were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache import heads, training
from featcache.api.arguments import project_around, refuse_unknown
from featcache.api.trained_on import config_for, labelled_cache, results_of
from featcache.core.errors import ArgumentsError
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.shown import shown

if TYPE_CHECKING:
    from featcache.store import Cache


def cross_validate(
    source: Cache | Project | str | Path,
    *,
    cache: str | None = None,
    head: str = "dense",
    preset: str = "default",
    tune: Mapping[str, Sequence[Any]] | Sequence[str] = (),
    without_test: bool = False,
    again: bool = False,
    to: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Any:
    """Judge every image by heads that were not trained on its group, and write that as a run.

    All heads are trained on parts of one Gram matrix. Splits do not matter: every image with a label and a split takes
    part. Each fold trains on all views of its training images. An interrupted cross-validation continues.

    Parameters
    ----------
    source, cache, head, preset, to, progress : as of `fit_head`
    tune : settings that are chosen for each fold by inner folds of its training images: names, or names with the values
        to try, {"lr": [0.001, 0.003]}
    without_test : leave the images of the split test out. Then a choice by the result has not seen them
    again : begin anew, though the run is there
    **settings : folds, repeats, leave_group_out, test_on (a root, or a folder that paths begin with), judge ("plain" or
        "views"), inner_folds; and fields of `HeadClassifier`: epochs, lr, patience, seed, ...

    Returns
    -------
    Run; `run.metrics["measures"]` has {measure: {mean, low, high}}, and predictions.csv every image's probabilities

    Raises
    ------
    HeadError : folds cannot be made, or heads cannot be trained
    RunError : the run cannot be written

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> run = fc.cross_validate(cache, folds=4, epochs=2)
    >>> run.metrics["trainings"]
    4
    """
    progress = shown(progress)
    refuse_unknown(settings, heads.HeadConfig, heads.Protocol)
    if head != "dense" and tune:
        raise ArgumentsError(f"`head={head!r}` has no settings to choose: leave out `tune`")
    of_folds = {item.name for item in fields(heads.Protocol)} & set(settings)
    protocol = heads.Protocol(**{name: settings.pop(name) for name in of_folds})
    is_dense, points = head == "dense", heads.points_of(tune)
    config = heads.from_preset(preset, **{**heads.asked_epochs(points), **settings})
    project = project_around(source)
    judged = labelled_cache(source, project, name=cache, progress=progress)
    config = config_for(judged, config, asked=settings)
    if without_test:
        judged = training.without_split(judged, "test")
    done = heads.cross_validate(
        judged,
        results_of(judged, project, to=to),
        head=heads.Dense(config, points, protocol.inner_folds) if is_dense else heads.Classical(head, config.seed),
        protocol=protocol,
        seed=config.seed,
        again=again,
        progress=progress,
    )
    return replace(done.run, fitted=done)
