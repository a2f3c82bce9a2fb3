"""`python warm.py` has imported what featcache may, Keras and TensorFlow too: a command forked from it begins at once.

For tests that ask what a command does, and not how it starts: see `run_command` and `start_command` in conftest.py.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Mapping
from importlib import import_module

from workshop import serve

import featcache
from featcache.backbones.import_keras import import_keras

MAIN = "from featcache.cli import main\nmain()\n"
"""What the installed `featcache` does."""
HEAVY = ("matplotlib.backends.backend_agg", "numba", "openvino", "sklearn.linear_model", "tifffile")


def command(*arguments: str, cwd: str, environment: Mapping[str, str], program: str = MAIN) -> None:
    """`python -c PROGRAM ARGUMENTS` in a folder and an environment."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["featcache", *arguments]
    exec(program, {"__name__": "__main__"})  # noqa: S102 - a test's own


if __name__ == "__main__":
    import_keras()
    for module in pkgutil.walk_packages(featcache.__path__, "featcache."):
        if module.name != "featcache.store.torch_adapter":  # of who has PyTorch
            import_module(module.name)
    for name in HEAVY:
        import_module(name)
    serve({"command": command})
