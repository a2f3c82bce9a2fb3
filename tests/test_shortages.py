"""What a shell, a machine or a co-user does around a command is said, or ignored rightly; it is no defect of ours."""

from __future__ import annotations

import errno
import subprocess
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import FEATCACHE, Run
from test_store_contract import dataset, fake_features, make_cache

from featcache.core.errors import CacheError, DatasetError, ProjectError, ShortageError, shortage
from featcache.core.files import resolved
from featcache.core.project import read_settings
from featcache.datasets.sources import find_images
from featcache.heads import checkpoint
from featcache.store import tables
from featcache.store.cache import Cache, open_cache
from featcache.store.layout import FORMATS


@pytest.fixture(scope="module", params=FORMATS)
def cache(quick: Path, request: pytest.FixtureRequest) -> Cache:
    return make_cache(
        quick / f"shortages-{request.param}", dataset(12), fake_features(24, (3, 4, 4)), 2, format_=request.param
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed_are_no_defect(tmp_path: Path, closed: str) -> None:
    for command, code in (("remote ls", 0), ("ls", 1)):
        done = subprocess.run(
            ["sh", "-c", f"'{FEATCACHE}' {command} {closed}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "defect" not in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert done.returncode in ({code} if code == 0 else {1, 2}), done


def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_a_cache_is_not_damaged_because_there_are_no_threads(
    cache: Cache, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "featcache.toml").write_text(f'[folders]\ncache = "{cache.folder.parent}"\n')
    assert run("verify", cache.name, cwd=tmp_path).code == 0
    with monkeypatch.context() as patch:
        _no_threads(patch)
        done = run("verify", cache.name, cwd=tmp_path)
    assert "DAMAGED" not in done.out + done.err
    assert "defect" not in done.err
    assert done.code == 0 or "no more threads" in done.err


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "many"), RuntimeError("can't start new thread")])
def test_what_a_machine_has_no_more_of_is_no_damage(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    folder = cache.folder
    for name in ("featcache.store.manifest.strict_json", "featcache.store.writer.read_json"):
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            with pytest.raises((ShortageError, RuntimeError)) as caught:
                _ = open_cache(folder).recipe
            assert not isinstance(caught.value, CacheError)
    with monkeypatch.context() as patch:
        patch.setattr(tables, "sizes_of", fail)
        with pytest.raises((ShortageError, RuntimeError)) as caught:
            tables.read_rows(folder / "rows.parquet")
        assert not isinstance(caught.value, CacheError)
    with monkeypatch.context() as patch:
        patch.setattr("featcache.training.checkpoint.reading_npz", fail)
        with pytest.raises(ShortageError):  # not a training from the beginning
            checkpoint.load(tmp_path / "state.npz", "me", like=None)  # type: ignore[type-var]


def test_a_lock_of_another_process_is_no_shortage() -> None:
    assert not shortage(BlockingIOError(errno.EAGAIN, "unable to lock file"))
    assert shortage(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"))
    assert not shortage(ValueError("x"))


def test_a_library_without_threads_is_a_shortage() -> None:
    assert shortage(pa.lib.ArrowException("Failed to launch worker thread: Resource temporarily unavailable"))


def test_links_in_a_circle_are_no_defect(tmp_path: Path, run: Run) -> None:
    images = tmp_path / "images"
    (images / "a").mkdir(parents=True)
    for link in (tmp_path / "circle", images / "c.png", images / "a/d.png", images / "labels.csv", images / "e"):
        link.symlink_to(link.name)
    (images / "gone.png").symlink_to("nowhere")
    assert resolved(tmp_path / "circle") == resolved(tmp_path) / "circle"
    with pytest.raises(DatasetError):
        find_images(images)
    (tmp_path / "deep" / "/".join("d" * 220)).mkdir(parents=True)
    with pytest.raises(DatasetError):
        find_images(tmp_path / "deep")
    for command in (("ls",), ("gc",), ("report",), ("info",), ("init", str(tmp_path / "circle"))):
        for place in ((), ("--project", str(tmp_path / "circle"))):
            done = run(*command, *place, cwd=tmp_path)
            assert done.code != 0
            assert "defect" not in done.err


@pytest.mark.parametrize("line", ['[folders]\ncache = "a\\u0000b"', '[dataset]\nsource = "a\\u0000"'])
def test_settings_that_name_what_no_file_can_be_called(tmp_path: Path, line: str) -> None:
    (tmp_path / "featcache.toml").write_text(line)
    with pytest.raises(ProjectError, match="no name of a file can have"):
        read_settings(tmp_path / "featcache.toml")


def test_listing_while_everything_vanishes_or_leads_nowhere(tmp_path: Path, run: Run) -> None:
    (tmp_path / "featcache.toml").write_text("")
    for folder in ("cache", "results"):
        (tmp_path / folder).mkdir()
        for name in ("one", "two.training", ".x.partial", "y.kernels"):
            (tmp_path / folder / name).symlink_to("nowhere")
    for command in (("ls",), ("gc", "--json"), ("gc", "--unfinished", "--json"), ("report",), ("info",)):
        done = run(*command, cwd=tmp_path)
        assert "defect" not in done.err
