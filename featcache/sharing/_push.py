"""push: a cache or a run to a remote; pack: several into one file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from featcache.core.errors import CacheNotFoundError, CacheWriteError, RunError, UsageError
from featcache.core.files import beside, is_hidden, meant_by
from featcache.core.interrupts import ending_with
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.remotes import PACK_SUFFIX, PackWriter, refuse_writing
from featcache.sharing import keys
from featcache.sharing.bundle import Bundle, bundle_of_cache, bundle_of_run
from featcache.sharing.commit import Attribution
from featcache.sharing.options import PushOptions
from featcache.sharing.private import private_bundle, read_secret
from featcache.sharing.remote import Target
from featcache.sharing.rollback_guard import remember
from featcache.sharing.send import Pushed, push as send
from featcache.store import MANIFEST_FILE, cache_folder, find_pulled
from featcache.training import is_finished, list_runs


def push(
    folder: Path,
    target: Target,
    *,
    options: PushOptions | None = None,
    seen_in: Path | None = None,
    progress: Progress = SILENT,
) -> Pushed:
    """Push the cache or run in a folder. See `featcache.sharing.send.push`.

    seen_in : folder of caches where it is noted which record is there now
    """
    options = options or PushOptions()
    key = keys.open_key(options.sign, keys.own_config_folder() / keys.KEYS_FOLDER) if options.sign is not None else None
    with _parcel(folder, options) as parcel, progress.stopping() as stopped, ending_with(stopped):
        total = sum(entry.bytes for entry in parcel.entries.values())
        with progress.begin(f"pushing {parcel.name}", total) as advance:
            words = Attribution(options.licence, options.contact)
            done = send(
                target.store,
                parcel,
                key=key,
                words=words,
                replace=options.replace,
                check=options.check,
                advance=advance,
                stopped=stopped,
            )
    if seen_in is not None:
        remember(seen_in, target.store.url, entry=done.entry)
    return replace(done, remote=target.store.url)


@dataclass(frozen=True)
class Planned:
    """What a push would send: its files' bytes at most, less what is there already. remote : URL of the remote"""

    name: str
    bytes: int
    remote: str


def plan_push(folder: Path, target: Target, *, options: PushOptions | None = None) -> Planned:
    """Say what `push` with these arguments would send, and where to. Raises what `push` raises before it sends."""
    refuse_writing(target.store)
    options = options or PushOptions()
    hidden = options.private or options.pseudonyms is not None
    with _parcel(folder, replace(options, private=hidden, pseudonyms=None)) as parcel:  # no secret is made yet
        sizes = [entry.bytes for entry in (*parcel.entries.values(), parcel.manifest_entry)]
        return Planned(parcel.name, sum(sizes), target.store.url)


@contextmanager
def _parcel(folder: Path, options: PushOptions) -> Iterator[Bundle]:
    """What is to be pushed; tables that are written anew for it last as long as the context."""
    hidden = options.private or options.pseudonyms is not None
    if not (folder / MANIFEST_FILE).is_file():
        if hidden:
            raise UsageError(f"{folder.name}: `private` is for caches only: the predictions of a run name its files")
        yield bundle_of_run(folder)
    elif not hidden:
        yield bundle_of_cache(folder)
    else:
        secret = read_secret(options.pseudonyms) if options.pseudonyms is not None else None
        with tempfile.TemporaryDirectory(prefix="featcache-") as work:
            yield private_bundle(folder, Path(work), secret=secret)


def find_pushable(project: Project, name: str | None) -> Path:
    """The folder of the cache or run that a name means: a path, a name or how it begins; the only cache without one.

    Raises CacheNotFoundError where there is none, UsageError where several could be meant.
    """
    if name is None:
        return find_pulled(project, None).folder
    path = Path(name)
    if is_finished(path) or ((path / MANIFEST_FILE).is_file() and not is_hidden(path)):
        return path
    runs = meant_by(name, [run.folder for run in list_runs(project.results_folder)])
    try:
        return cache_folder(project.cache_folder, name)
    except CacheNotFoundError:
        if len(runs) == 1:
            return runs[0]
        if runs:
            names = ", ".join(run.name for run in runs)
            raise UsageError(f"{name!r:.80} could be {names}: name one of them") from None
        return find_pulled(project, name).folder


@dataclass(frozen=True)
class Packed:
    """A pack that was written."""

    file: Path
    names: tuple[str, ...]
    bytes: int


def pack(
    folders: Sequence[Path],
    file: Path,
    *,
    options: PushOptions | None = None,
    progress: Progress = SILENT,
) -> Packed:
    """Write caches and runs into one file, which is there when it is whole. UsageError where it is there already."""
    if file.suffix != PACK_SUFFIX:
        raise UsageError(f"{file}: expected a name that ends with {PACK_SUFFIX}")
    if file.exists():
        raise UsageError(f"{file}: exists already", "Name another file with `to`")
    names = []
    try:
        with beside(file) as partial, PackWriter(partial) as writer:
            for folder in folders:
                done = push(folder, Target(writer, ""), options=options, progress=progress)
                names.append(done.entry.record.name)
            writer.close()
    except OSError as error:
        if isinstance(error, (CacheWriteError, CacheNotFoundError, RunError)):
            raise
        raise CacheWriteError(f"{file}: cannot be written: {error.strerror or error}") from error
    return Packed(file, tuple(names), file.stat().st_size)
