"""Nothing calls home: a recorded run of the commands looks up no name and connects to nobody; --offline is a guard."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import start_command
from warm import MAIN

from featcache.core.errors import OfflineError, UsageError
from featcache.core.offline import offline, refuse_offline
from featcache.datasets._init import init
from featcache.datasets.options import InitOptions
from featcache.remotes.urls import open_remote
from featcache.synthetic.drawing import write_cells

COMMANDS = (
    "models",
    "models --offline",
    "dataset generate cells --per-class 6 --size 48",
    "init cells --split-counts 4/1/1 --views 2",
    "dataset check",
    "dataset relabel eosinophil/eosinophil-0001.png --to eosinophil",
    "dataset preview --out sheet.png",
    "dataset segment cells/monocyte --out cut",
    "fit-segmenter cells/monocyte --masks cut/masks --out mine.npz --model pixels --input-size 32 --offline",
    "extract --model efficientnet-lite0 --input-size 64 --engine openvino",
    "extract --model mobilenetv2 --weights random --input-size 32 --engine keras --pooling avg --offline",
    "extract --model pixels --input-size 32 --format hdf5",
    "fit-head --cache CACHE --epochs 3",
    "fit-head --cache CACHE --epochs 1 --optimizer adam",
    "fit-head --cache CACHE --head logreg",
    "sweep --cache CACHE --epochs 2 --lr 0.1,0.01",
    "cross-validate --cache CACHE --epochs 2 --folds 2",
    "fit-scratch --model resnet20 --input-size 32 --epochs 1 --recipe study",
    "fine-tune --model efficientnet-lite0 --input-size 64 --epochs 2 --train-blocks 1",
    "predict logreg cells --confidence 0.5",
    "attribution scratch cells",
    "bundle logreg --out logreg.zip",
    "check logreg.zip",
    "predict logreg.zip cells",
    "export logreg --format onnx --out logreg.onnx",
    "export logreg --format savedmodel --out logreg",
    "export scratch --format openvino --out scratch.xml",
    "export scratch --out scratch.keras",
    "report",
    "runs mlflow --to runs.db",
    "ls",
    "info CACHE",
    "explain --model pixels --input-size 32",
    "diff CACHE OTHER",
    "verify CACHE --recompute 2",
    "convert CACHE --format hdf5",
    "key new somebody",
    "key ls",
    "remote add there exchange",
    "remote ls",
    "push CACHE --remote there",
    "ls --remote there",
    "pull there/CACHE",
    "pack CACHE --to caches.zip",
    "index exchange",
    "rm OTHER --yes",
    "gc",
)
DRIVER = """
import json, os, sys, traceback
from pathlib import Path

CALLS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}
record = []


def hook(event, args):
    if event in CALLS:
        record.append(f"{event} {args[0]}")
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
        record.append(f"{event} {args[1]}")


sys.addaudithook(hook)
from featcache.cli import cli

names, codes = [], {}
for line in json.loads(sys.argv[1]):
    for name, stands in zip(names, ("CACHE", "OTHER")):
        line = line.replace(stands, name)
    try:
        codes[line] = cli.main(line.split(), prog_name="featcache", standalone_mode=False) or 0
    except BaseException as error:
        codes[line] = repr(error)
        traceback.print_exc()
    if line.startswith("extract"):
        names = sorted(each.name for each in Path("cache").iterdir() if not each.name.startswith("."))
