"""Sharing: send caches and runs to a remote, get them from there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featcache import sharing, store, training
from featcache.api.arguments import project_here
from featcache.core.errors import UsageError
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.shown import shown

if TYPE_CHECKING:
    from featcache.store import Cache
    from featcache.training import Run

Split = Literal["train", "val", "test"]


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
    project = project or project_here()
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
    project = project or project_here()
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
