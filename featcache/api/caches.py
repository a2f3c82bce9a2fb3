"""Caches: open one wherever it lies, check it, convert it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featcache import extraction, sharing, store
from featcache.api.arguments import project_here
from featcache.core.files import resolved
from featcache.core.progress import Progress
from featcache.core.project import Project, Settings
from featcache.core.shown import shown

if TYPE_CHECKING:
    from featcache.extraction import Checked
    from featcache.store import Cache, Standing


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
    project = project or project_here()
    is_shared = (
        sharing.is_remote(str(where), project)
        or (Path(where).parent / sharing.FOLDERS["cache"] / Path(where).name).is_dir()
    )
    if is_shared and not Path(where).is_dir():
        return sharing.open_on_remote(str(where), project or Project(resolved(Path()), Settings()))
    return store.open_cache(where, reader)


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


def status(project: Project) -> list[Standing]:
    """How far the caches of a project are, and who is at work on them. Any machine that sees them can ask.

    Parameters
    ----------
    project : whose caches are meant

    Returns
    -------
    a record for each cache: `cache`, `rows` and `done`, `finished`, and `workers` with `host`, `pid`, `shards`, `alive`

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> cache = fc.extract(project, "pixels", input_size_px=16)
    >>> [(found.done == found.rows, found.finished, found.workers) for found in fc.status(project)]
    [(True, True, [])]
    """
    return sharing.status_on(project.cache_url) if project.cache_url else store.status(project.cache_folder)


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
