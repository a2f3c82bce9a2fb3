"""Extraction: shards of rows, rendered in threads, run through the backbone, handed to the cache."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np

from featcache.backbones.engine import Engine
from featcache.dataset.images import decode, read_bytes
from featcache.dataset.manifest import LabelledImage, image_id_of
from featcache.errors import DatasetError, ImageError
from featcache.files import sha256_bytes
from featcache.recipe import FeatureSpace, Recipe, row_id
from featcache.store.tables import Row
from featcache.store.writer import CacheWriter
from featcache.views import Pixels, ViewParameters, cut_and_resize, render, view_parameters

_BATCH_ROWS = 64
_JOB_VIEWS = 16
"""Views a job at most: the views of the jobs that are rendered ahead are all in memory."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """One image of a shard and the views of it that the shard holds."""

    image: LabelledImage
    parameters: tuple[ViewParameters, ...]


def rows_of(images: Sequence[LabelledImage], views: Sequence[int], recipe: Recipe) -> list[Row]:
    """The rows of a cache: image by image in the order of the manifest, view by view."""
    rows = []
    for image, n_views in zip(images, views, strict=True):
        for view in range(n_views):
            parameters = view_parameters(recipe.augmentation, image.image_id, view).to_dict()
            identity = row_id(recipe.space, image.image_id, parameters)
            rows.append(Row(image.image_id, view, identity, parameters))
    return rows


def extract(
    writer: CacheWriter,
    images: Mapping[str, LabelledImage],
    folder: Path,
    engine: Engine,
    on_rows: Callable[[int], object] = lambda _: None,
) -> int:
    """Compute every shard that `writer` still misses. Returns the number of rows computed.

    images : by image_id; folder : what their paths start from
    on_rows : called with the number of rows just computed

    Raises DatasetError if an image is no longer what the manifest says, CacheError if the cache cannot be
    written. Shards finished before are kept.
    """
    computed = 0
    missing = writer.missing
    jobs = [job for shard in missing for job in _jobs(writer, shard, images)]
    with (
        ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool,
        closing(_ahead(pool, lambda job: render_job(job, folder, writer.recipe.space), jobs, _BATCH_ROWS)) as pixels,
    ):
        rendered = (view for views in pixels for view in views)
        for shard in missing:
            start, stop = writer.store.layout.span(shard)
            features = np.empty((stop - start, *writer.store.layout.row_shape), writer.store.layout.dtype)
            for first in range(0, stop - start, _BATCH_ROWS):
                last = min(first + _BATCH_ROWS, stop - start)
                features[first:last] = engine.features(np.stack([next(rendered) for _ in range(last - first)]))
                on_rows(last - first)
            writer.write(shard, features)
            computed += stop - start
    return computed


def _jobs(writer: CacheWriter, shard: int, images: Mapping[str, LabelledImage]) -> Iterator[Job]:
    start, stop = writer.store.layout.span(shard)
    for image_id, rows in groupby(writer.rows[start:stop], key=lambda row: row.image_id):
        parameters = [ViewParameters(**row.parameters) for row in rows]
        for first in range(0, len(parameters), _JOB_VIEWS):
            yield Job(images[image_id], tuple(parameters[first : first + _JOB_VIEWS]))


def render_job(job: Job, folder: Path, space: FeatureSpace) -> list[Pixels]:
    """Read and decode an image once, and render the wanted views of it.

    The bytes must be those that the image is named by, so that a feature never belongs to another picture.
    """
    image = job.image
    try:
        data = read_bytes(folder / image.path)
        if image_id_of(sha256_bytes(data), image.box) != image.image_id:
            raise ImageError("its bytes changed while features were computed: run the command again")
        plain = cut_and_resize(decode(data), image.box, space.input_size_px)
    except DatasetError as error:
        raise DatasetError(f"{image.path}: {error}") from error
    return [render(plain, parameters) for parameters in job.parameters]


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Generator[Result]:
    """`map` in threads, in order, never more than `depth` items ahead, so that memory stays bounded."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
