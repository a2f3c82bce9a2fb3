"""extract --model pixels: a cache of the rendered views themselves, uint8, without a network and without TensorFlow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from conftest import Run, contents, run_command
from hypothesis import given, settings, strategies as st
from test_store_contract import dataset, fill, make_cache, recipe, rows_for, small_shards

from featcache.backbones.engines.choose import ChosenEngine
from featcache.backbones.network import load_network, specs_of
from featcache.backbones.pixels import NO_WEIGHTS_DIGEST, PixelsEngine, cut_of
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import BackboneError, CacheError, UsageError
from featcache.core.files import sha256_file
from featcache.core.project import find_project
from featcache.core.recipe import cache_digest, cache_name, digest
from featcache.datasets.current import current_dataset
from featcache.extraction._extract import extract
from featcache.extraction._recompute import recompute, verify_cache
from featcache.extraction._repair import repair
from featcache.extraction.options import ExtractOptions
from featcache.extraction.rendering import render_views
from featcache.images.decode import decode
from featcache.images.views import ViewParameters
from featcache.remotes.packs import PackWriter
from featcache.remotes.urls import open_remote
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import find, latest
from featcache.sharing.options import Part
from featcache.sharing.receive import pull
from featcache.sharing.send import push
from featcache.sharing.subset import pull_part
from featcache.store._convert import convert
from featcache.store.cache import Cache, open_cache
from featcache.store.tables import rows_in, write_rows
from featcache.store.writer import CacheWriter
from featcache.synthetic.drawing import write_cells

EXTRACT = ("extract", "--model", "pixels", "--input-size", "32")
PX, ROWS = 32, 40


@pytest.fixture(scope="module")
def begun(quick: Path) -> Path:
    """16 cells, four a class, of which half have four views; not to be changed."""
    folder = quick / "pixels"
    write_cells(folder / "images", 4, size_px=48)
    run_command("init", "images", "--split-counts", "2/1/1", "--views", "4", cwd=folder, check=True)
    return folder


@pytest.fixture
def project(begun: Path, place: Path) -> Path:
    """A copy of the test's own."""
    return shutil.copytree(begun, place / "project")


