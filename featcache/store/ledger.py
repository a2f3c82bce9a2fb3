"""ledger.jsonl: a line a finished shard, appended as soon as the shard is in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from featcache.core.files import sync_handle, write_text
from featcache.core.strict_json import strict_json


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard: which, its rows (start, stop), size and digest of what it is stored in."""

    shard: int
    start: int
    stop: int
    bytes: int
    sha256: str


def append(path: Path, record: ShardRecord) -> None:
    """Add one line and see it to the disk. A line torn by a crash before is closed first.

    One write in append mode, so that the lines of several processes do not mix.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        length = os.fstat(handle).st_size
        torn = length and os.pread(handle, 1, length - 1) != b"\n"
        line = (b"\n" if torn else b"") + _line(record).encode()
        if os.write(handle, line) != len(line):
            raise OSError("the ledger could only be written in part: the disk may be full")
        sync_handle(handle)
    finally:
        os.close(handle)


def write(path: Path, records: Iterable[ShardRecord]) -> None:
    """The ledger of a finished cache: one line a shard, in their order."""
    write_text(path, "".join(_line(record) for record in sorted(records, key=lambda record: record.shard)))


def read(path: Path) -> dict[int, ShardRecord]:
    """Finished shards by number; the last line of a shard counts, torn lines do not."""
    records = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = ShardRecord(**strict_json(line))
            except (ValueError, TypeError, RecursionError):
                continue
            if [type(value) for value in astuple(record)] == [int, int, int, int, str]:
                records[record.shard] = record
    return records


def _line(record: ShardRecord) -> str:
    return json.dumps(asdict(record), separators=(",", ":")) + "\n"
