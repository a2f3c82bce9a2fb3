"""Parts of caches on remotes, and caches read where they lie: only what is wanted moves, and all of it is checked."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import servers
from conftest import contents
from servers import S3, netrc_in, web_server
from test_share import only_in
from test_store_contract import dataset, fake_features, image, make_cache, recipe, rows_for, small_shards

from featcache import cleanup as tidy
from featcache.core.errors import RemoteError, UsageError
from featcache.core.project import Project, Settings
from featcache.core.recipe import Augmentation, Recipe
from featcache.datasets.manifest import Dataset
from featcache.extraction.rows import rows_of
from featcache.heads._fit_head import fit_head
from featcache.heads.config import HeadConfig
from featcache.remotes.contract import Remote
from featcache.remotes.urls import open_remote
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import find, latest
from featcache.sharing.options import Part
from featcache.sharing.reading import RemoteCache
from featcache.sharing.receive import Trust, pull
from featcache.sharing.remote_donors import ask
from featcache.sharing.send import push
from featcache.sharing.subset import pull_part, select
from featcache.store._verify import verify
from featcache.store.cache import Cache, open_cache
from featcache.store.donors import DonorIndex
from featcache.store.layout import FORMATS
from featcache.store.writer import CacheWriter

CLASSES = [f"class-{number}" for number in range(10)]
SHAPE = (4, 4, 128)
GROUPED = Dataset(
    tuple(
        image(100 * c + i, label, ("train", "val", "test")[i % 3]) for c, label in enumerate(CLASSES) for i in range(24)
    ),
    Path(),
)
X = fake_features(240, SHAPE)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def caches(quick: Path) -> dict[str, Cache]:
    """Ten equal classes, one behind the other: shards of 32 rows, chunks of 8. Not to be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 32)
        monkeypatch.setattr("featcache.store.layout._CHUNK_BYTES", {"zarr": 8 * 4 * 4 * 128 * 4, "hdf5": 100_000})
        return {name: make_cache(quick / "parts", GROUPED, X, 1, format_=name) for name in FORMATS}


@pytest.fixture(params=["s3", "file", "web", "web without ranges", "pack"])
def remote(
    request: pytest.FixtureRequest,
    caches: dict[str, Cache],
    place: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Remote]:
    """The Zarr cache, on each kind of remote that can be read in parts, and on one that cannot."""
    parcel = bundle_of_cache(caches["zarr"].folder)
    if request.param == "s3":
        server: S3 = request.getfixturevalue("s3")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        store = open_remote(server.url(place.name))
        push(store, parcel)
        yield store
        return
    files = open_remote(str(place / "www"))
    push(files, parcel)
    if request.param == "file":
        yield files
    elif request.param == "pack":
        yield packed(parcel, place / "cells.zip")
    elif servers.NGINX is None:
        pytest.skip("nginx is not installed: .ci/run installs it")
    else:
        with web_server(place / "nginx", place / "www", ranges=request.param == "web") as url:
            netrc_in(home)
            yield open_remote(url)


def packed(parcel: Any, file: Path) -> Remote:
    from featcache.remotes.packs import PackWriter

    with PackWriter(file) as pack:
        push(pack, parcel)
    return open_remote(str(file))


def test_one_of_ten_classes_moves_a_fifth_of_the_bytes_at_most(
    remote: Remote,
    caches: dict[str, Cache],
    place: Path,
    request: pytest.FixtureRequest,
) -> None:
    cache = caches["zarr"]
    done = pull_part(
        remote, latest(remote, "cache", name=cache.name), parent=place / "b", part=Part(classes=("class-3",))
    )
    part = open_cache(done.folder)
    assert part.classes == ("class-3",)
    np.testing.assert_array_equal(part.features, X[72:96])
    assert verify(part.folder).sound
    assert part.name != cache.name
    assert part.manifest.digest.startswith(part.name[-8:])
    assert part.manifest.provenance["part_of"]["digest"] == cache.manifest.digest
    assert only_in(place / "b") == [part.name]
    share = done.fetched_bytes / cache.bytes()
    assert share < (0.2 if "without ranges" not in request.node.name else 0.35)
    again = pull_part(
        remote, latest(remote, "cache", name=cache.name), parent=place / "b", part=Part(classes=("class-3",))
    )
    assert (again.reused, again.folder) == (True, done.folder)


