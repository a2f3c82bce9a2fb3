"""Reading caches: indexing as NumPy does, tables, relabelling, and every damage named when a cache is opened."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from test_store_contract import dataset, fake_features, feature_bytes, make_cache, small_shards

from featcache.core.errors import CacheError, CacheNotFoundError, UsageError
from featcache.datasets.manifest import Dataset
from featcache.sharing.bundle import bundle_of_cache
from featcache.store._verify import verify
from featcache.store.cache import Cache, Features, open_cache
from featcache.store.manifest import CACHE_FORMAT, Tolerance
from featcache.store.tables import write_dataset_copy
from featcache.store.writer import file_entry

N, SHAPE, VIEWS = 70, (3, 4, 5), 2
IMAGES = dataset(N // VIEWS)
X = fake_features(N, SHAPE)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    small_shards(monkeypatch, 16)
    return make_cache(tmp_path, IMAGES, X, VIEWS)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 16)
        return make_cache(tmp_path_factory.mktemp("features"), IMAGES, X, VIEWS).features


# Features, against NumPy

MASK = np.arange(N) % 3 == 0
INDICES: list[Any] = [
    0,
    -1,
    N - 1,
    -N,
    np.int64(7),
    np.uint8(7),
    np.array(7),
    slice(None),
    slice(3, 60),
    slice(5, 5),
    slice(60, 3),
    slice(None, None, 7),
    slice(None, None, -1),
    slice(-5, None),
    slice(10, -200, -3),
    slice(0, 1000),
    [],
    [3],
    [69, 0, 0, -1, 33, 16],
    np.array([], int),
    np.array([5, -70, 5], np.int8),
    np.array([[1, 2, 3], [60, 1, 1]]),
    MASK,
    list(MASK),
    np.zeros(N, bool),
    (),
    ...,
    (...,),
    (..., 0),
    (..., 2, slice(1, 3)),
    (slice(None), 1),
    (slice(1, 50, 9), slice(None), -1),
    (slice(20), ..., [0, 3]),
    (slice(20), None, 1),
    (slice(20), [0, 1], [2, 3]),
    (4, ...),
    (4, 1, 2, 3),
    (4, [0, 2]),
    (4, slice(None), [0, 2]),
    (np.int32(4), None, [0, 2]),
    ([4, 60], 1),
    ([4, 60], [1, 2]),
    ([4, 60], slice(None), [1, 2]),
    ([[4], [60]], [1, 2, 0]),
    (MASK, 1, 2),
    (MASK, slice(1), ..., 2),
    (np.flatnonzero(MASK), np.zeros(24, int)),
]


@pytest.mark.parametrize("index", INDICES, ids=lambda index: repr(index)[:40])
def test_indexing_is_that_of_numpy(features: Features, index: Any) -> None:
    found, expected = features[index], X[index]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize(
    "index",
    [N, -N - 1, [0, N], 1.0, "a", [0.5], MASK[:-1], (0, 3), (0, 0, 0, 0, 0), None, True, (None, 0), {}, [[1.0]]],
)
def test_what_numpy_refuses_or_reads_as_a_new_axis_is_an_index_error(features: Features, index: Any) -> None:
    with pytest.raises(IndexError):
        features[index]


whole_number = st.integers(-N, N - 1)
rows_index = st.one_of(
    whole_number,
    st.slices(N),
    st.lists(whole_number, max_size=20),
    st.lists(st.booleans(), min_size=N, max_size=N),
    st.lists(whole_number, min_size=1, max_size=8).map(np.array),
)


@given(first=rows_index, rest=st.lists(st.one_of(st.integers(-3, 2), st.slices(3), st.just([0, -1])), max_size=2))
@settings(max_examples=120, deadline=None)
def test_any_index_along_the_rows_is_that_of_numpy(features: Features, first: Any, rest: list[Any]) -> None:
    index = (first, *rest)
    try:
        expected = X[index]
    except IndexError:  # lists that do not broadcast
        with pytest.raises(IndexError):
            features[index]
    else:
        np.testing.assert_array_equal(features[index], expected)


def test_it_looks_like_an_array(features: Features) -> None:
    assert (features.shape, features.ndim, features.size, len(features)) == (X.shape, 4, X.size, N)
    assert features.dtype == np.dtype("float32")
    assert repr(features) == "Features(shape=(70, 3, 4, 5), dtype=float32)"
    np.testing.assert_array_equal(np.asarray(features), X, strict=True)
    np.testing.assert_array_equal(np.asarray(features, dtype="float64"), X.astype("float64"), strict=True)
    np.testing.assert_array_equal(np.array(features, "float16", copy=True), X.astype("float16"), strict=True)
    assert np.asarray(features).flags.writeable
    assert float(np.sum(features)) == float(X.sum())
    with pytest.raises(ValueError, match="copy"):
        np.asarray(features, copy=False)
    for row, expected in zip(features, X, strict=True):
        np.testing.assert_array_equal(row, expected)


def test_what_was_read_can_be_changed_without_changing_the_cache(features: Features) -> None:
    for index in (3, slice(0, 9), [1, 2], ...):
        features[index][...] = -1
    np.testing.assert_array_equal(np.asarray(features), X)


@given(st.one_of(st.none(), st.lists(st.integers(0, N - 1)), st.sets(st.integers(0, N - 1)).map(sorted)))
@settings(max_examples=100, deadline=None)
def test_blocks_cover_each_row_once_in_order(features: Features, numbers: list[int] | None) -> None:
    wanted = list(range(N)) if numbers is None else numbers
    place = 0
    for where, block in features.blocks(None if numbers is None else np.array(numbers, int)):
        assert where.start == place
        assert 0 < len(block) == where.stop - where.start
        np.testing.assert_array_equal(block, X[wanted[where]])
        place = where.stop
    assert place == len(wanted)


def test_blocks_of_increasing_numbers_are_one_a_shard(features: Features) -> None:
    assert [where for where, _ in features.blocks()] == [slice(s, min(s + 16, N)) for s in range(0, N, 16)]
    assert len(list(features.blocks(np.arange(0, N, 5)))) == 5


# Tables


def test_rows_join_views_and_dataset(cache: Cache) -> None:
    rows = cache.rows
    assert list(rows.columns) == ["row", "image_id", "path", "label", "split", "group", "view"]
    expected = [
        (VIEWS * number + view, i.image_id, i.path, i.label, i.split, i.group, view)
        for number, i in enumerate(IMAGES.images)
        for view in range(VIEWS)
    ]
    assert list(rows.itertuples(index=False, name=None)) == expected
    assert {"rotation_deg", "fill_mode", "hue_deg"} < set(cache.views.columns)
    assert cache.views["row_id"].is_unique
    assert (cache.views.loc[cache.views["view"] == 0, "rotation_deg"] == 0).all()


@pytest.mark.parametrize("split", ["train", "val", "test", None])
def test_arrays_are_the_rows_of_a_split_and_their_class_numbers(cache: Cache, split: str | None) -> None:
    features, y = cache.arrays(split=split)
    lines = [(X[VIEWS * n + v], i.label) for n, i in enumerate(IMAGES.images) for v in range(VIEWS)
             if split in (None, i.split)]  # fmt: skip
    np.testing.assert_array_equal(features, np.stack([line[0] for line in lines]))
    assert y.dtype == np.int64
    assert [cache.classes[number] for number in y] == [line[1] for line in lines]
    assert cache.classes == ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


@pytest.mark.parametrize("split", ["Train", "", "all", "validation"])
def test_an_unknown_split_is_a_usage_error(cache: Cache, split: str) -> None:
    for asking in (cache.arrays, cache.numbers, cache.labels):
        with pytest.raises(UsageError, match="expected train, val or test"):
            asking(split)


# Relabelling


def relabelled() -> Dataset:
    images = [replace(i, label=i.label.upper(), path=f"new/{i.path}", group="one") for i in IMAGES.images]
    return Dataset(tuple(reversed(images)), IMAGES.folder)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    names = [*feature_bytes(folder), "recipe.json", "rows.parquet", "ledger.jsonl"]
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) for name in names}


def test_relabelling_replaces_the_table_and_touches_no_feature(cache: Cache) -> None:
    before, old_rows = state(cache.folder), cache.rows
    assert not cache.replace_dataset(IMAGES)
    assert cache.replace_dataset(relabelled())
    for seen in (cache, open_cache(cache.folder)):
        assert seen.classes == ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL")
        assert list(seen.rows["image_id"]) == list(old_rows["image_id"])
        assert list(seen.rows["label"]) == [label.upper() for label in old_rows["label"]]
        assert set(seen.rows["group"]) == {"one"}
        assert seen.manifest.dataset_digest == relabelled().digest
        assert not seen.replace_dataset(relabelled())
    assert state(cache.folder) == before
    assert not list(cache.folder.glob("dataset.parquet.*"))


def test_a_crash_before_the_manifest_leaves_the_old_labels(cache: Cache) -> None:
    write_dataset_copy(cache.folder / "dataset.parquet.next", relabelled().images)
    again = open_cache(cache.folder)
    assert again.classes[0] == "eosinophil"
    assert again.replace_dataset(relabelled())
    assert open_cache(cache.folder).classes[0] == "EOSINOPHIL"


def test_a_crash_after_the_manifest_ends_in_the_new_labels(cache: Cache) -> None:
    old = (cache.folder / "dataset.parquet").read_bytes()
    cache.replace_dataset(relabelled())
    (cache.folder / "dataset.parquet").rename(cache.folder / "dataset.parquet.next")
    (cache.folder / "dataset.parquet").write_bytes(old)
    again = open_cache(cache.folder)
    assert again.classes[0] == "EOSINOPHIL"
    assert not (cache.folder / "dataset.parquet.next").exists()
    assert open_cache(cache.folder).classes[0] == "EOSINOPHIL"


def test_in_the_window_of_a_relabelling_all_read_the_new_labels(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed behind the manifest, before the last rename; and nobody may rename there, as on a disk to be read only."""

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "_finish_replacing", lambda self: None)
        cache.replace_dataset(relabelled())
        parcel = bundle_of_cache(cache.folder)
    assert (cache.folder / "dataset.parquet.next").exists()
    assert all(file_entry(parcel.files[name]) == entry for name, entry in parcel.entries.items())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refused)
        again = open_cache(cache.folder)
        assert (again.classes[0], set(again.rows["group"])) == ("EOSINOPHIL", {"one"})
        found = verify(cache.folder)
        assert (found.problems, found.remarks) == ((), ())


