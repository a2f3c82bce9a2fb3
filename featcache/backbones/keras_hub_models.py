"""Networks of Keras Hub: presets by their name there, and folders that it saved. Only networks of one image.

A preset says what its network is, and mostly how an image becomes its input. It is looked at before anything is built,
since the configuration in a folder names classes that are called.

    config.json -> checked -> Backbone; image_converter.json -> preprocessing and how images become square
"""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from featcache.backbones import own_models
from featcache.backbones.cuts import CutLayer, check_pooling, check_precision, last_feature_map, layers_of
from featcache.backbones.hubs import fetching, quiet
from featcache.backbones.import_keras import import_keras, require_keras
from featcache.backbones.model_file import architecture_name, foreign_parts
from featcache.backbones.model_names import KERAS_HUB, name_of
from featcache.backbones.network import Cut, Network, network_of
from featcache.backbones.own_models import OwnModel, one_line
from featcache.backbones.preprocess import check_mode, mode_for, mode_of
from featcache.backbones.shaping import Prefix, Shaping, check_tokens, shaping_of
from featcache.backbones.spec import NetworkSpec
from featcache.backbones.weights import drawing_zeros, randomize, weights_digest
from featcache.backbones.weights_h5 import DAMAGED, refuse_outside
from featcache.core.errors import BackboneError, WeightsError, nearest
from featcache.core.extras import require_extra
from featcache.core.files import expanded, resolved
from featcache.core.recipe import BLACK, FeatureSpace, Interpolation, Resize, Transform, WeightsSource

if TYPE_CHECKING:
    import keras

_CONFIG, _CONVERTER = "config.json", "image_converter.json"
_MOST_JSON = 1 << 24
_UNFILLED = r"(?s).*(Skipping|could not be loaded|expected \d+ variables)"
"""How Keras warns of layers that a file has no weights for."""
_TO_A_FOLDER = (
    "Save it where there is a connection, with 'keras_hub.models.Backbone.from_preset(NAME).save_to_preset(FOLDER)', "
    "its image converter likewise, and take kerashub/FOLDER"
)
"""What to do where a preset cannot be downloaded: its configuration would have to be, too."""
_OF_TEXT = ("vocabulary_size", "vocab_size")
"""Settings of networks that take text; an image's have none."""
_FILTERS: dict[str, Interpolation] = {
    **{"area": "area", "bilinear": "bilinear", "bicubic": "bicubic"},
    **{"lanczos3": "lanczos", "lanczos5": "lanczos"},
}


def load_kerashub(spec: NetworkSpec) -> Network:
    """The network that `spec` asks for, of Keras Hub, with its weights, frozen and cut.

    Raises
    ------
    MissingPackageError : Keras or Keras Hub is not installed.
    BackboneError : there is no such preset, layer or size, it is no network of one image, or brings code of its own.
    WeightsError : the weights are missing, damaged, of another network, or cannot be downloaded.
    """
    check_pooling(spec.pooling)
    check_tokens(spec.tokens)
    precision = check_precision(spec.precision)
    mode_for(spec, lambda: "none")  # what is wrong is said before anything is fetched
    preset = _Preset.of(spec)
    own, grid = preset.model(spec)
    mode = mode_for(spec, lambda: preset.mode(own))
    made = Cut(
        FeatureSpace(own.name, "", own.side_px, mode, "none", weights_digest(own.model)),
        own.weights,
        transform=preset.transform(own.side_px),
    )
    described = layers_of(own.model, own.side_px)
    layers = tuple(spec.layers) or (_default(own.model, described),)
    network = network_of(own.model, made, layers=layers, pooling="none", precision=precision, side_px=own.side_px)
    return _shaped(network, spec, grid=grid)


def layers_of_kerashub(spec: NetworkSpec) -> list[CutLayer]:
    """Every layer of the network of `spec`, in its order; built without weights."""
    own, _ = _Preset.of(spec).model(replace(spec, weights="random"))
    return layers_of(own.model, own.side_px)


