"""Small ONNX models with weights of a fixed seed, as other programs export them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 16


class Builder:
    """A graph that grows node by node; tensors are called after what makes them."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, name: str, *shape: int, scale: float = 0.3) -> str:
        return self.constant(name, self.rng.normal(0, scale, shape).astype(np.float32))

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, to: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [to], name=f"node_{to}", **attributes))
        return to

    def model(
        self,
        shape: Sequence[Any],
        outputs: Sequence[str],
        *,
        element: int = TensorProto.FLOAT,
        inputs: Sequence[Any] = (),
        domains: Sequence[Any] = (),
    ) -> Any:
        given = helper.make_tensor_value_info("image", element, shape)
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "cells", [given, *inputs], made, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), *domains], ir_version=9)


def convolutions(
    *,
    shape: Sequence[Any] = ("n", 3, SIDE, SIDE),
    seed: int = 0,
    last: bool = False,
    element: int = TensorProto.FLOAT,
) -> Any:
    """A classifier whose last feature map is `map`, (6, 4, 4) or, `last`, (4, 4, 6)."""
    b = Builder(seed)
    x = "image"
    if element == TensorProto.UINT8:
        x = _cast(b, x)
    if last:
        x = b.add("Transpose", x, to="first", perm=[0, 3, 1, 2])
    x = b.add("Conv", x, b.weight("W1", 4, 3, 3, 3), b.weight("b1", 4), to="conv1", pads=[1, 1, 1, 1], strides=[2, 2])
    x = b.add("Relu", x, to="relu1")
    x = b.add("Conv", x, b.weight("W2", 6, 4, 3, 3), to="conv2", pads=[1, 1, 1, 1], strides=[2, 2])
    x = b.add("Relu", x, to="map")
    if last:
        x = b.add("Transpose", x, to="turned", perm=[0, 2, 3, 1])
        x = b.add("ReduceMean", x, to="mean", axes=[1, 2], keepdims=0)
    else:
        x = b.add("GlobalAveragePool", x, to="mean4")
        x = b.add("Flatten", x, to="mean")
    x = b.add("Gemm", x, b.weight("W3", 6, 3), to="logits")
    return b.model(shape, [x], element=element)


def _cast(b: Builder, x: str) -> str:
    b.nodes.append(helper.make_node("Cast", [x], ["numbers"], to=TensorProto.FLOAT))
    return b.add("Div", "numbers", b.constant("255", np.float32(255)), to="scaled")


def tokens(*, registers: int = 0, width: int = 8, patch: int = 4) -> Any:
    """The beginning of a vision transformer: CLS, registers and 16 patches, a layer, and a head on CLS."""
    b = Builder(1)
    n = (SIDE // patch) ** 2
    x = b.add(
        "Conv",
        "image",
        b.weight("W", width, 3, patch, patch),
        to="patches",
        strides=[patch] * 2,
        kernel_shape=[patch] * 2,
    )
    x = b.add("Reshape", x, b.constant("flat", np.array([0, width, n])), to="flattened")
    x = b.add("Transpose", x, to="embedded", perm=[0, 2, 1])
    first = b.weight("prefix", 1, 1 + registers, width)
    rows = b.add("Shape", "image", to="rows", start=0, end=1)
    size = b.add("Concat", rows, b.constant("rest", np.array([1 + registers, width])), to="size", axis=0)
    x = b.add("Concat", b.add("Expand", first, size, to="expanded"), x, to="joined", axis=1)
    x = b.add("Add", x, b.weight("positions", 1, 1 + registers + n, width), to="placed")
    mixed = b.add("Transpose", x, to="across", perm=[0, 2, 1])
    mixed = b.add("MatMul", mixed, b.weight("mix", 1 + registers + n, 1 + registers + n), to="mixed")
    x = b.add("Add", x, b.add("Transpose", mixed, to="back", perm=[0, 2, 1]), to="tokens")
    x = b.add("Gather", x, b.constant("zero", np.array(0)), to="cls", axis=1)
    x = b.add("MatMul", x, b.weight("head", width, 3), to="logits")
    return b.model(("n", 3, SIDE, SIDE), [x])


def saved(model: Any, path: Path) -> str:
    path.write_bytes(model.SerializeToString())
    return str(path)


def reference(model: Any, names: Sequence[str], x: Any) -> list[Any]:
    """What ONNX' own slow evaluator gives at some tensors."""
    from onnx.reference import ReferenceEvaluator

    more = onnx.ModelProto.FromString(model.SerializeToString())
    del more.graph.output[:]
    more.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    made: list[Any] = ReferenceEvaluator(more).run(None, {"image": x})
    return made