def test_many_relabel_and_read_at_once(cache: Cache) -> None:
    def one(number: int) -> bool:
        return open_cache(cache.folder).replace_dataset(relabelled() if number % 2 else IMAGES) or True

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(one, range(12)))
    assert verify(cache.folder).sound
    assert not (cache.folder / "leases").exists()
    assert not list(cache.folder.glob("dataset.parquet.*"))


def test_a_dataset_without_an_image_of_the_cache_is_refused_and_changes_nothing(cache: Cache) -> None:
    before = (cache.folder / "manifest.json").read_bytes()
    with pytest.raises(CacheError, match="34 of the 35 images"):
        cache.replace_dataset(Dataset(relabelled().images[1:], IMAGES.folder))
    assert (cache.folder / "manifest.json").read_bytes() == before
    assert open_cache(cache.folder).classes[0] == "eosinophil"


def test_whoever_opened_before_a_relabelling_is_told(cache: Cache) -> None:
    early = open_cache(cache.folder)
    cache.replace_dataset(relabelled())
    with pytest.raises(CacheError, match=r"dataset\.parquet is not that of the manifest"):
        _ = early.rows


# Damage

FILES = [
    "recipe.json",
    "rows.parquet",
    "dataset.parquet",
    "ledger.jsonl",
    "features.zarr/zarr.json",
    "features.zarr/c/0/0/0/0",
    "features.zarr/c/4/0/0/0",
]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file_does_not_open(cache: Cache, name: str) -> None:
    file = cache.folder / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CacheError, match=r"expected .* bytes, found|not a recipe"):
        open_cache(cache.folder)
    file.unlink()
    with pytest.raises(CacheError, match=f"{name} is missing"):
        open_cache(cache.folder)
    file.mkdir()
    with pytest.raises(CacheError, match="is missing"):
        open_cache(cache.folder)


