"""The public functions of featcache, one for each verb. `import featcache as fc` has them all.

Each takes what the command of the same name takes, with the same defaults and checks, and returns an object: a project,
a cache, a run. `progress` is told how far a function is: None shows bars in a terminal and in a notebook, `SILENT`
of `featcache.core.progress` nothing. Ctrl-C keeps what is finished: the same call goes on from there.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
