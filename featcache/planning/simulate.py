"""A discrete-event simulation of workers that fill a cache: shard after shard, with losses, stragglers and a storage
that answers only so many requests."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

_MOST_UNITS = 200_000


@dataclass(frozen=True)
class Work:
    """What there is to do.

    unit_rows : rows of a shard, which is claimed, computed and written as a whole
    task_units : shards that a worker does in one go
    row_s, task_s : of a worker for each row, and besides for each task
    unit_read_bytes, unit_reads : of images, for each shard
    unit_written_bytes, unit_writes : of features, for each shard
    """

    n_rows: int
    unit_rows: int
    row_s: float
    task_units: int = 1
    task_s: float = 0.0
    unit_read_bytes: float = 0.0
    unit_reads: float = 0.0
    unit_written_bytes: float = 0.0
    unit_writes: float = 0.0


@dataclass(frozen=True)
class Fleet:
    """The workers, and the storage that they share.

    start_s : until a worker begins its first shard
    loss_s : mean time until a worker is lost, by an exponential distribution; infinite where none is
    replaced_s : until another starts in its place
    dead_s : until its shard is given to another
    slow_share, slow_factor : of workers that take so many times as long for everything that they compute
    requests_per_s, bytes_per_s : of the storage, for all workers together
    latency_s : of each answer
    """

    workers: int
    start_s: float = 0.0
    loss_s: float = math.inf
    replaced_s: float = 0.0
    dead_s: float = 30.0
    slow_share: float = 0.0
    slow_factor: float = 1.0
    requests_per_s: float = math.inf
    bytes_per_s: float = math.inf
    latency_s: float = 0.0


@dataclass(frozen=True)
class Course:
    """How it went.

    seconds : until the last shard is written
    writes, reads : requests
    losses : workers that were lost before the end
    busy : share of the workers' time in which they computed what was kept
    """

    seconds: float
    writes: float
    reads: float
    losses: int
    busy: float


def simulate(work: Work, fleet: Fleet, *, seed: int = 0, most_units: int = _MOST_UNITS) -> Course:
    """One course of the work. The same seed gives the same course.

    most_units : where there are more shards, so many together are one, to end soon; what a loss costs stays a shard
    """
    return _Simulation(work, fleet, seed=seed, most_units=most_units).run()


class _Storage:
    """Answers requests in the order in which they come, no more and no faster than it can."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._free_s = fleet, 0.0

    def answer(self, now: float, requests: float, *, n_bytes: float) -> float:
        """When `requests` with `n_bytes` in all, asked for now, are answered."""
        if not requests and not n_bytes:
            return now
        takes = max(requests / self._fleet.requests_per_s, n_bytes / self._fleet.bytes_per_s)
        self._free_s = max(self._free_s, now) + takes
        return self._free_s + self._fleet.latency_s


