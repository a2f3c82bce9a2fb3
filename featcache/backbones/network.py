"""What a network is asked to be, and what it computes: a backbone, its weights, its input, and where it is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbones import own_models, registry, weights
from featcache.backbones.cuts import CutLayer, check_pooling, check_precision, cut, last_feature_map, layers_of
from featcache.backbones.import_keras import require_keras
from featcache.backbones.own_models import one_line
from featcache.backbones.preprocess import check_mode
from featcache.core.errors import BackboneError
from featcache.core.recipe import FeatureSpace, Precision

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class NetworkSpec:
    """A network as a person asks for it; None or () means: as the backbone has it.

    Attributes
    ----------
    model : a name of the registry, the path of a .keras or .h5 model, "module:attribute" of a builder, or "pixels"
    weights : "imagenet", "random" or the path of a weights file; "" too where the model is "pixels", which have none
    weights_seed : of random weights
    input_size_px : side of the square input
    preprocessing : one of `preprocess.MODES`; None or "model" for the one the weights were trained with
    layers : layers whose outputs are taken, one cache each; () for the backbone's last feature map
    pooling : "none", "avg" or "max" over height and width
    precision : of the network's arithmetic; it changes values, so it is part of the recipe
    unsafe : whether code from a model's file may run
    """

    model: str
    weights: str = "imagenet"
    weights_seed: int = 0
    input_size_px: int | None = None
    preprocessing: str | None = None
    layers: tuple[str, ...] = ()
    pooling: str = "none"
    precision: Precision = "float32"
    unsafe: bool = False


@dataclass(frozen=True)
class Cut:
    """What a network computes at one layer: the part of a recipe that the backbone decides.

    Attributes
    ----------
    backbone : name in the registry; for any other model a name made of its architecture.
    layer : the layer whose output is taken.
    input_size_px : side of the square input.
    preprocessing : one of `preprocess.MODES`.
    pooling : "none", "avg" or "max".
    weights : "imagenet", "random-SEED" or a file's name, "" of pixels; for people, never compared.
    weights_digest : see `weights.weights_digest`.
    feature_shape : shape of one row's features.
    precision : of the network's arithmetic.
    dtype : "uint8" where features are kept as such; "float32" where they may be kept as float16 too.
    """

    backbone: str
    layer: str
    input_size_px: int
    preprocessing: str
    pooling: str
    weights: str
    weights_digest: str
    feature_shape: tuple[int, ...]
    precision: Precision = "float32"
    dtype: str = "float32"


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
    model, how = cut(base, layers, pooling=pooling, precision=precision, side_px=side_px, label=made.backbone)
    cuts = (
        replace(made, layer=layer, pooling=pooled, feature_shape=shape, precision=precision)
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
    require_keras()
    check_pooling(spec.pooling)
    check_precision(spec.precision)
    if spec.preprocessing not in (None, "model"):
        check_mode(str(spec.preprocessing))
    if own_models.is_file(spec.model) or own_models.is_builder(spec.model):
        return _own_network(spec)
    backbone = registry.get(spec.model)
    size_px = weights.check_input_size(backbone, spec.input_size_px)
    base = weights.load(backbone, spec.weights, seed=spec.weights_seed, input_size_px=size_px)
    made = Cut(
        backbone=backbone.name,
        layer="",
        input_size_px=size_px,
        preprocessing=backbone.preprocessing if spec.preprocessing in (None, "model") else str(spec.preprocessing),
        pooling="none",
        weights=weights.label(spec.weights, spec.weights_seed),
        weights_digest=weights.weights_digest(base),
        feature_shape=(),
    )
    return network_of(
        base, made, layers=spec.layers or (backbone.layer,), pooling=spec.pooling, precision=spec.precision
    )


def _own_network(spec: NetworkSpec) -> Network:
    """The network of a model from a file or of a builder; the default "imagenet" means the weights it came with."""
    own = own_models.open_own(spec.model, spec.input_size_px, unsafe=spec.unsafe)
    mode = own_models.preprocessing_of(own, spec.preprocessing)
    own = own_models.with_weights(own, spec.weights, seed=spec.weights_seed)
    made = Cut(
        backbone=own.name,
        layer="",
        input_size_px=own.side_px,
        preprocessing=mode,
        pooling="none",
        weights=own.weights,
        weights_digest=weights.weights_digest(own.model),
        feature_shape=(),
    )
    with _building(spec.model, own.side_px):
        layers = spec.layers or (last_feature_map(layers_of(own.model, own.side_px)),)
        return network_of(
            own.model, made, layers=layers, pooling=spec.pooling, precision=spec.precision, side_px=own.side_px
        )


def named_models(models: str | Sequence[str]) -> list[str]:
    """The models that are asked for; "all" stands for those of the study. Raises BackboneError for a wrong name."""
    asked = [models] if isinstance(models, str) else models
    named = [name for model in asked for name in (registry.STUDY if model == "all" else (model,))]
    for name in named:
        if not (name == registry.PIXELS or own_models.is_file(name) or own_models.is_builder(name)):
            registry.get(name)
    return named


def whole_network(path: Path) -> Network:
    """A classifier that was trained and saved here, from pixels (n, s, s, 3), 0 to 255, to probabilities (n, classes).

    Raises BackboneError for a file that is damaged or brings code of its own.
    """
    own = own_models.open_own(str(path), None, unsafe=False)
    cut = Cut(
        backbone=own.name,
        layer=own.model.layers[-1].name,
        input_size_px=own.side_px,
        preprocessing="none",
        pooling="none",
        weights=own.weights,
        weights_digest=weights.weights_digest(own.model),
        feature_shape=tuple(int(n) for n in own.model.output_shape[1:]),
    )
    return Network(own.model, (cut,))


def layers_to_cut(spec: NetworkSpec) -> list[CutLayer]:
    """Every layer of the network of `spec`, in its order; built without weights where it is one of the registry.

    Raises
    ------
    BackboneError : as of `load_network`.
    """
    if own_models.is_file(spec.model) or own_models.is_builder(spec.model):
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


def space_of(cut: Cut, dtype: str, *, resize: str = "stretch") -> FeatureSpace:
    """The feature space of one output of a network, kept in `dtype`; of pixels, whatever that is, in uint8."""
    return FeatureSpace(
        backbone=cut.backbone,
        layer=cut.layer,
        input_size_px=cut.input_size_px,
        preprocessing=cut.preprocessing,
        pooling=cut.pooling,
        weights_digest=cut.weights_digest,
        dtype=cut.dtype if cut.dtype == "uint8" else dtype,
        precision=cut.precision,
        resize=resize,
    )
