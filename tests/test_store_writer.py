"""Writing caches: every way to be interrupted ends, after the next run, in the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_store_contract import (
    all_bytes,
    dataset,
    fake_features,
    feature_bytes,
    fill,
    image,
    make_cache,
    recipe,
    rows_for,
    small_shards,
)

from featcache.core import leases
from featcache.core.errors import CacheError, CacheNotFoundError, CacheWriteError, UsageError
from featcache.datasets.manifest import Dataset
from featcache.extraction.rows import rows_of
from featcache.store import ledger, writer as writer_module
from featcache.store.cache import open_cache
from featcache.store.layout import FORMATS, Format
from featcache.store.writer import CacheWriter
from featcache.store.zarr_store import ZarrStore

SHAPE = (2, 2, 3)
IMAGES = dataset(70)
FEATURES = fake_features(70, SHAPE)


@pytest.fixture(autouse=True)
def _shards_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 16)


def new_writer(parent: Path) -> CacheWriter:
    return CacheWriter(parent, recipe(), rows=rows_for(IMAGES), row_shape=SHAPE)


@pytest.fixture(scope="module")
def whole_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 16)
        return make_cache(tmp_path_factory.mktemp("undisturbed"), IMAGES, FEATURES).folder


@pytest.fixture
def undisturbed(whole_cache: Path) -> dict[str, bytes]:
    return feature_bytes(whole_cache)


def finish(writer: CacheWriter) -> Path:
    with writer:
        writer.finish(IMAGES, {})
    return writer.folder


def shard_file(writer: CacheWriter, shard: int) -> Path:
    assert isinstance(writer.store, ZarrStore)
    return writer.store.shard_file(shard)


def test_an_undisturbed_cache_is_whole(whole_cache: Path, undisturbed: dict[str, bytes]) -> None:
    assert sorted(undisturbed) == [*(f"features.zarr/c/{n}/0/0/0" for n in range(5)), "features.zarr/zarr.json"]
    cache = open_cache(whole_cache)
    np.testing.assert_array_equal(np.asarray(cache.features), FEATURES)
    assert sorted(cache.manifest.files) == sorted(
        [*undisturbed, "recipe.json", "rows.parquet", "dataset.parquet", "ledger.jsonl"]
    )
    assert cache.bytes() == sum((cache.folder / name).stat().st_size for name in cache.manifest.files)
    names = {path.name for path in cache.folder.iterdir()}
    assert names == {
        "recipe.json", "rows.parquet", "dataset.parquet", "ledger.jsonl", "features.zarr", "manifest.json"
    }  # fmt: skip


def test_a_dropped_writer_goes_on_where_it_stopped(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    writer = new_writer(tmp_path)
    assert writer.missing == [0, 1, 2, 3, 4]
    for shard in (3, 0):
        start, stop = writer.store.layout.span(shard)
        writer.write(shard, FEATURES[start:stop])
    assert writer.missing == [1, 2, 4]
    del writer
    again = new_writer(tmp_path)
    assert again.missing == [1, 2, 4]
    assert again.rows_done == 32
    assert fill(again, FEATURES) == [1, 2, 4]
    assert feature_bytes(finish(again)) == undisturbed


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 16
    file.write_bytes(bytes(damaged))


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("finished", [False, True])
def test_a_damaged_shard_alone_is_computed_again(tmp_path, undisturbed, damage, finished) -> None:
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    if finished:
        finish(writer)
    damage(shard_file(writer, 2))
    again = new_writer(tmp_path)
    with pytest.raises(CacheNotFoundError, match="never finished"):  # the manifest promises what is not there
        open_cache(again.folder)
    assert fill(again, FEATURES) == [2]
    assert feature_bytes(finish(again)) == undisturbed
    np.testing.assert_array_equal(np.asarray(open_cache(again.folder).features), FEATURES)


@pytest.mark.parametrize("kept", [1, 40, -1, -3])
def test_a_torn_line_of_the_ledger_is_no_shard(tmp_path: Path, undisturbed: dict[str, bytes], kept: int) -> None:
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    ledger = writer.folder / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:3]) + lines[3][:kept])
    again = new_writer(tmp_path)
    expected = [4] if kept == -1 else [3, 4]  # a line that only lacks its end is whole
    assert fill(again, FEATURES) == expected
    assert new_writer(tmp_path).missing == []
    assert feature_bytes(finish(again)) == undisturbed


OTHER_LINES = [
    "[]",
    "7",
    "null",
    '"text"',
    "{}",
    "\x00\x00",
    '{"shard":"0","start":0,"stop":16,"bytes":1,"sha256":""}',
    '{"shard":[0],"start":0,"stop":16,"bytes":1,"sha256":""}',
    '{"shard":0,"start":0,"stop":16,"bytes":1,"sha256":null}',
    '{"shard":0,"start":0,"stop":16,"bytes":1,"sha256":"00"}',
    '{"shard":99,"start":0,"stop":16,"bytes":1,"sha256":"00"}',
    '{"shard":-1,"start":0,"stop":16,"bytes":1,"sha256":"00"}',
    '{"shard":0,"start":0,"stop":16,"bytes":1,"sha256":"00","more":1}',
    "[" * 5000,
]


def test_lines_of_the_ledger_that_say_anything_else_are_no_shards(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    start, stop = writer.store.layout.span(1)
    for line in OTHER_LINES:
        with (writer.folder / "ledger.jsonl").open("a") as file:
            file.write(line + "\n")
        assert new_writer(tmp_path).missing == [0, 1, 2, 3, 4]
    new_writer(tmp_path).write(1, FEATURES[start:stop])
    again = new_writer(tmp_path)
    assert fill(again, FEATURES) == [0, 2, 3, 4]
    np.testing.assert_array_equal(np.asarray(open_cache(finish(again)).features), FEATURES)


def test_no_ledger_means_no_shards(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    (writer.folder / "ledger.jsonl").unlink()
    again = new_writer(tmp_path)
    assert fill(again, FEATURES) == [0, 1, 2, 3, 4]
    assert feature_bytes(finish(again)) == undisturbed


@pytest.mark.parametrize("finished", [False, True])
def test_the_same_rows_in_another_order_go_on_in_the_order_that_was_begun(
    tmp_path: Path, undisturbed: dict[str, bytes], finished: bool
) -> None:
    begun = new_writer(tmp_path)
    for shard in range(5 if finished else 2):
        begun.write(shard, FEATURES[16 * shard : 16 * shard + 16])
    if finished:
        finish(begun)
    backwards = Dataset(tuple(reversed(IMAGES.images)), IMAGES.folder)
    writer = CacheWriter(tmp_path, recipe(), rows=rows_for(backwards), row_shape=SHAPE)
    assert (writer.folder, writer.rows) == (begun.folder, rows_for(IMAGES))
    assert fill(writer, FEATURES) == ([] if finished else [2, 3, 4])
    with writer:
        writer.finish(backwards, {})
    cache = open_cache(writer.folder)
    assert feature_bytes(writer.folder) == undisturbed
    np.testing.assert_array_equal(np.asarray(cache.features), FEATURES)
    assert list(cache.rows["path"]) == [image.path for image in IMAGES.images]


def test_damaged_rows_start_over(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    truncate(writer.folder / "rows.parquet")
    again = new_writer(tmp_path)
    assert fill(again, FEATURES) == [0, 1, 2, 3, 4]
    assert feature_bytes(finish(again)) == undisturbed


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": NaN}', "[" * 5000, '{"format": 1}'])
def test_a_damaged_recipe_is_mended_from_the_name(tmp_path: Path, undisturbed: dict[str, bytes], text: str) -> None:
    """The folder's name says which recipe it is."""
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    sound = (writer.folder / "recipe.json").read_bytes()
    (writer.folder / "recipe.json").write_text(text)
    again = new_writer(tmp_path)
    assert again.missing == []
    assert (writer.folder / "recipe.json").read_bytes() == sound
    assert feature_bytes(finish(again)) == undisturbed


