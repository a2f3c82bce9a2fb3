"""pull: manifest, then files into a folder beside, each checked while it streams in; renamed when all is there."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from featcache.core.errors import CacheError, CacheWriteError, RemoteError, RunError, UsageError
from featcache.core.files import PARTIAL_SUFFIX, sha256_bytes, sync
from featcache.core.leases import Leases
from featcache.remotes import Remote
from featcache.sharing import keys, rollback_guard as seen
from featcache.sharing.bundle import MANIFEST_FILES, about_cache, about_run, bundle_of_run, parse_run_files
from featcache.sharing.catalog import Entry
from featcache.sharing.local_shards import LocalShards
from featcache.sharing.record import Record
from featcache.sharing.transfer import Advance, Stopped, at_once, fetch
from featcache.store import (
    LEASES_FOLDER,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    Cache,
    FileEntry,
    file_entry,
    parse_manifest,
    writing,
)
from featcache.training import TRAINING_SUFFIX, is_finished

_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class Trust:
    """Whom a pull believes. trusted : {public key: name}; allow_older : a step back on the remote is taken"""

    trusted: Mapping[str, str] = field(default_factory=dict)
    require_signed: bool = False
    allow_older: bool = False


@dataclass(frozen=True)
class Pulled:
    """What a pull did. reused : whether it was here; fetched_bytes : of the files that came over the line

    remote : URL of the remote
    """

    name: str
    folder: Path
    reused: bool
    record: Record
    signed: keys.Signed
    fetched_bytes: int = 0
    remarks: tuple[str, ...] = ()
    remote: str = ""


def pull(
    store: Remote,
    entry: Entry,
    *,
    parent: Path,
    trust: Trust | None = None,
    advance: Advance = lambda _: None,
    stopped: Stopped = lambda: False,
) -> Pulled:
    """Get a whole cache, or run, into `parent`, where it appears when every byte of it has been checked.

    What arrived whole is kept for the next try. Raises TrustError where the signature does not fit or is of nobody who
    is trusted, RemoteError where the remote cannot be read or holds other bytes than it promises, CacheWriteError or
    RunError where nothing can be written, UsageError where the name is taken here by something else.
    """
    record = entry.record
    if record.kind == "run" and record.name.endswith(TRAINING_SUFFIX):
        raise RemoteError(f"{record.name}: runs are not named so: it would be taken for a training that was begun here")
    signed = accept(parent, store, entry=entry, trust=trust or Trust())
    work = parent / f".{record.name}-{entry.sha256[:12]}{PARTIAL_SUFFIX}"
    leases = Leases(work / LEASES_FOLDER)
    if (found := _here_already(parent / record.name, record, signed)) is not None:
        _sweep(work, leases)
        return found
    refuse_links(work)
    with _explaining(record, parent):
        leases.folder.mkdir(parents=True, exist_ok=True)
        try:
            if not leases.claim("pull"):
                raise UsageError(f"{record.name}: another process pulls it now: wait for it")
            fetched, made = _fetch_into(work / record.name, store, record, advance, stopped)
            _put_in_place(work / record.name, parent / record.name, record)
            shutil.rmtree(work, ignore_errors=True)
        finally:
            leases.close()
    seen.remember(parent, store.url, entry=entry)
    remarks = (f"{made} of its shards were made of rows that are here, and have the digests that they must",)
    return Pulled(
        name=record.name,
        folder=parent / record.name,
        reused=False,
        record=record,
        signed=signed,
        fetched_bytes=fetched,
        remarks=remarks if made else (),
    )


def _sweep(work: Path, leases: Leases) -> None:
    """Remove what a pull left that was killed when all was in its place, unless one is at work there."""
    if work.is_dir() and leases.claim("pull"):
        shutil.rmtree(work, ignore_errors=True)
    leases.close()


def refuse_links(work: Path) -> None:
    """Raise UsageError where somebody put a link into the place that a pull writes to: it would write elsewhere."""
    for path in (work, *work.rglob("*")):
        if path.is_symlink():
            raise UsageError(f"{path}: is a link where a pull writes: remove it, then pull again")


def accept(parent: Path, store: Remote, *, entry: Entry, trust: Trust) -> keys.Signed:
    """Who signed a record. Raises TrustError, or RemoteError where it is older than one seen before."""
    signed = keys.check_signature(entry.record, trust.trusted, require=trust.require_signed)
    seen.refuse_older(parent, store.url, entry=entry, allow=trust.allow_older)
    return signed


def _here_already(folder: Path, record: Record, signed: keys.Signed) -> Pulled | None:
    """What is here under the name, where it is this very thing. UsageError where it is something else."""
    if record.kind == "run":
        if not is_finished(folder):
            return None
        other = bundle_of_run(folder).digest != record.digest
        said = ("with other results than on the remote; those here stay",) if other else ()
        return Pulled(record.name, folder, True, record, signed, remarks=said)
    if not folder.exists():
        return None
    if not (folder / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{folder}: an unfinished cache has this name here",
            f"Remove it with 'featcache rm {record.name}', or finish it with the extract command that began it",
        )
    cache = Cache(folder)
    if cache.manifest.digest != record.digest:
        raise UsageError(
            f"{folder}: holds another cache, whose digest begins alike", "Pull into another folder with `to=FOLDER`"
        )
    remarks: tuple[str, ...] = ()
    if cache.manifest.dataset_digest != record.about.get("dataset"):
        remarks = ("with other labels, splits, groups or paths than on the remote; those here stay",)
    elif file_entry(folder / MANIFEST_FILE) != record.manifest:
        remarks = ("with the same rows and labels, but not in the files of the remote; those here stay",)
    return Pulled(record.name, folder, True, record, signed, remarks=remarks)


def _fetch_into(folder: Path, store: Remote, record: Record, advance: Advance, stopped: Stopped) -> tuple[int, int]:
    """Get every file, checked. Returns how many bytes came, and how many shards were made of what is here."""
    folder.mkdir(exist_ok=True)
    files = get_manifest(folder, store, record=record)
    there = sum(entry.bytes for name, entry in files.items() if (folder / name).is_file())
    total = sum(entry.bytes for entry in files.values())
    refuse_small_disk(folder.parent.parent, total - there)

    def get(name: str) -> None:
        fetch(store, record.path_of(name), entry=files[name], target=folder / name, advance=advance)
        sync(folder / name)  # while others come

    if record.kind == "run":
        at_once(get, files, stopped=stopped)
        return total - there, 0
    at_once(get, [name for name in files if not name.startswith("features.")], stopped=stopped)
    tables, made = Tables(folder), []
    here = LocalShards(tables, folder.parent.parent)

    def make_or_get(name: str) -> None:
        if not (folder / name).is_file() and here.make(name, files[name]):
            made.append(files[name].bytes)
            advance(files[name].bytes)
        else:
            get(name)

    features = sorted((name for name in files if name.startswith("features.")), key=lambda name: -files[name].bytes)
    checking = functools.partial(check_tables, tables, record)  # while the features come
    work: list[Callable[[], object]] = [checking, *(functools.partial(make_or_get, name) for name in features)]
    at_once(lambda job: job(), work, stopped=stopped)
    return total - there - sum(made), len(made)


class Tables(Cache):
    """A cache of which not all files are here yet."""

    def _check_sizes(self) -> None:
        """Those that are here have just been checked."""


def get_manifest(folder: Path, store: Remote, *, record: Record) -> Mapping[str, FileEntry]:
    """Get and check the manifest, and what it says against the record. Returns the files that it names."""
    if record.manifest.bytes > MAX_MANIFEST_BYTES:
        raise RemoteError(f"{record.name}: a manifest of {record.manifest.bytes} bytes: longer than any")
    file = folder / MANIFEST_FILES[record.kind]
    fetch(store, record.manifest_path, entry=record.manifest, target=file)
    if record.kind == "run":
        data = file.read_bytes()
        if sha256_bytes(data) != record.digest:
            raise RemoteError(f"{record.name}: the record names another list of files")
        return parse_run_files(data, f"{store.url}/{record.manifest_path}").files
    manifest = parse_manifest(folder)
    if (manifest.name, manifest.digest) != (record.name, record.digest):
        raise RemoteError(f"{record.name}: the record is of another cache than its manifest, {manifest.name}")
    return manifest.files


def refuse_small_disk(parent: Path, n_bytes: int) -> None:
    """Raise CacheWriteError before the first byte where so many do not fit."""
    free = shutil.disk_usage(parent).free
    if n_bytes + _SPARE_BYTES > free:
        raise CacheWriteError(
            f"{parent}: {n_bytes / 1e6:.1f} MB are needed, and {free / 1e6:.1f} MB are free",
            "Make room, or pull a part with `split`, `classes` or `pooling`",
        )


def _put_in_place(folder: Path, final: Path, record: Record) -> None:
    """See what the files say of one another, bring their names to the disk, and give the folder its own."""
    if record.kind == "cache":
        Cache(folder)
    else:
        entries = parse_run_files((folder / MANIFEST_FILES["run"]).read_bytes(), record.name).files
        if not is_finished(folder) or about_run(folder, entries) != record.about:
            raise RemoteError(f"{record.name}: the record says other things than the run's files")
    for leftover in folder.rglob(f".*{PARTIAL_SUFFIX}*"):  # of a try that was killed
        leftover.unlink()
    at_once(sync, [folder, *(path for path in folder.rglob("*") if path.is_dir())])
    folder.rename(final)
    sync(final.parent)


def check_tables(cache: Cache, record: Record) -> None:
    """Whether the tables of a cache agree with one another and with the record. CacheError or RemoteError."""
    if about_cache(cache.manifest, cache.recipe) != record.about:
        raise RemoteError(f"{record.name}: the record says other things than the cache's manifest and recipe")
    if str(cache.features.dtype) != cache.recipe.space.dtype:
        raise CacheError(f"{record.name}: recipe, rows and features do not fit together")
    cache.check_labels()
    if cache.misnamed_rows():
        raise CacheError(f"{record.name}: rows have another row_id than their image and view")


@contextmanager
def _explaining(record: Record, parent: Path) -> Iterator[None]:
    """A hostile cache is the remote's fault, a full disk is ours; both are told so, and what arrived whole stays."""
    try:
        with writing(parent / record.name):
            yield
    except CacheWriteError:
        raise
    except (CacheError, RunError) as error:
        said = str(error).replace(str(parent), "").lstrip("/")
        raise RemoteError(f"{record.name}: is not what it promises, and was not taken: {said}") from error
