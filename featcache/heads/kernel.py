"""Gram matrices of a cache: computed in one streamed pass, kept beside the cache, reused by every head on it."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from featcache.core import machine
from featcache.core.errors import FeatcacheError, HeadError
from featcache.core.files import beside, sha256_bytes, sha256_file, write_json
from featcache.core.recipe import digest
from featcache.core.strict_json import read_json
from featcache.datasets import SPLITS
from featcache.heads import products
from featcache.store import ROWS_FILE, Cache

Array = NDArray[np.floating[Any]]
Numbers = NDArray[np.intp]
KERNELS_SUFFIX = ".gram"
_VERSION = 1
_SHARE_OF_MEMORY = 0.6


def kernels_folder(cache: Path) -> Path:
    """Where the Gram matrices of the cache in a folder are kept: beside it, since they are no part of it."""
    return cache.with_name(cache.name + KERNELS_SUFFIX)


def kernel(
    cache: Cache,
    left: Numbers,
    *,
    right: Numbers,
    dtype: DTypeLike,
    on_rows: Callable[[int], object] = lambda _: None,
) -> Array:
    """X[left] X[right]^T of a cache's features, (n_left, n_right); read-only where it comes from the disk.

    left, right : row numbers; the same object for a Gram matrix, of which one half is computed
    on_rows : called with the number of rows of `left` that were computed

    A matrix that does not fit into memory is computed and used on the disk. Raises HeadError where it cannot lie there.
    """
    file = _file(cache, left, right, dtype)
    shape = (len(left), len(right))
    found = _load(file, shape, dtype)
    if found is not None:
        on_rows(len(left))
        return found
    if not fits(shape, dtype):
        _refuse_full_disk(file, shape, dtype)
        with _explaining(file), _kept(file) as partial:
            on_disk = np.lib.format.open_memmap(partial, "w+", np.dtype(dtype), shape)
            products.inner(cache.features, left, right=right, dtype=dtype, out=on_disk, on_rows=on_rows)
            on_disk.flush()
        return np.asanyarray(np.load(file, mmap_mode="r"))
    K = products.inner(cache.features, left, right=right, dtype=dtype, on_rows=on_rows)
    with suppress(OSError), _kept(file) as partial:  # without it, the next head computes it again
        np.save(partial, K)
    return K


def is_kept(cache: Cache, left: Numbers, *, right: Numbers, dtype: DTypeLike) -> bool:
    """Whether such a matrix lies beside the cache; whether its bytes are right is seen when it is read."""
    file = _file(cache, left, right, dtype)
    return file.is_file() and file.with_suffix(".json").is_file()


def unwanted(cache: Cache) -> list[Path]:
    """Files of matrices beside the cache that none of its splits asks for now."""
    train, everything = cache.numbers("train"), labelled_rows(cache)
    pairs = [*((cache.numbers(split), train) for split in SPLITS), (everything, everything)]
    wanted = {
        _file(cache, left, right, dtype).stem
        for (left, right), dtype in itertools.product(pairs, ("float32", "float64"))
    }
    ours = re.compile(r"[0-9a-f]{32}\.(npy|json)")
    there = sorted(kernels_folder(cache.folder).glob("*"))
    return [file for file in there if ours.fullmatch(file.name) and file.stem not in wanted]


def labelled_rows(cache: Cache) -> Numbers:
    """Numbers of all rows in a split that have a label, increasing: those of a cross-validation."""
    return np.sort(np.concatenate([cache.numbers(split) for split in SPLITS]))


def features_digest(cache: Cache) -> str:
    """Digest of the very bytes of a cache's features; its name tells only what they should be."""
    files = cache.manifest.files
    return digest({name: files[name].sha256 for name in sorted(files) if name.startswith("features")})


def _file(cache: Cache, left: Numbers, right: Numbers, dtype: DTypeLike) -> Path:
    return kernels_folder(cache.folder) / f"{_key(cache, left, right, dtype)}.npy"


def _key(cache: Cache, left: Numbers, right: Numbers, dtype: DTypeLike) -> str:
    """Names a matrix by all that decides it: the features, the order of their rows, and which of them."""
    rows = [sha256_bytes(np.ascontiguousarray(numbers, "<i8").tobytes()) for numbers in (left, right)]
    order = cache.manifest.files[ROWS_FILE].sha256
    return digest([_VERSION, features_digest(cache), order, *rows, np.dtype(dtype).str])[:32]


def fits(shape: tuple[int, int], dtype: DTypeLike) -> bool:
    """Whether a matrix is held in memory; else it is used on the disk."""
    return shape[0] * shape[1] * np.dtype(dtype).itemsize < machine.available_bytes() * _SHARE_OF_MEMORY


def _load(file: Path, shape: tuple[int, int], dtype: DTypeLike) -> Array | None:
    """The matrix that lies in `file`, if it is the whole one that was written."""
    try:
        written = read_json(file.with_suffix(".json"))
        if written != _record(file):
            return None
        K: Array = np.load(file, mmap_mode="r")
    except (OSError, ValueError, RecursionError):
        return None
    if K.shape != shape or K.dtype != np.dtype(dtype):
        return None
    return np.array(K) if fits(shape, dtype) else K


def _record(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_file(file)}


def _refuse_full_disk(file: Path, shape: tuple[int, int], dtype: DTypeLike) -> None:
    """Raise HeadError where the disk has no room: a full one would end the process in the middle of a product."""
    needed, free = shape[0] * shape[1] * np.dtype(dtype).itemsize, shutil.disk_usage(file.parent.parent).free
    if needed >= free:
        raise HeadError(
            f"{file.parent}: the Gram matrix of {shape[0]} x {shape[1]} rows needs {needed / 2**30:.1f} GiB, which do "
            f"not fit into memory, and {free / 2**30:.1f} GiB are free on this disk",
            "Set `solver='block'`",
        )


@contextmanager
def _explaining(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FeatcacheError):
            raise
        raise HeadError(
            f"{file.parent}: cannot be written ({error.strerror or error}), and the Gram matrix does not fit into "
            "memory",
            "Set `solver='block'`",
        ) from error


@contextmanager
def _kept(file: Path) -> Iterator[Path]:
    """A path to write a matrix to; it becomes `file`, with its digest in a file of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with beside(file) as partial:
        yield partial
        write_json(file.with_suffix(".json"), _record(partial))
