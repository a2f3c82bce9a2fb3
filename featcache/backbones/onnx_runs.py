"""Runs an ONNX model on what is installed, OpenVINO or onnxruntime, to find out what its tensors are."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.own_models import one_line
from featcache.core.errors import BackboneError, MissingPackageError
from featcache.core.extras import install_line, is_installed
from featcache.core.offline import without_telemetry

_CANNOT = {"openvino": "OpenVINO cannot compute it", "onnxruntime": "onnxruntime cannot compute it"}


def import_openvino() -> Any:
    """The `openvino` module, without what it would report to its makers (and keep in the home folder) when imported."""
    without_telemetry()
    return importlib.import_module("openvino")


def onnx_session(model: bytes | str) -> Any:
    """What runs an ONNX model, in memory or in a file, by onnxruntime, which must be installed.

    Its threads sleep while they wait: on busy cores, threads that spin keep each other from work.
    """
    onnxruntime = importlib.import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong arrives as an exception
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_graph(model: bytes) -> Any:
    """An ONNX model as an openvino.Model, which must be installed."""
    return import_openvino().Core().read_model(io.BytesIO(model))


def computed(model: bytes, given: str, *, batches: Sequence[NDArray[Any]], label: str) -> list[list[NDArray[Any]]]:
    """The outputs of a model, in its order, for each of some batches, by the first runtime that can.

    Parameters
    ----------
    model : bytes of an onnx.ModelProto
    given : name of its input
    batches : what it takes, maybe of different lengths
    label : what errors call the network

    Raises
    ------
    MissingPackageError : no runtime is installed.
    BackboneError : none that is installed can compute the model.
    """
    ways = {"onnxruntime": _by_onnxruntime, "openvino": _by_openvino}  # the first one is ready sooner
    made: list[list[NDArray[Any]]] = _first(ways, model, given, batches, label)
    return made


def shapes_of(model: bytes, given: str, *, x: NDArray[Any], label: str) -> list[tuple[int, ...] | None]:
    """The shapes of the outputs of a model for the input `x`, in its order; None of what is not of floats or not fixed.

    Raises what `computed` raises.
    """
    ways = {"openvino": _shapes_by_openvino, "onnxruntime": _shapes_by_onnxruntime}  # the first one computes nothing
    made: list[tuple[int, ...] | None] = _first(ways, model, given, x, label)
    return made


def _first(ways: Mapping[str, Callable[..., Any]], model: bytes, given: str, x: Any, label: str) -> Any:
    reasons = []
    for runtime in _installed(ways):
        try:
            return ways[runtime](model, given, x)
        except Exception as error:  # noqa: BLE001 - each library has errors of its own; the last one's are raised
            reasons.append(f"{_CANNOT[runtime]} ({one_line(error)})")
    raise BackboneError(f"{label}: {'; '.join(reasons)}")


def _installed(names: Iterable[str]) -> list[str]:
    found = [name for name in names if is_installed(name)]
    if not found:
        raise MissingPackageError(
            f"an ONNX network requires openvino or onnxruntime, neither of which is installed: {install_line('onnx')}"
        )
    return found


def _by_openvino(model: bytes, given: str, batches: Sequence[NDArray[Any]]) -> list[list[NDArray[Any]]]:
    graph, core = openvino_graph(model), import_openvino().Core()
    found = []
    for x in batches:
        sized = graph.clone()
        sized.reshape(list(x.shape))
        compiled = core.compile_model(sized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        made = compiled([x])
        found.append([np.array(made[number]) for number in range(len(compiled.outputs))])
    return found


def _by_onnxruntime(model: bytes, given: str, batches: Sequence[NDArray[Any]]) -> list[list[NDArray[Any]]]:
    session = onnx_session(model)
    return [list(session.run(None, {given: x})) for x in batches]


def _shapes_by_openvino(model: bytes, given: str, x: NDArray[Any]) -> list[tuple[int, ...] | None]:
    graph = openvino_graph(model)
    graph.reshape(list(x.shape))
    return [
        tuple(int(size) for size in output.get_shape())
        if output.get_partial_shape().is_static and output.get_element_type().is_real()
        else None
        for output in graph.outputs
    ]


def _shapes_by_onnxruntime(model: bytes, given: str, x: NDArray[Any]) -> list[tuple[int, ...] | None]:
    ((made),) = _by_onnxruntime(model, given, [x])
    return [value.shape if getattr(value, "dtype", np.dtype(int)).kind == "f" else None for value in made]
