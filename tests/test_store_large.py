"""Tables that are read a part at a time give what a reading of the whole gives, and name what the definition names."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store_contract import dataset, fake_features, make_cache, recipe, small_shards
from test_store_hostile import put, refused, reseal

from featcache.core.errors import CacheError
from featcache.core.recipe import Augmentation, FeatureSpace, Recipe, cache_digest, row_id
from featcache.extraction.rows import PlannedRows, rows_of
from featcache.images import ADDED_PARAMETERS, named_parameters
from featcache.measures import evaluate, judge
from featcache.store import row_keys, tables
from featcache.store._verify import verify
from featcache.store.cache import Cache, open_cache
from featcache.store.layout import DATASET_FILE, ROWS_FILE
from featcache.store.manifest import links_out, read_manifest
from featcache.store.row_keys import RowKeys, ids_of, places_in, texts_of, which_are_in
from featcache.store.row_names import row_ids, wrong_rows
from featcache.store.tables import (
    RenamedRows,
    Row,
    StoredRows,
    chosen_lines,
    digest_of_lines,
    images_in,
    keys_of,
    misnamed_rows,
    names_of,
    read_dataset_copy,
    read_keys,
    read_lines,
    read_rows,
    write_dataset_copy,
    write_lines,
    write_rows,
)
from featcache.training.runs import write_predictions

SPACE = recipe().space
N_IMAGES, VIEWS = 40, 3


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 7 rows, row groups of 21."""
    monkeypatch.setattr(tables, "_PART_ROWS", 7)
    monkeypatch.setattr(tables, "_GROUP_ROWS", 21)
    monkeypatch.setattr(row_keys, "_PART_ROWS", 5)


