"""What can be seen of a training under way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pandas as pd

from featcache.core.progress import Progress
from featcache.reporting import figures
from featcache.training import Epoch, OnEpoch, runs, tensorboard as events

EVERY_S = 5.0


@contextmanager
def followed(
    folder: Path, name: str, *, epochs: int, progress: Progress, tensorboard: bool = False
) -> Iterator[OnEpoch]:
    """What a training tells its history to: it shows progress, and brings files in `folder` up to date.

    These are history.csv and curves.png, every few seconds; and a TensorBoard log where that is asked for.
    """
    told, last = 0, time.monotonic()
    with ExitStack() as stack:
        log = stack.enter_context(closing(events.EventLog(folder))) if tensorboard else None
        advance = stack.enter_context(progress.begin(f"training {name}", epochs))

        def tell(history: Sequence[Epoch]) -> None:
            nonlocal told, last
            advance(len(history) - told)
            told = len(history)
            due = time.monotonic() - last >= EVERY_S
            if log is not None:
                log.tell(history, flush=due)
            if due:
                runs.write_history(folder, history)
                figures.write_curves(pd.DataFrame(history), folder / figures.CURVES_FILE, title=name)
                last = time.monotonic()
            progress.epochs(history)

        yield tell
