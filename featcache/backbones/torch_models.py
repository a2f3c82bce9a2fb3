"""Networks of PyTorch by name: of timm, torchvision and Hugging Face, and those that a function of the user's builds.

Each comes without its classifier, with what its library says of its input. No code is ever fetched from a hub.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.backbones.hubs import fetching, quiet
from featcache.backbones.model_names import kind_of, name_of
from featcache.backbones.own_models import function_of
from featcache.backbones.preprocess import formulas, mode_for, mode_of
from featcache.backbones.shaping import Prefix
from featcache.backbones.spec import NetworkSpec
from featcache.backbones.torch_weights import load_state
from featcache.core.errors import BackboneError, MissingPackageError, WeightsError, nearest
from featcache.core.extras import install_line, is_installed, keep_triton_out
from featcache.core.files import expanded
from featcache.core.offline import is_offline
from featcache.core.recipe import BLACK, Interpolation, Resize, Transform, WeightsSource, digest

_TIMM_SHARE = 0.875
_CONVNEXT_PX = 384
FEATURES = "features"
"""The default layer: what the library itself calls the features, behind which only pooling and classifier come."""


@dataclass(frozen=True)
class Made:
    """A module with its weights.

    Attributes
    ----------
    module : torch.nn.Module, for inference
    name : in recipes and names of caches
    side_px : side of its square input
    mode : its preprocessing
    weights : where they come from
    features : gives the raw features of a batch (n, 3, s, s); None where they are found by looking
    prefix : of tokens, where the library says it
    transform : how the library makes images square; None where it does not say
    """

    module: Any
    name: str
    side_px: int
    mode: str
    weights: WeightsSource
    features: Callable[[Any], Any] | None = None
    prefix: Prefix | None = None
    transform: Transform | None = None


def require_torch(model: str, *packages: str) -> None:
    """Raise MissingPackageError, with the command that installs them, where PyTorch or a package is missing."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    missing = [name for name in ("torch", *packages) if not is_installed(name)]
    if missing:
        extra = "huggingface" if "transformers" in missing else "torch"
        raise MissingPackageError(f"{model} requires {missing[0]}, which is not installed: {install_line(extra)}")
    keep_triton_out()


def made_of(spec: NetworkSpec, built: Any = None) -> Made:
    """The module that `spec` asks for.

    built : what the function of `spec` made, where it is one

    Raises
    ------
    MissingPackageError : the library is not installed.
    BackboneError : it has no such network, or not for this input.
    WeightsError : the weights are missing, damaged, of another network, or cannot be downloaded.
    """
    if built is not None:
        return _of_function(spec, built)
    makers = {"timm": _of_timm, "torchvision": _of_torchvision, "huggingface": _of_huggingface}
    return makers[kind_of(spec.model)](spec)


def built_by(model: str) -> Any:
    """The module that a function "module:attribute" builds; None where it builds something else.

    A function that is called like those of keras.applications is not called here.
    """
    if not is_installed("torch"):
        return None
    keep_triton_out()
    builder = function_of(model)
    if "torch" not in sys.modules:
        return None
    if {"weights", "include_top", "input_shape"} <= set(inspect.signature(builder).parameters):
        return None
    built = builder()
    return built if isinstance(built, importlib.import_module("torch").nn.Module) else None


# --- libraries ------------------------------------------------------------------------------------


def _of_timm(spec: NetworkSpec) -> Made:
    require_torch(spec.model, "timm")
    with quiet():
        timm = importlib.import_module("timm")
    name = spec.model.partition("/")[2]
    if not timm.is_model(name):
        raise BackboneError(f"timm has no network {name!r}: {nearest(name, timm.list_models())}")
    own = timm.get_pretrained_cfg(name, allow_unregistered=True)
    sizes = {} if spec.input_size_px is None else {"img_size": spec.input_size_px}
    _refuse_resampling(spec, own.input_size[-1] if own else None, name, timm)

    def create() -> Any:
        try:
            return timm.create_model(name, pretrained=spec.weights == "imagenet", num_classes=0, **sizes)
        except TypeError as error:  # networks for any size take none
            if not sizes or "img_size" not in str(error):
                raise
            sizes.clear()
            return create()

    module = _with_weights(spec, create)
    config = timm.data.resolve_model_data_config(module)
    prefix = None
    if (n := getattr(module, "num_prefix_tokens", None)) is not None:
        prefix = Prefix(int(n), getattr(module, "cls_token", None) is not None)
    side_px = spec.input_size_px or int(config["input_size"][-1])
    return Made(
        module,
        name_of(spec.model),
        side_px,
        _mode(spec, config["mean"], config["std"]),
        WeightsSource.of(spec.weights, spec.weights_seed),
        module.forward_features if hasattr(module, "forward_features") else None,
        prefix,
        transform_of_timm(config, side_px),
    )