@pytest.fixture
def cache(quick: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    small_shards(monkeypatch, 16)
    with tempfile.TemporaryDirectory(dir=quick) as folder:
        yield make_cache(Path(folder), dataset(N_IMAGES), fake_features(N_IMAGES * VIEWS, (8,)), VIEWS, zoom=0.1)


def hex_id(generator: np.random.Generator) -> str:
    return generator.bytes(32).hex()


def pairs(kind: str) -> list[tuple[str, int]]:
    """Rows of many kinds, in no order."""
    generator = np.random.default_rng(0)
    ids = [hex_id(generator) for _ in range(50)]
    if kind == "alike":  # they differ in their last digits alone
        ids = [f"{number:064x}" for number in range(50)]
    elif kind == "odd":
        ids[3:6] = ["", 'a "quoted" \\ name', "né\u2028\x01"]
    elif kind == "upper case":
        ids[0] = ids[0].upper()
    found = [(image_id, view) for image_id in ids for view in range(int(generator.integers(1, 13)))]
    if kind == "negative":
        found.append((ids[0], -3))
    elif kind == "far":
        found.append((ids[0], 2**62))
    return [found[place] for place in generator.permutation(len(found))]


@pytest.mark.parametrize("kind", ["random", "alike", "odd", "upper case", "negative", "far"])
def test_keys_have_the_digest_of_the_definition(kind: str, few: None) -> None:
    rows = pairs(kind)
    keys = RowKeys.of(rows)
    assert list(keys) == rows
    assert keys.digest(recipe()) == cache_digest(recipe(), rows)
    assert RowKeys.of(sorted(rows)).digest(recipe()) == cache_digest(recipe(), rows)
    assert not keys.repeats()
    assert RowKeys.of([*rows, rows[5]]).repeats()
    assert keys == RowKeys.of(rows)
    assert keys != RowKeys.of(rows[::-1])
    assert sorted(keys.image_ids()) == sorted({image_id for image_id, _ in rows})
    other = [rows[place] for place in np.random.default_rng(1).permutation(len(rows))]
    assert [rows[place] for place in keys.places_of(RowKeys.of(other))] == other
    with pytest.raises(KeyError):
        keys.places_of(RowKeys.of([("0" * 64, 77)]))
    some = [*other[:20], ("f" * 64, 0)]
    here, there = keys.pairs_with(RowKeys.of(some))
    assert [rows[place] for place in here] == [some[place] for place in there]
    assert {rows[place] for place in here} == set(other[:20])


def test_no_rows(few: None) -> None:
    assert RowKeys.of([]).digest(recipe()) == cache_digest(recipe(), [])
    assert len(RowKeys.of([])) == 0
    assert not RowKeys.of([]).repeats()


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_names_in_columns_of_every_type(type_: pa.DataType) -> None:
    generator = np.random.default_rng(2)
    names = [hex_id(generator) for _ in range(30)]
    column = pa.array([names[place] for place in generator.integers(0, 30, 200)], pa.string()).cast(type_)
    assert texts_of(ids_of(column)) == column.to_pylist()
    assert texts_of(ids_of(column[17:40])) == column[17:40].to_pylist()  # which begins somewhere in its buffers
    among = ids_of(pa.array(names))
    assert [names[place] for place in places_in(ids_of(column), among)] == column.to_pylist()
    mask = which_are_in(ids_of(column), among[:10])
    assert mask.tolist() == [name in names[:10] for name in column.to_pylist()]


def parameters_of(generator: np.random.Generator, n_rows: int) -> dict[str, list[Any]]:
    """View parameters whose JSON is hard to get right."""
    hard = [0.0, -0.0, 1.0, -20.0, 1e-4, 9.9e-5, 1e-9, 123456.789, 1e15, 1e16, 1e300, 5e-324, 0.1 + 0.2, 2 / 3]
    numbers = [*hard, *np.round(generator.uniform(-20, 20, 50), 9).tolist(), *generator.standard_normal(50).tolist()]

    def drawn(values: list[Any]) -> list[Any]:
        return [values[place] for place in generator.integers(0, len(values), n_rows)]

    return {
        "rotation_deg": drawn(numbers),
        "brightness": drawn(numbers),
        "flip_horizontal": drawn([True, False]),
        "fill_value": drawn([0, -7, 2**53, 255]),
        "fill_mode": drawn(["wrap", 'a "b"', "é\x00\u2028", ""]),
        "zoom": drawn([1.0, 1.05]),
        "noise": drawn([0.0, 1e-7]),
        "noise_seed": drawn([0, 4294967295]),
        "same": [-0.0] * n_rows,
        "sometimes": drawn([0.0, -0.0]),
    }


def test_row_ids_are_those_of_the_definition() -> None:
    generator = np.random.default_rng(3)
    columns = {"image_id": [hex_id(generator) for _ in range(999)] + ['odd "id"'], **parameters_of(generator, 1000)}
    batch = pa.RecordBatch.from_pydict(columns)
    lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    expected = [
        row_id(SPACE, line["image_id"], parameters=named_parameters({k: v for k, v in line.items() if k != "image_id"}))
        for line in lines
    ]
    assert row_ids(SPACE, batch, besides={"image_id"}) == expected
    named = batch.append_column("row_id", pa.array(expected))
    assert wrong_rows(SPACE, named, besides={"image_id", "row_id"}) == []
    other = batch.append_column("row_id", pa.array([*expected[1:11], *expected[10:]]))
    assert wrong_rows(SPACE, other, besides={"image_id", "row_id"}) == list(range(10))


def test_row_ids_of_rows_without_parameters() -> None:
    batch = pa.RecordBatch.from_pydict({"image_id": ["a" * 64, "b" * 64]})
    assert row_ids(SPACE, batch, besides={"image_id"}) == [row_id(SPACE, c * 64, parameters={}) for c in "ab"]


# Tables


def planned(n_images: int = N_IMAGES, **augmentation: Any) -> list[Row]:
    how = recipe(**augmentation)
    return rows_of(dataset(n_images).images, [VIEWS] * n_images, recipe=how)


def test_a_table_written_in_parts_is_that_written_at_once(tmp_path: Path, few: None) -> None:
    rows = planned(zoom=0.1, noise=0.1)
    write_rows(tmp_path / ROWS_FILE, rows)
    assert pq.ParquetFile(tmp_path / ROWS_FILE).num_row_groups == -(-len(rows) // 21)
    added = {name: ADDED_PARAMETERS[name] for name in ("zoom", "noise", "noise_seed")}
    at_once = pd.DataFrame(
        [{"image_id": r.image_id, "view": r.view, "row_id": r.row_id, **added, **r.parameters} for r in rows]
    )
    at_once.insert(0, "row", range(len(rows)))
    found = pq.read_table(tmp_path / ROWS_FILE).to_pandas()
    pd.testing.assert_frame_equal(found, at_once[found.columns])
    assert set(found.columns) == set(at_once.columns)
    assert list(found.columns[:4]) == ["row", "image_id", "view", "row_id"]
    pd.testing.assert_frame_equal(read_rows(tmp_path / ROWS_FILE), found)
    assert list(StoredRows(tmp_path / ROWS_FILE)) == rows


def test_parameters_that_only_late_rows_have(tmp_path: Path, few: None) -> None:
    plain = [Row(image.image_id, 0, row_id(SPACE, image.image_id, parameters={}), {}) for image in dataset(30).images]
    late = {"zoom": 1.5}
    rows = [*plain, Row("f" * 64, 1, row_id(SPACE, "f" * 64, parameters=late), late)]
    write_rows(tmp_path / ROWS_FILE, rows)
    assert list(StoredRows(tmp_path / ROWS_FILE)) == rows
    assert misnamed_rows(tmp_path / ROWS_FILE, SPACE) == []


def test_a_small_table_is_to_the_byte_what_it_was(tmp_path: Path) -> None:
    """A repair recognises a table by its digest."""
    rows = planned()
    write_rows(tmp_path / "now.parquet", rows)
    frame = pd.DataFrame([{"image_id": r.image_id, "view": r.view, "row_id": r.row_id, **r.parameters} for r in rows])
    frame.insert(0, "row", range(len(frame)))
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "before.parquet", compression="zstd")
    assert pq.read_table(tmp_path / "now.parquet").equals(pq.read_table(tmp_path / "before.parquet"))
    if pd.__version__ >= "3":  # whose texts Arrow writes as these
        assert (tmp_path / "now.parquet").read_bytes() == (tmp_path / "before.parquet").read_bytes()


def test_stored_rows_are_had_by_number(tmp_path: Path, few: None) -> None:
    rows = planned()
    write_rows(tmp_path / ROWS_FILE, rows)
    stored = StoredRows(tmp_path / ROWS_FILE)
    assert len(stored) == len(rows)
    for place in (*np.random.default_rng(4).integers(-len(rows), len(rows), 60).tolist(), 0, -1, len(rows) - 1):
        assert stored[place] == rows[place]
    assert stored[15:40:3] == rows[15:40:3]
    with pytest.raises(IndexError):
        stored[len(rows)]
    assert stored.keys() == keys_of(rows)
    assert texts_of(names_of(stored)) == [row.row_id for row in rows]
    other = FeatureSpace("another", "last", 32, "none", "none", "1" * 64)
    assert [row.row_id for row in StoredRows(tmp_path / ROWS_FILE, other)] == [
        row_id(other, row.image_id, parameters=row.parameters) for row in rows
    ]


@pytest.mark.parametrize("views", [1, [0, 3, 1, 0, 2]])
def test_planned_rows_are_made_when_they_are_asked_for(views: Any) -> None:
    images = dataset(5).images
    counts = [views] * 5 if isinstance(views, int) else views
    how, rows = recipe(), rows_of(images, counts, recipe=recipe())
    lazy = PlannedRows(images, counts, recipe=how)
    assert list(lazy) == rows
    assert [lazy[place] for place in range(len(lazy))] == rows
    assert lazy[-1] == rows[-1]
    assert lazy[1:4] == rows[1:4]
    assert lazy.keys() == RowKeys.of((row.image_id, row.view) for row in rows)
    twice = PlannedRows((*images, images[1]), [1] * 6, recipe=how)
    assert twice.keys().repeats()


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"compression": "snappy"}, {"row_group_size": 11}])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_tables_of_other_writers(tmp_path: Path, options: dict[str, Any], version: str, few: None) -> None:
    rows = planned()
    write_rows(tmp_path / "ours.parquet", rows)
    table = pq.read_table(tmp_path / "ours.parquet")
    pq.write_table(table, tmp_path / ROWS_FILE, data_page_version=version, **options)
    assert read_keys(tmp_path / ROWS_FILE) == keys_of(rows)
    pd.testing.assert_frame_equal(read_rows(tmp_path / ROWS_FILE), table.to_pandas())


