"""Extraction with a small engine that everyone can check: which pixels, which rows, whatever the batches and shards."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_store_contract import feature_bytes, recipe, small_shards

from featcache.backbones.engines.contract import Engine
from featcache.core.errors import CacheError, DatasetError
from featcache.core.files import sha256_file
from featcache.core.recipe import Recipe
from featcache.datasets.manifest import SPLITS, Dataset, LabelledImage
from featcache.extraction import cache_filler as filling, computing, rendering
from featcache.extraction.cache_filler import Counts
from featcache.extraction.one_pass import Target, extract
from featcache.extraction.rows import rows_of
from featcache.images.decode import decode
from featcache.images.identity import Box, image_id_of
from featcache.images.squares import cut_and_resize
from featcache.images.views import PLAIN, render, view_parameters
from featcache.store.cache import Cache, open_cache
from featcache.store.donors import DonorIndex
from featcache.store.layout import FORMATS, Format
from featcache.store.writer import CacheWriter
from featcache.synthetic.drawing import write_cells

RECIPE = recipe()
SIZE_PX = RECIPE.space.input_size_px


class GridMeans:
    """Mean of each channel in each of 4 x 4 squares: features of one row know nothing of the others."""

    name = "grid means"
    batch_rows = calls_at_once = 1
    feature_shapes = ((4, 4, 3),)

    def __init__(self, fail_at: int = -1) -> None:
        self.batches: list[int] = []
        self.fail_at = fail_at

    def features(self, pixels: np.ndarray) -> list[np.ndarray]:
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (SIZE_PX, SIZE_PX, 3)
        if len(self.batches) == self.fail_at:
            raise MemoryError("the engine broke")
        self.batches.append(len(pixels))
        step = SIZE_PX // 4
        squares = pixels.reshape(len(pixels), 4, step, 4, step, 3).astype(np.float64)
        return [squares.mean(axis=(2, 4)).astype(np.float32)]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve generated cells, and a box cut out of each of four of them."""
    folder = tmp_path_factory.mktemp("cells")
    images = []
    for number, path in enumerate(write_cells(folder, 3, size_px=64)):
        sha256, label, split = sha256_file(path), path.parent.name, SPLITS[number % 3]
        name = path.relative_to(folder).as_posix()
        images.append(LabelledImage(name, label, split, name, image_id_of(sha256, None)))
        if split == "train":
            box = Box(5, 10, 50, 40)
            images.append(LabelledImage(name, label, split, name, image_id_of(sha256, box), box))
    return Dataset(tuple(images), folder)


def copy(cells: Dataset, folder: Path) -> Dataset:
    for image in cells.images:
        (folder / image.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / image.path).write_bytes((cells.folder / image.path).read_bytes())
    return Dataset(cells.images, folder)


def writer_for(parent: Path, cells: Dataset, views: int, how: Recipe = RECIPE, format_: Format = "zarr") -> CacheWriter:
    rows = rows_of(cells.images, [views] * len(cells.images), recipe=how)
    return CacheWriter(parent, how, rows=rows, row_shape=GridMeans.feature_shapes[0], format_=format_)


def run(writer: CacheWriter, cells: Dataset, engine: Engine | None = None, reach: DonorIndex | None = None) -> Counts:
    by_id = {image.image_id: image for image in cells.images}
    with writer:
        return counts_of(writer, by_id, cells, lambda: engine or GridMeans(), reach)


def counts_of(
    writer: CacheWriter,
    images: dict[str, LabelledImage],
    cells: Dataset,
    engine: Any,
    reach: DonorIndex | None = None,
    **more: Any,
) -> Counts:
    (counts,) = extract(
        [Target(writer, engine, reach=reach)], replace(cells, images=tuple(images.values())), **more
    ).counts
    return counts


def extracted(parent: Path, cells: Dataset, views: int) -> Cache:
    writer = writer_for(parent, cells, views)
    assert run(writer, cells) == Counts(computed=views * len(cells.images))
    with writer:
        writer.finish(cells, {})
    return open_cache(writer.folder)