def test_a_recipe_that_does_not_belong_to_the_name_is_damage(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    sound = (writer.folder / "recipe.json").read_bytes()
    other = replace(recipe(), space=replace(recipe().space, weights_digest="1" * 64))
    (writer.folder / "recipe.json").write_text(json.dumps(other.to_dict()))
    assert new_writer(tmp_path).missing == []
    assert (writer.folder / "recipe.json").read_bytes() == sound


def test_another_cache_whose_digest_begins_alike_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in four billion; here names are of the backbone alone."""
    monkeypatch.setattr(writer_module, "cache_name", lambda backbone, digest, format_: f"{backbone}-00000000")
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    folder = finish(writer)
    before = all_bytes(folder)
    with pytest.raises(UsageError, match="holds another cache, whose digest begins alike: move it away"):
        CacheWriter(
            tmp_path, recipe(seed=1), rows=rows_of(IMAGES.images, [1] * 70, recipe=recipe(seed=1)), row_shape=SHAPE
        )
    assert {name: data for name, data in all_bytes(folder).items() if "leases" not in name} == before


def test_a_recipe_in_another_spelling_is_the_same(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    (writer.folder / "recipe.json").write_text(json.dumps(recipe().to_dict(), sort_keys=True))
    assert new_writer(tmp_path).missing == []


def test_without_a_manifest_a_cache_was_never_finished(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    with pytest.raises(CacheError, match="still missing"):
        writer.finish(IMAGES, {})
    fill(writer, FEATURES)
    for _ in range(2):
        with pytest.raises(CacheNotFoundError, match="never finished"):
            open_cache(writer.folder)
        (writer.folder / ".0123456789ab.partial.json").write_text("{}")  # what a kill leaves of the manifest
    with pytest.raises(CacheNotFoundError, match="no such cache"):
        open_cache(tmp_path / "nowhere")
    finish(new_writer(tmp_path))
    assert not (writer.folder / ".0123456789ab.partial.json").exists()
    assert len(open_cache(writer.folder).features) == 70


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_with_their_rows(tmp_path: Path, bad: float) -> None:
    writer = new_writer(tmp_path)
    features = FEATURES[16:32].copy()
    features[3, 0, 1, 2] = features[9] = bad
    named = ", ".join(f"{n} (image {IMAGES.images[n].image_id[:12]}, view 0)" for n in (19, 25))
    with pytest.raises(
        CacheError, match=re.escape(f"NaN or Inf in the features of 2 rows: {named}. Check these images")
    ):
        writer.write(1, features)
    assert 1 in writer.missing
    assert writer.store.stored(1) is None
    features[:] = bad
    with pytest.raises(CacheError, match=r"16 rows: 16 .*, 20 \(image \w+, view 0\), \.\.\.\. Check"):  # five, and more
        writer.write(1, features)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nan_and_inf_are_stored_where_that_is_allowed(tmp_path: Path, dtype: str) -> None:
    features = FEATURES.copy()
    features[3, 0, 1, 2], features[9], features[40, 1] = np.nan, np.inf, -np.inf
    with CacheWriter(
        tmp_path,
        recipe(dtype),
        rows=rows_for(IMAGES, how=recipe(dtype)),
        row_shape=SHAPE,
        format_="zarr",
        allow_nonfinite=True,
    ) as writer:
        fill(writer, features)
        writer.finish(IMAGES, {})
    np.testing.assert_array_equal(open_cache(writer.folder).features[:], features.astype(dtype))


def float16_writer(parent: Path) -> CacheWriter:
    return CacheWriter(parent, recipe("float16"), rows=rows_for(IMAGES, how=recipe("float16")), row_shape=SHAPE)


@pytest.mark.parametrize("large", [70_000.0, -70_000.0, 65_520.0, 3e38])
def test_a_value_too_large_for_float16_is_refused_with_its_row(tmp_path: Path, large: float) -> None:
    writer = float16_writer(tmp_path)
    features = FEATURES[16:32].copy()
    features[5, 1, 1, 1] = large
    named = f"21 (image {IMAGES.images[21].image_id[:12]}, view 0). Set `dtype='float32'`"
    with pytest.raises(CacheError, match=f"up to 65504, and 1 rows have larger ones: {re.escape(named)}"):
        writer.write(1, features)
    assert writer.store.stored(1) is None
    features[5, 1, 1, 1] = 65_504.0
    writer.write(1, features)
    found = writer.store.read(16, 32)
    np.testing.assert_array_equal(found, features.astype("float16"), strict=True)
    assert found.max() == 65_504


def test_rows_of_which_float16_keeps_next_to_nothing_are_counted(tmp_path: Path) -> None:
    writer = float16_writer(tmp_path)
    features = FEATURES[:16].copy()
    features[3], features[4], features[5] = 1e-6, 0, 1e-3
    writer.write(0, features)
    assert writer.faint_rows == 1
    whole = new_writer(tmp_path)
    whole.write(0, features)
    assert whole.faint_rows == 0


def test_a_cache_has_rows_and_each_once(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="0 rows"):
        CacheWriter(tmp_path, recipe(), rows=[], row_shape=SHAPE)
    with pytest.raises(CacheError, match="each row once"):
        CacheWriter(tmp_path, recipe(), rows=rows_for(IMAGES) * 2, row_shape=SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_views_with_the_same_parameters_are_rows_of_their_own(tmp_path: Path) -> None:
    """Flips alone give four different views; the fifth has the parameters of another."""
    still = {"rotation_deg": 0, "shift": 0, "brightness": 0, "contrast": 0, "saturation": 0, "hue_deg": 0}
    images = dataset(12)
    features = fake_features(12 * 8, SHAPE)
    cache = make_cache(tmp_path, images, features, views=8, fill_modes=("nearest",), **still)
    assert cache.views["row_id"].duplicated().any()
    assert list(cache.rows["view"]) == list(range(8)) * 12
    np.testing.assert_array_equal(np.asarray(cache.features), features)


def test_a_dataset_that_lacks_an_image_or_names_it_twice_does_not_finish(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    for images in (IMAGES.images[1:], (*IMAGES.images, replace(IMAGES.images[0], path="copy.png"))):
        with pytest.raises(CacheError, match="images of the cache"):
            writer.finish(Dataset(images, IMAGES.folder), {})
    more = Dataset((*IMAGES.images, image(99, "monocyte", "train")), IMAGES.folder)
    writer.finish(more, {})
    assert len(open_cache(writer.folder).dataset) == 70


def test_a_file_in_the_place_of_the_folder_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheWriteError, match="cannot be written"):
        new_writer(tmp_path / "cache")


CHILD = """
import os, resource, signal, sys, time
import numpy as np
import featcache.store.layout as layout
layout._MAX_ROWS_PER_SHARD = 16
sys.path.insert(0, {tests!r})
from test_store_contract import dataset, fake_features, fill, recipe, rows_for
from featcache.core.errors import CacheWriteError
from featcache.store.writer import CacheWriter
from pathlib import Path
IMAGES, FEATURES = dataset(70), fake_features(70, (2, 2, 3))
def writer():
    return CacheWriter(Path("."), recipe(), rows=rows_for(IMAGES), row_shape=(2, 2, 3))
"""


def child(folder: Path, script: str) -> str:
    """Run a script in a Python of its own, in `folder`; what it printed."""
    code = CHILD.format(tests=str(Path(__file__).parent)) + textwrap.dedent(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """Eight processes, one after the other, are killed while they write; the ninth may finish."""
    (tmp_path / "killed").mkdir()
    out = child(
        tmp_path / "killed",
        """
        generator = np.random.default_rng(8)
        for victim in range(8):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.write(writing, b"x")
                while True:  # the last shard is written over and over, so that every kill hits a writer
                    one = writer()
                    fill(one, FEATURES)
                    (Path(one.folder) / "ledger.jsonl").open("ab").write(b'{"torn')
                    one.write(4, FEATURES[64:])
            os.read(reading, 1)
            time.sleep(generator.uniform(0.0, 0.15))
            os.kill(pid, signal.SIGKILL)
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL
            print(len(list(Path(".").rglob("*"))))
        """,
    )
    assert len(out.split()) == 8
    again = new_writer(tmp_path / "killed")
    fill(again, FEATURES)
    assert feature_bytes(finish(again)) == undisturbed
    assert not [path for path in (tmp_path / "killed").rglob("*") if ".partial" in path.name]


def test_a_disk_that_is_full_keeps_what_was_finished(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """A limit on the size of files stands for a full disk: writing beyond it fails with an error of the system."""
    (tmp_path / "full").mkdir()
    out = child(
        tmp_path / "full",
        """
        one = writer()
        for shard in (0, 1):
            one.write(shard, FEATURES[16 * shard : 16 * shard + 16])
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        try:
            one.write(2, FEATURES[32:48])
        except CacheWriteError as error:
            print(error)
        print(one.missing)
        """,
    )
    assert "cannot be written: File too large. What was finished is kept" in out
    assert out.splitlines()[-1] == "[2, 3, 4]"
    again = new_writer(tmp_path / "full")
    assert fill(again, FEATURES) == [2, 3, 4]
    assert feature_bytes(finish(again)) == undisturbed


def test_a_disk_that_is_full_from_the_start_is_one_error(tmp_path: Path) -> None:
    out = child(
        tmp_path,
        """
        for limit in (0, 100, 1000, 3000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                one = writer()
                fill(one, FEATURES)
                one.finish(IMAGES, {})
            except CacheWriteError as error:
                print(limit, error)
        """,
    )
    assert out.count("File too large") == 4
    assert fill(new_writer(tmp_path), FEATURES)[-1] == 4


def test_a_folder_that_is_read_only_keeps_what_was_finished(tmp_path: Path) -> None:
    out = child(
        tmp_path,
        """
        one = writer()
        one.write(0, FEATURES[:16])
        shut = [one.folder, *(path for path in one.folder.rglob("*") if path.is_dir())]
        for path in shut:
            path.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)  # the superuser may write everywhere
        for doing in (lambda: one.write(1, FEATURES[16:32]), lambda: one.finish(IMAGES, {})):
            try:
                doing()
            except Exception as error:
                print(type(error).__name__, error)
        if os.getuid() == 0:
            os.seteuid(0)
        for path in shut:
            path.chmod(0o755)
        print(writer().missing)
        """,
    ).splitlines()
    assert out[0].startswith("CacheWriteError")
    assert "cannot be written: Permission denied" in out[0]
    assert out[1].startswith("CacheError")
    assert out[-1] == "[1, 2, 3, 4]"


# Several writers


def work(writer: CacheWriter, claims: list[int]) -> None:
    """Claim and write until nothing is missing, as `extract` does, and finish."""
    with writer:
        while writer.missing:
            shard = writer.claim()
            if shard is None:
                writer.wait()
                writer.refresh()
                continue
            claims.append(shard)
            start, stop = writer.store.layout.span(shard)
            writer.write(shard, FEATURES[start:stop])
        writer.finish(IMAGES, {})


@pytest.mark.parametrize("format_", FORMATS)
def test_writers_in_one_process_share_the_shards_and_all_see_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: Format
) -> None:
    monkeypatch.setattr(leases, "POLL_S", 0.01)
    monkeypatch.setattr(writer_module, "POLL_S", 0.01)
    writers = [
        CacheWriter(tmp_path, recipe(), rows=rows_for(IMAGES), row_shape=SHAPE, format_=format_) for _ in range(4)
    ]
    claims: list[int] = []
    failed: list[BaseException] = []

    def in_a_thread(writer: CacheWriter) -> None:
        try:
            work(writer, claims)
        except BaseException as error:  # noqa: BLE001 - it is looked at below
            failed.append(error)

    threads = [threading.Thread(target=in_a_thread, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(claims) == [0, 1, 2, 3, 4]
    alone = make_cache(tmp_path / "alone", IMAGES, FEATURES, format_=format_).folder
    expected, found = all_bytes(alone), all_bytes(writers[0].folder)
    assert {name: found[name] for name in expected if name != "manifest.json"} == {
        name: expected[name] for name in expected if name != "manifest.json"
    }
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(open_cache(writers[0].folder).features[:], FEATURES)


def test_a_shard_that_another_holds_is_not_claimed_and_what_it_wrote_is_seen(tmp_path: Path) -> None:
    with new_writer(tmp_path) as one, new_writer(tmp_path) as other:
        assert (one.claim(), other.claim(), one.claim()) == (0, 1, 2)
        one.write(0, FEATURES[:16])
        assert other.missing == [0, 1, 2, 3, 4]
        assert other.claim() == 3
        assert other.missing == [1, 2, 3, 4]
        one.write(2, FEATURES[32:48])
        other.refresh()
        assert other.rows_done == 32
        assert one.claim() == 4
        assert other.claim() is None
    assert new_writer(tmp_path).claim() == 1  # what was not written was given back


def test_processes_share_the_shards_and_a_killed_one_leaves_its_own_to_them(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = child(
        tmp_path,
        """
        victim = os.fork()
        if victim == 0:
            with writer() as one:
                print("claimed", one.claim(), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(victim, 0)
        workers = []
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                with writer() as one:
                    while one.missing:
                        shard = one.claim()
                        if shard is None:
                            one.wait()
                            one.refresh()
                            continue
                        start, stop = one.store.layout.span(shard)
                        one.write(shard, FEATURES[start:stop])
                        os.write(1, f"wrote {shard}\\n".encode())
                    one.finish(IMAGES, {})
                os._exit(0)
            workers.append(pid)
        print([os.waitpid(pid, 0)[1] for pid in workers])
        """,
    ).splitlines()
    assert out[0] == "claimed 0"
    assert sorted(out[1:-1]) == [f"wrote {shard}" for shard in range(5)]
    assert out[-1] == "[0, 0, 0, 0]"
    (folder,) = tmp_path.iterdir()
    assert feature_bytes(folder) == undisturbed
    assert not (folder / "leases").exists()
    np.testing.assert_array_equal(open_cache(folder).features[:], FEATURES)


def test_a_writer_that_slept_harms_no_cache_that_others_finished(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes with a shard of its own making, which may differ in the last digit."""
    asleep = new_writer(tmp_path)
    for shard in range(4):
        asleep.write(shard, FEATURES[16 * shard : 16 * shard + 16])
    assert asleep.claim() == 4
    monkeypatch.setattr(leases, "_has_ended", lambda content: True)
    with new_writer(tmp_path) as thief:
        assert thief.claim() == 4
        asleep.write(4, FEATURES[64:] + np.float32(1))  # between the theft and the end
        assert asleep.missing == [4]
        thief.write(4, FEATURES[64:])
        thief.finish(IMAGES, {})
    before = all_bytes(thief.folder)
    asleep.refresh()
    assert asleep.missing == []
    with asleep:
        assert asleep.finish(IMAGES, {}).seal == open_cache(thief.folder).manifest.seal
    assert all_bytes(thief.folder) == before
    assert feature_bytes(thief.folder) == undisturbed


def test_a_writer_that_sleeps_until_after_the_end_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = new_writer(tmp_path)
    assert asleep.claim() == 0
    monkeypatch.setattr(leases, "_has_ended", lambda content: True)
    work(new_writer(tmp_path), [])
    before = all_bytes(asleep.folder)
    asleep.write(0, FEATURES[:16] + np.float32(1))
    asleep.refresh()
    assert asleep.missing == []
    asleep.__exit__()
    assert all_bytes(asleep.folder) == before
    np.testing.assert_array_equal(open_cache(asleep.folder).features[:], FEATURES)


@pytest.mark.parametrize("at_work", [False, True])
def test_what_an_interrupted_writer_left_is_swept_away_where_nobody_is_at_work(tmp_path: Path, at_work: bool) -> None:
    with new_writer(tmp_path) as one:
        one.write(0, FEATURES[:16])
        left = [
            one.folder / ".abc.partial",
            one.folder / ".def.partial.json",
            shard_file(one, 0).with_name(".ghi.partial"),
            one.folder / ".old.partial" / "zarr.json",
        ]
        for path in left:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"{")
        assert not at_work or one.claim() == 1
        with new_writer(tmp_path) as other:
            assert other.missing == [1, 2, 3, 4]
        assert [path.exists() for path in left] == [at_work] * 4
    finish_all = new_writer(tmp_path)
    fill(finish_all, FEATURES)
    finish(finish_all)
    assert not [path for path in finish_all.folder.rglob("*") if ".partial" in path.name]


def test_a_folder_that_vanishes_is_one_error_and_does_not_come_back(tmp_path: Path) -> None:
    with new_writer(tmp_path) as writer:
        assert writer.claim() == 0
        shutil.rmtree(writer.folder)
        with pytest.raises(CacheWriteError, match="it has vanished"):
            writer.write(0, FEATURES[:16])
        with pytest.raises(CacheWriteError, match="cannot be written: No such file"):
            writer.claim()
        assert not writer.folder.exists()
    again = new_writer(tmp_path)
    fill(again, FEATURES)
    finish(again)


def test_a_folder_that_vanishes_before_the_end_is_one_error(tmp_path: Path) -> None:
    with new_writer(tmp_path) as writer:
        fill(writer, FEATURES)
        shutil.rmtree(writer.folder)
        with pytest.raises(CacheWriteError, match="cannot be written: No such file"):
            writer.finish(IMAGES, {})
    assert not writer.folder.exists()


def test_lines_of_several_processes_do_not_mix_in_the_ledger(tmp_path: Path) -> None:
    child(
        tmp_path,
        """
        from featcache.store import ledger
        workers = []
        for worker in range(6):
            pid = os.fork()
            if pid == 0:
                for number in range(100):
                    shard = 100 * worker + number
                    ledger.append(Path("ledger.jsonl"), ledger.ShardRecord(shard, shard, shard + 1, 10**9, "0" * 64))
                os._exit(0)
            workers.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in workers] == [0] * 6
        """,
    )
    file = tmp_path / "ledger.jsonl"
    # Whoever looks while another is in the middle of its line takes that for torn, and leaves an empty one.
    assert len(file.read_text().split()) == 600
    records = ledger.read(file)
    assert sorted(records) == list(range(600))
    assert all(record.start == shard for shard, record in records.items())
    ledger.write(file, records.values())
    assert [json.loads(line)["shard"] for line in file.read_text().splitlines()] == list(range(600))


@pytest.mark.parametrize("format_", FORMATS)
def test_the_ledger_ends_in_order_whatever_the_order_of_the_shards(tmp_path: Path, format_: Format) -> None:
    texts = []
    for number, order in enumerate(([0, 1, 2, 3, 4], [4, 2, 0, 3, 1])):
        with CacheWriter(
            tmp_path / str(number), recipe(), rows=rows_for(IMAGES), row_shape=SHAPE, format_=format_
        ) as writer:
            for shard in order:
                start, stop = writer.store.layout.span(shard)
                writer.write(shard, FEATURES[start:stop])
            writer.finish(IMAGES, {})
        texts.append((writer.folder / "ledger.jsonl").read_text())
        assert not (writer.folder / "leases").exists()
    assert texts[0] == texts[1]
    assert [json.loads(line)["shard"] for line in texts[0].splitlines()] == [0, 1, 2, 3, 4]