@pytest.fixture(params=["zarr", "hdf5"])
def made(project: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache of pixels in several shards."""
    small_shards(monkeypatch, 16)
    return open_cache(extracted(project, format=request.param).path)


def extracted(project: Path, size_px: int = PX, **storage: Any) -> Any:
    network = NetworkSpec("pixels", input_size_px=size_px)
    (done,) = extract(find_project(project), [network], options=ExtractOptions(storage=storage))
    return done


def test_padded_views_make_a_cache_of_their_own(project: Path) -> None:
    file = project / "featcache.toml"
    stretched = extracted(project).cache
    for resize in ("pad", "crop"):
        run_command("init", "--resize", resize, cwd=project, check=True)
        assert f'resize = "{resize}"' in file.read_text()
        cache = open_cache(extracted(project).path)
        assert cache.recipe.space.resize == resize
        assert cache.name != stretched
        np.testing.assert_array_equal(cache.features[:], by_hand(project, cache))
        assert verify_cache(cache.folder).sound
    run_command("init", "--resize", "stretch", cwd=project, check=True)
    assert extracted(project).cache == stretched


def by_hand(project: Path, cache: Cache) -> np.ndarray:
    """Every row of a cache, rendered one by one."""
    found, _ = current_dataset(find_project(project))
    images = {image.image_id: image for image in found.images}
    names = [name for name in ViewParameters.__dataclass_fields__ if name in cache.views]
    rendered = []
    for line in cache.views.to_dict("records"):
        parameters = ViewParameters(**{name: line[name] for name in names})
        rendered += render_views(images[line["image_id"]], found, space=cache.recipe.space, parameters=[parameters])
    return np.stack(rendered)


def pixels_of(seed: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 6, 6, 3), dtype=np.uint8)


# What is in it


def test_rows_are_the_rendered_views_to_the_bit(project: Path, made: Cache) -> None:
    assert made.features.shape == (ROWS, PX, PX, 3)
    assert made.features.dtype == np.uint8
    np.testing.assert_array_equal(made.features[:], by_hand(project, made))
    assert extracted(project, format=made.manifest.array.format).computed == 0


def test_the_plain_view_is_the_image_and_the_recipe_says_what_it_is(project: Path, place: Path) -> None:
    cache = open_cache(extracted(project, 48).path)
    line = cache.rows[cache.rows["view"] == 0].iloc[0]
    folder = find_project(project).images_folder
    np.testing.assert_array_equal(cache.features[int(line["row"])], decode((folder / line["path"]).read_bytes()))
    space = cache.recipe.space
    assert (space.backbone, space.layer, space.preprocessing, space.pooling) == ("pixels", "input", "none", "none")
    assert (space.dtype, space.input_size_px, space.precision) == ("uint8", 48, "float32")
    assert space.weights_digest == NO_WEIGHTS_DIGEST
    assert NO_WEIGHTS_DIGEST == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert cache.manifest.tolerance.relative == cache.manifest.tolerance.absolute == 0
    assert cache.manifest.provenance["engine"] == "pixels"


def test_the_dtype_of_the_project_does_not_matter(project: Path) -> None:
    first = extracted(project)
    toml = project / "featcache.toml"
    text = toml.read_text()
    assert 'dtype = "auto"' in text
    toml.write_text(text.replace('dtype = "auto"', 'dtype = "float16"'))
    again = extracted(project)
    assert (again.cache, again.dtype, again.computed) == (first.cache, "uint8", 0)


def test_other_programs_read_it(made: Cache) -> None:
    """zarr-python and h5py alone; nothing is turned, so that rows lie in memory as they are used."""
    if made.manifest.array.format == "hdf5":
        with h5py.File(made.folder / "features.h5") as file:
            found = file["features"][:]
    else:
        array = zarr.open_array(made.folder / "features.zarr", mode="r")
        (sharding,) = array.metadata.to_dict()["codecs"]
        assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "zstd"]
        found = array[:]
    np.testing.assert_array_equal(found, made.features[:])


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump (hdf5-tools) is not installed")
def test_h5dump_reads_it(project: Path) -> None:
    cache = open_cache(extracted(project, format="hdf5").path)
    args = ("h5dump", "-d", "features", "-y", "-w", "0", cache.folder / "features.h5")
    said = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    assert "H5T_STD_U8LE" in said
    numbers = said.partition("DATA {")[2].partition("}")[0].replace(",", " ").split()
    np.testing.assert_array_equal(np.array(numbers, np.uint8).reshape(cache.features.shape), cache.features[:])


def test_it_is_read_in_every_way(made: Cache) -> None:
    """Whole, in pieces, and as floats from 0 to 255 where other libraries take it."""
    pixels = made.features[:]
    for reader in ("zarr", "tensorstore") if made.manifest.array.format == "zarr" else ("auto",):
        again = open_cache(made.folder, reader=reader)
        np.testing.assert_array_equal(np.asarray(again.features), pixels)
        np.testing.assert_array_equal(again.features[[39, 3, 17, 3]], pixels[[39, 3, 17, 3]])
        np.testing.assert_array_equal(again.features[5:38, 2, ..., 1], pixels[5:38, 2, ..., 1])
        batches = again.batches("train", 5, seed=1)
        found = np.concatenate([X for X, _ in batches])
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels[batches.order])
    X, _, _ = made.to_sklearn()
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, pixels.reshape(ROWS, -1))


def test_tensorflow_takes_floats(project: Path) -> None:
    cache = open_cache(extracted(project).path)
    batches = cache.batches("train", 8, seed=2)
    found = np.concatenate([X for X, _ in cache.to_tf("train", 8, seed=2).as_numpy_iterator()])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.concatenate([X for X, _ in batches]))


def test_one_pass_with_a_network_renders_the_same_views(project: Path, run: Run) -> None:
    alone = open_cache(extracted(project).path).features[:]
    shutil.rmtree(project / "cache")
    models = ("--model", "pixels", "--model", "efficientnet-lite0", "--engine", "keras", "--batch", "8")
    pixels, network = run("extract", *models, "--input-size", "32", "--json", cwd=project).value
    assert (pixels["computed"], network["computed"]) == (ROWS, ROWS)
    assert (pixels["shape"], pixels["dtype"], pixels["weights"]) == ([ROWS, PX, PX, 3], "uint8", "")
    np.testing.assert_array_equal(open_cache(pixels["path"]).features[:], alone)
    assert open_cache(network["path"]).features.dtype == np.float32
    taken = run("fit-head", "--epochs", "1", "--hidden", "4", cwd=project)
    assert taken.code == 0, taken.err
    assert "head-efficientnet-lite0" in taken.out, "a head is trained on features, not on the newer pixels"


# Verify, mend, copy, convert


def test_rows_are_rendered_again_and_have_to_be_the_same_bits(project: Path, made: Cache, place: Path) -> None:
    again = recompute(find_project(project), made.folder, n_rows=ROWS)
    assert (len(again.rows), again.deviating, again.largest_deviation) == (ROWS, (), 0.0)
    changed = made.features[:]
    changed[7, 3, 4, 1] ^= 1
    shape, format_ = made.features.shape[1:], made.manifest.array.format
    with CacheWriter(
        place / "forged", made.recipe, rows=rows_in(made.views), row_shape=shape, format_=format_
    ) as writer:
        fill(writer, changed)
        writer.finish(current_dataset(find_project(project))[0], made.manifest.provenance)
    assert verify_cache(writer.folder).sound
    assert recompute(find_project(project), writer.folder, n_rows=ROWS).deviating == (7,)


def test_damage_is_found_and_mended(project: Path, made: Cache) -> None:
    before, sound = contents(made.folder), made.features[:]
    largest = max(before, key=lambda name: len(before[name]))
    spoilt = bytearray(before[largest])
    spoilt[len(spoilt) // 2] ^= 4
    (made.folder / largest).write_bytes(spoilt)
    found = verify_cache(made.folder)
    assert [problem.file for problem in found.problems] == [largest]
    assert 0 < repair(find_project(project), found) <= ROWS
    assert verify_cache(made.folder).sound
    np.testing.assert_array_equal(open_cache(made.folder).features[:], sound)


def test_a_recipe_that_is_lost_follows_from_the_project(project: Path) -> None:
    done = extracted(project, 224)
    (done.path / "recipe.json").write_bytes(b"{}")
    assert repair(find_project(project), verify_cache(done.path)) == 0
    assert verify_cache(done.path).sound


def test_more_views_copy_those_that_are_there(project: Path, made: Cache) -> None:
    options = ExtractOptions(views={"train": 5}, storage={"format": "zarr"})
    (done,) = extract(find_project(project), [NetworkSpec("pixels", input_size_px=PX)], options=options)
    assert (done.rows, done.copied, done.computed) == (ROWS + 8, ROWS, 8)
    cache = open_cache(done.path)
    np.testing.assert_array_equal(cache.features[:], by_hand(project, cache))


def test_a_copy_in_another_format_and_never_in_another_dtype(made: Cache) -> None:
    other = {"zarr": "hdf5", "hdf5": "zarr"}[made.manifest.array.format]
    done = convert(made, other)
    assert done.cache.features.dtype == np.uint8
    np.testing.assert_array_equal(done.cache.features[:], made.features[:])
    assert convert(done.cache, made.manifest.array.format).reused
    for dtype in ("float32", "float16"):
        with pytest.raises(UsageError, match=f"holds pixels, which are stored as uint8.*astype.'{dtype}'"):
            convert(made, other, dtype=dtype)


def test_a_remote_gives_it_whole_and_in_parts(project: Path, made: Cache, place: Path) -> None:
    store = open_remote(f"file://{place}/remote")
    push(store, bundle_of_cache(made.folder))
    entry = latest(store, "cache", name=made.name)
    assert entry is not None
    part = pull_part(store, entry, parent=place / "part", part=Part(splits=("test",)))
    numbers = made.numbers("test")
    np.testing.assert_array_equal(open_cache(part.folder).features[:], made.features[numbers])
    for asked in (Part(dtype="float16"), Part(pooling="avg")):
        with pytest.raises(UsageError, match="holds pixels, which are stored unchanged"):
            pull_part(store, entry, parent=place / "part", part=asked)
    np.testing.assert_array_equal(
        open_cache(pull(store, entry, parent=place / "whole").folder).features[:], made.features[:]
    )
    with PackWriter(place / "pixels.zip") as pack:
        push(pack, bundle_of_cache(made.folder))
    packed = open_remote(str(place / "pixels.zip"))
    again = pull_part(packed, find(packed, ""), parent=place / "of the pack", part=Part(splits=("test",)))
    assert again.name == part.name
    np.testing.assert_array_equal(open_cache(again.folder).features[:], made.features[numbers])


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=6), st.sampled_from(["zarr", "hdf5"]))
def test_every_value_is_kept(quick: Path, values: list[int], format_: str) -> None:
    """Also 0 and 255 alone, of which floats would be looked at."""
    pixels = np.resize(np.array(values, np.uint8), (12, 2, 2, 3))
    parent = Path(tempfile.mkdtemp(dir=quick))
    np.testing.assert_array_equal(
        make_cache(parent, dataset(12), pixels, dtype="uint8", format_=format_).features[:], pixels
    )


# What is refused


def test_floats_are_no_pixels(place: Path) -> None:
    """They are not cut off to whole numbers on the way."""
    images = dataset(12)
    with CacheWriter(place, recipe("uint8"), rows=rows_for(images, 1, recipe("uint8")), row_shape=(2, 2, 3)) as writer:
        with pytest.raises(ValueError, match="expected uint8, got float32"):
            writer.write(0, np.full((12, 2, 2, 3), 1.5, np.float32))
        assert writer.missing == [0]


@pytest.mark.parametrize("format_", ["zarr", "hdf5"])
@pytest.mark.parametrize("with_recipe", [False, True], ids=["manifest", "recipe too"])
def test_features_that_a_stranger_calls_pixels(place: Path, format_: str, with_recipe: bool) -> None:
    """A manifest, or recipe, rows and manifest, that say uint8 of a float32 array."""
    honest = make_cache(place / "honest", dataset(12), pixels_of(1, 12).astype(np.float32), format_=format_)
    folder = shutil.copytree(honest.folder, place / honest.name)
    value = json.loads((folder / "manifest.json").read_bytes())
    value["array"]["dtype"] = "uint8"
    if with_recipe:
        lie = recipe("uint8")
        (folder / "recipe.json").write_text(json.dumps(lie.to_dict()))
        write_rows(folder / "rows.parquet", rows_for(dataset(12), 1, lie))
        value["digest"] = cache_digest(lie, ((row.image_id, row.view) for row in rows_for(dataset(12), 1, lie)))
        value["recipe_digest"], value["name"] = lie.digest, cache_name("tiny", value["digest"], format_=format_)
        folder = folder.rename(place / value["name"])
    for name in value["files"]:
        file = folder / name
        value["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    value["seal"] = digest({key: value[key] for key in value if key != "seal"})
    (folder / "manifest.json").write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    with pytest.raises(CacheError, match="uint8"):
        np.asarray(open_cache(folder).features)
    found = verify_cache(folder)
    assert not found.sound
    assert "uint8" in "; ".join(problem.what for problem in found.problems)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--dtype", "float16"), "--dtype"),
        (("--dtype", "float32"), "--dtype"),
        (("--weights", "random"), "--weights"),
        (("--preprocess", "caffe"), "--preprocess"),
        (("--layer", "conv", "--pooling", "avg"), "--layer, --pooling"),
        (("--precision", "bfloat16"), "--precision"),
        (("--input-size", "7"), "--input-size 7: expected 8 to 1024 px"),
        (("--input-size", "1025"), "--input-size 1025: expected 8 to 1024 px"),
    ],
)
def test_what_only_a_network_has_is_refused_in_one_message(
    project: Path, run: Run, more: tuple[str, ...], said: str
) -> None:
    before = contents(project)
    message = run(*EXTRACT, *more, cwd=project).error
    assert f"pixels: {said}" in message
    assert contents(project) == before


def test_pixels_are_no_backbone(run: Run, place: Path) -> None:
    for asked in (("models", "pixels"), ("models", "pixels", "--layers")):
        assert "'pixels' is not a network. 'featcache extract --model pixels'" in run(*asked, cwd=place).error
    with pytest.raises(BackboneError, match="is not a network"):
        load_network(NetworkSpec("pixels"))
    with pytest.raises(BackboneError, match="did you mean pixels"):
        specs_of("pixel")
    listed = run("models", cwd=place).out.splitlines()
    assert listed[-1].startswith("also: --model pixels")
    assert all(item["name"] != "pixels" for item in run("models", "--json", cwd=place).value)


def test_the_engine_hands_through_what_fits() -> None:
    engine = ChosenEngine(PixelsEngine(cut_of(NetworkSpec("pixels", input_size_px=8))))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    (found,) = engine.resized(7).features(pixels)
    np.testing.assert_array_equal(found, pixels)
    for wrong in (pixels[:, 1:], pixels.astype(np.float32), pixels[0]):
        with pytest.raises(BackboneError, match="pixels: expected"):
            engine.features(wrong)


# The command


def test_nothing_of_networks_is_loaded(project: Path) -> None:
    """An estimate, the extraction, a second one, looks at what was made: without Keras, TensorFlow and OpenVINO."""
    looks = (("verify", "--recompute", "5"), ("explain", *EXTRACT[1:]))
    commands = ((*EXTRACT, "--dry-run"), EXTRACT, EXTRACT, *looks)
    program = (
        "import json, sys\n"
        "from featcache.cli import main\n"
        "for args in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['featcache', *args]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, (args, end.code)\n"
        "print([name for name in ('keras', 'tensorflow', 'openvino') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[-1] == "[]"
    assert "122.9 KB before compression" in said[1]
    assert f"{ROWS} rows of (32, 32, 3) computed" in done.stdout
    assert f"all {ROWS} rows are cached, nothing to compute" in done.stdout
    assert "5 rows computed again agree" in done.stdout


def test_heads_are_trained_on_pixels_where_nothing_else_is_there(project: Path, run: Run) -> None:
    """A baseline on values from 0 to 255; `info` and `ls` say what it is of."""
    made = run(*EXTRACT, "--json", cwd=project).value
    for more in (("--epochs", "2", "--hidden", "4"), ("--head", "logreg")):
        value = run("fit-head", *more, "--json", cwd=project).value
        assert value["cache"] == made["cache"]
        assert 0 <= value["test"]["accuracy"] <= 1
    assert "none, sha256 e3b0c44298fc1c14.." in run("info", cwd=project).out
    (listed,) = run("ls", "--json", cwd=project).value
    assert (listed["dtype"], listed["shape"], listed["weights"]) == ("uint8", [ROWS, PX, PX, 3], "")