def preset_folder(model: str) -> Path | None:
    """The folder that "kerashub/FOLDER" means; None where it is the name of a preset."""
    path = expanded(model.removeprefix(f"{KERAS_HUB}/"))
    return path if path.is_dir() else None


@dataclass(frozen=True)
class _Preset:
    """A preset of Keras Hub.

    hub : the package
    label : as it was asked for
    source : what Keras Hub knows it by
    folder : None of one that it has by name
    converter : settings of its image converter; None where it has none, or one of which they do not say all
    """

    hub: Any
    label: str
    source: str
    folder: Path | None
    converter: dict[str, Any] | None

    @classmethod
    def of(cls, spec: NetworkSpec) -> _Preset:
        """The one that `spec` names. Raises BackboneError for a name of none, and what brings code of its own."""
        require_keras(spec.model)
        require_extra("kerashub", spec.model)
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import_keras()  # the quiet way, before Keras Hub does
        with quiet():
            hub = import_module("keras_hub")
        name, folder = spec.model.removeprefix(f"{KERAS_HUB}/"), preset_folder(spec.model)
        if folder is not None:
            _check_folder(folder)
            place = str(resolved(folder))  # of a name that a preset has, Keras Hub would take the preset
            return cls(hub, spec.model, place, folder, _converter_in(folder, hub))
        known = hub.models.Backbone.presets
        if name not in known:
            raise BackboneError(
                f"Keras Hub has no preset {name!r:.80}, and there is no such folder: {nearest(name, known)}"
            )
        _refuse_text(hub, name, spec.model)
        with fetching(spec.model, _TO_A_FOLDER), quiet():
            try:
                converter = hub.layers.ImageConverter.from_preset(name)
            except FileNotFoundError:
                converter = None
        said = converter.get_config() if converter is not None and _is_plain(type(converter), hub) else None
        return cls(hub, spec.model, name, None, said)

    def model(self, spec: NetworkSpec) -> tuple[OwnModel, int | None]:
        """Its network, with the weights that are asked for; and how many patches a vision transformer has on a side."""
        is_its_own = spec.weights == "imagenet"
        backbone = self._backbone(load_weights=is_its_own)
        source = WeightsSource("file", name=self.folder.name) if self.folder else WeightsSource.of("imagenet")
        if not is_its_own:
            source = WeightsSource.of(spec.weights, spec.weights_seed)
            if spec.weights == "random":
                randomize(backbone, spec.weights_seed)
            else:
                _assign(backbone, expanded(Path(spec.weights)))
        side_px = self._side(backbone, spec.input_size_px)
        # The same layers as a plain network, of one tensor where a backbone has a dictionary of one.
        plain = import_keras().Model(backbone.inputs[0], backbone.output, name=backbone.name)
        name = architecture_name(json.loads(plain.to_json())) if self.folder else name_of(self.label)
        return OwnModel(plain, name, side_px, source), _grid(backbone, side_px)

    def _backbone(self, *, load_weights: bool) -> keras.Model:
        """The network, of one image. Raises BackboneError for another one."""
        kind = self.hub.models.Backbone
        draws = nullcontext() if load_weights else drawing_zeros()
        try:
            with fetching(self.label, _TO_A_FOLDER), quiet(), _strict(), draws:
                backbone = kind.from_preset(self.source, load_weights=load_weights, dtype="float32")
        except WeightsError as error:
            if self.folder is None:
                raise
            why = one_line(error.__cause__) if isinstance(error.__cause__, Exception) else error.message
            raise BackboneError(f"{self.folder}: Keras Hub cannot load it: {why}") from error
        names = [one.name for one in backbone.inputs]
        if len(names) > 1:
            raise BackboneError(
                f"{self.label}: it takes several inputs ({', '.join(names)}): expected a network of one image"
            )
        shape = tuple(backbone.inputs[0].shape)
        if len(shape) != 4 or shape[3] != 3:
            raise BackboneError(f"{self.label}: expected one input of shape (n, s, s, 3), got {shape}")
        return backbone

    def _side(self, backbone: keras.Model, input_size_px: int | None) -> int:
        """Side of the square input: as asked, else as the converter says, else as the network was built."""
        high, wide = backbone.inputs[0].shape[1:3]
        if high != wide:
            raise BackboneError(f"{self.label}: it takes images of {wide}x{high} px: expected squares")
        said = (self.converter or {}).get("image_size") or (None, None)
        side_px = input_size_px or high or said[0]
        if side_px is None:
            raise BackboneError(f"{self.label}: it takes images of any size", "Set `input_size_px`")
        if high not in (None, side_px):
            raise BackboneError(f"{self.label}: input size {side_px} px: the network was made for {high} px")
        return int(side_px)

    def mode(self, own: OwnModel) -> str:
        """The preprocessing: by its converter, else by its first layers. Raises BackboneError where neither says it."""
        if self.converter is None:
            return own_models.preprocessing_of(own)
        scale, offset = (self.converter.get(name) for name in ("scale", "offset"))
        if scale is None and offset is None:
            return check_mode("none")
        scales, offsets = (np.broadcast_to(np.asarray(value, float), 3) for value in (scale or 1.0, offset or 0.0))
        if not (np.isfinite([scales, offsets]).all() and (scales > 0).all()):
            raise BackboneError(f"{self.label}: its image converter has the scale {scale} and the offset {offset}")
        mean, std = (float(f"{value:.7g}") + 0.0 for value in -offsets / (255 * scales)), 1 / (255 * scales)
        return mode_of(tuple(mean), [float(f"{value:.7g}") for value in std])

    def transform(self, side_px: int) -> Transform | None:
        """How its converter makes images square, for squares of `side_px`; None where it does not say."""
        said = self.converter or {}
        size, filter_ = said.get("image_size"), _FILTERS.get(str(said.get("interpolation")))
        if not size or size[0] != size[1] or filter_ is None:
            return None
        resize: Resize = "stretch"
        if said.get("pad_to_aspect_ratio"):
            resize = "pad"
        elif said.get("crop_to_aspect_ratio", True):
            resize = "crop"
        return Transform(resize, filter_, side_px, BLACK)


