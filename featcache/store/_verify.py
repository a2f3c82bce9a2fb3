"""verify: every byte of a cache against its manifest, and what the bytes say against one another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.core.errors import CacheError, CacheNotFoundError
from featcache.store import ledger
from featcache.store.cache import Cache, file_of
from featcache.store.contract import Stored
from featcache.store.formats import open_store
from featcache.store.layout import DATASET_FILE, LABELS_WAITING_FILE, LEDGER_FILE, MANIFEST_FILE, REPAIR_LEDGER_FILE
from featcache.store.manifest import Manifest, leads_out, parse_manifest
from featcache.store.tensorstore_reader import choose_reader
from featcache.store.writer import file_entry

_SHOWN = 5
_MOST_SHARDS = 100
_AGAIN = 5


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it must be. `file` is a path inside the cache."""

    file: str
    what: str


@dataclass(frozen=True)
class Verified:
    """What `verify` found.

    damaged_shards : shards whose stored bytes are not those of the ledger
    remarks : what is unusual and harms nothing
    """

    name: str
    folder: Path
    files: int
    bytes: int
    rows: int
    problems: tuple[Problem, ...]
    damaged_shards: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether the cache is what it promises to be."""
        return not self.problems


def verify(folder: Path, on_bytes: Callable[[int], object] = lambda _: None, *, again: int = _AGAIN) -> Verified:
    """Read every byte of a cache and decode every row.

    on_bytes : called with the size of each file that was read
    again : how often to look anew where others give the cache other labels meanwhile

    Raises CacheNotFoundError where there is no finished cache.
    """
    try:
        manifest = parse_manifest(folder)
    except CacheNotFoundError:
        raise
    except CacheError as error:
        return Verified(
            name=folder.name,
            folder=folder,
            files=0,
            bytes=0,
            rows=0,
            problems=(Problem(MANIFEST_FILE, _without(folder, error)),),
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = list(pool.map(lambda name: _file(folder, manifest, name, on_bytes), manifest.files))
    problems = [problem for problem in checked if problem is not None]
    del checked
    remarks = list(_unlisted(folder, manifest))
    bad = {problem.file for problem in problems}
    damaged = _damaged_shards(folder, manifest, bad) if bad else []
    if not bad:
        with ThreadPoolExecutor(1) as pool:  # the tables meanwhile: much of both is not Python's
            said_of_tables = pool.submit(lambda: list(_contradictions(folder)))
            damaged, found, said = _undecodable(folder, manifest)
            problems += said_of_tables.result()
        problems += found
        remarks += said
    if problems and again and _was_relabelled(folder, manifest, problems):
        return verify(folder, again=again - 1)
    size = sum(entry.bytes for entry in manifest.files.values())
    return Verified(
        name=manifest.name,
        folder=folder,
        files=len(manifest.files) + 1,
        bytes=size,
        rows=manifest.rows,
        problems=tuple(problems),
        damaged_shards=tuple(damaged),
        remarks=tuple(remarks),
    )


def _was_relabelled(folder: Path, manifest: Manifest, problems: Sequence[Problem]) -> bool:
    """Whether what is wrong is that somebody gave the cache other labels while it was looked at."""
    if not any(problem.file in (DATASET_FILE, "") for problem in problems):
        return False
    try:
        return parse_manifest(folder) != manifest or _file(folder, manifest, DATASET_FILE, lambda _: None) is None
    except CacheError:
        return False


def _file(folder: Path, manifest: Manifest, name: str, on_bytes: Callable[[int], object]) -> Problem | None:
    path, entry = file_of(folder, manifest, name=name), manifest.files[name]
    try:
        if leads_out(folder, name):
            return Problem(name, "is a link that leads out of the cache")
        if not path.is_file():
            return Problem(name, "is missing")
        length = path.stat().st_size
        on_bytes(entry.bytes)
        if length != entry.bytes:  # without a look at what may never end
            return Problem(name, f"expected {entry.bytes} bytes, found {length}")
        found = file_entry(path)
    except OSError as error:
        return Problem(name, f"cannot be read: {error.strerror}")
    if found.sha256 != entry.sha256:
        return Problem(name, f"expected SHA-256 {entry.sha256[:16]}.., found {found.sha256[:16]}..")
    return None


def _unlisted(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files that the manifest does not name: nothing reads them, and nobody vouches for them."""
    known = {*manifest.files, MANIFEST_FILE, REPAIR_LEDGER_FILE, LABELS_WAITING_FILE}
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    strange = sorted(set(found) - known)
    if strange:
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        yield f"not part of the cache: {', '.join(strange[:_SHOWN])}{more}"


