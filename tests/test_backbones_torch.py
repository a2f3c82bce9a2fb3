"""Networks of PyTorch: timm's, torchvision's and functions', against their own library on the same pixels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featcache.core.extras import keep_triton_out

keep_triton_out()  # other tests of this process may have loaded TensorFlow
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
timm = pytest.importorskip("timm", reason="timm is not installed")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

import featcache as fc  # noqa: E402
from featcache.backbones.doors import AnyNetwork, layers_to_cut, open_network  # noqa: E402
from featcache.backbones.engines.agreement import deviation  # noqa: E402
from featcache.backbones.engines.choose import open_engine  # noqa: E402
from featcache.backbones.engines.openvino_engine import computes_in  # noqa: E402
from featcache.backbones.model_names import model_of, name_of  # noqa: E402
from featcache.backbones.network import load_network  # noqa: E402
from featcache.backbones.preprocess import check_mode, mode_of, preprocess  # noqa: E402
from featcache.backbones.spec import NetworkSpec  # noqa: E402
from featcache.backbones.torch_models import transform_of_huggingface, transform_of_timm  # noqa: E402
from featcache.backbones.torch_network import TorchNetwork  # noqa: E402
from featcache.core.errors import BackboneError, WeightsError  # noqa: E402
from featcache.core.offline import offline  # noqa: E402
from featcache.core.progress import SILENT, Silent  # noqa: E402
from featcache.core.project import ViewsSection  # noqa: E402
from featcache.core.recipe import Transform  # noqa: E402
from featcache.segmentation.framing import Framing, plain_view  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = {
    "timm/resnet10t": 64,
    "torchvision/densenet121": 64,
    "timm/efficientnet_lite0": 64,
    "timm/convnext_atto": 64,
    "timm/vit_small_patch14_reg4_dinov2": 70,
    "timm/vit_small_patch14_dinov2": 70,
    "timm/swin_tiny_patch4_window7_224": 56,
    "torchvision/mobilenet_v3_small": 64,
}


def settled(module: Any, seed: int = 0) -> Any:
    """Every weight at a value at which a mix-up shows, layer scales and statistics too."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            if value.ndim >= 2:
                value.copy_(torch.randn(value.shape, generator=made) / max(value[0].numel(), 1) ** 0.5)
            elif name.endswith(("running_var", "weight", "gamma")):
                value.copy_(torch.rand(value.shape, generator=made) + 0.5)
            else:
                value.copy_(0.1 * torch.randn(value.shape, generator=made))
    return module.eval()


def library_module(model: str, side_px: int) -> Any:
    """The network as its own library builds it."""
    library, _, name = model.partition("/")
    if library == "timm":
        sizes = {"img_size": side_px} if "vit" in name or "swin" in name else {}
        return settled(timm.create_model(name, num_classes=0, **sizes))
    return settled(torchvision.models.get_model(name, weights=None))


def library_features(model: str, module: Any, x: Any) -> Any:
    """What its own library calls its features, for (n, 3, s, s)."""
    with torch.inference_mode():
        if model.startswith("timm"):
            return module.forward_features(x).numpy()
        return module.features(x).numpy()


def images(n: int, side_px: int) -> Any:
    return np.random.default_rng(3).integers(0, 256, (n, side_px, side_px, 3), dtype=np.uint8)


def opened(model: str, weights: str | Path = "random", **asked: Any) -> TorchNetwork:
    network: AnyNetwork = open_network(NetworkSpec(model, str(weights), **asked))
    assert isinstance(network, TorchNetwork)
    return network