def _refuse_resampling(spec: NetworkSpec, own: int | None, name: str, timm: Any) -> None:
    """Raise BackboneError where timm would resample the position table of downloaded weights, and nobody asked."""
    if spec.weights != "imagenet" or spec.interpolate_positions or spec.input_size_px in (None, own):
        return
    parameters = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    if any(one.endswith(("pos_embed", "relative_position_bias_table")) for one in parameters):
        raise BackboneError(
            f"{spec.model}: its position table is for {own} px, not for {spec.input_size_px} px",
            "Leave out `input_size_px`, or set `interpolate_positions=True` to resample it",
        )


def _of_torchvision(spec: NetworkSpec) -> Made:
    require_torch(spec.model, "torchvision")
    with quiet():
        models = importlib.import_module("torchvision.models")
    name = spec.model.partition("/")[2]
    known = models.list_models(module=models)
    if name not in known:
        raise BackboneError(f"torchvision has no network {name!r}: {nearest(name, known)}")
    published = models.get_model_weights(name).DEFAULT
    says = published.transforms()
    has_positions = name.startswith("vit")  # the others take images of any size, or say that they do not
    sizes = {"image_size": spec.input_size_px} if spec.input_size_px and has_positions else {}
    if sizes and spec.weights == "imagenet" and spec.input_size_px != says.crop_size[0]:
        raise BackboneError(
            f"{spec.model}: its position table is for {says.crop_size[0]} px, not for {spec.input_size_px} px",
            "Leave out `input_size_px`",
        )

    def create() -> Any:
        weights = published if spec.weights == "imagenet" else None
        return models.get_model(name, weights=weights, progress=False, **sizes)

    module = _with_weights(spec, create)
    own_px, filter_ = int(says.crop_size[0]), _filter(says.interpolation.value)
    side_px = spec.input_size_px or own_px
    return Made(
        module,
        name_of(spec.model),
        side_px,
        _mode(spec, says.mean, says.std),
        WeightsSource.of(spec.weights, spec.weights_seed),
        transform=filter_ and Transform("crop", filter_, round(says.resize_size[0] * side_px / own_px)),
    )


def _of_huggingface(spec: NetworkSpec) -> Made:
    require_torch(spec.model, "transformers")
    with quiet():
        transformers = importlib.import_module("transformers")
    name = spec.model.partition("/")[2]
    if name.count("/") != 1:
        raise BackboneError(f"{spec.model}: expected huggingface/ORGANISATION/NAME")
    transformers.utils.logging.disable_progress_bar()
    where: dict[str, Any] = {"trust_remote_code": False, "local_files_only": is_offline()}
    with fetching(spec.model), quiet():
        config = transformers.AutoConfig.from_pretrained(name, **where)
        images: Mapping[str, Any] = transformers.AutoImageProcessor.from_pretrained(name, **where).to_dict()

    def create() -> Any:
        if spec.weights == "imagenet":
            return transformers.AutoModel.from_pretrained(name, use_safetensors=True, **where)
        return transformers.AutoModel.from_config(config, trust_remote_code=False)

    module = _with_weights(spec, create)
    sizes = images.get("crop_size") or images.get("size") or {}
    side = sizes.get("height") or sizes.get("shortest_edge") if isinstance(sizes, Mapping) else sizes
    side_px = spec.input_size_px or side
    if not side_px:
        raise BackboneError(f"{spec.model}: it does not say which size it takes", "Set `input_size_px`")
    own = getattr(config, "image_size", None)
    settings: dict[str, Any] = {}
    if isinstance(own, int) and own != side_px and hasattr(config, "patch_size"):
        if not spec.interpolate_positions:
            raise BackboneError(
                f"{spec.model}: its position table is for {own} px, not for {side_px} px",
                f"Set `input_size_px={own}`, or `interpolate_positions=True` to resample it",
            )
        settings = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in _arguments(module) else {}
    registers = int(getattr(config, "num_register_tokens", 0) or 0)
    has_cls = hasattr(getattr(module, "embeddings", None), "cls_token")
    return Made(
        module,
        name_of(spec.model),
        int(side_px),
        _mode(spec, images.get("image_mean"), images.get("image_std")),
        WeightsSource.of(spec.weights, spec.weights_seed),
        lambda x: module(x, **settings).last_hidden_state,
        Prefix(1 + registers, True) if has_cls else None,
        transform_of_huggingface(images, int(side_px)),
    )


