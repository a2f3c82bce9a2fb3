"""Caches of a stranger: whatever they promise, nothing outside of them is touched, nothing is run, and one message says
what is wrong. Manifests are sealed again, so that only their content can give them away."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from numcodecs import Zstd
from test_store_contract import dataset, fake_features, make_cache, small_shards

from featcache.core.errors import CacheError, CacheNotFoundError
from featcache.core.files import sha256_file
from featcache.core.recipe import FeatureSpace, digest, row_id
from featcache.store._verify import Verified, verify
from featcache.store.cache import open_cache
from featcache.store.catalog import list_caches
from featcache.store.ledger import read as read_ledger
from featcache.store.manifest import parse_manifest, read_manifest

N, SHAPE, VIEWS = 70, (3, 4, 5), 2
IMAGES = dataset(N // VIEWS)
X = fake_features(N, SHAPE)
SLOW_S = 30.0
"""Of the processor: others may be at work on this machine."""
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def honest(quick: Path) -> Iterator[dict[str, Path]]:
    """A sound cache of five shards in each format."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 16)
        parent = quick / "honest"
        yield {name: make_cache(parent, IMAGES, X, VIEWS, format_=name).folder for name in ("zarr", "hdf5")}


@pytest.fixture
def zarr_cache(honest: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(honest["zarr"], tmp_path / honest["zarr"].name)


@pytest.fixture
def hdf5_cache(honest: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(honest["hdf5"], tmp_path / honest["hdf5"].name)


def reseal(folder: Path, change: Change = lambda value: None) -> None:
    """A manifest that promises the files as they are now, changed and sealed."""
    path = folder / "manifest.json"
    value = json.loads(path.read_bytes())
    for name in value["files"]:
        file = folder / name
        if file.is_file():
            value["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    change(value)
    value["seal"] = digest({key: value[key] for key in value if key != "seal"})
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def relist(folder: Path) -> None:
    """Let the ledger promise the shard files as they are now, then seal."""
    lines = []
    for record in read_ledger(folder / "ledger.jsonl").values():
        file = folder / f"features.zarr/c/{record.shard}/0/0/0"
        line = {"shard": record.shard, "start": record.start, "stop": record.stop}
        lines.append(json.dumps({**line, "bytes": file.stat().st_size, "sha256": sha256_file(file)}) + "\n")
    (folder / "ledger.jsonl").write_text("".join(lines))
    reseal(folder)


def read_all(folder: Path, reader: Any = "auto") -> None:
    cache = open_cache(folder, reader)
    assert len(cache.rows) == len(cache.features)
    assert np.asarray(cache.features).shape == cache.features.shape


def refused(folder: Path, *words: str) -> Verified:
    """Whoever reads it is told, and so is whoever verifies it; both soon. Nothing in it changes."""
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))
    started = time.process_time()
    with pytest.raises(CacheError) as caught:
        read_all(folder)
    if (folder / "features.zarr").is_dir():
        with pytest.raises(CacheError):
            read_all(folder, "zarr")
    between = time.process_time()
    found = verify(folder)
    assert max(between - started, time.process_time() - between) < SLOW_S
    assert not isinstance(caught.value, CacheNotFoundError)
    assert not found.sound
    assert found.problems
    said = [str(caught.value), "; ".join(f"{problem.file}: {problem.what}" for problem in found.problems)]
    for message in said:
        assert len(message) < 3000
        for word in words:
            assert word in message, said
    assert folder.name in said[0]
    (listed,) = [entry for entry in list_caches(folder.parent) if entry.folder == folder] or [None]
    assert listed is None or listed.cache is not None or listed.problem
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*")) == before
    return found


def setting(*keys: str, to: Any) -> Change:
    def change(value: dict[str, Any]) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return change


def renaming(old: str, new: str) -> Change:
    return lambda value: value["files"].__setitem__(new, value["files"].pop(old))


def test_the_helpers_make_caches_that_are_sound(zarr_cache: Path, hdf5_cache: Path) -> None:
    for folder in (zarr_cache, hdf5_cache):
        before = (folder / "manifest.json").read_bytes()
        reseal(folder)
        assert (folder / "manifest.json").read_bytes() == before
        read_all(folder)
        assert verify(folder).sound
    relist(zarr_cache)
    assert verify(zarr_cache).sound


# The manifest

ENTRY = {"bytes": 1, "sha256": "0" * 64}
SHARD = "features.zarr/c/2/0/0/0"
MANIFESTS: dict[str, tuple[Change, str]] = {
    "climbs out": (setting("files", "../other", to=ENTRY), "'../other' leads out of the cache"),
    "climbs out within": (setting("files", "a/../../other", to=ENTRY), "leads out"),
    "absolute": (setting("files", "/etc/passwd", to=ENTRY), "leads out"),
    "backslash": (setting("files", "..\\other", to=ENTRY), "leads out"),
    "odd spelling": (setting("files", "./recipe.json", to=ENTRY), "leads out"),
    "empty name": (setting("files", "", to=ENTRY), "leads out"),
    "nul": (setting("files", "a\0b", to=ENTRY), "no file of a cache"),
    "steers the terminal": (setting("files", "\x1b[2J", to=ENTRY), "'\\x1b[2J' is no file of a cache"),
    "long name": (setting("files", "a" * 5000, to=ENTRY), "no file of a cache"),
    "a file besides": (setting("files", "more", to=ENTRY), "'more' is no file of a cache"),
    "itself": (setting("files", "manifest.json", to=ENTRY), "no file of a cache"),
    "files none": (setting("files", to={}), "5 shards, but only 0 files"),
    "files list": (setting("files", to=[]), "files"),
    "bytes text": (setting("files", "recipe.json", "bytes", to="1"), "files.recipe.json.bytes"),
    "bytes float": (setting("files", "recipe.json", "bytes", to=1.0), "files.recipe.json.bytes"),
    "bytes true": (setting("files", "recipe.json", "bytes", to=True), "files.recipe.json.bytes"),
    "bytes negative": (setting("files", "recipe.json", "bytes", to=-1), "greater than or equal to 0"),
    "bytes huge": (setting("files", "recipe.json", "bytes", to=10**30), "files.recipe.json.bytes"),
    "entry more": (setting("files", "recipe.json", "more", to=1), "Extra inputs"),
    "sha short": (setting("files", "recipe.json", "sha256", to="ab"), "sha256"),
    "sha upper": (setting("files", "recipe.json", "sha256", to="A" * 64), "sha256"),
    "sha with line end": (setting("files", "recipe.json", "sha256", to="0" * 64 + "\n"), "sha256"),
    "a shard less": (lambda value: value["files"].pop(SHARD), f"'{SHARD}' is not listed"),
    "renamed shard": (renaming(SHARD, "features.zarr/c/9/0/0/0"), "features.zarr/c/"),
    "no recipe": (lambda value: value["files"].pop("recipe.json"), "'recipe.json' is not listed"),
    "newer": (setting("format", to=3), "format 3 is newer than this featcache (2): update featcache"),
    "much newer": (setting("format", to=10**100), "is newer"),
    "older": (setting("format", to=1), "format 1 is of an older featcache"),
    "format none": (setting("format", to=0), "no featcache manifest of format 2"),
    "format true": (setting("format", to=True), "format True is of an older"),
    "format float": (setting("format", to=2.0), "manifest.json"),
    "format text": (setting("format", to="2"), "no featcache manifest of format 2"),
    "unknown field": (setting("more", to=1), "more: Extra inputs are not permitted"),
    "a field less": (lambda value: value.pop("tolerance"), "tolerance: Field required"),
    "rows others": (setting("rows", to=69), "69 rows, but 70 in the array"),
    "rows negative": (setting("rows", to=-70), "greater than 0"),
    "rows huge": (setting("rows", to=10**40), "rows"),
    "rows true": (setting("rows", to=True), "rows"),
    "rows text": (setting("rows", to="70"), "rows"),
    "rows float": (setting("rows", to=1e308), "rows"),
    "shape huge": (setting("array", "shape", to=[2**39, 3, 4, 5]), "rows"),
    "a row huge": (setting("array", "shape", to=[70, 2**39]), "bytes: expected whole chunks"),
    "a product huge": (setting("array", "shape", to=[70, 2**39, 2**39, 2**39]), "bytes: expected whole chunks"),
    "shards huge": (setting("array", "rows_per_shard", to=2**30), "bytes: expected whole chunks"),
    "chunks larger than shards": (setting("array", "rows_per_chunk", to=2**20), "expected whole chunks"),
    "shape flat": (setting("array", "shape", to=[70]), "array.shape"),
    "shape deep": (setting("array", "shape", to=[70, 1, 1, 1, 1, 60]), "array.shape"),
    "shape zero": (setting("array", "shape", to=[70, 0]), "greater than 0"),
    "shape negative": (setting("array", "shape", to=[70, -3, 4, 5]), "greater than 0"),
    "shape true": (setting("array", "shape", to=[70, True]), "array.shape"),
    "shape float": (setting("array", "shape", to=[70, 1e308]), "array.shape"),
    "shape text": (setting("array", "shape", to="70"), "array.shape"),
    "no rows a shard": (setting("array", "rows_per_shard", to=0), "rows_per_shard"),
    "one row a shard": (setting("array", "rows_per_shard", to=1), "expected whole chunks"),
    "dtype object": (setting("array", "dtype", to="object"), "array.dtype"),
    "array format": (setting("array", "format", to="pickle"), "array.format"),
    "array other format": (setting("array", "format", to="hdf5"), "'features.h5' is not listed"),
    "name climbs": (setting("name", to="../tiny"), "name"),
    "name other": (setting("name", to="tiny-00000000"), "tiny-00000000 is not that of its digest"),
    "digest other": (setting("digest", to="0" * 64), "is not that of its digest"),
    "recipe digest": (setting("recipe_digest", to="0" * 64), "recipe.json: is not the recipe of the manifest"),
    "digest number": (setting("digest", to=7), "digest"),
    "tolerance true": (setting("tolerance", "relative", to=True), "tolerance.relative"),
    "tolerance large": (setting("tolerance", "absolute", to=1e308), "tolerance.absolute"),
    "provenance list": (setting("provenance", to=[]), "provenance"),
    "provenance deep": (lambda value: value["provenance"].update(deep=nested(40)), "nested deeper"),
}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_sealed_manifest_of_a_stranger(zarr_cache: Path, name: str) -> None:
    change, said = MANIFESTS[name]
    reseal(zarr_cache, change)
    found = refused(zarr_cache, said)
    if not name.startswith(("recipe digest", "name other", "digest other")):
        assert [problem.file for problem in found.problems] == ["manifest.json"]


def test_a_manifest_that_was_changed_without_its_seal(zarr_cache: Path) -> None:
    path = zarr_cache / "manifest.json"
    whole = path.read_bytes()
    for old, new in ((b'"engine": "none"', b'"engine": "some"'), (b"  ", b"   "), (b'"rows"', b'"rows" ')):
        assert old in whole
        path.write_bytes(whole.replace(old, new, 1))
        refused(zarr_cache, "its seal does not fit")
    path.write_bytes(whole + b"\n")
    refused(zarr_cache, "its seal does not fit")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"format"',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"\x00" * 100,
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"format": 2, "rows": ' + b"9" * 6000 + b"}",
        b'{"format": 1e999}',
        b'{"format": NaN}',
        b'{"format": 2}',
        b'{"format": 2, "format": 2}',
        b'{"format": 2, "files": {' + b",".join(b'"f%d": 1' % number for number in range(20_000)) + b"}}",
    ],
    ids=range(16),
)
def test_a_manifest_that_is_none(zarr_cache: Path, text: bytes) -> None:
    (zarr_cache / "manifest.json").write_bytes(text)
    refused(zarr_cache)
    with pytest.raises(CacheError, match=r"manifest\.json: "):
        read_manifest(zarr_cache)


