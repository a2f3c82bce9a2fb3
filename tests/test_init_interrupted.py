"""init and dataset generate, killed at every step of writing, or two at once: a rerun ends as if nothing had been."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

from featcache.core.errors import ProjectError
from featcache.core.locks import folder_beside, holding
from featcache.core.project import PROJECT_FILE
from featcache.datasets._init import init
from featcache.datasets.options import InitOptions
from featcache.synthetic._generate import generate
from featcache.synthetic.drawing import write_cells

WORKER = """
import os, sys, traceback
from pathlib import Path
from functools import partial
from featcache.datasets import _init as module
from featcache.synthetic._generate import generate
from featcache.datasets._init import init
from featcache.datasets.options import InitOptions

module.write_cells = partial(module.write_cells, size_px=16)
module.is_generated = partial(module.is_generated, size_px=16)
steps = 0

def work(kind, source):
    if kind == "generate":
        return generate(Path("cells"), 2, size_px=16)
    if source:
        return init(Path(source), Path("p"), options=InitOptions(dataset={"group_pattern": r"-(\\d+)"}, resplit=True))
    return init(None, Path("p"), options=InitOptions(per_class=4))

def counting(name, kill_at):
    call = getattr(os, name)
    def one(*args, **more):
        global steps
        steps += 1
        if steps == kill_at:
            os._exit(9)
        return call(*args, **more)
    setattr(os, name, one)

for line in sys.stdin:  # folder, kill_at, kind, source: each in a process of its own, forked from this warm one
    folder, kill_at, kind, source = line.rstrip("\\n").split("\\t")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(folder)
            for name in ("rename", "replace", "mkdir", "unlink", "rmdir", "fsync"):
                counting(name, int(kill_at))
            work(kind, source)
            code = 0
        except BaseException:
            traceback.print_exc()
        os.write(write, str(steps).encode())
        os._exit(code)
    os.close(write)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), os.read(read, 99).decode() or 0, flush=True)
    os.close(read)
"""


def visible(folder: Path) -> dict[str, bytes]:
    """All files that are not hidden, nor in hidden folders."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path.read_bytes()
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def killed_at_each_step(tmp_path: Path, begin: Callable[[Path], object], kind: str, source: str = "") -> None:
    """Kill a command at steps from the first to the last, run it again, compare with one that was not disturbed."""
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:

        def run(folder: Path, kill_at: int) -> tuple[int, int]:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(f"{folder}\t{kill_at}\t{kind}\t{source}\n")
            worker.stdin.flush()
            code, steps = worker.stdout.readline().split()
            return int(code), int(steps)

        begin(tmp_path / "whole")
        code, steps = run(tmp_path / "whole", 0)
        assert code == 0
        expected = visible(tmp_path / "whole")
        assert steps > 3
        for kill_at in sorted({*range(1, 7), *range(steps - 9, steps + 1)} & set(range(1, steps + 1))):
            folder = tmp_path / str(kill_at)
            begin(folder)
            assert run(folder, kill_at)[0] == 9
            assert run(folder, 0)[0] == 0, kill_at
            assert visible(folder) == expected, kill_at


@pytest.mark.parametrize("kind", ["generate", "init"])
def test_a_drawing_that_was_killed_is_begun_anew(place: Path, kind: str) -> None:
    killed_at_each_step(place, lambda folder: folder.mkdir(), kind)


def test_a_second_init_that_was_killed_ends_as_one_that_was_not(place: Path) -> None:
    write_cells(place / "images", 8, size_px=16)
    init(place / "images", place / "begun" / "p")
    killed_at_each_step(place, lambda folder: shutil.copytree(place / "begun", folder), "init", str(place / "images"))


def test_two_at_once_do_not_mix_their_files(tmp_path: Path) -> None:
    write_cells(tmp_path / "images", 4, size_px=16)
    with holding(tmp_path), pytest.raises(ProjectError, match="another init is at work in it"):
        init(tmp_path / "images", tmp_path)
    assert not (tmp_path / PROJECT_FILE).exists()
    assert len(init(tmp_path / "images", tmp_path).dataset.images) == 16


def test_what_a_killed_drawing_left_goes_and_another_one_s_stays(tmp_path: Path) -> None:
    left = tmp_path / ".cells-0.partial"
    (left / "eosinophil").mkdir(parents=True)
    with folder_beside(tmp_path / "cells") as other:
        generate(tmp_path / "cells", 1, size_px=16)
        assert not left.exists()
        assert other.exists()
        shutil.rmtree(tmp_path / "cells")
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


def test_the_current_folder_is_filled_and_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = Path().stat().st_ino
    generate(Path(), 1, size_px=16)
    assert Path().stat().st_ino == before
    assert len(list(Path().glob("*/*.png"))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


# What was left out, under the error


def test_an_error_lists_what_was_left_out_and_why(run: Run, tmp_path: Path) -> None:
    write_cells(tmp_path / "set" / "Train", 2, size_px=16)
    for name in ("TestC", "TestD"):
        write_cells(tmp_path / "set" / name, 2, seed=1, size_px=16)
    ran = run("init", "set", cwd=tmp_path)
    assert ran.code == 1
    lines = ran.err.splitlines()
    assert lines[0].endswith("--resplit makes new splits from all images")
    assert lines[1:] == [
        "left out: 2",
        *(f"  {name}: a folder beside train, val and test that is none of them" for name in ("TestC", "TestD")),
    ]
    ran = run("init", "set", "--json", cwd=tmp_path)
    value = json.loads(ran.out)
    assert ran.code == 1
    assert [item["path"] for item in value["left_out"]] == ["TestC", "TestD"]
    assert value["error"] == lines[0].removeprefix("featcache: ")


def test_the_way_out_of_an_error_works(run: Run, tmp_path: Path) -> None:
    """With --into, and from another folder, what a message says to run next can be run as it is."""
    ran = run("init", "--into", "p q", "--per-class", "3", cwd=tmp_path)
    assert "next: featcache extract --model efficientnet-lite0 -C 'p q'" in ran.out
    (tmp_path / "p q" / "featcache.toml").unlink()
    (tmp_path / "p q" / "dataset.csv").unlink()
    ran = run("init", "--into", "p q", cwd=tmp_path)  # other numbers of cells: not what lies there
    assert "leukocytes' --into 'p q'" in ran.error
    assert run("init", "p q/leukocytes", "--into", "p q", cwd=tmp_path).code == 0
    assert InitOptions().per_class != 3