def _arguments(module: Any) -> Any:
    return inspect.signature(module.forward).parameters


def _of_function(spec: NetworkSpec, module: Any) -> Made:
    """A module of the user's, which has its own weights unless others are named."""
    kind = type(module).__name__
    if spec.input_size_px is None:
        raise BackboneError(f"{spec.model}: it does not say which size it takes", "Set `input_size_px`")
    if spec.weights == "random":
        raise WeightsError(f"{spec.model}: the function gives the weights", "Leave out `weights`, or name a file")
    source = WeightsSource("file", name=spec.model.partition(":")[2])
    if spec.weights != "imagenet":
        path = expanded(Path(spec.weights))
        load_state(module, path, label=spec.model, interpolate=spec.interpolate_positions)
        source = WeightsSource.of(spec.weights)
    shapes = [[name, list(value.shape)] for name, value in module.state_dict().items()]
    slug = "".join(letter if letter.isalnum() else "-" for letter in kind.lower()).strip("-")[:40] or "module"
    name = f"{slug}-{digest([repr(module), shapes])[:8]}"
    return Made(module.eval(), name, spec.input_size_px, _mode(spec, None, None), source)


# --- how libraries make images square -------------------------------------------------------------

_PILLOW: Mapping[int, Interpolation] = {4: "area", 2: "bilinear", 3: "bicubic", 1: "lanczos"}


def _filter(name: Any) -> Interpolation | None:
    """A library's word, or Pillow's number, for a filter; None for one that is not known here."""
    if isinstance(name, str):
        return next((known for known in _PILLOW.values() if known == {"box": "area"}.get(name, name)), None)
    return _PILLOW.get(name)


def transform_of_timm(config: Mapping[str, Any], side_px: int) -> Transform | None:
    """What `timm.data.create_transform(**config)` does, for squares of `side_px`; None for what is not known here."""
    ways: Mapping[str, Resize] = {"center": "crop", "squash": "stretch", "border": "pad"}
    resize, filter_ = ways.get(config.get("crop_mode") or "center"), _filter(config["interpolation"])
    if resize is None or filter_ is None:
        return None
    padding = (
        "#{:02x}{:02x}{:02x}".format(*(round(255 * value) for value in config["mean"])) if resize == "pad" else BLACK
    )
    return Transform(resize, filter_, math.floor(side_px / (config["crop_pct"] or _TIMM_SHARE)), padding)


def transform_of_huggingface(images: Mapping[str, Any], side_px: int) -> Transform | None:
    """What an image processor of these settings does, for squares of `side_px`; None for what is not known here.

    images : as in preprocessor_config.json
    """
    size, crop = images.get("size"), images.get("crop_size")
    filter_ = _filter(images.get("resample", 2))
    if not images.get("do_resize", True) or filter_ is None or images.get("do_pad"):
        return None
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if not isinstance(size, Mapping):
        return None
    own_px = (crop.get("height") if isinstance(crop, Mapping) else crop) if images.get("do_center_crop") else None
    if size.get("height") and size.get("height") == size.get("width"):
        resize, to_px = "stretch", size["height"]
    elif (share := images.get("crop_pct")) and size.get("shortest_edge"):  # ConvNeXt's: large ones are stretched
        own_px = size["shortest_edge"]
        resize, to_px = ("crop", int(own_px / share)) if own_px < _CONVNEXT_PX else ("stretch", own_px)
    elif size.get("shortest_edge") and own_px:
        resize, to_px = "crop", size["shortest_edge"]
    else:
        return None
    made: Resize = "crop" if resize == "crop" else "stretch"
    return Transform(made, filter_, round(to_px * side_px / (own_px or to_px)))


# --- weights and input ----------------------------------------------------------------------------


def _with_weights(spec: NetworkSpec, create: Callable[[], Any]) -> Any:
    """A module for inference, with the weights that are asked for; random ones follow from their seed."""
    torch = importlib.import_module("torch")
    with fetching(spec.model), quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.weights_seed)
        module = create().eval()
    module.requires_grad_(False)
    if spec.weights not in ("imagenet", "random"):
        path = expanded(Path(spec.weights))
        load_state(module, path, label=spec.model, interpolate=spec.interpolate_positions)
    return module


def _mode(spec: NetworkSpec, mean: Any, std: Any) -> str:
    """The preprocessing: as asked, else the library's."""

    def own() -> str:
        if mean is None or std is None:
            raise BackboneError(
                f"{spec.model}: nothing says how the network scales pixels",
                f"Set `preprocessing` to one of these formulas, x from 0 to 255: {formulas()}",
            )
        return mode_of(mean, std)

    return mode_for(spec, own)
