"""ledger.jsonl: a line a finished shard, appended as soon as the shard is in its place."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, astuple, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard: which, its rows (start, stop), its file's size and digest."""

    shard: int
    start: int
    stop: int
    bytes: int
    sha256: str


def append(path: Path, record: ShardRecord) -> None:
    """Add one line and see it to the disk. A line torn by a crash before is closed first."""
    line = json.dumps(asdict(record), separators=(",", ":")) + "\n"
    with path.open("ab+") as file:
        if file.tell() and not _ends_with_newline(path):
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> dict[int, ShardRecord]:
    """Finished shards by number; the last line of a shard counts, torn lines do not."""
    records = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = ShardRecord(**json.loads(line))
            except (ValueError, TypeError, RecursionError):
                continue
            if [type(value) for value in astuple(record)] == [int, int, int, int, str]:
                records[record.shard] = record
    return records


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