def _refuse_text(hub: Any, name: str, label: str) -> None:
    """Raise BackboneError for a preset of a network that takes text, before its huge weights are fetched."""
    owners: list[Any] = [
        kind for kind in vars(hub.models).values() if inspect.isclass(kind) and issubclass(kind, hub.models.Backbone)
    ]
    for owner in owners:
        taken = [one for one in _OF_TEXT if one in inspect.signature(owner).parameters]
        if taken and name in owner.presets:
            raise BackboneError(f"{label}: it takes text ({taken[0]}): expected a network of one image")


# --- folders --------------------------------------------------------------------------------------


def _check_folder(folder: Path) -> None:
    """Raise BackboneError for a folder that is no preset of a network of images, or that brings code of its own."""
    config = _json_in(folder / _CONFIG)
    if not isinstance(config.get("config"), dict):
        raise BackboneError(f"{folder / _CONFIG}: its configuration is no network's")
    if taken := [name for name in _OF_TEXT if name in config["config"]]:
        raise BackboneError(f"{folder}: it takes text ({taken[0]}): expected a network of one image")
    for name in (_CONFIG, _CONVERTER):
        if not (folder / name).is_file():
            continue
        for layer, reason in foreign_parts(_json_in(folder / name), hub=True):
            raise BackboneError(f"{folder / name}: {layer!r:.80}: {reason}")
    for path in sorted(folder.glob("*.h5")):
        try:
            with h5py.File(path, "r", locking=False) as file:
                refuse_outside(file)
        except DAMAGED as error:
            raise WeightsError(f"{path}: not a readable Keras weights file: {one_line(error)}") from error


def _json_in(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError("it is too large")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is no object")
    except FileNotFoundError as error:
        raise BackboneError(f"{path}: there is no such file: the folder is no preset of Keras Hub") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path}: cannot be read: {one_line(error)}") from error
    return value


