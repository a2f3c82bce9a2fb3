"""Looking at folders: what is visible, what holds images, and what in them is not read, with the reason."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from featcache.core.files import resolved
from featcache.images.decode import is_image_name

_HIDDEN = (".", "__")
_SYSTEM = frozenset(
    {
        *("#recycle", "#snapshot", "~snapshot", ".snapshot", ".zfs", "$recycle.bin", "recycler", "recycled"),
        *("system volume information", "lost+found", "network trash folder", "temporary items"),
        *(".thumbnails", ".thumbs", ".@__thumb", ".trash", ".trashes"),
    }
)
_SYSTEM_PATTERN = re.compile(r"@.+|\$.+|found\.\d{3}|\.trash-\d+")
"""@eaDir, @Recycle, @tmp, ... of Synology and QNAP; $RECYCLE.BIN, $Extend, ... of Windows."""

_OTHER_PICTURES = frozenset(
    f".{ending}"
    for line in (
        "jfif jpe jif jpf jpx jxl jxr wdp apng dib tga pnm pbm pam pfm pcx psd xcf svg eps",
        "ico svs ndpi mrxs scn vms vmu bif lif nd2 lsm oib oif vsi zvi qptiff btf stk dcm dicom dng raw cr2 cr3",
        "nef arw orf rw2 raf exr hdr fits fit mha mhd nii nrrd npy",
    )
    for ending in line.split(" ")
)
_IMAGES_FOLDERS = frozenset({"images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "data"})
_NOT_FETCHED = "the file was not fetched, only a link to it is here: run 'git annex get', 'dvc pull' or the like"


def descend(folder: Path, own: frozenset[Path]) -> Path:
    """Past folders that hold nothing but one other folder with folders of images in it."""
    subfolders = visible_folders(folder, own)
    files = [
        path
        for path in folder.iterdir()
        if (is_image_name(path) or is_file(path, ".csv")) and resolved(path) not in own
    ]
    if len(subfolders) == 1 and not files and visible_folders(subfolders[0]):
        return descend(subfolders[0], own)
    return folder


def visible_folders(folder: Path, own: frozenset[Path] = frozenset()) -> list[Path]:
    """Subfolders that are not hidden, no system's, not among `own` (resolved paths) and no way back up."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not _is_passed(entry.name) and _is_folder(entry))
    except OSError:  # `look` lists it with the reason
        return []
    above = own | {resolved(folder), *resolved(folder).parents} if names else own
    return [path for path in (folder / name for name in names) if resolved(path) not in above]


def _is_passed(name: str) -> bool:
    return name.startswith(_HIDDEN) or is_system_folder(name)


def is_system_folder(name: str) -> bool:
    """Whether a folder holds what a NAS or an operating system keeps: thumbnails, deleted files, snapshots."""
    return name.lower() in _SYSTEM or _SYSTEM_PATTERN.fullmatch(name.lower()) is not None


def is_file(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix and not path.name.startswith(_HIDDEN) and path.is_file()


def is_images_folder(folder: Path) -> bool:
    return folder.name.lower() in _IMAGES_FOLDERS


_MAX_DEPTH = 200


def look(folder: Path, own: frozenset[Path] = frozenset()) -> Iterator[tuple[Path, str]]:
    """Images at any depth, in order, each with ""; and what looks like images and is not read, with the reason.

    Links to folders are followed, but not back up. Hidden folders such as .git are passed in silence.
    """
    above = frozenset(map(_identity, (folder, *resolved(folder).parents)))
    yield from _look(folder, own, {path.name for path in own}, above)


def _look(folder: Path, own: frozenset[Path], names: set[str], above: frozenset[object]) -> Iterator[tuple[Path, str]]:
    if len(above) > _MAX_DEPTH:
        yield folder, f"lies in {_MAX_DEPTH} folders and more: not looked into"
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"the folder cannot be read: {error.strerror}"
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name in names and resolved(path) in own:
            continue
        if not _is_folder(entry):
            reason = _why_unread(path, entry)
            if reason is not None:
                yield path, reason
        elif is_system_folder(entry.name):
            yield path, "a folder of the system (thumbnails, deleted files): not looked into"
        elif not entry.name.startswith(_HIDDEN):
            identity = _identity(path)
            if identity in above:
                yield path, "a link to a folder that it lies in: not followed"
            else:
                yield from _look(path, own, names, above | {identity})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: Path) -> object:
    try:
        status = folder.stat()
    except OSError:
        return folder
    return status.st_dev, status.st_ino


def _why_unread(path: Path, entry: os.DirEntry[str]) -> str | None:
    """ "" for an image, the reason for what looks like one and cannot be read, None for any other file."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        is_placeholder = suffix == ".icloud" and is_image_name(Path(path.stem[1:]))
        return "the file is in iCloud, only a placeholder is here: download it" if is_placeholder else None
    if suffix in _OTHER_PICTURES:
        return f"files that end in {path.suffix} are not read: save it as PNG (or, if it is a JPEG, rename it to .jpg)"
    if suffix == ".dvc" and is_image_name(Path(path.stem)) and not path.with_suffix("").exists():
        return _NOT_FETCHED
    if not is_image_name(path):
        return None
    with suppress(OSError):  # links in a circle
        if entry.is_file():
            return ""
    return _NOT_FETCHED if entry.is_symlink() else "it is no regular file"


def image_files(folder: Path, own: frozenset[Path] = frozenset()) -> list[Path]:
    """Images at any depth."""
    return [path for path, reason in look(folder, own) if not reason]


def has_images(folder: Path) -> bool:
    """Whether there are images at any depth, or what looks like some."""
    return any(True for path, _ in look(folder) if not is_system_folder(path.name))


def files_below(folder: Path, suffix: str, *, own: frozenset[Path] = frozenset()) -> list[Path]:
    """Files of an ending at any depth, past hidden folders and those of the system."""
    try:
        with os.scandir(folder) as entries:
            named = sorted(folder / entry.name for entry in entries if entry.name.lower().endswith(suffix))
    except OSError:
        return []
    here = [path for path in named if is_file(path, suffix) and resolved(path) not in own]
    return here + [path for sub in visible_folders(folder, own) for path in files_below(sub, suffix, own=own)]


def seen(folders: Iterable[Path]) -> str:
    """What lies in folders, at any depth: '16 .jpg, 8 .xml'."""
    endings = Counter(
        path.suffix.lower() or "without an ending"
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )
    return ", ".join(f"{number} {ending}" for ending, number in endings.most_common(4)) or "no files"


def names_of(paths: Iterable[Path], most: int = 8) -> str:
    """Names of folders or files, not more than a line can hold."""
    names = [path.name for path in paths]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
