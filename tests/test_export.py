"""export: a run is one model in four formats, and each gives the run's probabilities in a process without featcache."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, run_command
from faults import small_disk

import featcache as fc
from featcache.backbones import import_keras
from featcache.backbones.model_file import read_config
from featcache.core.errors import (
    BackboneError,
    FeatcacheError,
    HeadError,
    MissingPackageError,
    RunError,
    UsageError,
    WeightsError,
)
from featcache.core.progress import SILENT
from featcache.deployment import _export, formats
from featcache.deployment._export import checking_pixels
from featcache.deployment.formats import FORMATS, computed_by, layer_in
from featcache.deployment.graph import _stored, graph_of
from featcache.heads.distance_head import DistanceHead, Neighbours, on_kernel
from featcache.heads.head import Head
from featcache.heads.keras_layers import probabilities_of
from featcache.heads.stack import ACTIVATIONS
from featcache.images.inputs import items_of
from featcache.images.squares import cut_and_resize
from featcache.prediction.opening import head_of, recipe_of
from featcache.synthetic.drawing import write_cells

KINDS = ("dense", "logreg", "mlp", "linear-svm", "rbf-svm", "knn")
RUNS = ("pixels", "float16", "pooled", "own", "scratch", "fine-tuned", *(f"pixels-{kind}" for kind in KINDS[1:]))
ROWS = 6
ELSEWHERE = """
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np

def by_keras(path, pixels):
    import keras
    return keras.saving.load_model(path, safe_mode=True).predict(pixels, verbose=0)

def by_savedmodel(path, pixels):
    import tensorflow as tf
    return tf.saved_model.load(path).signatures["serving_default"](pixels=tf.constant(pixels))["probabilities"].numpy()

def by_onnx(path, pixels):
    import onnxruntime
    return onnxruntime.InferenceSession(path).run(["probabilities"], {"pixels": pixels})[0]

def by_openvino(path, pixels):
    import openvino
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.compile_model(openvino.Core().read_model(path), "CPU", settings)
    return model({"pixels": pixels})["probabilities"]

asked, out = json.loads(sys.argv[1]), {}
for name, format_, path, pixels in asked:
    out[f"{name} {format_}"] = np.asarray(globals()[f"by_{format_}"](path, np.load(pixels)))
assert not any(name.startswith("featcache") for name in sys.modules)
np.savez("found.npz", **out)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> fc.Project:
    folder = tmp_path_factory.mktemp("export")
    write_cells(folder / "cells", 6, seed=2, size_px=64)
    return fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)


@pytest.fixture(scope="module")
def own(project: fc.Project) -> Path:
    """A model with what converters do not know by themselves: grouped convolutions, GELU and statistics of pixels."""
    keras = import_keras()
    drawn = [keras.initializers.GlorotUniform(seed=seed) for seed in (0, 1)]
    pixels = keras.Input((24, 24, 3))
    x = keras.layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[50.0**2] * 3)(pixels)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="gelu", kernel_initializer=drawn[0], name="stem")(x)
    x = keras.layers.Conv2D(8, 3, groups=8, activation="gelu", kernel_initializer=drawn[1], name="grouped")(x)
    path = project.folder / "own.keras"
    keras.Model(pixels, keras.layers.LayerNormalization(name="last")(x), name="own").save(path)
    return path


@pytest.fixture(scope="module")
def runs(project: fc.Project, own: Path) -> dict[str, fc.Run]:
    """A run of each kind, and of each kind of features."""
    quick: dict[str, Any] = {"epochs": 30, "progress": SILENT}
    pixels = fc.extract(project, "pixels", input_size_px=16, progress=SILENT)
    random: dict[str, Any] = {"weights": "random", "input_size_px": 32, "dtype": "float16"}
    float16 = fc.extract(project, "resnet20", **random, progress=SILENT)
    of_own = fc.extract(project, str(own), layers=("last",), progress=SILENT)
    pooled = fc.extract(project, str(own), layers=("last",), pooling="avg", progress=SILENT)
    whole: dict[str, Any] = {"recipe": "study", "epochs": 1, "batch": 8, "input_size_px": 32, "progress": SILENT}
    return {
        "pixels": fc.fit_head(pixels, hidden=(8, 4), activation="elu", **quick),
        **{f"pixels-{kind}": fc.fit_head(pixels, head=kind, progress=SILENT) for kind in KINDS[1:]},
        "float16": fc.fit_head(float16, hidden=(8,), activation="elu", **quick),
        "pooled": fc.fit_head(pooled, hidden=(8,), **quick),
        "own": fc.fit_head(of_own, hidden=(8,), **quick),
        "scratch": fc.fit_scratch(project, "resnet20", **whole),
        "fine-tuned": fc.fine_tune(
            project, "efficientnet-lite0", **{**whole, "recipe": "fine-tune", "warmup_epochs": 0}, train_blocks=1
        ),
    }


