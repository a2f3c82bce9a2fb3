"""ledger.jsonl: a line a finished shard, appended as soon as the shard is in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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
    return _parsed(path.read_bytes()) if path.is_file() else {}


class Follower:
    """Reads a ledger that grows, each line once: a cache of many shards looks at it after each of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file, self._end = (0, 0), 0
        """Which file was read, and up to where: behind the last whole line."""

    def fresh(self) -> dict[int, ShardRecord]:
        """As `read`, of what was appended since the last call; of everything where the file is another one now."""
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return {}
        with os.fdopen(handle, "rb") as opened:
            status = os.fstat(handle)
            file = status.st_dev, status.st_ino
            if file != self._file or status.st_size < self._end:
                self._file, self._end = file, 0
            opened.seek(self._end)
            data = opened.read()
        self._end += data.rfind(b"\n") + 1
        return _parsed(data)


def _parsed(data: bytes) -> dict[int, ShardRecord]:
    records = {}
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            record = ShardRecord(**strict_json(line))
        except (ValueError, TypeError, RecursionError):
            continue
        values = (record.shard, record.start, record.stop, record.bytes, record.sha256)
        if [type(value) for value in values] == [int, int, int, int, str]:
            records[record.shard] = record
    return records


def _line(record: ShardRecord) -> str:
    return json.dumps(asdict(record), separators=(",", ":")) + "\n"
