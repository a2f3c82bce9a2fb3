"""Engines of networks from ONNX files: OpenVINO, which reads them itself, and onnxruntime.

Both get pixels as bytes. OpenVINO has the preprocessing as its graph's first layers; for onnxruntime NumPy does it.
What the network gives becomes features by its `Shaping`, the same for both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.engines.agreement import deviation
from featcache.backbones.engines.batches import batches, check_batch_rows, check_rows, empty_features
from featcache.backbones.engines.contract import Engine
from featcache.backbones.engines.openvino_engine import OpenvinoEngine, scaled
from featcache.backbones.onnx_network import OnnxNetwork
from featcache.backbones.onnx_runs import import_openvino, onnx_session, openvino_graph
from featcache.backbones.own_models import one_line
from featcache.backbones.torch_network import TorchNetwork
from featcache.core.errors import BackboneError
from featcache.core.extras import require_extra
from featcache.core.machine import usable_cores


class OnnxOpenvinoEngine(OpenvinoEngine):
    """An `Engine` on OpenVINO for a network from an ONNX file; see `OpenvinoEngine`."""

    def __init__(self, network: OnnxNetwork, batch_rows: int | None = None) -> None:
        self._network = network
        super().__init__(network, batch_rows)

    def resized(self, batch_rows: int) -> Self:
        """See `Engine.resized`; itself where nothing changes, since compiling takes long."""
        size = self._network.batch or -(-batch_rows // min(usable_cores(), max(batch_rows, 1)))
        is_same = size == self._request_rows and (self._network.batch or batch_rows >= usable_cores())
        return self if is_same else super().resized(batch_rows)

    def _convert(self, network: Any) -> Any:
        try:
            return _with_pixels(openvino_graph(network.model), network)
        except Exception as error:  # each library has errors of its own
            raise BackboneError(
                f"{self._label}: OpenVINO cannot compute this network ({one_line(error)})", "Set `engine='onnxruntime'`"
            ) from error

    def _shapings_of(self, network: Any) -> Sequence[Callable[[NDArray[Any]], NDArray[Any]]]:
        return list(network.shapings)

    def _compile(self, batch_rows: int) -> None:
        check_batch_rows(batch_rows)
        fixed = self._network.batch
        super()._compile(fixed * usable_cores() if fixed else batch_rows)


class OnnxruntimeEngine:
    """An `Engine` on onnxruntime, on the processor.

    Parameters
    ----------
    network : from an ONNX file
    batch_rows : rows at once; a network of a fixed number takes that

    Raises
    ------
    MissingPackageError : onnxruntime is not installed.
    BackboneError : onnxruntime cannot compute this network; a batch size below 1, another precision than float32.
    """

    name = "onnxruntime"
    calls_at_once = 1

    def __init__(self, network: OnnxNetwork, batch_rows: int = 8) -> None:
        require_extra("onnxruntime", "the engine onnxruntime")
        space = network.cuts[0].space
        if space.precision != "float32":
            raise BackboneError(f"{space.backbone}: the engine onnxruntime does not compute in {space.precision}")
        self.feature_shapes: Sequence[tuple[int, ...]] = [cut.feature_shape for cut in network.cuts]
        self._network, self._size_px = network, space.input_size_px
        self.batch_rows = network.batch or check_batch_rows(batch_rows)
        try:
            self._session = onnx_session(network.model)
        except Exception as error:  # the library has errors of its own
            raise BackboneError(
                f"{space.backbone}: onnxruntime cannot compute this network ({one_line(error)})",
                "Set `engine='openvino'`",
            ) from error

    def resized(self, batch_rows: int) -> Self:
        """See `Engine.resized`."""
        other = copy.copy(self)
        other.batch_rows = self._network.batch or check_batch_rows(batch_rows)
        return other

    def features(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """See `Engine.features`."""
        check_rows(pixels, self._size_px)
        features = empty_features(len(pixels), self.feature_shapes)
        for place, rows in batches(pixels, self.batch_rows):
            outputs = self._session.run(None, {self._network.input.name: self._network.prepared(rows)})
            for target, raw, shaping in zip(features, outputs, self._network.shapings, strict=True):
                target[place] = shaping(raw)[: place.stop - place.start]
        return features


def check_same(engine: Engine, other: Engine, *, network: OnnxNetwork | TorchNetwork) -> None:
    """Raise BackboneError unless two engines give the same for a row of random pixels, within a cache's tolerance."""
    side = network.cuts[0].space.input_size_px
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    for new, old, cut in zip(engine.features(pixels), other.features(pixels), network.cuts, strict=True):
        if (off := deviation(new, old)) > 1:
            raise BackboneError(
                f"{cut.space.backbone}: the engines {engine.name} and {other.name} disagree at layer "
                f"{cut.space.layer}: expected a difference within the tolerance of a cache, got {off:.3g} times that",
                f"Set `engine={other.name!r}`",
            )


def _with_pixels(graph: Any, network: OnnxNetwork) -> Any:
    """openvino.Model from pixels (n, s, s, 3), uint8, to the outputs of `network` in their order."""
    openvino = import_openvino()
    ops, given, space = openvino.opset13, network.input, network.cuts[0].space
    (old,) = graph.get_parameters()
    shape = openvino.PartialShape([network.batch or -1, space.input_size_px, space.input_size_px, 3])
    pixels = ops.parameter(shape, openvino.Type.u8, name="pixels")
    x: Any = pixels
    if given.dtype != np.uint8:
        x = scaled(pixels, space.preprocessing)
        if given.dtype != np.float32:
            x = ops.convert(x, {2: "f16", 8: "f64"}[given.dtype.itemsize])
    if given.channels_first:
        x = ops.transpose(x, np.array([0, 3, 1, 2]))
    old.output(0).replace(x.output(0))
    return openvino.Model([output.get_node() for output in graph.outputs], [pixels], "network")
