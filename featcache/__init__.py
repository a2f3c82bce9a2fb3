"""featcache: run a frozen backbone once, keep its bottleneck features, train heads on them.

    import featcache as fc

    project = fc.init("cells/")                              # or fc.open_project()
    cache = fc.extract(project, "mobilenetv2", pooling="avg")
    run = fc.fit_head(cache, epochs=500)
    run.predict("new/").to_frame()
    fc.push(run, "s3://lab/x")

Every command is one of these functions, with the same arguments, defaults and checks. What goes wrong is raised as one
of `featcache.errors`. Importing featcache is quick: what needs NumPy and more is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.api import (
        Report as Report,
        convert as convert,
        explain as explain,
        extract as extract,
        fine_tune as fine_tune,
        fit_head as fit_head,
        fit_scratch as fit_scratch,
        init as init,
        models as models,
        open_cache as open_cache,
        open_project as open_project,
        pull as pull,
        push as push,
        report as report,
        sweep as sweep,
        verify as verify,
    )
    from featcache.core import errors as errors
    from featcache.core.project import Project as Project
    from featcache.extraction import FeatureExtractor as FeatureExtractor
    from featcache.heads import HeadClassifier as HeadClassifier
    from featcache.prediction import Predictions as Predictions, predict as predict
    from featcache.store import Cache as Cache
    from featcache.training import Run as Run

__version__ = "0.1.0"

_VERBS = (
    *("convert", "explain", "extract", "fine_tune", "fit_head", "fit_scratch", "init", "models", "open_cache"),
    *("open_project", "pull", "push", "report", "sweep", "verify"),
)
_HOMES = {
    **dict.fromkeys((*_VERBS, "Report"), "featcache.api"),
    "Cache": "featcache.store",
    "FeatureExtractor": "featcache.extraction",
    "HeadClassifier": "featcache.heads",
    **dict.fromkeys(("Predictions", "predict"), "featcache.prediction"),
    "Project": "featcache.core.project",
    "Run": "featcache.training",
}
__all__ = ["__version__", "errors", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name == "errors":
        return import_module("featcache.core.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
