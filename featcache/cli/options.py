"""Options that many commands share, and what they mean. It imports little, for a quick `--help`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.cli.command import option
from featcache.core.recipe import UM_PER_PX

if TYPE_CHECKING:
    from featcache.core.project import Project
    from featcache.store import Cache

json_option = option("--json", "as_json", is_flag=True, help="Print one JSON value as the last line of output.")
project_option = option(
    "-C",
    "--project",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    default_text="the nearest folder with featcache.toml, from here up",
    help="Folder of the project.",
)
remote_option = option(
    "--remote",
    metavar="NAME|URL",
    help="Use this remote, not the project: a name that 'featcache remote ls' lists, or a URL.",
)
weights_option = option("--weights", metavar="PATH", help="Weights of the run's network, if they are in a file.")
um_per_px_option = option(
    "--um-per-px",
    type=click.FloatRange(*UM_PER_PX),
    metavar="NUMBER",
    help="Width of a pixel of these images in micrometres, instead of what their files say; for runs on views of one "
    "magnification.",
)
tta_option = option(
    "--tta",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="VIEWS",
    help="Average over this many augmented views of each image (test-time augmentation).",
)
confidence_option = option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="LEVEL",
    help="Give a set of classes for each image that holds the true one with this probability, such as 0.9.",
)
false_alarms_option = option(
    "--false-alarms",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    metavar="RATE",
    help="Share of images like the training images that may be marked as unlike them.",
)
KERAS_MODEL_HELP = "A backbone ('featcache models' lists them), a .keras or .h5 file, or MODULE:FUNCTION"
MODEL_HELP = (
    "A backbone ('featcache models' lists them), a .keras, .h5 or .onnx file, MODULE:FUNCTION, timm/NAME, "
    "torchvision/NAME, huggingface/ORGANISATION/NAME or kerashub/PRESET"
)


def find_cache_of(folder: Path, name: str | None) -> Cache:
    """The cache that `name` means: its folder, or a name in the project that `folder` lies in."""
    from featcache.store import RECIPE_FILE, find_pulled, open_cache

    if name is not None and (Path(name) / RECIPE_FILE).is_file():
        return open_cache(name)
    return find_pulled(open_project(folder), name)


def remote_of(remote: str | None, folder: Path, *, names: Sequence[str] = ()) -> str | None:
    """The remote that is asked for, or that the project's caches are made on; None for caches in folders."""
    if remote is not None or any(len(Path(name).parts) > 1 for name in names):
        return remote
    project = project_or_none(folder)
    return (project.cache_url or None) if project else None


def project_or_none(folder: Path) -> Project | None:
    """The project that `folder` lies in, for commands that work without one, too."""
    from featcache.core.files import resolved
    from featcache.core.project import PROJECT_FILE, find_project

    start = resolved(folder)
    there = any((parent / PROJECT_FILE).is_file() for parent in (start, *start.parents))
    return find_project(start) if there else None


def open_project(folder: Path) -> Project:
    """The project that `folder` lies in."""
    from featcache.core.project import find_project

    return find_project(folder)