@pytest.mark.parametrize(
    "spelled", ["1e999", "-1e999", '"\\ud800"', '{"\\udfff": 1}', "9" * 4000, "1.0e5", '"\\u0041"']
)
def test_values_that_no_manifest_is_written_with(zarr_cache: Path, spelled: str) -> None:
    path = zarr_cache / "manifest.json"
    path.write_text(path.read_text().replace('"engine": "none"', f'"engine": {spelled}'))
    refused(zarr_cache, "manifest.json")


def test_a_key_that_stands_there_twice(zarr_cache: Path) -> None:
    path = zarr_cache / "manifest.json"
    text = path.read_text()
    for old, new in (("{", '{"rows": 70,'), ('"files": {', '"files": {"rows.parquet": 1,')):
        path.write_text(text.replace(old, new, 1))
        refused(zarr_cache, "stands there twice")


def test_a_manifest_larger_than_any_is_not_read(zarr_cache: Path) -> None:
    with (zarr_cache / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # of which the disk holds next to nothing
    refused(zarr_cache, "larger than any manifest")


# The other small files


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["space"].update(layer="other"),
        lambda value: value["space"].update(backbone="../tiny"),
        lambda value: value["space"].update(input_size_px="32"),
        lambda value: value["space"].update(input_size_px=True),
        lambda value: value["space"].pop("rendering"),
        lambda value: value["augmentation"].update(seed=10**400),
        lambda value: value["augmentation"].update(rotation_deg=1e308),
        lambda value: value["augmentation"].update(fill_modes=["mirror"]),
        lambda value: value["augmentation"].update(fill_modes=[[]]),
        lambda value: value.update(format=2),
        lambda value: value.update(more=1),
        lambda value: value.clear(),
    ],
)
def test_another_recipe(zarr_cache: Path, change: Change) -> None:
    path = zarr_cache / "recipe.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))
    reseal(zarr_cache)
    refused(zarr_cache, "recipe.json")


