"""What every engine promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """Runs one network. A row's features depend on that row's pixels alone: every batch has one shape, padded.

    Attributes
    ----------
    name : which engine it is and what runs below it, "openvino" or "keras-tensorflow", for the manifest's provenance.
    batch_rows : rows that it computes at once; a caller does well to bring several times that in a call.
    calls_at_once : calls of `features` that may run at the same time, each with its share of `batch_rows`.
    feature_shapes : shape of one row's features at each cut of the network, (h, w, c), or (c,) where pooled.
    """

    name: str
    batch_rows: int
    calls_at_once: int
    feature_shapes: Sequence[tuple[int, ...]]

    def features(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        """Features of a batch of any length, preprocessing included.

        Parameters
        ----------
        pixels : ndarray of shape (n, s, s, 3), uint8, RGB; not changed

        Returns
        -------
        for each cut an ndarray of shape (n, *feature_shape), C-contiguous: float32, or uint8 where pixels are kept

        Raises
        ------
        BackboneError : pixels of another shape or dtype.
        """
        ...

    def resized(self, batch_rows: int) -> Self:
        """The same network, `batch_rows` rows at a time; what can be shared with this engine is."""
        ...
