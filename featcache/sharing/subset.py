"""A part of a cache on a remote: some splits, classes or images, pooled or halved on the way, as a cache of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import CacheError, CacheWriteError, RemoteError, UsageError, nearest
from featcache.core.files import PARTIAL_SUFFIX, sync
from featcache.core.recipe import Recipe, cache_digest, cache_name, row_id
from featcache.datasets import SPLITS, Dataset, labels_in
from featcache.remotes import Remote
from featcache.sharing import rollback_guard as seen
from featcache.sharing.catalog import Entry
from featcache.sharing.options import Part
from featcache.sharing.reading import RemoteCache
from featcache.sharing.receive import Pulled, Trust, accept, refuse_links, refuse_small_disk
from featcache.sharing.transfer import Advance, Stopped
from featcache.store import MANIFEST_FILE, Array, Cache, CacheWriter, Row, images_in, open_cache, rows_in, writing

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
        rows = _named(rows_in(source.views.iloc[numbers]), recipe, source.recipe)
        digest = cache_digest(recipe, ((row.image_id, row.view) for row in rows))
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
        _write(source, writer, numbers=numbers, part=part, advance=advance, stopped=stopped)
        writer.finish(_dataset_of(source, rows), _provenance(source, store, part))
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
    rows = cache.rows
    chosen = np.ones(len(rows), bool)
    for split in part.splits:
        if split not in SPLITS:
            raise UsageError(f"`split={split!r:.80}`: expected train, val or test")
    if part.splits:
        chosen &= rows["split"].isin(part.splits).to_numpy()
    if part.classes:
        for label in part.classes:
            if label not in cache.classes:
                raise UsageError(f"`classes={label!r:.80}`: {nearest(label, cache.classes)}")
        separator, asked = cache.label_separator, set(part.classes)
        chosen &= rows["label"].map(lambda text: not asked.isdisjoint(labels_in(text, separator))).to_numpy(bool)
    if part.images:
        chosen &= rows["image_id"].isin(_image_ids(cache, part.images)).to_numpy()
    if part.row_ids is not None:
        chosen &= cache.views["row_id"].isin(part.row_ids).to_numpy()
    if not chosen.any():
        raise UsageError(f"{cache.name}: no row is in all of what was asked for: ask for less at a time")
    return np.flatnonzero(chosen)


def _image_ids(cache: Cache, images: Iterable[str]) -> set[str]:
    dataset = cache.dataset
    found: set[str] = set()
    for image in images:
        by_path = set(dataset.loc[dataset["path"] == image, "image_id"])
        begins = dataset["image_id"].str.startswith(image) if len(image) >= _LEAST_ID else dataset["image_id"] == image
        ids = by_path or set(dataset.loc[begins, "image_id"])
        if len(ids) != 1:
            what = "several images" if ids else "no image"
            raise UsageError(
                f"`images={image!r:.200}`: {what} of {cache.name}: give a path as in its dataset, or the first "
                f"{_LEAST_ID} digits or more of an image id"
            )
        found |= ids
    return found


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


def _named(rows: list[Row], recipe: Recipe, before: Recipe) -> list[Row]:
    """The rows, under the names that they have in another feature space."""
    if recipe == before:
        return rows
    return [replace(row, row_id=row_id(recipe.space, row.image_id, parameters=row.parameters)) for row in rows]


def _write(
    source: RemoteCache, writer: CacheWriter, numbers: NDArray[np.intp], part: Part, advance: Advance, stopped: Stopped
) -> None:
    of = {
        (row.image_id, row.view): number
        for number, row in zip(numbers, rows_in(source.views.iloc[numbers]), strict=True)
    }
    places = np.array([of[_key(row)] for row in writer.rows], np.intp)
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


def _key(row: Row) -> tuple[str, int]:
    return row.image_id, row.view


def pooled(features: Array, pooling: str) -> Array:
    """(n, h, w, c) -> (n, c) as extraction pools; as it is for "" """
    if not pooling:
        return features
    if pooling == "max":
        return np.asarray(features.max(axis=(1, 2)))
    return np.asarray(features.mean(axis=(1, 2), dtype=np.float64).astype(features.dtype))


def _dataset_of(source: Cache, rows: Sequence[Row]) -> Dataset:
    ids = {row.image_id for row in rows}
    images = tuple(image for image in images_in(source.dataset) if image.image_id in ids)
    return Dataset(images, Path(), label_separator=source.label_separator)


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
