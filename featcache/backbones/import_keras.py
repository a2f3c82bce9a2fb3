"""The one place where Keras is imported, late and quietly."""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from featcache.core.errors import BackboneError
from featcache.core.offline import without_telemetry

_FIRST = ("zlib", "numcodecs.zstd")
"""TensorFlow shows everyone the zlib and zstd in it: modules loaded later would compress with them, to other bytes."""


@functools.cache
def import_keras() -> Any:
    """The `keras` module. The first call takes seconds; nothing that backends say on import is shown.

    Whoever sets TF_CPP_MIN_LOG_LEVEL to 0, 1 or 2 wants to see TensorFlow's log, and sees it.
    """
    without_telemetry()
    for name in _FIRST:
        import_module(name)
    # What goes wrong later arrives as an exception, not only in the log.
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3":
        return import_module("keras")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # what it has to say of compiling helps nobody here
    with _silent_stderr():
        return import_module("keras")


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide what is written to file descriptor 2, and show it after all if the block fails.

    TensorFlow reports missing CUDA libraries before its own log level is in force, past Python's
    sys.stderr: only the descriptor itself can be turned away.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # a process without standard error has nothing to hide
        yield
        return
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(kept, 2)
            hidden.seek(0)
            os.write(2, hidden.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def compute_deterministically() -> None:
    """Have the backend give the same bits on every run on one machine, from now on in this process."""
    backend = import_keras().backend.backend()
    if backend == "tensorflow":
        import_module("tensorflow").config.experimental.enable_op_determinism()
    elif backend == "torch":
        import_module("torch").use_deterministic_algorithms(True)


def spread_over(n_devices: int) -> None:
    """Have every batch computed in equal parts on so many devices, from now on in this process.

    Raises BackboneError where the backend cannot, or has fewer devices.
    """
    if n_devices == 1:
        return
    keras = import_keras()
    backend = keras.backend.backend()
    if backend != "jax":
        raise BackboneError(f"{n_devices} devices: only JAX spreads batches, not {backend}: set KERAS_BACKEND=jax")
    devices = keras.distribution.list_devices()
    if n_devices > len(devices):
        raise BackboneError(f"{n_devices} devices: there are {len(devices)} here ({', '.join(devices)})")
    spread = keras.distribution.DataParallel(devices=devices[:n_devices], auto_shard_dataset=False)
    keras.distribution.set_distribution(spread)