def weights_of(name: str, own: Path) -> str | None:
    return str(own) if name in ("own", "pooled") else None


@pytest.fixture(scope="module")
def exported(
    runs: dict[str, fc.Run], own: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Any]:
    """Every run in every format, from one graph of each run: to build it takes as long as to write it."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    for name, run in runs.items():
        graph = graph_of(run, weights=weights_of(name, own), offline=True)
        for format_, kind in FORMATS.items():
            out = folder / f"{name}{kind.suffix}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_export, "graph_of", lambda *_, graph=graph, **__: graph)
                made[name, format_] = run.export(
                    format=format_, out=out, weights=weights_of(name, own), offline=True, progress=SILENT
                )
    return made


@pytest.fixture(scope="module")
def images(runs: dict[str, fc.Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images for each run, as the files of arrays: cells that it has not seen, and noise."""
    folder, made = tmp_path_factory.mktemp("images"), {}
    write_cells(folder / "cells", 1, seed=9, size_px=64)
    for name, run in runs.items():
        made[name], side = folder / f"{name}.npy", recipe_of(run).space.input_size_px
        cells = [cut_and_resize(item.read()[1], None, size_px=side) for item in items_of(folder / "cells")]
        np.save(made[name], np.concatenate([cells, checking_pixels(side, 2)]))
    return made


@pytest.fixture(scope="module")
def elsewhere(exported: dict[tuple[str, str], Any], images: dict[str, Path]) -> dict[str, Any]:
    """What each exported model gives for its images, by its own runtime, in a process that does not know featcache."""
    asked = [(name, format_, str(done.path), str(images[name])) for (name, format_), done in exported.items()]
    folder = next(iter(images.values())).parent
    command = [sys.executable, "-c", ELSEWHERE, json.dumps(asked)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        return dict(found)


@pytest.mark.parametrize("name", RUNS)
def test_it_gives_the_probabilities_of_the_run_elsewhere(
    name: str, runs: dict[str, fc.Run], own: Path, images: dict[str, Path], elsewhere: dict[str, Any]
) -> None:
    predicted = runs[name].predict(np.load(images[name]), weights=weights_of(name, own), progress=SILENT)
    for format_ in FORMATS:
        np.testing.assert_allclose(elsewhere[f"{name} {format_}"], predicted.probabilities, atol=1e-4, err_msg=format_)
    assert np.ptp(predicted.probabilities, axis=0).max() > 1e-3, "all images are the same to it"


@pytest.mark.parametrize("format_", FORMATS)
def test_it_says_what_it_is(
    format_: str, exported: dict[tuple[str, str], Any], runs: dict[str, fc.Run], tmp_path: Path
) -> None:
    done, space = exported["float16", format_], recipe_of(runs["float16"]).space
    assert (done.run, done.format, done.input_size_px) == (runs["float16"].name, format_, 32)
    assert done.classes == ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
    assert 0 <= done.largest_difference <= 1e-4
    files = [done.path] if done.path.is_file() else [path for path in done.path.rglob("*") if path.is_file()]
    files += [done.path.with_suffix(".bin")] if format_ == "openvino" else []
    assert done.bytes == sum(file.stat().st_size for file in files)
    value = done.to_dict()
    assert json.loads(json.dumps(value)) == value
    _, text = FORMATS[format_].read(done.path)
    said = json.loads(text)
    assert said.pop("decoding").keys() >= {"orientation", "alpha", "grey", "depth"}
    assert said == {
        "format": 1,
        "run": done.run,
        "classes": list(done.classes),
        "input": {"size_px": 32, "resize": "stretch", "colour": "RGB", "dtype": "uint8", "layout": "NHWC"},
        "backbone": "resnet20",
        "weights": "random-0",
        "feature_space": space.digest,
    }


def test_others_find_the_description_where_the_documentation_says(exported: dict[tuple[str, str], Any]) -> None:
    import onnx

    with zipfile.ZipFile(exported["pixels", "keras"].path) as archive:
        of_keras = archive.read("featcache.json").decode()
    of_onnx = {one.key: one.value for one in onnx.load(exported["pixels", "onnx"].path).metadata_props}["featcache"]
    of_savedmodel = (exported["pixels", "savedmodel"].path / "assets.extra" / "featcache.json").read_text("utf-8")
    of_openvino = exported["pixels", "openvino"].path.read_text("utf-8")
    assert of_keras == of_onnx == of_savedmodel
    assert "<featcache value=" in of_openvino


def test_a_deployed_keras_file_is_read_as_any_model(exported: dict[tuple[str, str], Any]) -> None:
    """Its member is known: nothing else may be in a model's file."""
    config = read_config(exported["own", "keras"].path)
    assert config["config"]["name"] == "featcache"


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("pixels", "scratch", "fine-tuned")])
def test_features_are_what_the_head_takes(
    name: str, runs: dict[str, fc.Run], own: Path, images: dict[str, Path]
) -> None:
    run = runs[name]
    model = graph_of(run, weights=weights_of(name, own), with_features=True)
    found, head = computed_by(model)(np.load(images[name])), head_of(run)
    assert found["features"].shape == (ROWS, *head.row_shape)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(head.probabilities_of(found["features"]), found["probabilities"], atol=1e-5)
    stored = found["features"].astype(recipe_of(run).space.dtype).astype(np.float32)
    np.testing.assert_array_equal(stored, found["features"])


