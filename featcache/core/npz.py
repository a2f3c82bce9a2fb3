"""Arrays in .npz and .npy files. Those of a stranger take no more memory than their file has bytes."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from featcache.core.files import beside

NPZ_DAMAGE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    SyntaxError,
    TokenError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
"""What NumPy and zipfile raise for files that are none of theirs, or no longer."""


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name into an .npz file, beside and then renamed."""
    with beside(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def npz_of(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of the file that `write_npz` writes."""
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    return data.getvalue()


@contextmanager
def reading_npz(path: Path | IO[bytes]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The arrays that `np.savez` wrote into a file, each read when it is asked for. path : or the file, opened

    Raises one of NPZ_DAMAGE, before anything is read, for a file that is damaged, or that holds more than it has bytes:
    packed members, members that share their bytes, and arrays that say to be larger than what is there.
    """
    with path.open("rb") if isinstance(path, Path) else nullcontext(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("its arrays are compressed, which np.savez does not do")
            if sum(member.file_size for member in members) > size:
                raise ValueError(f"it says to hold more than its {size} bytes")
            for member in members:
                with archive.open(member) as opened:
                    _refuse_other_sizes(opened, member.file_size)
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays


def open_npy(path: Path) -> NDArray[Any]:
    """The array that `np.save` wrote into a file, read-only; its values stay on the disk until they are used.

    Raises one of NPZ_DAMAGE for a file that is damaged, or whose header promises other bytes than are there.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        _refuse_other_sizes(file, size)
    return np.lib.format.open_memmap(path, mode="r")


def _refuse_other_sizes(file: IO[bytes], size: int) -> None:
    """Raise ValueError for an array whose header promises other bytes than those behind it: NumPy would make room."""
    version = npy.read_magic(file)
    if version != (1, 0):  # what NumPy writes for all that has no thousand fields
        raise ValueError(f"an array of version {version}")
    shape, _, dtype = npy.read_array_header_1_0(file)
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"an array that says to be {shape!s:.80} of {dtype!s:.40}, and is not")
