"""A look at the image files: nothing is read twice, and no change is overlooked."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from featcache.core.files import sha256_bytes
from featcache.images import scanning as scan_module
from featcache.images.decode import decode
from featcache.images.scanning import ImageFile, scan
from featcache.synthetic.drawing import render_cell, write_image

NAMES = ("a.png", "ä b/c.png", "broken, one.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cells and a text file, written just now."""
    images = tmp_path / "images"
    for index, name in enumerate(NAMES[:2]):
        path = images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, render_cell("monocyte", 0, index=index, size_px=24))
    (images / NAMES[2]).write_text('no "image",\n')
    return images


def look(folder: Path, stamps: Path | None, names: tuple[str, ...] = NAMES) -> tuple[dict[str, ImageFile], int]:
    """What a scan finds, and how many files it read."""
    read: list[None] = []
    found = scan(folder, names, stamps=stamps, on_file=lambda: read.append(None))
    return found, len(read)


@pytest.fixture
def settled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, long enough ago: the clock of the scan stands an hour ahead, since ctime cannot be set back."""
    real = time.time_ns
    monkeypatch.setattr(scan_module.time, "time_ns", lambda: real() + 3_600_000_000_000)
    return folder


def test_scan_finds_digest_size_and_problem(folder: Path) -> None:
    found, read = look(folder, None)
    assert read == 3
    assert list(found) == list(NAMES)
    for name in NAMES[:2]:
        data = (folder / name).read_bytes()
        height, width, _ = decode(data).shape
        assert found[name] == ImageFile(sha256_bytes(data), width, height)
    assert "no image that can be read" in found[NAMES[2]].problem


def test_scan_notes_files_that_are_gone(folder: Path, tmp_path: Path) -> None:
    found, _ = look(folder, tmp_path / "stamps", ("a.png", "gone.png"))
    assert found["gone.png"] == ImageFile("", problem="there is no such file")
    (folder / "a.png").unlink()
    found, _ = look(folder, tmp_path / "stamps", ("a.png", "gone.png"))
    assert found["a.png"].problem == "there is no such file"


def test_scan_sees_a_file_that_came_back(settled: Path, tmp_path: Path) -> None:
    look(settled, tmp_path / "stamps", ("late.png",))
    write_image(settled / "late.png", render_cell("monocyte", 0, index=5, size_px=24))
    found, read = look(settled, tmp_path / "stamps", ("late.png",))
    assert (found["late.png"].problem, read) == ("", 1)


def test_scan_reads_unchanged_files_once(settled: Path, tmp_path: Path) -> None:
    first, read = look(settled, tmp_path / "cache" / "stamps")
    assert read == 3
    again, read = look(settled, tmp_path / "cache" / "stamps")
    assert (again, read) == (first, 0)


def test_scan_of_a_part_keeps_what_is_known_of_the_rest(settled: Path, tmp_path: Path) -> None:
    look(settled, tmp_path / "stamps", NAMES[:1])
    assert look(settled, tmp_path / "stamps", NAMES[1:])[1] == 2
    assert look(settled, tmp_path / "stamps")[1] == 0


def test_scan_reads_a_file_again_that_changed_just_before_the_look(folder: Path, tmp_path: Path) -> None:
    look(folder, tmp_path / "stamps")
    assert look(folder, tmp_path / "stamps")[1] == 3


def test_scan_finds_an_edit_of_the_same_size_and_time(settled: Path, tmp_path: Path) -> None:
    path = settled / "a.png"
    before = path.stat()
    first, _ = look(settled, tmp_path / "stamps")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    time.sleep(0.02)  # the clock of a file system may tick in steps of 10 ms
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    found, read = look(settled, tmp_path / "stamps")
    assert read == 1
    assert found["a.png"].sha256 != first["a.png"].sha256


def test_scan_finds_a_file_put_in_the_place_of_another(settled: Path, tmp_path: Path) -> None:
    look(settled, tmp_path / "stamps")
    other = tmp_path / "other.png"
    write_image(other, render_cell("monocyte", 0, index=9, size_px=24))
    other.replace(settled / "a.png")
    found, read = look(settled, tmp_path / "stamps")
    assert read == 1
    assert found["a.png"].sha256 == sha256_bytes((settled / "a.png").read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"\xff\xfe\0 not text",
        lambda data: data[: len(data) // 2],
        lambda data: data[: data.rindex(b",") + 1],  # the reason why a file is broken is cut off
        lambda data: data.replace(b"seen_ns", b"seen_at"),
        lambda data: b"path,state\n" + b"a" * 200_000,
        lambda data: data.replace(b"24,24", b"24,many"),
        lambda data: b'"' + data,
        lambda data: data + b"x,y\n",
    ],
)
def test_a_damaged_stamp_file_only_costs_another_look(settled: Path, tmp_path: Path, damage: object) -> None:
    stamps = tmp_path / "stamps"
    first, _ = look(settled, stamps)
    stamps.write_bytes(damage(stamps.read_bytes()))  # type: ignore[operator]
    assert look(settled, stamps)[0] == first
    assert look(settled, stamps) == (first, 0)


def test_scan_needs_no_stamp_file_that_can_be_written(settled: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert look(settled, tmp_path / "file" / "stamps")[1] == 3


def test_scan_reads_a_path_given_twice_once(folder: Path) -> None:
    assert look(folder, None, ("a.png", "a.png"))[1] == 1
