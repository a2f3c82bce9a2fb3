"""Extraction: shards of rows, rendered in threads, run through the backbone, handed to the cache."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
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
from featcache.store.cache import Array
from featcache.store.reach import Reach
from featcache.store.tables import Row
from featcache.store.writer import CacheWriter
from featcache.views import Pixels, ViewParameters, cut_and_resize, render, view_parameters

_BATCH_ROWS = 64
_JOB_VIEWS = 16
"""Views a job at most: the views of the jobs that are rendered ahead are all in memory."""
_OPEN_SHARDS = 2
_OPEN_MENDED_SHARDS = 8
"""Shards in memory at most; more where each needs few rows, so that a batch may be of several."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """Views of one image that a shard holds, as rows of the cache. A job without any fills a shard from elsewhere."""

    shard: int
    image: LabelledImage | None
    rows: tuple[int, ...]
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


@dataclass
class Counts:
    """What an extraction did: rows computed here, rows copied, and from which caches."""

    computed: int = 0
    copied: int = 0
    sources: set[str] = field(default_factory=set)


def extract(
    writer: CacheWriter,
    images: Mapping[str, LabelledImage],
    folder: Path,
    engine: Callable[[], Engine],
    reach: Reach | None = None,
    on_rows: Callable[[int], object] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Counts:
    """Write every shard that the cache still misses: rows that other caches hold are copied, the rest is computed.

    Other processes may be at work on the same cache; this one returns when no shard is missing any more.

    images : by image_id; folder : what their paths start from
    engine : gives the backbone; called when the first row is to be computed
    on_rows : called with the number of rows that are there besides those before
    stopped : once it says True, the shard in hand is finished and nothing else begun

    Raises DatasetError if an image is no longer what the manifest says, CacheError if the cache cannot be
    written. Shards finished before are kept.
    """
    return _Extraction(writer, images, folder, engine, reach, on_rows, stopped).run()


@dataclass
class _OpenShard:
    """A shard in memory: its features, the rows of it that are still to come, and how many were computed."""

    features: Array
    to_come: int
    computed: int = 0


class _Extraction:
    def __init__(
        self,
        writer: CacheWriter,
        images: Mapping[str, LabelledImage],
        folder: Path,
        engine: Callable[[], Engine],
        reach: Reach | None,
        on_rows: Callable[[int], object],
        stopped: Callable[[], bool],
    ) -> None:
        self._writer = writer
        self._images = images
        self._folder = folder
        self._engine = engine
        self._reach = reach
        self._on_rows = on_rows
        self._stopped = stopped
        self._counts = Counts()
        self._fresh: dict[int, list[int]] = {}
        """Rows to compute of every shard that is claimed and not written."""
        self._open: dict[int, _OpenShard] = {}
        self._batch: list[tuple[int, int, Pixels]] = []
        """(shard, row, pixels) of the next batch."""
        self._told = writer.rows_done

    def run(self) -> Counts:
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            while self._writer.missing and not self._stopped():
                written = len(self._writer.missing)
                with closing(_ahead(pool, self._render, self._jobs(), _BATCH_ROWS)) as rendered:
                    self._consume(rendered)
                if len(self._writer.missing) == written and not self._stopped():
                    self._writer.wait()  # others hold what is missing: they finish it, or die and leave it
                    self._writer.refresh()
                self._tell()
        return self._counts

    def _consume(self, rendered: Iterable[tuple[Job, list[Pixels]]]) -> None:
        for job, pixels in rendered:
            self._take(job, pixels)
            if self._stopped() and not self._in_hand():
                return
        self._compute()

    def _in_hand(self) -> bool:
        """Whether a shard would lose rows if all stopped now."""
        return any(shard.computed and shard.to_come for shard in self._open.values())

    def _jobs(self) -> Iterator[Job | None]:
        """What to render, shard by shard; None while enough of them are in memory."""
        most = _OPEN_MENDED_SHARDS if self._reach else _OPEN_SHARDS
        while not self._stopped():
            if len(self._fresh) >= most:
                yield None
            elif (shard := self._writer.claim()) is None:
                return
            else:
                yield from self._jobs_of(shard)

    def _jobs_of(self, shard: int) -> Iterator[Job]:
        rows = self._writer.rows
        numbers = range(*self._writer.store.layout.span(shard))
        fresh = [number for number in numbers if not (self._reach and self._reach.holds(rows[number]))]
        self._fresh[shard] = fresh
        if not fresh:
            yield Job(shard, None, (), ())
        for image_id, of_image in groupby(fresh, key=lambda number: rows[number].image_id):
            views = list(of_image)
            for first in range(0, len(views), _JOB_VIEWS):
                some = views[first : first + _JOB_VIEWS]
                parameters = tuple(ViewParameters(**rows[number].parameters) for number in some)
                yield Job(shard, self._image(image_id), tuple(some), parameters)

    def _image(self, image_id: str) -> LabelledImage:
        if image_id not in self._images:
            raise DatasetError(f"the image {image_id} of {self._writer.folder.name} is not in the data set")
        return self._images[image_id]

    def _render(self, job: Job) -> tuple[Job, list[Pixels]]:
        return job, render_job(job, self._folder, self._writer.recipe.space)

    def _take(self, job: Job, pixels: list[Pixels]) -> None:
        fresh = self._fresh[job.shard]
        # A shard that is computed as a whole has batches of its own, the same in every run.
        whole = len(fresh) == len(range(*self._writer.store.layout.span(job.shard)))
        if job.shard not in self._open:
            if whole:
                self._compute()
            self._open[job.shard] = self._begun(job.shard, len(fresh))
        self._batch += [(job.shard, number, view) for number, view in zip(job.rows, pixels, strict=True)]
        while len(self._batch) >= _BATCH_ROWS:
            self._compute()
        if whole and job.rows[-1] == fresh[-1]:
            self._compute()
        self._write_finished()

    def _begun(self, shard: int, to_come: int) -> _OpenShard:
        layout = self._writer.store.layout
        start, stop = layout.span(shard)
        features = np.empty((stop - start, *layout.row_shape), np.float32)
        if self._reach and to_come < stop - start:
            self._counts.sources.update(self._reach.fill(features, self._writer.rows[start:stop]))
        return _OpenShard(features, to_come)

    def _compute(self) -> None:
        """Run the next batch through the backbone."""
        batch, self._batch = self._batch[:_BATCH_ROWS], self._batch[_BATCH_ROWS:]
        if batch:
            features = self._engine().features(np.stack([pixels for _, _, pixels in batch]))
            for (number, row, _), values in zip(batch, features, strict=True):
                shard = self._open[number]
                shard.features[row - self._writer.store.layout.span(number)[0]] = values
                shard.to_come -= 1
                shard.computed += 1
            self._tell()
        self._write_finished()

    def _write_finished(self) -> None:
        for number, shard in list(self._open.items()):
            if not shard.to_come:
                self._writer.write(number, shard.features)
                self._counts.computed += shard.computed
                self._counts.copied += len(shard.features) - shard.computed
                del self._open[number], self._fresh[number]
                self._tell()

    def _tell(self) -> None:
        """Say how many more rows there are, those of other processes and those not yet written included."""
        now = self._writer.rows_done + sum(shard.computed for shard in self._open.values())
        self._on_rows(now - self._told)
        self._told = now


def render_job(job: Job, folder: Path, space: FeatureSpace) -> list[Pixels]:
    """Read and decode an image once, and render the wanted views of it.

    The bytes must be those that the image is named by, so that a feature never belongs to another picture.
    """
    image = job.image
    if image is None:
        return []
    try:
        data = read_bytes(folder / image.path)
        if image_id_of(sha256_bytes(data), image.box) != image.image_id:
            raise ImageError("its bytes changed while features were computed: run the command again")
        plain = cut_and_resize(decode(data), image.box, space.input_size_px)
    except DatasetError as error:
        raise DatasetError(f"{image.path}: {error}") from error
    return [render(plain, parameters) for parameters in job.parameters]


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item | None], depth: int
) -> Generator[Result]:
    """`map` in threads, in order, never more than `depth` items ahead, so that memory stays bounded.

    An item None says that there is none for now: what is under way is handed out before the next is asked for.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            if item is not None:
                pending.append(pool.submit(function, item))
            elif not pending:
                return
            if item is None or len(pending) >= depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