def test_the_recipe_of_another_cache_does_not_open(cache: Cache, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "other", IMAGES, X, VIEWS, seed=1)
    recipe = (other.folder / "recipe.json").read_bytes()
    assert len(recipe) == (cache.folder / "recipe.json").stat().st_size
    (cache.folder / "recipe.json").write_bytes(recipe)
    with pytest.raises(CacheError, match="not the recipe of the manifest"):
        open_cache(cache.folder)


def same_size(file: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["rows.parquet", "dataset.parquet"])
def test_a_table_of_the_right_size_with_other_bytes_is_refused(cache: Cache, name: str) -> None:
    for place in (4, 400, -9):
        whole = (cache.folder / name).read_bytes()
        same_size(cache.folder / name, lambda data, place=place: data.__setitem__(place, data[place] ^ 1))
        with pytest.raises(CacheError, match=f"{name} is not that of the manifest"):
            _ = open_cache(cache.folder).rows
        (cache.folder / name).write_bytes(whole)
    assert len(open_cache(cache.folder).rows) == N


def seal(path: Path, value: Any) -> None:
    """Write a manifest as featcache spells it, with the seal that fits: whoever means harm can do so too."""
    if isinstance(value, dict):
        rest = {key: entry for key, entry in value.items() if key != "seal"}
        spelled = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        value = {**rest, "seal": hashlib.sha256(spelled.encode(errors="surrogatepass")).hexdigest()}
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode(errors="surrogatepass"))