@pytest.mark.parametrize("column", ["image_id", "row_id"])
@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "none"])
def test_text_that_would_fill_the_memory_is_refused(tmp_path: Path, column: str, compression: str) -> None:
    """A dictionary of one long text, which a hundred thousand rows have; and one that says to be short."""
    n, long = 300_000, "x" * 200_000
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([long]))
    table = pa.table({"row": np.arange(n), "image_id": texts, "view": np.arange(n), "row_id": texts})
    if column == "row_id":
        table = table.set_column(1, "image_id", pa.array(["a" * 64] * n))
    pq.write_table(table, tmp_path / ROWS_FILE, compression=compression, store_schema=False)
    with pytest.raises(CacheError, match="more than tables are"):
        read_rows(tmp_path / ROWS_FILE)


# Caches


def expected_rows(cache: Cache) -> pd.DataFrame:
    """`rows` by another way: both tables whole, joined by pandas."""
    views, lines = (pq.read_table(cache.folder / name).to_pandas() for name in (ROWS_FILE, DATASET_FILE))
    joined = views[["row", "image_id", "view"]].merge(lines, on="image_id", how="left", validate="m:1")
    return joined[["row", "image_id", "path", "label", "split", "group", "view"]]


@pytest.mark.parametrize("order", ["as it is", "backwards"])
def test_rows_labels_and_groups_are_those_of_the_tables(cache: Cache, order: str, few: None) -> None:
    if order == "backwards":
        lines = pq.read_table(cache.folder / DATASET_FILE).to_pandas()
        put(cache.folder, DATASET_FILE, lines.iloc[::-1])
    cache = open_cache(cache.folder)
    expected = expected_rows(cache)
    pd.testing.assert_frame_equal(cache.rows, expected)
    pd.testing.assert_frame_equal(pd.concat(cache.row_parts(), ignore_index=True), expected, check_dtype=False)
    trained = expected["split"] != ""
    assert cache.classes == tuple(sorted(set(expected["label"][trained])))
    for split in ("train", "val", "test"):
        numbers = np.flatnonzero(((expected["split"] == split) & (expected["label"] != "")).to_numpy())
        np.testing.assert_array_equal(cache.numbers(split), numbers)
        assert [cache.classes[code] for code in cache.labels(split)] == expected["label"].iloc[numbers].tolist()
        assert cache.labels_of(split) == set(expected["label"].iloc[numbers])
    names, codes = np.unique(expected["group"].to_numpy(str), return_inverse=True)
    assert (np.argsort(np.argsort(names)) == np.arange(len(names))).all()
    np.testing.assert_array_equal(cache.groups, codes)
    assert cache.torn_groups() is None
    counts = expected.groupby(["label", "split"]).size()
    assert cache.row_counts() == {
        label: {split: int(n) for (_, split), n in of.items()} for label, of in counts.groupby(level=0)
    }


