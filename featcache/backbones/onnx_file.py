"""Reads an ONNX file that may come from anybody: one model with its weights in it, its input, and its two digests.

    file -> model, checked; external weights read from beside it -> digest of the graph, digest of the weights

An ONNX file holds no code of its own. What it may do is name weights in other files, which are read only within its
own folder, and be damaged in any way, which is one message.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import BackboneError
from featcache.core.extras import require_extra
from featcache.core.files import resolved
from featcache.core.recipe import digest

SUFFIX = ".onnx"
_MOST_BYTES = (1 << 31) - (1 << 20)
"""What a message of protobuf can be, and so a model with its weights in it."""
_DOMAINS = {"ai.onnx": ""}
_AGAIN = "Export it again, or have the file sent again"


@dataclass(frozen=True)
class Input:
    """The one input of a network.

    Attributes
    ----------
    name : of its tensor
    channels_first : whether it takes (n, 3, h, w), and not (n, h, w, 3)
    side_px : of the square image; None where it takes any
    batch : rows that it takes at once; None where it takes any
    dtype : of its values
    """

    name: str
    channels_first: bool
    side_px: int | None
    batch: int | None
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class OnnxFile:
    """A model that was read.

    Attributes
    ----------
    path : where
    model : onnx.ModelProto, with all of its weights in it
    name : made of its graph: the same for every name of the file, of its tensors, and however the weights lie in it
    weights_digest : over the weights in the order in which the graph uses them
    input : see `Input`
    is_external : whether weights lie in other files
    """

    path: Path
    model: Any
    name: str
    weights_digest: str
    input: Input
    is_external: bool


def read_onnx(path: Path) -> OnnxFile:
    """The model in an ONNX file.

    Raises
    ------
    MissingPackageError : the package onnx is not installed.
    BackboneError : the file is missing or damaged, names weights outside of its folder, or is not from one RGB image.
    """
    require_extra("onnx", "an ONNX file")
    onnx = importlib.import_module("onnx")
    if not path.is_file():
        raise BackboneError(f"{path}: there is no such model file")
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
        is_external = _with_weights(model, path)
        model.CopyFrom(onnx.inliner.inline_local_functions(model)) if model.functions else None
        _check(onnx, model)
        graph_digest, weights_digest = _digests(onnx, model)
        given = _input_of(onnx, model.graph)
    except BackboneError as error:
        raise BackboneError(f"{path}: {error.message}", error.hint) from error
    except OSError as error:
        raise BackboneError(f"{path}: it cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf, onnx and NumPy each have errors of their own for what is damaged
        raise BackboneError(
            f"{path}: not a readable ONNX model (damaged or cut off?): {_line(error)}", _AGAIN
        ) from error
    return OnnxFile(path, model, f"onnx-{graph_digest[:8]}", weights_digest, given, is_external)


def _line(error: BaseException) -> str:
    """What a library says, as the beginning of one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check(onnx: Any, model: Any) -> None:
    if not model.graph.node:
        raise BackboneError("not a readable ONNX model (damaged or cut off?): its graph is empty", _AGAIN)
    if model.graph.sparse_initializer:
        raise BackboneError("its weights are sparse, which is not supported")
    if model.ByteSize() > _MOST_BYTES:
        raise BackboneError("it has more than 2 GB of weights, which is not supported")
    for one in model.graph.output:  # that they have no shape harms nobody, but the checker
        if one.type.HasField("tensor_type") and not one.type.tensor_type.HasField("shape"):
            one.type.tensor_type.shape.dim.add()
    onnx.checker.check_model(model)


# --- weights in other files -----------------------------------------------------------------------


def _with_weights(model: Any, path: Path) -> bool:
    """Read into a model what lies in files beside it. Whether there was anything to read."""
    found, total = False, 0
    for tensor in _tensors(model.graph):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        values = _outside(tensor, path)
        total += len(values)
        if total > _MOST_BYTES:
            raise BackboneError("it has more than 2 GB of weights, which is not supported")
        found = True
        tensor.raw_data = values
        tensor.data_location = tensor.DEFAULT
        del tensor.external_data[:]
    return found


