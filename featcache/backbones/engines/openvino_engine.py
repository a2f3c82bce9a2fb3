"""OpenVINO: the same network, converted, on the processor; the quick engine where there is no accelerator.

What makes it quick was measured: batch normalisation goes into the convolutions, a core works on rows of its own
instead of sharing layers with others, and so few rows at a time that what a layer writes is still in the core's cache
when the next one reads it. Pixels go in as bytes: preprocessing is the graph's first layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.cuts import in_float32
from featcache.backbones.engines.affine import affine_of
from featcache.backbones.engines.batches import batches, check_batch_rows, check_rows, empty_features
from featcache.backbones.frozen import FrozenGraph, frozen_graph
from featcache.backbones.import_keras import import_keras
from featcache.backbones.network import Network
from featcache.backbones.onnx_network import OnnxNetwork
from featcache.backbones.onnx_runs import import_openvino
from featcache.core.errors import BackboneError
from featcache.core.extras import require_extra
from featcache.core.machine import processor_flags, usable_cores

_WAITING = 2
"""Requests a core: one that is computed and one that waits, so that no core does."""


class _Precision(NamedTuple):
    """hint : OpenVINO's name of it; capability : as OpenVINO lists it; flags : of processors that have it, on Linux"""

    hint: str
    capability: str
    flags: frozenset[str] = frozenset()


_PRECISIONS = {
    "float32": _Precision("f32", "FP32"),
    "bfloat16": _Precision("bf16", "BF16", frozenset({"amx_bf16", "avx512_bf16", "bf16"})),
    "float16": _Precision("f16", "FP16", frozenset({"amx_fp16", "avx512_fp16", "asimdhp"})),
}


def computes_in(precision: str) -> bool:
    """Whether this processor has a precision, and OpenVINO, which is installed, knows how to use it."""
    _, capability, flags = _PRECISIONS[precision]
    here = processor_flags()
    if flags and here and not flags & here:
        return False  # OpenVINO lists what it can emulate, too
    return capability in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenvinoEngine:
    """An `Engine` on OpenVINO, in the network's own precision and no other that the processor may have.

    Parameters
    ----------
    network : a network with its cuts
    batch_rows : rows that are computed at once, shared out evenly to the cores; fewer rows than cores keep
        some idle

    Raises
    ------
    MissingPackageError : OpenVINO is not installed.
    BackboneError : OpenVINO cannot compute this network, or the processor not in this precision; a batch size below 1.
    """

    name = "openvino"

    def __init__(self, network: Network | OnnxNetwork, batch_rows: int | None = None) -> None:
        require_extra("openvino", "the engine openvino")
        self.feature_shapes: Sequence[tuple[int, ...]] = [cut.feature_shape for cut in network.cuts]
        self._shapings = self._shapings_of(network)
        self._label = network.cuts[0].space.backbone
        self.size_px = network.cuts[0].space.input_size_px
        self.precision: str = network.cuts[0].space.precision
        if not computes_in(self.precision):
            raise BackboneError(
                f"{self._label}: the engine openvino does not compute in {self.precision} on this processor",
                "Set `precision='float32'`, or `engine='keras'`, which does it slowly",
            )
        self._graph = self._convert(network)
        self._compile(usable_cores() if batch_rows is None else batch_rows)

    def resized(self, batch_rows: int) -> Self:
        """See `Engine.resized`."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._compile(batch_rows)
        return other

    def in_precision(self, precision: str) -> Self:
        """The same network in another precision."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.precision = precision
        other._compile(self.batch_rows)
        return other

    def features(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """See `Engine.features`."""
        check_rows(pixels, self.size_px)
        features, shapings = empty_features(len(pixels), self.feature_shapes), self._shapings

        # It must not hold this engine: a thread of OpenVINO that lets go of the last engine would wait for its own end.
        def keep(request: Any, work: tuple[slice, NDArray[np.uint8]]) -> None:
            place, _ = work
            for number, (target, shaping) in enumerate(zip(features, shapings, strict=True)):
                raw = request.get_output_tensor(number).data[: place.stop - place.start]
                target[place] = shaping(raw)

        try:
            requests = self._idle.get_nowait()
        except Empty:  # another call has them
            requests = self._requests()
        requests.set_callback(keep)
        for place, rows in batches(pixels, self._request_rows):
            requests.start_async({0: rows}, (place, rows), share_inputs=True)
        requests.wait_all()
        requests.set_callback(_nothing)  # the features are the caller's alone
        self._idle.put(requests)
        return features

    def _convert(self, network: Any) -> Any:
        """openvino.Model from pixels (n, s, s, 3), uint8, to the outputs of a network in their order."""
        return _converted(network)

    def _shapings_of(self, network: Any) -> Sequence[Callable[[NDArray[Any]], NDArray[Any]]]:
        """What makes features of each of the graph's outputs."""
        return [_as_they_are] * len(network.cuts)

    def _compile(self, batch_rows: int) -> None:
        openvino = import_openvino()
        cores = min(usable_cores(), check_batch_rows(batch_rows))
        self._request_rows = -(-batch_rows // cores)
        self.batch_rows = self._request_rows * cores
        graph = self._graph.clone()
        graph.reshape([self._request_rows, self.size_px, self.size_px, 3])
        settings = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self.precision].hint,  # else bfloat16 where the processor has it
            "NUM_STREAMS": cores,
            "INFERENCE_NUM_THREADS": cores,
            "ENABLE_CPU_PINNING": False,  # rendering threads run beside it
        }
        self._compiled, self.calls_at_once = openvino.Core().compile_model(graph, "CPU", settings), cores
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self._idle.put(self._requests())

    def _requests(self) -> Any:
        """What one call works with."""
        return import_openvino().AsyncInferQueue(self._compiled, _WAITING * self.calls_at_once)


