"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from featcache.project import Project

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value last on standard output.")
project_option = click.option(
    "-C",
    "--project",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    show_default="this folder or the nearest one above with featcache.toml",
    help="The project's folder.",
)
strict_option = click.option("--strict", is_flag=True, help="Stop at an image that cannot be used.")

_VIEWS = (
    click.option("--views", "train", type=click.IntRange(1), help="Views of each train image, the plain one included."),
    click.option("--val-views", "val", type=click.IntRange(1), help="Views of each val image."),
    click.option("--test-views", "test", type=click.IntRange(1), help="Views of each test image."),
    click.option("--train-rows", type=click.IntRange(1), help="Rows in train in total, spread evenly over classes."),
    click.option("--val-rows", type=click.IntRange(1), help="Rows in val in total."),
    click.option("--test-rows", type=click.IntRange(1), help="Rows in test in total."),
)
_AUGMENTATION = (
    click.option("--seed", type=click.IntRange(0), help="Decides, with image and view, how each view differs."),
    click.option("--rotation", "rotation_deg", type=float, help="Largest rotation, degrees."),
    click.option("--shift", type=float, help="Largest shift along each axis, fraction of the side."),
)
VIEW_NAMES = ("train", "val", "test", "train_rows", "val_rows", "test_rows")
AUGMENTATION_NAMES = ("seed", "rotation_deg", "shift")


def views_options(command: Command) -> Command:
    """The options that override [views] and [augmentation] of featcache.toml."""
    for option in reversed((*_VIEWS, *_AUGMENTATION)):
        command = option(command)
    return command


def augmentation_options(command: Command) -> Command:
    """The options that override [augmentation] of featcache.toml."""
    for option in reversed(_AUGMENTATION):
        command = option(command)
    return command


def given_views(values: dict[str, Any]) -> dict[str, Any]:
    """The view options that were given. Views an image take the place of a total in featcache.toml."""
    views = given(values, VIEW_NAMES)
    for split in ("train", "val", "test"):
        total = f"{split}_rows"
        if split in views and total in views:
            option = "--views" if split == "train" else f"--{split}-views"
            raise click.UsageError(f"{option} and --{split}-rows exclude each other: give one of them")
        if split in views:
            views[total] = None
    return views


def given(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the named options that were given."""
    return {name: values[name] for name in names if values[name] is not None}


def open_project(folder: Path) -> Project:
    """The project that `folder` lies in."""
    from featcache.project import find_project

    return find_project(folder)