def _converter_in(folder: Path, hub: Any) -> dict[str, Any] | None:
    """The settings of a folder's image converter; None where it has none, or one of which they do not say all."""
    if not (folder / _CONVERTER).is_file():
        return None
    said = _json_in(folder / _CONVERTER)
    config, kind = said.get("config"), getattr(hub.layers, str(said.get("class_name")), None)
    return config if isinstance(config, dict) and _is_plain(kind, hub) else None


def _is_plain(kind: Any, hub: Any) -> bool:
    """Whether an image converter does what its settings say, and nothing besides."""
    return getattr(kind, "call", None) is hub.layers.ImageConverter.call


@contextmanager
def _strict() -> Iterator[None]:
    """What Keras only warns of raises UserWarning: that a file does not fill every layer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=_UNFILLED, category=UserWarning)
        yield


def _assign(model: keras.Model, path: Path) -> None:
    """Weights of a file. Raises WeightsError for one that is missing, damaged or of another network."""
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    try:
        with h5py.File(path, "r", locking=False) as file:
            refuse_outside(file)
        with _strict():
            model.load_weights(path)
    except WeightsError:
        raise
    except (*DAMAGED, AttributeError, UserWarning) as error:
        raise WeightsError(f"{path}: Keras cannot load it into this network: {one_line(error)}") from error


# --- features -------------------------------------------------------------------------------------


def _default(model: keras.Model, described: list[CutLayer]) -> str:
    """The layer whose output is the network's; where that is none, the last feature map."""
    outputs = model.outputs
    made = getattr(outputs[0]._keras_history.operation, "name", "") if len(outputs) == 1 else ""
    found = [one.name for one in described if one.keras_name == made and "/" not in one.name and not one.problem]
    return found[-1] if found else last_feature_map(described)


def _grid(backbone: keras.Model, side_px: int) -> int | None:
    """How many patches of a vision transformer are along a side; None of other networks."""
    patch = getattr(backbone, "patch_size", None)
    side = patch[0] if isinstance(patch, (tuple, list)) and patch else patch
    return side_px // side if isinstance(side, int) and side > 0 else None


def _shaped(network: Network, spec: NetworkSpec, *, grid: int | None) -> Network:
    """The same network with tokens chosen, and maps pooled, as asked."""
    keras = import_keras()
    outputs, cuts = [], []
    for output, made in zip(network.model.outputs, network.cuts, strict=True):
        label = f"{spec.model}: layer {made.space.layer}"
        shape = made.feature_shape
        if len(shape) == 3 and spec.tokens is None:
            pooled = spec.pooling != "none"
            how = Shaping((), "none", spec.pooling, Prefix(0, False), shape[-1:] if pooled else shape)
        else:
            how = shaping_of(shape, pooling=spec.pooling, tokens=spec.tokens, grid=grid, is_last=True, label=label)
        outputs.append(_as_shaped(output, how, keras))
        space = replace(made.space, pooling=how.pooling, tokens=how.tokens)
        cuts.append(replace(made, space=space, feature_shape=how.feature_shape))
    model = keras.Model(network.model.inputs[0], outputs, name=network.model.name)
    model.trainable = False
    return Network(model, tuple(cuts))


def _as_shaped(x: Any, how: Shaping, keras: Any) -> Any:
    """What `Shaping` does with raw outputs, in the network itself."""
    if how.tokens != "none":
        cls, patches = x[:, 0], x[:, how.prefix.n :]
        if how.tokens == "cls":
            return cls
        if how.tokens == "cls+avg":
            return keras.ops.concatenate([cls, keras.ops.mean(patches, axis=1)], axis=1)
        if how.tokens == "all":
            return keras.ops.concatenate([x[:, :1], patches], axis=1) if how.prefix.has_cls else patches
        side = round(patches.shape[1] ** 0.5)
        x = keras.ops.reshape(patches, (-1, side, side, x.shape[2]))
    if how.pooling == "none" or len(x.shape) == 2:
        return x
    axes = tuple(range(1, len(x.shape) - 1))
    return (keras.ops.mean if how.pooling == "avg" else keras.ops.max)(x, axis=axes)