@pytest.mark.parametrize("name", ["scratch", "fine-tuned"])
def test_features_of_a_whole_network_are_its_last_map(
    name: str, runs: dict[str, fc.Run], images: dict[str, Path]
) -> None:
    model = graph_of(runs[name], with_features=True)
    found = computed_by(model)(np.load(images[name]))
    assert found["features"].shape == (ROWS, *{"scratch": (8, 8, 64), "fine-tuned": (1, 1, 1280)}[name])
    np.testing.assert_allclose(
        found["probabilities"], computed_by(graph_of(runs[name]))(np.load(images[name]))["probabilities"], atol=1e-6
    )


def test_both_outputs_are_written_by_their_names(runs: dict[str, fc.Run], tmp_path: Path) -> None:
    model = graph_of(runs["pixels"], with_features=True)
    pixels = checking_pixels(16)
    expected = computed_by(model)(pixels)
    for format_, kind in FORMATS.items():
        path = tmp_path / f"both{kind.suffix}"
        formats.write(format_, model, path=path, description="{}")
        compute, _ = kind.read(path)
        found = compute(pixels)
        assert found.keys() == {"features", "probabilities"}
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], atol=1e-5)


# Heads


def outputs_of(head: Any, X: Any) -> Any:
    keras = import_keras()
    features = keras.Input(head.row_shape)
    return keras.ops.convert_to_numpy(keras.Model(features, probabilities_of(features, head))(X))


def rows_like(n: int, shape: tuple[int, ...] = (3, 4, 5)) -> Any:
    return np.random.default_rng(n).normal(2.0, 1.0, (n, *shape)).astype(np.float32)


