"""Networks from ONNX files: what is taken of them, by which engine, and everything that is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
import onnx_models  # noqa: E402
from conftest import Run  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_models import SIDE, convolutions, saved, tokens  # noqa: E402

from featcache.backbones.doors import layers_to_cut, open_network  # noqa: E402
from featcache.backbones.engines.agreement import deviation  # noqa: E402
from featcache.backbones.engines.choose import open_engine  # noqa: E402
from featcache.backbones.onnx_network import OnnxNetwork  # noqa: E402
from featcache.backbones.preprocess import preprocess  # noqa: E402
from featcache.backbones.spec import NetworkSpec  # noqa: E402
from featcache.core.errors import BackboneError, FeatcacheError, WeightsError  # noqa: E402
from featcache.core.extras import is_installed  # noqa: E402

ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(not is_installed(name), reason=f"{name} is not installed"))
    for name in ("openvino", "onnxruntime")
]


def opened(path: str, **asked: Any) -> OnnxNetwork:
    network = open_network(NetworkSpec(path, **{"preprocessing": "torch", **asked}))
    assert isinstance(network, OnnxNetwork)
    return network


def images(n: int = 3) -> Any:
    return np.random.default_rng(5).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


def first(x: Any) -> Any:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(convolutions(), tmp_path_factory.mktemp("onnx") / "cells.onnx")


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_last_map_is_what_onnx_itself_gives(path: str, engine: str) -> None:
    network = opened(path)
    (cut,) = network.cuts
    assert (cut.space.layer, cut.feature_shape, str(cut.weights)) == ("map", (4, 4, 6), "cells.onnx")
    (expected,) = onnx_models.reference(convolutions(), ["map"], first(preprocess(images(), "torch")))
    (found,) = open_engine(network, engine, batch_rows=2).features(images())
    assert found.dtype == np.float32
    assert deviation(found, expected.transpose(0, 2, 3, 1)) < 1


@pytest.mark.parametrize("engine", ENGINES)
def test_several_layers_and_an_average(path: str, engine: str) -> None:
    network = opened(path, layers=("relu1", "logits"), pooling="avg", preprocessing="caffe")
    assert [(cut.space.layer, cut.space.pooling, cut.feature_shape) for cut in network.cuts] == [
        ("relu1", "avg", (4,)),
        ("logits", "none", (3,)),
    ]
    x = first(preprocess(images(), "caffe"))
    relu, logits = onnx_models.reference(convolutions(), ["relu1", "logits"], x)
    found = open_engine(network, engine, batch_rows=4).features(images())
    assert deviation(found[0], relu.astype(np.float64).mean(axis=(2, 3)).astype(np.float32)) < 1
    assert deviation(found[1], logits) < 1


@pytest.mark.parametrize("engine", ENGINES)
def test_channels_last(tmp_path: Path, engine: str) -> None:
    """Input and last map of a model that TensorFlow's converters write."""
    model = convolutions(shape=("n", SIDE, SIDE, 3), last=True)
    network = opened(saved(model, tmp_path / "last.onnx"))
    assert (network.cuts[0].space.layer, network.cuts[0].feature_shape) == ("turned", (4, 4, 6))
    (expected,) = onnx_models.reference(model, ["turned"], preprocess(images(), "torch"))
    assert deviation(open_engine(network, engine, batch_rows=2).features(images())[0], expected) < 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_fixed_number_of_rows(tmp_path: Path, engine: str, rows: int, path: str) -> None:
    network = opened(saved(convolutions(shape=(rows, 3, SIDE, SIDE)), tmp_path / "fixed.onnx"))
    assert network.batch == rows
    (fixed,) = open_engine(network, engine, batch_rows=3).features(images(5))
    (free,) = open_engine(opened(path), engine, batch_rows=3).features(images(5))
    assert deviation(fixed, free) < 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_that_mixes_its_rows_gets_one_at_a_time(tmp_path: Path, engine: str) -> None:
    b = onnx_models.Builder()
    x = b.add("Conv", "image", b.weight("W", 4, 3, 3, 3), to="conv")
    mean = b.add("ReduceMean", x, to="mean", axes=[0], keepdims=1)
    x = b.add("Add", x, mean, to="mixed")
    network = opened(saved(b.model(("n", 3, SIDE, SIDE), [x]), tmp_path / "mixed.onnx"), layers=("mixed",))
    assert network.batch == 1
    engine_ = open_engine(network, engine, batch_rows=4)
    (whole,), (alone,) = engine_.features(images(3)), engine_.features(images(3)[1:2])
    np.testing.assert_array_equal(whole[1:2], alone)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_made_for_one_row_that_says_any(tmp_path: Path, engine: str) -> None:
    b = onnx_models.Builder()
    x = b.add("Conv", "image", b.weight("W", 4, 3, 3, 3), to="conv")
    x = b.add("Reshape", x, b.constant("size", np.array([1, 4, 14 * 14])), to="one")
    network = opened(saved(b.model(("n", 3, SIDE, SIDE), [x]), tmp_path / "one.onnx"), layers=("one",))
    assert network.batch == 1
    assert open_engine(network, engine).features(images(3))[0].shape == (3, 4, 196)


