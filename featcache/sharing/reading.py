"""Reading a cache that stays on its remote: shards, or chunks of them, come when they are wanted, and are checked."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import RemoteError
from featcache.core.files import PARTIAL_SUFFIX, sha256_bytes
from featcache.core.leases import Leases
from featcache.remotes import NoRangesError, Remote, read
from featcache.sharing.chunks import MAX_CHUNKS_BYTES, Chunk, index_of, parse_chunks
from featcache.sharing.receive import Tables, check_tables, get_manifest
from featcache.sharing.record import CHUNKS_FILE, Record
from featcache.sharing.transfer import DamagedError, at_once, fetch, patiently
from featcache.store import (
    ARRAY_FILE,
    LEASES_FOLDER,
    Array,
    Features,
    FileEntry,
    Layout,
    Span,
    choose_reader,
    open_store,
    writing,
)

SPOOL_BYTES = 1 << 30
_MOSTLY = 0.7
"""From this share of a shard on, it is fetched as a whole."""


class RemoteCache(Tables):
    """A cache on a remote. Its tables are here, checked; its features come when they are read. Use it as a context.

    spool_bytes : how much of the features is kept here at most, besides what is read at the moment
    """

    def __init__(self, store: Remote, record: Record, *, parent: Path, spool_bytes: int = SPOOL_BYTES) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        self.record, self.url = record, store.url
        work = Path(tempfile.mkdtemp(prefix=f".{record.name}-", suffix=PARTIAL_SUFFIX, dir=parent))
        leases = Leases(work / LEASES_FOLDER)  # so that gc knows it from what a killed command left
        self._finalizer = weakref.finalize(self, _remove, work, os.getpid(), leases)
        leases.claim("reading")
        folder = work / record.name
        folder.mkdir()
        entries = get_manifest(folder, store, record=record)
        shards = {name for name in entries if name.startswith("features.zarr/c/")}
        small = [name for name in entries if name not in shards]
        at_once(lambda name: fetch(store, record.path_of(name), entry=entries[name], target=folder / name), small)
        self._here = set(small)
        super().__init__(folder)
        self.kept_in = parent
        check_tables(self, record)
        self.reader: RemoteReader | None = None
        if shards:
            self.reader = RemoteReader(
                store,
                record,
                folder=folder,
                entries=entries,
                layout=self.manifest.array.layout,
                spool_bytes=spool_bytes,
            )
            self.features = Features(self.reader)

    def __enter__(self) -> RemoteCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was kept here."""
        self._finalizer()

    @property
    def fetched_bytes(self) -> int:
        """What came over the line: tables and features."""
        tables = sum(self.manifest.files[name].bytes for name in self._here) + self.record.manifest.bytes
        return tables + (self.reader.fetched_bytes if self.reader else 0)


def _remove(work: Path, pid: int, leases: Leases) -> None:
    if os.getpid() == pid:  # a worker that was forked must not remove what its parent reads
        leases.close()
        shutil.rmtree(work, ignore_errors=True)


