"""A network from an ONNX file, cut at any of its tensors."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.cuts import CutLayer, check_pooling, check_precision
from featcache.backbones.network import Cut
from featcache.backbones.onnx_file import Input, OnnxFile, inputs_of, is_channels_first, read_onnx
from featcache.backbones.onnx_runs import computed, shapes_of
from featcache.backbones.preprocess import formulas, mode_for, preprocess
from featcache.backbones.shaping import Shaping, prefix_of, shaping_of
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import BackboneError, WeightsError, nearest
from featcache.core.files import expanded
from featcache.core.recipe import FeatureSpace, WeightsSource

_GROUP = 64
"""Tensors that are looked at in one go: onnxruntime computes them all."""
_SAME = 1e-4


@dataclass(frozen=True)
class OnnxNetwork:
    """A network from an ONNX file.

    Attributes
    ----------
    cuts : one for each output
    model : bytes of an onnx.ModelProto with these outputs
    input : what it takes
    shapings : from each raw output to features
    batch : rows that it takes at once; None where it takes any
    is_external : whether weights lie in other files than the one that was named
    """

    cuts: tuple[Cut, ...]
    model: bytes
    input: Input
    shapings: tuple[Shaping, ...]
    batch: int | None
    is_external: bool

    def prepared(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """What the network takes for pixels (n, s, s, 3), uint8."""
        return prepared(pixels, self.input, mode=self.cuts[0].space.preprocessing)


def prepared(pixels: NDArray[np.uint8], given: Input, *, mode: str) -> NDArray[Any]:
    """What an input takes for pixels (n, s, s, 3), uint8, which are scaled as `mode` says."""
    x = pixels if given.dtype == np.uint8 else preprocess(pixels, mode).astype(given.dtype, copy=False)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if given.channels_first else x)


def load_onnx(spec: NetworkSpec) -> OnnxNetwork:
    """The network that `spec` asks for, whose model is an ONNX file.

    Raises
    ------
    MissingPackageError : onnx, or what computes it, is not installed.
    BackboneError : see `read_onnx`; a wrong layer, size, preprocessing, pooling or tokens, or an operator that nothing
        that is installed can compute.
    WeightsError : other weights are asked for than those in the file.
    """
    check_pooling(spec.pooling)
    precision = check_precision(spec.precision)
    file = _opened(spec)
    mode = _mode(file, spec)
    side_px = _side(file, spec.input_size_px)
    graph = _Graph(file.model)
    label = spec.model
    layers = tuple(spec.layers) or (_default(graph, file, side_px, label),)
    graph.check(layers, label)
    model = graph.cut(layers, file.input.batch, side_px=side_px)
    batch, shapes = _probed(model, file, side_px, mode, label)
    grid = graph.grid(side_px)
    shapings = tuple(
        shaping_of(
            shape,
            pooling=spec.pooling,
            tokens=spec.tokens,
            grid=grid,
            is_last=graph.is_turned(layer),
            label=f"{label}: layer {layer}",
        )
        for layer, shape in zip(layers, shapes, strict=True)
    )
    space = FeatureSpace(
        backbone=file.name,
        layer="",
        input_size_px=side_px,
        preprocessing=mode,
        pooling="none",
        weights_digest=file.weights_digest,
        precision=precision,
    )
    source = WeightsSource("file", name=file.path.name)
    cuts = tuple(
        Cut(replace(space, layer=layer, pooling=one.pooling, tokens=one.tokens), source, one.feature_shape)
        for layer, one in zip(layers, shapings, strict=True)
    )
    return OnnxNetwork(cuts, model, file.input, shapings, batch, file.is_external)


def layers_of_onnx(spec: NetworkSpec) -> list[CutLayer]:
    """Every tensor that features can be taken from, in the order of the graph."""
    file = _opened(spec)
    side_px = _side(file, spec.input_size_px)
    graph = _Graph(file.model)
    found = []
    for names in _grouped(graph.dependent):
        shapes = _shapes(graph, names, file, side_px, spec.model)
        found += [CutLayer(name, shape, name) for name, shape in zip(names, shapes, strict=True) if shape]
    return found


def _opened(spec: NetworkSpec) -> OnnxFile:
    if spec.weights != "imagenet":
        raise WeightsError(
            f"{spec.model}: an ONNX file brings its own weights: `weights={spec.weights}` cannot be put in",
            "Leave out `weights`",
        )
    return read_onnx(expanded(Path(spec.model)))


def _mode(file: OnnxFile, spec: NetworkSpec) -> str:
    """The preprocessing: as asked, since a file does not say; none of a graph that takes pixels as bytes."""
    if file.input.dtype == np.uint8:
        if mode_for(spec, lambda: "none") != "none":
            raise BackboneError(
                f"{spec.model}: the network takes pixels as bytes and scales them itself",
                "Leave out `preprocessing`, `mean`, `std` and `colour_order`",
            )
        return "none"

    def own() -> str:
        raise BackboneError(
            f"{spec.model}: the file does not say how the network scales pixels",
            f"Set `preprocessing` to one of these formulas, x from 0 to 255: {formulas()}",
        )

    return mode_for(spec, own)


def _side(file: OnnxFile, asked: int | None) -> int:
    own = file.input.side_px
    if own is None and asked is None:
        raise BackboneError(f"{file.path}: it takes images of any size", "Set `input_size_px`")
    if own is not None and asked not in (None, own):
        raise BackboneError(f"{file.path}: input size {asked} px: the network was made for {own} px")
    return int(asked or own or 0)


# --- graph ----------------------------------------------------------------------------------------


class _Graph:
    """The nodes of a model, and what depends on its input.

    Attributes
    ----------
    dependent : names of all tensors that depend on the input, in the graph's order
    """

    def __init__(self, model: Any) -> None:
        self._model, self._graph = model, model.graph
        self._nodes = list(model.graph.node)
        self._maker = {name: node for node in self._nodes for name in node.output if name}
        (self._input,) = inputs_of(model.graph)
        reached = {self._input.name}
        self.dependent: list[str] = []
        for node in self._nodes:
            if reached.intersection(_needs(node)):
                made = [name for name in node.output if name]
                reached.update(made)
                self.dependent += made

    @property
    def outputs(self) -> list[str]:
        return [one.name for one in self._graph.output]

    def before(self, names: Sequence[str]) -> set[str]:
        """Names of all tensors that some depend on, their own included."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += _needs(self._maker[name]) if name in self._maker else []
        return found

    def check(self, layers: Sequence[str], label: str) -> None:
        """Raise BackboneError for a name that is no tensor, or that does not depend on the image."""
        for name in layers:
            if name in self.dependent:
                continue
            if name in self._maker or name == self._input.name:
                raise BackboneError(f"{label}: layer {name} cannot be cut: it does not depend on the image")
            outputs = next((list(node.output) for node in self._nodes if node.name == name), None)
            close = nearest(name, self.dependent)
            near = f"here it is called {' or '.join(outputs)}" if outputs else close
            if not outputs and not close.startswith("did"):
                near = "'featcache models FILE --layers' lists them"
            raise BackboneError(f"{label}: there is no layer {name!r}: {near}")
        if twice := [name for name in layers if list(layers).count(name) > 1]:
            raise BackboneError(f"{label}: layer {twice[0]} is named twice: name each layer once")

    def cut(self, names: Sequence[str], batch: int | None, *, side_px: int) -> bytes:
        """The part of the model that some tensors need, with these as its outputs."""
        onnx = importlib.import_module("onnx")
        needed = self.before(names)
        made = onnx.ModelProto(ir_version=self._model.ir_version, producer_name="featcache")
        made.opset_import.extend(self._model.opset_import)
        graph = made.graph
        graph.name = "network"
        graph.node.extend(node for node in self._nodes if needed.intersection(node.output))
        graph.initializer.extend(one for one in self._graph.initializer if one.name in needed)
        first = is_channels_first(self._graph, self._input)
        axes = [batch or "n", *((3, side_px, side_px) if first else (side_px, side_px, 3))]
        element = self._input.type.tensor_type.elem_type
        graph.input.append(onnx.helper.make_tensor_value_info(self._input.name, element, axes))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        serialized: bytes = made.SerializeToString()
        return serialized

    def grid(self, side_px: int) -> int | None:
        """Patches along a side: of the first convolution, if it cuts the image into squares that do not overlap."""
        for node in self._nodes:
            if node.op_type == "Conv":
                says = {one.name: list(one.ints) for one in node.attribute}
                strides, kernel = says.get("strides", []), says.get("kernel_shape", [])
                is_cut = len(strides) == 2 and strides[0] == strides[1] > 1 and kernel in ([], strides)
                return side_px // strides[0] if is_cut else None
        return None

    def is_turned(self, name: str) -> bool:
        """Whether a tensor was made (n, h, w, c) by the node before it."""
        node = self._maker[name]
        turns = [list(one.ints) for one in node.attribute if one.name == "perm"]
        return bool(node.op_type == "Transpose" and turns == [[0, 2, 3, 1]])


