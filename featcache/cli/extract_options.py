"""Options of the commands that render views and extract features, and what they make of them."""

from __future__ import annotations

from typing import Any

from featcache.backbones import NetworkSpec
from featcache.cli.command import Decorator, combined, option
from featcache.cli.options import MODEL_HELP
from featcache.cli.settings import given, options
from featcache.core.project import AugmentationSection, StorageSection, ViewsSection
from featcache.extraction import ExtractOptions


def views_options(**attributes: Any) -> Decorator[Any]:
    """How many views or rows there are: options that replace values of [views]."""
    return options(ViewsSection, "train", "val", "test", "train_rows", "val_rows", "test_rows", "balance", **attributes)


def square_options(*more: str, **attributes: Any) -> Decorator[Any]:
    """How an image becomes the square that a network takes: options that replace values of [views].

    more : other settings of [views], which stand last
    """
    names = ("resize", "interpolation", "crop_share", "padding", "margin", "as_trained", "white", *more)
    return options(ViewsSection, *names, **attributes)


def cells_options(**attributes: Any) -> Decorator[Any]:
    """How cells are found and cut out: options that replace values of [views]."""
    names = ("segment", "segment_weights", "background", "cell_margin", "normalise")
    return options(ViewsSection, *names, **attributes)


def augmentation_options(**attributes: Any) -> Decorator[Any]:
    """How views differ from the plain one: options that replace values of [augmentation]."""
    return options(AugmentationSection, "seed", "rotation_deg", "shift", "zoom", "stain", "blur", "noise", **attributes)


_FROM_FILE = "(default: as in featcache.toml)"
extraction_options = combined(
    option(
        "--model",
        "models",
        multiple=True,
        required=True,
        metavar="NAME",
        group="Network",
        help=f"{MODEL_HELP}; 'pixels' for the rendered views, 'all' for the eight of the study. Repeatable.",
    ),
    options(
        NetworkSpec,
        *("weights", "weights_seed", "input_size_px", "preprocessing", "mean", "std", "colour_order"),
        *("layers", "pooling", "tokens", "interpolate_positions", "precision", "unsafe"),
        group="Network",
    ),
    options(ExtractOptions, "engine", "batch_rows", group="Engine"),
    views_options(group=f"Views {_FROM_FILE}", default_text=""),
    square_options("um_per_px", group=f"Input {_FROM_FILE}", default_text=""),
    cells_options(group=f"Cells {_FROM_FILE}", default_text=""),
    augmentation_options(group=f"Augmentation {_FROM_FILE}", default_text=""),
    options(StorageSection, "format", "dtype", group=f"Storage {_FROM_FILE}", default_text=""),
    options(ExtractOptions, "reuse_from", "no_remote", "offline", group="Reuse and remotes"),
    options(ExtractOptions, "allow_nonfinite", "check_bytes", "strict"),
)
"""The network, the views and what to do with them: options of extract and explain."""


def extraction_of(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `featcache.extract` that `extraction_options` stand for."""
    return {
        "views": given(values, ViewsSection),
        "augmentation": given(values, AugmentationSection),
        **given(values, StorageSection),
        **given(values, NetworkSpec),
        **given(values, ExtractOptions),
    }
