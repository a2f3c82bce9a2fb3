"""What a network computes: a backbone, its weights, its input, and where it is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones import own_models, registry, weights
from featcache.backbones.cuts import CutLayer, check_pooling, check_precision, cut, last_feature_map, layers_of
from featcache.backbones.import_keras import import_keras, require_keras
from featcache.backbones.model_names import KERAS_HUB, is_in_registry, kind_of
from featcache.backbones.own_models import one_line
from featcache.backbones.preprocess import mode_for
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import BackboneError
from featcache.core.recipe import FeatureSpace, Precision, Transform, WeightsSource

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Cut:
    """What a network computes at one layer.

    Attributes
    ----------
    space : of the features as they are computed: in "float32", or "uint8" of pixels, from square images
    weights : where they come from
    feature_shape : of one row
    transform : how the network's library makes images square; None where nothing says so
    """

    space: FeatureSpace
    weights: WeightsSource
    feature_shape: tuple[int, ...] = ()
    transform: Transform | None = None

    def stored(self, dtype: str, **framing: Any) -> FeatureSpace:
        """The space of the features in a cache, which keeps them in `dtype`, but pixels in uint8.

        framing : how images become square, in fields of a feature space
        """
        kept = self.space.dtype if self.space.dtype == "uint8" else dtype
        return replace(self.space, dtype=kept, **framing)


@dataclass(frozen=True)
class Network:
    """A loaded network.

    Attributes
    ----------
    model : from preprocessed pixels (n, s, s, 3) to one output a cut, pooled as asked, in the list `model.outputs`
        (called, Keras gives a list where there are several and the output itself where there is one); not trainable
    cuts : one for each output; all of one backbone, input and preprocessing
    """

    model: keras.Model
    cuts: tuple[Cut, ...]


def network_of(
    base: keras.Model,
    made: Cut,
    *,
    layers: Sequence[str],
    pooling: str,
    precision: Precision,
    side_px: int | None = None,
) -> Network:
    """The network that cuts `base` at `layers`.

    made : what is the same for every cut; layer, pooling, shape and precision are put in
    side_px : side of the square input where `base` is for any; None for the size that it was built for
    """
    model, how = cut(base, layers, pooling=pooling, precision=precision, side_px=side_px, label=made.space.backbone)
    cuts = (
        replace(made, space=replace(made.space, layer=layer, pooling=pooled, precision=precision), feature_shape=shape)
        for layer, (pooled, shape) in zip(layers, how, strict=True)
    )
    return Network(model, tuple(cuts))


def load_network(spec: NetworkSpec) -> Network:
    """The network that `spec` asks for, built, with its weights, frozen and cut.

    Raises
    ------
    MissingPackageError : Keras or its backend is not installed.
    BackboneError : an unknown backbone, layer, preprocessing, pooling or precision, too small an input, or a model
        that is damaged or unsafe.
    WeightsError : the weights are missing, damaged or of another network.
    """
    refuse_other_kinds(spec)
    require_keras()
    check_pooling(spec.pooling)
    precision = check_precision(spec.precision)
    if not is_in_registry(spec.model):
        mode_for(spec, lambda: "none")  # what is wrong is said before a file is opened
        return _own_network(spec, precision)
    backbone = registry.get(spec.model)
    mode = mode_for(spec, lambda: backbone.preprocessing)
    size_px = weights.check_input_size(backbone, spec.input_size_px)
    base = weights.load(backbone, spec.weights, seed=spec.weights_seed, input_size_px=size_px)
    made = Cut(
        FeatureSpace(
            backbone=backbone.name,
            layer="",
            input_size_px=size_px,
            preprocessing=mode,
            pooling="none",
            weights_digest=weights.weights_digest(base),
        ),
        WeightsSource.of(spec.weights, spec.weights_seed),
    )
    return network_of(base, made, layers=spec.layers or (backbone.layer,), pooling=spec.pooling, precision=precision)


def _own_network(spec: NetworkSpec, precision: Precision) -> Network:
    """The network of a model from a file or of a builder; the default "imagenet" means the weights it came with."""
    own = own_models.open_own(spec.model, spec.input_size_px, unsafe=spec.unsafe)
    mode = mode_for(spec, lambda: own_models.preprocessing_of(own))
    own = own_models.with_weights(own, spec.weights, seed=spec.weights_seed)
    made = Cut(_space_of(own, "", mode), own.weights)
    with _building(spec.model, own.side_px):
        layers = spec.layers or (last_feature_map(layers_of(own.model, own.side_px)),)
        return network_of(
            own.model, made, layers=layers, pooling=spec.pooling, precision=precision, side_px=own.side_px
        )


def specs_of(models: str | Sequence[str], **settings: Any) -> list[NetworkSpec]:
    """The networks that are asked for, each with these settings; "all" stands for those of the study.

    Raises BackboneError for a wrong name.
    """
    asked = [models] if isinstance(models, str) else models
    named = [name for model in asked for name in (registry.STUDY if model == "all" else (model,))]
    for name in named:
        check_model(name)
    return [NetworkSpec(name, **settings) for name in named]


def check_model(name: str) -> None:
    """Raise BackboneError for what names no network."""
    if kind_of(name) == "registry":
        registry.get(name)


def whole_network(path: Path) -> Network:
    """A classifier that was trained and saved here, from pixels (n, s, s, 3), 0 to 255, to probabilities (n, classes).

    Raises BackboneError for a file that is damaged or brings code of its own.
    """
    own = own_models.open_own(str(path), None, unsafe=False)
    shape = tuple(int(n) for n in own.model.output_shape[1:])
    model = import_keras().Model(own.model.inputs[0], own.model.outputs[0])  # of one tensor, not of a list of one
    return Network(model, (Cut(_space_of(own, own.model.layers[-1].name, "none"), own.weights, shape),))


def _space_of(own: own_models.OwnModel, layer: str, preprocessing: str) -> FeatureSpace:
    return FeatureSpace(
        backbone=own.name,
        layer=layer,
        input_size_px=own.side_px,
        preprocessing=preprocessing,
        pooling="none",
        weights_digest=weights.weights_digest(own.model),
    )


def no_keras(model: str) -> BackboneError:
    """What is said where a network of Keras is needed, and `model` is none."""
    return BackboneError(
        f"{model}: this is no network of Keras: it cannot be trained further or exported whole",
        "Extract features of it, and train a head on them",
    )


def refuse_other_kinds(spec: NetworkSpec) -> None:
    """Raise BackboneError for a network that is not one of Keras, or for what only others can be asked."""
    if kind_of(spec.model) == KERAS_HUB:
        raise BackboneError(
            f"{spec.model}: networks of Keras Hub give features: they cannot be trained further or exported whole",
            "Extract features of it, and train a head on them",
        )
    if kind_of(spec.model) not in ("registry", "file", "builder", "pixels"):
        raise no_keras(spec.model)
    if spec.tokens is not None:
        raise BackboneError(f"{spec.model}: `tokens` is for vision transformers from ONNX files", "Leave out `tokens`")


def keras_layers_to_cut(spec: NetworkSpec) -> list[CutLayer]:
    """Every layer of the network of `spec`, in its order; built without weights where it is one of the registry.

    Raises
    ------
    BackboneError : as of `load_network`.
    """
    if not is_in_registry(spec.model):
        own = own_models.open_own(spec.model, spec.input_size_px, unsafe=spec.unsafe)
        with _building(spec.model, own.side_px):
            return layers_of(own.model, own.side_px)
    return layers_of(weights.build(registry.get(spec.model), spec.input_size_px))


@contextmanager
def _building(model: str, side_px: int) -> Iterator[None]:
    """Turn what Keras says about a network that cannot be into one message."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if isinstance(error, BackboneError):
            raise
        raise BackboneError(f"{model}: it cannot be built for {side_px} px: {one_line(error)}") from error
