"""manifest.json: the commit record of a cache. A cache without one was never finished."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from featcache.errors import CacheError, CacheNotFoundError
from featcache.files import write_json
from featcache.project import explain
from featcache.store.layout import MANIFEST_FILE, Layout

CACHE_FORMAT = 1
_MAX_MANIFEST_BYTES = 64 << 20

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

    def write(self, folder: Path) -> None:
        """Commit: put manifest.json in place."""
        write_json(folder / MANIFEST_FILE, self.model_dump(mode="json"))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the cache in `folder`.

    Raises CacheNotFoundError where there is none, CacheError where it is not a sound one of this version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        state = (
            "it was never finished: run its 'featcache extract' again" if folder.is_dir() else "there is no such cache"
        )
        raise CacheNotFoundError(f"{folder}: {state}")
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise CacheError(f"{path}: larger than any manifest")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(f"{path}: cannot be read as JSON: {error}") from error
    version = value.get("format") if isinstance(value, dict) else None
    if isinstance(version, int) and version > CACHE_FORMAT:
        raise CacheError(f"{path}: format {version} is newer than this featcache ({CACHE_FORMAT}): update featcache")
    if version != CACHE_FORMAT:
        raise CacheError(f"{path}: no featcache manifest of format {CACHE_FORMAT}")
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise CacheError(f"{path}: {explain(error)}") from error
