"""Around what fetches networks from hubs: what goes wrong becomes one message, and nothing is printed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from featcache.backbones.own_models import one_line
from featcache.core.errors import BackboneError, MissingPackageError, OfflineError, WeightsError


@contextmanager
def fetching(model: str, remedy: str = "") -> Iterator[None]:
    """Turn what a library says of a network that it cannot build or fetch into one message.

    remedy : what to do, where a file of weights does not help
    """
    try:
        yield
    except (BackboneError, MissingPackageError):
        raise
    except Exception as error:
        if isinstance(error, OfflineError) or _is_offline(error):
            raise WeightsError(
                f"{model}: the weights are not on this machine, and `offline` allows no download",
                remedy or "Leave it out, or name a file with `weights=PATH`",
            ) from error
        raise WeightsError(
            f"{model}: it cannot be had with these weights ({one_line(error)})",
            remedy or "Name a file with `weights=PATH`, or set `weights='random'`",
        ) from error


def _is_offline(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OfflineError):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries warn of each other's versions, which helps nobody here."""
    for name in ("huggingface_hub", "timm", "kagglehub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