def _as_they_are(raw: NDArray[Any]) -> NDArray[Any]:
    return raw


def _nothing(request: Any, work: Any) -> None:
    pass


def _converted(network: Network) -> Any:
    """openvino.Model from pixels (n, s, s, 3), uint8, to the outputs of `network` in their order."""
    space = network.cuts[0].space
    if (backend := import_keras().backend.backend()) != "tensorflow":
        raise BackboneError(f"the engine openvino needs Keras on TensorFlow, not on {backend}", "Set `engine='keras'`")
    try:
        with in_float32(network.model):  # in less, OpenVINO computes by itself
            graph = frozen_graph(network.model)
        return _with_preprocessing(openvino_model(graph), graph.outputs, space.preprocessing)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BackboneError(
            f"{space.backbone}: OpenVINO cannot convert this network ({reason[0]:.200})", "Set `engine='keras'`"
        ) from error


def openvino_model(graph: FrozenGraph) -> Any:
    """A graph as an openvino.Model.

    `openvino.convert_model` comes to the same, but follows the graph node by node in Python, which takes longer.
    """
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.pb"
        file.write_bytes(graph.definition.SerializeToString())
        return openvino.Core().read_model(file)


def _with_preprocessing(graph: Any, names: Sequence[str], mode: str) -> Any:
    """`graph` behind the preprocessing called `mode`: from uint8 pixels to the outputs called `names`."""
    openvino = import_openvino()
    (old,) = graph.get_parameters()
    pixels = openvino.opset13.parameter(old.get_partial_shape(), openvino.Type.u8, name="pixels")
    old.output(0).replace(scaled(pixels, mode).output(0))
    return openvino.Model([graph.output(name).get_node() for name in names], [pixels], "network")


def scaled(pixels: Any, mode: str) -> Any:
    """A node of OpenVINO that gives, in float32, what `preprocess` in `mode` makes of pixels (n, s, s, 3), uint8."""
    ops = import_openvino().opset13
    affine = affine_of(mode)
    if affine is None:
        raise ValueError(f"preprocessing {mode} is no scale and shift")
    x = ops.convert(pixels, "f32")
    if affine.order != (0, 1, 2):
        x = ops.gather(x, np.array(affine.order), np.array(3))
    if (affine.scale != 1).any():
        x = ops.multiply(x, affine.scale)
    if affine.offset.any():
        x = ops.add(x, affine.offset)
    return x