def by_hand(cells: Dataset, views: int) -> np.ndarray:
    """Every row rendered on its own, without extract."""
    rows = []
    for image in cells.images:
        pixels = cv2.cvtColor(cv2.imread(str(cells.folder / image.path)), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(decode((cells.folder / image.path).read_bytes()), pixels)
        plain = cut_and_resize(pixels, image.box, size_px=SIZE_PX)
        for view in range(views):
            parameters = view_parameters(RECIPE.augmentation, image.image_id, view=view)
            assert (parameters == PLAIN) == (view == 0)
            rows.append(GridMeans().features(render(plain, parameters)[None])[0][0])
    return np.stack(rows)


def test_rows_are_the_engine_on_views_rendered_by_hand(tmp_path: Path, cells: Dataset) -> None:
    cache = extracted(tmp_path, cells, views=5)
    expected = by_hand(cells, 5)
    np.testing.assert_array_equal(np.asarray(cache.features), expected)
    assert len(np.unique(expected.reshape(len(expected), -1), axis=0)) == len(expected)
    assert list(cache.rows["image_id"]) == [image.image_id for image in cells.images for _ in range(5)]
    assert list(cache.rows["view"]) == list(range(5)) * len(cells.images)


@pytest.mark.parametrize(("batch", "shard", "job"), [(1, 16, 16), (7, 16, 2), (64, 32, 1), (5, 8, 3), (1000, 1024, 16)])
def test_batches_shards_and_jobs_decide_no_value(
    tmp_path: Path, cells: Dataset, monkeypatch: pytest.MonkeyPatch, batch: int, shard: int, job: int
) -> None:
    monkeypatch.setattr(computing, "_CALL_ROWS", batch)
    monkeypatch.setattr(filling, "_JOB_VIEWS", job)
    small_shards(monkeypatch, shard)
    writer = writer_for(tmp_path, cells, 5)
    engine, seen = GridMeans(), []
    images = {image.image_id: image for image in cells.images}
    with writer:
        assert counts_of(writer, images, cells, lambda: engine, on_rows=seen.append) == Counts(computed=80)
    assert writer.store.layout.n_shards == -(-80 // min(shard, 256))
    assert [rows for rows in seen if rows] == engine.batches
    assert sum(seen) == 80
    assert max(seen) <= batch
    np.testing.assert_array_equal(writer.store.read(0, 80), by_hand(cells, 5))


def test_only_missing_shards_are_computed(tmp_path: Path, cells: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 16)
    whole = extracted(tmp_path / "whole", cells, 5)
    writer = writer_for(tmp_path, cells, 5)
    for shard in (0, 3):
        start, stop = writer.store.layout.span(shard)
        writer.write(shard, whole.features[start:stop])
    engine = GridMeans()
    again = writer_for(tmp_path, cells, 5)
    assert run(again, cells, engine) == Counts(computed=48)
    assert sum(engine.batches) == 48
    assert feature_bytes(again.folder) == feature_bytes(whole.folder)

    def none() -> Engine:
        raise AssertionError("nothing is to be computed")

    assert counts_of(writer_for(tmp_path, cells, 5), {}, cells, none) == Counts()


def repaint(path: Path) -> None:
    pixels = cv2.imread(str(path))
    pixels[0, 0] ^= 1
    cv2.imwrite(str(path), pixels)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (repaint, "its bytes changed while features were computed"),
        (Path.unlink, "there is no such file"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(b"no image"), "its bytes changed"),
    ],
    ids=["changed", "vanished", "emptied", "overwritten"],
)
def test_an_image_that_is_another_now_stops_with_its_name_and_keeps_finished_shards(
    tmp_path: Path,
    cells: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    spoil,
    reason: str,
):
    small_shards(monkeypatch, 16)
    monkeypatch.setattr(computing, "_CALL_ROWS", 4)
    monkeypatch.setattr(filling, "_AHEAD_ROWS", 4)
    mine = copy(cells, tmp_path / "images")
    writer = writer_for(tmp_path, mine, 5)
    victim = mine.folder / mine.images[-1].path

    class Spoiling(GridMeans):
        def features(self, pixels: np.ndarray) -> list[np.ndarray]:
            if len(self.batches) == 8:  # of twenty: two shards are done, the last image is not yet rendered
                spoil(victim)
            return super().features(pixels)

    with pytest.raises(DatasetError, match=f"{mine.images[-1].path}: {reason}"):
        run(writer, mine, Spoiling())
    assert 0 not in writer.missing
    assert 4 in writer.missing
    left = writer.missing
    assert writer_for(tmp_path, mine, 5).missing == left
    again = copy(cells, mine.folder)
    writer = writer_for(tmp_path, again, 5)
    run(writer, again)
    np.testing.assert_array_equal(writer.store.read(0, 80), by_hand(cells, 5))