@pytest.mark.parametrize("data", [b"", b"[" * 100_000, b"\xff", b"null", b"[]", b'{"format": 1, "space": null}'])
def test_a_recipe_that_is_none(zarr_cache: Path, data: bytes) -> None:
    (zarr_cache / "recipe.json").write_bytes(data)
    reseal(zarr_cache)
    refused(zarr_cache, "recipe.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:-1],
        lambda lines: [],
        lambda lines: [b"\xff\n", b"[" * 50_000, b"\n{}\n"],
        lambda lines: [lines[0].replace(b'"start":0', b'"start":1'), *lines[1:]],
        lambda lines: [lines[0].replace(b'"stop":16', b'"stop":-1'), *lines[1:]],
        lambda lines: [lines[0].replace(b'"shard":0', b'"shard":99'), *lines[1:]],
        lambda lines: [lines[0].replace(b'"shard":0', b'"shard":' + b"9" * 4000), *lines[1:]],
        lambda lines: [lines[0].replace(b'"bytes":', b'"bytes":1'), *lines[1:]],
    ],
)
def test_a_ledger_of_other_shards_is_found(zarr_cache: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = zarr_cache / "ledger.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    reseal(zarr_cache)
    found = verify(zarr_cache)
    assert [problem.file for problem in found.problems] == ["ledger.jsonl"]


# Tables


def renamed(folder: Path) -> Path:
    """Give the cache the names that follow from its recipe and rows as they are: a consistent lie."""
    from featcache.core.recipe import cache_digest, cache_name
    from featcache.store.writer import read_recipe

    recipe, frame = read_recipe(folder), pd.read_parquet(folder / "rows.parquet")
    named = cache_digest(recipe, zip(frame["image_id"], map(int, frame["view"]), strict=True))
    other = folder.with_name(cache_name(recipe.space.backbone, named))
    if other != folder:
        folder.rename(other)
    reseal(other, lambda value: value.update(digest=named, name=other.name, recipe_digest=recipe.digest))
    return other


def put(folder: Path, name: str, table: pa.Table | pd.DataFrame) -> None:
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(table, folder / name)
    reseal(folder)


ROWS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "other images": lambda f: f.assign(image_id=["0" * 62 + f"{n:02d}" for n in range(N)]),
    "numbers for images": lambda f: f.assign(image_id=range(N)),
    "bytes for images": lambda f: f.assign(image_id=[b"x"] * N),
    "an image missing": lambda f: f.assign(image_id=[None, *f["image_id"][1:]]),
    "views with a fraction": lambda f: f.assign(view=f["view"] + 0.5),
    "a view missing": lambda f: f.assign(view=[None, *f["view"][1:]]),
    "a view as text": lambda f: f.assign(view=f["view"].astype(str)),
    "negative views": lambda f: f.assign(view=-1 - f["view"]),
    "views a list": lambda f: f.assign(view=[[1]] * N),
    "rows backwards": lambda f: f.assign(row=list(reversed(range(N)))),
    "rows as text": lambda f: f.assign(row=f["row"].astype(str)),
    "a row less": lambda f: f.iloc[:-1],
    "no rows": lambda f: f.iloc[:0],
    "a row twice": lambda f: f.iloc[[0, *range(N - 1)]].assign(row=range(N)),
    "no row_id": lambda f: f.drop(columns="row_id"),
    "row_id a number": lambda f: f.assign(row_id=range(N)),
    "a wrong row_id": lambda f: f.assign(row_id=["0" * 64, *f["row_id"][1:]]),
    "row_ids exchanged": lambda f: f.assign(row_id=[*f["row_id"][1:], f["row_id"][0]]),
    "a parameter changed": lambda f: f.assign(rotation_deg=f["rotation_deg"] + 1),
    "a parameter less": lambda f: f.drop(columns="hue_deg"),
    "a parameter more": lambda f: f.assign(tilt=1.0),
    "a parameter that does something": lambda f: f.assign(zoom=1.1),
    "a parameter missing": lambda f: f.assign(rotation_deg=[None, *f["rotation_deg"][1:]]),
    "a parameter infinite": lambda f: f.assign(rotation_deg=[np.inf, *f["rotation_deg"][1:]]),
    "a parameter a list": lambda f: f.assign(rotation_deg=[[1.0]] * N),
    "a parameter a record": lambda f: f.assign(rotation_deg=[{"a": 1}] * N),
    "a parameter bytes": lambda f: f.assign(fill_mode=[b"wrap"] * N),
    "a parameter a time": lambda f: f.assign(rotation_deg=pd.Timestamp(0)),
    "a parameter float32": lambda f: f.assign(rotation_deg=f["rotation_deg"].astype("float32")),
}


