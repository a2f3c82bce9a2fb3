"""featcache: run a frozen backbone once, keep its bottleneck features, train heads on them.

    import featcache

    cache = featcache.open_cache("cache/efficientnet-lite0-3f9c21ab")
    cache.features      # (n_rows, h, w, c), read from the disk when indexed
    cache.rows          # a DataFrame: row, image_id, path, label, split, group, view
    X, y = cache.arrays("train")
    for X, y in cache.batches("train", 32): ...     # shuffled, in bounded memory
    cache.to_tf("train"), cache.to_torch("train"), cache.to_sklearn("train")
    featcache.HeadClassifier().fit(X, y)    # the head as a scikit-learn estimator, without Keras

What goes wrong is raised as one of `featcache.core.errors`. Importing featcache is quick: what needs NumPy and
more is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.core import errors
    from featcache.heads import HeadClassifier
    from featcache.store import Cache, open_cache

__version__ = "0.1.0"
__all__ = ["Cache", "HeadClassifier", "__version__", "errors", "open_cache"]

_HOMES = {
    "Cache": "featcache.store.cache",
    "HeadClassifier": "featcache.heads.estimator",
    "open_cache": "featcache.store.cache",
}


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name == "errors":
        return import_module("featcache.core.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
