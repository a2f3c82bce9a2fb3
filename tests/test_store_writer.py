"""Writing caches: every way to be interrupted ends, after the next run, in the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_store_contract import (
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

from featcache.dataset.manifest import Dataset
from featcache.errors import CacheError, CacheNotFoundError, CacheWriteError
from featcache.store.cache import open_cache
from featcache.store.writer import CacheWriter

SHAPE = (2, 2, 3)
IMAGES = dataset(70)
FEATURES = fake_features(70, SHAPE)


@pytest.fixture(autouse=True)
def _shards_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 16)


def new_writer(parent: Path) -> CacheWriter:
    return CacheWriter(parent, recipe(), rows_for(IMAGES), SHAPE)


@pytest.fixture(scope="module")
def whole_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 16)
        return make_cache(tmp_path_factory.mktemp("undisturbed"), IMAGES, FEATURES).folder


@pytest.fixture
def undisturbed(whole_cache: Path) -> dict[str, bytes]:
    return feature_bytes(whole_cache)


def finish(writer: CacheWriter) -> Path:
    writer.finish(IMAGES, {})
    return writer.folder


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
    damage(writer.store.shard_file(2))
    again = new_writer(tmp_path)
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


def test_the_same_rows_in_another_order_start_over(tmp_path: Path) -> None:
    folder = make_cache(tmp_path, IMAGES, FEATURES).folder
    backwards = Dataset(tuple(reversed(IMAGES.images)), IMAGES.folder)
    writer = CacheWriter(tmp_path, recipe(), rows_for(backwards), SHAPE)
    assert writer.folder == folder
    assert writer.missing == [0, 1, 2, 3, 4]
    with pytest.raises(CacheNotFoundError, match="never finished"):  # the old manifest promises the old order
        open_cache(folder)
    fill(writer, FEATURES[::-1])
    writer.finish(backwards, {})
    cache = open_cache(folder)
    np.testing.assert_array_equal(np.asarray(cache.features), FEATURES[::-1])
    assert list(cache.rows["path"]) == [image.path for image in backwards.images]


def test_damaged_rows_start_over(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    truncate(writer.folder / "rows.parquet")
    again = new_writer(tmp_path)
    assert fill(again, FEATURES) == [0, 1, 2, 3, 4]
    assert feature_bytes(finish(again)) == undisturbed


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": NaN}', "[" * 5000, '{"format": 1}'])
def test_another_recipe_in_the_folder_is_refused(tmp_path: Path, text: str) -> None:
    writer = new_writer(tmp_path)
    fill(writer, FEATURES)
    (writer.folder / "recipe.json").write_text(text)
    before = feature_bytes(writer.folder)
    with pytest.raises(CacheError, match=r"recipe.*move"):
        new_writer(tmp_path)
    assert feature_bytes(writer.folder) == before


def test_a_recipe_of_other_weights_is_refused(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    other = replace(recipe(), space=replace(recipe().space, weights_digest="1" * 64))
    (writer.folder / "recipe.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(CacheError, match="another recipe"):
        new_writer(tmp_path)


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
    with pytest.raises(CacheError, match=r"2 rows: \[19, 25\]"):
        writer.write(1, features)
    assert 1 in writer.missing
    assert not writer.store.shard_file(1).exists()


def test_a_value_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, recipe("float16"), rows_for(IMAGES), SHAPE)
    features = FEATURES[:16].copy()
    features[5, 1, 1, 1] = 70_000.0
    with pytest.raises(CacheError, match=r"1 rows: \[5\]"):
        writer.write(0, features)
    writer.write(0, FEATURES[:16])
    np.testing.assert_array_equal(writer.store.read(0, 16), FEATURES[:16].astype("float16"))


def test_a_cache_has_rows_and_each_once(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="0 rows"):
        CacheWriter(tmp_path, recipe(), [], SHAPE)
    with pytest.raises(CacheError, match="each row once"):
        CacheWriter(tmp_path, recipe(), rows_for(IMAGES) * 2, SHAPE)
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
from featcache.errors import CacheWriteError
from featcache.store.writer import CacheWriter
from pathlib import Path
IMAGES, FEATURES = dataset(70), fake_features(70, (2, 2, 3))
def writer():
    return CacheWriter(Path("."), recipe(), rows_for(IMAGES), (2, 2, 3))
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
