"""The formats of exported models: how each is written, what it carries, and how its own runtime opens it."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import (
    SIGNATURES,
    foreign_parts,
    frozen_graph,
    import_keras,
    import_openvino,
    onnx_session,
    openvino_model,
    save_frozen,
    without_large,
)
from featcache.core.errors import BackboneError, FeatcacheError
from featcache.deployment.graph import PIXELS_NAME, outputs_of

if TYPE_CHECKING:
    import keras

Compute = Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]
"""From pixels (n, s, s, 3) to the outputs by their names."""


class Write(Protocol):
    """Writes a model of `graph_of` with its description."""

    def __call__(self, model: keras.Model, path: Path, *, description: str) -> None:
        """Raise whatever the libraries raise."""


KEY = "featcache"
"""Under which a model carries its description, a JSON text; files of their own add ".json"."""

_ROWS = "n"
_NO_ROOM = re.compile("no space left|iostream error", re.IGNORECASE)
"""What TensorFlow and OpenVINO say of a full disk."""
_UNKNOWN = "No conversion rule found for operations:"
"""What OpenVINO says before the operations that it does not know."""


@dataclass(frozen=True)
class Format:
    """A format of models.

    Attributes
    ----------
    suffix : of its file's or folder's name
    package : what runs it
    write : a model and its description to a path
    read : opens what `write` wrote: (what it computes, the description)
    companions : suffixes of further files of the same stem
    is_folder : whether it is one
    """

    suffix: str
    package: str
    write: Write
    read: Callable[[Path], tuple[Compute, str]]
    companions: tuple[str, ...] = ()
    is_folder: bool = False


# Keras


def _write_keras(model: keras.Model, path: Path, *, description: str) -> None:
    for layer, reason in foreign_parts(json.loads(model.to_json())):
        raise _refusal("keras", layer, reason=reason)
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(f"{KEY}.json", (1980, 1, 1, 0, 0, 0)), description)


def _read_keras(path: Path) -> tuple[Compute, str]:
    model = import_keras().saving.load_model(path, compile=False, safe_mode=True)
    with zipfile.ZipFile(path) as archive:
        return computed_by(model), archive.read(f"{KEY}.json").decode()


def computed_by(model: keras.Model) -> Compute:
    """What a Keras model computes."""
    names = tuple(outputs_of(model))

    def compute(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        keras = import_keras()
        values = keras.tree.flatten(model(pixels, training=False))
        return {name: keras.ops.convert_to_numpy(value) for name, value in zip(names, values, strict=True)}

    return compute


# SavedModel


def _write_savedmodel(model: keras.Model, path: Path, *, description: str) -> None:
    save_frozen(frozen_graph(model), path, input_=model.inputs[0], outputs=tuple(outputs_of(model)))
    extra = path / "assets.extra"  # where TensorFlow leaves alone what others add
    extra.mkdir()
    (extra / f"{KEY}.json").write_text(description, "utf-8")


def _read_savedmodel(path: Path) -> tuple[Compute, str]:
    layer = import_keras().layers.TFSMLayer(str(path), call_endpoint=SIGNATURES[0])

    def compute(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return {name: value.numpy() for name, value in layer(pixels).items()}

    return compute, (path / "assets.extra" / f"{KEY}.json").read_text("utf-8")


# ONNX


def _write_onnx(model: keras.Model, path: Path, *, description: str) -> None:
    """By tf2onnx, from a graph whose weights are put in afterwards.

    Keras' own export goes there too, but leaves constants of EfficientNets out, calls of functions in ConvNeXts, and
    copies weights until they take fifty times their memory.
    """
    import onnx
    import tf2onnx

    graph, names = frozen_graph(model, flat=True), tuple(outputs_of(model))
    definition, held = without_large(graph)
    renamed = {graph.input: PIXELS_NAME, **dict(zip(graph.outputs, names, strict=True))}
    with _quiet("tf2onnx"):
        made, _ = tf2onnx.convert.from_graph_def(
            definition,
            name=model.name,
            input_names=[graph.input, *held],
            output_names=list(graph.outputs),
            tensors_to_rename=renamed,
            custom_op_handlers={"Erfc": (_erfc, [])},
        )
    known = {version.domain: version.version for version in made.opset_import}
    for node in made.graph.node:
        if not (node.domain in known and onnx.defs.has(node.op_type, known[node.domain], node.domain)):
            raise ValueError(f"{node.name}: ONNX has no {node.op_type}")
    _put_weights(made.graph, held)
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = _ROWS
    onnx.helper.set_model_props(made, {KEY: description})
    onnx.save(made, path)


def _put_weights(graph: Any, held: dict[str, NDArray[Any]]) -> None:
    """Make inputs of an ONNX graph constants, in the order of axes in which they are used."""
    import onnx

    inputs = [value for value in graph.input if value.name not in held]
    kept = []
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in held:
            (axes,) = (attribute.ints for attribute in node.attribute)
            held[node.output[0]] = held[node.input[0]].transpose(axes)
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    for field, values in ((graph.input, inputs), (graph.node, kept)):
        del field[:]
        field.extend(values)
    for name, value in held.items():
        if name in used:
            graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))


def _erfc(context: Any, node: Any, *_: Any) -> None:
    """1 - erf(x): tf2onnx does not know the error function's complement, which TensorFlow makes GELU of."""
    complement = node.output[0]
    users = context.find_output_consumers(complement)
    node.type = "Erf"
    one = context.make_const(f"{complement}/one", np.array(1, np.float32)).output[0]
    made = context.make_node("Sub", [one, complement], shapes=node.output_shapes, dtypes=node.output_dtypes)
    for user in users:
        context.replace_input(user, complement, made.output[0])


