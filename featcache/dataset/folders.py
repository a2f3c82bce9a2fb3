"""Looking at folders: what is visible, what holds images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from featcache.dataset.images import is_image_name

_HIDDEN = (".", "__")


def descend(folder: Path, own: frozenset[Path]) -> Path:
    """Past folders that hold nothing but one other folder with folders of images in it."""
    subfolders = visible_folders(folder, own)
    files = [
        path
        for path in folder.iterdir()
        if (is_image_name(path) or is_file(path, ".csv")) and path.resolve() not in own
    ]
    if len(subfolders) == 1 and not files and visible_folders(subfolders[0]):
        return descend(subfolders[0], own)
    return folder


def visible_folders(folder: Path, own: frozenset[Path] = frozenset()) -> list[Path]:
    """Subfolders that are neither hidden nor among `own` (resolved paths)."""
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(_HIDDEN))
    return sorted(path for path in folders if path.resolve() not in own)


def is_file(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix and not path.name.startswith(_HIDDEN) and path.is_file()


def is_images_folder(folder: Path) -> bool:
    return folder.name.lower() in ("images", "image", "imgs", "jpegimages", "pictures", "data")


def image_files(folder: Path) -> list[Path]:
    """Images at any depth, past hidden folders such as .ipynb_checkpoints and __MACOSX."""
    return sorted(path for path in _named_as_images(folder) if path.is_file())


def has_images(folder: Path) -> bool:
    return any(True for _ in _named_as_images(folder))


def _named_as_images(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        inner = path.relative_to(folder).parts[:-1]
        if is_image_name(path) and not any(part.startswith(_HIDDEN) for part in inner):
            yield path


def names_of(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)
