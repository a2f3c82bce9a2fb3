"""Filling one cache: shards are claimed, their rows rendered, computed and written, each stage ahead of the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from featcache.core.errors import DatasetError
from featcache.datasets import LabelledImage
from featcache.extraction.computing import Computer, Key
from featcache.extraction.rendering import Renderer
from featcache.extraction.rows import Job
from featcache.extraction.stage_times import StageTimes
from featcache.images import Pixels, ViewParameters
from featcache.store import Array, CacheWriter, DonorIndex

_JOB_VIEWS = 16
"""Views a job at most."""
_AHEAD_ROWS = 96
"""Rows that are rendered ahead: their pixels are in memory."""
_BATCHES, _WRITES = 2, 2
"""Batches that wait for the network, and shards that wait to be written, at most."""
_OPEN_BYTES = 256 << 20
"""Of the shards in memory. Two of them, at least, so that one may be begun while the other is ended."""


@dataclass
class Counts:
    """What an extraction did: rows computed here, rows copied, and from which caches."""

    computed: int = 0
    copied: int = 0
    sources: set[str] = field(default_factory=set)


@dataclass
class _Shard:
    """A shard in memory: its features, the rows of it that are still to come, and how many were asked for and came."""

    features: Array
    to_come: int
    asked: int = 0
    computed: int = 0


_Row = tuple[int, int, Pixels]
"""(shard, row, pixels)"""


class CacheFiller:
    """Fills one cache. See `featcache.extraction.one_pass.extract` for the arguments.

    Attributes
    ----------
    counts : what was done so far; shards count once they are written
    row : the furthest row that was taken in hand
    waits : whether all that is missing is held by other processes
    """

    def __init__(
        self,
        writer: CacheWriter,
        images: Mapping[str, LabelledImage],
        *,
        renderer: Renderer,
        computer: Computer,
        cut: int,
        reach: DonorIndex | None,
        shares: StageTimes,
        on_rows: Callable[[int], object],
        stopped: Callable[[], bool],
        most_shards: int | None = None,
    ) -> None:
        self._writer, self._images, self._reach = writer, images, reach
        self._renderer, self._computer, self._cut = renderer, computer, cut
        self._shares, self._on_rows, self._stopped = shares, on_rows, stopped
        self._most_shards = most_shards
        self._write_pool = ThreadPoolExecutor(1, "featcache-write")
        self._fresh: dict[int, list[int]] = {}
        """Rows to compute of every shard that is claimed and not written."""
        self._open: dict[int, _Shard] = {}
        self._rendered: deque[tuple[Job, Future[list[Pixels]] | None]] = deque()
        self._ahead_rows = 0
        self._batch: list[_Row] = []
        self._given_back: list[_Row] = []
        self._batches: deque[tuple[list[_Row], Future[list[Array] | None]]] = deque()
        self._writes: deque[tuple[int, _Shard, Future[None]]] = deque()
        layout = writer.store.layout
        item_bytes = np.dtype(layout.computed_dtype).itemsize
        shard_bytes = item_bytes * layout.rows_per_shard * int(np.prod(layout.row_shape))
        self._most_open = max(2, _OPEN_BYTES // shard_bytes)
        self._told = writer.rows_done
        self.counts = Counts()
        self.row, self.waits = -1, False
        computer.expect(cut, (self._key(row) for shard in writer.missing for row in self._fresh_rows(shard)))

    def steps(self) -> Iterator[int]:
        """Fills the cache, a job a step. Gives the furthest row."""
        while self._writer.missing and not self._stopped():
            written = len(self._writer.missing)
            yield from self._round()
            if len(self._writer.missing) == written and self._most_shards is None and not self._stopped():
                self.waits = True
                yield self.row
                self._writer.wait()  # others hold what is missing: they finish it, or die and leave it
                self._writer.refresh()
                self.waits = False
            self._tell()
            if self._most_shards is not None:  # the others are other processes' own
                return

    def close(self) -> None:
        """Let what is being written be finished, whatever happened."""
        for _, future in self._rendered:
            if future is not None:
                future.cancel()
        self._write_pool.shutdown()

    def _round(self) -> Iterator[int]:
        """Everything that can be claimed now."""
        for job in self._jobs():
            if job is not None:
                self._render(job)
                if self._ahead_rows < _AHEAD_ROWS:
                    continue
            elif not self._rendered:
                break  # the shards in hand have to be written first
            self._take()
            yield self.row
        while self._rendered:
            self._take()
            yield self.row
        self._submit_all()
        while self._batches:
            self._receive()
        while self._writes:
            self._written()

    def _jobs(self) -> Iterator[Job | None]:
        """What to render, shard by shard; None while enough of them are in memory."""
        claimed = 0
        while not self._stopped():
            if len(self._fresh) >= self._most_open:
                yield None
            elif claimed == self._most_shards or (shard := self._writer.claim()) is None:
                return
            else:
                claimed += 1
                yield from self._jobs_of(shard)

    def _jobs_of(self, shard: int) -> Iterator[Job]:
        rows = self._writer.rows
        self._fresh[shard] = fresh = self._fresh_rows(shard)
        if not fresh:
            yield Job(shard, None, (), ())
        for image_id, of_image in groupby(fresh, key=lambda number: rows[number].image_id):
            views = list(of_image)
            for first in range(0, len(views), _JOB_VIEWS):
                some = views[first : first + _JOB_VIEWS]
                parameters = tuple(ViewParameters(**rows[number].parameters) for number in some)
                yield Job(shard, self._image(image_id), tuple(some), parameters)

    def _fresh_rows(self, shard: int) -> list[int]:
        """Rows of a shard that no other cache in reach holds."""
        rows, numbers = self._writer.rows, range(*self._writer.store.layout.span(shard))
        return [number for number in numbers if not (self._reach and self._reach.holds(rows[number]))]

    def _image(self, image_id: str) -> LabelledImage:
        if image_id not in self._images:
            raise DatasetError(f"the image {image_id} of {self._writer.folder.name} is not in the data set")
        return self._images[image_id]

    def _key(self, number: int) -> Key:
        row = self._writer.rows[number]
        return row.image_id, row.view

    def _render(self, job: Job) -> None:
        space = self._writer.recipe.space
        future = self._renderer.submit(job.image, space, parameters=job.parameters) if job.image else None
        self._rendered.append((job, future))
        self._ahead_rows += len(job.rows)

    def _take(self) -> None:
        """Take the oldest job's views in hand."""
        job, future = self._rendered.popleft()
        self._ahead_rows -= len(job.rows)
        if self._stopped():
            self._keep_what_is_begun()
            if not self._is_begun(job.shard):
                return
        pixels = self._pixels(future)
        if job.shard not in self._open:
            self._open[job.shard] = self._begun(job.shard)
        self.row = max(self.row, *job.rows) if job.rows else self.row
        self._batch += [(job.shard, number, view) for number, view in zip(job.rows, pixels, strict=True)]
        while self._batch and len(self._batch) >= self._computer.call_rows:
            self._submit(self._computer.call_rows)
        if not job.rows:
            self._write(job.shard)

    def _pixels(self, future: Future[list[Pixels]] | None) -> list[Pixels]:
        if future is None:
            return []
        while self._batches and self._batches[0][1].done() and not future.done():
            self._receive()
        if any(not batch.done() for _, batch in self._batches):
            return future.result()
        with self._shares.of("wait"):
            return future.result()

    def _keep_what_is_begun(self) -> None:
        """Asked to stop: of what the network has not begun, keep the rows of shards that it has."""
        while self._batches:
            self._receive()
        self._batch = [row for row in self._given_back + self._batch if self._is_begun(row[0])]
        self._given_back = []

    def _is_begun(self, shard: int) -> bool:
        """Whether rows of a shard would be computed in vain if all stopped now."""
        return shard in self._open and self._open[shard].asked > 0

    def _begun(self, shard: int) -> _Shard:
        layout = self._writer.store.layout
        start, stop = layout.span(shard)
        features = np.empty((stop - start, *layout.row_shape), layout.computed_dtype)
        to_come = len(self._fresh[shard])
        if self._reach and to_come < stop - start:
            self.counts.sources.update(self._reach.fill(features, self._writer.rows[start:stop]))
        return _Shard(features, to_come)

    def _submit_all(self) -> None:
        """Bring what is left to the network; asked to stop, only of shards that are begun."""
        if self._stopped():
            self._keep_what_is_begun()
        while self._batch:
            self._submit(self._computer.call_rows)

    def _submit(self, n_rows: int) -> None:
        """Bring some rows to the network."""
        rows, self._batch = self._batch[:n_rows], self._batch[n_rows:]
        for shard, _, _ in rows:
            self._open[shard].asked += 1
        keys = [self._key(number) for _, number, _ in rows]
        pixels = [pixels for _, _, pixels in rows]
        given_up = _never if self._stopped() else self._stopped
        self._batches.append((rows, self._computer.submit(self._cut, keys, pixels=pixels, given_up=given_up)))
        while len(self._batches) > _BATCHES or (self._batches and self._batches[0][1].done()):
            self._receive()

    def _receive(self) -> None:
        """Put the oldest batch's features in their places."""
        rows, future = self._batches.popleft()
        features = future.result()
        if features is None:
            for number, _, _ in rows:
                self._open[number].asked -= 1
            self._given_back += rows
            return
        for (number, row, _), values in zip(rows, features, strict=True):
            shard = self._open[number]
            shard.features[row - self._writer.store.layout.span(number)[0]] = values
            shard.to_come -= 1
            shard.computed += 1
        self._tell()
        for number in dict.fromkeys(shard for shard, _, _ in rows):
            if not self._open[number].to_come:
                self._write(number)

    def _write(self, number: int) -> None:
        """Hand a shard to the thread that writes."""
        shard = self._open[number]
        self._writes.append((number, shard, self._write_pool.submit(self._write_now, number, shard.features)))
        while len(self._writes) > _WRITES or (self._writes and self._writes[0][2].done()):
            self._written()

    def _write_now(self, number: int, features: Array) -> None:
        with self._shares.of("write"):
            self._writer.write(number, features)

    def _written(self) -> None:
        number, shard, future = self._writes.popleft()
        future.result()
        self.counts.computed += shard.computed
        self.counts.copied += len(shard.features) - shard.computed
        del self._open[number], self._fresh[number]
        self._tell()

    def _tell(self) -> None:
        """Say how many more rows there are, those of other processes and those not yet written included."""
        in_hand = sum(shard.computed for number, shard in self._open.items() if self._writer.is_missing(number))
        now = self._writer.rows_done + in_hand
        self._on_rows(now - self._told)
        self._told = now


def _never() -> bool:
    return False