def _read_onnx(path: Path) -> tuple[Compute, str]:
    session = onnx_session(str(path))
    names = [output.name for output in session.get_outputs()]

    def compute(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(names, session.run(names, {PIXELS_NAME: pixels}), strict=True))

    return compute, session.get_modelmeta().custom_metadata_map[KEY]


# OpenVINO


def _write_openvino(model: keras.Model, path: Path, *, description: str) -> None:
    openvino = import_openvino()
    graph = frozen_graph(model)
    try:
        read = openvino_model(graph)
    except RuntimeError as error:
        unknown = set(re.findall(r"\w+", str(error).partition(_UNKNOWN)[2].partition("\n")[0]))
        scopes = [f"{node.name}: OpenVINO has no {node.op}" for node in graph.definition.node if node.op in unknown]
        raise ValueError(scopes[0] if scopes else str(error)) from error
    results = [read.output(name).get_node() for name in graph.outputs]
    made = openvino.Model(results, read.get_parameters(), model.name)
    for tensor, name in zip((*made.inputs, *made.outputs), (PIXELS_NAME, *outputs_of(model)), strict=True):
        tensor.get_tensor().set_names({name})
    made.set_rt_info(description, [KEY])
    openvino.save_model(made, path, compress_to_fp16=False)


def _read_openvino(path: Path) -> tuple[Compute, str]:
    openvino = import_openvino()
    core = openvino.Core()
    graph = core.read_model(path)
    names = [output.any_name for output in graph.outputs]
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def compute(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(names, compiled(pixels).to_tuple(), strict=True))

    return compute, str(graph.get_rt_info([KEY]).astype(str))


FORMATS: Mapping[str, Format] = {
    "keras": Format(".keras", "keras", _write_keras, _read_keras),
    "savedmodel": Format(".savedmodel", "tensorflow", _write_savedmodel, _read_savedmodel, is_folder=True),
    "onnx": Format(".onnx", "onnxruntime", _write_onnx, _read_onnx),
    "openvino": Format(".xml", "openvino", _write_openvino, _read_openvino, companions=(".bin",)),
}


def write(format_: str, model: keras.Model, *, path: Path, description: str) -> None:
    """Write a model of `graph_of` in a format, with its description, to a path that is not there.

    Raises BackboneError, naming the layer, for a network that the format cannot take; OSError for a full disk.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            FORMATS[format_].write(model, path, description=description)
    except Exception as error:
        words = str(error)
        if isinstance(error, (OSError, FeatcacheError)):
            raise
        if _NO_ROOM.search(words):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise _refusal(format_, layer_in(words, model), reason=words or type(error).__name__) from error


def _refusal(format_: str, layer: str, *, reason: str) -> BackboneError:
    """That a format cannot take a network."""
    return BackboneError(
        f"{f'layer {layer}: ' if layer else ''}{format_} cannot take this network ({' '.join(reason.split()):.300})",
        f"Export it in another format: {', '.join(name for name in FORMATS if name != format_)}",
    )


def layer_in(words: str, model: keras.Model) -> str:
    """The layer whose name stands in an error's words, within the names of its tensors; "" where none does."""
    layers = {
        layer.name
        for layer in model._flatten_layers(include_self=False, recursive=True)
        if not isinstance(layer, import_keras().Model)
    }
    for scope in re.findall(r"[\w.-]+(?:/[\w.-]+)+", words):
        for part in reversed(scope.split("/")):
            for name in (part, re.sub(r"_\d+$", "", part)):
                if name in layers:
                    return name
    return ""


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """A library's log says nothing: what goes wrong is raised."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
