"""The public functions of featcache, one for each verb. `import featcache as fc` has them all.

Each takes what the command of the same name takes, with the same defaults and checks, and returns an object: a project,
a cache, a run. `progress` is told how far a function is: None shows bars in a terminal and in a notebook, `SILENT`
of `featcache.core.progress` nothing. Ctrl-C keeps what is finished: the same call goes on from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featcache import backbones, datasets, extraction, heads, networks, reporting, sharing, store, training
from featcache.core.errors import ArgumentsError, ProjectError, UsageError, nearest
from featcache.core.files import resolved
from featcache.core.progress import Progress
from featcache.core.project import FoldersSection, Project, Settings, find_project
from featcache.core.recipe import Precision
from featcache.core.shown import shown

if TYPE_CHECKING:
    from featcache.extraction import Checked, Explanation, Extracted
    from featcache.heads import Solver
    from featcache.store import Cache
    from featcache.training import Run

Split = Literal["train", "val", "test"]

__all__ = [
    "Report",
    "convert",
    "explain",
    "extract",
    "fine_tune",
    "fit_head",
    "fit_scratch",
    "init",
    "models",
    "open_cache",
    "open_project",
    "pull",
    "push",
    "report",
    "sweep",
    "verify",
]


def init(
    source: str | Path | None = None,
    into: str | Path = ".",
    *,
    views: Mapping[str, Any] | None = None,
    augmentation: Mapping[str, Any] | None = None,
    per_class: int = datasets.GENERATED_PER_CLASS,
    resplit: bool = False,
    relabel: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
    **dataset: Any,
) -> Project:
    """Make a project: write featcache.toml and dataset.csv for a folder or list of images.

    Parameters
    ----------
    source : folder of images, or a CSV; None takes the project's own, or generates leukocytes
    into : folder of the project
    views : values for [views]: train, val, test, train_rows, ..., resize
    augmentation : values for [augmentation]: seed, rotation_deg, shift, ...
    per_class : generated cells of each class
    resplit : make new splits, even where the source or dataset.csv has some
    relabel : take the source's labels where dataset.csv was edited
    strict : stop at an image that cannot be used
    progress : told how far it is
    **dataset : values for [dataset]: split, split_counts, split_seed, group_pattern, without, roots, voc_object, ...

    Returns
    -------
    Project; its attribute `found` says what the source was taken for, and what was left out

    Raises
    ------
    DatasetError : the images cannot be trained on
    ProjectError : a file is in the way, or a setting is wrong

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> project.found.dataset.counts()["monocyte"]
    {'train': 6, 'val': 1, 'test': 1}
    """
    options = datasets.InitOptions(
        dataset=dataset,
        views=views or {},
        augmentation=augmentation or {},
        per_class=per_class,
        resplit=resplit,
        relabel=relabel,
        strict=strict,
    )
    place = Path(source) if source is not None else None
    done = datasets.init(place, resolved(Path(into)), options=options, progress=shown(progress))
    done.project.found = done
    return done.project


def open_project(folder: str | Path = ".") -> Project:
    """The project that a folder lies in.

    Parameters
    ----------
    folder : the project's folder, or one within it

    Raises
    ------
    ProjectError : there is no featcache.toml, or it says something wrong

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> fc.open_project().folder == project.folder
    True
    """
    return find_project(Path(folder))


def extract(
    source: Any,
    model: str | Sequence[str],
    *,
    to: str | Path | None = None,
    weights: str = "imagenet",
    weights_seed: int = 0,
    input_size_px: int | None = None,
    preprocessing: Literal["model", "caffe", "tf", "torch", "lite0", "rescale", "none"] | None = None,
    layers: Sequence[str] = (),
    pooling: Literal["none", "avg", "max"] = "none",
    precision: Precision = "float32",
    unsafe: bool = False,
    engine: Literal["auto", "keras", "openvino"] = "auto",
    batch_rows: int | None = None,
    views: Mapping[str, Any] | None = None,
    augmentation: Mapping[str, Any] | None = None,
    format: Literal["zarr", "hdf5"] | None = None,  # noqa: A002 - the word of the command, too
    dtype: Literal["float32", "float16"] | None = None,
    reuse_from: Sequence[str | Path] = (),
    no_remote: bool = False,
    offline: bool = False,
    allow_nonfinite: bool = False,
    check_bytes: bool = False,
    strict: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Run a backbone once over every view of every image, and keep its features in a cache.

    A second call computes nothing. Rows that another cache holds are copied.

    Parameters
    ----------
    source : a `Project`, or its folder; or images without labels: files, folders, arrays uint8 (n, h, w, 3), or a
        generator of these
    model : a backbone (see `models`), a .keras or .h5 file, "module:function", or "pixels"; several make several
        caches in one pass over the images
    to : folder of caches, for images without a project
    weights : "imagenet", "random", or a file
    weights_seed : of random weights
    input_size_px : side of the square input
    preprocessing : None or "model" as the network was trained; "caffe", "tf", "torch", "lite0", "rescale", "none"
    layers : layers to cut at, one cache each; the last feature map by default
    pooling : "avg" and "max" keep one value for each channel
    precision : of the network's arithmetic
    unsafe : whether code from a model's file may run
    engine : library that computes; "auto" takes the fastest that is right
    batch_rows : images per batch; None for the fastest
    views : values for [views], for this call
    augmentation : values for [augmentation], for this call
    format : of the cache
    dtype : of the stored features
    reuse_from : other folders of caches that rows may be copied from
    no_remote : do not ask remotes for rows
    offline : make no network connection
    allow_nonfinite : store NaN and infinity
    check_bytes : read every image, though size and times say that it is unchanged
    strict : stop at an image that cannot be used
    dry_run : find out what would be computed and copied, and how long it takes, and compute nothing
    progress : told how far it is

    Returns
    -------
    Cache, or a list of them where several models or layers are asked for. `cache.extracted` says what was done. With
    `dry_run` what is expected, a record each: `explained`, bytes, seconds, engine.

    Raises
    ------
    DatasetError : no image can be used, or an array has another dtype or shape
    BackboneError, WeightsError : the network cannot be had
    CacheWriteError : the cache cannot be written

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> cache.features.shape[1:]
    (16, 16, 3)
    """
    options = extraction.ExtractOptions(
        weights=weights,
        weights_seed=weights_seed,
        input_size_px=input_size_px,
        preprocessing=preprocessing,
        layers=tuple(layers),
        pooling=pooling,
        precision=precision,
        unsafe=unsafe,
        engine=engine,
        batch_rows=batch_rows,
        views=views or {},
        augmentation=augmentation or {},
        storage={name: value for name, value in (("format", format), ("dtype", dtype)) if value is not None},
        reuse_from=tuple(Path(folder) for folder in reuse_from),
        no_remote=no_remote,
        offline=offline,
        allow_nonfinite=allow_nonfinite,
        check_bytes=check_bytes,
        strict=strict,
    )
    progress = shown(progress)
    names = backbones.named_models(model)
    verb: Any = extraction.estimate if dry_run else extraction.extract
    project = _project_of(source)
    if project is not None:
        if to is not None:
            raise ArgumentsError("`to` is for images without a project: a project has its folder in featcache.toml")
        made = verb(project, names, options=options, progress=progress)
    else:
        parent = resolved(Path(to if to is not None else "cache"))
        place = Project(parent, Settings(folders=FoldersSection(cache=".", results="../results")))
        with tempfile.TemporaryDirectory(prefix="featcache-") as spool:
            images = datasets.collect(source, Path(spool), strict=strict, progress=progress)
            made = verb(place, names, options=options, images=images, progress=progress)
    found = made if dry_run else [_extracted(done) for done in made]
    return found if len(found) != 1 or not isinstance(model, str) else found[0]


