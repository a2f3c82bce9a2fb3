"""Several caches in one pass: what they share is made once, and each is what it would be alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_extract import RECIPE, SIZE_PX, GridMeans, by_hand, cells, run  # noqa: F401
from test_store_contract import small_shards

from featcache.core.recipe import Recipe
from featcache.datasets.manifest import Dataset
from featcache.extraction import cache_filler as filling, computing, rendering
from featcache.extraction.one_pass import Target, extract
from featcache.extraction.rows import rows_of
from featcache.extraction.stage_times import StageTimes
from featcache.images.pixels import Decoded
from featcache.store.writer import CacheWriter

VIEWS, ROWS = 5, 80


class TwoCuts(GridMeans):
    """Grid means at its first cut, and at its second each of them many times over, so that shards hold fewer rows."""

    feature_shapes = ((4, 4, 3), (4, 4, 300))

    def features(self, pixels: np.ndarray) -> list[np.ndarray]:
        (means,) = super().features(pixels)
        return [means, np.repeat(means, 100, axis=3)]


def cache_of(parent: Path, cells: Dataset, shape: tuple[int, ...], layer: str) -> CacheWriter:
    space = RECIPE.to_dict() | {"space": RECIPE.to_dict()["space"] | {"layer": layer}}
    how = Recipe.from_dict(space)
    return CacheWriter(
        parent, how, rows=rows_of(cells.images, [VIEWS] * len(cells.images), recipe=how), row_shape=shape
    )


def fill(targets: list[Target], cells: Dataset, **more: Any) -> Any:
    return extract(targets, cells, **more)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each view was rendered and each file decoded."""
    counts: Counter[str] = Counter()
    render, decode = rendering.render, rendering.read_picture

    def rendered(plain: np.ndarray, how: Any) -> np.ndarray:
        counts["rendered"] += 1
        return render(plain, how)

    def decoded(data: bytes, white: int) -> Decoded:
        counts["decoded"] += 1
        return decode(data, white)

    monkeypatch.setattr(rendering, "render", rendered)
    monkeypatch.setattr(rendering, "read_picture", decoded)
    return counts


def test_networks_share_files_and_views(
    tmp_path: Path,
    cells: Dataset,
    made: Counter[str],
) -> None:
    """Also the boxes of a file: it is decoded once for all of them."""
    writers = [cache_of(tmp_path, cells, (4, 4, 3), layer) for layer in ("a", "b", "c")]
    engines = [GridMeans() for _ in writers]
    done = fill([Target(writer, lambda e=engine: e) for writer, engine in zip(writers, engines, strict=True)], cells)
    assert [counts.computed for counts in done.counts] == [ROWS] * 3
    assert made == {"rendered": ROWS, "decoded": len({image.path for image in cells.images})}
    for writer in writers:
        np.testing.assert_array_equal(writer.store.read(0, ROWS), by_hand(cells, VIEWS))


@pytest.mark.parametrize("call_rows", [1, 7, 64])
@pytest.mark.parametrize("shard_rows", [16, 48])
def test_cuts_of_one_network_are_computed_once(
    tmp_path: Path,
    cells: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    call_rows: int,
    shard_rows: int,
) -> None:
    small_shards(monkeypatch, shard_rows)
    monkeypatch.setattr(computing, "_CALL_ROWS", call_rows)
    engine = TwoCuts()
    first, second = (cache_of(tmp_path, cells, shape, str(n)) for n, shape in enumerate(engine.feature_shapes))
    open_engine = lambda: engine  # noqa: E731 - the same function says that it is the same network
    done = fill([Target(first, open_engine), Target(second, open_engine, 1)], cells)
    assert [counts.computed for counts in done.counts] == [ROWS, ROWS]
    assert sum(engine.batches) == ROWS
    expected = by_hand(cells, VIEWS)
    np.testing.assert_array_equal(first.store.read(0, ROWS), expected)
    np.testing.assert_array_equal(second.store.read(0, ROWS), np.repeat(expected, 100, axis=3))


