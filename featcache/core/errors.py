"""One tree of errors. Everything a user can do wrong ends in one of these, with one message::

    FeatcacheError
    ├── UsageError             (ValueError)         the command or call contradicts itself
    │   └── ArgumentsError                          arguments exclude or need each other
    ├── MissingPackageError    (ImportError)        an optional package is missing
    ├── ProjectError           (ValueError)         featcache.toml is missing or wrong
    ├── RecipeError            (ValueError)         a study's recipe is missing or wrong
    ├── DatasetError           (ValueError)         images, labels or splits are unusable
    │   └── ImageError                              one image cannot be decoded
    ├── BackboneError          (ValueError)         unknown backbone, size or engine
    │   └── WeightsError                            weights are missing or do not fit
    ├── CacheError             (RuntimeError)       a cache is damaged
    │   ├── CacheNotFoundError (FileNotFoundError)  no such cache, or an unfinished one
    │   └── CacheWriteError    (OSError)            a cache cannot be written
    ├── ClusterError           (RuntimeError)       a cluster is not there, or its workers are unfit
    ├── HeadError              (ValueError)         a head cannot be trained as asked
    ├── ScratchError           (ValueError)         a network cannot be trained as asked
    ├── RunError               (RuntimeError)       a run is missing or damaged
    ├── ShortageError                               no more threads or open files
    └── RemoteError            (RuntimeError)       a remote cannot be used
        ├── RemoteNotFoundError (FileNotFoundError)  nothing of that name is there
        ├── RemoteAccessError  (PermissionError)    it wants other credentials
        ├── RemoteDroppedError (ConnectionError)    it was cut off or silent
        ├── TrustError                              a signature is missing or wrong
        └── OfflineError       (ConnectionError)    `offline` forbids the network

A message says what is wrong, where, what was expected and what was found; its hint says what to do. Both name
arguments and calls as Python does, in backticks: `weights=PATH`, `featcache.init(resplit=True)`. The command line shows
them as flags and commands, and exits with 1, or 2 for ArgumentsError; a traceback that reaches a user is a defect.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable


class FeatcacheError(Exception):
    """Base of every error that featcache raises on purpose.

    Parameters
    ----------
    message : what is wrong
    hint : what to do, as a sentence; "" where the message says it all
    """

    def __init__(self, message: object = "", hint: str = "") -> None:
        super().__init__(f"{message}. {hint}" if hint else message)
        self.message = str(message)
        self.hint = hint

    def __init_subclass__(cls) -> None:
        """Libraries of clusters, which send errors, make them by `__new__`; of two kinds that must be OSError's."""
        super().__init_subclass__()
        if issubclass(cls, OSError):
            cls.__new__ = OSError.__new__  # type: ignore[method-assign]


class UsageError(FeatcacheError, ValueError):
    """The command or call contradicts itself."""


class ArgumentsError(UsageError):
    """Arguments that exclude each other, or that need another one."""


class MissingPackageError(FeatcacheError, ImportError):
    """What was asked for requires an optional package that is not installed; the message has the line to install it."""


class ProjectError(FeatcacheError, ValueError):
    """featcache.toml is missing, unreadable or says something impossible."""


class RecipeError(FeatcacheError, ValueError):
    """A study's recipe is missing, unreadable or says something impossible."""


class DatasetError(FeatcacheError, ValueError):
    """Images, labels or splits cannot be used as they are.

    left_out : (path, reason) of what was left out before the error, which often explains it
    """

    left_out: tuple[tuple[str, str], ...] = ()


class ImageError(DatasetError):
    """One image cannot be decoded or rendered; the message is the reason, without the path."""


class BackboneError(FeatcacheError, ValueError):
    """An unknown backbone, or one that cannot be built as asked."""


class WeightsError(BackboneError):
    """Weights that are missing, damaged or of another network."""


class CacheError(FeatcacheError, RuntimeError):
    """A cache does not hold what it promises."""


class CacheNotFoundError(CacheError, FileNotFoundError):
    """There is no such cache, or it was never finished."""

    __str__ = Exception.__str__


class CacheWriteError(CacheError, OSError):
    """A cache cannot be written: disk full, read-only, vanished."""

    __str__ = Exception.__str__


class ClusterError(FeatcacheError, RuntimeError):
    """A cluster is not there, its workers are not like this machine, or they are lost again and again."""


class HeadError(FeatcacheError, ValueError):
    """A head cannot be trained as asked, or its training failed."""


class ScratchError(FeatcacheError, ValueError):
    """A whole network cannot be trained as asked, or its training failed."""


class RunError(FeatcacheError, RuntimeError):
    """A run's files are missing or damaged."""


class RemoteError(FeatcacheError, RuntimeError):
    """A remote cannot be used as asked, or holds what it should not."""


class RemoteNotFoundError(RemoteError, FileNotFoundError):
    """Nothing of that name is on the remote."""

    __str__ = Exception.__str__


class RemoteAccessError(RemoteError, PermissionError):
    """The remote wants other credentials than those that are at hand."""

    __str__ = Exception.__str__


class RemoteDroppedError(RemoteError, ConnectionError):
    """The remote cannot be reached, cut a transfer off or was silent for too long: another try may do."""

    __str__ = Exception.__str__


class TrustError(RemoteError):
    """A signature is missing, wrong, or of nobody who is trusted here."""


class OfflineError(RemoteError, ConnectionError):
    """Something was about to reach another machine, and `offline` allows no network."""

    __str__ = Exception.__str__


class ShortageError(FeatcacheError):
    """The machine gives no more threads or open files; nothing is damaged.

    Memory is not among it: a damaged file may ask for any.
    """


_SHORTAGES = {
    errno.EMFILE: "this process may open no more files: see 'ulimit -n'",
    errno.ENFILE: "this machine can open no more files",
    errno.EAGAIN: "this user or container may have no more threads or processes: see 'ulimit -u'",
}
_NO_THREADS = ("can't start new thread", "Resource temporarily unavailable")
_LOCKED = "lock"
"""In the message of an error whose number is that of missing threads, where another process holds a file."""


def shortage(error: BaseException | None) -> str:
    """What the machine has no more of, where that is what an error, or one below it, says; else ""."""
    seen = 0
    while error is not None and seen < 20:
        if _LOCKED not in str(error):
            if isinstance(error, OSError) and error.errno in _SHORTAGES:
                return _SHORTAGES[error.errno]
            if any(words in str(error) for words in _NO_THREADS):  # libraries in C++ have exceptions of their own
                return _SHORTAGES[errno.EAGAIN]
        error, seen = error.__cause__ or error.__context__, seen + 1
    return ""


def refuse_shortage(error: BaseException, where: object) -> None:
    """Raise ShortageError where an error says nothing of a file, but that the machine has no more to read it with."""
    if short := shortage(error):
        raise ShortageError(
            f"{where}: cannot be read now, {short}: free some and run it again; nothing is damaged"
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence naming what `name` may have meant: the nearest of `known`, else all of them."""
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known are " + ", ".join(known)