@pytest.mark.parametrize("name", ROWS)
def test_other_rows(zarr_cache: Path, name: str) -> None:
    frame = ROWS[name](pd.read_parquet(zarr_cache / "rows.parquet"))
    put(zarr_cache, "rows.parquet", frame)
    found = verify(zarr_cache)
    assert not found.sound
    assert "rows.parquet" in " ".join(f"{problem.file} {problem.what}" for problem in found.problems)
    if "row_id" not in name and not name.startswith("a parameter"):  # which need not be looked at to read features
        refused(zarr_cache, "rows.parquet")


LINES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "a line less": lambda f: f.iloc[1:],
    "a line twice": lambda f: f.iloc[[0, *range(len(f))]],
    "no label": lambda f: f.drop(columns="label"),
    "labels numbers": lambda f: f.assign(label=range(len(f))),
    "a label missing": lambda f: f.assign(label=[None, *f["label"][1:]]),
    "paths bytes": lambda f: f.assign(path=b"x"),
    "an unknown split": lambda f: f.assign(split="\x1b[2J"),
    "boxes text": lambda f: f.assign(x_min="a"),
    "boxes with a fraction": lambda f: f.assign(x_min=0.5),
    "boxes infinite": lambda f: f.assign(x_min=np.inf),
    "groups lists": lambda f: f.assign(group=[["a"]] * len(f)),
}


@pytest.mark.parametrize("name", LINES)
def test_another_dataset(zarr_cache: Path, name: str) -> None:
    put(zarr_cache, "dataset.parquet", LINES[name](pd.read_parquet(zarr_cache / "dataset.parquet")))
    refused(zarr_cache, "dataset.parquet")


@pytest.mark.parametrize("table", ["rows.parquet", "dataset.parquet"])
@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1", b"x" * 9999]
)
def test_a_table_that_is_none(zarr_cache: Path, table: str, data: bytes) -> None:
    (zarr_cache / table).write_bytes(data)
    reseal(zarr_cache)
    refused(zarr_cache, table, "cannot be read as Parquet")


def test_a_table_with_a_column_twice(zarr_cache: Path) -> None:
    table = pq.read_table(zarr_cache / "rows.parquet")
    put(zarr_cache, "rows.parquet", table.append_column("view", table["view"]))
    refused(zarr_cache, "rows.parquet")


def test_flipped_bytes_of_a_table_are_never_a_traceback(zarr_cache: Path) -> None:
    """With digests that fit: only the content can tell."""
    generator = np.random.default_rng(0)
    for name in ("rows.parquet", "dataset.parquet"):
        whole = (zarr_cache / name).read_bytes()
        for place in generator.integers(0, len(whole), 25):
            data = bytearray(whole)
            data[place] ^= 1 << int(generator.integers(8))
            (zarr_cache / name).write_bytes(data)
            reseal(zarr_cache)
            verify(zarr_cache)
            try:
                read_all(zarr_cache)
            except CacheError as error:
                assert zarr_cache.name in str(error)
        (zarr_cache / name).write_bytes(whole)