class _Simulation:
    """A course under way. A worker has one event ahead of it: that it claims a shard, or that it has computed one."""

    def __init__(self, work: Work, fleet: Fleet, *, seed: int, most_units: int) -> None:
        self._work, self._fleet, self._generator = work, fleet, np.random.default_rng(seed)
        n_shards = math.ceil(work.n_rows / work.unit_rows)
        self._together = math.ceil(n_shards / most_units)
        self._left = math.ceil(n_shards / self._together)
        self._last_rows = work.n_rows - (self._left - 1) * self._together * work.unit_rows
        self._storage = _Storage(fleet)
        self._events: list[tuple[float, int, int, Callable[[float, int], None]]] = []
        self._number = 0
        self._given_back: list[tuple[float, float]] = []
        """(when it can be claimed, how many rows) of what lost workers had."""
        self._idle: list[int] = []
        slow = self._generator.permutation(fleet.workers) < round(fleet.slow_share * fleet.workers)
        self._factor = np.where(slow, fleet.slow_factor, 1.0).tolist()
        self._dies = [fleet.start_s + self._life() for _ in range(fleet.workers)]
        self._written = [0.0] * fleet.workers
        self._in_task = [0] * fleet.workers
        self._rows = [0.0] * fleet.workers
        self._end = self._writes = self._reads = self._busy = 0.0
        self._losses, self._in_hand = 0, 0

    def run(self) -> Course:
        """To the end."""
        for worker in range(self._fleet.workers):
            self._at(self._fleet.start_s, worker, self._claim)
        while self._events and (self._left or self._given_back or self._in_hand):
            now, _, worker, happens = heapq.heappop(self._events)
            happens(now, worker)
        paid = max(self._end, 1e-12) * self._fleet.workers
        return Course(self._end, self._writes, self._reads, self._losses, self._busy / paid)

    def _life(self) -> float:
        return float(self._generator.exponential(self._fleet.loss_s)) if self._fleet.loss_s < math.inf else math.inf

    def _at(self, when: float, worker: int, happens: Callable[[float, int], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, worker, happens))

    def _claim(self, now: float, worker: int) -> None:
        if self._dies[worker] <= now:  # while it had nothing to do
            self._replace(self._dies[worker], worker)
            return
        if self._left:
            self._left -= 1
            rows = float(self._work.unit_rows * self._together if self._left else self._last_rows)
        elif self._given_back and self._given_back[0][0] <= now:
            _, rows = heapq.heappop(self._given_back)
        elif self._given_back:
            self._at(self._given_back[0][0], worker, self._claim)
            return
        else:
            self._idle.append(worker)
            return
        self._in_hand += 1
        self._rows[worker] = rows
        shards = rows / self._work.unit_rows
        tasks = shards / self._work.task_units if self._together > 1 else not self._in_task[worker]
        self._in_task[worker] = (self._in_task[worker] + 1) % self._work.task_units
        computed = now + self._factor[worker] * (rows * self._work.row_s + tasks * self._work.task_s)
        self._reads += shards * self._work.unit_reads
        read = self._storage.answer(now, shards * self._work.unit_reads, n_bytes=shards * self._work.unit_read_bytes)
        ends = max(computed, read)
        if self._dies[worker] < ends:
            self._at(self._dies[worker], worker, partial(self._lost, began=now, ends=ends))
        else:
            self._at(ends, worker, self._computed)

    def _lost(self, now: float, worker: int, *, began: float, ends: float) -> None:
        """What was begun is given back; of several shards that are simulated as one, only the one in hand."""
        rows, unit = self._rows[worker], self._work.unit_rows
        kept = min(math.floor((now - began) / (ends - began) * rows / unit) * unit, rows - 1)
        self._kept(kept, worker)
        self._in_hand -= 1
        heapq.heappush(self._given_back, (now + self._fleet.dead_s, rows - kept))
        if self._idle:
            self._at(now + self._fleet.dead_s, self._idle.pop(), self._claim)
        self._replace(now, worker)

    def _replace(self, now: float, worker: int) -> None:
        self._losses += 1
        back = now + self._fleet.replaced_s + self._fleet.start_s
        self._dies[worker], self._in_task[worker] = back + self._life(), 0
        self._at(back, worker, self._claim)

    def _computed(self, now: float, worker: int) -> None:
        self._in_hand -= 1
        rows = self._rows[worker]
        shards = rows / self._work.unit_rows
        self._kept(rows, worker)
        n_bytes = shards * self._work.unit_written_bytes
        written = self._storage.answer(now, shards * self._work.unit_writes, n_bytes=n_bytes)
        self._end = max(self._end, written)
        goes_on = max(now, self._written[worker])  # the shard before this one has to be written
        self._written[worker] = written
        self._at(goes_on, worker, self._claim)

    def _kept(self, rows: float, worker: int) -> None:
        self._busy += rows * self._work.row_s * self._factor[worker]
        self._writes += rows / self._work.unit_rows * self._work.unit_writes
