"""Cuts a network: one model from its input to the outputs of chosen layers, pooled, in a chosen precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

from featcache.backbones.import_keras import import_keras
from featcache.backbones.layer_names import stable_names
from featcache.core.errors import BackboneError, nearest
from featcache.core.recipe import Pooling, Precision

if TYPE_CHECKING:
    import keras

POOLINGS, PRECISIONS = get_args(Pooling), get_args(Precision)
_RANKS = (2, 3, 4)


def check_pooling(pooling: str) -> str:
    """`pooling`, if it is one of `POOLINGS`; else BackboneError."""
    if pooling not in POOLINGS:
        raise BackboneError(f"there is no pooling {pooling!r}: {nearest(pooling, POOLINGS)}")
    return pooling


def check_precision(precision: str) -> Precision:
    """`precision`, if it is one of `PRECISIONS`; else BackboneError."""
    if precision not in PRECISIONS:
        raise BackboneError(f"there is no precision {precision!r}: {nearest(precision, PRECISIONS)}")
    return cast(Precision, precision)


@dataclass(frozen=True)
class CutLayer:
    """A layer that may be cut.

    Attributes
    ----------
    name : its stable name; within a nested network "network/layer".
    output_shape : of one image, without the batch; None for a size that is not fixed; () for several outputs.
    keras_name : what Keras calls it, without the networks around it.
    uses : how often the network uses it.
    """

    name: str
    output_shape: tuple[int | None, ...]
    keras_name: str
    uses: int = 1

    @property
    def problem(self) -> str:
        """Why it cannot be cut; "" where it can."""
        if self.uses != 1:
            return f"the network uses it {self.uses} times"
        if not self.output_shape:
            return "it has several outputs"
        if len(self.output_shape) + 1 not in _RANKS:
            return f"its output has the shape {self.output_shape}, expected 1, 2 or 3 axes an image"
        return f"its output has no fixed shape: {self.output_shape}" if None in self.output_shape else ""


def layers_of(model: keras.Model, side_px: int | None = None) -> list[CutLayer]:
    """Every layer of `model` but its inputs, in its order, those of nested networks before the network itself.

    side_px : side of the square input, for models of any size; None for the size that the model was built for
    """
    return _described(_traced(model, side_px) if side_px else _built(model))


def last_feature_map(layers: Sequence[CutLayer]) -> str:
    """The name of the last layer with an output of shape (h, w, c) an image that is not within another network.

    Raises
    ------
    BackboneError : there is none.
    """
    for layer in reversed(layers):
        if len(layer.output_shape) == 3 and not layer.problem and "/" not in layer.name:
            return layer.name
    raise BackboneError("no layer gives a feature map of fixed shape (h, w, c): name a layer")


def cut(
    model: keras.Model,
    layers: Sequence[str],
    *,
    pooling: str = "none",
    precision: str = "float32",
    side_px: int | None = None,
    label: str = "",
) -> tuple[keras.Model, list[tuple[str, tuple[int, ...]]]]:
    """One model from the input of `model` to every one of `layers`, and how it gives each.

    Parameters
    ----------
    model : a Functional or Sequential network of one input; its layers are shared, not copied
    layers : names as in `layers_of`, none twice
    pooling : "none", "avg" or "max" over all axes between batch and channels
    precision : of the arithmetic of every layer but rescaling and normalisation of pixels; weights stay
        float32, and so do outputs, which are cast before they are pooled. It changes the layers of `model` itself.
    side_px : as in `layers_of`
    label : what errors call the network; "" for Keras' name of it

    Returns
    -------
    model : keras.Model with a list of outputs, float32, one for each of `layers`; not trainable
    how : (pooling, shape of one row's features) of each output; nothing is pooled where there is one axis

    Raises
    ------
    BackboneError : an unknown pooling, precision or layer, a layer twice, or one that cannot be cut.
    """
    check_pooling(pooling)
    check_precision(precision)
    keras = import_keras()
    if side_px is None and precision == "float32" and not any("/" in name for name in layers):
        tensors = _built(model)
    else:
        _set_precision(model, precision)
        tensors = _traced(model, side_px)
    _check_layers(label or model.name, layers, _described(tensors))
    outputs = [tensors.outputs[name][0] for name in layers]
    finished = [_finished(output, pooling, precision) for output in outputs]
    result = keras.Model(tensors.inputs, finished, name=model.name)
    result.trainable = False
    how = [
        (pooling if len(output.shape) > 2 else "none", tuple(int(n) for n in done.shape[1:]))
        for output, done in zip(outputs, finished, strict=True)
    ]
    return result, how


def _check_layers(network: str, layers: Sequence[str], described: Sequence[CutLayer]) -> None:
    known = {layer.name: layer for layer in described}
    for name in layers:
        if name not in known:
            raise BackboneError(f"{network}: there is no layer {name!r}: {_near(name, described)}")
        if problem := known[name].problem:
            raise BackboneError(f"{network}: layer {name} cannot be cut: {problem}")
    if twice := [name for name in layers if layers.count(name) > 1]:
        raise BackboneError(f"{network}: layer {twice[0]} is named twice: name each layer once")


def _near(name: str, known: Sequence[CutLayer]) -> str:
    """What `name` may have meant: a layer that Keras calls so, else those with names like it."""
    renamed = [layer.name for layer in known if layer.keras_name == name]
    if renamed:
        return f"here it is called {' or '.join(renamed)}"
    close = nearest(name, (layer.name for layer in known))
    return close if close.startswith("did") else "'featcache models NAME --layers' lists them"


# --- tensors of layers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensors:
    """The symbolic outputs of a network's layers.

    inputs : the network's input
    outputs : of each layer, by its stable path; one for each of its uses
    keras_names : what Keras calls each layer, by the same path
    """

    inputs: Any
    outputs: dict[str, list[Any]]
    keras_names: dict[str, str]


def _described(tensors: _Tensors) -> list[CutLayer]:
    return [
        CutLayer(path, _shape(outputs[0]), tensors.keras_names[path], len(outputs))
        for path, outputs in tensors.outputs.items()
    ]


def _shape(output: Any) -> tuple[int | None, ...]:
    return tuple(output.shape[1:]) if hasattr(output, "shape") else ()


def _named(model: Any, prefix: str) -> list[tuple[str, Any]]:
    """(stable path, layer) for every layer of one level, in the network's order; its inputs are left out."""
    input_layer = import_keras().layers.InputLayer
    layers = [layer for layer in model.layers if not isinstance(layer, input_layer)]
    names = stable_names((type(layer).__name__, layer.name) for layer in layers)
    return [(prefix + name, layer) for name, layer in zip(names, layers, strict=True)]


def _is_open(layer: Any) -> bool:
    """Whether a layer is a network of one input whose own layers can be reached."""
    models = import_keras().models
    if isinstance(layer, models.Sequential):
        return bool(layer.built)
    return isinstance(layer, models.Model) and hasattr(layer, "operations") and len(layer.inputs) == 1


def _built(model: Any) -> _Tensors:
    """The tensors that were made when the network was built; those of nested networks have inputs of their own."""
    outputs: dict[str, list[Any]] = {}
    keras_names = {}

    def walk(network: Any, prefix: str) -> None:
        made: dict[int, list[Any]] = {}
        # A layer's own output may be that of another network which it is in as well.
        by_depth = (getattr(network, "_functional", None) or network)._nodes_by_depth
        for node in (node for nodes in by_depth.values() for node in nodes):
            tensors = node.output_tensors
            made.setdefault(id(node.operation), []).append(tensors[0] if len(tensors) == 1 else tensors)
        for path, layer in _named(network, prefix):
            if _is_open(layer):
                walk(layer, f"{path}/")
            outputs[path], keras_names[path] = made[id(layer)], layer.name

    walk(model, "")
    return _Tensors(model.input, outputs, keras_names)


def _traced(model: Any, side_px: int | None) -> _Tensors:
    """The tensors of calling every layer once more, one by one, nested networks' layers included."""
    keras = import_keras()
    inputs = keras.Input((side_px, side_px, 3) if side_px else model.input_shape[1:], name="pixels")
    outputs: dict[str, list[Any]] = {}
    keras_names = {}

    def run(network: Any, tensor: Any, *, prefix: str) -> Any:
        named = _named(network, prefix)
        paths = {id(layer): path for path, layer in named}

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            path = paths.get(id(layer))
            output = run(layer, args[0], prefix=f"{path}/") if path and _is_open(layer) else layer(*args, **kwargs)
            if path:
                outputs.setdefault(path, []).append(output)
                keras_names[path] = layer.name
            return output

        if isinstance(network, keras.Sequential):
            for _, layer in named:
                tensor = call(layer, tensor)
            return tensor
        tensor = [tensor] if isinstance(network.input, list) else tensor
        return keras.models.clone_model(
            network, input_tensors=tensor, clone_function=lambda layer: layer, call_function=call
        ).output

    run(model, inputs, prefix="")
    return _Tensors(inputs, outputs, keras_names)


# --- precision ------------------------------------------------------------------------------------


@contextmanager
def in_float32(model: keras.Model) -> Iterator[None]:
    """Every layer of `model` computes in float32 in the block: for what is traced from it in another way."""
    layers = list(model._flatten_layers(include_self=False, recursive=True))
    policies = [layer.dtype_policy for layer in layers]
    _set_precision(model, "float32")
    try:
        yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            layer.dtype_policy = policy


def _set_precision(model: keras.Model, precision: str) -> None:
    """Let every layer compute in `precision` on weights that stay as they are.

    Rescaling and Normalization stay in float32: they turn pixels into what the network was trained on.
    """
    keras = import_keras()
    exempt = (keras.layers.Rescaling, keras.layers.Normalization, keras.layers.InputLayer, keras.Model)
    for layer in model._flatten_layers(include_self=False, recursive=True):
        low = precision != "float32" and not isinstance(layer, exempt)
        layer.dtype_policy = f"mixed_{precision}" if low else "float32"


def _finished(output: Any, pooling: str, precision: str) -> Any:
    """A layer's output as float32, pooled as asked."""
    layers = import_keras().layers
    if precision != "float32":
        output = layers.Activation("linear", dtype="float32")(output)
    if pooling == "none" or len(output.shape) == 2:
        return output
    kind = {"avg": "Average", "max": "Max"}[pooling]
    layer = getattr(layers, f"Global{kind}Pooling{len(output.shape) - 2}D")
    return layer(dtype="float32", data_format="channels_last")(output)
