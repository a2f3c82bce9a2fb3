"""Cuts a network: one model from its input to the outputs of chosen layers, pooled, in a chosen precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featcache.backbones.layer_names import stable_names
from featcache.backbones.quiet_keras import import_keras
from featcache.errors import BackboneError, nearest

if TYPE_CHECKING:
    import keras

POOLINGS = ("none", "avg", "max")
PRECISIONS = ("float32", "bfloat16", "float16")
_RANKS = (2, 3, 4)


def check_pooling(pooling: str) -> str:
    """`pooling`, if it is one of `POOLINGS`; else BackboneError."""
    if pooling not in POOLINGS:
        raise BackboneError(f"there is no pooling {pooling!r}: {nearest(pooling, POOLINGS)}")
    return pooling


def check_precision(precision: str) -> str:
    """`precision`, if it is one of `PRECISIONS`; else BackboneError."""
    if precision not in PRECISIONS:
        raise BackboneError(f"there is no precision {precision!r}: {nearest(precision, PRECISIONS)}")
    return precision


@dataclass(frozen=True)
class CutLayer:
    """A layer that can be cut.

    Attributes
    ----------
    name : its stable name; within a nested network "network/layer".
    output_shape : of one image, without the batch; None for a size that is not fixed; () for several outputs.
    keras_name : what Keras calls it, without the networks around it.
    """

    name: str
    output_shape: tuple[int | None, ...]
    keras_name: str

    @property
    def problem(self) -> str:
        """Why it cannot be cut; "" where it can."""
        if not self.output_shape:
            return "it has not one output but several"
        if len(self.output_shape) + 1 not in _RANKS:
            return f"its output has the shape {self.output_shape}, expected 1, 2 or 3 axes an image"
        return f"its output has no fixed shape: {self.output_shape}" if None in self.output_shape else ""


def layers_of(model: keras.Model) -> list[CutLayer]:
    """Every layer of `model` but its inputs, in its order, those of nested networks before the network itself."""
    return [CutLayer(path, _output_shape(layer), str(layer.name)) for path, layer in _walk(model)]


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
    model: keras.Model, layers: Sequence[str], pooling: str = "none", precision: str = "float32"
) -> tuple[keras.Model, list[tuple[str, tuple[int, ...]]]]:
    """One model from the input of `model` to every one of `layers`, and how it gives each.

    Parameters
    ----------
    model : a Functional or Sequential network of one input; its layers are shared, not copied
    layers : names as in `layers_of`, none twice
    pooling : "none", "avg" or "max" over all axes between batch and channels
    precision : of the arithmetic of every layer but rescaling and normalisation of pixels; weights stay
        float32, and so do outputs, which are cast before they are pooled. Other than "float32" changes the
        layers of `model` itself.

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
    _check_layers(model, layers)
    keras = import_keras()
    if _as_it_is(model, layers, precision):
        inputs = model.input
        tensors = dict(_walk(model))
        outputs = [tensors[name].output for name in layers]
    else:
        _set_precision(model, precision)
        inputs = keras.Input(model.input_shape[1:], name="pixels")
        traced = _Trace(layers)
        traced.run(model, inputs, "")
        outputs = [traced.output(name) for name in layers]
    finished = [_finished(output, pooling, precision) for output in outputs]
    result = keras.Model(inputs, finished, name=model.name)
    result.trainable = False
    how = [
        (pooling if len(output.shape) > 2 else "none", tuple(int(n) for n in done.shape[1:]))
        for output, done in zip(outputs, finished, strict=True)
    ]
    return result, how


def _check_layers(model: keras.Model, layers: Sequence[str]) -> None:
    known = {layer.name: layer for layer in layers_of(model)}
    for name in layers:
        if name not in known:
            raise BackboneError(f"{model.name}: there is no layer {name!r}: {_near(name, known.values())}")
        if problem := known[name].problem:
            raise BackboneError(f"{model.name}: layer {name} cannot be cut: {problem}")
    if twice := [name for name in layers if layers.count(name) > 1]:
        raise BackboneError(f"{model.name}: layer {twice[0]} is named twice: name each layer once")


