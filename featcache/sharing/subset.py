"""A part of a cache on a remote: some splits, classes or images, pooled or halved on the way, as a cache of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featcache.core.errors import CacheError, CacheWriteError, RemoteError, UsageError, nearest
from featcache.core.files import PARTIAL_SUFFIX, sync
from featcache.core.recipe import Recipe, cache_name
from featcache.datasets import SPLITS, labels_in
from featcache.remotes import Remote
from featcache.sharing import rollback_guard as seen
from featcache.sharing.catalog import Entry
from featcache.sharing.options import Part
from featcache.sharing.reading import RemoteCache
from featcache.sharing.receive import Pulled, Trust, accept, refuse_links, refuse_small_disk
from featcache.sharing.transfer import Advance, Stopped
from featcache.store import (
    DATASET_FILE,
    MANIFEST_FILE,
    Array,
    Cache,
    CacheWriter,
    Coded,
    DatasetCopy,
    chosen_lines,
    digest_of_lines,
    ids_of,
    open_cache,
    which_are_in,
    write_lines,
    writing,
)

_LEAST_ID = 8
POOLINGS = ("avg", "max")


def pull_part(
    store: Remote,
    entry: Entry,
    *,
    parent: Path,
    part: Part,
    trust: Trust | None = None,
    advance: Advance = lambda _: None,
    stopped: Stopped = lambda: False,
) -> Pulled:
    """Get some rows of a cache into a cache of their own, named by the digest of its recipe and its rows.

    Only the chunks that hold them are fetched where the remote gives parts of files, else their shards. It appears when
    it is finished; what was done before an interruption is kept for the next try.

    advance : called with numbers of rows

    Raises as `featcache.sharing.receive.pull`, UsageError for a part that no row is in.
    """
    record = entry.record
    signed = accept(parent, store, entry=entry, trust=trust or Trust())
    with writing(parent), RemoteCache(store, record, parent=parent) as source:
        numbers = select(source, part)
        recipe = _recipe_of(source, part)
        rows = source.chosen_rows(numbers, None if recipe == source.recipe else recipe.space)
        digest = rows.keys().digest(recipe)
        format_ = source.manifest.array.format
        name = cache_name(recipe.space.backbone, digest, format_=format_)
        final = parent / name
        if (final / MANIFEST_FILE).is_file():
            if open_cache(final).manifest.digest != digest:
                raise UsageError(
                    f"{final}: holds another cache, whose digest begins alike",
                    "Pull into another folder with `to=FOLDER`",
                )
            return Pulled(
                name=name, folder=final, reused=True, record=record, signed=signed, fetched_bytes=source.fetched_bytes
            )
        if final.exists():
            raise UsageError(f"{final}: is in the way, and not a finished cache", f"Run 'featcache rm {name}' first")
        work = parent / f".{name}-{entry.sha256[:12]}{PARTIAL_SUFFIX}"
        shape = (
            source.features.shape[1:]
            if recipe.space.pooling == source.recipe.space.pooling
            else (source.features.shape[-1],)
        )
        row_bytes = int(np.prod(shape)) * np.dtype(recipe.space.dtype).itemsize
        refuse_links(work)
        work.mkdir(exist_ok=True)
        refuse_small_disk(parent, row_bytes * len(rows))
        writer = CacheWriter(work, recipe, rows=rows, row_shape=shape, format_=format_, allow_nonfinite=True)
        places = numbers[rows.keys().places_of(writer.keys)]
        _write(source, writer, places=places, part=part, advance=advance, stopped=stopped)
        lines = work / DATASET_FILE
        write_lines(lines, chosen_lines(source.dataset_file(), _are_lines_of(source, numbers)))
        separator = source.label_separator
        writer.finish(
            DatasetCopy(lines, separator),
            _provenance(source, store, part),
            dataset_digest=digest_of_lines(lines, separator),
        )
        for path in [*writer.folder.rglob("*"), writer.folder]:
            sync(path)
        try:
            writer.folder.rename(final)
        except OSError:
            if not (final / MANIFEST_FILE).is_file():  # else another process was quicker
                raise
        sync(parent)
        shutil.rmtree(work, ignore_errors=True)
        seen.remember(parent, store.url, entry=entry)
        return Pulled(
            name=name, folder=final, reused=False, record=record, signed=signed, fetched_bytes=source.fetched_bytes
        )


def select(cache: Cache, part: Part) -> NDArray[np.intp]:
    """Numbers of the rows that a part is of, increasing. UsageError where a name means nothing, or no row is left."""
    for split in part.splits:
        if split not in SPLITS:
            raise UsageError(f"`split={split!r:.80}`: expected train, val or test")
    for label in part.classes:
        if label not in cache.classes:
            raise UsageError(f"`classes={label!r:.80}`: {nearest(label, cache.classes)}")
    line, chosen = cache.line, np.ones(len(cache.line), bool)
    if part.splits:
        chosen &= _are(cache.split, part.splits.__contains__)[line]
    if part.classes:
        separator, asked = cache.label_separator, set(part.classes)
        chosen &= _are(cache.label, lambda text: not asked.isdisjoint(labels_in(text, separator)))[line]
    if part.images:
        ids = ids_of(pa.array(sorted(_image_ids(cache, part.images)), pa.large_string()))
        chosen &= which_are_in(cache.keys.images, ids)[cache.keys.image]
    if part.row_ids is not None:
        chosen &= which_are_in(cache.row_names(), ids_of(pa.array(sorted(part.row_ids), pa.large_string())))
    if not chosen.any():
        raise UsageError(f"{cache.name}: no row is in all of what was asked for: ask for less at a time")
    return np.flatnonzero(chosen)


def _are(column: Coded, wanted: Callable[[str], bool]) -> NDArray[np.bool_]:
    """Which lines of a column have a text that is wanted."""
    return np.array([*map(wanted, column.values)], bool)[column.number]


def _image_ids(cache: Cache, images: Sequence[str]) -> set[str]:
    by_path: dict[str, set[str]] = {image: set() for image in images}
    begins: dict[str, set[str]] = {image: set() for image in images}
    for part in cache.line_parts():
        ids = part["image_id"]
        for image in images:
            by_path[image].update(ids[part["path"] == image])
            begins[image].update(ids[ids.str.startswith(image) if len(image) >= _LEAST_ID else ids == image])
    for image in images:
        found = by_path[image] or begins[image]
        if len(found) != 1:
            what = "several images" if found else "no image"
            raise UsageError(
                f"`images={image!r:.200}`: {what} of {cache.name}: give a path as in its dataset, or the first "
                f"{_LEAST_ID} digits or more of an image id"
            )
    return set().union(*((by_path[image] or begins[image]) for image in images))


def _recipe_of(source: Cache, part: Part) -> Recipe:
    space = source.recipe.space
    if space.dtype == "uint8" and (part.pooling or part.dtype):
        raise UsageError(f"{source.name}: holds pixels, which are stored unchanged", "Leave out `pooling` and `dtype`")
    if part.pooling:
        if part.pooling not in POOLINGS:
            raise UsageError(f"`pooling={part.pooling!r:.40}`: expected avg or max")
        if space.pooling != "none" or len(source.features.shape) != 4:
            raise UsageError(f"{source.name}: is pooled already ({space.pooling})", "Leave out `pooling`")
        space = replace(space, pooling=part.pooling)
    if part.dtype:
        if part.dtype != "float16":
            raise UsageError(f"`dtype={part.dtype!r:.40}`: expected float16")
        space = replace(space, dtype=part.dtype)
    return Recipe(space, source.recipe.augmentation)


def _write(
    source: RemoteCache, writer: CacheWriter, places: NDArray[np.intp], part: Part, advance: Advance, stopped: Stopped
) -> None:
    """places : of each row of the writer, its number in the source"""
    with writer:
        advance(writer.rows_done)
        while writer.missing:
            if stopped():
                raise KeyboardInterrupt
            shard = writer.claim()
            if shard is None:
                writer.wait()
                continue
            start, stop = writer.store.layout.span(shard)
            try:
                writer.write(shard, pooled(source.features[places[start:stop]], part.pooling))
            except (CacheWriteError, RemoteError):
                raise
            except CacheError as error:
                raise UsageError(error.message, "Leave out `dtype`") from error
            advance(stop - start)


def pooled(features: Array, pooling: str) -> Array:
    """(n, h, w, c) -> (n, c) as extraction pools; as it is for "" """
    if not pooling:
        return features
    if pooling == "max":
        return np.asarray(features.max(axis=(1, 2)))
    return np.asarray(features.mean(axis=(1, 2), dtype=np.float64).astype(features.dtype))


def _are_lines_of(source: Cache, numbers: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which lines of the dataset copy are of images of these rows, (lines,)."""
    chosen = np.zeros(len(source.label.number), bool)
    chosen[source.line[numbers]] = True
    return chosen


def _provenance(source: RemoteCache, store: Remote, part: Part) -> dict[str, Any]:
    """How the part came to be: of which cache, from where, and what was asked for."""
    asked = {"splits": list(part.splits), "classes": list(part.classes), "images": len(part.images)}
    return {
        **source.manifest.provenance,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "part_of": {
            "cache": source.name,
            "digest": source.manifest.digest,
            "seal": source.manifest.seal,
            "remote": store.url,
            **asked,
            "pooling": part.pooling,
            "dtype": part.dtype,
        },
    }
