"""Sources that are one file: a zip, or the arrays of MedMNIST. Unpacked once, into a folder named by their digest."""

from __future__ import annotations

import math
import shutil
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from featcache.core.errors import DatasetError
from featcache.core.files import sha256_file
from featcache.core.locks import folder_beside
from featcache.core.npz import NPZ_DAMAGE
from featcache.images import is_image_name

UNPACKED_FOLDER = "unpacked"
_MOST_FILES = 500_000
_MOST_BYTES = 64 << 30
_MOST_PACKED = 200
"""How many times smaller than its contents an archive may be, beyond `_ALWAYS_BYTES`."""
_ALWAYS_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_MOST_LABELS = 1000
_PASSED = ("__MACOSX", ".DS_Store", "Thumbs.db")
_SPLITS = ("train", "val", "test")
_BLOODMNIST = (
    *("basophil", "eosinophil", "erythroblast", "immature granulocyte"),
    *("lymphocyte", "monocyte", "neutrophil", "platelet"),
)
"""The classes of BloodMNIST by number; its third is that of promyelocytes, myelocytes and metamyelocytes."""


def is_packed(place: Path) -> bool:
    """Whether a source is a file that has to be unpacked before images can be found in it."""
    return place.suffix.lower() in (".zip", ".npz") and place.is_file()


def unpacked(place: Path, into: Path) -> Path:
    """The folder that a .zip or .npz was unpacked to, in `into`; what is there already, whole, is not made again.

    Raises DatasetError for what is damaged, encrypted, leads out of its folder or is larger than any data set.
    """
    try:
        folder = into / UNPACKED_FOLDER / f"{place.stem[:60].strip(' .')}-{sha256_file(place)[:12]}"
        if folder.is_dir():
            return _inner(folder)
        with folder_beside(folder) as partial:
            if place.suffix.lower() == ".zip":
                _unzip(place, partial)
            else:
                _write_arrays(place, partial)
    except DatasetError:
        raise
    except NotImplementedError as error:
        raise DatasetError(f"{place}: is packed in a way that is not read ({error}): pack it as a plain zip") from error
    except OSError as error:
        if error.filename is not None or error.errno is not None:
            raise DatasetError(f"{place}: cannot be unpacked into {into}: {error.strerror or error}") from error
        raise DatasetError(f"{place}: is damaged: {error!s:.200}") from error
    except NPZ_DAMAGE as error:
        raise DatasetError(f"{place}: is damaged, or no {place.suffix} file: {error!s:.200}") from error
    return _inner(folder)


def _inner(folder: Path) -> Path:
    """Past the one folder that most archives wrap everything into; unless it may be a class, of images alone."""
    there = list(folder.iterdir())
    if len(there) != 1 or not there[0].is_dir() or all(map(is_image_name, there[0].iterdir())):
        return folder
    return _inner(there[0])


def _unzip(place: Path, folder: Path) -> None:
    with zipfile.ZipFile(place) as archive:
        members = [one for one in archive.infolist() if not one.is_dir()]
        names = [_safe_name(place, member) for member in members]
        _refuse_bombs(place, members)
        twice = [name for name, times in Counter(str(name).casefold() for name in names).items() if times > 1]
        if twice:
            raise DatasetError(f"{place}: holds {twice[0]!r:.200} twice, in small or capital letters: which is right?")
        if shutil.disk_usage(folder).free < sum(member.file_size for member in members):
            raise DatasetError(f"{place}: there is no room on the disk to unpack it into {folder.parent}")
        for member, name in zip(members, names, strict=True):
            if any(part in _PASSED or part.startswith("._") for part in name.parts):
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as packed, (folder / name).open("xb") as file:
                _copy(packed, file, member.file_size)


def _safe_name(place: Path, member: zipfile.ZipInfo) -> PurePosixPath:
    """A member's path. Raises DatasetError for what leads elsewhere, is encrypted or is no file."""
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    path = PurePosixPath(name)
    leads_out = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts
    if leads_out or any(ord(letter) < 32 for letter in name):
        raise DatasetError(f"{place}: holds the path {name!r:.200}, which leads out of its folder: it is not unpacked")
    if kind not in (0, stat.S_IFREG):
        raise DatasetError(f"{place}: {name!r:.200} is a link or a device: it is not unpacked")
    if member.flag_bits & 1:
        raise DatasetError(f"{place}: is encrypted: unpack it yourself, and name the folder")
    return path