class RemoteReader:
    """The array of a Zarr cache on a remote. See `featcache.store.features.Reader`; one thread reads at a time."""

    def __init__(
        self,
        store: Remote,
        record: Record,
        *,
        folder: Path,
        entries: Mapping[str, FileEntry],
        layout: Layout,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        self.layout = layout
        self.fetched_bytes = 0
        self._store, self._record, self._folder, self._entries = store, record, folder, entries
        self._process = os.getpid()
        self._spool_bytes = spool_bytes
        files = open_store("zarr", folder, layout=layout)
        self._files = {shard: name for name, shard in files.files().items() if shard is not None}
        self._reader = choose_reader(files, "auto")
        self._chunks: dict[str, list[Chunk]] | None = None
        self._ranges = store.ranges and record.chunks is not None
        self._there: dict[int, set[int] | None] = {}
        """Shards that are here, the one read last behind the others: which of their chunks; None for all."""
        self._reading, self._noting = threading.Lock(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_reading", "_noting")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reading, self._noting = threading.Lock(), threading.Lock()

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop. RemoteError where they cannot be had, or are not what was promised."""
        return self.read_spans([(start, stop)])

    def read_spans(self, spans: Sequence[Span]) -> Array:
        """The rows of all spans, one behind the other; only the chunks that hold them are fetched."""
        blocks = [block for start, stop in spans for block in self.layout.blocks(start, stop)]
        if not blocks:
            return np.empty((0, *self.layout.row_shape), self.layout.dtype)
        with self._reading:
            self._keep_apart()
            parts, place = [], 0
            while place < len(blocks):
                some = self._as_many_as_fit(blocks[place:])
                self._fetch(some)
                parts += [self._reader.read(start, stop) for start, stop in some]
                place += len(some)
            self._let_go(0)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _keep_apart(self) -> None:
        """A worker process keeps shards of its own: another one lets go of them when it likes."""
        if self._process == os.getpid():
            return
        before = self._folder
        self._process, self._there = os.getpid(), {}
        self._folder = before.parent / f"{self._record.name}-{self._process}"
        (self._folder / ARRAY_FILE).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(before / ARRAY_FILE, self._folder / ARRAY_FILE)
        self._reader = choose_reader(open_store("zarr", self._folder, layout=self.layout), "auto")

    def _as_many_as_fit(self, blocks: Sequence[Span]) -> Sequence[Span]:
        """Blocks from the first on whose shards fill half of the spool at most, and one at least."""
        seen: set[int] = set()
        total = 0
        for number, (start, _) in enumerate(blocks):
            shard = start // self.layout.rows_per_shard
            total += 0 if shard in seen else self._entries[self._files[shard]].bytes
            seen.add(shard)
            if number and total > self._spool_bytes // 2:
                return blocks[:number]
        return blocks

    def _fetch(self, blocks: Iterable[Span]) -> None:
        wanted: dict[int, set[int]] = {}
        for start, stop in blocks:
            shard = start // self.layout.rows_per_shard
            begin, _ = self.layout.span(shard)
            step = self.layout.rows_per_chunk
            wanted.setdefault(shard, set()).update(range((start - begin) // step, -(-(stop - begin) // step)))
        missing = {}
        for shard, chunks in wanted.items():
            there = self._there.pop(shard, set())  # put behind the others
            self._there[shard] = there
            if there is not None and chunks - there:
                missing[shard] = chunks - there
        self._let_go(sum(self._entries[self._files[shard]].bytes for shard in missing), set(wanted))
        at_once(lambda shard: self._fetch_of(shard, missing[shard]), missing)

    def _fetch_of(self, shard: int, chunks: set[int]) -> None:
        if self._ranges:
            try:
                if self._fetch_chunks(shard, chunks):
                    return
            except NoRangesError:
                self._ranges = False
        name = self._files[shard]
        (self._folder / name).unlink(missing_ok=True)
        fetch(self._store, self._record.path_of(name), entry=self._entries[name], target=self._folder / name)
        self._there[shard] = None
        self._count(self._entries[name].bytes)

    def _fetch_chunks(self, shard: int, numbers: set[int]) -> bool:
        """Put chunks at their places in a file that is empty elsewhere. False where the whole shard is better."""
        name = self._files[shard]
        listed, entry = self._list_of_chunks().get(name, []), self._entries[name]
        if max(numbers) >= len(listed):
            return False
        some = [listed[number] for number in sorted(numbers)]
        if sum(length for _, length, _ in some) > _MOSTLY * entry.bytes:
            return False
        path, file = self._record.path_of(name), self._folder / name
        n_chunks = self.layout.rows_per_shard // self.layout.rows_per_chunk
        tail = entry.bytes - 16 * n_chunks - 4
        if any(offset + length > tail for offset, length, _ in some):
            raise RemoteError(f"{self._record.name}: {CHUNKS_FILE} names places outside of {name}")
        pieces = [(start, self._checked(path, start, stop, parts)) for start, stop, parts in _runs(some)]
        if not file.is_file():
            pieces.append((tail, self._checked_index(path, tail, entry.bytes, listed)))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        with writing(file.parent), file.open("r+b") as opened:
            for start, data in pieces:
                opened.seek(start)
                opened.write(data)
        self._count(sum(len(data) for _, data in pieces))
        self._there[shard] = (self._there[shard] or set()) | numbers
        return True

    def _checked(self, path: str, start: int, stop: int, chunks: Sequence[Chunk]) -> bytes:
        """The bytes start..stop, each chunk of which has its digest."""

        def once() -> bytes:
            data = read(self._store, path, most=stop - start, start=start, stop=stop)
            for offset, length, sha256 in chunks:
                if sha256_bytes(memoryview(data)[offset - start : offset - start + length]) != sha256:
                    raise DamagedError(
                        f"{self._store.url}/{path}: bytes {offset} to {offset + length} are not what was pushed, and "
                        "are not used",
                        "The owner of the original repairs it with `featcache.push(check=True)`",
                    )
            return data

        return patiently(once)

    def _checked_index(self, path: str, start: int, stop: int, listed: Sequence[Chunk]) -> bytes:
        """The table at the end of a shard. One that led to other chunks would give rows the features of others."""

        def once() -> bytes:
            data = read(self._store, path, most=stop - start, start=start, stop=stop)
            if index_of(data)[: len(listed)] != [(offset, length) for offset, length, _ in listed]:
                raise DamagedError(f"{self._store.url}/{path}: its table of chunks is not the one that was pushed")
            return data

        return patiently(once)

    def _list_of_chunks(self) -> Mapping[str, list[Chunk]]:
        with self._noting:
            if self._chunks is None:
                entry, path = self._record.chunks, self._record.path_of(CHUNKS_FILE)
                assert entry is not None  # noqa: S101 - `_ranges` says so
                if entry.bytes > MAX_CHUNKS_BYTES:
                    raise RemoteError(f"{self._record.name}: {CHUNKS_FILE} of {entry.bytes} bytes: longer than any")
                file = self._folder.parent / CHUNKS_FILE
                fetch(self._store, path, entry=entry, target=file)
                self._chunks = parse_chunks(file.read_bytes(), f"{self._store.url}/{path}")
                self.fetched_bytes += entry.bytes
            return self._chunks

    def _count(self, n_bytes: int) -> None:
        with self._noting:
            self.fetched_bytes += n_bytes

    def _let_go(self, coming: int, but: set[int] | None = None) -> None:
        """Remove the shards that were not read for longest, until the rest and what is coming fit."""
        held = {shard: _on_disk(self._folder / self._files[shard]) for shard in self._there}
        total = sum(held.values()) + coming
        for shard in [shard for shard in self._there if shard not in (but or ())]:
            if total <= self._spool_bytes:
                return
            (self._folder / self._files[shard]).unlink(missing_ok=True)
            del self._there[shard]
            total -= held[shard]


def _runs(chunks: Sequence[Chunk]) -> list[tuple[int, int, list[Chunk]]]:
    """Chunks that lie one behind the other, as one range each: (start, stop, chunks)."""
    runs: list[tuple[int, int, list[Chunk]]] = []
    for chunk in sorted(chunks):
        offset, length, _ = chunk
        if runs and runs[-1][1] == offset:
            start, _, parts = runs[-1]
            runs[-1] = (start, offset + length, [*parts, chunk])
        else:
            runs.append((offset, offset + length, [chunk]))
    return runs


def _on_disk(file: Path) -> int:
    """Bytes that a file takes; what was never written in it takes none."""
    try:
        return file.stat().st_blocks * 512
    except OSError:
        return 0
