"""Features: compute them, and say why a cache has its name."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featcache import backbones, datasets, extraction, planning
from featcache.api.arguments import project_of, refuse_unknown
from featcache.api.caches import open_cache
from featcache.core.errors import ArgumentsError
from featcache.core.files import resolved
from featcache.core.progress import Progress
from featcache.core.project import FoldersSection, Project, Settings, ViewsSection
from featcache.core.recipe import Precision, Preprocessing, Tokens
from featcache.core.settings import settings_of
from featcache.core.shown import shown

if TYPE_CHECKING:
    from featcache.extraction import Explanation, Extracted
    from featcache.planning import Planned
    from featcache.store import Cache


def extract(
    source: Any,
    model: str | Sequence[str],
    *,
    to: str | Path | None = None,
    cache_folder: str | Path | None = None,
    weights: str = "imagenet",
    weights_seed: int = 0,
    input_size_px: int | None = None,
    preprocessing: Literal["model"] | Preprocessing | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    colour_order: Literal["rgb", "bgr"] = "rgb",
    layers: Sequence[str] = (),
    pooling: Literal["none", "avg", "max"] = "none",
    tokens: Tokens | None = None,
    interpolate_positions: bool = False,
    precision: Precision = "float32",
    unsafe: bool = False,
    engine: Literal["auto", "keras", "openvino", "onnxruntime", "torch"] = "auto",
    batch_rows: int | None = None,
    cluster: str | None = None,
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
    model : a backbone (see `models`), a .keras, .h5 or .onnx file, "module:function", "timm/NAME", "torchvision/NAME",
        "huggingface/ORGANISATION/NAME", "kerashub/PRESET", or "pixels"; several make several caches in one pass over
        the images
    to : folder of caches, for images without a project
    cache_folder : of a project: another folder of caches, or the URL of a remote that several machines extract into,
        s3://BUCKET/PREFIX
    weights : "imagenet", "random", or a file
    weights_seed : of random weights
    input_size_px : side of the square input
    preprocessing : None or "model" as the network was trained; "caffe", "tf", "torch", "lite0", "rescale", "none"
    mean, std : of red, green and blue in 0..1, both: instead of the network's own scaling
    colour_order : "bgr" turns the order in which the network gets the channels
    layers : layers to cut at, one cache each; the last feature map by default
    pooling : "avg" and "max" keep one value for each channel
    tokens : of a vision transformer, "cls", "patches", "cls+avg" or "all"; None for CLS, or the patches with a pooling
    interpolate_positions : resample a vision transformer's position table that is for another input size
    precision : of the network's arithmetic
    unsafe : whether code from a model's file may run
    engine : library that computes; "auto" takes the fastest that is right
    batch_rows : images per batch; None for the fastest
    cluster : "local:N", "dask://HOST:PORT" or "ray://HOST:PORT": compute on the workers of these, which see the folders
        of the project at the same paths
    views : values for [views], for this call: resize, interpolation, crop_share, padding, margin, um_per_px, train, ...
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
    ClusterError : there is no such cluster, or its workers are not like this machine
    CacheWriteError : the cache cannot be written
    RemoteError : the remote that caches are made on cannot be used

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> cache.features.shape[1:]
    (16, 16, 3)
    """
    asked = backbones.specs_of(
        model,
        weights=weights,
        weights_seed=weights_seed,
        input_size_px=input_size_px,
        preprocessing=preprocessing,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        colour_order=colour_order,
        layers=tuple(layers),
        pooling=pooling,
        tokens=tokens,
        interpolate_positions=interpolate_positions,
        precision=precision,
        unsafe=unsafe,
    )
    options = extraction.ExtractOptions(
        engine=engine,
        batch_rows=batch_rows,
        cluster=cluster,
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
    verb: Any = extraction.estimate if dry_run else extraction.extract
    project = project_of(source)
    if project is not None and cache_folder is not None:
        project = project.with_cache_folder(cache_folder)
    elif project is None and (cache_folder is not None or "://" in str(to)):
        raise ArgumentsError(
            "images without a project are extracted into a folder: name one with `to`, and push the cache"
        )
    if project is None and cluster is not None:
        raise ArgumentsError("`cluster` needs a project, whose images and caches all workers see")
    if project is not None:
        if to is not None:
            raise ArgumentsError("`to` is for images without a project: a project has its folder in featcache.toml")
        made = verb(project, asked, options=options, progress=progress)
    else:
        parent = resolved(Path(to if to is not None else "cache"))
        folders = FoldersSection(cache=".", results="../results")
        place = Project(parent, Settings(folders=folders, views=ViewsSection(as_trained=True, resize="pad")))
        with tempfile.TemporaryDirectory(prefix="featcache-") as spool:
            images = datasets.collect(source, Path(spool), strict=strict, progress=progress)
            made = verb(place, asked, options=options, images=images, progress=progress)
    found = made if dry_run else [_extracted(done, project) for done in made]
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
    network, how = _network_and_extraction(options)
    asked = backbones.specs_of(model, **network)
    return extraction.explain(project, asked, options=how, progress=shown(progress))


def plan(
    project: Project, model: str | Sequence[str], *, progress: Progress | None = None, **options: Any
) -> list[Planned]:
    """What an extraction of many images like those of a project takes: time, bytes, requests, memory, cost.

    A few images are computed on this machine, and their features thrown away. Then courses of the whole extraction are
    simulated.

    Parameters
    ----------
    project : its images are the sample
    model : as of `extract`
    progress : told how far it is
    **options : `n_images`, `workers` and the other fields of `featcache.planning.PlanOptions`; and as of `extract`

    Returns
    -------
    a record for each network: `rows`, `seconds` with `low_s` and `high_s`, `bytes`, `writes` and `reads`,
    `worker_bytes`, `worker_hours`, `costs`, `remarks`, and what was `measured`

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> (planned,) = fc.plan(project, "pixels", input_size_px=16, n_images=10_000, workers=4, sample_s=0.1)
    >>> planned.images, planned.seconds > planned.ideal_s
    (10000, True)
    """
    told = {name: options.pop(name) for name in settings_of(planning.PlanOptions) if name in options}
    network, how = _network_and_extraction(options)
    return planning.plan(
        project,
        backbones.specs_of(model, **network),
        options=planning.PlanOptions(**told),
        extraction=how,
        progress=shown(progress),
    )


def _network_and_extraction(options: dict[str, Any]) -> tuple[dict[str, Any], extraction.ExtractOptions]:
    """The settings of a network, and those of an extraction, that options of `extract` are."""
    storage = {name: options.pop(name) for name in ("format", "dtype") if options.get(name) is not None}
    refuse_unknown(options, backbones.NetworkSpec, extraction.ExtractOptions)
    network = {name: options.pop(name) for name in settings_of(backbones.NetworkSpec) if name in options}
    return network, extraction.ExtractOptions(storage=storage, **options)


def _extracted(done: Extracted, project: Project | None) -> Cache:
    """The cache that an extraction made."""
    cache = open_cache(done.url or done.path, project=project)
    cache.extracted = done
    return cache