@pytest.mark.parametrize("engine", ENGINES)
def test_features_of_a_row_do_not_depend_on_others(path: str, engine: str) -> None:
    engine_ = open_engine(opened(path, layers=("map", "logits")), engine, batch_rows=4)
    whole = engine_.features(images(7))
    for number in (0, 3, 6):
        for values, alone in zip(whole, engine_.features(images(7)[number : number + 1]), strict=True):
            np.testing.assert_array_equal(values[number : number + 1], alone)


@pytest.mark.parametrize("engine", ENGINES)
def test_pixels_as_bytes_need_no_preprocessing(tmp_path: Path, engine: str) -> None:
    model = convolutions(element=TensorProto.UINT8)
    network = opened(saved(model, tmp_path / "bytes.onnx"), preprocessing="model")
    assert network.cuts[0].space.preprocessing == "none"
    (expected,) = onnx_models.reference(model, ["map"], first(images()))
    (found,) = open_engine(network, engine, batch_rows=2).features(images())
    assert deviation(found, expected.transpose(0, 2, 3, 1)) < 1
    with pytest.raises(BackboneError, match="takes pixels as bytes"):
        opened(str(tmp_path / "bytes.onnx"))


def test_layers_are_listed_and_any_can_be_cut(path: str) -> None:
    found = {layer.name: layer.output_shape for layer in layers_to_cut(NetworkSpec(path))}
    assert found["map"] == (6, 4, 4)
    assert found["logits"] == (3,)
    assert "W1" not in found
    for name in found:
        opened(path, layers=(name,))


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("registers", [0, 4])
def test_tokens_of_a_vision_transformer(tmp_path: Path, engine: str, registers: int) -> None:
    model = tokens(registers=registers)
    path = saved(model, tmp_path / "vit.onnx")
    (raw,) = onnx_models.reference(model, ["tokens"], first(preprocess(images(), "torch")))
    patches = raw[:, 1 + registers :]
    expected = {
        ("cls", "none"): raw[:, 0],
        ("patches", "none"): patches.reshape(3, 4, 4, 8),
        ("cls+avg", "none"): np.concatenate([raw[:, 0], patches.mean(axis=1)], axis=1),
        ("all", "none"): np.concatenate([raw[:, :1], patches], axis=1),
        ("patches", "avg"): patches.mean(axis=1),
        ("patches", "max"): patches.max(axis=1),
    }
    for (asked, pooling), values in expected.items():
        network = opened(path, tokens=asked, pooling=pooling)
        space = network.cuts[0].space
        assert (space.layer, space.tokens, space.pooling) == ("tokens", asked, pooling)
        (found,) = open_engine(network, engine, batch_rows=2).features(images())
        assert found.shape[1:] == network.cuts[0].feature_shape
        assert deviation(found, values) < 1
    assert opened(path).cuts[0].space.tokens == "cls"
    assert opened(path, pooling="avg").cuts[0].space.tokens == "patches"


def test_tokens_that_cannot_be(tmp_path: Path, path: str) -> None:
    vit = saved(tokens(), tmp_path / "vit.onnx")
    with pytest.raises(BackboneError, match="would mix CLS into the avg of the patches"):
        opened(vit, tokens="all", pooling="avg")
    with pytest.raises(BackboneError, match="there are no tokens 'clss': did you mean cls"):
        opened(vit, tokens="clss")
    with pytest.raises(BackboneError, match="gives no CLS token, only 4 x 4 patches"):
        opened(vit, tokens="cls", layers=("embedded",))
    with pytest.raises(BackboneError, match="gives 8x17 an image, and 8 tokens are no 4 x 4 patches with a few before"):
        opened(vit, tokens="cls", layers=("across",))
    with pytest.raises(BackboneError, match="which of them are patches is not known, so they are not averaged"):
        opened(vit, pooling="avg", layers=("across",))
    assert opened(vit, layers=("across",)).cuts[0].feature_shape == (8, 17)
    with pytest.raises(BackboneError, match="layer map gives 6x4x4 an image: `tokens=patches` cannot be taken of it"):
        opened(path, tokens="patches")


# --- what it is called ----------------------------------------------------------------------------


