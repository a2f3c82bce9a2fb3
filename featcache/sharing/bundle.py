"""What is pushed: a cache or a run as a list of files with their digests, and what a listing shows of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from featcache.core.errors import RemoteError, RunError
from featcache.core.files import sha256_bytes, sha256_file
from featcache.core.project import explain
from featcache.core.recipe import Recipe, digest
from featcache.core.strict_json import strict_json
from featcache.sharing.record import FOLDERS, RUN_FILE, Kind
from featcache.store import DATASET_FILE, MANIFEST_FILE, FileEntry, Layout, Manifest, file_of, open_cache
from featcache.training import Run, is_finished

_MAX_FILES = 10_000
_SAFE_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}){0,9}")


@dataclass(frozen=True)
class Bundle:
    """Everything that goes to a remote under one name.

    manifest : the bytes of manifest.json, or of a run's files.json
    files : where each file lies here
    entries : what each must be
    layout : of a Zarr cache whose chunks can be listed; None for others
    place : the root, where it is not named by what lies in it
    """

    kind: Kind
    name: str
    digest: str
    manifest: bytes
    files: Mapping[str, Path]
    entries: Mapping[str, FileEntry]
    about: Mapping[str, Any]
    layout: Layout | None = None
    private: bool = False
    place: str = ""

    @property
    def root(self) -> str:
        """The folder of what decides a value. It is the same for the same bytes, whoever pushes them and when."""
        if self.place:
            return self.place
        values = {name: entry.sha256 for name, entry in self.entries.items() if name != DATASET_FILE}
        return f"{FOLDERS[self.kind]}/{self.name}/{digest(values)[:16]}"

    @property
    def labels(self) -> str:
        """The folder of the manifest and the labels."""
        return self.root if self.kind == "run" else f"{self.root}/labels-{self.manifest_entry.sha256[:16]}"

    @property
    def manifest_entry(self) -> FileEntry:
        """Size and digest of the manifest."""
        return FileEntry(bytes=len(self.manifest), sha256=sha256_bytes(self.manifest))


def bundle_of_cache(folder: Path) -> Bundle:
    """A finished cache. Raises CacheNotFoundError or CacheError where it is none, or does not open."""
    cache = open_cache(folder)
    manifest = cache.manifest
    return replace(
        bundle_there(manifest, cache.recipe),
        files={name: file_of(folder, manifest, name=name) for name in manifest.files},
        layout=manifest.array.layout if manifest.array.format == "zarr" else None,
    )


def bundle_there(manifest: Manifest, recipe: Recipe, *, place: str = "") -> Bundle:
    """A cache whose files lie on the remote already. place : see `Bundle`"""
    return Bundle(
        kind="cache",
        name=manifest.name,
        digest=manifest.digest,
        manifest=manifest.text().encode(),
        files={},
        entries=manifest.files,
        about=about_cache(manifest, recipe),
        place=place,
    )


def about_cache(manifest: Manifest, recipe: Recipe) -> dict[str, Any]:
    """What a listing shows of a cache."""
    return {
        "backbone": recipe.space.backbone,
        "space": recipe.space.digest,
        "pooling": recipe.space.pooling,
        "rows": manifest.rows,
        "shape": list(manifest.array.shape),
        "dtype": manifest.array.dtype,
        "format": manifest.array.format,
        "dataset": manifest.dataset_digest,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
    }


class RunFiles(BaseModel):
    """files.json of a run: what each of its files must be."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Annotated[int, Field(ge=1, le=1)] = 1
    files: dict[str, FileEntry] = Field(max_length=_MAX_FILES)

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if not _SAFE_PATH.fullmatch(name) or name == RUN_FILE:
                raise ValueError(f"the file name {name!r:.80} is none of a run")
        return files

    def text(self) -> bytes:
        """files.json, to the byte."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()


def parse_run_files(data: bytes, where: str) -> RunFiles:
    """The inverse of `RunFiles.text`. RemoteError where it is none."""
    try:
        return RunFiles.model_validate(strict_json(data.decode("utf-8")))
    except ValidationError as error:
        raise RemoteError(f"{where}: is no list of a run's files: {explain(error)[:500]}") from error
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"{where}: is no list of a run's files: {error}") from error


def bundle_of_run(folder: Path) -> Bundle:
    """A finished run. Raises RunError where it is none, or holds what is no file."""
    if not is_finished(folder):
        raise RunError(f"{folder}: no finished run", "Train one with `featcache.fit_head()`")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    found.pop(RUN_FILE, None)  # of a pull
    for name, path in found.items():
        if path.is_symlink() or not path.is_file() or not _SAFE_PATH.fullmatch(name):
            raise RunError(f"{folder}: {name!r:.80} is no plain file of a run: take it out, then push again")
    try:
        entries = {name: FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path)) for name, path in found.items()}
    except OSError as error:
        raise RunError(f"{folder}: cannot be read: {error.strerror or error}") from error
    manifest = RunFiles(files=entries).text()
    return Bundle(
        kind="run",
        name=folder.name,
        digest=sha256_bytes(manifest),
        manifest=manifest,
        files=found,
        entries=entries,
        about=about_run(folder, entries),
    )


def about_run(folder: Path, entries: Mapping[str, FileEntry]) -> dict[str, Any]:
    """What a listing shows of a run. Raises RunError where it cannot be read."""
    run = Run(folder)
    test = run.metrics.get("test")
    accuracy = test.get("accuracy") if isinstance(test, dict) else None
    return {
        "trained": str(run.config.get("kind", ""))[:80],
        "cache": str(run.config.get("cache", ""))[:80],
        "cache_name": str(run.config.get("cache_name", ""))[:200],
        "test_accuracy": accuracy if isinstance(accuracy, float) else None,
        "bytes": sum(entry.bytes for entry in entries.values()),
    }


MANIFEST_FILES: dict[Kind, str] = {"cache": MANIFEST_FILE, "run": RUN_FILE}