@pytest.mark.parametrize("output", ["softmax", "sigmoid", "one-vs-one"])
@pytest.mark.parametrize("units", [(), (7,), (7, 6)])
@pytest.mark.parametrize("classes", ["ab", "abcde"])
def test_layers_compute_what_a_head_computes(output: str, units: tuple[int, ...], classes: str) -> None:
    random, n = np.random.default_rng(len(units)), len(classes)
    sides = (60, *units, n * (n - 1) // 2 if output == "one-vs-one" else n)
    layers = [
        (random.normal(size=pair).astype("f4"), random.normal(size=pair[1]).astype("f4")) for pair in pairwise(sides)
    ]
    for activation in ACTIVATIONS:
        head = Head((3, 4, 5), 0.1, layers, 0.5, tuple(classes), activation=activation, output=output)
        np.testing.assert_allclose(outputs_of(head, rows_like(9)), head.probabilities_of(rows_like(9)), atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_layers_compute_what_neighbours_say(k: int) -> None:
    rows = rows_like(20).reshape(20, -1) + 100  # far from 0, where products lose digits
    labels = np.random.default_rng(0).integers(0, 3, 20)
    head = DistanceHead((3, 4, 5), rows, 1.7, Neighbours(labels, k, 3), ("a", "b", "c"))
    X = np.concatenate([rows_like(8) + 100, rows[:2].reshape(2, 3, 4, 5)])  # the last two are rows of the training
    found = outputs_of(head, X)
    np.testing.assert_allclose(found, head.probabilities_of(X), atol=1e-5)
    np.testing.assert_array_equal(found[-2:], np.eye(3)[labels[:2]])


@pytest.mark.parametrize("classes", ["ab", "abcd"])
def test_layers_compute_what_support_vectors_say(classes: str) -> None:
    random, pairs = np.random.default_rng(0), len(classes) * (len(classes) - 1) // 2
    rows, W = rows_like(20).reshape(20, -1), random.normal(size=(20, pairs)).astype("f4")
    decide = on_kernel(W, random.normal(size=pairs).astype("f4"), classes=tuple(classes))
    head = DistanceHead((3, 4, 5), rows, 60.0, decide, tuple(classes))
    np.testing.assert_allclose(outputs_of(head, rows_like(9)), head.probabilities_of(rows_like(9)), atol=1e-5)


def test_features_of_another_shape_are_refused() -> None:
    head = Head((4,), 1.0, [(np.ones((4, 2), "f4"), np.ones(2, "f4"))], 0.0, ("a", "b"))
    with pytest.raises(HeadError, match=r"the head takes features of \(4,\), the network gives \(5,\)"):
        probabilities_of(import_keras().Input((5,)), head)


def test_features_are_rounded_as_a_cache_rounds_them(runs: dict[str, fc.Run], tmp_path: Path) -> None:
    """Converters take out a cast to float16 and back: in their runtimes, too, digits must be lost."""
    keras, space = import_keras(), recipe_of(runs["float16"]).space
    assert space.dtype == "float16"
    edges = np.array([0, 2.0**-24, 2.0**-14, 2.0**-15, 1, 1.0009765, 1.00048828125, 65504, 6.2e-5, 3e-6], np.float32)
    random = np.exp(np.random.default_rng(0).uniform(-17, 11, 4000)).astype(np.float32)
    values = np.concatenate([edges, random, -random])
    given = keras.Input(values.shape)
    found = keras.ops.convert_to_numpy(keras.Model(given, _stored(given, space))(values[None]))[0]
    np.testing.assert_allclose(found, values.astype(np.float16).astype(np.float32), rtol=2e-7, atol=0)
    pixels = keras.Input((8, 8, 3), dtype="uint8", name="pixels")
    x = keras.layers.Rescaling(1 / 7.3, 0.123)(keras.ops.cast(pixels, "float32"))
    model = keras.Model(pixels, keras.layers.Rescaling(1.0)(_stored(x, space)))
    rows = checking_pixels(8)
    expected = (rows * np.float32(1 / 7.3) + np.float32(0.123)).astype(np.float16).astype(np.float32)
    for format_, kind in FORMATS.items():
        formats.write(format_, model, path=tmp_path / f"x{kind.suffix}", description="{}")
        compute, _ = kind.read(tmp_path / f"x{kind.suffix}")
        wrong = np.abs(compute(rows)["probabilities"] - expected) > 1e-5
        assert wrong.mean() < 1e-3, format_  # of a value between two of float16, one digit in float32 decides


# Networks that a format cannot take


def build_upsampled() -> Any:
    keras = import_keras()
    pixels = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 255)(pixels)
    x = keras.layers.UpSampling2D(interpolation="lanczos3", name="upsampled")(x)
    return keras.Model(
        pixels, keras.layers.Conv2D(2, 3, kernel_initializer=keras.initializers.RandomNormal(seed=1), name="last")(x)
    )


def build_foreign() -> Any:
    keras = import_keras()

    @keras.saving.register_keras_serializable("strangers")
    class Doubled(keras.layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return 2 * x

    pixels = keras.Input((16, 16, 3))
    x = Doubled(name="doubled")(keras.layers.Rescaling(1 / 255)(pixels))
    return keras.Model(
        pixels, keras.layers.Conv2D(2, 3, kernel_initializer=keras.initializers.RandomNormal(seed=1), name="last")(x)
    )


@pytest.mark.parametrize(
    ("build", "format_", "words"),
    [
        ("build_upsampled", "onnx", r"layer upsampled: onnx cannot take this network \(.*ScaleAndTranslate"),
        ("build_upsampled", "openvino", r"layer upsampled: openvino cannot take this network \(.*ScaleAndTranslate"),
        ("build_foreign", "keras", r"layer doubled: keras cannot take this network \(.*Doubled"),
    ],
)
def test_a_network_that_a_format_cannot_take_is_refused_by_its_layer(
    build: str, format_: str, words: str, project: fc.Project, tmp_path: Path
) -> None:
    builder = f"{__name__}:{build}"
    cache = fc.extract(project, builder, layers=("last",), engine="keras", progress=SILENT)
    run = fc.fit_head(cache, epochs=2, progress=SILENT)
    path = tmp_path / f"x{FORMATS[format_].suffix}"
    with pytest.raises(BackboneError, match=words) as caught:
        fc.export(run, format=format_, out=path, weights=builder, progress=SILENT)
    assert len(str(caught.value).splitlines()) == 1
    assert "Export it in another format: " in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    done = fc.export(run, format="savedmodel", out=tmp_path / "x", weights=builder, progress=SILENT)
    assert done.largest_difference <= 1e-4


def test_a_layer_is_found_in_the_names_of_tensors() -> None:
    model = build_upsampled()
    assert layer_in("no op [featcache_1/backbone_1/upsampled_3/resize/Lanczos: X]", model) == "upsampled"
    assert layer_in("nothing is wrong with last, and/or with upsampled", model) == ""


# What goes wrong


def test_what_is_there_is_replaced_only_if_asked(runs: dict[str, fc.Run], tmp_path: Path) -> None:
    run = runs["pixels"]
    for format_, kind in FORMATS.items():
        path = tmp_path / f"model{kind.suffix}"
        first = run.export(format=format_, out=path, progress=SILENT)
        with pytest.raises(UsageError, match=r"exists already\. Name another one with `out`, or set `again=True`"):
            run.export(format=format_, out=path, progress=SILENT)
        for part in path.rglob("*.pb"):
            part.write_bytes(b"old")
        assert replace(run.export(format=format_, out=path, again=True, progress=SILENT), bytes=first.bytes) == first
        FORMATS[format_].read(path)
    names = {"model.keras", "model.savedmodel", "model.onnx", "model.xml", "model.bin"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with pytest.raises(UsageError, match=r"model\.bin: exists already"):
        (tmp_path / "model.xml").unlink()
        run.export(format="openvino", out=tmp_path / "model.xml", progress=SILENT)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match=r"folder\.onnx: is a folder"):
        run.export(format="onnx", out=tmp_path / "folder.onnx", again=True, progress=SILENT)
    with pytest.raises(UsageError, match=r"model\.keras: is no folder"):
        run.export(format="savedmodel", out=tmp_path / "model.keras", again=True, progress=SILENT)


def test_wrong_names_and_places_are_refused(runs: dict[str, fc.Run], tmp_path: Path) -> None:
    run = runs["pixels"]
    with pytest.raises(UsageError, match=r"no format 'onx': did you mean onnx\?"):
        run.export(format="onx", progress=SILENT)
    with pytest.raises(UsageError, match=r"model\.h5: expected a name that ends with \.keras"):
        run.export(out=tmp_path / "model.h5", progress=SILENT)
    with pytest.raises(RunError, match=r"model\.keras: cannot be written: No such file or directory"):
        run.export(out=tmp_path / "missing" / "model.keras", progress=SILENT)
    with pytest.raises(RunError, match="no run of that name"):
        fc.export("nobody", project=fc.open_project(run.folder), progress=SILENT)


def test_a_network_that_is_not_there_is_asked_for(runs: dict[str, fc.Run], own: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="`weights=PATH`"):
        runs["own"].export(out=tmp_path / "x.keras", progress=SILENT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("pixels", lambda folder: (folder / "head.npz").write_bytes(b"PK"), "head.npz: cannot be read"),
        ("pixels", lambda folder: (folder / "head.npz").unlink(), "keeps no model"),
        ("pixels", lambda folder: rename(folder, "classes", ["a", "b"]), "knows the classes"),
        ("scratch", lambda folder: (folder / "model.keras").write_bytes(b"PK"), "not a readable Keras model"),
        ("scratch", lambda folder: rename(folder, "classes", ["a", "b"]), "its model has 4 classes, config.json 2"),
        ("scratch", lambda folder: resize(folder, 48), "model.keras takes 32 px, config.json 48"),
    ],
)
def test_a_damaged_run_is_refused(
    name: str, damage: Callable[[Path], Any], words: str, runs: dict[str, fc.Run], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for file in runs[name].folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    with pytest.raises(FeatcacheError, match=words):
        fc.export(folder, out=tmp_path / "x.keras", progress=SILENT)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def rename(folder: Path, key: str, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, key: value}), "utf-8")


