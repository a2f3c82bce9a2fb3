"""The one place where Keras is imported, late and quietly, on a backend that is installed."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from featcache.core.errors import BackboneError, MissingPackageError
from featcache.core.extras import install_line, is_installed
from featcache.core.files import expanded
from featcache.core.offline import without_telemetry

_FIRST = ("zlib", "numcodecs.zstd")
"""TensorFlow shows everyone the zlib and zstd in it: modules loaded later would compress with them, to other bytes."""

_BACKENDS = ("tensorflow", "jax", "torch")
"""Those that train and compute; each is an extra of that name."""


def keras_folder() -> Path:
    """The folder of Keras' settings and downloaded weights: KERAS_HOME, else ~/.keras."""
    if home := os.environ.get("KERAS_HOME"):
        return expanded(home)
    user = expanded("~")
    # Where there is no writable home, Keras uses the folder for temporary files on every system.
    return (user if os.access(user, os.W_OK) else Path("/tmp")) / ".keras"  # noqa: S108


def keras_backend() -> str:
    """The backend that Keras has or will have; "" where none is installed. Nothing is imported.

    As KERAS_BACKEND says; else the one of Keras' own settings where it is installed, else the first that is.
    """
    if named := os.environ.get("KERAS_BACKEND"):
        return named
    configured = None
    with suppress(OSError, ValueError, AttributeError):
        configured = json.loads((keras_folder() / "keras.json").read_bytes()).get("backend")
    found = [name for name in _BACKENDS if is_installed(name)]
    return configured if configured in found else next(iter(found), "")


def has_keras() -> bool:
    """Whether Keras and its backend are installed. Nothing is imported."""
    backend = keras_backend()
    return bool(backend) and all(is_installed(name) for name in ("keras", *({backend} & {*_BACKENDS})))


def require_keras(what: str = "a network") -> None:
    """Raise MissingPackageError, with the command that installs them, where Keras or its backend is missing.

    what : what requires them, as the subject of a sentence
    """
    if not has_keras():
        named = keras_backend()
        raise MissingPackageError(
            f"{what} requires Keras on {named or 'TensorFlow, JAX or PyTorch'}, which is not installed: "
            f"{install_line(named if named in _BACKENDS else 'tensorflow')}"
        )


@functools.cache
def import_keras() -> Any:
    """The `keras` module. The first call takes seconds; nothing that backends say on import is shown.

    Whoever sets TF_CPP_MIN_LOG_LEVEL to 0, 1 or 2 wants to see TensorFlow's log, and sees it.

    Raises MissingPackageError where Keras or its backend is not installed.
    """
    require_keras()
    os.environ["KERAS_BACKEND"] = keras_backend()
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
