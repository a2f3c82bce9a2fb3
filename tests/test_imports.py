"""What is imported when: help at once, and no TensorFlow where nothing is computed with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import EXTRACT, Made

import featcache
from featcache.cli import COMMANDS

HEAVY = ("tensorflow", "keras", "pandas", "zarr", "sklearn", "matplotlib", "numpy", "cv2", "pydantic")
NETWORKS = {"tensorflow", "keras"}
PROGRAM = """
import json, sys
from featcache.cli import main
commands, heavy = json.loads(sys.argv[1])
loaded = {}
for args in commands:
    sys.argv = ["featcache", *args]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    loaded[" ".join(args)] = [code, [name for name in heavy if name in sys.modules]]
print(json.dumps(loaded), file=sys.stderr)
"""


def modules_after(*commands: tuple[str, ...], cwd: Path) -> dict[str, tuple[int, set[str]]]:
    """{command: (exit code, heavy modules loaded by it or one before it)}, all in one fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([commands, HEAVY])],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = json.loads(done.stderr.splitlines()[-1])
    return {command: (code, set(modules)) for command, (code, modules) in loaded.items()}


def test_import_featcache_loads_nothing_heavy(tmp_path: Path) -> None:
    program = f"import featcache, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_surface() -> None:
    """The names that people use; all of them are listed, and each is there."""
    verbs = {
        *("init", "open_project", "extract", "fit_head", "sweep", "fit_scratch", "fine_tune", "predict", "report"),
        *("runs", "log_to_mlflow"),
        *("adapt", "count", "evaluate", "fit_segmenter"),
        *("attribution", "bundle", "check", "check_dataset", "cross_validate", "export", "serve"),
        "run_study",
        *("open_cache", "push", "pull", "relabel", "segment", "verify", "convert", "explain", "models"),
        *("plan", "status"),
    }
    classes = {
        *("Adapted", "Attribution", "Bundled", "Cache", "Checked", "CheckedDataset", "Counted", "Evaluated"),
        *("Exported", "FeatureExtractor", "FittedSegmenter", "HeadClassifier", "Predictions", "Project", "Relabelled"),
        *("Report", "Run"),
        *("SegmentedFolder", "Study", "StudyPlan"),
    }
    assert set(featcache.__all__) == verbs | classes | {"errors", "__version__"}
    assert set(featcache.__all__) <= set(dir(featcache))
    from featcache.core.errors import CacheNotFoundError
    from featcache.store.cache import Cache

    assert all(callable(getattr(featcache, name)) for name in verbs | classes)
    assert featcache.Cache is Cache
    assert isinstance(featcache.errors, ModuleType)
    assert featcache.errors.CacheNotFoundError is CacheNotFoundError
    with pytest.raises(AttributeError, match="open_cash"):
        featcache.open_cash  # noqa: B018
    with pytest.raises(featcache.errors.FeatcacheError, match="there is no such cache"):
        featcache.open_cache("no-such-folder")


def test_public_names_come_with_a_star_import(tmp_path: Path) -> None:
    program = "from featcache import *; print(open_cache.__module__, errors.__name__, Cache.__name__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["featcache.api.caches", "featcache.core.errors", "Cache"]


def test_help_imports_nothing_that_takes_time(tmp_path: Path) -> None:
    for args in (("--help",), ("-h",), ("--version",)):
        assert modules_after(args, cwd=tmp_path) == {args[0]: (0, set())}


def test_the_help_of_every_command_imports_no_network_and_no_array_library(tmp_path: Path) -> None:
    subcommands = [("dataset", name, "--help") for name in ("check", "relabel", "preview", "segment", "generate")]
    found = modules_after(*((name, "--help") for name in COMMANDS), *subcommands, cwd=tmp_path)
    assert len(found) == len(COMMANDS) + len(subcommands)
    assert {code for code, _ in found.values()} == {0}
    assert set().union(*(modules for _, modules in found.values())) <= {"pydantic"}


def test_what_computes_no_features_loads_no_network(made: Made, project: Path) -> None:
    commands = (
        ("ls",),
        ("info",),
        ("models",),
        ("dataset", "check"),
        ("dataset", "preview"),
        (*EXTRACT,),
        ("fit-head", "--epochs", "2", "--solver", "gram"),
        ("report",),
        ("push", "--remote", str(project / "lab")),
        ("ls", "--remote", str(project / "lab")),
        ("rm", "mobilenetv2", "--yes"),
        ("pull", f"{project}/lab/mobilenetv2"),
        ("verify",),
        ("init",),
    )
    for command, (code, modules) in modules_after(*commands, cwd=project).items():
        assert code == 0, command
        assert not NETWORKS & modules, command