# Nothing is unpickled


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def test_nothing_is_unpickled(zarr_cache: Path, tmp_path: Path) -> None:
    canary = tmp_path / "sung"
    song = pickle.dumps(Canary(canary))
    pickle.loads(song)
    assert canary.is_file()
    canary.unlink()
    text = base64.b64encode(song).decode()
    whole = pq.read_table(zarr_cache / "rows.parquet")
    field = pa.field("zoom", pa.binary(), metadata={
        b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": song})  # fmt: skip
    for table in (
        whole.append_column(field, pa.array([song] * N, pa.binary())),
        whole.replace_schema_metadata({b"pandas": json.dumps({"index_columns": [text]}).encode()}),
        whole.replace_schema_metadata({b"pandas": b"not json", b"ARROW:schema": song}),
    ):
        put(zarr_cache, "rows.parquet", table)
        verify(zarr_cache)
        with suppress(CacheError):
            read_all(zarr_cache)
    put(zarr_cache, "rows.parquet", whole.replace_schema_metadata(None))
    description = zarr_cache / "features.zarr" / "zarr.json"
    honest = json.loads(description.read_bytes())
    for name in ("numcodecs.pickle", "pickle"):
        value = json.loads(json.dumps(honest))
        value["codecs"][0]["configuration"]["codecs"].append({"name": name, "configuration": {"protocol": 5}})
        description.write_text(json.dumps(value))
        (zarr_cache / "features.zarr/c/0/0/0/0").write_bytes(song)
        relist(zarr_cache)
        refused(zarr_cache, "features.zarr")
    assert not canary.exists()


# Zarr


def inner(value: dict[str, Any]) -> list[dict[str, Any]]:
    codecs: list[dict[str, Any]] = value["codecs"][0]["configuration"]["codecs"]
    return codecs


DESCRIPTIONS: dict[str, Change] = {
    "more rows": lambda v: v.update(shape=[71, *SHAPE]),
    "rows without end": lambda v: v.update(shape=[2**62, *SHAPE]),
    "negative rows": lambda v: v.update(shape=[-70, *SHAPE]),
    "another row": lambda v: v.update(shape=[N, 3, 4, 4]),
    "fewer sides": lambda v: v.update(shape=[N, 60]),
    "float64": lambda v: v.update(data_type="float64"),
    "objects": lambda v: v.update(data_type="object"),
    "another byte order": lambda v: inner(v)[1].update(configuration={"endian": "big"}),
    "chunks without end": lambda v: v["codecs"][0]["configuration"].update(chunk_shape=[2**40, *SHAPE]),
    "shards without end": lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[2**40, *SHAPE]),
    "no transposition": lambda v: inner(v).pop(0),
    "no checksum": lambda v: inner(v)[-1]["configuration"].update(checksum=False),
    "another level": lambda v: inner(v)[-1]["configuration"].update(level=9),
    "gzip": lambda v: inner(v).__setitem__(-1, {"name": "gzip", "configuration": {"level": 1}}),
    "one codec more": lambda v: inner(v).append({"name": "crc32c"}),
    "an unknown codec": lambda v: inner(v).append({"name": "evil.codec", "configuration": {}}),
    "codecs none": lambda v: v.update(codecs=[]),
    "codecs null": lambda v: v.update(codecs=None),
    "not sharded": lambda v: v.update(codecs=inner(v)),
    "index at the start": lambda v: v["codecs"][0]["configuration"].update(index_location="start"),
    "index unchecked": lambda v: v["codecs"][0]["configuration"]["index_codecs"].pop(),
    "a group": lambda v: (v.clear(), v.update(zarr_format=3, node_type="group", attributes={})),
    "format 2": lambda v: v.update(zarr_format=2),
    "format 4": lambda v: v.update(zarr_format=4),
    "an unknown field": lambda v: v.update(more={"must_understand": True}),
    "a list": lambda v: v.update(shape={"a": 1}),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_another_description_of_the_array(zarr_cache: Path, name: str) -> None:
    path = zarr_cache / "features.zarr" / "zarr.json"
    value = json.loads(path.read_bytes())
    DESCRIPTIONS[name](value)
    path.write_text(json.dumps(value))
    reseal(zarr_cache)
    refused(zarr_cache, "features.zarr")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"zarr_format": 3'])
def test_a_description_that_is_none(zarr_cache: Path, data: bytes) -> None:
    (zarr_cache / "features.zarr" / "zarr.json").write_bytes(data)
    reseal(zarr_cache)
    refused(zarr_cache, "features.zarr")


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(fill_value=7.0),
        lambda v: v.update(chunk_key_encoding={"name": "default", "configuration": {"separator": "."}}),
        lambda v: v.update(chunk_key_encoding={"name": "v2", "configuration": {"separator": "/"}}),
    ],
    ids=["another fill value", "files of other names", "files of older names"],
)
def test_values_that_do_not_come_from_the_files_of_the_manifest(zarr_cache: Path, change: Change) -> None:
    """What a reader takes for features must be bytes that the manifest vouches for."""
    path = zarr_cache / "features.zarr" / "zarr.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))
    (zarr_cache / "features.zarr" / "c.0.0.0.0").write_bytes((zarr_cache / "features.zarr/c/1/0/0/0").read_bytes())
    reseal(zarr_cache)
    refused(zarr_cache, "features.zarr")