def test_groups_in_several_splits_are_found(cache: Cache) -> None:
    lines = pq.read_table(cache.folder / DATASET_FILE).to_pandas()
    lines.loc[lines["split"] == "val", "group"] = lines["group"].iloc[0]
    lines.loc[lines["split"] == "test", "group"] = lines["group"].iloc[1]
    put(cache.folder, DATASET_FILE, lines)
    splits = lines.groupby("group")["split"].agg(lambda of: sorted(set(of)))
    torn = splits[splits.map(len) > 1].sort_index()
    assert open_cache(cache.folder).torn_groups() == (len(torn), torn.index[0], torn.iloc[0])


def test_the_manifest_counts_rows_and_the_tables_are_not_read_for_it(cache: Cache) -> None:
    expected = cache.row_counts()
    assert cache.manifest.provenance["row_counts"] == expected
    (cache.folder / ROWS_FILE).write_bytes(bytes((cache.folder / ROWS_FILE).stat().st_size))
    damaged = open_cache(cache.folder)
    assert damaged.row_counts() == expected
    with pytest.raises(CacheError, match="is not that of the manifest"):
        damaged.labels()
    assert not verify(cache.folder).sound


def test_a_cache_that_says_no_counts_is_counted(cache: Cache) -> None:
    expected = cache.row_counts()
    reseal(cache.folder, lambda value: value["provenance"].pop("row_counts"))
    assert open_cache(cache.folder).row_counts() == expected
    assert verify(cache.folder).sound


