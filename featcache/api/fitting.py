"""Training: heads on a cache, and whole networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featcache import backbones, heads, networks, store
from featcache.api.arguments import project_around, refuse_unknown
from featcache.api.trained_on import config_for, labelled_cache, results_of
from featcache.core.errors import ArgumentsError, UsageError
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.recipe import Preprocessing
from featcache.core.shown import shown

if TYPE_CHECKING:
    from featcache.heads import Device, Solver
    from featcache.store import Cache


def fit_head(
    source: Cache | Project | str | Path,
    *,
    cache: str | None = None,
    head: str = "dense",
    preset: str = "default",
    solver: Solver = "auto",
    device: Device = "cpu",
    seeds: int = 1,
    more_epochs: int = 0,
    resume: str | None = None,
    again: bool = False,
    tensorboard: bool = False,
    dry_run: bool = False,
    to: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Any:
    """Train a head on a cache, and write its run.

    Labels, splits and groups are those of the project's dataset.csv now. A run that is there already is not trained
    again; an interrupted training goes on where it stopped. Where an image may have several labels, the head
    tells each of them by itself: sigmoids, trained by binary cross-entropy.

    Parameters
    ----------
    source : a cache, or a project, whose newest cache is taken
    cache : of a project: name of the cache, or REMOTE/NAME
    head : "dense", or a classifier of scikit-learn: "logreg", "linear-svm", "rbf-svm", "knn", "mlp"
    preset : settings to start from: "default", or the published "study"
    solver : "gram", "block", "primal", or "auto": whichever is fastest
    device : of the solvers "gram" and "block": "cpu", "gpu" (an accelerator of JAX), or "auto": one where there is one.
        The run of a GPU has a name of its own, since its last bits differ
    seeds : train with this many seeds
    more_epochs : continue the longest run with these settings for this many more epochs
    resume : name of an interrupted run to go on with
    again : train from the start, though the run is there
    tensorboard : write a TensorBoard log
    dry_run : find out what memory and time the training would take, and train nothing
    to : folder of runs; by default the project's, else results/ beside the folder of the cache
    progress : told how far it is
    **settings : fields of `HeadClassifier`: epochs, hidden, dropout, lr, l2, momentum, batch, patience, seed, ...

    Returns
    -------
    Run, or a list of them where `seeds` is more than 1; `run.fitted` says what was done. With `dry_run` what is
    expected: memory_bytes, before_s, epochs_s, ...

    Raises
    ------
    HeadError : what is asked for cannot be trained
    CacheError : the cache is damaged
    RunError : the run cannot be written

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> run = fc.fit_head(cache, epochs=2)
    >>> run.metrics["epochs"]
    2
    """
    progress = shown(progress)
    if seeds > 1 and (more_epochs or resume is not None):
        raise ArgumentsError("`seeds` excludes `more_epochs` and `resume`")
    if head != "dense" and device == "gpu":
        raise ArgumentsError(f"`head={head!r}` is fitted by scikit-learn: leave out `device`")
    if head != "dense" and (tensorboard or dry_run):
        raise ArgumentsError(f"`head={head!r}` has no epochs: leave out `tensorboard` and `dry_run`")
    refuse_unknown(settings, heads.HeadConfig)
    project = project_around(source)
    if resume is not None:
        if project is None:
            raise UsageError("`resume` needs the project of the run")
        asked = {"cache": cache or (source.name if isinstance(source, store.Cache) else None)}
        asked |= {"solver": solver if solver != "auto" else None, "device": device if device == "gpu" else None}
        asked |= {**heads.changed_by(preset), **settings}
        given = {name: value for name, value in asked.items() if value is not None}
        cache, config, solver, device = heads.interrupted(project, resume, given=given)
        source = project
    else:
        config = heads.from_preset(preset, **settings)
    trained_on = labelled_cache(source, project, name=cache, progress=progress)
    config = config_for(trained_on, config, asked=settings)
    results = results_of(trained_on, project, to=to)
    if dry_run:
        return heads.expected(trained_on, results, config=config, solver=solver, more_epochs=more_epochs, device=device)
    if head != "dense":
        done = heads.fit_classical(trained_on, results, kind=head, seed=config.seed, again=again, progress=progress)
        return replace(done.run, fitted=done)
    if seeds > 1:
        several = heads.fit_seeds(
            trained_on,
            results,
            config=config,
            seeds=seeds,
            solver=solver,
            again=again,
            progress=progress,
            announced="each: ",
            tensorboard=tensorboard,
            device=device,
        )
        return [replace(one.run, fitted=one) for one in several.fitted]
    done = heads.fit_head(
        trained_on,
        results,
        config=config,
        solver=solver,
        again=again,
        more_epochs=more_epochs,
        progress=progress,
        announced="",
        tensorboard=tensorboard,
        device=device,
    )
    return replace(done.run, fitted=done)


def sweep(
    source: Cache | Project | str | Path,
    points: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    cache: str | None = None,
    preset: str = "default",
    solver: Solver = "auto",
    seeds: int = 1,
    to: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Any:
    """Train many heads on one cache and keep the one that is best on validation.

    Parameters
    ----------
    source, cache, preset, solver, to, progress : as of `fit_head`
    points : lists of values that span a grid, {"lr": [0.001, 0.003]}; or the combinations themselves
    seeds : heads for each combination
    **settings : of all heads

    Returns
    -------
    Run of the winner; `run.fitted.table` lists every combination, best first

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> run = fc.sweep(cache, {"lr": [0.001, 0.003]}, epochs=2)
    >>> len(run.fitted.table)
    2
    """
    progress = shown(progress)
    refuse_unknown(settings, heads.HeadConfig)
    project = project_around(source)
    trained_on = labelled_cache(source, project, name=cache, progress=progress)
    combinations = heads.grid(points) if isinstance(points, Mapping) else points
    config = heads.from_preset(preset, **{**heads.asked_epochs(combinations), **settings})
    done = heads.sweep(
        trained_on,
        results_of(trained_on, project, to=to),
        config=config_for(trained_on, config, asked=settings),
        points=combinations,
        seeds=seeds,
        solver=solver,
        progress=progress,
    )
    return replace(done.winner.run, fitted=done)


def fit_scratch(
    project: Project,
    model: str,
    *,
    weights: str = "random",
    recipe: str = "modern",
    input_size_px: int | None = None,
    preprocessing: Literal["model"] | Preprocessing | None = None,
    unsafe: bool = False,
    head: str | None = None,
    views: Mapping[str, Any] | None = None,
    devices: int = 1,
    no_remote: bool = False,
    offline: bool = False,
    strict: bool = False,
    again: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Any:
    """Train a whole network on the project's images, and write its run.

    Parameters
    ----------
    project : whose images are trained on
    model, input_size_px, preprocessing, unsafe : as of `extract`
    weights : "random", or what the training begins with, as of `extract`
    recipe : settings to start from: "study", "modern" or "fine-tune"
    head : name of a run of `fit_head` that the top begins as
    views : values for [views], for this call
    devices : that each batch is spread over (JAX)
    no_remote, offline, strict : as of `extract`
    again : train from the start, though the run is there
    dry_run : find out what time the training would take, and train nothing
    progress : told how far it is
    **settings : epochs, batch, optimizer, lr, train_blocks, ... (see `featcache.networks.ScratchConfig`)

    Returns
    -------
    Run; `run.fitted` says what was done. With `dry_run` what is expected: rows, updates, weights, seconds, ...

    Raises
    ------
    ScratchError : what is asked for cannot be trained
    BackboneError, WeightsError : the network cannot be had
    """
    backbones.check_model(model)
    spec = backbones.NetworkSpec(
        model, weights, input_size_px=input_size_px, preprocessing=preprocessing, unsafe=unsafe
    )
    refuse_unknown(settings, networks.ScratchConfig)
    config = networks.from_recipe(recipe, **settings)
    options = networks.ScratchOptions(
        head=head, views=views or {}, devices=devices, no_remote=no_remote, offline=offline, strict=strict
    )
    if dry_run:
        return networks.expect(project, spec, config=config, options=options)
    done = networks.fit_scratch(project, spec, config=config, options=options, again=again, progress=shown(progress))
    return replace(done.run, fitted=done)


def fine_tune(
    project: Project, model: str, *, weights: str = "imagenet", recipe: str = "fine-tune", **options: Any
) -> Any:
    """Train the top and some or all blocks of a pretrained network, and write the run.

    Parameters
    ----------
    project, model : as of `fit_scratch`
    weights : pretrained weights to begin with
    recipe : settings to start from
    **options : as of `fit_scratch`, with its settings: train_blocks, base_rate, rate_decay, unfreeze_epochs, ...

    Returns
    -------
    as of `fit_scratch`
    """
    return fit_scratch(project, model, weights=weights, recipe=recipe, **options)