def _near(name: str, known: Any) -> str:
    """What `name` may have meant: a layer that Keras calls so, else those with names like it."""
    renamed = [layer.name for layer in known if layer.keras_name == name]
    if renamed:
        return f"here it is called {' or '.join(renamed)}"
    close = nearest(name, (layer.name for layer in known))
    return close if close.startswith("did") else "'featcache models NAME --layers' lists them"


def _walk(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(stable path, layer) for every layer of a network, nested ones before the network that holds them."""
    keras = import_keras()
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    names = stable_names((type(layer).__name__, layer.name) for layer in layers)
    for name, layer in zip(names, layers, strict=True):
        if _is_open(layer):
            yield from _walk(layer, f"{prefix}{name}/")
        yield prefix + name, layer


def _is_open(layer: Any) -> bool:
    """Whether a layer is a network whose own layers can be reached."""
    keras = import_keras()
    if isinstance(layer, keras.Sequential):
        return bool(layer.built)
    return isinstance(layer, keras.Model) and hasattr(layer, "operations") and len(layer.inputs) == 1


def _output_shape(layer: Any) -> tuple[int | None, ...]:
    output = layer.output
    return tuple(output.shape[1:]) if hasattr(output, "shape") else ()


def _as_it_is(model: keras.Model, layers: Sequence[str], precision: str) -> bool:
    """Whether the tensors that were made when the network was built are the outputs asked for."""
    if precision != "float32" or any("/" in name for name in layers) or isinstance(model, import_keras().Sequential):
        return False
    return all(layer.compute_dtype == "float32" for layer in model.layers)


# --- precision ------------------------------------------------------------------------------------


def _set_precision(model: keras.Model, precision: str) -> None:
    """Let every layer compute in `precision` on weights that stay as they are.

    Rescaling and Normalization stay in float32: they turn pixels into what the network was trained on.
    """
    keras = import_keras()
    exempt = (keras.layers.Rescaling, keras.layers.Normalization, keras.layers.InputLayer)
    for layer in _leaves(model):
        low = precision != "float32" and not isinstance(layer, exempt)
        layer.dtype_policy = f"mixed_{precision}" if low else "float32"


def _leaves(layer: Any) -> Iterator[Any]:
    """Every layer below a layer, but not networks, which compute nothing themselves."""
    keras = import_keras()
    below = layer._flatten_layers(include_self=False, recursive=True)
    return (inner for inner in below if not isinstance(inner, keras.Model))


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


# --- tracing --------------------------------------------------------------------------------------


class _Trace:
    """Calls the layers of a network once more, one by one, entering those nested networks that are to be cut."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = wanted
        self._outputs: dict[str, list[Any]] = {}

    def output(self, name: str) -> Any:
        """The output of the layer called `name`."""
        found = self._outputs.get(name, [])
        if len(found) != 1:
            raise BackboneError(f"layer {name} cannot be cut: expected one use of it in the network, got {len(found)}")
        return found[0]

    def run(self, model: Any, inputs: Any, prefix: str) -> Any:
        """The output of a network for `inputs`, a symbolic tensor."""
        keras = import_keras()
        layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        names = stable_names((type(layer).__name__, layer.name) for layer in layers)
        paths = {id(layer): prefix + name for layer, name in zip(layers, names, strict=True)}

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            path = paths.get(id(layer))
            if path and _is_open(layer) and any(name.startswith(f"{path}/") for name in self._wanted):
                output = self.run(layer, args[0], f"{path}/")
            else:
                output = layer(*args, **kwargs)
            if path:
                self._outputs.setdefault(path, []).append(output)
            return output

        if isinstance(model, keras.Sequential):
            for layer in layers:
                inputs = call(layer, inputs)
            return inputs
        same = keras.models.clone_model(
            model, input_tensors=inputs, clone_function=lambda layer: layer, call_function=call
        )
        return same.output