@pytest.mark.parametrize("format_", FORMATS)
def test_splits_classes_and_images_together(caches: dict[str, Cache], place: Path, format_: str) -> None:
    cache = caches[format_]
    store = open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(cache.folder)).entry
    some = GROUPED.images[5]
    for part, wanted in (
        (Part(splits=("test",)), np.arange(2, 240, 3)),
        (Part(splits=("train", "val"), classes=("class-0", "class-9")), None),
        (Part(images=(some.path,)), [5]),
        (Part(images=(some.image_id[:8], GROUPED.images[7].image_id)), [5, 7]),
    ):
        done = pull_part(store, entry, parent=place / "b", part=part)
        numbers = select(cache, part) if wanted is None else np.asarray(wanted)
        np.testing.assert_array_equal(open_cache(done.folder).features, X[numbers])
        assert list(open_cache(done.folder).rows["image_id"]) == list(cache.rows.iloc[numbers]["image_id"])
        assert verify(done.folder).sound


def test_parts_that_mean_nothing(caches: dict[str, Cache], place: Path) -> None:
    store = open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(caches["zarr"].folder)).entry
    for part, said in (
        (Part(splits=("tst",)), "expected train, val or test"),
        (Part(classes=("class-x",)), "did you mean class-"),
        (Part(images=("no.png",)), "no image of"),
        (Part(images=("ab",)), "no image of"),
        (Part(splits=("test",), images=(GROUPED.images[0].path,)), "no row is in all"),
        (Part(pooling="sum"), "expected avg or max"),
        (Part(dtype="float32"), "expected float16"),
    ):
        with pytest.raises(UsageError, match=said):
            pull_part(store, entry, parent=place / "b", part=part)
    assert only_in(place / "b") == []


def test_pooled_and_halved_on_the_way_is_what_extract_would_have_made(
    caches: dict[str, Cache],
    place: Path,
) -> None:
    store = open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(caches["zarr"].folder)).entry
    mean = X.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    for part, values in (
        (Part(pooling="avg"), mean),
        (Part(pooling="max"), X.max(axis=(1, 2))),
        (Part(pooling="avg", dtype="float16"), mean.astype(np.float16)),
        (Part(dtype="float16"), X.astype(np.float16)),
    ):
        cache = open_cache(pull_part(store, entry, parent=place / "b", part=part).folder)
        np.testing.assert_array_equal(cache.features, values)
        space = replace(recipe().space, pooling=part.pooling or "none", dtype=part.dtype or "float32")
        assert cache.recipe == Recipe(space, Augmentation())
        same = make_cache_of(place / "same", cache.recipe, np.asarray(values))
        assert same.name == cache.name
        assert verify(cache.folder).sound
    large = make_cache(place / "large", GROUPED, X * 1e6, 1, seed=3)
    entry = push(store, bundle_of_cache(large.folder)).entry
    with pytest.raises(UsageError, match="float16 holds values up to"):
        pull_part(store, entry, parent=place / "b", part=Part(dtype="float16"))


def make_cache_of(parent: Path, how: Recipe, values: np.ndarray) -> Cache:
    with CacheWriter(
        parent, how, rows=rows_of(GROUPED.images, [1] * 240, recipe=how), row_shape=values.shape[1:]
    ) as writer:
        for shard in writer.missing:
            start, stop = writer.store.layout.span(shard)
            writer.write(shard, values[start:stop])
        writer.finish(GROUPED, {})
    return open_cache(writer.folder)


# Rows that are here already


def grown(place: Path, features: np.ndarray) -> Cache:
    """A cache of the first images and some more."""
    more = dataset(40).images[24:]
    how = recipe()
    images = Dataset((*GROUPED.images, *more), Path())
    extra = fake_features(240 + len(more), SHAPE)[240:]
    with CacheWriter(place / "grown", how, rows=rows_for(images), row_shape=SHAPE) as writer:
        values = {row.row_id: value for row, value in zip(rows_for(images), [*features, *extra], strict=True)}
        for shard in writer.missing:
            start, stop = writer.store.layout.span(shard)
            writer.write(shard, np.stack([values[row.row_id] for row in writer.rows[start:stop]]))
        writer.finish(images, {})
    return open_cache(writer.folder)


def test_shards_of_rows_that_are_here_are_made_and_not_fetched(
    caches: dict[str, Cache], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch, 32)
    monkeypatch.setattr("featcache.store.layout._CHUNK_BYTES", {"zarr": 8 * 4 * 4 * 128 * 4, "hdf5": 100_000})
    cache, store = grown(place, X), open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(cache.folder)).entry
    shutil.copytree(caches["zarr"].folder, place / "b" / caches["zarr"].name)
    for shard in range(7):  # what is here is not asked for
        (place / "r" / entry.record.path_of(f"features.zarr/c/{shard}/0/0/0")).unlink()
    done = pull(store, entry, parent=place / "b")
    assert contents(done.folder) == contents(cache.folder)
    assert done.remarks == ("7 of its shards were made of rows that are here, and have the digests that they must",)
    assert done.fetched_bytes < cache.bytes() / 3