def amend(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    seal(path, {**json.loads(path.read_text()), **changes})


def put_table(cache: Cache, name: str, frame: pd.DataFrame) -> Cache:
    """The cache with another table that its manifest even promises."""
    from featcache.store.writer import file_entry

    frame.to_parquet(cache.folder / name, index=False)
    amend(cache.folder, files={n: e.model_dump() for n, e in {**cache.manifest.files, name: file_entry(cache.folder / name)}.items()})  # fmt: skip  # noqa: E501
    return open_cache(cache.folder)


def test_rows_of_other_images_are_refused_even_if_the_manifest_has_their_digest(cache: Cache) -> None:
    views = cache.views
    wrong = [
        views.assign(image_id=["0" * 64 + str(n) for n in range(N)]),
        views.assign(image_id=range(N)),
        views.assign(image_id=[None, *views["image_id"][1:]]),
        views.assign(view=views["view"].astype(float)),
        views.assign(view=[None, *views["view"][1:]]),
        views.assign(row=list(reversed(range(N)))),
        views.iloc[:-1],
        views.iloc[[0, *range(N - 1)]].assign(row=range(N)),
        views.drop(columns="row_id"),
        views.assign(row=[str(n) for n in range(N)]),
    ]
    for frame in wrong:
        with pytest.raises(CacheError, match=r"rows\.parquet"):
            _ = put_table(cache, "rows.parquet", frame).rows


def test_a_dataset_copy_that_is_none_is_refused_even_if_the_manifest_has_its_digest(cache: Cache) -> None:
    lines = cache.dataset
    wrong = [
        lines.iloc[1:],
        lines.iloc[[0, *range(len(lines))]],
        lines.drop(columns="label"),
        lines.assign(label=range(len(lines))),
        lines.assign(label=[None, *lines["label"][1:]]),
        lines.assign(path=b"x"),
    ]
    for frame in wrong:
        with pytest.raises(CacheError, match=r"dataset\.parquet"):
            _ = put_table(cache, "dataset.parquet", frame).rows


def no_change(value: dict[str, Any]) -> None:
    pass


def setting(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return change


def renaming(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda value: value["files"].__setitem__(new, value["files"].pop(old))


ENTRY = {"bytes": 1, "sha256": "0" * 64}
HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "climbs out": setting("files", "../other", to=ENTRY),
    "climbs out within": setting("files", "a/../../other", to=ENTRY),
    "absolute": setting("files", "/etc/passwd", to=ENTRY),
    "backslash": setting("files", "..\\other", to=ENTRY),
    "odd spelling": setting("files", "./recipe.json", to=ENTRY),
    "empty name": setting("files", "", to=ENTRY),
    "a dot": setting("files", ".", to=ENTRY),
    "nul": setting("files", "a\0b", to=ENTRY),
    "long name": setting("files", "a" * 5000, to=ENTRY),
    "lone surrogate": setting("files", "\ud800", to=ENTRY),
    "not there": setting("files", "more", to=ENTRY),
    "files none": setting("files", to={}),
    "files list": setting("files", to=[]),
    "files null": setting("files", to=None),
    "entry null": setting("files", "recipe.json", to=None),
    "entry more": setting("files", "recipe.json", to={**ENTRY, "more": 1}),
    "bytes text": setting("files", "recipe.json", "bytes", to="1"),
    "bytes float": setting("files", "recipe.json", "bytes", to=1.0),
    "bytes true": setting("files", "recipe.json", "bytes", to=True),
    "bytes negative": setting("files", "recipe.json", "bytes", to=-1),
    "bytes huge": setting("files", "recipe.json", "bytes", to=10**30),
    "sha short": setting("files", "recipe.json", "sha256", to="ab"),
    "sha upper": setting("files", "recipe.json", "sha256", to="A" * 64),
    "sha with line end": setting("files", "recipe.json", "sha256", to="0" * 64 + "\n"),
    "a shard less": lambda value: value["files"].pop("features.zarr/c/2/0/0/0"),
    "no zarr.json": lambda value: value["files"].pop("features.zarr/zarr.json"),
    "no rows": lambda value: value["files"].pop("rows.parquet"),
    "no recipe": lambda value: value["files"].pop("recipe.json"),
    "renamed shard": renaming("features.zarr/c/2/0/0/0", "features.zarr/c/9/0/0/0"),
    "newer": setting("format", to=3),
    "the one before": setting("format", to=1),
    "much newer": setting("format", to=10**100),
    "older": setting("format", to=0),
    "format true": setting("format", to=True),
    "format float": setting("format", to=2.0),
    "format text": setting("format", to="2"),
    "format null": setting("format", to=None),
    "unknown field": setting("more", to=1),
    "rows others": setting("rows", to=69),
    "rows none": setting("rows", to=0),
    "rows negative": setting("rows", to=-70),
    "rows huge": setting("rows", to=10**40),
    "rows text": setting("rows", to="70"),
    "shape others": setting("array", "shape", to=[71, 3, 4, 5]),
    "shape huge": setting("array", "shape", to=[2**39, 3, 4, 5]),
    "shape too huge": setting("array", "shape", to=[10**50]),
    "shape flat": setting("array", "shape", to=[70]),
    "shape deep": setting("array", "shape", to=[70, 1, 1, 1, 1, 60]),
    "shape zero": setting("array", "shape", to=[70, 0]),
    "shape text": setting("array", "shape", to="70"),
    "no rows a shard": setting("array", "rows_per_shard", to=0),
    "one row a shard": setting("array", "rows_per_shard", to=1),
    "dtype object": setting("array", "dtype", to="object"),
    "array format": setting("array", "format", to="pickle"),
    "array null": setting("array", to=None),
    "name climbs": setting("name", to="../tiny"),
    "name empty": setting("name", to=""),
    "name other": setting("name", to="tiny-00000000"),
    "digest other": setting("digest", to="0" * 64),
    "recipe digest": setting("recipe_digest", to="0" * 64),
    "digest number": setting("digest", to=7),
    "hdf5": setting("array", "format", to="hdf5"),
    "tolerance null": setting("tolerance", to=None),
    "tolerance more": setting("tolerance", to={"relative": 0.0, "absolute": 0.0, "more": 0.0}),
    "tolerance half": setting("tolerance", to={"relative": 0.0}),
    "tolerance negative": setting("tolerance", "relative", to=-1.0),
    "tolerance large": setting("tolerance", "absolute", to=2.0),
    "tolerance text": setting("tolerance", "absolute", to="0"),
    "tolerance nan": setting("tolerance", "absolute", to=float("nan")),
    "provenance list": setting("provenance", to=[]),
    "provenance nan": setting("provenance", to={"seconds": float("nan")}),
    "provenance infinite": setting("provenance", to={"seconds": float("inf")}),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 16)
        return make_cache(tmp_path_factory.mktemp("shared"), IMAGES, X, VIEWS)


@pytest.fixture
def manifest(shared: Cache) -> Any:
    """The path of a manifest that is put back after the test."""
    path = shared.folder / "manifest.json"
    whole = path.read_bytes()
    yield path
    path.write_bytes(whole)


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_does_not_open(manifest: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(manifest.read_bytes())
    change(value)
    seal(manifest, value)
    with pytest.raises(CacheError) as caught:
        open_cache(manifest.parent)
    assert not isinstance(caught.value, CacheNotFoundError)
    assert len(str(caught.value)) < 2000
    assert "its seal does not fit" not in str(caught.value)


def test_a_manifest_sealed_by_others_opens(manifest: Path) -> None:
    """So that it is what they change, and not the seal, which the tests above see refused."""
    whole = manifest.read_bytes()
    seal(manifest, json.loads(whole))
    assert manifest.read_bytes() == whole
    amend(manifest.parent, provenance={"engine": "another é"})
    assert open_cache(manifest.parent).manifest.provenance == {"engine": "another é"}


@pytest.mark.parametrize(
    "spelled",
    [
        lambda text: text.replace('"rows": 70', '"rows":  70'),
        lambda text: text.replace('"rows": 70', '"rows": 7e1'),
        lambda text: text.replace('"engine": "none"', '"engine": "nine"'),
        lambda text: text.replace('"none"', '"\\u006eone"'),
        lambda text: text.replace("0.0001", "0.0002"),
        lambda text: text.replace("0.0001", "1e-4"),
        lambda text: json.dumps(json.loads(text), indent=2) + "\n\n",
        lambda text: json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n",
        lambda text: json.dumps(json.loads(text)),
        lambda text: text.rstrip(),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(json.loads(text)["seal"], "0" * 64),
        lambda text: text.replace(json.loads(text)["seal"], ""),
        lambda text: text.replace(',\n  "seal": "' + json.loads(text)["seal"] + '"', ""),
        lambda text: text.replace(json.loads(text)["seal"], json.loads(text)["seal"].upper()),
    ],
    ids=range(16),
)
def test_a_manifest_in_another_spelling_does_not_open(manifest: Path, spelled: Callable[[str], str]) -> None:
    text = manifest.read_text()
    assert spelled(text) != text
    manifest.write_bytes(spelled(text).encode())
    with pytest.raises(CacheError):
        open_cache(manifest.parent)


def test_the_message_of_a_newer_or_older_format_says_so(manifest: Path) -> None:
    amend(manifest.parent, format=CACHE_FORMAT + 1)
    with pytest.raises(CacheError, match="newer than this featcache"):
        open_cache(manifest.parent)
    amend(manifest.parent, format=CACHE_FORMAT - 1)
    with pytest.raises(CacheError, match="is of an older featcache: its extract command makes it again"):
        open_cache(manifest.parent)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"format"',
        b"\xff\xfe{}",
        b"\x00" * 100,
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"format": 2, "rows": ' + b"9" * 6000 + b"}",
        b'{"format": 1e999}',
        b'{"format": NaN}',
        b'{"format": 2}',
    ],
    ids=range(14),
)
def test_a_manifest_that_is_none_does_not_open(manifest: Path, text: bytes) -> None:
    manifest.write_bytes(text)
    with pytest.raises(CacheError):
        open_cache(manifest.parent)


def test_a_key_twice_does_not_open(manifest: Path) -> None:
    text = manifest.read_text()
    for key in ('"rows": 70', '"rows.parquet": {"bytes": 1, "sha256": "' + "0" * 64 + '"}'):
        anchor = "{" if key.startswith('"rows":') else '"files": {'
        manifest.write_text(text.replace(anchor, f"{anchor}{key},", 1))
        with pytest.raises(CacheError, match="stands there twice"):
            open_cache(manifest.parent)


@contextmanager
def raised_recursion_limit() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def test_a_deep_provenance_is_kept_or_refused(manifest: Path) -> None:
    whole = manifest.read_bytes()
    for depth in (20, 100, 500, 1500):
        nested: Any = 1
        for _ in range(depth):
            nested = {"a": nested}
        with raised_recursion_limit():
            amend(manifest.parent, provenance=nested)
        try:
            opened = open_cache(manifest.parent)
        except CacheError:
            assert depth > 20
        else:
            assert depth == 20
            assert opened.replace_dataset(relabelled())
            assert opened.replace_dataset(IMAGES)
        manifest.write_bytes(whole)


def test_an_honest_manifest_opens_again(manifest: Path) -> None:
    assert open_cache(manifest.parent).features.shape == (N, *SHAPE)
    assert repr(open_cache(str(manifest.parent))) == f"Cache({manifest.parent.name}: (70, 3, 4, 5) float32)"


@pytest.mark.parametrize("name", ["nowhere", "a\0b", "a" * 5000])
def test_no_such_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(CacheError):
        open_cache(tmp_path / name)


# --- tolerance ------------------------------------------------------------------------------------


def test_deviations_value_by_value() -> None:
    tolerance = Tolerance(relative=1e-3, absolute=1e-2)
    old = np.array([[1.0, -10.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], np.float32)
    new = old + np.array([[0.05, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.066]], np.float32)
    np.testing.assert_allclose(tolerance.deviations(new, old), [0.05 / 0.101, 0.0, 0.066 / 0.033], rtol=1e-4)


def test_deviations_by_norm() -> None:
    tolerance = Tolerance(relative=0.0, absolute=0.0, norm=0.25)
    old = np.array([[[3.0], [4.0]], [[0.0], [0.0]], [[0.0], [0.0]]])
    new = np.array([[[3.0], [6.0]], [[0.0], [0.0]], [[0.0], [1e-3]]])
    found = tolerance.deviations(new, old)
    np.testing.assert_allclose(found[:2], [2 / (0.25 * 5), 0.0])
    assert found[2] > 1e100  # a row of zeros allows nothing


@pytest.mark.parametrize("norm", [None, 0.5])
def test_deviations_of_what_is_no_number(norm: float | None) -> None:
    tolerance = Tolerance(relative=1e-3, absolute=1e-3, norm=norm)
    old = np.array([[np.nan, 1.0], [1.0, 1.0], [np.inf, 1.0], [np.inf, 1.0], [1.0, 2.0]])
    new = np.array([[np.nan, 1.0], [np.nan, 1.0], [np.inf, 1.0], [5.0, 1.0], [np.inf, 2.0]])
    assert tolerance.deviations(new, old).tolist() == [0, np.inf, 0, np.inf, np.inf]


def test_a_manifest_says_the_norm_only_where_there_is_one() -> None:
    assert set(Tolerance(relative=0.0, absolute=0.0).model_dump()) == {"relative", "absolute"}
    assert Tolerance(relative=0.0, absolute=0.0, norm=0.5).model_dump()["norm"] == 0.5
