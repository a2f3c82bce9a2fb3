"""The history of a training as a TensorBoard log, written by tensorboardX, which needs no TensorFlow."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from featcache.core.errors import UsageError
from featcache.training.history import Epoch

FOLDER = "tensorboard"
SCALARS = ("loss", "accuracy", "val_loss", "val_accuracy", "lr")


def refuse_missing() -> None:
    """Raise UsageError where logs cannot be written."""
    if find_spec("tensorboardX") is None:
        raise UsageError("`tensorboard` needs tensorboardX", "Run pip install 'featcache[tensorboard]'")


class EventLog:
    """The log of a training under way, in `folder`/tensorboard. It begins anew: with all epochs that are told first.

    So a training that goes on has each of its epochs once, whatever an interrupted one had written.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        (folder / FOLDER).mkdir()
        # Not SummaryWriter: a thread of its own would write, late, and keep its errors to itself.
        self._writer = EventsWriter(str(folder / FOLDER / "events"))
        self._written = 0

    def tell(self, history: Sequence[Epoch], flush: bool = False) -> None:
        """Write the epochs that are new: each at the time when it ended, by how long those behind it took."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        new = history[self._written :]
        ended = time.time() - sum(entry.seconds for entry in new)
        for entry in new:
            ended += entry.seconds
            measured = {name: getattr(entry, name) for name in SCALARS if not math.isnan(getattr(entry, name))}
            values = [Summary.Value(tag=name, simple_value=value) for name, value in measured.items()]
            self._writer.write_event(Event(step=entry.epoch, wall_time=ended, summary=Summary(value=values)))
        if flush or not self._written:
            self._writer.flush()
        self._written = len(history)

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()


def write(folder: Path, history: Sequence[Epoch]) -> None:
    """Write a whole log into `folder`."""
    log = EventLog(folder)
    log.tell(history)
    log.close()
