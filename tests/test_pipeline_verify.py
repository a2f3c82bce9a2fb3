"""verify and recompute: what a cache holds is what its images and its network give, or it is said."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import contents, run_command
from test_store_hostile import put, renamed, reseal

from featcache.backbones.network import Cut
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import CacheError, CacheNotFoundError, DatasetError, WeightsError
from featcache.core.project import Project, find_project
from featcache.core.recipe import FeatureSpace, WeightsSource, row_id
from featcache.core.settings import settings_of
from featcache.extraction import _recompute as verify_module, opening
from featcache.extraction._extract import Extracted, extract
from featcache.extraction._recompute import recompute, verify_cache
from featcache.extraction.options import ExtractOptions
from featcache.store.cache import Cache, open_cache
from featcache.store.tables import rows_in
from featcache.synthetic.drawing import write_cells

SIZE_PX = 32
ROWS = 16 * 3 + 8
"""Of 24 images, 16 of them for training, three views each."""
ALL = [
    (format_, dtype, pooling)
    for format_ in ("zarr", "hdf5")
    for dtype in ("float32", "float16")
    for pooling in ("none", "avg")
]


class Cheap:
    """Means of squares, times a weight. `computed` counts rows; `change` may tamper with features."""

    name = why = "cheap"
    images_per_s = None
    batch_rows = calls_at_once = 1
    computed = 0

    def __init__(self, pooling: str = "none", weight: float = 1.0) -> None:
        self.feature_shapes: list[tuple[int, ...]] = [(4, 4, 3) if pooling == "none" else (3,)]
        self.weight = weight

    def features(self, pixels: np.ndarray) -> list[np.ndarray]:
        Cheap.computed += len(pixels)
        squares = pixels.reshape(len(pixels), 4, SIZE_PX // 4, 4, SIZE_PX // 4, 3).mean(axis=(2, 4)) * self.weight
        features = squares if len(self.feature_shapes[0]) == 3 else squares.mean(axis=(1, 2))
        return [Cheap.change(features.astype(np.float32))]

    @staticmethod
    def change(features: np.ndarray) -> np.ndarray:
        return features


def load_network(spec: NetworkSpec) -> tuple[Cut, Cheap]:
    """A network that differs from others in one weight, which a file of weights holds."""
    if spec.weights in ("imagenet", "random"):
        seed = spec.weights_seed
        weight, label = (1.0, "imagenet") if spec.weights == "imagenet" else (2.0 + seed, f"random-{seed}")
    elif Path(spec.weights).is_file():
        weight, label = float(Path(spec.weights).read_text()), Path(spec.weights).name
    else:
        raise WeightsError(f"{spec.model}: there is no weights file {spec.weights}")
    engine = Cheap(spec.pooling, weight)
    digest = hashlib.sha256(str(weight).encode()).hexdigest()
    space = FeatureSpace(spec.model, "last", SIZE_PX, "none", spec.pooling, digest)
    return Cut(space, WeightsSource.read(label), engine.feature_shapes[0]), engine


def parted(asked: Mapping[str, Any]) -> tuple[NetworkSpec, ExtractOptions]:
    """What is asked of the cheap network, and of its extraction."""
    network = {name: value for name, value in asked.items() if name in settings_of(NetworkSpec)}
    return NetworkSpec("tiny", **network), ExtractOptions(
        **{name: value for name, value in asked.items() if name not in network}
    )


def identify(_: Path, spec: NetworkSpec) -> tuple[tuple[Cut, ...], tuple[Cut, Cheap]]:
    """As `featcache.backbones.remembered.identify`."""
    loaded = load_network(spec)
    return (loaded[0],), loaded


@dataclass(frozen=True)
class Small:
    """A project of 24 cells and a cheap network."""

    folder: Path

    @property
    def project(self) -> Project:
        return find_project(self.folder)

    def extract(self, **options: Any) -> Extracted:
        network, how = parted(options)
        (done,) = extract(self.project, [network], options=how)
        return done

    def cache(self, format_: str = "zarr", dtype: str = "float32", **options: Any) -> Cache:
        return open_cache(self.extract(storage={"format": format_, "dtype": dtype}, **options).path)

    def lines(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "dataset.csv", dtype=str)

    def edit(self, frame: pd.DataFrame) -> None:
        frame.to_csv(self.folder / "dataset.csv", index=False)

    def computed(self) -> int:
        """Rows computed since the last call."""
        rows, Cheap.computed = Cheap.computed, 0
        return rows


def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheap network for every backbone, and small shards."""
    monkeypatch.setattr(opening, "identify", identify)
    monkeypatch.setattr(opening, "open_network", load_network)
    monkeypatch.setattr(opening, "open_engine", lambda loaded, *_, **__: loaded[1])
    monkeypatch.setattr("featcache.store.layout._MAX_ROWS_PER_SHARD", 16)
    monkeypatch.setattr(Cheap, "computed", 0)


