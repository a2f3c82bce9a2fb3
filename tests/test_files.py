"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from featcache.core.files import (
    beside,
    plain_cell,
    safe_cell,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)


def test_beside_gives_the_file_its_name_only_at_the_end(tmp_path: Path) -> None:
    final = tmp_path / "a.csv"
    with beside(final) as partial:
        partial.write_text("new")
        assert not final.exists()
        assert partial.parent == tmp_path
        assert partial.suffix == ".csv"
        assert partial.name.startswith(".")
    assert final.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_beside_keeps_the_old_file_and_leaves_nothing_on_an_error(tmp_path: Path) -> None:
    final = tmp_path / "a.csv"
    final.write_text("old")
    with pytest.raises(KeyboardInterrupt), beside(final) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), beside(final):
        raise ZeroDivisionError
    assert final.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_beside_leaves_nothing_where_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), beside(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_write_over_a_folder_fails_and_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError, match="a"):
        write_bytes(tmp_path / "a", b"data")
    assert (tmp_path / "a" / "b").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("parent", ["missing", "file"])
def test_write_into_what_is_no_folder_is_an_os_error(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=parent):
        write_bytes(tmp_path / parent / "a", b"data")


def test_write_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, None]})
    assert path.read_bytes() == '{\n  "ä": [\n    1,\n    null\n  ]\n}\n'.encode()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert "ä" in path.read_text("utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_write_text_is_utf8_with_the_line_ends_given(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "ü\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xbc\n"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_of_file_and_bytes_agree(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "a").write_bytes(data[:size])
    assert sha256_file(tmp_path / "a") == sha256_bytes(data[:size]) == hashlib.sha256(data[:size]).hexdigest()


WRITER = """
import sys
from pathlib import Path
from featcache.core.files import write_bytes
number = 0
while True:
    number += 1
    write_bytes(Path(sys.argv[1]), str(number % 10).encode() * 300_000)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    """And whoever reads meanwhile never sees a part."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"0" * 300_000)
    for pause_s in (0.05, 0.083, 0.117, 0.151):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        try:
            seen = path.read_bytes()
            deadline = time.monotonic() + 60
            while seen[:1] == path.read_bytes()[:1] and time.monotonic() < deadline:
                assert writer.poll() is None
            until = time.monotonic() + pause_s
            while time.monotonic() < until:
                data = path.read_bytes()
                assert len(data) == 300_000
                assert len(set(data)) == 1
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        data = path.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
    write_bytes(path, b"after")
    assert path.read_bytes() == b"after"
    left = {entry.name for entry in tmp_path.iterdir()} - {"a.bin"}
    assert all(name.startswith(".") and ".partial" in name for name in left)


@given(st.text(st.sampled_from("'=+-@\t\ra1 "), max_size=6))
@settings(derandomize=True, max_examples=300)
def test_a_text_in_a_table_is_no_formula_and_is_read_back(text: str) -> None:
    cell = safe_cell(text)
    assert plain_cell(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