def _needs(node: Any) -> list[str]:
    """Names of the tensors that a node uses, graphs within it included."""
    inner = [
        name
        for one in node.attribute
        for graph in (one.g, *one.graphs)
        for within in graph.node
        for name in _needs(within)
    ]
    return [name for name in (*node.input, *inner) if name]


def _default(graph: _Graph, file: OnnxFile, side_px: int, label: str) -> str:
    """The last feature map or row of tokens before the network's output.

    Raises BackboneError where there are several outputs and not just one of them is such, or none before the output.
    """
    outputs = graph.outputs
    if len(outputs) > 1:
        shapes = _shapes(graph, outputs, file, side_px, label)
        clear = [name for name, shape in zip(outputs, shapes, strict=True) if shape and _is_map(shape, graph, side_px)]
        if len(clear) == 1:
            return clear[0]
        named = ", ".join(outputs)
        raise BackboneError(f"{label}: it has {len(outputs)} outputs: {named:.400}", "Name one with `layers=[NAME]`")
    needed = graph.before(outputs)
    candidates = [name for name in graph.dependent if name in needed][::-1]
    for names in _grouped(candidates):
        for name, shape in zip(names, _shapes(graph, names, file, side_px, label), strict=True):
            if shape and _is_map(shape, graph, side_px):
                return name
    raise BackboneError(
        f"{label}: no feature map (h, w, c) and no tokens (t, c) come before its output",
        "Name a layer with `layers=[NAME]`; `featcache.models(FILE, layers=True)` lists them",
    )


