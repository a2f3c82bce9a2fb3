"""Networks of Keras Hub: the features that it computes itself, from presets of which nothing is fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from numpy.typing import NDArray

import featcache as fc
from featcache.backbones import NetworkSpec, layers_to_cut, load_network, open_engine, open_network
from featcache.backbones.import_keras import import_keras
from featcache.core.errors import BackboneError, MissingPackageError, WeightsError
from featcache.core.extras import is_installed
from featcache.core.offline import offline
from featcache.core.progress import SILENT
from featcache.core.recipe import Transform
from featcache.synthetic.drawing import write_cells

pytestmark = pytest.mark.skipif(not is_installed("keras_hub"), reason="keras-hub is not installed")
SIDE = 32
IMAGENET = {
    "scale": [1 / (255 * std) for std in (0.229, 0.224, 0.225)],
    "offset": [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
}


def _hub() -> Any:
    import_keras()
    import keras_hub

    return keras_hub


@pytest.fixture(scope="module")
def hub() -> Any:
    return _hub()


def small_resnet() -> Any:
    """For images of any size."""
    return _hub().models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )


def save_resnet(folder: Path, side_px: int) -> None:
    """A preset of a small ResNet, and of how it sees images."""
    small_resnet().save_to_preset(str(folder))
    _hub().layers.ResNetImageConverter(image_size=(side_px, side_px), **IMAGENET).save_to_preset(str(folder))


@pytest.fixture(scope="module")
def presets(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small networks as Keras Hub saves them: a ResNet for any size, a ViT and a DINOv2 with registers."""
    folder = tmp_path_factory.mktemp("presets")
    keras = import_keras()
    keras.utils.set_random_seed(5)
    models, converters = hub.models, hub.layers
    resnet = small_resnet()
    vit = models.ViTBackbone(
        image_shape=(SIDE, SIDE, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    dino = models.DINOV2Backbone(
        patch_size=8,
        num_layers=1,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        num_register_tokens=4,
        image_shape=(SIDE, SIDE, 3),
    )
    other = models.ResNetBackbone.from_config(resnet.get_config())
    made = {
        "other": (other, converters.ResNetImageConverter(image_size=(SIDE, SIDE), **IMAGENET)),
        "resnet": (resnet, converters.ResNetImageConverter(image_size=(SIDE, SIDE), **IMAGENET)),
        "vit": (vit, converters.ViTImageConverter(image_size=(SIDE, SIDE), scale=1 / 127.5, offset=-1.0)),
        "dino": (
            dino,
            converters.DINOV2ImageConverter((SIDE, SIDE), crop_to_aspect_ratio=False, **IMAGENET),
        ),
        "bare": (resnet, None),
    }
    for name, (backbone, converter) in made.items():
        backbone.save_to_preset(str(folder / name))
        if converter is not None:
            converter.save_to_preset(str(folder / name))
    bert = models.BertBackbone(
        vocabulary_size=30, num_layers=1, num_heads=2, hidden_dim=4, intermediate_dim=8, max_sequence_length=8
    )
    bert.save_to_preset(str(folder / "bert"))
    clip_vision = models.CLIPVisionEncoder(
        patch_size=8, hidden_dim=4, num_layers=1, num_heads=2, intermediate_dim=8, image_shape=(SIDE, SIDE, 3)
    )
    clip_text = models.CLIPTextEncoder(
        vocabulary_size=30,
        embedding_dim=4,
        hidden_dim=4,
        num_layers=1,
        num_heads=2,
        intermediate_dim=8,
        max_sequence_length=8,
    )
    clip = models.CLIPBackbone(vision_encoder=clip_vision, text_encoder=clip_text, projection_dim=4)
    clip.save_to_preset(str(folder / "clip"))
    return folder


def pixels(n: int = 3, side: int = SIDE) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (n, side, side, 3), np.uint8)


def spec(presets: Path, name: str, **more: Any) -> NetworkSpec:
    return NetworkSpec(f"kerashub/{presets / name}", **more)


def by_the_hub(hub: Any, folder: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What Keras Hub itself computes: its converter, then its backbone."""
    ready = hub.layers.ImageConverter.from_preset(str(folder))(images)
    backbone = hub.models.Backbone.from_preset(str(folder))
    return np.asarray(backbone.predict({"images": ready} if isinstance(backbone.input, dict) else ready, verbose=0))


@pytest.mark.parametrize("engine", ["keras", "openvino"])
@pytest.mark.parametrize("name", ["resnet", "vit", "dino"])
def test_features_are_those_of_keras_hub(hub: Any, presets: Path, name: str, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    network = open_network(spec(presets, name, tokens=None if name == "resnet" else "all"))
    found = open_engine(network, engine, batch_rows=2).features(pixels())[0]
    expected = by_the_hub(hub, presets / name, pixels())
    if name == "dino":  # registers are never kept
        expected = np.concatenate([expected[:, :1], expected[:, 5:]], axis=1)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_what_the_image_converter_says_is_recorded(presets: Path) -> None:
    cuts = {name: open_network(spec(presets, name)).cuts[0] for name in ("resnet", "vit", "dino")}
    assert [cuts[name].space.preprocessing for name in cuts] == ["torch", "tf", "torch"]
    assert cuts["resnet"].transform == Transform("crop", "bilinear", SIDE)
    assert cuts["dino"].transform == Transform("stretch", "bilinear", SIDE)
    assert open_network(spec(presets, "resnet", input_size_px=64)).cuts[0].transform == Transform(
        "crop", "bilinear", 64
    )
    with pytest.raises(BackboneError, match="does not say how the model scales pixels"):
        open_network(spec(presets, "bare", input_size_px=SIDE))
    bare = open_network(spec(presets, "bare", input_size_px=SIDE, preprocessing="rescale")).cuts[0]
    assert bare.space.preprocessing == "rescale" and bare.transform is None
    with pytest.raises(BackboneError, match="it takes images of any size"):
        open_network(spec(presets, "bare", preprocessing="rescale"))


@pytest.mark.parametrize(
    ("tokens", "pooling", "shape"),
    [
        (None, "none", (16,)),
        ("patches", "none", (4, 4, 16)),
        (None, "avg", (16,)),
        ("cls+avg", "none", (32,)),
        ("patches", "max", (16,)),
    ],
)
def test_tokens_are_chosen_and_averages_are_of_patches(
    hub: Any, presets: Path, tokens: Any, pooling: Any, shape: tuple[int, ...]
) -> None:
    network = open_network(spec(presets, "dino", tokens=tokens, pooling=pooling))
    assert network.cuts[0].feature_shape == shape
    found = open_engine(network, "keras", batch_rows=3).features(pixels())[0]
    whole = by_the_hub(hub, presets / "dino", pixels())
    cls, patches = whole[:, 0], whole[:, 5:]
    expected = {
        (None, "none"): cls,
        ("patches", "none"): patches.reshape(3, 4, 4, 16),
        (None, "avg"): patches.mean(axis=1),
        ("cls+avg", "none"): np.concatenate([cls, patches.mean(axis=1)], axis=1),
        ("patches", "max"): patches.max(axis=1),
    }[tokens, pooling]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_layers_are_listed_and_cut(presets: Path) -> None:
    listed = layers_to_cut(spec(presets, "resnet", input_size_px=SIDE))
    assert [one.name for one in listed][-1] == "stack1_block0_out"
    network = open_network(spec(presets, "resnet", layers=("pool1_pool", "stack1_block0_out"), pooling="avg"))
    assert [cut.feature_shape for cut in network.cuts] == [(64,), (64,)]
    with pytest.raises(BackboneError, match="there is no layer 'stack9'"):
        open_network(spec(presets, "resnet", layers=("stack9",)))
    with pytest.raises(BackboneError, match="cannot be taken of it"):
        open_network(spec(presets, "resnet", tokens="cls"))


def test_random_weights_follow_from_their_seed(presets: Path) -> None:
    digests = [
        open_network(spec(presets, "vit", weights="random", weights_seed=seed)).cuts[0].space.weights_digest
        for seed in (0, 0, 1)
    ]
    own = open_network(spec(presets, "vit")).cuts[0].space.weights_digest
    assert digests[0] == digests[1] and len({*digests, own}) == 3


def test_weights_of_a_file_are_taken_or_refused(hub: Any, presets: Path, tmp_path: Path) -> None:
    own = open_network(spec(presets, "vit")).cuts[0].space
    named = open_network(spec(presets, "vit", weights=str(presets / "vit" / "model.weights.h5"))).cuts[0]
    assert named.space == own and str(named.weights) == "model.weights.h5"
    with pytest.raises(WeightsError, match="Keras cannot load it into this network"):
        open_network(spec(presets, "vit", weights=str(presets / "dino" / "model.weights.h5")))
    damaged = tmp_path / "damaged.weights.h5"
    damaged.write_bytes((presets / "vit" / "model.weights.h5").read_bytes()[:2000])
    with pytest.raises(WeightsError):
        open_network(spec(presets, "vit", weights=str(damaged)))
    with pytest.raises(WeightsError, match="there is no such weights file"):
        open_network(spec(presets, "vit", weights=str(tmp_path / "none.weights.h5")))


def test_networks_of_text_are_refused_by_name(presets: Path) -> None:
    with pytest.raises(BackboneError, match=r"takes text \(vocabulary_size\)"):
        open_network(spec(presets, "bert"))
    with pytest.raises(BackboneError, match=r"several inputs \(.*token_ids"):
        open_network(spec(presets, "clip"))
    with offline(), pytest.raises(BackboneError, match="takes text"):
        open_network(NetworkSpec("kerashub/bert_tiny_en_uncased"))


def changed(presets: Path, name: str, into: Path, change: Any) -> NetworkSpec:
    folder = shutil.copytree(presets / name, into)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    return NetworkSpec(f"kerashub/{folder}")


def test_a_folder_with_code_of_its_own_or_damage_is_refused(presets: Path, tmp_path: Path) -> None:
    for number, module in enumerate(("os", "keras_hub.src.utils.preset_utils", "keras_hub_evil.models")):
        asked = changed(presets, "vit", tmp_path / f"a{number}", lambda config, m=module: config.update(module=m))
        with pytest.raises(BackboneError, match="is not part of Keras"):
            open_network(asked)
    inner = {"module": "subprocess", "class_name": "Popen", "config": {}, "registered_name": None}
    with pytest.raises(BackboneError, match=r"subprocess.Popen is not part of Keras"):
        open_network(changed(presets, "vit", tmp_path / "b", lambda config: config["config"].update(x=inner)))
    for number, text in enumerate(("", "[1]", "{", '{"config": 3}', "{}")):
        folder = shutil.copytree(presets / "vit", tmp_path / f"c{number}")
        (folder / "config.json").write_text(text)
        with pytest.raises(BackboneError, match=r"config\.json"):
            open_network(NetworkSpec(f"kerashub/{folder}"))
    with pytest.raises(BackboneError, match="is no preset of Keras Hub"):
        (tmp_path / "empty").mkdir()
        open_network(NetworkSpec(f"kerashub/{tmp_path / 'empty'}"))
    folder = shutil.copytree(presets / "vit", tmp_path / "cut")
    (folder / "model.weights.h5").write_bytes((folder / "model.weights.h5").read_bytes()[:3000])
    with pytest.raises((BackboneError, WeightsError), match="cut"):
        open_network(NetworkSpec(f"kerashub/{folder}"))
    shutil.copy(presets / "dino" / "model.weights.h5", folder / "model.weights.h5")
    with pytest.raises(BackboneError, match="cut: Keras Hub cannot load it"):
        open_network(NetworkSpec(f"kerashub/{folder}"))
    with pytest.raises(BackboneError, match="input size 40 px: the network was made for 32 px"):
        open_network(spec(presets, "vit", input_size_px=40))


def test_names_that_need_the_network_say_what_to_do(presets: Path, tmp_path: Path, run: Run) -> None:
    with pytest.raises(BackboneError, match=r"no preset 'resnet_18_imagenett'.*resnet_18_imagenet"):
        open_network(NetworkSpec("kerashub/resnet_18_imagenett"))
    with offline(), pytest.raises(WeightsError, match="are not on this machine"):
        open_network(NetworkSpec("kerashub/resnet_18_imagenet"))
    write_cells(tmp_path / "cells", 6, seed=1, size_px=24)
    fc.init(tmp_path / "cells", tmp_path, progress=SILENT)
    said = run("extract", "--model", "kerashub/resnet_18_imagenet", "--offline", cwd=tmp_path).error
    assert "kerashub/resnet_18_imagenet" in said and "--offline" in said
    assert "save_to_preset(FOLDER)" in said and "take kerashub/FOLDER" in said


def test_it_is_for_features(presets: Path) -> None:
    with pytest.raises(BackboneError, match="cannot be trained further or exported whole"):
        load_network(spec(presets, "resnet"))


def test_without_the_package_a_line_installs_it(presets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.core.extras.is_installed", lambda name: name != "keras_hub")
    with pytest.raises(MissingPackageError, match=r"pip install 'featcache\[kerashub\]'"):
        open_network(spec(presets, "resnet"))


def test_a_cache_of_it_is_verified_recomputed_and_predicted_with(presets: Path, tmp_path: Path, run: Run) -> None:
    write_cells(tmp_path / "cells", 6, seed=1, size_px=48)
    project = fc.init(tmp_path / "cells", tmp_path / "p", split_counts=(4, 1, 1), progress=SILENT)
    model = f"kerashub/{presets / 'resnet'}"
    cache = fc.extract(project, model, pooling="avg", progress=SILENT)
    space = cache.recipe.space
    assert str(presets) not in json.dumps(cache.recipe.to_dict())
    assert (space.preprocessing, space.resize, space.interpolation) == ("torch", "crop", "bilinear")
    again = fc.extract(project, model, pooling="avg", progress=SILENT)
    assert again.name == cache.name and again.extracted.computed == 0
    said = run("verify", cache.name, "--recompute", "4", cwd=project.folder)
    assert said.code != 0 and "--weights" in said.err
    for weights in (model, str(presets / "resnet")):
        said = run("verify", cache.name, "--recompute", "4", "--weights", weights, cwd=project.folder)
        assert said.code == 0, said.err
    other = run(
        "verify", cache.name, "--recompute", "4", "--weights", f"kerashub/{presets / 'other'}", cwd=project.folder
    )
    assert "this is not the network of the cache" in other.error
    fitted = fc.fit_head(cache, head="logreg", progress=SILENT)
    found = fc.predict(fitted, tmp_path / "cells", weights=model, progress=SILENT)
    assert len(found) == 24
