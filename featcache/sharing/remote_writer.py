"""Making a cache on a remote: shards are made here, and created there; what is there is never written over.

Each machine has a folder of its own, in which the cache is made as in any folder, but for its shards: these go to the
remote one by one, each followed by an object of the journal, which says that it is there. The record comes last.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import CacheError, RemoteError, RemoteNotFoundError
from featcache.core.files import PARTIAL_SUFFIX, make_folder, sha256_bytes, write_bytes
from featcache.core.leases import Leases
from featcache.core.recipe import Recipe, cache_name
from featcache.core.strict_json import strict_json
from featcache.datasets import Dataset
from featcache.remotes import Patient, read
from featcache.sharing.bundle import bundle_there
from featcache.sharing.catalog import Entry
from featcache.sharing.chunks import Chunk, chunks_in, chunks_of, chunks_text
from featcache.sharing.commit import Attribution, commit, record_of
from featcache.sharing.receive import get_manifest
from featcache.sharing.record import CHUNKS_FILE
from featcache.sharing.remote_folder import (
    BEGUN_FILE,
    FINISHED,
    Site,
    finished_on,
    journal_path,
    refuse_format,
    shard_of,
)
from featcache.sharing.remote_leases import RemoteLeases
from featcache.sharing.transfer import at_once, patiently
from featcache.store import (
    ARRAY_FILE,
    DATASET_FILE,
    FEATURES_FOLDER,
    LEASES_FOLDER,
    LEDGER_FILE,
    MANIFEST_FILE,
    RECIPE_FILE,
    ROWS_FILE,
    CacheWriter,
    DatasetCopy,
    FileEntry,
    Format,
    Manifest,
    Row,
    keys_of,
    ledger,
    misnamed_rows,
    parse_manifest,
    tolerance_of,
    zarr_shard,
)

_LOOK_S = 1.0
_TRIES, _PAUSE_S = 10, 0.2
_MOST_TABLE_BYTES = 4 << 30
_MOST_JOURNAL_BYTES, _MOST_SHARD_BYTES = 16 << 20, 256 << 20
_BEGUN_WITH = (RECIPE_FILE, ROWS_FILE, ARRAY_FILE)


class RemoteWriter(CacheWriter):
    """See `featcache.store.CacheWriter`. Several machines may be at work on one cache.

    store : the remote, which tells who creates an object first
    parent : local folder of caches; what is made here before it is sent lies in a hidden folder in it

    Raises RemoteError where the remote refuses, UsageError for another format than Zarr.
    """

    def __init__(
        self,
        store: Patient,
        recipe: Recipe,
        *,
        rows: Sequence[Row],
        row_shape: tuple[int, ...],
        parent: Path,
        format_: Format = "zarr",
        allow_nonfinite: bool = False,
    ) -> None:
        refuse_format(format_, store.url)
        digest = keys_of(rows).digest(recipe)
        self._remote, self.site = store, Site(cache_name(recipe.space.backbone, digest, format_=format_), digest)
        self._chunks: dict[int, list[Chunk]] = {}
        self._journal: dict[int, ledger.ShardRecord] = {}
        self._looked_at = float("-inf")
        self._doubted: set[int] = set()
        parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{self.site.name}-", suffix=PARTIAL_SUFFIX, dir=parent))
        here = Leases(work / LEASES_FOLDER)  # so that gc knows it from what a killed command left
        self._finalizer = weakref.finalize(self, _remove, work, os.getpid(), here)
        here.claim("extracting")
        try:
            super().__init__(
                work, recipe, rows=rows, row_shape=row_shape, format_=format_, allow_nonfinite=allow_nonfinite
            )
        except BaseException:  # nobody gives back what is held then
            if hasattr(self, "_leases"):
                self._leases.close()
            self._finalizer()
            raise

    def __exit__(self, *_: object) -> None:
        self._leases.close()
        self._finalizer()

    def refresh(self) -> None:
        """As of `CacheWriter`; the remote is asked once a second at most."""
        if time.monotonic() - self._looked_at > _LOOK_S:
            super().refresh()
            self._looked_at = time.monotonic()

    def wait(self) -> None:
        """As of `CacheWriter`."""
        time.sleep(_LOOK_S)

    def finish(
        self, dataset: Dataset | DatasetCopy, provenance: dict[str, Any], *, dataset_digest: str = ""
    ) -> Manifest:
        """Write the rest, and last the record. As of `CacheWriter`."""
        if (entry := finished_on(self._remote, self.site)) is not None:
            return self._manifest_of(entry)
        manifest = super().finish(dataset, provenance, dataset_digest=dataset_digest)
        chunks = chunks_text({self._name(shard): found for shard, found in self._chunks.items()})
        bundle = bundle_there(manifest, self.recipe, place=self.site.root)
        for path, data in {
            f"{bundle.root}/{LEDGER_FILE}": (self.folder / LEDGER_FILE).read_bytes(),
            f"{bundle.root}/{CHUNKS_FILE}": chunks,
            f"{bundle.labels}/{DATASET_FILE}": (self.folder / DATASET_FILE).read_bytes(),
            f"{bundle.labels}/{MANIFEST_FILE}": bundle.manifest,
        }.items():
            self._remote.put(path, data)
        self._refuse_missing(manifest)
        listed = FileEntry(bytes=len(chunks), sha256=sha256_bytes(chunks))
        if not commit(self._remote, record_of(bundle, 1, chunks=listed, key=None, words=Attribution())):
            if (entry := finished_on(self._remote, self.site)) is not None:  # another machine was quicker
                return self._manifest_of(entry)
            raise RemoteError(f"{self._remote.url}: {manifest.name}: its record cannot be created: try again")
        self._tidy()
        return manifest

    def _opened_leases(self) -> Leases:
        return RemoteLeases(self._remote, self.site.leases, impatient=self._remote.impatient)

    def _start(self) -> None:
        """What others have begun with is gone on with: their recipe, their order of rows, their array."""
        begun = self._fetch_begun()
        super()._start()
        if ROWS_FILE in begun:
            self._refuse_other_views()
        for name in _BEGUN_WITH:
            self._create(name, begun.get(name))
        if self.missing:
            layout = self.store.layout
            about = {"rows": layout.n_rows, "rows_per_shard": layout.rows_per_shard}
            self._remote.create(f"{self.site.root}/work/{BEGUN_FILE}", json.dumps(about).encode())

    def _fetch_begun(self) -> dict[str, bytes]:
        begun = {}
        for name in _BEGUN_WITH:
            with suppress(RemoteNotFoundError):
                begun[name] = self._read(f"{self.site.root}/{name}", _MOST_TABLE_BYTES)
                make_folder((self.folder / name).parent)
                write_bytes(self.folder / name, begun[name])
        sizes = {item.path: item.bytes for item in patiently(lambda: self._remote.list(self._path(FEATURES_FOLDER)))}
        self._doubted = {n for n, record in self._recorded().items() if sizes.get(self._path_of(n)) != record.bytes}
        return begun

    def _refuse_other_views(self) -> None:
        """The table of rows has been read; its views must be those that its row_ids are of."""
        if misnamed_rows(self.folder / ROWS_FILE, self.recipe.space):
            raise self._damaged(ROWS_FILE)

    def _create(self, name: str, before: bytes | None) -> None:
        """Have a file there that the cache begins with. RemoteError where something else is there."""
        data, path = (self.folder / name).read_bytes(), self._path(name)
        if before is None and not self._remote.create(path, data):
            before = self._read(path, _MOST_TABLE_BYTES)
        if before not in (None, data):
            raise self._damaged(name)

    def _damaged(self, name: str) -> RemoteError:
        return RemoteError(
            f"{self._remote.url}/{self._path(name)}: is damaged, or not of this cache",
            f"Remove what was begun with 'featcache rm {self.site.name} --remote URL', then extract it again",
        )

    def _recorded(self) -> dict[int, ledger.ShardRecord]:
        listed = patiently(lambda: self._remote.list(self.site.journal))
        if any(item.path.endswith(f"/{FINISHED}") for item in listed):
            return self._recorded_by_finisher()
        shards = {shard for item in listed if (shard := shard_of(item.path)) is not None}
        at_once(self._read_journal, sorted(shards - self._journal.keys()))
        return dict(self._journal)

    def _recorded_by_finisher(self) -> dict[int, ledger.ShardRecord]:
        """The ledger of the cache, which another machine has finished, and whose journal is gone."""
        if finished_on(self._remote, self.site) is None:
            raise RemoteError(
                f"{self._remote.url}: {self.site.name}: was removed in part",
                f"Remove the rest with 'featcache rm {self.site.name} --remote URL', then extract it again",
            )
        write_bytes(self.folder / LEDGER_FILE, self._read(self._path(LEDGER_FILE), _MOST_TABLE_BYTES))
        return ledger.read(self.folder / LEDGER_FILE)

    def _read_journal(self, shard: int) -> bool:
        """See what the journal says of a shard. False where it says nothing."""
        path = journal_path(self.site, shard)
        try:
            value = strict_json(self._read(path, _MOST_JOURNAL_BYTES).decode())
            record = ledger.ShardRecord(**value["record"])
            chunks = chunks_in(value["chunks"])
        except RemoteNotFoundError:
            return False
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RemoteError(f"{self._remote.url}/{path}: cannot be read: {error}", "Remove it") from error
        self._journal[shard], self._chunks[shard] = record, chunks
        return True

    def _was_finished(self, shard: int) -> bool:
        if self._read_journal(shard) and self._sound(self._journal[shard]):
            self._finished(self._journal[shard])
        return shard in self._done

    def _sound(self, record: ledger.ShardRecord) -> bool:
        if record.shard in self._doubted:
            with suppress(RemoteNotFoundError):
                if patiently(lambda: self._remote.size(self._path_of(record.shard))) == record.bytes:
                    self._doubted.discard(record.shard)
        is_there = record.shard not in self._doubted
        return is_there and (record.start, record.stop) == self.store.layout.span(record.shard)

    def _put(self, shard: int, features: NDArray[np.number[Any]]) -> None:
        """Create a shard and say so. Where it is there, somebody else was quicker, or was killed in between."""
        self.store.write_shard(shard, features)
        file = self.folder / self._name(shard)
        data = file.read_bytes()
        if not self._remote.create(self._path_of(shard), data):
            data = self._those_there(shard, data, features)
        file.unlink(missing_ok=True)
        record = ledger.ShardRecord(shard, *self.store.layout.span(shard), len(data), sha256_bytes(data))
        chunks = chunks_of(data, self.store.layout)
        text = json.dumps({"record": asdict(record), "chunks": chunks}).encode()
        if not self._remote.create(journal_path(self.site, shard), text) and (
            not self._read_journal(shard) or self._journal[shard] != record
        ):
            self._remote.put(journal_path(self.site, shard), text)  # of a shard that was lost since
        self._journal[shard], self._chunks[shard] = record, chunks
        self._doubted.discard(shard)
        self._finished(record)

    def _those_there(self, shard: int, data: bytes, features: NDArray[np.number[Any]]) -> bytes:
        """The bytes of a shard that is there. What cannot be decoded was not written by us, and is replaced."""
        there = self._read(self._path_of(shard), _MOST_SHARD_BYTES)
        if there == data:
            return data
        write_bytes(self.folder / self._name(shard), there)
        try:
            theirs = self.store.read(*self.store.layout.span(shard))
        except CacheError:
            self._remote.put(self._path_of(shard), data)
            return data
        if tolerance_of(self.recipe.space).deviations(features, theirs).max() > 1:
            raise RemoteError(
                f"{self._remote.url}/{self._path_of(shard)}: holds other features than this machine computes, though "
                "the recipe is the same",
                "Give all machines the same packages, and look at this one's memory",
            )
        return there

    def _refuse_missing(self, manifest: Manifest) -> None:
        """See that all is there in its size, before the record says so."""
        there = {item.path: item.bytes for item in patiently(lambda: self._remote.list(self.site.root))}
        for name, entry in manifest.files.items():
            if name != DATASET_FILE and there.get(self._path(name)) != entry.bytes:
                raise RemoteError(f"{self._remote.url}/{self._path(name)}: is not there as it was sent: run it again")

    def _manifest_of(self, entry: Entry) -> Manifest:
        get_manifest(self.folder, self._remote, record=entry.record)
        return parse_manifest(self.folder)

    def _tidy(self) -> None:
        """Remove what was needed to make it, but for a sign to late machines."""
        sign = f"{self.site.journal}/{FINISHED}"
        with suppress(RemoteError):  # a key that may write and not delete
            self._remote.put(sign, b"1")
            listed = patiently(lambda: self._remote.list(f"{self.site.root}/work"))
            at_once(self._remote.remove, [item.path for item in listed if item.path != sign])

    def _read(self, path: str, most: int) -> bytes:
        return patiently(lambda: read(self._remote, path, most=most))

    def _name(self, shard: int) -> str:
        return zarr_shard(self.store.layout, shard)

    def _path(self, name: str) -> str:
        return f"{self.site.root}/{name}"

    def _path_of(self, shard: int) -> str:
        return self._path(self._name(shard))


def _remove(work: Path, pid: int, leases: Leases) -> None:
    if os.getpid() == pid:
        leases.close()
        for _ in range(_TRIES):  # on a slow disk, a sign of life may be under way yet
            shutil.rmtree(work, ignore_errors=True)
            if not work.exists():
                break
            time.sleep(_PAUSE_S)