def test_a_file_that_is_no_image_and_a_box_that_reaches_out_name_the_image(tmp_path: Path, cells: Dataset) -> None:
    (tmp_path / "text.png").write_bytes(b"no image")
    sha256 = sha256_file(tmp_path / "text.png")
    first = cells.images[0]
    (tmp_path / "cell.png").write_bytes((cells.folder / first.path).read_bytes())
    box = Box(0, 0, 65, 64)
    wrong = [
        replace(first, path="text.png", image_id=image_id_of(sha256, None)),
        replace(first, path="cell.png", box=box, image_id=image_id_of(first.image_id, box)),
    ]
    for image in wrong:
        one = Dataset((image,), tmp_path)
        with pytest.raises(DatasetError, match=image.path):
            run(writer_for(tmp_path / "cache", one, 1), one)


@pytest.mark.parametrize("fail_at", [0, 3])
def test_an_engine_that_breaks_stops_the_threads_and_the_rendering(
    tmp_path: Path, cells: Dataset, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    small_shards(monkeypatch, 16)
    monkeypatch.setattr(computing, "_CALL_ROWS", 16)
    monkeypatch.setattr(filling, "_AHEAD_ROWS", 16)
    rendered: list[int] = []
    real = rendering.render
    monkeypatch.setattr(rendering, "render", lambda *args: [rendered.append(1), real(*args)][1])
    threads = threading.active_count()
    writer = writer_for(tmp_path, cells, 20)
    with pytest.raises(MemoryError):
        run(writer, cells, GridMeans(fail_at))
    assert threading.active_count() == threads
    assert len(rendered) <= 16 * (fail_at + 1 + filling._BATCHES) + 2 * 16 + 16  # in hand, rendered ahead, under way
    assert writer.missing == list(range(fail_at, 20))


def test_features_that_are_no_numbers_are_refused_with_their_rows(tmp_path: Path, cells: Dataset) -> None:
    class Broken(GridMeans):
        def features(self, pixels: np.ndarray) -> list[np.ndarray]:
            (features,) = super().features(pixels)
            features[3] = np.nan
            return [features]

    with pytest.raises(CacheError, match=r"NaN or Inf .* 2 rows: 3 .*, 67 \(image \w+, view 2\)"):
        run(writer_for(tmp_path, cells, 5), cells, Broken())


def test_rows_stand_image_by_image_and_the_plain_view_has_one_name_under_every_plan(cells: Dataset) -> None:
    rows = rows_of(cells.images, [2] * len(cells.images), recipe=RECIPE)
    other = rows_of(cells.images, [2] * len(cells.images), recipe=recipe(seed=9))
    assert [(row.image_id, row.view) for row in rows] == [(i.image_id, v) for i in cells.images for v in (0, 1)]
    for one, two in zip(rows, other, strict=True):
        assert (one.row_id == two.row_id) == (one.view == 0)
    none = rows_of(cells.images, [0] * (len(cells.images) - 1) + [3], recipe=RECIPE)
    assert [row.view for row in none] == [0, 1, 2]


def reach_into(parent: Path, writer: CacheWriter) -> DonorIndex:
    reach = DonorIndex([parent], RECIPE.space, row_shape=GridMeans.feature_shapes[0], but=writer.folder)
    reach.look_for(writer.rows)
    return reach


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("other_format", FORMATS)
@pytest.mark.parametrize("finished", [True, False])
def test_rows_that_another_cache_holds_are_copied_and_only_the_others_computed(
    tmp_path: Path,
    cells: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    format_: Format,
    other_format: Format,
    finished: bool,
) -> None:
    """Another cache has all images but one, in another order, and a view less."""
    small_shards(monkeypatch, 16)
    fewer = Dataset(tuple(reversed(cells.images[1:])), cells.folder)
    other = writer_for(tmp_path / "other", fewer, 4, format_=other_format)
    assert run(other, fewer) == Counts(computed=60)
    if finished:
        with other:
            other.finish(fewer, {})
    expected = by_hand(cells, 5)

    writer = writer_for(tmp_path / "new", cells, 5, format_=format_)
    engine = GridMeans()
    counts = run(writer, cells, engine, reach_into(tmp_path / "other", writer))
    assert counts == Counts(computed=20, copied=60, sources={other.folder.name})
    assert sum(engine.batches) == 20
    assert len(engine.batches) == 1  # rows of all shards share a batch
    np.testing.assert_array_equal(writer.store.read(0, 80), expected)
    with writer:
        writer.finish(cells, {})
    alone = extracted(tmp_path / "alone", cells, 5)
    if format_ == "zarr":
        assert feature_bytes(writer.folder) == feature_bytes(alone.folder)


def test_a_damaged_shard_of_another_cache_is_not_copied(
    tmp_path: Path, cells: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch, 16)
    other = extracted(tmp_path / "other", cells, 4)  # 64 rows
    file = other.folder / "features.zarr" / "c" / "2" / "0" / "0" / "0"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    file.write_bytes(damaged)
    writer = writer_for(tmp_path / "new", cells, 5)
    counts = run(writer, cells, None, reach_into(tmp_path / "other", writer))
    assert counts == Counts(computed=16 + 16, copied=48, sources={other.name})
    np.testing.assert_array_equal(writer.store.read(0, 80), by_hand(cells, 5))


def test_a_cache_of_another_feature_space_is_no_source(tmp_path: Path, cells: Dataset) -> None:
    other = recipe("float16")
    with writer_for(tmp_path / "other", cells, 1, other) as writer:
        run(writer, cells)
        writer.finish(cells, {})
    new = writer_for(tmp_path / "new", cells, 1)
    reach = reach_into(tmp_path / "other", new)
    assert len(reach) == 0
    assert run(new, cells, None, reach) == Counts(computed=16)


@pytest.mark.parametrize("format_", FORMATS)
def test_asked_to_stop_it_finishes_the_shard_in_hand_and_gives_back_the_rest(
    tmp_path: Path, cells: Dataset, monkeypatch: pytest.MonkeyPatch, format_: Format
) -> None:
    small_shards(monkeypatch, 16)
    monkeypatch.setattr(computing, "_CALL_ROWS", 4)
    monkeypatch.setattr(filling, "_AHEAD_ROWS", 4)
    images = {image.image_id: image for image in cells.images}
    engine = GridMeans()
    with writer_for(tmp_path, cells, 5, format_=format_) as writer:
        counts = counts_of(writer, images, cells, lambda: engine, stopped=lambda: len(engine.batches) >= 6)
    assert counts.computed in (32, 48)  # the sixth batch is in the second shard; others may wait behind it
    assert counts == Counts(computed=sum(engine.batches))
    assert writer.missing == list(range(counts.computed // 16, 5))
    again = writer_for(tmp_path, cells, 5, format_=format_)
    assert run(again, cells) == Counts(computed=80 - counts.computed)
    np.testing.assert_array_equal(again.store.read(0, 80), by_hand(cells, 5))