def _outside(tensor: Any, path: Path) -> bytes:
    """The bytes of a tensor that lie in another file of the model's folder."""
    says = {entry.key: entry.value for entry in tensor.external_data}
    location = says.get("location", "")
    folder = resolved(path.parent)
    place = resolved(folder / location)
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location:
        raise BackboneError(f"weights {tensor.name!r:.80} lie in {location!r:.80}, which is no file beside the model")
    if not place.is_relative_to(folder) or not place.is_file():
        raise BackboneError(f"weights {tensor.name!r:.80} lie in {location!r:.80}, which is not beside the model")
    offset, size = int(says.get("offset") or 0), place.stat().st_size
    length = int(says.get("length") or size - offset)
    if offset < 0 or length < 0 or offset + length > size:
        raise BackboneError(
            f"{location}: weights {tensor.name!r:.80}: expected {length} bytes at {offset}, the file has {size}", _AGAIN
        )
    with place.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _tensors(graph: Any) -> Iterator[Any]:
    """Every constant tensor of a graph, those of graphs in its nodes included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


# --- digests --------------------------------------------------------------------------------------


def _digests(onnx: Any, model: Any) -> tuple[str, str]:
    """Digest of what the graph computes, without names; and of the weights, in the order of their first use.

    A constant is a weight wherever it lies: in the list of weights, in a node, or in another file.
    """
    weights = hashlib.sha256()
    versions = sorted((_DOMAINS.get(one.domain, one.domain), one.version) for one in model.opset_import)
    graph = _Numbered(onnx, weights)
    structure = graph.of(model.graph, {})
    return digest([versions, structure]), weights.hexdigest()


class _Numbered:
    """A graph as plain values in which tensors have numbers instead of names."""

    def __init__(self, onnx: Any, weights: Any) -> None:
        self._onnx, self._weights, self._count = onnx, weights, 0

    def of(self, graph: Any, outer: dict[str, Any]) -> Any:
        known = dict(outer)
        constants = {tensor.name: tensor for tensor in graph.initializer}
        inputs = []
        for one in graph.input:
            if one.name not in constants:
                known[one.name] = self._next()
                inputs.append(_type_of(one))
        nodes = []
        for node in graph.node:
            if (value := _constant(self._onnx, node)) is not None:
                constants[node.output[0]] = value
                continue
            used = [self._use(name, known, constants) for name in node.input]
            attributes = [[one.name, self._attribute(one, known, constants)] for one in node.attribute]
            for name in node.output:
                known[name] = self._next() if name else 0
            domain = _DOMAINS.get(node.domain, node.domain)
            nodes.append([domain, node.op_type, used, sorted(attributes), [known[name] for name in node.output]])
        return [inputs, nodes]

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _use(self, name: str, known: dict[str, Any], constants: dict[str, Any]) -> int:
        if not name:
            return 0
        if name not in known and name in constants:
            self._add(constants[name])
            known[name] = self._next()
        return int(known[name])

    def _add(self, tensor: Any) -> None:
        value = tensor if isinstance(tensor, np.ndarray) else self._onnx.numpy_helper.to_array(tensor)
        self._weights.update(f"{value.dtype.name} {','.join(map(str, value.shape))}\n".encode())
        little = (
            value
            if value.dtype.byteorder == "|" or value.dtype.kind == "V"
            else value.astype(value.dtype.newbyteorder("<"), copy=False)
        )
        self._weights.update(np.ascontiguousarray(little).tobytes())

    def _attribute(self, attribute: Any, known: dict[str, Any], constants: dict[str, Any]) -> Any:
        kinds = self._onnx.AttributeProto
        if attribute.type == kinds.TENSOR:
            self._add(attribute.t)
            return "tensor"
        if attribute.type in (kinds.GRAPH, kinds.GRAPHS):
            for name in sorted(constants.keys() & set(_names_used(attribute))):
                self._use(name, known, constants)
            graphs = [attribute.g] if attribute.type == kinds.GRAPH else attribute.graphs
            return [self.of(graph, known) for graph in graphs]
        if attribute.type in (kinds.FLOAT, kinds.INT, kinds.STRING, kinds.FLOATS, kinds.INTS, kinds.STRINGS):
            return _plain(self._onnx.helper.get_attribute_value(attribute))
        return attribute.SerializeToString(deterministic=True).hex()


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, str)):
        return value.hex() if isinstance(value, bytes) else value
    if isinstance(value, (int, float)):
        return value if isinstance(value, int) or math.isfinite(value) else repr(value)
    return [_plain(one) for one in value]


def _constant(onnx: Any, node: Any) -> Any:
    """The value of a node that is a constant; None for any other."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    if attribute.name == "value":
        return attribute.t
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    kind = kinds.get(attribute.name)
    return None if kind is None else np.array(onnx.helper.get_attribute_value(attribute), kind)


