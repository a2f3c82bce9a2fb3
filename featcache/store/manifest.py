"""manifest.json: the commit record of a cache. A cache without one was never finished."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from json.encoder import encode_basestring
from math import prod
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from featcache.core.closeness import deviations
from featcache.core.errors import CacheError, CacheNotFoundError, refuse_shortage
from featcache.core.files import is_hidden, write_text
from featcache.core.project import explain
from featcache.core.recipe import digest
from featcache.core.strict_json import strict_json
from featcache.store.contract import FeatureStore
from featcache.store.layout import DATASET_FILE, LEDGER_FILE, MANIFEST_FILE, RECIPE_FILE, ROWS_FILE, Layout, files_of

CACHE_FORMAT = 2
LABEL_SEPARATOR, ROW_COUNTS = "label_separator", "row_counts"
MAX_MANIFEST_BYTES = 16 << 20
_MAX_SHARD_BYTES = 128 << 20
_SHOWN_CHARS = 1000
Counts = Mapping[str, Mapping[str, int]]
"""{label: {split: rows}}"""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
"""Of nearly all files: no part begins with a dot."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, lt=2**53)]


def with_labels_said(
    provenance: Mapping[str, Any], separator: str, *, counts: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Provenance that says what stands between the labels of an image, unless each has one, and how many rows of each
    label are in each split, unless that is None."""
    said = {name: value for name, value in provenance.items() if name not in (LABEL_SEPARATOR, ROW_COUNTS)}
    if separator:
        said[LABEL_SEPARATOR] = separator
    if counts is not None:
        said[ROW_COUNTS] = counts
    return said


def counts_said(provenance: Mapping[str, Any], n_rows: int) -> Counts | None:
    """What a manifest says; None where it says nothing, or what cannot be true of so many rows."""
    said = provenance.get(ROW_COUNTS)
    if not isinstance(said, dict) or not all(isinstance(splits, dict) for splits in said.values()):
        return None
    numbers = [number for splits in said.values() for number in splits.values()]
    if not all(type(number) is int and number > 0 for number in numbers) or sum(numbers) != n_rows:
        return None
    return said


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Record):
    """What one file of the cache must be."""

    bytes: Size
    sha256: Sha256


class ArrayEntry(_Record):
    """The feature array: its format, its shape and how it is cut."""

    format: Literal["zarr", "hdf5"]
    shape: list[Annotated[int, Field(gt=0, lt=2**40)]] = Field(min_length=2, max_length=4)
    dtype: Literal["float32", "float16", "uint8"]
    rows_per_chunk: Annotated[int, Field(gt=0, le=2**20)]
    rows_per_shard: Annotated[int, Field(gt=0, le=2**30)]

    @property
    def layout(self) -> Layout:
        """The same as a `Layout`."""
        n_rows, *row_shape = self.shape
        return Layout(n_rows, tuple(row_shape), self.dtype, self.rows_per_chunk, self.rows_per_shard)

    @classmethod
    def of(cls, store: FeatureStore) -> Self:
        """The entry that describes the array of `store`."""
        layout = store.layout
        return cls(
            format=store.format,
            shape=list(layout.shape),
            dtype=layout.dtype,  # type: ignore[arg-type]
            rows_per_chunk=layout.rows_per_chunk,
            rows_per_shard=layout.rows_per_shard,
        )


LEFT_OUT_OF_MANIFEST = frozenset({"norm"})
"""Fields that are written only where they have a value."""


class Tolerance(_Record):
    """How near another computation of a row must come: |new - old| <= relative * |old| + absolute * max |old|.

    The maximum is over the row's features. Engines and machines round differently, most visibly near zero.

    norm : where it is there, in place of the two others: the difference of a row, ||new - old||, as a share of ||old||.
        For arithmetic of few digits, where single values tell little
    """

    relative: Annotated[float, Field(ge=0, le=1)]
    absolute: Annotated[float, Field(ge=0, le=1)]
    norm: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, exclude_if=lambda value: value is None)

    def deviations(self, new: NDArray[Any], old: NDArray[Any]) -> NDArray[np.float64]:
        """How far rows (n, ...) are off, (n,): 1 is all that is allowed; inf for what is no number on one side only."""
        return deviations(new, old, relative=self.relative, absolute=self.absolute, norm=self.norm)


class Manifest(_Record):
    """A finished cache: what it is, the digest of each of its files, and how it came to be.

    digest : of recipe and rows; the cache's name ends with its first eight digits
    dataset_digest : of the labels, splits, groups and paths in its copy of the dataset manifest
    tolerance : how near recomputed features must come
    provenance : engine, environment, time; facts about the making that decide no value. What stands between the labels
        of an image, where it may have several; and how many rows of each label are in each split
    seal : digest of all the other fields; set when the record is made
    """

    format: int
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
    digest: Sha256
    recipe_digest: Sha256
    dataset_digest: Sha256
    rows: Annotated[int, Field(gt=0, lt=2**40)]
    array: ArrayEntry
    files: dict[str, FileEntry]
    tolerance: Tolerance
    provenance: dict[str, Any]
    seal: Sha256 = ""

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if _PLAIN_NAME.fullmatch(name):
                continue
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or "\\" in name or pure.as_posix() != name or not pure.parts:
                raise ValueError(f"the file name {name!r} leads out of the cache")
        return files

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        """Every file that a cache has must be promised: a missing shard would read as zeros."""
        if self.rows != self.array.shape[0]:
            raise ValueError(f"{self.rows} rows, but {self.array.shape[0]} in the array")
        layout = self.array.layout
        shard_bytes = layout.rows_per_shard * prod(layout.row_shape) * np.dtype(layout.dtype).itemsize
        if layout.rows_per_chunk > layout.rows_per_shard or shard_bytes > _MAX_SHARD_BYTES:  # it is held in memory
            raise ValueError(f"shards of {shard_bytes} bytes: expected whole chunks, and {_MAX_SHARD_BYTES} at most")
        if self.array.format == "zarr" and layout.n_shards > len(
            self.files
        ):  # before a hostile number of names is made
            raise ValueError(f"{layout.n_shards} shards, but only {len(self.files)} files")
        expected = {RECIPE_FILE, ROWS_FILE, DATASET_FILE, LEDGER_FILE, *files_of(self.array.format, layout)}
        for name in sorted(expected ^ set(self.files)):
            raise ValueError(f"files: {name!r:.80} is {'not listed' if name in expected else 'no file of a cache'}")
        return self

    def sealed(self) -> Self:
        """The same with its seal."""
        return self.model_copy(update={"seal": digest(self.model_dump(mode="json", exclude={"seal"}))})

    def with_labels(
        self, copy: FileEntry, *, dataset_digest: str, separator: str, counts: Mapping[str, Any] | None
    ) -> Self:
        """The same cache with another dataset copy. separator, counts : see `with_labels_said`"""
        changes = {
            "files": {**self.files, DATASET_FILE: copy},
            "dataset_digest": dataset_digest,
            "provenance": with_labels_said(self.provenance, separator, counts=counts),
        }
        return self.model_copy(update=changes).sealed()

    def text(self) -> str:
        """manifest.json, to the byte."""
        value = {**self.model_dump(mode="json", exclude={"files"}), "files": {}}
        value = {name: value[name] for name in type(self).model_fields}
        around = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # There may be a hundred thousand files, and Python's own writer of indented JSON is slow.
        files = ",\n".join(
            f'    {encode_basestring(name)}: {{\n      "bytes": {entry.bytes},\n'
            f'      "sha256": "{entry.sha256}"\n    }}'
            for name, entry in self.files.items()
        )
        return around.replace('\n  "files": {}', f'\n  "files": {{\n{files}\n  }}', 1) if files else around

    def write(self, folder: Path) -> None:
        """Commit: put manifest.json in place."""
        write_text(folder / MANIFEST_FILE, self.text())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the cache in `folder`.

    Raises CacheNotFoundError where there is none, CacheError where it is not a sound one of this version, or where
    a file that it names is a link out of the cache.
    """
    manifest = parse_manifest(folder)
    for name in links_out(folder, manifest.files):
        raise CacheError(f"{folder.name}: {name} is a link that leads out of the cache: nothing there is read")
    return manifest


def leads_out(folder: Path, name: str) -> bool:
    """Whether a file of the cache in `folder` is, by a link, a file of some other place."""
    return any(True for _ in links_out(folder, (name,)))


def links_out(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Those of the files of the cache in `folder` that are, by a link, files of some other place.

    A cache may have a hundred thousand files: paths are texts here, and a folder that is no link is looked at once.
    """
    plain: set[str] = set()

    def has_link(name: str) -> bool:
        if name in plain:
            return False
        parent = name.rpartition("/")[0]
        if (parent and has_link(parent)) or os.path.islink(f"{folder}/{name}"):  # noqa: PTH114
            return True
        plain.add(name)
        return False

    for name in names:
        try:
            if has_link(name) and not (folder / name).resolve().is_relative_to(folder.resolve()):
                yield name
        except (OSError, RuntimeError, ValueError):  # links in a circle, or a name that no file has: nothing is there
            continue


def parse_manifest(folder: Path) -> Manifest:
    """`read_manifest` without a look at the other files."""
    path = folder / MANIFEST_FILE
    if is_hidden(folder):
        raise CacheNotFoundError(f"{folder}: is no cache: a command is at work there, or left it behind (see gc)")
    try:
        if not path.is_file():
            never = "it was never finished: run its extract command again"
            raise CacheNotFoundError(f"{folder}: {never if folder.is_dir() else 'there is no such cache'}")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise CacheError(f"{path}: larger than any manifest")
        text = path.read_bytes().decode("utf-8")
        value = strict_json(text)
    except CacheError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        refuse_shortage(error, path)
        raise CacheError(f"{path}: cannot be read as JSON: {error}") from error
    version = value.get("format") if isinstance(value, dict) else None
    if isinstance(version, int) and version > CACHE_FORMAT:
        raise CacheError(f"{path}: format {version} is newer than this featcache ({CACHE_FORMAT}): update featcache")
    if isinstance(version, int) and 0 < version < CACHE_FORMAT:
        raise CacheError(f"{path}: format {version} is of an older featcache: its extract command makes it again")
    if version != CACHE_FORMAT:
        raise CacheError(f"{path}: no featcache manifest of format {CACHE_FORMAT}")
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        said = explain(error)
        raise CacheError(f"{path}: {said[:_SHOWN_CHARS]}{' ...' if len(said) > _SHOWN_CHARS else ''}") from error
    try:
        sealed = manifest.text() == text and manifest.seal == manifest.sealed().seal
    except ValueError:  # a number too large, or half a character: no manifest is written with them
        sealed = False
    if not sealed:
        raise CacheError(f"{path}: is damaged or was changed by hand: its seal does not fit")
    return manifest
