"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from featcache.core.project import Project
    from featcache.extraction import ExtractOptions
    from featcache.store import Cache

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
model_option = click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="NAME",
    help="A backbone (see models), 'all' (the eight of the study), a .keras or .h5 file, MODULE:FUNCTION, or 'pixels'.",
)
remote_option = click.option(
    "--remote", metavar="NAME|URL", help="On this remote instead of here: a name of `featcache remote ls`, or a URL."
)
_ASKING = (
    click.option("--no-remote", is_flag=True, help="Ask no remote whether it has these features."),
    click.option(
        "--offline", is_flag=True, help="Keep every library off the network; weights must be on this machine."
    ),
)
strict_option = click.option("--strict", is_flag=True, help="Stop at an image that cannot be used.")

MODES = ("caffe", "tf", "torch", "lite0", "rescale", "none")
"""featcache.backbones.preprocess.MODES, which would load NumPy; a test compares them."""

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
_EXTRACTION = (
    click.option(
        "--weights", default="imagenet", show_default=True, metavar="imagenet|random|PATH", help="Its weights."
    ),
    click.option("--weights-seed", type=click.IntRange(0), default=0, show_default=True, help="For --weights random."),
    click.option("--input-size", "input_size_px", type=click.IntRange(1), help="Side of the input, px."),
    click.option(
        "--preprocess",
        "preprocessing",
        type=click.Choice(["model", *MODES]),
        default="model",
        show_default=True,
        help="As the network was trained, plain pixels / 255 (rescale), or another network's way.",
    ),
    click.option("--layer", "layers", multiple=True, metavar="NAME", help="Cut there (see models NAME --layers)."),
    click.option(
        "--pooling",
        type=click.Choice(["none", "avg", "max"]),
        default="none",
        show_default=True,
        help="Keep one mean or maximum a channel instead of the feature map.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="Of the network's arithmetic: another one gives other features.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "keras", "openvino"]),
        default="auto",
        show_default=True,
        help="What computes: OpenVINO is quick on processors.",
    ),
    click.option("--batch", "batch_rows", type=click.IntRange(1), help="Rows at a time (default: the quickest)."),
    click.option("--unsafe", is_flag=True, help="Let code from a model's file run."),
    click.option(
        "--format",
        type=click.Choice(["zarr", "hdf5"]),
        help="Of the cache: Zarr, a file a shard (default), or HDF5, one file.",
    ),
    click.option(
        "--dtype", type=click.Choice(["float32", "float16"]), help="Of the stored features (default float32)."
    ),
    click.option(
        "--reuse-from",
        multiple=True,
        type=click.Path(path_type=Path, file_okay=False, exists=True),
        help="Another folder of caches that rows may be copied from.",
    ),
    click.option("--allow-nonfinite", is_flag=True, help="Store NaN and Inf instead of refusing them."),
    click.option("--check-bytes", is_flag=True, help="Read every image, though size and times say it is unchanged."),
)
VIEW_NAMES = ("train", "val", "test", "train_rows", "val_rows", "test_rows")
AUGMENTATION_NAMES = ("seed", "rotation_deg", "shift")
STORAGE_NAMES = ("format", "dtype")
NETWORK_NAMES = (
    *("weights", "weights_seed", "input_size_px", "preprocessing", "layers", "pooling", "precision"),
    *("engine", "batch_rows", "unsafe"),
)
OTHER_NAMES = ("reuse_from", "no_remote", "offline", "allow_nonfinite", "check_bytes", "strict")


def extraction_options(command: Command) -> Command:
    """The options that say what to extract, but for the model."""
    for option in reversed((*_EXTRACTION, *_ASKING, *_VIEWS, *_AUGMENTATION, strict_option)):
        command = option(command)
    return command


def extraction_of(values: dict[str, Any]) -> ExtractOptions:
    """The options that were given, as the pipeline takes them."""
    from featcache.extraction import ExtractOptions

    return ExtractOptions(
        views=given_views(values),
        augmentation=given(values, AUGMENTATION_NAMES),
        storage=given(values, STORAGE_NAMES),
        **{name: values[name] for name in (*NETWORK_NAMES, *OTHER_NAMES)},
    )


def views_options(command: Command) -> Command:
    """The options that override [views] and [augmentation] of featcache.toml."""
    for option in reversed((*_VIEWS, *_AUGMENTATION)):
        command = option(command)
    return command


def view_count_options(command: Command) -> Command:
    """The options that override [views] of featcache.toml."""
    for option in reversed(_VIEWS):
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


def find_cache_of(folder: Path, name: str | None) -> Cache:
    """The cache that `name` means: its folder, or a name in the project that `folder` lies in."""
    from featcache.store import RECIPE_FILE, find_cache, open_cache

    if name is not None and (Path(name) / RECIPE_FILE).is_file():
        return open_cache(name)
    return find_cache(open_project(folder).cache_folder, name)


def named_models(models: Sequence[str]) -> list[str]:
    """The models that were asked for; 'all' stands for those of the study. A wrong name is said before any work."""
    from featcache.backbones import own_models, registry

    named = [name for model in models for name in (registry.STUDY if model == "all" else (model,))]
    for name in named:
        if not (name == registry.PIXELS or own_models.is_file(name) or own_models.is_builder(name)):
            registry.get(name)
    return named


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