def test_names_and_layout_of_weights_do_not_matter(path: str, tmp_path: Path) -> None:
    one = opened(path).cuts[0].space
    model = onnx.load(path)
    for tensor in list(model.graph.initializer):
        if tensor.name == "b1":  # a constant by a node
            model.graph.initializer.remove(tensor)
            model.graph.node.insert(0, helper.make_node("Constant", [], ["b1"], value=tensor))
    model.graph.initializer.reverse()
    model.graph.name = "renamed"
    outside = tmp_path / "outside.onnx"
    onnx.save_model(
        model,
        str(outside),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    assert (tmp_path / "weights.bin").is_file()
    network = opened(str(outside))
    assert network.is_external
    assert network.cuts[0].space == one
    other = opened(saved(convolutions(seed=1), tmp_path / "other.onnx")).cuts[0].space
    assert other.backbone == one.backbone
    assert other.weights_digest != one.weights_digest
    assert opened(saved(tokens(), tmp_path / "vit.onnx")).cuts[0].space.backbone != one.backbone


# --- refused --------------------------------------------------------------------------------------


def test_what_has_to_be_said(path: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"does not say how the network scales pixels.*torch: \(x / 255"):
        opened(path, preprocessing="model")
    with pytest.raises(BackboneError, match="input size 32 px: the network was made for 16 px"):
        opened(path, input_size_px=32)
    with pytest.raises(WeightsError, match="brings its own weights"):
        opened(path, weights="random")
    free = saved(convolutions(shape=("n", 3, "h", "w")), tmp_path / "free.onnx")
    with pytest.raises(BackboneError, match=r"takes images of any size. Set `input_size_px`"):
        opened(free)
    assert opened(free, input_size_px=32).cuts[0].feature_shape == (8, 8, 6)
    with pytest.raises(BackboneError, match="there is no layer 'mapp': did you mean map"):
        opened(path, layers=("mapp",))
    with pytest.raises(BackboneError, match="no layer 'node_map': here it is called map"):
        opened(path, layers=("node_map",))
    with pytest.raises(BackboneError, match="layer map is named twice"):
        opened(path, layers=("map", "map"))


def test_several_inputs_and_outputs(path: str, tmp_path: Path) -> None:
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, ["n", 1]))
    with pytest.raises(BackboneError, match=r"expected one input, a batch of RGB images, found 2: image, age"):
        opened(saved(model, tmp_path / "two.onnx"))
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))
    with pytest.raises(BackboneError, match=r"it has 2 outputs: logits, mean. Name one"):
        opened(saved(model, tmp_path / "outputs.onnx"))
    model.graph.output.append(helper.make_tensor_value_info("relu1", TensorProto.FLOAT, None))
    assert opened(saved(model, tmp_path / "clear.onnx")).cuts[0].space.layer == "relu1"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("n", 1, SIDE, SIDE), r"expected \(n, 3, h, w\) or \(n, h, w, 3\), found \(\?, 1, 16, 16\)"),
        (("n", 3, SIDE), r"expected \(n, 3, h, w\) or \(n, h, w, 3\), found \(\?, 3, 16\)"),
        (("n", 3, SIDE, 2 * SIDE), "expected a square image, found 16 x 32 px"),
    ],
)
def test_inputs_that_are_no_images(tmp_path: Path, shape: Any, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        opened(saved(convolutions(shape=shape), tmp_path / "odd.onnx"))


def test_an_operator_that_no_engine_has(tmp_path: Path) -> None:
    b = onnx_models.Builder()
    x = b.add("Wonder", "image", to="wonder", domain="nowhere")
    model = b.model(("n", 3, SIDE, SIDE), [x], domains=[helper.make_opsetid("nowhere", 1)])
    with pytest.raises(BackboneError, match="cannot compute it") as caught:
        opened(saved(model, tmp_path / "wonder.onnx"), layers=("wonder",))
    assert "Wonder" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "", "link.bin"])
def test_weights_outside_of_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = convolutions()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    with pytest.raises(BackboneError, match="beside the model"):
        opened(saved(model, folder / "escape.onnx"))


@pytest.mark.parametrize(("offset", "length"), [("0", "999999"), ("-8", "8"), ("99999", ""), ("x", "1")])
def test_weights_that_are_not_all_there(tmp_path: Path, offset: str, length: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    model = convolutions()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=value)
    with pytest.raises(BackboneError):
        opened(saved(model, tmp_path / "short.onnx"))