@pytest.mark.parametrize("lie", [{"eosinophil": {"train": 120}}, {}, [], {"a": 1}, {"a": {"b": -1}}, "x"])
def test_counts_that_are_not_those_of_the_tables_are_found(cache: Cache, lie: Any) -> None:
    expected = cache.row_counts()
    reseal(cache.folder, lambda value: value["provenance"].update(row_counts=lie))
    found = verify(cache.folder)
    assert [problem.file for problem in found.problems] == ["dataset.parquet"]
    assert "not as many as the manifest says" in found.problems[0].what
    opened = open_cache(cache.folder)
    with pytest.raises(CacheError, match="not as many as the manifest says"):
        opened.check_labels()
    if lie != {"eosinophil": {"train": 120}}:  # which could be true
        assert opened.row_counts() == expected


def test_new_labels_are_counted(cache: Cache) -> None:
    from featcache.datasets.manifest import Dataset

    images = tuple(replace(image, label="other", split="train") for image in dataset(N_IMAGES).images)
    assert cache.replace_dataset(Dataset(images, Path()))
    assert cache.row_counts() == open_cache(cache.folder).row_counts() == {"other": {"train": N_IMAGES * VIEWS}}
    assert verify(cache.folder).sound


def test_what_the_manifest_says_is_written_as_json_writes_it(cache: Cache) -> None:
    manifest = read_manifest(cache.folder)
    assert manifest.text() == json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    strange = manifest.model_copy(update={"provenance": {'files"': {"files": {}}, "é": "\n"}, "files": {}})
    assert strange.text() == json.dumps(strange.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def test_links_are_found_whichever_folder_they_are(tmp_path: Path) -> None:
    for name in ("cache/a/b/c", "cache/d/e", "else/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folder = tmp_path / "cache"
    (folder / "out").symlink_to(tmp_path / "else")
    (folder / "in").symlink_to(folder / "d")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "file").symlink_to(tmp_path / "else/e")
    names = ["a/b/c", "d/e", "out/e", "in/e", "circle/x", "file", "nowhere/at/all", "out/more", "d/e/f", "\0"]
    assert list(links_out(folder, names)) == ["out/e", "file", "out/more"]


def test_a_dataset_copy_is_checked_in_all_its_columns(tmp_path: Path, few: None) -> None:
    cache = make_cache(tmp_path, dataset(N_IMAGES), fake_features(N_IMAGES, (8,)))
    lines = pq.read_table(cache.folder / DATASET_FILE).to_pandas()
    put(cache.folder, DATASET_FILE, lines.assign(y_max=np.where(np.arange(N_IMAGES) == 33, 0.5, 2.0)))
    refused(cache.folder, "the column y_max does not hold whole numbers")
    put(cache.folder, DATASET_FILE, pd.concat([lines, lines.iloc[5:6]]))
    refused(cache.folder, "an image is listed twice")
    put(cache.folder, DATASET_FILE, lines.assign(split=["train"] * 39 + ["tset"]))
    refused(cache.folder, "tset")
    put(cache.folder, DATASET_FILE, lines)
    assert len(read_lines(cache.folder / DATASET_FILE).ids) == N_IMAGES


def test_one_changed_row_among_many_is_found(tmp_path: Path, few: None) -> None:
    cache = make_cache(tmp_path, dataset(N_IMAGES), fake_features(N_IMAGES * VIEWS, (8,)), VIEWS)
    frame = pq.read_table(cache.folder / ROWS_FILE).to_pandas()
    place = 101  # an augmented view, in the fifth row group
    frame.loc[place, "rotation_deg"] += 1e-9
    put(cache.folder, ROWS_FILE, frame)
    assert [problem.what for problem in verify(cache.folder).problems] == [
        f"1 rows have another row_id than their image and view: [{place}]"
    ]


def test_predictions_are_the_same_in_parts(tmp_path: Path, cache: Cache, few: None) -> None:
    rows = cache.rows.assign(
        path=[f"={number}" if number % 50 == 0 else f"{number}" for number in range(len(cache.rows))]
    )
    probabilities = np.random.default_rng(0).random((len(rows), 2)).astype(np.float32)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    write_predictions(tmp_path / "whole", rows, probabilities=probabilities, classes=["a", "b"])
    parts = (rows.iloc[start : start + 13] for start in range(0, len(rows), 13))
    write_predictions(tmp_path / "parts", parts, probabilities=probabilities, classes=["a", "b"])
    whole = (tmp_path / "whole/predictions.csv").read_bytes()
    assert (tmp_path / "parts/predictions.csv").read_bytes() == whole
    assert b"'=50" in whole


def test_a_plan_has_the_digest_of_its_rows() -> None:
    how = Recipe(SPACE, Augmentation(seed=3))
    images = dataset(12).images
    rows = rows_of(images, range(12), recipe=how)
    assert keys_of(PlannedRows(images, range(12), recipe=how)).digest(how) == cache_digest(
        how, ((row.image_id, row.view) for row in rows)
    )


@pytest.mark.parametrize("separator", ["", "|"])
def test_a_dataset_copy_has_the_digest_of_its_images(tmp_path: Path, separator: str, few: None) -> None:
    from featcache.datasets.manifest import Dataset
    from featcache.images import Box

    images = list(dataset(N_IMAGES).images)
    images[3] = replace(images[3], box=Box(1, 2, 30, 40), path="é\n.png")
    images[4] = replace(images[3], box=Box(0, 2, 30, 40), image_id="f" * 64)
    images[5] = replace(images[5], path=images[6].path, label="")
    write_dataset_copy(tmp_path / DATASET_FILE, images)
    expected = Dataset(tuple(images), Path(), label_separator=separator).digest
    assert digest_of_lines(tmp_path / DATASET_FILE, separator) == expected
    chosen = np.arange(N_IMAGES) % 3 == 0
    write_lines(tmp_path / "some.parquet", chosen_lines(tmp_path / DATASET_FILE, chosen))
    some = tuple(image for image, is_chosen in zip(images, chosen, strict=True) if is_chosen)
    assert images_in(read_dataset_copy(tmp_path / "some.parquet")) == some


def test_chosen_rows_are_those_of_the_table(cache: Cache, few: None) -> None:
    numbers = np.flatnonzero(np.random.default_rng(0).random(N_IMAGES * VIEWS) < 0.4)
    numbers = numbers[(numbers < 30) | (numbers > 80)]  # a row group of which none is
    every, other = list(cache.stored_rows()), FeatureSpace("other", "none", 224, "none", "avg", "1" * 64)
    found = cache.chosen_rows(numbers)
    assert list(found) == [every[number] for number in numbers]
    assert [found[place] for place in (5, 2, 12, -1)] == [every[numbers[place]] for place in (5, 2, 12, -1)]
    assert found.keys() == RowKeys.of((every[number].image_id, every[number].view) for number in numbers)
    assert keys_of(found) == found.keys()
    in_other = list(cache.stored_rows(other))
    assert list(cache.chosen_rows(numbers, other)) == [in_other[number] for number in numbers]
    write_rows(cache.folder / "some.parquet", found)
    assert list(StoredRows(cache.folder / "some.parquet")) == list(found)


def test_rows_under_other_ids_have_the_row_ids_of_these(cache: Cache, few: None) -> None:
    keys = cache.keys
    others = replace(keys, images=keys.images[::-1])
    found = list(RenamedRows(cache.folder / ROWS_FILE, others, space=SPACE))
    assert keys_of(found) == others
    for row, before in zip(found, cache.stored_rows(), strict=True):
        assert row.parameters == before.parameters
        assert row.row_id == row_id(SPACE, row.image_id, parameters=row.parameters)


def test_what_reads_many_rows_makes_no_object_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty thousand rows, in at most 200 bytes each: as Python's objects they would take a thousand."""
    n = 40_000
    write_many(tmp_path, n)
    keys = read_keys(tmp_path / ROWS_FILE)
    numbers = np.arange(0, n, 2)
    chosen = np.arange(n) % 2 == 0
    works: dict[str, Any] = {
        "keys": lambda: read_keys(tmp_path / ROWS_FILE),
        "names": lambda: misnamed_rows(tmp_path / ROWS_FILE, SPACE),
        "lines": lambda: read_lines(tmp_path / DATASET_FILE),
        "chosen": lambda: write_rows(tmp_path / "a", tables.ChosenRows(tmp_path / ROWS_FILE, numbers)),
        "renamed": lambda: write_rows(tmp_path / "b", RenamedRows(tmp_path / ROWS_FILE, keys, space=SPACE)),
        "copied": lambda: write_lines(tmp_path / "c", chosen_lines(tmp_path / DATASET_FILE, chosen)),
        "digest": lambda: digest_of_lines(tmp_path / DATASET_FILE, ""),
    }
    monkeypatch.setattr(tables, "_PART_ROWS", 1 << 12)
    for name, work in works.items():
        assert peak_of(work) / n < 200, name


def test_judging_takes_little_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from what the draws take, whatever the rows: less than the probabilities of eight classes in float64."""
    monkeypatch.setattr("featcache.measures.judged._PART_ROWS", 1 << 12)
    few, many = (peak_of(lambda n=n: evaluate_many(n)) for n in (20_000, 80_000))  # type: ignore[misc]
    assert (many - few) / 60_000 < 140


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy held at most."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def evaluate_many(n: int) -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.random((n, 8), np.float32)
    groups = np.arange(n, dtype=np.int32)
    assert evaluate(judge(probabilities, groups.astype(np.int64) % 8, groups=groups), "abcdefgh")


def write_many(folder: Path, n: int) -> None:
    """Tables of n plain views."""
    ids = pa.array([f"{number:064x}" for number in range(n)], pa.large_string())
    part = pa.RecordBatch.from_pydict(
        {"image_id": ids, "view": pa.array(np.zeros(n, np.int64)), "rotation_deg": pa.array(np.zeros(n))}
    )
    names = pa.array(row_ids(SPACE, part, besides={"image_id", "view"}), pa.large_string())
    rows = {"row": pa.array(np.arange(n)), "image_id": ids, "view": part["view"], "row_id": names}
    pq.write_table(pa.table({**rows, "rotation_deg": part["rotation_deg"]}), folder / ROWS_FILE)
    texts = {"image_id": ids, "path": ids}
    few = {name: pa.array(np.array(["a", "b"], object)[np.arange(n) % 2]) for name in ("label", "group")}
    few["split"] = pa.array(np.array(["train", "test"], object)[np.arange(n) % 2])
    nothing = pa.nulls(n, pa.int64())
    pq.write_table(
        pa.table({**texts, **few, **dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), nothing)}),
        folder / DATASET_FILE,
    )


def test_rows_of_a_large_cache_have_categories(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = expected_rows(cache)
    monkeypatch.setattr("featcache.store.cache._MOST_HELD", 50)
    found = open_cache(cache.folder).rows
    assert str(found["label"].dtype) == str(found["split"].dtype) == "category"
    for name in ("label", "split"):
        found[name] = found[name].astype(str)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
