"""Where the time of an extraction goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["open", "decode", "render", "wait", "compute", "write"]


@dataclass
class StageTimes:
    """Seconds that were spent in each stage. They overlap: decode and render add up those of several threads.

    open : loading networks
    decode : reading, checking and decoding files, cutting and shrinking
    render : augmented views
    wait : that the next rows were waited for, while no network had anything to compute
    compute : that a network was at work
    write : encoding, writing and syncing shards
    """

    open: float = 0.0
    decode: float = 0.0
    render: float = 0.0
    wait: float = 0.0
    compute: float = 0.0
    write: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @contextmanager
    def of(self, stage: Stage) -> Iterator[None]:
        """Adds the wall-clock time of the block to a stage; from any thread."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)

    @property
    def seconds(self) -> dict[str, float]:
        """By stage."""
        return {name: getattr(self, name) for name in ("open", "decode", "render", "wait", "compute", "write")}

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by stage, such as those of another process."""
        with self._lock:
            for stage, more in seconds.items():
                setattr(self, stage, getattr(self, stage) + more)

    def bottleneck(self, seconds: float, cores: int) -> Stage:
        """The stage that the others wait for, in an extraction that took so many seconds on so many cores."""
        threads: dict[Stage, int] = {"open": 1, "decode": cores, "render": cores, "compute": 1, "write": 1}
        busy = {stage: getattr(self, stage) / threads[stage] for stage in threads}
        return "compute" if self.compute >= seconds / 2 else max(busy, key=lambda stage: busy[stage])