def _refuse_bombs(place: Path, members: list[zipfile.ZipInfo]) -> None:
    size, total, there = (
        place.stat().st_size,
        sum(one.file_size for one in members),
        sum(one.compress_size for one in members),
    )
    if len(members) > _MOST_FILES or total > _MOST_BYTES:
        raise DatasetError(
            f"{place}: holds {len(members):,} files of {total:,} bytes; at most {_MOST_FILES:,} of {_MOST_BYTES:,} are "
            "unpacked: unpack it yourself, and name the folder"
        )
    if total > max(_MOST_PACKED * size, _ALWAYS_BYTES) or there > size:
        raise DatasetError(f"{place}: {size:,} bytes would become {total:,}, which no pictures do: it is not unpacked")


def _copy(packed: IO[bytes], file: IO[bytes], size: int) -> None:
    """Raises ValueError where there are other bytes than the archive says."""
    left = size
    while block := packed.read(min(_BLOCK_BYTES, left + 1)):
        left -= len(block)
        if left < 0:
            break
        file.write(block)
    if left:
        raise ValueError("a file in it has another size than it says")


def _write_arrays(place: Path, folder: Path) -> None:
    """MedMNIST's train_images, train_labels and so on, as class folders in train, val and test.

    Pictures are written as PPM or PGM: plain bytes, so that they have one name on every machine.
    """
    names = _BLOODMNIST if place.stem.lower().startswith("bloodmnist") else ()
    with zipfile.ZipFile(place) as archive:
        _refuse_bombs(place, archive.infolist())
        there = {member.filename: member for member in archive.infolist()}
        splits = [split for split in _SPLITS if f"{split}_images.npy" in there and f"{split}_labels.npy" in there]
        if not splits:
            said = ", ".join(sorted(there)[:8])
            raise DatasetError(
                f"{place}: holds {said or 'nothing'}; expected MedMNIST's train_images, train_labels, ..."
            )
        for split in splits:
            labels = _labels(place, archive, there[f"{split}_labels.npy"])
            with _opened(place, archive, there[f"{split}_images.npy"]) as (packed, shape, dtype):
                if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
                    raise DatasetError(
                        f"{place}: {split}_images are {shape} of {dtype}; expected pictures of bytes, grey or RGB"
                    )
                if shape[0] != len(labels):
                    raise DatasetError(f"{place}: {shape[0]} {split}_images and {len(labels)} {split}_labels")
                for number, label in enumerate(labels.tolist()):
                    pixels = packed.read(math.prod(shape[1:]))
                    name = _class_name(place, label, names)
                    _write_picture(folder / split / name / f"{number:06d}", pixels, shape[1:])


def _class_name(place: Path, label: int, names: tuple[str, ...]) -> str:
    if names and not 0 <= label < len(names):
        raise DatasetError(f"{place}: the label {label} is none of BloodMNIST's, 0 to {len(names) - 1}")
    return names[label] if names else str(label)


def _write_picture(path: Path, pixels: bytes, shape: tuple[int, ...]) -> None:
    if len(pixels) != math.prod(shape):
        raise ValueError("its pictures end early")
    path.parent.mkdir(parents=True, exist_ok=True)
    magic, ending = (b"P6", ".ppm") if len(shape) == 3 else (b"P5", ".pgm")
    path.with_suffix(ending).write_bytes(magic + f"\n{shape[1]} {shape[0]}\n255\n".encode() + pixels)


def _labels(place: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with _opened(place, archive, member) as (packed, shape, dtype):
        if dtype.kind not in "iu" or math.prod(shape) != (shape or (0,))[0]:
            raise DatasetError(
                f"{place}: {member.filename} is {shape} of {dtype}; expected one number for each picture"
            )
        labels = np.frombuffer(packed.read(), dtype)
        if len(labels) != shape[0] or len(np.unique(labels)) > _MOST_LABELS:
            raise DatasetError(f"{place}: {member.filename} is cut short, or has more than {_MOST_LABELS} classes")
    return labels


@contextmanager
def _opened(
    place: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """The values of an array, its shape and type. Nothing is ever unpickled: such an array is refused by its header."""
    if member.flag_bits & 1:
        raise DatasetError(f"{place}: is encrypted")
    with archive.open(member) as packed:
        version = npy.read_magic(packed)
        if version != (1, 0):
            raise ValueError(f"an array of version {version}")
        shape, in_columns, dtype = npy.read_array_header_1_0(packed)
        if dtype.hasobject:
            raise DatasetError(f"{place}: {member.filename} holds Python objects, which could run a program: not read")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize + packed.tell() != member.file_size:
            raise ValueError(f"{member.filename} says to be {shape!s:.80} of {dtype!s:.40}, and is not")
        if in_columns and len(shape) > 1 and math.prod(shape) != shape[0]:
            raise DatasetError(f"{place}: {member.filename} is stored by columns (Fortran order), which is not read")
        yield packed, shape, dtype