def test_damaged_files(path: str, tmp_path: Path) -> None:
    """Cut off, changed at random, or something else: one message, or a network, and never anything else."""
    whole = Path(path).read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"no model", whole[: len(whole) // 2], whole[:-1], os.urandom(500)]
    for _ in range(40):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            changed[place] = rng.integers(0, 256)
        damaged.append(bytes(changed))
    for number, content in enumerate(damaged):
        file = tmp_path / f"{number}.onnx"
        file.write_bytes(content)
        try:
            opened(str(file))
        except FeatcacheError as error:
            assert "\n" not in error.message
        else:
            assert number > 4
    with pytest.raises(BackboneError, match="there is no such model file"):
        opened(str(tmp_path / "missing.onnx"))
    with pytest.raises(BackboneError, match="its graph is empty"):
        opened(saved(onnx.ModelProto(ir_version=9), tmp_path / "empty.onnx"))


def test_weights_of_another_size_than_they_say(tmp_path: Path) -> None:
    model = convolutions()
    model.graph.initializer[0].dims[0] = 10**12
    with pytest.raises(BackboneError, match="not a readable ONNX model"):
        opened(saved(model, tmp_path / "huge.onnx"))


# --- engines --------------------------------------------------------------------------------------


def test_engines_of_other_networks(path: str) -> None:
    with pytest.raises(
        BackboneError, match=r"the engine keras does not compute such networks. Set `engine='openvino'`"
    ):
        open_engine(opened(path), "keras")


@pytest.mark.skipif(not (is_installed("openvino") and is_installed("onnxruntime")), reason="needs both engines")
def test_auto_takes_onnxruntime_where_openvino_computes_otherwise(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.backbones.engines import onnx_engines

    real = onnx_engines.scaled
    monkeypatch.setattr(onnx_engines, "scaled", lambda pixels, mode: real(pixels, "none"))
    engine = open_engine(opened(path), batch_rows=2)
    assert engine.name == "onnxruntime"
    assert "the engines openvino and onnxruntime disagree at layer map" in engine.why
    with pytest.raises(BackboneError, match="disagree at layer map"):
        open_engine(opened(path), "openvino", batch_rows=2)


def test_weights_named_by_the_graph_as_inputs_are_no_inputs(path: str, tmp_path: Path) -> None:
    """As files of before 2019 list them."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        shape = list(numpy_helper.to_array(tensor).shape)
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
    assert opened(saved(model, tmp_path / "old.onnx")).cuts[0].space == opened(path).cuts[0].space


# --- through the whole program --------------------------------------------------------------------


def test_from_extract_to_a_prediction(run: Run, path: str, tmp_path: Path) -> None:
    assert run("init", "--per-class", "4", cwd=tmp_path).code == 0
    asked = ("--model", path, "--preprocess", "torch", "--pooling", "avg", "--views", "1", "--json")
    made = json.loads(run("extract", *asked, cwd=tmp_path).out)
    assert (made["shape"], made["weights"]) == ([made["rows"], 6], "cells.onnx")
    assert json.loads(run("extract", *asked, cwd=tmp_path).out)["computed"] == 0
    trained = json.loads(run("fit-head", "--epochs", "2", "--batch", "4", "--json", cwd=tmp_path).out)
    image = next(one for one in sorted((tmp_path / "leukocytes").rglob("*")) if one.suffix in (".png", ".jpg"))
    said = run("predict", trained["run"], str(image), cwd=tmp_path)
    assert "Say where its file is with --weights PATH" in said.err
    assert run("predict", trained["run"], str(image), "--weights", path, cwd=tmp_path).code == 0
    checked = json.loads(run("verify", "--recompute", "3", "--weights", path, "--json", cwd=tmp_path).out)
    assert checked[0]["recomputed"]["deviating"] == []
    for other, said_of_it in (
        (convolutions(seed=3), "this is not the network of the cache"),
        (tokens(), "this cannot be the network of the cache"),  # without the layer that features were taken at
    ):
        its_path = saved(other, tmp_path / "other.onnx")
        refused = run("verify", "--recompute", "1", "--weights", its_path, cwd=tmp_path)
        assert (refused.code, said_of_it in refused.err) == (1, True), refused.err
    for command in ("fit-scratch", "fine-tune"):
        refused = run(command, "--model", path, cwd=tmp_path)
        assert (refused.code, "this is no network of Keras" in refused.err) == (1, True)
    assert "this is no network of Keras" in run("export", trained["run"], "--weights", path, cwd=tmp_path).err


def test_without_keras(path: str, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules.update(keras=None, tensorflow=None)\n"
        "import featcache as fc, numpy as np\n"
        f"cache = fc.extract([np.zeros((20, 20, 3), np.uint8)], {path!r}, to={str(tmp_path)!r}, preprocessing='tf')\n"
        "assert cache.features.shape == (1, 4, 4, 6), cache.features.shape\n"
        f"x = fc.FeatureExtractor({path!r}, preprocessing='tf').fit_transform(np.zeros((2, 20, 20, 3), np.uint8))\n"
        "assert x.shape == (2, 96)\n"
        "assert sys.modules['tensorflow'] is None\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
