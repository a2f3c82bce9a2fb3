"""convert: the same rows in another format, dtype or folder; nothing half-written, nothing promised that is lost."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import contents
from test_pipeline_verify import Small, begun, prepared
from test_store_contract import dataset, fake_features, make_cache, rows_for, small_shards
from watching import Watching

from featcache.core.errors import CacheError, FeatcacheError, UsageError
from featcache.store._convert import convert
from featcache.store._verify import verify
from featcache.store.cache import Cache, open_cache
from featcache.store.layout import Format
from featcache.store.writer import CacheWriter

IMAGES = dataset(35)
N, SHAPE = 70, (3, 4, 5)
X = fake_features(N, SHAPE)
KINDS: list[tuple[Format, str]] = [("zarr", "float32"), ("zarr", "float16"), ("hdf5", "float32"), ("hdf5", "float16")]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 16)


@pytest.fixture
def parent(quick: Path, tmp_path: Path) -> Path:
    return quick / "convert" / tmp_path.name


def a_cache(parent: Path, format_: Format = "zarr", dtype: str = "float32", features: np.ndarray = X) -> Cache:
    return make_cache(parent, IMAGES, features.astype(dtype), 2, dtype, format_)


def same_bytes(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


@pytest.mark.parametrize(("source", "target"), list(product(KINDS, KINDS)))
def test_every_pair(parent: Path, source: tuple[Format, str], target: tuple[Format, str]) -> None:
    special = X.copy()
    special[3, 0, 0] = [-0.0, np.nan, np.inf, -np.inf, 65504]
    special[5:7] = 0
    cache = cache_of(parent, source, special)
    before = contents(cache.folder)
    if source == target or (source[1], target[1]) == ("float16", "float32"):
        with pytest.raises(UsageError, match="already" if source == target else "the digits of float32 are lost"):
            convert(cache, target[0], dtype=target[1])
        assert [folder.name for folder in parent.iterdir()] == [cache.name]
        return
    done = convert(cache, target[0], dtype=target[1])
    assert (done.source, done.reused, done.cache.folder.parent) == (cache.name, False, parent)
    found = open_cache(done.cache.folder)
    assert (found.manifest.array.format, str(found.features.dtype)) == target
    same_bytes(found.features[:], cache.features[:].astype(target[1]))
    assert list(found.rows["image_id"]) == list(cache.rows["image_id"])
    assert list(found.rows["label"]) == list(cache.rows["label"])
    assert found.manifest.dataset_digest == cache.manifest.dataset_digest
    assert found.manifest.provenance["converted_from"] == cache.name
    assert verify(found.folder).sound
    assert contents(cache.folder) == before
    again = convert(cache, target[0], dtype=target[1])
    assert (again.reused, again.cache.name, again.faint_rows) == (True, found.name, 0)
    if source[1] == target[1]:  # and back
        shutil.rmtree(cache.folder)
        convert(found, source[0], dtype=source[1])
        after = contents(cache.folder)
        assert {name for name in before if before[name] != after.get(name)} == {"manifest.json"}


def cache_of(parent: Path, kind: tuple[Format, str], features: np.ndarray) -> Cache:
    from test_store_contract import fill, recipe

    how = recipe(kind[1])
    rows = rows_for(IMAGES, 2, how)
    with CacheWriter(parent, how, rows=rows, row_shape=SHAPE, format_=kind[0], allow_nonfinite=True) as writer:
        fill(writer, features.astype(kind[1]))
        writer.finish(IMAGES, {"engine": "none"})
    return open_cache(writer.folder)


def test_it_is_what_extract_would_have_made(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(monkeypatch)
    folder = quick / f"small-{tmp_path.name}"
    small = Small(Path(shutil.copytree(begun(quick), folder)))
    source = small.cache(views={"train_rows": 8})
    for format_, dtype in KINDS[1:]:
        converted = convert(source, format_, dtype=dtype, parent=folder / "to").cache
        extracted = small.cache(format_, dtype, views={"train_rows": 8})
        assert converted.name == extracted.name
        one, other = contents(converted.folder), contents(extracted.folder)
        assert {name for name in one if one[name] != other[name]} <= {"manifest.json"}
        assert converted.manifest.dataset_digest == extracted.manifest.dataset_digest
        shutil.rmtree(extracted.folder)
        shutil.copytree(converted.folder, extracted.folder)
        assert not small.extract(storage={"format": format_, "dtype": dtype}, views={"train_rows": 8}).relabelled


@pytest.mark.parametrize("format_", ["zarr", "hdf5"])
@pytest.mark.parametrize("row", [0, 40, 69])
def test_values_that_float16_cannot_hold_leave_nothing_behind(parent: Path, format_: Format, row: int) -> None:
    large = X.copy()
    large[row, 1, 2, 3] = 65520  # 65504 is the largest of all, and half a step above it rounds to infinity
    cache = a_cache(parent, features=large)
    with pytest.raises(
        CacheError, match=rf"float16 holds values up to 65504, .* 1 rows have larger ones: {row} \(image"
    ):
        convert(cache, format_, dtype="float16")
    assert [folder.name for folder in parent.iterdir()] == [cache.name]
    assert not convert(cache, "hdf5").reused


def test_rows_of_tiny_values_are_counted(parent: Path) -> None:
    tiny = X.copy()
    tiny[[1, 2, 40]] *= 1e-6
    tiny[5] = 0
    tiny[6] = 0
    tiny[6, 0, 0, 0] = 1e-9  # becomes 0
    cache = a_cache(parent, features=tiny)
    assert convert(cache, "zarr", dtype="float16").faint_rows == 4
    assert convert(cache, "hdf5").faint_rows == 0


def test_to_another_folder(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = a_cache(parent / "a")
    done = convert(cache, parent=parent / "b" / "c")
    assert done.cache.folder == parent / "b" / "c" / cache.name
    assert {name for name, data in contents(cache.folder).items() if data != contents(done.cache.folder)[name]} == {
        "manifest.json"
    }
    monkeypatch.chdir(parent)
    for same in (parent / "a", parent / "b" / ".." / "a", Path("a")):
        with pytest.raises(UsageError, match=r"is zarr and float32 already\. Set another `format`, `dtype` or `to`"):
            convert(cache, parent=same)
    (parent / "file").touch()
    with pytest.raises(FeatcacheError, match="file: cannot be written"):
        convert(cache, parent=parent / "file")


@pytest.mark.parametrize("format_", ["zarr", "hdf5"])
def test_what_was_begun_goes_on(parent: Path, format_: Format) -> None:
    cache = a_cache(parent / "a")
    shards = 0

    def stopped() -> bool:
        return shards == 2

    def advance(rows: int) -> None:
        nonlocal shards
        shards += rows > 0

    with pytest.raises(KeyboardInterrupt):
        convert(
            cache,
            format_,
            dtype="float16",
            parent=parent,
            progress=Watching(lambda: nullcontext(stopped), advance=advance),
        )
    (folder,) = parent.glob("tiny-*")
    assert not (folder / "manifest.json").exists()
    seen: list[int] = []
    done = convert(cache, format_, dtype="float16", parent=parent, progress=lambda *_: nullcontext(seen.append))
    assert seen == [32, 16, 16, 6]
    same_bytes(done.cache.features[:], X.astype("float16"))
    assert verify(folder).sound


def test_what_was_begun_in_another_order_gets_the_right_rows(parent: Path) -> None:
    """The same rows may be numbered otherwise in the cache that was begun."""
    cache = a_cache(parent / "a")
    backwards = list(reversed(rows_for(IMAGES, 2)))
    with CacheWriter(parent / "b", cache.recipe, rows=backwards, row_shape=SHAPE, format_="hdf5") as writer:
        writer.write(0, X[::-1][:16])
    done = convert(cache, "hdf5", parent=parent / "b").cache
    assert list(done.views["row_id"]) == [row.row_id for row in backwards]
    same_bytes(done.features[:], X[::-1])


def test_a_damaged_source_is_said_and_can_be_mended_in_between(parent: Path) -> None:
    cache = a_cache(parent / "a")
    shard = cache.folder / "features.zarr/c/3/0/0/0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with pytest.raises(CacheError, match=r"rows .* cannot be read"):
        convert(cache, "hdf5", parent=parent / "b")
    shard.write_bytes(whole)
    same_bytes(convert(cache, "hdf5", parent=parent / "b").cache.features[:], X)


def test_a_damaged_target_is_not_taken_for_done(parent: Path) -> None:
    cache = a_cache(parent)
    made = convert(cache, "hdf5").cache
    (made.folder / "features.h5").write_bytes(b"")
    with pytest.raises(CacheError, match=r"features\.h5: expected"):
        convert(cache, "hdf5")
