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

import lazy_loader

from featcache.core import errors as errors

__version__ = "0.1.0"

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = ["__version__", *__all__]


def __dir__() -> list[str]:
    return __all__
