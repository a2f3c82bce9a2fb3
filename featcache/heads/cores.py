"""The cores of this machine, for products of matrices that are too small for BLAS' own threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

_THREAD_ROWS = 32


class Cores:
    """A thread a core, while BLAS uses one itself.

    BLAS' own threads wait for each other by spinning, which on a machine with other work costs many times what they
    give; these sleep.
    """

    def __init__(self, name: str) -> None:
        self.number = os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.number, name)
        self._blas = threadpool_limits(1, user_api="blas")

    def __enter__(self) -> Cores:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        self._blas.restore_original_limits()

    def each(self, function: Callable[[slice], object], n_rows: int) -> None:
        """Call it with spans of the rows, as many as there are cores. Spans that no thread has begun are not waited
        for, but done here: other work on the machine may have the other cores."""
        step = max(-(-n_rows // self.number), _THREAD_ROWS)
        spans = [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
        left = iter(spans)

        def work() -> None:
            with np.errstate(all="ignore"):  # each thread has its own; who calls looks at the numbers
                for span in left:
                    function(span)

        helpers = [self.pool.submit(work) for _ in spans[1:]]
        work()
        for helper in helpers:
            if not helper.cancel():
                helper.result()
