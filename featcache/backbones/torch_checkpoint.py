"""Reads the tensors of a PyTorch checkpoint in its old (pre-zip) serialization, safely.

The file is a sequence of pickles (magic number, version, machine, state dict, storage keys), then
for every key an int64 count and the storage's raw bytes. Pickles can run code; these are never
given to `pickle`, but to a reader that can build plain data and nothing else (`torch_pickle`).

    state dict -> Tensor(storage, offset, shape, stride) per name
    keys, storages -> bytes per storage
    both -> ndarray per name, every bound checked against the file's own size
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.torch_pickle import BadCheckpointError, Storage, Tensor, take, unpickle
from featcache.core.errors import WeightsError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_checkpoint(path: str | Path) -> dict[str, NDArray[Any]]:
    """All tensors of a state dict saved by `torch.save` before PyTorch 1.6, by name.

    Parameters
    ----------
    path : the .pth file

    Returns
    -------
    dict of ndarray, C-contiguous, of the shapes and dtypes saved, in the file's order

    Raises
    ------
    WeightsError : the file is missing, cut off, damaged, or holds anything but a state dict.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return _read(io.BytesIO(data), len(data))
    # Whatever a damaged file makes the steps below stumble over is one of these; a test feeds them
    # thousands of damaged files.
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise WeightsError(
            f"{path}: not a readable PyTorch checkpoint (old serialization): {error or type(error).__name__}"
        ) from error


def _read(stream: io.BytesIO, size: int) -> dict[str, NDArray[Any]]:
    if unpickle(stream) != _MAGIC:
        raise BadCheckpointError("the magic number is missing")
    # Messages never print a value as a whole: a hostile one can nest without end.
    if unpickle(stream) != _PROTOCOL:
        raise BadCheckpointError(f"it is not of protocol {_PROTOCOL}")
    machine = unpickle(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise BadCheckpointError("expected little-endian storages")
    tensors = _tensors(unpickle(stream), size)
    keys = unpickle(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BadCheckpointError("the list of storage keys is damaged")
    values = _storages(stream, keys, tensors)
    return {name: _view(tensor, values[tensor.storage.key]) for name, tensor in tensors.items()}


def _tensors(state: object, size: int) -> dict[str, Tensor]:
    """The state dict, checked: names are text, values are tensors, together no larger than the file."""
    if not isinstance(state, dict):
        raise BadCheckpointError("there is no state dict")
    total = 0
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise BadCheckpointError(f"{name!r:.80} is no tensor")
        total += math.prod(tensor.shape) * np.dtype(tensor.storage.dtype).itemsize
    if total > size:
        raise BadCheckpointError(f"the tensors claim {total} bytes, the file has {size}")
    return state


def _storages(stream: io.BytesIO, keys: list[str], tensors: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    """The flat values of every storage, shape (count,), read in the order of `keys` to the file's end."""
    declared: dict[str, Storage] = {}
    for tensor in tensors.values():
        storage = tensor.storage
        if declared.setdefault(storage.key, storage) != storage:
            raise BadCheckpointError(f"storage {storage.key!r:.40} is declared in two ways")
    if len(set(keys)) != len(keys) or set(keys) != set(declared):
        raise BadCheckpointError("the storages listed are not the storages used")
    values: dict[str, NDArray[Any]] = {}
    for key in keys:
        storage = declared[key]
        count = int.from_bytes(take(stream, 8, what="a storage's length"), "little", signed=True)
        if count != storage.count:
            raise BadCheckpointError(f"storage {key!r:.40}: expected {storage.count} values, found {count}")
        dtype = np.dtype(storage.dtype)
        values[key] = np.frombuffer(take(stream, count * dtype.itemsize, what=f"storage {key!r:.40}"), dtype)
    if rest := stream.read():
        raise BadCheckpointError(f"{len(rest)} bytes follow the last storage")
    return values


def _view(tensor: Tensor, values: NDArray[Any]) -> NDArray[Any]:
    """`tensor` as a new array; `torch_pickle` has checked that it lies within its storage."""
    strides = tuple(step * values.itemsize for step in tensor.stride)
    window = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.array(window, order="C")