def test_shards_that_are_made_otherwise_here_are_fetched(
    caches: dict[str, Cache], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch, 32)
    monkeypatch.setattr("featcache.store.layout._CHUNK_BYTES", {"zarr": 8 * 4 * 4 * 128 * 4, "hdf5": 100_000})
    cache, store = grown(place, X + 1), open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(cache.folder)).entry
    shutil.copytree(caches["zarr"].folder, place / "b" / caches["zarr"].name)
    done = pull(store, entry, parent=place / "b")
    assert contents(done.folder) == contents(cache.folder)
    assert (done.remarks, done.fetched_bytes) == ((), cache.bytes())


# Reading where it lies


def test_a_cache_is_read_where_it_lies(remote: Remote, caches: dict[str, Cache], place: Path) -> None:
    cache = caches["zarr"]
    entry = latest(remote, "cache", name=cache.name)
    shard_bytes = max(e.bytes for name, e in cache.manifest.files.items() if "/c/" in name)
    with RemoteCache(remote, entry.record, parent=place / "b", spool_bytes=3 * shard_bytes) as there:
        assert there.classes == cache.classes
        tables = there.fetched_bytes
        order = np.random.default_rng(0).permutation(240)
        np.testing.assert_array_equal(there.features[order], X[order])
        np.testing.assert_array_equal(there.features[3:9], X[3:9])
        np.testing.assert_array_equal(there.arrays("val")[0], cache.arrays("val")[0])
        for (ours, y), (theirs, t) in zip(there.batches("train", 7), cache.batches("train", 7), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(y, t)
        kept = [file for file in there.folder.rglob("*") if file.is_file() and "/c/" in str(file)]
        assert sum(file.stat().st_blocks * 512 for file in kept) <= 3 * shard_bytes + 4096 * len(kept)
        assert tables < there.fetched_bytes
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(there.features))[5], X[5])
    assert only_in(place / "b") == []


