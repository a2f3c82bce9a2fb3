"""convert: the rows of a cache in another format or dtype, as a cache of its own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from featcache.core.errors import CacheError, CacheWriteError, UsageError
from featcache.core.files import resolved
from featcache.core.progress import SILENT, Progress
from featcache.core.project import refuse_unwritable
from featcache.core.recipe import Recipe, cache_name
from featcache.store.cache import Cache, open_cache
from featcache.store.layout import MANIFEST_FILE, Format
from featcache.store.writer import CacheWriter


@dataclass(frozen=True)
class Converted:
    """A cache that holds the rows of another.

    reused : whether it was there
    faint_rows : rows, of those written now, of which float16 keeps few digits, since all their values are tiny
    """

    source: str
    cache: Cache
    reused: bool
    faint_rows: int = 0


def convert(
    cache: Cache,
    format_: Format | None = None,
    *,
    dtype: str | None = None,
    parent: Path | None = None,
    progress: Progress = SILENT,
) -> Converted:
    """Write the rows of `cache` in another format, as another dtype or to another folder. It stays as it is.

    format_, dtype : None for the cache's own
    parent : folder of caches for the new one; None for the one that the cache lies in

    Raises UsageError where there is nothing to do, for pixels in another dtype, and for float16 to float32: the digits
    are gone, and a cache must not promise them. CacheError for values that float16 cannot hold, CacheWriteError where
    nothing can be written.
    """
    array, space = cache.manifest.array, cache.recipe.space
    format_, dtype, parent = format_ or array.format, dtype or space.dtype, parent or cache.kept_in
    if space.dtype == "uint8" != dtype:
        raise UsageError(
            f"{cache.name}: holds pixels, which are stored as uint8",
            f"Leave out `dtype`. To read them as {dtype}: features[:].astype({dtype!r})",
        )
    if (space.dtype, dtype) == ("float16", "float32"):
        raise UsageError(
            f"{cache.name}: holds float16, and the digits of float32 are lost",
            "Run `featcache.extract(dtype='float32')`. To read them as float32: features[:].astype('float32')",
        )
    recipe = Recipe(replace(space, dtype=dtype), cache.recipe.augmentation)
    rows = cache.stored_rows(None if recipe == cache.recipe else recipe.space)
    digest = cache.keys.digest(recipe)
    folder = parent / cache_name(space.backbone, digest, format_=format_)
    if resolved(folder) == resolved(cache.folder):
        raise UsageError(f"{cache.name}: is {format_} and {dtype} already", "Set another `format`, `dtype` or `to`")
    if (folder / MANIFEST_FILE).is_file():
        return Converted(cache.name, open_cache(folder), reused=True)
    refuse_unwritable(parent)
    writer = CacheWriter(
        parent, recipe, rows=rows, row_shape=array.layout.row_shape, format_=format_, allow_nonfinite=True
    )
    _write(cache, writer, progress)
    return Converted(cache.name, open_cache(folder), reused=False, faint_rows=writer.faint_rows)


def _write(cache: Cache, writer: CacheWriter, progress: Progress) -> None:
    places = cache.keys.places_of(writer.keys)  # what was begun before a relabelling may have another order
    cache.let_go()
    with writer, progress.stopping() as stopped:
        with progress.begin(f"writing {writer.folder.name}", len(places)) as advance:
            advance(writer.rows_done)
            while writer.missing and not stopped():
                shard = writer.claim()
                if shard is None:
                    writer.wait()
                    continue
                start, stop = writer.store.layout.span(shard)
                features = cache.features[places[start:stop]]
                try:
                    writer.write(shard, features)
                except CacheWriteError:
                    raise
                except CacheError:  # values that can never be stored so: what was begun is of no use to anybody
                    shutil.rmtree(writer.folder, ignore_errors=True)
                    raise
                advance(stop - start)
        if writer.missing:
            raise KeyboardInterrupt
        made = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "converted_from": cache.name}
        writer.finish(
            cache.dataset_copy(),
            {**cache.manifest.provenance, **made},
            dataset_digest=cache.manifest.dataset_digest,  # the same copy, maybe of a larger data set
        )