def test_foreign_zarr(zarr_cache: Path) -> None:
    path = zarr_cache / "features.zarr"
    whole = (path / "zarr.json").read_bytes()
    (path / "zarr.json").unlink()
    zarr.create_array(path, data=X, zarr_format=2, chunks=(16, *SHAPE))
    (path / "zarr.json").write_bytes(b"{}")
    reseal(zarr_cache)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr: that there are both
        refused(zarr_cache, "features.zarr")
        (path / "zarr.json").write_bytes(whole)
        reseal(zarr_cache)
        found = verify(zarr_cache)
        assert found.sound  # what lies there besides is not looked at
        assert "not part of the cache: features.zarr/" in found.remarks[0]
        np.testing.assert_array_equal(open_cache(zarr_cache).features[:], X)


def test_consolidated_metadata_is_not_looked_at(zarr_cache: Path) -> None:
    path = zarr_cache / "features.zarr" / "zarr.json"
    value = json.loads(path.read_bytes())
    metadata = {"a": {**value, "shape": [1, *SHAPE]}}
    value["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": metadata}
    path.write_text(json.dumps(value))
    reseal(zarr_cache)
    try:
        read_all(zarr_cache)
        np.testing.assert_array_equal(open_cache(zarr_cache).features[:], X)
    except CacheError as error:
        assert "features.zarr" in str(error)
    verify(zarr_cache)


def shard_of(chunks: list[bytes]) -> bytes:
    """A shard file: the chunks, then offset and length of each, then a CRC-32C."""
    import google_crc32c

    index, place = b"", 0
    for chunk in chunks:
        index += struct.pack("<QQ", place, len(chunk)) if chunk else b"\xff" * 16
        place += len(chunk)
    return b"".join(chunks) + index + struct.pack("<I", google_crc32c.value(index))


@pytest.mark.parametrize(
    "chunk",
    [
        b"not zstd",
        Zstd(level=1).encode(bytes(16 * 60 * 4 - 1)),
        Zstd(level=1).encode(bytes(16 * 60 * 4 + 1)),
        Zstd(level=1).encode(b""),
        Zstd(level=1).encode(bytes(1)) * 2,
    ],
    ids=["other bytes", "too short", "too long", "empty", "two frames"],
)
def test_a_shard_that_holds_no_features(zarr_cache: Path, chunk: bytes) -> None:
    (zarr_cache / "features.zarr/c/0/0/0/0").write_bytes(shard_of([chunk]))
    relist(zarr_cache)
    found = refused(zarr_cache, "features.zarr")
    assert found.damaged_shards == (0,)


def test_a_shard_whose_index_says_that_a_chunk_was_never_stored(zarr_cache: Path) -> None:
    (zarr_cache / "features.zarr/c/0/0/0/0").write_bytes(shard_of([b""]))
    relist(zarr_cache)
    with pytest.raises(CacheError, match=r"features\.zarr"):
        _ = open_cache(zarr_cache, "tensorstore").features[:]
    assert not verify(zarr_cache).sound


# HDF5


def new_features(folder: Path, make: Callable[[h5py.File], object]) -> None:
    (folder / "features.h5").unlink()
    with h5py.File(folder / "features.h5", "w") as file:
        make(file)
    reseal(folder)


CHUNKS = (16, *SHAPE)


