"""How many rows at a time: tried out once a network and machine, in seconds, and remembered.

Remembered not only to save the seconds: libraries round otherwise in batches of another size, so the next run
should take the same one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbones.doors import AnyNetwork
from featcache.backbones.engines.batches import is_out_of_memory
from featcache.backbones.engines.contract import Engine
from featcache.backbones.network import Network
from featcache.core import machine
from featcache.core.files import write_json
from featcache.core.machine import usable_cores
from featcache.core.recipe import digest
from featcache.core.strict_json import read_json

_LIMIT_S = 4.0
_SAMPLE_S = 0.25
_BETTER = 1.03
"""How much quicker a larger batch must be: below that it is chance, and a small one needs less memory."""
_WORSE = 0.85
"""At this share of the best so far, larger ones are not tried."""
_SHARE_OF_MEMORY = 0.5
_MAX_ROWS = 4096
_VALUES_A_PIXEL = 300
_LIBRARIES = ("openvino", "onnxruntime", "torch")


@dataclass(frozen=True)
class BatchSize:
    """Rows at a time, and how fast that was; None where it was not tried."""

    batch_rows: int
    images_per_s: float | None = None


def calibrate(engine: Engine, network: AnyNetwork, *, candidates: Sequence[int]) -> BatchSize:
    """The quickest of `candidates`, or of as many as a few seconds and free memory allow.

    Parameters
    ----------
    engine : of whatever size
    network : what it computes
    candidates : rows at a time, ascending; the first is taken where none can be tried
    """
    most = machine.available_bytes() * _SHARE_OF_MEMORY / row_bytes(network)
    end = time.perf_counter() + _LIMIT_S
    best, rate = BatchSize(candidates[0]), 0.0
    for batch_rows in candidates:
        if batch_rows > most or (rate and time.perf_counter() + 2 * batch_rows / rate > end):
            break
        try:
            new = images_per_s(engine.resized(batch_rows), network.cuts[0].space.input_size_px)
        except Exception as error:  # each library has errors of its own
            if is_out_of_memory(error):
                break
            raise
        if new > rate * _BETTER:
            best, rate = BatchSize(batch_rows, new), new
        elif new < rate * _WORSE:
            break
    return best


def images_per_s(engine: Engine, size_px: int) -> float:
    """Rows a second of an engine; what it does once, at its first batch, is not counted."""
    pixels = np.random.default_rng(0).integers(0, 256, (engine.batch_rows, size_px, size_px, 3), dtype=np.uint8)
    engine.features(pixels)
    start = time.perf_counter()
    engine.features(pixels)
    once_s = max(time.perf_counter() - start, 1e-6)
    times = min(math.ceil(_SAMPLE_S / once_s), math.ceil(_MAX_ROWS / len(pixels)))
    if times == 1:
        return len(pixels) / once_s
    many = np.concatenate([pixels] * times)
    start = time.perf_counter()
    engine.features(many)
    return len(many) / (time.perf_counter() - start)


def row_bytes(network: AnyNetwork) -> int:
    """Memory that a row may take at most while it is computed: as if every layer's output were kept, bytes.

    Of networks that are not of Keras, whose layers are not known here, a guess: that of a VGG16, which keeps most.
    """
    if not isinstance(network, Network):
        return 4 * network.cuts[0].space.input_size_px ** 2 * _VALUES_A_PIXEL
    shapes = (getattr(operation.output, "shape", ()) for operation in network.model.operations)
    return 4 * sum(math.prod(size or 1 for size in shape[1:]) for shape in shapes)


# --- memory ---------------------------------------------------------------------------------------


def key_of(network: AnyNetwork, engine: str) -> str:
    """What a batch size is remembered by: all that decides how fast which one is, and how it rounds."""
    space = network.cuts[0].space
    asked = [space.backbone, space.weights_digest, space.input_size_px, space.preprocessing, space.precision]
    cuts = [[cut.space.layer, cut.space.pooling] for cut in network.cuts]
    library = engine if engine in _LIBRARIES else "keras"
    return digest([asked, cuts, engine, version(library), usable_cores()])


def recall(memory: Path | None, key: str) -> BatchSize | None:
    """The batch size remembered under `key`; None if there is none, or none that can be read."""
    value: Any = _read(memory).get(key)
    try:
        known = BatchSize(int(value["batch_rows"]), float(value["images_per_s"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return known if 1 <= known.batch_rows <= _MAX_ROWS and 0 < (known.images_per_s or 0) < math.inf else None


def remember(memory: Path | None, key: str, *, size: BatchSize) -> None:
    """Remember a size that was tried; where nothing can be written, it is found out again next time."""
    if memory is None or size.images_per_s is None:
        return
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, {**_read(memory), key: asdict(size)})


def _read(memory: Path | None) -> dict[str, Any]:
    if memory is None:
        return {}
    try:
        value = read_json(memory)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