def _is_map(shape: tuple[int, ...], graph: _Graph, side_px: int) -> bool:
    """Whether a row's shape is that of a feature map of more than one place, or of the tokens of patches."""
    if len(shape) == 3:
        return shape[1] == shape[2] > 1 or shape[0] == shape[1] > 1
    grid = graph.grid(side_px)
    return len(shape) == 2 and grid is not None and prefix_of(shape[0], grid) is not None


def _grouped(names: Sequence[str]) -> list[list[str]]:
    return [list(names[start : start + _GROUP]) for start in range(0, len(names), _GROUP)]


# --- what it gives --------------------------------------------------------------------------------


def _shapes(
    graph: _Graph, names: Sequence[str], file: OnnxFile, side_px: int, label: str
) -> list[tuple[int, ...] | None]:
    """The shape of one row of each of some tensors; None of what is not of rows of 1 to 3 axes."""
    rows = file.input.batch or 1
    x = prepared(np.zeros((rows, side_px, side_px, 3), np.uint8), file.input, mode="none")
    found = shapes_of(graph.cut(names, file.input.batch, side_px=side_px), file.input.name, x=x, label=label)
    return [shape[1:] if shape and 2 <= len(shape) <= 4 and shape[0] == rows else None for shape in found]


def _probed(
    model: bytes, file: OnnxFile, side_px: int, mode: str, label: str
) -> tuple[int | None, list[tuple[int, ...]]]:
    """How many rows at once the model takes, None for any; and the shape of one row of each output.

    A graph that says to take any number may have been made for one row all the same, or mix its rows: then it gets one
    at a time.
    """
    rows = file.input.batch or 2
    pixels = np.random.default_rng(0).integers(0, 256, (rows, side_px, side_px, 3), dtype=np.uint8)
    x = prepared(pixels, file.input, mode=mode)

    def run(batches: list[NDArray[Any]]) -> list[list[NDArray[Any]]]:
        return computed(model, file.input.name, batches=batches, label=label)

    if file.input.batch:
        (whole,) = run([x])
        return file.input.batch, _row_shapes(whole, rows, label)
    first, second = run([x[:1], x[1:]])
    shapes = _row_shapes(first, 1, label)
    try:
        (both,) = run([x])
    except BackboneError:
        return 1, shapes
    alone = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    return None if all(map(_is_same, both, alone)) else 1, shapes


def _row_shapes(outputs: Sequence[NDArray[Any]], rows: int, label: str) -> list[tuple[int, ...]]:
    for value in outputs:
        if value.dtype.kind != "f" or value.ndim < 2 or value.shape[0] != rows:
            raise BackboneError(
                f"{label}: a layer gives {'x'.join(map(str, value.shape)) or 'one number'} of {value.dtype} for {rows} "
                f"images: expected floating-point numbers, {rows} rows of 1, 2 or 3 axes"
            )
    return [value.shape[1:] for value in outputs]


def _is_same(new: NDArray[Any], old: NDArray[Any]) -> bool:
    """Whether two outputs are the same but for rounding."""
    if new.shape != old.shape:
        return False
    finite = np.isfinite(old)
    least = _SAME * np.abs(old[finite]).max(initial=0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        same = np.allclose(new[finite], old[finite], rtol=_SAME, atol=float(least))
    return bool(same and np.array_equal(new[~finite], old[~finite], equal_nan=True))