# --- golden ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", KINDS)
def test_features_are_the_librarys_on_every_engine(model: str, tmp_path: Path) -> None:
    side_px = KINDS[model]
    module = library_module(model, side_px)
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    tokens = "all" if "vit" in model else None
    network = opened(model, tmp_path / "weights.pt", input_size_px=side_px, tokens=tokens)
    pixels = images(3, side_px)
    x = torch.from_numpy(preprocess(pixels, network.made.mode).transpose(0, 3, 1, 2).copy())
    expected = library_features(model, module, x)
    if "vit" in model:
        prefix = 5 if "reg4" in model else 1
        expected = np.concatenate([expected[:, :1], expected[:, prefix:]], axis=1)
    elif "swin" not in model:
        expected = expected.transpose(0, 2, 3, 1)
    assert network.cuts[0].feature_shape == expected.shape[1:]
    for name in ("torch", "onnxruntime", "openvino"):
        (found,) = open_engine(network, name, batch_rows=2).features(pixels)
        assert deviation(found, expected) < 1, name


@pytest.mark.parametrize("model", ["timm/resnet10t", "timm/vit_tiny_patch16_224"])
def test_features_of_a_row_do_not_depend_on_others(model: str) -> None:
    engine = open_engine(opened(model, input_size_px=64), "torch", batch_rows=4)
    pixels = images(6, 64)
    (whole,) = engine.features(pixels)
    for number in (0, 3, 5):
        (alone,) = engine.features(pixels[number : number + 1])
        np.testing.assert_array_equal(whole[number : number + 1], alone)


def test_auto_takes_what_is_quicker_and_says_so(tmp_path: Path) -> None:
    network = opened("timm/resnet10t", input_size_px=32)
    first = open_engine(network, memory=tmp_path / "engines.json")
    assert "computes" in first.why
    again = open_engine(network, memory=tmp_path / "engines.json")
    assert again.name == first.name
    assert "as found before" in again.why


# --- input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "mode", "side_px"),
    [
        ("timm/convnext_atto", "torch", 224),
        ("timm/vit_tiny_patch16_224", "tf", 224),
        (
            "timm/vit_base_patch32_clip_224",
            "mean-std:0.48145466,0.4578275,0.40821073:0.26862954,0.26130258,0.27577711",
            224,
        ),
        ("torchvision/mobilenet_v3_small", "torch", 224),
    ],
)
def test_the_librarys_own_input_is_the_default(model: str, mode: str, side_px: int) -> None:
    space = opened(model).cuts[0].space
    assert (space.preprocessing, space.input_size_px) == (mode, side_px)