def explain(
    project: Project, model: str | Sequence[str], *, progress: Progress | None = None, **options: Any
) -> list[Explanation]:
    """Why a cache has its name, and what `extract` with the same arguments would compute or copy.

    Parameters
    ----------
    project : whose caches are meant
    model : as of `extract`
    progress : told how far it is
    **options : as of `extract`

    Returns
    -------
    one Explanation for each cache

    Examples
    --------
    >>> import featcache as fc
    >>> (found,) = fc.explain(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> found.state, found.compute
    ('miss', 104)
    """
    storage = {name: options.pop(name) for name in ("format", "dtype") if options.get(name) is not None}
    _refuse_unknown(options, extraction.ExtractOptions)
    names = backbones.named_models(model)
    asked = extraction.ExtractOptions(storage=storage, **options)
    return extraction.explain(project, names, options=asked, progress=shown(progress))


def fit_head(
    source: Cache | Project | str | Path,
    *,
    cache: str | None = None,
    head: str = "dense",
    preset: str = "default",
    solver: Solver = "auto",
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
    again; an interrupted training goes on where it stopped.

    Parameters
    ----------
    source : a cache, or a project, whose newest cache is taken
    cache : of a project: name of the cache, or REMOTE/NAME
    head : "dense", or a classifier of scikit-learn: "logreg", "linear-svm", "rbf-svm", "knn", "mlp"
    preset : settings to start from: "default", or the published "study"
    solver : "gram", "primal" or whichever is faster
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
    if head != "dense" and (tensorboard or dry_run):
        raise ArgumentsError(f"`head={head!r}` has no epochs: leave out `tensorboard` and `dry_run`")
    _refuse_unknown(settings, heads.HeadConfig)
    project = _project_around(source)
    if resume is not None:
        if project is None:
            raise UsageError("`resume` needs the project of the run")
        asked = {"cache": cache or (source.name if isinstance(source, store.Cache) else None)}
        asked |= {"solver": solver if solver != "auto" else None, **heads.changed_by(preset), **settings}
        given = {name: value for name, value in asked.items() if value is not None}
        cache, config, solver = heads.interrupted(project, resume, given=given)
        source = project
    else:
        config = heads.from_preset(preset, **settings)
    trained_on = _labelled(source, project, cache, progress)
    results = _results(trained_on, project, to)
    if dry_run:
        return heads.expected(trained_on, results, config=config, solver=solver, more_epochs=more_epochs)
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
    _refuse_unknown(settings, heads.HeadConfig)
    project = _project_around(source)
    trained_on = _labelled(source, project, cache, progress)
    done = heads.sweep(
        trained_on,
        _results(trained_on, project, to),
        config=heads.from_preset(preset, **settings),
        points=heads.grid(points) if isinstance(points, Mapping) else points,
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
    preprocessing: str | None = None,
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
    backbones.named_models(model)
    spec = backbones.NetworkSpec(
        model, weights, input_size_px=input_size_px, preprocessing=preprocessing, unsafe=unsafe
    )
    _refuse_unknown(settings, networks.ScratchConfig)
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


@dataclass(frozen=True)
class Report:
    """Where a report was written, and the runs in it."""

    markdown: Path
    html: Path
    runs: list[Run]

    def _repr_html_(self) -> str:
        """The page, in a frame: its styles are not the notebook's."""
        page = escape(self.html.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0"></iframe>'


def report(source: Project | str | Path = ".", *, to: str | Path | None = None) -> Report:
    """Write every run as tables, figures, Markdown and one HTML page.

    Parameters
    ----------
    source : a project, or a folder of runs
    to : folder to write to; by default that of the runs

    Raises
    ------
    RunError : there is no run

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> run = fc.fit_head(cache, epochs=2)
    >>> fc.report().html.name
    'report.html'
    """
    project = _project_of(source)
    results = project.results_folder if project else _runs_folder(Path(str(source)))
    markdown, html, runs = reporting.report(results, Path(to) if to is not None else None)
    return Report(markdown, html, runs)


def open_cache(
    where: str | Path, reader: Literal["auto", "zarr", "tensorstore"] = "auto", *, project: Project | None = None
) -> Cache:
    """Open a cache: a folder, REMOTE/NAME, a URL, or a pack. Features are read when they are indexed.

    Parameters
    ----------
    where : the cache's folder, or where it lies on a remote
    reader : what decodes a Zarr cache on this machine: zarr-python, or the faster tensorstore
    project : whose remotes are known and whose folder keeps what is read; the one around the current folder

    Returns
    -------
    Cache: `features` (n, h, w, c), `rows`, `classes`, `arrays`, `batches`, ...

    Raises
    ------
    CacheNotFoundError : there is none, or it was never finished
    CacheError : it is damaged
    RemoteError : the remote cannot be used

    Examples
    --------
    >>> import featcache as fc
    >>> made = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> fc.open_cache(made.folder).name == made.name
    True
    """
    project = project or _project_here()
    is_shared = (
        sharing.is_remote(str(where), project)
        or (Path(where).parent / sharing.FOLDERS["cache"] / Path(where).name).is_dir()
    )
    if is_shared and not Path(where).is_dir():
        return sharing.open_on_remote(str(where), project or _scratch_project())
    return store.open_cache(where, reader)


def push(
    what: Cache | Run | str | Path | None = None,
    remote: str | None = None,
    *,
    project: Project | None = None,
    sign: str | None = None,
    licence: str = "",
    contact: str = "",
    private: bool = False,
    pseudonyms: str | Path | None = None,
    replace: bool = False,
    check: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Send a cache or a run to a remote. Only what is missing there is sent; it is there when all of it is.

    Parameters
    ----------
    what : a cache, a run, its folder, or its name in the project; None for the project's only cache
    remote : a name of a remote, a URL or an absolute path; None for the project's only one
    project : whose remotes are known; the one around the current folder
    sign : name of the key to sign with; "" for the only one, None for no signature
    licence : what others may do with it
    contact : whom they may ask
    private : leave out paths, and names of groups
    pseudonyms : file with a secret that image ids are replaced by
    replace : put it in the place of another record of this name
    check : read what is there already, and send what is damaged
    dry_run : find out what would be sent, and send nothing
    progress : told how far it is

    Returns
    -------
    Pushed: the record on the remote, `reused`, `sent_files`, ...; with `dry_run` Planned: name, bytes, remote

    Raises
    ------
    RemoteError : the remote cannot be used, or written

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> fc.push(cache, str(cache.folder.parent.parent / "lab")).reused
    False
    """
    project = project or _project_here()
    target = sharing.open_named(remote, project)
    if isinstance(what, (store.Cache, training.Run)):
        folder = what.folder
    elif project is not None:
        folder = sharing.find_pushable(project, str(what) if what is not None else None)
    elif what is not None:
        folder = Path(what)
    else:
        raise UsageError("there is no project here", "Say what to push")
    options = sharing.PushOptions(
        sign=sign,
        licence=licence,
        contact=contact,
        private=private,
        pseudonyms=Path(pseudonyms) if pseudonyms is not None else None,
        replace=replace,
        check=check,
    )
    if dry_run:
        return sharing.plan_push(folder, target, options=options)
    seen_in = project.cache_folder if project else None
    return sharing.push(folder, target, options=options, seen_in=seen_in, progress=shown(progress))


def pull(
    name: str,
    *,
    remote: str | None = None,
    project: Project | None = None,
    to: str | Path | None = None,
    split: Split | Sequence[Split] = (),
    classes: Sequence[str] = (),
    images: Sequence[str] = (),
    pooling: Literal["", "avg", "max"] = "",
    dtype: Literal["", "float16"] = "",
    require_signed: bool = False,
    trusted: str | Path | None = None,
    allow_older: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Get a cache, a part of one, or a run from a remote: whole and checked, or not at all.

    Parameters
    ----------
    name : REMOTE/NAME, URL/NAME, a pack, or with `remote` a name there
    remote : see `push`
    project : where it goes; the one around the current folder
    to : folder it goes to instead
    split, classes, images : only these rows of a cache, as a cache of its own
    pooling, dtype : pool or convert the rows
    require_signed : refuse what no trusted key has signed
    trusted : file of trusted keys
    allow_older : take an older record than the one seen before
    progress : told how far it is

    Returns
    -------
    Cache or Run; its attribute `pulled` says what was done, and who signed it

    Raises
    ------
    RemoteError, TrustError : it cannot be had, or not be believed

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> sent = fc.push(cache, str(cache.folder.parent.parent / "lab"))
    >>> fc.pull(cache.name, remote=sent.remote, to="there", split="test").rows["split"].unique().tolist()
    ['test']
    """
    project = project or _project_here()
    if project is None and to is None:
        raise UsageError("there is no project here", "Name a folder with `to=FOLDER`")
    target = sharing.resolve(name, project, remote=remote)
    splits: tuple[Split, ...] = (split,) if isinstance(split, str) else tuple(split)
    part = sharing.Part(splits, tuple(classes), tuple(images), pooling=pooling, dtype=dtype)
    file = Path(trusted) if trusted is not None else None
    done = sharing.pull(
        target,
        Path(to) if to is not None else project.cache_folder,  # type: ignore[union-attr]
        results=Path(to) if to is not None else project.results_folder,  # type: ignore[union-attr]
        part=part,
        trust=sharing.trust_of(target, require_signed, allow_older=allow_older, file=file),
        progress=shown(progress),
    )
    if done.record.kind == "run":
        return training.Run(done.folder, pulled=done)
    cache = store.open_cache(done.folder)
    cache.pulled = done
    return cache


def verify(
    cache: Cache | str | Path,
    *,
    repair: bool = False,
    recompute: int = 0,
    weights: str | None = None,
    seed: int | None = None,
    project: Project | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Read every byte of a cache and compare it with its manifest.

    Parameters
    ----------
    cache : a cache, or its folder
    repair : copy or compute again what is damaged
    recompute : compute this many rows again and compare, where the cache is sound
    weights : file of the weights that the cache was made with, if they are in a file
    seed : chooses the rows of `recompute`; None for others each time
    project : whose images are rendered; by default the one that the cache lies in
    progress : told how far it is

    Returns
    -------
    Checked: `sound`, and `problems` by file; `damage` before the repair, `repaired_rows`; `recomputed`

    Raises
    ------
    CacheNotFoundError : there is none, or it was never finished
    CacheError : what is damaged cannot be repaired
    DatasetError : no image of the cache is at hand

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> fc.verify(cache).sound
    True
    >>> fc.verify(cache, recompute=5).recomputed.deviating
    ()
    """
    folder = cache.folder if isinstance(cache, store.Cache) else Path(cache)
    return extraction.verify(
        folder,
        project=project,
        repair=repair,
        recompute=recompute,
        weights=weights,
        seed=seed,
        progress=shown(progress),
    )


def convert(
    cache: Cache | str | Path,
    *,
    format: Literal["zarr", "hdf5"] | None = None,  # noqa: A002 - the word of the command, too
    dtype: Literal["float32", "float16"] | None = None,
    to: str | Path | None = None,
    progress: Progress | None = None,
) -> Cache:
    """Write the rows of a cache in another format or dtype, as another cache; the first one stays.

    Parameters
    ----------
    cache : a cache, or its folder
    format, dtype : None for the cache's own
    to : folder of caches to write to; by default the one that the cache lies in
    progress : told how far it is

    Returns
    -------
    Cache; `cache.converted` says what was done

    Raises
    ------
    UsageError : there is nothing to do, or digits would have to be made up

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> fc.convert(cache, format="hdf5").manifest.array.format
    'hdf5'
    """
    opened = cache if isinstance(cache, store.Cache) else store.open_cache(cache)
    parent = Path(to) if to is not None else None
    done = store.convert(opened, format, dtype=dtype, parent=parent, progress=shown(progress))
    done.cache.converted = done
    return done.cache


def models(
    name: str | None = None,
    *,
    layers: bool = False,
    offline: bool = False,
    input_size_px: int | None = None,
    unsafe: bool = False,
) -> Any:
    """The backbones: name, input size, shape of features, parameters, operations, preprocessing.

    Parameters
    ----------
    name : one of them; with `layers` a .keras or .h5 file or "module:function", too
    layers : list the layers of `name` that features can be taken from, instead
    offline : only those whose ImageNet weights are on this machine
    input_size_px, unsafe : as of `extract`, with `layers`

    Returns
    -------
    list of Backbone; with `layers`, of layers: `name`, `output_shape`

    Raises
    ------
    BackboneError : there is no such backbone, or it cannot be built

    Examples
    --------
    >>> import featcache as fc
    >>> "vgg16" in [row.name for row in fc.models()]
    True
    """
    if layers:
        if name is None:
            raise ArgumentsError("`layers` needs the NAME of a network")
        spec = backbones.NetworkSpec(name, input_size_px=input_size_px, unsafe=unsafe)
        return [layer for layer in backbones.layers_to_cut(spec) if not layer.problem]
    if input_size_px is not None or unsafe:
        raise ArgumentsError("`input_size_px` and `unsafe` need `layers`")
    rows = [backbones.registry.get(name)] if name else list(backbones.registry.BACKBONES.values())
    return [row for row in rows if not offline or backbones.available(row) in ("installed", "cached")]


# --- what the arguments mean ---------------------------------------------------------------------


def _extracted(done: Extracted) -> Cache:
    """The cache that an extraction made."""
    cache = store.open_cache(done.path)
    cache.extracted = done
    return cache


def _project_of(source: Any) -> Project | None:
    """The project that is given, itself or by its folder."""
    if isinstance(source, Project):
        return source
    if isinstance(source, (str, Path)) and (Path(source) / "featcache.toml").is_file():
        return find_project(Path(source))
    return None


def _project_here() -> Project | None:
    with suppress(ProjectError):
        return find_project(Path())
    return None


def _scratch_project() -> Project:
    """For what is read from a remote outside of every project."""
    return Project(resolved(Path()), Settings())


def _project_around(source: Any) -> Project | None:
    """The project that is given, or that a cache lies in."""
    if isinstance(source, store.Cache):
        with suppress(ProjectError):
            project = find_project(source.folder.parent)
            if resolved(project.cache_folder) == resolved(source.folder.parent):
                return project
        return None
    given = _project_of(source)
    if given is None and isinstance(source, (str, Path)) and Path(source).is_dir():
        return _project_around(store.open_cache(source))
    return given


def _labelled(source: Any, project: Project | None, name: str | None, progress: Progress) -> Cache:
    """The cache that is meant, with the labels that dataset.csv gives now."""
    given = _project_of(source)
    if isinstance(source, store.Cache):
        cache = source
    elif given is None:
        cache = open_cache(source)
    elif name and sharing.is_remote(name, given):
        cache = open_cache(name, project=given)
    else:
        cache = heads.choose_cache(given, name, progress=progress)
    if project is None:
        return cache
    return training.with_current_labels(project, cache, progress=progress)


def _results(cache: Cache, project: Project | None, to: str | Path | None) -> Path:
    if to is not None:
        return Path(to)
    return project.results_folder if project else cache.folder.parent.parent / "results"


def _runs_folder(folder: Path) -> Path:
    with suppress(ProjectError):
        if folder == Path():
            return find_project(folder).results_folder
    return folder


def _refuse_unknown(values: Mapping[str, Any], record: Any) -> None:
    """Raise UsageError for the name of a setting that there is none of."""
    known = [field.name for field in fields(record)]
    for name in values:
        if name not in known:
            raise UsageError(f"no setting {name!r:.80}: {nearest(name, known)}")
