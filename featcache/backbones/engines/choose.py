"""Which engine, how many rows at a time, and what happens where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.doors import AnyNetwork
from featcache.backbones.engines.agreement import check_agreement
from featcache.backbones.engines.batches import check_batch_rows, is_out_of_memory
from featcache.backbones.engines.calibrate import BatchSize, calibrate, images_per_s, key_of, recall, remember
from featcache.backbones.engines.contract import Engine
from featcache.backbones.engines.keras_engine import KerasEngine, has_accelerator
from featcache.backbones.engines.onnx_engines import OnnxOpenvinoEngine, OnnxruntimeEngine, check_same
from featcache.backbones.engines.openvino_engine import OpenvinoEngine, computes_in
from featcache.backbones.engines.torch_engine import TorchEngine, torch_device
from featcache.backbones.import_keras import has_keras
from featcache.backbones.model_names import LIBRARIES, Kind
from featcache.backbones.network import Network
from featcache.backbones.onnx_network import OnnxNetwork
from featcache.backbones.torch_network import TorchNetwork
from featcache.core.errors import BackboneError, nearest
from featcache.core.extras import install_line, is_installed
from featcache.core.machine import usable_cores
from featcache.core.recipe import Precision

ENGINES = ("auto", "keras", "openvino", "onnxruntime", "torch")
CALIBRATION_FILE = ".engines.json"
"""The usual name of the file that remembers batch sizes."""

OnEvent = Callable[[str], object]

_KERAS_ROWS = (8, 16, 32, 64)
_ACCELERATOR_ROWS = (32, 64, 128, 256)
_ONNXRUNTIME_ROWS = (1, 4, 16)
_ROWS_A_CORE = (1, 2, 4)


class ChosenEngine:
    """An `Engine` that goes on with half the rows at a time where memory runs out.

    Parameters
    ----------
    engine : the one that computes
    why : for people: which it is and why
    images_per_s : what it was found to compute; None if that was not tried
    on_event : told, in a sentence, when it takes fewer rows
    on_fewer : called with the new number of rows

    Attributes
    ----------
    those of `Engine`, and `why` and `images_per_s` as above.
    """

    def __init__(
        self,
        engine: Engine,
        why: str = "",
        *,
        images_per_s: float | None = None,
        on_event: OnEvent = lambda message: None,
        on_fewer: Callable[[int], object] = lambda rows: None,
    ) -> None:
        self.name, self.batch_rows, self.feature_shapes = engine.name, engine.batch_rows, engine.feature_shapes
        self.calls_at_once, self.why, self.images_per_s = engine.calls_at_once, why, images_per_s
        self._engine, self._on_event, self._on_fewer = engine, on_event, on_fewer

    def features(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        """See `Engine.features`; BackboneError also where memory does not suffice for one row."""
        while True:
            try:
                return self._engine.features(pixels)
            except Exception as error:  # each library has errors of its own
                if not is_out_of_memory(error):
                    raise
                self._halve(error)

    def resized(self, batch_rows: int) -> Self:
        """See `Engine.resized`."""
        return type(self)(self._engine.resized(batch_rows), on_event=self._on_event)

    def bfloat16_gain(self) -> float | None:
        """How many times as fast the network is in bfloat16, by a try of seconds; None where it cannot be, or is so."""
        engine = self._engine
        if not isinstance(engine, OpenvinoEngine) or engine.precision != "float32" or not computes_in("bfloat16"):
            return None
        fast, own = (images_per_s(each, engine.size_px) for each in (engine.in_precision("bfloat16"), engine))
        return fast / own

    def _halve(self, error: Exception) -> None:
        """Take half the rows at a time, or fewer where even that is too much to prepare."""
        rows = self.batch_rows
        while (rows := rows // 2) >= 1:
            try:
                self._engine = self._engine.resized(rows)
            except Exception as again:  # each library has errors of its own
                if not is_out_of_memory(again):
                    raise
                continue
            self._on_event(f"too little memory for {self.batch_rows} rows at a time: going on with {rows}")
            self.batch_rows, self.calls_at_once = self._engine.batch_rows, self._engine.calls_at_once
            self._on_fewer(rows)
            return
        raise BackboneError(
            f"{self.name}: too little memory even for one row at a time",
            "Close other programs, or take a smaller `input_size_px` or another backbone",
        ) from error


def open_engine(
    network: AnyNetwork,
    engine: str = "auto",
    *,
    batch_rows: int | None = None,
    memory: Path | None = None,
    on_event: OnEvent = lambda message: None,
) -> ChosenEngine:
    """The engine for `network`.

    Parameters
    ----------
    network : a network with its cuts
    engine : one of `ENGINES`; "auto" is OpenVINO where it is installed and computes what Keras does, unless Keras has
        an accelerator or the processor lacks the network's precision, and else Keras.
        For ONNX networks OpenVINO, too, where it computes what onnxruntime does, if that is installed, and else
        onnxruntime
    batch_rows : rows at a time; None for the quickest of a few, tried out in seconds
    memory : file that remembers the quickest, so that the next run takes the same; None for none
    on_event : told, in a sentence, what is worth knowing while the engine works

    Raises
    ------
    MissingPackageError : the engine that was named is not installed.
    BackboneError : an unknown engine, one that does not compute this network as Keras does, or a batch size below 1.
    """
    if engine not in ENGINES:
        raise BackboneError(f"there is no engine {engine!r}: {nearest(engine, ENGINES)}")
    if batch_rows is not None:
        check_batch_rows(batch_rows)
    opened, reason = _opened(network, engine, memory)
    key = key_of(network, opened.name)
    if batch_rows is not None:
        size, how = BatchSize(batch_rows), "as asked"
    elif known := recall(memory, key):
        size, how = known, "as found before"
    else:
        candidates = _candidates(opened.name)
        size, how = (
            calibrate(opened, network, candidates=candidates),
            f"the quickest of {', '.join(map(str, candidates))} here",
        )
        remember(memory, key, size=size)
    sized = opened.resized(size.batch_rows)
    speed = f" ({size.images_per_s:.3g} images/s)" if size.images_per_s else ""
    why = f"{sized.name}, {sized.batch_rows} rows at a time, {how}{speed}{reason}"

    def on_fewer(rows: int) -> None:
        if batch_rows is None:
            remember(memory, key, size=BatchSize(rows, size.images_per_s))

    return ChosenEngine(sized, why, images_per_s=size.images_per_s, on_event=on_event, on_fewer=on_fewer)


def _opened(network: AnyNetwork, engine: str, memory: Path | None) -> tuple[Engine, str]:
    """The engine, of whatever size, and for "auto" what spoke against another one."""
    if isinstance(network, OnnxNetwork):
        return _opened_onnx(network, engine, memory)
    if isinstance(network, TorchNetwork):
        return _opened_torch(network, engine, memory)
    if engine in ("onnxruntime", "torch"):
        raise _no_engine(network, engine, "keras", "openvino")
    if engine == "openvino":
        return _openvino(network, memory), ""
    reason = "" if engine == "keras" else _against_openvino(network)
    if engine == "auto" and not reason:
        try:
            return _openvino(network, memory), ""
        except BackboneError as error:
            reason = error.message
    return KerasEngine(network), f"; {reason}" if reason else ""


def _against_openvino(network: Network) -> str:
    """Why OpenVINO is not tried; "" if nothing speaks against it."""
    if has_accelerator():
        return "it has an accelerator"
    if not is_installed("openvino"):
        return f"OpenVINO is several times faster: {install_line('openvino')}"
    precision = network.cuts[0].space.precision
    return "" if computes_in(precision) else f"this processor does not compute in {precision}, which is slow then"


def quick_precision(engine: str = "auto", kind: Kind = "registry") -> Precision:
    """The precision in which an engine is quickest here, of float32 and bfloat16; float16 has too small a range.

    kind : of network
    """
    if kind in LIBRARIES:
        on_device = engine in ("auto", "torch") and is_installed("torch") and torch_device() != "cpu"
    else:
        on_device = engine in ("auto", "keras") and kind != "onnx" and has_keras() and has_accelerator()
    on_processor = engine in ("auto", "openvino") and is_installed("openvino") and computes_in("bfloat16")
    return "bfloat16" if on_device or on_processor else "float32"


def _opened_onnx(network: OnnxNetwork, engine: str, memory: Path | None) -> tuple[Engine, str]:
    """As `_opened`, for a network from an ONNX file."""
    if engine in ("keras", "torch"):
        raise _no_engine(network, engine, "openvino", "onnxruntime")
    if engine == "onnxruntime":
        return OnnxruntimeEngine(network), ""
    if engine == "auto" and not is_installed("openvino"):
        return OnnxruntimeEngine(network), f"; OpenVINO is quicker: {install_line('onnx')}"
    try:
        opened = OnnxOpenvinoEngine(network)
        if not is_installed("onnxruntime"):
            return opened, "; not compared with onnxruntime, which is not installed"
        if network.cuts[0].space.precision == "float32" and recall(memory, key_of(network, opened.name)) is None:
            check_same(opened, OnnxruntimeEngine(network), network=network)
    except BackboneError as error:
        if engine == "openvino" or not is_installed("onnxruntime"):
            raise
        return OnnxruntimeEngine(network), f"; {error.message}"
    return opened, ""


def _opened_torch(network: TorchNetwork, engine: str, memory: Path | None) -> tuple[Engine, str]:
    """As `_opened`, for a network of PyTorch: itself, or as ONNX where another engine agrees and is quicker."""
    if engine == "keras":
        raise _no_engine(network, engine, "torch", "openvino")
    if engine == "torch":
        return TorchEngine(network), ""
    if engine != "auto":
        return _exported(network, engine, memory), ""
    if (device := torch_device()) != "cpu":
        return TorchEngine(network), f" on {device}"
    if network.cuts[0].space.precision != "float32":
        quick = is_installed("openvino") and computes_in(network.cuts[0].space.precision)
        return (_exported(network, "openvino", memory) if quick else TorchEngine(network)), ""
    for name in ("torch", "openvino"):  # whichever was found to be the quicker one
        if recall(memory, key_of(network, name)) is not None:
            return (TorchEngine(network) if name == "torch" else _exported(network, name, memory)), ""
    own = TorchEngine(network)
    if not is_installed("openvino"):
        return own, f"; OpenVINO is often quicker: {install_line('openvino')}"
    try:
        other = _exported(network, "openvino", memory)
    except BackboneError as error:
        return own, f"; {error.message}"
    size_px = network.cuts[0].space.input_size_px
    rates = {engine.name: images_per_s(engine, size_px) for engine in (own, other)}
    quicker = other if rates[other.name] > rates[own.name] else own
    slower = own if quicker is other else other
    return quicker, f"; {slower.name} computes {rates[slower.name]:.3g} images/s"


def _exported(network: TorchNetwork, engine: str, memory: Path | None) -> Engine:
    """An engine for ONNX on a network of PyTorch, compared with it unless that has been done on this machine."""
    opened = OnnxOpenvinoEngine(network.as_onnx) if engine == "openvino" else OnnxruntimeEngine(network.as_onnx)
    if network.cuts[0].space.precision == "float32" and recall(memory, key_of(network, engine)) is None:
        check_same(opened, TorchEngine(network, 1), network=network)
    return opened


def _no_engine(network: AnyNetwork, engine: str, *others: str) -> BackboneError:
    return BackboneError(
        f"{network.cuts[0].space.backbone}: the engine {engine} does not compute such networks",
        f"Set `engine={others[0]!r}` or `engine={others[1]!r}`",
    )


def _openvino(network: Network, memory: Path | None) -> Engine:
    """OpenVINO, compared with Keras unless that has been done on this machine."""
    engine = OpenvinoEngine(network)
    if recall(memory, key_of(network, engine.name)) is None:
        check_agreement(engine, network)
    return engine


def _candidates(engine: str) -> tuple[int, ...]:
    """Rows at a time that are worth trying."""
    if engine == "openvino":
        return tuple(rows * usable_cores() for rows in _ROWS_A_CORE)
    if engine == "onnxruntime":
        return _ONNXRUNTIME_ROWS
    if engine == "torch":
        return _KERAS_ROWS if torch_device() == "cpu" else _ACCELERATOR_ROWS
    return _ACCELERATOR_ROWS if has_accelerator() else _KERAS_ROWS
