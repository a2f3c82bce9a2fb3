"""Small files that would take much: refused by what they unpack to; and one of them never ends what lists all."""

from __future__ import annotations

import itertools
import json
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Run
from test_report import FAIR, make_run
from test_store_contract import dataset, fake_features, make_cache

from featcache.core.errors import CacheError, FeatcacheError, ProjectError
from featcache.core.npz import NPZ_DAMAGE, reading_npz
from featcache.core.project import read_settings
from featcache.core.strict_json import strict_json, strict_toml
from featcache.heads import checkpoint
from featcache.heads.head import Head
from featcache.remotes.urls import open_remote
from featcache.reporting.records import read_records
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import listing
from featcache.sharing.remote import remotes_of
from featcache.sharing.send import push
from featcache.store.tables import read_rows
from featcache.training.runs import list_runs

DEEP, LONG = "[" * 100_000 + "]" * 100_000, "1" + "0" * 400


@pytest.mark.parametrize("text", [DEEP, LONG, f"[{LONG}]", "1e999", "-1e999", "NaN", '{"a": 1, "a": 2}', "[" * 40])
def test_json_that_python_takes_and_what_reads_it_would_not(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict_json(text)


@pytest.mark.parametrize("text", [f"a = {DEEP}", f"a = {LONG}", "a = 1e999", "a." * 2000 + "b = 1"])
def test_toml_that_python_takes_and_what_reads_it_would_not(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict_toml(text)
    (tmp_path / "featcache.toml").write_text(text)
    with pytest.raises(ProjectError, match=r"featcache\.toml: not readable as TOML"):
        read_settings(tmp_path / "featcache.toml")


def test_a_configuration_of_the_user_without_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_CONFIG", str(tmp_path))
    (tmp_path / "config.toml").write_text(f"remotes = {DEEP}")
    with pytest.raises(ProjectError, match=r"config\.toml: not readable as TOML"):
        remotes_of(None)


def test_runs_that_are_bombs_are_listed_and_the_others_are_shown(tmp_path: Path) -> None:
    good = make_run(tmp_path, "good", FAIR, FAIR)
    bombs = list(itertools.product(("config.json", "metrics.json"), (DEEP, LONG, "[1e999]")))
    for number, (file, value) in enumerate(bombs):
        bad = shutil.copytree(good.folder, tmp_path / f"bad-{number}")
        text = (bad / file).read_text()
        (bad / file).write_text(text.replace("{", f'{{"recipe": {value}, "x": {value},', 1))
    records, problems = read_records(list_runs(tmp_path))
    assert [record.name for record in records] == ["good"]
    assert [problem.name for problem in problems] == [f"bad-{number}" for number in range(len(bombs))]


@pytest.mark.parametrize("value", [LONG, "[" * 200 + "]" * 200, "1e999"])
def test_one_record_that_is_a_bomb_is_listed_and_the_others_are_shown(tmp_path: Path, run: Run, value: str) -> None:
    cache = make_cache(tmp_path / "caches", dataset(4), fake_features(4, (3,)), 1)
    store = open_remote(str(tmp_path / "remote"))
    push(store, bundle_of_cache(cache.folder))
    folder = tmp_path / "remote/caches" / cache.name
    other = shutil.copytree(folder, folder.with_name("evil"))
    for file in other.glob("0*.json"):
        about = json.dumps(json.loads(file.read_text()) | {"name": "evil"})
        file.write_text(about.replace('"rows": 4', f'"rows": {value}', 1))
    found = {one.name: one.entry for one in listing(store, "cache")}
    assert found["evil"] is None
    assert found[cache.name] is not None
    said = run("ls", "--remote", str(tmp_path / "remote"), cwd=tmp_path)
    assert said.code == 0, said.err
    assert cache.name in said.out


def _texts(texts: list[str], count: int) -> pa.Table:
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array(texts))
    numbers = pa.array(np.arange(count))
    return pa.table({"row": numbers, "image_id": text, "view": numbers, "row_id": text})


def _dictionary(file: Path) -> None:
    """A long text once, and many rows that are it: 8 GB."""
    pq.write_table(_texts(["a" * (1 << 20)], 8000), file, compression="zstd")


def _prefixes(file: Path) -> None:
    """Texts that each begin as the one before."""
    table = pa.table({"image_id": ["a" * (1 << 20), "a" * (1 << 20) + "b"] * 20})
    pq.write_table(table, file, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY", compression="zstd")


def _lists(file: Path) -> None:
    """Rows of a million values each."""
    pq.write_table(pa.table({"row": [[0] * 1_000_000] * 2, "image_id": [["a"]] * 2}), file, compression="zstd")


def _lying_footer(file: Path) -> None:
    """A footer that says that all is small."""
    table = pa.table({"row": [0], "image_id": ["a" * (64 << 20)], "view": [0], "row_id": ["b"]})
    pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False, store_schema=False)
    said = pq.read_metadata(file).row_group(0)
    size = said.column(1).total_uncompressed_size

    def varint(value: int) -> bytes:
        value, out = value << 1, b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    data = file.read_bytes()
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[at:]
    for number in (size, said.total_byte_size):
        assert varint(number) in footer
        small = bytes([0x80 | 5] + [0x80] * (len(varint(number)) - 2) + [0])  # as long, and 5
        footer = footer.replace(varint(number), small)
    file.write_bytes(data[:at] + footer)


@pytest.mark.parametrize("bomb", [_dictionary, _prefixes, _lists, _lying_footer])
def test_a_table_is_refused_by_what_its_pages_hold(tmp_path: Path, bomb: Callable[[Path], None]) -> None:
    file = tmp_path / "rows.parquet"
    bomb(file)
    assert file.stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(CacheError, match=r"rows\.parquet"):
        read_rows(file)
    assert pa.total_allocated_bytes() - before < 16 << 20


def _array(dtype: str, count: int, data: bytes) -> bytes:
    """A .npy file whose header may lie."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({count},), }}".ljust(117)
    return b"\x93NUMPY\x01\x00v\x00" + header.encode() + b"\n" + data


def _header_that_lies(archive: zipfile.ZipFile) -> None:
    archive.writestr("identity.npy", _array("<f8", 1_000_000_000, bytes(8)))


def _packed(archive: zipfile.ZipFile) -> None:
    archive.writestr("identity.npy", _array("<f8", 4_000_000, bytes(32_000_000)), zipfile.ZIP_DEFLATED)


def _objects(archive: zipfile.ZipFile) -> None:
    archive.writestr("identity.npy", _array("|O", 1, bytes(8)))


@pytest.mark.parametrize("bomb", [_header_that_lies, _packed, _objects])
def test_arrays_that_are_larger_than_their_file_are_not_made(
    tmp_path: Path, bomb: Callable[[zipfile.ZipFile], None]
) -> None:
    for name in ("state.npz", "head.npz"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            bomb(archive)
    tracemalloc.start()
    try:
        with pytest.raises(NPZ_DAMAGE), reading_npz(tmp_path / "state.npz"):
            pass
        assert checkpoint.load(tmp_path / "state.npz", "any", like=None) is None  # type: ignore[type-var]
        with pytest.raises(FeatcacheError, match=r"head\.npz"):
            Head.load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
