"""What the tests of the command line share: ways to run it, and one project made by real commands."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import warm
from faults import Shops, make_cells
from servers import S3, s3_server
from workshop import Worker, Workshop

from featcache.backbones import remembered as known
from featcache.backbones.doors import AnyNetwork, open_network
from featcache.backbones.engines.calibrate import key_of, recall
from featcache.backbones.engines.choose import ChosenEngine, OnEvent, open_engine
from featcache.backbones.spec import NetworkSpec
from featcache.cli import main
from featcache.extraction import opening
from featcache.store.layout import FORMATS

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of whatever a shell started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

FEATCACHE = Path(sys.executable).with_name("featcache")
EXTRACT = ("extract", "--model", "mobilenetv2", "--weights", "random", "--input-size", "64")
"""The extraction of `made`; small enough to be done in a moment."""
for _face in Path(__file__).parent.parent.glob("featcache/*/__init__.pyi"):
    _package = import_module(f"featcache.{_face.parent.name}")
    for _name in _package.__all__:
        getattr(_package, _name)  # a face keeps what it has loaded once: never something that a test has put there
LONG = (
    "test_docs",
    "test_backbones_golden",
    "test_export",
    "test_heads_primal",
    "test_heads_resume",
    "test_cluster",
    "test_cli_scratch",
    "test_backbones_weights",
    "test_backbones_registry",
    "test_base_installation",
    "test_no_call_home",
    "test_scratch_training",
    "test_scratch_study",
    "test_faults_damage",
    "test_cli_signals",
    "test_faults_crash",
    "test_faults_disk",
    "test_cli_caches",
    "test_notebook",
    "test_store_hostile",
    "test_scratch_backends",
    "test_backbones_scratch",
    "test_predict",
    "test_attribution",
    "test_faults_together",
    "test_faults_signals",
    "test_faults_growth",
    "test_share_faults",
    "test_share_bucket",
    "test_cli_share",
    "test_study",
    "test_count",
    "test_fitted_cut",
    "test_report",
    "test_engines",
    "test_backbones_torch",
    "test_table_of_networks",
)
"""Files that take a minute or more, the longest first: so that at the end no process waits for another's long file."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the long files to the front."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The JSON value of --json, which is the only line on standard output."""
        assert self.code == 0, self.err
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is no JSON")

        return json.loads(lines[0], parse_constant=refuse)

    @property
    def error(self) -> str:
        """The one message of a command that refused, without a traceback; a training says before what it would take."""
        assert self.code in (1, 2), (self.code, self.out, self.err)
        assert "Traceback" not in self.err + self.out
        assert "defect of featcache" not in self.err
        expected = ("Gram space: ", "primal: ")
        said = [line for line in self.err.splitlines() if line.strip() and not line.startswith(expected)]
        if self.code == 2:
            assert said[0].startswith("Usage: featcache"), self.err
            assert said[-1].startswith("Error: "), self.err
        else:
            assert len(said) == 1, self.err
            assert said[0].startswith("featcache: "), self.err
        return said[-1]


Run = Callable[..., Ran]


def start_command(*args: str, cwd: Path, program: str = warm.MAIN) -> Worker:
    """`featcache` in a process of its own that begins at once: what it imports is there (see warm.py).

    program : Python in place of its entry point
    """
    assert _imports_alike(), "what is imported depends on this environment: start the installed command"
    return _warm().start("command", *args, cwd=cwd, environment=dict(os.environ), program=program)