def external(file: h5py.File) -> None:
    file.create_dataset("features", X.shape, "f4", external=[("../outside.bin", 0, X.nbytes)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(X.shape, "f4")
    layout[:] = h5py.VirtualSource("../outside.h5", "features", X.shape)
    file.create_virtual_dataset("features", layout)


FOREIGN: dict[str, Callable[[h5py.File], object]] = {
    "nothing": lambda f: None,
    "another name": lambda f: f.create_dataset("data", data=X, chunks=CHUNKS, compression="gzip"),
    "a group": lambda f: f.create_group("features"),
    "a type": lambda f: f.__setitem__("features", np.dtype("f4")),
    "not chunked": lambda f: f.create_dataset("features", data=X),
    "not deflated": lambda f: f.create_dataset("features", data=X, chunks=CHUNKS),
    "other filters": lambda f: f.create_dataset("features", data=X, chunks=CHUNKS, compression="gzip", shuffle=True),
    "other chunks": lambda f: f.create_dataset("features", data=X, chunks=(1, *SHAPE), compression="gzip"),
    "float64": lambda f: f.create_dataset("features", data=X.astype("f8"), chunks=CHUNKS, compression="gzip"),
    "objects": lambda f: f.create_dataset("features", X.shape, h5py.special_dtype(vlen=str), chunks=CHUNKS),
    "records": lambda f: f.create_dataset("features", X.shape, [("a", "f4")], chunks=CHUNKS, compression="gzip"),
    "references": lambda f: f.create_dataset("features", X.shape, h5py.ref_dtype, chunks=CHUNKS),
    "more rows": lambda f: f.create_dataset("features", (71, *SHAPE), "f4", chunks=CHUNKS, compression="gzip"),
    "rows without end": lambda f: f.create_dataset(
        "features", (2**50, *SHAPE), "f4", chunks=CHUNKS, compression="gzip"
    ),
    "no data": lambda f: f.create_dataset("features", X.shape, "f4", chunks=CHUNKS, compression="gzip"),
    "no shape": lambda f: f.create_dataset("features", data=h5py.Empty("f4")),
    "soft link": lambda f: f.__setitem__("features", h5py.SoftLink("/other")),
    "external link": lambda f: f.__setitem__("features", h5py.ExternalLink("../outside.h5", "features")),
    "external data": external,
    "virtual": virtual,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_hdf5(hdf5_cache: Path, name: str) -> None:
    outside = hdf5_cache.parent / "outside.h5"
    with h5py.File(outside, "w") as file:
        file.create_dataset("features", data=X, chunks=CHUNKS, compression="gzip")
    X.tofile(hdf5_cache.parent / "outside.bin")
    new_features(hdf5_cache, FOREIGN[name])
    refused(hdf5_cache, "features.h5")


@pytest.mark.parametrize("data", [b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + b"\xff" * 5000, b"x" * 5000])
def test_hdf5_that_is_none(hdf5_cache: Path, data: bytes) -> None:
    (hdf5_cache / "features.h5").write_bytes(data)
    reseal(hdf5_cache)
    refused(hdf5_cache, "features.h5")


def test_values_that_the_ledger_does_not_know_are_found(hdf5_cache: Path) -> None:
    """A file of other, sound features: its digest fits the manifest, its chunks do not fit the ledger."""
    values = {"data": X + 1, "chunks": CHUNKS, "compression": "gzip", "maxshape": (N, *SHAPE)}
    new_features(hdf5_cache, lambda file: file.create_dataset("features", **values))
    found = verify(hdf5_cache)
    assert not found.sound
    assert found.problems[0].file == "ledger.jsonl"


def test_flipped_bytes_of_an_hdf5_file_are_never_a_traceback(hdf5_cache: Path) -> None:
    generator = np.random.default_rng(1)
    whole = (hdf5_cache / "features.h5").read_bytes()
    for place in [*range(0, 200, 3), *generator.integers(200, len(whole), 40)]:
        data = bytearray(whole)
        data[place] ^= 1 << int(generator.integers(8))
        (hdf5_cache / "features.h5").write_bytes(data)
        reseal(hdf5_cache)
        verify(hdf5_cache)


# Links


def test_links_out_of_the_cache_are_not_followed(zarr_cache: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name in ("recipe.json", "rows.parquet", "ledger.jsonl", "features.zarr/zarr.json", SHARD, "features.zarr"):
        path, kept = zarr_cache / name, outside / Path(name).name
        outside.mkdir(exist_ok=True)
        path.rename(kept)
        path.symlink_to(kept)
        found = refused(zarr_cache, name, "link that leads out of the cache")
        assert all(problem.file.startswith(name) for problem in found.problems)
        path.unlink()
        path.symlink_to(Path(*[".."] * len(Path(name).parts), "outside", kept.name))
        refused(zarr_cache, name, "link that leads out of the cache")
        path.unlink()
        kept.rename(path)
    assert verify(zarr_cache).sound


def test_links_that_lead_nowhere_or_to_no_file(zarr_cache: Path) -> None:
    for name in ("recipe.json", SHARD):
        path = zarr_cache / name
        data = path.read_bytes()
        for target in ("/dev/zero", "/dev/stdin", "/proc/self/mem", path.name, "nothing", "/etc"):
            path.unlink()
            path.symlink_to(target)
            refused(zarr_cache, name)
        path.unlink()
        path.write_bytes(data)
    assert verify(zarr_cache).sound


def test_a_cache_may_itself_be_a_link_and_hold_links_that_stay_inside(zarr_cache: Path, tmp_path: Path) -> None:
    (zarr_cache / "ledger.jsonl").rename(zarr_cache / "kept")
    (zarr_cache / "ledger.jsonl").symlink_to("kept")
    zarr_cache.rename(tmp_path / "elsewhere")
    zarr_cache.symlink_to(tmp_path / "elsewhere")
    read_all(zarr_cache)
    assert verify(zarr_cache).sound


# Bombs

MEASURE = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
import featcache.store.zarr_store, featcache.store.hdf5_store
from featcache.core.errors import CacheError
from featcache.store.cache import open_cache
from featcache.store._verify import verify
limit = 6 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
open_cache(sys.argv[1]).features[:]
verify(Path(sys.argv[1]))
for name in sys.argv[2:]:
    for act in ("read", "verify"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        try:
            if act == "verify":
                found = verify(Path(name))
                said = "" if found.sound else "; ".join(f"{p.file}: {p.what}" for p in found.problems)
            else:
                cache = open_cache(name)
                cache.rows
                for _ in cache.features.blocks():
                    pass
                said = ""
        except CacheError as error:
            said = str(error)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps([name, act, said[:3000], time.process_time() - started, grown / 1024]), flush=True)
"""


def zstd_bomb(folder: Path) -> None:
    """A chunk of 4 kB that becomes 4 GiB, in each of four shards."""
    block = bytes(1 << 20)
    frame = bytearray(b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + struct.pack("<Q", 4096 * len(block)))
    block_size = 128 << 10
    for number in range(4096 * len(block) // block_size):
        last = number == 4096 * len(block) // block_size - 1
        frame += struct.pack("<I", block_size << 3 | 1 << 1 | last)[:3] + b"\0"
    for shard in range(4):
        (folder / f"features.zarr/c/{shard}/0/0/0").write_bytes(shard_of([bytes(frame)]))
    relist(folder)


def huge_chunk(folder: Path) -> None:
    """An index that says that the chunk is of a million terabytes."""
    import google_crc32c

    index = struct.pack("<QQ", 0, 2**60)
    shard = b"x" + index + struct.pack("<I", google_crc32c.value(index))
    (folder / "features.zarr/c/0/0/0/0").write_bytes(shard)
    relist(folder)


def rows_without_end(folder: Path) -> None:
    """A table of a hundred million rows in a few hundred kilobytes."""
    n = 25_000_000
    chunk = pa.chunked_array([pa.array(np.zeros(1_000_000, np.int64))] * (n // 1_000_000))
    text = pa.chunked_array(
        [pa.DictionaryArray.from_arrays(np.zeros(1_000_000, np.int8), ["0" * 64])] * (n // 1_000_000)
    )
    table = pa.table({"row": chunk, "image_id": text, "view": chunk, "row_id": text})
    pq.write_table(table, folder / "rows.parquet", compression="zstd", row_group_size=n)
    assert (folder / "rows.parquet").stat().st_size < 1 << 20
    reseal(folder)


def one_long_text(folder: Path) -> None:
    """Cells of text of 100 MB."""
    table = pq.read_table(folder / "rows.parquet")
    table = table.set_column(1, "image_id", pa.array(["a" * (100 << 20)] + table["image_id"].to_pylist()[1:]))
    pq.write_table(table, folder / "rows.parquet", compression="zstd")
    assert (folder / "rows.parquet").stat().st_size < 1 << 20
    reseal(folder)


def sparse_shard(folder: Path) -> None:
    """A shard that the disk says to be of a terabyte."""
    with (folder / "features.zarr/c/0/0/0/0").open("r+b") as file:
        file.truncate(1 << 40)


def crowded_manifest(folder: Path) -> None:
    """As many small things as the largest manifest can hold."""
    (folder / "manifest.json").write_bytes(b'{"format": 2, "provenance": [' + b"{}," * (5 << 20) + b"0]}")


def shards_without_end(folder: Path) -> None:
    """HDF5 that promises 2**36 shards, none of which is there."""
    shape = [2**40 - 1, *SHAPE]
    (folder / "features.h5").unlink()
    with h5py.File(folder / "features.h5", "w") as file:
        file.create_dataset("features", shape, "f4", chunks=CHUNKS, compression="gzip")
    reseal(folder, lambda value: (value.update(rows=shape[0]), value["array"].update(shape=shape)))


def deflate_bomb(folder: Path) -> None:
    """Chunks of HDF5 that inflate to 1 GiB."""
    import zlib

    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()

    def make(file: h5py.File) -> None:
        array = file.create_dataset("features", X.shape, "f4", chunks=CHUNKS, compression="gzip")
        for first in range(0, N, 16):
            array.id.write_direct_chunk((first, 0, 0, 0), bomb)

    new_features(folder, make)


BOMBS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "zstd": ("zarr", zstd_bomb, "features.zarr"),
    "index": ("zarr", huge_chunk, "features.zarr"),
    "rows": ("zarr", rows_without_end, "rows.parquet"),
    "text": ("zarr", one_long_text, "rows.parquet"),
    "sparse": ("zarr", sparse_shard, "features.zarr/c/0/0/0/0"),
    "manifest": ("zarr", crowded_manifest, "manifest.json"),
    "shards": ("hdf5", shards_without_end, "rows.parquet"),
    "deflate": ("hdf5", deflate_bomb, "features.h5"),
}


def test_bombs_are_refused_soon_and_in_little_memory(honest: dict[str, Path], quick: Path) -> None:
    folders = {}
    for name, (format_, make, _) in BOMBS.items():
        folders[name] = shutil.copytree(honest[format_], quick / "bombs" / name / honest[format_].name)
        make(folders[name])
    command = [sys.executable, "-c", MEASURE, honest["zarr"], *folders.values()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(measured) == 2 * len(BOMBS)
    wrong = []
    for folder, act, said, seconds, grown_mb in measured:
        (name,) = [name for name in folders if str(folders[name]) == folder]
        if BOMBS[name][2] not in said or seconds > SLOW_S or grown_mb > 500:
            wrong.append((name, act, said[:300], round(seconds, 2), round(grown_mb)))
    assert not wrong


# Names that follow from consistent lies


def test_a_consistent_cache_of_other_images_is_sound_and_another_cache(zarr_cache: Path) -> None:
    """Nobody can tell from a cache alone that its values are made up; but it cannot take the name of an honest one."""
    frame = pd.read_parquet(zarr_cache / "rows.parquet")
    lines = pd.read_parquet(zarr_cache / "dataset.parquet")
    other = {name: digest(name) for name in frame["image_id"]}
    space = FeatureSpace(**json.loads((zarr_cache / "recipe.json").read_bytes())["space"])
    frame["image_id"] = frame["image_id"].map(other)
    parameters = [name for name in frame.columns if name not in ("row", "image_id", "view", "row_id")]
    frame["row_id"] = [
        row_id(space, r["image_id"], parameters={n: r[n] for n in parameters}) for r in frame.to_dict("records")
    ]
    put(zarr_cache, "rows.parquet", frame)
    put(zarr_cache, "dataset.parquet", lines.assign(image_id=lines["image_id"].map(other)))
    refused(zarr_cache, "rows.parquet")
    moved = renamed(zarr_cache)
    assert moved.name != zarr_cache.name
    assert verify(moved).sound
    assert parse_manifest(moved).name == moved.name
