"""PyTorch itself, on the processor or an accelerator."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.engines.batches import batches, check_batch_rows, check_rows, empty_features
from featcache.backbones.torch_network import TorchNetwork
from featcache.core.machine import usable_cores


def torch_device() -> str:
    """Where PyTorch computes: "cuda" or "mps" where there is such a thing, else "cpu"."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class TorchEngine:
    """An `Engine` on PyTorch.

    Parameters
    ----------
    network : of PyTorch
    batch_rows : rows at once

    Raises
    ------
    BackboneError : a batch size below 1.
    """

    name = "torch"
    calls_at_once = 1

    def __init__(self, network: TorchNetwork, batch_rows: int = 8) -> None:
        torch = importlib.import_module("torch")
        space = network.cuts[0].space
        self.feature_shapes: Sequence[tuple[int, ...]] = [cut.feature_shape for cut in network.cuts]
        self._network, self._size_px, self._precision = network, space.input_size_px, space.precision
        self._device = torch_device()
        if self._device == "cuda":  # else convolutions are in TensorFloat-32
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        torch.set_num_threads(usable_cores())
        self._module = network.module.to(self._device)
        self.batch_rows = check_batch_rows(batch_rows)

    def resized(self, batch_rows: int) -> Self:
        """See `Engine.resized`."""
        other = copy.copy(self)
        other.batch_rows = check_batch_rows(batch_rows)
        return other

    def features(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """See `Engine.features`."""
        torch: Any = importlib.import_module("torch")
        check_rows(pixels, self._size_px)
        features = empty_features(len(pixels), self.feature_shapes)
        low = self._precision != "float32"
        dtype = getattr(torch, self._precision) if low else None
        with torch.inference_mode(), torch.autocast(self._device, dtype, enabled=low):
            for place, rows in batches(pixels, self.batch_rows):
                outputs = self._module(torch.from_numpy(self._network.prepared(rows)).to(self._device))
                for target, raw, shaping in zip(features, outputs, self._network.shapings, strict=True):
                    target[place] = shaping(raw.float().cpu().numpy())[: place.stop - place.start]
        return features
