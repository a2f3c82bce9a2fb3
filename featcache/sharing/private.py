"""What of a cache is pushed where others may see no file names: the same features, with ids alone beside them."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from featcache.core.errors import TrustError, UsageError
from featcache.core.files import create
from featcache.core.recipe import WeightsSource, cache_name
from featcache.segmentation import COPY, SegmenterFile
from featcache.sharing.bundle import Bundle, about_cache, bundle_of_cache
from featcache.store import (
    DATASET_COLUMNS,
    DATASET_FILE,
    ROWS_FILE,
    Cache,
    Ids,
    IdsBuilder,
    RenamedRows,
    digest_of_lines,
    file_entry,
    ids_of,
    open_cache,
    order_of,
    texts_of,
    write_lines,
    write_rows,
)

_LEAST_SECRET_BYTES = 32
_PART = 1 << 16
_KEPT = ("label_separator", "row_counts", "created", "engine", "environment", "rows_computed", "seconds")


def private_bundle(folder: Path, work: Path, *, secret: bytes | None = None) -> Bundle:
    """A finished cache without paths and groups' names; with a secret also without the images' digests.

    Whoever has an image can tell by its digest whether it is in a cache. A secret makes other ids of them, by
    HMAC-SHA-256. Then it is another cache: its rows have other names, so that they are found in no other cache and
    compared with no image, and views do not follow from the ids.

    work : an empty folder for the tables that are written anew
    """
    cache = open_cache(folder)
    ids = _keyed(cache.lines.ids, secret)
    write_lines(work / DATASET_FILE, _hidden(cache, ids))
    changes: dict[str, Any] = {
        "dataset_digest": digest_of_lines(work / DATASET_FILE, cache.label_separator),
        "provenance": _provenance(cache),
    }
    files = {DATASET_FILE: work / DATASET_FILE}
    if secret is not None:
        changes |= _other_rows(cache, work / ROWS_FILE, secret)
        files[ROWS_FILE] = work / ROWS_FILE
    changes["files"] = {**cache.manifest.files, **{name: file_entry(path) for name, path in files.items()}}
    manifest = cache.manifest.model_copy(update=changes).sealed()
    parcel = bundle_of_cache(folder)
    return replace(
        parcel,
        name=manifest.name,
        digest=manifest.digest,
        manifest=manifest.text().encode(),
        files={**parcel.files, **files},
        entries=manifest.files,
        about=about_cache(manifest, cache.recipe),
        private=True,
    )


def read_secret(file: Path) -> bytes:
    """The secret in a file, which is made where there is none. TrustError where others can read it or it is short."""
    try:
        if not file.exists():
            create(file, os.urandom(_LEAST_SECRET_BYTES).hex().encode() + b"\n", mode=0o600)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}") from error
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise TrustError(f"{file}: others may read this secret: chmod 600 it, or name another file")
        secret = file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    if len(secret) < _LEAST_SECRET_BYTES:
        raise TrustError(f"{file}: {len(secret)} bytes: expected a secret of {_LEAST_SECRET_BYTES} or more; remove it")
    return secret


def _keyed(ids: Ids, secret: bytes | None) -> Ids:
    """The ids that others see in place of some."""
    if secret is None:
        return ids
    builder = IdsBuilder()
    for start in range(0, len(ids), _PART):
        part = (
            hmac.new(secret, name.encode(), hashlib.sha256).hexdigest() for name in texts_of(ids[start : start + _PART])
        )
        builder.add(ids_of(pa.array(part, pa.large_string())))
    return builder.done()


def _hidden(cache: Cache, ids: Ids) -> Iterator[pa.RecordBatch]:
    """The lines of a dataset copy with these ids (lines,) in place of paths and ids, by id: the order of the paths says
    something of them. Groups are numbered in an order that does not follow from their names."""
    label, split, group, order = cache.label, cache.split, cache.group_of_line, order_of(ids)
    first = np.full(int(group.max(initial=-1)) + 1, len(ids))
    np.minimum.at(first, group[order], np.arange(len(ids)))
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(1, len(first) + 1)
    for start in range(0, len(ids), _PART):
        of = order[start : start + _PART]
        names = pa.array(texts_of(ids[of]), pa.large_string())
        columns = {
            "image_id": names,
            "path": names,
            "label": pa.array([label.values[value] for value in label.number[of]], pa.large_string()),
            "split": pa.array([split.values[value] for value in split.number[of]], pa.large_string()),
            "group": pa.array([f"group-{value}" for value in number[group[of]]], pa.large_string()),
        }
        nothing = pa.nulls(len(of), pa.int64())
        yield pa.RecordBatch.from_pydict({**columns, **dict.fromkeys(DATASET_COLUMNS[5:], nothing)})


def _other_rows(cache: Cache, file: Path, secret: bytes) -> dict[str, Any]:
    """Write the row table with other ids. Returns what the manifest says of it."""
    recipe = cache.recipe
    keys = replace(cache.keys, images=_keyed(cache.keys.images, secret))
    write_rows(file, RenamedRows(cache.folder / ROWS_FILE, keys, space=recipe.space))
    digest = keys.digest(recipe)
    return {"digest": digest, "name": cache_name(recipe.space.backbone, digest, format_=cache.manifest.array.format)}


def _provenance(cache: Cache) -> dict[str, Any]:
    """How it was made, without names of files, folders and other caches."""
    provenance = cache.manifest.provenance
    known = SegmenterFile.kept(provenance, cache.recipe.space.segmentation, where=cache.name)
    copy = {COPY: known.without_names().text} if known else {}
    kept = {name: provenance[name] for name in _KEPT if name in provenance}
    weights = WeightsSource.read(str(provenance.get("weights", "")))
    return {**kept, **copy, "weights": "a file" if weights.kind == "file" else str(weights)}