Path("recorded.json").write_text(json.dumps([codes, record]))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str], Path]:
    """What each command gave, what was recorded, and the home folder. One process, so that all is imported once."""
    folder, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("home")
    # The telemetry of some libraries keeps still where CI is set, or where pytest runs.
    env = {**os.environ, "HOME": str(home), "CI": ""}
    env = {name: value for name, value in env.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-c", DRIVER, json.dumps(COMMANDS)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert (folder / "recorded.json").exists(), done.stderr
    print(done.stderr)
    codes, record = json.loads((folder / "recorded.json").read_text())
    return codes, record, home


def test_every_command_of_the_recording_did_its_work(recorded: tuple[dict[str, Any], list[str], Path]) -> None:
    codes, _, _ = recorded
    assert {line: code for line, code in codes.items() if code} == {}


def test_no_command_looks_up_a_name_or_connects(recorded: tuple[dict[str, Any], list[str], Path]) -> None:
    _, lines, _ = recorded
    assert lines == []


def test_no_client_id_is_left_in_the_home_folder(recorded: tuple[dict[str, Any], list[str], Path]) -> None:
    _, _, home = recorded
    names = [path.name for path in home.rglob("*")]
    assert not [name for name in names if "telemetry" in name or "intel" in name.lower() or "cid" in name.lower()]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_library_connects_past_python(tmp_path: Path) -> None:
    """Sockets that compiled code opens, seen by the kernel: an extraction on OpenVINO, and one on Keras."""
    write_cells(tmp_path / "cells", 4, size_px=32)
    init(tmp_path / "cells", tmp_path, options=InitOptions({"split_counts": (2, 1, 1)}, {"train": 1}))
    trace = tmp_path / "trace"
    extract = "extract --model mobilenetv2 --weights random --input-size 32"
    commands = [f"{extract} --engine openvino", f"{extract} --pooling avg --engine keras"]
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace)]
    command = [*strace, sys.executable, "-c", DRIVER, json.dumps(commands)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    codes, _ = json.loads((tmp_path / "recorded.json").read_text())
    assert codes == dict.fromkeys(commands, 0), done.stderr
    assert not [line for line in trace.read_text().splitlines() if "AF_INET" in line]


# The guard


def test_offline_refuses_look_ups_and_connections_of_anybody() -> None:
    with offline(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for attempt in (
            lambda: socket.getaddrinfo("example.invalid", 443),
            lambda: socket.gethostbyname("example.invalid"),
            lambda: socket.create_connection(("192.0.2.1", 9)),
            lambda: datagrams.sendto(b"x", ("192.0.2.1", 9)),
            lambda: refuse_offline("example.invalid"),
            lambda: open_remote("https://example.invalid/x"),
            lambda: open_remote("s3://bucket/x"),
            lambda: open_remote("sftp://example.invalid/x"),
        ):
            with pytest.raises(OfflineError, match="`offline` allows no network"):
                attempt()
    with pytest.raises((OSError, UsageError)) as caught:
        socket.create_connection(("127.0.0.1", 1), timeout=1)
    assert not isinstance(caught.value, OfflineError), "the guard ends with the block"


def test_offline_holds_in_other_threads_and_leaves_this_machine_alone() -> None:
    found: list[BaseException] = []

    def reach() -> None:
        try:
            socket.getaddrinfo("example.invalid", 443)
        except BaseException as error:  # noqa: BLE001 - whatever it was
            found.append(error)

    with socket.socket() as server, offline():
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname(), timeout=5).close()
        thread = threading.Thread(target=reach)
        thread.start()
        thread.join()
    assert isinstance(found[0], OfflineError)


def test_a_download_that_a_network_of_ones_own_begins_is_refused_offline(tmp_path: Path) -> None:
    """Not by the good will of featcache's own code: the builder reaches out, and the guard says no."""
    (tmp_path / "mine.py").write_text(
        "import urllib.request\n\n\ndef net():\n    urllib.request.urlopen('http://example.invalid/weights')\n"
    )
    write_cells(tmp_path / "cells", 4, size_px=32)
    init(tmp_path / "cells", tmp_path, options=InitOptions({"split_counts": (2, 1, 1)}, {"train": 1}))
    from_here = f"import sys\nsys.path.insert(0, '.')\n{MAIN}"
    done = start_command("extract", "--model", "mine:net", "--offline", cwd=tmp_path, program=from_here).wait()
    assert done.code == 1
    assert "example.invalid was about to be reached, and `offline` allows no network" in done.err
    assert "Traceback" not in done.err
