"""manifest.json: the commit record of a cache. A cache without one was never finished."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from featcache.errors import CacheError, CacheNotFoundError
from featcache.files import write_json
from featcache.project import explain
from featcache.store.layout import (
    DATASET_FILE,
    FEATURES_FOLDER,
    LEDGER_FILE,
    MANIFEST_FILE,
    RECIPE_FILE,
    ROWS_FILE,
    Layout,
)

CACHE_FORMAT = 1
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_DEPTH = 32

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, lt=2**53)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Record):
    """What one file of the cache must be."""

    bytes: Size
    sha256: Sha256


class ArrayEntry(_Record):
    """The feature array: its format, its shape and how it is cut."""

    format: Literal["zarr"]
    shape: list[Annotated[int, Field(gt=0, lt=2**40)]] = Field(min_length=2, max_length=4)
    dtype: Literal["float32", "float16"]
    rows_per_chunk: Annotated[int, Field(gt=0, le=2**20)]
    rows_per_shard: Annotated[int, Field(gt=0, le=2**30)]

    @property
    def layout(self) -> Layout:
        """The same as a `Layout`."""
        n_rows, *row_shape = self.shape
        return Layout(n_rows, tuple(row_shape), self.dtype, self.rows_per_chunk, self.rows_per_shard)

    @classmethod
    def of(cls, layout: Layout) -> ArrayEntry:
        """The entry that describes `layout`."""
        return cls.model_validate(
            {
                "format": "zarr",
                "shape": list(layout.shape),
                "dtype": layout.dtype,
                "rows_per_chunk": layout.rows_per_chunk,
                "rows_per_shard": layout.rows_per_shard,
            }
        )


class Manifest(_Record):
    """A finished cache: what it is, the digest of each of its files, and how it came to be.

    digest : of recipe and rows; the cache's name ends with its first eight digits
    dataset_digest : of the labels, splits, groups and paths in its copy of the dataset manifest
    provenance : engine, environment, time; facts about the making that decide no value
    """

    format: int
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
    digest: Sha256
    recipe_digest: Sha256
    dataset_digest: Sha256
    rows: Annotated[int, Field(gt=0, lt=2**40)]
    array: ArrayEntry
    files: dict[str, FileEntry]
    provenance: dict[str, Any]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or "\\" in name or pure.as_posix() != name or not pure.parts:
                raise ValueError(f"the file name {name!r} leads out of the cache")
        return files

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        """Every file that a cache has must be promised: a missing shard would read as zeros."""
        if self.rows != self.array.shape[0]:
            raise ValueError(f"{self.rows} rows, but {self.array.shape[0]} in the array")
        needed = [RECIPE_FILE, ROWS_FILE, DATASET_FILE, LEDGER_FILE, f"{FEATURES_FOLDER}/zarr.json"]
        n_shards = self.array.layout.n_shards
        if n_shards > len(self.files):  # said before a hostile number of names is made
            raise ValueError(f"{n_shards} shards, but only {len(self.files)} files")
        keys = "/".join("0" for _ in self.array.layout.row_shape)
        needed += [f"{FEATURES_FOLDER}/c/{shard}/{keys}" for shard in range(n_shards)]
        missing = [name for name in needed if name not in self.files]
        if missing:
            raise ValueError(f"files: {missing[0]} is not listed")
        return self

    def write(self, folder: Path) -> None:
        """Commit: put manifest.json in place."""
        write_json(folder / MANIFEST_FILE, self.model_dump(mode="json"))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of a key that stands there twice, readers take one or the other: it is refused."""
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!r:.80} stands there twice")
    return value


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether lists and objects of parsed JSON lie in one another more than `depth` times."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the cache in `folder`.

    Raises CacheNotFoundError where there is none, CacheError where it is not a sound one of this version.
    """
    path = folder / MANIFEST_FILE
    try:
        if not path.is_file():
            never = "it was never finished: run its 'featcache extract' again"
            raise CacheNotFoundError(f"{folder}: {never if folder.is_dir() else 'there is no such cache'}")
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise CacheError(f"{path}: larger than any manifest")
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except CacheError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(f"{path}: cannot be read as JSON: {error}") from error
    if _deeper_than(value, _MAX_DEPTH):
        raise CacheError(f"{path}: nested deeper than any manifest")
    version = value.get("format") if isinstance(value, dict) else None
    if isinstance(version, int) and version > CACHE_FORMAT:
        raise CacheError(f"{path}: format {version} is newer than this featcache ({CACHE_FORMAT}): update featcache")
    if version != CACHE_FORMAT:
        raise CacheError(f"{path}: no featcache manifest of format {CACHE_FORMAT}")
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise CacheError(f"{path}: {explain(error)}") from error