def begun(quick: Path) -> Path:
    """The images and the list of them, made once."""
    folder = quick / "begun"
    if not folder.is_dir():
        write_cells(folder / "images", 6, size_px=SIZE_PX)
        run_command("init", "images", "--split-counts", "4/1/1", "--views", "3", cwd=folder, check=True)
    return folder


@pytest.fixture
def small(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    prepared(monkeypatch)
    folder = quick / f"small-{tmp_path.parent.name}-{tmp_path.name}"
    shutil.copytree(begun(quick), folder)
    yield Small(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize(("format_", "dtype", "pooling"), ALL)
def test_sound_caches_are_sound_and_their_rows_are_computed_again_alike(
    small: Small, format_: str, dtype: str, pooling: str
) -> None:
    cache = small.cache(format_, dtype, pooling=pooling)
    assert small.computed() == ROWS
    before = contents(small.folder)
    seen: list[int] = []
    found = verify_cache(cache.folder)
    assert (found.sound, found.rows, found.problems, found.remarks, found.damaged_shards) == (True, ROWS, (), (), ())
    assert found.bytes == cache.bytes()
    assert found.files == len(cache.manifest.files) + 1
    verify_module.verify(cache.folder, seen.append)
    assert sum(seen) == found.bytes
    again = recompute(small.project, cache.folder, n_rows=1000, seed=0)
    assert (again.rows, again.deviating) == (tuple(range(ROWS)), ())
    assert 0 <= again.largest_deviation < 1
    assert small.computed() == ROWS
    some = recompute(small.project, cache.folder, n_rows=7, seed=3)
    assert len(set(some.rows)) == 7
    assert some == recompute(small.project, cache.folder, n_rows=7, seed=3)
    assert some.rows != recompute(small.project, cache.folder, n_rows=7, seed=4).rows
    assert contents(small.folder) == before


@pytest.mark.parametrize(("format_", "dtype", "pooling"), ALL)
def test_a_value_that_is_not_of_its_image_is_found_though_every_digest_fits(
    small: Small, format_: str, dtype: str, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampered(features: np.ndarray) -> np.ndarray:
        features[-1].flat[1] *= 1.02  # the last row of a batch, of which there is one
        return features

    with monkeypatch.context() as patch:
        patch.setattr(Cheap, "change", staticmethod(tampered))
        cache = small.cache(format_, dtype, pooling=pooling)
    assert verify_cache(cache.folder).sound
    again = recompute(small.project, cache.folder, n_rows=ROWS)
    assert again.deviating == (ROWS - 1,)
    assert again.largest_deviation > 1


def test_the_tolerance_of_the_manifest_is_the_border(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small.cache()
    tolerance = cache.manifest.tolerance
    most = tolerance.relative + tolerance.absolute  # of the largest value of a row
    for share, deviates in ((0.9, False), (1.1, True)):

        def off(features: np.ndarray, by: float = 1 + share * most) -> np.ndarray:
            flat = features.reshape(len(features), -1)
            flat[np.arange(len(flat)), flat.argmax(axis=1)] *= by
            return features

        monkeypatch.setattr(Cheap, "change", staticmethod(off))
        again = recompute(small.project, cache.folder, n_rows=9)
        assert bool(again.deviating) == deviates
        assert again.largest_deviation == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_are_what_they_are(small: Small, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(features: np.ndarray) -> np.ndarray:
        features[..., 0] = value
        return features

    with monkeypatch.context() as patch:
        patch.setattr(Cheap, "change", staticmethod(strange))
        cache = small.cache(allow_nonfinite=True)
        assert recompute(small.project, cache.folder, n_rows=5).deviating == ()
    assert verify_cache(cache.folder).remarks == (f"{ROWS} rows hold NaN or Inf",)
    again = recompute(small.project, cache.folder, n_rows=5)
    assert again.deviating == again.rows


def test_images_that_are_not_at_hand(small: Small) -> None:
    cache = small.cache()
    paths = small.lines()["path"]
    for path in paths[::2]:
        (small.folder / "images" / path).unlink()
    held = {row["image_id"] for row in small.lines().iloc[1::2].to_dict("records")}
    numbers = [number for number, row in enumerate(rows_in(cache.views)) if row.image_id in held]
    assert recompute(small.project, cache.folder, n_rows=1000).rows == tuple(numbers)
    for path in paths[1::2]:
        (small.folder / "images" / path).write_bytes(b"x")
    with pytest.raises(DatasetError, match="no usable image"):
        recompute(small.project, cache.folder, n_rows=3)
    shutil.rmtree(small.folder / "images")
    write_cells(small.folder / "images", 6, size_px=SIZE_PX, seed=1)
    with pytest.raises(DatasetError, match=r"dataset\.csv: lists none of the images of tiny-"):
        recompute(small.project, cache.folder, n_rows=3)
    assert verify_cache(cache.folder).sound


def test_only_the_network_that_made_it_can_judge_a_cache(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small.cache(weights="random", weights_seed=5)
    assert recompute(small.project, cache.folder, n_rows=3).deviating == ()
    with pytest.raises(WeightsError, match=r"not the network of the cache: weights_digest .* here, .* there"):
        recompute(small.project, cache.folder, n_rows=3, weights="imagenet")
    stored = Cut.stored
    with monkeypatch.context() as patch:
        patch.setattr(Cut, "stored", lambda *args, **options: replace(stored(*args, **options), rendering=2))
        with pytest.raises(WeightsError, match="rendering 2 here, 1 there"):
            recompute(small.project, cache.folder, n_rows=3)


def test_a_cache_of_a_weights_file_wants_it_named(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.folder)
    for name, text in (("own.h5", "3.5"), ("other.h5", "4.5"), ("again.h5", "3.5")):
        (small.folder / name).write_text(text)
    cache = small.cache(weights="own.h5")
    with pytest.raises(
        WeightsError,
        match=r"made with the weights file own\.h5 \(digest \w+\.\.\)\. Say where it is with `weights=PATH`",
    ):
        recompute(small.project, cache.folder, n_rows=3)
    for name in ("own.h5", "again.h5"):
        assert recompute(small.project, cache.folder, n_rows=3, weights=name).deviating == ()
    with pytest.raises(WeightsError, match="not the network of the cache"):
        recompute(small.project, cache.folder, n_rows=3, weights="other.h5")
    with pytest.raises(WeightsError, match="no weights file gone"):
        recompute(small.project, cache.folder, n_rows=3, weights="gone.h5")


def test_a_provenance_of_nonsense_decides_nothing(small: Small) -> None:
    cache = small.cache()
    for weights in ("random-" + "9" * 5000, {"a": 1}, 7, "../../x", ""):
        reseal(cache.folder, lambda value, weights=weights: value["provenance"].update(weights=weights))
        with pytest.raises(WeightsError):
            recompute(small.project, cache.folder, n_rows=3)
        assert recompute(small.project, cache.folder, n_rows=3, weights="imagenet").deviating == ()


@pytest.mark.parametrize("name", ["rotation_deg", "fill_mode", "zoom"])
def test_views_that_the_recipe_does_not_give_are_not_rendered(small: Small, name: str) -> None:
    """Row ids that fit parameters which nobody drew: only whoever draws them again can tell."""
    cache = small.cache()
    frame, space = cache.views, cache.recipe.space
    frame[name] = {"rotation_deg": 1e300, "fill_mode": "mirror", "zoom": 2}[name]
    frame["row_id"] = [row_id(space, row.image_id, parameters=row.parameters) for row in rows_in(frame)]
    put(cache.folder, "rows.parquet", frame)
    folder = renamed(cache.folder)
    assert verify_cache(folder).sound
    with pytest.raises(CacheError, match=r"rows\.parquet: view . of .* is not what the recipe makes of it"):
        recompute(small.project, folder, n_rows=9)


def test_what_was_never_finished_is_not_verified(small: Small) -> None:
    cache = small.cache()
    manifest = cache.folder / "manifest.json"
    text = manifest.read_text()
    manifest.unlink()
    for act in (verify_cache, lambda folder: recompute(small.project, folder, n_rows=1)):
        with pytest.raises(CacheNotFoundError, match="it was never finished"):
            act(cache.folder)
        with pytest.raises(CacheNotFoundError, match="there is no such cache"):
            act(cache.folder / "gone")
    manifest.write_text(json.dumps({**json.loads(text), "rows": 1}))
    found = verify_cache(cache.folder)
    assert not found.sound
    assert [problem.file for problem in found.problems] == ["manifest.json"]


def test_files_that_do_not_belong_there_are_a_remark(small: Small) -> None:
    cache = small.cache()
    for number in range(9):
        (cache.folder / f"{number}.txt").touch()
    found = verify_cache(cache.folder)
    assert found.sound
    assert found.remarks == ("not part of the cache: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 4 more",)
