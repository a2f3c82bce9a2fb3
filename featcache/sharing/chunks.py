"""chunks.json: place and digest of every chunk of a Zarr cache, so that parts of a shard can be had and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from featcache.core.errors import RemoteError
from featcache.core.files import sha256_bytes
from featcache.core.recipe import canonical_json
from featcache.core.strict_json import strict_json
from featcache.store import Layout

CHUNKS_FORMAT = 1
MAX_CHUNKS_BYTES = 256 << 20
Chunk = tuple[int, int, str]
"""Where a chunk begins in its shard's file, its bytes, its SHA-256."""


def chunks_of(shard: bytes, layout: Layout) -> list[Chunk]:
    """The chunks of a shard, in order. Raises ValueError where its file is none."""
    n_chunks = layout.rows_per_shard // layout.rows_per_chunk
    index = index_of(shard[-16 * n_chunks - 4 :])
    if len(index) != n_chunks:
        raise ValueError("a shard without its index")
    found = []
    for offset, length in index:
        if offset + length <= len(shard):  # what was not stored, behind the last row, has the largest numbers
            found.append((offset, length, sha256_bytes(memoryview(shard)[offset : offset + length])))
    return found


def index_of(tail: bytes) -> list[tuple[int, int]]:
    """What a shard's file ends with: offset and length (uint64) of each chunk, and a checksum (uint32)."""
    numbers = np.frombuffer(tail, "<u8", max(0, len(tail) - 4) // 16 * 2)
    return [(offset, length) for offset, length in numbers.reshape(-1, 2).tolist()]


def chunks_text(shards: Mapping[str, Sequence[Chunk]]) -> bytes:
    """chunks.json: {file of a shard: its chunks}"""
    return canonical_json({"format": CHUNKS_FORMAT, "shards": {name: list(shards[name]) for name in shards}}).encode()


def parse_chunks(data: bytes, where: str) -> dict[str, list[Chunk]]:
    """The inverse of `chunks_text`. RemoteError where it is none."""
    try:
        value = strict_json(data.decode("utf-8"))
        if value["format"] != CHUNKS_FORMAT:
            raise ValueError(f"format {value['format']!r:.20}, expected {CHUNKS_FORMAT}")
        return {str(name): chunks_in(chunks) for name, chunks in value["shards"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RemoteError(f"{where}: is no list of chunks: {str(error)[:200]}") from error


def chunks_in(value: Iterable[tuple[object, object, object]]) -> list[Chunk]:
    """The chunks of one shard, as JSON has them. ValueError or TypeError where they are none."""
    return [(_count(offset), _count(length), str(sha256)) for offset, length, sha256 in value]


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise ValueError(f"{value!r:.40} is no number of bytes")
    return value