def resize(folder: Path, side: int) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["recipe"]["space"]["input_size_px"] = side
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_full_disk_is_one_clear_error_and_keeps_what_was_there(
    format_: str, runs: dict[str, fc.Run], tmp_path: Path
) -> None:
    try:
        disk = small_disk(tmp_path / "disk", "size=64k,nr_inodes=100")
        folder = disk.__enter__()
    except OSError as error:
        pytest.skip(f"{error}: run the tests as root to have this one")
    try:
        path = folder / f"x{FORMATS[format_].suffix}"
        if FORMATS[format_].is_folder:
            path.mkdir()
        (path / "old" if path.is_dir() else path).write_bytes(b"old")
        with pytest.raises(RunError, match=f"^{path}: cannot be written: .*") as caught:
            runs["pixels-knn"].export(format=format_, out=path, again=True, progress=SILENT)
        assert len(str(caught.value).splitlines()) == 1
        assert [file.name for file in folder.iterdir()] == [path.name]
        assert (path / "old" if path.is_dir() else path).read_bytes() == b"old"
    finally:
        disk.__exit__(None, None, None)


def test_a_model_that_gives_other_probabilities_is_refused(
    runs: dict[str, fc.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that is wrong, as they have been: here one that loses the biases."""
    real = formats.frozen_graph

    def wrong(model: Any, **options: Any) -> Any:
        keras = import_keras()
        copy = keras.models.clone_model(model)
        copy.set_weights([0 * weight if weight.ndim == 1 else weight for weight in model.get_weights()])
        return real(copy, **options)

    monkeypatch.setattr(formats, "frozen_graph", wrong)
    with pytest.raises(BackboneError, match=r"as onnx, its probabilities differ by .* from the run's"):
        runs["pixels-logreg"].export(format="onnx", out=tmp_path / "x.onnx", progress=SILENT)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_named(
    runs: dict[str, fc.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec

    hidden = {"tf2onnx", "openvino", "onnxruntime"}
    with monkeypatch.context() as patch:
        patch.setattr("featcache.core.extras.find_spec", lambda name: None if name in hidden else find_spec(name))
        for format_, extra in (("onnx", "export"), ("openvino", "openvino")):
            with pytest.raises(MissingPackageError, match=rf"the format {format_} requires .*featcache\[{extra}\]"):
                runs["pixels"].export(format=format_, out=tmp_path / f"x{FORMATS[format_].suffix}", progress=SILENT)
        hidden.remove("tf2onnx")
        done = runs["pixels"].export(format="onnx", out=tmp_path / "x.onnx", progress=SILENT)
        assert done.largest_difference is None
    assert (tmp_path / "x.onnx").is_file()


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_of_keras_writes_keras(backend: str, runs: dict[str, fc.Run], tmp_path: Path) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    env = {"KERAS_BACKEND": backend}
    refused = run_command("export", str(runs["pixels"].folder), "--format", "onnx", cwd=tmp_path, env=env)
    assert "the format onnx needs Keras on TensorFlow" in refused.error
    run_command("export", str(runs["pixels"].folder), "--out", "x.keras", cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "x.keras").is_file()


# The command


def test_the_command_writes_a_model(run: Run, runs: dict[str, fc.Run], project: fc.Project, tmp_path: Path) -> None:
    name, folder = runs["pixels"].name, ("-C", str(project.folder))
    value = run("export", name, "--format", "onnx", *folder, "--json", cwd=tmp_path).value
    assert value.keys() == {"run", "format", "path", "classes", "input_size_px", "bytes", "largest_difference"}
    assert (value["run"], value["format"], value["path"]) == (name, "onnx", str(tmp_path / f"{name}.onnx"))
    said = run("export", name, "--format", "openvino", "--out", "cells.xml", *folder, cwd=tmp_path)
    assert "images of 16x16 px to 4 classes" in said.out
    assert "checked: probabilities differ by" in said.out
    refused = run("export", name, "--format", "onnx", *folder, cwd=tmp_path)
    assert f"{name}.onnx: exists already. Name another one with --out, or set --again" in refused.error
    assert run("export", name, "--format", "onnx", "--again", *folder, cwd=tmp_path).code == 0
    assert "expected a name that ends with .keras" in run("export", name, "--out", "x", *folder, cwd=tmp_path).error
