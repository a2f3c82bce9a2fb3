"""What a person sees in a terminal, by a pseudo-terminal: bars that stay whole, tables that fit, no foreign escapes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import Run

from featcache.cli.output import printable
from featcache.core.files import write_text
from featcache.synthetic.drawing import write_cells

HOSTILE = "\x1b]52;c;aGk=\x07\x1b[31mred\u202egnp\u2066.\x9b2J"
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def in_terminal(code: str, columns: int) -> list[str]:
    """Lines, bars at each moment among them, that Python code prints in a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color"}
    env.pop("COLUMNS", None)
    with subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(ours, 65_536):
                said += more
    os.close(ours)
    assert process.returncode == 0, said.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


TRAINING = """
import time
from featcache.core.shown import Terminal
from featcache.training.history import Epoch
live = Terminal()
with live.begin("training head-inceptionresnetv2-1234abcd", 5000) as advance:
    for number in range(1, 2001):
        advance(1)
        live.epochs([Epoch(number, 0.2101, 0.95, 0.34, 0.91, 0.001, 0.012)])
        time.sleep(0.0002)
"""


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_bar_epoch_and_time_left_of_a_training_stay_in_every_terminal(columns: int) -> None:
    lines = [line for line in in_terminal(TRAINING, columns) if "/5000" in line]
    assert lines
    for line in lines:
        assert len(line) <= columns
        assert line.startswith("training")
        assert re.search(r"[━╸╺]{10}", line), "the bar"
        assert re.search(r" \d+/5000 ", line), "the epoch"
        assert re.search(r"\d:\d\d:\d\d|-:--:--", line), "the time left"
    assert any("loss 0.2" in line for line in lines)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_tables_break_no_name(columns: int) -> None:
    code = "import sys; sys.argv = ['featcache', 'models']; from featcache.cli import main; main()"
    lines = in_terminal(code, columns)
    assert all(len(line) <= columns for line in lines[:40])
    for name in ("inceptionresnetv2", "efficientnet-lite0", "resnet110-sd"):
        assert any(line.split()[0] == name for line in lines), name


def test_an_extraction_says_what_it_does_before_its_first_row(tmp_path: Path, run: Run) -> None:
    write_cells(tmp_path / "cells", 4, size_px=32)
    assert run("init", "cells", "--split-counts", "2/1/1", "--views", "1", cwd=tmp_path).code == 0
    args = ["featcache", "extract", "--model", "pixels", "--input-size", "32"]
    code = f"import os, sys; os.chdir({str(tmp_path)!r}); sys.argv = {args!r}; from featcache.cli import main; main()"
    lines = in_terminal(code, 100)
    steps = ["checking images", "looking at pixels", "opening the network", "extracting pixels"]
    first = [next(number for number, line in enumerate(lines) if line.startswith(step)) for step in steps]
    assert first == sorted(first)


# Text of strangers


def test_printable_keeps_words_of_every_script_and_nothing_that_steers() -> None:
    assert printable("Größe 白血球 خلية ñ") == "Größe 白血球 خلية ñ"
    assert not STEERING.search(printable(HOSTILE))
    assert printable("a\nnext: rm -rf") == "a\ufffdnext: rm -rf", "no line that looks like one of ours"
    assert printable("a\n  more of it") == "a\n  more of it"


def steers(text: str) -> bool:
    return bool(STEERING.search(text))


def test_hostile_names_steer_no_terminal(tmp_path: Path, run: Run) -> None:
    """A hostile name in every field that commands show: classes, files, settings, caches, runs, arguments."""
    label = "\x1b[31mred\u202e"
    write_cells(tmp_path / "cells", 3, size_px=32)
    for name in (label, "plain"):
        (tmp_path / "set" / name).mkdir(parents=True)
    cells = sorted((tmp_path / "cells").rglob("*.png"))
    for number, cell in enumerate(cells[:8]):
        cell.rename(tmp_path / "set" / (label if number % 2 else "plain") / f"{number}\x1b]0;t\x07.png")
    (tmp_path / "set" / "plain" / "\x1b[2Jbroken.png").write_bytes(b"no image")
    commands = [
        ["init", "set", "--split-counts", "2/1/1"],
        ["dataset", "check"],
        ["extract", "--model", label],
        ["fit-head", "--cache", label],
        ["info", label],
        ["rm", label, "--yes"],
        ["pull", f"{label}/x"],
        ["remote", "add", label, "file:///tmp/\x1b[31m"],
        ["push", label, "--remote", f"https://127.0.0.1:9/{label}"],
        [label],
        ["init", f"--{label}"],
        ["init", "--split", label],
    ]
    for command in commands:
        done = run(*command, cwd=tmp_path)
        assert not steers(done.out), (command, done.out)
        assert not steers(done.err), (command, done.err)
        assert "Traceback" not in done.err
    write_text(
        tmp_path / "featcache.toml", f'[dataset]\nsource = "set"\nimages = "set"\n"{HOSTILE[1:4]}\\u001b[31m" = 1\n'
    )
    done = run("ls", cwd=tmp_path)
    assert done.code == 1
    assert not steers(done.err)


def test_hostile_runs_steer_no_terminal(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "results" / "head-\x1b[31mx"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"format": 1, "backbone": HOSTILE, "classes": [HOSTILE, "b"]}))
    (folder / "metrics.json").write_text(json.dumps({"format": 1, "epochs": HOSTILE}))
    write_text(tmp_path / "featcache.toml", "")
    done = run("report", cwd=tmp_path)
    assert not steers(done.out)
    assert not steers(done.err)