def test_gc_leaves_what_is_being_read_from_a_remote(
    caches: dict[str, Cache], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spool of an open cache and the donors of an extraction, however long nothing changes there."""
    monkeypatch.setattr(tidy, "_OLD_S", -1.0)
    project = Project(place, Settings())
    store = open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(caches["zarr"].folder)).entry
    with RemoteCache(store, entry.record, parent=project.cache_folder):
        reached = ask(
            store, recipe(), rows=rows_for(Dataset(GROUPED.images[60:90], Path()), 2), parent=project.cache_folder
        )
        assert len(list(project.cache_folder.iterdir())) == 2
        assert tidy.find_garbage(project) == []
        reached.forget()
    assert only_in(project.cache_folder) == []


def test_workers_read_at_the_same_time(caches: dict[str, Cache], place: Path) -> None:
    store = open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(caches["zarr"].folder)).entry
    with RemoteCache(store, entry.record, parent=place / "b", spool_bytes=1) as there:
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            parts = list(
                pool.map(there.features.__getitem__, [slice(start, start + 60) for start in range(0, 240, 60)])
            )
        np.testing.assert_array_equal(np.concatenate(parts), X)
        np.testing.assert_array_equal(there.features[7], X[7])


def test_hdf5_is_read_from_a_remote_too(caches: dict[str, Cache], place: Path) -> None:
    store = open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(caches["hdf5"].folder)).entry
    with RemoteCache(store, entry.record, parent=place / "b") as there:
        np.testing.assert_array_equal(there.features[[200, 3]], X[[200, 3]])


def test_a_head_is_trained_on_a_cache_that_stays_there(caches: dict[str, Cache], place: Path) -> None:
    store = open_remote(str(place / "r"))
    cache = caches["zarr"]
    entry = push(store, bundle_of_cache(cache.folder)).entry
    config = HeadConfig(epochs=2)
    with RemoteCache(store, entry.record, parent=place / "b") as there:
        ours = fit_head(there, place / "ours", config=config, solver="gram").run
    theirs = fit_head(cache, place / "theirs", config=config, solver="gram").run
    assert ours.name == theirs.name
    heads = [arrays_of(run.folder / "head.npz") for run in (ours, theirs)]
    for name in heads[0]:
        np.testing.assert_array_equal(heads[0][name], heads[1][name])


@pytest.mark.parametrize("whole", [False, True])
def test_a_flipped_bit_is_noticed_in_a_part_and_in_a_shard(
    caches: dict[str, Cache],
    place: Path,
    whole: bool,
) -> None:
    store = open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(caches["zarr"].folder)).entry
    for shard in range(8):
        file = place / "r" / entry.record.path_of(f"features.zarr/c/{shard}/0/0/0")
        data = bytearray(file.read_bytes())
        data[40] ^= 1
        file.write_bytes(data)
    with RemoteCache(store, entry.record, parent=place / "b") as there:
        with pytest.raises(RemoteError, match=r"not what was pushed|damaged or replaced there"):
            there.features[0:32] if whole else there.features[2]
        if not whole:  # the chunk with the flipped bit is the first
            np.testing.assert_array_equal(there.features[9], X[9])
    with pytest.raises(RemoteError):
        pull_part(store, entry, parent=place / "b", part=Part(classes=("class-0",)))
    assert not [name for name in only_in(place / "b") if not name.startswith(".")]


def test_chunks_that_change_places_are_noticed(caches: dict[str, Cache], place: Path) -> None:
    """Each chunk has its digest; but a table that names another for a row would give it the features of others."""
    store = open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(caches["zarr"].folder)).entry
    file = place / "r" / entry.record.path_of("features.zarr/c/0/0/0/0")
    data = file.read_bytes()
    index = np.frombuffer(data[-68:-4], "<u8").reshape(4, 2)[[1, 0, 2, 3]].tobytes()
    file.write_bytes(data[:-68] + index + google_crc32c.value(index).to_bytes(4, "little"))
    with (
        RemoteCache(store, entry.record, parent=place / "b") as there,
        pytest.raises(RemoteError, match="its table of chunks"),
    ):
        _ = there.features[0]


def test_a_list_of_chunks_that_lies_is_refused(caches: dict[str, Cache], place: Path) -> None:
    store = open_remote(str(place / "r"))
    entry = push(store, bundle_of_cache(caches["zarr"].folder)).entry
    file = place / "r" / entry.record.path_of("chunks.json")
    honest = file.read_text()
    for lie in (honest.replace('"format":1', '"format":2'), honest[:-20], "[]", honest.replace("[0,", "[-1,")):
        file.write_text(lie)
        with RemoteCache(store, entry.record, parent=place / "b") as there, pytest.raises(RemoteError):
            _ = there.features[0]
        from featcache.core.files import sha256_bytes
        from featcache.store.manifest import FileEntry

        promised = FileEntry(bytes=len(lie.encode()), sha256=sha256_bytes(lie.encode()))
        record = entry.record.model_copy(update={"chunks": promised})
        with RemoteCache(store, record, parent=place / "b") as there, pytest.raises(RemoteError):
            _ = there.features[0]


# What a remote has of an extraction


def test_the_very_cache_is_pulled(remote: Remote, caches: dict[str, Cache], place: Path) -> None:
    reached = ask(remote, recipe(), rows=rows_for(GROUPED), parent=place / "b")
    assert reached.whole is not None
    assert reached.donors == ()
    assert contents(reached.whole.folder) == contents(caches["zarr"].folder)


def test_rows_of_other_caches_are_fetched_to_be_copied(caches: dict[str, Cache], place: Path) -> None:
    store = open_remote(str(place / "r"))
    push(store, bundle_of_cache(caches["zarr"].folder))
    other = Dataset((*GROUPED.images[60:90], *dataset(40).images[24:]), Path())
    rows = rows_for(other, 2)
    reached = ask(store, recipe(), rows=rows, parent=place / "b")
    assert reached.whole is None
    assert len(reached.row_ids) == 30
    reach = DonorIndex(reached.donors, recipe().space, row_shape=SHAPE)
    reach.look_for(rows)
    held = [row for row in rows if reach.holds(row)]
    assert len(held) == 30
    values = np.empty((30, *SHAPE), np.float32)
    list(reach.fill(values, held))
    np.testing.assert_array_equal(values, X[60:90])
    reached.forget()
    assert only_in(place / "b") == []


def test_a_cache_that_was_begun_here_gets_its_rows(caches: dict[str, Cache], place: Path) -> None:
    store = open_remote(str(place / "r"))
    push(store, bundle_of_cache(caches["zarr"].folder))
    begun = CacheWriter(place / "b", recipe(), rows=rows_for(GROUPED), row_shape=SHAPE)
    reached = ask(store, recipe(), rows=rows_for(GROUPED), parent=place / "b")
    assert reached.whole is None
    assert len(reached.row_ids) == 240
    assert begun.missing


def test_a_remote_that_is_of_no_use_is_no_error(caches: dict[str, Cache], place: Path) -> None:
    store = open_remote(str(place / "r"))
    assert ask(store, recipe(), rows=rows_for(GROUPED), parent=place / "b").remarks == ()
    push(store, bundle_of_cache(caches["zarr"].folder))
    nobody = ask(store, recipe(), rows=rows_for(GROUPED), parent=place / "b", trust=Trust(require_signed=True))
    assert (nobody.whole, nobody.donors) == (None, ())
    assert "is not signed" in nobody.remarks[0]
    gone = ask(open_remote("http://127.0.0.1:9/x"), recipe(), rows=rows_for(GROUPED), parent=place / "b")
    assert "try again" in gone.remarks[0]
    assert find(store, "tiny").record.generation == 1
