"""generate: draw a data set of leukocytes, or of smears with annotations."""

from __future__ import annotations

from pathlib import Path

from featcache.core.errors import DatasetError, ProjectError
from featcache.core.locks import folder_beside
from featcache.synthetic.drawing import write_cells, write_smears


def generate(folder: Path, per_class: int, *, smears: int = 0, seed: int = 0, size_px: int = 240) -> None:
    """Draw cells into class folders, or smears with annotations; all of them, or no folder.

    Raises DatasetError where the folder holds something, ProjectError where it cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DatasetError(f"{folder}: is not empty: name a new folder")
    try:
        with folder_beside(folder) as partial:
            if smears:
                write_smears(partial, smears, seed=seed)
            else:
                write_cells(partial, per_class, seed=seed, size_px=size_px)
    except OSError as error:
        raise ProjectError(f"{folder}: cannot be written: {error.strerror or error}") from error