def _names_used(attribute: Any) -> Iterator[str]:
    """Names of tensors that graphs within an attribute use, their own included."""
    for graph in (attribute.g, *attribute.graphs):
        for node in graph.node:
            yield from node.input
            for inner in node.attribute:
                yield from _names_used(inner)
        yield from (one.name for one in graph.output)


# --- input ----------------------------------------------------------------------------------------


def inputs_of(graph: Any) -> list[Any]:
    """What a graph takes but for its weights, which older files list, too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [one for one in graph.input if one.name not in weights]


def _type_of(value: Any) -> list[Any]:
    tensor = value.type.tensor_type
    return [tensor.elem_type, _sizes(tensor)]


def _sizes(tensor: Any) -> list[int | None] | None:
    """The sizes of a tensor's axes, None for a free one; None where it does not say how many axes it has."""
    if not tensor.HasField("shape"):
        return None
    return [one.dim_value if one.HasField("dim_value") and one.dim_value > 0 else None for one in tensor.shape.dim]


def _input_of(onnx: Any, graph: Any) -> Input:
    found = inputs_of(graph)
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise BackboneError(f"expected one input, a batch of RGB images, found {len(found)}: {names:.200}")
    (one,) = found
    tensor = one.type.tensor_type
    sizes = _sizes(tensor)
    dtypes = {1: np.float32, 2: np.uint8, 10: np.float16, 11: np.float64}
    if tensor.elem_type not in dtypes:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type else "no tensor"
        raise BackboneError(f"input {one.name}: expected float32, float16, float64 or uint8, found {kind}")
    sizes = [None] * 4 if sizes is None else sizes
    shape = ", ".join("?" if size is None else str(size) for size in sizes)
    if len(sizes) != 4:
        raise BackboneError(f"input {one.name}: expected (n, 3, h, w) or (n, h, w, 3), found ({shape})")
    first = is_channels_first(graph, one)
    if first is None:
        raise BackboneError(f"input {one.name}: expected (n, 3, h, w) or (n, h, w, 3), found ({shape})")
    height, width = sizes[2:] if first else sizes[1:3]
    if height and width and height != width:
        raise BackboneError(f"input {one.name}: expected a square image, found {height} x {width} px")
    return Input(one.name, first, height or width, sizes[0], np.dtype(dtypes[tensor.elem_type]))


def is_channels_first(graph: Any, given: Any) -> bool | None:
    """Whether an input is (n, 3, h, w): as its sizes say, else as what it is used for does; None where neither does."""
    name, sizes = given.name, _sizes(given.type.tensor_type) or [None] * 4
    if (sizes[1] == 3) != (sizes[3] == 3):
        return sizes[1] == 3
    if sizes[1] not in (None, 3) and sizes[3] not in (None, 3):
        return None
    users = [node for node in graph.node if name in node.input]
    if any(node.op_type == "Conv" for node in users):
        return True
    turns = [list(one.ints) for node in users if node.op_type == "Transpose" for one in node.attribute]
    return False if [0, 3, 1, 2] in turns else True if [0, 2, 3, 1] in turns else None
