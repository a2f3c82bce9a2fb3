"""What engines share: rows are checked and cut into batches of one shape, and what no memory looks like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import check_pixels
from featcache.core.errors import BackboneError

_NO_MEMORY = ("MemoryError", "OutOfMemoryError", "ResourceExhaustedError")
_NO_MEMORY_WORDS = re.compile(
    r"out of memory|bad_alloc|RESOURCE_EXHAUSTED|allocate .{0,40}memory|memory allocation", re.I
)


def check_rows(pixels: NDArray[np.uint8], size_px: int) -> None:
    """Raise BackboneError unless `pixels` is an ndarray of shape (n, size_px, size_px, 3), uint8."""
    check_pixels(pixels)
    expected = (size_px, size_px, 3)
    if pixels.shape[1:] != expected:
        raise BackboneError(f"pixels: expected rows of shape {expected}, got {pixels.shape[1:]}")


def check_batch_rows(batch_rows: int) -> int:
    """`batch_rows`, if it is at least 1; else BackboneError."""
    if batch_rows < 1:
        raise BackboneError(f"batch size: expected at least 1, got {batch_rows}")
    return batch_rows


def batches(pixels: NDArray[np.uint8], batch_rows: int) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """(place of its rows, batch of exactly `batch_rows` rows) in order, the last one filled up with zeros.

    Libraries choose other kernels for other shapes, and those round otherwise: with one shape for all
    calls, a row gets the same features in the last batch as in any other.
    """
    for start in range(0, len(pixels), batch_rows):
        rows = pixels[start : start + batch_rows]
        place = slice(start, start + len(rows))
        if missing := batch_rows - len(rows):
            rows = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), np.uint8)])
        yield place, np.ascontiguousarray(rows)


def empty_features(n_rows: int, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    """Room for the features of `n_rows` rows at every cut."""
    return [np.empty((n_rows, *shape), np.float32) for shape in shapes]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library failed for want of memory; each has an error of its own for it, or only words."""
    if any(kind.__name__ in _NO_MEMORY for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY_WORDS.search(str(error)) is not None