def test_scaling_is_the_librarys_own_transform() -> None:
    pixels = images(1, 32)
    for mean, std in [((0.481, 0.457, 0.408), (0.268, 0.261, 0.275)), ((0.5,) * 3, (0.5,) * 3)]:
        transform = torchvision.transforms.Compose(
            [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(mean, std)]
        )
        expected = transform(pixels[0]).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(preprocess(pixels, mode_of(mean, std))[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("timm/resnet10t", Transform("crop", "bicubic", 201)),
        ("timm/mobilenetv3_small_050", Transform("crop", "bicubic", 256)),
        ("timm/vit_tiny_patch16_224", Transform("crop", "bicubic", 248)),
        ("timm/vit_small_patch14_dinov2", Transform("crop", "bicubic", 518)),
        ("timm/swin_tiny_patch4_window7_224", Transform("crop", "bicubic", 248)),
        ("timm/convnext_atto.d2_in1k", Transform("crop", "bicubic", 256)),
        ("timm/dm_nfnet_f0", Transform("stretch", "bicubic", 213)),
        ("timm/deepseek_vit_412m", Transform("pad", "bicubic", 546, "#808080")),
        ("torchvision/mobilenet_v3_small", Transform("crop", "bilinear", 256)),
    ],
)
@pytest.mark.parametrize("shape", [(301, 640), (97, 60)])
def test_an_image_becomes_what_the_librarys_own_transform_makes_of_it(
    model: str, expected: Transform, shape: tuple[int, int]
) -> None:
    library, _, name = model.partition("/")
    if library == "timm":
        config = timm.data.resolve_data_config(
            pretrained_cfg=timm.get_pretrained_cfg(name, allow_unregistered=True).to_dict()
        )
        own, theirs = transform_of_timm(config, config["input_size"][-1]), timm.data.create_transform(**config)
        size_px, mode = config["input_size"][-1], mode_of(config["mean"], config["std"])
    else:
        cut = opened(model).cuts[0]
        own, theirs = cut.transform, torchvision.models.get_model_weights(name).DEFAULT.transforms()
        size_px, mode = cut.space.input_size_px, cut.space.preprocessing
    framing = Framing.asked(ViewsSection(as_trained=True, resize="pad"), size_px, own=own)
    pixels = np.random.default_rng(5).integers(0, 256, (*shape, 3), dtype=np.uint8)
    plain, _ = plain_view(pixels, None, size_px=size_px, framing=framing)
    found = preprocess(plain[None], mode)[0]
    wanted = theirs(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
    grey = (
        preprocess(np.full((1, 1, 1, 3), 1, np.uint8), mode) - preprocess(np.zeros((1, 1, 1, 3), np.uint8), mode)
    ).max()
    assert np.abs(found - wanted).max() <= 1.001 * grey
    assert own == expected


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("CLIP", {}),
        ("ViT", {}),
        ("Bit", {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}),
        ("ConvNext", {"size": {"shortest_edge": 224}}),
        ("ConvNext", {"size": {"shortest_edge": 384}}),
        ("Siglip", {}),
    ],
)
def test_an_image_becomes_what_image_processors_make_of_it(kind: str, settings: dict[str, Any]) -> None:
    """Those on Pillow. Those on PyTorch's own resizing differ from them by two grey levels where pixels are noise."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    processor = getattr(transformers, f"{kind}ImageProcessorPil", None)
    if processor is None:
        pytest.skip("this transformers has no processors on Pillow by this name")
    theirs = processor(**settings)
    says = theirs.to_dict()
    mode = mode_of(says["image_mean"], says["image_std"])
    for shape in ((301, 640), (97, 60)):
        pixels = np.random.default_rng(5).integers(0, 256, (*shape, 3), dtype=np.uint8)
        (wanted,) = np.asarray(theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"])
        size_px = wanted.shape[-1]
        own = transform_of_huggingface(says, size_px)
        framing = Framing.asked(ViewsSection(as_trained=True, resize="pad"), size_px, own=own)
        plain, _ = plain_view(pixels, None, size_px=size_px, framing=framing)
        found = preprocess(plain[None], mode)[0].transpose(2, 0, 1)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_networks_of_one_pass_get_each_their_own_input(tmp_path: Path) -> None:
    """timm's crop with a bicubic filter, torchvision's with a bilinear one: each cache is of its own pixels."""
    for number, level in enumerate((60, 190)):
        (tmp_path / "images" / str(number)).mkdir(parents=True)
        for one in range(4):
            pixels = np.clip(np.random.default_rng(one).normal(level, 40, (60 + one, 90, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / str(number) / f"{one}.png")
    project = fc.init(tmp_path / "images", tmp_path, split_counts=(2, 1, 1), views={"train": 2}, progress=SILENT)
    models = ["timm/resnet10t", "torchvision/mobilenet_v3_small"]
    asked: dict[str, Any] = {"weights": "random", "input_size_px": 64, "pooling": "avg", "engine": "torch"}
    caches = fc.extract(project, models, **asked, progress=SILENT)
    squares = [cache.recipe.space.square for cache in caches]
    assert squares == ["64 px, crop of 73 px, bicubic", "64 px, crop of 73 px, bilinear"]
    for cache, model in zip(caches, models, strict=True):
        engine = open_engine(opened(model, input_size_px=64, pooling="avg"), "torch", batch_rows=1)
        paths = cache.dataset.set_index("image_id")["path"]
        for line in cache.views.query("view == 0").head(3).to_dict("records"):
            pixels = np.asarray(Image.open(project.images_folder / paths[line["image_id"]]))
            plain, _ = plain_view(pixels, None, size_px=64, framing=Framing.of(cache.recipe.space))
            (expected,) = engine.features(plain[None])
            assert deviation(cache.features[[line["row"]]], expected) < 1
    (padded,) = fc.extract(project, models[:1], **asked, views={"resize": "pad"}, progress=SILENT)
    assert padded.recipe.space.square == "64 px, pad, bicubic"
    found = fc.FeatureExtractor(models[0], weights="random", input_size_px=64, pooling="avg", engine="torch")
    row = int(caches[0].views.query("view == 0")["row"].iloc[0])
    path = caches[0].dataset.set_index("image_id")["path"][caches[0].views["image_id"].iloc[row]]
    assert deviation(caches[0].features[[row]], found.transform([project.images_folder / path])) < 1
    run = fc.fit_head(caches[0], epochs=1, hidden=(4,), batch=4, progress=SILENT)
    named = pd.read_csv(run.folder / "predictions.csv").query("view == 0")
    predicted = run.predict([project.images_folder / path for path in named["path"]], progress=SILENT)
    np.testing.assert_allclose(
        predicted.probabilities, named[[f"p_{label}" for label in predicted.classes]].to_numpy(), atol=1e-4
    )
    notes: list[str] = []

    class Noting(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    old = tmp_path / "featcache.toml"
    old.write_text(old.read_text().replace("as_trained = true", "as_trained = false"))
    (stretched,) = fc.extract(
        fc.open_project(tmp_path), models[:1], **asked, views={"resize": "stretch"}, progress=Noting()
    )
    assert stretched.recipe.space.square == "64 px, stretch"
    own = "64 px, crop of 73 px, bicubic"
    said = f"{models[0]}: images become 64 px, stretch; its library makes them {own} (`as_trained=True`)"
    assert said in notes


def test_spellings_of_a_mean_and_deviation() -> None:
    mode = mode_of((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert check_mode(mode) == mode == "mean-std:0.1,0.2,0.3:0.4,0.5,0.6"
    for wrong in (
        "mean-std:0.10,0.2,0.3:0.4,0.5,0.6",
        "mean-std:0.1,0.2:0.4,0.5",
        "mean-std:1,1,1:0,1,1",
        "mean-std:e,e,e:1,1,1",
    ):
        with pytest.raises(BackboneError, match="there is no preprocessing"):
            check_mode(wrong)
    with pytest.raises(BackboneError, match="expected a mean and deviation"):
        mode_of((0.1,), (0.2,))


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_without_registers() -> None:
    """As a golden test above has them, an average without CLS and registers."""
    network = opened("timm/vit_pwee_patch16_reg1_gap_256", input_size_px=64, pooling="avg")
    assert (network.cuts[0].space.tokens, network.cuts[0].feature_shape) == ("patches", (256,))
    pixels = images(2, 64)
    x = torch.from_numpy(preprocess(pixels, network.made.mode).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        raw = network.made.module.forward_features(x).numpy()
    assert raw.shape[1] == 1 + 16
    (found,) = open_engine(network, "torch", batch_rows=2).features(pixels)
    assert deviation(found, raw[:, 1:].mean(axis=1)) < 1


def test_registers_without_cls_give_no_cls() -> None:
    with pytest.raises(BackboneError, match="gives no CLS token, only 4 x 4 patches"):
        opened("timm/vit_pwee_patch16_reg1_gap_256", input_size_px=64, tokens="cls")


# --- layers ---------------------------------------------------------------------------------------


def test_any_module_can_be_cut() -> None:
    model = "timm/resnet10t"
    found = {layer.name: layer.output_shape for layer in layers_to_cut(NetworkSpec(model, input_size_px=64))}
    assert found["features"] == (512, 2, 2)
    assert found["layer1"] == (64, 16, 16)
    network = opened(model, input_size_px=64, layers=("layer1", "features"), pooling="avg")
    pixels = images(2, 64)
    seen = {}
    hook = network.made.module.layer1.register_forward_hook(lambda _, __, output: seen.update(layer1=output))
    with torch.inference_mode():
        network.made.module(torch.from_numpy(preprocess(pixels, network.made.mode).transpose(0, 3, 1, 2).copy()))
    hook.remove()
    first, last = open_engine(network, "openvino", batch_rows=2).features(pixels)
    assert deviation(first, seen["layer1"].mean(axis=(2, 3)).numpy()) < 1
    assert last.shape == (2, 512)
    with pytest.raises(BackboneError, match="no layer 'layer11' with one output a row: did you mean layer1"):
        opened(model, layers=("layer11",))


# --- weights --------------------------------------------------------------------------------------


def test_random_weights_follow_from_their_seed() -> None:
    one, again, other = (opened("timm/resnet10t", weights_seed=seed).cuts[0] for seed in (1, 1, 2))
    assert one.space == again.space != other.space
    assert str(one.weights) == "random-1"


def test_every_kind_of_file_gives_the_same_network(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    module = settled(timm.create_model("resnet10t", num_classes=7))
    state = module.state_dict()
    torch.save(state, tmp_path / "plain.pth")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "run.ckpt"
    )
    torch.save({"teacher": {f"backbone.{name}": value for name, value in state.items()}}, tmp_path / "teacher.pth")
    save_file(state, tmp_path / "plain.safetensors")
    spaces = {
        opened("timm/resnet10t", tmp_path / name).cuts[0].space
        for name in ("plain.pth", "run.ckpt", "teacher.pth", "plain.safetensors")
    }
    assert len(spaces) == 1


def test_dinov2_files_of_their_own_makers_load(tmp_path: Path) -> None:
    """As DinoBloom's: a teacher with heads and a mask token, made for 48 px."""
    module = settled(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=48))
    state = {f"backbone.{name}": value for name, value in module.state_dict().items()}
    state["backbone.mask_token"] = torch.zeros(1, 192)
    state["dino_head.mlp.0.weight"] = torch.zeros(3, 192)
    torch.save({"teacher": state}, tmp_path / "bloom.pth")
    tiny = "timm/vit_tiny_patch16_224"
    assert opened(tiny, tmp_path / "bloom.pth", input_size_px=48).cuts[0].feature_shape == (192,)
    with pytest.raises(WeightsError, match=r"pos_embed 1x10x192 there, 1x17x192 here.*interpolate_positions=True"):
        opened(tiny, tmp_path / "bloom.pth", input_size_px=64)
    larger = opened(tiny, tmp_path / "bloom.pth", input_size_px=64, interpolate_positions=True)
    expected = timm.layers.resample_abs_pos_embed(module.pos_embed, (4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(larger.made.module.pos_embed.data, expected.data)
    with pytest.raises(WeightsError, match=r"not the weights of timm/vit_pwee_patch16_reg1_gap_256: .*there, .*here"):
        opened("timm/vit_pwee_patch16_reg1_gap_256", tmp_path / "bloom.pth")
    with pytest.raises(WeightsError, match=r"not the weights of timm/resnet10t: missing: conv1"):
        opened("timm/resnet10t", tmp_path / "bloom.pth")


def test_registers_by_dinov2s_own_names(tmp_path: Path) -> None:
    module = settled(timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=70))
    state = dict(module.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    of_cls = torch.randn(1, 1, 384)
    state["pos_embed"] = torch.cat([of_cls, state["pos_embed"]], 1)
    state["cls_token"] = state["cls_token"] - of_cls
    torch.save(state, tmp_path / "registers.pth")
    found = opened("timm/vit_small_patch14_reg4_dinov2", tmp_path / "registers.pth", input_size_px=70)
    torch.testing.assert_close(found.made.module.cls_token.data, module.cls_token.data)
    torch.testing.assert_close(found.made.module.pos_embed.data, module.pos_embed.data)


def test_files_that_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t"), tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match="loading it could run code"):
        opened("timm/resnet10t", tmp_path / "whole.pt")
    whole = tmp_path / "cut.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), whole)
    whole.write_bytes(whole.read_bytes()[:-1000])
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("cut.pth", "no.safetensors", "list.pth", "missing.pth"):
        with pytest.raises(WeightsError) as caught:
            opened("timm/resnet10t", tmp_path / name)
        assert "\n" not in caught.value.message


def test_unknown_networks() -> None:
    with pytest.raises(BackboneError, match="timm has no network 'resnet10tt': did you mean resnet10t"):
        opened("timm/resnet10tt")
    with pytest.raises(BackboneError, match="torchvision has no network 'resnet19'"):
        opened("torchvision/resnet19")
    with pytest.raises(BackboneError, match="it cannot be trained further or exported whole"):
        load_network(NetworkSpec("timm/resnet10t", "random"))


def test_positions_are_not_resampled_unasked() -> None:
    with pytest.raises(BackboneError, match=r"its position table is for 518 px, not for 224 px"):
        opened("timm/vit_small_patch14_dinov2", "imagenet", input_size_px=224)


def test_names_come_back() -> None:
    for model in ("timm/vit_small_patch14_dinov2.lvd142m", "huggingface/facebook/dinov2-small", "torchvision/vit_b_16"):
        assert model_of(name_of(model)) == model
        assert "/" not in name_of(model)
    assert model_of("efficientnet-lite0") == "efficientnet-lite0"


# --- functions ------------------------------------------------------------------------------------


def test_a_function_that_builds_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_net.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(5)\n"
        "    nn = torch.nn\n"
        "    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1)]\n"
        "    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asked = {"input_size_px": 32, "preprocessing": "rescale"}
    network = opened("own_net:build", "imagenet", **asked)
    (cut,) = network.cuts
    assert (cut.space.layer, cut.feature_shape, str(cut.weights)) == ("2", (8, 8, 6), "build")
    assert cut.space.backbone.startswith("sequential-")
    pixels = images(2, 32)
    module = sys.modules["own_net"].build()
    with torch.inference_mode():
        expected = module[:3](torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).permute(0, 2, 3, 1).numpy()
    assert deviation(open_engine(network, "onnxruntime").features(pixels)[0], expected) < 1
    torch.save(settled(module).state_dict(), tmp_path / "mine.pt")
    other = opened("own_net:build", tmp_path / "mine.pt", **asked).cuts[0].space
    assert (other.backbone, other.weights_digest != cut.space.weights_digest) == (cut.space.backbone, True)
    with pytest.raises(BackboneError, match="Set `input_size_px`"):
        opened("own_net:build", "imagenet", preprocessing="rescale")
    with pytest.raises(BackboneError, match="nothing says how the network scales pixels"):
        opened("own_net:build", "imagenet", input_size_px=32)


def test_a_vision_transformer_of_torchvisions_own_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_vit.py").write_text(
        "import torch, torchvision\n"
        "def build():\n"
        "    torch.manual_seed(6)\n"
        "    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asked = {"input_size_px": 32, "preprocessing": "torch"}
    network = opened("own_vit:build", "imagenet", tokens="all", **asked)
    assert (network.cuts[0].space.layer, network.cuts[0].feature_shape) == ("encoder", (17, 16))
    module = sys.modules["own_vit"].build().eval()
    pixels = images(2, 32)
    x = torch.from_numpy(preprocess(pixels, "torch").transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        patches = module._process_input(x)
        expected = module.encoder(torch.cat([module.class_token.expand(2, -1, -1), patches], 1)).numpy()
    for name in ("torch", "openvino", "onnxruntime"):
        assert deviation(open_engine(network, name, batch_rows=2).features(pixels)[0], expected) < 1


def test_what_is_changed_in_place_later_is_not_what_a_layer_gave() -> None:
    network = opened("timm/resnet10t", input_size_px=32, layers=("bn1", "conv1"))
    again = opened("timm/resnet10t", input_size_px=32, layers=("conv1",))
    pixels = images(2, 32)
    one = open_engine(network, "torch", batch_rows=2).features(pixels)[1]
    other = open_engine(again, "openvino", batch_rows=2).features(pixels)[0]
    assert one.min() < 0
    assert deviation(other, one) < 1


def test_a_map_of_classes_is_no_feature() -> None:
    (cut,) = opened("torchvision/squeezenet1_1", input_size_px=64).cuts
    assert (cut.space.layer, cut.feature_shape) == ("features", (3, 3, 512))


def test_what_cannot_be_exported_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And torch computes it."""
    (tmp_path / "odd_net.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first = torch.nn.Conv2d(3, 4, 3, 2, 1)\n"
        "        self.last = torch.nn.Identity()\n"
        "    def forward(self, x):\n"
        "        x = torch.nn.functional.interpolate(self.first(x), (5, 5), mode='bicubic', antialias=True)\n"
        "        return self.last(x)\n"
        "def build():\n"
        "    return Odd()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = opened("odd_net:build", "imagenet", input_size_px=32, preprocessing="rescale")
    with pytest.raises(BackboneError, match="PyTorch cannot export it to ONNX"):
        open_engine(network, "openvino", batch_rows=2)
    assert open_engine(network, "auto", batch_rows=2).features(images(2, 32))[0].shape == (2, 5, 5, 4)
    assert capfd.readouterr() == ("", "")


# --- Hugging Face ---------------------------------------------------------------------------------


def test_a_network_of_transformers_without_any_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DINOv2 with registers in a folder, as their program finds it, too."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    module = transformers.Dinov2WithRegistersModel(config).eval()
    folder = tmp_path / "laboratory" / "tiny"
    folder.mkdir(parents=True)
    module.save_pretrained(folder)
    says = {"image_processor_type": "BitImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**says, "crop_size": {"height": 56, "width": 56}}))
    monkeypatch.chdir(tmp_path)
    with offline():
        network = opened("huggingface/laboratory/tiny", "imagenet", tokens="cls+avg")
        (cut,) = network.cuts
        assert (cut.space.backbone, cut.space.preprocessing) == ("huggingface-laboratory--tiny", "tf")
        pixels = images(2, 56)
        with torch.inference_mode():
            raw = module(torch.from_numpy(network.prepared(pixels))).last_hidden_state.numpy()
        expected = np.concatenate([raw[:, 0], raw[:, 5:].mean(axis=1)], axis=1)
        assert deviation(open_engine(network, "torch", batch_rows=2).features(pixels)[0], expected) < 1
        with pytest.raises(BackboneError, match="its position table is for 56 px, not for 84 px"):
            opened("huggingface/laboratory/tiny", "imagenet", input_size_px=84)
        with pytest.raises(WeightsError, match="it cannot be had with these weights"):
            opened("huggingface/laboratory/none", "imagenet")


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_low_precision(engine: str) -> None:
    """Near float32, other values, and the same in any company."""
    if engine == "openvino" and not computes_in("bfloat16"):
        pytest.skip("this processor does not compute in bfloat16")
    asked: dict[str, Any] = {"weights": "random", "input_size_px": 64, "layers": ("layer4",)}
    exact, low = (
        open_engine(open_network(NetworkSpec("timm/resnet10t", precision=precision, **asked)), engine, batch_rows=2)
        for precision in ("float32", "bfloat16")
    )
    pixels = images(5, 64)
    (found,), (expected,) = low.features(pixels), exact.features(pixels)
    assert (found.dtype, low.name) == (np.float32, engine)
    assert (found != expected).any()
    assert deviation(found, expected, precision="bfloat16") < 1
    np.testing.assert_array_equal(low.features(pixels[3:])[0], found[3:])
