"""What of a cache is pushed where others may see no file names: the same features, with ids alone beside them."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.core.errors import TrustError, UsageError
from featcache.core.files import create
from featcache.core.recipe import WeightsSource, cache_digest, cache_name, row_id
from featcache.datasets import Dataset, LabelledImage
from featcache.segmentation import COPY, SegmenterFile
from featcache.sharing.bundle import Bundle, about_cache, bundle_of_cache
from featcache.store import (
    DATASET_FILE,
    ROWS_FILE,
    Cache,
    file_entry,
    images_in,
    open_cache,
    rows_in,
    write_dataset_copy,
    write_rows,
)

_LEAST_SECRET_BYTES = 32
_KEPT = ("label_separator", "row_counts", "created", "engine", "environment", "rows_computed", "seconds")


def private_bundle(folder: Path, work: Path, *, secret: bytes | None = None) -> Bundle:
    """A finished cache without paths and groups' names; with a secret also without the images' digests.

    Whoever has an image can tell by its digest whether it is in a cache. A secret makes other ids of them, by
    HMAC-SHA-256. Then it is another cache: its rows have other names, so that they are found in no other cache and
    compared with no image, and views do not follow from the ids.

    work : an empty folder for the tables that are written anew
    """
    cache = open_cache(folder)
    images = images_in(cache.dataset)
    new_id = {image.image_id: _keyed(secret, image.image_id) for image in images}
    groups = {name: f"group-{number}" for number, name in enumerate(_groups(images, new_id), start=1)}
    hidden = [LabelledImage(new_id[i.image_id], i.label, i.split, groups[i.group], new_id[i.image_id]) for i in images]
    hidden.sort(key=lambda image: image.image_id)  # the order of the paths says something of them
    write_dataset_copy(work / DATASET_FILE, hidden)
    changes: dict[str, Any] = {
        "dataset_digest": Dataset(tuple(hidden), Path(), label_separator=cache.label_separator).digest,
        "provenance": _provenance(cache),
    }
    files = {DATASET_FILE: work / DATASET_FILE}
    if secret is not None:
        changes |= _other_rows(cache, work / ROWS_FILE, new_id)
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


def _keyed(secret: bytes | None, image_id: str) -> str:
    return image_id if secret is None else hmac.new(secret, image_id.encode(), hashlib.sha256).hexdigest()


def _groups(images: Any, new_id: Mapping[str, str]) -> list[str]:
    """The groups in an order that does not follow from their names."""
    first: dict[str, str] = {}
    for image in images:
        first[image.group] = min(first.get(image.group, "~"), new_id[image.image_id])
    return sorted(first, key=lambda group: first[group])


def _other_rows(cache: Cache, file: Path, new_id: Mapping[str, str]) -> dict[str, Any]:
    """Write the row table with other ids. Returns what the manifest says of it."""
    recipe = cache.recipe
    rows = [
        replace(
            row,
            image_id=new_id[row.image_id],
            row_id=row_id(recipe.space, new_id[row.image_id], parameters=row.parameters),
        )
        for row in rows_in(cache.views)
    ]
    write_rows(file, rows)
    digest = cache_digest(recipe, ((row.image_id, row.view) for row in rows))
    return {"digest": digest, "name": cache_name(recipe.space.backbone, digest, format_=cache.manifest.array.format)}


def _provenance(cache: Cache) -> dict[str, Any]:
    """How it was made, without names of files, folders and other caches."""
    provenance = cache.manifest.provenance
    known = SegmenterFile.kept(provenance, cache.recipe.space.segmentation, where=cache.name)
    copy = {COPY: known.without_names().text} if known else {}
    kept = {name: provenance[name] for name in _KEPT if name in provenance}
    weights = WeightsSource.read(str(provenance.get("weights", "")))
    return {**kept, **copy, "weights": "a file" if weights.kind == "file" else str(weights)}