def run_command(*args: str, cwd: Path, env: Mapping[str, str] | None = None, check: bool = False) -> Ran:
    """`featcache` in a process of its own; the installed one, from its start, in an environment that is another."""
    if env or not _imports_alike():
        environment = {**os.environ, **(env or {})}
        done = subprocess.run([FEATCACHE, *args], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        ran = Ran(done.returncode, done.stdout, done.stderr)
    else:
        ended = start_command(*args, cwd=cwd).wait(600)
        ran = Ran(ended.code, ended.out, ended.err)
    assert not check or ran.code == 0, ran.err
    return ran


@functools.cache
def _warm() -> Workshop:
    """The process that has imported everything; it ends with this one."""
    folder = tempfile.TemporaryDirectory(prefix="featcache-warm-")
    shop = Workshop([warm.__file__], Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(shop.close)
    return shop


def _imports_alike() -> bool:
    """Whether the environment says of imports what it said at the start."""
    return all(os.environ.get(name) == value for name, value in _SAYS_OF_IMPORTS.items())


_SAYS_OF_IMPORTS = {
    name: os.environ.get(name)
    for name in ("HOME", "KERAS_HOME", "MPLCONFIGDIR", "OMP_NUM_THREADS", "PYTHONPATH", "PYTHONWARNINGS")
}


def without_networks(folder: Path) -> dict[str, str]:
    """An environment in which Python finds no TensorFlow and no Keras, as where they are not installed."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules.update(tensorflow=None, keras=None)\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


_MOST_KEPT = 12
_kept_network = functools.lru_cache(_MOST_KEPT)(open_network)
_kept_engines: dict[Any, ChosenEngine] = {}


def _open_network(spec: NetworkSpec) -> AnyNetwork:
    """`open_network`, which takes seconds, once for the same random weights, and for those that are installed."""
    installed = (spec.model, spec.weights) == ("efficientnet-lite0", "imagenet")
    return (_kept_network if spec.weights == "random" or installed else open_network)(spec)


def _open_engine(
    network: AnyNetwork, engine: str, *, batch_rows: int | None, memory: Path, on_event: OnEvent
) -> ChosenEngine:
    """`open_engine`, which takes seconds too, once for the same network and what the project remembers of it."""
    known = [recall(memory, key_of(network, name)) for name in ("openvino", "keras-tensorflow")]
    key = (network.cuts, engine, batch_rows, *known)
    if key in _kept_engines:
        return _kept_engines[key]
    opened = open_engine(network, engine, batch_rows=batch_rows, memory=memory, on_event=on_event)
    if "cannot convert" not in opened.why:  # on a disk that is full for one test, say
        _kept_engines[key] = opened
        for old in list(_kept_engines)[:-_MOST_KEPT]:
            del _kept_engines[old]
    return opened


def keep_networks(patch: pytest.MonkeyPatch) -> None:
    """Load a network and open an engine once for all that do not change them."""
    for module in (known, opening):
        patch.setattr(module, "open_network", _open_network)
    patch.setattr(opening, "open_engine", _open_engine)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: run("ls", "--json", cwd=folder)."""

    def call(*args: str, cwd: Path) -> Ran:
        capfd.readouterr()
        code: Any = 0
        with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
            patch.chdir(cwd)
            if not {"fit-scratch", "fine-tune"} & {*args[:1]}:  # these change the network that they load
                keep_networks(patch)
            patch.setattr(sys, "argv", ["featcache", *args])
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        out, err = capfd.readouterr()
        return Ran(int(code), out, err)

    return call


@dataclass(frozen=True)
class Made:
    """A project that real commands made, and what they printed with --json."""

    folder: Path
    init: Ran
    extract: Ran

    @property
    def cache(self) -> Path:
        """The folder of its cache."""
        return Path(self.extract.value["path"])


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """24 generated leukocytes and a cache of their features. Not to be changed: see `project`."""
    folder = tmp_path_factory.mktemp("made")
    init = run_command("init", "--per-class", "6", "--json", cwd=folder, check=True)
    extract = run_command(*EXTRACT, "--json", cwd=folder, check=True)
    return Made(folder, init, extract)


@pytest.fixture
def project(made: Made, tmp_path: Path) -> Path:
    """A copy of `made` of the test's own."""
    return shutil.copytree(made.folder, tmp_path / "project")


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for hundreds of small caches: in memory where there is such a disk, since each syncs many files."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def place(quick: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `tmp_path`, in memory where there is such a disk; what is tried again on a remote is so at once."""
    monkeypatch.setattr("featcache.sharing.transfer._PAUSE_S", 0.001)
    return Path(tempfile.mkdtemp(dir=quick))


@pytest.fixture(scope="session")
def shops(quick: Path) -> Iterator[Shops]:
    """Warm processes that fork workers."""
    both = Shops(quick / "shops")
    yield both
    both.close()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the memories that may come and go."""
    found = (
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".images.csv", ".backbones.json", ".engines.json")
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated leukocytes; not to be changed."""
    return make_cells(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module", params=FORMATS)
def format_(request: pytest.FixtureRequest) -> str:
    """Each storage format in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def s3(quick: Path) -> Iterator[S3]:
    """An S3 server with the bucket `lab`, for the whole session."""
    with s3_server(quick / "s3") as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without credentials, keys or remotes."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("AWS_", "FEATCACHE_", "XDG_", "NETRC", "SSH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    return folder