def test_rows_that_no_memory_is_left_for_are_computed_again(
    tmp_path: Path,
    cells: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(computing, "_WAITING_BYTES", 3 * 4 * 4 * 300 * 4)
    monkeypatch.setattr(computing, "_CALL_ROWS", 8)
    engine = TwoCuts()
    first, second = (cache_of(tmp_path, cells, shape, str(n)) for n, shape in enumerate(engine.feature_shapes))
    open_engine = lambda: engine  # noqa: E731
    fill([Target(first, open_engine), Target(second, open_engine, 1)], cells)
    assert ROWS < sum(engine.batches) <= 2 * ROWS
    np.testing.assert_array_equal(second.store.read(0, ROWS), np.repeat(by_hand(cells, VIEWS), 100, axis=3))


def test_a_cache_that_is_begun_computes_what_it_lacks_beside_one_that_is_not(
    tmp_path: Path,
    cells: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_shards(monkeypatch, 16)
    engine = TwoCuts()
    first, second = (cache_of(tmp_path, cells, shape, str(n)) for n, shape in enumerate(engine.feature_shapes))
    expected = by_hand(cells, VIEWS)
    for shard in (0, 3):
        start, stop = first.store.layout.span(shard)
        first.write(shard, expected[start:stop])
    open_engine = lambda: engine  # noqa: E731
    done = fill([Target(first, open_engine), Target(second, open_engine, 1)], cells)
    assert [counts.computed for counts in done.counts] == [48, ROWS]
    assert sum(engine.batches) == ROWS
    np.testing.assert_array_equal(first.store.read(0, ROWS), expected)


def test_a_stop_leaves_every_cache_with_whole_shards(
    tmp_path: Path,
    cells: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_shards(monkeypatch, 16)
    monkeypatch.setattr(computing, "_CALL_ROWS", 4)
    monkeypatch.setattr(filling, "_AHEAD_ROWS", 4)
    engine = TwoCuts()
    first, second = (cache_of(tmp_path, cells, shape, str(n)) for n, shape in enumerate(engine.feature_shapes))
    open_engine = lambda: engine  # noqa: E731
    with first, second:  # then what was claimed and not begun is given back
        targets = [Target(first, open_engine), Target(second, open_engine, 1)]
        done = fill(targets, cells, stopped=lambda: len(engine.batches) >= 6)
    for writer, counts in zip((first, second), done.counts, strict=True):
        assert counts.computed < ROWS
        assert counts.computed % 16 == 0
        assert len(writer.missing) == 5 - counts.computed // 16
    assert max(counts.computed for counts in done.counts) >= 16
    again = [cache_of(tmp_path, cells, shape, str(n)) for n, shape in enumerate(engine.feature_shapes)]
    fill([Target(writer, open_engine, cut) for cut, writer in enumerate(again)], cells)
    np.testing.assert_array_equal(again[1].store.read(0, ROWS), np.repeat(by_hand(cells, VIEWS), 100, axis=3))


def test_on_the_whole_the_stages_are_measured(tmp_path: Path, cells: Dataset) -> None:
    done = fill([Target(cache_of(tmp_path, cells, (4, 4, 3), "a"), GridMeans)], cells)
    shares = done.shares
    assert all(getattr(shares, stage) > 0 for stage in ("open", "decode", "render", "compute", "write"))


@pytest.mark.parametrize(
    ("shares", "bottleneck"),
    [
        (StageTimes(decode=4, render=2, compute=6, write=1), "compute"),
        (StageTimes(decode=18, render=2, compute=4, write=1), "decode"),
        (StageTimes(decode=2, render=18, compute=4, write=1), "render"),
        (StageTimes(decode=2, render=2, compute=3, write=8), "write"),
        (StageTimes(open=8, compute=1), "open"),
    ],
)
def test_the_bottleneck_is_what_the_others_wait_for(shares: StageTimes, bottleneck: str) -> None:
    assert shares.bottleneck(seconds=10, cores=2) == bottleneck


def test_pixels_that_the_engine_gets_are_of_its_size(tmp_path: Path, cells: Dataset) -> None:
    """Two sizes in one pass: views are remembered by size."""

    class Sizes(GridMeans):
        feature_shapes = ((1,),)

        def features(self, pixels: np.ndarray) -> list[np.ndarray]:
            return [np.full((len(pixels), 1), pixels.shape[1], np.float32)]

    small = CacheWriter(
        tmp_path, RECIPE, rows=rows_of(cells.images, [2] * len(cells.images), recipe=RECIPE), row_shape=(1,)
    )
    value = RECIPE.to_dict()
    larger = Recipe.from_dict(value | {"space": value["space"] | {"input_size_px": 2 * SIZE_PX}})
    large = CacheWriter(
        tmp_path, larger, rows=rows_of(cells.images, [2] * len(cells.images), recipe=larger), row_shape=(1,)
    )
    fill([Target(small, Sizes), Target(large, lambda: Sizes())], cells)
    assert set(small.store.read(0, 32).ravel()) == {SIZE_PX}
    assert set(large.store.read(0, 32).ravel()) == {2 * SIZE_PX}