def _damaged_shards(folder: Path, manifest: Manifest, bad: set[str]) -> list[int]:
    """The shards that are not what they were, as near as can be told."""
    store = open_store(manifest.array.format, folder, layout=manifest.array.layout)
    files = store.files()
    shards = {shard for name, shard in files.items() if name in bad and shard is not None}
    if any(name in bad and shard is None and len(files) == 1 for name, shard in files.items()):
        records = ledger.read(folder / LEDGER_FILE)
        expected = {shard: Stored(record.bytes, record.sha256) for shard, record in records.items()}
        shards = {
            shard
            for shard in range(manifest.array.layout.n_shards)
            if shard not in expected or store.stored(shard) != expected[shard]
        }
    return sorted(shards)


def _contradictions(folder: Path) -> Iterator[Problem]:
    """Whether recipe, rows, ledger and labels agree, in a cache all of whose bytes are those of the manifest."""
    try:
        cache = Cache(folder)
        wrong = cache.misnamed_rows()
    except CacheError as error:
        yield Problem("", _without(folder, error))
        return
    if wrong:
        yield Problem("rows.parquet", f"{len(wrong)} rows have another row_id than their image and view: {wrong[:5]}")
    try:
        cache.check_labels()
    except CacheError as error:
        yield Problem("dataset.parquet", _without(folder, error))
    yield from _unrecorded(folder, cache.manifest)


def _unrecorded(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """What the ledger says otherwise than the files."""
    store = open_store(manifest.array.format, folder, layout=manifest.array.layout)
    records = ledger.read(folder / LEDGER_FILE)
    if len(records) != store.layout.n_shards:
        yield Problem(LEDGER_FILE, f"expected {store.layout.n_shards} shards, found {len(records)}")
        return
    files = {shard: manifest.files[name] for name, shard in store.files().items() if shard is not None}
    for shard in range(store.layout.n_shards):
        stored, record = files.get(shard) or store.stored(shard), records.get(shard)
        if stored and record != ledger.ShardRecord(shard, *store.layout.span(shard), stored.bytes, stored.sha256):
            yield Problem(LEDGER_FILE, f"shard {shard}: is not what is stored")
            return


def _undecodable(folder: Path, manifest: Manifest) -> tuple[list[int], list[Problem], list[str]]:
    """Decode every shard: a cache of a stranger may hold bytes that are no features."""
    layout = manifest.array.layout
    reader = choose_reader(open_store(manifest.array.format, folder, layout=layout), "auto")
    damaged: list[int] = []
    problems: list[Problem] = []
    said: set[str] = set()
    strange = 0
    for shard in range(layout.n_shards):
        try:
            features = reader.read(*layout.span(shard))
        except CacheError as error:
            damaged.append(shard)
            if str(error) not in said:  # what is wrong with the whole array is said once
                problems.append(Problem(f"shard {shard}", _without(folder, error)))
            said.add(str(error))
            if len(damaged) == _MOST_SHARDS:
                problems.append(Problem("", f"the shards behind shard {shard} were not looked at"))
                break
            continue
        strange += int((~np.isfinite(features.reshape(len(features), -1)).all(axis=1)).sum())
    return damaged, problems, [f"{strange} rows hold NaN or Inf"] if strange else []


def _without(folder: Path, error: CacheError) -> str:
    """An error's message without the path that stands beside it anyway."""
    return str(error).replace(f"{folder}/", "").removeprefix(f"{folder.name}: ").removeprefix(f"{MANIFEST_FILE}: ")
